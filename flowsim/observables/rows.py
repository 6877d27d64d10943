"""What several metrics share: unit rows, similarities in blocks, means, and when two numbers count as equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowsim.observables.metric import MoreRows

EPS64 = float(np.finfo(np.float64).eps)
#: Largest number of similarities in memory (32 MiB in float64).
BLOCK = 2**22
#: Cosines within this many machine epsilons count as equal; real differences are far larger.
TIES = 32


def unit(rows: MoreRows) -> MoreRows:
    """Rows (m, d) scaled to unit length."""
    scaled = rows / jnp.max(jnp.abs(rows), axis=1, keepdims=True)  # no overflow in the squares
    return scaled / jnp.linalg.norm(scaled, axis=1, keepdims=True)


def by_row(function: Callable[..., Any], queries: Any, others: Any) -> Any:
    """`function(i, similarities of query i to all others)` for every i, in blocks that fit into memory."""

    def one(item: Any) -> Any:
        i, query = item
        return function(i, jnp.matmul(others, query, precision=jax.lax.Precision.HIGHEST))

    n, items = queries.shape[0], (jnp.arange(queries.shape[0]), queries)
    block = max(1, BLOCK // others.shape[0])
    return jax.vmap(one)(items) if n <= block else jax.lax.map(one, items, batch_size=block)


def centre(rows: MoreRows) -> Float[Array, " d"]:
    """The mean of the unit rows."""
    return jnp.mean(unit(rows), axis=0)


def fraction(hits: Any, like: Any) -> Float[Array, ""]:
    """Fraction of true entries. The size is counted since XLA turns n/n into n·(1/n), which is not 1 for n = 49."""
    yes, no = jnp.sum(hits, dtype=like.dtype), jnp.sum(~hits, dtype=like.dtype)
    return yes / (yes + no)


def eps(array: Any) -> float:
    """Machine epsilon of an array's dtype."""
    return float(jnp.finfo(array.dtype).eps)
