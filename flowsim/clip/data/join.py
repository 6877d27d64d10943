"""Join the images that a reader has found with the tables of captions and splits."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from PIL import Image

from flowsim.clip.data.classes import numbered
from flowsim.clip.data.files import Bytes, Found
from flowsim.clip.data.given import OTHER_SPLIT
from flowsim.clip.data.pairs import Pairs, Skips
from flowsim.clip.data.splits import check_split, split_sizes
from flowsim.clip.data.tables import Names, captions_in, splits_in
from flowsim.errors import FlowsimError


def joined(
    spec: str, split: str | None, found: Sequence[Found], captions: Path | None, splits: Path | None, skips: Skips
) -> Pairs:
    """The pairs of one split, or of all images.

    Args:
        spec: The source, for messages.
        split: Name of the split; None for all.
        found: Images, with the captions stored next to them.
        captions: Table of captions, which replaces those; None without.
        splits: Table of splits; None without.
        skips: Images left out so far; updated in place.

    Returns:
        The pairs.

    Raises:
        FlowsimError: If the split does not exist or is empty, or if no image has a caption.
    """
    names = Names(one.key for one in found)
    assigned = splits_in(splits, names)
    if split is not None:
        check_split(spec, split, assigned, split_sizes(found, assigned), OTHER_SPLIT)
    written = (
        None
        if captions is None
        else captions_in(captions, names, skips, lambda key: split is None or assigned.get(key, split) == split)
    )
    kept = _with_captions(found, split, assigned, written, skips)
    if not kept:
        raise _no_captions(spec, split, captions, skips)
    labels, classes = numbered(kept, [one.label for one in found], skips)
    return Pairs.of(
        [one.key for one in kept],
        [one.captions for one in kept],
        opener([one.image for one in kept]),
        source=spec,
        split=split,
        labels=labels,
        classes=classes,
        skips=skips,
        splits=[assigned.get(one.key, "") for one in kept] if assigned else None,
    )


def joined_splits(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of several splits of one source, one after the other; what a split left out is added up."""
    first, skips = parts[0], Skips()
    where = [(part, i) for part in parts for i in range(len(part))]
    for part in parts:
        for reason, count in part.skipped.items():
            skips.counts[reason] = skips.counts.get(reason, 0) + count
            skips.names.setdefault(reason, []).extend(part.examples.get(reason, ()))
    alike = all(part.classes == first.classes and part.labels is not None for part in parts)

    def open_image(k: int) -> Image.Image:
        part, i = where[k]
        return part.opened(i)

    return Pairs.of(
        [key for part in parts for key in part.keys],
        [captions for part in parts for captions in part.captions],
        open_image,
        source=first.source,
        labels=[label for part in parts for label in _numbers(part)] if alike else None,
        classes=first.classes if alike else (),
        skips=skips,
        splits=[split for part in parts for split in part.splits or [part.split or ""] * len(part)],
    )


def _numbers(part: Pairs) -> list[int]:
    return [] if part.labels is None else part.labels.tolist()


def opener(images: Sequence[Bytes]) -> Callable[[int], Image.Image]:
    """A function that opens image i."""
    return lambda i: Image.open(io.BytesIO(images[i].read()))


def _with_captions(
    found: Sequence[Found],
    split: str | None,
    assigned: Mapping[str, str],
    written: Mapping[str, Sequence[str]] | None,
    skips: Skips,
) -> list[Found]:
    """The images of the split that have captions, with their captions."""
    kept = []
    for one in found:
        if split is not None and assigned.get(one.key) != split:
            if one.key not in assigned:
                skips.add("image without split", one.key)
            continue
        texts = one.captions if written is None else tuple(written.get(one.key, ()))
        if texts:
            kept.append(one._replace(captions=texts))
        else:
            skips.add("image without caption", one.key)
    return kept


def _no_captions(spec: str, split: str | None, table: Path | None, skips: Skips) -> FlowsimError:
    reasons = ", ".join(f"{reason}: {count}" for reason, count in skips.counts.items())
    part = "" if split is None else f" in split {split!r}"
    cure = (
        "Add captions.tsv with the columns filename and caption, or name a table with `captions`."
        if table is None
        else f"Check that the file names in {str(table)!r} are those of the images."
    )
    return FlowsimError(f"No image of {spec!r}{part} has a caption ({reasons}). {cure}")
