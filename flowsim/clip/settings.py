"""What a training run is: model, data, optimizer, recording. Plain numbers, so that it goes into the record.

The schedule (temperature and swap) is not here: it is a `flowsim.Schedule`, the same object that drives the
simulator.
"""

import dataclasses
import math
from typing import Any

from flowsim.base.checks import check, check_number
from flowsim.errors import unknown_name

_CHOICES = {
    "optimizer": ("adamw", "sgd"),
    "decay": ("cosine", "constant"),
    "precision": ("fp32", "bf16"),
    "augment": ("random-resized-crop", "centre"),
    "captions": ("all", "first"),
    "observables": ("all", "gap"),
}


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of one training run. Raises `FlowsimError` for values that cannot be.

    Model and data
    - `model`: an open_clip name (RN50, ViT-B-32, ...), or the path of a model configuration in open_clip's JSON.
    - `pretrained`: open_clip's tag, or a file of weights; None trains from scratch.
    - `data`: folder, tar shards, COCO JSON, or `shapes:...` (see `data.load`). Evaluation is on its split `held_out`
      (training on `split`), or on another source `held_out_data`; None there takes all of a source.
    - `limit`: use this many training pairs; `captions`: "all" (one at random in each epoch) or "first".
    - `image_size`: pixels; None takes the model's. `augment`: "random-resized-crop" of `crop_scale` of the area,
      or "centre". `preload`: keep decoded pixels in memory (None: if they fit).

    Optimization
    - `epochs`, or `steps`, which overrides it. `batch_size` pairs, over all devices: the negatives of one loss.
    - `accumulate`: losses averaged before a step. This is not a larger batch: each loss has its own negatives.
    - `optimizer` with `lr`, `weight_decay`, `momentum` (SGD), `beta1`, `beta2`, `eps` (AdamW).
    - `decay_all`: weight decay also on biases and gains; `temperature_decay`: also on the raw temperature.
    - `warmup`: share of the steps with linearly rising learning rate, then `decay` "cosine" or "constant".
    - `clamp`: (τ_min, τ_max) for learnable temperatures whose schedule has none; open_clip's is (0.01, 1).
    - `normalize`: scale features to unit length before the loss; without, the paper's "No normalization".
    - `threads`: of the CPU; None leaves PyTorch's choice. Runs side by side are fastest with one each.
    - `precision`: "fp32", or "bf16" (model only: the loss is always in fp32). `seed`: of everything.

    Recording
    - `pairs`: N, training pairs and held-out pairs that each evaluation embeds (first caption, centre crop).
    - `evaluations`: about how many; `observables`: "all", or "gap" for the quick ones.
    - `labelled`: source of images with classes; the finished model's zero-shot and linear-probe accuracies on it.
    - `snapshot_pairs`: training pairs whose embeddings are stored, at the start, after one epoch and at the end.
    - `checkpoint_seconds`: pause between checkpoints, from which a killed run continues.
    """

    model: str = "flowsim-vit-64"
    pretrained: str | None = None
    data: str = "shapes"
    split: str | None = "train"
    held_out: str | None = "test"
    held_out_data: str | None = None
    limit: int | None = None
    captions: str = "all"
    image_size: int | None = None
    augment: str = "random-resized-crop"
    crop_scale: float = 0.9
    preload: bool | None = None
    epochs: float = 10.0
    steps: int | None = None
    batch_size: int = 64
    accumulate: int = 1
    optimizer: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.1
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    decay_all: bool = False
    temperature_decay: bool = False
    warmup: float = 0.05
    decay: str = "cosine"
    clamp: tuple[float, float] | None = (0.01, 1.0)
    normalize: bool = True
    threads: int | None = None
    precision: str = "fp32"
    seed: int = 0
    pairs: int = 512
    evaluations: int = 40
    observables: str = "all"
    labelled: str | None = None
    snapshot_pairs: int = 128
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        for name in ("batch_size", "pairs"):
            _whole(name, getattr(self, name), 2)
        for name in ("accumulate", "evaluations"):
            _whole(name, getattr(self, name), 1)
        for name in ("snapshot_pairs", "seed"):
            _whole(name, getattr(self, name), 0)
        for name in ("steps", "limit", "image_size", "threads"):
            if getattr(self, name) is not None:
                _whole(name, getattr(self, name), 2 if name == "limit" else 1)
        for name in ("lr", "epochs", "eps"):
            check_number(name, getattr(self, name), positive=True, cure=f"Use e.g. {getattr(type(self), name):g}.")
        for name in ("weight_decay", "checkpoint_seconds"):
            check_number(name, getattr(self, name), minimum=0.0, cure="Use 0 for none.")
        for name in ("momentum", "beta1", "beta2", "warmup"):
            value = getattr(self, name)
            check(0 <= value < 1, f"Argument `{name}` must be at least 0 and below 1, but is {value:g}. Use e.g. 0.")
        check(
            0 < self.crop_scale <= 1,
            f"Argument `crop_scale` must be in (0, 1], but is {self.crop_scale:g}. Use e.g. 0.9, or 1 for all.",
        )
        if self.clamp is not None:
            check(
                len(self.clamp) == 2 and 0 < self.clamp[0] < self.clamp[1],
                f"Argument `clamp` must be (tau_min, tau_max), positive and rising, but is {self.clamp}. "
                "Use e.g. (0.01, 1.0), or None.",
            )

    def replace(self, **changes: Any) -> "Training":
        """A copy with some values changed; unknown names raise `FlowsimError` with the nearest ones."""
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise unknown_name("setting", name, names)
        return dataclasses.replace(self, **changes)

    def total_steps(self, training_pairs: int) -> int:
        """Optimizer steps of a run over `training_pairs` pairs; incomplete batches are left out.

        Raises `FlowsimError` if there are fewer pairs than one step takes.
        """
        if self.steps is not None:
            return self.steps
        return max(1, math.floor(self.epochs * self.steps_per_epoch(training_pairs)))

    def steps_per_epoch(self, training_pairs: int) -> int:
        """Optimizer steps that see `training_pairs` pairs once."""
        need = self.batch_size * self.accumulate
        check(
            training_pairs >= need,
            f"There are {training_pairs} training pairs, but one step takes {need}. Use a smaller `batch_size`.",
        )
        return training_pairs // need

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate of step 0 .. steps − 1: linear warm-up to `lr`, then cosine to 0, or constant."""
        warm = int(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.decay == "constant":
            return self.lr
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) * self.lr


