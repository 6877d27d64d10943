"""open_clip's own trainer on runs of `fs.clip.train`: the same weights, batches, crops and hyperparameters.

    python benchmarks/open_clip_peer.py [--preset laptop] [--steps 50] [--repeats 7] [--data SOURCE] [--threads 1]

prints the largest difference of the losses, and images/s of both, which alternate. Data are in memory for both, so the
steps are compared (and flowsim's recording of them). `benchmarks/gpu_stages/parity.py` uses the same functions, also
with open_clip's own loader.
"""

import argparse
import gc
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecation warnings of other packages
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

from flowsim.clip import models
from flowsim.clip import training as bridge
from flowsim.clip.batches import crop, onto, prepare
from flowsim.clip.settings import Training, preset
from flowsim.progress import Progress


class _Loader:
    """What `train_one_epoch` takes as a loader: batches of `source`, with a clock that starts after `skip` of them."""

    def __init__(self, source: Any, steps: int, pairs: int, skip: int, device: torch.device) -> None:
        self.source, self.num_batches, self.num_samples, self.skip, self.device = source, steps, pairs, skip, device
        self.begin = 0.0

    def __iter__(self):
        for k, batch in enumerate(self.source):
            if k == self.skip:
                if self.device.type == "cuda":
                    torch.cuda.synchronize()
                self.begin = time.perf_counter()
            yield batch


