"""`flowsim clip train`: one training run."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from flowsim.cli.clip_options import TrainingOptions, bridge, leave_gpu_to_torch
from flowsim.cli.clip_progress import bars, lines
from flowsim.cli.files import check_writable_file
from flowsim.cli.options import Flag, hint, text, whole
from flowsim.cli.output import EXIT_BAD_INPUT, print_json, say, say_saved, summary

if TYPE_CHECKING:
    from flowsim.records.result import Result


@dataclasses.dataclass(frozen=True)
class Train(TrainingOptions):
    """Train a CLIP model with a schedule; the record has the form of a simulation's result.

    Example: flowsim clip train --preset smoke --schedule "TS S3" --out run.nc. The same command resumes where it was
    stopped. `accelerate launch -m flowsim clip train ...` uses several GPUs.
    """

    schedule: Annotated[str, text("--schedule", "NAME|FILE.json"), hint("(default: Baseline)")] = "Baseline"
    """Schedule of the paper by name, or a JSON file: temperature and swap."""
    seed: Annotated[int, whole("--seed", "0")] = 0
    """Seed of weights, batches, crops and swaps."""
    out: Annotated[str, text("--out", "RUN.nc"), hint("(default: run.nc)")] = "run.nc"
    """The record, written at each evaluation, with a checkpoint next to it until the run is finished."""
    weights: Annotated[str | None, text("--weights", "FILE.pt"), hint()] = None
    """Save the final weights, in a file that open_clip reads."""
    tensorboard: Annotated[str | None, text("--tensorboard", "DIR"), hint()] = None
    """Also write the numbers for TensorBoard."""
    force: Flag = False
    """Start again, and replace an existing record."""
    json: Flag = False
    """Status and final observables as JSON on stdout."""

    def run(self) -> int:
        """Train or resume, and print the record; 0 if the run completed."""
        check_writable_file(Path(self.out), ".nc")
        leave_gpu_to_torch()
        from flowsim.model import schedules

        schedule = schedules.load(self.schedule)
        settings = self.training(seed=self.seed)
        train = bridge("training").train
        first = bridge("session").is_first_process()
        with bars(self.schedule) if first else contextlib.nullcontext(lines(self.schedule)) as progress:
            record = train(
                settings,
                schedule,
                self.out,
                cpu=self.cpu,
                force=self.force,
                weights=self.weights,
                tensorboard=self.tensorboard,
                progress=progress,
            )
        return self._end(record) if first else 0

    def _end(self, record: "Result") -> int:
        """Print the record, what was left out, and how the run ended; the exit code."""
        if self.json:
            print_json(summary(record))
        else:
            print(record)
        sys.stdout.flush()
        data = record.config["data"]
        if data["skipped"] or data["held_out_skipped"]:
            say(f"{data['report']} Held out: {data['held_out_report']}")
        if record.status.ok:
            say_saved(self.out)
            return 0
        say(f"{record.status.sentence} Earlier measurements are saved in {self.out}.")
        return EXIT_BAD_INPUT
