"""A choice, made once for a whole batch, between a fast branch that needs a condition and one that always works."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def exponential_limit(dtype: Any) -> float:
    """Largest |logit| for which sums and ratios of exponentials are normal floating-point numbers."""
    return 0.45 * float(np.log(jnp.finfo(dtype).max))


def fast_if(condition: Any, fast: Callable[..., Any], always: Callable[..., Any], *operands: Any) -> Any:
    """`fast(*operands)` if the condition holds, else `always(*operands)`; operands are trees of floating-point arrays.

    Under `vmap`, where `jax.lax.cond` would compute both branches for each member, all members share one choice:
    `fast` if the condition holds for all of them. Forward-mode derivatives and `jax.linearize` work, reverse mode does
    not.
    """

    def choose(condition: Any, *operands: Any) -> Any:
        return jax.lax.cond(condition, fast, always, *operands)

    together = jax.custom_batching.custom_vmap(choose)

    @together.def_vmap
    def _(size: int, batched: Any, condition: Any, *operands: Any) -> Any:
        if not any(jax.tree.leaves(batched)):
            # Only tangents are batched, as in `jax.jacfwd`.
            found = choose(condition, *operands)
            return found, jax.tree.map(lambda _: False, found)
        axes = jax.tree.map(lambda is_batched: 0 if is_batched else None, tuple(batched[1:]))
        each = [jax.vmap(way, in_axes=axes, axis_size=size) for way in (fast, always)]
        found = jax.lax.cond(jnp.all(condition), *each, *operands)
        return found, jax.tree.map(lambda _: True, found)

    # An explicit derivative, since `jax.linearize` cannot see through a `custom_vmap`.
    call = jax.custom_jvp(together)

    @call.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        ways = [lambda at, along, way=way: jax.jvp(way, at, along)[1] for way in (fast, always)]
        return call(*primals), fast_if(primals[0], *ways, tuple(primals[1:]), tuple(tangents[1:]))

    return call(condition, *operands)
