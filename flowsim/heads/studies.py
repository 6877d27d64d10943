"""The paper's experiment on frozen features: every method from the same weights and batches, with several seeds.

    records = fs.heads.study(fs.heads.Training(data="features.npz"), "heads-runs", "all", seeds=3, jobs=2)

Runs are separate trainings in separate processes, or stacks of runs of the same structure in one program. The study
starts the runs that are missing and collects the records.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowsim.base import processes
from flowsim.base.checks import check
from flowsim.clip.studies import file_name, methods, run_name, setup
from flowsim.heads.learner import flow_of, structure_of
from flowsim.heads.pools import Pools
from flowsim.heads.record import configuration, ended_record
from flowsim.heads.settings import Training
from flowsim.heads.training import train_together
from flowsim.integrate.sweep import executors
from flowsim.progress import Progress, silent
from flowsim.records.load import save_results
from flowsim.records.result import TrainingRecord

if TYPE_CHECKING:
    from distributed import Client

#: (method, seed) of a run.
Run = tuple[str, int]


def study(
    settings: Training,
    out: str | os.PathLike[str],
    names: str | Sequence[str] = "all",
    seeds: int | Sequence[int] = 3,
    *,
    jobs: int = 1,
    stack: int = 1,
    executor: "Executor | Client | str | None" = None,
    progress: Progress = silent,
) -> dict[str, TrainingRecord]:
    """Train heads with every method and every seed.

    The same call resumes where it was stopped.

    Args:
        settings: Settings of every run; the seed is replaced.
        out: Folder of the records, one file each, and of `runs.nc` with all of them.
        names: "all" methods of the paper, the nine of a "short" study, or a list.
        seeds: Number of seeds, from 0, or a list. A seed sets the same weights, batches, captions and swaps for all
            methods.
        jobs: Processes that train at the same time: one for each core of a CPU.
        stack: Runs trained in one program, whose memory grows with them; for GPUs, where small heads leave most of the
            device idle. Only runs of the same structure share a program, so 78 runs take ten. Their records are
            those of separate runs up to rounding.
        executor: Where runs are computed instead: as in `fs.sweep`. Workers need the data under the same path, or
            settings that hold the features. Only this session writes the records, when a run has ended.
        progress: Called with the name of a run or stack, its step, the number of steps, and the numbers of
            `fs.heads.train`; with an executor as `progress("training", done, total)` after each run.

    Returns:
        Records by name ("TS S3, seed 0").

    Raises:
        FlowsimError: For bad input; if a worker is lost.
    """
    folder, chosen = Path(out), methods(names)
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    check(jobs >= 1, f"Argument `jobs` must be at least 1, but is {jobs}. Use e.g. 2.")
    check(stack >= 1, f"Argument `stack` must be at least 1, but is {stack}. Use e.g. 32.")
    check(seeds, "A study needs at least one seed. Use e.g. seeds=3.")
    executors.check(executor)
    Pools.of(settings)  # raises if data are missing, before any process starts
    runs = [(name, seed) for seed in seeds for name in chosen]
    groups = list(_groups(settings, runs, stack))
    done: dict[Run, TrainingRecord] = {}
    if executor is None:
        calls = [(_train, (settings, group, [str(folder / file_name(*run)) for run in group])) for group in groups]
        for index, records in processes.run(calls, lambda index: progress, workers=jobs, single=True):
            done |= dict(zip(groups[index], records, strict=True))
    else:
        done |= _finished(settings, runs, folder)
        missing = [left for group in groups if (left := [run for run in group if run not in done])]
        with executors.opened(executor, jobs) as pool:
            # Workers need no folder in common with this session, which writes the records.
            for index, records in executors.completed(pool, _train_silently, [(settings, group) for group in missing]):
                for run, record in zip(missing[index], records, strict=True):
                    record.save(folder / file_name(*run))
                    done[run] = record
                progress("training", len(done), len(runs))
    found = {run_name(name, seed): done[name, seed] for seed in seeds for name in chosen}
    save_results(found, folder / "runs.nc")
    return found


def _groups(settings: Training, runs: Sequence[Run], most: int) -> Iterator[list[Run]]:
    """The runs in groups of at most `most` that can share a program, in the order of their first runs."""
    alike: dict[Any, list[Run]] = {}
    for run in runs:
        own, schedule = setup(run[0], settings)
        structure: Any = run if most == 1 else structure_of(flow_of(own, schedule))
        alike.setdefault(structure, []).append(run)
    for group in alike.values():
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _finished(settings: Training, runs: Sequence[Run], folder: Path) -> dict[Run, TrainingRecord]:
    """The records in the folder of runs that have ended; raises `FlowsimError` for those of other runs."""
    found = {}
    pools = Pools.of(settings)
    for name, seed in runs:
        path, (own, schedule) = folder / file_name(name, seed), setup(name, settings.replace(seed=seed))
        if path.is_file() and (record := ended_record(path, configuration(own, schedule, pools))) is not None:
            found[name, seed] = record
    return found


def _train(
    progress: Progress, settings: Training, runs: Sequence[Run], paths: Sequence[str | None]
) -> list[TrainingRecord]:
    """The runs of a group in one program, in a process of their own."""
    own = setup(runs[0][0], settings)[0]
    schedules = [setup(name, settings)[1] for name, _ in runs]
    label = run_name(*runs[0]) if len(runs) == 1 else f"{run_name(*runs[0])} and {len(runs) - 1} more"

    def tell(run: int) -> Progress:
        if run > 0:
            return silent
        return lambda text, done, total, /, **numbers: progress(label, done, total, **numbers)

    given = [
        (schedule, seed, None if path is None else Path(path))
        for schedule, (_, seed), path in zip(schedules, runs, paths, strict=True)
    ]
    return train_together(own, given, progress_of=tell)


def _train_silently(settings: Training, runs: Sequence[Run]) -> list[TrainingRecord]:
    return _train(silent, settings, runs, [None] * len(runs))
