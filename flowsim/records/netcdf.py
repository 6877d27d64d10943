"""Writing netCDF files atomically, and reading them with clear errors."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    import xarray as xr


def write_netcdf(dataset: "xr.Dataset", path: str | os.PathLike[str]) -> Path:
    """Write a dataset to netCDF atomically: a reader sees the old file or the new one, never a part of it."""
    check_name(path)
    with without_cluster():
        return write_atomically(path, lambda temporary: dataset.to_netcdf(temporary, engine="h5netcdf"))


def without_cluster() -> contextlib.AbstractContextManager[Any]:
    """Within it xarray asks no dask cluster for a lock, which fails if the cluster is gone; arrays here are NumPy's."""
    if "distributed" not in sys.modules:
        return contextlib.nullcontext()
    return sys.modules["dask"].config.set(scheduler="synchronous")


def read_netcdf(path: str | os.PathLike[str]) -> "xr.Dataset":
    """Read a whole netCDF file; raises `FlowsimError` for a missing, unreadable or foreign file."""
    import xarray as xr

    with reading(path), xr.open_dataset(path, engine="h5netcdf") as dataset:
        return dataset.load()


@contextlib.contextmanager
def reading(path: str | os.PathLike[str]) -> Iterator[None]:
    """Around code that reads a netCDF file: one sentence for a missing, unreadable or foreign one."""
    check_file(path)
    try:
        yield
    except FlowsimError:
        raise
    except Exception as error:
        raise FlowsimError(
            f"Cannot read {str(path)!r} as netCDF ({type(error).__name__}). Give a file that flowsim saved."
        ) from None


def check_name(path: str | os.PathLike[str]) -> None:
    """Refuse a file name that does not end in .nc."""
    name = Path(path).name
    check(name.endswith(".nc"), f"Result files end in .nc, but got {name!r}. Use e.g. run.nc.")


def check_file(path: Any) -> None:
    """Raise `FlowsimError` if this is not the path of a file."""
    check(
        isinstance(path, (str, os.PathLike)),
        f"Expected the path of a saved result, but got {type(path).__name__}. Use e.g. fs.load('run.nc').",
    )
    check(Path(path).is_file(), f"There is no file {str(path)!r}. Give the path of a saved result (.nc).")


def holds_several(path: str | os.PathLike[str]) -> bool:
    """Whether a file has groups, as `save_results` writes them."""
    import h5py

    with contextlib.suppress(OSError), h5py.File(path) as file:
        return any(isinstance(item, h5py.Group) for item in file.values())
    return False
