"""The record of a running training: rows of evaluations, values of steps, embeddings; and the result made of them.

It has the form of a simulation's result: one row per evaluation with every observable of N held-out pairs, and of N
training pairs as `seen_...`; `time` is the sum of learning rates, which is flow time for plain SGD only.
"""

import dataclasses
from typing import Any

import numpy as np
import torch

from flowsim.clip.plan import Plan
from flowsim.clip.session import Session
from flowsim.clip.settings import Training
from flowsim.model.schedules import Schedule
from flowsim.records.result import FLOW_TIME, SUM_OF_RATES, TrainingRecord
from flowsim.records.status import Outcome, Status


@dataclasses.dataclass
class Log:
    """Rows of evaluations, values of steps, embeddings, and kernels."""

    rows: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    snapshot_steps: list[int] = dataclasses.field(default_factory=list)
    snapshots: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)
    kernel_steps: list[int] = dataclasses.field(default_factory=list)
    kernels: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def add_row(self, row: dict[str, float]) -> None:
        """Add one evaluation."""
        for name, value in row.items():
            self.rows.setdefault(name, []).append(float(value))

    def add_step(self, values: dict[str, float]) -> None:
        """Add one step."""
        for name, value in values.items():
            self.steps.setdefault(name, []).append(float(value))

    def add_snapshot(self, step: int, arrays: dict[str, Any]) -> None:
        """Add the embeddings after `step` steps."""
        self.snapshot_steps.append(step)
        for name, value in arrays.items():
            self.snapshots.setdefault(name, []).append(np.asarray(value))

    def add_kernels(self, step: int, arrays: dict[str, Any]) -> None:
        """Add what was measured of the kernels after `step` steps."""
        self.kernel_steps.append(step)
        for name, value in arrays.items():
            self.kernels.setdefault(name, []).append(np.asarray(value))

    def state(self) -> dict[str, Any]:
        """Tensors and plain lists, which a checkpoint can hold."""
        numbers = {
            part: {k: torch.tensor(v, dtype=torch.float64) for k, v in getattr(self, part).items()}
            for part in ("rows", "steps")
        }
        rows, kernels = (
            {k: torch.from_numpy(np.stack(v)) for k, v in held.items()} for held in (self.snapshots, self.kernels)
        )
        steps = {"snapshot_steps": list(self.snapshot_steps), "kernel_steps": list(self.kernel_steps)}
        return {**numbers, **steps, "snapshots": rows, "kernels": kernels}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "Log":
        """Inverse of `state`."""
        rows, steps = ({k: v.tolist() for k, v in state[part].items()} for part in ("rows", "steps"))
        snapshots, kernels = ({k: list(v.numpy()) for k, v in state[part].items()} for part in ("snapshots", "kernels"))
        return cls(rows, steps, state["snapshot_steps"], snapshots, state["kernel_steps"], kernels)


@dataclasses.dataclass
class Record:
    """State and record of a run.

    - `step`: steps taken. `seconds`: time spent on training and on evaluation.
    - `config`: configuration stored in the record. `parameters`: number of parameters of the model.
    - `accuracies`: accuracies of the finished model on labelled images.
    """

    settings: Training
    schedule: Schedule
    plan: Plan
    session: Session
    config: dict[str, Any]
    parameters: int
    step: int = 0
    log: Log = dataclasses.field(default_factory=Log)
    seconds: dict[str, float] = dataclasses.field(
        default_factory=lambda: {"training": 0.0, "evaluation": 0.0, "kernels": 0.0}
    )
    accuracies: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def pairs_per_step(self) -> int:
        """Training pairs in one step."""
        return self.settings.batch_size * self.settings.accumulate

    def note_steps(self, values: np.ndarray) -> None:
        """Add (loss, gap, ν or NaN) of the last k steps, (k, 3), to the log."""
        policy = self.schedule.temperature
        for k, (loss, gap, raw) in zip(range(self.step - len(values), self.step), values, strict=True):
            beta = policy.inverse_temperature(k / self.plan.steps, np.float64(raw) if policy.learnable else None)
            self.log.add_step(
                {
                    "train_loss": loss,
                    "train_modality_gap": gap,
                    "train_temperature": 1.0 / float(beta),
                    "learning_rate": self.plan.rates[k],
                }
            )

    def result(self, status: Status) -> TrainingRecord:
        """The record so far."""
        rows = {k: np.array(v) for k, v in self.log.rows.items()}
        steps = rows.pop("step").astype(int)
        coordinates = {"step": steps, "epoch": rows.pop("epoch"), "progress": rows.pop("progress")}
        optimizer = self.settings.optimizer
        plain_sgd = optimizer == "sgd" and self.settings.momentum == 0 and self.settings.weight_decay == 0
        taken = len(self.log.steps.get("train_loss", ())) * self.pairs_per_step
        elapsed = self.plan.elapsed
        return TrainingRecord(
            time=elapsed[steps],
            series=rows,
            status=Outcome(status, float(elapsed[self.step]), f"training with {optimizer}"),
            config=self.config,
            stats={
                "training_seconds": self.seconds["training"],
                "evaluation_seconds": self.seconds["evaluation"],
                **({"kernel_seconds": self.seconds["kernels"]} if self.plan.kernels else {}),
                "images_per_second": taken / max(self.seconds["training"], 1e-9),
                "parameters": float(self.parameters),
                **self.session.memory(),
                **self.accuracies,
            },
            versions=self.session.versions(),
            snapshot_time=elapsed[self.log.snapshot_steps],
            snapshots={k: np.stack(v) for k, v in self.log.snapshots.items()},
            constants={},
            clock=FLOW_TIME if plain_sgd else SUM_OF_RATES,
            coordinates=coordinates,
            training={k: np.array(v) for k, v in self.log.steps.items()},
            kernel_step=np.array(self.log.kernel_steps, int),
            kernels={k: np.stack(v) for k, v in self.log.kernels.items()},
        )
