"""`flowsim simulate`: one gradient flow."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from flowsim.cli.files import check_writable_file
from flowsim.cli.flows import T1, FlowOptions
from flowsim.cli.options import Flag, hint, names_in, text
from flowsim.cli.output import EXIT_BAD_INPUT, print_json, progress, say, say_saved, summary
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.records.result import Result


@dataclasses.dataclass(frozen=True)
class Simulate(FlowOptions):
    """Integrate one gradient flow and print its observables.

    Example: flowsim simulate --preset Baseline --start rings --t1 1e5 --set schedule.temperature.init=0.1
    """

    observables: Annotated[str | None, text("--observables", "NAME,..."), hint("(default: gap, loss, ...)")] = None
    """Observables to record, e.g. modality_gap,uniformity."""
    resume: Annotated[str | None, text("--resume", "RUN.nc"), hint()] = None
    """Continue a saved run with its own flow, clock, seed and learned temperature."""
    out: Annotated[str | None, text("--out", "RUN.nc"), hint()] = None
    """Save the run as netCDF (with --resume: its new part); `fs.load` and --resume read it."""
    json: Flag = False
    """Status and final observables as JSON on stdout."""

    def run(self) -> int:
        """Simulate, save, print; 0 if the run completed."""
        self._check_output()
        from flowsim.integrate.simulate import simulate

        flow, start = self.flow_and_start(self.resume)
        t1 = T1 if self.t1 is None and self.resume is None else self.t1
        if t1 is None:
            raise FlowsimError("Option `--resume` needs the new last time. Add e.g. --t1 1e8.")
        with progress("Integrating"):
            result = simulate(
                flow,
                start,
                t1=t1,
                seed=self.seed,
                rtol=self.rtol,
                method=self.method,  # pyright: ignore[reportArgumentType]
                observables=names_in(self.observables),
                throw=False,
            )
        if self.out is not None:
            result.save(self.out)
        if self.json:
            print_json(summary(result))
        else:
            print(result)
        return self._end(result)

    def _check_output(self) -> None:
        if self.out is None:
            return
        check_writable_file(Path(self.out), ".nc")
        if self.resume is not None and Path(self.out).resolve() == Path(self.resume).resolve():
            raise FlowsimError(
                f"Options `--resume` and `--out` both name {self.out!r}. This would overwrite the first part of the "
                "run, because only its new part is saved. Choose another name with --out."
            )

    def _end(self, result: "Result") -> int:
        """Report how the run ended and where it is saved; the exit code."""
        if result.status.ok:
            say_saved(self.out)
            return 0
        sys.stdout.flush()
        saved = "" if self.out is None else f" The completed part is saved in {self.out}."
        say(f"{result.status.sentence} This happened at t = {result.status.stopped_at:.6g}.{saved}")
        return EXIT_BAD_INPUT
