"""The potential F(β), the temperature's term in the conserved quantity, with its inverse and differences."""

from __future__ import annotations

import math

import numpy as np

from flowsim.theory.arguments import Input, Values, checked_scale, positive
from flowsim.theory.rounding import HUGE, extremes


def raw_derivative(inverse_temperature: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """β'(ν) as a function of β: β/s ("exp"), 1 − e^{−β} ("softplus"), 1 ("identity"). Derived here.

    Args:
        inverse_temperature: β > 0, of any shape.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.

    Returns:
        β'(ν), of the shape of β.

    Raises:
        FlowsimError: For β ≤ 0 or an unknown parametrization.
    """
    scale = checked_scale(parametrization, scale)
    beta = positive("inverse_temperature", inverse_temperature)
    if parametrization == "exp":
        return (beta / scale)[()]
    return (-np.expm1(-beta) if parametrization == "softplus" else np.ones_like(beta))[()]


def unchecked_potential(beta: Values, parametrization: str, scale: float) -> Values:
    """`potential` of checked arguments."""
    if parametrization == "exp":
        return scale**2 * np.log(beta)
    if parametrization == "identity":
        return beta**2 / 2
    from scipy.special import spence

    one_minus = -np.expm1(-beta)  # 1 − e^{−β}; SciPy's spence(1 − x) is Li₂(x)
    return beta**2 / 2 + (beta + 1) * np.log(one_minus) - spence(one_minus) - beta * np.exp(-beta) / one_minus


@extremes
def potential(inverse_temperature: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """F(β) = ∫ β/β'(ν)² dβ, the temperature's term in the conserved quantity. Derived here.

    "exp": s² ln β; "identity": β²/2; "softplus": β²/2 + (β+1) ln(1−e^{−β}) − Li₂(e^{−β}) − β/(e^β−1).

    Args:
        inverse_temperature: β > 0, of any shape.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.

    Returns:
        F(β), of the shape of β.

    Raises:
        FlowsimError: For β ≤ 0 or an unknown parametrization.
    """
    scale = checked_scale(parametrization, scale)
    return unchecked_potential(positive("inverse_temperature", inverse_temperature), parametrization, scale)


def unchecked_inverse_potential(value: Values, parametrization: str, scale: float) -> Values:
    """`inverse_potential` of checked arguments."""
    if parametrization == "exp":
        return np.exp(value / scale / scale)
    if parametrization == "identity":
        return np.sqrt(np.where(value >= 0, 2 * value, np.nan))
    # F is convex and increasing in ln β, so Newton's method descends to the root from any upper bound.
    small = value + math.pi**2 / 6 + 1  # ln β ≤ small, with equality as β → 0
    clipped = np.maximum(value, -40.0)
    log_beta = np.minimum(clipped + math.pi**2 / 6 + 1, np.log(np.sqrt(2 * np.maximum(clipped, 0)) + 2))
    for _ in range(12):
        beta = np.exp(log_beta)
        log_beta = log_beta - (unchecked_potential(beta, "softplus", 1.0) - clipped) * (np.expm1(-beta) / beta) ** 2
    return np.where(value < -40.0, np.exp(np.minimum(small, 0.0)), np.exp(log_beta))[()]


@extremes
def inverse_potential(value: Input, parametrization: str = "exp", scale: float = 1.0) -> Values:
    """β with F(β) = `value`: the inverse of `potential`. Derived here.

    Args:
        value: F, of any shape.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.

    Returns:
        β, of the shape of `value`; 0 or inf if it leaves float64, NaN for a negative value with "identity".

    Raises:
        FlowsimError: For an unknown parametrization.
    """
    scale = checked_scale(parametrization, scale)
    return unchecked_inverse_potential(np.asarray(value, np.float64), parametrization, scale)


def potential_change(beta: Values, beta0: Values, parametrization: str, scale: float, factor: Values) -> Values:
    """`factor` (F(β) − F(β0)), also if β/β0, β² or F itself leaves float64."""
    if parametrization == "exp":
        ratio = beta / beta0
        ordinary = (ratio > 1e-300) & (ratio < 1e300)
        return (
            factor * scale**2 * np.where(ordinary, np.log(np.where(ordinary, ratio, 1.0)), np.log(beta) - np.log(beta0))
        )
    identity = factor * (beta - beta0) * ((beta + beta0) / 2)
    if parametrization == "identity":
        return identity
    huge = np.maximum(beta, beta0) > HUGE  # as in `temperature_after`
    pair = (np.where(huge, 1.0, b) for b in (beta, beta0))
    after, before = (unchecked_potential(b, parametrization, scale) for b in pair)
    return np.where(huge, identity, factor * (after - before))
