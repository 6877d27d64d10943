"""Image-text pairs behind one interface: folders, tar shards, WebDataset, COCO, and shapes made from a seed; and
images with classes.

pairs = load("photos", "train")
pairs.captions[0], pairs.image(0), pairs.pixels(64)
print(pairs.report())
"""

import csv
import dataclasses
import difflib
import glob
import hashlib
import io
import json
import os
import re
import struct
import tarfile
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from flowsim.clip.shapes import CLASSES, SPLITS, Shapes
from flowsim.errors import FlowsimError, unknown_name

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
#: Threads that decode at the same time.
WORKERS = min(8, os.cpu_count() or 1)

PathLike: TypeAlias = str | os.PathLike[str]

_NAMES_KEPT = 3  # names remembered of what was skipped, for each reason
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
#: What Pillow raises for images that are cut off, damaged, or too large to be honest.
_BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


class Resize(NamedTuple):
    """How an image becomes a square: open_clip's names.

    - `mode`: "shortest" scales the shorter side and keeps the middle; "squash" scales each side by itself.
    - `interpolation`: "bicubic" or "bilinear", antialiased.
    """

    mode: str = "shortest"
    interpolation: str = "bicubic"

    def checked(self) -> "Resize":
        """Itself. Raises `FlowsimError` for what there is not."""
        for kind, known in (("mode", ("shortest", "squash")), ("interpolation", tuple(_FILTERS))):
            if getattr(self, kind) not in known:
                raise unknown_name(f"{kind} of resizing", getattr(self, kind), known)
        return self


