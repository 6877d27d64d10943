"""Slow closing: does the gap fall as 1/log(t)², on a straight line against −1/log(t)²?"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.drawing import CLOSED, RUN
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.limits import GAP_MOVED, LINE_POINTS, moved
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import BEND, BEND_LEVEL, Line, fit_line, fit_slope, fit_tested_line
from flowsim.comparison.words import between, percent, short
from flowsim.plot import COLOURS, MATCHED_COLOUR, label

#: R² of a line that counts as straight.
_STRAIGHT = 0.9

CRITERION = (
    "from step 100 on (10 in runs of fewer than 1000), by least squares of the gap against -1/log(t)²: agrees if the "
    f"slope's interval says that the gap falls, R² >= {_STRAIGHT:g}, there is no bend (a parabola departs by more than "
    f"{100 * BEND:.0f} % of the range, significant at {100 * BEND_LEVEL:.0f} %), and a line in log t has no higher "
    "R²; "
    "disagrees if the interval says that the gap grows, or there is a bend; no verdict with fewer than "
    f"{LINE_POINTS} evaluations, or for a gap that moved by less than {100 * GAP_MOVED:.0f} %"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The gap over t and x = −1/log(t)², (T,) each, and the line from `begin` on."""

    t: np.ndarray
    x: np.ndarray
    gap: np.ndarray
    begin: float
    slope: float
    intercept: float
    #: First and last t of the longest straight stretch.
    straight: tuple[float, float] | None
    in_steps: bool


@dataclasses.dataclass(frozen=True)
class Measured:
    """The gap over t, (T,) each, and the line through the evaluations from `begin` on."""

    run: Run
    t: np.ndarray
    gap: np.ndarray
    #: "evaluations" or "batches".
    source: str
    begin: float
    line: Line
    #: 95 % interval of its slope.
    interval: list[float]
    #: A line in log t.
    rival: Line
    #: First and last t of the longest straight stretch.
    straight: tuple[float, float] | None

    @property
    def late(self) -> np.ndarray:
        """Mask of the evaluations that the line is fitted to."""
        return _late(self.t, self.begin)

    @property
    def falls(self) -> bool:
        """Whether the interval shows that the gap falls as −1/log² rises to 0."""
        return self.interval[1] < 0

    @property
    def grows(self) -> bool:
        """Whether the interval shows that the gap grows."""
        return self.interval[0] > 0

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        run, line = self.run, self.line
        first, last = self.straight or (None, None)
        found: dict[str, Any] = {
            "t": "steps" if run.step is not None else run.clock_name, "source": self.source, "from": self.begin,
            "slope": line.slope, "slope_interval": self.interval, "limit": line.intercept, "r2": line.r2,
            "bend": line.bend, "bend_p": line.p, "r2_of_line_in_log_t": self.rival.r2,
            "straight_from": first, "straight_until": last, "evaluations": int(self.late.sum()),
        }  # fmt: skip
        if run.step is not None:
            found["clock"] = _on_clock(run)
        return found

    def sentence(self) -> str:
        """The finding in words."""
        word, line = self.run.axis_word, self.line
        if self.grows:
            said = f"From {word} {self.begin:g} on the gap grows instead of closing"
        else:
            said = (
                f"From {word} {self.begin:g} on the gap "
                f"{'shows no clear bend away from' if line.straight else 'bends away from'} a line in -1/log(t)² "
                f"(slope {short(line.slope)}, {between(self.interval)}; R² {line.r2:.3f}, bend {percent(line.bend)} of "
                f"its range; a line in log t has R² {self.rival.r2:.3f})"
            )
        if self.straight is not None:
            first, last = self.straight
            said += f"; the longest straight stretch is {word} {first:.0f} to {last:.0f}"
        return said + "."

    def curves(self) -> Curves:
        """Data of the panel."""
        return Curves(
            self.t,
            -1 / np.log(self.t) ** 2,
            self.gap,
            self.begin,
            self.line.slope,
            self.line.intercept,
            self.straight,
            self.run.step is not None,
        )


def measure(run: Run) -> Measured:
    """Fit the line to the late part of a run; raises `CannotTell`."""
    t, gap, source = _steps_and_gap(run)
    word = "steps" if run.step is not None else "units of flow time"
    if not t.size or t[-1] < 100:
        raise CannotTell(f"The run is too short: the law in log(t) needs at least 100 {word}.")
    begin = 100.0 if t[-1] >= 1000 else 10.0
    kept = _thinned(t, gap)
    t, gap = t[kept], gap[kept]
    late = _late(t, begin)
    if late.sum() < LINE_POINTS:
        raise CannotTell(
            f"Only {int(late.sum())} evaluations after {run.axis_word} {begin:g}; {LINE_POINTS} are needed."
        )
    if not moved(gap[late]):
        raise CannotTell(f"The gap moved by less than {percent(GAP_MOVED)} after {run.axis_word} {begin:g}.")
    x, log_t = -1 / np.log(t) ** 2, np.log(t[late])
    line, interval = fit_tested_line(x[late], gap[late]), fit_slope(x[late], gap[late]).interval
    window = _longest_straight(x[late], gap[late], log_t)
    straight = None if window is None else (float(t[late][window[0]]), float(t[late][window[1]]))
    return Measured(run, t, gap, source, begin, line, interval, fit_line(log_t, gap[late]), straight)


def judge(found: Measured) -> Verdict:
    """The verdict, by the sign of the slope, the bend, R², and the line in log t."""
    if found.grows or not found.line.straight:
        return "disagrees"
    if not found.falls or not found.line.r2 >= _STRAIGHT or found.rival.r2 > found.line.r2:
        return "cannot tell"
    return "agrees"


