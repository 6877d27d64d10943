"""`flowsim heads study`: every method of the paper on frozen features, with several seeds."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_progress import bars
from flowsim.cli.files import check_writable_folder
from flowsim.cli.heads_options import HeadsOptions
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import print_json, say


@dataclasses.dataclass(frozen=True)
class HeadsStudy(HeadsOptions):
    """Train heads with every method of the paper and several seeds; tables next to the paper's, figures, correlations.

    Example: flowsim heads study --features FILE.npz --methods all --seeds 3 --jobs 2. The same command resumes where it
    was stopped; with --tables it only reads finished records.
    """

    methods: Annotated[str, text("--methods", "all|short|NAME,..."), hint("(default: all)")] = "all"
    """All methods of the paper, the nine of a short study, or a list."""
    seeds: Annotated[int, whole("--seeds", "3")] = 3
    """Number of seeds, from 0; all methods run with one seed before the next."""
    out: Annotated[str, text("--out", "DIR"), hint("(default: heads-runs)")] = "heads-runs"
    """Folder of the records."""
    jobs: Annotated[int, whole("--jobs", "2")] = 1
    """Processes that train at the same time: one for each core of a CPU."""
    stack: Annotated[int, whole("--stack", "32")] = 1
    """Runs trained in one program; for GPUs."""
    tables: Flag = False
    """Do not train; only make the tables of the finished records in --out."""
    json: Flag = False
    """Tables and rank correlations as JSON on stdout."""

    def run(self) -> int:
        """Train what is missing, then write and print the tables."""
        check_writable_folder(Path(self.out))
        from flowsim.clip import studies
        from flowsim.clip.tables import Tables

        names = studies.methods(self.methods)
        if self.tables:
            records = studies.finished(self.out)
        else:
            from flowsim import heads

            settings = self.training()
            with bars(runs=self.seeds * len(names) if self.stack == 1 else 1) as progress:
                records = heads.study(
                    settings, self.out, names, self.seeds, jobs=self.jobs, stack=self.stack, progress=progress
                )
        tables = Tables.of(records)
        saved = studies.report(records, self.out)
        if self.json:
            print_json(tables.to_dict())
        else:
            print(tables)
        sys.stdout.flush()
        say(f"Saved {', '.join(str(path) for path in saved)}.")
        return 0
