"""The decorator that turns plain JAX code into a metric, and the types of arguments and results of metrics."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from flowsim.base.checks import check_flag
from flowsim.errors import FlowsimError
from flowsim.observables.checks import check_count, check_shapes, check_values, moderate_rows

Rows: TypeAlias = Float[Array | np.ndarray, "n d"]
MoreRows: TypeAlias = Float[Array | np.ndarray, "m d"]
Square: TypeAlias = Float[Array | np.ndarray, "n n"]
Number: TypeAlias = Float[Array, ""] | float
Positive: TypeAlias = Float[Array | np.ndarray, ""] | float

P = ParamSpec("P")
R = TypeVar("R")
_ROWS = ("image", "text", "temperature")
_MATRICES = ("similarity", "logits")


class PerModality(NamedTuple):
    """One number for each modality.

    Attributes:
        image: That of the images.
        text: That of the texts.
    """

    image: Number
    text: Number


def metric(*, pairs: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make plain JAX code callable both inside a trace and, in float64, outside.

    Parameters named `image`, `text`, `temperature`, `similarity` and `logits` are arrays; all others are options, and
    a program is compiled for each of their values: whole numbers of at least 1, and True or False for `normalise`.

    A metric with a parameter `similarity` or `logits` takes either that matrix or rows. With `normalise=False` rows
    are not scaled.

    Args:
        pairs: Whether row i of `image` and row i of `text` belong together.

    Returns:
        A decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        options = tuple(name for name in signature.parameters if name not in (*_ROWS, *_MATRICES))
        plain: Callable[..., Any] = function
        compiled = jax.jit(plain, static_argnames=options)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            arrays = {name: value for name, value in given.items() if name not in options}
            chosen = {name: value for name, value in given.items() if name in options}
            for name, value in chosen.items():
                (check_flag if name == "normalise" else check_count)(name, value)
            arrays = _rows_or_matrix(function.__name__, signature, arrays)
            if any(isinstance(value, Tracer) for value in arrays.values()):
                check_shapes(arrays, pairs)
                with jax.numpy_dtype_promotion("standard"):
                    dtype = jnp.result_type(jnp.float32, *(v for v in arrays.values() if np.ndim(v)))
                return plain(**{name: jnp.asarray(v, dtype) for name, v in arrays.items()}, **chosen)
            arrays = {name: check_values(name, value) for name, value in arrays.items()}
            check_shapes(arrays, pairs)
            if chosen.get("normalise", True):
                arrays = moderate_rows(arrays)
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                return jax.tree.map(to_host, compiled(**arrays, **chosen))

        return wrapper

    return decorate


def _rows_or_matrix(metric: str, signature: inspect.Signature, arrays: dict[str, Any]) -> dict[str, Any]:
    """The arrays that were given, for metrics that take either rows or a matrix."""
    matrix = next((name for name in _MATRICES if name in signature.parameters), None)
    if matrix is None:
        return arrays
    given = {name: value for name, value in arrays.items() if value is not None}
    rows = [name for name in _ROWS if name in signature.parameters]
    listed = ", ".join(f"`{name}`" for name in rows[:-1]) + f" and `{rows[-1]}`"
    if not given:
        raise FlowsimError(f"{metric} needs {listed}, or `{matrix}`. Pass one or the other.")
    if matrix in given:
        if len(given) > 1:
            raise FlowsimError(f"{metric} takes either {listed}, or `{matrix}`. Pass one or the other.")
        return given
    for name in rows:
        if name not in arrays:
            raise FlowsimError(f"{metric} needs {listed}, but `{name}` is missing. Pass it, or `{matrix}`.")
    return {name: arrays[name] for name in rows}


def to_host(leaf: Any) -> Any:
    """A NumPy array, or a Python number for an array without axes."""
    array = np.asarray(leaf)
    return array if array.ndim else array.item()
