"""Geometries: the coordinates that flow, the rows that they give, and how forces move them.

A geometry has two trees of arrays: `position` flows, `constants` never changes. It gives the similarity matrix S
(the loss sees the logits M = βS) and the velocity of the position under a force F = −∂L/∂S. All flows are gradient
flows in the metric stated by the class. Shapes: n pairs, rows in D dimensions.
"""

import abc
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from equinox import AbstractClassVar
from jaxtyping import Array, Float, Int

from flowsim.base.arrays import Numeric
from flowsim.base.modules import Described, bundle
from flowsim.errors import FlowsimError
from flowsim.model.initial import Start

#: Trees of arrays; each geometry has its own.
Position = Any
Constants = Any


def normalise(rows: Float[Numeric, "n d"]) -> Float[Array, "n d"]:
    """Rows (n, d) scaled to unit length."""
    return jnp.asarray(rows) / jnp.linalg.norm(jnp.asarray(rows), axis=1, keepdims=True)


def tangent(rows: Float[Numeric, "n d"], vectors: Float[Numeric, "n d"]) -> Float[Array, "n d"]:
    """The part of each vector that is tangent to the unit sphere at its row, v − ⟨r, v⟩r.

    Args:
        rows: Unit rows r, (n, d).
        vectors: Vectors v, (n, d).

    Returns:
        The tangent vectors, (n, d).
    """
    vectors = jnp.asarray(vectors)
    return vectors - jnp.sum(rows * vectors, axis=1, keepdims=True) * jnp.asarray(rows)


class AbstractGeometry(Described):
    """A geometry: the coordinates that flow, the rows that they give, and how forces move them.

    Velocities are those of the gradient flow at rate 1; `GradientFlow` multiplies them by `rate`.

    Attributes:
        has_gamma: Whether the position has the height γ of two parallel cones.
        frozen_directions: Whether the directions within the cones are constants.
        of_rows: Whether everything follows from the rows and the forces on them, so that the loss of many pairs can be
            computed in tiles.
        rate: Learning rate of the position; the raw temperature has `lr_ratio`.
    """

    has_gamma: AbstractClassVar[bool]
    frozen_directions: ClassVar[bool] = False
    of_rows: ClassVar[bool] = False
    rate: ClassVar[Any] = 1.0

    @abc.abstractmethod
    def place(self, start: Start) -> tuple[Position, Constants]:
        """The coordinates of a start.

        Args:
            start: The start.

        Returns:
            Position and constants (NumPy arrays).

        Raises:
            FlowsimError: If the start does not fit the geometry.
        """

    @abc.abstractmethod
    def to_start(self, position: Position, constants: Constants) -> Start:
        """The start (NumPy arrays) that `place` maps to these coordinates.

        Args:
            position: Coordinates that flow. They may have a first axis for time, which the flowing arrays of the
                start then have too.
            constants: Constant coordinates.
        """

    @abc.abstractmethod
    def similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        """S (n, n), the inner products of image and text rows: cosines for unit rows.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
        """

    @abc.abstractmethod
    def pair_similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        """Z (n, n), the similarities of the directions within parallel cones; S for geometries without cones.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
        """

    @abc.abstractmethod
    def velocity(self, position: Position, constants: Constants, force: Float[Array, "n n"]) -> Position:
        """Velocity of the position.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
            force: F = −∂L/∂S (n, n).
        """

    @abc.abstractmethod
    def rows(
        self, position: Position, constants: Constants
    ) -> tuple[Float[Numeric, "n D"], Float[Numeric, "n D"]] | None:
        """Rows (n, D) of images and texts as a model would output them; None if only similarities are known.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
        """

    @abc.abstractmethod
    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        """Velocity of the position from forces on the rows.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
            image_force: −∂L/∂X (n, D).
            text_force: −∂L/∂Y (n, D).
        """

    @property
    def has_kernels(self) -> bool:
        """Whether `with_kernels` changes velocities."""
        return False

    def with_kernels(self, position: Position, constants: Constants, velocity: Position) -> Position:
        """The velocity under the kernels of the geometry (see `fs.kernels`).

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
            velocity: The velocity without kernels, that of `velocity`.
        """
        return velocity

    @abc.abstractmethod
    def log_gamma(self, position: Position) -> Float[Numeric, ""] | None:
        """ln|γ|, or None without γ."""

    @abc.abstractmethod
    def project(self, position: Position, velocity: Position) -> Position:
        """The nearest velocity that keeps the constraints, such as unit rows, for rules that act on single entries.

        Args:
            position: Coordinates that flow.
            velocity: Any velocity of them.
        """

    @abc.abstractmethod
    def retract(self, position: Position) -> Position:
        """The nearest position that satisfies the constraints, after a discrete step."""

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        """The coordinates of some pairs, for minibatches.

        The position must depend on the whole position linearly: the transposed map brings velocities back.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
            pairs: Indices of b pairs.
            texts: Which of its texts each pair gets, in geometries whose pairs have several; None for the first.

        Raises:
            FlowsimError: If the geometry has no minibatches.
        """
        raise FlowsimError(f"The geometry {type(self).__name__} has no minibatches. Leave out `batch`.")

    def texts(self, constants: Constants) -> np.ndarray | None:
        """Number of texts of each pair, (n,); None if each has one."""
        return None

    def exits(self, position: Position, constants: Constants, in_steps: bool) -> dict[str, Any]:
        """Quantities that are positive inside the geometry's domain, by name; a run ends where one reaches 0.

        The keys "gamma_one" and "output_zero" have statuses of their own; with other keys the status is `LEFT_DOMAIN`.

        Args:
            position: Coordinates that flow.
            constants: Constant coordinates.
            in_steps: Whether the run takes the finite steps of an optimizer, which jump over single points.
        """
        return {}


class AbstractRowGeometry(AbstractGeometry):
    """A geometry without γ, in which everything follows from the rows and the forces on them."""

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
    def rows(self, position: Position, constants: Constants) -> tuple[Float[Numeric, "n D"], Float[Numeric, "n D"]]: ...

    def log_gamma(self, position: Position) -> None:
        return None


@bundle
class Rows:
    """Image and text rows that flow.

    Args:
        image: Image rows (n, d).
        text: Text rows (n, d).
    """

    image: Float[Numeric, "n d"]
    text: Float[Numeric, "n d"]


def take_rows(position: Rows, pairs: Int[Array, "b"]) -> Rows:
    """The rows of some pairs; `pairs` are their indices."""
    return Rows(position.image[pairs], position.text[pairs])


def tangent_rows(position: Rows, velocity: Rows) -> Rows:
    """The part of a velocity that is tangent to the unit spheres at the rows.

    Args:
        position: Rows of both modalities, which need not have unit length.
        velocity: Their velocity.

    Returns:
        The tangent velocity.
    """
    return Rows(tangent(normalise(position.image), velocity.image), tangent(normalise(position.text), velocity.text))