_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Images with their captions, in the order of the source; images are decoded when asked for.

    - `keys`: file names of the images, or "train-000017" for shapes.
    - `captions`: one or more of each image; none of labelled images that have none (`load_labelled`).
    - `labels`: class of each image, by place in `classes`; None (and no classes) where the source has none.
    - `skipped`: reason -> how many were left out; `examples`: the first few names of each.
    - `source`, `split`: what was asked for.
    - `mispaired`, `true_captions`: which images carry captions of another, and the right ones; only where known.
    """

    keys: tuple[str, ...]
    captions: tuple[tuple[str, ...], ...]
    labels: Int[np.ndarray, "n"] | None
    classes: tuple[str, ...]
    skipped: Mapping[str, int]
    source: str
    split: str | None
    examples: Mapping[str, tuple[str, ...]]
    mispaired: Bool[np.ndarray, "n"] | None
    true_captions: tuple[tuple[str, ...], ...] | None
    # Opens an image by its place in the source; `_places` holds the places of these pairs.
    _open: Callable[[int], Image.Image]
    _places: Int[np.ndarray, "n"]

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"<Pairs: {self.report()}>"

    def report(self) -> str:
        """One or two sentences: how many pairs from where, and what was skipped for which reason."""
        counts = [len(c) for c in self.captions]
        each = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"
        split = "" if self.split is None else f", split {self.split!r}"
        what = f"{each} caption{'s'[: max(counts) > 1]} each" if max(counts) else f"{len(self.classes)} classes"
        text = f"{len(self):,} images from {self.source!r}{split}, {what}."
        if self.mispaired is not None and self.mispaired.any():
            text += f" Mispaired: {self.mispaired.sum():,}."
        if not self.skipped:
            return f"{text} Nothing was skipped."
        reasons = []
        for reason, count in self.skipped.items():
            names = self.examples.get(reason, ())
            more = ", ..." if count > len(names) else ""
            reasons.append(f"{reason}: {count:,}" + (f" ({', '.join(names)}{more})" if names else ""))
        return f"{text} Skipped: {'; '.join(reasons)}."

    def digest(self) -> str:
        """16 hexadecimal digits that tell these pairs from others: names, captions and classes, in their order.

        The pixels are not read for it.
        """
        labels = None if self.labels is None else [self.classes[k] for k in self.labels]
        content = json.dumps([self.keys, self.captions, labels], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def image(self, i: int) -> Image.Image:
        """Image i at its full size, RGB; transparent parts become white.

        Raises `FlowsimError` with the name of an image that cannot be decoded.
        """
        (place,) = self._positions([i])
        return self._decode(int(place), _rgb)

    def pixels(
        self, size: int, indices: Any = None, workers: int = WORKERS, resize: Resize = Resize()
    ) -> UInt8[np.ndarray, "k size size 3"]:
        """All images, or those at `indices` (whole numbers, mask or slice), as squares of `size` pixels.

        By default the shorter side is scaled to `size` (bicubic, antialiased), and the middle is kept. Raises
        `FlowsimError` with the name of an image that cannot be decoded; `decoded` and `checked` leave such images out.
        """
        resize.checked()
        places = self._positions(slice(None) if indices is None else indices)
        squares = np.empty((len(places), _checked_size(size), size, 3), np.uint8)

        def fill(row: int) -> None:
            squares[row] = self._decode(int(places[row]), lambda image: _square(image, size, resize))

        _in_threads(fill, len(places), workers)
        return squares

    def decoded(
        self, size: int, workers: int = WORKERS, resize: Resize = Resize()
    ) -> tuple["Pairs", UInt8[np.ndarray, "k size size 3"]]:
        """The pairs whose images can be decoded, and their `pixels`; the others are counted as skipped."""
        resize.checked()
        squares = np.empty((len(self), _checked_size(size), size, 3), np.uint8)

        def keep(row: int, image: Image.Image) -> None:
            squares[row] = _square(image, size, resize)

        good = self._good(keep, workers)
        return (self, squares) if good.all() else (self._without(~good), squares[good])

    def checked(self, workers: int = WORKERS) -> "Pairs":
        """The pairs whose images can be decoded; the others are counted as skipped.

        Reads every image to its end, at the lowest resolution that its format allows.
        """

        def read(row: int, image: Image.Image) -> None:
            image.draft(None, (1, 1))
            image.load()

        good = self._good(read, workers)
        return self if good.all() else self._without(~good)

    def select(self, indices: Any) -> "Pairs":
        """The pairs at `indices` (whole numbers, mask or slice), in that order."""
        chosen = self._rows(indices)

        def take(values: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(values[i] for i in chosen)

        return dataclasses.replace(
            self,
            keys=take(self.keys),
            captions=take(self.captions),
            labels=None if self.labels is None else self.labels[chosen],
            mispaired=None if self.mispaired is None else self.mispaired[chosen],
            true_captions=None if self.true_captions is None else take(self.true_captions),
            _places=self._places[chosen],
        )

    def _rows(self, indices: Any) -> Int[np.ndarray, "k"]:
        wanted = indices if isinstance(indices, slice) else np.asarray(indices)
        try:
            rows = np.arange(len(self))[wanted]
        except IndexError as error:
            raise FlowsimError(f"Wrong indices for {len(self)} pairs: {error}.") from None
        if rows.ndim != 1 or rows.size == 0:
            raise FlowsimError("Indices of pairs must be a list, a mask or a slice that takes at least one.")
        return rows

    def _positions(self, indices: Any) -> Int[np.ndarray, "k"]:
        return self._places[self._rows(indices)]

    def _decode(self, place: int, use: Callable[[Image.Image], Any]) -> Any:
        try:
            with self._open(place) as image:
                return use(image)
        except _BROKEN as error:
            key = self.keys[int(np.flatnonzero(self._places == place)[0])]
            raise FlowsimError(
                f"Image {key!r} of {self.source!r} cannot be decoded ({error}). Repair or remove it, or leave broken "
                "images out with `load(..., verify=True)`."
            ) from None

    def _good(self, use: Callable[[int, Image.Image], None], workers: int) -> Bool[np.ndarray, "n"]:
        """Which images can be used by `use(row, image)`."""
        good = np.zeros(len(self), bool)

        def attempt(row: int) -> None:
            try:
                with self._open(int(self._places[row])) as image:
                    use(row, image)
                good[row] = True
            except _BROKEN:
                pass

        _in_threads(attempt, len(self), workers)
        return good

    def _without(self, broken: Bool[np.ndarray, "n"]) -> "Pairs":
        names = [self.keys[i] for i in np.flatnonzero(broken)]
        if len(names) == len(self):
            raise FlowsimError(
                f"None of the {len(self):,} images of {self.source!r} can be decoded ({names[0]}, ...). "
                "Check that they are whole, and of the kinds JPEG, PNG or WebP."
            )
        skips = _Skips(dict(self.skipped), {k: list(v) for k, v in self.examples.items()})
        for name in names:
            skips.add("broken image", name)
        kept = self.select(~broken)
        return dataclasses.replace(kept, skipped=skips.counts, examples=skips.kept())


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
    """The pairs of `spec`, all of them or those of one `split`. `spec` is one of

    - a folder with images and `captions.tsv` (or `.csv`; columns filename and caption, a row for each caption), and
      for splits `splits.tsv` (columns filename and split); the images may lie in folders within it, or in `.tar` files;
    - a WebDataset, in which files share a stem: `a.jpg` (png, webp), `a.txt` (a caption in each line) or `a.json`
      (with "caption" or "captions"), and for classes `a.cls`: a folder, a `.tar`, or a pattern such as
      "shards-{0000..0007}.tar" or "train-*.tar"; tars are read in place;
    - the JSON of COCO captions; its images lie in the folder `images`, or in one beside the file;
    - "shapes", or "shapes:count=2000,mispaired=0.2" with the settings of `Shapes`; its splits are train, val, test.
      ("./shapes" is a folder.)

    `captions` and `splits` name such tables elsewhere. `limit` keeps that many pairs, drawn at random by `seed`.
    Images that cannot be decoded are left out with `verify`, which reads each of them once. Whatever is left out is
    counted in `Pairs.skipped`. Raises `FlowsimError` for what is missing, unreadable or empty.
    """
    name = os.fspath(spec)
    made = is_made(name)
    if made:
        for option, value in (("captions", captions), ("splits", splits), ("images", images)):
            if value is not None:
                raise FlowsimError(f"Shapes bring their own pairs. Leave out `{option}`, or give a folder.")
        pairs = _shapes(name, split)
    else:
        pairs = _stored(name, split, captions, splits, images)
    if limit is not None:
        if limit < 1:
            raise FlowsimError(f"Argument `limit` must be at least 1, but is {limit}. Leave it out for all pairs.")
        if limit < len(pairs):
            pairs = pairs.select(np.sort(np.random.default_rng(seed).permutation(len(pairs))[:limit]))
    return pairs.checked() if verify and not made else pairs


def is_made(spec: str) -> bool:
    """Whether a source is shapes made from a seed, and no place on a disk."""
    return spec == "shapes" or spec.startswith("shapes:")


def load_labelled(spec: PathLike, split: str) -> Pairs:
    """Images with classes, of the split "train" or "test"; captions are not needed. `spec` is one of

    - a folder with the images of each class in a folder of its name (`train/dog/1.jpg`, `test/cat/2.jpg`);
    - a WebDataset with `a.cls` beside `a.jpg`: the name of a class, or its number;
    - "shapes:...", as in `load`.

    The split is that of `splits.tsv`, or else what a folder or shard is named after (`train/`, `test-0003.tar`); "val"
    stands in for "test" where there is no test. `classnames.txt` beside them names the classes 0, 1, ..., one in each
    line. Images without class or split are counted in `Pairs.skipped`. Raises `FlowsimError` for what is missing.
    """
    name = os.fspath(spec)
    if is_made(name):
        return _shapes(name, split)
    skips = _Skips()
    files, home = _files(name, skips)
    found, assigned = [], {}
    siblings = _siblings(files, skips)
    skips.counts.pop("caption without image", None)  # no concern here
    for one in siblings:
        part, folder = _place(one, home)
        found.append(one._replace(label=one.label or folder))
        if part is not None:
            assigned[one.key] = part
    if (where := _beside(home, "splits")) is not None:
        names = _Names(one.key for one in found)
        assigned = {names.key(key): part for key, part in _rows(where, "filename", "split") if part}
    sizes = Counter(assigned[one.key] for one in found if one.key in assigned)
    if not sizes:
        raise FlowsimError(
            f"The labelled images of {name!r} have no splits. Put them into folders train and test, or add splits.tsv "
            "with the columns filename and split."
        )
    if split == "test" and not sizes["test"] and sizes["val"]:
        split = "val"
    _check_split(name, split, assigned, sizes)
    kept = []
    for one in found:
        if one.key not in assigned:
            skips.add("image without split", one.key)
        elif assigned[one.key] == split and one.label is None:
            skips.add("image without class", one.key)
        elif assigned[one.key] == split:
            kept.append(one)
    if not kept:
        raise FlowsimError(
            f"No image of {name!r}, split {split!r}, has a class. Put the images of a class into a folder of its name, "
            "or use a WebDataset with .cls members, or shapes."
        )
    labels, classes = _labels(kept, [one.label for one in found if one.key in assigned], skips)
    return Pairs(
        keys=tuple(one.key for one in kept),
        captions=tuple(() for _ in kept),
        labels=labels,
        classes=_class_names(home / "classnames.txt", classes),
        skipped=skips.counts,
        source=name,
        split=split,
        examples=skips.kept(),
        mispaired=None,
        true_captions=None,
        _open=_opener([one.image for one in kept]),
        _places=np.arange(len(kept)),
    )


#: Names of folders and shards that say a split: train, train-0003.tar, validation.
_SPLIT_NAME = re.compile(r"(train|test|val)(ing|idation)?(?![a-z])")


def _place(one: "_Found", home: Path) -> tuple[str | None, str | None]:
    """(split, class) that folders and shards say of an image; the class is the first folder after the split's."""
    folders = one.key.split("/")[:-1]
    if one.image.size >= 0:
        shard = os.path.relpath(one.image.path, home).split(os.sep)
        inside = folders
        for k in range(1, len(shard) + 1):  # names that several shards use begin with the shard's
            if "/".join(folders[:k]) + ".tar" == "/".join(shard[-k:]):
                inside = folders[k:]
        folders = [*shard, *inside]
    found = [_SPLIT_NAME.match(folder.lower()) for folder in folders]
    at = next((k for k, match in enumerate(found) if match), None)
    rest = [folder for folder in folders[0 if at is None else at + 1 :] if not folder.endswith(".tar")]
    split = None if at is None or (match := found[at]) is None else match[1]
    return split, rest[0] if rest else None


