"""Real pairs: linear heads on frozen features of emoji under eight methods; gap, temperature, retrieval, mispairing.

The heads are the linear encoders of the simulator, trained with AdamW on the pictures and names of 1,332 emoji; 171
others are held out. The methods are those of Yaras et al. 2025, tables 2-5; the comparison at equal temperature was
added here.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import flowsim as fs
from flowsim.claims.real_pairs import MATCHED_AT, MATCHED_SWAP, METHODS, MISPAIRED, SETTINGS, TEMPERATURES
from flowsim.heads.training import train_together
from flowsim.progress import Progress, track

SEED = 0
#: Only the held-out emoji and as many training pairs are embedded in evaluations.
FULL = {"steps": 800, "seeds": 3, "evaluations": 12, "pairs": 171}
QUICK = {"steps": 300, "seeds": 2, "evaluations": 5, "pairs": 171}

#: numbers of the record, and the series they are taken from
NUMBERS = {
    "gap": "modality_gap", "image_to_text": "image_to_text_at_1", "text_to_image": "text_to_image_at_1",
    "zero_shot": "zero_shot",
}  # fmt: skip


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    settings = SETTINGS.replace(**{name: sizes[name] for name in ("steps", "evaluations", "pairs")})
    seeds = range(SEED, SEED + sizes["seeds"])
    fixed = [f"FLT {tau:g}" for tau in TEMPERATURES]
    jobs: dict[tuple[str, float], fs.Schedule] = {(name, 0.0): fs.schedules.get(name) for name in METHODS}
    jobs |= {(name, 0.0): _fixed(tau) for name, tau in zip(fixed, TEMPERATURES, strict=True)}
    jobs |= {(f"{_flt(tau)} swap", 0.0): _fixed(tau, fs.HardSwap(MATCHED_SWAP)) for tau in MATCHED_AT}
    jobs |= {(name, p): jobs[name, 0.0] for name in ("Baseline", _flt(0.1)) for p in MISPAIRED if p > 0}
    runs: dict[tuple[str, float], list] = {}
    known: dict[str, tuple[str, float]] = {}
    for (name, mispaired), schedule in track(list(jobs.items()), progress, "training"):
        # A preset and a fixed temperature may be the same schedule.
        key = f"{schedule!r} {mispaired}"
        if key not in known:
            known[key] = (name, mispaired)
            own = settings.replace(mispaired=mispaired, observables="retrieval" if mispaired == 0 else "gap")
            if name not in METHODS and mispaired == 0:
                own = own.replace(evaluations=1)  # of which only the last is drawn
            # Runs of one structure have one program: calls of as many seeds share it.
            runs[name, mispaired] = train_together(own, [(schedule, seed, None) for seed in seeds])
        else:
            runs[name, mispaired] = runs[known[key]]
    return _record(runs, fixed, list(seeds))


def _fixed(tau: float, swap: fs.HardSwap | None = None) -> fs.Schedule:
    policy = fs.temperature.Fixed(tau)
    return fs.Schedule(policy) if swap is None else fs.Schedule(policy, swap)


def _flt(tau: float) -> str:
    return f"FLT {tau:g}"


def _record(runs: dict, fixed: list[str], seeds: list[int]) -> xr.Dataset:
    first = runs[METHODS[0], 0.0][0]
    step, every = first.coordinates["step"], np.arange(first.training["train_temperature"].size)
    coords = {"setting": list(METHODS), "seed": seeds, "step": step, "update": every}
    coords |= {"tau": list(TEMPERATURES), "matched": list(MATCHED_AT), "mispaired": list(MISPAIRED)}

    def final(name: str, series: str) -> list[float]:
        return [run.series[series][-1] for run in runs[name, 0.0]]

    def curves(name: str, fraction: float) -> list[np.ndarray]:
        return [run.series["modality_gap"] for run in runs[name, fraction]]

    columns = {
        "curve": (("setting", "seed", "step"), [curves(m, 0.0) for m in METHODS]),
        "temperature": (("setting", "update"), [runs[m, 0.0][0].training["train_temperature"] for m in METHODS]),
    }
    for number, series in NUMBERS.items():
        columns[number] = (("setting", "seed"), [final(m, series) for m in METHODS])
        columns[f"fixed_{number}"] = (("tau", "seed"), [final(m, series) for m in fixed])
        columns[f"swapped_{number}"] = (("matched", "seed"), [final(f"{_flt(t)} swap", series) for t in MATCHED_AT])
    for label, name in (("learned", "Baseline"), ("hot", _flt(0.1))):
        columns[f"mispaired_{label}"] = (("mispaired", "seed", "step"), [curves(name, p) for p in MISPAIRED])
    settings = {"dim": SETTINGS.dim, "batch": SETTINGS.batch_size, "lr": SETTINGS.lr}
    found = {name: (dims, np.asarray(values, np.float64)) for name, (dims, values) in columns.items()}
    return xr.Dataset(found, coords, settings)


#: method -> (colour, marker)
STYLE = {
    "Baseline": ("black", "*"), "FLT 1e-2": ("blue", "o"), "FLT 4e-2": ("sky", "o"), "FLT 1e-1": ("grey", "o"),
    "TS S3": ("orange", "s"), "SLRT 0.1": ("green", "^"), "TR softplus": ("purple", "v"), "HS 1e-2": ("vermilion", "D"),
}  # fmt: skip


def plot(record: xr.Dataset) -> Figure:
    figure = Figure(figsize=(fs.plot.PAGE, 8.0), layout="constrained")
    axes = figure.subplots(3, 2)
    lines = _curves(axes[0, 0], record)
    _temperatures(axes[0, 1], record)
    _fixed_temperatures(axes[1, 0], record)
    _scatter(axes[1, 1], record)
    _matched(axes[2, 0], record)
    _mispaired(axes[2, 1], record)
    figure.legend(
        lines, [line.get_label() for line in lines], loc="outside upper center", ncols=4, handlelength=2.0,
        columnspacing=1.4,
    )  # fmt: skip
    seeds, attrs = record.sizes["seed"], record.attrs
    figure.supxlabel(
        f"Emoji, 1,332 training and 171 held-out pairs; linear heads, $d = {attrs['dim']}$, batches of "
        f"{attrs['batch']}, {record.sizes['update']} steps of AdamW at {attrs['lr']:g}.\n"
        f"Gap and retrieval of held-out pairs: mean of {seeds} seeds, and range over the seeds (bands, bars). R@1: "
        "mean of both directions",
        fontsize=8,
    )
    return figure


def _recall(record: xr.Dataset, prefix: str = "") -> np.ndarray:
    """R@1 in percent, mean of both directions, with the seeds along the last axis."""
    return 50 * (record[f"{prefix}image_to_text"] + record[f"{prefix}text_to_image"]).to_numpy()


def _band(ax: Axes, x: np.ndarray, values: np.ndarray, **style) -> list:
    """Mean over seeds (first axis) as a line, and their range as a band."""
    lines = ax.plot(x, values.mean(axis=0), **style)
    ax.fill_between(x, values.min(axis=0), values.max(axis=0), color=style["color"], alpha=0.2, lw=0)
    return lines


def _bars(values: np.ndarray) -> np.ndarray:
    """Distances from the mean over seeds (last axis) to their range, as matplotlib's error bars want it."""
    mean = values.mean(axis=-1)
    return np.stack([mean - values.min(axis=-1), values.max(axis=-1) - mean])


