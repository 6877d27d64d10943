"""What a solve returns: labelled time series, snapshots of the embeddings, status, cost and provenance."""

import contextlib
import dataclasses
import enum
import html
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.base.arrays import check
from flowsim.base.files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.model.initial import Start

if TYPE_CHECKING:
    import xarray as xr

    import flowsim

SCHEMA_VERSION = 1
FLOW_TIME = "flow time"
SUM_OF_RATES = "sum of learning rates"

#: name -> (description, symbol for plots)
VARIABLES: dict[str, tuple[str, str]] = {
    "modality_gap": ("distance of the modality centres", r"modality gap $\Delta$"),
    "temperature": ("temperature of the softmax", r"temperature $\tau$"),
    "inverse_temperature": ("inverse temperature", r"inverse temperature $\beta$"),
    "raw_temperature": ("raw parameter of the learnable temperature", r"raw temperature $\nu$"),
    "bias": ("bias of the sigmoid loss", r"bias $b$"),
    "gamma": ("signed cone height", r"cone height $\gamma$"),
    "log_gamma": ("logarithm of the absolute cone height", r"$\ln|\gamma|$"),
    "loss": ("loss that the flow descends", r"loss $\mathcal{L}$"),
    "margin": ("smallest advantage of a pair over a non-pair", r"margin $\alpha$"),
    "matched_fraction": ("fraction of pairs that are nearest in both directions", "matched fraction"),
    "doubly_stochastic_defect": ("distance of the softmaxes from double stochasticity", "doubly stochastic defect"),
    "train_loss": ("loss of the batch of each step", r"training loss $\mathcal{L}$"),
    "train_temperature": ("temperature in each step", r"temperature $\tau$"),
    "train_modality_gap": ("distance of the modality centres in the batch of each step", r"batch gap $\Delta$"),
    "learning_rate": ("learning rate of each step", r"learning rate $\eta$"),
}


#: Names of variables in files of older versions.
_FORMER = {"raw": "raw_temperature", "snapshot_raw": "snapshot_raw_temperature"}


class Status(enum.Enum):
    """How a solve ended, as a sentence."""

    COMPLETED = "Completed: reached the last output time."
    STEADY = "Steady state: nothing changes any more; later slots hold the steady value."
    GAMMA_ONE = (
        "Stopped: the cone height γ reached 1, where parallel cones collapse to two points and the ansatz "
        "ends; later slots are NaN. Use a smaller γ0, a larger temperature, a matched start, or `Sphere`."
    )
    TEMPERATURE_INFINITE = (
        "Stopped: the inverse temperature β reached 0, where τ is infinite; later slots are NaN. "
        "Use a parametrization that keeps β positive, such as Exp()."
    )
    OUTPUT_ZERO = (
        "Stopped: an output of an encoder shrank to 0, where its row has no direction; later slots are NaN. Use "
        "embeddings of more dimensions, a shorter `t1`, or an optimizer, whose steps pass such points."
    )
    LEFT_DOMAIN = (
        "Stopped: the run left the domain of its geometry or temperature policy; later slots are NaN. Use a shorter "
        "`t1`."
    )
    MAX_STEPS = (
        "Failed: the step limit was reached; later slots are NaN. Raise `max_steps`, loosen `rtol`, or shorten `t1`."
    )
    PRECISION = (
        "Stopped: the forces cancel to rounding, and double precision cannot follow the flow any further; "
        "later slots are NaN. Use a shorter `t1`."
    )
    NON_FINITE = "Failed: the vector field is not finite; later slots are NaN. Check the start and the temperature."
    PREDICTED = "Predicted: closed form, not integrated."
    UNFINISHED = "Unfinished: training has not reached its last step; run the same command again to go on."
    SADDLE = (
        "Rest on a saddle: nothing changes any more, but a small perturbation would grow; later slots hold the value. "
        "Perturb the start to see where the flow leads."
    )
    INCOMPLETE = (
        "Failed: output times were passed without a value, which is an error in flowsim; their slots are NaN. Please "
        "report it with the settings of the run."
    )
    DIVERGED = "Failed: the training loss is not finite. Use a smaller learning rate, a longer warm-up, or fp32."

    @property
    def covered(self) -> bool:
        """Whether every output slot holds a value."""
        return self in (Status.COMPLETED, Status.STEADY, Status.SADDLE, Status.PREDICTED)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Status of one solve: `code`, its `sentence`, and `stopped_at`, the flow time where it ended."""

    code: Status
    stopped_at: float
    method: str

    @property
    def sentence(self) -> str:
        return self.code.value

    @property
    def ok(self) -> bool:
        return self.code.covered

    def __repr__(self) -> str:
        return f"{self.code.name} at t = {self.stopped_at:.6g} ({self.method}). {self.sentence}"


class SimulationStopped(FlowsimError):
    """A solve did not reach its last output time; `result` holds what was computed."""

    def __init__(self, result: "Result") -> None:
        self.result = result
        super().__init__(
            f"{result.status.sentence} (t = {result.status.stopped_at:.6g}; `throw=False` returns the part before.)"
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state at one time.

    `image`, `text`: unit rows (n, D) as a model would output them (None if only similarities are known);
    `gamma`: cone height or None; `start`: what continues the flow from here; `values`: observables.
    """

    time: float
    start: Start
    raw_temperature: float | None
    bias: float | None
    values: dict[str, float]

    @property
    def image(self) -> np.ndarray | None:
        return None if self.start.image is None else self.start.rows()[0]

    @property
    def text(self) -> np.ndarray | None:
        return None if self.start.image is None else self.start.rows()[1]

    @property
    def gamma(self) -> float | None:
        return None if self.start.gamma is None else float(self.start.gamma)

    def __getitem__(self, name: str) -> float:
        if name not in self.values:
            raise unknown_name("observable", name, self.values)
        return self.values[name]

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v:.5g}" for k, v in self.values.items())
        return f"Snapshot(t={self.time:.6g}, {inner})"


