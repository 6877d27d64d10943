"""Rows that move together: how a kernel K = own·I + shared·11ᵀ closes the gap faster than free rows.

Parallel cones with a learned temperature conserve a combination of height and temperature, and close like free rows at
a smaller learning rate of the temperature, r/(own + n·shared). Derived in `flowsim.theory.kernel`; Lemma 3.1 and
Theorem 3.2 of Yaras et al. 2025 are the case shared = 0.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import flowsim as fs
from flowsim import theory
from flowsim.progress import Progress, track

SEED = 0
FULL = {"points": 241, "ratios": 13, "temperatures": 13}
QUICK = {"points": 121, "ratios": 5, "temperatures": 4}

PAIRS, GAMMA0, TAU0, T1, LATE = 16, 0.5, 0.2, 1e4, np.exp([100.0, 110.0, 120.0])
#: n·shared/own of the curves, at own = 1.
CURVES = (0.0, 0.3, 3.0, 30.0)
ROWS, DIM = 16, 8


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    ratios = np.concatenate([[0.0], np.geomspace(1e-2, 1e2, sizes["ratios"] - 1)])
    temperatures = np.geomspace(0.02, 1.0, sizes["temperatures"])
    ts = np.concatenate([[0.0], np.geomspace(1e-2, T1, sizes["points"] - 1)])
    jobs = [("curve", r) for r in CURVES] + [("late", r) for r in ratios] + [("rows", r) for r in ratios]
    curves, slopes, final = [], [], []
    for kind, ratio in track(jobs, progress, "integrating"):
        kernel = fs.kernels.Shared(1.0, ratio / PAIRS)
        if kind == "rows":
            flow = fs.GradientFlow(fs.Sphere(image_kernel=kernel, text_kernel=kernel))
            over = {"schedule.temperature.init": temperatures}
            swept = fs.sweep(flow, fs.initial.uniform(ROWS, DIM), over, ts=[0.0, T1], observables=("modality_gap",))
            gap = swept.dataset["modality_gap"].to_numpy().reshape(len(temperatures), 2)
            final.append(gap[:, 1] / gap[:, 0])
            continue
        flow = fs.GradientFlow(fs.Reduced(kernel), fs.temperature.Learnable(TAU0))
        times = ts if kind == "curve" else [0.0, *LATE]
        run = fs.simulate(flow, fs.initial.orthonormal(PAIRS, GAMMA0), ts=times, seed=SEED)
        if kind == "curve":
            curves.append([run["log_gamma"], np.log(run["inverse_temperature"])])
        else:
            late = slice(-len(LATE), None)
            slopes.append(np.polyfit(np.log(run["inverse_temperature"])[late], run["log_gamma"][late], 1)[0])
    record = xr.Dataset(coords={"time": ts, "curve": list(CURVES), "ratio": ratios, "temperature": temperatures})
    curves = np.array(curves)
    record["log_gamma"] = (("curve", "time"), curves[:, 0])
    record["log_beta"] = (("curve", "time"), curves[:, 1])
    record["slope"] = ("ratio", slopes)
    record["effective_lr_ratio"] = ("ratio", theory.effective_lr_ratio(PAIRS, 1.0, ratios / PAIRS))
    record["relative_gap"] = (("ratio", "temperature"), np.array(final))
    residuals = [
        theory.kernel_conserved_residual(g, np.exp(b), PAIRS, 1.0, r / PAIRS)
        for (g, b), r in zip(curves, CURVES, strict=True)
    ]
    record.attrs["max_conserved_residual"] = float(np.abs(residuals).max())
    return record


def plot(record: xr.Dataset) -> Figure:
    colours = [fs.plot.COLOURS[name] for name in ("black", "blue", "green", "vermilion")]
    figure = Figure(figsize=(fs.plot.PAGE, 5.2), layout="constrained")
    axes = figure.subplots(2, 2)
    first = np.exp(float(record["log_gamma"][0, 0]))
    for k, colour in enumerate(colours):
        one, ratio = record.isel(curve=k), float(record["curve"][k])
        gap = 2 * np.exp(one["log_gamma"])
        axes[0, 0].plot(record["time"][1:], gap[1:], color=colour, label=rf"{ratio:g}")
        axes[0, 1].plot(np.exp(one["log_beta"])[::8], gap[::8], "o", ms=3, mfc="none", color=colour)
        # The conserved quantity as a curve in the plane of temperature and gap.
        heights = np.linspace(float(one["log_gamma"].min()), np.log(first), 200)
        wanted = theory.kernel_conserved_quantity(np.log(first), np.exp(one["log_beta"][0]), PAIRS, 1.0, ratio / PAIRS)
        rest = theory.kernel_conserved_quantity(heights, 1.0, PAIRS, 1.0, ratio / PAIRS)
        axes[0, 1].plot(np.exp((float(wanted) - rest) / 2), 2 * np.exp(heights), color=colour, lw=0.8)
    axes[0, 0].set(xscale="log", yscale="log", xlabel="flow time $t$", ylabel=r"gap $\Delta$")
    axes[0, 0].legend(title=r"$n\cdot$shared/own", fontsize=7, title_fontsize=7)
    axes[0, 1].set(xscale="log", yscale="log", xlabel=r"inverse temperature $\beta$", ylabel=r"gap $\Delta$")
    axes[0, 1].xaxis.set_minor_formatter(NullFormatter())
    axes[0, 1].set_xticks([5, 10, 15], ["5", "10", "15"])
    axes[1, 0].plot(record["effective_lr_ratio"], -record["slope"], "o", ms=4, color=colours[0], label="simulated")
    axes[1, 0].plot(
        record["effective_lr_ratio"], 2 / record["effective_lr_ratio"], color=colours[1], label=r"$2/r_{\rm eff}$"
    )
    axes[1, 0].set(xscale="log", yscale="log", xlabel=r"$r_{\rm eff} = r\,/\,({\rm own} + n\cdot{\rm shared})$")
    axes[1, 0].set(ylabel=r"$-\,d\ln\gamma\,/\,d\ln\beta$")
    axes[1, 0].legend(fontsize=7)
    shown = record["relative_gap"].isel(ratio=slice(1, None))
    fs.plot.phase_diagram(
        shown, "temperature", "ratio", axes[1, 1], levels=np.arange(0.1, 1.4, 0.1), cmap="cividis", vmin=0.0
    )
    axes[1, 1].set(xlabel=r"starting temperature $\tau_0$", ylabel=r"$n\cdot$shared/own")
    titles = (
        "cones: gap over time", "the conserved quantity (lines)", r"late slope at $\ln t = 100$ to $120$",
        rf"rows on the sphere: gap at $t = {fs.plot.time_text(T1).strip('$')}$ / initial gap",
    )  # fmt: skip
    for ax, letter, title in zip(axes.flat, "abcd", titles, strict=True):
        ax.set_title(rf"$\bf{{({letter})}}$ {title}")
    figure.supxlabel(
        rf"$K = I + {{\rm shared}}\,11^\top$ in both modalities, $\beta = e^\nu$, $r = 1$. (a)-(c): frozen orthonormal "
        rf"directions, $n = {PAIRS}$,"
        "\n"
        rf"$\gamma_0 = {GAMMA0}$, $\tau_0 = {TAU0}$; (d): uniform rows, $n = {ROWS}$, $d = {DIM}$, one start.",
        fontsize=8,
    )
    return figure
