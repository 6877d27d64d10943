"""Splits of a source, and splits and classes given by the names of folders and shards."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from flowsim.clip.data.files import Found
from flowsim.errors import FlowsimError, unknown_name

#: Names of folders and shards that mean a split: train, train-0003.tar, validation.
_SPLIT_NAME = re.compile(r"(train|test|val)(ing|idation)?(?![a-z])")


def split_sizes(found: Iterable[Found], assigned: Mapping[str, str]) -> Counter[str]:
    """Number of images in each split."""
    return Counter(assigned[one.key] for one in found if one.key in assigned)


def check_split(spec: str, split: str, assigned: Mapping[str, str], sizes: Mapping[str, int], cure: str = "") -> None:
    """Refuse a split that does not exist, or is empty; the message lists those that exist, and ends with the cure."""
    if not assigned:
        raise FlowsimError(
            f"{spec!r} has no splits. Add splits.tsv with the columns filename and split, or use all images with "
            "`split=None`; for training also with `held_out=None`, or with another `held_out_data`."
        )
    known = {name: sizes.get(name, 0) for name in assigned.values()}
    cure = cure and f" {cure}"
    existing = ", ".join(f"{name} ({count:,})" for name, count in sorted(known.items()))
    if split not in known:
        raise FlowsimError(f"{unknown_name('split', split, known)} Images of {spec!r}: {existing}.{cure}")
    if not known[split]:
        raise FlowsimError(f"Split {split!r} of {spec!r} is empty. Images: {existing}.{cure}")


def split_and_class(one: Found, home: Path) -> tuple[str | None, str | None]:
    """Split and class of an image by its folders and shard; the class is the first folder below that of the split."""
    folders = one.key.split("/")[:-1]
    if one.image.size >= 0:  # within a shard
        shard = os.path.relpath(one.image.path, home).split(os.sep)
        inside = folders
        for k in range(1, len(shard) + 1):  # names that occur in several shards begin with that of the shard
            if "/".join(folders[:k]) + ".tar" == "/".join(shard[-k:]):
                inside = folders[k:]
        folders = [*shard, *inside]
    found = [_SPLIT_NAME.match(folder.lower()) for folder in folders]
    at = next((k for k, match in enumerate(found) if match), None)
    rest = [folder for folder in folders[0 if at is None else at + 1 :] if not folder.endswith(".tar")]
    split = None if at is None or (match := found[at]) is None else match[1]
    return split, rest[0] if rest else None