def draw(curves: Curves, ax: Axes) -> None:
    """Draw the gap over −1/log(t)² with its line, and powers of ten of t."""
    x, t, gap = curves.x, curves.t, curves.gap
    late = _late(t, curves.begin)
    ax.plot(x[late], gap[late], ls="", marker="o", ms=2.6, mew=0, color=RUN, label="run")
    ax.plot(
        x[~late],
        gap[~late],
        ls="",
        marker="o",
        ms=2.6,
        mfc="none",
        mew=0.6,
        color=RUN,
        label="before, not in the fit",
    )
    ax.plot(x[late], curves.intercept + curves.slope * x[late], color=CLOSED, ls=(0, (4, 2)), lw=1, label="line")
    if curves.straight is not None:
        first, last = (-1 / np.log(s) ** 2 for s in curves.straight)
        ax.axvspan(first, last, color=MATCHED_COLOUR, lw=0, zorder=0, label="straight")
    ax.set_xlim(1.12 * x[late][0] - 0.12 * x[late][-1], 0.0)
    height = np.ptp(gap[late])
    ax.set_ylim(gap[late].min() - 0.35 * height, gap[late].max() + 0.15 * height)
    _draw_decades(t[late], "k" if curves.in_steps else "t", ax)
    ax.set_xlabel(r"$-1/\ln(k)^2$, $k$ the step" if curves.in_steps else r"$-1/\ln(t)^2$, $t$ the flow time")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_decades(t: np.ndarray, symbol: str, ax: Axes) -> None:
    """Label powers of ten of t along the axis of −1/log(t)², only those that fit, because they crowd at the limit."""
    shown = [s for s in 10.0 ** np.arange(1, 31) if t[0] * 0.999 <= s <= t[-1] * 1.001]
    last = -math.inf
    for s in shown:
        place = -1 / np.log(s) ** 2
        if place - last > 0.09 * abs(ax.get_xlim()[0]):
            last = place
            ax.annotate(
                f"${symbol} = 10^{{{round(np.log10(s))}}}$",
                (place, 0.02),
                xycoords=ax.get_xaxis_transform(),
                fontsize=7,
                ha="center",
                color=COLOURS["grey"],
            )


@register("slow_closing", title="Slow closing", criterion=CRITERION, panels=(Panel(draw),))
def slow_closing(runs: Sequence[Run]) -> Finding[Curves]:
    """How slowly the gap of the first run closes."""
    found = measure(runs[0])
    return Finding(judge(found), found.sentence(), found.numbers(), found.curves())


def _late(t: np.ndarray, begin: float) -> np.ndarray:
    """Mask of the times from `begin` on."""
    return t >= begin * (1 - 1e-9)


def _steps_and_gap(run: Run) -> tuple[np.ndarray, np.ndarray, str]:
    """t from 10 on, the gap, and its source: the batches of training if there are few evaluations."""
    good = np.isfinite(run.gap) & (run.axis >= 10)
    t, gap = run.axis[good], run.gap[good]
    batch = run.batch_gap
    if len(t) >= 12 or run.step is None or batch is None:
        return t, gap, "evaluations"
    steps = np.arange(1, len(batch) + 1)
    good = np.isfinite(batch) & (steps >= 10)
    steps, batch = steps[good], np.asarray(batch, np.float64)[good]
    if not steps.size:
        return t, gap, "evaluations"
    # Single batches are noisy, so take means over log-spaced bins.
    bins = np.floor(np.log(steps / 10) / math.log(1.1)).astype(int)
    there = np.unique(bins)
    centre = np.exp(np.array([np.log(steps[bins == b]).mean() for b in there]))
    return centre, np.array([batch[bins == b].mean() for b in there]), "batches"


def _thinned(t: np.ndarray, values: np.ndarray, most: int = 64) -> np.ndarray:
    """Indices of at most `most` finite evaluations, about evenly spaced in log t."""
    good = np.flatnonzero(np.isfinite(values))
    wanted = np.geomspace(t[good[0]], t[good[-1]], most)
    wanted[-1] = t[good[-1]]
    return good[np.unique(np.clip(np.searchsorted(t[good], wanted * (1 - 1e-12)), 0, len(good) - 1))]


def _longest_straight(x: np.ndarray, y: np.ndarray, log_t: np.ndarray) -> tuple[int, int] | None:
    """First and last index of the stretch, longest in log t, over which y falls straight in x."""
    best, length = None, 0.0
    for i in range(len(x)):
        for j in range(len(x) - 1, i + 6, -1):
            if log_t[j] - log_t[i] <= length:
                break
            line = fit_line(x[i : j + 1], y[i : j + 1])
            if line.straight and line.r2 >= _STRAIGHT and line.slope < 0:
                best, length = (i, j), float(log_t[j] - log_t[i])
                break
    return best


def _on_clock(run: Run) -> dict[str, Any]:
    """Numbers of the same line with t on the run's own clock, at times above e."""
    good = np.isfinite(run.gap) & (run.clock > math.e)
    if good.sum() < LINE_POINTS:
        return {"reason": f"the {run.clock_name} reaches only {run.clock[-1]:.3g}, too little for a law in log t"}
    t, gap = run.clock[good], run.gap[good]
    kept = _thinned(t, gap)
    x = -1 / np.log(t[kept]) ** 2
    if len(kept) < LINE_POINTS:
        return {"reason": f"only {len(kept)} evaluations differ on the {run.clock_name}"}
    line = fit_tested_line(x, gap[kept])
    return {
        "t": run.clock_name,
        "from": float(t[0]),
        "slope": line.slope,
        "slope_interval": fit_slope(x, gap[kept]).interval,
        "r2": line.r2,
        "bend": line.bend,
        "bend_p": line.p,
    }
