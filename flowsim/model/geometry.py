"""Geometries: which coordinates flow, how they make unit rows, and how forces move them.

A geometry owns two bundles of arrays. `position` flows; `constants` never changes. It answers two
questions: what is the similarity matrix S (the loss sees logits M = βS), and which velocity does a force
F = −∂L/∂S give to the position. All flows are gradient flows in the metric stated by the class.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from equinox import AbstractClassVar
from jaxtyping import Array, Float

from flowsim.base.arrays import Described, Numeric, bundle, check, check_number, is_concrete, number
from flowsim.errors import FlowsimError
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
    """See the module's text. `has_gamma` says whether the ansatz carries the cone height γ."""

    has_gamma: AbstractClassVar[bool]

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
        """The similarity whose margin counts: S, or Z without γ for parallel cones."""

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


class AbstractRowGeometry(AbstractGeometry):
    """A geometry of rows alone, without γ: everything follows from the rows and the force on them."""

    has_gamma: ClassVar[bool] = False

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


class Sphere(AbstractRowGeometry):
    """Every row of both modalities moves freely on the unit sphere S^{d−1}.

    Riemannian gradient flow: dX/dt = −k Π_X(β ∇ℓ Y), dY/dt = −k Π_Y(β ∇ℓᵀ X), Π the row-wise tangent
    projection. `embedding_rate` = k is the speed of the embeddings relative to the temperature's unit.
    This is what Figure 2 of Yaras et al. 2025 integrates.
    """

    embedding_rate: Any = eqx.field(converter=number, default=1.0)

    def __check_init__(self) -> None:
        check_number("embedding_rate", self.embedding_rate, positive=True, cure="Use e.g. 1.0.")

    def place(self, start: Start) -> tuple[Position, Constants]:
        image, text = start.rows()
        return Rows(image, text), None

    def to_start(self, position: Position, constants: Constants) -> Start:
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (position.image, position.text)]
        return Start(image=unit[0], text=unit[1])

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
        # Normalising inside the field makes the radial direction neutral instead of unstable.
        return normalise(position.image), normalise(position.text)

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        image, text = self.rows(position, constants)
        k = self.embedding_rate
        return Rows(k * tangent(image, image_force), k * tangent(text, text_force))

    def project(self, position: Position, velocity: Position) -> Position:
        return _tangent_rows(position, velocity)

    def retract(self, position: Position) -> Position:
        return Rows(normalise(position.image), normalise(position.text))


class Unnormalized(AbstractRowGeometry):
    """Free rows in R^d without normalisation: logits β⟨x_i, y_j⟩, dX/dt = −β∇ℓ Y, dY/dt = −β∇ℓᵀ X.

    The paper's "Remove Normalization" (with a fixed temperature: β and the lengths of the rows say the same).
    Lengths grow without bound; cosines are what the observables of directions measure. Source: Yaras et al.
    2025, section 5.
    """

    def place(self, start: Start) -> tuple[Position, Constants]:
        image, text = start.rows()
        return Rows(image, text), None

    def to_start(self, position: Position, constants: Constants) -> Start:
        return Start(image=position.image, text=position.text)

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
        return position.image, position.text

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        return Rows(image_force, text_force)

    def project(self, position: Position, velocity: Position) -> Position:
        return velocity

    def retract(self, position: Position) -> Position:
        return position


class Subspaces(AbstractRowGeometry):
    """Unit rows, each modality confined to a hyperplane through 0; `angle` degrees between the two normals.

    Image rows have no last coordinate; text rows are orthogonal to cos φ e_D + sin φ e_{D−1}. Riemannian
    gradient flow within each great sphere: dX/dt = −Π_X P_X(β∇ℓ Y), P the projection onto the hyperplane.
    Source: arXiv 2510.03268 (dimension collapse of the modalities).
    """

    angle: Any = eqx.field(converter=number, default=60.0)

    def __check_init__(self) -> None:
        check_number("angle", self.angle, minimum=0.0, cure="Use degrees between 0 and 90.")
        if is_concrete(self.angle):
            check(self.angle <= 90, f"Argument `angle` must be at most 90, but is {float(self.angle):g}. Use degrees.")

    def place(self, start: Start) -> tuple[Position, Constants]:
        """Rows are projected onto their hyperplane and scaled to unit length."""
        image, text = start.rows()
        angle = np.deg2rad(np.asarray(self.angle, np.float64))
        normals = np.zeros((2, image.shape[1]))
        normals[0, -1] = 1.0
        normals[1, -1], normals[1, -2] = np.cos(angle), np.sin(angle)
        constants = Hyperplanes(normals[0], normals[1])
        flat = [rows - np.outer(rows @ normal, normal) for rows, normal in zip((image, text), normals, strict=True)]
        lengths = [np.linalg.norm(rows, axis=1, keepdims=True) for rows in flat]
        check(
            min(x.min() for x in lengths) > 1e-12,
            "A row is orthogonal to the hyperplane of its modality. Use another start or angle.",
        )
        return Rows(flat[0] / lengths[0], flat[1] / lengths[1]), constants

    def to_start(self, position: Position, constants: Constants) -> Start:
        image, text = (_without(position.image, constants.image), _without(position.text, constants.text))
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (image, text)]
        return Start(image=unit[0], text=unit[1])

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
        # What a step entry by entry (Adam) takes out of a tilted hyperplane is not seen.
        flat = _without(position.image, constants.image), _without(position.text, constants.text)
        return normalise(flat[0]), normalise(flat[1])

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        image, text = self.rows(position, constants)
        return Rows(
            tangent(image, _without(image_force, constants.image)), tangent(text, _without(text_force, constants.text))
        )

    def project(self, position: Position, velocity: Position) -> Position:
        return _tangent_rows(position, velocity)

    def retract(self, position: Position) -> Position:
        return Rows(normalise(position.image), normalise(position.text))


