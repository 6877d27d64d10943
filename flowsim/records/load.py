"""Reading and writing results: one or several per file."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.records.netcdf import check_file, check_name, holds_several, read_netcdf, reading, without_cluster
from flowsim.records.result import FLOW_TIME, SCHEMA_VERSION, Result, Simulation, TrainingRecord
from flowsim.records.status import Outcome, Status

if TYPE_CHECKING:
    import xarray as xr

#: Names of variables in files of older versions.
_FORMER = {"raw": "raw_temperature", "snapshot_raw": "snapshot_raw_temperature"}
#: Before version 2 these described the directions on parallel cones.
_FORMER_ON_CONES = {"margin": "direction_margin", "matched_fraction": "direction_matched_fraction"}
_OF_CONES = ("gamma", "log_gamma", "snapshot_gamma", "constant_gamma")


def load_result(path: str | os.PathLike[str]) -> Result:
    """The result that `Result.save` wrote; raises `FlowsimError` for foreign or newer files."""
    return result_of(read_netcdf(path), path)


def save_results(results: Mapping[str, Result], path: str | os.PathLike[str]) -> Path:
    """Write several results to one netCDF file, compressed and atomically; `fs.load_results` reads it.

    Args:
        results: Name -> result. Each becomes a group of the file.
        path: The file; its name must end in .nc.

    Returns:
        The path.

    Raises:
        FlowsimError: If a name is empty or contains "/", the file name ends otherwise, or the file cannot be written.
    """
    path = Path(path)
    check_name(path)
    for name in results:
        check(name and "/" not in name, f"Names of results must not be empty or contain '/', but one is {name!r}.")

    def write(temporary: str) -> None:
        for index, (name, result) in enumerate(results.items()):
            dataset = result.to_xarray()
            packed = {str(k): {"zlib": True, "shuffle": True} for k, v in dataset.variables.items() if v.size > 64}
            mode = "w" if index == 0 else "a"
            dataset.to_netcdf(temporary, mode=mode, group=name, engine="h5netcdf", encoding=packed)

    with without_cluster():
        return write_atomically(path, write)


def load_results(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, Result]:
    """Read results from a file that `fs.save_results` wrote.

    Args:
        path: The netCDF file (.nc).
        names: Names of the results to read. Default: all.

    Returns:
        Name -> result.

    Raises:
        FlowsimError: If the file is missing, unreadable, foreign or written by a newer flowsim, holds only one result,
            or has no result of a given name.
    """
    import h5py
    import xarray as xr

    with reading(path):
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
    check(datasets, f"{str(path)!r} does not hold several results. Read it with `fs.load`.")
    return {name: result_of(dataset, path) for name, dataset in datasets.items()}


def load_trainings(path: str | os.PathLike[str]) -> dict[str, TrainingRecord]:
    """`load_results` for records of training; raises `FlowsimError` if a result is not one."""
    found = {}
    for name, result in load_results(path).items():
        if not isinstance(result, TrainingRecord):
            raise FlowsimError(
                f"{name!r} in {str(path)!r} is not a record of training. Give a file of `fs.clip.study`."
            )
        found[name] = result
    return found


def load_any(path: str | os.PathLike[str]) -> dict[str, Result]:
    """The results in a file of `save_results` by name, or the single one of `Result.save` by its path."""
    check_file(path)
    return load_results(path) if holds_several(path) else {str(path): load_result(path)}


def result_of(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> Result:
    """The result in a dataset, with variables of older versions renamed; `path` is named in errors."""
    kind = dataset.attrs.get("kind")
    if kind != "flowsim result":
        cure = "Give a file written by `Result.save`."
        if kind == "flowsim sweep":
            cure = "It is a sweep: read it with `fs.load_sweep`."
        elif holds_several(path):
            cure = "It holds several: read them with `fs.load_results`."
        raise FlowsimError(f"{str(path)!r} is not a flowsim result. {cure}")
    version = int(dataset.attrs.get("schema_version", 0))
    check(
        version <= SCHEMA_VERSION,
        f"{str(path)!r} has schema version {version}, but this flowsim reads up to {SCHEMA_VERSION}. Upgrade flowsim.",
    )
    missing = {"config", "stats", "versions", "status", "method"} - dataset.attrs.keys()
    check(not missing, f"{str(path)!r} is damaged: it lacks {', '.join(sorted(missing))}. Simulate it again.")
    series, snapshots, constants, reasons, training, kernels, memory = {}, {}, {}, {}, {}, {}, {}
    on_cones = any(name in dataset for name in _OF_CONES)
    former = _FORMER | (_FORMER_ON_CONES if version < 2 and on_cones else {})
    for key, variable in dataset.data_vars.items():
        name = former.get(str(key), str(key))
        if name.startswith("snapshot_"):
            snapshots[name.removeprefix("snapshot_")] = variable.to_numpy()
        elif name.startswith("constant_"):
            constants[name.removeprefix("constant_")] = variable.to_numpy()
        elif name.startswith("kernel_"):
            kernels[name.removeprefix("kernel_")] = variable.to_numpy()
        elif name.startswith("memory_"):
            memory[int(name.removeprefix("memory_"))] = variable.to_numpy()
        elif variable.dims == ("train_step",):
            training[name] = variable.to_numpy()
        else:
            series[name] = variable.to_numpy()
            if "reason" in variable.attrs:
                reasons[name] = variable.attrs["reason"]
    attrs = dataset.attrs
    has_snapshots = "snapshot_time" in dataset.coords
    common: dict[str, Any] = {
        "time": dataset["time"].to_numpy(),
        "series": series,
        "status": Outcome(Status[attrs["status"]], float(attrs["stopped_at"]), str(attrs["method"])),
        "config": json.loads(attrs["config"]),
        "stats": json.loads(attrs["stats"]),
        "versions": json.loads(attrs["versions"]),
        "snapshot_time": dataset["snapshot_time"].to_numpy() if has_snapshots else np.empty(0),
        "snapshots": snapshots,
        "constants": constants,
        "reasons": reasons,
        # Older files hold it as units.
        "clock": dataset["time"].attrs.get("clock", dataset["time"].attrs.get("units", FLOW_TIME)),
    }
    if "flow" in common["config"]:
        return Simulation(**common, memory=tuple(memory[index] for index in sorted(memory)))
    coordinates = {str(k): v.to_numpy() for k, v in dataset.coords.items() if v.dims == ("time",) and k != "time"}
    steps = dataset["kernel_step"].to_numpy() if "kernel_step" in dataset.coords else np.empty(0, int)
    return TrainingRecord(**common, coordinates=coordinates, training=training, kernel_step=steps, kernels=kernels)
