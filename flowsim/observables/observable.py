"""Named numbers of embeddings or of a flow, and how they are computed, on the host or inside a compiled program."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from flowsim.base.checks import check
from flowsim.observables import blocks
from flowsim.observables.checks import moderate_rows
from flowsim.observables.rows import unit


@dataclass(frozen=True)
class Observable:
    """A named number. `register` makes one from a function.

    Args:
        name: Name in reports, results and files.
        function: Takes (image, text), and `temperature` if needed; one of "state" takes a `Moment`.
        symbol: LaTeX symbol for axes.
        description: Formula on unit rows, range, better direction.
        needs_pairs: Whether row i of both modalities must belong together.
        needs_temperature: Whether `function` takes a temperature.
        traceable: Whether `function` runs inside `jax.jit`.
        undefined: When the value is NaN.
        of: "rows" for a number of a pair of embedding sets, "state" for one of the state of a flow, which only a run
            computes, and "step" for one of a step of training, which only a training record has.
        normalise: Whether rows are scaled to unit length before `function` sees them.
        label: Label of an axis. Default: name and symbol.
    """

    name: str
    function: Callable[..., Any]
    symbol: str
    description: str
    needs_pairs: bool = True
    needs_temperature: bool = False
    traceable: bool = True
    undefined: str = ""
    of: Literal["rows", "state", "step"] = "rows"
    normalise: bool = False
    label: str = ""

    def __post_init__(self) -> None:
        words = self.name.replace("_", " ")
        label = self.label or (f"{words} ${self.symbol}$" if self.symbol else words)
        object.__setattr__(self, "label", label)

    def __call__(self, image: Any, text: Any, temperature: Any = None) -> Any:
        """The value for a pair of embedding sets.

        Args:
            image: Image rows, shape (n, d).
            text: Text rows, shape (m, d).
            temperature: τ, if it is needed.

        Returns:
            One number.

        Raises:
            FlowsimError: If the function does not return one number, or is not one of rows.
        """
        check(
            self.of == "rows",
            f"The observable {self.name!r} is not a function of rows. Record it in a run: "
            f"fs.simulate(..., observables=[{self.name!r}])."
            if self.of == "state"
            else f"The observable {self.name!r} belongs to a training. Read it from its record: fs.load(...).",
        )
        if self.normalise:
            image, text = (unit(x) if isinstance(x, Tracer) else blocks.Rows(x)[:] for x in (image, text))
        value = (
            self.function(image, text, temperature=temperature)
            if self.needs_temperature
            else self.function(image, text)
        )
        return self.one_number(value)

    def one_number(self, value: Any) -> Any:
        """The value itself; raises `FlowsimError` if it is not one number."""
        check(
            np.shape(value) == (),
            f"The observable {self.name!r} must be one number, but has shape {np.shape(value)}. Return e.g. its mean.",
        )
        return value


@functools.partial(jax.jit, static_argnums=0)
def evaluate(observables: tuple[Observable, ...], image: Any, text: Any, temperature: Any = None) -> dict[str, Any]:
    """Many traceable observables in one compilation."""
    return {o.name: o(image, text, temperature) for o in observables}


def measure(observable: Observable, image: np.ndarray, text: np.ndarray, temperature: np.ndarray | None) -> float:
    """The value of one observable of rows of any real dtype, in float64."""
    rows = {"image": image.astype(np.float64), "text": text.astype(np.float64)}
    if observable.normalise:
        rows = moderate_rows(rows)
    if not observable.traceable:
        return float(observable(**rows, temperature=None if temperature is None else float(temperature)))
    given = rows if temperature is None else rows | {"temperature": temperature}
    # On its own: compiled together with others it would change their last digits.
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        return float(np.asarray(evaluate((observable,), **given)[observable.name]))


def inside_trace(observable: Observable, image: Any, text: Any, temperature: Any) -> Any:
    """The value of one observable of traced rows; functions that cannot be traced are called on the host."""
    dtype = temperature.dtype
    if observable.traceable:
        return jnp.asarray(observable(image, text, temperature), dtype)

    # The callback's thread is not in 64-bit mode and would round, so it exchanges bit patterns.
    def on_host(*bits: Any) -> np.ndarray:
        x, y, tau = (_from_bits(np.asarray(b), dtype).astype(np.float64) for b in bits)
        known = np.isfinite(x).all() and np.isfinite(y).all()
        return _to_bits(np.asarray(observable(x, y, float(tau)) if known else np.nan, dtype))

    given = [jax.lax.bitcast_convert_type(value, jnp.uint32) for value in (image, text, temperature)]
    there = jax.eval_shape(lambda value: jax.lax.bitcast_convert_type(value, jnp.uint32), temperature)
    found = jax.pure_callback(on_host, there, *given, vmap_method="sequential")
    return jax.lax.bitcast_convert_type(found, dtype)


def _to_bits(value: np.ndarray) -> np.ndarray:
    """A number as `jax.lax.bitcast_convert_type` converts it to uint32; 64 bits give an array of two."""
    words = value.reshape(1).view(np.uint32)
    return words if value.dtype.itemsize == 8 else words[0]


def _from_bits(bits: np.ndarray, dtype: Any) -> np.ndarray:
    """The inverse of `_to_bits`, for arrays."""
    shape = bits.shape[:-1] if np.dtype(dtype).itemsize == 8 else bits.shape
    return np.ascontiguousarray(bits).view(dtype).reshape(shape)
