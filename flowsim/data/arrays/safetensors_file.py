"""Arrays in `.safetensors` files, mapped into memory; lists of strings in the metadata are arrays of strings."""

import json
import math
from pathlib import Path

import ml_dtypes
import numpy as np

from flowsim.data.arrays.named import Entry, register
from flowsim.data.packages import package

_DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    **{f"{kind.upper()}{8 * size}": np.dtype(f"<{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    "BOOL": np.dtype(bool),
}


@register(".safetensors")
def open_safetensors(path: Path) -> dict[str, Entry]:
    """The tensors and lists of strings of a `.safetensors` file."""
    library = package("safetensors", "safetensors")
    with library.safe_open(path, framework="numpy") as file:  # which verifies the header and all offsets
        metadata = file.metadata() or {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    found = {}
    for name, facts in header.items():
        if name != "__metadata__":
            found[name] = _entry(path, facts["dtype"], tuple(facts["shape"]), 8 + length + facts["data_offsets"][0])
    for name, text in metadata.items():
        strings = _strings(text)
        if strings is not None and name not in found:
            found[name] = Entry(lambda strings=strings: strings, strings.shape, strings.dtype)
    return found


def _entry(path: Path, kind: str, shape: tuple[int, ...], start: int) -> Entry:
    def read() -> np.ndarray:
        if kind not in _DTYPES:
            raise ValueError(f"tensors of dtype {kind} cannot be read")
        if 0 in shape:  # nothing can be mapped
            return np.zeros(shape, _DTYPES[kind])
        mapped = np.memmap(path, np.uint8, "r", start, (math.prod(shape) * _DTYPES[kind].itemsize,))
        return mapped.view(_DTYPES[kind]).reshape(shape)

    return Entry(read, shape, _DTYPES.get(kind))


def _strings(text: str) -> np.ndarray | None:
    """A list of strings in JSON as an array; None for other metadata."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return np.array(found, dtype=str)
    return None