def _class_names(path: Path, classes: tuple[str, ...]) -> tuple[str, ...]:
    """Names of classes that are numbers, from a file with one in each line; others have their names already."""
    if not path.is_file() or not all(name.isdigit() for name in classes):
        return classes
    lines = _text(path).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < len(classes):
        raise FlowsimError(
            f"{str(path)!r} names {len(names)} classes, but there is a class {len(classes) - 1}. "
            "Give a line for each class, from 0 on."
        )
    return names


def _shapes(spec: str, split: str | None) -> Pairs:
    shapes, split = Shapes.parse(spec.removeprefix("shapes").removeprefix(":")), split or "train"
    if split not in SPLITS:
        raise unknown_name("split of shapes", split, SPLITS)
    places = np.arange(shapes.count)
    true = tuple(shapes.captions(int(i), split) for i in places)
    return Pairs(
        keys=tuple(f"{split}-{i:06d}" for i in places),
        captions=tuple(true[i] for i in shapes.text_of(split)),
        labels=np.array([shapes.label(int(i), split) for i in places]),
        classes=CLASSES,
        skipped={},
        source=spec,
        split=split,
        examples={},
        mispaired=shapes.mispaired_mask(split),
        true_captions=true,
        _open=lambda i: shapes.render(i, split),
        _places=places,
    )


