"""Train heads on frozen features with a schedule, recorded like a training of CLIP.

Step k of a run depends only on its settings, its seed and k, and the checkpoint holds the rest of its state. So a
killed run resumes without any difference.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from flowsim import observables
from flowsim.base.arrays import on_cpu
from flowsim.base.checks import check
from flowsim.base.files import check_writable
from flowsim.heads.learner import Learner, flow_of
from flowsim.heads.pools import Pools, Sample
from flowsim.heads.record import Record, configuration, ended_record
from flowsim.heads.settings import Training
from flowsim.model.schedules import Schedule, as_schedule
from flowsim.numerics import make_room, store_programs
from flowsim.progress import Progress, silent
from flowsim.provenance import CompileTimer
from flowsim.records.evaluation import observe
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status


def train(
    settings: Training,
    schedule: Schedule | str = "Baseline",
    out: str | os.PathLike[str] | None = None,
    *,
    force: bool = False,
    progress: Progress = silent,
) -> TrainingRecord:
    """Train heads on frozen features with a schedule.

    A head is a linear map or a perceptron with one hidden layer from the features of a frozen tower to the shared
    space. The record is like that of `fs.clip.train`: observables of held-out pairs (and of training pairs, as
    `seen_...`) at every evaluation, losses and temperatures of every step. Retrieval of held-out pairs counts a hit on
    any caption of an image; `zero_shot` is the accuracy of classes, if the features have them.

    Args:
        settings: Features, heads, optimizer and recording.
        schedule: A schedule, the name of a preset, or a JSON file.
        out: File of the record (.nc), written at every checkpoint and at the end; None keeps it in memory. The same
            call resumes from the checkpoint next to it; for a finished run it returns the record. A record of another
            run is not overwritten.
        force: Train again, and replace an existing record or checkpoint.
        progress: Called as `progress("training", step, steps, loss=..., temperature=..., modality_gap=...,
            images_per_second=...)`.

    Returns:
        The record. A loss that is not finite ends the run with status DIVERGED; the record then holds the evaluations
        before.

    Raises:
        FlowsimError: For bad input, before any training; if a file cannot be written.

    Examples:
        >>> import flowsim as fs
        >>> settings = fs.heads.Training(data="emoji", hidden=64, steps=40, batch_size=256, evaluations=4)
        >>> record = fs.heads.train(settings, "FLT 4e-2")
        >>> record.status.code.name, record.training["train_loss"].shape
        ('COMPLETED', (40,))
    """
    schedule = as_schedule(schedule)
    path = None if out is None else Path(out)
    if path is not None:
        check(path.suffix == ".nc", f"Records end in .nc, but got {path.name!r}. Use e.g. run.nc.")
    return train_together(settings, [(schedule, settings.seed, path)], force, lambda run: progress)[0]


def train_together(
    settings: Training,
    runs: Sequence[tuple[Schedule, int, Path | None]],
    force: bool = False,
    progress_of: Any = lambda run: silent,
) -> list[TrainingRecord]:
    """`train` for several runs of one structure in one program.

    Args:
        settings: Settings of all runs.
        runs: (schedule, seed, path) of each. The flows must have the same structure (`learner.structure_of`), and their
            checkpoints must hold the same step.
        force: Train again.
        progress_of: Gives the progress of a run by its index.

    Returns:
        Their records.
    """
    pools = Pools.of(settings)
    plan = settings.plan(pools.training.pairs)
    records, done = [], {}
    for index, (schedule, seed, path) in enumerate(runs):
        own = settings.replace(seed=seed)
        config = configuration(own, schedule, pools)
        if path is not None and path.is_file() and not force and (found := ended_record(path, config)) is not None:
            done[index] = found
        if path is not None:
            check_writable(path.parent)
        records.append(Record(own, schedule, plan, config, 0, path))
    active = [index for index in range(len(runs)) if index not in done]
    if active:
        store_programs()
        make_room()
        flows = [flow_of(settings, runs[index][0]) for index in active]
        with jax.enable_x64(settings.precision == "float64"):
            learner = Learner(settings, flows, [runs[index][1] for index in active], pools.training, plan)
            chosen = [records[index] for index in active]
            loop = _Loop(learner, chosen, pools, [progress_of(index) for index in active])
            loop.restore(force)
            done |= dict(zip(active, loop.run(), strict=True))
    return [done[index] for index in range(len(runs))]


class _Loop:
    """Training of all runs of a learner, with their records."""

    def __init__(self, learner: Learner, records: list[Record], pools: Pools, progress: list[Progress]) -> None:
        self.learner, self.records, self.pools, self.progress = learner, records, pools, progress
        self.settings, self.plan = learner.settings, learner.plan
        for run, record in enumerate(records):
            record.parameters = sum(x.size for x in jax.tree.leaves(learner.weights(run).position))
        self._saved = time.monotonic()

    def restore(self, force: bool) -> None:
        """Resume from the checkpoints, if all runs have one of the same step; with `force` they are removed."""
        if force:
            for record in self.records:
                if record.checkpoint is not None:
                    record.checkpoint.unlink(missing_ok=True)
        states = [record.restore() for record in self.records]
        if all(state is not None for state in states):
            check(
                len({record.step for record in self.records}) == 1,
                "The checkpoints of these runs are of different steps. Resume them one by one, or use `force=True`.",
            )
            self.learner.restore([state for state in states if state is not None])

    def run(self) -> list[TrainingRecord]:
        """Train to the last step; the records."""
        steps = self.plan.steps
        step = self.records[0].step
        marks = sorted(self.plan.evaluations | {0, steps})
        if not self.records[0].rows:
            self._evaluate(0)
        while step < steps and any(record.ended is None for record in self.records):
            until = min(step + self.learner.block, next(mark for mark in marks if mark > step))
            begin = time.perf_counter()
            with CompileTimer() as timer:
                values = self.learner.advance(step, until)
            seconds = max(time.perf_counter() - begin - timer.seconds, 1e-9)
            for record, noted, tell in zip(self.records, values, self.progress, strict=True):
                if record.ended is None:
                    self._note(record, noted, seconds, tell)
            step = until
            if step in marks:
                self._evaluate(step)
            if time.monotonic() - self._saved > self.settings.checkpoint_seconds and step < steps:
                self._write_checkpoints()
        for record in self.records:
            record.ended = record.ended or Status.COMPLETED
        return [record.save() for record in self.records]

    def _note(self, record: Record, noted: np.ndarray, seconds: float, tell: Progress) -> None:
        share = seconds / len(self.records)
        record.seconds["training"] += share
        if not record.note(noted):
            record.ended = Status.DIVERGED
        tell(
            "training", record.step, self.plan.steps, **record.last(),
            images_per_second=len(noted) * self.settings.batch_size / max(share, 1e-9),
        )  # fmt: skip

    def _write_checkpoints(self) -> None:
        for run, record in enumerate(self.records):
            if record.ended is None:
                record.write_checkpoint(self.learner.state(run))
                record.save()
        self._saved = time.monotonic()

    def _evaluate(self, step: int) -> None:
        """Evaluate all runs that go on, on held-out and on training pairs."""
        begin = time.perf_counter()
        learner, settings = self.learner, self.settings
        held_out, seen = (learner.embed(x.image, x.text) for x in (self.pools.held_out, self.pools.seen))
        classes = None
        if self.pools.held_out.class_text is not None:
            classes = learner.embed(self.pools.held_out.image[:2], self.pools.held_out.class_text)[1]
        going = [run for run, record in enumerate(self.records) if record.ended is None]
        for run in going:
            record = self.records[run]
            rows = [part[run] for part in (*held_out, *seen)]
            if not all(np.isfinite(part).all() for part in rows):
                record.ended = Status.DIVERGED
                continue
            beta, raw = learner.temperature(run, step)
            known = {} if raw is None else {"raw_temperature": raw}
            row = {
                "step": step, "epoch": step / self.plan.per_epoch, "progress": step / self.plan.steps,
                "temperature": 1 / beta, "inverse_temperature": beta, **known,
                **self._held_out(rows[0], rows[1], beta, None if classes is None else classes[run]),
                **_seen(rows[2], rows[3], beta, settings.observables),
            }  # fmt: skip
            record.rows.append({name: float(value) for name, value in row.items()})
            if step in self.plan.snapshots:
                count = settings.snapshot_pairs
                arrays = {"image": rows[2][:count].astype(np.float32), "text": rows[3][:count].astype(np.float32)}
                arrays |= {name: np.asarray(value) for name, value in known.items()}
                record.snapshots.append((step, arrays))
        for run in going:
            self.records[run].seconds["evaluation"] += (time.perf_counter() - begin) / len(going)

    def _held_out(self, image: np.ndarray, text: np.ndarray, beta: float, classes: Any) -> dict[str, float]:
        """Observables of held-out pairs with their first captions; retrieval with all captions."""
        pool, which = self.pools.held_out, self.settings.observables
        found = observe(image, text[pool.first], beta, "all" if which == "all" else "gap")
        if which == "gap":
            return found
        if pool.captions > 1 or which == "retrieval":
            found |= recalls(image, text, pool.captions)
        if classes is not None:
            found["zero_shot"] = zero_shot(image, classes, pool)
        return found


def _seen(image: np.ndarray, text: np.ndarray, beta: float, which: str) -> dict[str, float]:
    """Gap, loss and retrieval of training pairs: less than of held-out pairs, because evaluations take time."""
    found = observe(image, text, beta, "gap")
    found |= {} if which == "gap" else recalls(image, text, 1)
    return {f"seen_{name}": value for name, value in found.items()}


def recalls(image: np.ndarray, text: np.ndarray, captions: int) -> dict[str, float]:
    """Recall at 1, 5 and 10 in both directions with c captions per image, by the names of observables.

    Args:
        image: Image rows (n, d).
        text: Text rows (n·c, d), those of one image together.
        captions: c.
    """
    with on_cpu():
        ranks = observables.retrieval_ranks(image, text, captions_per_image=captions)
    found = {}
    for k in (1, 5, 10):
        for name, rank in zip(ranks._fields, ranks, strict=True):
            found[f"{name}_at_{k}"] = float(np.mean(np.asarray(rank) <= k))
    return found


def zero_shot(image: np.ndarray, classes: np.ndarray, pool: Sample) -> float:
    """Accuracy of the nearest class text, over the images that have a class.

    Args:
        image: Image rows (n, d).
        classes: Rows of the class texts (K, d).
        pool: The images, with their labels.
    """
    assert pool.labels is not None
    known = pool.labels >= 0
    return float(np.mean((image @ classes.T).argmax(1)[known] == pool.labels[known])) if known.any() else np.nan
