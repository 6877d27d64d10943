"""`flowsim animate`: films of runs."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from flowsim.cli.files import check_writable_folder, saved_runs
from flowsim.cli.flows import T1, FlowOptions
from flowsim.cli.options import File, RunName, flag, hint, text, whole
from flowsim.cli.output import progress, say
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.records.result import Result


@dataclasses.dataclass(frozen=True)
class Animate(FlowOptions):
    """Film a saved run, or integrate a gradient flow and film it: gap, temperature, and the embeddings.

    In three dimensions the embeddings are shown on the sphere, otherwise as the matrix of their cosines.

    Example: flowsim animate --start rings --twist -144 --out fig2.gif
    """

    file: File = ()
    """A saved run or training record; without it, the flow of the other options is integrated."""
    run_name: RunName = None
    """Which run of a file with several, e.g. "Baseline, seed 0"."""
    frames: Annotated[int, whole("--frames", "120")] = 120
    """Number of frames, evenly spaced in the logarithm of time; for a saved run at most its number of snapshots."""
    fps: Annotated[int, whole("--fps", "20")] = 20
    """Frames per second."""
    out: Annotated[str, text("--out", "FILM.gif"), hint("(default: flow.gif)")] = "flow.gif"
    """The film: .gif, .html (with a player) or .mp4 (needs ffmpeg)."""

    def run(self) -> int:
        """Read or integrate, then film."""
        check_writable_folder(Path(self.out).parent)
        if self.frames < 2 or self.fps < 1:
            raise FlowsimError(
                "A film needs at least 2 frames, and 1 frame per second. Use e.g. --frames 120 --fps 20."
            )
        if len(self.file) > 1:
            raise FlowsimError(f"A film shows one run, but got {len(self.file)} files. Give one.")
        from flowsim import plot

        plot.film_kind(self.out)
        saved = self._saved(self.file[0]) if self.file else None
        with progress("Filming"):
            result = self._integrated() if saved is None else saved
            plot.animate(result, self.out, self.fps, self.frames)
        say(f"Saved {self.out}.")
        return 0

    def _saved(self, file: str) -> "Result":
        """The run in a file; raises `FlowsimError` for options that have no effect on a saved run."""
        for field in dataclasses.fields(FlowOptions):
            if getattr(self, field.name) != field.default:
                option = flag({"changes": "set"}.get(field.name, field.name))
                raise FlowsimError(f"Option `{option}` has no effect on a saved run. Leave it out.")
        from flowsim.integrate.simulate import load

        runs = saved_runs([file], self.run_name)
        if len(runs) > 1:
            raise FlowsimError(
                f"{file!r} holds {len(runs)} runs. Choose one with --run, e.g. --run {next(iter(runs))!r}."
            )
        # `load` can integrate to times between snapshots; several runs in one file are records.
        (name,) = runs
        return load(file) if name == file else runs[name]

    def _integrated(self) -> "Result":
        """The run that the options describe, with a snapshot for every frame."""
        import numpy as np

        from flowsim.integrate.simulate import simulate

        if self.run_name is not None:
            raise FlowsimError("Option `--run` selects one run of a file. Give the file, or leave it out.")
        flow, start = self.flow_and_start()
        t1 = T1 if self.t1 is None else self.t1
        times = np.concatenate([[0.0], np.geomspace(min(1e-2, t1 / 10), t1, self.frames - 1)])
        return simulate(
            flow,
            start,
            ts=times,
            seed=self.seed,
            rtol=self.rtol,
            snapshots=times,
            method=self.method,  # pyright: ignore[reportArgumentType]
        )
