"""`flowsim clip kernel`: the tangent kernels of a model's towers."""

import dataclasses
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import bridge
from flowsim.cli.files import check_writable_file
from flowsim.cli.options import Flag, hint, number, text, whole
from flowsim.cli.output import print_json, say


@dataclasses.dataclass(frozen=True)
class Kernel:
    """Measure how a step of the weights moves the outputs of both towers together (tangent kernels).

    Example: flowsim clip kernel --model ViT-B-32 --pretrained openai --data captions_val2017.json --two-rates
    """

    model: Annotated[str, text("--model", "NAME|FILE.json"), hint("(default: flowsim-vit-64)")] = "flowsim-vit-64"
    """open_clip model, or a model configuration."""
    pretrained: Annotated[str | None, text("--pretrained", "TAG|FILE"), hint("(default: random weights)")] = None
    """Weights: a tag of open_clip, or a file."""
    data: Annotated[str, text("--data", "SOURCE"), hint("(default: shapes)")] = "shapes"
    """Source of the pairs; see flowsim clip train --help."""
    split: Annotated[str | None, text("--split", "NAME"), hint("(default: train, or all without splits)")] = None
    """Split of the source."""
    pairs: Annotated[int, whole("--pairs", "64")] = 64
    """Pairs of the kernels, m."""
    directions: Annotated[int, whole("--directions", "8")] = 8
    """Random directions; standard errors fall like one over their square root."""
    two_rates: Flag = False
    """Measure own and shared rates only, which takes less memory for large models."""
    image_size: Annotated[int | None, whole("--image-size", "224"), hint()] = None
    """Pixels per side; default: those of the model."""
    temperature: Annotated[float | None, number("--temperature", "0.07"), hint("(default: that of the weights)")] = None
    """Temperature of the loss whose step the kernels are compared with."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of the directions, and of random weights."""
    out: Annotated[str | None, text("--out", "KERNEL.npz"), hint()] = None
    """Save rows, matrices and numbers."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    json: Flag = False
    """JSON on stdout."""

    def run(self) -> int:
        """Measure, save, print."""
        if self.out is not None:
            check_writable_file(Path(self.out), ".npz")
        found = bridge("kernels").kernel(
            self.model,
            self.data,
            self.pretrained,
            split=self.split or bridge("data").known_split(self.data, "train"),
            pairs=self.pairs,
            directions=self.directions,
            matrix=not self.two_rates,
            image_size=self.image_size,
            temperature=self.temperature,
            seed=self.seed,
            device="cpu" if self.cpu else None,
        )
        if self.out is not None:
            found.save(self.out)
        if self.json:
            print_json(found.to_dict())
        else:
            print(found)
        if self.out is not None:
            say(f"Saved {self.out}.")
        return 0
