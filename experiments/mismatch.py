"""What opens the gap and what keeps it open: mismatched starts, wrong pairs, hot encoders, missing factors.

Mismatched: some texts have changed places at the start. Re-paired: some are paired at random in every step
(expected flow), against a wrong permutation that is frozen. Encoders: two linear ones see the same latent
factors, or the text fewer of them. Sources: Yaras et al. 2025, section 3; arXiv 2405.18570 (contrastive gap);
Schrodi et al. 2025 (information imbalance); the flows are measured here.
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import flowsim as fs

SEED = 0
FULL = {
    "fractions": [0.0, 0.125, 0.25, 0.5, 0.75, 1.0],
    "seeds": 16,
    "repaired_pairs": 48,
    "repaired_seeds": 2,
    "t1": 1e3,
    "shared": [8, 4, 2],
    "points": 121,
}
QUICK = {
    "fractions": [0.0, 0.25, 0.5, 1.0],
    "seeds": 2,
    "repaired_pairs": 16,
    "repaired_seeds": 1,
    "t1": 1e2,
    "shared": [8, 4],
    "points": 60,
}

GAMMA0, PAIRS = 0.3, 16
T1 = 1e4
DIM, BETA = 8, 20.0
REPAIRED, HEIGHTS = (0.0, 0.25, 0.5), (0.1, 0.3)
TEMPERATURES = (0.2, 0.07, 0.02, 0.01)
LOOSE: dict[str, Any] = {"rtol": 1e-6, "atol": 1e-9}


def compute(quick: bool, progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    seeds = range(SEED, SEED + sizes["seeds"])
    ts = np.concatenate([[0.0], np.geomspace(1e-2, T1, sizes["points"])])
    runs = fs.sweep(
        fs.GradientFlow(), fs.initial.mismatched(PAIRS, DIM - 1, GAMMA0),
        {"start.fraction": sizes["fractions"], "seed": seeds}, ts=ts, observables=("modality_gap",),
        track=progress, **LOOSE,
    )  # fmt: skip
    gap = runs["modality_gap"].to_numpy()
    above = gap > gap[..., :1] + 1e-6
    last = above.shape[-1] - 1 - np.argmax(above[..., ::-1], axis=-1)
    record = xr.Dataset(coords={"fraction": sizes["fractions"], "time": ts, "seed": list(seeds)})
    record["gap"] = (("fraction", "seed", "time"), gap)
    record["enlargement"] = (("fraction", "seed"), gap.max(axis=-1) - gap[..., 0])
    record["time_above"] = (("fraction", "seed"), np.where(above.any(axis=-1), ts[last], 0.0))
    record.attrs["repaired_pairs"], record.attrs["t1"] = sizes["repaired_pairs"], sizes["t1"]
    record = record.assign(_repaired(sizes, progress))
    return record.assign(_encoders(seeds if quick else seeds[:8], sizes["shared"], progress))


def _repaired(sizes: dict, progress) -> dict:
    times = np.concatenate([[0.0], np.geomspace(1e-2, sizes["t1"], 60)])
    seeds = range(SEED, SEED + sizes["repaired_seeds"])
    found = {}
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("fresh", fs.FreshRepairing(0.0), "stabilised"),
        ("frozen", fs.FrozenMispairing(0.0), None),
    )
    for name, pairing, method in kinds:
        flow = fs.GradientFlow(schedule=fs.temperature.Fixed(1 / BETA), pairing=pairing)
        over = {"pairing.fraction": REPAIRED, "start.height": HEIGHTS, "seed": seeds}
        runs = fs.sweep(
            flow, fs.initial.cones(sizes["repaired_pairs"], DIM, GAMMA0), over, ts=times, method=method,
            observables=("modality_gap",), track=progress, **LOOSE,
        )  # fmt: skip
        found[f"{name}_gap"] = xr.DataArray(
            runs["modality_gap"].to_numpy().mean(axis=2),
            {"repaired": list(REPAIRED), "height": list(HEIGHTS), "repaired_time": times},
            ("repaired", "height", "repaired_time"),
        )
    return found


def _encoders(seeds, shared: list[int], progress) -> dict:
    """Last gap and loss of linear encoders: over the temperature with equal inputs, and over shared factors."""
    recipe = fs.initial.latents(PAIRS, factors=8, dim=DIM)
    starts = [recipe.draw(seed) for seed in seeds]
    starts = [dataclasses.replace(s, text_inputs=s.image_inputs) for s in starts]
    options: dict[str, Any] = {
        "method": "explicit",
        "observables": ("modality_gap", "loss"),
        "track": progress,
        **LOOSE,
    }
    flow = fs.GradientFlow(fs.LinearEncoders(), fs.Schedule(fs.temperature.Fixed(0.07)))
    over = {"start": starts, "schedule.temperature.tau": TEMPERATURES}
    equal = fs.sweep(flow, starts[0], over, ts=[0.0, 100.0], **options)
    fewer = []
    for factors in shared:
        start = dataclasses.replace(recipe, text_factors=None if factors == 8 else factors)
        fewer.append(fs.sweep(flow, start, {"seed": seeds}, ts=[0.0, 10.0], **options))
    found = {}
    for name, short in (("modality_gap", "gap"), ("loss", "loss")):
        values = equal[name].to_numpy()[..., -1]
        found[f"equal_{short}"] = (("start", "beta"), values)
        found[f"imbalance_{short}"] = (("shared", "start"), np.stack([r[name].to_numpy()[:, -1] for r in fewer]))
    found["equal_initial_gap"] = ("start", equal["modality_gap"].to_numpy()[:, 0, 0])
    coords = {"beta": ("beta", 1 / np.asarray(TEMPERATURES)), "shared": ("shared", shared)}
    return found | coords


def plot(record: xr.Dataset) -> Figure:
    figure = Figure(figsize=(fs.plot.PAGE, 7.4), layout="constrained")
    axes = figure.subplots(3, 2)
    _curves(axes[0, 0], record)
    _enlargement(axes[0, 1], record)
    for ax, name, letter, title in (
        (axes[1, 0], "fresh_gap", "c", "re-paired at random in every step"),
        (axes[1, 1], "frozen_gap", "d", "one wrong permutation for ever: no difference"),
    ):
        _pairs(ax, record, name, letter, title)
    _encoder_panel(
        axes[2, 0], record, "equal", "beta", r"$\bf{(e)}$ encoders of equal inputs, $t = 100$", r"fixed $\beta$"
    )
    _encoder_panel(
        axes[2, 1],
        record,
        "imbalance",
        "shared",
        r"$\bf{(f)}$ text sees fewer factors, $t = 10$",
        "factors in the text",
    )
    figure.supxlabel(
        rf"(a, b) free rows, $n = {PAIRS}$, $d = {DIM}$, $\gamma_0 = {GAMMA0}$, $\tau_0 = 0.07$, $\beta = e^\nu$, "
        rf"{record.sizes['seed']} seeds; (c, d) free rows, random cones, $n = {record.attrs['repaired_pairs']}$, "
        rf"$d = {DIM}$, $\beta = {BETA:g}$;" + "\n"
        rf"(e, f) linear encoders, 8 latent factors, $n = {PAIRS}$, $d = {DIM}$, {record.sizes['start']} seeds; "
        r"(f) $\tau = 0.07$",
        fontsize=8,
    )
    return figure


SHADES = ("black", "sky", "blue", "green", "orange", "vermilion")


def _curves(ax: Axes, record: xr.Dataset) -> None:
    time = record["time"].to_numpy()[1:]
    for fraction, colour in zip(record["fraction"].to_numpy(), SHADES, strict=False):
        curve = record["gap"].sel(fraction=fraction).mean("seed").to_numpy()[1:]
        ax.plot(time, curve, color=fs.plot.COLOURS[colour], label=f"{fraction:g}")
    ax.axhline(2 * GAMMA0, color="0.6", lw=0.7, zorder=0)
    ax.set(xscale="log", xlim=(time[0], time[-1]), xlabel=fs.plot.TIME_LABEL, ylabel=r"modality gap $\Delta$, mean")
    ax.legend(title="mismatched", ncols=2, loc="upper right", title_fontsize=8)
    ax.set_title(r"$\bf{(a)}$ mismatched starts")


def _enlargement(ax: Axes, record: xr.Dataset) -> None:
    colours = fs.plot.COLOURS
    x, grown = record["fraction"].to_numpy(), record["enlargement"]
    ax.plot(x, grown.to_numpy(), ls="none", marker="o", ms=2.5, mew=0, alpha=0.4, color=colours["blue"])
    ax.plot(x, grown.mean("seed"), "o-", ms=4.5, color=colours["blue"])
    ax.set(xlabel="fraction of mismatched pairs", ylim=(0, 0.1))
    ax.set_ylabel(r"peak gap $-$ initial gap", color=colours["blue"])
    other = ax.twinx()
    other.plot(x, record["time_above"].median("seed"), "s--", ms=4, color=colours["vermilion"])
    other.set(ylim=(0, 20))
    other.set_ylabel("time above the initial gap, median", color=colours["vermilion"])
    other.spines["right"].set_visible(True)
    ax.set_title(r"$\bf{(b)}$ how much, and for how long")


def _pairs(ax: Axes, record: xr.Dataset, name: str, letter: str, title: str) -> None:
    time = record["repaired_time"].to_numpy()[1:]
    for height, style in zip(HEIGHTS, ((0, (4, 1.5)), "-"), strict=True):
        for fraction, colour in zip(REPAIRED, ("black", "blue", "vermilion"), strict=True):
            curve = record[name].sel(height=height, repaired=fraction).to_numpy()[1:]
            label = f"fraction {fraction:g}" if height == HEIGHTS[-1] else None
            ax.plot(time, curve, color=fs.plot.COLOURS[colour], ls=style, label=label)
    ax.set(xscale="log", xlim=(time[0], time[-1]), ylim=(0, 1.75), xlabel=fs.plot.TIME_LABEL)
    ax.set_ylabel(r"modality gap $\Delta$")
    if letter == "c":
        ax.plot([], [], color="0.4", ls=(0, (4, 1.5)), label=rf"$\gamma_0 = {HEIGHTS[0]}$")
        ax.plot([], [], color="0.4", label=rf"$\gamma_0 = {HEIGHTS[1]}$")
        ax.legend(loc="upper left", ncols=2)
    ax.set_title(rf"$\bf{{({letter})}}$ {title}")


def _encoder_panel(ax: Axes, record: xr.Dataset, kind: str, dim: str, title: str, xlabel: str) -> None:
    colours = fs.plot.COLOURS
    x = record[dim].to_numpy()
    gap = record[f"{kind}_gap"].transpose(dim, "start")
    loss = record[f"{kind}_loss"].transpose(dim, "start")
    ax.plot(x, gap.to_numpy(), ls="none", marker="o", ms=2.5, mew=0, alpha=0.4, color=colours["blue"])
    ax.plot(x, gap.mean("start"), "o-", ms=4.5, color=colours["blue"])
    ax.set_ylim(0, 1.35 * float(gap.max()))
    ax.set_ylabel(r"gap $\Delta$", color=colours["blue"])
    ax.set_xlabel(xlabel)
    other = ax.twinx()
    other.plot(x, loss.mean("start"), "s--", ms=4, color=colours["vermilion"])
    other.set(yscale="log")
    other.set_ylabel("loss", color=colours["vermilion"])
    other.spines["right"].set_visible(True)
    if dim == "beta":
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{v:.3g}" for v in x])
        ax.minorticks_off()
    else:
        ax.set_xticks(x)
        ax.invert_xaxis()
    ax.set_title(title)
