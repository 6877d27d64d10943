"""Load pairs from sources: the registry of readers, and the functions that choose the reader of a source.

    pairs = fs.clip.data.load("photos", "train")

A reader is registered with a name and a function that recognizes its sources; see `register`.
"""

import contextlib
import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from flowsim.base.registry import Registry
from flowsim.clip.data.files import is_pattern
from flowsim.clip.data.given import checked_pairs
from flowsim.clip.data.join import joined_splits
from flowsim.clip.data.pairs import Pairs
from flowsim.clip.data.tables import beside
from flowsim.errors import FlowsimError

PathLike: TypeAlias = str | os.PathLike[str]
_Read = TypeVar("_Read", bound=Callable[..., Pairs])

#: Arguments that `load` passes to readers that have them as parameters.
_TABLES = ("captions", "splits", "images")


@dataclass(frozen=True)
class Reader:
    """The reader of one kind of source; made by `register`.

    Attributes:
        name: Name of the kind.
        recognizes: Function that tells whether a source, as the user writes it, is of this kind.
        describes: Description of such a source, for messages.
        read: `read(source, split, **tables)` returns the pairs of a split (None: of all images).
        labelled: `labelled(source, split)` returns images with classes; None if the kind has no classes.
        splits: Splits that every source of the kind has.
        generated: True if the data are generated from the source's text, and nothing is read from disk.
    """

    name: str
    recognizes: Callable[[str], bool]
    describes: str
    read: Callable[..., Pairs]
    labelled: Callable[[str, str], Pairs] | None
    splits: tuple[str, ...]
    generated: bool

    @property
    def takes(self) -> tuple[str, ...]:
        """Those of `captions`, `splits` and `images` that `read` has as parameters."""
        parameters = inspect.signature(self.read).parameters
        return tuple(name for name in _TABLES if name in parameters)


#: Readers by name; the last registered one is tried first.
READERS: Registry[Reader] = Registry("reader")


def register(
    name: str,
    recognizes: Callable[[str], bool],
    *,
    describes: str | None = None,
    labelled: Callable[[str, str], Pairs] | None = None,
    splits: Sequence[str] = (),
    generated: bool = False,
) -> Callable[[_Read], _Read]:
    """Decorator that registers a function as the reader of a kind of source.

    The last registered reader is tried first. Registering a name again, e.g. by running a cell twice, replaces the
    reader. A study with several `jobs` trains in other processes, which know a reader only if the script registers it
    at top level.

    Args:
        name: Name of the kind, e.g. "parquet".
        recognizes: Function that tells whether a source, as the user writes it, is of this kind.
        describes: Description of such a source, listed in messages, e.g. "a .parquet file"; default: the name in
            quotes.
        labelled: `labelled(source, split)` returns images with classes, for `load_labelled`.
        splits: Splits that every source of the kind has. `measure` then takes "test" by default.
        generated: True if the data are generated from the source's text, and nothing is read from disk.

    Returns:
        The decorator of `read(source, split)`, which returns the `Pairs` of the split, or of all images if it is None.
        If it has parameters `captions`, `splits` or `images`, it gets these arguments of `load`.

    Raises:
        FlowsimError: For the name of one of flowsim's own readers.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from flowsim.clip import data
        >>> @data.register("grey", lambda source: source.startswith("grey:"), describes="'grey:COUNT'",
        ...                splits=("train", "test"))
        ... def read(source, split):
        ...     greys = [k for k in range(int(source[5:])) if split in (None, "test" if k % 2 else "train")]
        ...     return data.Pairs.of([f"{k}" for k in greys], [[f"number {k}"] for k in greys],
        ...                          lambda i: Image.new("RGB", (8, 8), 3 * (greys[i],)), source=source, split=split)
        >>> data.load("grey:3").captions
        (('number 0',), ('number 1',), ('number 2',))
        >>> data.load("grey:3", "test").captions
        (('number 1',),)
    """

    def add(read: _Read) -> _Read:
        reader = Reader(name, recognizes, describes or repr(name), read, labelled, tuple(splits), generated)
        READERS.add(name, reader, read.__module__, read)
        return read

    return add


