"""Stage `study`: nine methods of the paper on photos, with as many seeds as fit, all runs in one program.

    python benchmarks/gpu_stages/study.py --out DIR [--data FOLDER] [--patch 16] [--lr 1.5e-3] [--most 3000]

The step is timed first. The number of steps is what then fits into the time, at most `--most`; the number of seeds is
3, or fewer if that leaves less than `--least` steps. `study.nc` holds the records of all runs.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX only draws swaps and measures here

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from record import Record, has_gpu
from runs import Runs, settings_of

import flowsim as fs
from flowsim.clip import studies
from flowsim.clip.settings import Training
from flowsim.records.load import save_results

#: Part of the time that is planned for: the rest is for evaluations, which are not timed, and for the records.
_PLANNED = 0.86


def step_seconds(settings: Training, names: list[str], seeds: int) -> float:
    """Seconds of a step of the whole stack."""
    stack = Runs(settings).stack([fs.schedules.get(name) for name in names], range(seeds))
    times = []
    for k in range(2 if settings.batch_size < 64 else 12):
        begin = time.perf_counter()
        stack.take_step(k)
        if has_gpu():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def plan(settings: Training, names: list[str], most: int, least: int, seconds: float) -> dict[str, Any]:
    """Numbers of seeds and of steps that fit into the time."""
    begin, found = time.monotonic(), {"1 run": {"seconds_per_step": step_seconds(settings, names[:1], 1)}}
    for seeds in (3, 2, 1):
        each = step_seconds(settings, names, seeds)
        if has_gpu():
            torch.cuda.empty_cache()
        left = seconds - (time.monotonic() - begin)
        steps = min(most, int(_PLANNED * left / each))
        found[f"{len(names) * seeds} runs"] = {"seconds_per_step": each, "steps": steps}
        if steps >= least or seeds == 1:
            return {"seeds": seeds, "steps": max(2, steps), "tried": found}
    raise AssertionError


def train(settings: Training, names: list[str], seeds: int, folder: Path, out: Path) -> dict[str, Any]:
    """Train all runs; where they ended."""
    begin = time.monotonic()
    if has_gpu():
        torch.cuda.reset_peak_memory_stats()

    def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        if done % 500 < 25 or done == total:
            print(text, done, total, {k: round(v, 4) for k, v in numbers.items()}, flush=True)

    records = studies.study(settings, folder, names, seeds, stack=len(names) * seeds, progress=show)
    save_results(records, out / "study.nc")
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
    record = Record(__doc__, data="", patch=16, lr=1.5e-3, most=3000, least=1600, work="")
    given, tiny = record.options, record.tiny
    settings = settings_of(given.data, tiny, given.patch, given.lr)
    names = list(studies.SHORT)[: 3 if tiny else None]
    if tiny:
        found = {"seeds": 2, "steps": 12}
    else:
        found = record.part("plan", lambda: plan(settings, names, given.most, given.least, record.left - 22))
    if found is None:
        return
    settings = settings.replace(steps=found["steps"])
    folder = Path(given.work) / "study" if given.work else record.out / "study"
    record.part("runs", lambda: train(settings, names, found["seeds"], folder, record.out))
    record.finish()


if __name__ == "__main__":
    main()
