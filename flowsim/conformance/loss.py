"""Checks of losses of the logits."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import CLOSE, compiled, difference, finite, keeps_dtype, shapes
from flowsim.conformance.suite import Suite, require
from flowsim.model.losses import AbstractLoss
from flowsim.model.pairing import Clusters, FrozenMispairing, LabelNoise, Targets

_FEWEST, _PAIRS = 2, 6
_PAIRINGS = (LabelNoise(0.1), FrozenMispairing(0.5), Clusters(2))


def logits_of(pairs: int) -> Array:
    """Logits of moderate size (n, n)."""
    return jnp.asarray(3 * np.random.default_rng(pairs).standard_normal((pairs, pairs)))


def targets_of(pairs: int) -> Iterator[tuple[str, Targets]]:
    """(name of the pairing, targets) of several kinds."""
    yield "Matched", Targets()
    for pairing in _PAIRINGS:
        yield type(pairing).__name__, pairing.targets(jax.random.key(1), pairs, np.float64)


def described_and_written(pairs: int) -> Iterator[tuple[str, Targets, Targets]]:
    """(name of a field, targets given by it, the same targets as matrices)."""
    shift = jnp.roll(jnp.arange(pairs), 1)
    for name, described in (
        ("text_of", Targets(text_of=shift)),
        ("noise", Targets(noise=jnp.asarray(0.1))),
    ):
        rows, columns = described.matrices(pairs, np.float64)
        yield name, described, Targets(rows, columns)


def _both(loss: AbstractLoss, logits: Any, targets: Targets) -> tuple[Any, Any]:
    return loss.value(logits, targets), loss.gradient(logits, targets)


def _automatic(loss: AbstractLoss, logits: Any, targets: Targets) -> Any:
    return jax.grad(loss.value)(logits, targets)


SUITE = Suite("loss", AbstractLoss, lambda loss: _both(loss, logits_of(_PAIRS), Targets()), "`value` and `gradient`")


@SUITE.check("jit")
def jit(loss: AbstractLoss) -> str:
    apart = difference(compiled(_both, loss, logits_of(_PAIRS), Targets()), SUITE.use(loss))
    require(
        apart < CLOSE,
        f"`value` and `gradient` must not change when compiled, but differ by {apart:.2g} (relative).",
    )
    return "`value` and `gradient` give the same values when compiled."


@SUITE.check("shapes", "jit")
def has_shapes(loss: AbstractLoss) -> str:
    for n in (_FEWEST, _PAIRS):
        found = compiled(_both, loss, logits_of(n), Targets())
        require(finite(found), f"`value` and `gradient` must be finite, but are not with {n} pairs.")
        value, gradient = map(np.shape, found)
        require(value == (), f"`value` must be one number, but has shape {value} with {n} pairs. Sum over pairs.")
        require(gradient == (n, n), f"`gradient` must have the shape of the logits, but has {gradient} with {n} pairs.")
    return "`value` is one finite number, and `gradient` has the shape of the logits."


@SUITE.check("gradient", "shapes")
def gradient(loss: AbstractLoss) -> str:
    for n, name, targets in [(_FEWEST, "Matched", Targets()), *((_PAIRS, *of) for of in targets_of(_PAIRS))]:
        automatic = compiled(_automatic, loss, logits_of(n), targets)
        apart = difference(compiled(_both, loss, logits_of(n), targets)[1], automatic)
        require(
            apart < CLOSE,
            f"`gradient` must be the gradient of `value`, but differs from jax.grad by {apart:.2g} (relative) with {n} "
            f"pairs and the targets of {name}.",
        )
    return f"`gradient` agrees with jax.grad of `value`, for the targets of {', '.join(n for n, _ in targets_of(2))}."


@SUITE.check("targets", "shapes")
def targets(loss: AbstractLoss) -> str:
    logits = logits_of(_PAIRS)
    for name, described, written in described_and_written(_PAIRS):
        apart = difference(compiled(_both, loss, logits, described), compiled(_both, loss, logits, written))
        require(
            apart < CLOSE,
            f"`value` and `gradient` must accept targets given by `{name}`, as for many pairs, but differ by "
            f"{apart:.2g} from those for the same targets as matrices. Use targets.matrices(n, logits.dtype).",
        )
    found = [float(compiled(_both, loss, logits, t)[0]) for _, t in targets_of(_PAIRS)]
    if len(set(found)) == 1:
        return "`value` ignores the targets: every pairing acts like `Matched`."
    return "`value` and `gradient` accept targets as matrices and those given by `text_of` and `noise`."


@SUITE.check("dtype", "shapes")
def dtype(loss: AbstractLoss) -> str:
    soft = dict(targets_of(_PAIRS))["LabelNoise"]
    return keeps_dtype("`value` and `gradient`", _both, loss, logits_of(_PAIRS), soft)


@SUITE.check("bias")
def bias(loss: AbstractLoss) -> str:
    if loss.bias is None:
        require(loss.bias_rate is None, "`bias_rate` must be None if `bias` is None. Give `bias` its initial value.")
        return "`bias` is None: the logits are βS."
    for name in ("bias", "bias_rate"):
        value = getattr(loss, name)
        require(
            (value is None and name == "bias_rate") or shapes(value) == [()],
            f"`{name}` must be one number, but is {value!r}.",
        )
    return f"`bias` starts at {float(loss.bias):g}" + (" and is trained." if loss.bias_rate is not None else ".")


@SUITE.check("softmax", "shapes")
def softmax(loss: AbstractLoss) -> str:
    logits = logits_of(_PAIRS)
    apart = difference(compiled(_both, loss, logits + 1.7, Targets()), compiled(_both, loss, logits, Targets()))
    require(
        apart < CLOSE or not loss.softmax,
        "`softmax` is True, but a constant added to all logits changes `value` or `gradient` by "
        f"{apart:.2g} (relative). Set it to False.",
    )
    if loss.softmax:
        return "`softmax` is True, and a constant added to all logits changes nothing."
    can = ", although a constant added to all logits changes nothing; True lets runs monitor conserved quantities"
    return f"`softmax` is False{can if apart < CLOSE else ''}."


@SUITE.check("tile_weights", "shapes")
def tile_weights(loss: AbstractLoss) -> str:
    if loss.tile_weights is None:
        return "`tile_weights` is None: many pairs need n×n matrices."
    for name, t in targets_of(_PAIRS):
        value = compiled(_both, loss, logits_of(_PAIRS), t)[0]
        apart = difference(value, _cross_entropies(logits_of(_PAIRS), t, *loss.tile_weights))
        require(
            apart < CLOSE,
            f"With these `tile_weights`, `value` must be {loss.tile_weights[0]:g} times the softmax cross-entropy of "
            f"images over texts plus {loss.tile_weights[1]:g} times that of texts over images, but it differs by "
            f"{apart:.2g} (relative) with the targets of {name}. Set `tile_weights` to None.",
        )
    return "`tile_weights` are the weights of the two softmax cross-entropies in `value`: many pairs use tiles."


def _cross_entropies(logits: Array, targets: Targets, of_images: float, of_texts: float) -> Array:
    """The weighted sum of both mean cross-entropies, from their definition."""
    n = logits.shape[0]
    rows, columns = targets.matrices(n, logits.dtype)
    rows, columns = (jnp.eye(n) if t is None else t for t in (rows, columns))
    images = -jnp.sum(rows * jax.nn.log_softmax(logits, axis=1)) / n
    texts = -jnp.sum(columns * jax.nn.log_softmax(logits, axis=0)) / n
    return of_images * images + of_texts * texts