def _curves(ax: Axes, record: xr.Dataset) -> list:
    lines = []
    for name, (colour, marker) in STYLE.items():
        values = record["curve"].sel(setting=name).to_numpy()
        style = {"color": fs.plot.COLOURS[colour], "marker": marker, "ms": 6 if marker == "*" else 3.5, "label": name}
        lines += _band(ax, record["step"].to_numpy(), values, **style)
    ax.set(xlabel="step", ylabel=r"held-out gap $\Delta$", xscale="log", yscale="log", xlim=(1, None))
    ax.set_title(r"$\bf{(a)}$ the gap by method")
    ax.set_yticks([0.1, 0.2, 0.4, 0.8], ["0.1", "0.2", "0.4", "0.8"])
    ax.yaxis.set_minor_formatter(NullFormatter())
    return lines


def _temperatures(ax: Axes, record: xr.Dataset) -> None:
    every = max(record.sizes["update"] // 6, 1)
    for name, (colour, marker) in STYLE.items():
        values = record["temperature"].sel(setting=name)
        ms = 6 if marker == "*" else 3.5
        ax.plot(values["update"], values, color=fs.plot.COLOURS[colour], marker=marker, ms=ms, markevery=every)
    ax.set(xlabel="step", ylabel=r"temperature $\tau$ (first seed)", yscale="log", title=r"$\bf{(b)}$ temperature")
    _plain_temperatures(ax.yaxis)


def _plain_temperatures(axis) -> None:
    axis.set_ticks([0.01, 0.02, 0.04, 0.1], labels=["0.01", "0.02", "0.04", "0.1"])
    axis.set_minor_formatter(NullFormatter())


def _fixed_temperatures(ax: Axes, record: xr.Dataset) -> None:
    colours, tau, gap = fs.plot.COLOURS, record["tau"].to_numpy(), record["fixed_gap"].to_numpy()
    right = ax.twinx()
    (line, *_), (recall, *_), (accuracy, *_) = (
        target.errorbar(tau, values.mean(axis=-1), _bars(values), fmt=marker, color=colours[colour], capsize=2, ms=4)
        for target, values, marker, colour in (
            (ax, gap, "o-", "black"),
            (right, _recall(record, "fixed_"), "s--", "blue"),
            (right, 100 * record["fixed_zero_shot"].to_numpy(), "^:", "vermilion"),
        )
    )
    ax.set(xscale="log", ylim=(0, None), xlabel=r"fixed temperature $\tau$", ylabel=r"held-out gap $\Delta$")
    right.set(ylabel="R@1, zero-shot accuracy (%)", ylim=(10, 35))
    right.spines["right"].set_visible(True)
    _plain_temperatures(ax.xaxis)
    ax.legend([line, recall, accuracy], ["gap", "R@1", "zero-shot"], loc="upper center", handlelength=2.4)
    ax.set_title(r"$\bf{(c)}$ fixed temperatures")


def _scatter(ax: Axes, record: xr.Dataset) -> None:
    gap, recall = record["gap"].to_numpy(), _recall(record)
    for k, (colour, marker) in enumerate(STYLE.values()):
        ax.errorbar(
            gap[k].mean(), recall[k].mean(), _bars(recall[k])[:, None], _bars(gap[k])[:, None], fmt=marker,
            color=fs.plot.COLOURS[colour], ms=8 if marker == "*" else 5, capsize=2, lw=0.8,
        )  # fmt: skip
    ax.set(xscale="log", xlabel=r"held-out gap $\Delta$", ylabel="held-out R@1 (%)")
    ax.set_xticks([0.1, 0.2, 0.4, 0.8], ["0.1", "0.2", "0.4", "0.8"])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_title(r"$\bf{(d)}$ gap against retrieval")


def _matched(ax: Axes, record: xr.Dataset) -> None:
    """Arrows from no swap to a swap at the same fixed temperature."""
    colours = (fs.plot.COLOURS[name] for name in ("blue", "vermilion", "green"))
    for tau, colour in zip(record["matched"].to_numpy(), colours, strict=False):
        points = []
        for prefix, source, marker in (
            ("fixed_", record.sel(tau=tau), "o"),
            ("swapped_", record.sel(matched=tau), "D"),
        ):
            gap, recall = source[f"{prefix}gap"].to_numpy(), _recall(source, prefix)
            x, y = float(gap.mean()), float(recall.mean())
            points.append((x, y))
            text = rf"$\tau = {tau:g}$, " + ("no swap" if marker == "o" else "swap")
            ax.errorbar(
                x, y, _bars(recall)[:, None], _bars(gap)[:, None], fmt=marker, color=colour, ms=5, capsize=2,
                lw=0.8, label=text,
            )  # fmt: skip
        ax.annotate("", points[1], points[0], arrowprops={"arrowstyle": "->", "color": colour, "lw": 1.0})
    ax.set(xlabel=r"held-out gap $\Delta$", ylabel="held-out R@1 (%)")
    ax.legend(loc="upper right")
    ax.set_title(rf"$\bf{{(e)}}$ equal temperature: hard swap, $p = {MATCHED_SWAP:g}$")


def _mispaired(ax: Axes, record: xr.Dataset) -> None:
    step, fractions = record["step"].to_numpy(), record["mispaired"].to_numpy()
    colours = [fs.plot.COLOURS[name] for name in ("black", "blue", "orange", "vermilion")]
    for label, line in (("hot", "-"), ("learned", (0, (4, 1.5)))):
        for fraction, colour in zip(fractions, colours, strict=True):
            values = record[f"mispaired_{label}"].sel(mispaired=fraction).to_numpy()
            text = f"{fraction:.0%}" if label == "hot" else None
            _band(ax, step, values, color=colour, ls=line, label=text)
    ax.plot([], [], color="0.3", ls="-", label=r"$\tau = 0.1$ fixed")
    ax.plot([], [], color="0.3", ls=(0, (4, 1.5)), label=r"$\tau$ learned")
    final = [record[f"mispaired_{label}"] for label in ("hot", "learned")]
    late = [values.where(values["step"] >= step[-1] / 4, drop=True) for values in final]
    ax.set_xlim(step[-1] / 8, step[-1])
    ax.set_ylim(0.9 * min(float(v.min()) for v in late), 1.25 * max(float(v.max()) for v in late))
    ax.set(xlabel="step", ylabel=r"held-out gap $\Delta$")
    ax.legend(ncols=2, loc="upper right")
    ax.set_title(r"$\bf{(f)}$ captions of other emoji in training")
