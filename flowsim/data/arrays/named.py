"""Named arrays of a file: the registry of formats, and `read_named`, which chooses the one of a path.

A format is one small module. It lists the arrays of a file without reading them; each is read, or mapped into memory,
when it is asked for.
"""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flowsim.base.checks import shown
from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError

PathLike: TypeAlias = str | os.PathLike[str]

#: What to do about pickled objects.
UNPICKLED = "holds pickled Python objects, which are not loaded. Save plain arrays of numbers and strings."


@dataclass(frozen=True)
class Entry:
    """One array of a file.

    Attributes:
        read: Returns the array.
        shape: Its shape, if that is known before it is read.
        dtype: Its dtype, if that is known.
    """

    read: Callable[[], np.ndarray]
    shape: tuple[int, ...] | None = None
    dtype: Any = None


class NamedArrays(Mapping):  # without types of the items: what checks them would read an array
    """The arrays of a file by name. An array is read, or mapped into memory, each time that it is asked for.

    Args:
        path: The file or folder, for messages.
        entries: Its arrays.
    """

    def __init__(self, path: str, entries: dict[str, Entry]):
        self.path, self._entries = path, entries

    def __getitem__(self, name: str) -> np.ndarray:
        """The array; raises `KeyError` for an unknown name, and `FlowsimError` for one that cannot be read."""
        entry = self._entries[name]
        with reading(self.path):
            try:
                return entry.read()
            except FlowsimError as error:
                if str(Path(self.path)) in str(error):
                    raise
                raise FlowsimError(f"{self.path}: {error}") from error

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # that of Mapping would read the array

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shape(self, name: str) -> tuple[int, ...] | None:
        """The shape of an array, or None if only reading it would tell."""
        return self._entries[name].shape

    def describe(self, most: int = 12) -> str:
        """The names with shapes and dtypes, e.g. "image (500, 512) float32, names (500,)", for messages."""
        words = []
        for name, entry in list(self._entries.items())[:most]:
            shape = "" if entry.shape is None else f" {entry.shape}"
            number = entry.dtype is not None and np.dtype(entry.dtype).kind not in "USO"
            words.append(f"{name}{shape}{f' {np.dtype(entry.dtype)}' if number else ''}")
        more = len(self) - len(words)
        return (", ".join(words) + (f" and {more} more" if more else "")) or "nothing"


@dataclass(frozen=True)
class Format:
    """A kind of file with named arrays; made by `register`.

    Attributes:
        name: Its name, e.g. ".npz".
        recognizes: Function that tells whether an existing path is of this kind.
        open: `open(path)` lists the arrays of a file.
    """

    name: str
    recognizes: Callable[[Path], bool]
    open: Callable[[Path], dict[str, Entry]]


#: Formats by name; the last registered one is tried first.
FORMATS: Registry[Format] = Registry("format of arrays")

_Open: TypeAlias = Callable[[Path], dict[str, Entry]]


def register(*endings: str, recognizes: Callable[[Path], bool] | None = None) -> Callable[[_Open], _Open]:
    """Decorator that registers `open(path)` for endings of names, or for the paths that `recognizes` knows."""

    def add(opens: _Open) -> _Open:
        for name in endings:

            def by_ending(path: Path, name: str = name) -> bool:
                return path.is_file() and path.name.lower().endswith(name)

            FORMATS.add(name, Format(name, recognizes or by_ending, opens), opens.__module__, opens)
        return opens

    return add


def read_named(path: PathLike) -> NamedArrays:
    """The named arrays of a file or folder, in their own dtypes. Nothing is ever unpickled.

    Args:
        path: A file that ends in .npy, .npz, .safetensors, .pt, .pth, .bin (of PyTorch), .h5, .hdf5, .zarr (also a
            folder, or .zarr.zip), .parquet, .csv or .tsv; or a folder of `.npy` files, or one that clip-retrieval or
            embedding-reader wrote.

            Groups of HDF5 and Zarr are joined by slashes, as in "clip/image", and dictionaries in .pt by dots. The only
            array of a .npy file is called "array". Columns `image_0`, `image_1`, ... of a table are one array `image`.
            A folder `img_emb` with `img_emb_0.npy`, `img_emb_1.npy`, ... is one array `img_emb`; no part may be
            missing.

    Returns:
        A mapping from names to arrays. .npy files, .npz files that are not compressed, .safetensors, .pt, and datasets
        of HDF5 that are neither chunked nor compressed are mapped into memory; others are read when they are asked
        for. bfloat16 is a dtype of `ml_dtypes`.

    Raises:
        FlowsimError: If the path is missing, damaged or of another kind, if it holds pickled objects, or if a package
            is missing that reads it.

    Examples:
        >>> import numpy as np
        >>> from flowsim.data.arrays import read_named
        >>> np.savez("rows.npz", image_features=np.ones((3, 2)), text_features=np.zeros((3, 2)))
        >>> named = read_named("rows.npz")
        >>> list(named), named["text_features"].shape
        (['image_features', 'text_features'], (3, 2))
    """
    if not isinstance(path, str | os.PathLike) or not str(path):  # a whole number would mean an open file
        raise FlowsimError(f"Expected the path of a file of arrays, but got {shown(path)}. Use e.g. 'rows.npz'.")
    source = str(path)
    with reading(source):
        found = Path(path)
        if not found.exists():
            raise FlowsimError(f"{source} does not exist. Check the path.")
        known = _format_of(found)
        if known is None:
            raise FlowsimError(
                f"{source} is no kind of file that is known. Arrays are read from {', '.join(FILES)}, and from folders "
                "of .npy files."
            )
        return NamedArrays(source, known.open(found))


#: Endings of files, for messages.
FILES = (".npy", ".npz", ".safetensors", ".pt", ".h5", ".zarr", ".parquet", ".csv", ".tsv")


def _format_of(path: Path) -> Format | None:
    """The format of an existing path: by its name, or, for files of NumPy, by their first bytes."""
    named = next((one for one in reversed(list(FORMATS.values())) if one.recognizes(path)), None)
    if path.is_file() and (named is None or named.name in (".npy", ".npz")):
        with open(path, "rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            return FORMATS[".npy"]
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            return FORMATS[".pt" if _is_of_torch(path) else ".npz"]
    return named


def _is_of_torch(path: Path) -> bool:
    """Whether an archive is one that PyTorch wrote."""
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        return any(name.endswith("/data.pkl") for name in archive.namelist())
    return False


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turn what libraries raise for missing, damaged and foreign files into one sentence."""
    try:
        yield
    except FlowsimError:
        raise
    except FileNotFoundError:
        raise FlowsimError(f"{path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise FlowsimError(f"{path} is a folder, not a file. Check the path.") from None
    except PermissionError as error:
        raise FlowsimError(f"{path} cannot be read: {error.strerror or error}. Check the file.") from error
    except MemoryError as error:
        raise FlowsimError(
            f"{path} does not fit into memory, or is damaged. Convert it to .npy, which is mapped into memory."
        ) from error
    except Exception as error:  # each library has kinds of its own for damaged and foreign files
        text = " ".join(str(error).split())
        if "allow_pickle" in text or "Python objects in dtype" in text:
            raise FlowsimError(f"{path} is damaged, of another kind, or {UNPICKLED}") from error
        reason = text if 0 < len(text) <= 200 else f"{text[:196]} ..." if text else type(error).__name__
        raise FlowsimError(f"{path} is damaged or of another kind ({reason}). Write it again.") from error
