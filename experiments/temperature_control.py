"""Temperature control: gap and temperature under every preset of the paper without swaps, from shared starts.

Fixed (FLT), scheduled (TS) and reparametrized (TR, SLRT) temperatures, compared with the baseline, which learns
β = exp(ν). All runs have the same mismatched starts and the same duration. Source: Yaras et al. 2025, section 4 and
tables 2-4, where CLIP is trained; here the gradient flow runs on free rows.

The order depends on the time of comparison: at t = 1e4 (first seed) FLT 4e-2 (0.627) and TS S3 (0.622) are still above
Baseline (0.619); at t = 1e6, shown here, they are below it.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import flowsim as fs
from flowsim.progress import Progress, track

SEED = 0
FULL = {"seeds": 3, "presets": [n for n in fs.schedules.names() if not fs.schedules.get(n).swap.active]}
QUICK = {"seeds": 2, "presets": ["Baseline", "SLRT 0.1", "FLT 1e-2", "FLT 2e-2", "FLT 4e-2", "FLT 7e-2"]}

PAIRS, DIM, GAMMA0, T1 = 16, 8, 0.3, 1e6
OBSERVABLES = ("modality_gap", "temperature", "margin")
#: Spaced evenly in the logarithm of t, and in t itself for schedules.
TS = np.unique(np.concatenate([[0.0], np.geomspace(1e-3, T1, 120), np.linspace(0.0, T1, 122)[1:]]))


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    presets, seeds = sizes["presets"], sizes["seeds"]
    start = fs.initial.cones(PAIRS, DIM, GAMMA0)
    series = {name: np.empty((len(presets), seeds, len(TS))) for name in OBSERVABLES}
    status = np.empty((len(presets), seeds), dtype=object)
    for i, k in track([(i, k) for i in range(len(presets)) for k in range(seeds)], progress, "integrating"):
        flow = fs.GradientFlow.from_preset(presets[i])
        result = fs.simulate(flow, start, ts=TS, observables=OBSERVABLES, snapshots=[0.0], seed=SEED + k)
        status[i, k] = result.status.code.name
        for name, values in series.items():
            values[i, k] = result.series[name]
    record = xr.Dataset(coords={"preset": presets, "time": TS})
    for name, values in series.items():
        record[name] = (("preset", "seed", "time"), values)
    record["status"] = (("preset", "seed"), status.astype(str))
    final = series["modality_gap"][:, :, -1].mean(axis=1)
    for name, value in zip(presets, final, strict=True):
        record.attrs[f"final_gap {name}"] = float(value)
    return record


#: Columns: title, prefixes of the presets' names, and the time axis, which is linear for schedules.
FAMILIES = (
    ("fixed", ("FLT",), "log"),
    ("scheduled", ("TS",), "linear"),
    ("learned", ("TR", "SLRT"), "log"),
)
WORDS = {
    "FLT": r"FLT: fixed $\tau$",
    "TS": "TS: temperature scheduling (S: linear, A: cosine)",
    "TR": r"TR: temperature reparametrization, $\beta = e^{\nu/s}$ or softplus",
    "SLRT": r"SLRT: smaller learning-rate ratio $r$ of the temperature",
}
COLOURS = ("blue", "vermilion", "green", "purple", "orange", "sky", "black", "grey")
LINES = ("-", (0, (5, 1.5)), (0, (1, 1)), (0, (5, 1.5, 1, 1.5)))
MARKERS = "os^Dv<>P"


def _styles(presets: list[str]) -> dict[str, dict]:
    """Colour, line and marker of each preset: within a family no two have the same colour or marker."""
    styles: dict[str, dict] = {"Baseline": {"color": "black", "ls": (0, (4, 1.5)), "marker": "*", "lw": 1.6}}
    for _, prefixes, _ in FAMILIES:
        for k, name in enumerate(p for p in presets if p.startswith(prefixes)):
            colour = fs.plot.COLOURS[COLOURS[k]]
            styles[name] = {"color": colour, "ls": LINES[k % len(LINES)], "marker": MARKERS[k], "lw": 1.1}
    return styles


def plot(record: xr.Dataset) -> Figure:
    plot_ = fs.plot
    figure = Figure(figsize=(plot_.PAGE, 6.2), layout="constrained")
    presets = [str(p) for p in record["preset"].to_numpy()]
    families = [f for f in FAMILIES if any(p.startswith(f[1]) for p in presets)]
    grid = figure.add_gridspec(2, len(families) + 1)
    time = record["time"].to_numpy()
    styles = _styles(presets)
    for column, (title, prefixes, scale) in enumerate(families):
        members = [p for p in presets if p.startswith(prefixes)]
        for row, name in enumerate(("modality_gap", "temperature")):
            ax = figure.add_subplot(grid[row, column])
            for k, preset in enumerate(["Baseline", *members]):
                # Curves show one seed, the right side all seeds. Markers at different places on each curve.
                places = np.geomspace(1e-2, 10**5.3, 6) if scale == "log" else np.linspace(0.06, 0.86, 6) * T1
                shift = 10 ** (0.1 * k) if scale == "log" else 1 + 0.02 * k
                every = np.unique(np.searchsorted(time[2:-1], places * shift))
                ax.plot(
                    time[1:],
                    record[name].sel(preset=preset)[0, 1:],
                    label=preset,
                    ms=3,
                    markevery=list(every),
                    zorder=3 if preset == "Baseline" else 2,
                    **styles[preset],
                )
            if scale == "log":
                ax.set(xscale="log", xlim=(time[1], time[-1]), xticks=[1e-3, 1, 1e3, 1e6])
                ax.xaxis.set_minor_locator(NullLocator())
            else:
                ax.set(xlim=(0, time[-1]), xticks=np.array([0, 0.5, 1]) * T1)
                ax.set_xticklabels(["0", r"$5 \times 10^5$", "$10^6$"])
            if row == 0:
                ax.set(ylim=(0, 0.84))
                ax.set_xticklabels([])
                ax.set_title(rf"$\bf{{({'abc'[column]})}}$ {title}")
            else:
                ax.set(yscale="log", ylim=(0.008, 0.6), xlabel=plot_.TIME_LABEL)
                # Below the axes, where it covers no data.
                ax.legend(
                    loc="upper center",
                    bbox_to_anchor=(0.5, -0.25),
                    ncols=2,
                    fontsize=7,
                    labelspacing=0.2,
                    columnspacing=0.8,
                    handlelength=2.4,
                )
            if column == 0:
                ax.set_ylabel(plot_.label(name))
            else:
                ax.set_yticklabels([])

    ax = figure.add_subplot(grid[:, -1])
    final = record["modality_gap"][:, :, -1].to_numpy()
    order = np.argsort(-final.mean(axis=1))
    for rank, i in enumerate(order):
        style = styles[presets[i]]
        ax.plot(
            final[i],
            np.full(final.shape[1], rank),
            ls="",
            marker=style["marker"],
            ms=3.6,
            color=style["color"],
            alpha=0.55,
            mew=0,
            clip_on=False,
        )
        ax.plot(final[i].mean(), rank, "|", ms=9, mew=1.6, color=style["color"], clip_on=False)
    baseline = final[presets.index("Baseline")].mean()
    ax.axvline(baseline, color="black", lw=0.8, ls=(0, (4, 1.5)), zorder=0)
    ax.set_yticks(range(len(order)), [presets[i] for i in order])
    ax.get_yticklabels()[list(order).index(presets.index("Baseline"))].set_fontweight("bold")
    ax.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, 0.84), xticks=[0, 0.25, 0.5, 0.75])
    ax.set_xlabel(rf"gap $\Delta$ at $t = {plot_.time_text(T1).strip('$')}$")
    ax.set_title(rf"$\bf{{({'abcd'[len(families)]})}}$ {record.sizes['seed']} seeds; |: mean")
    words = [text for prefix, text in WORDS.items() if any(p.startswith(prefix) for p in presets)]
    figure.supxlabel(
        "; ".join(words[:2]) + ";\n" + "; ".join(words[2:]) + ".\n"
        r"Baseline (dashed, everywhere): learned $\beta = e^\nu$, $\tau_0 = 0.07$, $r = 1$. Schedules end at "
        rf"$t = {plot_.time_text(T1).strip('$')}$; (b) has a linear time axis." + "\n"
        rf"Free rows on the sphere, mismatched random cones: $n = {PAIRS}$, $d = {DIM}$, "
        rf"$\gamma_0 = {GAMMA0}$; curves: first seed",
        fontsize=8,
    )
    return figure
