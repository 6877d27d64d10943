"""Files of frozen features: a folder that is filled block by block, and how features are found in a finished one.

A folder holds `image.npy` (N, p), `text.npy` (N, c, q), `counts.npy`, `names.npy`, `split.npy`, with classes also
`labels.npy`, `classes.npy` and `class_text.npy`, and `features.json`, which says where they come from.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap

from flowsim.base.files import write_text
from flowsim.data import load, save
from flowsim.errors import FlowsimError

#: Says where features come from; in an unfinished folder also how many rows are done.
ABOUT = "features.json"
#: Endings of features in one file; other names are folders.
FILES = (".npz", ".safetensors")
#: Rows copied at once.
_COPIED = 4096


class Unfinished:
    """A folder of features that is being filled; an interrupted one goes on where it stopped.

    - `folder`: the folder. `about`: what identifies the features.
    - `done`: images whose rows are written.
    - `image` (N, p), `text` (N, c, q): memory maps in half precision. `good` (N,): which images could be decoded.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        image: tuple[int, int],
        text: tuple[int, int, int],
        force: bool = False,
    ) -> None:
        self.folder, self.about, self.done = folder, dict(about), 0
        shapes: dict[str, Any] = {"image": (image, np.float16), "text": (text, np.float16), "good": (image[:1], bool)}
        if (folder / ABOUT).is_file() and not (force and differences(read_about(folder), about)):
            self.done = self._resumed(image[0])
            arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r+", allow_pickle=False) for name in shapes}
        else:
            shutil.rmtree(folder, ignore_errors=True)  # killed before anything was written
            with _written(folder):
                folder.mkdir(parents=True)
                arrays = {
                    name: open_memmap(folder / f"{name}.npy", "w+", kind, shape)
                    for name, (shape, kind) in shapes.items()
                }
        self.image, self.text, self.good = arrays["image"], arrays["text"], arrays["good"]
        if not self.done:
            self.save()

    def save(self) -> None:
        """Note that the rows of the first `done` images are written."""
        with _written(self.folder):
            for array in (self.image, self.text, self.good):
                array.flush()
        write_text(
            self.folder / ABOUT, json.dumps({**self.about, "unfinished": self.done}, ensure_ascii=False, indent=2)
        )

    def finish(self, about: Mapping[str, Any], more: Mapping[str, np.ndarray]) -> None:
        """Leave out the rows of broken images, and add the arrays `more` and the whole of `about`."""
        kept = np.array(self.good)
        del self.image, self.text
        for name in ("image", "text"):
            _keep_rows(self.folder / f"{name}.npy", kept)
        with _written(self.folder):
            for name, array in more.items():
                np.save(self.folder / f"{name}.npy", array, allow_pickle=False)
        write_text(self.folder / ABOUT, json.dumps(dict(about), ensure_ascii=False, indent=2))

    def _resumed(self, images: int) -> int:
        """The number of images that are done. Raises `FlowsimError` if the folder belongs to other features."""
        known = read_about(self.folder)
        differing = differences(known, self.about)
        if differing:
            raise FlowsimError(
                f"{str(self.folder)!r} holds unfinished features that differ in {differing}. Give the same options as "
                "before, another `out`, or `force=True`."
            )
        return int(known.get("unfinished", images))


def publish(folder: Path, path: Path) -> None:
    """Put a filled folder in its place: as the folder `path`, or as one file .npz or .safetensors."""
    with _written(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in FILES:
            save(load(folder, verify=False), path)
            os.replace(folder / ABOUT, _about(path))
        else:
            old = folder.with_name(f"{folder.name}.replaced")
            if path.exists():
                os.replace(path, old)
            os.replace(folder, path)
            (path / "good.npy").unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def differences(known: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first thing in which features differ from those that are wanted: "model (a, not b)"; empty if in nothing."""
    for name, value in wanted.items():
        if known.get(name) != value:
            return f"{name.replace('_', ' ')} ({_words(known.get(name))}, not {_words(value)})"
    return ""


def _words(value: Any) -> str:
    return ", ".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def read_about(path: Path) -> dict[str, Any]:
    """What is known of features that `fs.clip.features` has written; empty for others."""
    try:
        found = json.loads(_about(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FlowsimError(f"{str(_about(path))!r} cannot be read ({error}). Remove it, or write it again.") from None
    return found if isinstance(found, dict) else {}


def images_digest(source: str) -> str:
    """16 hexadecimal digits of a hash of the features of images and their names; those of texts are not read."""
    features = load(source, verify=False)
    found = hashlib.sha256(json.dumps(None if features.names is None else features.names.tolist()).encode())
    for where in features.stored_image.blocks():
        found.update(np.ascontiguousarray(features.stored_image.read(where)).tobytes())
    return found.hexdigest()[:16]


def _about(path: Path) -> Path:
    return path / ABOUT if path.suffix not in FILES else path.with_name(f"{path.name}.json")


def _keep_rows(path: Path, kept: np.ndarray) -> None:
    """Rewrite an array without some of its rows, in parts; nothing to do if it has been done already."""
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    rows = np.flatnonzero(kept)
    if len(array) == len(rows):
        return
    temporary = path.with_suffix(".tmp")
    with _written(path):
        new = open_memmap(temporary, "w+", array.dtype, (len(rows), *array.shape[1:]))
        for first in range(0, len(rows), _COPIED):
            part = slice(first, first + _COPIED)
            new[part] = array[rows[part]]
        new.flush()
        del new, array
        os.replace(temporary, path)


@contextlib.contextmanager
def _written(path: Path) -> Iterator[None]:
    """Errors of the system as one sentence."""
    try:
        yield
    except OSError as error:
        raise FlowsimError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Choose a folder that you may write to."
        ) from None
