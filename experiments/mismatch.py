"""What opens the gap and what keeps it open: mismatched starts, wrong pairs, hot encoders, missing factors.

Mismatched: some texts change places at the start. Re-paired: some pairs are random in every step (expected flow),
compared with a frozen wrong permutation. Encoders: two linear encoders see the same latent factors, or the text sees
fewer. Sources: Yaras et al. 2025, section 3; arXiv 2405.18570 (contrastive gap); Schrodi et al. 2025 (information
imbalance); the flows are measured here.
"""

import dataclasses
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.progress import Progress

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


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    seeds = range(SEED, SEED + sizes["seeds"])
    ts = np.concatenate([[0.0], np.geomspace(1e-2, T1, sizes["points"])])
    runs = fs.sweep(
        fs.GradientFlow(),
        fs.initial.mismatched(PAIRS, DIM - 1, GAMMA0),
        {"start.fraction": sizes["fractions"], "seed": seeds},
        ts=ts,
        observables=("modality_gap",),
        progress=progress,
        **LOOSE,
    )
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


def _repaired(sizes: dict, progress: Progress) -> dict:
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
            flow,
            fs.initial.cones(sizes["repaired_pairs"], DIM, GAMMA0),
            over,
            ts=times,
            method=method,
            observables=("modality_gap",),
            progress=progress,
            **LOOSE,
        )
        found[f"{name}_gap"] = xr.DataArray(
            runs["modality_gap"].to_numpy().mean(axis=2),
            {"repaired": list(REPAIRED), "height": list(HEIGHTS), "repaired_time": times},
            ("repaired", "height", "repaired_time"),
        )
    return found


