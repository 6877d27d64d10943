"""Geometries of rows: free on the unit sphere, without normalisation, and confined to hyperplanes."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Array, Float, Int

from flowsim.base.arrays import Numeric, number
from flowsim.base.checks import check, check_number, is_concrete
from flowsim.base.modules import bundle
from flowsim.model.geometry.base import (
    AbstractRowGeometry,
    Constants,
    Position,
    Rows,
    normalise,
    take_rows,
    tangent,
    tangent_rows,
)
from flowsim.model.initial import Start
from flowsim.model.kernels import AbstractKernel, check_kernel


class Sphere(AbstractRowGeometry):
    """Every row of both modalities moves freely on the unit sphere S^{d−1}.

    Riemannian gradient flow: dX/dt = −k Π_X(β ∇ℓ Y), dY/dt = −k Π_Y(β ∇ℓᵀ X), where Π is the row-wise tangent
    projection. It is the flow of Figure 2 of Yaras et al. 2025. With kernels K the rows of a modality move together, as
    the outputs of an encoder do: dX/dt = −k Π_X K_X Π_X(β ∇ℓ Y).

    Args:
        embedding_rate: k, the learning rate of the embeddings; the raw temperature has its own `lr_ratio`.
        image_kernel: K_X, e.g. `fs.kernels.Shared(1.0, 0.1)`; None for rows that move freely.
        text_kernel: K_Y.

    Raises:
        FlowsimError: If `embedding_rate` is not positive, or something else than a kernel is given.
    """

    embedding_rate: Any = eqx.field(converter=number, default=1.0)
    image_kernel: AbstractKernel | None = None
    text_kernel: AbstractKernel | None = None

    def __check_init__(self) -> None:
        check_number("embedding_rate", self.embedding_rate, positive=True, cure="Use e.g. 1.0.")
        check_kernel("image_kernel", self.image_kernel)
        check_kernel("text_kernel", self.text_kernel)

    @property
    def rate(self) -> Any:
        return self.embedding_rate

    @property
    def has_kernels(self) -> bool:
        return self.image_kernel is not None or self.text_kernel is not None

    def place(self, start: Start) -> tuple[Position, Constants]:
        image, text = start.rows()
        _check_fits(self, image)
        return Rows(image, text), None

    def to_start(self, position: Position, constants: Constants) -> Start:
        unit = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (position.image, position.text)]
        return Start(image=unit[0], text=unit[1])

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Array, "n D"], Float[Array, "n D"]]:
        # Normalising inside the field makes the radial direction neutral rather than unstable.
        return normalise(position.image), normalise(position.text)

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        image, text = self.rows(position, constants)
        return Rows(tangent(image, image_force), tangent(text, text_force))

    def with_kernels(self, position: Position, constants: Constants, velocity: Position) -> Position:
        image, text = self.rows(position, constants)
        moved = _moved(self, velocity)
        return Rows(
            velocity.image if self.image_kernel is None else tangent(image, moved.image),
            velocity.text if self.text_kernel is None else tangent(text, moved.text),
        )

    def project(self, position: Position, velocity: Position) -> Position:
        return tangent_rows(position, velocity)

    def retract(self, position: Position) -> Position:
        return Rows(normalise(position.image), normalise(position.text))

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        return take_rows(position, pairs), constants


class Unnormalized(AbstractRowGeometry):
    """Free rows in R^d without normalisation: logits β⟨x_i, y_j⟩, dX/dt = −β∇ℓ Y, dY/dt = −β∇ℓᵀ X.

    Use it with a fixed temperature, since β only rescales the rows. Their lengths grow without bound; observables
    of directions use cosines. Source: "Remove Normalization" of Yaras et al. 2025, section 5. With kernels
    dX/dt = −K_X β∇ℓ Y; for linear encoders without normalisation, with K = A Aᵀ of the inputs A, this is the flow of
    the weights itself.

    Args:
        image_kernel: K_X, e.g. `fs.kernels.Dense(inputs @ inputs.T)`; None for rows that move freely.
        text_kernel: K_Y.

    Raises:
        FlowsimError: If something else than a kernel is given.
    """

    image_kernel: AbstractKernel | None = None
    text_kernel: AbstractKernel | None = None

    def __check_init__(self) -> None:
        check_kernel("image_kernel", self.image_kernel)
        check_kernel("text_kernel", self.text_kernel)

    @property
    def has_kernels(self) -> bool:
        return self.image_kernel is not None or self.text_kernel is not None

    def place(self, start: Start) -> tuple[Position, Constants]:
        image, text = start.rows()
        _check_fits(self, image)
        return Rows(image, text), None

    def with_kernels(self, position: Position, constants: Constants, velocity: Position) -> Position:
        return _moved(self, velocity)

    def to_start(self, position: Position, constants: Constants) -> Start:
        return Start(image=position.image, text=position.text)

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Numeric, "n D"], Float[Numeric, "n D"]]:
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

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        return take_rows(position, pairs), constants


class Subspaces(AbstractRowGeometry):
    """Unit rows, each modality confined to its own hyperplane through 0.

    The last coordinate of image rows is 0; text rows are orthogonal to cos φ e_D + sin φ e_{D−1}. Riemannian
    gradient flow within each great sphere: dX/dt = −Π_X P_X(β∇ℓ Y), where P is the projection onto the hyperplane.
    Source: arXiv 2510.03268 (dimension collapse of the modalities).

    Args:
        angle: φ, the angle between the normals of the two hyperplanes, from 0 to 90 degrees.

    Raises:
        FlowsimError: If `angle` is out of range.
    """

    angle: Any = eqx.field(converter=number, default=60.0)

    def __check_init__(self) -> None:
        check_number("angle", self.angle, minimum=0.0, cure="Use degrees between 0 and 90.")
        if is_concrete(self.angle):
            check(self.angle <= 90, f"Argument `angle` must be at most 90, but is {float(self.angle):g}. Use degrees.")

    def place(self, start: Start) -> tuple[Position, Constants]:
        """The rows of a start, projected onto their hyperplanes and scaled to unit length.

        Raises:
            FlowsimError: If a row is orthogonal to its hyperplane.
        """
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
        # Steps entry by entry (Adam) may leave a tilted hyperplane; the part outside is dropped.
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
        return tangent_rows(position, velocity)

    def retract(self, position: Position) -> Position:
        return Rows(normalise(position.image), normalise(position.text))

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        return take_rows(position, pairs), constants


@bundle
class Hyperplanes:
    """The hyperplanes of both modalities.

    Args:
        image: Unit normal (D,) of the hyperplane of the images.
        text: Unit normal (D,) of the hyperplane of the texts.
    """

    image: Float[Numeric, "D"]
    text: Float[Numeric, "D"]


def _check_fits(geometry: Sphere | Unnormalized, rows: Numeric) -> None:
    """Refuse kernels of another size than the rows of a start."""
    for kernel in (geometry.image_kernel, geometry.text_kernel):
        if kernel is not None:
            kernel.check_fits(*rows.shape)


def _moved(geometry: Sphere | Unnormalized, velocity: Rows) -> Rows:
    """Velocities under the kernels of both modalities."""
    image, text = geometry.image_kernel, geometry.text_kernel
    return Rows(
        velocity.image if image is None else image.apply(velocity.image),
        velocity.text if text is None else text.apply(velocity.text),
    )


def _without(vectors: Float[Numeric, "... D"], normal: Float[Numeric, "D"]) -> Float[Numeric, "... D"]:
    return vectors - (vectors @ normal)[..., None] * normal[(None,) * (vectors.ndim - 1)]
