"""Figures of a study, made from records: those of figures 1, 4, 6 and 7 of Yaras et al. 2025. Needs no PyTorch.

Each has two parts, as in the experiments: the numbers (`*_numbers(records) -> xarray.Dataset`), and a drawing that uses
only these (`*_figure(numbers) -> Figure`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

from flowsim import plot
from flowsim.base.checks import check
from flowsim.clip.correlation import rank_correlation
from flowsim.clip.tables import Tables, completed, smoothed_loss, split_name
from flowsim.records.result import TrainingRecord

if TYPE_CHECKING:
    import xarray as xr

#: Number of points of the smoothed training loss to keep.
_POINTS = 150
#: First step of the fit of the slow closing, as in the paper.
_FIRST_STEP = 100


def methods_numbers(records: Mapping[str, TrainingRecord]) -> "xr.Dataset":
    """Numbers of the figure of methods.

    Args:
        records: Records by name, as `study` returns them.

    Returns:
        Curves and final values over (method, seed), gaps at equal loss, and rank correlations.

    Raises:
        FlowsimError: If no run completed, or if their lengths differ.
    """
    import xarray as xr

    tables = Tables.of(records)
    records, _ = completed(records)
    names = dict(zip(tables.methods, range(len(tables.methods)), strict=True))
    shape = (len(names), len(tables.seeds))
    steps = next(iter(records.values())).coordinates["step"]
    curves = {
        name: np.full((*shape, len(steps)), np.nan) for name in ("seen_modality_gap", "modality_gap", "temperature")
    }
    chosen = np.unique(np.linspace(0, tables.steps - 1, _POINTS).astype(int))
    loss = np.full((*shape, len(chosen)), np.nan)
    for name, result in records.items():
        method, seed = split_name(name)
        at = names[method], tables.seeds.index(seed)
        for series, values in curves.items():
            values[at] = result.series[series]
        loss[at] = smoothed_loss(result)[chosen]
    dims = ("method", "seed")
    record = xr.Dataset(
        {name: ((*dims, "step"), values) for name, values in curves.items()}
        | {f"final_{name}": (dims, values) for name, values in tables.values.items()}
        | {f"at_loss_{name}": (dims, values) for name, values in tables.at_loss.items()}
        | {"train_loss": ((*dims, "train_step"), loss)},
        {"method": list(tables.methods), "seed": list(tables.seeds), "step": steps, "train_step": chosen},
    )
    printed = {method: row["modality_gap"] for (_, method), row in tables.paper.items()}
    record["paper_gap"] = ("method", [printed.get(m, math.nan) for m in tables.methods])
    record.attrs["loss_level"] = tables.loss_level
    batch_size = next(iter(records.values())).config["training"]["batch_size"]
    record.attrs["chance_loss"] = math.log(batch_size)
    for name, found in (
        ("paper", tables.with_paper()),
        ("tau", tables.correlation("gap", "temperature")),
        ("recall", tables.correlation("gap", "image_retrieval")),
    ):
        if found is not None:
            record.attrs[f"rho_{name}"] = [found.rho, found.low, found.high]
    return record


def methods_figure(record: "xr.Dataset") -> Figure:
    """Gap, temperature, gap at equal loss; final gap against temperature, the paper's gap, and retrieval.

    Curves are means over seeds; bars in the lower panels are the range over seeds.

    Args:
        record: Numbers from `methods_numbers`.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(plot.PAGE, 5.4), layout="constrained")
    axes = figure.subplots(2, 3)
    methods = [str(m) for m in record["method"].to_numpy()]
    style = _styles(methods)
    mean = record.mean("seed")
    handles = []
    for k, method in enumerate(methods):
        here, draw = mean.sel({"method": method}), {**style[method], "ms": 3}
        gap = here["seen_modality_gap"].interp(step=here["train_step"].to_numpy())
        # Markers at different places on each curve, because some curves overlap.
        for ax, x, y in (
            (axes[0, 0], here["step"], here["seen_modality_gap"]),
            (axes[0, 1], here["step"], here["temperature"]),
            (axes[0, 2], here["train_loss"], gap),
        ):
            ax.plot(x, y, markevery=((k + 0.5) / len(methods) * 0.22, 0.22), **draw)
        for ax, x, y in (
            (axes[1, 0], "final_temperature", "final_gap"),
            (axes[1, 1], "paper_gap", "final_gap"),
            (axes[1, 2], "final_gap", "final_seen_image_retrieval"),
        ):
            one = record.sel({"method": method})
            _with_range(ax, one[x].to_numpy(), one[y].to_numpy(), style[method])
        handles.append(Line2D([], [], label=method, **{**draw, "ms": 5}))
    axes[0, 0].set(xlabel="step", ylabel=r"gap $\Delta$, training pairs", ylim=(0, None))
    axes[0, 1].set(xlabel="step", ylabel=r"temperature $\tau$", yscale="log")
    axes[0, 1].set_yticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes[0, 1].yaxis.set_minor_formatter(NullFormatter())
    axes[0, 2].axvline(record.attrs["loss_level"], color=plot.COLOURS["grey"], lw=1.2, ls=(0, (1, 2)))
    axes[0, 2].set(xlabel="training loss, smoothed", ylabel=r"gap $\Delta$, training pairs", ylim=(0, None))
    axes[0, 2].set_xlim(record.attrs["chance_loss"] + 0.1, 0)
    axes[1, 0].set(xlabel=r"final temperature $\tau$", ylabel=r"final gap $\Delta$, held out", xscale="log")
    axes[1, 0].set_xticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes[1, 0].xaxis.set_minor_formatter(NullFormatter())
    axes[1, 1].set(xlabel=r"gap $\Delta$ in the paper", ylabel=r"final gap $\Delta$, held out")
    axes[1, 2].set(xlabel=r"final gap $\Delta$, held out", ylabel="training image R@1, %")
    titles = ("gap", "temperature", "gap at equal loss", "gap and temperature", "order of the methods",
              "retrieval and gap")  # fmt: skip
    rho = {3: "tau", 4: "paper", 5: None}
    for i, (ax, title) in enumerate(zip(axes.flat, titles, strict=True)):
        found = record.attrs.get(f"rho_{rho.get(i)}")
        text = "" if found is None else rf", $\rho = {found[0]:+.2f}$"
        ax.set_title(rf"$\bf{{({'abcdef'[i]})}}$ {title}{text}", fontsize=8.5)
    seeds = record.sizes["seed"]
    above = f"Curves: mean of {seeds} seeds; bars: range over the seeds." if seeds > 1 else "One seed."
    _legend(
        figure,
        handles,
        methods,
        f"{above} Dotted in (c): the smallest loss that every run reaches.",
        r"$\rho$: Spearman's rank correlation. R@1: recall at 1.",
    )
    return figure


