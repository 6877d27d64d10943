"""The gap at a fixed time over starting temperature τ0 and starting height γ0, mismatched against matched.

Free rows on the sphere, β = exp(ν), r = 1. The gap of matched starts closes from the beginning; that of mismatched ones
first opens up to a peak, and stays enlarged until late times. This goes beyond the paper, whose runs all start at
τ0 = 0.07; compare Yaras et al. 2025, section 3.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.progress import Progress, track

SEED = 0
FULL = {"temperatures": 13, "heights": 11, "seeds": 2}
QUICK = {"temperatures": 5, "heights": 4, "seeds": 1}

PAIRS, DIM, T1 = 16, 8, 1e4
STARTS = ("mismatched", "matched")
OBSERVABLES = ("modality_gap", "temperature", "margin")
TS = np.concatenate([[0.0], np.geomspace(1e-3, T1, 160)])


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    temperatures = np.geomspace(0.01, 1.0, sizes["temperatures"])
    heights = np.linspace(0.03, 0.9, sizes["heights"])
    shape = (len(STARTS), len(heights), len(temperatures), sizes["seeds"])
    first, peak, final = (np.empty(shape) for _ in range(3))
    for index in track(list(np.ndindex(shape)), progress, "integrating"):
        kind, j, i, seed = index
        flow = fs.GradientFlow(schedule=fs.temperature.Learnable(init=temperatures[i]))
        if STARTS[kind] == "matched":
            start = fs.initial.matched(PAIRS, DIM - 1, heights[j])
        else:
            start = fs.initial.cones(PAIRS, DIM, heights[j])
        result = fs.simulate(flow, start, ts=TS, observables=OBSERVABLES, snapshots=[0.0], seed=SEED + seed)
        gap = result.series["modality_gap"]
        first[index], peak[index], final[index] = gap[0], gap.max(), gap[-1]
    record = xr.Dataset(coords={"start": list(STARTS), "height": heights, "temperature": temperatures})
    for name, values in (("initial_gap", first), ("peak_gap", peak), ("final_gap", final)):
        record[name] = (("start", "height", "temperature", "seed"), values)
    enlarged = (peak - first > 1e-3).mean(axis=(1, 2, 3))
    record.attrs.update({f"fraction_enlarged_{s}": float(f) for s, f in zip(STARTS, enlarged, strict=True)})
    return record


def plot(record: xr.Dataset) -> Figure:
    plot_ = fs.plot
    figure = Figure(figsize=(plot_.PAGE, 5.2), layout="constrained")
    axes = figure.subplots(2, 2, sharex=True, sharey=True)
    mean = record.mean("seed")
    mismatched, matched = mean.sel(start="mismatched"), mean.sel(start="matched")
    at = rf"t = {plot_.time_text(T1).strip('$')}"
    gap_levels = np.arange(0.2, 2.0, 0.2)
    shared = {"cmap": "cividis", "vmin": 0.0, "vmax": float(mean["final_gap"].max())}
    kept = mismatched["final_gap"] / mismatched["initial_gap"]
    spread = float(np.abs(kept - 1).max())
    growth = mismatched["peak_gap"] - mismatched["initial_gap"]
    panels = (
        (mismatched["final_gap"], gap_levels, shared, rf"mismatched start: gap at ${at}$"),
        (matched["final_gap"], gap_levels, shared, rf"matched start: gap at ${at}$"),
        (
            growth,
            np.arange(0.02, 1.0, 0.02),
            {"cmap": "cividis", "vmin": 0.0},
            r"mismatched start: peak gap $-$ initial gap",
        ),
        (
            kept,
            np.array([0.6, 0.7, 0.8, 0.9, 1.0, 1.1]),
            {"cmap": "RdBu_r", "vmin": 1 - spread, "vmax": 1 + spread},
            rf"mismatched start: gap at ${at}$ / initial gap",
        ),
    )
    labels = (r"$\Delta$", r"$\Delta$", r"$\max_t\Delta - \Delta(0)$", r"$\Delta(10^4)\,/\,\Delta(0)$")
    for ax, letter, label, (field, levels, colours, title) in zip(axes.flat, "abcd", labels, panels, strict=True):
        plot_.phase_diagram(field, "temperature", "height", ax, levels=levels, colourbar=False, **colours)
        figure.colorbar(ax.collections[0], ax=ax, label=label, pad=0.02)
        ax.set(xlabel=None, ylabel=None)
        ax.set_title(rf"$\bf{{({letter})}}$ {title}")
    for ax in axes[1]:
        ax.set_xlabel(r"starting temperature $\tau_0$")
    for ax in axes[:, 0]:
        ax.set_ylabel(r"starting height $\gamma_0$")
    seeds = record.sizes["seed"]
    enlarged = 100 * record.attrs["fraction_enlarged_matched"]
    figure.supxlabel(
        rf"Free rows on the sphere, random cones: $n = {PAIRS}$, $d = {DIM}$, $\beta = e^\nu$, $r = 1$, "
        f"mean of {seeds} seed{'s' * (seeds > 1)}.\n"
        "One cell per grid point, contours from a spline. "
        rf"Of the matched starts {enlarged:.0f} % enlarge (by more than 0.001).",
        fontsize=8,
    )
    return figure
