"""The paper's experiment: every method from the same initial weights, batches and data, with several seeds.

    records = fs.clip.study(fs.clip.preset("laptop").replace(data="photos"), "clip-runs", "short", seeds=3, jobs=2)

Each run is a separate `train` in a separate process, and resumes by itself; the study starts the missing runs and
collects the records. All methods run with one seed before the next, so that there is a table early.
"""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from flowsim.base import processes
from flowsim.base.checks import check
from flowsim.base.files import write_text
from flowsim.clip.settings import Training
from flowsim.errors import unknown_name
from flowsim.model import schedules
from flowsim.model.schedules import Schedule
from flowsim.model.temperature import Fixed
from flowsim.progress import Progress, silent
from flowsim.records.load import load_result, load_trainings, save_results
from flowsim.records.netcdf import write_netcdf
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status

T = TypeVar("T", bound=Any)

#: The rows of the paper's Table 2, and further methods of a short study.
SHORT = (
    "Baseline", "FLT 1e-2", "FLT 4e-2", "FLT 1e-1", "TS S3", "TR softplus", "SLRT 0.1", "HS 1e-2", "SS 5e-2",
)  # fmt: skip


#: The paper's row that is not a schedule: features without normalisation, at τ = 1 (which only sets their unit).
WITHOUT_NORMALIZATION = "No normalization"


def methods(names: str | Sequence[str]) -> list[str]:
    """Names of the methods of a study.

    Args:
        names: "all", "short", or a list of names (a sequence, or separated by commas).

    Returns:
        The names.

    Raises:
        FlowsimError: For unknown names.
    """
    known = [*schedules.names(), WITHOUT_NORMALIZATION]
    if names == "all":
        return known
    if names == "short":
        return list(SHORT)
    chosen = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in known:
            raise unknown_name("method", name, known)
    return chosen


def setup(method: str, settings: T) -> tuple[T, Schedule]:
    """Settings and schedule of a method.

    Args:
        method: Name of a method, see `methods`.
        settings: Settings of the study, of CLIP models or of heads.

    Returns:
        (settings, schedule).
    """
    if method == WITHOUT_NORMALIZATION:
        return dataclasses.replace(settings, normalize=False), Schedule(Fixed(1.0))
    return settings, schedules.get(method)


def study(
    settings: Training,
    out: str | os.PathLike[str],
    names: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = 3,
    *,
    jobs: int = 1,
    stack: int = 1,
    cpu: bool = False,
    progress: Progress = silent,
) -> dict[str, TrainingRecord]:
    """Train every method with every seed.

    The same call resumes where it was stopped. Small models leave most of a GPU idle: there `stack` runs many of them
    in one program.

    Args:
        settings: Settings of every run; the seed is replaced.
        out: Folder of the records, one file each, and of `runs.nc` with all of them.
        names: "all" methods of the paper, the nine of a "short" study, or a list.
        seeds: Number of seeds, from 0, or a list. A seed sets the same weights, batches, crops and swaps for all
            methods.
        jobs: Runs at the same time, each in its own process.
        stack: Runs trained in one program, whose memory grows with them; for GPUs and models without batch
            normalisation and dropout (ViTs). Their records are those of separate runs up to rounding. They are written
            when all runs of a stack are finished.
        cpu: Use the CPU even if there is a GPU.
        progress: Called with the name of a run or stack, its step, the number of steps, and the numbers of
            `fs.clip.train`.

    Returns:
        Records by name ("TS S3, seed 0").

    Raises:
        FlowsimError: For bad input.
    """
    folder, chosen = Path(out), methods(names)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    check(jobs >= 1, f"Argument `jobs` must be at least 1, but is {jobs}. Use e.g. 2.")
    check(
        stack == 1 or jobs == 1,
        f"Stacked runs share one process, so `stack={stack}` cannot be used with `jobs={jobs}`. Leave one of them out.",
    )
    check(seeds, "A study needs at least one seed. Use e.g. seeds=3.")
    runs = [(name, seed) for seed in seeds for name in chosen]
    if stack != 1:
        _train_stacks(settings, runs, folder, stack, cpu, progress)
    calls = [
        (train_method, (settings.replace(seed=seed), name, str(folder / file_name(name, seed)), cpu))
        for name, seed in runs
    ]
    labels = [run_name(*run) for run in runs]
    done: dict[str, TrainingRecord] = {}
    for index, result in processes.run(calls, lambda index: progress, workers=jobs):
        done[labels[index]] = result
    records = {label: done[label] for label in labels}
    save_results(records, folder / "runs.nc")
    return records


