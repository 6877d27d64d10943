"""Types and checks of the arguments that the formulas share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from flowsim.errors import FlowsimError, unknown_name

Input = ArrayLike | Sequence[float]
#: Arrays for arrays and numbers for numbers, which a type checker is not told: whoever gave an array may index.
if TYPE_CHECKING:
    Values = np.ndarray | Any
    Flags = np.ndarray | Any
else:
    Values = np.ndarray | np.float64
    Flags = np.ndarray | np.bool_
_PARAMETRIZATIONS = ("exp", "softplus", "identity")


def inside(name: str, value: Input, low: float, high: float, cure: str, closed: bool = False) -> np.ndarray:
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


def positive(name: str, value: Input) -> np.ndarray:
    """`value` as float64, every entry positive."""
    return inside(name, value, 0.0, math.inf, f"a positive `{name}`")


def pair_count(pairs: Input) -> np.ndarray:
    """n as float64, at least 2."""
    return inside("pairs", pairs, 2.0, math.inf, "two or more pairs", closed=True)


def cone_height(gamma0: Input) -> np.ndarray:
    """γ0 as float64, between 0 and 1."""
    return inside("gamma0", gamma0, 0.0, 1.0, "the height of the cones, half the initial gap")


def log_cone_height(log_gamma0: Input) -> np.ndarray:
    """ln γ0 as float64, below 0 or −inf."""
    return inside("log_gamma0", log_gamma0, -math.inf, 0.0, "the logarithm of a height below 1", closed=True)


def checked_scale(parametrization: str, scale: float) -> float:
    """s as a float; it must be 1 unless the parametrization is "exp"."""
    if parametrization not in _PARAMETRIZATIONS:
        raise unknown_name("parametrization", parametrization, _PARAMETRIZATIONS)
    if parametrization != "exp" and scale != 1.0:
        raise FlowsimError(
            f"Argument `scale` must be 1 for the parametrization {parametrization!r}, but is {scale:g}. "
            "Use 'exp' to scale the raw parameter."
        )
    return float(positive("scale", scale))


def check_single(**values: Input) -> None:
    """Refuse arrays and NaN among the arguments of a single trajectory."""
    for name, value in values.items():
        if np.ndim(value) or np.isnan(np.asarray(value, np.float64)):
            raise FlowsimError(f"Argument `{name}` must be one number, but is {value}. Use one call per trajectory.")
