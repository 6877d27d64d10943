"""Modality swapping: parts of the image and text features are exchanged before the loss is computed.

In a fraction p of training the loss sees swapped features, without renormalisation. In continuous time a swap acts
on the loss, not on the state: the small-step limit of training is the gradient flow of

    (1 − p) L(X, Y) + p E_w[ L(X', Y') ],    X' = wX + (1 − w)Y,  Y' = (1 − w)X + wY,

with random weights w. The expectation is a sample average over `masks` draws, so the vector field is
deterministic. The draws are fixed for the whole run (averaged flow), or redrawn at intervals `redraw` of flow time
(piecewise flow), which tends to the same limit as the interval shrinks. An optimizer draws in every step.
Source: Yaras et al. 2025, section 5; continuous-time form derived here.
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractClassVar
from jaxtyping import Array

from flowsim.base.arrays import number, optional_number, plain
from flowsim.base.checks import check_choice, check_fraction, check_redraw, check_whole
from flowsim.base.modules import Described

if TYPE_CHECKING:
    # Type checkers take an AbstractVar for a field, which they put before the fields of the subclass.
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar


class AbstractSwap(Described):
    """A rule that exchanges features between modalities in a fraction of training.

    Attributes:
        fraction: p, the fraction of training with a swap.
        masks: K, the number of draws that approximate the expectation.
        redraw: Flow time between two draws; None keeps the first.
        active: Whether anything is exchanged.
        splits_rows: Whether the entries of a row are exchanged independently of each other.
    """

    fraction: AbstractVar[Any]
    masks: AbstractVar[int]
    redraw: AbstractVar[Any]
    active: AbstractClassVar[bool]
    splits_rows: ClassVar[bool] = True

    @abc.abstractmethod
    def draw(self, key: Array, count: int, pairs: int, dim: int, dtype: Any) -> Array | None:
        """Random weights w; 1 means no swap.

        Args:
            key: A random key of JAX.
            count: The number of draws.
            pairs: n, the number of pairs.
            dim: d, the number of entries of a row.
            dtype: Of the weights, e.g. float64.

        Returns:
            An array (count, pairs, dim) or (count, pairs, 1); None if nothing is ever exchanged.
        """

    @abc.abstractmethod
    def apply(self, weights: Any, image: Any, text: Any) -> tuple[Any, Any]:
        """Swapped features (X', Y'), for JAX arrays or torch tensors.

        Args:
            weights: One draw of weights, (n, d) or (n, 1).
            image: X (n, d).
            text: Y (n, d).
        """


class NoSwap(AbstractSwap):
    """No swap: the loss sees the features themselves."""

    fraction: ClassVar[float] = 0.0
    masks: ClassVar[int] = 0
    redraw: ClassVar[None] = None
    active: ClassVar[bool] = False
    splits_rows: ClassVar[bool] = False

    def draw(self, key: Array, count: int, pairs: int, dim: int, dtype: Any) -> Array | None:
        return None

    def apply(self, weights: Any, image: Any, text: Any) -> tuple[Any, Any]:
        return image, text


class HardSwap(AbstractSwap):
    """Hard swap ("HS" of Yaras et al. 2025): each entry or whole row is exchanged with probability 1/2.

    Args:
        fraction: p, the fraction of training with a swap.
        by: What is exchanged, "entry" or "row".
        masks: K, the number of draws that approximate the expectation.
        redraw: Flow time between two draws, for a piecewise flow; None keeps the first.

    Raises:
        FlowsimError: If `fraction` is outside [0, 1], `masks` is not a positive whole number, `redraw` is not
            positive, or `by` is unknown.
    """

    fraction: Any = eqx.field(converter=number, default=0.001)
    by: str = eqx.field(static=True, converter=plain, default="entry")
    masks: int = eqx.field(static=True, converter=plain, default=64)
    redraw: Any = eqx.field(converter=optional_number, default=None)
    active: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_numbers(self)
        check_choice("swap unit", self.by, ("entry", "row"))

    @property
    def splits_rows(self) -> bool:
        return self.by == "entry"

    def draw(self, key: Array, count: int, pairs: int, dim: int, dtype: Any) -> Array | None:
        shape = (count, pairs, dim if self.by == "entry" else 1)
        return jax.random.bernoulli(key, 0.5, shape).astype(dtype)

    def apply(self, weights: Any, image: Any, text: Any) -> tuple[Any, Any]:
        return weights * image + (1 - weights) * text, (1 - weights) * image + weights * text


class SoftSwap(AbstractSwap):
    """Soft swap ("SS" of Yaras et al. 2025): each entry is mixed with its partner, X' = λX + (1−λ)Y, λ_ij ~ U[0, 1].

    Args:
        fraction: p, the fraction of training with a swap.
        reading: "old": Y' = λY + (1−λ)X. "updated": Y' = λY + (1−λ)X', the paper's second line read literally.
        masks: K, the number of draws that approximate the expectation.
        redraw: Flow time between two draws, for a piecewise flow; None keeps the first.

    Raises:
        FlowsimError: If `fraction` is outside [0, 1], `masks` is not a positive whole number, `redraw` is not
            positive, or `reading` is unknown.
    """

    fraction: Any = eqx.field(converter=number, default=0.05)
    reading: str = eqx.field(static=True, converter=plain, default="old")
    masks: int = eqx.field(static=True, converter=plain, default=64)
    redraw: Any = eqx.field(converter=optional_number, default=None)
    active: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_numbers(self)
        check_choice("reading of the soft swap", self.reading, ("old", "updated"))

    def draw(self, key: Array, count: int, pairs: int, dim: int, dtype: Any) -> Array | None:
        return jax.random.uniform(key, (count, pairs, dim), dtype)

    def apply(self, weights: Any, image: Any, text: Any) -> tuple[Any, Any]:
        new_image = weights * image + (1 - weights) * text
        source = image if self.reading == "old" else new_image
        return new_image, weights * text + (1 - weights) * source


def step_weights(swap: AbstractSwap, whether: Array, masks: Array, pairs: int, dim: int, dtype: Any) -> Array | None:
    """Weights of one step of training: a draw with probability p, else ones (no swap).

    Simulated and real training share this function.

    Args:
        swap: The swap.
        whether: The random key that decides whether to swap.
        masks: The random key of the draw.
        pairs: n, the number of pairs.
        dim: d, the number of entries of a row.
        dtype: Of the weights, e.g. float64.

    Returns:
        An array (1, n, d) or (1, n, 1); None if nothing is ever exchanged.
    """
    weights = swap.draw(masks, 1, pairs, dim, dtype)
    return None if weights is None else jnp.where(jax.random.bernoulli(whether, swap.fraction), weights, 1.0)


def _check_numbers(swap: HardSwap | SoftSwap) -> None:
    check_fraction("fraction", swap.fraction)
    check_whole("masks", swap.masks, 1, "Use e.g. 64.")
    check_redraw(swap.redraw)
