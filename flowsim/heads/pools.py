"""The pairs of a run: those to train on, and those that evaluations embed."""

import dataclasses
import functools
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowsim.base.checks import check
from flowsim.data.features import Features
from flowsim.heads.settings import Training


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """Scaled features of pairs that are embedded in evaluations.

    Attributes:
        image: Images (n, p).
        text: All captions (m, q), those of one image together; only the first ones for training pairs.
        first: Row of the first caption of each image, (n,).
        captions: Captions of each image; the same number for all.
        labels: Class of each image, (n,), −1 for none; None without classes.
        class_text: Texts of the classes, (K, q); None without classes.
    """

    image: Float[np.ndarray, "n p"]
    text: Float[np.ndarray, "m q"]
    first: Int[np.ndarray, "n"]
    captions: int = 1
    labels: Int[np.ndarray, "n"] | None = None
    class_text: Float[np.ndarray, "k q"] | None = None

    @classmethod
    def of(cls, pairs: Features, dtype: Any, every: bool) -> "Sample":
        """All pairs with their first captions, or with `every` caption that all images have and their classes."""
        image, n = pairs.image_rows(dtype=dtype), pairs.pairs
        captions = int(pairs.captions if pairs.counts is None else pairs.counts.min()) if every else 1
        chosen, which = np.repeat(np.arange(n), captions), np.tile(np.arange(captions), n)
        text, first = pairs.text_rows(chosen, which, dtype), np.arange(n) * captions
        if not every or pairs.labels is None or pairs.class_text is None:
            return cls(image, text, first, captions)
        return cls(image, text, first, captions, pairs.labels, pairs.class_rows(dtype))


@dataclasses.dataclass(frozen=True, eq=False)
class Pools:
    """Pairs to train on, and the samples of the evaluations; `digest` identifies all of them."""

    training: Features
    seen: Sample
    held_out: Sample
    digest: str
    source: str

    @classmethod
    def of(cls, settings: Training) -> "Pools":
        """Those of the settings; kept for the next run.

        Raises `FlowsimError` if features cannot be read, splits are missing, or there are too few pairs.
        """
        options = settings.split, settings.held_out, settings.mispaired, settings.pairs, settings.precision
        pools = _kept(_Named(settings.features()), *options)
        check(
            pools.training.pairs >= settings.batch_size,
            f"There are {pools.training.pairs} training pairs, but one step takes {settings.batch_size}. Use a smaller "
            "`batch_size`.",
        )
        return pools


class _Named:
    """Features that are equal if their contents are."""

    def __init__(self, data: Features) -> None:
        self.data = data

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Named) and self.data.digest == other.data.digest

    def __hash__(self) -> int:
        return hash(self.data.digest)


@functools.lru_cache(maxsize=4)
def _kept(
    named: _Named, split: str | None, held_out: str | None, mispaired: float, pairs: int | None, precision: str
) -> Pools:
    data, dtype = named.data, np.dtype(precision)
    paired = data if mispaired == 0 else data.mispaired(mispaired)
    training = paired if split is None else paired.part(split)
    evaluated = data if held_out is None else data.part(held_out)
    check(evaluated.pairs >= 2, f"There are {evaluated.pairs} held-out pairs. Give at least 2.")
    seen = Sample.of(training.take(slice(pairs)), dtype, False)
    return Pools(training, seen, Sample.of(evaluated.take(slice(pairs)), dtype, True), data.digest, data.source)
