"""Features in files of named arrays, among them `.npz`, and folders of `.npy` files that are mapped into memory."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.base.checks import check
from flowsim.data.arrays import NamedArrays, read_named, usual_pairs
from flowsim.data.features import Features
from flowsim.data.given import from_arrays
from flowsim.data.rows import is_mapped
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


def features_of(content: Mapping[str, Any], source: str, mapped: bool = False) -> Features:
    """Features of the contents of a file by their names there, not yet verified.

    Args:
        content: The arrays.
        source: The file.
        mapped: Whether images and texts stay mapped into memory. Others are copied, so that the file may change.

    Returns:
        The features.

    Raises:
        FlowsimError: If images or texts are missing, or do not fit together.
    """
    places = {
        argument: name
        for argument, names in ARRAYS.items()
        for name in [next((name for name in names if name in content), None)]
        if name is not None
    }
    if not {"image", "text"} <= places.keys() and isinstance(content, NamedArrays):
        usual = usual_pairs(content)
        if len(usual) == 1:
            places |= dict(zip(("image", "text"), usual[0], strict=True))
    for name in ("image", "text"):
        check(
            name in places,
            f"{source} needs {name!r}, but holds {', '.join(sorted(content)) or 'nothing'}. "
            "Write it with fs.data.save(fs.data.from_arrays(image, text), path).",
        )
    found = {argument: content[name] for argument, name in places.items()}
    for name, array in found.items():
        if isinstance(array, np.ndarray) and is_mapped(array) and not (mapped and name in ("image", "text")):
            found[name] = np.array(array)
    found["classes"] = [str(one) for one in found.get("classes", ())]
    return from_arrays(**found, source=source, verify=False)


def _write_npz(features: Features, path: str) -> None:
    with open(path, "wb") as file:  # np.savez appends its ending to names
        np.savez(file, **contents(features))  # pyright: ignore[reportArgumentType]


@register(".npz", write=_write_npz)
def read(source: str) -> Features:
    """The features of a file of named arrays."""
    return features_of(read_named(source), source)


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
    return features_of(read_named(source), source, mapped=True)


for _ending in (".h5", ".hdf5", ".pt", ".pth", ".csv", ".tsv"):
    register(_ending)(read)


@register(".zarr", lambda source: source.lower().rstrip("/").endswith((".zarr", ".zarr.zip")))
def read_zarr(source: str) -> Features:
    """The features of a Zarr store, a folder or an archive."""
    return read(source)
