"""The training loop: steps, evaluations and checkpoints, until the last step or a loss that is not finite."""

import dataclasses
import time
from pathlib import Path

import numpy as np
import torch

from flowsim.clip.checkpoint import Checkpoint
from flowsim.clip.embed import Sample, embed
from flowsim.clip.kernels import NU, preconditioner, recorded_kernels
from flowsim.clip.labelled import Labelled, classify
from flowsim.clip.learner import Learner
from flowsim.clip.record import Log, Record
from flowsim.progress import Progress
from flowsim.records.evaluation import observe
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status

#: Steps between fetches of losses from the device; each fetch waits for the device.
_FETCH = 25

Numbers = dict[str, float]


@dataclasses.dataclass
class Loop:
    """A training run.

    - `learner`, `record`: the model, and its record.
    - `held_out`, `seen`: pairs embedded in each evaluation; `labelled`: images for the finished model's accuracies.
    - `path`: file of the record, None if it is not stored; the checkpoint is next to it.
    - `progress`: called by the main process.
    """

    learner: Learner
    record: Record
    held_out: Sample
    seen: Sample
    labelled: Labelled | None
    path: Path | None
    progress: Progress

    def __post_init__(self) -> None:
        self.session, self.plan, self.settings = self.record.session, self.record.plan, self.record.settings
        self.checkpoint = None if self.path is None else Checkpoint(self.path)
        self._pending: list[torch.Tensor] = []
        self._saved = self._begin = 0.0
        self._since = 0

    def restore(self, force: bool = False) -> None:
        """Resume from the checkpoint, if there is one; with `force` it is removed.

        Raises `FlowsimError` if it is damaged or of another run.
        """
        if self.checkpoint is None:
            return
        if force:
            self.checkpoint.remove()
        state = self.checkpoint.read(self.record.config)
        if state is not None:
            self.learner.restore(state)
            self.record.log, self.record.step = Log.of(state["log"]), state["step"]
            self.record.seconds = state["seconds"]

    def run(self, weights: Path | None = None) -> TrainingRecord:
        """Train to the last step and return the record; weights of a completed run are exported first."""
        self._saved = time.monotonic()
        self.learner.wrapped.train()
        if self.record.step == 0 and not self.record.log.rows:
            self._evaluate()
        status = Status.COMPLETED
        self._start_clock()
        while self.record.step < self.plan.steps:
            self._pending.append(self.learner.take_step(self.record.step))
            self.record.step += 1
            here = self.record.step in self.plan.evaluations or self.record.step == self.plan.steps
            due = self._is_checkpoint_due()
            if not (here or due or len(self._pending) == _FETCH):
                continue
            if not self._fetch() or (here and not self._evaluate()):
                status = Status.DIVERGED
                break
            if due:
                self._write_checkpoint()
            self._start_clock()
        return self._end(status, weights)

    def _start_clock(self) -> None:
        self._begin, self._since = time.perf_counter(), self.record.step

    def _is_checkpoint_due(self) -> bool:
        # Only the main process saves: clocks differ, and no process may wait for another.
        if not self.session.is_main or self.checkpoint is None:
            return False
        return time.monotonic() - self._saved > self.settings.checkpoint_seconds

    def _fetch(self) -> bool:
        """Copy the values of the last steps from the device to the record; whether they are finite."""
        record = self.record
        values = torch.stack(self._pending).cpu().double().numpy()
        self._pending.clear()
        seconds = time.perf_counter() - self._begin
        record.seconds["training"] += seconds
        record.note_steps(values)
        if self.session.is_main:
            self.progress(
                "training",
                record.step,
                self.plan.steps,
                loss=float(values[-1, 0]),
                temperature=record.log.steps["train_temperature"][-1],
                modality_gap=float(values[-1, 1]),
                images_per_second=(record.step - self._since) * record.pairs_per_step / max(seconds, 1e-9),
            )
        return bool(np.isfinite(values[:, :2]).all())

    def _evaluate(self) -> bool:
        """Evaluate the model on held-out pairs and on training pairs; the main process writes the record.

        Returns False, and records nothing, if the embeddings are not finite.
        """
        begin = time.perf_counter()
        learner, record, device = self.learner, self.record, self.session.device
        autocast = self.session.accelerator.autocast
        held_out, seen = (embed(learner.model, pairs, device, autocast) for pairs in (self.held_out, self.seen))
        if not all(np.isfinite(part).all() for part in (*held_out, *seen)):
            return False
        beta, raw = learner.temperature.value(record.step / self.plan.steps)
        which = self.settings.observables
        row = {
            "step": record.step, "epoch": record.step / self.plan.per_epoch, "progress": record.step / self.plan.steps,
            "temperature": 1.0 / beta, "inverse_temperature": beta, **({} if raw is None else {"raw_temperature": raw}),
            **observe(*held_out, beta, which),
            **{f"seen_{name}": value for name, value in observe(*seen, beta, which).items()},
        }  # fmt: skip
        record.log.add_row(row)
        if record.step in self.plan.snapshots:
            count = self.settings.snapshot_pairs
            image, text = (rows[:count].astype(np.float32) for rows in seen)
            known = {} if raw is None else {"raw_temperature": np.float64(raw)}
            record.log.add_snapshot(record.step, {"image": image, "text": text, **known})
        learner.wrapped.train()
        record.seconds["evaluation"] += time.perf_counter() - begin
        self._measure_kernels(beta)
        if self.session.is_main and self.path is not None:
            record.result(Status.UNFINISHED).save(self.path)
        self.session.accelerator.wait_for_everyone()
        return True

    def _measure_kernels(self, beta: float) -> None:
        """Measure the kernels at β, if this is one of the steps for it."""
        record, learner = self.record, self.learner
        if record.step not in record.plan.kernels:
            return
        begin = time.perf_counter()
        parameters = dict(learner.model.module.named_parameters())
        scales = preconditioner(learner.optimizer, {**parameters, NU: learner.temperature.raw})
        chosen = self.seen.first(self.settings.kernel_pairs)
        record.log.add_kernels(
            record.step, recorded_kernels(learner.model, chosen, self.session.device, self.settings, beta, scales)
        )
        record.seconds["kernels"] += time.perf_counter() - begin

    def _write_checkpoint(self) -> None:
        assert self.checkpoint is not None
        record = self.record
        state = {"step": record.step, "log": record.log.state(), "seconds": dict(record.seconds)}
        self.checkpoint.write(record.config, {**self.learner.state(), **state})
        self._saved = time.monotonic()

    def _end(self, status: Status, weights: Path | None) -> TrainingRecord:
        """Finish the run and return its record, which the main process writes."""
        if self.session.is_main and status is Status.COMPLETED:
            self._finish(weights)
        result = self.record.result(status)
        if self.session.is_main and self.path is not None:
            result.save(self.path)
            assert self.checkpoint is not None
            self.checkpoint.remove()
        self.session.accelerator.wait_for_everyone()
        return result

    def _finish(self, weights: Path | None) -> None:
        """After the last step: accuracies on labelled images, and the weights."""
        record = self.record
        if self.checkpoint is not None and (self.labelled is not None or weights is not None):
            self._write_checkpoint()  # if one of them fails, the training is not lost
        if self.labelled is not None:
            found = classify(self.learner.model, self.labelled, self.session.device)
            record.accuracies = {"zero_shot": found.zero_shot}
            if found.linear_probe is not None:
                record.accuracies["linear_probe"] = found.linear_probe
            record.config["labelled"] = {
                "images": found.images, "classes": found.classes, "skipped": found.skipped,
                "template": self.labelled.template,
            }  # fmt: skip
        if weights is not None:
            self.learner.export(weights, record.step / self.plan.steps)
