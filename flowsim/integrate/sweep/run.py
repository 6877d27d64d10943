"""`sweep`: many runs of one flow over grids of settings and seeds, batched into a few compiled calls.

    runs = fs.sweep(flow, fs.initial.cones(pairs=8, dim=8),
                    over={"schedule.temperature.init": np.geomspace(0.01, 1, 20), "seed": range(8)}, t1=1e4)
    runs["modality_gap"].mean("seed")

Runs of the same structure share one compiled program and are computed in chunks. A chunk drives one `Trajectory` per
run and batches the segments that these request, so that easy runs do not wait for hard ones.
"""

import dataclasses
import html
import importlib
import json
import os
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from flowsim.base import notice, paths
from flowsim.base.checks import check
from flowsim.base.code import code_digest, is_users
from flowsim.base.modules import parts_in, tracing
from flowsim.base.times import output_times
from flowsim.errors import unknown_name
from flowsim.integrate.methods import Method
from flowsim.integrate.options import (
    DEFAULT_OBSERVABLES,
    Options,
    Precision,
    check_policy,
    check_run,
    horizon_of,
    solve_options,
)
from flowsim.integrate.sweep import executors
from flowsim.integrate.sweep.batch import PROGRAMS, solve_chunk
from flowsim.integrate.sweep.grid import Grid, Job, digest, job_of, structures
from flowsim.integrate.sweep.store import CHUNK, Found, Store
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.recipe import as_start
from flowsim.numerics import make_room, store_programs
from flowsim.observables.table import REGISTRY, entry
from flowsim.progress import Progress, silent, track
from flowsim.provenance import versions
from flowsim.records.netcdf import read_netcdf, write_netcdf
from flowsim.records.status import Status

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

