"""Settings of heads trained on frozen features: plain values, so that the record can store them.

The schedule (temperature and swap) is separate, as in `fs.clip.Training`, and is the same object.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from flowsim import data as data_
from flowsim.base.checks import check_choice, check_flag, check_fraction, check_number, check_whole
from flowsim.clip.plan import Plan
from flowsim.clip.settings import Training as Common
from flowsim.data.features import Features
from flowsim.errors import unknown_name

#: Settings that mean the same as in `fs.clip.Training`.
_SHARED = (
    "epochs", "steps", "batch_size", "optimizer", "lr", "weight_decay", "momentum", "beta1", "beta2", "eps", "warmup",
    "decay", "clamp", "normalize", "seed", "evaluations", "snapshot_pairs", "checkpoint_seconds",
    "captions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of one training of heads. The defaults are good values for thousands of pairs.

    Args:
        data: Features, "emoji", or a file or folder of features; see `fs.data.load`.
        split: Split for training; None for all pairs.
        held_out: Split for evaluation; None for all pairs.
        scaling: How features are scaled: "length", "standard" or "none"; see `fs.data.Features.scaled`.
        mispaired: Fraction of the training images that have the captions of another image; see
            `fs.data.Features.mispaired`.
        captions: "all" (one drawn at random in each epoch) or "first".
        dim: Dimension of the embeddings.
        hidden: Units of the hidden layer of each head; None for linear heads.
        normalize: Scale embeddings to unit length before the loss; False is the paper's "No normalization".
        epochs: Passes over the training pairs, if `steps` is None.
        steps: Optimizer steps.
        batch_size: Pairs in one loss.
        optimizer: "adamw" or "sgd".
        lr: Largest learning rate.
        weight_decay: Weight decay of the weights; the temperature has none.
        momentum: Momentum of SGD.
        beta1: Decay rate of the first moment in AdamW.
        beta2: Decay rate of the second moment in AdamW.
        eps: Epsilon of AdamW.
        clip: Largest norm of the gradient; None for no bound.
        warmup: Fraction of the steps in which the learning rate rises linearly.
        decay: Learning rate after warm-up: "cosine" or "constant".
        clamp: (τ_min, τ_max) for learnable temperatures whose schedule has no clamp; open_clip uses (0.01, 1).
        precision: "float32" or "float64".
        seed: Seed of weights, batches, captions and swaps.
        pairs: Number of training pairs and of held-out pairs in each evaluation; None for all.
        evaluations: Approximate number of evaluations.
        observables: "all"; "retrieval" for gap, loss, retrieval and zero-shot accuracy, which take a small part of the
            time; or "gap" for gap and loss only.
        snapshot_pairs: Training pairs whose embeddings are stored at the start, after one epoch and at the end.
        checkpoint_seconds: Seconds between checkpoints, from which a killed run resumes.

    Raises:
        FlowsimError: For values that are not allowed.
    """

    data: Features | str = "emoji"
    split: str | None = "train"
    held_out: str | None = "test"
    scaling: str = "length"
    mispaired: float = 0.0
    captions: str = "all"
    dim: int = 128
    hidden: int | None = 512
    normalize: bool = True
    epochs: float = 150.0
    steps: int | None = 2000
    batch_size: int = 512
    optimizer: str = "adamw"
    lr: float = 3e-3
    weight_decay: float = 0.1
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.98
    eps: float = 1e-6
    clip: float | None = None
    warmup: float = 0.05
    decay: str = "cosine"
    clamp: tuple[float, float] | None = (0.01, 1.0)
    precision: str = "float32"
    seed: int = 0
    pairs: int | None = 1000
    evaluations: int = 12
    observables: str = "all"
    snapshot_pairs: int = 128
    checkpoint_seconds: float = 60.0

    def __post_init__(self) -> None:
        self._common()  # refuses what is wrong in the settings that both have
        check_choice("precision", self.precision, ("float32", "float64"))
        check_choice("observables", self.observables, ("all", "retrieval", "gap"))
        check_choice("scaling", self.scaling, ("length", "standard", "none"))
        check_whole("dim", self.dim, 2, "Use e.g. 128.")
        for name, least in (("hidden", 1), ("pairs", 2)):
            if (value := getattr(self, name)) is not None:
                check_whole(name, value, least, "Use e.g. 512, or None.")
        check_fraction("mispaired", self.mispaired)
        check_flag("normalize", self.normalize)
        if self.clip is not None:
            check_number("clip", self.clip, positive=True, cure="Use e.g. 1.0, or None for no bound.")

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

    def plan(self, training_pairs: int) -> Plan:
        """Learning rates, evaluations and snapshots of a run; raises `FlowsimError` for fewer pairs than a batch.

        Args:
            training_pairs: Number of training pairs.
        """
        return Plan.of(self._common(), training_pairs)

    def features(self) -> Features:
        """All features, scaled; raises `FlowsimError` if they cannot be read."""
        if isinstance(self.data, Features):
            return self.data.scaled(self.scaling)
        return _loaded(self.data, _changed(self.data)).scaled(self.scaling)

    def to_config(self) -> dict[str, Any]:
        """The settings for a record. Files are named without their folders, which differ between machines."""
        config: dict[str, Any] = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        source = self.data.source if isinstance(self.data, Features) else self.data
        config["data"] = Path(source).name
        config["clamp"] = None if self.clamp is None else list(self.clamp)
        del config["checkpoint_seconds"]  # has no effect on the record
        return config

    def _common(self) -> Common:
        return Common(**{name: getattr(self, name) for name in _SHARED})


@functools.lru_cache(maxsize=2)
def _loaded(path: str, changed: float) -> Features:
    """The features of a file; kept, because the runs of a study share them."""
    return data_.load(path)


def _changed(path: str) -> float:
    """Time of the last change of a file; 0 for what is no file."""
    return Path(path).stat().st_mtime if Path(path).exists() else 0.0