def _with_range(ax: Axes, x: np.ndarray, y: np.ndarray, style: Mapping[str, Any]) -> None:
    """The mean over seeds, with bars from the smallest to the largest; y (seed,), x the same or one number."""
    x, y = np.broadcast_arrays(x, y)
    both = np.isfinite(x) & np.isfinite(y)
    if not both.any():
        return
    x, y = x[both], y[both]
    centre = [float(v.mean()) for v in (x, y)]
    # The mean of equal values can differ from them by rounding.
    across, up = np.maximum([[[c - v.min()], [v.max() - c]] for c, v in zip(centre, (x, y), strict=True)], 0.0)
    ax.errorbar(*centre, xerr=across, yerr=up, elinewidth=0.8, ms=5, **{**style, "ls": ""})


def _legend(figure: Figure, handles: Sequence[Any], methods: Sequence[str], *text: str) -> None:
    """The methods below the figure, their names spelled out, and how to read the panels."""
    heads = {method.split()[0] for method in methods}
    words = [f"{head}: {meaning}" for head, meaning in _MEANINGS.items() if head in heads]
    lines = ["; ".join(words[:3]), "; ".join(words[3:]), *text]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(5, len(handles)),
        handlelength=2.6,
        title="\n".join(line for line in lines if line),
        title_fontsize=7.5,
    )


#: What the paper's names of methods stand for.
_MEANINGS = {
    "FLT": r"fixed temperature $\tau$", "TS": "temperature scheduling", "TR": "temperature reparametrization",
    "SLRT": "smaller learning rate of the temperature", "HS": "hard swap of features", "SS": "soft swap of features",
    "No": "no normalization",
}  # fmt: skip


#: Qualities of a model, in the order of the paper's figures 6 and 7, with their axis labels.
_QUALITIES = {
    "image_retrieval": "image R@1, %", "text_retrieval": "text R@1, %", "zero_shot": "zero-shot accuracy, %",
    "linear_probe": "linear probe, %",
}  # fmt: skip


def qualities(record: "xr.Dataset") -> list[str]:
    """Qualities of `methods_numbers` that were measured, along with gap and uniformity, for at least one method.

    Args:
        record: Numbers from `methods_numbers`.

    Returns:
        Names of the qualities.
    """
    if not np.isfinite(record["final_uniformity"]).any():
        return []
    return [name for name in _QUALITIES if np.isfinite(record[f"final_{name}"]).any()]


