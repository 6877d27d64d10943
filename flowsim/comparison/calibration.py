"""Calibration: does a factor of time fitted to the first part of a run predict the rest?"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.clock import Fit, Window, fit_factor
from flowsim.comparison.drawing import SIMULATED, dots
from flowsim.comparison.flow import ScaledFlow, chosen_rows, schedule_from
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.limits import GAP_MOVED, LOG_TAU_MOVED, TRAJECTORY_POINTS, moved
from flowsim.comparison.record import Rows, Run
from flowsim.comparison.statistics import rms
from flowsim.comparison.words import between, percent, short, undecided
from flowsim.plot import COLOURS, label

#: Fraction of a run that is fitted ("seen").
SEEN = 0.2
#: Levels of label noise that are tried if a factor of time alone does not describe the seen part.
NOISE_LEVELS = (0.01, 0.03, 0.1, 0.3)
#: Number of pairs for these trials.
_NOISY_PAIRS = 32
#: Upper limits of the error for agreement, relative to the better baseline and to the spread; and relative to the
#: noise, below which there is no disagreement.
_BEATS, _PREDICTS, _NOISY = 0.8, 0.5, 1.5

CRITERION = (
    f"agrees if the rms error of the predicted gap over the last {100 * (1 - SEEN):.0f} % of the run is at most "
    f"{_BEATS:g} of that of the better baseline and {_PREDICTS:g} of the gap's own standard deviation there, disagrees "
    f"if it is at least as large as one of the two, and above {_NOISY:g} of the noise (the rms difference of "
    f"neighbours over √2); no verdict with fewer than {TRAJECTORY_POINTS} evaluations in one of the parts, for a gap "
    f"that moved by less than {100 * GAP_MOVED:.0f} % in the first or by less than 2 % in the last, unless all pairs "
    "of the run are simulated and each of its losses was of all of them, and where the simulation stopped while its "
    "gap moved"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Gap, prediction and baselines over `x`, (T,) each; `rest` is the mask of the predicted part."""

    x: np.ndarray
    label: str
    gap: np.ndarray
    predicted: np.ndarray
    constant: np.ndarray
    line: np.ndarray
    rest: np.ndarray

    @property
    def seen_until(self) -> float:
        """The last position that was seen."""
        return float(self.x[~self.rest][-1])


