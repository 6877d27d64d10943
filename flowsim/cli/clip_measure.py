"""`flowsim clip measure`: the observables of a model on pairs."""

import dataclasses
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import bridge
from flowsim.cli.files import check_writable_file, check_writable_folder
from flowsim.cli.options import Flag, hint, number, text, whole
from flowsim.cli.output import print_json, say


@dataclasses.dataclass(frozen=True)
class Measure:
    """Embed pairs with a model and print every observable, retrieval, margins, and accuracies on labelled images.

    Example: flowsim clip measure --model ViT-B-32 --pretrained openai --data captions_val2017.json --pairs 5000
    """

    model: Annotated[str, text("--model", "NAME|FILE.json"), hint("(default: flowsim-vit-64)")] = "flowsim-vit-64"
    """open_clip model, or a model configuration."""
    pretrained: Annotated[str | None, text("--pretrained", "TAG|FILE"), hint("(default: random weights)")] = None
    """Weights: a tag of open_clip, or a file."""
    data: Annotated[str, text("--data", "SOURCE"), hint("(default: shapes)")] = "shapes"
    """Source of the pairs; see flowsim clip train --help."""
    split: Annotated[str | None, text("--split", "NAME"), hint("(default: test, or all without splits)")] = None
    """Split of the source."""
    pairs: Annotated[int, whole("--pairs", "512")] = 512
    """Pairs to embed: the retrieval pool. From a larger split they are drawn at random, always the same ones."""
    image_size: Annotated[int | None, whole("--image-size", "224"), hint()] = None
    """Pixels per side; default: those of the model."""
    temperature: Annotated[float | None, number("--temperature", "0.01"), hint("(default: that of the weights)")] = None
    """Temperature of loss and softmax."""
    labelled: Annotated[str | None, text("--labelled", "SOURCE"), hint()] = None
    """Labelled images for zero-shot (split test) and linear probe (train and test): folders of classes
    (train/dog/1.jpg), WebDataset with .cls (classnames.txt names classes that are numbers), or shapes."""
    template: Annotated[str, text("--template", "TEXT"), hint("(default: a photo of a {})")] = "a photo of a {}"
    """Prompt for a class; {} stands for its name."""
    out: Annotated[str | None, text("--out", "ROWS.npz"), hint()] = None
    """Save embeddings and numbers; `flowsim measure` reads the file."""
    figure: Annotated[str | None, text("--figure", "FILE.png"), hint()] = None
    """Draw both sets of embeddings (PCA) and the margins."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    json: Flag = False
    """JSON on stdout."""

    def run(self) -> int:
        """Measure, save, draw, print."""
        if self.out is not None:
            check_writable_file(Path(self.out), ".npz")
        if self.figure is not None:
            check_writable_folder(Path(self.figure).parent, "--figure")
        split = self.split or bridge("data").known_split(self.data, "test")
        measured = bridge("evaluate").measure(
            self.model,
            self.data,
            self.pretrained,
            split=split,
            pairs=self.pairs,
            labelled=self.labelled,
            template=self.template,
            image_size=self.image_size,
            temperature=self.temperature,
            device="cpu" if self.cpu else None,
        )
        if measured.protocol["split"] is None:
            say(f"No split test is known for {self.data!r}, so all its images count. Choose a split with --split NAME.")
        if self.out is not None:
            measured.save(self.out)
        if self.figure is not None:
            from flowsim import plot

            plot.save(plot.clouds(measured.image, measured.text), self.figure)
        if self.json:
            print_json(measured.to_dict())
        else:
            print(measured)
        for path in (self.out, self.figure):
            if path is not None:
                say(f"Saved {path}.")
        return 0
