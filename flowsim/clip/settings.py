"""Settings of a training run: model, data, optimizer, recording. Plain values, so that the record can store them.

The schedule (temperature and swap) is separate: a `flowsim.Schedule`, the same object that drives the simulator.
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
    """Settings of one training run. `preset` gives good values to start from, and `replace` changes them.

    Args:
        model: An open_clip name (RN50, ViT-B-32, ...), or the path of a model configuration in open_clip's JSON.
        pretrained: A tag of open_clip, or a file of weights; None trains from scratch.
        data: Source of the pairs: folder, tar shards, COCO JSON, or "shapes:..." (see `data.load`).
        split: Split of `data` for training; None for all of it.
        held_out: Split for evaluation; None for all of its source.
        held_out_data: Source for evaluation; None takes `data`.
        limit: Number of training pairs to use; None for all.
        captions: "all" (one drawn at random in each epoch) or "first".
        image_size: Pixels per side; None takes those of the model.
        augment: "random-resized-crop" or "centre".
        locked_image: True freezes the image tower and trains the text tower on its features (locked-image tuning),
            which are computed once at the start; a file or folder of `fs.clip.features` has them already. Images are
            then whole, so `augment` must be "centre". False trains both towers.
        crop_scale: Smallest area of a random crop, as a fraction of the image.
        preload: Keep decoded pixels in memory; None does if they fit.
        epochs: Passes over the training pairs.
        steps: Optimizer steps; overrides `epochs`.
        batch_size: Pairs in one loss, over all devices.
        accumulate: Losses averaged before a step. This is not a larger batch: each loss has its own negatives.
        optimizer: "adamw" or "sgd".
        lr: Largest learning rate.
        weight_decay: Weight decay of the weights.
        momentum: Momentum of SGD.
        beta1: Decay rate of the first moment in AdamW.
        beta2: Decay rate of the second moment in AdamW.
        eps: Epsilon of AdamW.
        decay_all: Also apply weight decay to biases and gains.
        temperature_decay: Also apply weight decay to the raw temperature.
        warmup: Fraction of the steps in which the learning rate rises linearly.
        decay: Learning rate after warm-up: "cosine" or "constant".
        clamp: (τ_min, τ_max) for learnable temperatures whose schedule has no clamp; open_clip uses (0.01, 1).
        normalize: Scale features to unit length before the loss; False is the paper's "No normalization".
        threads: CPU threads; None leaves the choice to PyTorch. Parallel runs are fastest with one thread each.
        precision: "fp32", or "bf16" for the model; the loss is always in fp32.
        seed: Seed of weights, batches, crops, captions, swaps and dropout.
        pairs: N, the number of training pairs and of held-out pairs embedded in each evaluation (first caption, centre
            crop).
        evaluations: Approximate number of evaluations.
        observables: "all", or "gap" for modality gap and loss only.
        labelled: Source of images with classes, for zero-shot and linear-probe accuracies of the finished model.
        snapshot_pairs: Training pairs whose embeddings are stored at the start, after one epoch and at the end.
        kernels: Number of times that the tangent kernels of both towers are measured, on training pairs (first caption,
            centre crop); 0 for none, 8 for a forecast. For AdamW they are those of its preconditioned weights.
        kernel_pairs: Pairs of a kernel.
        kernel_directions: Random directions of a kernel; see `fs.clip.kernel`.
        checkpoint_seconds: Seconds between checkpoints, from which a killed run resumes.

    Raises:
        FlowsimError: For values that are not allowed.
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
    locked_image: bool | str = False
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
    kernels: int = 0
    kernel_pairs: int = 64
    kernel_directions: int = 2
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        check(
            isinstance(self.locked_image, bool) or (isinstance(self.locked_image, str) and self.locked_image),
            f"Argument `locked_image` must be True, False, or a file of features, but is {self.locked_image!r}. "
            "Use e.g. True.",
        )
        check(
            not self.locked_image or self.augment == "centre",
            "A locked image tower sees whole images, because its features are computed once, but `augment` is "
            f"{self.augment!r}. Use augment='centre'.",
        )
        for name in ("batch_size", "pairs", "kernel_pairs"):
            _whole(name, getattr(self, name), 2)
        for name in ("accumulate", "evaluations", "kernel_directions"):
            _whole(name, getattr(self, name), 1)
        for name in ("snapshot_pairs", "seed", "kernels"):
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
        """A copy with some settings changed.

        Args:
            **changes: New values by name.

        Returns:
            The changed settings.

        Raises:
            FlowsimError: For unknown names, with the nearest ones, and for values that are not allowed.
        """
        names = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in names:
                raise unknown_name("setting", name, names)
        return dataclasses.replace(self, **changes)

    def total_steps(self, training_pairs: int) -> int:
        """Number of optimizer steps of a run.

        Args:
            training_pairs: Number of training pairs; incomplete batches are left out.

        Returns:
            `steps` if it is set, otherwise the steps of all epochs.

        Raises:
            FlowsimError: If there are fewer pairs than one step takes.
        """
        if self.steps is not None:
            return self.steps
        return max(1, math.floor(self.epochs * self.steps_per_epoch(training_pairs)))

    def steps_per_epoch(self, training_pairs: int) -> int:
        """Number of optimizer steps in one epoch.

        Args:
            training_pairs: Number of training pairs.

        Returns:
            The number of steps.

        Raises:
            FlowsimError: If there are fewer pairs than one step takes.
        """
        need = self.batch_size * self.accumulate
        check(
            training_pairs >= need,
            f"There are {training_pairs} training pairs, but one step takes {need}. Use a smaller `batch_size`.",
        )
        return training_pairs // need

    def learning_rate(self, step: int, steps: int) -> float:
        """Learning rate of a step: linear warm-up to `lr`, then cosine to 0, or constant.

        Args:
            step: From 0 to steps − 1.
            steps: Number of steps of the run.

        Returns:
            The learning rate.
        """
        warm = int(self.warmup * steps)
        if step < warm:
            return self.lr * (step + 1) / warm
        if self.decay == "constant":
            return self.lr
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) * self.lr


def _whole(name: str, value: Any, least: int) -> None:
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    check(good, f"Argument `{name}` must be a whole number of at least {least}, but is {value!r}. Use e.g. {least}.")


#: name -> (settings, description)
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
    """The settings of a preset.

    Args:
        name: "smoke", "laptop", "small-gpu" or "paper".

    Returns:
        The settings.

    Raises:
        FlowsimError: For other names.
    """
    if name not in PRESETS:
        raise unknown_name("training preset", name, PRESETS)
    return PRESETS[name][0]
