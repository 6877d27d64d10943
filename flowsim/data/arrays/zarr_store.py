"""Arrays in Zarr stores: `.zarr` folders, and the same in archives (`.zarr.zip`, `.zarr` files)."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.data.arrays.named import UNPICKLED, Entry, register
from flowsim.data.packages import package
from flowsim.errors import FlowsimError

_META = ("zarr.json", ".zgroup", ".zarray")


def _recognizes(path: Path) -> bool:
    """By name, and folders and archives of other names by the description that they hold."""
    if path.name.lower().endswith((".zarr", ".zarr.zip")):
        return True
    if path.is_dir():
        return any((path / name).is_file() for name in _META)
    if path.suffix.lower() != ".zip" or not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name in archive.namelist() for name in _META)


@register(".zarr", recognizes=_recognizes)
def open_zarr(path: Path) -> dict[str, Entry]:
    """The arrays of all groups, by their paths."""
    library = package("zarr", "zarr", "sweep")
    root = library.open(_store(library, path), mode="r")
    if not hasattr(root, "members"):
        return {"array": _entry(path, "array", root)}
    members = root.members(max_depth=None)
    return {name: _entry(path, name, item) for name, item in members if hasattr(item, "dtype")}


def _store(library: Any, path: Path) -> Any:
    return str(path) if path.is_dir() else library.storage.ZipStore(path, mode="r")


def _entry(path: Path, name: str, array: Any) -> Entry:
    # One of the codecs of version 2 unpickles what it reads.
    if array.dtype.kind == "O" or "pickle" in json.dumps(array.metadata.to_dict(), default=str).lower():
        return Entry(lambda: _refuse(path, name), tuple(array.shape))
    text = array.dtype.kind == "T"
    return Entry(
        lambda: np.asarray(array[...], dtype=str) if text else np.asarray(array[...]),
        tuple(array.shape),
        None if text else array.dtype,
    )


def _refuse(path: Path, name: str) -> np.ndarray:
    raise FlowsimError(f"{path}: {name!r} {UNPICKLED}")
