"""Gap, temperature and embeddings along the flow of five mismatched pairs: Figure 2 of the paper.

Two regular pentagons in three dimensions, images at height +γ0 and texts at −γ0, γ0 = (√5 − 1)/4, rotated by −144°
against each other; β = exp(ν), τ0 = 0.07. The curves digitised from the paper are drawn over ours.
Source: Yaras et al., "Explaining and Mitigating the Modality Gap in Contrastive Multimodal Learning", CPAL
2025, Figure 2.
"""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.progress import Progress, track

SEED = 0
FULL = {"points": 600}
QUICK = {"points": 200}

#: Times at which the paper shows the embeddings.
SHOWN = (0.0, 0.4, 2.3, 4.0, 1e2, 1e5)
#: The paper's time axis shows t + 0.1.
SHIFT = 0.1
REFERENCE = Path(__file__).parent / "reference"
CURVES = {"modality_gap": "fig2_delta.csv", "temperature": "fig2_tau.csv"}


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    digitised = {name: np.loadtxt(REFERENCE / f, delimiter=",", skiprows=1) for name, f in CURVES.items()}
    # The first digitised points lie up to 1e-4 before t = 0, within the width of the paper's lines.
    times = {name: np.maximum(curve[:, 0] - SHIFT, 0.0) for name, curve in digitised.items()}
    grid = np.geomspace(1e-3, 1e5, sizes["points"])
    around = np.concatenate([np.linspace(1.9, 2.2, 61), np.linspace(3.7, 4.0, 61)])
    ts = np.unique(np.concatenate([SHOWN, grid, around, *times.values()]))
    (result,) = [
        fs.simulate(fs.GradientFlow(), start, ts=ts, snapshots=ts, seed=SEED)
        for start in track([fs.initial.rings()], progress, "integrating")
    ]

    record = xr.Dataset(coords={"time": ts, "shown": list(SHOWN)})
    for name in ("modality_gap", "temperature", "margin"):
        record[name] = ("time", result.series[name])
    for name, curve in digitised.items():
        ours = result.series[name][np.searchsorted(ts, times[name])]
        record[f"digitised_{name}"] = (f"point_{name}", curve[:, 1])
        record[f"digitised_time_{name}"] = (f"point_{name}", curve[:, 0])
        record.attrs[f"max_deviation_{name}"] = float(np.abs(ours - curve[:, 1]).max())
    for side in ("image", "text"):
        rows = np.stack([getattr(result.at(t), side) for t in SHOWN])
        record[side] = (("shown", "pair", "axis"), rows)

    gap_peak = _peak(ts, result.series["modality_gap"])
    tau_peak = _peak(ts, result.series["temperature"])
    late = {name: result.series[name][-1] for name in CURVES}
    record.attrs.update(
        peak_time=gap_peak[0],
        peak_gap=gap_peak[1],
        peak_time_temperature=tau_peak[0],
        peak_temperature=tau_peak[1],
        matched_time=_root(ts, result.series["margin"]),
        final_gap=float(late["modality_gap"]),
        final_temperature=float(late["temperature"]),
    )
    return record


