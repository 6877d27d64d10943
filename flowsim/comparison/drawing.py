"""The figure of a comparison: a panel for each item that has something to show."""

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flowsim.errors import FlowsimError
from flowsim.plot import COLOURS, COLUMN, MATCHED_COLOUR, PAGE, label

#: Colours and words of the three sources that a comparison overlays.
_RUN, _SIMULATED, _CLOSED = COLOURS["blue"], COLOURS["vermilion"], COLOURS["black"]


def draw(items: Mapping[str, Any]) -> Figure:
    """Closed form, simulation and training on one figure: what `fs.compare` found, a panel for each comparison.

    `items`: name -> item with `curves` and `verdict`, as in `Comparison.items`. Items that could tell nothing have
    no panel. Returns the figure.
    """
    panels: list[tuple[str, Any, Any]] = []
    shown = {name: item for name, item in items.items() if item.curves}
    if "simulation" in shown:
        panels.append(("Gap: run, simulation, closed form", _draw_gap, shown["simulation"]))
        if shown["simulation"].curves["tau"] is not None:
            panels.append(("Temperature", _draw_temperature, shown["simulation"]))
    drawing = {
        "exponent": _draw_exponent,
        "slow_closing": _draw_closing,
        "matching": _draw_matching,
        "calibration": _draw_calibration,
        "enlargement": _draw_enlargement,
    }
    panels += [(shown[k].title, draw, shown[k]) for k, draw in drawing.items() if k in shown]
    if not panels:
        raise FlowsimError("This comparison has nothing to draw: no item could tell anything. Read its sentences.")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = plt.figure(figsize=(PAGE if columns == 2 else COLUMN, 2.35 * rows + 0.1), layout="constrained")
    for index, (title, draw, item) in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        draw(item.curves, ax)
        ax.set_title(rf"$\bf{{({chr(97 + index)})}}$ {title}: {item.verdict}", loc="left")
    return figure


def _steps_axis(curves: Mapping[str, Any], x: np.ndarray, ax: Axes) -> None:
    """Logarithmic from the first positive value on, where there are decades; that at 0 stands at the left edge."""
    positive = x[x > 0]
    if positive.size > 1 and positive[-1] > 30 * positive[0]:
        ax.set_xscale("log", nonpositive="clip")
        ax.set_xlim(positive[0], positive[-1])
    elif positive.size:
        ax.set_xlim(x[0], positive[-1])
    ax.set_xlabel(curves["label"])


def _dots(x: np.ndarray, y: np.ndarray, ax: Axes) -> None:
    """The run as dots, few enough (even in log x, where that is the axis) to leave lines visible."""
    order = np.argsort(x)
    logs = np.log(np.maximum(x[order], x[x > 0].min())) if ax.get_xscale() == "log" else x[order]
    room = np.round((logs - logs[0]) / max(float(np.ptp(logs)), 1e-300) * 50)
    shown = order[np.unique(room, return_index=True)[1]]
    ax.plot(x[shown], y[shown], ls="", marker="o", ms=3, mew=0, color=_RUN, label="run")


def _draw_gap(curves: Mapping[str, Any], ax: Axes) -> None:
    _steps_axis(curves, curves["whole_x"], ax)
    _dots(curves["whole_x"], curves["whole_gap"], ax)
    ax.plot(curves["x"], curves["simulated_gap"], color=_SIMULATED, label="simulation", zorder=1.9)
    if "closed_gap" in curves:
        ax.plot(curves["closed_x"], curves["closed_gap"], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="parallel cones")
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_temperature(curves: Mapping[str, Any], ax: Axes) -> None:
    _steps_axis(curves, curves["whole_x"], ax)
    _dots(curves["whole_x"], curves["whole_tau"], ax)
    ax.plot(curves["x"], curves["simulated_tau"], color=_SIMULATED, label="simulation", zorder=1.9)
    if "closed_tau" in curves:
        ax.plot(curves["closed_x"], curves["closed_tau"], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="parallel cones")
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.max() > 10 * drawn.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(label("temperature"))
    ax.legend(loc="best")


