"""Exponents of the laws by which the gap closes, and the local slope of a series."""

from __future__ import annotations

import math

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.theory.arguments import Input, Values, checked_scale, inside, pair_count, positive
from flowsim.theory.rounding import extremes


@extremes
def sphere_exponent(pairs: Input, scale: float = 1.0, lr_ratio: Input = 1.0, embedding_rate: Input = 1.0) -> Values:
    """−k s²/(r n), the power of β in γ on the free sphere with doubly stochastic softmaxes.

    It is also the power of ln t with which this gap closes. Derived here.

    Args:
        pairs: n ≥ 2; arrays broadcast.
        scale: s > 0 of β = exp(ν/s).
        lr_ratio: r > 0, learning rate of ν.
        embedding_rate: k > 0, learning rate of the embeddings in the same unit.

    Returns:
        The exponent, of the common shape.

    Raises:
        FlowsimError: For n < 2 or a non-positive argument.
    """
    rate = positive("embedding_rate", embedding_rate) / positive("lr_ratio", lr_ratio) / pair_count(pairs)
    scale = checked_scale("exp", scale)
    return (-rate * scale * scale)[()]


@extremes
def closing_exponent(scale: float = 1.0, lr_ratio: Input = 1.0) -> Values:
    """−2s²/r, the power of ln t with which the gap of parallel cones closes for β = exp(ν/s).

    For s = r = 1: Yaras et al. 2025, Theorem 3.2; in general derived here.

    Args:
        scale: s > 0.
        lr_ratio: r > 0, of any shape.

    Returns:
        The exponent, of the shape of r.

    Raises:
        FlowsimError: For a non-positive argument.
    """
    scale = checked_scale("exp", scale)
    return (-2 * (scale / positive("lr_ratio", lr_ratio)) * scale)[()]


@extremes
def identity_law_coefficient(margin: Input, lr_ratio: Input = 1.0) -> Values:
    """−1/(r α²), the limit of ln γ/(ln t)² for β = ν (and softplus) once Z has converged with margin α.

    Derived here.

    Args:
        margin: α > 0; broadcasts against r.
        lr_ratio: r > 0.

    Returns:
        The coefficient, of the common shape.

    Raises:
        FlowsimError: For a non-positive argument.
    """
    margin = positive("margin", margin)
    return (-1 / margin / positive("lr_ratio", lr_ratio) / margin)[()]


def local_slope(log_gamma: Input, log_time: Input) -> np.ndarray:
    """d ln γ/d ln ln t by second-order differences, centred inside and one-sided at the two ends. Derived here.

    Args:
        log_gamma: ln γ of shape (time,).
        log_time: ln t > 0 of shape (time,), increasing, with three times or more.

    Returns:
        The slope, of shape (time,).

    Raises:
        FlowsimError: If `log_time` is not such a series.
    """
    log_time = inside("log_time", log_time, 0.0, math.inf, "times above 1, where ln ln t exists")
    if log_time.ndim != 1 or log_time.size < 3 or np.any(np.diff(log_time) <= 0):
        raise FlowsimError("Argument `log_time` must be one increasing series. Use three times or more.")
    return np.gradient(np.asarray(log_gamma, np.float64), np.log(log_time), edge_order=2)