def report(records: Mapping[str, TrainingRecord], out: str | os.PathLike[str]) -> list[Path]:
    """Write the tables (Markdown) and the figures of a study into its folder.

    `numbers.nc`: curves and final values of all runs, smaller than their records. `methods`: gap and temperature of all
    methods over time and at equal loss. `quality`: retrieval (the paper's
    Figure 6) and, if the runs had `labelled`, zero-shot and linear-probe accuracy (Figure 7) against gap and
    uniformity; left out if the records hold none of them. `gap`: embeddings, slow closing and early changes (figures 1
    and 4), if `early_changes` was run with the same folder, and the runs are longer than an epoch and 100 steps.

    Args:
        records: Records by name, as `study` returns them.
        out: Folder of the study.

    Returns:
        The files.

    Raises:
        FlowsimError: If no run completed, or if their lengths differ.
    """
    from flowsim import plot
    from flowsim.clip import figures
    from flowsim.clip.tables import Tables

    folder = Path(out)
    text = Tables.of(records).markdown()
    files = [write_text(folder / "tables.md", text)]
    files.append(write_netcdf(figures.methods_numbers(records), folder / "numbers.nc"))
    drawn = {}
    with plot.paper_style():
        numbers = figures.methods_numbers(records)
        drawn["methods"] = figures.methods_figure(numbers)
        if figures.qualities(numbers):
            drawn["quality"] = figures.quality_figure(numbers)
        first = next((r for name, r in records.items() if name.startswith("Baseline,") and r.status.ok), None)
        if first is not None and figures.shows_gap(first) and (folder / "early.nc").is_file():
            numbers = figures.gap_numbers(first, load_trainings(folder / "early.nc"))
            drawn["gap"] = figures.gap_figure(numbers)
        for name, figure in drawn.items():
            for kind in ("png", "pdf"):
                path = folder / f"{name}.{kind}"
                plot.save(figure, path)
                files.append(path)
    return files


def run_name(method: str, seed: int) -> str:
    """ "TS S3, seed 0" """
    return f"{method}, seed {seed}"


def file_name(method: str, seed: int) -> str:
    """ "TS-S3.seed0.nc" """
    return f"{method.replace(' ', '-')}.seed{seed}.nc"


def _train_stacks(
    settings: Training, runs: Sequence[tuple[str, int]], folder: Path, most: int, cpu: bool, progress: Progress
) -> None:
    """Train the runs that have no finished record, in stacks of `most` runs or fewer."""
    from flowsim.clip.identity import ended_record
    from flowsim.clip.stacked import train_stacked

    stacks(runs, most)  # a wrong number is refused before anything is read
    missing = []
    for name, seed in runs:
        path, own = folder / file_name(name, seed), setup(name, settings.replace(seed=seed))
        if not path.is_file() or ended_record(path, *own) is None:
            missing.append((name, seed))
    for names, seeds in stacks(missing, most):
        own = setup(names[0], settings)[0]
        schedules_ = {name: setup(name, settings)[1] for name in names}
        paths = {(name, seed): folder / file_name(name, seed) for seed in seeds for name in names}
        train_stacked(own, schedules_, seeds, paths, cpu=cpu, progress=progress)


