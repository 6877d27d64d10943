"""Train many runs in one program (see `stack`), each recorded like a run of `train`.

Observables of evaluations are computed in threads while training goes on. One checkpoint holds the state of all runs.
"""

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowsim.base.checks import check
from flowsim.clip import models
from flowsim.clip.batches import Batches
from flowsim.clip.checkpoint import Checkpoint
from flowsim.clip.embed import Sample
from flowsim.clip.identity import configuration, digests
from flowsim.clip.inputs import read_inputs
from flowsim.clip.kernels import recorded_kernels
from flowsim.clip.labelled import Labelled, classify
from flowsim.clip.memory import enough_memory
from flowsim.clip.plan import Plan
from flowsim.clip.pools import load_pools
from flowsim.clip.record import Log, Record
from flowsim.clip.session import Session, alone, limited_threads
from flowsim.clip.settings import Training
from flowsim.clip.stack import Stack
from flowsim.clip.training import complete_configuration
from flowsim.model.schedules import Schedule
from flowsim.progress import Progress, silent
from flowsim.records.evaluation import observe
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status

#: Steps between fetches of losses from the device; each fetch waits for the device.
_FETCH = 25
#: Threads that compute observables.
_WORKERS = min(8, os.cpu_count() or 1)

#: A run of a stack: the name of its method, and its seed.
Run = tuple[str, int]


def train_stacked(
    settings: Training,
    schedules: Mapping[str, Schedule],
    seeds: Sequence[int],
    paths: Mapping[Run, Path],
    *,
    cpu: bool = False,
    progress: Progress = silent,
) -> dict[Run, TrainingRecord]:
    """Train every schedule with every seed, in one program.

    A record differs from that of `train` by rounding only, and in its statistics: they are those of the whole stack.

    Args:
        settings: Settings of every run; the seed is replaced.
        schedules: Schedules by name.
        seeds: Seeds.
        paths: Files of the records, in one folder; a checkpoint is kept there until all runs are finished, from which
            the same call resumes.
        cpu: Use the CPU even if there is a GPU.
        progress: Called as `progress("stack of 27 runs", step, steps, loss=..., temperature=..., modality_gap=...,
            images_per_second=...)`, with means over the runs.

    Returns:
        Records by run. A run whose loss is not finite ends with status DIVERGED; the others go on.

    Raises:
        FlowsimError: For bad input, for a model that cannot be stacked, and if a file cannot be written.
    """
    name = hashlib.sha256(json.dumps([sorted(schedules), sorted(seeds)]).encode()).hexdigest()[:8]
    path = next(iter(paths.values())).parent / f"stack-{name}.nc"
    full = enough_memory('Use a smaller `stack` or `batch_size`, or `precision="bf16"`; the same call goes on.')
    with alone(path), limited_threads(settings.threads), full:
        training = _Training.begin(settings, schedules, seeds, Checkpoint(path), cpu, progress)
        training.restore()
        return training.run(paths)


