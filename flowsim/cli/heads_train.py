"""`flowsim heads train`: one training of heads."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

from flowsim.cli.clip_progress import bars
from flowsim.cli.files import check_writable_file
from flowsim.cli.heads_options import HeadsOptions
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import EXIT_BAD_INPUT, print_json, say, say_saved, summary


@dataclasses.dataclass(frozen=True)
class HeadsTrain(HeadsOptions):
    """Train heads on frozen features with a schedule; the record is like that of a training of CLIP.

    Example: flowsim heads train --features FILE.npz --schedule "TS S3" --out run.nc. The same command resumes where it
    was stopped.
    """

    schedule: Annotated[str, text("--schedule", "NAME|FILE.json"), hint("(default: Baseline)")] = "Baseline"
    """Schedule of the paper by name, or a JSON file: temperature and swap."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of weights, batches, captions and swaps."""
    out: Annotated[str, text("--out", "RUN.nc"), hint("(default: run.nc)")] = "run.nc"
    """The record, with a checkpoint next to it until the run is finished."""
    force: Flag = False
    """Start again, and replace an existing record."""
    json: Flag = False
    """Status and final observables as JSON on stdout."""

    def run(self) -> int:
        """Train or resume, and print the record; 0 if the run completed."""
        check_writable_file(Path(self.out), ".nc")
        from flowsim import heads
        from flowsim.model import schedules

        schedule = schedules.load(self.schedule)
        settings = self.training(seed=self.seed)
        with bars(self.schedule) as progress:
            record = heads.train(settings, schedule, self.out, force=self.force, progress=progress)
        if self.json:
            print_json(summary(record))
        else:
            print(record)
        sys.stdout.flush()
        if record.status.ok:
            say_saved(self.out)
            return 0
        say(f"{record.status.sentence} Earlier measurements are saved in {self.out}.")
        return EXIT_BAD_INPUT
