"""Label noise: the gap acts as a second temperature and closes above a critical temperature."""

from __future__ import annotations

import numpy as np

from flowsim.errors import FlowsimError, unknown_name
from flowsim.theory.arguments import Input, Values, inside, pair_count, positive
from flowsim.theory.rounding import extremes


def _noise(noise: Input) -> np.ndarray:
    """p as float64, between 0 and 1."""
    return inside("noise", noise, 0.0, 1.0, "the probability of a wrong label")


def effective_noise(noise: Input, pairs: Input) -> Values:
    """p' = p(1 − 1/n), the probability of a wrong label for targets (1−p)I + (p/n)J, which may hit the true one.

    With p', formulas for noise over the wrong labels, such as `noise_logit_gap`, apply. Derived here.

    Args:
        noise: Probability p of a wrong label, between 0 and 1; broadcasts against n.
        pairs: n ≥ 2.

    Returns:
        p', of the common shape.

    Raises:
        FlowsimError: For p outside (0, 1) or n < 2.
    """
    return (_noise(noise) * (1 - 1 / pair_count(pairs)))[()]


def noise_logit_gap(noise: Input, pairs: Input) -> Values:
    """b* = ln[(1−p)(n−1)/p]: β × (mean cos of pairs − mean cos of non-pairs) at an interior equilibrium.

    For targets (1−p)I + p/(n−1)(J−I). Derived here.

    Args:
        noise: Probability p of a wrong label, between 0 and 1; broadcasts against n.
        pairs: n ≥ 2.

    Returns:
        b*, of the common shape.

    Raises:
        FlowsimError: For p outside (0, 1) or n < 2.
    """
    noise = _noise(noise)
    return (np.log1p(-noise) - np.log(noise) + np.log(pair_count(pairs) - 1))[()]


def critical_temperature(noise: Input, pairs: Input, kind: str = "simplex") -> Values:
    """τ* = α/b*, the temperature above which the gap closes; b* is `noise_logit_gap`. Derived here.

    The margin α is n/(n−1) for a simplex (and for free rows with d ≥ n) and 1 for orthonormal pairs.

    Args:
        noise: Probability p of a wrong label, between 0 and 1 − 1/n; broadcasts against n.
        pairs: n ≥ 2.
        kind: Directions of the pairs, "simplex" or "orthonormal".

    Returns:
        τ*, of the common shape.

    Raises:
        FlowsimError: For p outside (0, 1 − 1/n), n < 2 or an unknown kind.
    """
    if kind not in ("simplex", "orthonormal"):
        raise unknown_name("kind", kind, ("simplex", "orthonormal"))
    logit_gap, pairs = np.asarray(noise_logit_gap(noise, pairs)), pair_count(pairs)
    if np.any(logit_gap <= 0):
        raise FlowsimError("Argument `noise` must favour the true pair. Use a `noise` below 1 - 1/pairs.")
    return ((pairs / (pairs - 1) if kind == "simplex" else 1.0) / logit_gap)[()]


@extremes
def equilibrium_gap_bound(temperature: Input, critical: Input) -> Values:
    """Δ ≤ 2√(1 − τ/τ*) at an interior equilibrium with label noise, 0 above τ*. Derived here.

    Parallel cones with simplex directions attain it.

    Args:
        temperature: τ > 0; broadcasts against τ*.
        critical: τ* > 0, from `critical_temperature`.

    Returns:
        The bound on Δ, of the common shape.

    Raises:
        FlowsimError: For a non-positive temperature.
    """
    critical = positive("critical", critical)
    return (2 * np.sqrt(np.maximum(critical - positive("temperature", temperature), 0) / critical))[()]