# Files and tars


class _Bytes(NamedTuple):
    """Where bytes lie: a file, or a part of one. Opened for each read, so that threads share nothing."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        with open(self.path, "rb", buffering=0) as file:
            if self.size < 0:
                return file.readall()
            file.seek(self.offset)
            return file.read(self.size) or b""


class _Found(NamedTuple):
    """An image of a source, with what the source itself says about it."""

    key: str
    image: _Bytes
    captions: tuple[str, ...] = ()
    label: str | None = None


@dataclass
class _Skips:
    """What was left out, by reason, with the first few names."""

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < _NAMES_KEPT and name not in kept:
            kept.append(name)

    def kept(self) -> dict[str, tuple[str, ...]]:
        return {reason: tuple(names) for reason, names in self.names.items()}


def _stored(
    spec: str, split: str | None, captions: PathLike | None, splits: PathLike | None, images: PathLike | None
) -> Pairs:
    """The pairs of files: what is found, joined with the tables, restricted to the split."""
    skips = _Skips()
    table = None if captions is None else Path(captions)
    if spec.lower().endswith(".json"):
        if table is not None:
            raise FlowsimError("A COCO file has its own captions. Leave out `captions`.")
        home = Path(spec).parent
        found = _coco(Path(spec), images, skips)
    else:
        if images is not None:
            raise FlowsimError("Argument `images` belongs to a COCO .json. Give the folder of the images instead.")
        files, home = _files(spec, skips)
        table = table or _beside(home, "captions")
        found = _siblings(files, skips) if table is None else _images(files)
    names = _Names(f.key for f in found)
    assigned: dict[str, str] = {}
    where = Path(splits) if splits is not None else _beside(home, "splits")
    if where is not None:
        assigned = {names.key(name): part for name, part in _rows(where, "filename", "split") if part}
    sizes = Counter(assigned[f.key] for f in found if f.key in assigned)
    if split is not None:
        _check_split(spec, split, assigned, sizes)
    written = (
        None
        if table is None
        else _captions(table, names, skips, lambda key: split is None or assigned.get(key, split) == split)
    )
    kept: list[tuple[_Found, tuple[str, ...]]] = []
    for one in found:
        if split is not None and assigned.get(one.key) != split:
            if one.key not in assigned:
                skips.add("image without split", one.key)
            continue
        texts = one.captions if written is None else tuple(written.get(one.key, ()))
        if texts:
            kept.append((one, texts))
        else:
            skips.add("image without caption", one.key)
    if not kept:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in skips.counts.items())
        part = "" if split is None else f" in split {split!r}"
        cure = (
            "Add captions.tsv with the columns filename and caption, or name a table with `captions`."
            if table is None
            else f"Check that the file names in {str(table)!r} are those of the images."
        )
        raise FlowsimError(f"No image of {spec!r}{part} has a caption ({reasons}). {cure}")
    labels, classes = _labels([one for one, _ in kept], [one.label for one in found], skips)
    return Pairs(
        keys=tuple(one.key for one, _ in kept),
        captions=tuple(texts for _, texts in kept),
        labels=labels,
        classes=classes,
        skipped=skips.counts,
        source=spec,
        split=split,
        examples=skips.kept(),
        mispaired=None,
        true_captions=None,
        _open=_opener([one.image for one, _ in kept]),
        _places=np.arange(len(kept)),
    )


def _opener(images: Sequence[_Bytes]) -> Callable[[int], Image.Image]:
    return lambda i: Image.open(io.BytesIO(images[i].read()))


def _check_split(spec: str, split: str, assigned: Mapping[str, str], sizes: Mapping[str, int]) -> None:
    if not assigned:
        raise FlowsimError(
            f"{spec!r} has no splits. Add splits.tsv with the columns filename and split, or do without: for training "
            "with --held-out-data OTHER, or --set split=none --set held_out=none; in Python with split=None."
        )
    known = {name: sizes.get(name, 0) for name in assigned.values()}
    existing = ", ".join(f"{name} ({count:,})" for name, count in sorted(known.items()))
    if split not in known:
        raise FlowsimError(f"{unknown_name('split', split, known)} Images of {spec!r}: {existing}.")
    if not known[split]:
        raise FlowsimError(f"Split {split!r} of {spec!r} is empty. Images: {existing}.")


def _labels(
    kept: Sequence[_Found], all_labels: Sequence[str | None], skips: _Skips
) -> tuple[Int[np.ndarray, "n"] | None, tuple[str, ...]]:
    """Class numbers and class names, the same ones in every split; None unless every image has a class."""
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


class _Names:
    """Finds the key of a file name in a table: the same path, or else the same base name where only one has it."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = set(keys)
        self.bases: dict[str, list[str]] = defaultdict(list)
        for key in self.keys:
            self.bases[key.rpartition("/")[2]].append(key)

    def key(self, name: str) -> str:
        name = name.replace("\\", "/").removeprefix("./")
        same = [] if name in self.keys else self.bases.get(name.rpartition("/")[2], [])
        return same[0] if len(same) == 1 else name


