"""Checks of observables: entries of the table, or functions of image and text rows."""

import contextlib
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.conformance.compare import CLOSE, difference
from flowsim.conformance.suite import Suite, require
from flowsim.model.initial import Uniform
from flowsim.observables.observable import Observable
from flowsim.observables.table import REGISTRY

_TAU = 0.07


def _rows() -> tuple[np.ndarray, np.ndarray]:
    return Uniform(16, 8).draw(3).rows()


def _call(observable: Observable, image: Any, text: Any) -> Any:
    """The value for unit rows, which need no scaling."""
    return observable.function(image, text, **({"temperature": _TAU} if observable.needs_temperature else {}))


SUITE = Suite("observable", Observable, lambda observable: _call(observable, *_rows()), "Its function")


@SUITE.check("number")
def number(observable: Observable) -> str:
    found = np.asarray(_call(observable, *_rows()))
    require(
        found.ndim == 0 and found.dtype.kind in "fiu" and np.isfinite(found),
        "The function must give one finite number for random rows, but gives "
        + (f"{found}." if found.ndim == 0 else f"an array of shape {found.shape}. Return e.g. its mean."),
    )
    return f"Random rows give {float(found):.6g}."


@SUITE.check("arrays", "number")
def arrays(observable: Observable) -> str:
    apart = difference(_call(observable, *map(jnp.asarray, _rows())), _call(observable, *_rows()))
    require(apart < CLOSE, f"JAX arrays must give the same as NumPy arrays, but differ by {apart:.2g} (relative).")
    return "NumPy and JAX arrays give the same."


@SUITE.check("jit", "number")
def jit(observable: Observable) -> str:
    if not observable.traceable:
        return "`traceable` is False: the function is called on the host."
    found = jax.jit(lambda x, y: _call(observable, x, y))(*_rows())
    apart = difference(found, _call(observable, *_rows()))
    require(apart < CLOSE, f"`traceable` is True, but the compiled function differs by {apart:.2g} (relative).")
    return "The compiled function gives the same."


@SUITE.check("rotation", "number")
def rotation(observable: Observable) -> str:
    image, text = _rows()
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((image.shape[1],) * 2))[0]
    return _told(observable, "a rotation of both modalities", image @ turn, text @ turn)


@SUITE.check("permutation", "number")
def permutation(observable: Observable) -> str:
    order = np.random.default_rng(1).permutation(16)
    return _told(observable, "another order of the pairs", *(rows[order] for rows in _rows()))


def _told(observable: Observable, change: str, image: Any, text: Any) -> str:
    apart = difference(_call(observable, image, text), _call(observable, *_rows()))
    return f"Under {change} it {'stays the same' if apart < CLOSE else f'changes by {apart:.2g} (relative)'}."


def from_function(function: Any) -> Observable:
    """A function as an observable: as registered; else as `fs.observables.register` would without options."""
    known = next((entry for entry in REGISTRY.values() if entry.function is function), None)
    if known is not None:
        return known
    name, more = getattr(function, "__name__", type(function).__name__), False
    with contextlib.suppress(ValueError, TypeError):  # of some built-in functions
        more = "temperature" in inspect.signature(function).parameters
    return Observable(name, function, "", name, needs_temperature=more, normalise=True)
