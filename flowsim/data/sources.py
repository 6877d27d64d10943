"""Read and write features: the registry of readers, and the functions that choose the one of a file.

    features = fs.data.load("features.npz")
    fs.data.save(features, "features")  # a folder, which is read as a memory map

A reader is a function registered for an ending of file names; see `register`.
"""

import difflib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from flowsim.base.checks import check, check_flag, shown
from flowsim.base.files import write_atomically
from flowsim.base.registry import Registry
from flowsim.data.features import Features
from flowsim.data.given import check_values
from flowsim.errors import FlowsimError

PathLike: TypeAlias = str | os.PathLike[str]
_Read = TypeVar("_Read", bound=Callable[..., Features])


@dataclass(frozen=True)
class Reader:
    """The reader of one kind of source; made by `register`.

    Attributes:
        name: The ending of its files, e.g. ".npz", or another name.
        recognizes: Function that tells whether a source, as the user writes it, is of this kind.
        describes: Description of such a source, for messages.
        read: `read(source)` returns the features.
        write: `write(features, path)` writes a file or folder, which then takes the place of an older one; None if
            the kind cannot be written.
    """

    name: str
    recognizes: Callable[[str], bool]
    describes: str
    read: Callable[[str], Features]
    write: Callable[[Features, str], Any] | None


#: Readers by name; the last registered one is tried first.
READERS: Registry[Reader] = Registry("reader of features")


def register(
    name: str,
    recognizes: Callable[[str], bool] | None = None,
    *,
    describes: str | None = None,
    write: Callable[[Features, str], Any] | None = None,
) -> Callable[[_Read], _Read]:
    """Decorator that registers a function as the reader of a kind of file.

    The last registered reader is tried first. Registering a name again, e.g. by running a cell twice, replaces the
    reader.

    Args:
        name: The ending of the files, e.g. ".txt", or another name if `recognizes` is given.
        recognizes: Function that tells whether a source, as the user writes it, is of this kind; by default those that
            end with the name.
        describes: Description of such a source, listed in messages; default "a .txt file", or the name in quotes.
        write: `write(features, path)` for `save`. The path is that of a temporary file with another ending.

    Returns:
        The decorator of `read(source)`, which returns `Features`, for example those of `from_arrays`.

    Raises:
        FlowsimError: For the name of one of flowsim's own readers.

    Examples:
        >>> import numpy as np
        >>> import flowsim as fs
        >>> @fs.data.register(".txt")
        ... def read(path):
        ...     rows = np.loadtxt(path, delimiter=",")
        ...     return fs.data.from_arrays(rows[:, :3], rows[:, 3:], source=path)
        >>> np.savetxt("pairs.txt", np.arange(1.0, 11).reshape(2, 5), delimiter=",")
        >>> fs.data.load("pairs.txt").text_dim
        2
    """
    ending = name.startswith(".")
    check(
        ending or recognizes is not None,
        f"The name {name!r} is no ending of files. Use e.g. '.h5', or tell sources apart with `recognizes`.",
    )

    def add(read: _Read) -> _Read:
        known = recognizes or (lambda source: source.lower().endswith(name.lower()))
        words = describes or (f"a {name} file" if ending else repr(name))
        READERS.add(name, Reader(name, known, words, read, write), read.__module__, read)
        return read

    return add


def load(path: PathLike, *, verify: bool = True) -> Features:
    """Load features.

    Args:
        path: One of

            - a `.npz` file with arrays `image` (N, p) and `text` (N, q) or (N, c, q), and if wanted `split`, `names`
              (also called `filename` or `name`), `counts`, `labels`, `classes` and `class_text`, see `from_arrays`;
            - a folder with the same arrays as `image.npy`, `text.npy`, ...; images and texts are mapped into memory, so
              that only rows in use are read;
            - a `.safetensors` file with tensors `image`, `text`, `counts`, `labels` and `class_text`; `split`, `names`
              and `classes` are lists in JSON among its metadata;
            - a `.parquet` file with a row for each pair and columns `image` (list of floats) and `text` (list of
              floats, or a list of these for several captions), and if wanted `split`, `name` and `label`;
            - a `.h5`, `.zarr`, `.pt` (tensors only) or `.csv` file with arrays of these names, see
              `flowsim.data.arrays.read_named`;
            - "emoji" for `emoji()` ("./emoji" is a folder);
            - a source that your own reader recognizes (`register`).
        verify: Whether every row is read once, to refuse NaN, infinity and rows of zeros.

    Returns:
        The features, not scaled.

    Raises:
        FlowsimError: If the file is missing, damaged or of another kind, if features are missing or do not fit
            together, or if a package is missing that reads this kind.
    """
    check_flag("verify", verify)
    check(isinstance(path, (str, os.PathLike)), f"Expected a path, but got {shown(path)}. Use e.g. 'features.npz'.")
    source = os.fspath(path)
    reader = _reader_of(source)
    try:
        found = reader.read(source)
        if isinstance(found, Features) and verify:
            check_values(found)
    except OSError as error:
        raise FlowsimError(f"{source!r} cannot be read: {error.strerror or error}. Check the file.") from error
    except FlowsimError as error:
        raise FlowsimError(str(error) if source in str(error) else f"{source}: {error}") from error
    check(
        isinstance(found, Features),
        f"The reader of {reader.name!r} must return features, but gives {shown(found)}. Return "
        "`fs.data.from_arrays(...)`.",
    )
    return found


def save(features: Features, path: PathLike) -> Path:
    """Write features to a file or folder, in one step and in their dtype. They are written as stored, not scaled.

    Args:
        features: The features.
        path: A name with the ending .npz, .safetensors or .parquet, or one without ending for a folder of `.npy` files.
            An older file of the name is replaced, and so is a folder if it holds nothing else than features.

    Returns:
        The path.

    Raises:
        FlowsimError: If the name has another ending, the file cannot be written, or a package is missing.
    """
    check(isinstance(features, Features), f"Expected features, but got {shown(features)}. Use fs.data.from_arrays.")
    path = Path(path)
    name = path.suffix.lower() or "folder"
    reader = READERS.get(name)
    if reader is None or reader.write is None:
        endings = [one.name for one in READERS.values() if one.write is not None and one.name.startswith(".")]
        raise FlowsimError(
            f"Features cannot be written to {str(path)!r}. Use a name that ends in {_either(endings)}, or one without "
            "ending for a folder."
        )
    if name == "folder":
        reader.write(features, str(path))
        return path
    check(not path.is_dir(), f"{str(path)!r} is a folder. Choose another name.")
    write = reader.write
    return write_atomically(path, lambda temporary: write(features, temporary))


def _reader_of(source: str) -> Reader:
    """The reader that recognizes a source; raises `FlowsimError` if none does, or the file is missing."""
    reader = next((one for one in reversed(list(READERS.values())) if one.recognizes(source)), None)
    kinds = f"Features are {_either([one.describes for one in READERS.values()])}."
    if reader is not None and (os.path.exists(source) or not (READERS.is_ours(reader.name) and reader.name[0] == ".")):
        return reader
    if os.path.exists(source):
        raise FlowsimError(f"No reader knows {source!r}. {kinds} Others can be registered with `fs.data.register`.")
    folder = Path(source).parent
    beside = [str(folder / name) for name in os.listdir(folder)] if folder.is_dir() else []
    near = difflib.get_close_matches(source, [*beside, "emoji"], n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the path."
    raise FlowsimError(f"There is no {source!r}. {hint} {kinds}")


def _either(kinds: Sequence[str]) -> str:
    """ "a, b, or c"."""
    return f"{', '.join(kinds[:-1])}, or {kinds[-1]}"