def _captions(path: Path, names: _Names, skips: _Skips, wanted: Callable[[str], bool]) -> dict[str, list[str]]:
    """Captions of each key; rows of images outside the split are no concern."""
    found: dict[str, list[str]] = {}
    for name, caption in _rows(path, "filename", "caption"):
        key = names.key(name)
        if not wanted(key):
            continue
        if key not in names.keys:
            skips.add("caption without image", name)
        elif not caption:
            skips.add("empty caption", name)
        else:
            found.setdefault(key, []).append(caption)
    return found


def _rows(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """Two columns of a table with a header, stripped. Tabs separate without quoting; commas as in CSV files."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise FlowsimError(f"{str(path)!r} is no table that can be read. Give a .tsv (tabs) or a .csv (commas).")
    text = _text(path)
    if path.suffix.lower() == ".csv":
        try:
            rows = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise FlowsimError(f"{str(path)!r} is not a CSV file ({error}). Repair it, or use a .tsv.") from None
    else:
        lines = [line for line in text.split("\n") if line.strip()]
        # A last column may hold tabs of its own.
        rows = [line.split("\t", lines[0].count("\t")) for line in lines]
    header = [name.strip() for name in rows[0]] if rows else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise FlowsimError(
            f"{str(path)!r} has no column {' or '.join(map(repr, missing))}; its first line has: "
            f"{', '.join(map(repr, header)) or 'nothing'}. Name the columns {' and '.join(columns)} there."
        )
    where = [header.index(name) for name in columns]
    return [tuple(row[k].strip() if k < len(row) else "" for k in where) for row in rows[1:]]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowsimError(f"{str(path)!r} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise FlowsimError(f"Cannot read {str(path)!r}: {error.strerror}. Check the path.") from None


def _beside(folder: Path, name: str) -> Path | None:
    candidates = (folder / f"{name}{ending}" for ending in (".tsv", ".csv"))
    return next((path for path in candidates if path.is_file()), None)


class _File(NamedTuple):
    """A file of a source: its name, the shard that holds it ("" for a folder), and its bytes."""

    name: str
    shard: str
    data: _Bytes


def _files(spec: str, skips: _Skips) -> tuple[list[_File], Path]:
    """All files that `spec` names, those in tars included, and the folder in which tables may lie."""
    path = Path(spec)
    if path.is_dir():
        loose, shards, refused = [], [], []
        for place, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(name for name in names if not name.startswith(".")):
                full = Path(place, name)
                if name.lower().endswith(".tar"):
                    shards.append(full)
                elif re.search(r"\.(tgz|tar\.\w+)$", name.lower()):
                    refused.append(full)
                else:
                    loose.append(_File(full.relative_to(path).as_posix(), "", _Bytes(str(full))))
        loose.sort(key=lambda file: file.name)
        files, home = [*loose, *_in_tars(sorted(shards), skips)], path
        if refused and not any(_is_image(file.name) for file in files):
            _in_tars(refused[:1], skips)
    elif re.search(r"[{*?\[]", spec):
        shards = [Path(name) for pattern in _expand(spec) for name in _matches(pattern)]
        files, home = _in_tars(shards, skips), shards[0].parent
    elif path.is_file():
        if path.suffix.lower() in (".tsv", ".csv", ".txt"):
            raise FlowsimError(
                f"{spec!r} is a table. Give the folder of the images, and the table as `captions` if it is elsewhere."
            )
        files, home = _in_tars([path], skips), path.parent
    else:
        beside = [str(path.with_name(name)) for name in _names_in(path.parent)]
        near = difflib.get_close_matches(spec, ["shapes", *beside], n=3)
        hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else "Check the path."
        raise FlowsimError(
            f"There is no {spec!r}. {hint} Data is a folder, a .tar or a pattern of shards, a COCO .json, or 'shapes'."
        )
    if not any(_is_image(file.name) for file in files):
        raise FlowsimError(f"{spec!r} holds no images ({', '.join(IMAGES)}). Give the folder or the tars with images.")
    return files, home


def _names_in(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES)


def _expand(pattern: str) -> list[str]:
    """Patterns without braces: {0000..0007} counts, {a,b} lists."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends is None:
        choices = match[1].split(",")
    else:
        choices = [f"{k:0{len(ends[1])}d}" for k in range(int(ends[1]), int(ends[2]) + 1)]
    return [one for choice in choices for one in _expand(pattern[: match.start()] + choice + pattern[match.end() :])]


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern)) if re.search(r"[*?\[]", pattern) else [pattern]
    if not found:
        raise FlowsimError(f"No file matches {pattern!r}. Check the pattern.")
    return found


