"""The plan of a run: its learning rates, and the steps after which it is evaluated and embeddings are stored."""

from dataclasses import dataclass

import numpy as np

from flowsim.clip.settings import Training


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    - `steps`: how many; `per_epoch`: how many see the training pairs once.
    - `rates` (steps,): the learning rate of each. `elapsed` (steps + 1,): their sum before each, and at the end.
    - `evaluations`, `snapshots`: after how many steps the model is evaluated, and its embeddings are stored.
    """

    steps: int
    per_epoch: float
    rates: np.ndarray
    elapsed: np.ndarray
    evaluations: frozenset[int]
    snapshots: frozenset[int]

    @classmethod
    def of(cls, settings: Training, pairs: int) -> "Plan":
        """For so many training pairs. Raises `FlowsimError` if there are fewer than one step takes."""
        steps = settings.total_steps(pairs)
        rates = np.array([settings.learning_rate(k, steps) for k in range(steps)])
        epoch = min(settings.steps_per_epoch(pairs), steps)
        return cls(
            steps=steps,
            per_epoch=pairs / (settings.batch_size * settings.accumulate),
            rates=rates,
            elapsed=np.concatenate([[0.0], np.cumsum(rates)]),
            evaluations=frozenset(_evaluations(settings.evaluations, steps, epoch)),
            snapshots=frozenset({0, epoch, steps} if settings.snapshot_pairs else ()),
        )


def _evaluations(count: int, steps: int, epoch: int) -> list[int]:
    """About `count` steps, half of them evenly spaced, half in the logarithm; 0, an epoch and the last."""
    half = count / 2
    even = np.linspace(0, steps, max(2, round(half)))
    log = np.geomspace(1, steps, max(1, round(half)))
    return np.unique(np.round(np.concatenate([even, log, [epoch]])).astype(int)).tolist()
