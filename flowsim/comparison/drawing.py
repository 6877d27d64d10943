"""Axes and colours that the panels of a comparison share, and the figure that holds them."""

from collections.abc import Callable, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from flowsim.errors import FlowsimError
from flowsim.plot import COLOURS, COLUMN, PAGE

#: Colours of the three sources that a comparison overlays.
RUN, SIMULATED, CLOSED = COLOURS["blue"], COLOURS["vermilion"], COLOURS["black"]


def figure_of(panels: Sequence[tuple[str, Callable[[Axes], None]]]) -> Figure:
    """One figure with all panels, lettered; `panels` are pairs of title and drawing function.

    Raises:
        FlowsimError: If there are no panels.
    """
    if not panels:
        raise FlowsimError("This comparison has nothing to draw: no item could be evaluated. Read their sentences.")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = plt.figure(figsize=(PAGE if columns == 2 else COLUMN, 2.35 * rows + 0.1), layout="constrained")
    for index, (title, draw) in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        draw(ax)
        ax.set_title(rf"$\bf{{({chr(97 + index)})}}$ {title}", loc="left")
    return figure


def along_run(x: np.ndarray, label: str, ax: Axes) -> None:
    """Set up the horizontal axis for evaluations at `x` (T,).

    It is logarithmic from the first positive value on if they span decades; a point at 0 is drawn at the left edge.
    """
    positive = x[x > 0]
    if positive.size > 1 and positive[-1] > 30 * positive[0]:
        ax.set_xscale("log", nonpositive="clip")
        ax.set_xlim(positive[0], positive[-1])
    elif positive.size:
        ax.set_xlim(x[0], positive[-1])
    ax.set_xlabel(label)


def dots(x: np.ndarray, y: np.ndarray, ax: Axes) -> None:
    """Draw the run as dots that are evenly spaced on the axis and few enough to leave lines visible."""
    order = np.argsort(x)
    logs = np.log(np.maximum(x[order], x[x > 0].min())) if ax.get_xscale() == "log" else x[order]
    room = np.round((logs - logs[0]) / max(float(np.ptp(logs)), 1e-300) * 50)
    shown = order[np.unique(room, return_index=True)[1]]
    ax.plot(x[shown], y[shown], ls="", marker="o", ms=3, mew=0, color=RUN, label="run")


def signed(value: float) -> str:
    """A number with a minus sign instead of a hyphen."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def plain_ticks(axis: Any) -> None:
    """Use a few plain numbers as ticks on a logarithmic axis of less than two decades."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high > 6 * low else (1, 1.5, 2, 3, 4, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())