def quality_figure(record: "xr.Dataset") -> Figure:
    """Retrieval (Figure 6), zero-shot and linear probe (Figure 7) against gap and uniformity, held out.

    Bars are the range over seeds.

    Args:
        record: Numbers from `methods_numbers`.

    Returns:
        The figure.

    Raises:
        FlowsimError: If none of the qualities was measured.
    """
    shown = qualities(record)
    check(shown, "These records hold no retrieval. Train with observables 'all', and with `labelled` for accuracies.")
    figure = Figure(figsize=(plot.PAGE, 1.3 + 1.55 * len(shown)), layout="constrained")
    axes = figure.subplots(len(shown), 2, squeeze=False, sharex="col", sharey="row")
    methods = [str(m) for m in record["method"].to_numpy()]
    style = _styles(methods)
    for row, quality in enumerate(shown):
        for column, x in enumerate(("gap", "uniformity")):
            ax = axes[row, column]
            here, there = (record[f"final_{name}"].transpose("method", "seed").to_numpy() for name in (x, quality))
            for method, a, b in zip(methods, here, there, strict=True):
                _with_range(ax, a, b, style[method])
            found = rank_correlation(here, there)
            text = "" if found is None else rf" $\rho = {found.rho:+.2f}$ [${found.low:+.2f}$, ${found.high:+.2f}$]"
            ax.set_title(rf"$\bf{{({'abcdefgh'[2 * row + column]})}}${text}", fontsize=8)
            ax.label_outer()
        axes[row, 0].set_ylabel(_QUALITIES[quality])
    axes[-1, 0].set_xlabel(r"gap $\Delta$, held out")
    axes[-1, 1].set_xlabel("uniformity, held out")
    handles = [Line2D([], [], label=method, ms=5, **{**style[method], "ls": ""}) for method in methods]
    text = r"Bars: range over seeds. $\rho$: Spearman's rank correlation [95 % interval]. R@1: recall at 1."
    _legend(figure, handles, methods, text)
    return figure


def shows_gap(run: TrainingRecord) -> bool:
    """Whether a run can be drawn by `gap_figure`: it needs three snapshots, and evaluations after step 100.

    Args:
        run: A training record.

    Returns:
        True if it can be drawn.
    """
    late = run.coordinates["step"] >= _FIRST_STEP
    return "image" in run.snapshots and len(run.snapshot_time) == 3 and int(late.sum()) > 2


def gap_numbers(run: TrainingRecord, early: Mapping[str, TrainingRecord]) -> "xr.Dataset":
    """Numbers of the figure of the gap.

    Args:
        run: Record of a run with snapshots.
        early: Records of the first steps of many runs, from `early_changes`.

    Returns:
        Principal components of each snapshot, the gap of the run with a fit of its slow closing, and the gaps of the
        first steps.

    Raises:
        FlowsimError: If the record holds no embeddings, or if `early` is empty.
    """
    import xarray as xr

    check("image" in run.snapshots, "This record holds no embeddings. Train with `snapshot_pairs` above 0.")
    check(early, "There are no records of first steps. Run `fs.clip.early_changes` first.")
    clouds, shares = [], []
    for k in range(len(run.snapshot_time)):
        both = np.stack([run.snapshots["image"][k], run.snapshots["text"][k]]).astype(float)
        centred = both - both.mean((0, 1))
        _, singular, axes = np.linalg.svd(centred.reshape(-1, centred.shape[-1]), full_matrices=False)
        clouds.append(centred @ axes[:2].T)
        shares.append((singular**2 / (singular**2).sum())[:2])
    steps = run.coordinates["step"]
    at = [int(steps[np.argmin(abs(run.time - t))]) for t in run.snapshot_time]
    record = xr.Dataset(
        {
            "cloud": (("snapshot", "modality", "pair", "axis"), np.array(clouds)),
            "cloud_share": (("snapshot", "axis"), np.array(shares)),
            "cloud_step": ("snapshot", at),
            "gap": ("step", run.series["seen_modality_gap"]),
            "early_gap": (("seed", "early_step"), np.array([r.series["seen_modality_gap"] for r in early.values()])),
            "early_batch_gap": (
                ("seed", "batch_step"),
                np.array([r.training["train_modality_gap"] for r in early.values()]),
            ),
        },
        {"step": steps, "early_step": next(iter(early.values())).coordinates["step"]},
    )
    late = steps >= _FIRST_STEP
    x = -1 / np.log10(steps[late].astype(float)) ** 2
    slope, offset = np.polyfit(x, run.series["seen_modality_gap"][late], 1)
    r2 = np.corrcoef(x, run.series["seen_modality_gap"][late])[0, 1] ** 2
    record.attrs |= {"slope": float(slope), "offset": float(offset), "r2": float(r2), "first": _FIRST_STEP}
    return record