@dataclasses.dataclass(frozen=True)
class Seen:
    """The evaluations of a run, and the mask (T,) of those to which a simulation is fitted."""

    run: Run
    rows: Rows
    window: Window
    early: np.ndarray

    @property
    def clock(self) -> np.ndarray:
        """Times of the evaluations, starting at 0, (T,)."""
        return self.window.time - self.window.time[0]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The best flow, with its factor of time and its label noise."""

    flow: ScaledFlow
    fit: Fit
    noise: float
    #: Misfit without label noise, and whether noise was tried.
    plain_cost: float
    tried: bool


@dataclasses.dataclass(frozen=True)
class Measured:
    """A prediction and two baselines, (T,) each, with their rms errors over the rest."""

    seen: Seen
    prediction: Prediction
    predicted: np.ndarray
    constant: np.ndarray
    line: np.ndarray
    error: float
    error_of_constant: float
    error_of_line: float
    #: Standard deviation and noise of the gap over the rest.
    spread: float
    noise_of_gap: float

    @property
    def ratio(self) -> float:
        """Error relative to that of the better baseline."""
        return self.error / max(min(self.error_of_constant, self.error_of_line), 1e-300)

    @property
    def relative(self) -> float:
        """Error relative to the spread."""
        return self.error / max(self.spread, 1e-300)

    @property
    def pairs(self) -> int:
        """Number of simulated pairs."""
        rows = len(self.seen.rows[0])
        return min(rows, _NOISY_PAIRS) if self.prediction.noise else rows

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        fit, prediction = self.prediction.fit, self.prediction
        return {
            "pairs": self.pairs,
            "seen": SEEN,
            "time_factor": fit.factor,
            "time_factor_interval": fit.interval,
            "noise": prediction.noise,
            "noise_tried": list(NOISE_LEVELS) if prediction.tried else [],
            "misfit_seen": math.sqrt(fit.cost),
            "misfit_seen_without_noise": math.sqrt(prediction.plain_cost),
            "rms_error": self.error,
            "rms_error_constant": self.error_of_constant,
            "rms_error_line_in_log_t": self.error_of_line,
            "relative_to_better_baseline": self.ratio,
            "spread": self.spread,
            "relative_to_spread": self.relative,
            "noise_of_gap": self.noise_of_gap,
        }

    def sentence(self) -> str:
        """The finding in words, without a verdict."""
        fit, noise, ratio = self.prediction.fit, self.prediction.noise, self.ratio
        within = "" if fit.interval is None else f" ({between(fit.interval)})"
        extra = f" and label noise {noise:g}" if noise else ""
        beats = (
            "it beats both" if ratio <= _BEATS else "it beats neither clearly" if ratio < 1 else "it does not beat both"
        )
        return (
            f"With a factor of time of {short(fit.factor)}{within}{extra} from the first {percent(SEEN)}, the rest of "
            f"the gap is predicted to {short(self.error)} rms, against {short(self.error_of_constant)} of a constant, "
            f"{short(self.error_of_line)} of a line in log t and a spread of {short(self.spread)}: {beats}"
            + (", yet it misses what the gap does." if ratio < 1 <= self.relative else ".")
        )

    def curves(self) -> Curves:
        """Data of the panel."""
        window = self.seen.window
        return Curves(
            window.axis,
            self.seen.run.axis_label,
            window.gap,
            self.predicted,
            self.constant,
            self.line,
            ~self.seen.early,
        )


def measure(run: Run) -> Measured:
    """Predict the rest of a run from its first part; raises `CannotTell`."""
    seen = _seen(run)
    prediction = _predict(seen)
    predicted = _held(prediction.fit.gap)
    if not np.isfinite(predicted).all():
        raise CannotTell("The simulation ended before the run for every factor of time.")
    gap, rest = seen.window.gap, ~seen.early
    constant, line = baselines(seen.window.axis, gap, seen.early)
    return Measured(
        seen,
        prediction,
        predicted,
        constant,
        line,
        error=rms((predicted - gap)[rest]),
        error_of_constant=rms((constant - gap)[rest]),
        error_of_line=rms((line - gap)[rest]),
        spread=float(np.std(gap[rest])),
        noise_of_gap=rms(np.diff(gap[rest])) / math.sqrt(2),
    )


def judge(found: Measured) -> tuple[Verdict, str]:
    """The verdict, and the reason if data is missing for one, else ""."""
    missing = found.seen.run.not_simulated(found.pairs)
    if not missing and found.prediction.flow.cut(found.prediction.fit.factor * float(found.seen.clock[-1])):
        missing = "the simulation stopped before the run did, while its gap still moved"
    if missing:
        return "cannot tell", missing
    if found.ratio <= _BEATS and found.relative <= _PREDICTS:
        return "agrees", ""
    if max(found.ratio, found.relative) >= 1 and found.error > _NOISY * found.noise_of_gap:
        return "disagrees", ""
    return "cannot tell", ""


def draw(curves: Curves, ax: Axes) -> None:
    """Draw the run, its prediction and the baselines, with the fitted part shaded."""
    x, rest = curves.x, curves.rest
    ax.axvspan(x[0], curves.seen_until, color="#E4E4E4", lw=0, zorder=0, label="seen by the fit")
    dots(x, curves.gap, ax)
    ax.plot(x, curves.predicted, color=SIMULATED, label="simulation", zorder=1.9)
    ax.plot(x[rest], curves.constant[rest], color=COLOURS["grey"], ls=(0, (1, 1)), label="constant")
    ax.plot(x[rest], curves.line[rest], color=COLOURS["purple"], ls=(0, (4, 2)), lw=1, label=r"line in $\log t$")
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(curves.label)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best", ncols=2)


@register("calibration", title="Calibration", criterion=CRITERION, panels=(Panel(draw),))
def calibration(runs: Sequence[Run]) -> Finding[Curves]:
    """How well the first part of the first run predicts its rest."""
    found = measure(runs[0])
    verdict, missing = judge(found)
    sentence = undecided(found.sentence(), missing) if missing else found.sentence()
    return Finding(verdict, sentence, found.numbers(), found.curves())


def _seen(run: Run) -> Seen:
    """The evaluations of a run, and which are seen; raises `CannotTell` if there are too few."""
    run.known_schedule()
    if not len(run.snapshot_time) or run.snapshot_time[0] != run.time[0]:
        raise CannotTell("The run holds no embeddings from its start.")
    rows = chosen_rows(run, 0)
    if rows is None:
        raise CannotTell("The run's snapshots hold no rows to start a simulation from.")
    window = Window.of(run)
    gap = window.gap
    early = window.axis <= SEEN * window.axis[-1]
    counts = {"first": int(early.sum()), "last": int((~early).sum())}
    few = min(counts, key=lambda part: counts[part])
    if counts[few] < TRAJECTORY_POINTS:
        raise CannotTell(
            f"Only {counts[few]} evaluations in the {few} part of the run; {TRAJECTORY_POINTS} are needed."
        )
    if not moved(gap[early]):
        raise CannotTell(f"The gap moved by less than {percent(GAP_MOVED)} in the first {percent(SEEN)} of the run.")
    if np.ptp(gap[~early]) <= 0.02 * gap.max():
        raise CannotTell(f"The gap hardly moved in the last {percent(1 - SEEN)} of the run: a constant is as good.")
    return Seen(run, rows, window, early)


def _predict(seen: Seen) -> Prediction:
    """Fit the factor of time to the seen part, and label noise if that is not enough."""
    run, rows, clock, gap, early = seen.run, seen.rows, seen.clock, seen.window.gap, seen.early
    log_tau = seen.window.log_tau
    compared = run.learnable is not None and log_tau is not None and np.ptp(log_tau[early]) > LOG_TAU_MOVED
    used_tau = log_tau if compared else None
    schedule = schedule_from(run, 0)
    flow = ScaledFlow(rows, schedule)
    fit = fit_factor(flow.at, clock, gap, used_tau, early, flow.steady, flow.last)
    tried = fit.cost > 0.01 and flow.steady and not schedule.swap.active  # rms above a tenth of the spread
    if tried:
        # Stiff, hence with fewer pairs. Noise must halve the misfit of the same pairs without noise.
        fewer = (rows[0][:_NOISY_PAIRS], rows[1][:_NOISY_PAIRS])
        fits, flows = {}, {}
        for level in (0.0, *NOISE_LEVELS):
            noisy = flows[level] = ScaledFlow(fewer, schedule, level)
            fits[level] = fit_factor(noisy.at, clock, gap, used_tau, early, True, noisy.last)
        best = min(NOISE_LEVELS, key=lambda level: fits[level].cost)
        if fits[best].cost < min(fit.cost, fits[0.0].cost) / 2:
            return Prediction(flows[best], fits[best], best, fit.cost, True)
    return Prediction(flow, fit, 0.0, fit.cost, tried)


def baselines(axis: np.ndarray, values: np.ndarray, early: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The last seen value, and a line in log t through the later part of the seen ones; (T,) each."""
    last = int(np.flatnonzero(early)[-1])
    late = early & (axis >= SEEN * axis[-1] / 10) & (axis > 0)
    late = late if late.sum() >= 3 else early & (axis > 0)
    logs = np.log(np.maximum(axis, 1e-300))
    return np.full(len(values), values[last]), np.polyval(np.polyfit(logs[late], values[late], 1), logs)


def _held(values: np.ndarray) -> np.ndarray:
    """The values, with the last finite one held to the end."""
    good = np.flatnonzero(np.isfinite(values))
    return np.where(np.arange(len(values)) > good[-1], values[good[-1]], values)
