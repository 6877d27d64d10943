"""Pairings: the target distributions of the loss, that is, the texts towards which each image is pulled.

*Mispaired* means wrong targets (this module); *mismatched* means margin ≤ 0 (a property of a state).
"""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractClassVar
from jaxtyping import Array, Float, Int

from flowsim.base.arrays import LARGE, number, optional_number, plain
from flowsim.base.checks import check, check_fraction, check_redraw, check_whole, is_concrete
from flowsim.base.modules import Described, bundle

if TYPE_CHECKING:
    # Type checkers take an AbstractVar for a field, which they put before the fields of the subclass.
    from typing import ClassVar as AbstractVar
else:
    from equinox import AbstractVar


@bundle
class Targets:
    """Target distributions of both softmaxes.

    They are either matrices or, for many pairs, given by `text_of` and `noise`, which needs no n×n matrix. All None
    means the identity, for which losses have a faster path.

    Args:
        rows: (n, n): the target of text j for image i; each row sums to 1.
        columns: (n, n): the target of image i for text j; each column sums to 1.
        text_of: (n,): the text of image i; None for text i.
        noise: p: the target is 1 − p for the text of an image and p/(n − 1) for every other; None for 0.
    """

    rows: Float[Array, "n n"] | None = None
    columns: Float[Array, "n n"] | None = None
    text_of: Int[Array, "n"] | None = None
    noise: Float[Array, ""] | None = None

    @property
    def matched(self) -> bool:
        """Whether the targets are the identity."""
        return self.rows is None and self.text_of is None and self.noise is None

    def matrices(self, pairs: int, dtype: Any) -> tuple[Float[Array, "n n"] | None, Float[Array, "n n"] | None]:
        """`rows` and `columns` (n, n), also if they are given by `text_of` and `noise`; None for the identity.

        Args:
            pairs: n, the number of pairs.
            dtype: Of matrices that are made here, e.g. float64.
        """
        if self.rows is not None or self.matched:
            return self.rows, self.columns
        index = jnp.arange(pairs)
        hard = index if self.text_of is None else self.text_of
        own = (hard[:, None] == index[None, :]).astype(dtype)
        full = own if self.noise is None else (1 - self.noise) * own + self.noise / (pairs - 1) * (1 - own)
        return full, full


class AbstractPairing(Described):
    """A rule that gives the targets.

    Attributes:
        redraw: Flow time between two draws of the targets; None draws them once.
        fresh: Whether an optimizer draws new targets in every step (see `draw`).
        identity: Whether image i always belongs to text i, so that nothing is drawn.
        for_batches: Whether the rule also holds within a minibatch, where its targets are drawn in every step.
    """

    redraw: AbstractVar[Any]
    fresh: AbstractClassVar[bool]
    identity: ClassVar[bool] = False
    for_batches: ClassVar[bool] = False

    @abc.abstractmethod
    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets of the flow; if `fresh`, those of the small-step limit.

        Args:
            key: A random key of JAX.
            pairs: n, the number of pairs.
            dtype: Of the targets, e.g. float64.
        """

    def draw(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets of one step of an optimizer, if `fresh`; arguments as for `targets`."""
        return self.targets(key, pairs, dtype)


class Matched(AbstractPairing):
    """Image i belongs to text i: identity targets."""

    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False
    identity: ClassVar[bool] = True
    for_batches: ClassVar[bool] = True

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        return Targets()


class LabelNoise(AbstractPairing):
    """Soft targets (1 − p) I + p/(n − 1) (J − I), with J the matrix of ones: a fraction p of the labels is wrong.

    At fixed temperature the flow has an interior equilibrium with βm = ln[(1 − p)(n − 1)/p], where m is the mean
    cosine of pairs minus that of non-pairs.

    Args:
        noise: p, in [0, 1).

    Raises:
        FlowsimError: If `noise` is outside [0, 1).
    """

    noise: Any = eqx.field(converter=number, default=0.1)
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False
    for_batches: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_fraction("noise", self.noise)
        if is_concrete(self.noise):
            check(self.noise < 1, "Argument `noise` must be below 1, but is 1. Use e.g. 0.1.")

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        return _soft(jnp.asarray(self.noise, dtype), pairs)


