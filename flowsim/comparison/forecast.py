"""Forecast: what the kernels measured in the first part of a run say about its rest."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.calibration import SEEN, baselines
from flowsim.comparison.drawing import SIMULATED, dots
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.kernel_flow import KernelFlow, Measured, fitted_factor, gap_in_training, measured_kernels
from flowsim.comparison.limits import LOG_TAU_MOVED, TRAJECTORY_POINTS
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import rms
from flowsim.comparison.words import between, percent, short
from flowsim.plot import COLOURS, label

#: Largest error of a good forecast, relative to the gap at the start.
_GOOD = 0.1
#: Deviations of an interval.
_WIDTH = 1.96

CRITERION = (
    f"agrees if the rms error of the gap over the last {100 * (1 - SEEN):.0f} % of the run is at most {_GOOD:g} of the "
    "gap at the start, and smaller than those of a constant and of a line in log t; disagrees if it is larger than one "
    f"of them and than {_GOOD:g} of the gap at the start; no verdict with fewer than {TRAJECTORY_POINTS} evaluations "
    "in one of the parts, or without kernels at two steps of the first"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Gap, forecasts, interval and baselines over `axis`, (T,) each; `rest` is the mask of what is forecast."""

    axis: np.ndarray
    axis_label: str
    gap: np.ndarray
    rest: np.ndarray
    forecast: np.ndarray
    low: np.ndarray
    high: np.ndarray
    free: np.ndarray
    constant: np.ndarray
    line: np.ndarray


@dataclasses.dataclass(frozen=True)
class Found:
    """A forecast of the rest of a run and its errors."""

    run: Run
    kernels: Measured
    factor: float
    factor_interval: tuple[float, float]
    misfit: float
    errors: dict[str, float]
    log_tau_errors: dict[str, float]
    inside: float
    drawn: Curves

    @property
    def relative(self) -> float:
        """Error relative to the gap at the start."""
        return self.errors["forecast"] / float(self.drawn.gap[0])

    @property
    def beats(self) -> bool:
        """Whether it is better than a constant and a line in log t."""
        return self.errors["forecast"] < min(self.errors["constant"], self.errors["line_in_log_t"])

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return {
            "pairs": self.kernels.pairs, "from_step": float(self.kernels.step[-1]), "seen": SEEN,
            "factor": self.factor, "factor_interval": list(self.factor_interval), "misfit_seen": self.misfit,
            "gap_at_start": float(self.drawn.gap[0]), "relative_to_start": self.relative,
            "inside_interval": self.inside,
            **{f"rms_error_{name}": value for name, value in self.errors.items()},
            **{f"rms_error_log_tau_{name}": value for name, value in self.log_tau_errors.items()},
        }  # fmt: skip

    def sentence(self) -> str:
        """The finding in words."""
        errors = self.errors
        tau = self.log_tau_errors.get("forecast")
        more = "" if tau is None else f", and ln τ to {short(tau)} (constant {short(self.log_tau_errors['constant'])})"
        return (
            f"From the kernels and rows at step {self.kernels.step[-1]:.0f}, with a factor of time of "
            f"{short(self.factor)} ({between(self.factor_interval)}) from the steps before, the rest of the gap is "
            f"forecast to {short(errors['forecast'])} rms, {percent(self.relative)} of its start, against "
            f"{short(errors['constant'])} of a constant, {short(errors['line_in_log_t'])} of a line in log t and "
            f"{short(errors['free_rows'])} of free rows{more}; {percent(self.inside)} of the evaluations are within "
            "the interval."
        )


