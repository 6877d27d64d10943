"""The command line: `flowsim reproduce | claims | simulate | sweep | animate | compare | measure`, and
`flowsim clip ...` (in `clip`).

Commands are dataclasses that tyro fills; each imports what it needs when it runs, so that help is fast. Bad
input is one sentence on stderr and exit code 2, with nothing written.
"""

import contextlib
import dataclasses
import io
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import tyro
from tyro import conf
from tyro.constructors import PrimitiveConstructorSpec

from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.integrate.sweep import SweepResult
    from flowsim.model.flow import GradientFlow
    from flowsim.model.initial import AbstractRecipe, Start
    from flowsim.records.result import Result

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class _UsageError(Exception):
    """A FlowsimError that tyro must not catch (it catches every ValueError)."""


# --- values of options ----------------------------------------------------------------------------------


def _value(
    option: str, convert: Callable[[str], Any], metavar: str, wanted: str, example: str
) -> PrimitiveConstructorSpec[Any]:
    """How tyro reads one value; a wrong one is refused in flowsim's words."""

    def read(tokens: list[str]) -> Any:
        try:
            return convert(tokens[0])
        except ValueError:
            raise _UsageError(
                f"Option `{option}` must be {wanted}, but is {tokens[0]!r}. Use e.g. {option} {example}."
            ) from None

    return PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: True,
        str_from_instance=lambda value: [f"{value:g}" if isinstance(value, float) else str(value)],
    )


def _number(option: str, example: str) -> PrimitiveConstructorSpec[Any]:
    return _value(option, float, "NUMBER", "a number", example)


def _whole(option: str, example: str) -> PrimitiveConstructorSpec[Any]:
    return _value(option, int, "N", "a whole number", example)


def _text(option: str, metavar: str) -> PrimitiveConstructorSpec[Any]:
    return _value(option, str, metavar, "text", metavar)


def _choice(option: str, known: Sequence[str]) -> PrimitiveConstructorSpec[Any]:
    def convert(token: str) -> str:
        if token not in known:
            raise _UsageError(str(unknown_name(option.removeprefix("--"), token, known)))
        return token

    return _value(option, convert, "|".join(known), "one of these", known[0])


def _hint(text: str = "") -> Any:
    """The remark in parentheses after an option's help; by default none."""
    return conf.arg(help_behavior_hint=text)


Flag = Annotated[bool, _hint()]
Names = Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="[NAME ...]", help_behavior_hint="")]
File = Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="FILE", help_behavior_hint="")]

#: geometry -> its class
_GEOMETRIES = {
    "sphere": "Sphere",
    "parallel": "Parallel",
    "reduced": "Reduced",
    "unnormalized": "Unnormalized",
    "subspaces": "Subspaces",
    "linear-encoders": "LinearEncoders",
    "mlp-encoders": "MLPEncoders",
}
_METHODS = ("explicit", "implicit", "krylov", "stabilised")
#: start -> the options it takes; `height` is called `gamma` by some recipes.
_STARTS = {
    "rings": ("pairs", "height", "twist"),
    "cones": ("pairs", "dim", "height"),
    "uniform": ("pairs", "dim", "gamma"),
    "matched": ("pairs", "dim", "gamma"),
    "orthonormal": ("pairs", "gamma"),
    "simplex": ("pairs", "gamma"),
    "mismatched": ("pairs", "dim", "gamma", "fraction"),
    "latents": ("pairs", "dim", "factors", "text_factors", "hidden", "noise"),
}


