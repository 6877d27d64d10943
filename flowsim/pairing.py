"""Pairings: which text each image is pulled towards, as target distributions for both softmaxes.

*Mispaired* means wrong targets (this module); *mismatched* means margin <= 0 (a property of a state).
"""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from flowsim._arrays import check, check_number, is_concrete, number


class Targets(eqx.Module):
    """Target distributions: `rows[i, j]` of text j for image i, `columns[i, j]` of image i for text j.

    Each row of `rows` and each column of `columns` sums to 1. None stands for the identity, for which the
    loss has a faster path.
    """

    rows: Float[Array, "n n"] | None = None
    columns: Float[Array, "n n"] | None = None


class AbstractPairing(eqx.Module):
    """A rule that gives the targets."""

    @abc.abstractmethod
    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        """The targets for `pairs` pairs."""


class Matched(AbstractPairing):
    """Image i belongs to text i: identity targets."""

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        return Targets()


class LabelNoise(AbstractPairing):
    """Soft targets (1 − p) I + p/(n − 1) (J − I): a fraction p of the labels is uniformly wrong.

    At fixed temperature the flow has an interior equilibrium with β·m = ln[(1 − p)(n − 1)/p], m the mean
    cosine of pairs minus that of non-pairs.
    """

    noise: Any = eqx.field(converter=number, default=0.1)

    def __check_init__(self) -> None:
        check_number("noise", self.noise, minimum=0.0, cure="Use a fraction between 0 and 1.")
        if is_concrete(self.noise):
            value = float(self.noise)
            check(value < 1, f"Argument `noise` must be below 1, but is {value:g}. Use e.g. 0.1.")

    def targets(self, key: Array, pairs: int, dtype: Any) -> Targets:
        p = jnp.asarray(self.noise, dtype)
        eye = jnp.eye(pairs, dtype=dtype)
        soft = (1 - p) * eye + p / (pairs - 1) * (1 - eye)
        return Targets(rows=soft, columns=soft)