def gap_figure(record: "xr.Dataset") -> Figure:
    """Embeddings at three times (Figure 1), slow closing (Figure 4a), early changes (Figure 4b).

    Args:
        record: Numbers from `gap_numbers`.

    Returns:
        The figure.
    """
    colours = plot.COLOURS
    figure = Figure(figsize=(plot.PAGE, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    axes = [figure.add_subplot(grid[0, 2 * k : 2 * k + 2]) for k in range(3)]
    gaps = record["gap"].interp(step=record["cloud_step"].to_numpy()).to_numpy()
    titles = ("at the start", "after one epoch", "at the end")
    limit = float(abs(record["cloud"]).max()) * 1.05
    for k, ax in enumerate(axes):
        for m, (colour, marker, label) in enumerate(
            ((colours["blue"], "o", "images"), (colours["vermilion"], "s", "texts"))
        ):
            x, y = record["cloud"].isel(snapshot=k, modality=m).to_numpy().T
            ax.plot(x, y, marker, color=colour, ms=2.2, mew=0, alpha=0.6, label=label)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
        share = record["cloud_share"][k].to_numpy()
        ax.set(xlabel=f"PC 1 ({share[0]:.0%})", ylabel=f"PC 2 ({share[1]:.0%})")
        step = int(record["cloud_step"][k])
        ax.set_title(rf"$\bf{{({'abc'[k]})}}$ {titles[k]} (step {step}): $\Delta = {gaps[k]:.2f}$", fontsize=8)
    axes[0].legend(loc="upper right", markerscale=1.8, handletextpad=0.1)
    left, right = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    late = record.sel(step=record["step"] >= record.attrs["first"])
    x = -1 / np.log10(late["step"].to_numpy().astype(float)) ** 2
    left.plot(x, late["gap"], "o", color=colours["blue"], ms=3.5, label="training pairs")
    line = np.array([x.min(), x.max()])
    label = rf"straight line, $R^2 = {record.attrs['r2']:.3f}$"
    left.plot(line, record.attrs["offset"] + record.attrs["slope"] * line, color="black", lw=1, label=label)
    ticks = np.array([100, 200, 500, 1000, 3000])
    left.set_xticks(-1 / np.log10(ticks) ** 2, [f"{t:,}" for t in ticks])
    left.set(xlabel=r"step $t$, on the axis $-1/\log(t)^2$", ylabel=r"gap $\Delta$", ylim=(0, None))
    left.legend(loc="lower left")
    left.set_title(r"$\bf{(d)}$ slow closing")
    gap = record["early_gap"].to_numpy()
    change = gap[:, -1] - gap[:, 0]
    right.hist(change, bins=20, color=colours["blue"], alpha=0.8)
    right.axvline(0, color="black", lw=0.8, label="no change")
    right.axvline(
        change.mean(), color=colours["vermilion"], lw=1.4, ls=(0, (4, 1.5)), label=f"mean {change.mean():+.3f}"
    )
    right.set(xlabel=rf"change of $\Delta$ over {int(record['early_step'][-1])} steps", ylabel="initialisations")
    right.yaxis.set_major_locator(MaxNLocator(integer=True))
    right.legend(loc="upper right")
    right.set_title(rf"$\bf{{(e)}}$ early change: {np.mean(change > 0):.0%} of {len(change)} enlarge")
    figure.supxlabel(
        "(a) to (c): principal components (PC) of images and texts together, with their shares of the variance.\n"
        rf"(d): the line is fitted from step {record.attrs['first']} on; all training pairs are evaluated",
        fontsize=8,
    )
    return figure


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Style of each method: colour and marker show the family; lines and marker fillings differ within it."""
    colours, lines = plot.COLOURS, ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
    family = {"Baseline": ("black", "o"), "FLT": ("blue", "s"), "TS": ("vermilion", "^"), "TR": ("green", "v"),
              "SLRT": ("purple", "D"), "HS": ("orange", "p"), "SS": ("sky", "h"), "No": ("grey", "P")}  # fmt: skip
    fills = ("full", "white", "bottom", "left", "top", "right")
    found: dict[str, dict[str, Any]] = {}
    families = [method.split()[0] for method in methods]
    for k, (method, head) in enumerate(zip(methods, families, strict=True)):
        colour, marker = family[head]
        before = families[:k].count(head)
        fill = fills[before % len(fills)]
        found[method] = {
            "color": colours[colour], "ls": lines[before % len(lines)], "lw": 1.2,
            "marker": marker if before < len(fills) else "8",  # another shape for the hottest of eight temperatures
            "fillstyle": "full" if fill == "white" else fill, "markerfacecoloralt": "white",
            "markerfacecolor": "white" if fill == "white" else colours[colour],
        }  # fmt: skip
    return found
