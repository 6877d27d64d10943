"""Checks of losses of the rows themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import CLOSE, compiled, difference, finite, keeps_dtype
from flowsim.conformance.loss import described_and_written, targets_of
from flowsim.conformance.suite import Suite, require
from flowsim.model.initial import Uniform
from flowsim.model.losses import AbstractRowLoss
from flowsim.model.pairing import Targets


def _rows(pairs: int = 6) -> tuple[Array, Array, Array]:
    """Random unit rows, and β."""
    image, text = Uniform(pairs, 4).draw(3).rows()
    return jnp.asarray(image), jnp.asarray(text), jnp.asarray(5.0)


def _value(loss: AbstractRowLoss, image: Any, text: Any, beta: Any, targets: Targets) -> Any:
    return loss.value(image, text, beta, targets)


def _with_gradients(loss: AbstractRowLoss, image: Any, text: Any, beta: Any, targets: Targets) -> Any:
    return jax.value_and_grad(loss.value, argnums=(0, 1, 2))(image, text, beta, targets)


SUITE = Suite("row loss", AbstractRowLoss, lambda loss: loss.value(*_rows(), Targets()), "`value`")


@SUITE.check("jit")
def jit(loss: AbstractRowLoss) -> str:
    apart = difference(compiled(_value, loss, *_rows(), Targets()), SUITE.use(loss))
    require(apart < CLOSE, f"`value` must not change when compiled, but differs by {apart:.2g} (relative).")
    return "`value` gives the same values when compiled."


@SUITE.check("shape", "jit")
def shape(loss: AbstractRowLoss) -> str:
    for n in (2, 6):
        found = compiled(_value, loss, *_rows(n), Targets())
        shape = np.shape(found)
        require(shape == (), f"`value` must be one number, but has shape {shape} with {n} pairs. Sum over pairs.")
        require(finite(found), f"`value` must be finite, but is {float(found)} with {n} pairs.")
    return "`value` is one finite number."


@SUITE.check("gradient", "shape")
def gradient(loss: AbstractRowLoss) -> str:
    for name, targets in targets_of(6):
        require(
            finite(compiled(_with_gradients, loss, *_rows(), targets)),
            f"jax.grad of `value` must be finite, but is not with the targets of {name}. Roots and norms of 0, and "
            "jnp.where around a NaN, may be the cause: keep the argument away from 0.",
        )
    return "`value` has finite gradients with respect to images, texts and β."


@SUITE.check("permutation", "shape")
def permutation(loss: AbstractRowLoss) -> str:
    image, text, beta = _rows()
    order = np.array([3, 5, 0, 1, 4, 2])
    plain = compiled(_value, loss, image, text, beta, Targets())
    apart = difference(compiled(_value, loss, image[order], text[order], beta, Targets()), plain)
    require(
        apart < CLOSE,
        f"`value` must not depend on the order of the pairs, but changes by {apart:.2g} (relative) with it.",
    )
    return "`value` does not depend on the order of the pairs."


@SUITE.check("targets", "shape")
def targets(loss: AbstractRowLoss) -> str:
    for name, described, written in described_and_written(6):
        found, wanted = (compiled(_value, loss, *_rows(), t) for t in (described, written))
        apart = difference(found, wanted)
        require(
            apart < CLOSE,
            f"`value` must accept targets given by `{name}`, as for many pairs, but differs by {apart:.2g} from its "
            "value for the same targets as matrices. Use targets.matrices(n, image.dtype).",
        )
    if len({float(compiled(_value, loss, *_rows(), t)) for _, t in targets_of(6)}) == 1:
        return "`value` ignores the targets: every pairing acts like `Matched`."
    return "`value` accepts targets as matrices and those given by `text_of` and `noise`."


@SUITE.check("dtype", "gradient")
def dtype(loss: AbstractRowLoss) -> str:
    return keeps_dtype("`value` and its gradient", _with_gradients, loss, *_rows(), Targets())
