"""Swapped features in a training loop: drawn from (seed, step) as in `fs.descend`, the same on every device.

Draws are made by JAX on the CPU, for the whole batch, so that all processes and all devices have the same ones.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import torch

from flowsim.base.arrays import on_cpu
from flowsim.base.checks import check, check_whole, shown
from flowsim.model.schedules import Schedule, as_schedule
from flowsim.model.swaps import AbstractSwap, step_weights
from flowsim.torch.device import onto_device


def swap(
    image: torch.Tensor,
    text: torch.Tensor,
    schedule: Schedule | AbstractSwap | str,
    step: int,
    *,
    seed: int = 0,
    rank: int = 0,
    processes: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Features after the schedule's swap of a step, for the loss; they are not normalised again.

    The draws depend on seed, step and shape only, and are those of `fs.clip.train` and `fs.descend`. Gradients flow
    through.

    Args:
        image: Image features (n, d), on any device.
        text: Text features (n, d).
        schedule: A schedule, a swap such as `fs.HardSwap(0.01)`, or the name of a preset such as "HS 1e-2".
        step: The step, from 0 on. With gradient accumulation number the micro-batches, or all of a step are swapped
            alike.
        seed: Seed of the draws.
        rank: With several processes that each hold their own n rows of the batch: the number of this one. Features
            that were gathered already, and are the same everywhere, need no rank.
        processes: The number of processes.

    Returns:
        The swapped features, or the same tensors in a step without a swap.

    Raises:
        FlowsimError: If the features do not fit, or for another argument that is not allowed.

    Examples:
        >>> import torch
        >>> import flowsim as fs
        >>> image, text = torch.ones(4, 2), torch.zeros(4, 2)
        >>> fs.torch.swap(image, text, fs.HardSwap(1.0, by="row"), step=3)[0][:, 0]
        tensor([0., 1., 0., 0.])
    """
    check_whole("step", step, 0, "Use the number of the step, from 0 on.")
    chosen = schedule if isinstance(schedule, AbstractSwap) else as_schedule(schedule).swap
    return Swapping(chosen, seed, ahead=1).apply(image, text, int(step), rank, processes)


def swap_weights(swap: AbstractSwap, seed: int, step: int, pairs: int, dim: int) -> np.ndarray | None:
    """Weights of the swap in one step, (n, d) or (n, 1) float64; None if the step has no swap.

    Drawn from (seed, step) exactly as in a simulated discrete run, on the CPU, for the whole batch.
    """
    if not swap.active or not swapped_steps(swap, seed, step, 1)[0]:
        return None
    return draw(swap, seed, step, pairs, dim)


def swapped_steps(swap: AbstractSwap, seed: int, first: int, count: int) -> np.ndarray:
    """(count,) which of the steps from `first` on have a swap; see `swap_weights`."""
    with _drawing():
        keys = jax.vmap(lambda step: _keys(seed, step)[0])(np.arange(first, first + count))
        return np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, swap.fraction))(keys))


def draw(swap: AbstractSwap, seed: int, step: int, pairs: int, dim: int) -> np.ndarray:
    """Weights of a step that has a swap."""
    with _drawing():
        whether, masks = _keys(seed, step)
        return np.array(step_weights(swap, whether, masks, pairs, dim, np.float64))[0]


def _keys(seed: int, step: Any) -> tuple[Any, Any]:
    """The keys of a step: whether to swap, and what."""
    whether, masks, _ = jax.random.split(jax.random.fold_in(jax.random.key(np.uint32(seed)), step), 3)
    return whether, masks


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    with jax.enable_x64(True), on_cpu():
        yield


class Swapping:
    """The swaps of a run; which steps have one is decided for `ahead` steps at once."""

    def __init__(self, swap: AbstractSwap, seed: int, ahead: int = 1024) -> None:
        check_whole("seed", seed, 0, "Use e.g. 0.")
        self.swap, self.seed, self.ahead = swap, int(seed), ahead
        self._decided: dict[int, np.ndarray] = {}

    def apply(
        self, image: torch.Tensor, text: torch.Tensor, step: int, rank: int = 0, processes: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of a process after the swap of a step; see `swap`."""
        check(
            isinstance(image, torch.Tensor) and isinstance(text, torch.Tensor),
            f"Features must be tensors, but are {shown(type(image).__name__)} and {shown(type(text).__name__)}. "
            "Pass what the loss gets.",
        )
        check(
            image.ndim == 2 and image.shape == text.shape,
            f"Features of images and texts must have one shape (n, d), but have {tuple(image.shape)} and "
            f"{tuple(text.shape)}. Pass the pairs of one batch.",
        )
        check(0 <= rank < processes, f"`rank` must be below `processes`, but they are {rank} and {processes}.")
        if not self.swap.active or not self._has_swap(step):
            return image, text
        pairs, dim = image.shape
        weights = draw(self.swap, self.seed, step, pairs * processes, dim)[rank * pairs : (rank + 1) * pairs]
        placed = onto_device(torch.from_numpy(weights).to(image.dtype), image.device)
        return self.swap.apply(placed, image, text)

    def _has_swap(self, step: int) -> bool:
        block, place = divmod(step, self.ahead)
        if block not in self._decided:
            self._decided = {block: swapped_steps(self.swap, self.seed, block * self.ahead, self.ahead)}
        return bool(self._decided[block][place])
