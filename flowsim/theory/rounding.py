"""Arithmetic that keeps full accuracy where the plain formula cancels or leaves float64."""

from __future__ import annotations

import math

import numpy as np

from flowsim.theory.arguments import Values

#: For formulas whose intermediate values leave float64 on the way to a result that is right, infinite or zero.
extremes = np.errstate(over="ignore", under="ignore", divide="ignore")
#: Softplus and identity are one from here on, and squares are still far from overflow.
HUGE = 1e100


def complement(gamma: Values) -> Values:
    """1 − γ², to rounding also where γ is nearly 1."""
    return (1 - gamma) * (1 + gamma)


_REST = [1 / math.factorial(k) for k in range(2, 20)]


def exponential_rest(u: Values) -> Values:
    """e^u − 1 − u, to rounding also where u is nearly 0."""
    near = np.where(np.abs(u) < 0.5, u, 0.0)
    series = near**2 * np.polynomial.polynomial.polyval(near, _REST)
    return np.where(np.abs(u) < 0.5, series, np.expm1(u) - u)
