"""Swapping features between the modalities: gap by kind and fraction, convergence in masks, order of all methods.

HardSwap (HS) exchanges entries or rows, SoftSwap (SS) mixes entries, in a fraction p of the steps. In continuous time a
swap acts on the loss: averaged over K masks, or with one mask at a time, redrawn after every h of flow time. Source:
Yaras et al. 2025, section 4, Tables 2-5; the continuous-time form is derived here.
"""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.claims.swaps import rank_correlation
from flowsim.progress import Progress

SEED = 0
FULL = {
    "seeds": 4, "fractions": [1e-3, 1e-2, 1e-1, 1.0], "draws": 16, "methods": "all", "counts": [1, 4, 16, 64],
    "intervals": [1.0, 0.25, 0.0625], "masks": 32, "many": 1024,
}  # fmt: skip
#: Sizes that share compiled programs.
QUICK = {
    "seeds": 2, "fractions": [1e-2, 1.0], "draws": 8, "methods": "few", "counts": [1, 8], "intervals": [1.0, 0.125],
    "masks": 8, "many": 64,
}  # fmt: skip

PAIRS, DIM, GAMMA0 = 16, 8, 0.3
T1, ORDER_T1, SHORT = 1e5, 1e6, 4.0
TIMES = np.concatenate([[0.0], np.geomspace(1e-2, T1, 60)])
OPTIONS = {"rtol": 1e-6, "atol": 1e-9, "observables": ("modality_gap",)}
BARE = "No normalization"
#: Methods that share their compiled programs.
FEW = ("Baseline", "SLRT 0.1", "FLT 1e-2", "FLT 2e-2", "FLT 4e-2", "FLT 7e-2", "HS 1e-3", "HS 1e-2", "HS 1e-1", "HS 1")


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    start = fs.initial.cones(PAIRS, DIM, GAMMA0, random_basis=True)
    seeds = range(SEED, SEED + sizes["seeds"])
    record = _kinds(start, sizes, seeds, quick, progress)
    record = record.assign(_convergence(start.draw(SEED), sizes, progress))
    record.attrs["masks"], record.attrs["many_masks"] = sizes["masks"], sizes["many"]
    return record.assign(_order(start, sizes, seeds, progress))


def _kinds(start, sizes: dict, seeds, quick: bool, progress: Progress) -> xr.Dataset:
    fractions, masks = sizes["fractions"], sizes["masks"]
    swaps = {"none": fs.NoSwap()}
    swaps |= {f"entry {p:g}": fs.HardSwap(p, by="entry", masks=masks) for p in fractions}
    swaps |= {f"row {p:g}": fs.HardSwap(p, by="row", masks=masks) for p in fractions}
    if not quick:
        swaps |= {f"{r} {p:g}": fs.SoftSwap(p, reading=r, masks=masks) for r in ("old", "updated") for p in (0.05, 1.0)}
    schedules = [fs.Schedule(swap=swap) for swap in swaps.values()]
    over = {"schedule": schedules, "seed": seeds}
    runs = fs.sweep(fs.GradientFlow(), start, over, ts=TIMES, progress=progress, **OPTIONS)
    record = xr.Dataset(coords={"swap": list(swaps), "seed": list(seeds), "time": TIMES})
    record["gap"] = (("swap", "seed", "time"), runs["modality_gap"].to_numpy())
    final = record["gap"][..., -1]
    drops = [final.sel(swap="none") - final.sel(swap=s) for s in swaps if s != "none"]
    record.attrs["smallest_drop"] = float(min(d.min() for d in drops))
    entry, row = (xr.concat([final.sel(swap=f"{by} {p:g}") for p in fractions], "p") for by in ("entry", "row"))
    record.attrs["smallest_advantage_of_entry_over_row"] = float((row - entry).min())
    return record


def _convergence(start, sizes: dict, progress: Progress) -> dict:
    """Deviation of the gap at t = 4 from the flow of many masks: fewer masks, or one that changes."""
    draws, counts, intervals = sizes["draws"], sizes["counts"], sizes["intervals"]

    def gaps(swaps: list, count: int) -> np.ndarray:
        over = {"schedule": [fs.Schedule(swap=swap) for swap in swaps], "seed": range(SEED, SEED + count)}
        runs = fs.sweep(fs.GradientFlow(), start, over, ts=TIMES * SHORT / T1, progress=progress, **OPTIONS)
        return runs["modality_gap"].to_numpy()[..., -1]

    wanted = gaps([fs.HardSwap(0.5, by="entry", masks=sizes["many"])], 1)[0, 0]
    # A single mask whose redraw is after the end shares the program of those that are redrawn.
    later = {k: 2 * SHORT if k == 1 else None for k in counts}
    fixed = gaps([fs.HardSwap(0.5, by="entry", masks=k, redraw=later[k]) for k in counts], draws)
    redrawn = gaps([fs.HardSwap(0.5, by="entry", masks=1, redraw=h) for h in intervals], draws)

    def error(found: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean((found - wanted) ** 2, axis=1))

    return {
        "mask_error": xr.DataArray(error(fixed), {"masks": counts}, "masks"),
        "redraw_error": xr.DataArray(error(redrawn), {"interval": intervals}, "interval"),
    }