SCHEMA_VERSION = 1


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """The result of a sweep: an xarray dataset with the swept parameters and `time` as dimensions.

    `runs["modality_gap"]` is an `xarray.DataArray`. Values at output times that a run did not reach are NaN.

    Attributes:
        dataset: Observables over the swept parameters and `time`; `status`, `stopped_at` (flow time) and `steps` over
            the swept parameters. With `mode="zip"` the swept parameters are coordinates of one dimension, `run`.
    """

    dataset: "xr.Dataset"

    def __getitem__(self, name: str) -> "xr.DataArray":
        """A variable by name; raises `FlowsimError` for an unknown one."""
        if name not in self.dataset:
            raise unknown_name("observable", name, [str(n) for n in self.dataset])
        return self.dataset[name]

    def _ipython_key_completions_(self) -> list[str]:
        return [str(name) for name in self.dataset]

    def to_xarray(self) -> "xr.Dataset":
        """The dataset itself."""
        return self.dataset

    @property
    def counts(self) -> dict[str, int]:
        """Number of runs by status."""
        return dict(Counter(self.dataset["status"].to_numpy().ravel().tolist()))

    @property
    def ok(self) -> bool:
        """Whether every run covered all output times."""
        return all(Status[name].covered for name in self.counts)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the sweep to a netCDF file, atomically.

        Args:
            path: The file; its name must end in .nc.

        Returns:
            The path.

        Raises:
            FlowsimError: If the name ends otherwise or the file cannot be written.
        """
        return write_netcdf(self.dataset, path)

    def _repr_html_(self) -> str:
        return f"<p>{html.escape(repr(self))}</p>{self.dataset._repr_html_()}"

    def __repr__(self) -> str:
        sizes = " x ".join(f"{n} {d}" for d, n in self.dataset.sizes.items())
        ended = ", ".join(f"{n} {name}" for name, n in self.counts.items())
        return f"SweepResult({sizes}; {ended}; {', '.join(str(n) for n in self.dataset)})"


@tracing()
def sweep(
    flow: GradientFlow,
    start: Start | AbstractRecipe,
    over: Mapping[str, Iterable[Any]],
    t1: float | None = None,
    ts: "ArrayLike | None" = None,
    *,
    mode: Literal["product", "zip"] = "product",
    to: str | os.PathLike[str] | None = None,
    seed: int = 0,
    horizon: float | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    method: Method | None = None,
    max_steps: int = 200_000,
    observables: Sequence[str] = DEFAULT_OBSERVABLES,
    precision: Precision = "float64",
    chunk: int = CHUNK,
    workers: int | None = None,
    executor: "Executor | Client | str | None" = None,
    progress: Progress = silent,
) -> SweepResult:
    """Simulate a flow for every combination of the values in `over`.

    A run that stops early raises nothing: `status` shows how each run ended. With the same versions, `XLA_FLAGS` and
    `chunk`, results are the same to the last bit, wherever they are computed.

    Args:
        flow: As in `fs.simulate`.
        start: A `Start` or a recipe (drawn with each run's seed).
        over: Path -> values. A path is a field of the flow ("schedule.temperature.init", "pairing", ...) or of the
            recipe ("start.height"), "start" itself, or "seed". Numbers share one compiled program; values that change
            the structure (objects, preset names, numbers of pairs) are compiled once each.
        t1: As in `fs.simulate`.
        ts: As in `fs.simulate`.
        mode: "product" for all combinations, or "zip" for the first values together, the second values together, ...
        to: A `.zarr` folder that is filled as chunks finish. The same call computes only the chunks that are missing.
        seed: Seed of every run if "seed" is not swept.
        horizon: As in `fs.simulate`.
        rtol: As in `fs.simulate`.
        atol: As in `fs.simulate`.
        method: As in `fs.simulate`, except that the explicit method is Tsit5 for `rtol` ≥ 1e-7.
        max_steps: As in `fs.simulate`.
        observables: As in `fs.simulate`.
        precision: As in `fs.simulate`.
        chunk: Number of runs that are computed, and stored in `to`, together.
        workers: Number of threads. Default: one per core.
        executor: Where chunks are computed instead of in threads: a `dask.distributed.Client` or its address
            ("tcp://host:8786"), any `concurrent.futures.Executor`, or "processes:N" for N processes on this machine.
            Only this session writes to `to`.
        progress: Called as `progress("sweeping", done, total)` before the first chunk and after each.

    Returns:
        Observables over the swept parameters and flow time, and how each run ended.

    Raises:
        FlowsimError: If the input is invalid (nothing is computed then), or if workers are lost or run other versions.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> runs = fs.sweep(flow, start, {"schedule.temperature.init": [0.04, 0.07]}, t1=1e5)
        >>> runs["modality_gap"].isel(time=-1).round(3).values.tolist()
        [0.602, 0.541]
        >>> runs.counts
        {'COMPLETED': 2}
    """
    import xarray as xr

    check_run(flow, seed, precision, observables)
    executors.check(executor)
    check(mode in ("product", "zip"), f"Argument `mode` must be 'product' or 'zip', but is {mode!r}.")
    times = output_times(t1, ts)
    horizon_ = horizon_of(horizon, float(times[-1]))
    options = solve_options(
        rtol=rtol,
        atol=atol,
        method=method,
        max_steps=max_steps,
        observables=observables,
        precision=precision,
        seed=seed,
        last=float(times[-1]),
    )
    grid = Grid(over, mode)
    jobs = [job_of(flow, start, seed, values) for values in grid.points()]
    for job in dict(zip(structures(jobs), jobs, strict=True)).values():
        job.flow.place(as_start(job.start, job.seed))  # raises if the start does not fit
    for flow_ in {id(job.flow): job.flow for job in jobs}.values():
        check_policy(flow_)
    settings = {
        "flow": flow.to_config(), "over": grid.described(), "mode": mode, "seed": seed, "horizon": horizon_,
        "start": paths.to_config(start) if isinstance(start, AbstractRecipe) else digest(start),
        "rtol": options.rtol, "atol": options.atol, "method": method, "precision": precision,
        "observables": list(observables), "max_steps": max_steps,
    }  # fmt: skip
    own = users_code(jobs, observables)
    executors.check_importable(executor, own)
    # Threads have what this session has.
    modules = () if executor is None else tuple(sorted({thing.__module__ for thing in own.values()} - {"__main__"}))
    settings["code"] = {name: code_digest(thing) for name, thing in own.items()}
    store = Store(Path(to), len(jobs), times, observables, settings) if to is not None else None
    begin = time.perf_counter()
    with notice.compiling():
        found = _run(jobs, times, horizon_, options, chunk, workers, executor, progress, store, modules)
    attrs = {
        "kind": "flowsim sweep", "schema_version": SCHEMA_VERSION, "config": json.dumps(settings),
        "versions": json.dumps(versions()), "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    data: dict[str, Any] = {}
    for name, values in found.items():
        dims = (*grid.dims, "time") if values.ndim == 2 else grid.dims
        data[name] = (dims, values.reshape(*grid.shape, *values.shape[1:]), {"long_name": entry(name).label})
    coords = {**grid.coords(), "time": ("time", times, {"long_name": "flow time $t$"})}
    return SweepResult(xr.Dataset(data, coords, attrs))


def users_code(jobs: list[Job], observables: Sequence[str]) -> dict[str, Any]:
    """The classes and observables that a user defined and the runs use, by name."""
    found: dict[str, Any] = {name: REGISTRY[name].function for name in observables if not REGISTRY.is_ours(name)}
    for job in dict(zip(structures(jobs), jobs, strict=True)).values():
        for part in (part for whole in (job.flow, job.start) for part in parts_in(whole)):
            found |= part.functions()
            if is_users(type(part)):
                found[type(part).__name__] = type(part)
    return dict(sorted(found.items()))


def load_sweep(path: str | os.PathLike[str]) -> SweepResult:
    """Read a sweep from a file.

    Args:
        path: A netCDF file (.nc) written by `SweepResult.save`.

    Returns:
        The sweep.

    Raises:
        FlowsimError: If the file is missing, unreadable, or not a flowsim sweep.
    """
    dataset = read_netcdf(path)
    check(
        dataset.attrs.get("kind") == "flowsim sweep",
        f"{str(path)!r} is not a flowsim sweep. Give a file written by `SweepResult.save`.",
    )
    return SweepResult(dataset)


def _run(
    jobs: list[Job],
    ts: np.ndarray,
    horizon: float,
    options: Options,
    chunk: int,
    workers: int | None,
    executor: Any,
    progress: Progress,
    store: "Store | None",
    modules: tuple[str, ...],
) -> dict[str, np.ndarray]:
    check(chunk >= 1, f"Argument `chunk` must be at least 1, but is {chunk}. Use e.g. {CHUNK}.")
    found = Found(len(jobs), len(ts), options.observables) if store is None else store.found
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, structure in enumerate(structures(jobs)):
        groups[structure].append(index)
    # Chunks must not depend on which runs are done: the runs in a batch affect the last bits of the results.
    pieces = [part[i : i + chunk] for part in groups.values() for i in range(0, len(part), chunk)]
    pieces = [piece for piece in pieces if not found.done[piece].all()]
    if not pieces:
        return found.columns()
    with executors.opened(executor, min(len(pieces), workers or os.cpu_count() or 1)) as pool:
        expected = versions()
        # Threads cannot be stopped from outside: they check whether the sweep was cancelled.
        stop = threading.Event() if executor is None else None
        calls = [([jobs[i] for i in piece], ts, horizon, options, expected, stop, modules) for piece in pieces]
        finished = executors.completed(pool, _work, calls)
        try:
            for _ in track(pieces, progress, "sweeping"):
                index, values = next(finished)
                found.put(pieces[index], values)
                if store is not None:
                    store.write(pieces[index])
        except BaseException:
            if stop is not None:
                stop.set()
            raise
    return found.columns()


def _work(
    jobs: list[Job],
    ts: np.ndarray,
    horizon: float,
    options: Options,
    expected: dict[str, str],
    stop: threading.Event | None,
    modules: tuple[str, ...],
) -> list[dict[str, Any]]:
    """Compute a chunk; runs in a thread, a process or a worker."""
    # They define classes and observables of a user, which are known by name.
    for module in modules:
        if module not in sys.modules:
            importlib.import_module(module)
    here = versions()
    for name, version in expected.items():
        check(
            here[name] == version,
            f"A worker has {name} {here[name]}, but this session {version}. Install the same versions on both.",
        )
    store_programs()
    make_room()
    return solve_chunk(jobs, ts, horizon, options, PROGRAMS, stop)
