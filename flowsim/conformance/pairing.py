"""Checks of pairings."""

from typing import Any

import jax
import numpy as np

from flowsim.base.arrays import LARGE
from flowsim.conformance.compare import CLOSE, compiled, difference, finite, shapes
from flowsim.conformance.suite import Suite, fail, require
from flowsim.errors import FlowsimError
from flowsim.model.pairing import AbstractPairing, Targets

#: Few pairs, whose targets are matrices, and many, for which `text_of` and `noise` may give them; the first size that
#: the pairing accepts is used.
_FEW = range(6, LARGE)
_MANY = range(300, 2 * 300)


def _size(pairing: AbstractPairing, sizes: range) -> int:
    """The first number of pairs that the pairing accepts."""
    said = ""
    for n in sizes:
        try:
            jax.eval_shape(lambda key, n=n: pairing.targets(key, n, np.float64), jax.random.key(0))
            return n
        except FlowsimError as error:
            said = str(error)
    fail(f"`targets` must accept some number of pairs from {sizes[0]} to {sizes[-1]}, but raises: {said}")


def _draw(pairing: AbstractPairing, key: Any, method: str, pairs: int, dtype: Any) -> Targets:
    return getattr(pairing, method)(key, pairs, dtype)


def _methods(pairing: AbstractPairing) -> list[str]:
    return ["targets", "draw"] if pairing.fresh else ["targets"]


def _use(pairing: AbstractPairing) -> Any:
    n = _size(pairing, _FEW)
    return [_draw(pairing, jax.random.key(5), method, n, np.float64) for method in _methods(pairing)]


SUITE = Suite("pairing", AbstractPairing, _use, "`targets` (and `draw`)")


@SUITE.check("jit")
def jit(pairing: AbstractPairing) -> str:
    n = _size(pairing, _FEW)
    for method, plain in zip(_methods(pairing), _use(pairing), strict=True):
        apart = difference(compiled(_draw, pairing, jax.random.key(5), method, n, np.float64), plain)
        require(apart < CLOSE, f"`{method}` must not change when compiled, but differs by {apart:.2g} (relative).")
    return "`targets` gives the same values when compiled."


@SUITE.check("sums", "jit")
def sums(pairing: AbstractPairing) -> str:
    note = ""
    for sizes in (_FEW, _MANY):
        n = _size(pairing, sizes)
        for method in _methods(pairing):
            targets = compiled(_draw, pairing, jax.random.key(5), method, n, np.float64)
            require(
                (targets.rows is None) == (targets.columns is None),
                f"`{method}` must give both `rows` and `columns`, or none of them: a missing one is the identity.",
            )
            if targets.rows is not None and n >= LARGE:
                note = f" For {n} pairs they are n×n matrices."
            for axis, matrix in enumerate(targets.matrices(n, np.float64)):
                if matrix is not None:
                    _distributions(f"`{method}`", np.asarray(matrix), n, axis)
    return f"`targets` sum to 1, for few and many pairs.{note}"


def _distributions(method: str, matrix: np.ndarray, pairs: int, axis: int) -> None:
    which = ("row of `rows`", "column of `columns`")[axis]
    require(matrix.shape == (pairs, pairs), f"{method} must give (n, n) for {pairs} pairs, but gives {matrix.shape}.")
    require(
        np.isfinite(matrix).all(), f"{method} must give finite numbers, but for {pairs} pairs a {which} has others."
    )
    apart = difference(matrix.sum(axis=1 - axis), np.ones(pairs))
    require(
        apart < CLOSE and (matrix >= -CLOSE).all(),
        f"{method} must give distributions, but with {pairs} pairs a {which} has a negative entry, or a sum that "
        f"differs from 1 by {apart:.2g}. Divide by the sum.",
    )


@SUITE.check("dtype", "jit")
def dtype(pairing: AbstractPairing) -> str:
    n = _size(pairing, _FEW)
    for method in _methods(pairing):
        for wanted in (np.float32, np.float64):
            found = compiled(_draw, pairing, jax.random.key(5), method, n, wanted, dtype=wanted)
            types = {leaf.dtype.name for leaf in (found.rows, found.columns, found.noise) if leaf is not None}
            require(
                types <= {np.dtype(wanted).name},
                f"`{method}` must give targets of the type `dtype`, here {np.dtype(wanted).name}, but gives "
                f"{', '.join(types)}. Use `dtype`.",
            )
    return "`targets` has the type `dtype`."


@SUITE.check("identity", "jit")
def identity(pairing: AbstractPairing) -> str:
    n = _size(pairing, _FEW)
    drawn = [compiled(_draw, pairing, jax.random.key(i), "targets", n, np.float64) for i in range(3)]
    matched = all(targets.matched for targets in drawn)
    require(
        matched or not pairing.identity,
        "`identity` is True, but `targets` are not always the identity. Set it to False.",
    )
    return f"`identity` is {pairing.identity}" + (
        ", although `targets` are the identity; True saves the draw." if matched and not pairing.identity else "."
    )


@SUITE.check("redraw")
def redraw(pairing: AbstractPairing) -> str:
    return redraw_is_time(pairing.redraw)


def redraw_is_time(interval: Any) -> str:
    """Require that an interval is None or a positive number."""
    if interval is None:
        return "`redraw` is None: the first draw is kept."
    require(
        shapes(interval) == [()] and finite(interval) and float(interval) > 0,
        f"`redraw` must be a positive flow time or None, but is {interval!r}.",
    )
    return f"`redraw` is {float(interval):g}."
