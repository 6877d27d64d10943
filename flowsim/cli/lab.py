"""`flowsim lab`: what closes the modality gap of embeddings in a file, and what it costs."""

import dataclasses
from pathlib import Path
from typing import Annotated

from flowsim.cli.files import FIGURES, check_writable_file
from flowsim.cli.options import File, Flag, hint, names_in, number, whole
from flowsim.cli.options import text as text_option
from flowsim.cli.output import progress, say_saved
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Lab:
    """Fit what closes the modality gap on half of the pairs, and judge it on the other half: gap, retrieval and more.

    Optional arrays of the file: `labels` (class of each pair), `classes` (their names), `class_text` (a text row for
    each class).
    """

    file: File = ()
    """Embeddings as for `measure`, in one file, or the images and the texts in two."""
    image: Annotated[str | None, text_option("--image", "NAME"), hint()] = None
    """Name of the images in their file, if it is not a usual one."""
    text: Annotated[str | None, text_option("--text", "NAME"), hint()] = None
    """Name of the texts in their file."""
    temperature: Annotated[float, number("--temperature", "0.01"), hint()] = 0.01
    """Softmax temperature of the model."""
    captions_per_image: Annotated[int, whole("--captions-per-image", "5")] = 1
    """Number of text rows for each image row, of which the first is used."""
    methods: Annotated[str | None, text_option("--methods", "NAME,..."), hint("(default: all)")] = None
    """Methods, e.g. centre,whiten; `none` is always included."""
    out: Annotated[str | None, text_option("--out", "FIGURE"), hint()] = None
    """Draw a figure, .png, .pdf or .svg."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of the halves."""
    json: Flag = False
    """JSON on stdout; missing numbers are null."""

    def run(self) -> int:
        """Fit, judge, draw, print."""
        if len(self.file) not in (1, 2):
            raise FlowsimError(
                f"Command `lab` takes one FILE, or one of images and one of texts, but got {len(self.file)}. "
                "Use e.g. flowsim lab a.npz."
            )
        if self.out is not None:
            check_writable_file(Path(self.out), *FIGURES)
        from flowsim import lab
        from flowsim.data.arrays import read_named
        from flowsim.observables.files import find_embeddings

        rows = find_embeddings(*self.file, image=self.image, text=self.text)
        captions = rows.captions_per_image if self.captions_per_image == 1 else self.captions_per_image
        images, texts = len(rows.image), len(rows.text)
        if texts != captions * images:
            many = texts > images and texts % images == 0
            cure = f"Use --captions-per-image {texts // images}; the first of each is used." if many else "Save pairs."
            raise FlowsimError(f"{self.file[-1]} has {texts} texts, not {captions} for each of {images} images. {cure}")
        held, known = read_named(self.file[0]), {}
        if "labels" in held:
            known = {name: held[name] for name in ("labels", "classes", "class_text") if name in held}
        with progress("Lab") as shown:
            found = lab.run(
                rows.image,
                rows.text[::captions],
                **known,  # pyright: ignore[reportArgumentType]
                temperature=self.temperature,
                methods=names_in(self.methods),
                seed=self.seed,
                progress=shown,
            )
        if self.out is not None:
            found.save(self.out)
        print(found.to_json() if self.json else found)
        say_saved(self.out)
        return 0
