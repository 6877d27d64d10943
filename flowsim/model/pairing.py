"""Pairings: which text each image is pulled towards, as target distributions for both softmaxes.

*Mispaired* means wrong targets (this module); *mismatched* means margin <= 0 (a property of a state).
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
    """Target distributions: `rows[i, j]` of text j for image i, `columns[i, j]` of image i for text j.

    Each row of `rows` and each column of `columns` sums to 1. None stands for the identity, for which the
    loss has a faster path. Targets of many pairs are described instead of written out, so that they need no n×n:
    image i belongs to text `text_of[i]` (None: i) with 1 − `noise`, and to each other with noise/(n − 1) (None: 0).
    """

    rows: Float[Array, "n n"] | None = None
    columns: Float[Array, "n n"] | None = None
    text_of: Int[Array, "n"] | None = None
    noise: Float[Array, ""] | None = None

    @property
    def matched(self) -> bool:
        """Whether these are the identity."""
        return self.rows is None and self.text_of is None and self.noise is None

    def matrices(self, pairs: int, dtype: Any) -> tuple[Float[Array, "n n"] | None, Float[Array, "n n"] | None]:
        """`rows` and `columns`, written out where they are described; None for the identity."""
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
        redraw: Flow time after which new targets are drawn; None keeps the first.
        fresh: Whether a run in steps draws new targets in every step (see `draw`).
        identity: Whether image i always belongs to text i, so that nothing has to be drawn.
    """

    redraw: AbstractVar[Any]
    fresh: AbstractClassVar[bool]
    identity: ClassVar[bool] = False

    @abc.abstractmethod
    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets of the flow for `pairs` pairs: those of the small-step limit if `fresh`."""

    def draw(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets of one step, if `fresh`."""
        return self.targets(key, pairs, dtype)


class Matched(AbstractPairing):
    """Image i belongs to text i: identity targets."""

    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False
    identity: ClassVar[bool] = True

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        return Targets()


class LabelNoise(AbstractPairing):
    """Soft targets (1 − p) I + p/(n − 1) (J − I): a fraction p of the labels is uniformly wrong.

    At fixed temperature the flow has an interior equilibrium with β·m = ln[(1 − p)(n − 1)/p], m the mean
    cosine of pairs minus that of non-pairs.
    """

    noise: Any = eqx.field(converter=number, default=0.1)
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_fraction("noise", self.noise)
        if is_concrete(self.noise):
            check(self.noise < 1, "Argument `noise` must be below 1, but is 1. Use e.g. 0.1.")

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        return _soft(jnp.asarray(self.noise, dtype), pairs)


class FrozenMispairing(AbstractPairing):
    """A random `fraction` of the images has another image's text as its target throughout (a cyclic shift).

    The fraction is rounded to whole pairs; a single one has no other to exchange with and stays right.
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
    """A fresh random `fraction` of the pairs is permuted at random in every step.

    The loss is linear in the targets, so the small-step limit is the flow of the expected targets: label
    noise p = (m − 1)/n for m = fraction·n permuted pairs (`redraw=None`). With `redraw` one permutation acts
    at a time and is redrawn after that much flow time; it tends to the same flow as the interval shrinks.
    """

    fraction: Any = eqx.field(converter=number, default=0.25)
    redraw: Any = eqx.field(converter=optional_number, default=None)
    fresh: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_fraction("fraction", self.fraction)
        check_redraw(self.redraw)

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        if self.redraw is None:
            changed = jnp.maximum(_whole_pairs(self.fraction, pairs) - 1, 0)
            return _soft(changed.astype(dtype) / pairs, pairs)
        return self.draw(key, pairs, dtype)

    def draw(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """Targets of one random permutation."""
        who, how = jax.random.split(key)
        member = jax.random.permutation(who, pairs) < _whole_pairs(self.fraction, pairs)
        place = jnp.arange(pairs)
        # Members in their own order, and in a random one; everybody else keeps their place.
        ordered = jnp.argsort(jnp.where(member, place, pairs + place))
        shuffled = jnp.argsort(jnp.where(member, jax.random.permutation(how, pairs), pairs + place))
        return _permuted(jnp.zeros(pairs, place.dtype).at[ordered].set(shuffled), dtype)


class Clusters(AbstractPairing):
    """Groups of `size` consecutive pairs mean the same: every text of the group is a target of its images.

    Targets 1/size within the group (several captions per image, duplicates). n must be a multiple of `size`.
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
    """Targets that give image i the text `text_of[i]`."""
    if text_of.shape[0] >= LARGE:
        return Targets(text_of=text_of)
    hard = (text_of[:, None] == jnp.arange(text_of.shape[0])[None, :]).astype(dtype)
    return Targets(rows=hard, columns=hard)


def _whole_pairs(fraction: Any, pairs: int) -> Any:
    return jnp.round(jnp.asarray(fraction) * pairs).astype(int)
