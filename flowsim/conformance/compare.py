"""Comparisons of numbers: equal to the last bit, close, of the right type; and derivatives by finite differences."""

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowsim.base.arrays import to_device
from flowsim.conformance.suite import require

#: Largest relative difference between two computations of the same number in double precision.
CLOSE = 1e-9
#: The same for finite differences of a derivative.
NEAR = 1e-6


def same(first: Any, second: Any) -> bool:
    """Whether two trees have the same arrays, to the last bit."""
    a, b = jax.tree.leaves(first), jax.tree.leaves(second)
    return len(a) == len(b) and all(_bits(x) == _bits(y) for x, y in zip(a, b, strict=True))


def _bits(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array.dtype, array.shape, array.tobytes()


def difference(found: Any, wanted: Any) -> float:
    """Largest difference between two trees, relative to the largest wanted number.

    Infinite if the shapes differ, or if an entry is infinite or NaN in only one of them.
    """
    a, b = (_arrays(tree) for tree in (found, wanted))
    if [x.shape for x in a] != [y.shape for y in b]:
        return np.inf
    if not any(y.size for y in b):
        return 0.0
    apart = max(_apart(x, y) for x, y in zip(a, b, strict=True))
    scale = max(np.abs(y[np.isfinite(y)]).max(initial=0.0) for y in b)
    if not np.isfinite(apart):
        return np.inf
    return apart / float(scale) if scale > 0 else apart


def _apart(found: np.ndarray, wanted: np.ndarray) -> float:
    alike = (found == wanted) | (np.isnan(found) & np.isnan(wanted))
    return float(np.where(alike, 0.0, np.abs(found - wanted)).max(initial=0.0))


def _arrays(tree: Any) -> list[np.ndarray]:
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]


def finite(tree: Any) -> bool:
    """Whether all numbers of a tree are finite."""
    return all(np.isfinite(array).all() for array in _arrays(tree))


def shapes(tree: Any) -> list[tuple[int, ...]]:
    """The shapes of all arrays of a tree."""
    return [np.shape(leaf) for leaf in jax.tree.leaves(tree)]


def slope_error(function: Callable[[float], Any], x: float, claimed: float) -> float:
    """Relative difference between a derivative and finite differences, with the best of several step sizes."""
    best = np.inf
    for step in np.maximum(abs(x), 1e-3) * np.logspace(-5, -1, 5):
        f = [float(function(x + k * step)) for k in (-2, -1, 1, 2)]
        slope = (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * step)
        error = abs(slope - claimed) / max(abs(slope), abs(claimed), 1e-12)
        best = min(best, error) if np.isfinite(error) else best
    return float(best)


def compiled(function: Callable[..., Any], part: Any, *arguments: Any, dtype: Any = np.float64) -> Any:
    """The result of `function(part, *arguments)` in a compiled program, as in a run.

    A function of a module is compiled once for all checks that call it with arguments of the same form.
    """
    return eqx.filter_jit(function)(*to_device((part, *arguments), dtype))


def keeps_dtype(method: str, function: Callable[..., Any], part: Any, *arguments: Any) -> str:
    """Require that compiled `function(part, *arguments)` keeps the type of its arguments, float32 and float64."""
    for dtype in (np.float32, np.float64):
        found = _dtypes(jax.tree.leaves(compiled(function, part, *arguments, dtype=dtype)))
        wrong = ", ".join(sorted(found - {np.dtype(dtype).name}))
        require(
            not wrong,
            f"{method} must keep {np.dtype(dtype).name} when compiled, but the result is {wrong}. NumPy constants "
            "promote: use Python numbers, or fields with converter=fs.extend.number.",
        )
    return f"Single and double precision are kept by {method} when compiled."


def _dtypes(leaves: Iterable[Any]) -> set[str]:
    """Names of the types; Python numbers have none, since they adopt the type of other operands."""
    return {leaf.dtype.name for leaf in leaves if hasattr(leaf, "dtype")}
