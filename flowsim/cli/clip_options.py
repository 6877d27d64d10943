"""Options of the commands that train CLIP models, and the settings of training that they describe."""

import dataclasses
import importlib
import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli.options import Flag, choice, hint, number, text, whole
from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.clip.settings import Training

#: Names only: the settings would have to load JAX, which help does not need. A test compares them.
PRESETS = ("smoke", "laptop", "small-gpu", "paper")


@dataclasses.dataclass(frozen=True)
class TrainingOptions:
    """Options of a training run; the preset gives the values of the others."""

    preset: Annotated[str, choice("--preset", PRESETS)] = "smoke"
    """Settings to start from: smoke (generated shapes, seconds), laptop, small-gpu, paper."""
    model: Annotated[str | None, text("--model", "NAME|FILE.json"), hint()] = None
    """open_clip model (RN50, ViT-B-32, ...), or a JSON model configuration as open_clip has them."""
    pretrained: Annotated[str | None, text("--pretrained", "TAG|FILE"), hint()] = None
    """Weights to start from: a tag of open_clip, or a file."""
    data: Annotated[str | None, text("--data", "SOURCE"), hint()] = None
    """Folder with images or tars and captions.tsv, WebDataset, COCO captions JSON, or shapes:KEY=VALUE,..."""
    held_out_data: Annotated[str | None, text("--held-out-data", "SOURCE"), hint()] = None
    """Another source for evaluation; both sources are then used completely."""
    locked_image: Annotated[tuple[str, ...] | None, conf.arg(metavar="[FEATURES]", help_behavior_hint="")] = None
    """Freeze the image tower and train the text tower on its features: those in FEATURES (see flowsim clip features),
    or computed at the start. Images are whole then (augment=centre)."""
    limit: Annotated[int | None, whole("--limit", "2048"), hint()] = None
    """Use this many training pairs."""
    epochs: Annotated[float | None, number("--epochs", "10"), hint()] = None
    """Passes over the training pairs."""
    steps: Annotated[int | None, whole("--steps", "1000"), hint()] = None
    """Optimizer steps, instead of epochs."""
    batch_size: Annotated[int | None, whole("--batch-size", "64"), hint()] = None
    """Pairs in one loss, over all devices."""
    accumulate: Annotated[int | None, whole("--accumulate", "1"), hint()] = None
    """Losses averaged before a step; each has its own negatives, so this is not a larger batch."""
    optimizer: Annotated[str | None, choice("--optimizer", ("adamw", "sgd")), hint()] = None
    """Optimizer."""
    lr: Annotated[float | None, number("--lr", "1e-3"), hint()] = None
    """Largest learning rate."""
    precision: Annotated[str | None, choice("--precision", ("fp32", "bf16")), hint()] = None
    """Precision of the model; the loss is always fp32."""
    clamp: Annotated[tuple[float, ...] | None, conf.arg(metavar="MIN MAX", help_behavior_hint="")] = None
    """Bounds of a learnable temperature, e.g. 0.01 1; `--clamp 0 0` removes them."""
    pairs: Annotated[int | None, whole("--pairs", "512"), hint()] = None
    """Pairs embedded in each evaluation."""
    threads: Annotated[int | None, whole("--threads", "1"), hint()] = None
    """Threads of one run on a CPU."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    changes: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, text("--set", "NAME=VALUE")], ...]],
        conf.arg(name="set", help_behavior_hint="(repeatable)"),
    ] = ()
    """Any other setting, e.g. warmup=0.1, image_size=64, augment=centre, weight_decay=0.2."""

    def training(self, **more: Any) -> "Training":
        """The preset's settings with the options that were given, and with `more`."""
        settings: Training = bridge("settings").preset(self.preset)
        known = {field.name for field in dataclasses.fields(settings)}
        # Options have the names of the settings that they set.
        names = [field.name for field in dataclasses.fields(TrainingOptions) if field.name in known]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.epochs is not None:
            given["steps"] = self.steps
        if self.held_out_data is not None:
            given |= {"split": None, "held_out": None}
        if self.locked_image is not None:
            given |= {"locked_image": self._locked(self.locked_image), "augment": "centre"}
        if self.clamp is not None:
            given["clamp"] = clamp_of(self.clamp)
        for change in self.changes:
            name, value = parse_setting(settings, change)
            given[name] = value
        if self.preset != "smoke" and "data" not in given:
            raise FlowsimError(f"The preset {self.preset!r} has no data. Add --data FOLDER, or --data shapes.")
        return settings.replace(**given, **more)

    @staticmethod
    def _locked(files: tuple[str, ...]) -> bool | str:
        """The file of features; True without one."""
        if len(files) > 1:
            raise FlowsimError(f"Option `--locked-image` takes one file or folder, but got {len(files)}. Give one.")
        return files[0] if files else True


def clamp_of(bounds: tuple[float, ...]) -> tuple[float, float] | None:
    """(τ_min, τ_max) of the two numbers of `--clamp`; None for zeros."""
    if len(bounds) != 2:
        raise FlowsimError(f"Option `--clamp` takes two numbers, but got {len(bounds)}. Use --clamp 0.01 1.")
    return (bounds[0], bounds[1]) if any(bounds) else None


@dataclasses.dataclass(frozen=True)
class SeveralOptions(TrainingOptions):
    """Options of commands that train several times."""

    out: Annotated[str, text("--out", "DIR"), hint("(default: clip-runs)")] = "clip-runs"
    """Folder of the records."""
    jobs: Annotated[int, whole("--jobs", "2")] = 1
    """Runs at the same time."""


def parse_setting(settings: Any, change: str) -> tuple[str, Any]:
    """(name, value) of NAME=VALUE, converted to the type of that field of the settings."""
    name, equals, value = change.partition("=")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(settings)}
    if name not in kinds:
        raise unknown_name("setting", name, kinds)
    if name == "seed":
        raise FlowsimError("Setting `seed` has its own option. Use --seed (train), --seeds or --count.")
    kind = kinds[name]
    if not equals:
        raise FlowsimError(f"Option `--set` takes NAME=VALUE, but got {change!r}. Use e.g. --set warmup=0.1.")
    if "None" in kind and value.lower() == "none":
        return name, None
    if "bool" in kind and (value.lower() in ("true", "false") or "str" not in kind):
        if value.lower() not in ("true", "false"):
            raise FlowsimError(f"Setting `{name}` must be true or false, but is {value!r}.")
        return name, value.lower() == "true"
    if "tuple" in kind:
        raise FlowsimError(f"Setting `{name}` has its own option. Use --{name}.")
    for convert in (int, float):
        if convert.__name__ in kind:
            try:
                return name, convert(value)
            except ValueError:
                if "str" not in kind:
                    wanted = "a whole number" if convert is int else "a number"
                    raise FlowsimError(f"Setting `{name}` must be {wanted}, but is {value!r}.") from None
    return name, value


def bridge(module: str) -> Any:
    """A module of `flowsim.clip`; raises `FlowsimError` if PyTorch or open_clip is missing."""
    leave_gpu_to_torch()
    try:
        for package in ("torch", "torchvision", "open_clip", "accelerate"):
            importlib.import_module(package)
    except ImportError as error:
        raise FlowsimError(
            f"The bridge to CLIP needs {error.name}, which is not installed. Use pip install 'flowsim[clip]'."
        ) from None
    return importlib.import_module(f"flowsim.clip.{module}")


def leave_gpu_to_torch() -> None:
    """Keep JAX on the CPU, where it only measures; this must be set before JAX is loaded."""
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
