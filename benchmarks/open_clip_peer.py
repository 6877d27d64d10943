"""open_clip's own trainer on runs of `fs.clip.train`: the same weights, batches, crops and hyperparameters.

    python benchmarks/open_clip_peer.py [--preset laptop] [--steps 50] [--repeats 7] [--data SOURCE] [--threads 1]

prints the largest difference of the losses, and images/s of both, which alternate. Data are in memory for both, so the
steps are compared (and flowsim's recording of them).
"""

import argparse
import logging
import math
import statistics
import time
import warnings

import numpy as np

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecation warnings of other packages
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

from flowsim.clip import data, models
from flowsim.clip import training as bridge
from flowsim.clip.batches import crop, prepare
from flowsim.clip.settings import Training, preset


def train(settings: Training, cuda: bool = False) -> tuple[np.ndarray, float]:
    """(losses of all steps, seconds) of `open_clip_train.train.train_one_epoch` on our batches."""
    model = models.build(settings.model, settings.pretrained, settings.image_size, settings.seed)
    pairs = data.load(settings.data, settings.split, limit=settings.limit)
    batches = prepare(pairs, model.tokenize, model.image_size, settings, resize=model.resize)
    steps = settings.total_steps(len(batches.pairs))
    device = torch.device("cuda" if cuda else "cpu")
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

    class Loader:
        num_batches, num_samples = steps, len(batches.pairs)

        def __iter__(self):
            for k in range(steps):
                pixels, tokens, boxes = batches.batch(k)
                yield crop(pixels.to(device, non_blocking=True), boxes, model.mean, model.std), tokens

    contrast = ClipLoss()

    def loss(image_features, text_features, logit_scale, output_dict):
        value = contrast(image_features, text_features, logit_scale)
        losses.append(value.detach())
        return {"contrastive_loss": value}

    given = argparse.Namespace(dataloader=Loader(), set_epoch=lambda epoch: None)
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
    begin = time.perf_counter()
    train_one_epoch(module, {"train": given}, loss, 0, optimizer, None, scheduler, None, args)
    values = torch.stack(losses).float().cpu().numpy()
    return values, time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preset", default="smoke")
    parser.add_argument("--data", default="shapes")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--cuda", action="store_true")
    options = parser.parse_args()
    settings = preset(options.preset).replace(
        data=options.data,
        steps=options.steps,
        evaluations=1,
        observables="gap",
        pairs=2,
        snapshot_pairs=0,
        clamp=(0.01, 1.0),
        threads=options.threads,
    )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    images = settings.batch_size * options.steps
    speeds: dict[str, list[float]] = {"flowsim": [], "open_clip": []}
    memory, difference = {}, math.nan
    for repeat in range(options.repeats + 1):  # the first warms up
        if options.cuda:
            torch.cuda.reset_peak_memory_stats()
        record = bridge.train(settings, cpu=not options.cuda)
        if options.cuda:
            memory["flowsim"] = torch.cuda.max_memory_allocated() / 2**20
            torch.cuda.reset_peak_memory_stats()
        losses, seconds = train(settings, options.cuda)
        if options.cuda:
            memory["open_clip"] = torch.cuda.max_memory_allocated() / 2**20
        if repeat:
            speeds["flowsim"].append(record.stats["images_per_second"])
            speeds["open_clip"].append(images / seconds)
        difference = np.abs(record.training["train_loss"] - losses).max()
    print(f"{settings.model}, batch {settings.batch_size}, {settings.precision}, {options.steps} steps")
    print(f"largest difference of the losses: {difference:.2e}")
    for name, values in speeds.items():
        peak = f", peak memory {memory[name]:.0f} MiB" if name in memory else ""
        print(f"{name:>9}: {min(values):.1f} / {statistics.median(values):.1f} / {max(values):.1f} images/s{peak}")
    ratios = [a / b for a, b in zip(speeds["flowsim"], speeds["open_clip"], strict=True)]
    print(f"    ratio: {min(ratios):.3f} / {statistics.median(ratios):.3f} / {max(ratios):.3f} (min, median, max)")


if __name__ == "__main__":
    main()
