"""Train a CLIP model with a schedule, recorded as a `TrainingRecord`.

Step k of a run depends only on its settings, its seed and k, and the checkpoint holds the rest of its state. So a
killed run resumes without any difference (bitwise on a CPU).
"""

import os
from pathlib import Path
from typing import Any

from flowsim.base.checks import check
from flowsim.clip import models
from flowsim.clip.data import Pairs
from flowsim.clip.embed import Sample
from flowsim.clip.identity import configuration, digests, ended_record, short_report
from flowsim.clip.inputs import read_inputs
from flowsim.clip.labelled import Labelled
from flowsim.clip.learner import Learner
from flowsim.clip.loop import Loop
from flowsim.clip.memory import enough_memory
from flowsim.clip.plan import Plan
from flowsim.clip.pools import load_pools
from flowsim.clip.record import Record
from flowsim.clip.session import Session, alone, check_writable_file, is_first_process, limited_threads, scalars
from flowsim.clip.settings import Training
from flowsim.model.schedules import Schedule, as_schedule
from flowsim.progress import Progress, silent
from flowsim.records.result import TrainingRecord

#: What helps if the memory of a GPU is full.
_MEMORY = (
    "Use a smaller `batch_size`, precision='bf16' or `preload=False`; or free memory there: the same call then resumes "
    "from its last checkpoint."
)


def train(
    settings: Training,
    schedule: Schedule | str = "Baseline",
    out: str | os.PathLike[str] | None = None,
    *,
    cpu: bool = False,
    force: bool = False,
    weights: str | os.PathLike[str] | None = None,
    tensorboard: str | None = None,
    progress: Progress = silent,
) -> TrainingRecord:
    """Train `settings.model` on `settings.data` with a schedule.

    Args:
        settings: Model, data, optimizer and recording, e.g. `fs.clip.preset("laptop")`.
        schedule: A schedule, the name of a preset, or a JSON file.
        out: File of the record (.nc), written at every evaluation; None keeps it in memory. A checkpoint is kept next
            to it until the run is finished. The same call resumes from there; for a finished run it returns the
            record. A record of another run is not overwritten.
        cpu: Use the CPU even if there is a GPU.
        force: Train again, and replace an existing record or checkpoint.
        weights: File for the final weights of a completed run: a state dict that open_clip loads.
        tensorboard: Folder for the numbers that `progress` gets.
        progress: Called by the first process, as `progress("training", step, steps, loss=..., temperature=...,
            modality_gap=..., images_per_second=...)`, and before with `locked_image` as
            `progress("features of images", done, images, images_per_second=...)`.

    Returns:
        The record. A loss that is not finite ends the run with status DIVERGED; the record then holds the evaluations
        before.

    Raises:
        FlowsimError: For bad input, before any training; if a file cannot be written, or the memory of the GPU is full:
            the record of the last evaluation and the last checkpoint are then kept.
    """
    schedule = as_schedule(schedule)
    path = None if out is None else Path(out)
    if path is not None:
        check(path.suffix == ".nc", f"Records end in .nc, but got {path.name!r}. Use e.g. run.nc.")
        if path.is_file() and not force and (done := ended_record(path, settings, schedule)) is not None:
            check(
                weights is None or Path(weights).exists(),
                f"{str(path)!r} is a finished run whose weights were not saved. Train it again with `force=True`.",
            )
            return done
    first = is_first_process()
    if weights is not None and first:
        check_writable_file(Path(weights))
    with (
        alone(path),
        limited_threads(settings.threads),
        scalars(tensorboard if first else None) as write,
        enough_memory(_MEMORY),
    ):

        def both(text: str, done: int, total: int | None, /, **numbers: float) -> None:
            if text == "training":
                write(text, done, total, **numbers)
            progress(text, done, total, **numbers)

        loop = _prepared(settings, schedule, path, cpu, both)
        loop.restore(force)
        return loop.run(None if weights is None else Path(weights))


def _prepared(settings: Training, schedule: Schedule, path: Path | None, cpu: bool, progress: Progress) -> Loop:
    """The run before its first step: model, data and record. Raises `FlowsimError` for bad input."""
    session = Session.begin(settings.precision, cpu)
    check(
        settings.batch_size % session.processes == 0,
        f"A batch of {settings.batch_size} pairs cannot be shared by {session.processes} processes. "
        f"Use a multiple of {session.processes} as `batch_size`.",
    )
    model = models.build(settings.model, settings.pretrained, settings.image_size, settings.seed)
    pools = load_pools(settings)
    labelled = Labelled.of(settings.labelled) if session.is_main and settings.labelled is not None else None
    told_apart = digests(settings)
    inputs = read_inputs(settings, session, [model], pools, progress)
    batches, seen, held_out = inputs.batches, inputs.seen, inputs.held_out
    plan = Plan.of(settings, len(batches.pairs))
    learner = Learner(settings, schedule, session, inputs.models[0], batches, plan)
    config = complete_configuration(
        configuration(settings, schedule), batches.pairs, seen, held_out, plan, model.embed_dim, told_apart
    )
    parameters = sum(p.numel() for p in learner.model.module.parameters())
    record = Record(settings, schedule, plan, session, config, parameters)
    return Loop(learner, record, held_out, seen, labelled, path, progress)


def complete_configuration(
    known: dict[str, Any],
    training: Pairs,
    seen: Sample,
    held_out: Sample,
    plan: Plan,
    embed_dim: int,
    told_apart: dict[str, str],
) -> dict[str, Any]:
    """The configuration in the record of a run: what was `known` before its data were read, and facts about them."""
    return {
        **known,
        "evaluation": {
            "pairs": len(held_out),
            "seen_pairs": len(seen),
            "captions": "first",
            "crop": "centre",
            "retrieval_pool": len(held_out),
        },
        "data": {
            "training_pairs": len(training),
            "report": short_report(training),
            "held_out_report": short_report(held_out.pairs),
            "skipped": dict(training.skipped),
            "held_out_skipped": dict(held_out.pairs.skipped),
        },
        "steps": plan.steps,
        "negatives": known["training"]["batch_size"] - 1,
        "embed_dim": embed_dim,
        "digests": told_apart,
    }
