"""`flowsim measure`: observables of embeddings in files."""

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli.options import Flag, choice, hint, names_in, number, whole
from flowsim.cli.options import text as word
from flowsim.cli.output import progress
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.progress import Progress

_EXAMPLE = "Use e.g. flowsim measure a.npz, or flowsim measure image.npy text.npy."


@dataclasses.dataclass(frozen=True)
class Measure:
    """Print every observable of two embedding sets: gap, alignment, uniformity, retrieval and more.

    Files are .npy, .npz, .safetensors, .pt (tensors only), .h5, .zarr, .parquet, .csv or .tsv, or folders of .npy files
    as clip-retrieval writes them.

    Example: flowsim measure clip.safetensors --image image_embeds --text text_embeds --temperature 0.01
    """

    files: Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="FILE [TEXTFILE]", help_behavior_hint="")] = ()
    """A file of both modalities: an array of shape (2, n, d), images first, or arrays with usual names such as `image`
    and `text` or `image_embeds` and `text_embeds`. Or one file for each."""
    image: Annotated[str | None, word("--image", "NAME"), hint()] = None
    """Name of the images in their file, if it is not a usual one."""
    text: Annotated[str | None, word("--text", "NAME"), hint()] = None
    """Name of the texts in their file."""
    temperature: Annotated[float | None, number("--temperature", "0.07"), hint()] = None
    """Softmax temperature, for the observables that need one."""
    captions_per_image: Annotated[int | None, whole("--captions-per-image", "5"), hint("(default: 1)")] = None
    """Number of text rows for each image row; known if texts have the shape (n, c, d)."""
    modality: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, word("--modality", "NAME=FILE[:ARRAY]")], ...]],
        conf.arg(help_behavior_hint="(repeatable)"),
    ] = ()
    """Instead of FILE: one of several modalities, all pairs of which are measured, e.g. audio=c.npy."""
    similarity: Flag = False
    """FILE holds cosines instead of rows: (n, n) of images with texts, or (2n, 2n) of all rows, images first."""
    kind: Annotated[str | None, choice("--kind", ("cross", "gram")), hint("(default: seen from the matrix)")] = None
    """Whether a matrix of similarities is that of images with texts (cross) or of all rows (gram)."""
    dim: Annotated[int | None, whole("--dim", "512"), hint()] = None
    """Dimension of the rows behind a Gram matrix, for the observable that needs it."""
    only: Annotated[str | None, word("--only", "NAME,..."), hint("(default: all)")] = None
    """Metrics to print, e.g. modality_gap,matched_fraction."""
    exact: Flag = False
    """Compare all rows with all others, also beyond 20,000, where the default is a sample; quadratic in time."""
    json: Flag = False
    """JSON on stdout; missing values are null, with a reason."""

    def run(self) -> int:
        """Measure and print."""
        if self.modality and (self.files or self.similarity):
            raise FlowsimError("Option `--modality` replaces FILE. Give all files as --modality NAME=FILE.")
        most = 1 if self.similarity else 2
        if not self.modality and not 1 <= len(self.files) <= most:
            wanted = "one FILE" if most == 1 else "FILE, or FILE and TEXTFILE"
            raise FlowsimError(f"Command `measure` takes {wanted}, but got {len(self.files)}. {_EXAMPLE}")
        for name in ("dim", "kind"):
            if getattr(self, name) is not None and not self.similarity:
                raise FlowsimError(f"Option `--{name}` belongs to a matrix of similarities. Add --similarity.")
        if self.similarity and (self.exact or not self.captions_per_image is self.text is None):
            raise FlowsimError("Options `--exact`, `--text` and `--captions-per-image` belong to rows. Leave them out.")
        if self.modality and not self.captions_per_image is self.image is self.text is None:
            raise FlowsimError(
                "Options `--image`, `--text` and `--captions-per-image` belong to FILE. Name arrays as in --modality "
                "audio=c.npz:ARRAY."
            )
        with progress("Measuring") as shown:
            if self.modality:
                found = self._modalities(shown)
            else:
                try:
                    found = self._similarity(shown) if self.similarity else self._pair(shown)
                except FlowsimError as error:
                    # Messages about options stay as they are; those about rows get the names of the files.
                    about_rows = re.match(r"(Argument )?`(image|text|similarity)`|Similarities|The ", str(error))
                    if about_rows is None or any(one in str(error) for one in self.files):
                        raise
                    raise FlowsimError(f"{' and '.join(self.files)}: {error}") from error
        print(found.to_json() if self.json else found)
        return 0

    def _pair(self, shown: "Progress") -> Any:
        from flowsim import observables

        found = observables.find_embeddings(*self.files, image=self.image, text=self.text)
        return observables.report(
            found.image,
            found.text,
            self.temperature,
            found.captions_per_image if self.captions_per_image is None else self.captions_per_image,
            only=names_in(self.only),
            exact=self.exact,
            progress=shown,
        )

    def _similarity(self, shown: "Progress") -> Any:
        from flowsim import observables

        return observables.report_similarity(
            observables.open_array(self.files[0], self.image),
            self.temperature,
            self.dim,
            kind=self.kind,
            only=names_in(self.only),
            progress=shown,
        )

    def _modalities(self, shown: "Progress") -> Any:
        from flowsim import observables

        rows = {}
        for given in self.modality:
            name, equals, source = given.partition("=")
            if not (name and equals and source):
                raise FlowsimError(
                    f"Option `--modality` takes NAME=FILE[:ARRAY], but got {given!r}. Use e.g. --modality audio=c.npy."
                )
            if name in rows:
                raise FlowsimError(f"Option `--modality` names {name!r} twice. Give each modality a name of its own.")
            path, colon, array = source.rpartition(":")
            named = bool(colon) and not Path(source).exists()
            rows[name] = observables.open_array(path if named else source, array if named else None)
        return observables.pairwise(rows, self.temperature, only=names_in(self.only), exact=self.exact, progress=shown)
