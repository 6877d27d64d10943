"""The plan of a run: its learning rates, and the steps of evaluations and snapshots."""

from dataclasses import dataclass

import numpy as np

from flowsim.clip.settings import Training

#: Fraction of a run from which `fs.compare` forecasts the rest.
SEEN = 0.2


@dataclass(frozen=True)
class Plan:
    """The steps of a run.

    - `steps`: number of steps; `per_epoch`: steps in one epoch.
    - `rates` (steps,): learning rate of each step. `elapsed` (steps + 1,): their sum before each step and at the end.
    - `evaluations`, `snapshots`, `kernels`: numbers of steps after which the model is evaluated, its embeddings are
      stored, and its kernels are measured.
    """

    steps: int
    per_epoch: float
    rates: np.ndarray
    elapsed: np.ndarray
    evaluations: frozenset[int]
    snapshots: frozenset[int]
    kernels: frozenset[int]

    @classmethod
    def of(cls, settings: Training, pairs: int) -> "Plan":
        """The plan for a number of training pairs. Raises `FlowsimError` if there are fewer than one step takes."""
        steps = settings.total_steps(pairs)
        rates = np.array([settings.learning_rate(k, steps) for k in range(steps)])
        epoch = min(settings.steps_per_epoch(pairs), steps)
        kernels = frozenset(_kernels(settings, steps))
        return cls(
            steps=steps,
            per_epoch=pairs / (settings.batch_size * settings.accumulate),
            rates=rates,
            elapsed=np.concatenate([[0.0], np.cumsum(rates)]),
            evaluations=frozenset(_evaluations(settings.evaluations, steps, epoch)) | kernels,
            snapshots=frozenset({0, epoch, steps} if settings.snapshot_pairs else ()),
            kernels=kernels,
        )


def _evaluations(count: int, steps: int, epoch: int) -> list[int]:
    """About `count` steps, half of them evenly spaced, half in the logarithm; with 0, one epoch and the last."""
    half = count / 2
    even = np.linspace(0, steps, max(2, round(half)))
    log = np.geomspace(1, steps, max(1, round(half)))
    return np.unique(np.round(np.concatenate([even, log, [epoch]])).astype(int)).tolist()


def _kernels(settings: Training, steps: int) -> list[int]:
    """About `kernels` steps at constant ratios, with the start and the end of the part from which a run is forecast.

    AdamW has no preconditioner before its first step, and a noisy one in the next steps.
    """
    if settings.kernels == 0:
        return []
    adam = settings.optimizer == "adamw"
    first, rest = (steps / 50, settings.kernels - 1) if adam else (steps / 300, settings.kernels - 2)
    spread = np.round(np.geomspace(max(first, 1.0), steps, max(2, rest))).astype(int).tolist()
    begin = spread[0] if adam else 0
    return sorted({begin, *spread, max(int(SEEN * steps), begin)})
