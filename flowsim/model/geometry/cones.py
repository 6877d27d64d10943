"""Geometries of two parallel cones, the ansatz of the theorems, with flowing or frozen directions."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowsim.base.arrays import Numeric
from flowsim.base.checks import check
from flowsim.base.modules import bundle
from flowsim.errors import FlowsimError
from flowsim.model.geometry.base import (
    AbstractGeometry,
    Constants,
    Position,
    Rows,
    normalise,
    take_rows,
    tangent,
    tangent_rows,
)
from flowsim.model.initial import Start
from flowsim.model.kernels import Shared, check_kernel


@bundle
class ConePosition:
    """Coordinates of two parallel cones.

    Args:
        image: Directions (n, d) of the images; None if frozen.
        text: Directions (n, d) of the texts; None if frozen.
        log_gamma: ln|γ|; meaningless if γ = 0.
    """

    image: Float[Numeric, "n d"] | None
    text: Float[Numeric, "n d"] | None
    log_gamma: Float[Numeric, ""]


@bundle
class ConeConstants:
    """Constants of two parallel cones.

    Args:
        sign: Sign of γ; 0 for γ = 0, an invariant set.
        basis: Basis (D, D) of the cones; None for the standard basis.
        similarity: Z (n, n), if frozen.
        image: Directions (n, d) of the images, if frozen and known.
        text: Directions (n, d) of the texts, if frozen and known.
    """

    sign: Float[Numeric, ""]
    basis: Float[Numeric, "D D"] | None = None
    similarity: Float[Numeric, "n n"] | None = None
    image: Float[Numeric, "n d"] | None = None
    text: Float[Numeric, "n d"] | None = None


class Parallel(AbstractGeometry):
    """Parallel cones, the ansatz of the theorems: X = [√(1−γ²) H_X, γ1], Y = [√(1−γ²) H_Y, −γ1].

    Unit rows H in R^d and one shared height γ flow, each in its own Euclidean metric (not the one induced by
    the embedding), with logits β(1−γ²)Z − βγ², Z = H_X H_Yᵀ:

        dH_X/dt = −Π(β(1−γ²) ∇ℓ H_Y),  d ln γ/dt = −2βg,  g = −⟨Z, ∇ℓ⟩.

    The coordinate is ln|γ|, so γ keeps its relative accuracy even at 1e-40. From mismatched starts γ can
    reach 1 in finite time, where the ansatz ends. Source: Yaras et al. 2025, eqs. 3-4 and 11.

    A kernel K = own·I + shared·11ᵀ of both modalities moves the directions by Π K Π, and multiplies the velocity of γ
    by own + n·shared·(1−γ²), which is what it does to simplex cones on the sphere.

    Args:
        kernel: K, `fs.kernels.Shared(own, shared)`; None for rows that move freely.

    Raises:
        FlowsimError: For another kernel.
    """

    kernel: Shared | None = None
    has_gamma: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_kernel("kernel", self.kernel, Shared)

    @property
    def has_kernels(self) -> bool:
        return self.kernel is not None

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
        radius = _radius(gamma)
        if constants.basis is not None:
            image_force, text_force = image_force @ constants.basis, text_force @ constants.basis
        inner = jnp.sum(image_force[:, :-1] * image) + jnp.sum(text_force[:, :-1] * text)
        outer = jnp.sum(image_force[:, -1]) - jnp.sum(text_force[:, -1])
        # d ln γ = dγ/γ. Forces along the axis are proportional to γ and vanish with it, except where swaps mix the axis
        # with other directions; there `GradientFlow.place` refuses γ = 0.
        safe = jnp.where(gamma == 0, 1.0, gamma)
        log_velocity = jnp.where(gamma == 0, 0.0, outer / safe - inner / radius)
        return ConePosition(
            radius * tangent(image, image_force[:, :-1]),
            radius * tangent(text, text_force[:, :-1]),
            log_velocity,
        )

    def with_kernels(self, position: Position, constants: Constants, velocity: Position) -> Position:
        if self.kernel is None:
            return velocity
        return ConePosition(
            tangent(normalise(position.image), self.kernel.apply(velocity.image)),
            tangent(normalise(position.text), self.kernel.apply(velocity.text)),
            _height_rate(self.kernel, len(position.image), position, constants) * velocity.log_gamma,
        )

    def log_gamma(self, position: Position) -> Float[Numeric, ""]:
        return position.log_gamma

    def project(self, position: Position, velocity: Position) -> Position:
        rows = tangent_rows(Rows(position.image, position.text), Rows(velocity.image, velocity.text))
        return ConePosition(rows.image, rows.text, velocity.log_gamma)

    def retract(self, position: Position) -> Position:
        return ConePosition(normalise(position.image), normalise(position.text), position.log_gamma)

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        rows = take_rows(Rows(position.image, position.text), pairs)
        return ConePosition(rows.image, rows.text, position.log_gamma), constants

    def exits(self, position: Position, constants: Constants, in_steps: bool) -> dict[str, Any]:
        return _below_one(position, constants)


class Reduced(AbstractGeometry):
    """Parallel cones with frozen directions: only ln|γ| and the raw temperature flow, Z is constant.

    d ln γ/dt = −2βg(β(1−γ²)), g(a) = −⟨Z, ∇ℓ(aZ)⟩. Z = H_X H_Yᵀ comes from the directions of the start, or is
    given directly (`fs.initial.from_similarity`); then observables that need vectors are NaN. A kernel multiplies the
    velocity of γ by own + n·shared·(1−γ²), as in `Parallel`.

    Args:
        kernel: K, `fs.kernels.Shared(own, shared)`; None for rows that move freely.

    Raises:
        FlowsimError: For another kernel.
    """

    kernel: Shared | None = None
    has_gamma: ClassVar[bool] = True
    frozen_directions: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_kernel("kernel", self.kernel, Shared)

    @property
    def has_kernels(self) -> bool:
        return self.kernel is not None

    def with_kernels(self, position: Position, constants: Constants, velocity: Position) -> Position:
        if self.kernel is None:
            return velocity
        rate = _height_rate(self.kernel, len(constants.similarity), position, constants)
        return ConePosition(None, None, rate * velocity.log_gamma)

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
            raise FlowsimError("Swaps need rows, but the start has only similarities. Give rows to `Start`.")
        full = ConePosition(constants.image, constants.text, position.log_gamma)
        velocity = Parallel().velocity_from_rows(full, constants, image_force, text_force)
        return ConePosition(None, None, velocity.log_gamma)

    def log_gamma(self, position: Position) -> Float[Numeric, ""]:
        return position.log_gamma

    def project(self, position: Position, velocity: Position) -> Position:
        return velocity

    def retract(self, position: Position) -> Position:
        return position

    def exits(self, position: Position, constants: Constants, in_steps: bool) -> dict[str, Any]:
        return _below_one(position, constants)


def _height_rate(kernel: Shared, pairs: int, position: ConePosition, constants: ConeConstants) -> Float[Array, ""]:
    """own + n·shared·(1−γ²), by which a kernel multiplies the velocity of γ."""
    return kernel.own + pairs * kernel.shared * (1 - _gamma(position, constants) ** 2)


def _gamma(position: ConePosition, constants: ConeConstants) -> Float[Numeric, ""]:
    return constants.sign * jnp.exp(position.log_gamma)


def _radius(gamma: Float[Numeric, ""]) -> Float[Array, ""]:
    """√(1 − γ²), kept positive so that the field is finite where a trial step passes γ = 1."""
    return jnp.sqrt(jnp.maximum(1 - jnp.asarray(gamma) ** 2, 1e-24))


def _below_one(position: ConePosition, constants: ConeConstants) -> dict[str, Any]:
    """The domain |γ| < 1; γ = 0 cannot leave it."""
    log_gamma = position.log_gamma
    return {"gamma_one": jnp.where(constants.sign == 0, jnp.ones_like(log_gamma), -log_gamma)}


def _cone_force(z: Float[Array, "n n"], force: Float[Array, "n n"]) -> Float[Array, ""]:
    """d ln γ/dt = −2⟨F, Z + 1⟩, from S = (1−γ²)Z − γ²."""
    return -2 * jnp.sum(force * (z + 1))


def _lift(
    image: Float[Array, "n d"], text: Float[Array, "n d"], position: ConePosition, constants: ConeConstants
) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
    gamma = _gamma(position, constants)
    radius = _radius(gamma)
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
        # γ itself may have underflowed, but keeps its sign.
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
