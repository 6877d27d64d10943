"""The result of a run: labelled time series, snapshots of the embeddings, status, cost and provenance.

`Result` holds what all runs share. `Simulation` is the result of `fs.simulate`, `fs.descend` and `fs.theory.predict`,
`TrainingRecord` that of a CLIP training.
"""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.base.checks import check
from flowsim.base.html import table
from flowsim.errors import FlowsimError, unknown_name
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import Start
from flowsim.observables.table import REGISTRY, entry
from flowsim.records.netcdf import write_netcdf
from flowsim.records.status import Outcome

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 2
FLOW_TIME = "flow time"
SUM_OF_RATES = "sum of learning rates"


#: Dimensions of the parts of measured kernels, by the end of their names.
_KERNEL_DIMS = {
    "image": ("kernel_pair", "dim"), "text": ("kernel_pair", "dim"), "matrix": ("kernel_pair", "kernel_other_pair"),
}  # fmt: skip


class SimulationStopped(FlowsimError):
    """A run did not reach its last output time.

    Attributes:
        result: The part of the run before it stopped.
    """

    def __init__(self, result: "Result") -> None:
        self.result = result
        super().__init__(
            f"{result.status.sentence} (t = {result.status.stopped_at:.6g}; `throw=False` returns the part before.)"
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The state of a run at one time; `snapshot["modality_gap"]` is the value of an observable.

    Attributes:
        time: The time, on the clock of the result.
        start: The embeddings, from which another run can start.
        raw_temperature: ν, None if the temperature is not learned.
        bias: The learned bias of the logits, None if the loss has none.
        values: Name of an observable -> value; empty if none was recorded at this time.
    """

    time: float
    start: Start
    raw_temperature: float | None
    bias: float | None
    values: dict[str, float]

    @property
    def image(self) -> np.ndarray | None:
        """Unit image rows, (n, D); None if the run holds only similarities."""
        return None if self.start.image is None else self.start.rows()[0]

    @property
    def text(self) -> np.ndarray | None:
        """Unit text rows, (n, D); None if the run holds only similarities."""
        return None if self.start.image is None else self.start.rows()[1]

    @property
    def gamma(self) -> float | None:
        """Height γ of the cones, None for geometries without cones."""
        return None if self.start.gamma is None else float(self.start.gamma)

    def __getitem__(self, name: str) -> float:
        """An observable by name; raises `FlowsimError` for an unknown one."""
        if name not in self.values:
            raise unknown_name("observable", name, self.values)
        return self.values[name]

    def __repr__(self) -> str:
        inner = ", ".join(f"{k}={v:.5g}" for k, v in self.values.items())
        return f"Snapshot(t={self.time:.6g}, {inner})"


@dataclasses.dataclass(frozen=True)
class Result:
    """Observables over time with the settings that produced them: the common part of simulations and trainings.

    `result["modality_gap"]` is an `xarray.DataArray` over `time`; `result.at(t)` and `result.final` are snapshots with
    embeddings; `result.to_xarray()` returns everything as one dataset. All arrays are NumPy.

    Attributes:
        time: Output times on the `clock`, (T,).
        series: Name of an observable -> values, (T,).
        status: How and when the run ended, and the methods used.
        config: The settings as plain data: flow, start and options, or those of a training.
        stats: Numbers of steps, seconds, and checks such as the residual of the conserved quantity.
        versions: Versions of the packages that the numbers depend on.
        snapshot_time: Times at which embeddings are stored, (S,).
        snapshots: Name of an array of `Start`, "raw_temperature" or "bias" -> values, (S, ...).
        constants: Name of an array of `Start` that does not change -> values.
        reasons: Name of an observable -> why it is NaN.
        clock: "flow time" (the flow, plain SGD) or "sum of learning rates" (other optimizers).

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
    clock: str = FLOW_TIME

    @property
    def names(self) -> list[str]:
        """Names of the recorded observables."""
        return list(self._columns)

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        """All series over output times or steps."""
        return self.series

    def __getitem__(self, name: str) -> "xr.DataArray":
        """An observable by name; raises `FlowsimError` for an unknown one."""
        if name not in self._columns:
            check(name not in REGISTRY, f"{name!r} was not recorded. Run again with observables=[..., {name!r}].")
            raise unknown_name("observable", name, self.names)
        return self.to_xarray()[name]

    def _ipython_key_completions_(self) -> list[str]:
        return self.names

    @property
    def flow(self) -> GradientFlow:
        """The flow of the run; raises `FlowsimError` for a record of training, which has none."""
        raise FlowsimError(
            "This result has no flow: it is a record of training. To simulate from its embeddings use "
            "fs.compare(record), or fs.simulate(flow, record.at(t).start, t1=...) with your own flow."
        )

    def _snapshot(self, index: int) -> Snapshot:
        t = float(self.snapshot_time[index])
        get = {**self.constants, **{k: np.asarray(v[index]) for k, v in self.snapshots.items()}}
        raw, bias = (None if (x := get.pop(name, None)) is None else float(x) for name in ("raw_temperature", "bias"))
        slot = np.flatnonzero(self.time == t)
        values = {k: float(v[slot[0]]) for k, v in self.series.items()} if slot.size else {}
        return Snapshot(t, Start(**get), raw, bias, values)

    def at(self, t: float) -> Snapshot:
        """The state at a time: a stored snapshot, or for simulations of the flow integrated from the one before.

        Args:
            t: A time on the `clock` of the result, within the run.

        Returns:
            The embeddings and observables at `t`.

        Raises:
            FlowsimError: If `t` is not a number or lies outside the run, or if no snapshot is stored there and the
                state cannot be integrated.
        """
        check(
            np.ndim(t) == 0 and np.asarray(t).dtype.kind in "fiu",
            f"Argument `t` must be a number, but is {t!r}. Use a flow time, e.g. 4.0.",
        )
        self._check_snapshots()
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
        return self._between(t)

    def _between(self, t: float) -> Snapshot:
        """The state at a time without a snapshot."""
        near = self.snapshot_time[np.argmin(np.abs(np.log1p(self.snapshot_time) - np.log1p(t)))]
        raise FlowsimError(f"No snapshot is stored at t = {t:g}. The nearest is at t = {near:g}.")

    def _check_snapshots(self) -> None:
        check(len(self.snapshot_time), self._no_embeddings)

    @property
    def _no_embeddings(self) -> str:
        return "This result holds no embeddings. Simulate with `snapshots=` to store some."

    @property
    def final(self) -> Snapshot:
        """The last stored state; raises `FlowsimError` if the result holds no embeddings."""
        self._check_snapshots()
        return self._snapshot(len(self.snapshot_time) - 1)

    def to_xarray(self) -> "xr.Dataset":
        """A dataset with coordinate `time` and one variable per observable, with snapshots and settings."""
        import xarray as xr

        data: dict[str, Any] = {}
        for name, values in self.series.items():
            attrs = _attributes(name)
            if name in self.reasons:
                attrs["reason"] = self.reasons[name]
            data[name] = ("time", values, attrs)
        for name, values in self.snapshots.items():
            rows = name in ("image", "text")
            dims = ("pair", "dim") if rows else tuple(f"{name}_{i}" for i in range(values.ndim - 1))
            data[f"snapshot_{name}"] = (("snapshot_time", *dims), values)
        for name, values in self.constants.items():
            data[f"constant_{name}"] = (tuple(f"{name}_{i}" for i in range(values.ndim)), values)
        # No units, since all quantities are dimensionless: xarray would write them into the labels of its plots.
        label = {"long_name": f"{self.clock} $t$", "clock": self.clock}
        coords: dict[str, Any] = {"time": ("time", self.time, label)}
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
        more_data, more_coords = self._more()
        return xr.Dataset(data | more_data, coords | more_coords, attrs)

    def _more(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Variables and coordinates of the dataset beyond what all results have."""
        return {}, {}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the result to a netCDF file, atomically; `fs.load` reads it.

        Args:
            path: The file; its name must end in .nc.

        Returns:
            The path.

        Raises:
            FlowsimError: If the name ends otherwise or the file cannot be written.
        """
        return write_netcdf(self.to_xarray(), path)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        rows = []
        for name, values in self._columns.items():
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
        return table(self._facts(), names=True) + table(self._rows(), ("observable", "first", "last", "range"))


@dataclasses.dataclass(frozen=True, repr=False)
class Simulation(Result):
    """The result of `fs.simulate`, `fs.descend` and `fs.theory.predict`; see `Result` for the other attributes.

    Attributes:
        resolve: Function that integrates from a snapshot to a time after it; None if that is not possible.
        memory: State of the optimizer at the end, as the leaves of its tree; empty for flows.
    """

    resolve: Callable[["Simulation", float], Result] | None = dataclasses.field(default=None, repr=False)
    memory: tuple[np.ndarray, ...] = ()

    @property
    def flow(self) -> GradientFlow:
        """The flow of this run, read from its settings; `fs.simulate(run.flow, run, t1=...)` continues the run.

        Raises:
            FlowsimError: If a class of the flow is not defined in this session.
        """
        return GradientFlow.from_config(self.config["flow"])

    def _between(self, t: float) -> Snapshot:
        if self.resolve is None:
            return super()._between(t)
        if t < self.snapshot_time[0]:
            raise FlowsimError(
                f"Embeddings are stored from t = {self.snapshot_time[0]:g} on. Simulate with an earlier time in "
                "`snapshots=`."
            )
        return self.resolve(self, t).final

    def _more(self) -> tuple[dict[str, Any], dict[str, Any]]:
        memory = {
            f"memory_{index}": (tuple(f"memory_{index}_{i}" for i in range(np.ndim(values))), values)
            for index, values in enumerate(self.memory)
        }
        return memory, {}


@dataclasses.dataclass(frozen=True, repr=False)
class TrainingRecord(Result):
    """The record of a CLIP training: observables per evaluation and series per step; see `Result` for the rest.

    Attributes:
        coordinates: "step", "epoch" and "progress" -> their values at every evaluation, (T,).
        training: Name of a series along `train_step` -> values, (number of steps,).
        kernel_step: Steps after which the kernels of the towers were measured, (K,).
        kernels: "image" and "text", unit rows (K, m, d); "image_matrix" and "text_matrix", sample kernels (K, m, m);
            "temperature_scale", the optimizer's preconditioner of ν (K,); and numbers such as "image_own" (K,).
    """

    coordinates: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    training: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    kernel_step: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, int))
    kernels: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def _no_embeddings(self) -> str:
        name = next(iter(self.series), "train_loss")
        return (
            "This record holds no embeddings, as those of logs and monitors. The last value of a series is e.g. "
            f"record[{name!r}].values[-1]."
        )

    @property
    def _columns(self) -> dict[str, np.ndarray]:
        return self.series | self.training

    def _more(self) -> tuple[dict[str, Any], dict[str, Any]]:
        coords: dict[str, Any] = {name: ("time", values) for name, values in self.coordinates.items()}
        if self.training:
            steps = len(next(iter(self.training.values())))
            coords["train_step"] = ("train_step", np.arange(steps), {"long_name": "step"})
        data: dict[str, Any] = {
            name: ("train_step", values, _attributes(name)) for name, values in self.training.items()
        }
        if len(self.kernel_step):
            coords["kernel_step"] = ("kernel_step", self.kernel_step, {"long_name": "step"})
            for name, values in self.kernels.items():
                kind = name.rpartition("_")[2]
                dims = _KERNEL_DIMS.get(kind, ())
                data[f"kernel_{name}"] = (("kernel_step", *dims), values)
        return data, coords


def _attributes(name: str) -> dict[str, str]:
    """Attributes of a variable: axis label and description."""
    known = entry(name)
    return {"long_name": known.label, "description": known.description}
