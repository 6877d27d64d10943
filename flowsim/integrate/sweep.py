"""`sweep`: many runs of one flow over grids of settings and seeds, batched into few compiled calls.

    runs = fs.sweep(flow, fs.initial.cones(pairs=8, dim=8),
                    over={"schedule.temperature.init": np.geomspace(0.01, 1, 20), "seed": range(8)}, t1=1e4)
    runs["modality_gap"].mean("seed")

Runs of the same structure go through one compiled program in chunks; a chunk drives one `Trajectory` per run and
batches the segments that they ask for, so that easy runs do not wait for hard ones.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import equinox as eqx
import jax
import numpy as np
from numpy.typing import ArrayLike

from flowsim.base import notice as _notice
from flowsim.base import paths as config
from flowsim.base.arrays import check, check_number, to_device, to_numpy, tracing, unstack
from flowsim.base.times import output_times
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate import executors as _executors
from flowsim.integrate.methods import Method
from flowsim.integrate.observe import observe_many
from flowsim.integrate.segment import SegmentSpec, segments
from flowsim.integrate.simulate import DEFAULT_OBSERVABLES, check_options, check_policy, versions
from flowsim.integrate.trajectory import Options, Trajectory, final_status
from flowsim.model.flow import GradientFlow, State, Unknowns, as_start, as_starts
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.pairing import Targets
from flowsim.numerics import make_room, store_programs
from flowsim.records.result import VARIABLES, Status, read_netcdf, write_netcdf

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client

SCHEMA_VERSION = 1
#: Runs that one thread works on, and that are stored together.
CHUNK = 128
#: Bytes of states that a chunk may hold before its observables are computed on the way.
_STATE_BYTES = 256 * 2**20
#: Runs are solved side by side in batches whose similarities fit into the cache: more runs cost more each.
_CACHE_BYTES, _MOST_LANES = 2**16, 64
#: Steps after which those that are ready make room for others.
_STEPS = 64

_T = TypeVar("_T")
Track = Callable[[Collection[Any], str], Iterable[Any]]


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep returns: `dataset` with the swept parameters (and `time`) as dimensions.

    `runs["modality_gap"]` is an `xarray.DataArray`; `runs["status"]` names how each run ended, `stopped_at` when;
    where a run did not get to an output time the values are NaN.
    """

    dataset: "xr.Dataset"

    def __getitem__(self, name: str) -> "xr.DataArray":
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
        """Write to netCDF (.nc), in one step."""
        return write_netcdf(self.dataset, path)

    def _repr_html_(self) -> str:
        text = repr(self).replace("<", "&lt;").replace(chr(10), "<br>")
        return f"<p>{text}</p>{self.dataset._repr_html_()}"

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
    precision: Literal["float64", "float32"] = "float64",
    chunk: int = CHUNK,
    workers: int | None = None,
    executor: "Executor | Client | str | None" = None,
    track: Track | None = None,
) -> SweepResult:
    """Simulate `flow` for every combination of the values in `over` (`mode="zip"`: for values side by side).

    - `over`: path -> values. Paths of the flow ("schedule.temperature.init", "pairing", ...), of the recipe
      ("start.height"), "start" itself, and "seed". Numbers share one compiled program; values that change the
      structure (objects, preset names, numbers of pairs) cost one compilation each.
    - `to`: a `.zarr` folder that is filled as chunks finish; the same call resumes where it was stopped.
    - `chunk`: runs per compiled call. `workers`: threads (default: one per core). `track(jobs, text)`: yields the
      jobs it is given and may report how far they are.
    - `executor`: where chunks are computed instead of in threads: a `dask.distributed.Client` or its address
      ("tcp://host:8786"), any `concurrent.futures.Executor`, or "processes:N" for N processes of this machine.
      This session alone writes to `to`; whatever is killed, the same call goes on with the chunks that are missing.
      Same versions, `XLA_FLAGS` and `chunk`: same results to the last bit, whatever computes them.
    - all else as in `simulate`. Runs never raise: `status` says how each one ended.

    Raises `FlowsimError` for bad input, before anything is computed.

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

    check_options(flow, rtol, atol, method, max_steps, seed, precision, observables)
    _executors.check(executor)
    check(mode in ("product", "zip"), f"Argument `mode` must be 'product' or 'zip', but is {mode!r}.")
    times = output_times(t1, ts)
    horizon_ = float(times[-1]) if horizon is None else float(horizon)
    check_number("horizon", horizon_, positive=True, cure="Use the flow time at which the schedule ends.")
    if precision == "float32":
        check(times[-1] <= 1e6, "`precision='float32'` cannot hold horizons beyond t1 = 1e6. Use 'float64'.")
        rtol, atol = max(rtol, 1e-5), max(atol, 1e-7)
    grid = _Grid(over, mode)
    jobs = [_job(flow, start, seed, values) for values in grid.points()]
    for job in dict(zip(_structures(jobs), jobs, strict=True)).values():
        job.flow.place(as_start(job.start, job.seed))  # refuses a start that does not fit
    for flow_ in {id(job.flow): job.flow for job in jobs}.values():
        check_policy(flow_)
    settings = {
        "flow": flow.to_config(), "over": grid.described(), "mode": mode, "seed": seed, "horizon": horizon_,
        "start": config.to_config(start) if isinstance(start, AbstractRecipe) else _digest(start),
        "rtol": rtol, "atol": atol, "method": method, "precision": precision, "observables": list(observables),
        "max_steps": max_steps,
    }  # fmt: skip
    options = Options(rtol, atol, method, max_steps, tuple(observables), np.dtype(precision), seed)
    store = _Store(Path(to), len(jobs), times, observables, settings) if to is not None else None
    begin = time.perf_counter()
    with _notice.compiling():
        found = _run(jobs, times, horizon_, options, chunk, workers, executor, track, store)
    attrs = {
        "kind": "flowsim sweep", "schema_version": SCHEMA_VERSION, "config": json.dumps(settings),
        "versions": json.dumps(versions()), "seconds": time.perf_counter() - begin,
    }  # fmt: skip
    data: dict[str, Any] = {}
    for name, values in found.items():
        dims = (*grid.dims, "time") if values.ndim == 2 else grid.dims
        _, symbol = VARIABLES.get(name, (name, name.replace("_", " ")))
        data[name] = (dims, values.reshape(*grid.shape, *values.shape[1:]), {"long_name": symbol})
    coords = {**grid.coords(), "time": ("time", times, {"long_name": "flow time $t$"})}
    return SweepResult(xr.Dataset(data, coords, attrs))


def load_sweep(path: str | os.PathLike[str]) -> SweepResult:
    """Read a sweep written by `SweepResult.save`. Raises `FlowsimError` for foreign files."""
    dataset = read_netcdf(path)
    check(
        dataset.attrs.get("kind") == "flowsim sweep",
        f"{str(path)!r} is not a flowsim sweep. Give a file written by `SweepResult.save`.",
    )
    return SweepResult(dataset)


# --- the grid -----------------------------------------------------------------------------------------


class _Grid:
    """Names, values and shape of what is swept."""

    def __init__(self, over: Mapping[str, Iterable[Any]], mode: str) -> None:
        check(len(over) > 0, 'Nothing to sweep. Give e.g. over={"seed": range(8)}.')
        self.over = {path: _values(path, values) for path, values in over.items()}
        lengths = {len(values) for values in self.over.values()}
        self.zipped = mode == "zip"
        check(
            not self.zipped or len(lengths) == 1,
            f"With mode='zip' all values need the same length, but have {sorted(lengths)}. "
            "Give as many of each, or use mode='product'.",
        )
        # The path "loss" leads to an object, the observable of that name is a number.
        self.names = {path: f"flow.{path}" if path in VARIABLES else path for path in self.over}
        self.dims = ("run",) if self.zipped else tuple(self.names.values())
        self.shape = (lengths.pop(),) if self.zipped else tuple(len(values) for values in self.over.values())

    def points(self) -> Iterable[dict[str, Any]]:
        combine = zip(*self.over.values(), strict=True) if self.zipped else itertools.product(*self.over.values())
        for values in combine:
            yield dict(zip(self.over, values, strict=True))

    def coords(self) -> dict[str, Any]:
        return {
            name: ("run" if self.zipped else name, np.asarray([_label(value) for value in self.over[path]]))
            for path, name in self.names.items()
        }

    def described(self) -> dict[str, Any]:
        return {
            path: [config.to_config(v) if isinstance(v, eqx.Module) else _label(v) for v in values]
            for path, values in self.over.items()
        }


def _values(path: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise FlowsimError(f"The values of {path!r} must be a list, but are {values!r}. Use e.g. [{values!r}].")
    found = list(np.asarray(values) if isinstance(values, jax.Array) else values)
    check(len(found) > 0, f"There are no values for {path!r}. Give at least one.")
    return found


def _label(value: Any) -> Any:
    """A coordinate for a value: itself, or a short text for an object."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and np.ndim(value) == 0:
        return value.item()
    if isinstance(value, Start):
        return f"Start {_digest(value)['sha256'][:8]}"
    if not isinstance(value, eqx.Module):
        return value if isinstance(value, (bool, int, float, str)) else str(value)
    fields = dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
    inner = ", ".join(f"{f.name}={_short(getattr(value, f.name))}" for f in fields if f.init)
    return f"{type(value).__name__}({inner})"