def _order(start, sizes: dict, seeds, progress: Progress) -> dict:
    with (Path(__file__).parent / "reference" / "tables.csv").open(encoding="utf-8", newline="") as file:
        printed = {row["method"]: float(row["modality_gap"]) for row in csv.DictReader(file)}
    names = [n for n in printed if sizes["methods"] == "all" or n in FEW]
    presets = [n for n in names if n != BARE]
    options = {"ts": TIMES * ORDER_T1 / T1, "progress": progress, **OPTIONS}
    over = {"schedule": [_few_masks(fs.schedules.get(n), sizes["masks"]) for n in presets], "seed": seeds}
    gaps = dict(zip(presets, _last(fs.sweep(fs.GradientFlow(), start, over, **options)), strict=True))
    if BARE in names:
        # Without normalisation the temperature only sets the unit of the features.
        flow = fs.GradientFlow(fs.Unnormalized(), fs.Schedule(fs.temperature.Fixed(1.0)))
        gaps[BARE] = _last(fs.sweep(flow, start, {"seed": seeds}, **options))
    found = np.stack([gaps[n] for n in names])
    paper = np.array([printed[n] for n in names])
    dims = {"setting": names}
    return {
        "simulated": xr.DataArray(found, {**dims, "seed": list(seeds)}, ("setting", "seed")),
        "paper": xr.DataArray(paper, dims, "setting"),
        "rank_correlation": xr.DataArray(np.array(rank_correlation(found, paper)), dims="estimate"),
    }


def _few_masks(schedule: fs.Schedule, masks: int) -> fs.Schedule:
    if not schedule.swap.active:
        return schedule
    return dataclasses.replace(schedule, swap=dataclasses.replace(schedule.swap, masks=masks))


def _last(runs: fs.SweepResult) -> np.ndarray:
    return runs["modality_gap"].to_numpy()[..., -1]


def plot(record: xr.Dataset) -> Figure:
    figure = Figure(figsize=(fs.plot.PAGE, 6.6), layout="constrained")
    axes = figure.subplots(2, 2)
    _curves(axes[0, 0], record)
    _fractions(axes[0, 1], record)
    _errors(axes[1, 0], record)
    _scatter(axes[1, 1], record)
    seeds = record.sizes["seed"]
    figure.supxlabel(
        rf"Free rows on the sphere, random cones in a random basis: $n = {PAIRS}$, $d = {DIM}$, "
        rf"$\gamma_0 = {GAMMA0}$, $\tau_0 = 0.07$, $\beta = e^\nu$, $r = 1$, "
        rf"$K = {record.attrs['masks']}$ masks; {seeds} seeds." + "\n"
        r"HS, SS: hard and soft swap of features. (d) Spearman's $\rho$, with its 95 % interval over methods and seeds",
        fontsize=8,
    )
    return figure


#: kind -> (label, colour, marker)
KINDS = {
    "entry": ("HS, entries", "blue", "o"), "row": ("HS, rows", "vermilion", "s"),
    "old": ("SS, old features", "green", "D"), "updated": ("SS, updated features", "purple", "v"),
}  # fmt: skip
#: Legend below its panel, where it covers no data.
BELOW = {
    "loc": "upper center",
    "bbox_to_anchor": (0.5, -0.22),
    "columnspacing": 1.0,
    "labelspacing": 0.3,
    "handlelength": 2.6,
}


def _curves(ax: Axes, record: xr.Dataset) -> None:
    colours = fs.plot.COLOURS
    time = record["time"].to_numpy()[1:]
    for name in map(str, record["swap"].to_numpy()):
        kind, _, fraction = name.partition(" ")
        if kind == "updated" or (fraction and float(fraction) not in (1e-2, 0.05, 1.0)):
            continue
        label, colour, marker = KINDS.get(kind, ("no swap", "black", ""))
        curve = record["gap"].sel(swap=name).mean("seed").to_numpy()[1:]
        style = "-" if fraction in ("", "1") else (0, (4, 1.5))
        text = label if not fraction else f"{label}, $p = {fraction}$"
        ax.plot(time, curve, color=colours[colour], ls=style, marker=marker, ms=3, markevery=12, label=text)
    ax.set(xscale="log", xlim=(time[0], time[-1]), ylim=(0, 0.8), xlabel=fs.plot.TIME_LABEL)
    ax.set_ylabel(r"modality gap $\Delta$, mean")
    ax.legend(ncols=2, **BELOW)
    ax.set_title(r"$\bf{(a)}$ the gap with and without swaps")


