"""Geometries: which coordinates flow, how they make unit rows, and how forces move them.

A geometry owns two bundles of arrays. `position` flows; `constants` never changes. It answers two
questions: what is the similarity matrix S (the loss sees logits M = βS), and which velocity does a force
F = −∂L/∂S give to the position. All flows are gradient flows in the metric stated by the class.
"""

import abc
from typing import Any, ClassVar

import jax.numpy as jnp
from equinox import AbstractClassVar
from jaxtyping import Array, Float

from flowsim.base.arrays import Numeric
from flowsim.base.modules import Described, bundle
from flowsim.model.initial import Start

#: Trees of arrays, another one for each geometry.
Position = Any
Constants = Any


def normalise(rows: Float[Numeric, "n d"]) -> Float[Array, "n d"]:
    """Rows scaled to unit length."""
    return jnp.asarray(rows) / jnp.linalg.norm(jnp.asarray(rows), axis=1, keepdims=True)


def tangent(rows: Float[Numeric, "n d"], vectors: Float[Numeric, "n d"]) -> Float[Array, "n d"]:
    """The part of each vector that is tangent to the sphere at the (unit) row."""
    vectors = jnp.asarray(vectors)
    return vectors - jnp.sum(rows * vectors, axis=1, keepdims=True) * jnp.asarray(rows)


class AbstractGeometry(Described):
    """Which coordinates flow, how they make unit rows, and how forces move them.

    `velocity`, `velocity_from_rows` and `project` are those of the gradient flow at rate 1; `GradientFlow` multiplies
    by `rate`.

    Attributes:
        has_gamma: Whether the position carries the height γ of two parallel cones.
        frozen_directions: Whether the directions within the cones are constants.
        of_rows: Whether everything follows from the rows and the force on them, so that many pairs go in tiles.
        rate: Speed of the position relative to the raw temperature's unit.
    """

    has_gamma: AbstractClassVar[bool]
    frozen_directions: ClassVar[bool] = False
    of_rows: ClassVar[bool] = False
    rate: ClassVar[Any] = 1.0

    @abc.abstractmethod
    def place(self, start: Start) -> tuple[Position, Constants]:
        """Coordinates of a start. Raises `FlowsimError` if the start does not fit the geometry."""

    @abc.abstractmethod
    def to_start(self, position: Position, constants: Constants) -> Start:
        """The start that `place` maps to these coordinates (NumPy arrays).

        The position may be that of many times, with a first axis for them; so are then the arrays that flow.
        """

    @abc.abstractmethod
    def similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        """S: cosines between image and text rows."""

    @abc.abstractmethod
    def pair_similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        """Z, the similarity of the directions within parallel cones; S where there are no cones."""

    @abc.abstractmethod
    def velocity(self, position: Position, constants: Constants, force: Float[Array, "n n"]) -> Position:
        """Velocity of the position under the force F = −∂L/∂S."""

    @abc.abstractmethod
    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]] | None:
        """Unit rows (image, text) as the model would output them; None if only similarities are known."""

    @abc.abstractmethod
    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        """Velocity of the position under forces on the output rows."""

    @abc.abstractmethod
    def log_gamma(self, position: Position) -> Float[Numeric, ""] | None:
        """ln|γ|, or None without γ."""

    @abc.abstractmethod
    def project(self, position: Position, velocity: Position) -> Position:
        """The nearest velocity that keeps the constraints (unit rows), for rules that change single entries."""

    @abc.abstractmethod
    def retract(self, position: Position) -> Position:
        """The nearest position that satisfies the constraints, after a discrete step."""

    def exits(self, position: Position, constants: Constants, in_steps: bool) -> dict[str, Any]:
        """Quantities that are positive inside the geometry's domain, by the name of how a run ends where one is 0.

        Args:
            position: What flows.
            constants: What stays.
            in_steps: Whether the run takes the finite steps of an optimizer, which pass single points.
        """
        return {}


class AbstractRowGeometry(AbstractGeometry):
    """A geometry of rows alone, without γ: everything follows from the rows and the force on them."""

    has_gamma: ClassVar[bool] = False
    of_rows: ClassVar[bool] = True

    def similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        image, text = self.rows(position, constants)
        return image @ text.T

    def pair_similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        return self.similarity(position, constants)

    def velocity(self, position: Position, constants: Constants, force: Float[Array, "n n"]) -> Position:
        image, text = self.rows(position, constants)
        return self.velocity_from_rows(position, constants, force @ text, force.T @ image)

    @abc.abstractmethod
    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]: ...

    def log_gamma(self, position: Position) -> None:
        return None


@bundle
class Rows:
    """Image and text rows that flow."""

    image: Float[Numeric, "n d"]
    text: Float[Numeric, "n d"]


def tangent_rows(position: Rows, velocity: Rows) -> Rows:
    return Rows(tangent(normalise(position.image), velocity.image), tangent(normalise(position.text), velocity.text))