def _in_tars(shards: Sequence[Path], skips: _Skips) -> list[_File]:
    """The files within tars, by the places of their bytes; nothing is unpacked."""
    files, seen = [], set()
    names = [shard.name.removesuffix(".tar") for shard in shards]
    if len(set(names)) < len(names):  # train/0.tar and test/0.tar
        root = os.path.commonpath([shard.parent for shard in shards])
        names = [shard.relative_to(root).as_posix().removesuffix(".tar") for shard in shards]
    for shard, shard_name in zip(shards, names, strict=True):
        try:
            with open(shard, "rb") as file:
                start = file.read(6)
            kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
            if kind is not None:
                raise FlowsimError(
                    f"{str(shard)!r} is compressed ({kind}), and images cannot be read from the middle of it. "
                    "Decompress it to a plain .tar."
                )
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isreg() or name.rpartition("/")[2].startswith("."):
                        continue
                    if (shard, name) in seen:
                        skips.add("repeated name in a tar", name)
                        continue
                    seen.add((shard, name))
                    data = _Bytes(str(shard), member.offset_data, member.size)
                    files.append(_File(name, shard_name, data))
        except tarfile.TarError as error:
            raise FlowsimError(f"{str(shard)!r} is no whole tar file ({error}). Fetch or pack it again.") from None
        except OSError as error:
            raise FlowsimError(f"Cannot read {str(shard)!r}: {error.strerror}. Check the path.") from None
    return files


