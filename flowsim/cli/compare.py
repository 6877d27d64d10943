"""`flowsim compare`: a run compared with simulation and closed forms."""

import dataclasses
from pathlib import Path
from typing import Annotated

from flowsim.cli.files import FIGURES, check_writable_file, columns_in, saved_runs
from flowsim.cli.options import Files, Flag, RunName, hint, text
from flowsim.cli.output import print_json, progress, say_saved
from flowsim.errors import FlowsimError


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare a run or training record with a simulation and with closed forms: numbers, verdicts and sentences.

    A log of another trainer (open_clip, TensorBoard, W&B, Hugging Face's Trainer, Lightning, CSV) counts as a record if
    it holds the modality gap.

    Further files are other initialisations of the same run, for the early enlargement of the gap. A file with several
    runs (`flowsim clip study`, `early`) counts as all of them, unless --run selects one.
    """

    files: Files = ()
    """Saved runs, or logs of other trainers."""
    run_name: RunName = None
    """Which run of a file with several, e.g. "Baseline, seed 0"."""
    columns: Annotated[str | None, text("--columns", "SERIES=COLUMN,..."), hint()] = None
    """Columns of logs whose names are not recognised, e.g. step=iter,temperature=my_tau,modality_gap=d."""
    parts: Annotated[str | None, text("--parts", "NAME,..."), hint("(default: all)")] = None
    """Comparisons to make: simulation, exponent, slow_closing, enlargement, matching, calibration."""
    out: Annotated[str | None, text("--out", "FIGURE"), hint()] = None
    """Draw everything into a figure, .png, .pdf or .svg."""
    json: Flag = False
    """JSON on stdout; missing numbers are null."""

    def run(self) -> int:
        """Compare, draw, print."""
        if not self.files:
            raise FlowsimError("Command `compare` takes one RUN.nc or more. Use e.g. flowsim compare run.nc.")
        if self.out is not None:
            check_writable_file(Path(self.out), *FIGURES)
        from flowsim.comparison import compare

        runs = saved_runs(self.files, self.run_name, columns_in(self.columns))
        with progress("Comparing"):
            found = compare(*runs.values(), parts=None if self.parts is None else self.parts.split(","))
        if self.out is not None:
            found.save(self.out)
        if self.json:
            print_json(found.to_dict())
        else:
            print(found)
        say_saved(self.out)
        return 0
