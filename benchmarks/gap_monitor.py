"""What `fs.torch.GapMonitor` and `TemperatureController` cost in a training loop: seconds of the loop with and without.

    python benchmarks/gap_monitor.py [--model flowsim-vit-64] [--batch 64] [--every 50] [--blocks 12] [--threads 1]

Blocks of `every` steps with and without them alternate, so that each block has one measurement, which is also written
to a record. The first block of each kind is not counted. The monitor alone is also timed inside the loop, by the
process's own time on a CPU, which other programs disturb less than differences of blocks.
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
        Seconds per step of all blocks, their median difference, and the time of the monitor in a block.
    """
    built = models.build(name)
    module = built.module.to(device)
    module.output_dict = False
    images = torch.randn(batch, 3, built.image_size, built.image_size, device=device)
    tokens = built.tokenize([f"a photo of {k}" for k in range(batch)]).to(device)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    loss_of, clock = ClipLoss(), time.process_time if device == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    inside: list[float] = []

    def block(look: Callable[..., Any], change: Callable[..., Any]) -> tuple[float, float]:
        synchronise(device)
        begin, looked = clock(), 0.0
        for _ in range(every):
            image, text, beta = module(images, tokens)
            loss = loss_of(*change(image, text), beta)
            before = clock()
            look(image, text, loss)
            looked += clock() - before
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        synchronise(device)
        return (clock() - begin) / every, looked / every

    with tempfile.TemporaryDirectory() as folder:
        controller = fs.torch.TemperatureController(module.logit_scale, schedule, 10**6)
        monitor = fs.torch.GapMonitor(every, to=Path(folder) / "run.nc", controller=controller)
        for k in range(blocks + 1):
            controller.attach(optimizer)
            step, looked = block(lambda x, y, loss: monitor(x, y, loss=loss), controller.swap)
            controller.detach()
            plain, _ = block(lambda *_: None, lambda x, y: (x, y))
            if k:
                seconds["with"].append(step)
                seconds["without"].append(plain)
                inside.append(looked)
        monitor.close()
    medians = {kind: statistics.median(values) for kind, values in seconds.items()}
    return {
        "model": name, "batch": batch, "every": every, "device": device, "schedule": schedule,
        "milliseconds_per_step": {kind: round(1000 * value, 3) for kind, value in medians.items()},
        "monitor_milliseconds_per_step": round(1000 * statistics.median(inside), 4),
        "monitor_percent": round(100 * statistics.median(inside) / medians["without"], 3),
        "difference_percent": round(
            100 * statistics.median(a / b - 1 for a, b in zip(*seconds.values(), strict=True)), 3
        ),
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