def _encoders(seeds, shared: list[int], progress: Progress) -> dict:
    """Last gap and loss of linear encoders: over the temperature with equal inputs, and over shared factors."""
    recipe = fs.initial.latents(PAIRS, factors=8, dim=DIM)
    starts = [recipe.draw(seed) for seed in seeds]
    starts = [dataclasses.replace(s, text_inputs=s.image_inputs) for s in starts]
    options: dict[str, Any] = {
        "method": "explicit",
        "observables": ("modality_gap", "loss"),
        "progress": progress,
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
    figure = Figure(figsize=(fs.plot.PAGE, 7.8), layout="constrained")
    axes = figure.subplots(3, 3)
    _curves(axes[0, 0], record)
    fraction = "fraction of mismatched pairs"
    above = "time above the initial gap"
    _points(
        axes[0, 1], record["fraction"], record["enlargement"], "b", "how much", fraction, r"peak gap $-$ initial gap"
    )
    _points(axes[0, 2], record["fraction"], record["time_above"], "c", "for how long", fraction, above, "median")
    _pairs(axes[1, 0], record, "fresh_gap", "d", "re-paired in every step")
    _pairs(axes[1, 1], record, "frozen_gap", "e", "one wrong permutation")
    names = {"equal": ("beta", r"fixed $\beta$"), "imbalance": ("shared", "factors that the text sees")}
    titles = (
        "f",
        "equal inputs: gap",
        "g",
        "equal inputs: loss",
        "h",
        "fewer factors: gap",
        "i",
        "fewer factors: loss",
    )
    panels = iter(zip(titles[::2], titles[1::2], [axes[1, 2], *axes[2]], strict=True))
    for kind, (dim, xlabel) in names.items():
        for quantity, symbol in (("gap", r"gap $\Delta$"), ("loss", r"loss $\mathcal{L}$")):
            letter, title, ax = next(panels)
            _points(ax, record[dim], record[f"{kind}_{quantity}"], letter, title, xlabel, symbol)
            _encoder_axes(ax, record[dim].to_numpy(), quantity, dim)
    figure.supxlabel(
        rf"(a to c) free rows, $n = {PAIRS}$, $d = {DIM}$, $\gamma_0 = {GAMMA0}$, $\tau_0 = 0.07$, $\beta = e^\nu$, "
        rf"{record.sizes['seed']} seeds; (d, e) free rows, random cones, $n = {record.attrs['repaired_pairs']}$, "
        rf"$d = {DIM}$, $\beta = {BETA:g}$;" + "\n"
        rf"(f to i) linear encoders, 8 latent factors, $n = {PAIRS}$, $d = {DIM}$, {record.sizes['start']} seeds: "
        r"(f, g) images and texts are the same, $t = 100$; (h, i) $\tau = 0.07$, $t = 10$." + "\n"
        "Lines: mean, in (c) median; small markers: single seeds",
        fontsize=8,
    )
    return figure


#: colour and line of each fraction of mismatched pairs
SHADES = (
    ("black", "-"), ("sky", (0, (1, 1))), ("blue", (0, (5, 1.5))), ("green", (0, (5, 1.5, 1, 1.5))), ("orange", "-"),
    ("vermilion", (0, (5, 1.5))),
)  # fmt: skip


#: Legend below its panel, where it covers no data.
BELOW = {
    "loc": "upper center", "bbox_to_anchor": (0.45, -0.28), "columnspacing": 0.8, "labelspacing": 0.2, "fontsize": 7,
    "title_fontsize": 7, "handlelength": 2.4,
}  # fmt: skip


def _title(ax: Axes, letter: str, title: str) -> None:
    ax.set_title(rf"$\bf{{({letter})}}$ {title}")


def _curves(ax: Axes, record: xr.Dataset) -> None:
    time = record["time"].to_numpy()[1:]
    for fraction, (colour, line) in zip(record["fraction"].to_numpy(), SHADES, strict=False):
        curve = record["gap"].sel(fraction=fraction).mean("seed").to_numpy()[1:]
        ax.plot(time, curve, color=fs.plot.COLOURS[colour], ls=line, lw=1.1, label=f"{fraction:g}")
    ax.axhline(2 * GAMMA0, color="0.5", lw=0.7, zorder=0, label="initial gap")
    ax.set(xscale="log", xlim=(time[0], time[-1]), xlabel=fs.plot.TIME_LABEL, ylabel=r"modality gap $\Delta$, mean")
    ax.set_xticks([1e-2, 1, 1e2, 1e4])
    ax.legend(title="fraction mismatched", ncols=3, **BELOW)
    _title(ax, "a", "mismatched starts")


def _points(
    ax: Axes,
    x: xr.DataArray,
    values: xr.DataArray,
    letter: str,
    title: str,
    xlabel: str,
    ylabel: str,
    middle: str = "mean",
) -> None:
    """Every seed, and their mean or median, joined."""
    (dim,) = x.dims
    (seed,) = (d for d in values.dims if d != dim)
    values = values.transpose(dim, seed)
    colour = fs.plot.COLOURS["blue"]
    ax.plot(x, values.to_numpy(), ls="none", marker="o", ms=2.5, mew=0, alpha=0.4, color=colour)
    ax.plot(x, getattr(values, middle)(seed), "o-", ms=4.5, color=colour)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_ylim(bottom=0)
    _title(ax, letter, title)


def _pairs(ax: Axes, record: xr.Dataset, name: str, letter: str, title: str) -> None:
    time = record["repaired_time"].to_numpy()[1:]
    for height, width in zip(HEIGHTS, (0.9, 1.8), strict=True):
        for fraction, (colour, line) in zip(
            REPAIRED, (("black", "-"), ("blue", (0, (5, 1.5))), ("vermilion", (0, (1, 1)))), strict=True
        ):
            curve = record[name].sel(height=height, repaired=fraction).to_numpy()[1:]
            label = rf"{fraction:g}, $\gamma_0 = {height}$"
            ax.plot(time, curve, color=fs.plot.COLOURS[colour], ls=line, lw=width, label=label)
    ax.set(xscale="log", xlim=(time[0], time[-1]), ylim=(0, None), xlabel=fs.plot.TIME_LABEL)
    ax.set_ylabel(r"modality gap $\Delta$")
    ax.legend(title="fraction wrong, height", ncols=2, **BELOW)
    _title(ax, letter, title)


def _encoder_axes(ax: Axes, x: np.ndarray, quantity: str, dim: str) -> None:
    if dim == "beta":
        ax.set_xscale("log")
        ax.set_xticks(x, [f"{v:.3g}" for v in x])
        ax.minorticks_off()
    else:
        ax.set_xticks(x)
        ax.invert_xaxis()
    if quantity == "loss":
        ax.set_yscale("log")
        ax.autoscale(axis="y")
