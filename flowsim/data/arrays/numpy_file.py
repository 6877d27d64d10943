"""Arrays in `.npy` and `.npz` files, mapped into memory unless they are compressed."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.data.arrays.named import UNPICKLED, Entry, register
from flowsim.errors import FlowsimError

#: The name of the only array of a file.
ONLY = "array"


@register(".npy")
def open_npy(path: Path) -> dict[str, Entry]:
    """The array of a `.npy` file."""
    with open(path, "rb") as file:
        if file.read(6) != b"\x93NUMPY":
            raise FlowsimError(f"{path} is not a NumPy file (.npy). Write it with np.save.")
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return {ONLY: Entry(lambda: array, array.shape, array.dtype)}


@register(".npz")
def open_npz(path: Path) -> dict[str, Entry]:
    """The arrays of a `.npz` file."""
    found = {}
    with open(path, "rb") as opened:
        if opened.read(2) != b"PK":
            raise FlowsimError(f"{path} is not a NumPy file (.npz). Write it with np.savez.")
        with zipfile.ZipFile(opened) as archive:
            for member in archive.infolist():
                if member.filename.endswith(".npy"):
                    found[member.filename.removesuffix(".npy")] = _entry(path, archive, member)
    return found


def _entry(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Entry:
    with archive.open(member) as file:
        header = _header(file)
        begin = file.tell()
    if header is None:
        return Entry(lambda: _read(path, member))
    shape, fortran, dtype = header
    if dtype.hasobject:
        return Entry(lambda: _refuse(path, member), shape)
    size = int(np.prod(shape, dtype=object)) * dtype.itemsize
    if member.compress_type == zipfile.ZIP_STORED and size and begin + size == member.file_size:
        start = _data_offset(path, member) + begin
        order = "F" if fortran else "C"
        return Entry(lambda: np.memmap(path, dtype, "r", start, shape, order), shape, dtype)
    return Entry(lambda: _read(path, member), shape, dtype)


def _header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]] | None:
    """Shape, order and dtype; None for a version that NumPy's public functions do not read."""
    version = np.lib.format.read_magic(file)
    known = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    return known[version](file) if version in known else None


def _data_offset(path: Path, member: zipfile.ZipInfo) -> int:
    """Where the content of a member begins: after its local header, whose last two lengths say how long it is."""
    with open(path, "rb") as file:
        file.seek(member.header_offset)
        local = file.read(30)
    return member.header_offset + 30 + int.from_bytes(local[26:28], "little") + int.from_bytes(local[28:30], "little")


def _read(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    with zipfile.ZipFile(path) as archive, archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _refuse(path: Path, member: zipfile.ZipInfo) -> np.ndarray:
    raise FlowsimError(f"{path}: {member.filename} {UNPICKLED}")
