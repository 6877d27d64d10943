"""Stage `study`: nine methods of the paper on photos, with as many seeds as fit, all runs in one program.

    python benchmarks/gpu_stages/study.py --out DIR [--data FOLDER] [--patch 16] [--lr 1.5e-3] [--most 3600]

A step and an evaluation are timed first. The number of steps is what then fits into the time, at most `--most`; the
number of seeds is 3, or fewer if that leaves less than `--least` steps. If the time is over nevertheless, the runs end
there. `study.nc` holds the records of all runs, and `study_numbers.nc` what their figure shows, in less space.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX only draws swaps and measures here
os.environ.setdefault("OPENBLAS_NUM_THREADS", "2")  # observables are computed in threads

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from record import Record, has_gpu
from runs import settings_of

import flowsim as fs
from flowsim.clip import stacked, studies
from flowsim.clip.checkpoint import Checkpoint
from flowsim.clip.figures import methods_numbers
from flowsim.clip.settings import Training
from flowsim.clip.tables import completed
from flowsim.progress import silent
from flowsim.records.load import save_results
from flowsim.records.netcdf import write_netcdf

#: Part of the time that is planned for.
_PLANNED = 0.9


class Enough(Exception):
    """The time is over."""


def times_of(settings: Training, names: list[str], seeds: int, folder: Path) -> dict[str, float]:
    """Seconds of a step of the whole stack, of an evaluation, and until all its observables are computed."""
    schedules = {name: fs.schedules.get(name) for name in names}
    nowhere = Checkpoint(folder / "none.nc")
    training = stacked._Training.begin(settings, schedules, list(range(seeds)), nowhere, not has_gpu(), silent)
    times = []
    for k in range(4 if settings.batch_size < 64 else 12):
        begin = time.perf_counter()
        training.stack.take_step(k)
        if has_gpu():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    spent = []
    for _ in range(2):
        begin = time.perf_counter()
        training._evaluate()
        spent.append([time.perf_counter() - begin])
        training._collect()
        spent[-1].append(time.perf_counter() - begin)
    return {
        "seconds_per_step": statistics.median(times[2:]),
        "seconds_per_evaluation": spent[-1][0],
        "seconds_with_observables": spent[-1][1],
    }


def plan(
    settings: Training, names: list[str], most: int, least: int, left: Callable[[], float], folder: Path
) -> dict[str, Any]:
    """Numbers of seeds and of steps that fit into the time."""
    found: dict[str, Any] = {}
    for seeds in (3, 2, 1):
        one = times_of(settings, names, seeds, folder)
        if has_gpu():
            torch.cuda.empty_cache()
        # Threads compute observables during training; at the end one waits for those of the last evaluations.
        for_evaluations = settings.evaluations * one["seconds_per_evaluation"] + 2 * one["seconds_with_observables"]
        for_steps = _PLANNED * left() - for_evaluations
        steps = min(most, int(for_steps / one["seconds_per_step"]))
        found[f"{len(names) * seeds} runs"] = {**one, "steps": steps}
        if steps >= least or seeds == 1:
            return {"seeds": seeds, "steps": max(2, steps), "tried": found}
    raise AssertionError


def train(
    settings: Training, names: list[str], seeds: int, folder: Path, out: Path, left: Callable[[], float]
) -> dict[str, Any]:
    """Train all runs, or as far as the time allows; where they ended."""
    begin = time.monotonic()
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()

    def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        if done % 500 < 25 or done == total:
            print(text, done, total, {k: round(v, 4) for k, v in numbers.items()}, flush=True)
        if left() < 0:
            raise Enough

    try:
        records = studies.study(settings, folder, names, seeds, stack=len(names) * seeds, progress=show)
    except Enough:
        runs = [(name, seed) for seed in range(seeds) for name in names]
        held = {studies.run_name(*run): folder / studies.file_name(*run) for run in runs}
        records: Any = {name: fs.load(path) for name, path in held.items() if path.is_file()}
    save_results(records, out / "study.nc")
    if completed(records)[0]:
        write_netcdf(methods_numbers(records), out / "study_numbers.nc")
    first = next(iter(records.values()))
    return {
        "runs": len(records),
        "steps": settings.steps,
        "batch_size": settings.batch_size,
        "seconds": time.monotonic() - begin,
        "training_seconds": first.stats["training_seconds"],
        "evaluation_seconds": first.stats["evaluation_seconds"],
        "images_per_second": len(records) * first.stats["images_per_second"],
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if has_gpu() else None,
        "status": {name: record.status.code.name for name, record in records.items()},
        "final": {
            name: {key: float(record.series[key][-1]) for key in ("modality_gap", "seen_modality_gap", "temperature")}
            for name, record in records.items()
        },
    }


def main() -> None:
    record = Record(__doc__, data="", patch=16, lr=1.5e-3, most=3600, least=2600, work="")
    given, tiny = record.options, record.tiny
    settings = settings_of(given.data, tiny, given.patch, given.lr)
    names = [str(name) for name in studies.SHORT[: 3 if tiny else None]]
    folder = Path(given.work) / "study" if given.work else record.out / "study"
    folder.mkdir(parents=True, exist_ok=True)
    # What is left when the last step is taken is for the last evaluation and the file.
    left = lambda: record.left - 8  # noqa: E731
    most, least = (12, 2) if tiny else (given.most, given.least)
    # A plan belongs to the time of its call.
    found = record.part("plan", lambda: plan(settings, names, most, least, left, folder), again=True)
    if found is None:
        return
    settings = settings.replace(steps=found["steps"])
    record.part("runs", lambda: train(settings, names, found["seeds"], folder, record.out, left))
    record.finish()


if __name__ == "__main__":
    main()
