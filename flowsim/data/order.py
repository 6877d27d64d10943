"""The random order of minibatches: batch k, and what is drawn for it, depend only on (seed, k).

So a resumed run sees the same batches as an uninterrupted one, and methods with the same seed see the same data.
"""

import numpy as np
from jaxtyping import Int

from flowsim.base.checks import check, check_whole


class Order:
    """The order of minibatches: without replacement within an epoch, a new random permutation in each epoch.

    The permutation of an epoch is that of `SeedSequence((seed, 0, epoch))`; what is drawn for batch k comes from
    `SeedSequence((seed, 1, k))`.

    Args:
        pairs: Number of pairs.
        batch: Number of pairs in a batch.
        seed: Seed of order and draws.

    Raises:
        FlowsimError: If these are no whole numbers, or there are fewer pairs than a batch takes.

    Examples:
        >>> import flowsim as fs
        >>> order = fs.data.Order(pairs=10, batch=4, seed=0)
        >>> order.per_epoch, order.indices(0), order.indices(1)
        (2, array([4, 6, 2, 7]), array([3, 5, 9, 0]))
    """

    def __init__(self, pairs: int, batch: int, seed: int = 0) -> None:
        check_whole("pairs", pairs, 1, "Use the number of pairs.")
        check_whole("batch", batch, 1, "Use e.g. 256.")
        check_whole("seed", seed, 0, "Use e.g. 0.")
        check(batch <= pairs, f"A batch of {batch} needs at least {batch} pairs, but there are {pairs}. Use less.")
        self.pairs, self.batch, self.seed = int(pairs), int(batch), int(seed)
        # One step after the other: the permutation of the present epoch is kept.
        self._latest: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    @property
    def per_epoch(self) -> int:
        """Batches in one epoch; an incomplete last batch is left out."""
        return self.pairs // self.batch

    def indices(self, k: int) -> Int[np.ndarray, "batch"]:
        """The pairs of a batch.

        Args:
            k: Number of the batch, from 0 over all epochs.

        Returns:
            (batch,) indices of pairs.
        """
        epoch, within = divmod(k, self.per_epoch)
        latest = self._latest
        if latest[0] != epoch:
            latest = self._latest = (epoch, _generator(self.seed, 0, epoch).permutation(self.pairs))
        return latest[1][within * self.batch : (within + 1) * self.batch]

    def generator(self, k: int) -> np.random.Generator:
        """The generator of what is drawn for a batch: captions first, then crops and the like.

        Args:
            k: Number of the batch.
        """
        return _generator(self.seed, 1, k)

    def captions(self, k: int, counts: np.ndarray) -> Int[np.ndarray, "batch"]:
        """Which caption of each image of a batch is used: uniform among its captions.

        Args:
            k: Number of the batch.
            counts: (batch,) number of captions of each of its images.

        Returns:
            (batch,) from 0 to the number of captions minus 1.
        """
        return draw_captions(self.generator(k), counts)


def draw_captions(random: np.random.Generator, counts: np.ndarray) -> Int[np.ndarray, "n"]:
    """One caption of each image, uniform among its captions.

    Args:
        random: The generator.
        counts: (n,) number of captions of each image.

    Returns:
        (n,) from 0 to the number of captions minus 1.
    """
    return np.floor(random.random(len(counts)) * counts).astype(int)


def _generator(*seed: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed))