def _digest(start: Start) -> dict[str, Any]:
    """Which arrays a start holds, in few words."""
    arrays = {f.name: getattr(start, f.name) for f in dataclasses.fields(start)}
    text = json.dumps({name: config.to_config(array) for name, array in arrays.items()})
    return {"kind": "Start", "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _short(value: Any) -> str:
    value = _label(value)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


@dataclasses.dataclass(frozen=True)
class _Job:
    flow: GradientFlow
    start: Start | AbstractRecipe
    seed: int


def _job(flow: GradientFlow, start: Start | AbstractRecipe, seed: int, values: dict[str, Any]) -> _Job:
    values = dict(values)
    seed = values.pop("seed", seed)
    check(
        isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32,
        f"Seeds must be whole numbers from 0 to 2**32 - 1, but one is {seed!r}. Use e.g. range(8).",
    )
    start = values.pop("start", start)
    inner = {path.removeprefix("start."): v for path, v in values.items() if path.startswith("start.")}
    if inner:
        check(
            isinstance(start, AbstractRecipe), "Paths into `start` need a recipe, such as fs.initial.cones(), not rows."
        )
        start = config.replace(start, inner)
    outer = {path: v for path, v in values.items() if not path.startswith("start.")}
    return _Job(flow.replace(**outer) if outer else flow, start, int(seed))


# --- running ------------------------------------------------------------------------------------------


def _run(
    jobs: list[_Job], ts: np.ndarray, horizon: float, options: Options, chunk: int, workers: int | None,
    executor: Any, track: Track | None, store: "_Store | None",
) -> dict[str, np.ndarray]:  # fmt: skip
    check(chunk >= 1, f"Argument `chunk` must be at least 1, but is {chunk}. Use e.g. {CHUNK}.")
    found = _Found(len(jobs), len(ts), options.observables) if store is None else store.found
    groups: dict[Any, list[int]] = defaultdict(list)
    for index, structure in enumerate(_structures(jobs)):
        groups[structure].append(index)
    # Which runs share a chunk does not depend on what is done: batches decide about the last bits.
    pieces = [part[i : i + chunk] for part in groups.values() for i in range(0, len(part), chunk)]
    pieces = [piece for piece in pieces if not found.done[piece].all()]
    if not pieces:
        return found.columns()
    with _executors.opened(executor, min(len(pieces), workers or os.cpu_count() or 1)) as pool:
        expected = versions()
        # Threads cannot be ended from outside: they look whether the sweep was called off.
        stop = threading.Event() if executor is None else None
        calls = [([jobs[i] for i in piece], ts, horizon, options, expected, stop) for piece in pieces]
        finished = _executors.completed(pool, _work, calls)
        try:
            for _ in pieces if track is None else track(pieces, "sweeping"):
                index, values = next(finished)
                found.put(pieces[index], values)
                if store is not None:
                    store.write(pieces[index])
        except BaseException:
            if stop is not None:
                stop.set()
            raise
    return found.columns()


class _CalledOff(Exception):
    """The sweep was interrupted, or another chunk failed."""


def _work(
    jobs: list[_Job], ts: np.ndarray, horizon: float, options: Options, expected: dict[str, str],
    stop: threading.Event | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """A chunk, in whatever thread or process it is computed."""
    here = versions()
    for name, version in expected.items():
        check(
            here[name] == version,
            f"A worker has {name} {here[name]}, but this session {version}. Install the same versions on both.",
        )
    store_programs()
    make_room()
    return _chunk(jobs, ts, horizon, options, _PROGRAMS, stop)


def _structures(jobs: list[_Job]) -> list[Any]:
    """Jobs with equal keys share their programs."""
    known: dict[tuple[int, int], Any] = {}  # most jobs share the objects themselves

    def structure(job: _Job) -> Any:
        leaves, tree = jax.tree.flatten(job.flow)
        recipe = jax.tree.flatten(job.start)
        shapes = tuple(np.shape(x) for x in recipe[0])
        return tree, recipe[1], shapes, tuple(np.shape(x) for x in leaves)

    for job in jobs:
        if (key := (id(job.flow), id(job.start))) not in known:
            known[key] = structure(job)
    return [known[id(job.flow), id(job.start)] for job in jobs]


class _Programs:
    """Compiles each program once, though several threads ask for it."""

    def __init__(self) -> None:
        self._locks: dict[Any, threading.Lock] = defaultdict(threading.Lock)
        self._ready: set[Any] = set()

    def __call__(self, key: Any, call: Callable[[], Any]) -> Any:
        if key in self._ready:
            return call()
        with self._locks[key]:
            out = call()
            self._ready.add(key)
        return out


#: Of this process; a worker computes many chunks.
_PROGRAMS = _Programs()


def _chunk(
    jobs: list[_Job], ts: np.ndarray, horizon: float, options: Options, programs: _Programs,
    stop: threading.Event | None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Series, status and cost of each job."""
    with jax.enable_x64(options.dtype == np.float64):
        starts: list[Start] = []
        for shared in _runs_of(jobs, lambda job: job.start):
            starts += as_starts(shared[0].start, [job.seed for job in shared])
        lanes = lanes_of(starts[0].pairs)
        states = _initial_states(jobs, starts, lanes, options)
        size = 8 * len(ts) * len(jobs) * sum(x.size for x in jax.tree.leaves(states[0].unknowns))
        kept = ts if size <= _STATE_BYTES else ts[-1:]
        trajectories = [
            Trajectory(job.flow, state, 0.0, ts, kept, horizon, options._replace(seed=job.seed), _STEPS)
            for job, state in zip(jobs, states, strict=True)
        ]
        structure = _structures(jobs[:1])[0]
        while True:
            asked: dict[SegmentSpec, list[tuple[Trajectory, Any]]] = defaultdict(list)
            for trajectory in trajectories:
                if (request := trajectory.request()) is not None:
                    asked[request[1]].append((trajectory, request[0]))
            if not asked:
                break
            for how, batch in ((h, part) for h, all_ in asked.items() for part in _parts(all_, lanes)):
                if stop is not None and stop.is_set():
                    raise _CalledOff
                size = _padded(len(batch), lanes)
                flows = _stack([trajectory.flow for trajectory, _ in batch], size, options.dtype)
                tasks = _stack([task for _, task in batch], size, options.dtype)
                outs = programs((structure, how, size), lambda f=flows, k=tasks, h=how: to_numpy(segments(f, k, h)))
                for (trajectory, _), out in zip(batch, unstack(outs, range(len(batch))), strict=True):
                    trajectory.absorb(out)
        _observe(trajectories, lanes, options, structure, programs)
    return [
        {
            **trajectory.series,
            "status": final_status(trajectory.status, trajectory.reached).name,
            "stopped_at": trajectory.t,
            "steps": trajectory.stats["steps"],
        }
        for trajectory in trajectories
    ]


def _observe(trajectories: list[Trajectory], lanes: int, options: Options, structure: Any, programs: _Programs) -> None:
    held = [(trajectory, seen) for trajectory in trajectories if (seen := trajectory.seen()) is not None]
    for waiting in _parts(held, lanes):
        size = _padded(len(waiting), lanes)
        flows = _stack([trajectory.flow for trajectory, _ in waiting], size, options.dtype)
        stacked = _stack([seen for _, seen in waiting], size, options.dtype)
        call = lambda f=flows, s=stacked: to_numpy(observe_many(f, s, options.observables))  # noqa: E731
        found = programs((structure, "observe", size), call)
        for i, (trajectory, _) in enumerate(waiting):
            trajectory.fill({name: values[i] for name, values in found.items()})


def lanes_of(pairs: int) -> int:
    """SegmentSpec many runs of so many pairs go through one compiled call: a power of two."""
    fit = max(1, _CACHE_BYTES // (8 * pairs**2))
    return min(_MOST_LANES, 1 << (fit.bit_length() - 1))


def _parts(items: Sequence[Any], lanes: int) -> list[Sequence[Any]]:
    return [items[i : i + lanes] for i in range(0, len(items), lanes)]


def _padded(count: int, lanes: int) -> int:
    """Batches are padded to one of three sizes, so that few programs are compiled."""
    return next(size for size in (1, min(8, lanes), lanes) if size >= count)


def _stack(trees: Sequence[Any], size: int, dtype: Any) -> Any:
    """Trees of the same structure along a new first axis, the last repeated up to `size`."""
    trees = [*trees, *[trees[-1]] * (size - len(trees))]
    if all(tree is trees[0] for tree in trees):
        return to_device(jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], size, axis=0), trees[0]), dtype)
    return to_device(jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees), dtype)


def _runs_of(items: Iterable[_T], key: Callable[[_T], object]) -> Iterable[list[_T]]:
    """Neighbours whose key is the same object."""
    return (list(group) for _, group in itertools.groupby(items, key=lambda item: id(key(item))))


@eqx.filter_jit
def _complete(flows: GradientFlow, placed_unknowns: Unknowns, constants: Any, seeds: Any) -> State:
    return eqx.filter_vmap(lambda f, m, c, s: f.complete(m, c, s))(flows, placed_unknowns, constants, seeds)


def _initial_states(jobs: list[_Job], starts: list[Start], lanes: int, options: Options) -> list[State]:
    states = []
    for part in _parts(list(zip(jobs, starts, strict=True)), lanes):
        placed = []
        for shared in _runs_of(part, lambda item: item[0].flow):
            placed += shared[0][0].flow.place_all([start for _, start in shared])
        if not part[0][0].flow.draws:
            # What `GradientFlow.complete` makes of it; looking that up takes longer than all of this.
            states += [State(unknowns, constants, Targets(), None) for unknowns, constants in placed]
            continue
        size = _padded(len(part), lanes)
        flows = _stack([job.flow for job, _ in part], size, options.dtype)
        placed_unknowns = _stack([unknowns for unknowns, _ in placed], size, options.dtype)
        constants = _stack([constants for _, constants in placed], size, options.dtype)
        seeds = np.asarray([job.seed for job, _ in part] + [0] * (size - len(part)), np.uint32)
        found = to_numpy(_complete(flows, placed_unknowns, constants, seeds))
        states += unstack(found, range(len(part)))
    return states


# --- what is found ------------------------------------------------------------------------------------


class _Found:
    """Columns of results by run."""

    def __init__(self, runs: int, times: int, observables: Sequence[str]) -> None:
        self.series = {name: np.full((runs, times), np.nan) for name in observables}
        self.known: set[str] = set()
        self.status = np.full(runs, "", dtype="<U24")
        self.stopped_at = np.full(runs, np.nan)
        self.steps = np.zeros(runs, np.int64)

    @property
    def done(self) -> np.ndarray:
        return self.status != ""

    def put(self, indices: list[int], values: list[dict[str, Any]]) -> None:
        for index, one in zip(indices, values, strict=True):
            for name, column in self.series.items():
                if name in one:
                    column[index] = one[name]
                    self.known.add(name)
            self.status[index], self.stopped_at[index], self.steps[index] = (
                one["status"],
                one["stopped_at"],
                one["steps"],
            )

    def columns(self) -> dict[str, np.ndarray]:
        """Everything; without observables that no run has."""
        series = {name: values for name, values in self.series.items() if name in self.known}
        return {**series, "status": self.status, "stopped_at": self.stopped_at, "steps": self.steps}


class _Store:
    """A Zarr folder that is filled run by run and tells what is already there."""

    def __init__(
        self, path: Path, runs: int, times: np.ndarray, observables: Sequence[str], settings: dict[str, Any]
    ) -> None:
        check(path.suffix == ".zarr", f"Sweeps are stored in a .zarr folder, but got {path.name!r}. Use e.g. run.zarr.")
        try:
            import zarr
        except ImportError:
            raise FlowsimError("Storing a sweep needs zarr. Install it: pip install 'flowsim[sweep]'.") from None
        text = json.dumps({**settings, "times": times.tolist()}, sort_keys=True)
        self.found = _Found(runs, len(times), observables)
        fresh = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        try:
            self.group = zarr.open_group(str(path), mode="a" if fresh else "r+")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "something else is there"
            raise FlowsimError(f"Cannot write {str(path)!r}: {reason}. Choose another folder.") from None
        attrs = self.group.attrs
        if not fresh:
            check(
                attrs.get("config") == text,
                f"{str(path)!r} holds another sweep. Give the settings it was made with, or another folder.",
            )
            self.arrays: dict[str, Any] = dict(self.group.arrays())
            self._read()
            return
        step, create = min(CHUNK, runs), self.group.create_array
        size: Any = {"shape": (runs,), "chunks": (step,)}
        table: Any = {"shape": (runs, len(times)), "chunks": (step, len(times))}
        self.arrays = {name: create(name, **table, dtype="float64", fill_value=np.nan) for name in observables}
        self.arrays["status"] = create("status", **size, dtype="int8", fill_value=-1)
        self.arrays["stopped_at"] = create("stopped_at", **size, dtype="float64", fill_value=np.nan)
        self.arrays["steps"] = create("steps", **size, dtype="int64", fill_value=0)
        attrs["known"] = []
        attrs["config"] = text

    def _read(self) -> None:
        names = [status.name for status in Status]
        self.found.status[:] = [names[c] if c >= 0 else "" for c in self.arrays["status"][:]]
        self.found.stopped_at[:] = self.arrays["stopped_at"][:]
        self.found.steps[:] = self.arrays["steps"][:]
        for name, column in self.found.series.items():
            column[:] = self.arrays[name][:]
        self.found.known = set(self._known)

    @property
    def _known(self) -> list[Any]:
        known = self.group.attrs["known"]
        assert isinstance(known, list)
        return known

    def write(self, indices: list[int]) -> None:
        """Store these runs; their status last, so that what is stopped in between is computed again."""
        where = np.asarray(indices)
        found = self.found
        if found.known != set(self._known):
            self.group.attrs["known"] = sorted(found.known)
        names = [status.name for status in Status]
        status = np.asarray([names.index(s) for s in found.status[where]], np.int8)
        for name, column in (found.series | {"stopped_at": found.stopped_at, "steps": found.steps}).items():
            self.arrays[name].oindex[where] = column[where]
        self.arrays["status"].oindex[where] = status
