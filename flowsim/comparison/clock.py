"""Matching of clocks: the factor of time that brings a trajectory closest to a run."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flowsim.comparison.record import Run
from flowsim.comparison.statistics import Deviations

#: Last time of a trajectory that serves every factor; later times are expensive and show nothing new.
LAST = 1e8
#: Number of times of such a trajectory.
GRID = 257

#: Maps a factor and a clock (T,) to gap and ln τ at the times factor × clock, (T,) each.
Trajectory = Callable[[float, np.ndarray], tuple[np.ndarray, np.ndarray]]


def grid(last: float = LAST) -> np.ndarray:
    """Times (257,) of a trajectory until `last`: 0, then log-spaced."""
    return np.concatenate([[0.0], np.geomspace(1e-3, last, GRID - 1)])


@dataclasses.dataclass(frozen=True)
class Window:
    """Evaluations of a run that a trajectory is compared with; (T,) each.

    Attributes:
        axis: Their positions on the axis of a figure.
        time: Times that are proportional to those of a simulation.
        gap: The gap.
        log_tau: ln τ, None if it was not recorded.
    """

    axis: np.ndarray
    time: np.ndarray
    gap: np.ndarray
    log_tau: np.ndarray | None

    @staticmethod
    def of(run: Run, first: int = 0) -> "Window":
        """The evaluations from `first` on that have a gap (and a temperature) and advance the clock."""
        time, log_tau = time_axis(run), run.log_tau
        good = np.arange(len(run.gap)) >= first
        good &= np.isfinite(run.gap) & (True if log_tau is None else np.isfinite(log_tau))
        good &= np.concatenate([[True], np.diff(time) > 0])
        return Window(run.axis[good], time[good], run.gap[good], None if log_tau is None else log_tau[good])


@dataclasses.dataclass(frozen=True)
class Curve:
    """Gap and ln τ of one trajectory over its own time s; NaN after the last time it reached."""

    s: np.ndarray
    gap: np.ndarray
    log_tau: np.ndarray

    def at(self, s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gap and ln τ at the times `s`, by interpolation in log(1 + s)."""
        from scipy.interpolate import PchipInterpolator

        good = np.isfinite(self.gap) & np.isfinite(self.log_tau)
        x = np.log1p(self.s[good] / self.s[1])
        at = np.log1p(np.asarray(s) / self.s[1])
        # Slopes of a gap that underflows divide by zero and are 0.
        with np.errstate(over="ignore"):
            gap, log_tau = (PchipInterpolator(x, y[good], extrapolate=False)(at) for y in (self.gap, self.log_tau))
        return gap, log_tau


@dataclasses.dataclass(frozen=True)
class Fit:
    """A factor of time with its interval (None if not computed), the curves, and the misfit."""

    factor: float
    interval: list[float] | None
    gap: np.ndarray
    log_tau: np.ndarray
    cost: float


def fit_factor(
    at: Trajectory,
    clock: np.ndarray,
    gap: np.ndarray,
    log_tau: np.ndarray | None,
    used: np.ndarray,
    cheap: bool,
    last: float = LAST,
) -> Fit:
    """The factor of time that brings a trajectory closest to a run.

    It minimises the mean square of the deviations in the gap (and in ln τ, if given), each relative to its own spread
    at the evaluations used.

    Args:
        at: The trajectory.
        clock: Clock of the run, starting at 0, (T,).
        gap: Gap of the run, (T,).
        log_tau: ln τ of the run, (T,), if it is to be fitted too.
        used: Mask (T,) of the evaluations that count.
        cheap: Whether the trajectory is cheap; many factors are then tried, and the best one has an interval.
        last: Last time of a cheap trajectory.

    Returns:
        The factor, with the trajectory at all times of the clock.
    """
    from scipy.optimize import minimize_scalar

    shown = [(gap[used], max(float(np.std(gap[used])), 1e-12))]
    if log_tau is not None:
        shown.append((log_tau[used], max(float(np.std(log_tau[used])), 1e-12)))

    def costs(log_factor: float) -> np.ndarray:
        found = at(math.exp(log_factor), clock if not cheap else clock[used])
        values = [v if cheap else v[used] for v in found]
        parts = [((v - run) / spread) ** 2 for v, (run, spread) in zip(values, shown, strict=False)]
        return np.where(np.isfinite(sum(parts)), sum(parts), 1e6) / len(shown)

    end = float(clock[used][-1])
    low, high, count = (1e-2, last, 241) if cheap else (1.0, 1e6, 13)
    tried = np.log(np.geomspace(low, high, count) / end)
    coarse = [float(costs(x).mean()) for x in tried]
    k = int(np.argmin(coarse))
    near = (tried[max(k - 1, 0)], tried[min(k + 1, count - 1)])
    options = {"xatol": 1e-5 if cheap else 0.02}
    found: Any = minimize_scalar(lambda x: costs(x).mean(), bounds=near, method="bounded", options=options)
    best = float(found.x)
    if costs(best).mean() > coarse[k]:
        best = float(tried[k])
    interval = _interval(at, best, clock[used], shown) if cheap and used.sum() > 2 else None
    return Fit(math.exp(best), interval, *at(math.exp(best), clock), float(costs(best).mean()))


def _interval(at: Trajectory, best: float, clock: np.ndarray, shown: Sequence[tuple[np.ndarray, float]]) -> list[float]:
    """95 % interval of a factor whose best logarithm is `best`; `shown`: series of the run with their spreads.

    Linearised in ln(factor) at the best. Errors of gap and ln τ may be correlated, hence the sum of their widths.
    """
    before, here, after = (at(math.exp(best + step), clock) for step in (-1e-2, 0.0, 1e-2))
    series = []
    for a, v, b, (run, spread) in zip(before, here, after, shown, strict=False):
        change, left = (b - a) / 2e-2 / spread, (run - v) / spread
        there = np.isfinite(change) & np.isfinite(left)
        series.append((np.where(there, change, 0.0), np.where(there, left, 0.0)))
    total = sum(float(change @ change) for change, _ in series)
    parts = [Deviations.of(g[:, None], u, g / total).half_width() for g, u in series if np.any(g)]
    half = min(sum(parts), 700.0)
    return [math.exp(best - half), math.exp(best + half)]


def time_axis(run: Run) -> np.ndarray:
    """Times that are proportional to those of a simulation, (T,): the clock, or steps for schedules in progress."""
    in_progress = run.schedule is not None and not run.schedule.temperature.autonomous
    return run.axis if in_progress else run.clock
