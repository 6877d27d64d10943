"""Checks of swaps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import CLOSE, compiled, difference, keeps_dtype, same
from flowsim.conformance.pairing import redraw_is_time
from flowsim.conformance.suite import Suite, require
from flowsim.model.initial import Uniform
from flowsim.model.swaps import AbstractSwap

_COUNT, _PAIRS, _DIM = 3, 6, 4


def _draw(swap: AbstractSwap, key: Any, dtype: Any) -> Array | None:
    return swap.draw(key, _COUNT, _PAIRS, _DIM, dtype)


def _apply(swap: AbstractSwap, weights: Any, image: Any, text: Any) -> tuple[Any, Any]:
    return swap.apply(weights, image, text)


def _weights(swap: AbstractSwap, key: int = 0, dtype: Any = np.float64) -> Array | None:
    return compiled(_draw, swap, jax.random.key(key), dtype, dtype=dtype)


def _rows() -> tuple[Array, Array]:
    image, text = Uniform(_PAIRS, _DIM).draw(3).rows()
    return jnp.asarray(image), jnp.asarray(text)


def _use(swap: AbstractSwap) -> Any:
    return _draw(swap, jax.random.key(0), np.float64), swap.apply(jnp.full((_PAIRS, _DIM), 0.3), *_rows())


SUITE = Suite("swap", AbstractSwap, _use, "`draw` and `apply`")


@SUITE.check("jit")
def jit(swap: AbstractSwap) -> str:
    found = _weights(swap), compiled(_apply, swap, jnp.full((_PAIRS, _DIM), 0.3), *_rows())
    apart = difference(found, _use(swap))
    require(
        apart < CLOSE,
        f"`draw` and `apply` must not change when compiled, but differ by {apart:.2g} (relative).",
    )
    return "`draw` and `apply` give the same values when compiled."


@SUITE.check("weights", "jit")
def weights(swap: AbstractSwap) -> str:
    found = _weights(swap)
    require(
        (found is not None) == swap.active,
        f"`draw` must give weights if `active` is True, and None otherwise, but `active` is {swap.active} and "
        f"`draw` gives {'None' if found is None else 'weights'}.",
    )
    if found is None:
        return "`active` is False, and `draw` gives None."
    shapes = ((_COUNT, _PAIRS, _DIM), (_COUNT, _PAIRS, 1))
    require(
        found.shape in shapes,
        f"`draw` must give weights of shape (count, pairs, dim) or (count, pairs, 1), but for {shapes[0]} gives "
        f"{found.shape}.",
    )
    for dtype in (np.float32, np.float64):
        drawn = _weights(swap, 0, dtype)
        require(
            drawn is not None and drawn.dtype == dtype,
            f"`draw` must give weights of the type `dtype`, here {np.dtype(dtype).name}, but gives "
            f"{getattr(drawn, 'dtype', None)}. Use `dtype`.",
        )
    return "`draw` gives weights of the right shape and type" + (
        ", the same for every key." if same(found, _weights(swap, 1)) else "."
    )


@SUITE.check("splits_rows", "weights")
def splits_rows(swap: AbstractSwap) -> str:
    found = _weights(swap)
    if found is None:
        return "`splits_rows` does not matter without weights."
    varies = bool((found != found[..., :1]).any())
    require(
        swap.splits_rows or not varies,
        "`splits_rows` is False, but the weights of `draw` vary within a row. Set it to True.",
    )
    return f"`splits_rows` is {swap.splits_rows}" + (
        "." if varies or not swap.splits_rows else ", although the weights of a row are equal."
    )


@SUITE.check("one", "jit")
def one(swap: AbstractSwap) -> str:
    for shape in ((_PAIRS, _DIM), (_PAIRS, 1)):
        apart = difference(compiled(_apply, swap, jnp.ones(shape), *_rows()), _rows())
        require(apart < CLOSE, f"`apply` must change nothing where w = 1, but changes rows by {apart:.2g}.")
    return "`apply` changes nothing where w = 1."


@SUITE.check("twice", "weights", "one")
def twice(swap: AbstractSwap) -> str | None:
    found = _weights(swap)
    if found is None or not bool(((found == 0) | (found == 1)).all()):
        return None
    once = compiled(_apply, swap, found[0], *_rows())
    apart = difference(compiled(_apply, swap, found[0], *once), _rows())
    require(apart < CLOSE, f"`apply` twice with weights 0 and 1 must give the rows back, but is off by {apart:.2g}.")
    return "`apply` twice with the same weights 0 and 1 gives the rows back."


@SUITE.check("arrays", "jit")
def arrays(swap: AbstractSwap) -> str:
    given = np.full((_PAIRS, _DIM), 0.3), *(np.asarray(rows) for rows in _rows())
    found = swap.apply(*given)
    require(
        not any(isinstance(rows, jax.Array) for rows in found),
        "`apply` must give NumPy arrays for NumPy arrays, and torch tensors for torch tensors in training, but gives "
        "JAX arrays. Use only +, − and *.",
    )
    apart = difference(compiled(_apply, swap, *given), found)
    require(apart < CLOSE, f"`apply` must give the same for NumPy and JAX, but differs by {apart:.2g} (relative).")
    return "`apply` gives the same for NumPy and JAX arrays, so it also takes torch tensors."


@SUITE.check("dtype", "jit")
def dtype(swap: AbstractSwap) -> str:
    return keeps_dtype("`apply`", _apply, swap, jnp.full((_PAIRS, _DIM), 0.3), *_rows())


@SUITE.check("fraction")
def fraction(swap: AbstractSwap) -> str:
    p = np.asarray(swap.fraction)
    require(p.ndim == 0 and 0 <= p <= 1, f"`fraction` must lie between 0 and 1, but is {swap.fraction}.")
    require(not swap.active or swap.masks >= 1, f"`masks` must be at least 1 if `active` is True, but is {swap.masks}.")
    return f"`fraction` is {float(p):g}, `masks` {swap.masks}."


@SUITE.check("redraw")
def redraw(swap: AbstractSwap) -> str:
    return redraw_is_time(swap.redraw)
