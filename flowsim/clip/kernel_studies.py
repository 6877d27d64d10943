"""A study of kernels: small towers, batches, optimizers and schedules, each run with its kernels measured on the way.

    records = fs.clip.kernel_study("photos", "kernel-runs", seeds=3, jobs=2)

What the kernels say about each run is found by `fs.compare(record)`.
"""

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowsim.base import processes
from flowsim.base.checks import check
from flowsim.clip.settings import Training
from flowsim.clip.studies import file_name, methods, train_method
from flowsim.errors import FlowsimError, unknown_name
from flowsim.progress import Progress, silent
from flowsim.records.load import load_result
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status

#: Towers by name: models, and random directions of their kernels. Where rows of a batch depend on each other (batch
#: normalisation) each direction takes a backward pass for every row.
TOWERS = {"vit": ("flowsim-vit-32", 4), "rn": ("flowsim-rn-32", 1)}
#: Training pairs by name; a batch has 64.
BATCHES = {"full": 64, "minibatch": 512}
#: Plain SGD has no warm-up, and a constant rate, so that the sum of rates is flow time.
_SGD = {"optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0, "decay": "constant"}
#: Settings of the optimizers. "slow-sgd" stays below the stability limit of the ViT, and takes as much flow time as
#: "sgd", which is above it at times.
OPTIMIZERS = {
    "sgd": {**_SGD, "lr": 3e-3},
    "slow-sgd": {**_SGD, "lr": 1e-3, "steps": 900},
    "adamw": {"optimizer": "adamw", "lr": 1e-3},
}
METHODS = ("Baseline", "FLT 4e-2", "TS S3", "SLRT 0.1", "HS 1e-2")
#: Settings that all runs share: whole images and first captions, so that the rows of a run are those of its kernels.
COMMON = Training(
    image_size=32, steps=300, batch_size=64, augment="centre", captions="first", pairs=128, evaluations=40,
    observables="gap", kernels=8, kernel_pairs=64, snapshot_pairs=64, threads=1,
)  # fmt: skip


#: Cells of a study: both towers with both batches and optimizers, and one below the stability limit.
CELLS = (
    "vit full slow-sgd",
    *(" ".join(parts) for parts in itertools.product(TOWERS, BATCHES, ("sgd", "adamw"))),
)


def cell_settings(name: str) -> Training:
    """Settings of a cell, without data.

    Args:
        name: Tower, batch and optimizer, e.g. "vit full sgd".

    Returns:
        The settings.

    Raises:
        FlowsimError: For an unknown name.
    """
    parts = name.split()
    known: tuple[Mapping[str, Any], ...] = (TOWERS, BATCHES, OPTIMIZERS)
    if len(parts) != 3 or any(part not in names for part, names in zip(parts, known, strict=True)):
        raise unknown_name("cell of a study of kernels", name, CELLS)
    tower, batch, optimizer = parts
    model, directions = TOWERS[tower]
    return COMMON.replace(model=model, kernel_directions=directions, limit=BATCHES[batch], **OPTIMIZERS[optimizer])


def kernel_study(
    data: str,
    out: str | os.PathLike[str],
    cells: Sequence[str] = CELLS,
    names: str | Sequence[str] = METHODS,
    seeds: int | Sequence[int] = 3,
    *,
    jobs: int = 1,
    cpu: bool = False,
    steps: int | None = None,
    progress: Progress = silent,
) -> dict[str, TrainingRecord]:
    """Train every method in every cell of a study of kernels with every seed. The same call resumes.

    Args:
        data: Source of the pairs, see `data.load`.
        out: Folder of the records, one folder for each cell.
        cells: Names of cells: tower (vit, rn), batch (full: 64 pairs; minibatch: 64 of 512), and optimizer (sgd,
            slow-sgd, adamw).
        names: Names of methods.
        seeds: Number of seeds, from 0, or a list.
        jobs: Runs at the same time, each in its own process.
        cpu: Use the CPU even if there is a GPU.
        steps: Steps of each run; None for 300 (900 of slow-sgd).
        progress: Called with the name of a run, its step, the number of steps, and the numbers of `fs.clip.train`.

    Returns:
        Records by name ("vit full sgd, Baseline, seed 0").

    Raises:
        FlowsimError: For bad input.
    """
    chosen = {name: cell_settings(name) for name in cells}
    if steps is not None:
        chosen = {name: held.replace(steps=steps) for name, held in chosen.items()}
    check(jobs >= 1, f"Argument `jobs` must be at least 1, but is {jobs}. Use e.g. 2.")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    check(chosen and seeds, "A study needs at least one cell and one seed. Use e.g. seeds=3.")
    calls, labels = [], []
    for seed, method, (cell, held) in itertools.product(seeds, methods(names), chosen.items()):
        path = Path(out) / cell.replace(" ", "-") / file_name(method, seed)
        labels.append(f"{cell}, {method}, seed {seed}")
        calls.append((train_method, (held.replace(data=data, seed=seed), method, str(path), cpu, labels[-1])))
    done = {labels[k]: record for k, record in processes.run(calls, lambda index: progress, workers=jobs)}
    return {label: done[label] for label in labels}


def finished_kernels(out: str | os.PathLike[str]) -> dict[str, TrainingRecord]:
    """The finished records in the folder of a study of kernels, by name.

    Args:
        out: The folder.

    Returns:
        The records.

    Raises:
        FlowsimError: If there are none.
    """
    known = {file_name(name, 0).removesuffix("seed0.nc"): name for name in methods("all")}
    cells = {"-".join(parts): " ".join(parts) for parts in itertools.product(TOWERS, BATCHES, OPTIMIZERS)}
    records = {}
    for path in sorted(Path(out).glob("*/*.seed*.nc")):
        stem, _, rest = path.name.rpartition("seed")
        if stem not in known or path.parent.name not in cells:
            continue
        record = load_result(path)
        if isinstance(record, TrainingRecord) and record.status.code is not Status.UNFINISHED:
            records[f"{cells[path.parent.name]}, {known[stem]}, seed {rest.removesuffix('.nc')}"] = record
    if not records:
        raise FlowsimError(f"There are no finished records in {str(out)!r}. Run `flowsim clip kernel-study` first.")
    return records
