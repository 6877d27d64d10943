"""Rates at which the gap closes under a fixed or a scheduled temperature."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.theory.arguments import Input, Values, check_single, inside, log_cone_height, positive
from flowsim.theory.cones import gap_force
from flowsim.theory.rounding import complement, extremes


@extremes
def fixed_temperature_rate(inverse_temperature: Input, margin: Input, pairs: Input, gamma: Input = 0.0) -> Values:
    """2β g(β(1−γ²)) = −d ln γ/dt at fixed temperature; the gap decays for a positive margin and grows for a negative.

    Derived here.

    Args:
        inverse_temperature: β > 0; all arguments broadcast.
        margin: α, of either sign.
        pairs: n ≥ 2.
        gamma: γ; 0 gives the late rate of a gap that closes.

    Returns:
        The rate per unit of flow time, of the common shape.

    Raises:
        FlowsimError: For β ≤ 0 or n < 2.
    """
    beta = positive("inverse_temperature", inverse_temperature)
    return (2 * beta * gap_force(beta * complement(np.asarray(gamma, np.float64)), margin, pairs))[()]


def exponential_loss_log_gamma(
    ts: Input,
    inverse_temperature_schedule: Callable[[float], float],
    log_gamma0: float,
    leading_order: bool = False,
) -> np.ndarray:
    """ln γ under the loss ℓ(m) = e^{−m} and a schedule β(t): γ = γ0 exp(−2∫βe^{−β(1−γ²)} ds).

    Yaras et al. 2025, Appendix C, with the factor 2 that it omits.

    Args:
        ts: Flow times of shape (time,), increasing, from 0 on.
        inverse_temperature_schedule: β as a function of t.
        log_gamma0: Initial ln γ, below 0.
        leading_order: Whether to drop γ², which is exact up to a constant factor if ∫β²γ²e^{−β} converges.

    Returns:
        ln γ, of shape (time,).

    Raises:
        FlowsimError: For γ0 ≥ 1, invalid times, or a schedule that cannot be integrated.
    """
    check_single(log_gamma0=log_gamma0)
    start = float(log_cone_height(log_gamma0))
    ts = inside("ts", ts, 0.0, math.inf, "times from 0 on", closed=True)
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


@extremes
def linear_inverse_temperature_rate(beta0: Input, beta1: Input) -> Values:
    """2c with c = [(β0+1)e^{−β0} − (β1+1)e^{−β1}]/(β1−β0), for a schedule linear in β (not τ).

    During a schedule of length T, γ falls from γ0 to about γ0 e^{−2cT}. Yaras et al. 2025, Appendix C, with the factor
    2 that it omits.

    Args:
        beta0: Initial β, positive; broadcasts against β1.
        beta1: Final β, positive.

    Returns:
        The rate per unit of flow time, of the common shape; its limit 2β0e^{−β0} where β1 = β0.

    Raises:
        FlowsimError: For a non-positive β.
    """
    beta0, beta1 = positive("beta0", beta0), positive("beta1", beta1)
    from scipy.special import gammainc

    low, width = np.minimum(beta0, beta1), np.abs(beta1 - beta0)
    # Twice the mean of x e^{−x} = e^{−low} (low + y) e^{−y} over y from 0 to the width: two positive terms.
    wide = width > 1e-8
    safe = np.where(wide, width, 1.0)
    of_one = np.where(wide, -np.expm1(-safe) / safe, 1 - width / 2)
    of_y = np.where(wide, gammainc(2.0, safe) / safe, width / 2 * (1 - 2 * width / 3))
    return (2 * np.exp(-low) * (low * of_one + of_y))[()]
