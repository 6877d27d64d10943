"""Encoders: inputs are fixed, weights flow, and the outputs, scaled to unit length, are the rows.

A linear or two-layer encoder per modality, on synthetic latents (`fs.initial.latents`) or on frozen features of real
pairs (`fs.initial.from_features`). Latents are the smallest setting in which one modality can have less information
than the other, and in which equal inputs keep equal rows. On features, encoders are the heads that practitioners train.

Where an output shrinks to 0 its row has no direction and the flow ends. Rows turn ever faster on the way there, so a
run ends at `SMALLEST_OUTPUT`. Give the embeddings as many dimensions as there are factors, or use an optimizer, whose
finite steps jump over such points.
"""

import abc
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from flowsim.base.arrays import Numeric, plain
from flowsim.base.checks import check, check_flag
from flowsim.base.modules import bundle
from flowsim.model.geometry.base import AbstractRowGeometry, Constants, Position, normalise
from flowsim.model.initial import Start

if TYPE_CHECKING:
    # Type checkers take an AbstractVar for a field, which they put before the fields of the subclass.
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar

#: Length of an output, relative to the root mean square of its modality, at which a flow of encoders ends.
SMALLEST_OUTPUT = 5e-3


@bundle
class Weights:
    """The weights of both encoders, which flow.

    Args:
        image_hidden: Hidden layer (p, h) of the image encoder; None for a linear one.
        image_weights: Last layer (p or h, d) of the image encoder.
        text_hidden: Hidden layer (q, h) of the text encoder; None for a linear one.
        text_weights: Last layer (q or h, d) of the text encoder.
    """

    image_hidden: Float[Numeric, "p h"] | None
    image_weights: Float[Numeric, "k d"]
    text_hidden: Float[Numeric, "q h"] | None
    text_weights: Float[Numeric, "l d"]


@bundle
class Inputs:
    """The fixed inputs of both encoders.

    Args:
        image: Inputs (n, p) of the image encoder.
        text: Inputs (n, q) of the text encoder, or (n, c, q) for c texts of each image. Minibatches choose one of them;
            otherwise it is the first.
        counts: Number of texts of each image; None if all have c.
    """

    image: Float[Numeric, "... n p"]
    text: Float[Numeric, "... q"]
    counts: Int[Numeric, "n"] | None = None

    @property
    def first_text(self) -> Float[Numeric, "n q"]:
        """Inputs (n, q) of the first text of each image."""
        return self.text if self.text.ndim == 2 else self.text[:, 0]


class AbstractEncoders(AbstractRowGeometry):
    """Rows f(A)/|f(A)| of inputs A, with the gradient flow of the weights in the Euclidean metric.

    Attributes:
        normalize: Whether rows have unit length; otherwise they are the outputs f(A).
    """

    normalize: AbstractVar[bool]

    @abc.abstractmethod
    def encode(self, inputs: Any, hidden: Any, last: Any) -> Any:
        """Outputs (n, d) before they are scaled to unit length.

        Args:
            inputs: Inputs (n, p) of one encoder.
            hidden: Weights (p, h) of its first layer; None if it has one layer.
            last: Weights (p or h, d) of its last layer.
        """

    def rows(self, position: Position, constants: Constants) -> tuple[Float[Numeric, "n D"], Float[Numeric, "n D"]]:
        image = self.encode(constants.image, position.image_hidden, position.image_weights)
        text = self.encode(constants.first_text, position.text_hidden, position.text_weights)
        return (normalise(image), normalise(text)) if self.normalize else (image, text)

    def smallest_output(self, position: Position, constants: Constants) -> Float[Array, ""]:
        """Length of the shortest output, relative to the root mean square of its modality."""
        shortest = []
        for inputs, hidden, last in (
            (constants.image, position.image_hidden, position.image_weights),
            (constants.first_text, position.text_hidden, position.text_weights),
        ):
            squared = jnp.sum(self.encode(inputs, hidden, last) ** 2, axis=1)
            shortest.append(jnp.sqrt(jnp.min(squared) / jnp.mean(squared)))
        return jnp.minimum(*shortest)

    def exits(self, position: Position, constants: Constants, in_steps: bool) -> dict[str, Any]:
        if in_steps or not self.normalize:
            return {}
        return {"output_zero": self.smallest_output(position, constants) - SMALLEST_OUTPUT}

    def velocity_from_rows(
        self,
        position: Position,
        constants: Constants,
        image_force: Float[Array, "n D"],
        text_force: Float[Array, "n D"],
    ) -> Position:
        _, pull_back = jax.vjp(lambda weights: self.rows(weights, constants), position)
        return pull_back((image_force, text_force))[0]

    def project(self, position: Position, velocity: Position) -> Position:
        return velocity

    def retract(self, position: Position) -> Position:
        return position

    def take(
        self, position: Position, constants: Constants, pairs: Int[Array, "b"], texts: Int[Array, "b"] | None = None
    ) -> tuple[Position, Constants]:
        if constants.text.ndim == 2:
            text = constants.text[pairs]
        else:
            text = constants.text[pairs, jnp.zeros_like(pairs) if texts is None else texts]
        return position, Inputs(constants.image[pairs], text)

    def texts(self, constants: Constants) -> np.ndarray | None:
        if constants.text.ndim == 2:
            return None
        if constants.counts is None:
            return np.full(constants.text.shape[0], constants.text.shape[1])
        return np.asarray(constants.counts)

    def to_start(self, position: Position, constants: Constants) -> Start:
        # Results are assembled outside a solve, where JAX may be in single precision.
        with jax.enable_x64(np.asarray(position.image_weights).dtype == np.float64):
            at_times = np.ndim(position.image_weights) == 3
            rows = jax.vmap(self.rows, (0, None)) if at_times else self.rows
            image, text = (np.asarray(x) for x in rows(position, constants))
        return Start(
            image=image,
            text=text,
            image_inputs=constants.image,
            text_inputs=constants.text,
            text_counts=constants.counts,
            image_hidden=position.image_hidden,
            text_hidden=position.text_hidden,
            image_weights=position.image_weights,
            text_weights=position.text_weights,
        )