def _images(files: Sequence[_File]) -> list[_Found]:
    """The images among the files, under names that tell them apart."""
    chosen = [file for file in files if _is_image(file.name)]
    return [_Found(key, file.data) for key, file in zip(_apart(chosen, lambda f: f.name), chosen, strict=True)]


def _apart(files: Sequence[_File], name: Callable[[_File], str]) -> list[str]:
    """Names; where shards use the same ones, each begins with that of its shard."""
    names = [name(file) for file in files]
    if len(set(names)) == len(names):
        return names
    return [f"{file.shard}/{one}" if file.shard else one for file, one in zip(files, names, strict=True)]


def _siblings(files: Sequence[_File], skips: _Skips) -> list[_Found]:
    """Images with what lies beside them under the same stem: captions and a class."""
    groups: dict[tuple[str, str], dict[str, _File]] = defaultdict(dict)
    for file in files:
        stem, _, ending = file.name.rpartition(".")
        kind = "image" if _is_image(file.name) else ending.lower()
        if kind == "image" and kind in groups[file.shard, stem]:
            skips.add("second image of a name", file.name)
            continue
        groups[file.shard, stem][kind] = file
    chosen, texts = [], []
    for (_, stem), parts in groups.items():
        captions = _texts(parts)
        if "image" in parts:
            chosen.append(parts)
            texts.append(captions)
        elif captions:
            skips.add("caption without image", stem)
    keys = _apart([parts["image"] for parts in chosen], lambda file: file.name)
    return [
        _Found(
            key,
            parts["image"].data,
            captions,
            parts["cls"].data.read().decode("utf-8", "replace").strip() or None if "cls" in parts else None,
        )
        for key, parts, captions in zip(keys, chosen, texts, strict=True)
    ]


