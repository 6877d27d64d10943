"""Closed forms, bounds and rates of the modality gap under gradient flow.

Notation: γ is half the modality gap of two parallel cones, β = 1/τ the inverse temperature, ν its raw
parameter, r the learning rate of ν relative to that of the embeddings, n the number of pairs and α the
margin. For "frozen" directions, Z = H_X H_Yᵀ has a constant diagonal that exceeds its constant off-diagonal
by α. Time is flow time; γ, β and τ are dimensionless. Everything is float64; arguments broadcast against one
another unless a shape is given. NaN in a series is passed on, because a run that ended early records NaN.

`parametrization` is one of "exp" (β = exp(ν/s), with `scale` s), "softplus" (β = ln(1 + e^ν)) and "identity"
(β = ν).

Source, where one is named: C. Yaras, S. Chen, P. Wang, Q. Qu, "Explaining and Mitigating the Modality Gap in
Contrastive Multimodal Learning", CPAL 2025. "Derived here" marks what is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowsim.base.arrays import check_whole
from flowsim.base.times import output_times
from flowsim.errors import FlowsimError, unknown_name
from flowsim.records.result import Outcome, Result, Status

Input = ArrayLike | Sequence[float]
Values = np.ndarray | np.float64
Flags = np.ndarray | np.bool_

_PARAMETRIZATIONS = ("exp", "softplus", "identity")


# --- arguments ----------------------------------------------------------------------------------------------


def _inside(name: str, value: Input, low: float, high: float, cure: str, closed: bool = False) -> np.ndarray:
    """`value` as float64, with every entry strictly between `low` and `high` (or at `low`, if `closed`)."""
    array = np.asarray(value, np.float64)
    wrong = (array < low if closed else array <= low) | (array >= high)
    if np.any(wrong):
        if high == math.inf:
            rule = "be positive" if (low, closed) == (0, False) else f"be {'at least' if closed else 'above'} {low:g}"
        else:
            rule = f"be below {high:g}" if low == -math.inf else f"lie between {low:g} and {high:g}"
        raise FlowsimError(f"Argument `{name}` must {rule}, but is {array[wrong].flat[0]:g}. Use {cure}.")
    return array


def _positive(name: str, value: Input) -> np.ndarray:
    return _inside(name, value, 0.0, math.inf, f"a positive `{name}`")


def _pairs(pairs: Input) -> np.ndarray:
    return _inside("pairs", pairs, 2.0, math.inf, "two or more pairs", closed=True)


def _gamma0(gamma0: Input) -> np.ndarray:
    return _inside("gamma0", gamma0, 0.0, 1.0, "the height of the cones, half the initial gap")


def _log_gamma0(log_gamma0: Input) -> np.ndarray:
    return _inside("log_gamma0", log_gamma0, -math.inf, 0.0, "the logarithm of a height below 1", closed=True)


def _scale(parametrization: str, scale: float) -> float:
    if parametrization not in _PARAMETRIZATIONS:
        raise unknown_name("parametrization", parametrization, _PARAMETRIZATIONS)
    if parametrization != "exp" and scale != 1.0:
        raise FlowsimError(
            f"Argument `scale` must be 1 for the parametrization {parametrization!r}, but is {scale:g}. "
            "Use 'exp' to scale the raw parameter."
        )
    return float(_positive("scale", scale))


#: For formulas whose intermediate values leave float64 on the way to a result that is right, infinite or zero.
_extremes = np.errstate(over="ignore", under="ignore", divide="ignore")


def _complement(gamma: Values) -> Values:
    """1 − γ², to rounding also where γ is nearly 1."""
    return (1 - gamma) * (1 + gamma)


def _exponential_rest(u: Values) -> Values:
    """e^u − 1 − u, to rounding also where u is nearly 0."""
    near = np.where(np.abs(u) < 0.5, u, 0.0)
    series = near**2 * np.polynomial.polynomial.polyval(near, _REST)
    return np.where(np.abs(u) < 0.5, series, np.expm1(u) - u)


_REST = [1 / math.factorial(k) for k in range(2, 20)]


def _single(**values: Input) -> None:
    """One trajectory at a time: its arguments are numbers."""
    for name, value in values.items():
        if np.ndim(value) or np.isnan(np.asarray(value, np.float64)):
            raise FlowsimError(f"Argument `{name}` must be one number, but is {value}. Use one call per trajectory.")


# --- the temperature's potential ----------------------------------------------------------------------------


def raw_derivative(inverse_temperature: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """β'(ν) as a function of β: β/s ("exp"), 1 − e^{−β} ("softplus"), 1 ("identity").

    Any shape. Raises `FlowsimError` for β ≤ 0 or an unknown parametrization. Derived here.
    """
    scale = _scale(parametrization, scale)
    beta = _positive("inverse_temperature", inverse_temperature)
    if parametrization == "exp":
        return (beta / scale)[()]
    return (-np.expm1(-beta) if parametrization == "softplus" else np.ones_like(beta))[()]


def _potential(beta: Values, parametrization: str, scale: float) -> Values:
    if parametrization == "exp":
        return scale**2 * np.log(beta)
    if parametrization == "identity":
        return beta**2 / 2
    from scipy.special import spence

    one_minus = -np.expm1(-beta)  # 1 − e^{−β}; SciPy's spence(1 − x) is Li₂(x)
    return beta**2 / 2 + (beta + 1) * np.log(one_minus) - spence(one_minus) - beta * np.exp(-beta) / one_minus


@_extremes
def potential(inverse_temperature: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """F(β) = ∫ β/β'(ν)² dβ, the temperature's term in the conserved quantity.

    "exp": s² ln β; "identity": β²/2; "softplus": β²/2 + (β+1) ln(1−e^{−β}) − Li₂(e^{−β}) − β/(e^β−1).

    Any shape. Raises `FlowsimError` for β ≤ 0 or an unknown parametrization. Derived here.
    """
    scale = _scale(parametrization, scale)
    return _potential(_positive("inverse_temperature", inverse_temperature), parametrization, scale)


def _inverse_potential(value: Values, parametrization: str, scale: float) -> Values:
    if parametrization == "exp":
        return np.exp(value / scale / scale)
    if parametrization == "identity":
        return np.sqrt(np.where(value >= 0, 2 * value, np.nan))
    # F is convex and increasing in ln β, so Newton's method descends to the root from any upper bound on it.
    small = value + math.pi**2 / 6 + 1  # ln β ≤ small, with equality as β → 0
    clipped = np.maximum(value, -40.0)
    log_beta = np.minimum(clipped + math.pi**2 / 6 + 1, np.log(np.sqrt(2 * np.maximum(clipped, 0)) + 2))
    for _ in range(12):
        beta = np.exp(log_beta)
        log_beta = log_beta - (_potential(beta, "softplus", 1.0) - clipped) * (np.expm1(-beta) / beta) ** 2
    return np.where(value < -40.0, np.exp(np.minimum(small, 0.0)), np.exp(log_beta))[()]


@_extremes
def inverse_potential(value: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """β with F(β) = `value`: the inverse of `potential`.

    Any shape. β beyond float64 is 0 or inf; a negative `value` has no β under "identity": NaN. Raises
    `FlowsimError` for an unknown parametrization. Derived here.
    """
    scale = _scale(parametrization, scale)
    return _inverse_potential(np.asarray(value, np.float64), parametrization, scale)


def _temperature_after(
    drop: Values,
    log_gamma0: Values | float,
    beta0: Values | float,
    parametrization: str,
    scale: float,
    lr_ratio: Values | float,
) -> Values:
    """β once ln γ has dropped by `drop` from ln γ0: F(β) − F(β0) = (r/2)[drop − (γ0² − γ²)/2]."""
    # With γ the larger of the two: |D| (1 − γ²) + γ² (e^{−2|D|} − 1 + 2|D|)/2, where nothing cancels.
    top, size = 2 * (np.asarray(log_gamma0) + np.maximum(-drop, 0.0)), np.abs(drop)
    bracket = np.sign(drop) * (-np.expm1(top) * size + np.exp(top) * _exponential_rest(-2 * size) / 2)
    change = np.asarray(lr_ratio) / 2 * bracket
    beta0 = np.asarray(beta0)
    if parametrization == "exp":
        power = change / scale / scale
        half = np.exp(power / 2)  # whose square may overflow where β does not
        return np.where(np.abs(power) > 700, beta0 * half * half, beta0 * np.exp(power))[()]
    root = np.sqrt(np.asarray(lr_ratio)) * np.sqrt(np.abs(bracket))
    below = np.sqrt(np.where(root <= beta0, beta0 - root, np.nan)) * np.sqrt(beta0 + root)
    identity = np.where(change >= 0, np.hypot(beta0, root), below)
    if parametrization == "identity":
        return identity[()]
    # β' is 1 for such β, and their squares overflow.
    huge = beta0 > _HUGE
    moderate = np.where(huge, 1.0, beta0)
    ordinary = _inverse_potential(_potential(moderate, parametrization, scale) + change, parametrization, scale)
    return np.where(huge, identity, ordinary)[()]


#: Softplus and identity are one from here on, and squares are still far from overflow.
_HUGE = 1e100


# --- conserved quantities -----------------------------------------------------------------------------------


def _terms(
    log_gamma: Input, inverse_temperature: Input, parametrization: str, scale: float, lr_ratio: Input
) -> tuple[Values, Values, Values]:
    log_gamma = np.asarray(log_gamma, np.float64)
    square = np.exp(2 * log_gamma)
    force = 2 / _positive("lr_ratio", lr_ratio) * potential(inverse_temperature, parametrization, scale)
    return log_gamma, -square / 2, force


@_extremes
def conserved_quantity(
    log_gamma: Input,
    inverse_temperature: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """ln γ − γ²/2 + (2/r) F(β), constant along the flow of parallel cones with a learnable temperature.

    Holds for any Z(t), as long as no clamp is active. Any shape. Raises `FlowsimError` for β ≤ 0, r ≤ 0 or an
    unknown parametrization. Lemma 3.1 generalised (derived here).
    """
    log_gamma, square, force = _terms(log_gamma, inverse_temperature, parametrization, scale, lr_ratio)
    return log_gamma + square + force


@_extremes
def conserved_residual(
    log_gamma: Input,
    inverse_temperature: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """Deviation of `conserved_quantity` from its first entry, relative to the sum of its terms' magnitudes.

    Shapes (time, ...) with time first; the same shape is returned. Raises as `conserved_quantity`. Derived
    here.
    """
    terms = np.stack(np.broadcast_arrays(*_terms(log_gamma, inverse_temperature, parametrization, scale, lr_ratio)))
    if terms.ndim == 1:
        raise FlowsimError("Argument `log_gamma` must be a series, but is one number. Use an array with time first.")
    if np.any(np.isinf(terms)):
        raise FlowsimError(
            "Arguments `log_gamma` and `inverse_temperature` must give finite terms, but one overflows. Leave out the "
            "times at which γ is 0 or β is beyond 1e150."
        )
    total = terms.sum(0)
    return (total - total[0]) / np.abs(terms).sum(0)


@_extremes
def sphere_exponent(pairs: Input, scale: float = 1.0, lr_ratio: Input = 1.0, embedding_rate: Input = 1.0) -> Values:
    """−k s²/(r n), the power of β that γ follows on the free sphere if both softmaxes are doubly stochastic.

    Also the power of ln t with which that gap closes. k is the embeddings' speed relative to ν's unit. Any
    shape. Raises `FlowsimError` for n < 2 or a non-positive argument. Derived here.
    """
    rate = _positive("embedding_rate", embedding_rate) / _positive("lr_ratio", lr_ratio) / _pairs(pairs)
    scale = _scale("exp", scale)
    return (-rate * scale * scale)[()]


@_extremes
def sphere_conserved_quantity(
    log_gamma: Input,
    inverse_temperature: Input,
    pairs: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
    embedding_rate: Input = 1.0,
) -> Values:
    """ln γ + k/(r n) F(β), constant on the free sphere for equal heights and doubly stochastic softmaxes.

    The case of Figure 2 (twisted regular rings), where Lemma 3.1 does not apply. Any shape. Raises as
    `sphere_exponent` and `potential`. Derived here.
    """
    power = sphere_exponent(pairs, 1.0, lr_ratio, embedding_rate)
    return (np.asarray(log_gamma, np.float64) - power * potential(inverse_temperature, parametrization, scale))[()]


@_extremes
def lemma_3_1(gamma: Input, gamma0: Input, beta0: Input) -> Values:
    """β = β0 √(γ0/γ) exp((γ² − γ0²)/4), for β = exp(ν) and r = 1.

    Any shape. Raises `FlowsimError` for a non-positive argument. Yaras et al. 2025, Lemma 3.1.
    """
    gamma, gamma0 = _positive("gamma", gamma), _positive("gamma0", gamma0)
    return (_positive("beta0", beta0) * np.sqrt(gamma0 / gamma) * np.exp((gamma**2 - gamma0**2) / 4))[()]


@_extremes
def inverse_temperature_of_gamma(
    log_gamma: Input,
    log_gamma0: Input,
    beta0: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """β once ln γ is reached from (ln γ0, β0): F(β) = F(β0) + (r/2)[ln γ0 − ln γ − (γ0² − γ²)/2].

    Any shape. β beyond float64 is inf; NaN where "identity" would need β² < 0. Raises `FlowsimError` for β0 ≤
    0, r ≤ 0 or an unknown parametrization. Lemma 3.1 generalised (derived here).
    """
    scale = _scale(parametrization, scale)
    beta0, lr_ratio = _positive("beta0", beta0), _positive("lr_ratio", lr_ratio)
    log_gamma0 = np.asarray(log_gamma0, np.float64)
    drop = log_gamma0 - np.asarray(log_gamma, np.float64)
    return _temperature_after(drop, log_gamma0, beta0, parametrization, scale, lr_ratio)


def log_gamma_of_inverse_temperature(
    inverse_temperature: Input,
    log_gamma0: Input,
    beta0: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """ln γ ≤ 0 once β is reached from (ln γ0, β0): the inverse of `inverse_temperature_of_gamma`.

    Any shape; accurate where γ itself underflows. NaN where β is too low to be reached with γ ≤ 1. Raises
    `FlowsimError` for γ0 ≥ 1, β ≤ 0, β0 ≤ 0, r ≤ 0 or an unknown parametrization. Derived here.
    """
    scale = _scale(parametrization, scale)
    log_gamma0, beta0 = _log_gamma0(log_gamma0), _positive("beta0", beta0)
    beta = _positive("inverse_temperature", inverse_temperature)
    # Solve D + γ0² expm1(−2D)/2 = Q for the drop D = ln γ0 − ln γ: convex, so Newton descends from an upper
    # bound. Written so that nothing cancels: D (1 − γ0²) + γ0² (e^{−2D} − 1 + 2D)/2 = Q.
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        target = _potential_change(beta, beta0, parametrization, scale, 2 / _positive("lr_ratio", lr_ratio))
        square, complement = np.exp(2 * log_gamma0), -np.expm1(2 * log_gamma0)
        lowest = -_exponential_rest(2 * log_gamma0) / 2  # Q where γ is 1
        reachable = target >= lowest
        goal = np.maximum(target, lowest)
        drop = goal / complement
        drop = np.maximum(np.where(goal > 0, np.minimum(drop, goal + square / 2), drop), log_gamma0)
        for _ in range(80):
            slope = -np.expm1(2 * (log_gamma0 - drop))
            # γ² in place of γ0² e^{−2D}, whose factors may be 0 and infinite.
            far = np.exp(2 * (log_gamma0 - drop)) - square * (1 - 2 * drop)
            rest = np.where(np.abs(drop) < 0.25, square * _exponential_rest(-2 * drop), far)
            excess = complement * drop + rest / 2 - goal
            step = np.where(slope > 0, excess / slope, 0.0)
            drop = np.maximum(drop - step, log_gamma0)
            if not np.any(np.abs(step) > 1e-15 * np.abs(drop)):
                break
        drop = np.where(np.isposinf(goal), np.inf, drop)
    return np.where(reachable | np.isneginf(log_gamma0), log_gamma0 - drop, np.nan)[()]


def _potential_change(beta: Values, beta0: Values, parametrization: str, scale: float, factor: Values) -> Values:
    """`factor` (F(β) − F(β0)), also where β/β0, β² or F itself leaves float64."""
    if parametrization == "exp":
        ratio = beta / beta0
        ordinary = (ratio > 1e-300) & (ratio < 1e300)
        return (
            factor * scale**2 * np.where(ordinary, np.log(np.where(ordinary, ratio, 1.0)), np.log(beta) - np.log(beta0))
        )
    identity = factor * (beta - beta0) * ((beta + beta0) / 2)
    if parametrization == "identity":
        return identity
    huge = np.maximum(beta, beta0) > _HUGE  # as in `_temperature_after`
    pair = (np.where(huge, 1.0, b) for b in (beta, beta0))
    after, before = (_potential(b, parametrization, scale) for b in pair)
    return np.where(huge, identity, factor * (after - before))


# --- frozen directions --------------------------------------------------------------------------------------


@_extremes
def log_gap_force(inverse_temperature_effective: Input, margin: Input, pairs: Input) -> Values:
    """ln g(a) for frozen directions of positive margin; see `gap_force`. Finite where g underflows.

    Any shape. Raises `FlowsimError` for α ≤ 0 or n < 2. Derived here.
    """
    from scipy.special import log_expit

    margin, a = _positive("margin", margin), np.asarray(inverse_temperature_effective, np.float64)
    return (np.log(margin) + log_expit(np.log(_pairs(pairs) - 1) - margin * a))[()]


@_extremes
def gap_force(inverse_temperature_effective: Input, margin: Input, pairs: Input) -> Values:
    """g(a) = −⟨Z, ∇ℓ(aZ)⟩ = α (n−1)/(n−1 + e^{αa}) for frozen directions; a = β(1−γ²), α of either sign.

    Any shape. Raises `FlowsimError` for n < 2. Derived here.
    """
    margin, a = np.asarray(margin, np.float64), np.asarray(inverse_temperature_effective, np.float64)
    from scipy.special import log_expit

    return (margin * np.exp(log_expit(np.log(_pairs(pairs) - 1) - margin * a)))[()]


@_extremes
def fixed_temperature_rate(inverse_temperature: Input, margin: Input, pairs: Input, gamma: Input = 0.0) -> Values:
    """2β g(β(1−γ²)) = −d ln γ/dt at fixed temperature: decay if the margin is positive, growth if negative.

    Any shape; per unit of flow time. Raises `FlowsimError` for β ≤ 0 or n < 2. Derived here.
    """
    beta = _positive("inverse_temperature", inverse_temperature)
    return (2 * beta * gap_force(beta * _complement(np.asarray(gamma, np.float64)), margin, pairs))[()]


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)
_NODES, _LOG_WEIGHTS = (1 + _NODES) / 2, np.log(_WEIGHTS / 2)


#: Panels tried before a trajectory is given up; 300 decades of time take some hundred.
_MOST_PANELS = 6000


def _drop_at(ts: Input, log_slowness: Callable[[Values], Values]) -> np.ndarray:
    """D(t) of dD/dt = exp(−log_slowness(D)), D(0) = 0: Gauss-Legendre quadrature of t(D), inverted by Newton.

    Panels adapt to the integrand, which may grow by hundreds of orders of magnitude, so all sums are in
    logarithms.
    """
    ts = _inside("ts", ts, 0.0, math.inf, "finite times from 0 on", closed=True)
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
            # Written so that a panel reaching into overflow (NaN) is halved too.
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
                "This trajectory leaves float64: β or the drop of ln γ is too small or too large to be told apart. Use "
                "earlier times, a less extreme β0 or `lr_ratio`, or fs.simulate."
            )
        panel = np.searchsorted(totals, log_t)  # the first panel that ends at or after t
        start, longest = np.asarray(lefts)[panel], np.asarray(log_widths)[panel]
        base = np.asarray(totals)[np.maximum(panel - 1, 0)]
        goal = log_t + np.log(-np.expm1(base - log_t))
        # From the right end of the panel Newton's method may leap by e^{100} and miss the way back. As if the rate at
        # its start lasted is on the side from which it descends; steps are limited for rates that go up and down.
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


@_extremes
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
    """(ln γ, β) at the times `ts`, for frozen directions of constant margin and a learnable temperature.

    The flow dβ/dt = r β'² (1−γ²) g, d ln γ/dt = −2βg with g at β(1−γ²) has the conserved quantity, which
    leaves one quadrature t = ∫ dD/(2β g) over the drop D = ln γ0 − ln γ; it is evaluated to rounding and
    inverted.

    `ts` has any shape and order, in flow time from 0 to 1e300; both results have its shape. ln γ0 = −inf is γ
    = 0. Raises `FlowsimError` for γ0 ≥ 1, a non-positive or non-scalar argument, n < 2 or an unknown
    parametrization. Derived here.
    """
    _single(log_gamma0=log_gamma0, inverse_temperature0=inverse_temperature0, margin=margin, pairs=pairs)
    _single(scale=scale, lr_ratio=lr_ratio)
    scale, start = _scale(parametrization, scale), float(_log_gamma0(log_gamma0))
    beta0 = float(_positive("inverse_temperature0", inverse_temperature0))
    ratio = float(_positive("lr_ratio", lr_ratio))
    margin, pairs = float(_positive("margin", margin)), float(_pairs(pairs))

    def inverse_temperature(drop: Values) -> Values:
        return _temperature_after(drop, start, beta0, parametrization, scale, ratio)

    def log_slowness(drop: Values) -> Values:
        beta = inverse_temperature(drop)
        return -np.log(2 * beta) - log_gap_force(-beta * np.expm1(2 * (start - drop)), margin, pairs)

    drop = _drop_at(ts, log_slowness)
    return (start - drop)[()], inverse_temperature(drop)


@_extremes
def fixed_temperature_trajectory(
    ts: Input, log_gamma0: float, inverse_temperature: float, margin: float, pairs: float
) -> Values:
    """ln γ at the times `ts` for frozen directions at fixed β: γ' = −2βγ g(β(1−γ²)).

    `ts` has any shape and order, in flow time; the result has its shape. Raises `FlowsimError` for γ0 ≥ 1, a
    non-positive or non-scalar argument, or n < 2. Derived here.
    """
    _single(log_gamma0=log_gamma0, inverse_temperature=inverse_temperature, margin=margin, pairs=pairs)
    start, beta = float(_log_gamma0(log_gamma0)), float(_positive("inverse_temperature", inverse_temperature))

    def log_slowness(drop: Values) -> Values:
        return -np.log(2 * beta) - log_gap_force(-beta * np.expm1(2 * (start - drop)), margin, pairs)

    return (start - _drop_at(ts, log_slowness))[()]


@_extremes
def closing_exponent(scale: float = 1.0, lr_ratio: Input = 1.0) -> Values:
    """−2s²/r, the power of ln t with which the gap of parallel cones closes for β = exp(ν/s).

    Any shape. Raises `FlowsimError` for a non-positive argument. s = r = 1: Yaras et al. 2025, Theorem 3.2;
    in general derived here.
    """
    scale = _scale("exp", scale)
    return (-2 * (scale / _positive("lr_ratio", lr_ratio)) * scale)[()]


@_extremes
def identity_law_coefficient(margin: Input, lr_ratio: Input = 1.0) -> Values:
    """−1/(r α²), the limit of ln γ/(ln t)² for β = ν (and softplus) once Z has converged with margin α.

    Any shape. Raises `FlowsimError` for a non-positive argument. Derived here.
    """
    margin = _positive("margin", margin)
    return (-1 / margin / _positive("lr_ratio", lr_ratio) / margin)[()]


def local_slope(log_gamma: Input, log_time: Input) -> np.ndarray:
    """d ln γ/d ln ln t by second-order differences, centred inside and one-sided at the two ends.

    Shapes (time,) with at least three times; `log_time` is ln t > 0 and increasing. Raises `FlowsimError`
    otherwise. Derived here.
    """
    log_time = _inside("log_time", log_time, 0.0, math.inf, "times above 1, where ln ln t exists")
    if log_time.ndim != 1 or log_time.size < 3 or np.any(np.diff(log_time) <= 0):
        raise FlowsimError("Argument `log_time` must be one increasing series. Use three times or more.")
    return np.gradient(np.asarray(log_gamma, np.float64), np.log(log_time), edge_order=2)


# --- Theorem 3.2 --------------------------------------------------------------------------------------------


class Theorem32Assumption(NamedTuple):
    """Smallest β0 that Theorem 3.2 admits, its constant c4 (the proof needs c4 > 0), whether both hold."""

    minimum_inverse_temperature: Values
    c4: Values
    holds: Flags


def _theorem_3_2_constants(gamma0: Input, beta0: Input, margin: Input, pairs: Input) -> tuple[Values, Values, Values]:
    gamma0, margin = _gamma0(gamma0), _positive("margin", margin)
    common = margin * _positive("beta0", beta0) * np.sqrt(gamma0)
    c2 = common * _complement(gamma0) * np.exp(-(gamma0**2) / 4)
    return c2, 55 * (_pairs(pairs) - 1) * common, c2 - 0.1


@_extremes
def theorem_3_2_assumption(gamma0: Input, beta0: Input, margin: Input, pairs: Input) -> Theorem32Assumption:
    """β0 ≥ ln(4(n−1))/(α(1−γ0²)) and c4 > 0, under which the lower bound on the gap is proved.

    Any shape. Raises `FlowsimError` for γ0 outside (0, 1), a non-positive argument or n < 2. Yaras et al.
    2025, Theorem 3.2.
    """
    _, _, c4 = _theorem_3_2_constants(gamma0, beta0, margin, pairs)
    minimum = np.log(4 * (_pairs(pairs) - 1)) / (np.asarray(margin) * _complement(np.asarray(gamma0)))
    return Theorem32Assumption(minimum[()], c4, np.asarray((np.asarray(beta0) >= minimum) & (c4 > 0))[()])


@_extremes
def log_theorem_3_2_bound(
    log_ts: Input,
    gamma0: Input,
    beta0: Input,
    margin: Input,
    pairs: Input,
    constants: str = "corrected",
) -> Values:
    """Logarithm of `theorem_3_2_bound` at ln t (−inf at t = 0), stable at any time. Arguments broadcast."""
    c2, c3, c4 = _theorem_3_2_constants(gamma0, beta0, margin, pairs)
    if np.any(c4 <= 0):
        raise FlowsimError(
            f"Argument `beta0` must give c4 > 0, but gives {np.min(c4):g}. Use a larger `beta0` or `margin`."
        )
    if constants not in ("corrected", "printed"):
        raise unknown_name("choice of constants", constants, ("corrected", "printed"))
    corrected = constants == "corrected"
    log_rate = np.log(c3) + (np.log(c4) if corrected else 0.0)
    growth = np.logaddexp(log_rate + np.asarray(log_ts, np.float64), c4 / np.sqrt(np.asarray(gamma0)))
    return ((2 * np.log(c4) if corrected else np.log(c2)) - 2 * np.log(growth))[()]


@_extremes
def theorem_3_2_bound(
    ts: Input,
    gamma0: Input,
    beta0: Input,
    margin: Input,
    pairs: Input,
    constants: str = "corrected",
) -> Values:
    """Lower bound on γ(t) = Δ/2 for matched pairs, β = exp(ν), r = 1: c4²/ln(c3 c4 t + e^{c4/√γ0})².

    c2 = αβ0√γ0(1−γ0²)e^{−γ0²/4}, c3 = 55α(n−1)β0√γ0, c4 = c2 − 1/10, α a lower bound on the margin. It equals
    γ0 at t = 0. The "printed" constants, c2 for c4² and c3 t for c3 c4 t, do not bound γ: the integration of
    the paper's own inequality gives the "corrected" ones. The assumption is not checked here: see
    `theorem_3_2_assumption`.

    Arguments broadcast; `ts` in flow time. Raises `FlowsimError` for t < 0, γ0 outside (0, 1), a non-positive
    argument, n < 2, c4 ≤ 0 or unknown constants. Yaras et al. 2025, Theorem 3.2; the correction is derived
    here.
    """
    ts = _inside("ts", ts, 0.0, math.inf, "times from 0 on", closed=True)
    return np.exp(log_theorem_3_2_bound(np.log(ts), gamma0, beta0, margin, pairs, constants))[()]


# --- Theorem 3.3 --------------------------------------------------------------------------------------------


@_extremes
def bessel_ratio(order: Input, a: Input) -> Values:
    """I_{order+1}(a)/I_order(a) of the modified Bessel functions, for order ≥ 0 and a ≥ 0 of any size.

    The contracting recurrence r_ν = a/(2(ν+1) + a r_{ν+1}), down from the expansion of r at a high order.
    Arguments broadcast. Raises `FlowsimError` for a negative argument. Derived here.
    """
    order = _inside("order", order, 0.0, math.inf, "an order from 0 on", closed=True)
    a = _inside("a", a, 0.0, math.inf, "a finite argument from 0 on", closed=True)
    # The start is wrong by about q/a², q = ν/a. For large a that is nothing; for smaller a a thousand steps
    # reduce it to nothing.
    steps = 1000
    top = order + steps + 0.5
    length = np.hypot(top, a)
    ratio = a / (top + length) * (1 - top / length / length / 2)
    for k in range(steps, 0, -1):
        ratio = a / (2 * (order + k) + a * ratio)
    return ratio[()]


@_extremes
def log_mean_exponential(a: Input, dim: Input) -> Values:
    """ln ξ2 with ξ2 = E[e^{a u·v}] = Γ(d/2)(2/a)^ρ I_ρ(a), u uniform on the unit sphere of R^d, ρ = (d−2)/2.

    ξ1 = ξ2' = ξ2 I_{ρ+1}/I_ρ. Arguments broadcast. Raises `FlowsimError` for a ≤ 0 or d < 2. Yaras et al.
    2025, proof of Theorem 3.3.
    """
    from scipy.special import gammaln, ive

    a = _inside("a", a, 0.0, 1.0001e8, "an argument from 0 to 1e8")
    order = (_inside("dim", dim, 2.0, math.inf, "two or more dimensions", closed=True) - 2) / 2
    a, order = np.broadcast_arrays(a, order)
    out = np.empty(a.shape)
    direct = (order**2 <= 1000 * a) & (a > 1)
    nu, x = order[direct], a[direct]
    out[direct] = gammaln(nu + 1) + nu * np.log(2 / x) + np.log(ive(nu, x)) + x
    for index in [i for i in np.ndindex(a.shape) if not direct[i]]:
        # I_ρ underflows here, but ξ2 = Σ (a²/4)^k / (k! (ρ+1)_k) has only positive terms, the largest near
        # `peak`.
        nu, x = order[index], a[index]
        peak = x * x / (2 * (nu + np.hypot(nu, x)))
        k = np.arange(1, int(peak + 12 * math.sqrt(peak) + 40))
        terms = k * 2 * np.log(x / 2) - gammaln(k + 1) - (gammaln(k + nu + 1) - gammaln(nu + 1))
        top = max(terms.max(), 0.0)
        rest = np.exp(terms - top).sum()
        out[index] = np.log1p(rest) if top == 0 else top + np.log(math.exp(-top) + rest)
    return out[()]


class Theorem33Bound(NamedTuple):
    """Lower bound on dΔ/dt(0), its ε, whether it is proved (ξ1 ≥ 2e^a ε), and its limit for n → ∞."""

    bound: Values
    epsilon: Values
    proved: Flags
    limit: Values


def _theorem_3_3_scaled(dim: Input, beta0: Input, gamma0: Input) -> tuple[Values, Values, Values, Values]:
    """a, ln(ξ2 e^{−a}), ξ1/ξ2 and 4β0γ0. ξ2 overflows and e^{−a} underflows; their product need not."""
    gamma0, beta0 = _gamma0(gamma0), _positive("beta0", beta0)
    a = beta0 * _complement(gamma0)
    log_xi2 = np.asarray(log_mean_exponential(a, dim)) - a
    return a, log_xi2, np.asarray(bessel_ratio((np.asarray(dim) - 2) / 2, a)), 4 * beta0 * gamma0


@_extremes
def theorem_3_3_limit(beta0: Input, gamma0: Input, dim: Input) -> Values:
    """4β0γ0 I_{ρ+1}(a)/I_ρ(a), a = β0(1−γ0²), ρ = (d−2)/2: initial speed of the gap for n → ∞ uniform pairs.

    Arguments broadcast; per unit of flow time, for unit learning rates. Raises `FlowsimError` for γ0 outside
    (0, 1), β0 ≤ 0 or d < 2. Yaras et al. 2025, Theorem 3.3.
    """
    gamma0, beta0 = _gamma0(gamma0), _positive("beta0", beta0)
    order = (_inside("dim", dim, 2.0, math.inf, "two or more dimensions", closed=True) - 2) / 2
    return (4 * beta0 * gamma0 * bessel_ratio(order, beta0 * _complement(gamma0)))[()]


@_extremes
def theorem_3_3_bound(pairs: Input, dim: Input, beta0: Input, gamma0: Input, delta: Input = 0.05) -> Theorem33Bound:
    """Lower bound on dΔ/dt(0) with probability 1 − δ, for rows uniform on the sphere.

    4β0γ0 [(ξ1 − 2e^a ε)/(ξ2 + (e^a − e^{−a})ε) − 2ε], ε = √(ln((4n+1)/δ)/(2n)), ξ2 as in
    `log_mean_exponential`.

    Arguments broadcast. Raises as `theorem_3_3_limit`, and for n < 2 or δ outside (0, 1). Yaras et al. 2025,
    Theorem 3.3; its proof bounds 2 dγ/dt, which is not dΔ/dt.
    """
    a, log_xi2, ratio, speed = _theorem_3_3_scaled(dim, beta0, gamma0)
    delta, pairs = _inside("delta", delta, 0.0, 1.0, "a probability of failure such as 0.05"), _pairs(pairs)
    epsilon = np.sqrt(np.log((4 * pairs + 1) / delta) / (2 * pairs))
    with np.errstate(under="ignore"):
        xi2 = np.exp(log_xi2)
        bracket = (ratio * xi2 - 2 * epsilon) / (xi2 - np.expm1(-2 * a) * epsilon) - 2 * epsilon
    proved = np.asarray(np.log(ratio) + log_xi2 >= np.log(2 * epsilon))
    return Theorem33Bound((speed * bracket)[()], epsilon[()], proved[()], speed * ratio)


@_extremes
def theorem_3_3_pairs_needed(dim: Input, beta0: Input, gamma0: Input, delta: Input = 0.05) -> Values:
    """log10 of the smallest n at which `theorem_3_3_bound` is positive.

    Positivity is a quadratic inequality in ε, solved in closed form; n then solves 2nε² = ln((4n+1)/δ). n is
    rounded up to a whole number while float64 tells whole numbers apart. Arguments broadcast. Raises as
    `theorem_3_3_bound`. Derived here.
    """
    a, log_xi2, ratio, _ = _theorem_3_3_scaled(dim, beta0, gamma0)
    delta = _inside("delta", delta, 0.0, 1.0, "a probability of failure such as 0.05")
    with np.errstate(under="ignore"):
        xi2 = np.exp(log_xi2)
        root = 1 + xi2 + np.sqrt((1 + xi2) ** 2 - 2 * np.expm1(-2 * a) * ratio * xi2)
        log_epsilon = np.log(ratio) + log_xi2 - np.log(root)
        log_n = -2 * log_epsilon
        for _ in range(200):
            log_n = np.log(log_n + math.log(4) + np.log1p(np.exp(-log_n) / 4) - np.log(delta)) - (
                math.log(2) + 2 * log_epsilon
            )
    whole = np.ceil(np.exp(np.minimum(log_n, 36.0)))
    return (np.where(log_n < 36.0, np.log(whole), log_n) / math.log(10))[()]


# --- the exponential loss (Appendix C) ----------------------------------------------------------------------


def exponential_loss_log_gamma(
    ts: Input,
    inverse_temperature_schedule: Callable[[float], float],
    log_gamma0: float,
    leading_order: bool = False,
) -> np.ndarray:
    """ln γ at the times `ts` for the loss ℓ(m) = e^{−m} and a schedule β(t): γ = γ0 exp(−2∫βe^{−β(1−γ²)} ds).

    With `leading_order` the γ² is dropped, which is exact up to a constant factor when ∫β²γ²e^{−β} converges.

    `ts` has shape (time,), increasing from 0 on, in flow time; the result has its shape. Raises
    `FlowsimError` otherwise. Yaras et al. 2025, Appendix C, with the factor 2 that it omits.
    """
    _single(log_gamma0=log_gamma0)
    start = float(_log_gamma0(log_gamma0))
    ts = _inside("ts", ts, 0.0, math.inf, "times from 0 on", closed=True)
    if ts.ndim != 1 or np.any(np.diff(ts) < 0):
        raise FlowsimError("Argument `ts` must be one increasing series. Use np.sort.")

    def drop_rate(s: float, drop: np.ndarray) -> np.ndarray:  # in s = ln(1 + t), to reach long times
        beta = inverse_temperature_schedule(math.expm1(s))
        square = 0.0 if leading_order else np.exp(2 * (start - drop))
        return 2 * beta * np.exp(s - beta * (1 - square)) + 0 * drop

    s = np.log1p(ts)
    if s.size == 0 or s[-1] == 0:
        return np.full(s.shape, start)
    from scipy.integrate import solve_ivp

    with np.errstate(under="ignore"):
        solution = solve_ivp(drop_rate, (0.0, s[-1]), [0.0], "DOP853", s, rtol=1e-12, atol=1e-14, max_step=0.25)
    if not solution.success:
        raise FlowsimError(f"The schedule could not be integrated: {solution.message} Use a smoother schedule.")
    return start - solution.y[0]


@_extremes
def linear_inverse_temperature_rate(beta0: Input, beta1: Input) -> Values:
    """2c with c = [(β0+1)e^{−β0} − (β1+1)e^{−β1}]/(β1−β0), for a schedule linear in β (not τ).

    Over its length T, γ falls from γ0 to about γ0 e^{−2cT}.

    Any shape; per unit of flow time; the limit 2β0e^{−β0} where β1 = β0. Raises `FlowsimError` for a
    non-positive β. Yaras et al. 2025, Appendix C, with the factor 2 that it omits.
    """
    beta0, beta1 = _positive("beta0", beta0), _positive("beta1", beta1)
    from scipy.special import gammainc

    low, width = np.minimum(beta0, beta1), np.abs(beta1 - beta0)
    # Twice the mean of x e^{−x} = e^{−low} (low + y) e^{−y} over y from 0 to the width: two positive terms.
    wide = width > 1e-8
    safe = np.where(wide, width, 1.0)
    of_one = np.where(wide, -np.expm1(-safe) / safe, 1 - width / 2)
    of_y = np.where(wide, gammainc(2.0, safe) / safe, width / 2 * (1 - 2 * width / 3))
    return (2 * np.exp(-low) * (low * of_one + of_y))[()]


# --- label noise: the gap as a second temperature -----------------------------------------------------------


def _noise(noise: Input) -> np.ndarray:
    return _inside("noise", noise, 0.0, 1.0, "the probability of a wrong label")


def effective_noise(noise: Input, pairs: Input) -> Values:
    """p' = p(1 − 1/N): targets (1−p)I + (p/N)J, which may hit the true label, as noise over the wrong labels.

    Any shape. Raises `FlowsimError` for p outside (0, 1) or N < 2. Derived here.
    """
    return (_noise(noise) * (1 - 1 / _pairs(pairs)))[()]


def noise_logit_gap(noise: Input, pairs: Input) -> Values:
    """b* = ln[(1−p)(N−1)/p]: β × (mean cos of pairs − mean cos of non-pairs) at an interior equilibrium.

    For targets (1−p)I + p/(N−1)(J−I). Any shape. Raises `FlowsimError` for p outside (0, 1) or N < 2. Derived
    here.
    """
    noise = _noise(noise)
    return (np.log1p(-noise) - np.log(noise) + np.log(_pairs(pairs) - 1))[()]


def critical_temperature(noise: Input, pairs: Input, kind: str = "simplex") -> Values:
    """τ* = α/b*, above which the gap closes.

    α is N/(N−1) for a simplex (also for free rows with d ≥ N) and 1 for orthonormal pairs.

    Any shape. Raises `FlowsimError` for p outside (0, 1 − 1/N), N < 2 or an unknown kind. Derived here.
    """
    if kind not in ("simplex", "orthonormal"):
        raise unknown_name("kind", kind, ("simplex", "orthonormal"))
    logit_gap, pairs = np.asarray(noise_logit_gap(noise, pairs)), _pairs(pairs)
    if np.any(logit_gap <= 0):
        raise FlowsimError("Argument `noise` must favour the true pair. Use a `noise` below 1 - 1/pairs.")
    return ((pairs / (pairs - 1) if kind == "simplex" else 1.0) / logit_gap)[()]


@_extremes
def equilibrium_gap_bound(temperature: Input, critical: Input) -> Values:
    """Δ ≤ 2√(1 − τ/τ*) at an interior equilibrium with label noise, 0 above τ*.

    Attained by parallel simplex cones.

    Any shape. Raises `FlowsimError` for a non-positive temperature. Derived here.
    """
    critical = _positive("critical", critical)
    return (2 * np.sqrt(np.maximum(critical - _positive("temperature", temperature), 0) / critical))[()]


# --- Figure 2 -----------------------------------------------------------------------------------------------


def ring_height() -> float:
    """(√5 − 1)/4, the height γ0 of the two pentagons that Figure 2 of Yaras et al. 2025 starts from."""
    return (math.sqrt(5) - 1) / 4


#: The run behind Figure 2 of Yaras et al. 2025: two twisted regular pentagons on the free sphere, β = exp(ν),
#: r = 1. The start and "shown_*" are read off the paper; the other milestones are derived here by two
#: independent integrations.
FIGURE_2: dict[str, float | tuple[float, ...] | dict[float, float]] = {
    "pairs": 5,
    "dim": 3,
    "height": ring_height(),
    "twist_degrees": -144.0,
    "temperature0": 0.07,
    "initial_gap": 2 * ring_height(),
    "peak_time": 2.0639,
    "peak_gap": 1.0568,
    "peak_temperature": 1.0234,
    "matching_time": 3.8328,  # the margin turns positive; shown as "matched at 4.0"
    "final_time": 1e5,
    "final_gap": 0.54055,
    "final_temperature": 0.0358,
    "later_gaps": {1e6: 0.5265, 1e12: 0.4732},  # the paper's run, continued
    "shown_time_shift": 0.1,  # the paper's time axis shows t + 0.1
    "shown_snapshots": (0.0, 0.4, 2.3, 4.0, 1e2, 1e5),
}


# --- the closed form of a whole flow --------------------------------------------------------------------------


def predict(flow: Any, start: Any, t1: float | None = None, ts: ArrayLike | None = None, *, seed: int = 0) -> Result:
    """The closed form of a flow from a start, as the same `Result` that `fs.simulate` returns.

    It exists for frozen directions of constant positive margin α: `Reduced` with Z of constant diagonal and
    constant off-diagonal, and `Parallel` from `fs.initial.simplex`, where no force has a tangent part. Then

        d ln γ/dt = −2βg(a),  dβ/dt = r β'² (1−γ²) g(a),  g(a) = α(n−1)/(n−1 + e^{αa}),  a = β(1−γ²).

    `flow`, `start`, `t1`, `ts`, `seed` as in `fs.simulate`; temperature learnable without clamp, or fixed.
    Raises `FlowsimError` that names what stands in the way of a closed form. Derived here.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow(geometry=fs.Reduced())
        >>> closed = fs.theory.predict(flow, fs.initial.simplex(pairs=5, gamma=0.3), t1=1e30)
        >>> round(float(closed.series["gamma"][-1]), 4)
        0.0146
    """
    if not hasattr(flow, "to_config") or not hasattr(flow, "vector_field"):
        raise FlowsimError(
            f"Expected a GradientFlow, but got {type(flow).__name__}. Use fs.GradientFlow.from_preset('Baseline')."
        )
    check_whole("seed", seed, 0, "Use e.g. 0.")
    config = flow.to_config()
    policy, geometry = config["schedule"]["temperature"], config["geometry"]["kind"]
    start = start.draw(seed) if hasattr(start, "draw") else start
    if not hasattr(start, "as_cones"):
        raise FlowsimError(
            f"Expected a start, but got {type(start).__name__}. Use e.g. fs.initial.simplex() or result.final.start."
        )
    obstacles = [
        (geometry not in ("Reduced", "Parallel"), f"the geometry `{geometry}`"),
        (config["loss"]["kind"] != "InfoNCE", f"the loss `{config['loss']['kind']}`"),
        (config["pairing"]["kind"] != "Matched", f"the pairing `{config['pairing']['kind']}`"),
        (config["schedule"]["swap"]["kind"] != "NoSwap", "swaps"),
        (config["rule"]["kind"] != "GradientDescent", f"the rule `{config['rule']['kind']}`"),
        (policy["kind"] not in ("Learnable", "Fixed"), f"the temperature policy `{policy['kind']}`"),
        (policy.get("clamp") is not None, "a clamped temperature"),
    ]
    _no_closed_form(obstacles)
    cones = start.as_cones(geometry)
    z = cones.image @ cones.text.T if cones.similarity is None else cones.similarity
    n = len(z)
    off = z[~np.eye(n, dtype=bool)]
    margin = float(np.mean(np.diagonal(z)) - np.mean(off))
    _no_closed_form(
        [
            (bool(max(np.ptp(np.diagonal(z)), np.ptp(off)) > 1e-12), "a similarity matrix without constant margin"),
            (margin <= 0, "mismatched pairs"),
            (geometry == "Parallel" and not _is_simplex(z), "directions that move"),
        ]
    )
    times = output_times(t1, ts)
    sign = np.sign(float(cones.gamma))
    log_gamma0 = float(cones.log_gamma) if cones.log_gamma is not None else _log_or_zero(abs(float(cones.gamma)))
    if policy["kind"] == "Fixed":
        beta = np.full(len(times), 1 / policy["tau"])
        log_gamma = np.asarray(fixed_temperature_trajectory(times, log_gamma0, beta[0], margin, n))
    else:
        kind = policy["parametrization"]["kind"]
        name = {"Exp": "exp", "ScaledExp": "exp", "Softplus": "softplus", "Identity": "identity"}[kind]
        scale = policy["parametrization"].get("scale", 1.0)
        log_gamma, beta = (
            np.asarray(x)
            for x in reduced_trajectory(
                times, log_gamma0, 1 / policy["init"], margin, n, name, scale, policy["lr_ratio"]
            )
        )
    with np.errstate(under="ignore"):
        gamma = sign * np.exp(log_gamma)
        loss = np.log1p((n - 1) * np.exp(-margin * beta * -np.expm1(2 * log_gamma)))
    gap = np.full(len(times), np.nan)
    if cones.image is not None:
        centres = np.sum((cones.image.mean(0) - cones.text.mean(0)) ** 2)
        gap = np.sqrt((1 - gamma**2) * centres + 4 * gamma**2)
    series = {
        "modality_gap": gap, "temperature": 1 / beta, "inverse_temperature": beta, "gamma": gamma,
        "log_gamma": log_gamma, "loss": loss, "margin": np.full(len(times), margin),
    }  # fmt: skip
    return Result(
        time=times,
        series=series,
        status=Outcome(Status.PREDICTED, float(times[-1]), "closed form"),
        config={"flow": config, "start": {"kind": "Start"}, "options": {"seed": seed}},
        stats={},
        versions={},
        snapshot_time=np.empty(0),
        snapshots={},
        constants={},
        reasons={}
        if cones.image is not None
        else {"modality_gap": "needs rows, but the start holds only similarities"},
    )


def _is_simplex(z: np.ndarray) -> bool:
    """Whether Z is that of x_i = y_i at the corners of a regular simplex: 1, and −1/(n − 1) elsewhere."""
    n = len(z)
    return bool(np.abs(z - np.where(np.eye(n, dtype=bool), 1.0, -1 / (n - 1))).max() <= 1e-12)


def _log_or_zero(value: float) -> float:
    return math.log(value) if value > 0 else -math.inf


def _no_closed_form(obstacles: Sequence[tuple[bool, str]]) -> None:
    found = [name for present, name in obstacles if present]
    if found:
        raise FlowsimError(f"No closed form is known for {' and '.join(found)}. Use fs.simulate.")