class FrozenMispairing(AbstractPairing):
    """A random fraction of the images has the text of another image as its target, fixed throughout (a cyclic shift).

    Args:
        fraction: The fraction of mispaired images, rounded to whole pairs. A single pair cannot be exchanged and
            stays right.

    Raises:
        FlowsimError: If `fraction` is outside [0, 1].
    """

    fraction: Any = eqx.field(converter=number, default=0.25)
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_fraction("fraction", self.fraction)

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        order = jax.random.permutation(key, pairs)
        place = jnp.arange(pairs)
        count = _whole_pairs(self.fraction, pairs)
        following = jnp.where(place < count - 1, place + 1, jnp.where(place == count - 1, 0, place))
        return _permuted(jnp.zeros(pairs, place.dtype).at[order].set(order[following]), dtype)


class FreshRepairing(AbstractPairing):
    """A new random fraction of the pairs is permuted at random in every step.

    The loss is linear in the targets, so the small-step limit is the flow with the expected targets: label noise
    p = (m − 1)/n for m = fraction·n permuted pairs.

    Args:
        fraction: The fraction of permuted pairs, rounded to whole pairs.
        redraw: Flow time between two permutations, for a piecewise flow that tends to the same limit as the interval
            shrinks. None for the limit itself.

    Raises:
        FlowsimError: If `fraction` is outside [0, 1] or `redraw` is not positive.
    """

    fraction: Any = eqx.field(converter=number, default=0.25)
    redraw: Any = eqx.field(converter=optional_number, default=None)
    fresh: ClassVar[bool] = True
    for_batches: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_redraw(self.redraw)

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        if self.redraw is None:
            changed = jnp.maximum(_whole_pairs(self.fraction, pairs) - 1, 0)
            return _soft(changed.astype(dtype) / pairs, pairs)
        return self.draw(key, pairs, dtype)

    def draw(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets of one random permutation; arguments as for `targets`."""
        who, how = jax.random.split(key)
        member = jax.random.permutation(who, pairs) < _whole_pairs(self.fraction, pairs)
        place = jnp.arange(pairs)
        # Members in their order and in a random order; all others keep their places.
        ordered = jnp.argsort(jnp.where(member, place, pairs + place))
        shuffled = jnp.argsort(jnp.where(member, jax.random.permutation(how, pairs), pairs + place))
        return _permuted(jnp.zeros(pairs, place.dtype).at[ordered].set(shuffled), dtype)


class Clusters(AbstractPairing):
    """Groups of consecutive pairs with the same meaning: every text of a group is a target of its images.

    The targets are 1/size within a group, as for several captions per image, or for duplicates.

    Args:
        size: Pairs per group; it must divide the number of pairs.

    Raises:
        FlowsimError: If `size` is not a positive whole number; when a run starts, if it does not divide the pairs.
    """

    size: int = eqx.field(static=True, converter=plain, default=2)
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_whole("size", self.size, 1, "Use e.g. 2: groups are consecutive pairs.")

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        check(
            pairs % self.size == 0,
            f"{pairs} pairs do not form clusters of {self.size}. Use a number of pairs that {self.size} divides.",
        )
        group = jnp.arange(pairs) // self.size
        shared = (group[:, None] == group[None, :]).astype(dtype) / self.size
        return Targets(rows=shared, columns=shared)


def _soft(p: Float[Array, ""], pairs: int) -> Targets:
    """Targets (1 − p) I + p/(n − 1) (J − I)."""
    if pairs >= LARGE:
        return Targets(noise=p)
    eye = jnp.eye(pairs, dtype=p.dtype)
    soft = (1 - p) * eye + p / (pairs - 1) * (1 - eye)
    return Targets(rows=soft, columns=soft)


def _permuted(text_of: Int[Array, "n"], dtype: Any) -> Targets:
    """Hard targets: text `text_of[i]` for image i."""
    if text_of.shape[0] >= LARGE:
        return Targets(text_of=text_of)
    hard = (text_of[:, None] == jnp.arange(text_of.shape[0])[None, :]).astype(dtype)
    return Targets(rows=hard, columns=hard)


def _whole_pairs(fraction: Any, pairs: int) -> Any:
    return jnp.round(jnp.asarray(fraction) * pairs).astype(int)
