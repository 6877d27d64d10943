"""Recorded observables over flow time and against each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from flowsim import theory
from flowsim.base.checks import check
from flowsim.plot.style import _COLOUR_OF, COLOURS, MATCHED_COLOUR, TIME_LABEL, _axes, _check_recorded, label
from flowsim.records.result import Result


def series(result: Result, name: str, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw a recorded observable over logarithmic time; times at which all pairs are matched are shaded.

    The axis of a loss is logarithmic if it varies by more than a factor of 30. Several results may be drawn on the same
    axes; only the first one is shaded.

    Args:
        result: A run.
        name: Name of the observable.
        ax: Axes to draw on. Default: a new figure.
        **line: Options of `Axes.plot` (`label`, `color`, ...).

    Returns:
        The axes.

    Raises:
        FlowsimError: If `name` was not recorded.
    """
    _check_recorded(result, name)
    ax = _axes(ax)
    time, values = result.time, result.series[name]
    colour = _COLOUR_OF.get(name, COLOURS["black"])
    alone = not ax.lines
    ax.plot(time, values, **{"color": colour, **line})
    # A point at t = 0 is drawn at the left edge.
    ax.set_xscale("log", nonpositive="clip")
    positive = time[time > 0]
    if positive.size > 1:
        # Keep earlier lines inside.
        ends = [positive[0], positive[-1], *([] if alone else ax.get_xlim())]
        ax.set_xlim(min(ends), max(ends))
    finite = values[np.isfinite(values)]
    if name == "loss" and finite.size and (finite > 0).all() and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
    ax.set_xlabel(f"{result.clock} $t$")
    ax.set_ylabel(label(name))
    return shade_matched(result, ax) if alone else ax