def _draw_exponent(curves: Mapping[str, Any], ax: Axes) -> None:
    x, gap = curves["x"], curves["gap"]
    at = np.exp(x) if curves["exponential"] else x
    order = np.argsort(at)
    if curves["exponential"]:
        ax.set_xscale("log")
    _dots(at, gap, ax)
    ax.plot(at[order], curves["fit"][order], color=_RUN, lw=1, label=f"fit: {_signed(curves['exponent'])}")
    # The laws say a slope, not a level: they pass through the middle of the run.
    centre, level = float(np.mean(x)), float(np.mean(np.log(gap)))
    low, high = np.log(gap.min()), np.log(gap.max())
    margin = 0.25 * max(high - low, 0.2)
    names = {"parallel": "parallel cones", "sphere": f"sphere, $n = {curves['pairs']}$"}
    styles = {"parallel": (COLOURS["black"], (0, (4, 2))), "sphere": (COLOURS["green"], (0, (1, 1)))}
    for name, (power, _) in curves["laws"].items():
        colour, style = styles[name]
        line = np.exp(level + power * (np.linspace(x.min(), x.max(), 200) - centre))
        along = np.linspace(x.min(), x.max(), 200)
        along = np.exp(along) if curves["exponential"] else along
        ax.plot(along, line, color=colour, ls=style, lw=1, label=f"{names[name]}: {_signed(power)}", zorder=2.5)
    ax.set_yscale("log")
    ax.set_ylim(np.exp(low - margin), np.exp(high + margin))
    for axis in (ax.xaxis, ax.yaxis) if curves["exponential"] else (ax.yaxis,):
        _plain_ticks(axis)
    ax.set_xlabel(label("inverse_temperature") if curves["exponential"] else r"potential $F(\beta)$")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_closing(curves: Mapping[str, Any], ax: Axes) -> None:
    x, t = curves["x"], curves["t"]
    late = t >= curves["from"] * (1 - 1e-9)
    ax.plot(x[late], curves["gap"][late], ls="", marker="o", ms=2.6, mew=0, color=_RUN, label="run")
    ax.plot(
        x[~late],
        curves["gap"][~late],
        ls="",
        marker="o",
        ms=2.6,
        mfc="none",
        mew=0.6,
        color=_RUN,
        label="before, not in the fit",
    )
    ax.plot(x[late], curves["intercept"] + curves["slope"] * x[late], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="line")
    if "straight" in curves:
        first, last = (-1 / np.log(s) ** 2 for s in curves["straight"])
        ax.axvspan(first, last, color=MATCHED_COLOUR, lw=0, zorder=0, label="straight")
    ends = t[late]
    ax.set_xlim(1.12 * x[late][0] - 0.12 * x[late][-1], 0.0)
    height = np.ptp(curves["gap"][late])
    ax.set_ylim(curves["gap"][late].min() - 0.35 * height, curves["gap"][late].max() + 0.15 * height)
    shown = [s for s in 10.0 ** np.arange(1, 31) if ends[0] * 0.999 <= s <= ends[-1] * 1.001]
    if shown:
        # A second reading of the axis; crowded towards the limit, where only every so many decades fit.
        places = [-1 / np.log(s) ** 2 for s in shown]
        kept: list[int] = []
        for i, place in enumerate(places):
            if not kept or place - places[kept[-1]] > 0.09 * abs(ax.get_xlim()[0]):
                kept.append(i)
        for i in kept:
            ax.annotate(
                f"${'k' if curves['word'] == 'step' else 't'} = 10^{{{round(np.log10(shown[i]))}}}$",
                (places[i], 0.02), xycoords=ax.get_xaxis_transform(), fontsize=7, ha="center", color=COLOURS["grey"],
            )  # fmt: skip
    ax.set_xlabel(r"$-1/\ln(k)^2$, $k$ the step" if curves["word"] == "step" else r"$-1/\ln(t)^2$, $t$ the flow time")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_matching(curves: Mapping[str, Any], ax: Axes) -> None:
    gap, defect = curves["gap"], curves["defect"]
    ax.plot(curves["x"], gap / np.nanmax(gap), color=_RUN, label="gap / its peak")
    ax.plot(curves["x"], curves["matched"], color=COLOURS["green"], ls=(0, (1, 1)), label="matched fraction")
    if curves.get("all") is not None:
        ax.axvspan(curves["all"], curves["x"][-1], color=MATCHED_COLOUR, lw=0, zorder=0, label="all pairs matched")
    _steps_axis(curves, curves["x"], ax)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("fraction")
    handles = ax.get_legend_handles_labels()[0]
    if defect is not None and np.nanmax(defect) > 1e-12:  # below, it is rounding
        top = ax.twinx()
        handles += top.plot(
            curves["x"], np.maximum(defect, 1e-16), color=COLOURS["orange"], ls=(0, (4, 2)), lw=1,
            label="doubly stochastic defect (right)",
        )  # fmt: skip
        top.set_yscale("log")
        top.set_ylabel("doubly stochastic defect")
        top.spines["right"].set_visible(True)
    # Below: three curves from corner to corner leave no room inside.
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, columnspacing=0.9)


def _draw_calibration(curves: Mapping[str, Any], ax: Axes) -> None:
    x, rest = curves["x"], curves["rest"]
    ax.axvspan(x[0], curves["seen_until"], color="#E4E4E4", lw=0, zorder=0, label="seen by the fit")
    _dots(x, curves["gap"], ax)
    ax.plot(x, curves["predicted"], color=_SIMULATED, label="simulation", zorder=1.9)
    ax.plot(x[rest], curves["constant"][rest], color=COLOURS["grey"], ls=(0, (1, 1)), label="constant")
    ax.plot(x[rest], curves["line"][rest], color=COLOURS["purple"], ls=(0, (4, 2)), lw=1, label=r"line in $\log t$")
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(curves["label"])
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best", ncols=2)


def _draw_enlargement(curves: Mapping[str, Any], ax: Axes) -> None:
    ax.hist(curves["changes"], bins=min(10, max(3, len(curves["changes"]) // 2)), color=_RUN, alpha=0.8, rwidth=0.92)
    ax.axvline(0, color=COLOURS["grey"], lw=1, ls=":", label="no change")
    ax.axvline(curves["mean"], color=_SIMULATED, label=f"mean {_signed(curves['mean'])}")
    ax.margins(y=0.25)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(r"change of the gap over the first steps")
    ax.set_ylabel("initialisations")
    ax.legend(loc="upper left")


def _signed(value: float) -> str:
    """A number with a minus sign instead of a hyphen."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _plain_ticks(axis: Any) -> None:
    """Few plain numbers on a logarithmic axis of less than two decades, where powers of ten say little."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high > 6 * low else (1, 1.5, 2, 3, 4, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())