def stacks(runs: Sequence[tuple[str, int]], most: int) -> list[tuple[list[str], list[int]]]:
    """Stacks of at most `most` runs that together are `runs`: in each, every method with every seed.

    Args:
        runs: (method, seed) of each run.
        most: Number of runs of the largest stack.

    Returns:
        (methods, seeds) of each stack. Runs without normalisation are apart, because they are another program.

    Raises:
        FlowsimError: If `most` is below 1.
    """
    check(most >= 1, f"Argument `stack` must be at least 1, but is {most}. Use e.g. 27.")
    methods_of: dict[int, list[str]] = {}
    for name, seed in runs:
        methods_of.setdefault(seed, []).append(name)
    grids: dict[tuple[str, ...], list[int]] = {}
    for seed, names in methods_of.items():
        for part in (
            [name for name in names if name != WITHOUT_NORMALIZATION],
            [name for name in names if name == WITHOUT_NORMALIZATION],
        ):
            for first in range(0, len(part), most):
                grids.setdefault(tuple(part[first : first + most]), []).append(seed)
    found = []
    for names, seeds in grids.items():
        width = max(1, most // len(names))
        found += [(list(names), seeds[first : first + width]) for first in range(0, len(seeds), width)]
    return found


def train_method(
    progress: Progress, settings: Training, method: str, path: str, cpu: bool, label: str | None = None
) -> TrainingRecord:
    """One run, in its own process. `label`: its name for the progress; None for method and seed."""
    from flowsim.clip.training import train

    named = _named(run_name(method, settings.seed) if label is None else label, progress)
    return train(*setup(method, settings), path, cpu=cpu, progress=named)


def _named(name: str, progress: Progress) -> Progress:
    """The progress of one run among several, under its name; what comes before its training under its own."""

    def named(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        progress(name if text == "training" else text, done, total, **numbers)

    return named


def finished(out: str | os.PathLike[str]) -> dict[str, TrainingRecord]:
    """The records of all finished runs in the folder of a study.

    Args:
        out: Folder of the study.

    Returns:
        Records by name.

    Raises:
        FlowsimError: If there are none.
    """
    records = {}
    known = {file_name(name, 0).removesuffix("seed0.nc"): name for name in methods("all")}
    for path in sorted(Path(out).glob("*.seed*.nc")):
        stem, _, rest = path.name.rpartition("seed")
        seed = rest.removesuffix(".nc")
        record = load_result(path) if stem in known and seed.isdigit() else None
        if record is not None and record.status.code is not Status.UNFINISHED:
            records[run_name(known[stem], int(seed))] = record
    check(records, f"There are no finished records in {str(out)!r}. Run `fs.clip.study` first.")
    return records


def early_changes(
    settings: Training,
    out: str | os.PathLike[str],
    count: int = 100,
    steps: int = 10,
    *,
    jobs: int = 1,
    cpu: bool = False,
    progress: Progress = silent,
) -> dict[str, TrainingRecord]:
    """Train the first steps from many initialisations (the paper's Figure 4b).

    Each run takes `steps` steps of the Baseline at the full, constant learning rate, and is evaluated after each step.
    Finished runs are saved in parts of ten, so the same call resumes, also with another `count`.

    Args:
        settings: Settings of every run; seed, steps, evaluations, observables, warm-up and decay are replaced.
        out: Folder of `early.nc` and of the parts.
        count: Number of initialisations, with seeds from 0.
        steps: Steps of each run.
        jobs: Parts at the same time, each in its own process.
        cpu: Use the CPU even if there is a GPU.
        progress: Called with the name of a run, its step, the number of steps, and the numbers of `fs.clip.train`.

    Returns:
        Records by name ("seed 0").

    Raises:
        FlowsimError: For bad input, and for a folder that holds other runs.
    """
    check(count >= 1, f"Argument `count` must be at least 1, but is {count}. Use e.g. 100.")
    check(jobs >= 1, f"Argument `jobs` must be at least 1, but is {jobs}. Use e.g. 2.")
    folder = Path(out)
    quick = dataclasses.replace(
        settings, steps=steps, evaluations=2 * steps + 2, observables="gap", warmup=0.0, decay="constant"
    )
    parts = [range(first, min(first + 10, count)) for first in range(0, count, 10)]
    calls = [(_early, (quick, list(part), str(folder / f"early.part{part[0]}.nc"), cpu)) for part in parts]
    found: dict[int, dict[str, TrainingRecord]] = {}
    for index, records in processes.run(calls, lambda index: progress, workers=jobs):
        found[index] = records
    records = {name: result for index in sorted(found) for name, result in found[index].items()}
    save_results(records, folder / "early.nc")
    return records


def changes(records: Mapping[str, TrainingRecord]) -> dict[str, list[float]]:
    """Change of the gap in each of the runs of `early_changes`.

    Args:
        records: Records by name.

    Returns:
        Changes of "held-out pairs" and "training pairs" from the first to the last evaluation, and of the "batch" from
        the first to the last step; one number per run.
    """
    found: dict[str, list[float]] = {}
    for name, values in (
        ("held-out pairs", [r.series["modality_gap"] for r in records.values()]),
        ("training pairs", [r.series["seen_modality_gap"] for r in records.values()]),
        ("batch", [r.training["train_modality_gap"] for r in records.values()]),
    ):
        found[name] = [float(v[-1] - v[0]) for v in values]
    return found


def _early(progress: Progress, settings: Training, seeds: list[int], path: str, cpu: bool) -> dict[str, TrainingRecord]:
    from flowsim.clip.identity import same_run
    from flowsim.clip.training import train

    schedule = schedules.get("Baseline")
    records = load_trainings(path) if Path(path).is_file() else {}
    for name, record in records.items():
        seed = name.removeprefix("seed ")
        check(
            seed.isdigit() and same_run(record, settings.replace(seed=int(seed)), schedule),
            f"{path!r} holds other runs. Choose another `out`, or remove the files early* there.",
        )
    missing = [seed for seed in seeds if f"seed {seed}" not in records]
    for seed in missing:
        name = f"seed {seed}"
        records[name] = train(settings.replace(seed=seed), schedule, cpu=cpu, progress=_named(name, progress))
    if missing:
        save_results(records, path)
    return {f"seed {seed}": records[f"seed {seed}"] for seed in seeds}