# --- commands -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Compute and draw the paper's figures and the table of claims: all of them, or those named.

    A line is printed for each figure as it is finished. Finished computations are kept in records, which the same
    command reuses. The exit code is 0 if every claim has its expected verdict, else 1.
    """

    names: Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="[NAME ...]", help_behavior_hint="")] = ()
    """Experiments to run, e.g. fig2; default all."""
    quick: Flag = False
    """Smaller sizes at the same tolerances."""
    force: Flag = False
    """Compute again even if a record is there."""
    out: Annotated[str | None, _text("--out", "DIR"), _hint("(default: figures/full, with --quick figures/quick)")] = (
        None
    )
    """Folder for figures and records."""

    def run(self) -> int:
        if self.out is not None:
            check_writable_folder(Path(self.out))
        from flowsim import reproduce

        known = reproduce.experiment_names()
        for name in self.names:
            if name not in known:
                raise unknown_name("experiment", name, known)
        done = reproduce.run(list(self.names) or None, quick=self.quick, force=self.force, out=self.out)
        return 0 if done.ok else 1


@dataclasses.dataclass(frozen=True)
class Claims:
    """Check the paper's claims: statement, measured numbers, verdict; all of them, or those named.

    The exit code is 0 if every verdict is the expected one, else 1.
    """

    names: Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="[NAME ...]", help_behavior_hint="")] = ()
    """Claims to check, e.g. lemma-3.1; default all."""
    json: Flag = False
    """JSON alone on stdout: a list of {id, statement, source, assumptions, numbers, expected, verdict}."""
    quick: Flag = False
    """Smaller samples at the same tolerances."""

    def run(self) -> int:
        from flowsim import claims

        known = claims.names()
        for name in self.names:
            if name not in known:
                raise unknown_name("claim", name, known)
        chosen = list(self.names) or list(known)
        with _progress("Claims", len(chosen)) as step:
            verdicts = claims.run_all(self.quick, lambda name, done, total: step(name), only=chosen, processes=True)
        if self.json:
            _print_json([v.to_dict() for v in verdicts])
        else:
            print(claims.Table(verdicts))
        return 0 if all(v.as_expected for v in verdicts) else 1


@dataclasses.dataclass(frozen=True)
class _Run:
    """Options of every command that integrates: the flow, its start, and how."""

    preset: Annotated[str | None, _text("--preset", "NAME"), _hint("(default: Baseline)")] = None
    """Schedule of the paper by name."""
    schedule: Annotated[str | None, _text("--schedule", "FILE.json"), _hint()] = None
    """Schedule from a JSON file instead."""
    geometry: Annotated[str, _choice("--geometry", tuple(_GEOMETRIES))] = "sphere"
    """How the rows move."""
    start: Annotated[
        str | None, _choice("--start", tuple(_STARTS)), _hint("(default: rings; latents for encoders)")
    ] = None
    """Recipe for the starting state."""
    pairs: Annotated[int | None, _whole("--pairs", "5"), _hint()] = None
    """Number of pairs, at least 2."""
    dim: Annotated[int | None, _whole("--dim", "8"), _hint()] = None
    """Dimension of the rows."""
    height: Annotated[
        float | None,
        _number("--height", "0.3"),
        conf.arg(aliases=("--gamma",), help_behavior_hint=""),
    ] = None
    """Cone height γ0, between -1 and 1."""
    twist: Annotated[float | None, _number("--twist", "-144"), _hint()] = None
    """Turn of the text ring in degrees (rings)."""
    fraction: Annotated[float | None, _number("--fraction", "0.5"), _hint()] = None
    """Fraction of texts that start in a wrong place (mismatched)."""
    factors: Annotated[int | None, _whole("--factors", "8"), _hint()] = None
    """Number of latent factors (latents)."""
    text_factors: Annotated[int | None, _whole("--text-factors", "4"), _hint()] = None
    """Number of factors that the text sees (latents)."""
    hidden: Annotated[int | None, _whole("--hidden", "32"), _hint()] = None
    """Units of the hidden layer, for mlp-encoders (latents)."""
    noise: Annotated[float | None, _number("--noise", "0.1"), _hint()] = None
    """Noise on the inputs of the text (latents)."""
    embeddings: Annotated[str | None, _text("--embeddings", "FILE"), _hint()] = None
    """Start from your own rows: npy of shape (2, n, d), or npz with `image` and `text`."""
    t1: Annotated[float | None, _number("--t1", "1e5"), _hint("(default: 1e5)")] = None
    """Last flow time."""
    seed: Annotated[int, _whole("--seed", "0")] = 0
    """Seed of the start, of swaps and of pairings."""
    changes: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, _text("--set", "PATH=VALUE")], ...]],
        conf.arg(name="set", help_behavior_hint="(repeatable)"),
    ] = ()
    """Change one value of the flow, e.g. schedule.temperature.init=0.1."""
    method: Annotated[str | None, _choice("--method", _METHODS), _hint("(default: chosen)")] = None
    """Integrator."""
    rtol: Annotated[float, _number("--rtol", "1e-9")] = 1e-9
    """Relative tolerance."""

    def _flow_and_start(self, resume: str | None = None) -> "tuple[GradientFlow, Start | AbstractRecipe | Result]":
        from flowsim.integrate import simulate as solve
        from flowsim.model import schedules
        from flowsim.model.flow import KINDS, GradientFlow

        if self.preset is not None and self.schedule is not None:
            raise FlowsimError("Options `--preset` and `--schedule` exclude each other. Give one.")
        schedule = None
        if self.schedule is not None:
            if not self.schedule.endswith(".json"):
                raise FlowsimError(
                    f"A schedule file ends in .json, but got {self.schedule!r}. "
                    "Use --preset for a schedule of the paper."
                )
            schedule = schedules.load(self.schedule)
        elif self.preset is not None:
            schedule = schedules.get(self.preset)
        if resume is not None:
            given = [o for o in ("start", "embeddings", *_START_OPTIONS) if getattr(self, o) is not None]
            if given or self.geometry != "sphere":
                raise FlowsimError(
                    f"Option `{_option((given or ['geometry'])[0])}` does not go with `--resume`, "
                    "which brings its own start and geometry. Leave it out."
                )
            start = solve.load(resume)
            flow = start.flow
            if self.seed not in (0, start.config["options"]["seed"]):
                raise FlowsimError(
                    "Option `--seed` does not go with `--resume`, which goes on with the seed of the run. Leave it out."
                )
            flow = flow if schedule is None else flow.replace(schedule=schedule)
        else:
            flow = GradientFlow(KINDS[_GEOMETRIES[self.geometry]](), schedule or schedules.get("Baseline"))
            start = self._start()
        changes: dict[str, Any] = {}
        seen = flow  # with the objects that earlier changes put in: later paths may lead into them
        for change in self.changes:
            path, value = parse_change(seen, change)
            changes[path] = value
            if dataclasses.is_dataclass(value):
                seen = seen.replace(**{path: value})
        flow = flow.replace(**changes) if changes else flow
        if resume is not None:
            _refuse_what_the_run_brings(start, flow, changes)  # pyright: ignore[reportArgumentType]
        return flow, start

    def _start(self) -> "Start | AbstractRecipe":
        from flowsim import observables
        from flowsim.model import initial

        given = {o: getattr(self, o) for o in _START_OPTIONS if getattr(self, o) is not None}
        if self.embeddings is not None:
            if self.start is not None:
                raise FlowsimError("Options `--start` and `--embeddings` exclude each other. Give one of them.")
            for option in given.keys() - {"height"}:
                raise FlowsimError(f"Option `{_option(option)}` does not go with `--embeddings`. Leave it out.")
            image, text = observables.load_embeddings(self.embeddings)
            return initial.from_arrays(image, text, self.height)
        name = self.start or ("latents" if self.geometry.endswith("encoders") else "rings")
        takes = {"height" if o == "gamma" else o: o for o in _STARTS[name]}
        for option in given:
            if option not in takes:
                raise FlowsimError(
                    f"Start {name!r} has no option `{_option(option)}`. It takes {', '.join(map(_option, takes))}."
                )
        return getattr(initial, name)(**{takes[o]: v for o, v in given.items()})


_START_OPTIONS = ("pairs", "dim", "height", "twist", "fraction", "factors", "text_factors", "hidden", "noise")


def _refuse_what_the_run_brings(run: "Result", flow: "GradientFlow", changes: Collection[str]) -> None:
    """Starting values of what is trained: a run that goes on has its own, so that changing them does nothing."""
    trained = {
        "schedule.temperature.init": flow.schedule.temperature.learnable,
        "loss.bias": "bias" in run.snapshots and getattr(flow.loss, "bias_rate", None) is not None,
    }
    for path in (p for p, is_trained in trained.items() if is_trained and p in changes):
        raise FlowsimError(
            f"`--set {path}` changes nothing with `--resume`: it is learned, and goes on from its value in the file. "
            "Leave it out, or start anew from the rows: fs.simulate(flow, run.final.start, t1=...) in Python."
        )


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


@dataclasses.dataclass(frozen=True)
class Simulate(_Run):
    """Integrate one gradient flow and print its observables.

    Example: flowsim simulate --preset Baseline --start rings --t1 1e5 --set schedule.temperature.init=0.1
    """

    resume: Annotated[str | None, _text("--resume", "RUN.nc"), _hint()] = None
    """Continue a saved run with its own flow, clock, seed and learned temperature."""
    out: Annotated[str | None, _text("--out", "RUN.nc"), _hint()] = None
    """Save the run as netCDF (with --resume: its new part); `fs.load` and --resume read it."""
    json: Flag = False
    """Status and final observables as JSON on stdout."""

    def run(self) -> int:
        if self.out is not None:
            check_writable_file(Path(self.out), ".nc")
            if self.resume is not None and Path(self.out).resolve() == Path(self.resume).resolve():
                raise FlowsimError(
                    f"Options `--resume` and `--out` both name {self.out!r}, whose first part would be lost: what is "
                    "saved begins where that run ended. Choose another name with --out."
                )
        from flowsim.integrate.simulate import simulate

        flow, start = self._flow_and_start(self.resume)
        t1 = 1e5 if self.t1 is None and self.resume is None else self.t1
        if t1 is None:
            raise FlowsimError("Option `--resume` needs the new last time. Add e.g. --t1 1e8.")
        with _progress("Integrating"):
            result = simulate(
                flow,
                start,
                t1=t1,
                seed=self.seed,
                rtol=self.rtol,
                method=self.method,  # pyright: ignore[reportArgumentType]
                throw=False,
            )
        if self.out is not None:
            result.save(self.out)
        if self.json:
            _print_json(_summary(result))
        else:
            print(result)
        sys.stdout.flush()
        if result.status.ok:
            if self.out is not None:
                _say(f"Saved {self.out}.")
            return 0
        saved = "" if self.out is None else f" The part that was computed is saved in {self.out}."
        _say(f"{result.status.sentence} This happened at t = {result.status.stopped_at:.6g}.{saved}")
        return EXIT_BAD_INPUT


@dataclasses.dataclass(frozen=True)
class Animate(_Run):
    """Film a saved run, or integrate a gradient flow and film it: gap, temperature, and the embeddings.

    The embeddings are shown on the sphere in three dimensions, else as the matrix of their cosines.

    Example: flowsim animate --start rings --twist -144 --out fig2.gif
    """

    file: File = ()
    """A saved run, or a record of training; without, the flow of the other options is integrated."""
    run_name: Annotated[str | None, _text("--run", "NAME"), conf.arg(name="run", help_behavior_hint="")] = None
    """Which run of a file of several, e.g. "Baseline, seed 0"."""
    frames: Annotated[int, _whole("--frames", "120")] = 120
    """Number of frames, evenly spaced in the logarithm of time; of a saved run at most its snapshots."""
    fps: Annotated[int, _whole("--fps", "20")] = 20
    """Frames per second."""
    out: Annotated[str, _text("--out", "FILM.gif"), _hint("(default: flow.gif)")] = "flow.gif"
    """The film: .gif, .html (with a player) or .mp4 (needs ffmpeg)."""

    def run(self) -> int:
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
        with _progress("Filming"):
            result = self._integrated() if saved is None else saved
            plot.animate(result, self.out, self.fps, self.frames)
        _say(f"Saved {self.out}.")
        return 0

    def _saved(self, file: str) -> "Result":
        """The run in a file; `FlowsimError` for options of a run that would have no effect on it."""
        for field in dataclasses.fields(_Run):
            if getattr(self, field.name) != field.default:
                option = _option({"changes": "set"}.get(field.name, field.name))
                raise FlowsimError(
                    f"Option `{option}` does not go with a saved run, which is filmed as it is. Leave it out."
                )
        from flowsim.integrate.simulate import load

        runs = _runs([file], self.run_name)
        if len(runs) > 1:
            raise FlowsimError(
                f"{file!r} holds {len(runs)} runs. Choose one with --run, e.g. --run {next(iter(runs))!r}."
            )
        # `load` can integrate to times between snapshots; several runs in one file are records.
        (name,) = runs
        return load(file) if name == file else runs[name]

    def _integrated(self) -> "Result":
        import numpy as np

        from flowsim.integrate.simulate import simulate

        if self.run_name is not None:
            raise FlowsimError("Option `--run` chooses among the runs of a file. Give the file, or leave it out.")
        flow, start = self._flow_and_start()
        t1 = 1e5 if self.t1 is None else self.t1
        times = np.concatenate([[0.0], np.geomspace(min(1e-2, t1 / 10), t1, self.frames - 1)])
        return simulate(
            flow, start, ts=times, seed=self.seed, rtol=self.rtol, snapshots=times,
            method=self.method,  # pyright: ignore[reportArgumentType]
        )  # fmt: skip


def _runs(files: Sequence[str], name: str | None) -> "dict[str, Result]":
    """The runs in the files, or the one of that name."""
    from flowsim.records.load import load_any

    runs = {key: result for file in files for key, result in load_any(file).items()}
    if name is None:
        return runs
    if name not in runs:
        raise unknown_name("run", name, runs)
    return {name: runs[name]}


@dataclasses.dataclass(frozen=True)
class Sweep(_Run):
    """Integrate a flow for every combination of values and seeds, batched; print how the runs ended.

    Example: flowsim sweep --start cones --over schedule.temperature.init=geom:0.01:1:20 --over seed=0:8 --out runs.nc
    """

    over: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, _text("--over", "PATH=V1,V2,...")], ...]],
        conf.arg(help_behavior_hint="(repeatable)"),
    ] = ()
    """Values of a path of the flow, of start.height etc., or of seed: a list, 0:8, lin:0:1:5 or geom:0.01:1:20."""
    mode: Annotated[str, _choice("--mode", ("product", "zip"))] = "product"
    """Every combination of the values, or values side by side."""
    to: Annotated[str | None, _text("--to", "RUNS.zarr"), _hint()] = None
    """Folder that is filled on the way; the same command resumes where it was stopped."""
    executor: Annotated[str | None, _text("--executor", "WHERE"), _hint("(default: threads)")] = None
    """Address of a dask scheduler (tcp://host:8786), or processes:N."""
    out: Annotated[str | None, _text("--out", "RUNS.nc"), _hint()] = None
    """Save all runs as netCDF; `fs.load_sweep` reads it."""
    json: Flag = False
    """Statuses and final observables as JSON on stdout."""

    def run(self) -> int:
        if self.out is not None:
            check_writable_file(Path(self.out), ".nc")
        if self.to is not None:
            check_writable_folder(Path(self.to).parent, "--to")
        from flowsim.integrate.sweep import sweep

        flow, start = self._flow_and_start()
        if not self.over:
            raise FlowsimError("Nothing to sweep. Add e.g. --over seed=0:8.")
        over: dict[str, list[Any]] = {}
        for text in self.over:
            path, values = parse_over(flow, start, text)
            if path in over:
                raise FlowsimError(f"Option `--over` names {path!r} twice. Give all its values at once.")
            over[path] = values
        if self.mode == "zip" and len({len(values) for values in over.values()}) > 1:
            counts = ", ".join(f"{path} {len(values)}" for path, values in over.items())
            raise FlowsimError(
                f"With --mode zip all values need the same length, but there are: {counts}. Give as many of each, or "
                "use --mode product for every combination."
            )
        with contextlib.ExitStack() as stack:

            def track(chunks: Collection[Any], text: str) -> Iterator[Any]:
                step = stack.enter_context(_progress(text.capitalize(), len(chunks)))
                for index, chunk in enumerate(chunks):
                    step(f"chunk {index + 1} of {len(chunks)}")
                    yield chunk

            runs = sweep(
                flow,
                start,  # pyright: ignore[reportArgumentType]
                over,
                t1=1e5 if self.t1 is None else self.t1,
                mode=self.mode,  # pyright: ignore[reportArgumentType]
                to=self.to,
                seed=self.seed,
                rtol=self.rtol,
                method=self.method,  # pyright: ignore[reportArgumentType]
                executor=self.executor,
                track=track,
            )
        if self.out is not None:
            runs.save(self.out)
        if self.json:
            _print_json(_sweep_summary(runs))
        else:
            print(runs)
        sys.stdout.flush()
        if self.out is not None:
            _say(f"Saved {self.out}.")
        return 0


@dataclasses.dataclass(frozen=True)
class Compare:
    """Compare a run, or a record of training, with the simulation and the closed forms: numbers, verdict, a sentence.

    Further files are other initialisations of the same run, for the early enlargement of the gap. A file of several
    runs (`flowsim clip study`, `early`) counts as all of them, or with --run as the one of that name.
    """

    files: Annotated[conf.Positional[tuple[str, ...]], conf.arg(metavar="RUN.nc ...", help_behavior_hint="")] = ()
    """Saved runs."""
    run_name: Annotated[str | None, _text("--run", "NAME"), conf.arg(name="run", help_behavior_hint="")] = None
    """Which run of a file of several, e.g. "Baseline, seed 0"."""
    parts: Annotated[str | None, _text("--parts", "NAME,..."), _hint("(default: all)")] = None
    """Items wanted: simulation, exponent, slow_closing, enlargement, matching, calibration."""
    out: Annotated[str | None, _text("--out", "FIGURE"), _hint()] = None
    """Draw everything into a figure, .png or .pdf."""
    json: Flag = False
    """JSON on stdout; a number that is missing is null."""

    def run(self) -> int:
        if not self.files:
            raise FlowsimError("Command `compare` takes one RUN.nc or more. Use e.g. flowsim compare run.nc.")
        if self.out is not None:
            check_writable_file(Path(self.out), ".pdf" if self.out.endswith(".pdf") else ".png")
        from flowsim.comparison import compare

        runs = _runs(self.files, self.run_name)
        with _progress("Comparing"):
            found = compare(*runs.values(), parts=None if self.parts is None else self.parts.split(","))
        if self.out is not None:
            found.save(self.out)
        if self.json:
            _print_json(found.to_dict())
        else:
            print(found)
        sys.stdout.flush()
        if self.out is not None:
            _say(f"Saved {self.out}.")
        return 0


@dataclasses.dataclass(frozen=True)
class Measure:
    """Print every observable of two embedding sets: gap, alignment, uniformity, retrieval and more."""

    file: File = ()
    """npy of shape (2, n, d), images first, or npz with arrays `image` and `text`."""
    temperature: Annotated[float | None, _number("--temperature", "0.07"), _hint()] = None
    """Softmax temperature, for the observables that need one."""
    captions_per_image: Annotated[int, _whole("--captions-per-image", "5")] = 1
    """Number of text rows for each image row."""
    only: Annotated[str | None, _text("--only", "NAME,..."), _hint("(default: all)")] = None
    """Metrics wanted, e.g. modality_gap,matched_fraction."""
    exact: Flag = False
    """Beyond 20,000 rows compare all with all others, not a sample; the time grows with their square."""
    json: Flag = False
    """JSON on stdout; a value that is missing is null, with its reason."""

    def run(self) -> int:
        if len(self.file) != 1:
            raise FlowsimError(
                f"Command `measure` takes one FILE, but got {len(self.file)}. Use e.g. flowsim measure a.npz."
            )
        from flowsim import observables

        only = None if self.only is None else [name.strip() for name in self.only.split(",")]
        image, text = observables.open_embeddings(self.file[0])
        with _progress("Measuring") as step:
            report = observables.report(
                image, text, self.temperature, self.captions_per_image, only=only, exact=self.exact, progress=step
            )
        print(report.to_json() if self.json else report)
        return 0


@dataclasses.dataclass(frozen=True)
class Clip:
    """The same schedules on real CLIP models (extra `clip`): train, measure, study, early. See flowsim clip --help."""

    def run(self) -> int:
        raise FlowsimError("Give a command after clip: train, measure, study or early. See flowsim clip --help.")


@runtime_checkable
class Command(Protocol):
    """A dataclass of options that can be run."""

    def run(self) -> int: ...


_COMMANDS: dict[str, type[Command]] = {
    "reproduce": Reproduce,
    "claims": Claims,
    "simulate": Simulate,
    "sweep": Sweep,
    "animate": Animate,
    "compare": Compare,
    "measure": Measure,
    "clip": Clip,
}


# --- pieces that commands share -------------------------------------------------------------------------


def parse_change(flow: "GradientFlow", change: str) -> tuple[str, Any]:
    """(path, value) of "PATH=VALUE": a number, JSON, a preset's name, or the name of a kind of object.

    Raises `FlowsimError` if the path does not exist or the value is of another sort than the one there.
    """
    from flowsim.model import schedules

    path, equals, text = change.partition("=")
    if not (path and equals and text):
        raise FlowsimError(
            f"Option `--set` takes PATH=VALUE, but got {change!r}. Use e.g. --set schedule.temperature.init=0.1."
        )
    value = _value_at(flow, path, text)
    return path, schedules.load(value) if path == "schedule" and isinstance(value, str) else value


def parse_over(flow: "GradientFlow", start: Any, text: str) -> tuple[str, list[Any]]:
    """(path, values) of "PATH=V1,V2,...", or of a range in place of the list.

    Raises `FlowsimError` as `parse_change` does.
    """
    from flowsim.model.initial import AbstractRecipe

    path, equals, listed = text.partition("=")
    if not (path and equals and listed):
        raise FlowsimError(f"Option `--over` takes PATH=V1,V2,..., but got {text!r}. Use e.g. --over seed=0:8.")
    tokens = _tokens(listed)
    if path == "seed":
        for token in tokens:
            if not token.isdecimal():
                raise FlowsimError(f"Seeds must be whole numbers of at least 0, but one is {token!r}. Use e.g. 0:8.")
        return path, [int(token) for token in tokens]
    if path.startswith("start."):
        if not isinstance(start, AbstractRecipe):
            raise FlowsimError(f"Path {path!r} needs a recipe, not your own rows. Use --start, not --embeddings.")
        return path, [_value_at(start, path.removeprefix("start."), token) for token in tokens]
    return path, [_value_at(flow, path, token) for token in tokens]


def _tokens(text: str) -> list[str]:
    """The values of a list or range, as text; commas within brackets and braces do not separate."""
    import numpy as np

    spaces = {"lin": np.linspace, "geom": np.geomspace}
    kind, *numbers = text.split(":")
    if kind in spaces:
        try:
            first, last, count = float(numbers[0]), float(numbers[1]), int("".join(numbers[2:]))
        except (ValueError, IndexError):
            first, last, count = 0.0, 0.0, 0
        if count < 2 or not math.isfinite(first + last):
            raise FlowsimError(
                f"A range is {kind}:FIRST:LAST:COUNT, but got {text!r}. Use e.g. {kind}:0.01:1:20 (20 values)."
            )
        if kind == "geom" and first * last <= 0:
            raise FlowsimError(
                f"Range {text!r} goes from {first:g} to {last:g} by equal factors, which needs ends of one sign and "
                f"not 0. Use e.g. geom:0.01:1:20, or lin:{':'.join(numbers)}."
            )
        values = spaces[kind](first, last, count)
        return [f"{x:.17g}" for x in values]
    if found := re.fullmatch(r"(-?\d+):(-?\d+)", text):
        whole = [str(i) for i in range(int(found[1]), int(found[2]))]
        if not whole:
            raise FlowsimError(f"Range {text!r} is empty. Its second number, which is left out, must be larger.")
        return whole
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise FlowsimError(f"List {text!r} has an empty value. Use e.g. 0.1,0.2.")
    return parts


def _value_at(owner: Any, path: str, text: str) -> Any:
    """The value that a text stands for at a path; names of presets stay names."""
    from flowsim.base import paths as config
    from flowsim.model import schedules
    from flowsim.model.flow import KINDS

    old = config.get(owner, path)
    value = _parse_value(text)
    is_object = dataclasses.is_dataclass(old)
    if path == "schedule" and isinstance(value, str):
        schedules.load(value)
        return value
    before, _, name = path.rpartition(".")
    parent = config.get(owner, before) if before else owner
    if isinstance(value, dict):
        value = config.from_config(value, KINDS)
    if is_object:
        kinds: Any = next(f.type for f in dataclasses.fields(parent) if f.name == name)
        alike = [k for k, cls in KINDS.items() if issubclass(cls, kinds)]
        if isinstance(value, str):
            if value not in alike:
                raise unknown_name(f"value of {path}", value, alike)
            value = KINDS[value]()
        elif dataclasses.is_dataclass(value) and not isinstance(value, kinds):
            raise unknown_name(f"value of {path}", type(value).__name__, alike)
    if isinstance(value, list):
        value = tuple(value)
    if is_object != dataclasses.is_dataclass(value):
        raise FlowsimError(f"Path {path!r} cannot be {text!r}: there is {_describe(old)}. Give another one.")
    for kind, wanted in ((bool, "true or false"), (int, "a whole number"), (str, "a word")):
        if isinstance(old, kind):
            if type(value) is not kind:
                raise FlowsimError(f"Path {path!r} must be {wanted}, but is {text!r}. Now it is {old}.")
            break
    else:
        if hasattr(old, "shape") and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise FlowsimError(f"Path {path!r} must be a number, but is {text!r}. Now it is {float(old):g}.")
    return value


def _parse_value(text: str) -> Any:
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _describe(value: Any) -> str:
    return type(value).__name__ if dataclasses.is_dataclass(value) else "a plain value"


def check_writable_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder in which nothing can be written, before any time is spent; leaves nothing behind."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        if not existing.is_dir():
            raise NotADirectoryError(0, f"{str(existing)!r} is a file, not a folder")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise FlowsimError(
            f"Cannot write to {str(folder)!r}: {error.strerror or error}. Choose another folder with {option}."
        ) from None


def check_writable_file(path: Path, suffix: str) -> None:
    """Refuse a file that cannot be written, before any time is spent; leaves nothing behind."""
    if path.suffix != suffix:
        raise FlowsimError(f"Option `--out` takes a {suffix} file, but got {path.name!r}. Use e.g. run{suffix}.")
    if path.is_dir():
        raise FlowsimError(f"Cannot write {str(path)!r}: it is a folder. Choose another name with --out.")
    check_writable_folder(path.parent)


def _summary(result: "Result") -> dict[str, Any]:
    """Status and the observables at the last time that was reached."""
    time, status = result.time, result.status
    last = len(time) - 1
    if not status.ok:
        last = max((i for i, t in enumerate(time) if t <= status.stopped_at), default=0)
    return {
        "status": status.code.name,
        "sentence": status.sentence,
        "stopped_at": status.stopped_at,
        "method": status.method,
        "time": time[last],
        "observables": {name: values[last] for name, values in result.series.items()},
        "reasons": result.reasons,
        "stats": result.stats,
        "config": result.config,
        "versions": result.versions,
    }


def _sweep_summary(runs: "SweepResult") -> dict[str, Any]:
    """Statuses and the observables at the last time, one entry per run along the swept dimensions."""
    last = runs.dataset.isel(time=-1)
    return {
        "dims": {str(name): size for name, size in last.sizes.items()},
        "over": {str(name): values.to_numpy() for name, values in last.coords.items() if name != "time"},
        "counts": runs.counts,
        "time": last["time"].item(),
        "observables": {str(name): values.to_numpy() for name, values in last.data_vars.items()},
        "seconds": runs.dataset.attrs["seconds"],
        "config": json.loads(runs.dataset.attrs["config"]),
        "versions": json.loads(runs.dataset.attrs["versions"]),
    }


def _plain(value: Any) -> Any:
    """Strict JSON: what is not a finite number is null."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _print_json(value: Any) -> None:
    print(json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def _say(sentence: str) -> None:
    """One line on stderr."""
    print("flowsim: " + " ".join(sentence.split()), file=sys.stderr)


@contextlib.contextmanager
def _progress(title: str, total: int | None = None) -> Iterator[Callable[[str], None]]:
    """A spinner (or bar, with `total`) on stderr if that is a terminal; yields a function that steps.

    It also says when a program is compiled, which a first run spends most of its time on.
    """
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from flowsim.base import notice as _notice

    columns = [SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()]
    if total is not None:
        columns[2:2] = [BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f}")]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        begun, doing = False, title

        def step(name: str) -> None:
            nonlocal begun, doing
            doing = f"{title}: {name}"
            bar.update(task, description=doing, advance=1 if begun else 0)
            begun = True

        def compiles(yes: bool) -> None:
            bar.update(task, description=f"{doing} (compiling ...)" if yes else doing)

        with _notice.watch(compiles):
            yield step


# --- parsing and errors ---------------------------------------------------------------------------------


def _parse(argv: Sequence[str], prog: str, commands: dict[str, type[Command]]) -> Command:
    """The command with its options; SystemExit after help, `FlowsimError` for anything wrong."""
    if not argv:
        raise FlowsimError(f"Give a command: {', '.join(commands)}. See {prog} --help.")
    head = argv[0]
    if head not in commands and not head.startswith("-"):
        raise unknown_name("command", head, commands)
    if head.startswith("-") and head not in ("-h", "--help") and not head.startswith("--tyro"):
        raise FlowsimError(f"Option {head!r} stands before the command. Write {prog} COMMAND {head}.")
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            command, unknown = _tyro(argv, prog, commands)
    except _UsageError as error:
        raise FlowsimError(str(error)) from None
    except SystemExit as stop:
        if stop.code:
            raise FlowsimError(f"{_unboxed(boxes.getvalue())} See {prog} {head} --help.") from None
        raise
    for token in unknown:
        if token.startswith("-"):
            raise unknown_name(f"option of {head}", token.partition("=")[0], _options(head, prog, commands))
        raise FlowsimError(f"Unexpected argument {token!r}. See {prog} {head} --help.")
    return command


def _tyro(argv: Sequence[str], prog: str, commands: dict[str, type[Command]]) -> tuple[Any, list[str]]:
    union: Any = None
    for name, cls in commands.items():
        # A command's full text in its own help, its first line in the list of commands.
        text = cls.__doc__ or ""
        if argv[0] == name:
            description = "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))
        else:
            description = text.partition("\n")[0]
        command = Annotated[cls, conf.subcommand(name, description=description)]
        union = command if union is None else union | command
    return tyro.cli(
        union,
        prog=prog,
        description=_ABOUT[prog],
        args=list(argv),
        return_unknown_args=True,
        config=(conf.FlagCreatePairsOff,),
    )


_ABOUT = {
    "flowsim": "Gradient flow of contrastive losses, and the modality gap it explains. "
    "`flowsim --version` prints the version.",
    "flowsim clip": "flowsim's schedules on real CLIP models.",
}


def _unboxed(text: str) -> str:
    """The sentence within a box that tyro draws: the lines below the title, up to the first rule."""
    lines = []
    for line in text.splitlines()[1:]:  # the first holds the title
        inner = line.strip("│| ")
        if re.search(r"\w", inner):
            lines.append(inner)
        elif lines:
            break
    sentence = " ".join(" ".join(lines).split()) or "These arguments cannot be read."
    return sentence[0].upper() + sentence[1:] + ("" if sentence.endswith(".") else ".")


def _options(command: str, prog: str, commands: dict[str, type[Command]]) -> list[str]:
    """The options of a command, from its help."""
    text = io.StringIO()
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(text):
        _tyro([command, "--help"], prog, commands)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text.getvalue())
    return sorted(set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", plain)) - {"--help"})


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("flowsim")


def _run(argv: Sequence[str]) -> int:
    if argv and argv[0] == "--version":
        print(f"flowsim {_version()}")
        return 0
    prog, commands = "flowsim", _COMMANDS
    if argv[:1] == ["clip"] and len(argv) > 1:
        from flowsim.cli import clip

        prog, commands, argv = "flowsim clip", clip.COMMANDS, argv[1:]
    try:
        command = _parse(argv, prog, commands)
    except SystemExit as stop:  # help was printed
        return int(stop.code or 0)
    return command.run()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "--quick" in argv and "jax" not in sys.modules:
        from flowsim.base import processes as _workers

        _workers.compile_quickly()
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except FlowsimError as error:
        _say(str(error))
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # The reader went away (`| head`). Nothing may complain when Python flushes at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        stored = argv[:1] == ["sweep"] and any(a.partition("=")[0] == "--to" for a in argv)
        again = "resume" if stored or argv[:1] in (["reproduce"], ["clip"]) else "start again"
        _say(f"Interrupted; run the same command to {again}.")
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
