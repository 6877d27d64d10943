"""Temperature control: gap and temperature under every preset of the paper without swaps, from shared starts.

Fixed (FLT), scheduled (TS) and reparametrized (TR, SLRT) temperatures, against the baseline, which learns
β = exp(ν). All runs share their mismatched starts and their time. Source: Yaras et al. 2025, section 4 and
tables 2-4; there CLIP is trained, here the gradient flow runs on free rows.

The order depends on the time of comparison, which is a choice: at t = 1e4 (first seed) FLT 4e-2 (0.627) and TS
S3 (0.622) still lie above Baseline (0.619); at t = 1e6, shown here, they lie below it.
"""

import matplotlib
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import flowsim as fs

SEED = 0
FULL = {"seeds": 3, "presets": [n for n in fs.schedules.names() if not fs.schedules.get(n).swap.active]}
QUICK = {"seeds": 2, "presets": ["Baseline", "SLRT 0.1", "FLT 1e-2", "FLT 2e-2", "FLT 4e-2", "FLT 7e-2"]}

PAIRS, DIM, GAMMA0, T1 = 16, 8, 0.3, 1e6
OBSERVABLES = ("modality_gap", "temperature", "margin")
TS = np.concatenate([[0.0], np.geomspace(1e-3, T1, 160)])


def compute(quick: bool, progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    presets, seeds = sizes["presets"], sizes["seeds"]
    start = fs.initial.cones(PAIRS, DIM, GAMMA0)
    series = {name: np.empty((len(presets), seeds, len(TS))) for name in OBSERVABLES}
    status = np.empty((len(presets), seeds), dtype=object)
    for i, k in progress([(i, k) for i in range(len(presets)) for k in range(seeds)], "integrating"):
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


#: Columns: title, prefix of the presets' names, colour map, its range
FAMILIES = (
    ("fixed (FLT)", ("FLT",), "viridis", (0.0, 0.85)),
    ("scheduled (TS)", ("TS",), "plasma", (0.0, 0.8)),
    ("learned (TR, SLRT)", ("TR", "SLRT"), "cividis", (0.0, 0.85)),
)


def plot(record: xr.Dataset) -> Figure:
    plot_ = fs.plot
    figure = Figure(figsize=(plot_.PAGE, 4.6), layout="constrained")
    presets = [str(p) for p in record["preset"].to_numpy()]
    families = [f for f in FAMILIES if any(p.startswith(f[1]) for p in presets)]
    grid = figure.add_gridspec(2, len(families) + 1, width_ratios=[1.0] * len(families) + [1.0])
    time = record["time"].to_numpy()
    colour_of = {"Baseline": "black"}
    for column, (title, prefixes, cmap, (low, high)) in enumerate(families):
        members = [p for p in presets if p.startswith(prefixes)]
        shades = matplotlib.colormaps[cmap](np.linspace(low, high, len(members)))
        colour_of.update(zip(members, shades, strict=True))
        for row, name in enumerate(("modality_gap", "temperature")):
            ax = figure.add_subplot(grid[row, column])
            for preset in ["Baseline", *members]:
                # One seed for the curves; all seeds at the right.
                ax.plot(
                    time[1:],
                    record[name].sel(preset=preset)[0, 1:],
                    color=colour_of[preset],
                    lw=1.6 if preset == "Baseline" else 1.1,
                    ls=(0, (4, 1.5)) if preset == "Baseline" else "-",
                    label=preset,
                    zorder=3 if preset == "Baseline" else 2,
                )
            ax.set(xscale="log", xlim=(time[1], time[-1]), xticks=[1e-3, 1, 1e3, 1e6])
            ax.xaxis.set_minor_locator(NullLocator())
            if row == 0:
                ax.set(ylim=(0, 0.84), xticklabels=[])
                ax.set_title(rf"$\bf{{({'abc'[column]})}}$ {title}")
            else:
                ax.set(yscale="log", ylim=(0.008, 0.6), xlabel=plot_.TIME_LABEL)
            if column == 0:
                ax.set_ylabel(plot_.label(name))
            else:
                ax.set_yticklabels([])

    ax = figure.add_subplot(grid[:, -1])
    final = record["modality_gap"][:, :, -1].to_numpy()
    order = np.argsort(-final.mean(axis=1))
    for rank, i in enumerate(order):
        colour = colour_of[presets[i]]
        ax.plot(
            final[i],
            np.full(final.shape[1], rank),
            "o",
            ms=3.6,
            color=colour,
            alpha=0.55,
            mew=0,
            clip_on=False,
        )
        ax.plot(final[i].mean(), rank, "|", ms=9, mew=1.6, color=colour, clip_on=False)
    baseline = final[presets.index("Baseline")].mean()
    ax.axvline(baseline, color="black", lw=0.8, ls=(0, (4, 1.5)), zorder=0)
    ax.set_yticks(range(len(order)), [presets[i] for i in order])
    for text, i in zip(ax.get_yticklabels(), order, strict=True):
        text.set_color(colour_of[presets[i]])
        text.set_fontweight("bold" if presets[i] == "Baseline" else "normal")
    ax.set(ylim=(len(order) - 0.5, -0.5), xlim=(0, 0.84), xticks=[0, 0.25, 0.5, 0.75])
    ax.set_xlabel(rf"gap $\Delta$ at $t = {plot_.time_text(T1).strip('$')}$")
    ax.set_title(rf"$\bf{{({'abcd'[len(families)]})}}$ {record.sizes['seed']} seeds, mean")
    figure.supxlabel(
        rf"Free rows on the sphere, mismatched random cones: $n = {PAIRS}$, $d = {DIM}$, "
        rf"$\gamma_0 = {GAMMA0}$; curves: first seed" + "\n"
        r"dashed: Baseline, learned $\beta = e^\nu$, $\tau_0 = 0.07$, $r = 1$; schedules "
        rf"run in $t$ and end at $t = {plot_.time_text(T1).strip('$')}$",
        fontsize=8,
    )
    return figure
