"""The closed form of parallel cones, starting at the peak of a run's gap."""

import dataclasses
import math

import numpy as np

from flowsim import theory
from flowsim.comparison.clock import Curve, Window, fit_factor, grid
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import rms


@dataclasses.dataclass(frozen=True)
class Cones:
    """Gap and temperature of parallel cones over `axis`, (T,) each, with their own factor of time."""

    axis: np.ndarray
    gap: np.ndarray
    tau: np.ndarray
    margin: float
    factor: float
    #: Rms deviation from the gap of the run, and relative to the spread of that gap.
    rms_gap: float
    relative_gap: float


def fit_cones(run: Run, window: Window, clock: np.ndarray) -> Cones | None:
    """Fit parallel cones to the run from the peak of its gap on.

    Their directions are frozen, with the last margin of the run if it is above 0.05, else with that of a simplex.

    Args:
        run: The run.
        window: Its evaluations to compare with.
        clock: Their times, (T,).

    Returns:
        The cones; None if there is no closed form or too little of the run.
    """
    gap, log_tau, pairs = window.gap, window.log_tau, run.pairs
    peak = int(np.argmax(gap))
    gamma = float(gap[peak]) / 2
    if log_tau is None or pairs is None or len(gap) - peak < 5 or not 0 < gamma < 1 or np.ptp(clock[peak:]) <= 0:
        return None
    margin = _margin(run, pairs, float(gap[-1]))
    curve = _curve(run, gamma, math.exp(-float(log_tau[peak])), margin, pairs)
    if curve is None:
        return None
    later = slice(peak, None)
    since = clock[later] - clock[peak]
    fit = fit_factor(lambda f, t: curve.at(f * t), since, gap[later], None, np.ones(len(since), bool), cheap=True)
    if not np.isfinite(fit.gap).all():
        return None
    deviation = rms(fit.gap - gap[later])
    return Cones(
        window.axis[later],
        fit.gap,
        np.exp(fit.log_tau),
        margin,
        fit.factor,
        deviation,
        deviation / max(float(np.std(gap[later])), 1e-12),
    )


def _margin(run: Run, pairs: int, last_gap: float) -> float:
    """Margin of the directions within the cones."""
    of_directions = run.series("direction_margin")
    seen = run.series("margin") if of_directions is None else of_directions
    if seen is None or not seen[-1] > 0.05:
        return pairs / (pairs - 1)
    # The margin of the rows is 1 − γ² times that of the directions.
    return float(seen[-1]) / (1.0 if of_directions is not None else max(1 - last_gap**2 / 4, 0.05))


def _curve(run: Run, gamma: float, beta: float, margin: float, pairs: int) -> Curve | None:
    """The closed form from (γ, β) over its own time, with the run's temperature policy; None if there is none."""
    policy = None if run.schedule is None else run.schedule.temperature
    s = grid()
    if run.learnable is not None:
        parametrization, ratio = run.learnable.parametrization, float(run.learnable.lr_ratio)
        assert parametrization is not None and parametrization.potential is not None, "checked by `Run.learnable`"
        name, scale = parametrization.potential, float(parametrization.scale)
        if ratio <= 0:
            return None
        log_gamma, betas = theory.reduced_trajectory(s, math.log(gamma), beta, margin, pairs, name, scale, ratio)
    elif policy is not None and policy.autonomous and not policy.learnable:
        log_gamma = theory.fixed_temperature_trajectory(s, math.log(gamma), beta, margin, pairs)
        betas = np.full_like(s, beta)
    else:
        return None
    return Curve(s, 2 * np.exp(np.asarray(log_gamma)), -np.log(np.asarray(betas)))