def train(
    settings: Training, cuda: bool = False, own: Callable[[models.Model, int], Any] | None = None, skip: int = 0
) -> tuple[np.ndarray, float]:
    """(losses of all steps, seconds) of `open_clip_train.train.train_one_epoch` on our batches.

    Args:
        settings: Settings of the run.
        cuda: Use the GPU.
        own: Function of (model, steps) that returns batches (images, tokens) to be used instead of ours.
        skip: Steps before the clock starts.

    Returns:
        The losses, and the seconds of the other steps.
    """
    model = models.build(settings.model, settings.pretrained, settings.image_size, settings.seed)
    device = torch.device("cuda" if cuda else "cpu")
    pairs = settings.limit or 0
    if own is not None:
        steps = settings.total_steps(pairs)
        source = own(model, steps)
    else:
        batches = prepare(
            bridge.load_pools(settings)[0], model.tokenize, model.image_size, settings, resize=model.resize
        )
        onto(batches, device)
        pairs = len(batches.pairs)
        steps = settings.total_steps(pairs)

        def ours(count: int):
            for k in range(count):
                pixels, tokens, boxes = batches.batch(k)
                yield crop(pixels.to(device, non_blocking=True), boxes, model.mean, model.std), tokens

        source = ours(steps)
    module = model.module.to(device)
    module.output_dict = True
    named = [(n, p) for n, p in module.named_parameters() if n != "logit_scale"]
    gains = [p for n, p in named if p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n]
    rest = [p for n, p in named if not (p.ndim < 2 or "bn" in n or "ln" in n or "bias" in n)]
    groups = [
        {"params": [*gains, module.logit_scale], "weight_decay": 0.0},
        {"params": rest, "weight_decay": settings.weight_decay},
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
    losses: list[torch.Tensor] = []
    contrast = ClipLoss()

    def loss(image_features, text_features, logit_scale, output_dict):
        value = contrast(image_features, text_features, logit_scale)
        losses.append(value.detach())
        return {"contrastive_loss": value}

    loader = _Loader(source, steps, pairs, skip, device)
    given = argparse.Namespace(dataloader=loader, set_epoch=lambda epoch: None)
    args = argparse.Namespace(
        device=str(device),
        precision="amp_bf16" if settings.precision == "bf16" else "fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=None,
        horovod=False,
        log_every_n_steps=10**9,
        batch_size=settings.batch_size,
        world_size=1,
        rank=0,
        local_rank=0,
        wandb=False,
    )
    scheduler = cosine_lr(optimizer, settings.lr, int(settings.warmup * steps), steps)
    logging.disable(logging.INFO)
    try:
        train_one_epoch(module, {"train": given}, loss, 0, optimizer, None, scheduler, None, args)
        values = torch.stack(losses).float().cpu().numpy()
    finally:
        logging.disable(logging.NOTSET)
    return values, time.perf_counter() - loader.begin


def quiet(settings: Training, steps: int) -> Training:
    """The settings for these steps and nothing else: no evaluation but at both ends, of two pairs."""
    return settings.replace(
        steps=steps, evaluations=1, observables="gap", pairs=2, snapshot_pairs=0, clamp=(0.01, 1.0), warmup=0.05
    )


def compare(
    settings: Training,
    repeats: int,
    cuda: bool = False,
    *,
    own: Callable[[models.Model, int], Any] | None = None,
    skip: int = 0,
    warm: bool = True,
    seconds: float = math.inf,
) -> dict[str, Any]:
    """Runs of `fs.clip.train` and of open_clip's trainer, which alternate.

    Args:
        settings: Settings of the runs, from `quiet`.
        repeats: Measured runs of each.
        cuda: Use the GPU.
        own: Batches for open_clip's trainer instead of ours, see `train`.
        skip: Steps before the clock of either starts; for `fs.clip.train` up to its next fetch of losses.
        warm: Whether a first run of each is not counted.
        seconds: No further repeat begins if it would end after this time, once there is one.

    Returns:
        Images/s of all runs (`flowsim`, `open_clip`) and their ratios, peak memory in MiB on a GPU, seconds of a run of
        `fs.clip.train` outside its steps; and without `own` the largest differences of the losses, absolute and
        relative, and whether they are bitwise equal.
    """
    begin = time.monotonic()
    assert settings.steps is not None
    images = settings.batch_size * (settings.steps - skip)
    speeds: dict[str, list[float]] = {"flowsim": [], "open_clip": []}
    memory: dict[str, float] = {}
    losses, theirs, besides = np.empty(0), np.empty(0), math.nan
    for repeat in range(0 if warm else 1, repeats + 1):
        done = len(speeds["open_clip"])
        if done and (time.monotonic() - begin) * (1 + 1 / done) > seconds:
            break
        _fresh(cuda)
        clock = time.perf_counter()
        clocks: list[tuple[int, float]] = []
        record = bridge.train(settings, cpu=not cuda, progress=_clock(clocks))
        besides = time.perf_counter() - clock - record.stats["training_seconds"]
        _note(memory, "flowsim", cuda)
        losses = record.training["train_loss"]
        speed = _steady(clocks, skip, settings) or record.stats["images_per_second"]
        del record
        _fresh(cuda)
        theirs, took = train(settings, cuda, own, skip)
        _note(memory, "open_clip", cuda)
        if repeat:
            speeds["flowsim"].append(speed)
            speeds["open_clip"].append(images / took)
    found: dict[str, Any] = {
        "model": Path(settings.model).stem, "batch": settings.batch_size, "precision": settings.precision,
        "steps": settings.steps,
        "images_per_second": speeds,
        "medians": {name: statistics.median(values) for name, values in speeds.items()},
        "ratios": [a / b for a, b in zip(speeds["flowsim"], speeds["open_clip"], strict=True)],
        "seconds_besides_steps": besides,
        "peak_memory_mib": memory,
    }  # fmt: skip
    found["ratio"] = statistics.median(found["ratios"])
    return found if own is not None else {**found, **differences(losses, theirs)}


def differences(ours: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    """How far two series of losses differ: largest absolute and relative difference, and whether they are equal."""
    apart = np.abs(ours - theirs)
    return {
        "losses": [float(theirs[0]), float(theirs[-1])],
        "largest_difference": float(apart.max()),
        "largest_relative_difference": float((apart / np.abs(theirs)).max()),
        "bitwise": bool((np.asarray(ours, np.float32) == np.asarray(theirs, np.float32)).all()),
    }


def _clock(clocks: list[tuple[int, float]]) -> Progress:
    """A progress that adds (step, time) to `clocks`."""
    return lambda text, done, total, /, **numbers: clocks.append((done, time.perf_counter()))


def _steady(clocks: list[tuple[int, float]], skip: int, settings: Training) -> float | None:
    """Images/s from the first fetch after `skip` steps to the last one; None without two of them."""
    late = [clock for clock in clocks if clock[0] >= skip > 0]
    if len(late) < 2:
        return None
    (first, begin), (last, end) = late[0], late[-1]
    return (last - first) * settings.batch_size / (end - begin)


def _fresh(cuda: bool) -> None:
    """Let go of earlier runs, so that peaks of memory are those of the next one."""
    gc.collect()
    if cuda:
        torch.cuda.reset_peak_memory_stats()


def _note(memory: dict[str, float], name: str, cuda: bool) -> None:
    if cuda:
        memory[name] = torch.cuda.max_memory_allocated() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    settings = quiet(preset(options.preset).replace(data=options.data, threads=options.threads), options.steps)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    found = compare(settings, options.repeats, options.cuda)
    print(f"{settings.model}, batch {settings.batch_size}, {settings.precision}, {options.steps} steps")
    bitwise = " (bitwise equal)" if found["bitwise"] else ""
    print(f"largest difference of the losses: {found['largest_difference']:.2e}{bitwise}")
    for name, values in found["images_per_second"].items():
        peak = f", peak memory {found['peak_memory_mib'][name]:.0f} MiB" if found["peak_memory_mib"] else ""
        print(f"{name:>9}: {min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f} images/s{peak}")
    ratios = found["ratios"]
    print(f"    ratio: {min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f} (min, median, max)")


if __name__ == "__main__":
    main()
