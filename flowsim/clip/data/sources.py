"""Where pairs come from: the registry of readers, and the functions that choose the reader of a source.

    pairs = fs.clip.data.load("photos", "train")

A reader is a function that registers with a name and a test of whether it reads a given source; see `register`.
"""

import difflib
import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from flowsim.base.registry import Registry
from flowsim.clip.data.pairs import Pairs
from flowsim.clip.data.tables import beside
from flowsim.errors import FlowsimError

PathLike: TypeAlias = str | os.PathLike[str]
_Read = TypeVar("_Read", bound=Callable[..., Pairs])

#: Tables and folders that `load` passes on to readers that take them.
_TABLES = ("captions", "splits", "images")


@dataclass(frozen=True)
class Reader:
    """How one kind of source is read; `register` makes it.

    - `name`: of the kind.
    - `recognizes`: whether a source, as the user writes it, is of this kind.
    - `describes`: such a source in words, for messages.
    - `read`: `read(source, split, **tables)` gives the pairs of a split (None: of all images).
    - `labelled`: `labelled(source, split)` gives images with classes; None if the kind has no classes.
    - `splits`: splits that every source of the kind has.
    - `generated`: the source's text says all: nothing is read from a disk.
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
        """Which of `captions`, `splits` and `images` the function `read` has as parameters."""
        parameters = inspect.signature(self.read).parameters
        return tuple(name for name in _TABLES if name in parameters)


#: Readers by name; those that were registered last are asked first.
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
    """Make a function the reader of a kind of source. A decorator.

    A reader that was registered last is asked first. One of the same name that was registered before, as when a cell
    is run again, gives way. A study with several `jobs` trains in other processes: there, readers are known if the
    script registers them at its top level.

    Args:
        name: of the kind, e.g. "parquet".
        recognizes: whether a source, as the user writes it, is of this kind.
        describes: such a source in words, which messages list, e.g. "a .parquet file"; by default the name in quotes.
        labelled: `labelled(source, split)` gives images with classes, for `load_labelled`.
        splits: splits that every source of the kind has.
        generated: True if the source's text says all, and nothing is read from a disk.

    Returns:
        The decorator of `read(source, split)`, which returns `Pairs`: of one split, or of all images if it is None. Of
        the keyword arguments `captions`, `splits` and `images` of `load` it gets those that it has as parameters.

    Raises:
        FlowsimError: for the name of one of flowsim's own readers.

    Examples:
        >>> import numpy as np
        >>> from PIL import Image
        >>> from flowsim.clip import data
        >>> @data.register("grey", lambda source: source.startswith("grey:"), describes="'grey:COUNT'")
        ... def read(source, split):
        ...     names = [f"{k}" for k in range(int(source[5:]))]
        ...     return data.Pairs.of(names, [(f"number {k}",) for k in names],
        ...                          lambda k: Image.new("RGB", (8, 8), (k, k, k)), source=source, split=split)
        >>> data.load("grey:3").captions
        (('number 0',), ('number 1',), ('number 2',))
    """

    def add(read: _Read) -> _Read:
        reader = Reader(name, recognizes, describes or repr(name), read, labelled, tuple(splits), generated)
        READERS.add(name, reader, read.__module__)
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
    """The pairs of a source, all of them or those of one split.

    Args:
        spec: one of

            - a folder with images and `captions.tsv` (or `.csv`; columns filename and caption, a row for each caption),
              and for splits `splits.tsv` (columns filename and split); the images may lie in folders within it, or in
              `.tar` files;
            - a WebDataset, in which files share a stem: `a.jpg` (png, webp), `a.txt` (a caption in each line) or
              `a.json` (with "caption" or "captions"), and for classes `a.cls`: a folder, a `.tar`, or a pattern such as
              "shards-{0000..0007}.tar" or "train-*.tar"; tars are read in place;
            - the JSON of COCO captions; its images lie in the folder `images`, or in one beside the file;
            - "shapes", or "shapes:count=2000,mispaired=0.2" with the settings of `Shapes`; its splits are train, val,
              test ("./shapes" is a folder);
            - what a reader of yours recognizes (`register`).
        split: name of the split; None for all images.
        captions: table of captions elsewhere.
        splits: table of splits elsewhere.
        images: folder of COCO's images.
        limit: keep this many pairs, drawn at random.
        seed: of that draw.
        verify: read each image once, and leave out those that cannot be decoded.

    Returns:
        The pairs. Whatever is left out is counted in `Pairs.skipped`.

    Raises:
        FlowsimError: for what is missing, unreadable or empty.
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
    pairs = reader.read(source, split, **given)
    if limit is not None:
        if limit < 1:
            raise FlowsimError(f"Argument `limit` must be at least 1, but is {limit}. Leave it out for all pairs.")
        if limit < len(pairs):
            pairs = pairs.select(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit]))
    return pairs.checked() if verify and not reader.generated else pairs


def load_labelled(spec: PathLike, split: str) -> Pairs:
    """Images with classes; captions are not needed.

    Args:
        spec: one of

            - a folder with the images of each class in a folder of its name (`train/dog/1.jpg`, `test/cat/2.jpg`);
            - a WebDataset with `a.cls` beside `a.jpg`: the name of a class, or its number;
            - "shapes:...", as in `load`;
            - what a reader of yours recognizes, if it was registered with `labelled`.
        split: "train" or "test". It is that of `splits.tsv`, or else what a folder or shard is named after (`train/`,
            `test-0003.tar`); "val" stands in for "test" where there is no test.

    Returns:
        The images with `labels` and `classes`; `classnames.txt` beside them names the classes 0, 1, ..., one in each
        line. Images without class or split are counted in `Pairs.skipped`.

    Raises:
        FlowsimError: for what is missing, unreadable or empty.
    """
    source = os.fspath(spec)
    reader = reader_of(source)
    if reader.labelled is None:
        others = [one.describes for one in READERS.values() if one.labelled is not None]
        raise FlowsimError(f"{source!r} is {reader.describes}, which has no classes. Give {_either(others)}.")
    return reader.labelled(source, split)


def reader_of(source: str) -> Reader:
    """The reader that recognizes a source. Raises `FlowsimError` with all kinds of sources if none does."""
    reader = _find(source)
    if reader is None:
        path = Path(source)
        beside_it = os.listdir(path.parent) if path.parent.is_dir() else []
        generated = [one.name for one in READERS.values() if one.generated]
        near = difflib.get_close_matches(source, [*generated, *(str(path.with_name(n)) for n in beside_it)], n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the path."
        kinds = _either([one.describes for one in READERS.values()])
        raise FlowsimError(f"There is no {source!r}. {hint} Data is {kinds}.")
    return reader


def is_generated(source: str) -> bool:
    """Whether a source is made from its text, as shapes are, and is no place on a disk."""
    reader = _find(source)
    return reader is not None and reader.generated


def evaluation_split(source: str) -> str | None:
    """The split "test" of sources that have splits; None for others, of which all is evaluated."""
    reader = _find(source)
    own = reader is not None and "test" in reader.splits
    return "test" if own or beside(Path(source), "splits") is not None else None


def _find(source: str) -> Reader | None:
    return next((reader for reader in reversed(list(READERS.values())) if reader.recognizes(source)), None)


def _either(kinds: Sequence[str]) -> str:
    """ "a, b, or c"."""
    if len(kinds) < 3:
        return " or ".join(kinds)
    return f"{', '.join(kinds[:-1])}, or {kinds[-1]}"