@bundle
class Hyperplanes:
    """Unit normals of the hyperplanes of both modalities."""

    image: Float[Numeric, "D"]
    text: Float[Numeric, "D"]


def _without(vectors: Float[Numeric, "... D"], normal: Float[Numeric, "D"]) -> Float[Numeric, "... D"]:
    return vectors - (vectors @ normal)[..., None] * normal[(None,) * (vectors.ndim - 1)]


def _tangent_rows(position: Rows, velocity: Rows) -> Rows:
    return Rows(tangent(normalise(position.image), velocity.image), tangent(normalise(position.text), velocity.text))


@bundle
class ConePosition:
    """Directions within the cones (None where frozen) and ln|γ|."""

    image: Float[Numeric, "n d"] | None
    text: Float[Numeric, "n d"] | None
    log_gamma: Float[Numeric, ""]


@bundle
class ConeConstants:
    """Sign of γ (0 for γ = 0, an invariant set) and the basis in which the cones lie."""

    sign: Float[Numeric, ""]
    basis: Float[Numeric, "D D"] | None = None
    similarity: Float[Numeric, "n n"] | None = None
    image: Float[Numeric, "n d"] | None = None
    text: Float[Numeric, "n d"] | None = None


class Parallel(AbstractGeometry):
    """Parallel cones, the ansatz of the theorems: X = [√(1−γ²) H_X, γ1], Y = [√(1−γ²) H_Y, −γ1].

    Unit rows H in R^d and one shared height γ flow, each with its own unit metric (not the one induced by
    the embedding), on logits β(1−γ²)Z − βγ², Z = H_X H_Yᵀ:

        dH_X/dt = −Π(β(1−γ²) ∇ℓ H_Y),  d ln γ/dt = −2βg,  g = −⟨Z, ∇ℓ⟩.

    The coordinate is ln|γ|, so that γ keeps its relative accuracy at 1e-40. From mismatched starts γ can
    reach 1 in finite time, where the ansatz ends. Source: Yaras et al. 2025, eqs. 3-4 and 11.
    """

    has_gamma: ClassVar[bool] = True

    def place(self, start: Start) -> tuple[Position, Constants]:
        cones = start.as_cones("Parallel")
        check(
            cones.image is not None,
            "`Parallel` needs the rows H, but the start holds only similarities. Use the geometry `Reduced`.",
        )
        sign, log_gamma = _split_gamma(cones)
        return ConePosition(cones.image, cones.text, log_gamma), ConeConstants(sign, cones.basis)

    def to_start(self, position: Position, constants: Constants) -> Start:
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (position.image, position.text)]
        return _cone_start(unit[0], unit[1], position.log_gamma, constants)

    def similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        squared = _gamma(position, constants) ** 2
        return (1 - squared) * self.pair_similarity(position, constants) - squared

    def pair_similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        return normalise(position.image) @ normalise(position.text).T

    def velocity(self, position: Position, constants: Constants, force: Float[Array, "n n"]) -> Position:
        image, text = normalise(position.image), normalise(position.text)
        shrink = 1 - _gamma(position, constants) ** 2
        return ConePosition(
            shrink * tangent(image, force @ text),
            shrink * tangent(text, force.T @ image),
            _cone_force(image @ text.T, force),
        )

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
        return _lift(normalise(position.image), normalise(position.text), position, constants)

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        image, text = normalise(position.image), normalise(position.text)
        gamma = _gamma(position, constants)
        radius = jnp.sqrt(1 - gamma**2)
        if constants.basis is not None:
            image_force, text_force = image_force @ constants.basis, text_force @ constants.basis
        inner = jnp.sum(image_force[:, :-1] * image) + jnp.sum(text_force[:, :-1] * text)
        outer = jnp.sum(image_force[:, -1]) - jnp.sum(text_force[:, -1])
        # d ln γ = dγ/γ; every force along the axis is proportional to γ, which is zero with it (where swaps mix the
        # axis with the rest it is not, and `GradientFlow.place` refuses γ = 0).
        safe = jnp.where(gamma == 0, 1.0, gamma)
        log_velocity = jnp.where(gamma == 0, 0.0, outer / safe - inner / radius)
        return ConePosition(
            radius * tangent(image, image_force[:, :-1]),
            radius * tangent(text, text_force[:, :-1]),
            log_velocity,
        )

    def log_gamma(self, position: Position) -> Float[Numeric, ""]:
        return position.log_gamma

    def project(self, position: Position, velocity: Position) -> Position:
        rows = _tangent_rows(Rows(position.image, position.text), Rows(velocity.image, velocity.text))
        return ConePosition(rows.image, rows.text, velocity.log_gamma)

    def retract(self, position: Position) -> Position:
        return ConePosition(normalise(position.image), normalise(position.text), position.log_gamma)


