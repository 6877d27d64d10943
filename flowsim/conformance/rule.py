"""Checks of rules."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import compiled, difference, finite, keeps_dtype
from flowsim.conformance.suite import Suite, require
from flowsim.model.rules import AbstractRule


def _descents() -> list[Array]:
    """Negative gradients of several shapes, with large and small entries, and zeros."""
    rng = np.random.default_rng(0)
    found = [rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape) for shape in ((), (3,), (5, 4))]
    return [jnp.asarray(x) for x in (*found, np.zeros(2))]


def _velocities(rule: AbstractRule, descents: list[Any]) -> list[Any]:
    return [rule.velocity(descent) for descent in descents]


SUITE = Suite("rule", AbstractRule, lambda rule: _velocities(rule, _descents()), "`velocity`")


@SUITE.check("jit")
def jit(rule: AbstractRule) -> str:
    apart = difference(compiled(_velocities, rule, _descents()), SUITE.use(rule))
    # Compiled programs may use other instructions than single operations.
    require(apart < 1e-12, f"`velocity` must not change when compiled, but differs by {apart:.2g} (relative).")
    return "`velocity` gives the same values when compiled."


@SUITE.check("shape", "jit")
def shape(rule: AbstractRule) -> str:
    for descent, found in zip(_descents(), compiled(_velocities, rule, _descents()), strict=True):
        require(
            np.shape(found) == descent.shape,
            f"`velocity` must have the shape of the gradient, but has {np.shape(found)} for {descent.shape}.",
        )
        require(finite(found), "`velocity` must be finite, also where a gradient is 0, but is not. Avoid 0/0.")
    return "`velocity` is finite and has the shape of the gradient."


@SUITE.check("dtype", "shape")
def dtype(rule: AbstractRule) -> str:
    return keeps_dtype("`velocity`", _velocities, rule, _descents())


@SUITE.check("descent", "shape")
def descends(rule: AbstractRule) -> str:
    for descent, found in zip(_descents(), compiled(_velocities, rule, _descents()), strict=True):
        lowest = float(np.min(np.asarray(descent) * np.asarray(found)))
        require(
            lowest >= 0,
            "`velocity` must have the sign of the descent in every entry, but a product with it is "
            f"{lowest:.3g}. The argument is −∂L/∂θ, not the gradient.",
        )
    return "`velocity` has the sign of the descent in every entry."


@SUITE.check("is_gradient", "shape")
def is_gradient(rule: AbstractRule) -> str:
    apart = difference(compiled(_velocities, rule, _descents()), _descents())
    require(
        apart == 0 or not rule.is_gradient,
        f"`is_gradient` is True, but `velocity` differs from the descent by {apart:.2g}. Set it to False.",
    )
    if rule.is_gradient:
        return "`is_gradient` is True, and `velocity` is the descent itself."
    return "`is_gradient` is False" + (", although `velocity` is the descent; True saves time." * (apart == 0) or ".")