def _whole(name: str, value: Any, least: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(good, f"Argument `{name}` must be a whole number of at least {least}, but is {value!r}. Use e.g. {least}.")


#: name -> (settings, what it is for)
PRESETS: dict[str, tuple[Training, str]] = {
    "smoke": (
        Training(
            model="flowsim-vit-32", data="shapes:count=1024,size=32", image_size=32, steps=60, batch_size=64, pairs=128,
            threads=1, evaluations=8, snapshot_pairs=64,
        ),
        "generated shapes, under 40 s on a CPU",
    ),
    "laptop": (
        Training(model="flowsim-vit-64", image_size=64, limit=2048, steps=3000, batch_size=64, threads=1),
        "small ViT on 64-pixel photos, minutes on 2 CPU cores; give `data`",
    ),
    "small-gpu": (
        Training(
            model="RN50", image_size=96, steps=10_000, batch_size=128, lr=5e-4, beta2=0.999, eps=1e-8, precision="bf16",
        ),
        "ResNet-50 on 96-pixel photos, minutes on one GPU; give `data`",
    ),
    "paper": (
        Training(
            model="RN50", image_size=224, epochs=100, batch_size=1024, lr=5e-4, warmup=0.2, weight_decay=0.2,
            beta2=0.999, eps=1e-8, precision="bf16", evaluations=100,
        ),
        "ResNet-50 on COCO, 100 epochs with 20 of warm-up, batch 1024; give `data`",
    ),
}  # fmt: skip


def preset(name: str) -> Training:
    """The settings of a preset: smoke, laptop, small-gpu or paper. Raises `FlowsimError` for other names."""
    if name not in PRESETS:
        raise unknown_name("training preset", name, PRESETS)
    return PRESETS[name][0]