def measure(run: Run) -> Found:
    """Forecast the last part of a run; raises `CannotTell`."""
    run.known_schedule()
    every = measured_kernels(run)
    assert run.step is not None
    kernels = every.until(SEEN * run.step[-1])
    if len(kernels.step) < 2:
        raise CannotTell(f"Fewer than two kernels were measured in the first {percent(SEEN)} of the run.")
    here, early = float(kernels.step[-1]), run.step <= SEEN * run.step[-1]
    # From the middle of the seen part on: the factor of the first fall is not that of what follows.
    first = int(np.argmin(np.abs(kernels.step[:-1] - here / 2)))
    rest, fitted = ~early, early & (run.step >= kernels.step[first]) & (run.step <= here)
    for part, mask in (("first", fitted), ("last", rest)):
        if mask.sum() < TRAJECTORY_POINTS:
            raise CannotTell(
                f"Only {int(mask.sum())} evaluations in the {part} part of the run; {TRAJECTORY_POINTS} are needed."
            )
    every_gap, recorded = gap_in_training(run), run.log_tau
    learned = run.learnable is not None and recorded is not None
    log_tau = recorded if learned and np.ptp(recorded[fitted]) > LOG_TAU_MOVED else None  # pyright: ignore
    last = len(kernels.step) - 1
    before = KernelFlow(run, kernels, first, again=True, until=here)
    factor = fitted_factor(before, every_gap[fitted], None if log_tau is None else log_tau[fitted])
    misfit = rms(before.at(factor).gap - every_gap[fitted])
    after = KernelFlow(run, kernels, last)
    best = after.at(factor)
    # What the factor would have been from each half of the fitted part says how well it is known.
    spread = _spread(before, every_gap[fitted], factor)
    ends = (factor / spread, factor * spread)
    outer = np.array([best.gap, *(after.at(f).gap for f in ends)])
    free_before = KernelFlow(run, kernels, first, free=True, until=here)
    free_factor = fitted_factor(free_before, every_gap[fitted], None)
    free = KernelFlow(run, kernels, last, free=True).at(free_factor)
    shown = run.step >= here
    predicted = shown & rest
    within = rest[shown]
    if not all(np.isfinite(curve).all() for curve in (outer, free.gap)):
        raise CannotTell("The flow stopped before the run did.")
    constant, line = (values[predicted] for values in baselines(run.axis, every_gap, early))
    gap = every_gap[predicted]
    low, high = outer.min(0) - _WIDTH * misfit, outer.max(0) + _WIDTH * misfit
    errors = {
        "forecast": rms(best.gap[within] - gap), "constant": rms(constant - gap), "line_in_log_t": rms(line - gap),
        "free_rows": rms(free.gap[within] - gap),
    }  # fmt: skip
    errors_tau: dict[str, float] = {}
    if learned and recorded is not None:
        known = recorded[predicted]
        held, straight = (values[predicted] for values in baselines(run.axis, recorded, early))
        errors_tau = {
            "forecast": rms(best.log_tau[within] - known), "constant": rms(held - known),
            "line_in_log_t": rms(straight - known), "free_rows": rms(free.log_tau[within] - known),
        }  # fmt: skip
    inside = float(np.mean((gap >= low[within]) & (gap <= high[within])))

    def whole(values: np.ndarray) -> np.ndarray:
        found = np.full(len(every_gap), np.nan)
        found[shown] = values
        return found

    lines = baselines(run.axis, every_gap, early)
    drawn = Curves(
        run.axis, run.axis_label, every_gap, rest, whole(best.gap), whole(low), whole(high), whole(free.gap), *lines
    )
    return Found(run, kernels, factor, ends, misfit, errors, errors_tau, inside, drawn)


def _spread(flow: KernelFlow, gap: np.ndarray, factor: float) -> float:
    """How far, as a ratio, the factor of time from one half of the evaluations is from that of all; at most 4."""
    half = len(gap) // 2
    ratios = [fitted_factor(flow, gap, None, slice(*ends)) / factor for ends in ((0, half), (half, None))]
    return float(min(4.0, max(1.05, *(max(r, 1 / r) for r in ratios))))


def judge(found: Found) -> Verdict:
    """The verdict."""
    if found.beats and found.relative <= _GOOD:
        return "agrees"
    return "disagrees" if not found.beats and found.relative > _GOOD else "cannot tell"


def draw(curves: Curves, ax: Axes) -> None:
    """Draw the run, its forecast and the baselines, with the part that was seen shaded."""
    x, rest = curves.axis, curves.rest
    ax.axvspan(x[0], float(x[~rest][-1]), color="#E4E4E4", lw=0, zorder=0, label="seen")
    dots(x, curves.gap, ax)
    ax.fill_between(x, curves.low, curves.high, color=SIMULATED, alpha=0.2, lw=0)
    ax.plot(x, curves.forecast, color=SIMULATED, label="forecast by kernels", zorder=1.9)
    ax.plot(x, curves.free, color=COLOURS["grey"], label="free rows")
    ax.plot(x[rest], curves.constant[rest], color=COLOURS["black"], ls=(0, (1, 1)), lw=1, label="constant")
    ax.plot(x[rest], curves.line[rest], color=COLOURS["purple"], ls=(0, (4, 2)), lw=1, label=r"line in $\log t$")
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(curves.axis_label)
    ax.set_ylim(0, 1.15 * float(curves.gap.max()))
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best", fontsize=6)


@register("forecast", title="Forecast", criterion=CRITERION, panels=(Panel(draw),))
def forecast(runs: Sequence[Run]) -> Finding[Curves]:
    """How well the kernels of the first part of the first run forecast its rest."""
    found = measure(runs[0])
    return Finding(judge(found), found.sentence(), found.numbers(), found.drawn)
