"""`flowsim clip study`: every method of the paper with several seeds."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_options import SeveralOptions, bridge
from flowsim.cli.clip_progress import bars
from flowsim.cli.files import check_writable_folder
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import print_json, say


@dataclasses.dataclass(frozen=True)
class Study(SeveralOptions):
    """Train every method of the paper with several seeds; tables next to the paper's, figures, rank correlations.

    Example: flowsim clip study --preset laptop --data PHOTOS --methods short --seeds 3 --jobs 2. The same command
    resumes where it was stopped; with --tables it only reads finished records.
    """

    methods: Annotated[str, text("--methods", "all|short|NAME,..."), hint("(default: all)")] = "all"
    """All methods of the paper, the nine of a short study, or a list."""
    seeds: Annotated[int, whole("--seeds", "3")] = 3
    """Number of seeds, from 0; all methods run with one seed before the next."""
    stack: Annotated[int, whole("--stack", "27")] = 1
    """Runs trained in one program, instead of --jobs; for GPUs, and models without batch normalisation."""
    tables: Flag = False
    """Do not train; only make the tables of the finished records in --out."""
    json: Flag = False
    """Tables and rank correlations as JSON on stdout."""

    def run(self) -> int:
        """Train what is missing, then write and print the tables."""
        check_writable_folder(Path(self.out))
        study = bridge("studies")
        names = study.methods(self.methods)
        if self.tables:
            records = study.finished(self.out)
        else:
            settings = self.training()
            runs = [(name, seed) for seed in range(self.seeds) for name in names]
            shown = len(runs) if self.stack == 1 else len(study.stacks(runs, self.stack))
            options = {"jobs": self.jobs, "stack": self.stack, "cpu": self.cpu}
            with bars(runs=shown) as progress:
                records = study.study(settings, self.out, names, self.seeds, **options, progress=progress)
        tables = bridge("tables").Tables.of(records)
        saved = bridge("studies").report(records, self.out)
        if self.json:
            print_json(tables.to_dict())
        else:
            print(tables)
        sys.stdout.flush()
        say(f"Saved {', '.join(str(path) for path in saved)}.")
        return 0
