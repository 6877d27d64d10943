"""Arrays in HDF5 files (`.h5`, `.hdf5`); those that are neither chunked nor compressed are mapped into memory."""

from pathlib import Path
from typing import Any

import numpy as np

from flowsim.data.arrays.named import Entry, register
from flowsim.data.packages import package
from flowsim.errors import FlowsimError


@register(".h5", ".hdf5")
def open_hdf5(path: Path) -> dict[str, Entry]:
    """The datasets of all groups, by their paths."""
    library = package("h5py", "h5py")
    found: dict[str, Entry] = {}
    with library.File(path, "r") as file:
        # Soft and external links are not followed.
        file.visititems(lambda name, item: _add(library, path, name, item, found))
    return found


def _add(library: Any, path: Path, name: str, item: Any, found: dict[str, Entry]) -> None:
    if not isinstance(item, library.Dataset) or item.shape is None:
        return
    shape, dtype, offset = tuple(item.shape), item.dtype, item.id.get_offset()
    text = library.check_string_dtype(dtype) is not None
    if item.external or item.is_virtual:
        found[name] = Entry(lambda: _elsewhere(path, name), shape, dtype)
    elif offset is not None and dtype.kind in "fiu" and item.chunks is None and not item.file.userblock_size:
        found[name] = Entry(lambda: np.memmap(path, dtype, "r", offset, shape), shape, dtype)
    else:
        found[name] = Entry(lambda: _read(library, path, name, text), shape, None if text else dtype)


def _read(library: Any, path: Path, name: str, text: bool) -> np.ndarray:
    with library.File(path, "r") as file:
        item = file[name]
        return np.asarray(item.asstr()[()], dtype=str) if text else np.asarray(item[()])


def _elsewhere(path: Path, name: str) -> np.ndarray:
    raise FlowsimError(f"{path}: {name!r} lies in other files, which are not read. Write it into this file.")
