"""What `fs.torch.GapMonitor` and `TemperatureController` cost in a training loop.

    python benchmarks/gap_monitor.py [--model flowsim-vit-64] [--batch 64] [--every 50] [--blocks 12] [--threads 1]

Blocks of `every` steps with and without the monitor alternate, so that each block with it has one measurement, which
also goes to a record. The first block of each kind is not counted. Both are also timed inside the loop, which other
programs disturb less than differences of blocks; on a CPU all times are those of the process.
"""

import argparse
import contextlib
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecation warnings of other packages
    import torch
    from open_clip.loss import ClipLoss

import flowsim as fs
from flowsim.clip import models


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure(name: str, batch: int, every: int, blocks: int, device: str, schedule: str) -> dict[str, Any]:
    """Seconds of steps.

    Args:
        name: Model of open_clip or flowsim.
        batch: Pairs in a batch.
        every: Steps in a block, and between measurements.
        blocks: Blocks of each kind.
        device: "cpu" or "cuda".
        schedule: Name of the schedule.

    Returns:
        Median milliseconds of a step with and without the monitor, (smallest, median, largest) difference of blocks,
        and the milliseconds of monitor and controller inside a step.
    """
    built = models.build(name)
    module = built.module.to(device)
    module.output_dict = False
    images = torch.randn(batch, 3, built.image_size, built.image_size, device=device)
    tokens = built.tokenize([f"a photo of {k}" for k in range(batch)]).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    loss_of, clock = ClipLoss(), time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    inside: dict[str, list[float]] = {"monitor": [], "controller": []}
    spent = {"monitor": 0.0, "controller": 0.0}

    def timed(kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timing(*args: Any, **kwargs: Any) -> Any:
            before = clock()
            found = call(*args, **kwargs)
            spent[kind] += clock() - before
            return found

        return timing

    def block(look: Callable[..., Any]) -> float:
        synchronise(device)
        spent.update(monitor=0.0, controller=0.0)
        begin = clock()
        for _ in range(every):
            image, text, beta = module(images, tokens)
            loss = loss_of(*controller.swap(image, text), beta)
            look(image, text, loss=loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronise(device)
        return (clock() - begin) / every

    controller: Any = fs.torch.TemperatureController(module.logit_scale, schedule, 10**6)
    for name_ in ("before_step", "after_step", "swap"):
        setattr(controller, name_, timed("controller", getattr(controller, name_)))
    controller.attach(optimizer)
    with tempfile.TemporaryDirectory() as folder:
        monitor = fs.torch.GapMonitor(every, to=Path(folder) / "run.nc", controller=controller)
        for k in range(blocks + 1):
            step = block(timed("monitor", monitor))
            found = dict(spent)
            plain = block(lambda *_, **__: None)
            controller.step = (k + 1) * every  # the next block begins with a measurement again
            if k:
                seconds["with"].append(step)
                seconds["without"].append(plain)
                for kind, value in found.items():
                    inside[kind].append(value / every)
        monitor.close()
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    parts = {kind: statistics.fmean(values) for kind, values in inside.items()}
    ratios = [a / b - 1 for a, b in zip(*seconds.values(), strict=True)]
    return {
        "model": name, "batch": batch, "every": every, "device": device, "schedule": schedule,
        "milliseconds_per_step": {kind: round(1000 * value, 3) for kind, value in medians.items()},
        "difference_percent": [round(100 * x, 2) for x in (min(ratios), statistics.median(ratios), max(ratios))],
        "inside_milliseconds_per_step": {kind: round(1000 * value, 3) for kind, value in parts.items()},
        "inside_percent": {kind: round(100 * value / medians["without"], 3) for kind, value in parts.items()},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", default="flowsim-vit-64")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--schedule", default="Baseline")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with contextlib.suppress(KeyboardInterrupt):
        device = "cuda" if options.cuda else "cpu"
        found = measure(options.model, options.batch, options.every, options.blocks, device, options.schedule)
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