def _texts(parts: Mapping[str, _File]) -> tuple[str, ...]:
    """The captions in `stem.txt`, one in each line, or in `stem.json`."""
    for ending in ("txt", "json"):
        if ending not in parts:
            continue
        file = parts[ending]
        where = f"{file.name!r} of {file.shard + '.tar' if file.shard else file.data.path!r}"
        try:
            text = file.data.read().decode("utf-8-sig")
            content = text.splitlines() if ending == "txt" else json.loads(text)
        except UnicodeDecodeError as error:
            raise FlowsimError(f"{where} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise FlowsimError(f"{where} is not JSON ({error}). Repair it.") from None
        if isinstance(content, dict):
            content = content.get("captions", content.get("caption"))
        lines = [content] if isinstance(content, str) else content if isinstance(content, list) else []
        captions = tuple(line.strip() for line in lines if isinstance(line, str) and line.strip())
        if captions:
            return captions
    return ()


def _coco(path: Path, images: PathLike | None, skips: _Skips) -> list[_Found]:
    """The images that a COCO file lists and that exist, with its captions."""
    try:
        content = json.loads(_text(path))
        names = {one["id"]: str(one["file_name"]) for one in content["images"]}
        written = [(one["image_id"], str(one["caption"]).strip()) for one in content["annotations"]]
    except json.JSONDecodeError as error:
        raise FlowsimError(f"{str(path)!r} is not JSON ({error}). Fetch it again.") from None
    except (KeyError, TypeError) as error:
        raise FlowsimError(
            f"{str(path)!r} is no file of COCO captions (missing: {error}). It needs images with id and file_name, "
            "and annotations with image_id and caption."
        ) from None
    folder = _coco_folder(path, images, list(names.values())[:20])
    captions: dict[Any, list[str]] = defaultdict(list)
    for image, caption in written:
        if image not in names:
            skips.add("caption without image", f"image_id {image}")
        elif not caption:
            skips.add("empty caption", names[image])
        else:
            captions[image].append(caption)
    found = []
    for image, name in names.items():
        where = os.path.join(folder, name)
        if os.path.isfile(where):
            found.append(_Found(name, _Bytes(where), tuple(captions[image])))
        else:
            skips.add("image that does not exist", name)
    return found


def _coco_folder(path: Path, images: PathLike | None, names: Sequence[str]) -> str:
    """The folder of the images: the given one, or one beside the file or its folder that holds any of them."""
    parents = [str(path.absolute().parent), str(path.absolute().parent.parent)]
    beside = [p for parent in parents for p in (parent, *sorted(glob.glob(os.path.join(glob.escape(parent), "*", ""))))]
    for folder in beside if images is None else [os.fspath(images)]:
        if any(os.path.isfile(os.path.join(folder, name)) for name in names):
            return folder
    if images is not None:
        raise FlowsimError(
            f"The folder {str(images)!r} holds no image listed in {str(path)!r}. Give another as `images`."
        )
    raise FlowsimError(f"Beside {str(path)!r} there are no images that it lists. Give their folder as `images`.")


# Pixels


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _square(image: Image.Image, size: int, resize: Resize) -> UInt8[np.ndarray, "size size 3"]:
    # JPEG at a lower resolution where it stays at least twice what is needed.
    image.draft(None, (2 * size, 2 * size))
    image = _rgb(image)
    width, height = image.size
    box = None
    if resize.mode == "shortest":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), _FILTERS[resize.interpolation], box=box))


def _checked_size(size: int) -> int:
    if size < 1:
        raise FlowsimError(f"Argument `size` must be at least 1, but is {size}. Use e.g. 64.")
    return size


def _in_threads(do: Callable[[int], None], count: int, workers: int) -> None:
    if workers < 1:
        raise FlowsimError(f"Argument `workers` must be at least 1, but is {workers}. Use e.g. 4.")
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(do, range(count)):
            pass
