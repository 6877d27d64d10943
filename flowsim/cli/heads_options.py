"""Options of the commands that train heads on frozen features, and the settings that they describe."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli.clip_options import clamp_of, parse_setting
from flowsim.cli.options import choice, hint, number, text, whole
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.heads.settings import Training


@dataclasses.dataclass(frozen=True)
class HeadsOptions:
    """Options of a training of heads; without them the defaults of `fs.heads.Training` hold."""

    features: Annotated[str, text("--features", "FILE|FOLDER|emoji"), hint("(default: emoji)")] = "emoji"
    """Features of image-text pairs: .npz, .safetensors, .parquet, a folder of .npy files, or the emoji of flowsim."""
    split: Annotated[str | None, text("--split", "NAME|none"), hint("(default: train)")] = None
    """Split for training; none for all pairs."""
    held_out: Annotated[str | None, text("--held-out", "NAME|none"), hint("(default: test)")] = None
    """Split for evaluation; none for all pairs."""
    scaling: Annotated[str | None, choice("--scaling", ("length", "standard", "none")), hint("(default: length)")] = (
        None
    )
    """Scaling of the features: rows of length √p (which keeps their means), standardised columns, or none."""
    dim: Annotated[int | None, whole("--dim", "128"), hint("(default: 128)")] = None
    """Dimension of the embeddings."""
    hidden: Annotated[int | None, whole("--hidden", "512"), hint("(default: 512)")] = None
    """Units of the hidden layer of each head; 0 for linear heads."""
    steps: Annotated[int | None, whole("--steps", "2000"), hint("(default: 2000)")] = None
    """Optimizer steps."""
    epochs: Annotated[float | None, number("--epochs", "150"), hint()] = None
    """Passes over the training pairs, instead of steps."""
    batch_size: Annotated[int | None, whole("--batch-size", "512"), hint("(default: 512)")] = None
    """Pairs in one loss."""
    optimizer: Annotated[str | None, choice("--optimizer", ("adamw", "sgd")), hint("(default: adamw)")] = None
    """Optimizer."""
    lr: Annotated[float | None, number("--lr", "3e-3"), hint("(default: 0.003)")] = None
    """Largest learning rate."""
    clamp: Annotated[tuple[float, ...] | None, conf.arg(metavar="MIN MAX", help_behavior_hint="")] = None
    """Bounds of a learnable temperature, e.g. 0.01 1 (the default); `--clamp 0 0` removes them."""
    mispaired: Annotated[float | None, number("--mispaired", "0.25"), hint("(default: 0)")] = None
    """Fraction of the training images that have the captions of another image."""
    pairs: Annotated[int | None, whole("--pairs", "1000"), hint("(default: 1000)")] = None
    """Pairs embedded in each evaluation."""
    changes: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, text("--set", "NAME=VALUE")], ...]],
        conf.arg(name="set", help_behavior_hint="(repeatable)"),
    ] = ()
    """Any other setting, e.g. warmup=0.1, weight_decay=0.2, clip=1, captions=first, precision=float64."""

    def training(self, **more: Any) -> "Training":
        """The default settings with the options that were given, and with `more`."""
        from flowsim.heads.settings import Training

        settings = Training(data=self.features)
        known = {field.name for field in dataclasses.fields(settings)}
        names = [field.name for field in dataclasses.fields(HeadsOptions) if field.name in known]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.epochs is not None:
            given["steps"] = self.steps
        for name in ("split", "held_out"):
            if given.get(name) == "none":
                given[name] = None
        if self.hidden == 0:
            given["hidden"] = None
        if self.clamp is not None:
            given["clamp"] = clamp_of(self.clamp)
        for change in self.changes:
            name, value = parse_setting(settings, change)
            if name in ("data", "seed"):
                raise FlowsimError(f"Setting `{name}` has its own option. Use --features, or --seed and --seeds.")
            given[name] = value
        return settings.replace(**given, **more)
