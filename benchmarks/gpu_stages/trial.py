"""Stage `trial`: stacked runs against separate ones, and what the study needs to choose its model and learning rate.

- `gradients`: the gradient of each stacked run against that of the same run by itself, in fp32.
- `speed`: images/s and memory of 27 runs in one program, and of one.
- `profile`: which operations of a step of 27 runs take the time.
- `rates`: the Baseline by two learning rates; where its loss and temperature end.

`--data FOLDER` holds photos and captions; without it generated shapes are used.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # JAX only draws and measures here

import statistics
import time
from typing import Any

import torch
from record import Record, has_gpu
from runs import Runs, settings_of

import flowsim as fs
from flowsim.clip.studies import SHORT


def gradients(runs: Runs, methods: tuple[str, ...], seeds: tuple[int, ...]) -> dict[str, Any]:
    """Largest difference of the gradients of stacked and separate runs, relative to the largest entry."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    schedules = [fs.schedules.get(name) for name in methods]
    together = runs.stack(schedules, seeds, precision="fp32", steps=20)
    stacked = together.gradient(0)
    found: dict[str, float] = {}
    for s, seed in enumerate(seeds):
        for m, name in enumerate(methods):
            alone = runs.stack([schedules[m]], [seed], precision="fp32", steps=20)
            own = alone.gradient(0)
            worst = 0.0
            for key, gradient in own.items():
                scale = gradient.abs().max()
                if scale > 0:
                    worst = max(worst, float((stacked[key][s, m] - gradient[0, 0]).abs().max() / scale))
            found[f"{name}, seed {seed}"] = worst
    return {"relative_difference": found, "largest": max(found.values())}


def speed(runs: Runs, patch: int | None, counts: tuple[tuple[int, int], ...], steps: int) -> dict[str, Any]:
    """Seconds of a step, images/s and peak memory of stacks of several sizes (schedules, seeds)."""
    changes: dict[str, Any] = {} if patch is None else {"model": settings_of("", False, patch).model}
    found = {}
    for wide, deep in counts:
        stack = runs.stack([fs.schedules.get(name) for name in SHORT[:wide]], range(deep), **changes)
        if has_gpu():
            torch.cuda.reset_peak_memory_stats()
        for k in range(3):
            stack.take_step(k)
        times = []
        for k in range(3, 3 + steps):
            _wait()
            begin = time.perf_counter()
            stack.take_step(k)
            _wait()
            times.append(time.perf_counter() - begin)
        middle = statistics.median(times)
        images = wide * deep * runs.settings.batch_size
        found[f"{wide * deep} runs"] = {
            "seconds_per_step": [min(times), middle, max(times)],
            "images_per_second": images / middle,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if has_gpu() else None,
        }
        del stack
        if has_gpu():
            torch.cuda.empty_cache()
    return found


def rates(runs: Runs, patch: int | None, values: tuple[float, ...], steps: int) -> dict[str, Any]:
    """Loss, temperature and batch gap of the Baseline along a short run, by its learning rate."""
    changes: dict[str, Any] = {} if patch is None else {"model": settings_of("", False, patch).model}
    found = {}
    for lr in values:
        stack = runs.stack([fs.schedules.get("Baseline")], [0], lr=lr, steps=steps, **changes)
        begin = time.perf_counter()
        noted = torch.stack([stack.take_step(k)[0, 0] for k in range(steps)]).cpu().double()
        every = max(1, steps // 20)
        found[f"{lr:g}"] = {
            "seconds": time.perf_counter() - begin,
            "step": list(range(0, steps, every)),
            "loss": noted[::every, 0].tolist(),
            "modality_gap": noted[::every, 1].tolist(),
            "temperature": (-noted[::every, 2]).exp().tolist(),
            "last_loss": float(noted[-20:, 0].mean()),
            "last_temperature": float((-noted[-1, 2]).exp()),
        }
    return found


def profile(runs: Runs, wide: int, deep: int) -> list[dict[str, Any]]:
    """The operations of a step of a stack that take the most time, on the device if there is one."""
    stack = runs.stack([fs.schedules.get(name) for name in SHORT[:wide]], range(deep))
    for k in range(3):
        stack.take_step(k)
    _wait()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if has_gpu():
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as found:
        stack.take_step(3)
        _wait()
    key = "self_device_time_total" if has_gpu() else "self_cpu_time_total"
    events = sorted(found.key_averages(), key=lambda event: -getattr(event, key))
    return [
        {"name": event.key[:100], "milliseconds": getattr(event, key) / 1e3, "calls": event.count}
        for event in events[:20]
    ]


def _wait() -> None:
    if has_gpu():
        torch.cuda.synchronize()


def main() -> None:
    record = Record(__doc__, data="")
    tiny = record.tiny
    runs = Runs(settings_of(record.options.data, tiny, 16))
    count = ((1, 1), (2, 2)) if tiny else ((9, 3), (1, 1))
    patches = (None,) if tiny else (16, 12)
    record.part("gradients", lambda: gradients(runs, ("Baseline", "HS 1"), (0, 1)), 0 if tiny else 5, True)
    for patch in patches:
        label = "" if patch is None else f", patch {patch}"
        record.part(f"speed{label}", lambda patch=patch: speed(runs, patch, count, 2 if tiny else 8), 0 if tiny else 5)
    record.part("profile", lambda: profile(runs, 2 if tiny else 9, 2 if tiny else 3), 0 if tiny else 5)
    record.part("rates", lambda: rates(runs, None if tiny else 16, (1e-3, 2e-3), 6 if tiny else 300), 0 if tiny else 5)
    record.finish()


if __name__ == "__main__":
    main()