@dataclasses.dataclass(frozen=True)
class Result:
    """Observables over time with the settings that produced them.

    `result["modality_gap"]` is an `xarray.DataArray` over `time` (flow time); `result.at(t)` and
    `result.final` are snapshots with embeddings; `result.to_xarray()` is everything. All arrays are NumPy.

    - `time` (T,), `series` name -> (T,); `clock`: what `time` counts, "flow time" (the flow, plain
      SGD) or "sum of learning rates" (other optimizers)
    - records of training also have `coordinates` name -> (T,) (step, epoch, progress of every evaluation) and
      `training` name -> (number of steps,), one value per optimizer step, along `train_step`
    - `snapshot_time` (S,), `snapshots` name -> (S, ...), `constants` name -> array
    - `status`, `stats` (steps, evaluations, seconds), `config` (flow, start, options), `versions`
    - `flow`: the flow of the run, with which `fs.simulate(result.flow, result, t1=...)` goes on
    - `reasons`: why an observable is NaN
    - `memory`: state of the optimizer at the end, arrays in the order of its tree; empty for flows

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> result = fs.simulate(flow, start, t1=1e5)
        >>> result["modality_gap"].dims, result.final.image.shape
        (('time',), (5, 3))
        >>> result.status.code.name
        'COMPLETED'
    """

    time: np.ndarray
    series: dict[str, np.ndarray]
    status: Outcome
    config: dict[str, Any]
    stats: dict[str, float]
    versions: dict[str, str]
    snapshot_time: np.ndarray
    snapshots: dict[str, np.ndarray]
    constants: dict[str, np.ndarray]
    reasons: dict[str, str] = dataclasses.field(default_factory=dict)
    resolve: Callable[["Result", float], "Result"] | None = dataclasses.field(default=None, repr=False)
    clock: str = FLOW_TIME
    coordinates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    training: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    memory: tuple[np.ndarray, ...] = ()

    @property
    def names(self) -> list[str]:
        """Names of the recorded observables."""
        return [*self.series, *self.training]

    def __getitem__(self, name: str) -> "xr.DataArray":
        if name not in self.series and name not in self.training:
            raise unknown_name("observable", name, self.names)
        return self.to_xarray()[name]

    def _ipython_key_completions_(self) -> list[str]:
        return self.names

    @property
    def flow(self) -> "flowsim.GradientFlow":
        """The flow of this run, read from its settings; `fs.simulate(run.flow, run, t1=...)` goes on with a run.

        Raises `FlowsimError` for records of training, which have none.
        """
        # Results know nothing of flows; the top level knows both.
        import flowsim

        if "flow" not in self.config:
            raise FlowsimError(
                "This result has no flow: it is a record of training. For a simulation from its embeddings use "
                "fs.compare(record), or fs.simulate(flow, record.at(t).start, t1=...) with a flow of yours."
            )
        return flowsim.GradientFlow.from_config(self.config["flow"])

    def _snapshot(self, index: int) -> Snapshot:
        t = float(self.snapshot_time[index])
        get = {**self.constants, **{k: np.asarray(v[index]) for k, v in self.snapshots.items()}}
        raw, bias = (None if (x := get.pop(name, None)) is None else float(x) for name in ("raw_temperature", "bias"))
        slot = np.flatnonzero(self.time == t)
        values = {k: float(v[slot[0]]) for k, v in self.series.items()} if slot.size else {}
        return Snapshot(t, Start(**get), raw, bias, values)

    def at(self, t: float) -> Snapshot:
        """The state at flow time t: a stored snapshot, or integrated exactly from the one before.

        Raises `FlowsimError` if t is no number or lies outside the run, or if the state cannot be had.
        """
        check(
            np.ndim(t) == 0 and np.asarray(t).dtype.kind in "fiu",
            f"Argument `t` must be a number, but is {t!r}. Use a flow time, e.g. 4.0.",
        )
        if not len(self.snapshot_time):
            raise FlowsimError("This result holds no embeddings. Simulate with `snapshots=` to store some.")
        if np.isnan(t) or not self.time[0] <= t <= self.time[-1]:
            raise FlowsimError(
                f"Time {t:g} lies outside the run, which covers {self.time[0]:g} to {self.time[-1]:g}. "
                "Continue it with fs.simulate(flow, result, t1=...)."
            )
        exact = np.flatnonzero(self.snapshot_time == t)
        if exact.size:
            return self._snapshot(int(exact[0]))
        if not self.status.ok and t > self.status.stopped_at:
            raise FlowsimError(f"The run ended at t = {self.status.stopped_at:g}: {self.status.sentence}")
        if self.resolve is not None and t < self.snapshot_time[0]:
            raise FlowsimError(
                f"Embeddings are stored from t = {self.snapshot_time[0]:g} on. Simulate with an earlier time in "
                "`snapshots=`."
            )
        if self.resolve is None:
            near = self.snapshot_time[np.argmin(np.abs(np.log1p(self.snapshot_time) - np.log1p(t)))]
            raise FlowsimError(f"No snapshot is stored at t = {t:g}. The nearest is at t = {near:g}.")
        return self.resolve(self, t).final

    @property
    def final(self) -> Snapshot:
        """The last stored state."""
        if not len(self.snapshot_time):
            raise FlowsimError("This result holds no embeddings. Simulate with `snapshots=` to store some.")
        return self._snapshot(len(self.snapshot_time) - 1)

    def to_xarray(self) -> "xr.Dataset":
        """Dataset with coordinate `time` and one variable per observable, snapshots and settings included."""
        import xarray as xr

        data: dict[str, Any] = {}
        for name, values in self.series.items():
            description, symbol = VARIABLES.get(name, (name.replace("_", " "), name.replace("_", " ")))
            attrs = {"long_name": symbol, "description": description}
            if name in self.reasons:
                attrs["reason"] = self.reasons[name]
            data[name] = ("time", values, attrs)
        for name, values in self.snapshots.items():
            rows = name in ("image", "text")
            dims = ("pair", "dim") if rows else tuple(f"{name}_{i}" for i in range(values.ndim - 1))
            data[f"snapshot_{name}"] = (("snapshot_time", *dims), values)
        for name, values in self.constants.items():
            data[f"constant_{name}"] = (tuple(f"{name}_{i}" for i in range(values.ndim)), values)
        for index, values in enumerate(self.memory):
            data[f"memory_{index}"] = (tuple(f"memory_{index}_{i}" for i in range(np.ndim(values))), values)
        for name, values in self.training.items():
            description, symbol = VARIABLES.get(name, (name.replace("_", " "), name.replace("_", " ")))
            data[name] = ("train_step", values, {"long_name": symbol, "description": description})
        # Everything is dimensionless. xarray would write units into the labels of its plots.
        label = {"long_name": f"{self.clock} $t$", "clock": self.clock}
        coords: dict[str, Any] = {"time": ("time", self.time, label)}
        coords |= {name: ("time", values) for name, values in self.coordinates.items()}
        if self.training:
            steps = len(next(iter(self.training.values())))
            coords["train_step"] = ("train_step", np.arange(steps), {"long_name": "step"})
        if len(self.snapshot_time):
            coords["snapshot_time"] = ("snapshot_time", self.snapshot_time, label)
        attrs = {
            "schema_version": SCHEMA_VERSION,
            "kind": "flowsim result",
            "status": self.status.code.name,
            "status_sentence": self.status.sentence,
            "stopped_at": self.status.stopped_at,
            "method": self.status.method,
            "config": json.dumps(self.config),
            "stats": json.dumps(self.stats),
            "versions": json.dumps(self.versions),
        }
        return xr.Dataset(data, coords, attrs)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write netCDF, atomically. Raises `FlowsimError` if the place is not writable."""
        return write_netcdf(self.to_xarray(), path)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, values in (*self.series.items(), *self.training.items()):
            finite = values[np.isfinite(values)]
            if not finite.size:
                rows.append((name, "-", "-", self.reasons.get(name, "not finite")))
                continue
            rows.append((name, f"{finite[0]:.5g}", f"{finite[-1]:.5g}", f"{finite.min():.4g} .. {finite.max():.4g}"))
        return rows

    def _facts(self) -> list[tuple[str, str]]:
        clock = "" if self.clock == FLOW_TIME else f"; {self.clock}"
        facts = [
            ("time", f"{self.time[0]:g} .. {self.time[-1]:g} ({len(self.time)} points{clock})"),
            ("status", f"{self.status.code.name} at t = {self.status.stopped_at:.6g}"),
            ("method", self.status.method),
        ]
        s = self.stats
        if "steps" in s:
            seconds = f"{s['run_seconds']:.2f} s + {s['compile_seconds']:.2f} s compiling"
            facts.append(("cost", f"{s['steps']:.0f} steps, {s['rejected']:.0f} rejected; {seconds}"))
        if "conserved_residual" in s:
            facts.append(("conserved quantity", f"relative residual {s['conserved_residual']:.1e}"))
        if "loss_increase" in s:
            facts.append(("loss", f"largest relative increase {s['loss_increase']:.1e}"))
        return facts

    def __repr__(self) -> str:
        lines = ["Result"] + [f"  {k:<18} {v}" for k, v in self._facts()]
        head = ("observable", "first", "last", "range")
        lines += ["  " + "{:<26}{:>12}{:>12}  {}".format(*row) for row in [head, *self._rows()]]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        facts = "".join(
            f"<tr><th style='text-align:left'>{html.escape(k)}</th><td style='text-align:left'>"
            f"{html.escape(v)}</td></tr>"
            for k, v in self._facts()
        )
        body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in self._rows())
        head = "".join(f"<th>{c}</th>" for c in ("observable", "first", "last", "range"))
        return f"<table>{facts}</table><table><tr>{head}</tr>{body}</table>"


def write_netcdf(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> Path:
    """Write a dataset to netCDF so that a reader sees the old file or the new one, never half of one."""
    path = Path(path)
    check(path.suffix == ".nc", f"Result files end in .nc, but got {path.name!r}. Use e.g. run.nc.")
    return write_atomically(path, lambda temporary: dataset.to_netcdf(temporary, engine="h5netcdf"))


def read_netcdf(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read a netCDF file whole. Raises `FlowsimError` for a missing, unreadable or foreign file."""
    import xarray as xr

    _check_file(path)
    try:
        with xr.open_dataset(path, engine="h5netcdf") as dataset:
            return dataset.load()
    except Exception as error:
        raise FlowsimError(f"Cannot read {str(path)!r} as netCDF ({type(error).__name__}). "
                           "Give a file that flowsim saved.") from None  # fmt: skip


