"""A step size controller that ends a solve where a quantity that must stay positive reaches zero, also inside a step.

diffrax checks events only at the ends of steps, and explicit methods of high order take long steps, within which a
quantity may become negative and positive again. `StopAtCrossings` takes the cubic through values and slopes at both
ends of every step. If the cubic comes near zero inside, the step is repeated so that it ends at the minimum; if the
value at the end is negative, so that it ends at the zero. The solve thus ends with a real step at the zero, not on an
interpolant, and needs no root finder.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

#: A zero counts as found when its bracket has this width, in machine epsilons relative to 1 + |t|.
_WIDTH = 64


class StopAtCrossings(diffrax.AbstractAdaptiveStepSizeController):
    """End a solve where one of several quantities falls to zero, with `RESULTS.event_occurred`.

    Args:
        controller: The adaptive controller that chooses the steps otherwise.
        values: `values(t, y, args)` of shape (k,), differentiable in forward mode. An entry that starts at zero and
            rises does not count as a crossing.
        field: `field(t, y, args)` = dy/dt, for the slopes.
    """

    controller: Any
    values: Callable[[Any, Any, Any], Float[Array, " k"]] = eqx.field(static=True)
    field: Callable[[Any, Any, Any], Any] = eqx.field(static=True)

    @property
    def rtol(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.rtol

    @property
    def atol(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.controller.atol

    @property
    def norm(self) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.controller.norm

    def wrap(self, direction: Any) -> "StopAtCrossings":
        return StopAtCrossings(self.controller.wrap(direction), self.values, self.field)  # pyright: ignore

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, dt0: Any, args: Any, func: Any, error_order: Any
    ) -> tuple[Any, Any]:
        first, inner = self.controller.init(terms, t0, t1, y0, dt0, args, func, error_order)
        return first, (inner, self._look(jnp.asarray(t0), y0, args))

    def adapt_step_size(
        self,
        t0: Any,
        t1: Any,
        y0: Any,
        y1_candidate: Any,
        args: Any,
        y_error: Any,
        error_order: Any,
        controller_state: Any,
    ) -> tuple[Any, Any, Any, Any, Any, diffrax.RESULTS]:
        inner, (value0, slope0) = controller_state
        keep, next_t0, next_t1, made_jump, moved, result = self.controller.adapt_step_size(
            t0, t1, y0, y1_candidate, args, y_error, error_order, inner
        )
        h = t1 - t0
        width = _WIDTH * jnp.finfo(jnp.result_type(t1)).eps * (1 + jnp.abs(t1))
        value1, slope1 = self._look(t1, y1_candidate, args)
        cubic = (value0, h * slope0, value1, h * slope1)
        crossed = (value1 <= 0) & ((value0 > 0) | (slope1 < 0))
        on_zero = crossed & ((h <= width) | ((slope1 < 0) & (value1 >= slope1 * width)))
        # Where rounding leaves a falling value as it is, a few such steps above zero are zero.
        stuck = (value1 > 0) & (value1 == value0) & (slope0 < 0) & (slope1 < 0) & (value1 + 8 * h * slope1 <= 0)
        lowest, at_lowest = _minimum(*cubic)
        # The cubic may be off by half of the smaller end value.
        dips = (value1 > 0) & (lowest < 0.5 * jnp.minimum(value0, value1)) & (h > width)
        where = jnp.min(jnp.where(crossed, _zero(*cubic), jnp.where(dips, at_lowest, 1.0)))
        again = keep & jnp.any((crossed & ~on_zero) | dips)
        # A little beyond the zero, so that the next step ends past it.
        shorter = jnp.clip(where * h + width / 4, width / 2, 0.999 * h)
        result = diffrax.RESULTS.where(keep & ~again & jnp.any(crossed | stuck), diffrax.RESULTS.event_occurred, result)
        keep = keep & ~again
        return (
            keep,
            jnp.where(again, t0, next_t0),
            jnp.where(again, t0 + shorter, next_t1),
            made_jump,
            (_choose(again, inner, moved), _choose(keep, (value1, slope1), (value0, slope0))),
            result,
        )

    def _look(self, t: Any, y: Any, args: Any) -> tuple[Float[Array, " k"], Float[Array, " k"]]:
        """Values, and their slopes along the solution."""
        velocity = self.field(t, y, args)
        return jax.jvp(lambda t, y: self.values(t, y, args), (t, y), (jnp.ones_like(t), velocity))


def _choose(condition: Any, yes: Any, no: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def _coefficients(v0: Array, m0: Array, v1: Array, m1: Array) -> tuple[Array, Array]:
    """a and b of the cubic v0 + m0 x + b x² + a x³ with values v and slopes m at x = 0 and 1."""
    return 2 * (v0 - v1) + m0 + m1, 3 * (v1 - v0) - 2 * m0 - m1


def _minimum(v0: Array, m0: Array, v1: Array, m1: Array) -> tuple[Array, Array]:
    """Value and place of the minimum of the cubic inside (0, 1); infinite if there is none."""
    a, b = _coefficients(v0, m0, v1, m1)
    squared = b**2 - 3 * a * m0
    root = jnp.sqrt(jnp.maximum(squared, 0))
    nonzero = lambda x: jnp.where(x == 0, 1, x)  # noqa: E731
    x = jnp.where(b > 0, -m0 / nonzero(b + root), (root - b) / nonzero(3 * a))
    inside = (squared > 0) & (x > 0) & (x < 1)
    return jnp.where(inside, v0 + x * (m0 + x * (b + x * a)), jnp.inf), jnp.where(inside, x, jnp.inf)


def _zero(v0: Array, m0: Array, v1: Array, m1: Array) -> Array:
    """An approximate zero of the cubic in (0, 1): secant, then Newton's method. The next step refines it."""
    a, b = _coefficients(v0, m0, v1, m1)
    x = jnp.clip(v0 / jnp.where(v0 == v1, 1, v0 - v1), 0.01, 1)
    for _ in range(4):
        slope = m0 + x * (2 * b + x * 3 * a)
        x = jnp.clip(x - (v0 + x * (m0 + x * (b + x * a))) / jnp.where(slope < 0, slope, jnp.inf), 0, 1)
    return x
