"""The record of a run in the making: evaluations, numbers of every step, and the checkpoint."""

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.base.paths import to_config
from flowsim.clip.plan import Plan
from flowsim.errors import FlowsimError
from flowsim.heads.pools import Pools
from flowsim.heads.settings import Training
from flowsim.model.schedules import Schedule
from flowsim.provenance import versions
from flowsim.records.load import load_result
from flowsim.records.result import FLOW_TIME, SUM_OF_RATES, TrainingRecord
from flowsim.records.status import Outcome, Status


@dataclasses.dataclass
class Record:
    """A run in the making.

    - `path`: file of the record, None if it is not stored; the checkpoint is next to it.
    - `rows`: evaluations. `noted`: (loss, gap, ν) of every step so far, (steps, 3). `snapshots`: (step, arrays).
    - `seconds`: time spent on training and on evaluation. `ended`: how the run ended, None before.
    """

    settings: Training
    schedule: Schedule
    plan: Plan
    config: dict[str, Any]
    parameters: int
    path: Path | None
    step: int = 0
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)
    noted: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 3)))
    snapshots: list[tuple[int, dict[str, np.ndarray]]] = dataclasses.field(default_factory=list)
    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: {"training": 0.0, "evaluation": 0.0})
    ended: Status | None = None

    @property
    def checkpoint(self) -> Path | None:
        """File of the checkpoint."""
        return None if self.path is None else self.path.with_suffix(".checkpoint.npz")

    def note(self, values: np.ndarray) -> bool:
        """Add (loss, gap, ν) of the next steps, (k, 3); returns whether losses and gaps are finite."""
        finite = np.isfinite(values[:, :2]).all(axis=1)
        count = len(values) if finite.all() else int(np.argmin(finite)) + 1
        self.noted = np.concatenate([self.noted, values[:count]])
        self.step += count
        return bool(finite.all())

    def last(self) -> dict[str, float]:
        """Numbers of the last step, for progress."""
        loss, gap, _ = self.noted[-1]
        return {"loss": float(loss), "temperature": float(self._temperatures()[-1]), "modality_gap": float(gap)}

    def _temperatures(self) -> np.ndarray:
        """τ before every step."""
        policy = self.schedule.temperature
        progress = np.arange(len(self.noted)) / self.plan.steps
        raw = self.noted[:, 2] if policy.learnable else None
        beta = np.asarray(policy.inverse_temperature(progress, raw), np.float64)
        return np.broadcast_to(1 / beta, progress.shape)

    def result(self, status: Status) -> TrainingRecord:
        """The record so far."""
        names = dict.fromkeys(name for row in self.rows for name in row)
        rows = {name: np.array([row.get(name, np.nan) for row in self.rows]) for name in names}
        steps = rows.pop("step").astype(int)
        coordinates = {"step": steps, "epoch": rows.pop("epoch"), "progress": rows.pop("progress")}
        settings, elapsed = self.settings, self.plan.elapsed
        plain = settings.optimizer == "sgd" and settings.momentum == 0 and settings.weight_decay == 0
        plain = plain and settings.clip is None
        taken = len(self.noted) * settings.batch_size
        training = {
            "train_loss": self.noted[:, 0], "train_modality_gap": self.noted[:, 1],
            "train_temperature": self._temperatures(), "learning_rate": self.plan.rates[: len(self.noted)],
        }  # fmt: skip
        return TrainingRecord(
            time=elapsed[steps],
            series=rows,
            status=Outcome(status, float(elapsed[self.step]), f"training with {settings.optimizer}"),
            config=self.config,
            stats={
                "training_seconds": self.seconds["training"],
                "evaluation_seconds": self.seconds["evaluation"],
                "images_per_second": taken / max(self.seconds["training"], 1e-9),
                "parameters": float(self.parameters),
            },
            versions={**versions(), "device": jax.devices()[0].device_kind},
            snapshot_time=elapsed[[step for step, _ in self.snapshots]],
            snapshots={
                name: np.stack([arrays[name] for _, arrays in self.snapshots])
                for name in (self.snapshots[0][1] if self.snapshots else ())
            },
            constants={},
            clock=FLOW_TIME if plain else SUM_OF_RATES,
            coordinates=coordinates,
            training=training if len(self.noted) else {},
        )

    def save(self) -> TrainingRecord:
        """Write the record, if it has a path; that of a run that has ended replaces the checkpoint."""
        result = self.result(self.ended or Status.UNFINISHED)
        if self.path is not None and self.checkpoint is not None:
            result.save(self.path)
            if self.ended is not None:
                self.checkpoint.unlink(missing_ok=True)
        return result

    def write_checkpoint(self, state: list[np.ndarray]) -> None:
        """Write all that the rest of the run depends on; `state` are the arrays of its `Learner`."""
        if self.checkpoint is None:
            return
        arrays: dict[str, Any] = {f"state_{i}": values for i, values in enumerate(state)} | {"noted": self.noted}
        for index, (_, held) in enumerate(self.snapshots):
            arrays |= {f"snapshot_{index}_{name}": values for name, values in held.items()}
        plain = {
            "config": self.config, "step": self.step, "rows": self.rows, "seconds": self.seconds,
            "snapshot_steps": [step for step, _ in self.snapshots],
        }  # fmt: skip
        written = io.BytesIO()
        np.savez(written, plain=json.dumps(plain), **arrays)
        write_atomically(self.checkpoint, lambda temporary: Path(temporary).write_bytes(written.getvalue()))

    def restore(self) -> list[np.ndarray] | None:
        """Go on from the checkpoint; the arrays for the `Learner`, or None without a checkpoint.

        Raises `FlowsimError` if it is damaged or of another run.
        """
        if self.checkpoint is None or not self.checkpoint.exists():
            return None
        try:
            with np.load(self.checkpoint, allow_pickle=False) as file:
                plain, arrays = json.loads(str(file["plain"])), {name: file[name] for name in file.files}
            known = json.dumps(plain["config"], sort_keys=True)
        except Exception as error:  # a damaged or foreign file fails in many ways
            raise FlowsimError(
                f"The checkpoint {str(self.checkpoint)!r} cannot be read ({type(error).__name__}). Remove it to start "
                "again."
            ) from None
        check(
            known == json.dumps(self.config, sort_keys=True),
            f"The checkpoint {str(self.checkpoint)!r} belongs to a run with other settings. Use the same settings, "
            "another `out`, or `force=True`.",
        )
        self.step, self.rows, self.seconds = plain["step"], plain["rows"], plain["seconds"]
        self.noted = arrays["noted"]
        for index, step in enumerate(plain["snapshot_steps"]):
            begin = f"snapshot_{index}_"
            held = {name.removeprefix(begin): x for name, x in arrays.items() if name.startswith(begin)}
            self.snapshots.append((step, held))
        count = sum(name.startswith("state_") for name in arrays)
        return [arrays[f"state_{i}"] for i in range(count)]


def configuration(settings: Training, schedule: Schedule, pools: Pools) -> dict[str, Any]:
    """The configuration of a run, which identifies it."""
    plain = json.loads(json.dumps(settings.to_config()))
    return {
        "kind": "training",
        "schedule": to_config(schedule),
        "training": plain,
        "digests": {"data": pools.digest},
        "evaluation": {
            "pairs": len(pools.held_out.image),
            "seen_pairs": len(pools.seen.image),
            "captions": pools.held_out.captions,
            "retrieval_pool": len(pools.held_out.image),
        },
    }


def ended_record(path: Path, config: dict[str, Any]) -> TrainingRecord | None:
    """The record at `path` if its run has ended, None if it can be resumed; raises `FlowsimError` for another run."""
    found = load_result(path)
    if not isinstance(found, TrainingRecord) or found.config != json.loads(json.dumps(config)):
        raise FlowsimError(
            f"{str(path)!r} holds another run. Choose another name or folder, or remove the file. "
            "`train` replaces it with `force=True`."
        )
    return None if found.status.code is Status.UNFINISHED else found
