"""Checks of the velocity of geometries: it descends, keeps the constraints, and is that of a gradient flow."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import CLOSE, compiled, difference, finite, keeps_dtype, shapes
from flowsim.conformance.geometry import SUITE, placed, project
from flowsim.conformance.suite import require
from flowsim.errors import FlowsimError
from flowsim.model.geometry import AbstractGeometry
from flowsim.model.losses import InfoNCE
from flowsim.model.pairing import Targets

_BETA = 5.0


def _force(pairs: int, seed: int) -> Array:
    """A force on the similarities, F = −∂L/∂S."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal((pairs, pairs)))


def _dot(first: Any, second: Any) -> float:
    leaves = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    return float(sum(np.sum(np.asarray(a) * np.asarray(b)) for a, b in leaves))


def _velocity(geometry: AbstractGeometry, position: Any, constants: Any, force: Any) -> Any:
    return geometry.velocity(position, constants, force)


def _from_rows(geometry: AbstractGeometry, position: Any, constants: Any, force: Any) -> Any:
    rows = geometry.rows(position, constants)
    if rows is None:
        return None
    image, text = (jnp.asarray(x) for x in rows)
    return geometry.velocity_from_rows(position, constants, force @ text, force.T @ image)


def _gradient(geometry: AbstractGeometry, position: Any, constants: Any, force: Any) -> Any:
    """Gradient of ⟨F, S⟩ in the coordinates."""
    return jax.grad(lambda x: jnp.sum(force * geometry.similarity(x, constants)))(position)


def _rates(geometry: AbstractGeometry, position: Any, constants: Any) -> tuple[Array, Array]:
    """Rates of change of the loss of InfoNCE, and of the similarity of pairs, along the velocity."""

    def measured(x: Any) -> tuple[Array, Any]:
        similarity = jnp.asarray(geometry.similarity(x, constants))
        return InfoNCE().value(_BETA * similarity, Targets()), geometry.pair_similarity(x, constants)

    similarity = jnp.asarray(geometry.similarity(position, constants))
    force = -_BETA * InfoNCE().gradient(_BETA * similarity, Targets())
    return jax.jvp(measured, (position,), (geometry.velocity(position, constants, force),))[1]


