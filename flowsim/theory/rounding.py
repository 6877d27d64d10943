"""Arithmetic that keeps full accuracy where the plain formula cancels or leaves float64."""

from __future__ import annotations

import math

import numpy as np

from flowsim.theory.arguments import Values

#: For formulas whose intermediate values may overflow although the result is right.
extremes = np.errstate(over="ignore", under="ignore", divide="ignore")
#: From here on softplus equals identity; squares are still far from overflow.
HUGE = 1e100


def complement(gamma: Values) -> Values:
    """1 − γ², accurate also for γ close to 1."""
    return (1 - gamma) * (1 + gamma)


_REST = [1 / math.factorial(k) for k in range(2, 20)]


def exponential_rest(u: Values) -> Values:
    """e^u − 1 − u, accurate also for u close to 0."""
    near = np.where(np.abs(u) < 0.5, u, 0.0)
    series = near**2 * np.polynomial.polynomial.polyval(near, _REST)
    return np.where(np.abs(u) < 0.5, series, np.expm1(u) - u)
