"""Slow closure and early enlargement of the gap in the simulator: counterpart of Figure 4 of the paper.

The paper shows CLIP trained on 2,048 pairs; this is the gradient flow itself. (a) Gap against −1/ln(t)²: parallel
cones approach the straight line of Theorem 3.2, free rows on the sphere do not. (b) Change of the gap within a short
time from random mismatched starts: the gap always opens if γ0 ≫ 1/√(2n), but not if γ0 is smaller than the random
distance between the centres. Source: Yaras et al. 2025, Figure 4.

The short time of (b) is a choice: with γ0 = 0.3, 20 seeds gave 100 % positive at t = 0.3, 95 % at t = 1, 30 % at
t = 3 and none at t = 10, when the gap is closing.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim import theory
from flowsim.progress import Progress, track

SEED = 0
FULL = {"starts": 100, "seeds": 3}
QUICK = {"starts": 25, "seeds": 1}

PAIRS, DIM, GAMMA0 = 16, 8, 0.3
HEIGHTS = (0.3, 0.05)
#: The short time of panel (b), and the range of panel (a).
EARLY, T_FIRST, T_LAST = 0.3, 1e2, 1e100
OBSERVABLES = ("modality_gap", "temperature", "direction_margin")


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    # Both panels use 161 times, so they share the compiled solve.
    late = np.concatenate([[0.0], np.exp(np.geomspace(np.log(T_FIRST), np.log(T_LAST), 160))])
    late[-1] = T_LAST
    early = np.linspace(0.0, EARLY, 161)
    options = {"observables": OBSERVABLES, "snapshots": [0.0]}
    parallel = fs.GradientFlow(geometry=fs.Parallel())
    closing = {"parallel": [], "sphere": []}
    prefactors = []
    for k in track(range(sizes["seeds"]), progress, "slow closure"):
        matched = fs.initial.matched(PAIRS, DIM - 1, GAMMA0)
        result = fs.simulate(parallel, matched, ts=late, seed=SEED + k, **options)
        closing["parallel"].append(result.series["modality_gap"])
        # γ = γ0 (β0/β)² e^{(γ² − γ0²)/2} and β → ln(t)/α.
        alpha, beta0 = result.series["direction_margin"][-1], 1 / result.series["temperature"][0]
        prefactors.append(2 * GAMMA0 * (alpha * beta0) ** 2 * np.exp(-(GAMMA0**2) / 2))
        random = fs.initial.cones(PAIRS, DIM, GAMMA0)
        result = fs.simulate(fs.GradientFlow(), random, ts=late, seed=SEED + k, **options)
        closing["sphere"].append(result.series["modality_gap"])
    jobs = [(i, k) for i in range(len(HEIGHTS)) for k in range(sizes["starts"])]
    change = np.empty((len(HEIGHTS), sizes["starts"]))
    for i, k in track(jobs, progress, "early enlargement"):
        start = fs.initial.cones(PAIRS, DIM, HEIGHTS[i])
        gap = fs.simulate(fs.GradientFlow(), start, ts=early, seed=SEED + k, **options).series["modality_gap"]
        change[i, k] = gap[-1] - gap[0]
    record = xr.Dataset(coords={"time": late, "height": list(HEIGHTS)})
    for name, runs in closing.items():
        record[f"gap_{name}"] = (("seed", "time"), np.stack(runs))
    record["prefactor"] = ("seed", prefactors)
    record["change"] = (("height", "start"), change)
    for height, values in zip(HEIGHTS, change, strict=True):
        record.attrs[f"fraction_positive_{height:g}"] = float((values > 0).mean())
        record.attrs[f"mean_change_{height:g}"] = float(values.mean())
    record.attrs["closing_exponent"] = float(theory.closing_exponent())
    for name in closing:
        gap = record[f"gap_{name}"].to_numpy()
        slope = [theory.local_slope(np.log(g[1:]), np.log(late[1:]))[-2] for g in gap]
        record.attrs[f"local_power_{name}"] = float(np.mean(slope))
    return record


def plot(record: xr.Dataset) -> Figure:
    plot_, colours = fs.plot, fs.plot.COLOURS
    figure = Figure(figsize=(plot_.PAGE, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    log_time = np.log(record["time"].to_numpy()[1:])
    x = -1 / log_time**2
    styles = (
        ("sphere", colours["vermilion"], (0, (6, 1.2)), "free rows on the sphere, mismatched"),
        ("parallel", colours["blue"], "-", "parallel cones, matched"),
    )
    for name, colour, line, label in styles:
        for k, gap in enumerate(record[f"gap_{name}"].to_numpy()):
            left.plot(x, gap[1:], color=colour, lw=1.2, ls=line, label=label if k == 0 else None)
    for k, prefactor in enumerate(record["prefactor"].to_numpy()):
        line = np.array([-0.006, 0.0])
        left.plot(
            line,
            -prefactor * line,
            color="black",
            lw=0.8,
            ls=(0, (1, 1)),
            zorder=3,
            label=r"limit of parallel cones, $C/\ln(t)^2$" if k == 0 else None,
        )
    left.set(xlim=(x[0], 0.0008), ylim=(0, 0.75), xlabel=r"$-1/\ln(t)^2$", ylabel=plot_.label("modality_gap"))
    left.set_xticks([-0.04, -0.03, -0.02, -0.01, 0])
    left.legend(
        loc=(0.03, 0.37),
        labelspacing=0.3,
        title_fontsize=8,
        alignment="left",
        title=rf"$\gamma_0 = {GAMMA0}$, one line per seed",
    )
    times = (2, 3, 4, 6, 100)
    top = left.secondary_xaxis("top")
    top.set_xticks([-1 / (k * np.log(10)) ** 2 for k in times], [f"$10^{{{k}}}$" for k in times])
    top.set_xlabel("flow time $t$")
    top.spines["top"].set_visible(True)
    for name, height, of in (("sphere", 0.9, ""), ("parallel", 0.03, "limit 2")):
        power = -record.attrs[f"local_power_{name}"]
        note = rf"local power of $1/\ln t$ at $10^{{100}}$: {power:.2f}" + (f" ({of})" if of else "")
        left.text(0.03, height, note, fontsize=8, transform=left.transAxes)
    left.set_title(r"$\bf{(a)}$ slow closure", y=1.22)

    change = record["change"].to_numpy()
    low, high = change.min(), change.max()
    width = 10.0 ** np.floor(np.log10(high - low)) / 10 * 4
    bins = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
    for height, values, colour, hatch in zip(
        record["height"].to_numpy(), change, (colours["blue"], colours["orange"]), ("", "////"), strict=True
    ):
        positive = record.attrs[f"fraction_positive_{height:g}"]
        right.hist(
            values,
            bins=bins,
            color=colour,
            alpha=0.75,
            edgecolor="white",
            hatch=hatch,
            lw=0.5,
            label=rf"$\gamma_0 = {height:g}$: {100 * positive:.0f} % positive, mean ${values.mean():.4f}$",
        )
    tallest = right.get_ylim()[1]
    right.plot([0, 0], [0, 0.85 * tallest], color="black", lw=0.8, label="no change")
    right.set_ylim(0, tallest * 1.55)
    right.set(xlabel=rf"early change of the gap, $\Delta({EARLY}) - \Delta(0)$", ylabel="random starts")
    right.legend(
        loc="upper center",
        title=r"free rows on the sphere, mismatched, "
        rf"$1/\sqrt{{2n}} = {(2 * PAIRS) ** -0.5:.2f}$",
        title_fontsize=8,
        labelspacing=0.3,
    )
    right.set_title(r"$\bf{(b)}$ early enlargement")
    figure.supxlabel(
        "Gradient flow in the simulator (the paper's Figure 4 shows training of CLIP): "
        rf"$n = {PAIRS}$, $d = {DIM}$, $\tau_0 = 0.07$, $\beta = e^\nu$, $r = 1$",
        fontsize=8,
    )
    return figure