class LinearEncoders(AbstractEncoders):
    """A linear encoder per modality: rows A W/|A W|, dW/dt = −∂L/∂W.

    It needs a start with inputs (`fs.initial.latents`, `fs.initial.from_features`).

    Args:
        normalize: Whether rows have unit length; False is "No normalization" of Yaras et al. 2025, to be used with a
            fixed temperature.

    Raises:
        FlowsimError: If `normalize` is neither True nor False.
    """

    normalize: bool = eqx.field(static=True, converter=plain, default=True)

    def __check_init__(self) -> None:
        check_flag("normalize", self.normalize)

    def encode(self, inputs: Any, hidden: Any, last: Any) -> Any:
        return inputs @ last

    def place(self, start: Start) -> tuple[Position, Constants]:
        _check_start(start, layers=1, name="LinearEncoders")
        return Weights(None, start.image_weights, None, start.text_weights), Inputs(
            start.image_inputs, start.text_inputs, start.text_counts
        )


class MLPEncoders(AbstractEncoders):
    """A two-layer perceptron per modality: rows gelu(A V) W, scaled to unit length; V and W flow.

    It needs a start with inputs and two layers (`hidden` of `fs.initial.latents` and `fs.initial.from_features`). The
    smooth gelu lets the integrator take large steps.

    Args:
        normalize: As for `LinearEncoders`.

    Raises:
        FlowsimError: If `normalize` is neither True nor False.
    """

    normalize: bool = eqx.field(static=True, converter=plain, default=True)

    def __check_init__(self) -> None:
        check_flag("normalize", self.normalize)

    def encode(self, inputs: Any, hidden: Any, last: Any) -> Any:
        return jax.nn.gelu(jnp.asarray(inputs @ hidden), approximate=False) @ last

    def place(self, start: Start) -> tuple[Position, Constants]:
        _check_start(start, layers=2, name="MLPEncoders")
        weights = Weights(start.image_hidden, start.image_weights, start.text_hidden, start.text_weights)
        return weights, Inputs(start.image_inputs, start.text_inputs, start.text_counts)


def _check_start(start: Start, layers: int, name: str) -> None:
    check(
        start.image_inputs is not None,
        f"`{name}` needs inputs and weights, but the start holds rows. Use fs.initial.latents(), or "
        "fs.initial.from_features(data).",
    )
    found = 1 if start.image_hidden is None else 2
    cure = "Leave out `hidden`" if layers == 1 else "Give `hidden`, e.g. 32,"
    check(
        found == layers, f"`{name}` has {layers} layer(s), but the start has weights of {found}. {cure} in the recipe."
    )