def _peak(ts: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """(time, value) of the largest value, by the parabola through its neighbours."""
    i = int(np.argmax(values))
    centre = ts[i]
    a, b, c = np.polyfit(ts[i - 1 : i + 2] - centre, values[i - 1 : i + 2], 2)
    return float(centre - b / (2 * a)), float(c - b**2 / (4 * a))


def _root(ts: np.ndarray, values: np.ndarray) -> float:
    """The time at which the values last turn positive, by linear interpolation."""
    i = int(np.flatnonzero(values <= 0)[-1])
    return float(ts[i] - values[i] * (ts[i + 1] - ts[i]) / (values[i + 1] - values[i]))


def plot(record: xr.Dataset) -> Figure:
    plot_ = fs.plot
    figure = Figure(figsize=(plot_.PAGE, 4.0), layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=[2.45, 1.0])
    upper, lower = rows[0].subgridspec(1, 2), rows[1].subgridspec(1, len(SHOWN))
    facts = record.attrs
    time = record["time"].to_numpy() + SHIFT
    matched = record["margin"].to_numpy() > 0
    panels = (
        (
            "a",
            "modality_gap",
            r"\Delta",
            plot_.IMAGE_COLOUR,
            facts["peak_time"],
            facts["peak_gap"],
            facts["final_gap"],
            0.43,
        ),
        (
            "b",
            "temperature",
            r"\tau",
            plot_.TEXT_COLOUR,
            facts["peak_time_temperature"],
            facts["peak_temperature"],
            facts["final_temperature"],
            0.55,
        ),
    )
    for i, (letter, name, symbol, colour, peak_time, peak, final, height) in enumerate(panels):
        ax = figure.add_subplot(upper[i])
        plot_.shade_intervals(time, matched, ax)
        ax.plot(time, record[name], color=colour, lw=2, label="this simulation")
        ax.plot(
            record[f"digitised_time_{name}"],
            record[f"digitised_{name}"],
            ls="",
            marker="o",
            ms=2.4,
            mfc="white",
            mec="black",
            mew=0.5,
            markevery=2,
            label="digitised from the paper",
        )
        shown = np.asarray(SHOWN) + SHIFT
        ax.plot(
            shown,
            np.zeros(len(shown)),
            ls="",
            marker="|",
            ms=11,
            mew=1.6,
            color="black",
            clip_on=False,
            zorder=5,
            transform=ax.get_xaxis_transform(),
            label="times shown in (c)",
        )
        ax.set(xscale="log", xlim=(SHIFT, time[-1]), ylim=(0, 1.12 if i else 1.17))
        ax.set(xlabel="flow time $t + 0.1$", ylabel=plot_.label(name))
        ax.legend(loc="upper right", labelspacing=0.3)
        numbers = (
            f"peak ${symbol} = {peak:.4f}$ at $t = {peak_time:.3f}$",
            f"all pairs matched (shaded) from $t = {facts['matched_time']:.3f}$",
            f"${symbol}(10^5) = {final:.4f}$",
            rf"max $|{symbol} - {symbol}_\mathrm{{paper}}| = {_scientific(facts['max_deviation_' + name])}$",
        )
        for line, text in enumerate(numbers):
            ax.text(0.97, height - 0.075 * line, text, ha="right", va="top", fontsize=8, transform=ax.transAxes)
        ax.set_title(f"({letter})", fontweight="bold")

    for i, t in enumerate(SHOWN):
        ax = figure.add_subplot(lower[i], projection="3d")
        plot_.sphere((record["image"][i].to_numpy(), record["text"][i].to_numpy()), ax=ax)
        ax.set_title(f"$t$ = {plot_.time_text(t)}", loc="center", y=0.99)
        if i == 0:
            ax.text2D(-0.25, 1.02, "(c)", transform=ax.transAxes, fontweight="bold")
    marks = [
        figure.axes[0].plot([], [], ls="", marker=marker, ms=4.5, color=colour, label=name)[0]
        for name, marker, colour in (("image", "o", plot_.IMAGE_COLOUR), ("text", "^", plot_.TEXT_COLOUR))
    ]
    marks.append(figure.axes[0].plot([], [], color="0.3", lw=0.9, label="pair")[0])
    figure.legend(
        handles=marks,
        loc="outside lower center",
        ncols=3,
        title_fontsize=8,
        title=r"Flow of free rows on the sphere: $n = 5$, $d = 3$, $\gamma_0 = 0.309$, twist $-144^\circ$, "
        r"$\beta = 1/\tau = e^\nu$, $\tau_0 = 0.07$, learning-rate ratio $r = 1$",
    )
    return figure


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return rf"{mantissa} \times 10^{{{int(exponent)}}}"
