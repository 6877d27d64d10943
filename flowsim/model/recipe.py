"""The interface of recipes, which draw starts from a seed, and what they share."""

import abc
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from flowsim.base.checks import check_whole
from flowsim.base.modules import Described
from flowsim.errors import FlowsimError
from flowsim.model.start import Start


class AbstractRecipe(Described):
    """A recipe that draws starts."""

    @abc.abstractmethod
    def draw(self, seed: int = 0) -> Start:
        """A start.

        Args:
            seed: A whole number from 0; the same seed gives the same start. Deterministic recipes ignore it.
        """


def as_start(start: Start | AbstractRecipe, seed: int) -> Start:
    """The start itself, or the draw of a recipe with `seed`.

    Raises:
        FlowsimError: If it is neither a start nor a recipe.
    """
    return as_starts(start, [seed])[0]


def as_starts(start: Start | AbstractRecipe, seeds: Sequence[int]) -> list[Start]:
    """`as_start` for many seeds."""
    if isinstance(start, AbstractRecipe):
        draw = start.draw  # looked up once for speed, as in `place_all`
        return [draw(seed) for seed in seeds]
    if isinstance(start, Start):
        return [start] * len(seeds)
    raise FlowsimError(
        f"Expected a start, but got {type(start).__name__}. Use e.g. fs.initial.rings() or "
        "fs.initial.from_arrays(image, text)."
    )


def generator(seed: int) -> np.random.Generator:
    """A generator; raises `FlowsimError` if the seed is no whole number from 0."""
    check_whole("seed", seed, 0, "Use e.g. 0.")
    return np.random.default_rng(seed)


def rotation(rng: np.random.Generator, size: int) -> Float[np.ndarray, "d d"]:
    """A random orthogonal matrix (size, size)."""
    q, r = np.linalg.qr(rng.standard_normal((size, size)))
    return q * np.sign(np.diag(r))


def check_pairs(pairs: int) -> None:
    """Raise `FlowsimError` for fewer than two pairs."""
    check_whole("pairs", pairs, 2, "Use e.g. pairs=5: a contrastive loss needs a negative.")


def check_dim(dim: int, minimum: int = 2) -> None:
    """Raise `FlowsimError` for fewer dimensions than `minimum`."""
    check_whole("dim", dim, minimum, "Use e.g. dim=8.")
