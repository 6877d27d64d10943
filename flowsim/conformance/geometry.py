"""Checks of geometries: coordinates from a start and back, rows and similarities, and constraints."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.base.arrays import to_device, to_numpy
from flowsim.base.modules import parts_of
from flowsim.conformance.compare import CLOSE, compiled, difference, finite, keeps_dtype, shapes
from flowsim.conformance.suite import Suite, fail, require
from flowsim.conformance.temperature import exits_are_positive
from flowsim.errors import FlowsimError
from flowsim.model.geometry import AbstractGeometry
from flowsim.model.initial import AbstractRecipe, Cones, Latents, Start, Uniform

#: Recipes that are tried first, before all others that are defined.
_RECIPES = (Cones(6, 4, 0.3), Uniform(6, 4), Latents(6, 5, dim=4), Latents(6, 5, dim=4, hidden=7))


class Placed(NamedTuple):
    """A start and its coordinates in a geometry, as JAX arrays."""

    start: Start
    position: Any
    constants: Any


def placed(geometry: AbstractGeometry, seed: int = 0) -> Placed:
    """The first start that the geometry accepts, and its coordinates."""
    said = ""
    for recipe in (*_RECIPES, *parts_of(AbstractRecipe).values()):
        try:
            start = (recipe() if isinstance(recipe, type) else recipe).draw(seed)
        except Exception:  # a user's recipe may raise anything, and need not have defaults
            continue
        try:
            return Placed(start, *to_device(geometry.place(start)))
        except FlowsimError as error:
            said = said or str(error)
    fail(f"`place` must take a start of some recipe, but refuses all: {said} Define a recipe for it.")


def _similarities(geometry: AbstractGeometry, position: Any, constants: Any) -> Any:
    return (
        geometry.similarity(position, constants),
        geometry.pair_similarity(position, constants),
        geometry.rows(position, constants),
    )


def _use(geometry: AbstractGeometry) -> Any:
    _, position, constants = placed(geometry)
    back = geometry.to_start(*to_numpy((position, constants)))
    return back, _similarities(geometry, position, constants)


SUITE = Suite("geometry", AbstractGeometry, _use, "`place`, `to_start`, `similarity`, `pair_similarity`, `rows`")


@SUITE.check("jit")
def jit(geometry: AbstractGeometry) -> str:
    _, position, constants = placed(geometry)
    found = compiled(_similarities, geometry, position, constants)
    apart = difference(found, _similarities(geometry, position, constants))
    require(
        apart < CLOSE,
        f"`similarity` and `rows` must not change when compiled, but differ by {apart:.2g} (relative).",
    )
    return "`similarity`, `pair_similarity` and `rows` give the same values when compiled."


@SUITE.check("round trip", "jit")
def round_trip(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    again = geometry.place(geometry.to_start(*to_numpy((position, constants))))
    apart = difference(again[0], position)
    require(
        apart < CLOSE,
        f"`place` must recover the position from the start of `to_start`, but is off by {apart:.2g} (relative).",
    )
    found = (compiled(_similarities, geometry, *given) for given in (again, (position, constants)))
    apart = difference(*found)
    require(apart < CLOSE, f"`place` after `to_start` must keep rows and similarities, but is off by {apart:.2g}.")
    return f"`place` inverts `to_start`, for {start.pairs} pairs."


@SUITE.check("times", "round trip")
def times(geometry: AbstractGeometry) -> str:
    _, position, constants = placed(geometry)
    position, constants = to_numpy((position, constants))
    single = geometry.to_start(position, constants)
    double = geometry.to_start(jax.tree.map(lambda x: np.stack([x, x]), position), constants)
    require(
        len(shapes(single)) == len(shapes(double)),
        "`to_start` must give the same arrays for positions at one and at many times, but does not.",
    )
    for one, two in zip(jax.tree.leaves(single), jax.tree.leaves(double), strict=True):
        stacked = np.stack([one, one]) if np.ndim(two) > np.ndim(one) else one
        require(
            difference(two, stacked) < CLOSE,
            f"`to_start` must accept positions at many times, with a first axis for time, but gives {np.shape(two)} "
            f"for two times and {np.shape(one)} for one. Use axis=-1 and axis=-2.",
        )
    return "`to_start` accepts positions at one and at many times."


@SUITE.check("rows", "jit")
def rows(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    found = compiled(_similarities, geometry, position, constants)[2]
    if found is None:
        require(not geometry.of_rows, "`of_rows` is True, but `rows` gives None. Set it to False.")
        return "`rows` gives None: only similarities are known."
    image, text = found
    require(
        np.ndim(image) == 2 and np.shape(image) == np.shape(text) and len(image) == start.pairs,
        f"`rows` must give (n, D) for images and texts, but gives {np.shape(image)} and {np.shape(text)} for "
        f"{start.pairs} pairs.",
    )
    require(finite((image, text)), "`rows` must be finite, but are not.")
    return f"`rows` gives {np.shape(image)} for images and texts."


@SUITE.check("similarity", "rows")
def similarity(geometry: AbstractGeometry) -> str:
    start, position, constants = placed(geometry)
    found, pairs, known = compiled(_similarities, geometry, position, constants)
    wanted = (start.pairs, start.pairs)
    for name, matrix in (("similarity", found), ("pair_similarity", pairs)):
        require(
            np.shape(matrix) == wanted and finite(matrix),
            f"`{name}` must give finite numbers of shape {wanted}, but gives {np.shape(matrix)}.",
        )
    if known is not None:
        apart = difference(found, np.asarray(known[0]) @ np.asarray(known[1]).T)
        require(
            apart < CLOSE,
            f"`similarity` must be the product of image and text rows, but differs by {apart:.2g} (relative).",
        )
        return "`similarity` is the product of the rows."
    return "`similarity` has the right shape."


def _retract(geometry: AbstractGeometry, position: Any) -> Any:
    return geometry.retract(position)


def project(geometry: AbstractGeometry, position: Any, velocity: Any) -> Any:
    """The projected velocity, which keeps the constraints."""
    return geometry.project(position, velocity)


@SUITE.check("constraints")
def constraints(geometry: AbstractGeometry) -> str:
    _, position, _ = placed(geometry)
    apart = difference(compiled(_retract, geometry, position), position)
    require(apart < CLOSE, f"`retract` must not move the position of a start, but moves it by {apart:.2g} (relative).")
    once = compiled(_retract, geometry, _near(position))
    apart = difference(compiled(_retract, geometry, once), once)
    require(apart < CLOSE, f"`retract` must change nothing the second time, but moves by {apart:.2g} (relative).")
    once = compiled(project, geometry, position, _near(position))
    apart = difference(compiled(project, geometry, position, once), once)
    require(apart < CLOSE, f"`project` must change nothing the second time, but changes by {apart:.2g} (relative).")
    return "`retract` does not move a start, and `retract` and `project` change nothing the second time."


def _near(position: Any) -> Any:
    """A position nearby."""
    leaves, structure = jax.tree.flatten(position)
    rng = np.random.default_rng(0)
    return jax.tree.unflatten(structure, [x + jnp.asarray(0.1 * rng.standard_normal(np.shape(x))) for x in leaves])


@SUITE.check("gamma")
def gamma(geometry: AbstractGeometry) -> str:
    found = geometry.log_gamma(placed(geometry).position)
    if not geometry.has_gamma:
        require(found is None, f"`log_gamma` must give None if `has_gamma` is False, but gives {found}.")
        return "`has_gamma` is False."
    require(
        shapes(found) == [()] and finite(found),
        f"`log_gamma` must give one number if `has_gamma` is True, but gives {found}.",
    )
    return f"`has_gamma` is True, and `log_gamma` is {float(jnp.asarray(found)):.4g}."


@SUITE.check("exits")
def exits(geometry: AbstractGeometry) -> str:
    _, position, constants = placed(geometry)
    exits_are_positive(geometry.exits(position, constants, in_steps=True))
    return exits_are_positive(geometry.exits(position, constants, in_steps=False))


@SUITE.check("dtype", "jit")
def dtype(geometry: AbstractGeometry) -> str:
    _, position, constants = placed(geometry)
    return keeps_dtype("`similarity` and `rows`", _similarities, geometry, position, constants)
