"""Conserved quantities of the gap and the temperature: Lemma 3.1, its generalisations and their consequences."""

from __future__ import annotations

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.theory.arguments import Input, Values, checked_scale, log_cone_height, positive
from flowsim.theory.exponents import sphere_exponent
from flowsim.theory.potential import potential, potential_change, unchecked_inverse_potential, unchecked_potential
from flowsim.theory.rounding import HUGE, exponential_rest, extremes


def _terms(
    log_gamma: Input, inverse_temperature: Input, parametrization: str, scale: float, lr_ratio: Input
) -> tuple[Values, Values, Values]:
    """The three terms of `conserved_quantity`: ln γ, −γ²/2 and (2/r) F(β)."""
    log_gamma = np.asarray(log_gamma, np.float64)
    square = np.exp(2 * log_gamma)
    force = 2 / positive("lr_ratio", lr_ratio) * potential(inverse_temperature, parametrization, scale)
    return log_gamma, -square / 2, force


@extremes
def conserved_quantity(
    log_gamma: Input,
    inverse_temperature: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """ln γ − γ²/2 + (2/r) F(β), constant along the flow of parallel cones with a learnable temperature.

    It holds for any Z(t) while no clamp is active. Generalises Lemma 3.1 (derived here).

    Args:
        log_gamma: ln γ; broadcasts against β.
        inverse_temperature: β > 0.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        The quantity, of the common shape.

    Raises:
        FlowsimError: For β ≤ 0, r ≤ 0 or an unknown parametrization.
    """
    log_gamma, square, force = _terms(log_gamma, inverse_temperature, parametrization, scale, lr_ratio)
    return log_gamma + square + force


@extremes
def conserved_residual(
    log_gamma: Input,
    inverse_temperature: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """Deviation of `conserved_quantity` from its first entry, relative to the sum of its terms' magnitudes.

    Derived here.

    Args:
        log_gamma: ln γ of shape (time, ...).
        inverse_temperature: β > 0 of the same shape.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        The residual, of shape (time, ...).

    Raises:
        FlowsimError: For numbers instead of series, a term that overflows, and as in `conserved_quantity`.
    """
    return relative_residual(*_terms(log_gamma, inverse_temperature, parametrization, scale, lr_ratio))


def relative_residual(*terms: Values) -> Values:
    """Deviation of a sum of terms from its first entry, relative to the sum of their magnitudes.

    Args:
        terms: Series of shape (time, ...); they broadcast.

    Returns:
        The residual, of shape (time, ...).

    Raises:
        FlowsimError: For numbers instead of series, and for a term that overflows.
    """
    stacked = np.stack(np.broadcast_arrays(*terms))
    if stacked.ndim == 1:
        raise FlowsimError("Argument `log_gamma` must be a series, but is one number. Use an array with time first.")
    if np.any(np.isinf(stacked)):
        raise FlowsimError(
            "Arguments `log_gamma` and `inverse_temperature` must give finite terms, but one overflows. Leave out "
            "times at which γ is 0 or β is above 1e150."
        )
    total = stacked.sum(0)
    return (total - total[0]) / np.abs(stacked).sum(0)


@extremes
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

    This is the case of Figure 2 (twisted regular rings), to which Lemma 3.1 does not apply. Derived here.

    Args:
        log_gamma: ln γ; all arguments broadcast.
        inverse_temperature: β > 0.
        pairs: n ≥ 2.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν.
        embedding_rate: k > 0, learning rate of the embeddings in the same unit.

    Returns:
        The quantity, of the common shape.

    Raises:
        FlowsimError: For n < 2, a non-positive argument or an unknown parametrization.
    """
    power = sphere_exponent(pairs, 1.0, lr_ratio, embedding_rate)
    return (np.asarray(log_gamma, np.float64) - power * potential(inverse_temperature, parametrization, scale))[()]


@extremes
def lemma_3_1(gamma: Input, gamma0: Input, beta0: Input) -> Values:
    """β = β0 √(γ0/γ) exp((γ² − γ0²)/4), for β = exp(ν) and r = 1. Yaras et al. 2025, Lemma 3.1.

    Args:
        gamma: γ > 0; all arguments broadcast.
        gamma0: Initial γ, positive.
        beta0: Initial β, positive.

    Returns:
        β where the height is γ, of the common shape.

    Raises:
        FlowsimError: For a non-positive argument.
    """
    gamma, gamma0 = positive("gamma", gamma), positive("gamma0", gamma0)
    return (positive("beta0", beta0) * np.sqrt(gamma0 / gamma) * np.exp((gamma**2 - gamma0**2) / 4))[()]


def temperature_after(
    drop: Values,
    log_gamma0: Values | float,
    beta0: Values | float,
    parametrization: str,
    scale: float,
    lr_ratio: Values | float,
) -> Values:
    """β once ln γ has dropped by `drop` from ln γ0: F(β) − F(β0) = (r/2)[drop − (γ0² − γ²)/2]."""
    # With γ the larger of the two, |D| (1 − γ²) + γ² (e^{−2|D|} − 1 + 2|D|)/2, in which nothing cancels.
    top, size = 2 * (np.asarray(log_gamma0) + np.maximum(-drop, 0.0)), np.abs(drop)
    bracket = np.sign(drop) * (-np.expm1(top) * size + np.exp(top) * exponential_rest(-2 * size) / 2)
    change = np.asarray(lr_ratio) / 2 * bracket
    beta0 = np.asarray(beta0)
    if parametrization == "exp":
        power = change / scale / scale
        half = np.exp(power / 2)  # its square may overflow although β does not
        return np.where(np.abs(power) > 700, beta0 * half * half, beta0 * np.exp(power))[()]
    root = np.sqrt(np.asarray(lr_ratio)) * np.sqrt(np.abs(bracket))
    below = np.sqrt(np.where(root <= beta0, beta0 - root, np.nan)) * np.sqrt(beta0 + root)
    identity = np.where(change >= 0, np.hypot(beta0, root), below)
    if parametrization == "identity":
        return identity[()]
    # For such β the derivative β' is 1, and squares overflow.
    huge = beta0 > HUGE
    moderate = np.where(huge, 1.0, beta0)
    ordinary = unchecked_inverse_potential(
        unchecked_potential(moderate, parametrization, scale) + change, parametrization, scale
    )
    return np.where(huge, identity, ordinary)[()]


@extremes
def inverse_temperature_of_gamma(
    log_gamma: Input,
    log_gamma0: Input,
    beta0: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """β at ln γ, from (ln γ0, β0): F(β) = F(β0) + (r/2)[ln γ0 − ln γ − (γ0² − γ²)/2].

    Generalises Lemma 3.1 (derived here).

    Args:
        log_gamma: ln γ; all arguments broadcast.
        log_gamma0: Initial ln γ.
        beta0: Initial β, positive.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        β, of the common shape; inf where it overflows, NaN where "identity" would need β² < 0.

    Raises:
        FlowsimError: For β0 ≤ 0, r ≤ 0 or an unknown parametrization.
    """
    scale = checked_scale(parametrization, scale)
    beta0, lr_ratio = positive("beta0", beta0), positive("lr_ratio", lr_ratio)
    log_gamma0 = np.asarray(log_gamma0, np.float64)
    drop = log_gamma0 - np.asarray(log_gamma, np.float64)
    return temperature_after(drop, log_gamma0, beta0, parametrization, scale, lr_ratio)


def log_gamma_of_inverse_temperature(
    inverse_temperature: Input,
    log_gamma0: Input,
    beta0: Input,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """ln γ ≤ 0 at β, from (ln γ0, β0): the inverse of `inverse_temperature_of_gamma`. Derived here.

    Args:
        inverse_temperature: β > 0; all arguments broadcast.
        log_gamma0: Initial ln γ, below 0.
        beta0: Initial β, positive.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        ln γ, of the common shape, accurate where γ itself underflows; NaN where β is too low for any γ ≤ 1.

    Raises:
        FlowsimError: For γ0 ≥ 1, β ≤ 0, β0 ≤ 0, r ≤ 0 or an unknown parametrization.
    """
    scale = checked_scale(parametrization, scale)
    log_gamma0, beta0 = log_cone_height(log_gamma0), positive("beta0", beta0)
    beta = positive("inverse_temperature", inverse_temperature)
    # Solve D + γ0² expm1(−2D)/2 = Q for the drop D = ln γ0 − ln γ. It is convex, so Newton descends from an upper
    # bound. Without cancellation it is D (1 − γ0²) + γ0² (e^{−2D} − 1 + 2D)/2 = Q.
    with np.errstate(over="ignore", under="ignore", divide="ignore", invalid="ignore"):
        target = potential_change(beta, beta0, parametrization, scale, 2 / positive("lr_ratio", lr_ratio))
        square, complement = np.exp(2 * log_gamma0), -np.expm1(2 * log_gamma0)
        lowest = -exponential_rest(2 * log_gamma0) / 2  # Q where γ is 1
        reachable = target >= lowest
        goal = np.maximum(target, lowest)
        drop = goal / complement
        drop = np.maximum(np.where(goal > 0, np.minimum(drop, goal + square / 2), drop), log_gamma0)
        for _ in range(80):
            slope = -np.expm1(2 * (log_gamma0 - drop))
            # γ² instead of γ0² e^{−2D}, whose factors may be 0 and infinite.
            far = np.exp(2 * (log_gamma0 - drop)) - square * (1 - 2 * drop)
            rest = np.where(np.abs(drop) < 0.25, square * exponential_rest(-2 * drop), far)
            excess = complement * drop + rest / 2 - goal
            step = np.where(slope > 0, excess / slope, 0.0)
            drop = np.maximum(drop - step, log_gamma0)
            if not np.any(np.abs(step) > 1e-15 * np.abs(drop)):
                break
        drop = np.where(np.isposinf(goal), np.inf, drop)
    return np.where(reachable | np.isneginf(log_gamma0), log_gamma0 - drop, np.nan)[()]
