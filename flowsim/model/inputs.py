"""Starts of encoders: inputs and random weights, from latent factors or from frozen features of real pairs."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float

from flowsim.base.arrays import number, plain
from flowsim.base.checks import check, check_number, check_whole, shown
from flowsim.data.features import Features
from flowsim.model.recipe import AbstractRecipe, check_dim, check_pairs, generator, rotation
from flowsim.model.start import Start


class Latents(AbstractRecipe):
    """Inputs and weights for encoders, from latent factors z ~ N(0, I) of each pair.

    Each encoder sees the factors through its own random rotation. Weights are N(0, 1/fan-in).

    Args:
        pairs: n, at least 2.
        factors: Number of latent factors of a pair; the image encoder sees all of them.
        text_factors: The text encoder sees only this many (information imbalance). Default: all.
        dim: Dimension of the embeddings, at least 2.
        hidden: Units of the hidden layer of `MLPEncoders`; None for `LinearEncoders`.
        texts_per_image: Consecutive pairs with the same image input, whose texts differ by noise; divides `pairs`.
        noise: Standard deviation of Gaussian noise on the text inputs.

    Raises:
        FlowsimError: If an argument is out of range.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.latents(pairs=16, factors=8, text_factors=4).draw()
        >>> start.image_inputs.shape, start.text_inputs.shape
        ((16, 8), (16, 4))
    """

    pairs: int = eqx.field(static=True, converter=plain, default=16)
    factors: int = eqx.field(static=True, converter=plain, default=8)
    text_factors: int | None = eqx.field(static=True, converter=plain, default=None)
    dim: int = eqx.field(static=True, converter=plain, default=8)
    hidden: int | None = eqx.field(static=True, converter=plain, default=None)
    texts_per_image: int = eqx.field(static=True, converter=plain, default=1)
    noise: Any = eqx.field(converter=number, default=0.0)

    def __check_init__(self) -> None:
        check_pairs(self.pairs)
        check_dim(self.dim)
        for name in ("factors", "text_factors", "hidden", "texts_per_image"):
            value = getattr(self, name)
            if value is not None or name not in ("text_factors", "hidden"):
                check_whole(name, value, 1, "Use e.g. 4.")
        check(
            self.text_factors is None or self.text_factors <= self.factors,
            f"`text_factors` is {self.text_factors}, but there are {self.factors} factors. Use at most that many.",
        )
        check(
            self.pairs % self.texts_per_image == 0,
            f"{self.pairs} pairs do not form groups of {self.texts_per_image}. Use a multiple of `texts_per_image`.",
        )
        check_number("noise", self.noise, minimum=0.0, cure="Use e.g. 0.1.")

    def draw(self, seed: int = 0) -> Start:
        rng = generator(seed)
        latent = rng.standard_normal((self.pairs // self.texts_per_image, self.factors))
        latent = np.repeat(latent, self.texts_per_image, axis=0)
        seen = self.factors if self.text_factors is None else self.text_factors
        image_inputs = latent @ rotation(rng, self.factors)
        text_inputs = latent[:, :seen] @ rotation(rng, seen)
        # Drawn also without noise, so that the weights of a seed do not depend on it.
        text_inputs = text_inputs + float(self.noise) * rng.standard_normal(text_inputs.shape)
        layers = [_layers(rng, size, self.hidden, self.dim) for size in (self.factors, seen)]
        return Start(
            image_inputs=image_inputs,
            text_inputs=text_inputs,
            image_hidden=layers[0][0],
            image_weights=layers[0][1],
            text_hidden=layers[1][0],
            text_weights=layers[1][1],
        )


class FromFeatures(AbstractRecipe):
    """Frozen features of real pairs as inputs of encoders, with random weights N(0, 1/fan-in).

    The encoders are then heads on frozen towers, as in locked tuning: `LinearEncoders` without hidden units,
    `MLPEncoders` with them.

    Args:
        data: The pairs to train on, e.g. `fs.data.emoji().scaled("length").part("train")`. The scaling "length" keeps
            the means of the features, the common mode that opens a gap at the start; "standard" removes it.
        dim: Dimension of the embeddings, at least 2.
        hidden: Units of the hidden layer, e.g. 512; None for linear heads.

    Raises:
        FlowsimError: If an argument is out of range, or `data` are no features.

    Examples:
        >>> import flowsim as fs
        >>> data = fs.data.emoji().scaled("length").part("train")
        >>> start = fs.initial.from_features(data, dim=32, hidden=64).draw(seed=1)
        >>> start.image_inputs.shape, start.text_inputs.shape, start.image_hidden.shape
        ((1332, 128), (1332, 2, 128), (128, 64))
    """

    data: Features = eqx.field(static=True)
    dim: int = eqx.field(static=True, converter=plain, default=128)
    hidden: int | None = eqx.field(static=True, converter=plain, default=None)

    def __check_init__(self) -> None:
        check(
            isinstance(self.data, Features),
            f"Argument `data` cannot be {shown(self.data)}. Use features, e.g. fs.data.emoji() or fs.data.load(path).",
        )
        check_pairs(self.data.pairs)
        check_dim(self.dim)
        if self.hidden is not None:
            check_whole("hidden", self.hidden, 1, "Use e.g. 512, or None for linear heads.")

    def draw(self, seed: int = 0) -> Start:
        image_hidden, image, text_hidden, text = self.weights(seed)
        image_inputs, text_inputs = self.inputs(np.float64)
        counts = self.data.counts
        return Start(
            image_inputs=image_inputs,
            text_inputs=text_inputs if self.data.captions > 1 else text_inputs[:, 0],
            text_counts=None if counts is None or counts.min() == self.data.captions else counts,
            image_hidden=image_hidden,
            image_weights=image,
            text_hidden=text_hidden,
            text_weights=text,
        )

    def weights(self, seed: int = 0) -> tuple[Any, Any, Any, Any]:
        """Random weights: hidden (p, h) and last layer (h or p, d) of the images, and those of the texts.

        Args:
            seed: As for `draw`.
        """
        rng = generator(seed)
        sizes = self.data.image_dim, self.data.text_dim
        image, text = (_layers(rng, size, self.hidden, self.dim) for size in sizes)
        return *image, *text

    def inputs(self, dtype: Any = np.float64) -> tuple[Float[np.ndarray, "n p"], Float[np.ndarray, "n c q"]]:
        """Scaled features of images, and of all captions of each; where there are fewer captions, rows are 0.

        Args:
            dtype: Of the features.
        """
        rows, owner = self.data.every_text(dtype)
        counts = np.bincount(owner, minlength=self.data.pairs)
        texts = np.zeros((self.data.pairs, self.data.captions, self.data.text_dim), dtype)
        texts[owner, np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)] = rows
        return self.data.image_rows(dtype=dtype), texts


def _layers(
    rng: np.random.Generator, inputs: int, hidden: int | None, dim: int
) -> tuple[Float[np.ndarray, "p h"] | None, Float[np.ndarray, "k d"]]:
    first = None if hidden is None else rng.standard_normal((inputs, hidden)) / np.sqrt(inputs)
    width = inputs if hidden is None else hidden
    return first, rng.standard_normal((width, dim)) / np.sqrt(width)
