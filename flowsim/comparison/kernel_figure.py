"""The figure of a study of kernels: gaps over time, errors of flows and forecasts, exponents, drift."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowsim import plot

#: Colours of towers and optimizers; filled markers are full batches, open ones minibatches.
_COLOURS = {"vit": "blue", "rn": "vermilion"}
_MARKERS = {"sgd": "o", "slow-sgd": "s", "adamw": "^"}
#: Curves of a run -> label, colour, line.
_CURVES = {
    "frozen": ("kernels at the start", "vermilion", "-"),
    "measured_again": ("measured again", "green", (0, (4, 2))),
    "free_rows": ("free rows", "grey", "-"),
}  # fmt: skip


def kernel_figure(numbers: xr.Dataset) -> Figure:
    """Draw the runs of a study beside the flows of their kernels.

    (a) and (b) show the gap of the first run of two cells. (c) compares the deviations of kernel flow and free rows,
    (d) the errors of forecasts, (e) the measured exponent with the power that r_eff predicts, (f) the drift of the
    kernels.

    Args:
        numbers: The dataset of `flowsim.comparison.kernel_table.kernel_numbers`.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(plot.PAGE, 6.4), layout="constrained")
    axes = figure.subplots(2, 3)
    cells = list(dict.fromkeys(numbers["cell"].to_numpy().tolist()))
    titles = ["", "", "deviation of the gap", "forecasts", "exponents", "drift"]
    for k, wanted in enumerate(("vit full slow-sgd", "vit minibatch adamw")):
        cell = wanted if wanted in cells else cells[0]
        of_cell = numbers.isel(run=np.flatnonzero(numbers["cell"].to_numpy() == cell))
        _draw_run(of_cell.isel(run=0), axes[0, k], forecast=k == 1)
        titles[k] = _words(cell)
    relative = numbers["forecast_gap_at_start"]
    _draw_errors(numbers, numbers["rms_gap_free_rows"], numbers["rms_gap_frozen"], axes[0, 2])
    axes[0, 2].set(xlabel="free rows: rms error of the gap", ylabel="kernel flow, nothing fitted")
    line, kernels = (numbers[f"forecast_rms_error_{key}"] / relative for key in ("line_in_log_t", "forecast"))
    _draw_errors(numbers, line, kernels, axes[1, 0])
    axes[1, 0].axhline(0.1, color=plot.COLOURS["grey"], lw=0.6, ls=(0, (1, 1)))
    axes[1, 0].set(xlabel=r"line in $\log t$: error / start", ylabel="forecast by kernels: error / start")
    _draw_exponents(numbers, axes[1, 1])
    _draw_drift(numbers, axes[1, 2])
    for ax, letter, title in zip(axes.flat, "abcdef", titles, strict=True):
        ax.set_title(rf"$\bf{{({letter})}}$ {title}", loc="left", fontsize=8)
    handles = [
        Line2D([], [], ls="", marker=marker, color=plot.COLOURS["black"], ms=4, label=name)
        for name, marker in _MARKERS.items()
    ]
    handles += [
        Line2D([], [], ls="", marker="D", color=plot.COLOURS[colour], ms=4, label={"vit": "ViT", "rn": "ResNet"}[name])
        for name, colour in _COLOURS.items()
    ]
    handles.append(
        Line2D([], [], ls="", marker="o", mfc="none", color=plot.COLOURS["black"], ms=4, label="minibatches (open)")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=7)
    return figure


def _words(cell: str) -> str:
    """A cell in words."""
    tower, batch, optimizer = cell.split()
    towers = {"vit": "ViT", "rn": "ResNet"}
    batches = {"full": "full batch", "minibatch": "minibatches"}
    return f"{towers[tower]}, {batches[batch]}, {optimizer.replace('sgd', 'SGD').replace('adamw', 'AdamW')}"


def _style(cell: str) -> dict[str, object]:
    tower, batch, optimizer = cell.split()
    colour = plot.COLOURS[_COLOURS[tower]]
    return {
        "color": colour, "marker": _MARKERS[optimizer], "ls": "", "ms": 3.5,
        "mfc": colour if batch == "full" else "none", "mew": 0.7,
    }  # fmt: skip


