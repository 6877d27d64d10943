"""Theorem 3.2: the lower bound on the gap of matched pairs, with its assumption."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flowsim.errors import FlowsimError, unknown_name
from flowsim.theory.arguments import Flags, Input, Values, cone_height, inside, pair_count, positive
from flowsim.theory.rounding import complement, extremes


class Theorem32Assumption(NamedTuple):
    """The assumption of Theorem 3.2.

    Attributes:
        minimum_inverse_temperature: Smallest admissible β0, ln(4(n−1))/(α(1−γ0²)).
        c4: The constant c4, which must be positive.
        holds: Whether both conditions hold.
    """

    minimum_inverse_temperature: Values
    c4: Values
    holds: Flags


def _theorem_3_2_constants(gamma0: Input, beta0: Input, margin: Input, pairs: Input) -> tuple[Values, Values, Values]:
    """c2, c3 and c4 of `theorem_3_2_bound`."""
    gamma0, margin = cone_height(gamma0), positive("margin", margin)
    common = margin * positive("beta0", beta0) * np.sqrt(gamma0)
    c2 = common * complement(gamma0) * np.exp(-(gamma0**2) / 4)
    return c2, 55 * (pair_count(pairs) - 1) * common, c2 - 0.1


@extremes
def theorem_3_2_assumption(gamma0: Input, beta0: Input, margin: Input, pairs: Input) -> Theorem32Assumption:
    """β0 ≥ ln(4(n−1))/(α(1−γ0²)) and c4 > 0, the conditions under which the lower bound on the gap is proved.

    Yaras et al. 2025, Theorem 3.2; c4 as in `theorem_3_2_bound`.

    Args:
        gamma0: Initial γ, between 0 and 1; all arguments broadcast.
        beta0: Initial β, positive.
        margin: α > 0, a lower bound on the margin.
        pairs: n ≥ 2.

    Returns:
        The smallest β0, the constant c4, and whether both conditions hold, all of the common shape.

    Raises:
        FlowsimError: For γ0 outside (0, 1), a non-positive argument or n < 2.
    """
    _, _, c4 = _theorem_3_2_constants(gamma0, beta0, margin, pairs)
    minimum = np.log(4 * (pair_count(pairs) - 1)) / (np.asarray(margin) * complement(np.asarray(gamma0)))
    return Theorem32Assumption(minimum[()], c4, np.asarray((np.asarray(beta0) >= minimum) & (c4 > 0))[()])


@extremes
def log_theorem_3_2_bound(
    log_ts: Input,
    gamma0: Input,
    beta0: Input,
    margin: Input,
    pairs: Input,
    constants: str = "corrected",
) -> Values:
    """Logarithm of `theorem_3_2_bound` as a function of ln t, stable at any time.

    Args:
        log_ts: ln t; −inf at t = 0.
        gamma0: Initial γ, between 0 and 1; all arguments broadcast.
        beta0: Initial β, positive.
        margin: α > 0, a lower bound on the margin.
        pairs: n ≥ 2.
        constants: "corrected" or "printed", see `theorem_3_2_bound`.

    Returns:
        Logarithm of the bound on γ, of the common shape.

    Raises:
        FlowsimError: As in `theorem_3_2_bound`, except for t.
    """
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


@extremes
def theorem_3_2_bound(
    ts: Input,
    gamma0: Input,
    beta0: Input,
    margin: Input,
    pairs: Input,
    constants: str = "corrected",
) -> Values:
    """Lower bound on γ(t) = Δ/2 for matched pairs, β = exp(ν), r = 1: c4²/ln(c3 c4 t + e^{c4/√γ0})².

    c2 = αβ0√γ0(1−γ0²)e^{−γ0²/4}, c3 = 55α(n−1)β0√γ0 and c4 = c2 − 1/10. The bound equals γ0 at t = 0. The "printed"
    constants, c2 for c4² and c3 t for c3 c4 t, do not bound γ; integrating the paper's own inequality gives the
    "corrected" ones. The assumption is not checked, see `theorem_3_2_assumption`. Yaras et al. 2025, Theorem 3.2; the
    correction is derived here.

    Args:
        ts: Flow times t ≥ 0.
        gamma0: Initial γ, between 0 and 1; all arguments broadcast.
        beta0: Initial β, positive.
        margin: α > 0, a lower bound on the margin.
        pairs: n ≥ 2.
        constants: "corrected" or "printed".

    Returns:
        The bound on γ, of the common shape.

    Raises:
        FlowsimError: For t < 0, γ0 outside (0, 1), a non-positive argument, n < 2, c4 ≤ 0 or unknown constants.
    """
    ts = inside("ts", ts, 0.0, math.inf, "times from 0 on", closed=True)
    return np.exp(log_theorem_3_2_bound(np.log(ts), gamma0, beta0, margin, pairs, constants))[()]
