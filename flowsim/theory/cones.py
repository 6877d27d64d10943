"""Trajectories of parallel cones with frozen directions, with a learnable or a fixed temperature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.theory.arguments import (
    Input,
    Values,
    check_single,
    checked_scale,
    inside,
    log_cone_height,
    pair_count,
    positive,
)
from flowsim.theory.conserved import temperature_after
from flowsim.theory.rounding import extremes


@extremes
def log_gap_force(inverse_temperature_effective: Input, margin: Input, pairs: Input) -> Values:
    """ln g(a) for frozen directions of positive margin, finite where g underflows; see `gap_force`. Derived here.

    Args:
        inverse_temperature_effective: a = β(1−γ²), the inverse temperature of Z; all arguments broadcast.
        margin: α > 0.
        pairs: n ≥ 2.

    Returns:
        ln g, of the common shape.

    Raises:
        FlowsimError: For α ≤ 0 or n < 2.
    """
    from scipy.special import log_expit

    margin, a = positive("margin", margin), np.asarray(inverse_temperature_effective, np.float64)
    return (np.log(margin) + log_expit(np.log(pair_count(pairs) - 1) - margin * a))[()]


@extremes
def gap_force(inverse_temperature_effective: Input, margin: Input, pairs: Input) -> Values:
    """g(a) = −⟨Z, ∇ℓ(aZ)⟩ = α (n−1)/(n−1 + e^{αa}) for frozen directions. Derived here.

    Args:
        inverse_temperature_effective: a = β(1−γ²), the inverse temperature of Z; all arguments broadcast.
        margin: α, of either sign.
        pairs: n ≥ 2.

    Returns:
        g, of the common shape.

    Raises:
        FlowsimError: For n < 2.
    """
    margin, a = np.asarray(margin, np.float64), np.asarray(inverse_temperature_effective, np.float64)
    from scipy.special import log_expit

    return (margin * np.exp(log_expit(np.log(pair_count(pairs) - 1) - margin * a)))[()]


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_NODES, _LOG_WEIGHTS = (1 + _NODES) / 2, np.log(_WEIGHTS / 2)
#: Most panels of a trajectory; 300 decades of time take a few hundred.
_MOST_PANELS = 6000


def _drop_at(ts: Input, log_slowness: Callable[[Values], Values]) -> np.ndarray:
    """D(t) of dD/dt = exp(−log_slowness(D)), D(0) = 0: Gauss-Legendre quadrature of t(D), inverted by Newton.

    Panels adapt to the integrand, which may grow by hundreds of orders of magnitude; hence all sums are logarithmic.
    """
    ts = inside("ts", ts, 0.0, math.inf, "finite times from 0 on", closed=True)
    if np.any(np.isnan(ts)):
        raise FlowsimError("Argument `ts` must hold numbers, but holds nan. Use finite times from 0 on.")

    def log_integral(left: np.ndarray, log_width: np.ndarray) -> Values:
        values = log_slowness(left[..., None] + np.exp(log_width)[..., None] * _NODES) + _LOG_WEIGHTS
        top = values.max(-1)
        return log_width + top + np.log(np.exp(values - top[..., None]).sum(-1))

    with np.errstate(all="ignore"):
        log_t = np.log(ts.ravel())
        target = np.max(log_t, initial=-math.inf)
        left, log_width, total = 0.0, 0.0, -math.inf
        lefts, log_widths, totals = [left], [log_width], [total]
        for _ in range(_MOST_PANELS):
            if total >= target:
                break
            width = math.exp(log_width)
            halves = log_integral(np.array([left, left + width / 2]), np.full(2, log_width - math.log(2)))
            fine = float(np.logaddexp(*halves))
            whole = float(log_integral(np.array(left), np.array(log_width)))
            # Negated so that a panel that reaches into overflow (NaN) is halved too.
            if not abs(fine - whole) <= 1e-11 + 1e-14 * abs(fine):
                log_width -= math.log(2)
                continue
            total = float(np.logaddexp(total, fine))
            lefts.append(left)
            log_widths.append(log_width)
            totals.append(total)
            left, log_width = left + width, log_width + math.log(2)
        else:
            raise FlowsimError(
                "This trajectory leaves the range of float64: β or the drop of ln γ is too small or too large. Use "
                "earlier times, a less extreme β0 or `lr_ratio`, or fs.simulate."
            )
        panel = np.searchsorted(totals, log_t)  # the first panel that ends at or after t
        start, longest = np.asarray(lefts)[panel], np.asarray(log_widths)[panel]
        base = np.asarray(totals)[np.maximum(panel - 1, 0)]
        goal = log_t + np.log(-np.expm1(base - log_t))
        # From the right end of the panel a Newton step may be as large as e^{100} and fail to return. The estimate with
        # the rate at the panel's start is on the side from which it descends. Steps are limited for rates that are not
        # monotonic.
        log_x = np.minimum(goal - log_slowness(start), longest)
        for _ in range(100):
            reached = log_integral(start, log_x)
            step = (reached - goal) * np.exp(reached - log_x - log_slowness(start + np.exp(log_x)))
            log_x = np.minimum(log_x - np.clip(step, -5.0, 5.0), longest)
            if not np.any(np.abs(step) > 1e-11):
                break
        missed = np.isfinite(goal) & ~(np.abs(reached - goal) < 1e-8 + 1e-14 * np.abs(log_x))  # pyright: ignore
        if np.any(missed):
            raise FlowsimError(
                f"No drop of ln γ was found for t = {np.exp(log_t[missed][0]):g}. Use other times, or fs.simulate."
            )
        # At t = 0 and at the start of a panel nothing is left to invert, and the goal is −inf or NaN.
        return (start + np.where(np.isfinite(goal), np.exp(log_x), 0.0)).reshape(ts.shape)


@extremes
def reduced_trajectory(
    ts: Input,
    log_gamma0: float,
    inverse_temperature0: float,
    margin: float,
    pairs: float,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: float = 1.0,
) -> tuple[Values, Values]:
    """ln γ and β over time, for frozen directions of constant margin and a learnable temperature.

    The flow is dβ/dt = r β'² (1−γ²) g, d ln γ/dt = −2βg with g at β(1−γ²), see `gap_force`. Its conserved quantity
    leaves one quadrature, t = ∫ dD/(2β g) over the drop D = ln γ0 − ln γ, which is evaluated to rounding and inverted.
    Derived here.

    Args:
        ts: Flow times from 0 to 1e300, of any shape and order.
        log_gamma0: Initial ln γ, below 0; −inf for γ = 0.
        inverse_temperature0: Initial β, positive.
        margin: α > 0.
        pairs: n ≥ 2.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        The pair (ln γ, β), both of the shape of `ts`.

    Raises:
        FlowsimError: For γ0 ≥ 1, a non-positive or non-scalar argument, n < 2, an unknown parametrization, or a
            trajectory that leaves the range of float64.
    """
    check_single(log_gamma0=log_gamma0, inverse_temperature0=inverse_temperature0, margin=margin, pairs=pairs)
    check_single(scale=scale, lr_ratio=lr_ratio)
    scale, start = checked_scale(parametrization, scale), float(log_cone_height(log_gamma0))
    beta0 = float(positive("inverse_temperature0", inverse_temperature0))
    ratio = float(positive("lr_ratio", lr_ratio))
    margin, pairs = float(positive("margin", margin)), float(pair_count(pairs))

    def inverse_temperature(drop: Values) -> Values:
        return temperature_after(drop, start, beta0, parametrization, scale, ratio)

    def log_slowness(drop: Values) -> Values:
        beta = inverse_temperature(drop)
        return -np.log(2 * beta) - log_gap_force(-beta * np.expm1(2 * (start - drop)), margin, pairs)

    drop = _drop_at(ts, log_slowness)
    return (start - drop)[()], inverse_temperature(drop)


@extremes
def fixed_temperature_trajectory(
    ts: Input, log_gamma0: float, inverse_temperature: float, margin: float, pairs: float
) -> Values:
    """ln γ over time for frozen directions at fixed β: dγ/dt = −2βγ g(β(1−γ²)), see `gap_force`. Derived here.

    Args:
        ts: Flow times, of any shape and order.
        log_gamma0: Initial ln γ, below 0; −inf for γ = 0.
        inverse_temperature: β > 0.
        margin: α > 0.
        pairs: n ≥ 2.

    Returns:
        ln γ, of the shape of `ts`.

    Raises:
        FlowsimError: For γ0 ≥ 1, a non-positive or non-scalar argument, n < 2, or a trajectory that leaves the range of
            float64.
    """
    check_single(log_gamma0=log_gamma0, inverse_temperature=inverse_temperature, margin=margin, pairs=pairs)
    start, beta = float(log_cone_height(log_gamma0)), float(positive("inverse_temperature", inverse_temperature))

    def log_slowness(drop: Values) -> Values:
        return -np.log(2 * beta) - log_gap_force(-beta * np.expm1(2 * (start - drop)), margin, pairs)

    return (start - _drop_at(ts, log_slowness))[()]