def _draw_run(run: xr.Dataset, ax: Axes, forecast: bool) -> None:
    """The gap of a run with the flows of its kernels, and its forecast."""
    step = run["curves_step"].to_numpy()
    shown = np.isfinite(step) & (step > 0)
    ax.plot(step[shown], run["curves_gap"].to_numpy()[shown], "o", ms=2.5, color=plot.COLOURS["blue"], label="training")
    for name, (label, colour, style) in _CURVES.items():
        values = run[f"curves_{name}"].to_numpy()[shown]
        ax.plot(step[shown], values, color=plot.COLOURS[colour], ls=style, lw=1, label=label)
    if forecast and "curves_forecast" in run:
        middle, low, high = (run[f"curves_{key}"].to_numpy()[shown] for key in ("forecast", "low", "high"))
        ax.fill_between(step[shown], low, high, color=plot.COLOURS["purple"], alpha=0.2, lw=0)
        ax.plot(step[shown], middle, color=plot.COLOURS["purple"], lw=1, label="forecast from 20 %")
    ax.set(xscale="log", xlabel="step", ylabel=plot.label("modality_gap"), ylim=(0, None))
    if forecast:
        ax.legend(fontsize=6, loc="upper right", bbox_to_anchor=(1.0, 0.9))
    else:
        ax.legend(fontsize=6, loc="lower left")


def _draw_errors(numbers: xr.Dataset, x: xr.DataArray, y: xr.DataArray, ax: Axes) -> None:
    """One point per run, with the diagonal."""
    for k, cell in enumerate(numbers["cell"].to_numpy().tolist()):
        ax.plot(x[k], y[k], **_style(cell))  # pyright: ignore[reportArgumentType]
    values = np.concatenate([x.to_numpy(), y.to_numpy()])
    values = values[np.isfinite(values) & (values > 0)]
    ends = [0.8 * values.min(), 1.25 * values.max()]
    ax.plot(ends, ends, color=plot.COLOURS["grey"], lw=0.6)
    ax.set(xscale="log", yscale="log", xlim=ends, ylim=ends)


def _draw_exponents(numbers: xr.Dataset, ax: Axes) -> None:
    """−d ln Δ/d ln β between two measurements over 1/r_eff, with the laws of cones and of the sphere."""
    drawn = []
    for k, cell in enumerate(numbers["cell"].to_numpy().tolist()):
        x = 1 / numbers["measured_effective_lr_ratio"][k].to_numpy()
        y = -numbers["measured_slope"][k].to_numpy()
        good = np.isfinite(x) & np.isfinite(y)
        ax.plot(x[good], y[good], **{**_style(cell), "ms": 2.5})  # pyright: ignore[reportArgumentType]
        drawn.append(x[good])
    if (every := np.concatenate(drawn)).size:
        ends = np.array([every.min(), every.max()])
        ax.plot(ends, 2 * ends, color=plot.COLOURS["black"], lw=0.8, label=r"parallel cones, $2/r_{\rm eff}$")
        ax.plot(
            ends, ends / 64, color=plot.COLOURS["black"], lw=0.8, ls=(0, (4, 2)),
            label=r"sphere, $1/(n\,r_{\rm eff})$",
        )  # fmt: skip
        ax.legend(fontsize=6)
        ax.set(xscale="log", yscale="log")
    ax.set(xlabel=r"$1/r_{\rm eff}$ = (own + $n\cdot$shared)$/r$", ylabel=r"$-\,d\ln\Delta\,/\,d\ln\beta$")


def _draw_drift(numbers: xr.Dataset, ax: Axes) -> None:
    """Rate of the mean, relative to the first measurement, over steps: medians over the runs of a cell."""
    for cell, part in numbers.groupby("cell"):
        batch = str(cell).split()[1]
        common = sum(part[f"measured_{t}_own"] + 64 * part[f"measured_{t}_shared"] for t in ("image", "text"))
        ratio = (common / common.isel(measurement=0)).median("run").to_numpy()  # pyright: ignore
        step = part["measured_step"].median("run").to_numpy()
        order = np.isfinite(ratio) & np.isfinite(step)
        style = {**_style(str(cell)), "ls": "-" if batch == "full" else (0, (2, 1)), "lw": 0.8, "ms": 3}
        ax.plot(step[order] + 1, ratio[order], **style)  # pyright: ignore[reportArgumentType]
    ax.set(xscale="log", yscale="log", xlabel="step + 1", ylabel="rate of the mean / at first")
