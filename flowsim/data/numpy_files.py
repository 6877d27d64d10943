"""Features in NumPy files: `.npz`, and folders of `.npy` files that are mapped into memory."""

import contextlib
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.base.checks import check
from flowsim.data.features import Features
from flowsim.data.given import from_arrays
from flowsim.data.sources import register
from flowsim.errors import FlowsimError

#: Arguments of `from_arrays` -> the names under which files may hold them, the first of which is written.
ARRAYS = {
    "image": ("image",),
    "text": ("text",),
    "split": ("split",),
    "names": ("names", "filename", "name"),
    "counts": ("counts",),
    "labels": ("labels", "label"),
    "classes": ("classes",),
    "class_text": ("class_text",),
}


def contents(features: Features) -> dict[str, np.ndarray]:
    """The arrays of features by their names in files, as they are stored."""
    found = {
        "image": features.image,
        "text": features.text,
        "split": features.split,
        "names": features.names,
        "counts": features.counts,
        "labels": features.labels,
        "classes": np.array(features.classes) if features.classes else None,
        "class_text": features.class_text,
    }
    return {name: array for name, array in found.items() if array is not None}


def features_of(content: Mapping[str, Any], source: str) -> Features:
    """Features of the contents of a file by their names there, not yet verified; raises `FlowsimError`."""
    found = {
        argument: content[name]
        for argument, names in ARRAYS.items()
        for name in [next((name for name in names if name in content), None)]
        if name is not None
    }
    for name in ("image", "text"):
        check(
            name in found,
            f"{source} needs {name!r}, but holds {', '.join(sorted(content)) or 'nothing'}. "
            "Write it with fs.data.save(fs.data.from_arrays(image, text), path).",
        )
    found["classes"] = [str(one) for one in found.get("classes", ())]
    return from_arrays(**found, source=source, verify=False)


@contextlib.contextmanager
def reading(path: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn what a library raises for damaged and foreign files into one sentence."""
    try:
        yield
    except FlowsimError:
        raise
    except (ValueError, EOFError, KeyError, zipfile.BadZipFile, *errors) as error:
        if "allow_pickle" in str(error) or "Python objects in dtype" in str(error):
            raise FlowsimError(
                f"{path} is damaged, of another kind, or holds pickled Python objects, which are not loaded. Save "
                "plain arrays of numbers and strings."
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FlowsimError(f"{path} is damaged or of another kind ({reason}). Write it again.") from error


def _write_npz(features: Features, path: str) -> None:
    with open(path, "wb") as file:  # np.savez appends its ending to names
        np.savez(file, **contents(features))  # pyright: ignore[reportArgumentType]


@register(".npz", write=_write_npz)
def read_npz(source: str) -> Features:
    """The features of a `.npz` file."""
    known = {name for names in ARRAYS.values() for name in names}
    with reading(source), open(source, "rb") as opened:  # which NumPy leaves open if it is damaged
        file = np.load(opened, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise FlowsimError(f"{source} holds a single array. Write it with fs.data.save.")
        content = {name: file[name] if name in known else None for name in file.files}
    return features_of(content, source)


def _write_folder(features: Features, path: str) -> None:
    """Fill a folder beside the path, then put it in its place."""
    target = Path(path)
    ours = {f"{name}.npy" for names in ARRAYS.values() for name in names}
    others = {one.name for one in target.iterdir()} - ours if target.is_dir() else set()
    check(
        not others and not target.is_file(),
        f"{path!r} exists and holds something else than features. Choose another name, or remove it.",
    )
    temporary = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        new, old = temporary / "new", temporary / "old"
        new.mkdir()
        for name, array in contents(features).items():
            np.save(new / f"{name}.npy", array)
        if target.is_dir():
            os.replace(target, old)  # files that are mapped stay readable
        os.replace(new, target)
    except OSError as error:
        raise FlowsimError(
            f"Cannot write {path!r}: {error.strerror or error}. Choose a folder that you may write to."
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


@register("folder", os.path.isdir, describes="a folder of .npy files", write=_write_folder)
def read_folder(source: str) -> Features:
    """The features of a folder; images and texts are mapped into memory."""
    content: dict[str, np.ndarray] = {}
    for file in sorted(Path(source).glob("*.npy")):
        if any(file.stem in names for names in ARRAYS.values()):
            mapped = "r" if file.stem in ("image", "text") else None
            with reading(str(file)):
                content[file.stem] = np.load(file, mmap_mode=mapped, allow_pickle=False)
    return features_of(content, source)