def load(
    spec: PathLike,
    split: str | None = None,
    *,
    captions: PathLike | None = None,
    splits: PathLike | None = None,
    images: PathLike | None = None,
    limit: int | None = None,
    seed: int = 0,
    verify: bool = False,
) -> Pairs:
    """Load the pairs of a source, all of them or those of one split.

    Args:
        spec: One of

            - a folder with images and `captions.tsv` (or `.csv`; columns filename and caption, one row per caption),
              and `splits.tsv` (columns filename and split) if there are splits; the images may be in subfolders or in
              `.tar` files;
            - a WebDataset, whose files share a stem: `a.jpg` (png, webp), `a.txt` (one caption per line) or `a.json`
              (with "caption" or "captions"), and `a.cls` for classes: a folder, a `.tar`, or a pattern such as
              "shards-{0000..0007}.tar" or "train-*.tar"; tars are read in place;
            - the JSON of COCO captions, with its images in the folder `images`, or in one next to the file;
            - "shapes", or "shapes:count=2000,mispaired=0.2" with the settings of `Shapes`; its splits are train, val,
              test ("./shapes" is a folder);
            - a source that your own reader recognizes (`register`).
        split: Name of the split; None for all images.
        captions: Table of captions, if it is elsewhere.
        splits: Table of splits, if it is elsewhere.
        images: Folder of COCO's images.
        limit: Number of pairs to keep, drawn at random; None for all.
        seed: Seed of that draw.
        verify: Read each image once, and leave out those that cannot be decoded.

    Returns:
        The pairs. Everything left out is counted in `Pairs.skipped`.

    Raises:
        FlowsimError: If something is missing, unreadable or empty.
    """
    source = os.fspath(spec)
    reader = reader_of(source)
    given: dict[str, Any] = {"captions": captions, "splits": splits, "images": images}
    given = {name: value for name, value in given.items() if value is not None}
    for name in given:
        if name not in reader.takes:
            others = [one.describes for one in READERS.values() if name in one.takes]
            raise FlowsimError(
                f"Argument `{name}` does not go with {reader.describes}. Leave it out, or give {_either(others)}."
            )
    pairs = _read(reader, source, lambda: reader.read(source, split, **given), captioned=True)
    if limit is not None:
        if limit < 1:
            raise FlowsimError(f"Argument `limit` must be at least 1, but is {limit}. Leave it out for all pairs.")
        if limit < len(pairs):
            pairs = pairs.select(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit]))
    return pairs.checked() if verify and not reader.generated else pairs


def load_all(spec: PathLike) -> Pairs:
    """Load the pairs of every split of a source, with the split of each image in `Pairs.splits`.

    Args:
        spec: A source, see `load`.

    Returns:
        The pairs, in the order of the splits if the source always has the same ones.

    Raises:
        FlowsimError: If something is missing, unreadable or empty.
    """
    names = reader_of(os.fspath(spec)).splits
    return joined_splits([load(spec, name) for name in names]) if names else load(spec)


def load_labelled(spec: PathLike, split: str) -> Pairs:
    """Load images with classes; captions are not needed.

    Args:
        spec: One of

            - a folder with one subfolder per class (`train/dog/1.jpg`, `test/cat/2.jpg`);
            - a WebDataset with `a.cls` next to `a.jpg`, which holds the name of a class, or its number;
            - "shapes:...", as in `load`;
            - a source that your own reader recognizes, if it was registered with `labelled`.
        split: "train" or "test", from `splits.tsv` or else from the name of a folder or shard (`train/`,
            `test-0003.tar`). If there is no "test", "val" is used instead.

    Returns:
        The images with `labels` and `classes`. A file `classnames.txt` next to them names the classes 0, 1, ..., one
        per line. Images without class or split are counted in `Pairs.skipped`.

    Raises:
        FlowsimError: If something is missing, unreadable or empty.
    """
    source = os.fspath(spec)
    reader = reader_of(source)
    if reader.labelled is None:
        others = [one.describes for one in READERS.values() if one.labelled is not None]
        raise FlowsimError(f"{source!r} is {reader.describes}, which has no classes. Give {_either(others)}.")
    labelled = reader.labelled
    return _read(reader, source, lambda: labelled(source, split), captioned=False)


def reader_of(source: str) -> Reader:
    """The reader that recognizes a source.

    Args:
        source: Source as the user writes it.

    Returns:
        The reader.

    Raises:
        FlowsimError: If none does, with all kinds of sources.
    """
    reader = _find(source)
    if reader is None:
        kinds = _either([one.describes for one in READERS.values()])
        if is_pattern(source) or os.path.exists(source):
            raise FlowsimError(
                f"No reader knows {source!r}. Data is {kinds}. A reader of other sources can be registered in Python "
                "with `fs.clip.data.register`."
            )
        path = Path(source)
        beside_it: list[str] = []
        with contextlib.suppress(OSError, ValueError):  # no such folder, or one that cannot be read
            beside_it = os.listdir(path.parent)
        generated = [one.name for one in READERS.values() if one.generated]
        near = difflib.get_close_matches(source, [*generated, *(str(path.with_name(n)) for n in beside_it)], n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the path."
        raise FlowsimError(f"There is no {source!r}. {hint} Data is {kinds}.")
    return reader


def is_generated(source: str) -> bool:
    """Whether the data are generated from the source's text, as for shapes, and not read from disk."""
    reader = _find(source)
    return reader is not None and reader.generated


def known_split(source: str, name: str) -> str | None:
    """The name of a split, e.g. "test", if the source has splits; None for others, which are used completely."""
    reader = _find(source)
    own = reader is not None and name in reader.splits
    return name if own or beside(Path(source), "splits") is not None else None


def _read(reader: Reader, source: str, read: Callable[[], Any], captioned: bool) -> Pairs:
    """What the reader gives, checked; files that it cannot read become one sentence."""
    try:
        found = read()
    except OSError as error:
        file = source if error.filename is None else os.fsdecode(error.filename)
        raise FlowsimError(
            f"Reader {reader.name!r} cannot read {file!r}: {error.strerror or error}. Check the path."
        ) from error
    return checked_pairs(found, Pairs, reader.name, source, captioned)


def _find(source: str) -> Reader | None:
    return next((reader for reader in reversed(list(READERS.values())) if reader.recognizes(source)), None)


def _either(kinds: Sequence[str]) -> str:
    """ "a, b, or c"."""
    if len(kinds) < 3:
        return " or ".join(kinds)
    return f"{', '.join(kinds[:-1])}, or {kinds[-1]}"
