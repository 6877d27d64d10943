"""`flowsim clip features`: write the features of a model."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import bridge
from flowsim.cli.clip_progress import bars
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import say


@dataclasses.dataclass(frozen=True)
class Features:
    """Write the features that a model gives to images and all their captions, for heads and locked-image tuning.

    Example: flowsim clip features --model ViT-B-32 --pretrained openai --data PHOTOS --out features. The same command
    resumes where it was stopped.
    """

    model: Annotated[str, text("--model", "NAME|FILE.json"), hint("(default: flowsim-vit-64)")] = "flowsim-vit-64"
    """open_clip model, or a model configuration."""
    pretrained: Annotated[str | None, text("--pretrained", "TAG|FILE"), hint("(default: random weights)")] = None
    """Weights: a tag of open_clip, or a file."""
    data: Annotated[str, text("--data", "SOURCE"), hint("(default: shapes)")] = "shapes"
    """Source of the pairs; see flowsim clip train --help."""
    split: Annotated[str | None, text("--split", "NAME"), hint("(default: all, with their names)")] = None
    """Split of the source."""
    captions: Annotated[int | None, whole("--captions", "5"), hint("(default: all)")] = None
    """Captions of each image, the first ones."""
    labelled: Annotated[str | None, text("--labelled", "SOURCE"), hint()] = None
    """Source with classes of these images, by file name; the features of the class names are written, too."""
    template: Annotated[str, text("--template", "TEXT"), hint("(default: a photo of a {})")] = "a photo of a {}"
    """Prompt for a class; {} stands for its name."""
    image_size: Annotated[int | None, whole("--image-size", "224"), hint()] = None
    """Pixels per side; default: those of the model."""
    batch_size: Annotated[int, whole("--batch-size", "256")] = 256
    """Images decoded and embedded at once."""
    normalize: Flag = False
    """Write rows of unit length."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of random weights."""
    threads: Annotated[int | None, whole("--threads", "4"), hint()] = None
    """Threads of the CPU, also for decoding."""
    out: Annotated[str, text("--out", "DIR|FILE"), hint("(default: features)")] = "features"
    """A folder of .npy files, which can be larger than the memory, or one file .npz or .safetensors."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    force: Flag = False
    """Replace features of another model or source."""

    def run(self) -> int:
        """Write the features, and print what they are."""
        with bars() as progress:
            written = bridge("frozen").features(
                self.model,
                self.data,
                self.out,
                self.pretrained,
                split=self.split,
                captions=self.captions,
                labelled=self.labelled,
                template=self.template,
                image_size=self.image_size,
                batch_size=self.batch_size,
                normalize=self.normalize,
                seed=self.seed,
                threads=self.threads,
                device="cpu" if self.cpu else None,
                force=self.force,
                progress=progress,
            )
        print(written)
        sys.stdout.flush()
        left_out = bridge("stored").read_about(Path(self.out)).get("skipped", {})
        for reason, skip in left_out.items():
            say(f"Left out, {reason}: {skip['count']:,} ({', '.join(skip['names'])}).")
        say(f"Saved {self.out}.")
        return 0
