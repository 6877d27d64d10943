"""Classes of images: their numbers and their names."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int

from flowsim.clip.data.files import Found
from flowsim.clip.data.pairs import Skips
from flowsim.clip.data.tables import read_text
from flowsim.errors import FlowsimError


def numbered(
    kept: Sequence[Found], all_labels: Sequence[str | None], skips: Skips
) -> tuple[Int[np.ndarray, "n"] | None, tuple[str, ...]]:
    """Class numbers and class names, equal in all splits; None unless every image has a class."""
    missing = [one.key for one in kept if one.label is None]
    if missing:
        if len(missing) < len(kept):
            for key in missing:
                skips.add("image without class (so there are no labels)", key)
        return None, ()
    present = {label for label in all_labels if label is not None}
    if all(re.fullmatch(r"[0-9]{1,6}", label) for label in present):
        classes = tuple(str(k) for k in range(max(map(int, present)) + 1))
        return np.array([int(one.label or 0) for one in kept]), classes
    classes = tuple(sorted(present))
    place = {name: k for k, name in enumerate(classes)}
    return np.array([place[one.label or ""] for one in kept]), classes


def class_names(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names for classes that are numbers, from a file with one per line; other classes keep their names."""
    if not path.is_file() or not all(name.isdigit() for name in classes):
        return classes
    lines = read_text(path).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < len(classes):
        raise FlowsimError(
            f"{str(path)!r} names {len(names)} classes, but there is a class {len(classes) - 1}. "
            "Give one line per class, starting with class 0."
        )
    return names