def load_result(path: str | os.PathLike[str]) -> Result:
    """The result that `Result.save` wrote. Raises `FlowsimError` for foreign or newer files."""
    return _result(read_netcdf(path), path)


def save_results(results: Mapping[str, Result], path: str | os.PathLike[str]) -> Path:
    """Write several results into one netCDF file, compressed, one group each; atomically."""
    path = Path(path)
    check(path.suffix == ".nc", f"Result files end in .nc, but got {path.name!r}. Use e.g. runs.nc.")
    for name in results:
        check(name and "/" not in name, f"A name of a result must not be empty or hold '/', but is {name!r}.")

    def write(temporary: str) -> None:
        for index, (name, result) in enumerate(results.items()):
            dataset = result.to_xarray()
            packed = {str(k): {"zlib": True, "shuffle": True} for k, v in dataset.variables.items() if v.size > 64}
            mode = "w" if index == 0 else "a"
            dataset.to_netcdf(temporary, mode=mode, group=name, engine="h5netcdf", encoding=packed)

    return write_atomically(path, write)


def load_results(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, Result]:
    """The results that `save_results` wrote, by name: all, or those of `names`.

    Raises `FlowsimError` for foreign or newer files and for names that are not in the file.
    """
    import h5py
    import xarray as xr

    _check_file(path)
    try:
        with h5py.File(path) as file:
            held = [name for name, item in file.items() if isinstance(item, h5py.Group)]
        chosen = held if names is None else list(names)
        for name in chosen:
            if name not in held:
                raise unknown_name("run", name, held)
        datasets = {}
        for name in chosen:
            with xr.open_dataset(path, group=name, engine="h5netcdf") as dataset:
                datasets[name] = dataset.load()
    except FlowsimError:
        raise
    except Exception as error:
        raise FlowsimError(f"Cannot read {str(path)!r} as netCDF ({type(error).__name__}). "
                           "Give a file that flowsim saved.") from None  # fmt: skip
    check(datasets, f"{str(path)!r} does not hold several results. Read it with `fs.load`.")
    return {name: _result(dataset, path) for name, dataset in datasets.items()}