def _fractions(ax: Axes, record: xr.Dataset) -> None:
    final = record["gap"][..., -1]
    for kind, (label, name, marker) in KINDS.items():
        names = [str(n) for n in record["swap"].to_numpy() if str(n).startswith(kind)]
        if not names:
            continue
        p = np.array([float(n.split()[1]) for n in names])
        values = final.sel(swap=names).to_numpy()
        colour = fs.plot.COLOURS[name]
        line = (0, (4, 1.5)) if kind == "updated" else "-"
        ax.plot(p, values.mean(axis=1), color=colour, marker=marker, ms=4.5, ls=line, label=label)
        ax.plot(p, values, ls="none", marker=marker, ms=2.5, color=colour, alpha=0.35, mew=0)
    none = final.sel(swap="none").to_numpy()
    ax.axhspan(none.min(), none.max(), color="0.8", lw=0, zorder=0, label="no swap, all seeds")
    ax.axhline(none.mean(), color="black", lw=1, label="no swap, mean")
    ax.set(xscale="log", ylim=(0, 0.7), xlabel="fraction $p$ of training with a swap")
    ax.set_ylabel(rf"gap $\Delta$ at $t = {fs.plot.time_text(T1).strip('$')}$")
    ax.legend(ncols=2, **BELOW)
    ax.set_title(r"$\bf{(b)}$ final gap: mean, and (small) single seeds")


def _errors(ax: Axes, record: xr.Dataset) -> None:
    colours = fs.plot.COLOURS
    masks, interval = record["masks"].to_numpy(), record["interval"].to_numpy()
    fixed, redrawn = record["mask_error"].to_numpy(), record["redraw_error"].to_numpy()
    ax.plot(masks, fixed, "o-", color=colours["blue"], ms=4.5, label="$K$ fixed masks, against $K$")
    ax.plot(
        1 / interval,
        redrawn,
        "s",
        ls=(0, (4, 1.5)),
        color=colours["vermilion"],
        ms=4.5,
        label="one mask for a time $h$, against $1/h$",
    )
    reach = np.array([1.0, max(masks.max(), 1 / interval.min())])
    guide = 2 * max(fixed.max() * np.sqrt(masks[0]), redrawn.max()) / np.sqrt(reach)
    ax.plot(reach, guide, color="0.4", lw=0.8, ls=(0, (1, 1)), label="slope $-1/2$")
    ax.set(xscale="log", yscale="log", xlabel="number of masks $K$, or rate of redraws $1/h$")
    ax.set_ylabel(rf"deviation of $\Delta({SHORT:g})$, r.m.s.")
    ax.legend(**BELOW)
    ax.set_title(rf"$\bf{{(c)}}$ distance from $K = {record.attrs['many_masks']}$ masks")


FAMILIES = {
    ("Baseline",): ("Baseline", "black", "*"), ("FLT",): ("fixed (FLT)", "blue", "o"),
    ("TS",): ("scheduled (TS)", "orange", "s"), ("TR", "SLRT"): ("learned (TR, SLRT)", "green", "^"),
    ("HS",): ("hard swap (HS)", "vermilion", "D"), ("SS",): ("soft swap (SS)", "purple", "v"),
    ("No",): ("no normalization", "sky", "P"),
}  # fmt: skip


def _scatter(ax: Axes, record: xr.Dataset) -> None:
    mean = record["simulated"].mean("seed")
    for prefixes, (label, colour, marker) in FAMILIES.items():
        names = [str(n) for n in record["setting"].to_numpy() if str(n).split()[0] in prefixes]
        if names:
            ax.plot(
                record["paper"].sel(setting=names),
                mean.sel(setting=names),
                ls="none",
                marker=marker,
                ms=7 if marker == "*" else 4.5,
                color=fs.plot.COLOURS[colour],
                label=label,
                clip_on=False,
                zorder=3,
            )
    rho, low, high = record["rank_correlation"].to_numpy()
    ax.set(xlim=(0, 0.7), ylim=(0, 0.8), xlabel=r"the paper's gap (CLIP on COCO)")
    ax.set_ylabel(rf"simulated $\Delta$ at $t = {fs.plot.time_text(ORDER_T1).strip('$')}$")
    ax.legend(ncols=3, fontsize=7.5, **{**BELOW, "handlelength": 1.0})
    ax.set_title(rf"$\bf{{(d)}}$ {record.sizes['setting']} methods: $\rho = {rho:.2f}$ ({low:.2f} to {high:.2f})")