@dataclasses.dataclass
class _Training:
    """A stack in training.

    - `records`: the record of each run. `diverged`: runs whose loss was not finite.
    - `waiting`: rows of evaluations that threads still compute, in the order of the evaluations.
    """

    stack: Stack
    records: dict[Run, Record]
    held_out: Sample
    seen: Sample
    labelled: Labelled | None
    checkpoint: Checkpoint
    progress: Progress

    def __post_init__(self) -> None:
        first = next(iter(self.records.values()))
        self.settings, self.plan = first.settings, first.plan
        self.step, self.diverged = 0, set[Run]()
        self.seconds = {"training": 0.0, "evaluation": 0.0, "kernels": 0.0}
        self._waiting: list[tuple[Run, Future[dict[str, float]]]] = []
        self._pending: list[torch.Tensor] = []
        self._noted: list[np.ndarray] = []
        self._pool = ThreadPoolExecutor(_WORKERS)
        self._begin, self._since, self._saved = 0.0, 0, time.monotonic()

    @classmethod
    def begin(
        cls,
        settings: Training,
        schedules: Mapping[str, Schedule],
        seeds: Sequence[int],
        checkpoint: Checkpoint,
        cpu: bool,
        progress: Progress,
    ) -> "_Training":
        """The runs before their first step. Raises `FlowsimError` for bad input."""
        session = Session.begin(settings.precision, cpu)
        check(session.processes == 1, "Runs are stacked on one device. Start one process, or use `stack=1`.")
        built = [models.build(settings.model, settings.pretrained, settings.image_size, seed) for seed in seeds]
        pools = load_pools(settings)
        labelled = None if settings.labelled is None else Labelled.of(settings.labelled)
        inputs = read_inputs(settings, session, built, pools, progress)
        batches, seen, held_out, model = inputs.batches, inputs.seen, inputs.held_out, inputs.models[0]
        plan = Plan.of(settings, len(batches.pairs))
        every: list[Batches] = [dataclasses.replace(batches, settings=settings.replace(seed=seed)) for seed in seeds]
        stack = Stack(settings, list(schedules.values()), seeds, session, inputs.models, every, plan)
        told_apart, records = digests(settings), {}
        parameters = sum(p.numel() for p in model.module.parameters())
        for seed in seeds:
            own = settings.replace(seed=seed)
            for name, schedule in schedules.items():
                config = complete_configuration(
                    configuration(own, schedule), batches.pairs, seen, held_out, plan, model.embed_dim, told_apart
                )
                records[name, seed] = Record(own, schedule, plan, session, config, parameters)
        return cls(stack, records, held_out, seen, labelled, checkpoint, progress)

    def restore(self) -> None:
        """Resume from the checkpoint, if there is one."""
        state = self.checkpoint.read(self._config())
        if state is None:
            return
        self.stack.restore(state["stack"])
        self.step, self.seconds = state["step"], state["seconds"]
        for (run, record), log, fine in zip(self.records.items(), state["logs"], state["fine"], strict=True):
            record.log, record.step = Log.of(log), self.step
            if not fine:
                self.diverged.add(run)

    def run(self, paths: Mapping[Run, Path]) -> dict[Run, TrainingRecord]:
        """Train to the last step; returns the records and writes them. Interrupted, it writes what there is so far."""
        try:
            self._train()
            self._collect()
            if self.labelled is not None:
                self._classify(self.labelled)
        except BaseException:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._collect(wait=False)
            self._save(paths, Status.UNFINISHED)
            raise
        found = self._save(paths, Status.COMPLETED)
        self.checkpoint.remove()
        return found

    def _train(self) -> None:
        if self.step == 0:
            self._evaluate()
        self._start_clock()
        while self.step < self.plan.steps and len(self.diverged) < len(self.records):
            self._pending.append(self.stack.take_step(self.step))
            self.step += 1
            here = self.step in self.plan.evaluations or self.step == self.plan.steps
            due = time.monotonic() - self._saved > self.settings.checkpoint_seconds
            if here or due or len(self._pending) == _FETCH:
                self._fetch()
                if here:
                    self._evaluate()
                if due:
                    self._write_checkpoint()
                self._start_clock()

    def _save(self, paths: Mapping[Run, Path], status: Status) -> dict[Run, TrainingRecord]:
        """Write the records of all runs with this status; those that diverged have their own."""
        found = {}
        for run, record in self.records.items():
            if record.log.rows:
                record.seconds = self.seconds
                found[run] = record.result(Status.DIVERGED if run in self.diverged else status)
                found[run].stats["stacked_runs"] = float(len(self.records))
                found[run].save(paths[run])
        return found

    def _start_clock(self) -> None:
        self._begin, self._since = time.perf_counter(), self.step

    def _fetch(self) -> None:
        """Copy the values of the last steps from the device to the records."""
        values = torch.stack(self._pending).cpu().double().numpy()
        self._pending.clear()
        seconds = time.perf_counter() - self._begin
        self.seconds["training"] += seconds
        self._noted.append(values.reshape(len(values), -1, 3))
        for (run, record), own in zip(self.records.items(), self._noted[-1].swapaxes(0, 1), strict=True):
            if run not in self.diverged:
                record.step = self.step
                if not np.isfinite(own[:, :2]).all():
                    self.diverged.add(run)
        pairs = (self.step - self._since) * self.settings.batch_size * self.settings.accumulate * len(self.records)
        u = self.step / self.plan.steps
        self.progress(
            f"stack of {len(self.records)} runs",
            self.step,
            self.plan.steps,
            loss=float(np.nanmean(values[-1, ..., 0])),
            temperature=float(np.mean([1 / self.stack.temperature(s, m, u)[0] for s, m, _ in self._runs()])),
            modality_gap=float(np.nanmean(values[-1, ..., 1])),
            images_per_second=pairs / max(seconds, 1e-9),
        )

    def _evaluate(self) -> None:
        """Embed all pairs with every run; threads compute the observables."""
        begin = time.perf_counter()
        image, text = self.stack.embed(self.held_out.pixels, self.held_out.tokens)
        seen_image, seen_text = self.stack.embed(self.seen.pixels, self.seen.tokens)
        u, count = self.step / self.plan.steps, self.settings.snapshot_pairs
        for s, m, run in self._runs():
            if run in self.diverged:
                continue
            record = self.records[run]
            beta, raw = self.stack.temperature(s, m, u)
            row = {
                "step": self.step, "epoch": self.step / self.plan.per_epoch, "progress": u,
                "temperature": 1.0 / beta, "inverse_temperature": beta,
                **({} if raw is None else {"raw_temperature": raw}),
            }  # fmt: skip
            held_out, seen = (image[s, m], text[s, m]), (seen_image[s, m], seen_text[s, m])
            if not all(np.isfinite(rows).all() for rows in (*held_out, *seen)):
                self.diverged.add(run)
                continue
            which = self.settings.observables
            self._waiting.append((run, self._pool.submit(_row, row, held_out, seen, beta, which)))
            if self.step in self.plan.snapshots:
                known = {} if raw is None else {"raw_temperature": np.float64(raw)}
                rows = {"image": seen[0][:count], "text": seen[1][:count]}
                record.log.add_snapshot(self.step, {**rows, **known})
        self.seconds["evaluation"] += time.perf_counter() - begin
        if self.step in self.plan.kernels:
            self._measure_kernels()

    def _measure_kernels(self) -> None:
        """Measure the kernels of every run, one after the other."""
        begin = time.perf_counter()
        pairs, u = self.seen.first(self.settings.kernel_pairs), self.step / self.plan.steps
        for s, m, run in self._runs():
            if run not in self.diverged:
                model = dataclasses.replace(self.stack.model, module=self.stack.module_of(s, m))
                beta, _ = self.stack.temperature(s, m, u)
                own, scales = self.records[run].settings, self.stack.preconditioner(s, m)
                found = recorded_kernels(model, pairs, self.stack.device, own, beta, scales)
                self.records[run].log.add_kernels(self.step, found)
        self.seconds["kernels"] += time.perf_counter() - begin

    def _collect(self, wait: bool = True) -> None:
        """Put the steps so far, and rows of evaluations, into the records; without `wait` only rows that are finished.

        Not in every fetch, because a GPU waits meanwhile.
        """
        if self._noted:
            values = np.concatenate(self._noted).swapaxes(0, 1)
            first = self.step - len(self._pending) - values.shape[1]
            for record, own in zip(self.records.values(), values, strict=True):
                record.note_steps(own[: max(0, record.step - first)])
            self._noted.clear()
        behind = set[Run]()
        for run, row in self._waiting:
            if wait or (row.done() and not row.cancelled() and run not in behind):
                self.records[run].log.add_row(row.result())
            else:
                behind.add(run)
        self._waiting.clear()

    def _write_checkpoint(self) -> None:
        self._collect()
        state = {
            "stack": self.stack.state(),
            "step": self.step,
            "seconds": dict(self.seconds),
            "logs": [record.log.state() for record in self.records.values()],
            "fine": [run not in self.diverged for run in self.records],
        }
        self.checkpoint.write(self._config(), state)
        self._saved = time.monotonic()

    def _classify(self, labelled: Labelled) -> None:
        """Accuracies of every finished model on labelled images."""
        for s, m, run in self._runs():
            if run in self.diverged:
                continue
            record, model = self.records[run], self.stack.model
            model = dataclasses.replace(model, module=self.stack.module_of(s, m))
            found = classify(model, labelled, self.stack.device)
            record.accuracies = {"zero_shot": found.zero_shot}
            if found.linear_probe is not None:
                record.accuracies["linear_probe"] = found.linear_probe
            record.config["labelled"] = {
                "images": found.images, "classes": found.classes, "skipped": found.skipped,
                "template": labelled.template,
            }  # fmt: skip

    def _runs(self) -> list[tuple[int, int, Run]]:
        """(position of the seed, position of the schedule, run) of every run, in the order of `records`."""
        width = len(self.stack.schedules)
        return [(*divmod(k, width), run) for k, run in enumerate(self.records)]

    def _config(self) -> dict[str, Any]:
        """What identifies the stack in its checkpoint."""
        return {"runs": [record.config for record in self.records.values()]}


def _row(
    row: dict[str, float],
    held_out: tuple[np.ndarray, np.ndarray],
    seen: tuple[np.ndarray, np.ndarray],
    beta: float,
    which: str,
) -> dict[str, float]:
    """One evaluation of one run: `row` with every observable of both sets of pairs."""
    found, trained = (observe(_unit(image), _unit(text), beta, which) for image, text in (held_out, seen))
    return {**row, **found, **{f"seen_{name}": value for name, value in trained.items()}}


def _unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length in double precision."""
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True)
