"""`flowsim measure`: observables of embeddings in a file."""

import dataclasses
from typing import Annotated

from flowsim.cli.options import File, Flag, hint, names_in, number, text, whole
from flowsim.cli.output import progress
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Measure:
    """Print every observable of two embedding sets: gap, alignment, uniformity, retrieval and more."""

    file: File = ()
    """npy of shape (2, n, d), images first, or npz with arrays `image` and `text`."""
    temperature: Annotated[float | None, number("--temperature", "0.07"), hint()] = None
    """Softmax temperature, for the observables that need one."""
    captions_per_image: Annotated[int, whole("--captions-per-image", "5")] = 1
    """Number of text rows for each image row."""
    only: Annotated[str | None, text("--only", "NAME,..."), hint("(default: all)")] = None
    """Metrics to print, e.g. modality_gap,matched_fraction."""
    exact: Flag = False
    """Compare all rows with all others, also beyond 20,000, where the default is a sample; quadratic in time."""
    json: Flag = False
    """JSON on stdout; missing values are null, with a reason."""

    def run(self) -> int:
        """Measure and print."""
        if len(self.file) != 1:
            raise FlowsimError(
                f"Command `measure` takes one FILE, but got {len(self.file)}. Use e.g. flowsim measure a.npz."
            )
        from flowsim import observables

        image, text = observables.open_embeddings(self.file[0])
        with progress("Measuring") as shown:
            report = observables.report(
                image,
                text,
                self.temperature,
                self.captions_per_image,
                only=names_in(self.only),
                exact=self.exact,
                progress=shown,
            )
        print(report.to_json() if self.json else report)
        return 0