def load_any(path: str | os.PathLike[str]) -> dict[str, Result]:
    """The results in a file by name: those of `save_results`, or the one of `Result.save`, named by its path."""
    _check_file(path)
    return load_results(path) if _holds_several(path) else {str(path): load_result(path)}


def _check_file(path: Any) -> None:
    check(
        isinstance(path, (str, os.PathLike)),
        f"Expected the path of a saved result, but got {type(path).__name__}. Use e.g. fs.load('run.nc').",
    )
    check(Path(path).is_file(), f"There is no file {str(path)!r}. Give the path of a saved result (.nc).")


def _holds_several(path: str | os.PathLike[str]) -> bool:
    """Whether a file has groups, as `save_results` writes them."""
    import h5py

    with contextlib.suppress(OSError), h5py.File(path) as file:
        return any(isinstance(item, h5py.Group) for item in file.values())
    return False


def _result(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> Result:
    kind = dataset.attrs.get("kind")
    if kind != "flowsim result":
        cure = "Give a file written by `Result.save`."
        if kind == "flowsim sweep":
            cure = "It is a sweep: read it with `fs.load_sweep`."
        elif _holds_several(path):
            cure = "It holds several: read them with `fs.load_results`."
        raise FlowsimError(f"{str(path)!r} is not a flowsim result. {cure}")
    version = int(dataset.attrs.get("schema_version", 0))
    check(
        version <= SCHEMA_VERSION,
        f"{str(path)!r} has schema version {version}, but this flowsim reads up to {SCHEMA_VERSION}. Upgrade flowsim.",
    )
    missing = {"config", "stats", "versions", "status", "method"} - dataset.attrs.keys()
    check(not missing, f"{str(path)!r} is damaged: it lacks {', '.join(sorted(missing))}. Simulate it again.")
    series, snapshots, constants, reasons, training, memory = {}, {}, {}, {}, {}, {}
    for key, variable in dataset.data_vars.items():
        name = _FORMER.get(str(key), str(key))
        if name.startswith("snapshot_"):
            snapshots[name.removeprefix("snapshot_")] = variable.to_numpy()
        elif name.startswith("constant_"):
            constants[name.removeprefix("constant_")] = variable.to_numpy()
        elif name.startswith("memory_"):
            memory[int(name.removeprefix("memory_"))] = variable.to_numpy()
        elif variable.dims == ("train_step",):
            training[name] = variable.to_numpy()
        else:
            series[name] = variable.to_numpy()
            if "reason" in variable.attrs:
                reasons[name] = variable.attrs["reason"]
    attrs = dataset.attrs
    outcome = Outcome(Status[attrs["status"]], float(attrs["stopped_at"]), str(attrs["method"]))
    has_snapshots = "snapshot_time" in dataset.coords
    return Result(
        time=dataset["time"].to_numpy(),
        series=series,
        status=outcome,
        config=json.loads(attrs["config"]),
        stats=json.loads(attrs["stats"]),
        versions=json.loads(attrs["versions"]),
        snapshot_time=dataset["snapshot_time"].to_numpy() if has_snapshots else np.empty(0),
        snapshots=snapshots,
        constants=constants,
        reasons=reasons,
        # Older files hold it as units.
        clock=dataset["time"].attrs.get("clock", dataset["time"].attrs.get("units", FLOW_TIME)),
        coordinates={str(k): v.to_numpy() for k, v in dataset.coords.items() if v.dims == ("time",) and k != "time"},
        training=training,
        memory=tuple(memory[index] for index in sorted(memory)),
    )
