"""Closed forms of flows with a kernel K = own·I + shared·11ᵀ of both modalities (`fs.kernels.Shared`)."""

from __future__ import annotations

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.theory.arguments import Input, Values, inside, pair_count, positive
from flowsim.theory.conserved import relative_residual
from flowsim.theory.potential import potential
from flowsim.theory.rounding import extremes


def _rates(pairs: Input, own: Input, shared: Input) -> tuple[Values, Values]:
    """The rates of differences and of the mean, own and own + n·shared; the second is positive."""
    cure = "a rate of at least 0"
    own_rate = inside("own", own, 0.0, np.inf, cure, closed=True)
    mean = own_rate + pair_count(pairs) * inside("shared", shared, 0.0, np.inf, cure, closed=True)
    if np.any(mean == 0):
        raise FlowsimError("A kernel of 0 moves nothing. Give a positive `own` or `shared`.")
    return own_rate, mean


def effective_lr_ratio(pairs: Input, own: Input = 1.0, shared: Input = 0.0, lr_ratio: Input = 1.0) -> Values:
    """r/(own + n·shared), the learning-rate ratio with which free rows would close the gap by the same law.

    Close to γ = 0 a kernel speeds up the gap by own + n·shared, and leaves the temperature as it is. So
    `closing_exponent` and `sphere_exponent` at this ratio are those with the kernel. A shared kernel acts like a
    smaller learning rate of the temperature. Derived here.

    Args:
        pairs: n ≥ 2; all arguments broadcast.
        own: Rate of differences between rows, at least 0.
        shared: Rate that all rows have in common, at least 0.
        lr_ratio: r > 0, learning rate of ν.

    Returns:
        The ratio, of the common shape.

    Raises:
        FlowsimError: For n < 2, a negative rate, a kernel of 0 or r ≤ 0.
    """
    return (positive("lr_ratio", lr_ratio) / _rates(pairs, own, shared)[1])[()]


def _terms(
    log_gamma: Input,
    inverse_temperature: Input,
    pairs: Input,
    own: Input,
    shared: Input,
    parametrization: str,
    scale: float,
    lr_ratio: Input,
) -> tuple[Values, Values, Values]:
    """The three terms of `kernel_conserved_quantity`."""
    differences, mean = _rates(pairs, own, shared)
    log_gamma = np.asarray(log_gamma, np.float64)
    square = np.exp(2 * log_gamma)
    # ln(1 − x)/x → −1 as x → 0, where the kernel has no shared part.
    x = (mean - differences) / mean * square
    ratio = np.where(x == 0, 1.0, -np.log1p(-x) / np.where(x == 0, 1.0, x))
    force = 2 / positive("lr_ratio", lr_ratio) * potential(inverse_temperature, parametrization, scale)
    return log_gamma / mean, -differences * square * ratio / (2 * mean**2), force


@extremes
def kernel_conserved_quantity(
    log_gamma: Input,
    inverse_temperature: Input,
    pairs: Input,
    own: Input = 1.0,
    shared: Input = 0.0,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """∫ (1−γ²) dγ / (γ [own + n·shared·(1−γ²)]) + (2/r) F(β), constant along the flow of parallel cones with a kernel.

    With A = own + n·shared the integral is [ln γ + own/(2 n·shared) ln(1 − n·shared γ²/A)]/A. For own = 1 and
    shared = 0 it is `conserved_quantity`, and like that it holds for any Z(t) while no clamp is active. Derived here.

    Args:
        log_gamma: ln γ; all arguments broadcast.
        inverse_temperature: β > 0.
        pairs: n ≥ 2.
        own: Rate of differences between rows, at least 0.
        shared: Rate that all rows have in common, at least 0.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν relative to that of the embeddings.

    Returns:
        The quantity, of the common shape.

    Raises:
        FlowsimError: For β ≤ 0, n < 2, r ≤ 0, a negative rate, a kernel of 0 or an unknown parametrization.
    """
    return sum(_terms(log_gamma, inverse_temperature, pairs, own, shared, parametrization, scale, lr_ratio))


@extremes
def kernel_conserved_residual(
    log_gamma: Input,
    inverse_temperature: Input,
    pairs: Input,
    own: Input = 1.0,
    shared: Input = 0.0,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """Deviation of `kernel_conserved_quantity` from its first entry, relative to the sum of its terms' magnitudes.

    Derived here.

    Args:
        log_gamma: ln γ of shape (time, ...).
        inverse_temperature: β > 0 of the same shape.
        pairs: n ≥ 2.
        own: Rate of differences between rows, at least 0.
        shared: Rate that all rows have in common, at least 0.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν.

    Returns:
        The residual, of shape (time, ...).

    Raises:
        FlowsimError: For numbers instead of series, a term that overflows, and as in `kernel_conserved_quantity`.
    """
    return relative_residual(
        *_terms(log_gamma, inverse_temperature, pairs, own, shared, parametrization, scale, lr_ratio)
    )


@extremes
def sphere_kernel_conserved_quantity(
    log_gamma: Input,
    inverse_temperature: Input,
    pairs: Input,
    own: Input = 1.0,
    shared: Input = 0.0,
    parametrization: str = "exp",
    scale: float = 1.0,
    lr_ratio: Input = 1.0,
) -> Values:
    """∫ dγ / (γ [own + n·shared·(1−γ²)]) + F(β)/(r n), constant on the sphere for simplex cones with a kernel.

    With A = own + n·shared the integral is [ln γ − ½ ln(1 − n·shared γ²/A)]/A. The directions of each modality must sum
    to 0, and the softmaxes must be doubly stochastic. For own = k and shared = 0 it is `sphere_conserved_quantity`/k.
    Derived here.

    Args:
        log_gamma: ln γ; all arguments broadcast.
        inverse_temperature: β > 0.
        pairs: n ≥ 2.
        own: Rate of differences between rows, at least 0.
        shared: Rate that all rows have in common, at least 0.
        parametrization: "exp", "softplus" or "identity".
        scale: s > 0 of "exp"; must be 1 for the others.
        lr_ratio: r > 0, learning rate of ν.

    Returns:
        The quantity, of the common shape.

    Raises:
        FlowsimError: For β ≤ 0, n < 2, r ≤ 0, a negative rate, a kernel of 0 or an unknown parametrization.
    """
    differences, mean = _rates(pairs, own, shared)
    log_gamma = np.asarray(log_gamma, np.float64)
    square = (mean - differences) / mean * np.exp(2 * log_gamma)
    force = potential(inverse_temperature, parametrization, scale) / positive("lr_ratio", lr_ratio) / pair_count(pairs)
    return ((log_gamma - np.log1p(-square) / 2) / mean + force)[()]