class Reduced(AbstractGeometry):
    """Parallel cones with frozen directions: only ln|γ| (and the raw temperature) flow; Z is constant.

    d ln γ/dt = −2βg(β(1−γ²)), g(a) = −⟨Z, ∇ℓ(aZ)⟩. The start gives Z = H_X H_Yᵀ, or Z itself
    (`fs.initial.from_similarity`); without rows, observables that need vectors are NaN.
    """

    has_gamma: ClassVar[bool] = True

    def place(self, start: Start) -> tuple[Position, Constants]:
        cones = start.as_cones("Reduced")
        sign, log_gamma = _split_gamma(cones)
        similarity = cones.similarity
        if similarity is None:
            assert cones.image is not None and cones.text is not None
            similarity = cones.image @ cones.text.T
        constants = ConeConstants(sign, cones.basis, similarity, cones.image, cones.text)
        return ConePosition(None, None, log_gamma), constants

    def to_start(self, position: Position, constants: Constants) -> Start:
        start = _cone_start(constants.image, constants.text, position.log_gamma, constants)
        return eqx.tree_at(lambda s: s.similarity, start, constants.similarity, is_leaf=lambda x: x is None)

    def similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        squared = _gamma(position, constants) ** 2
        return (1 - squared) * constants.similarity - squared

    def pair_similarity(self, position: Position, constants: Constants) -> Float[Numeric, "n n"]:
        return constants.similarity

    def velocity(self, position: Position, constants: Constants, force: Float[Array, "n n"]) -> Position:
        return ConePosition(None, None, _cone_force(constants.similarity, force))

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]] | None:
        if constants.image is None:
            return None
        return _lift(constants.image, constants.text, position, constants)

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        if constants.image is None:
            raise FlowsimError("Swaps need rows, but the start holds only similarities. Give rows to `Start`.")
        full = ConePosition(constants.image, constants.text, position.log_gamma)
        velocity = Parallel().velocity_from_rows(full, constants, image_force, text_force)
        return ConePosition(None, None, velocity.log_gamma)

    def log_gamma(self, position: Position) -> Float[Numeric, ""]:
        return position.log_gamma

    def project(self, position: Position, velocity: Position) -> Position:
        return velocity

    def retract(self, position: Position) -> Position:
        return position


def _gamma(position: ConePosition, constants: ConeConstants) -> Float[Numeric, ""]:
    return constants.sign * jnp.exp(position.log_gamma)


def _cone_force(z: Float[Array, "n n"], force: Float[Array, "n n"]) -> Float[Array, ""]:
    """d ln γ/dt = −2⟨F, Z + 1⟩, from S = (1−γ²)Z − γ²."""
    return -2 * jnp.sum(force * (z + 1))


def _lift(
    image: Float[Array, "n d"], text: Float[Array, "n d"], position: ConePosition, constants: ConeConstants
) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    gamma = _gamma(position, constants)
    radius = jnp.sqrt(1 - gamma**2)
    height = jnp.full((image.shape[0], 1), gamma)
    lifted = (
        jnp.concatenate([radius * image, height], axis=1),
        jnp.concatenate([radius * text, -height], axis=1),
    )
    if constants.basis is None:
        return lifted
    return lifted[0] @ constants.basis.T, lifted[1] @ constants.basis.T


def _split_gamma(start: Start) -> tuple[Any, Any]:
    gamma = start.gamma
    assert gamma is not None
    if start.log_gamma is not None:
        # γ itself may have fallen below the smallest number; its sign stays.
        return np.asarray(np.copysign(1.0, gamma)), np.asarray(start.log_gamma)
    sign = np.asarray(np.sign(gamma))
    return sign, np.asarray(np.log(np.abs(gamma)) if sign else 0.0)


def _cone_start(image: Any, text: Any, log_gamma: Any, constants: ConeConstants) -> Start:
    return Start(
        image=image,
        text=text,
        gamma=np.asarray(constants.sign * np.exp(log_gamma)),
        log_gamma=None if np.all(np.asarray(constants.sign) == 0) else np.asarray(log_gamma),
        basis=constants.basis,
    )