@SUITE.check("velocity", "similarity")
def velocity(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    found = compiled(_velocity, geometry, position, constants, _force(start.pairs, 0))
    require(
        jax.tree.structure(found) == jax.tree.structure(position) and shapes(found) == shapes(position),
        "`velocity` must have the structure and shapes of the position from `place`, but gives "
        f"{type(found).__name__} with {shapes(found)} for {type(position).__name__} with {shapes(position)}.",
    )
    require(finite(found), "`velocity` must be finite, but is not.")
    return "`velocity` has the structure and shapes of the position."


@SUITE.check("velocity_from_rows", "velocity")
def velocity_from_rows(geometry: AbstractGeometry) -> str | None:
    start, position, constants = placed(geometry)
    force = _force(start.pairs, 0)
    found = compiled(_from_rows, geometry, position, constants, force)
    if found is None:
        return None
    apart = difference(found, compiled(_velocity, geometry, position, constants, force))
    require(
        apart < CLOSE,
        "`velocity_from_rows` with the forces F Y and Fᵀ X on the rows must give the same as `velocity` with F, but "
        f"differs by {apart:.2g} (relative).",
    )
    return "`velocity` and `velocity_from_rows` agree."


@SUITE.check("descent", "velocity")
def descent(geometry: AbstractGeometry) -> str:
    rates = [float(compiled(_rates, geometry, *placed(geometry, seed)[1:])[0]) for seed in range(3)]
    require(
        max(rates) <= CLOSE,
        f"`velocity` must not increase the loss, but InfoNCE grows at the rate {max(rates):.3g}. The force is −∂L/∂S; "
        "follow it.",
    )
    if not any(rates):
        return "`velocity` does not change the loss."
    return f"InfoNCE decreases along `velocity`, at the rates {', '.join(f'{-rate:.3g}' for rate in rates)}."


@SUITE.check("gradient flow", "velocity")
def gradient_flow(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    forces = [_force(start.pairs, seed) for seed in (1, 2)]
    velocities, gradients = (
        [compiled(function, geometry, position, constants, force) for force in forces]
        for function in (_velocity, _gradient)
    )
    # v = G⁻¹ g with a symmetric metric G.
    first, second = _dot(gradients[1], velocities[0]), _dot(gradients[0], velocities[1])
    size = max(np.sqrt(_dot(g, g) * _dot(v, v)) for g in gradients for v in velocities)
    require(
        abs(first - second) <= CLOSE * size,
        "`velocity` must be that of a gradient flow in some metric, ⟨∇a, v(b)⟩ = ⟨∇b, v(a)⟩ for any two forces, but "
        f"these are {first:.6g} and {second:.6g}. Follow the gradient of the similarity in your coordinates.",
    )
    apart = difference(velocities[0], compiled(project, geometry, position, gradients[0]))
    if apart < CLOSE:
        return "`velocity` is minus the projected gradient in the coordinates."
    return "`velocity` is that of a gradient flow, in a metric other than the Euclidean one of the coordinates."


@SUITE.check("tangent", "constraints", "velocity")
def tangent(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    found = compiled(_velocity, geometry, position, constants, _force(start.pairs, 0))
    apart = difference(compiled(project, geometry, position, found), found)
    require(
        apart < CLOSE,
        f"`velocity` must keep the constraints, but `project` changes it by {apart:.2g} (relative). Project it.",
    )
    return "`velocity` keeps the constraints: `project` does not change it."


def _taken(geometry: AbstractGeometry, position: Any, constants: Any, pairs: Any) -> Any:
    part = geometry.take(position, constants, pairs)
    return part, geometry.similarity(*part), geometry.pair_similarity(*part), geometry.rows(*part)


def _batch_velocity(geometry: AbstractGeometry, position: Any, constants: Any, force: Any, pairs: Any) -> Any:
    """The velocity of a batch, brought back to the coordinates of all pairs, as in a step on a minibatch."""
    part, bring_back, chosen = jax.vjp(lambda x: geometry.take(x, constants, pairs), position, has_aux=True)
    return bring_back(geometry.velocity(part, chosen, force))[0]


@SUITE.check("take", "velocity")
def take(geometry: AbstractGeometry) -> str | None:
    start, position, constants = placed(geometry)
    n = start.pairs
    every, some = jnp.arange(n), jnp.asarray([n - 1, 0, n // 2])
    try:
        part, similarity, pair_similarity, rows = compiled(_taken, geometry, position, constants, some)
    except FlowsimError as error:
        # Only the sentence of the base class says that a geometry has no minibatches.
        require(
            type(geometry).take is AbstractGeometry.take,
            f"`take` must take the coordinates of pairs, but says: {error}",
        )
        return None
    whole = compiled(_taken, geometry, position, constants, every)
    wanted = geometry.similarity(position, constants), geometry.pair_similarity(position, constants)
    known = geometry.rows(position, constants)
    apart = difference(whole[1:3], wanted) + (0.0 if known is None else difference(whole[3], known))
    require(
        apart < CLOSE,
        "`take` of all pairs in their order must give the similarities and rows of the whole, but they differ by "
        f"{apart:.2g} (relative).",
    )
    chosen = np.asarray(some)
    apart = difference(
        (similarity, pair_similarity), tuple(np.asarray(matrix)[np.ix_(chosen, chosen)] for matrix in wanted)
    )
    if known is not None:
        apart += difference(rows, tuple(np.asarray(side)[chosen] for side in known))
    require(
        apart < CLOSE,
        f"`take` of pairs {chosen.tolist()} must give their similarities and rows, but they differ by {apart:.2g} "
        "(relative).",
    )
    _require_linear(geometry, position, constants, some, part[0])
    force = _force(n, 3)
    found = compiled(_batch_velocity, geometry, position, constants, force, every)
    apart = difference(found, compiled(_velocity, geometry, position, constants, force))
    require(
        apart < CLOSE,
        "The velocity of all pairs as one batch must be that of the whole, but differs by "
        f"{apart:.2g} (relative). `take` must not scale the position.",
    )
    return "`take` of all pairs is the whole, that of some has their similarities, and it is linear in the position."


def _require_linear(geometry: AbstractGeometry, position: Any, constants: Any, pairs: Any, part: Any) -> None:
    """Require that the taken position is linear in the whole one, because its transpose brings velocities back."""
    rng = np.random.default_rng(4)
    other = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(np.shape(x))), position)
    sum_ = jax.tree.map(lambda a, b: 2 * a - 3 * b, position, other)
    found, moved = (compiled(_taken_position, geometry, x, constants, pairs) for x in (sum_, other))
    apart = difference(found, jax.tree.map(lambda a, b: 2 * a - 3 * b, part, moved))
    require(
        apart < CLOSE,
        f"`take` must be linear in the position, but take(2a − 3b) differs from 2 take(a) − 3 take(b) by {apart:.2g} "
        "(relative). Select and combine entries only.",
    )


def _taken_position(geometry: AbstractGeometry, position: Any, constants: Any, pairs: Any) -> Any:
    return geometry.take(position, constants, pairs)[0]


@SUITE.check("frozen_directions", "velocity")
def frozen_directions(geometry: AbstractGeometry) -> str:
    _, position, constants = placed(geometry)
    largest = float(np.abs(compiled(_rates, geometry, position, constants)[1]).max())
    require(
        largest < CLOSE or not geometry.frozen_directions,
        f"`frozen_directions` is True, but `pair_similarity` changes at the rate {largest:.3g}. Set it to False.",
    )
    return f"`frozen_directions` is {geometry.frozen_directions}."


@SUITE.check("rate")
def rate(geometry: AbstractGeometry) -> str:
    found = np.asarray(geometry.rate)
    require(
        found.ndim == 0 and np.isfinite(found) and found > 0,
        f"`rate` must be one positive number, but is {geometry.rate}. Use 1.0.",
    )
    return f"`rate` is {float(found):g}."


@SUITE.check("velocity dtype", "velocity", "dtype")
def velocity_dtype(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    return keeps_dtype("`velocity`", _velocity, geometry, position, constants, _force(start.pairs, 0))