def gap(result: Result, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the modality gap over time, on an axis that begins at 0; see `series`.

    Args:
        result: A run.
        ax: Axes to draw on. Default: a new figure.
        **line: Options of `Axes.plot` (`label`, `color`, ...).

    Returns:
        The axes.

    Raises:
        FlowsimError: If the gap was not recorded.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> ax = None
        >>> for name, colour in zip(("Baseline", "TS S3"), fs.plot.CYCLE):
        ...     result = fs.simulate(fs.GradientFlow.from_preset(name), start, t1=1e3)
        ...     ax = fs.plot.gap(result, ax, label=name, color=colour)
        >>> [text.get_text() for text in ax.legend().get_texts()]
        ['Baseline', 'TS S3']
    """
    ax = series(result, "modality_gap", ax, **line)
    _from_zero(ax)
    return ax


def temperature(result: Result, ax: Axes | None = None, **line: Any) -> Axes:
    """Draw the temperature over time; see `series`.

    The axis is logarithmic if the temperatures on it differ by more than a factor of 30, else it begins at 0. Change it
    with `ax.set_yscale`.

    Args:
        result: A run.
        ax: Axes to draw on. Default: a new figure.
        **line: Options of `Axes.plot` (`label`, `color`, ...).

    Returns:
        The axes.

    Raises:
        FlowsimError: If the temperature was not recorded.
    """
    ax = series(result, "temperature", ax, **line)
    values = np.concatenate([np.ravel(np.asarray(drawn.get_ydata(), float)) for drawn in ax.lines])
    values = values[np.isfinite(values)]
    if values.size and values.max() > 30 * values.min():
        ax.set_yscale("log")
    _from_zero(ax)
    return ax


def _from_zero(ax: Axes) -> None:
    """Let a linear vertical axis begin at 0, or below if a line goes there.

    The limits stay automatic: fixed ones would hide later lines, and a logarithmic axis cannot begin at 0.
    """
    for line in ax.lines:
        line.sticky_edges.y.append(0.0)
    ax.update_datalim([(0.0, 0.0)], updatex=False)
    ax.autoscale_view(scalex=False)


def shade_matched(result: Result, ax: Axes) -> Axes:
    """Shade the times at which the margin is positive, if it was recorded.

    Args:
        result: A run.
        ax: Axes to draw on.

    Returns:
        The axes.
    """
    if "margin" in result.series:
        shade_intervals(result.time, result.series["margin"] > 0, ax)
    return ax


def shade_intervals(time: np.ndarray, inside: np.ndarray, ax: Axes) -> Axes:
    """Shade the intervals in which a condition holds.

    Args:
        time: Increasing times, (time,).
        inside: Whether the condition holds, (time,).
        ax: Axes to draw on.

    Returns:
        The axes.
    """
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    for first, last in zip(edges[::2], edges[1::2] - 1, strict=True):
        ax.axvspan(float(time[first]), float(time[last]), color=MATCHED_COLOUR, lw=0, zorder=0)
    return ax


def exponent(result: Result, name: str = "modality_gap", ax: Axes | None = None, *, law: float | None = None) -> Axes:
    """Draw the local power p(t) = −d ln Δ / d ln ln t of an observable Δ over flow time.

    For a gap that closes like Δ ~ (ln t)^−p it converges to p. With a learnable temperature and at late times, p is
    2s²/r for γ on parallel cones and s²/(rn) for rings on the sphere (see `fs.theory.closing_exponent` and
    `sphere_exponent`). "gamma" uses the recorded ln γ, which does not underflow. Times up to t = e are left out.

    Args:
        result: A run.
        name: Name of the observable.
        ax: Axes to draw on. Default: a new figure.
        law: Limit to draw as a horizontal line.

    Returns:
        The axes.

    Raises:
        FlowsimError: If `name` was not recorded.

    Examples:
        >>> import flowsim as fs
        >>> result = fs.simulate(fs.GradientFlow(), fs.initial.rings(pairs=5, height=0.309, twist=-144), t1=1e30)
        >>> round(float(fs.plot.exponent(result, law=0.2).lines[0].get_ydata()[-1]), 1)
        0.2
    """
    _check_recorded(result, name)
    late = result.time > np.e
    log = result.series["log_gamma"] if name == "gamma" and "log_gamma" in result.series else None
    values = np.log(np.abs(result.series[name])) if log is None else log
    ax = _axes(ax)
    speed = -theory.local_slope(values[late], np.log(result.time[late]))
    # Without the ends, which are one-sided differences.
    ax.plot(result.time[late][1:-1], speed[1:-1], color=_COLOUR_OF.get(name, COLOURS["black"]))
    if law is not None:
        ax.axhline(law, color=COLOURS["grey"], lw=0.8, ls=(0, (6, 3)), label=f"law: {law:.3g}")
    symbol = label(name).rpartition("$")[0].rpartition("$")[2] or name
    ax.set(xscale="log", xlabel=TIME_LABEL, ylabel=rf"local power $-\,d \ln {symbol}\,/\,d \ln\ln t$")
    return ax


def gap_against_retrieval(
    gap: ArrayLike, retrieval: ArrayLike, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """Draw one point per run, its gap and its retrieval; with four points or more the title gives Spearman's ρ.

    Args:
        gap: Gap of each run, (runs,).
        retrieval: Recall of each run, from `fs.observables.retrieval` or a record, (runs,).
        names: Labels next to the points, one per run. Default: none.
        ax: Axes to draw on. Default: a new figure.

    Returns:
        The axes.

    Raises:
        FlowsimError: If the numbers of values differ.
    """
    gap, retrieval = (np.asarray(values, float).ravel() for values in (gap, retrieval))
    check(
        len(gap) == len(retrieval) == len(gap if names is None else names),
        f"{len(gap)} gaps, {len(retrieval)} recalls and {len(gap if names is None else names)} names do not "
        "match. Give one of each per run.",
    )
    ax = _axes(ax)
    ax.plot(gap, retrieval, "o", color=COLOURS["blue"])
    for x, y, name in zip(gap, retrieval, names or [], strict=names is not None):
        ax.annotate(name, (x, y), (4, 2), textcoords="offset points", fontsize=7)
    if len(gap) > 3:
        from scipy.stats import spearmanr

        rank = spearmanr(gap, retrieval).statistic  # pyright: ignore[reportAttributeAccessIssue]
        ax.set_title(rf"Spearman's $\rho = {rank:+.2f}$")
    ax.set(xlabel=label("modality_gap"), ylabel="retrieval (recall, fraction of queries)")
    return ax
