"""Images with their captions: returned by every reader, used by training and measurements."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Int, UInt8
from PIL import Image

from flowsim.clip.data.given import checked_captions, checked_keys, checked_opener, not_an_image
from flowsim.clip.data.pixels import BROKEN, WORKERS, Resize, checked_size, in_threads, read_roughly, rgb, square
from flowsim.errors import FlowsimError

_NAMES_KEPT = 3  # names of skipped images kept for each reason


@dataclass
class Skips:
    """Images that were left out, by reason, with the first few names.

    Args:
        counts: Reason -> number of images.
        names: Reason -> first few names.
    """

    counts: dict[str, int] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, name: str) -> None:
        """Count one more image.

        Args:
            reason: Why it was left out.
            name: Its name.
        """
        self.counts[reason] = self.counts.get(reason, 0) + 1
        kept = self.names.setdefault(reason, [])
        if len(kept) < _NAMES_KEPT and name not in kept:
            kept.append(name)

    def examples(self) -> dict[str, tuple[str, ...]]:
        """The first few names of each reason."""
        return {reason: tuple(names) for reason, names in self.names.items()}


@dataclass(frozen=True, eq=False, repr=False)
class Pairs:
    """Images with their captions, in the order of the source; images are decoded on demand.

    Readers make them with `Pairs.of`.

    Attributes:
        keys: File names of the images, or e.g. "train-000017" for shapes.
        captions: One or more captions of each image; labelled images (`load_labelled`) may have none.
        labels: (n,) class of each image, as index into `classes`; None if the source has no classes.
        classes: Names of the classes.
        skipped: Reason -> number of images that were left out.
        source: The source, as the user wrote it.
        split: The split; None for all images.
        examples: Reason -> first few names of the images that were left out.
        mispaired: (n,) which images have the captions of another image; None if this is not known.
        true_captions: The right captions of each image; None if they are not known.
        splits: The split of each image, "" for one without; None if the source has no splits.
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
    splits: tuple[str, ...] | None
    # Opens an image by its place in the source; `_places` holds the places of these pairs.
    _open: Callable[[int], Image.Image]
    _places: Int[np.ndarray, "n"]

    @classmethod
    def of(
        cls,
        keys: Sequence[str],
        captions: Sequence[Sequence[str]],
        open_image: Callable[[int], Image.Image],
        *,
        source: str,
        split: str | None = None,
        labels: Sequence[int] | np.ndarray | None = None,
        classes: Sequence[str] = (),
        skips: Skips | None = None,
        mispaired: Bool[np.ndarray, "n"] | None = None,
        true_captions: Sequence[Sequence[str]] | None = None,
        splits: Sequence[str] | None = None,
    ) -> "Pairs":
        """Make pairs in a reader.

        Args:
            keys: n different names, one for each image.
            captions: A list of captions for each image; it may be empty only with `labels`.
            open_image: Function that opens image i, from 0 to n − 1, as an image of Pillow; called by several threads
                at once. Exceptions that Pillow raises for damaged images are handled.
            source: The source, as the user wrote it.
            split: The split; None for all images.
            labels: (n,) class of each image, as index into `classes`; None without classes.
            classes: Names of the classes.
            skips: Images that were left out.
            mispaired: (n,) which images have the captions of another image.
            true_captions: The right captions of each image.
            splits: The split of each image, "" for one without; by default all are in `split`.

        Returns:
            The pairs.

        Raises:
            FlowsimError: If there are no images, if lengths differ, or if keys or captions are not of this form.
        """
        names = checked_keys(keys, source, split)
        n = len(names)
        given = {"captions": captions, "labels": labels, "true_captions": true_captions, "splits": splits}
        for name, values in given.items():
            if isinstance(values, Sized) and len(values) != n:
                raise FlowsimError(f"There are {n} `keys`, but {len(values)} `{name}`. Give one for each image.")
        skips = skips or Skips()
        if splits is None and split is not None:
            splits = [split] * n
        return cls(
            keys=names,
            captions=checked_captions(captions, names, labels is not None),
            labels=None if labels is None else np.asarray(labels, np.int64),
            classes=tuple(classes),
            skipped=skips.counts,
            source=source,
            split=split,
            examples=skips.examples(),
            mispaired=mispaired,
            true_captions=None if true_captions is None else checked_captions(true_captions, names, True),
            splits=None if splits is None else tuple(splits),
            _open=checked_opener(open_image),
            _places=np.arange(n),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"<Pairs: {self.report()}>"

    def report(self) -> str:
        """A short text: the number of pairs, their source, and the images skipped for each reason."""
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

    def left_out(self) -> dict[str, dict[str, Any]]:
        """Reason -> number of images left out ("count"), and the first few of their names ("names")."""
        return {
            reason: {"count": count, "names": list(self.examples.get(reason, ()))}
            for reason, count in self.skipped.items()
        }

    def digest(self) -> str:
        """16 hexadecimal digits of a hash of names, captions and classes, in their order; pixels are not read."""
        labels = None if self.labels is None else [self.classes[k] for k in self.labels]
        content = json.dumps([self.keys, self.captions, labels], ensure_ascii=False)
        return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def image(self, i: int) -> Image.Image:
        """One image at its full size, in RGB; transparent parts become white.

        Args:
            i: Index of the image.

        Returns:
            The image.

        Raises:
            FlowsimError: If the image cannot be decoded, with its name.
        """
        (place,) = self._places[self._rows([i])]
        return self._decode(int(place), rgb)

    def opened(self, i: int) -> Any:
        """What the reader gives for image i: an image of Pillow, not decoded yet."""
        return self._open(int(self._places[i]))

    def pixels(
        self, size: int, indices: Any = None, workers: int = WORKERS, resize: Resize = Resize()
    ) -> UInt8[np.ndarray, "k size size 3"]:
        """Pixels of images, as squares.

        Args:
            size: Pixels along each side.
            indices: Integers, mask or slice; None for all.
            workers: Number of threads for decoding.
            resize: By default the shorter side is scaled to `size` (bicubic, antialiased), and the middle is kept.

        Returns:
            (k, size, size, 3) uint8.

        Raises:
            FlowsimError: If an image cannot be decoded, with its name; `decoded` and `checked` leave such images out.
        """
        resize.checked()
        places = self._places[self._rows(slice(None) if indices is None else indices)]
        squares = np.empty((len(places), checked_size(size), size, 3), np.uint8)

        def fill(row: int) -> None:
            squares[row] = self._decode(int(places[row]), lambda image: square(image, size, resize))

        in_threads(fill, len(places), workers)
        return squares

    def decoded(
        self, size: int, workers: int = WORKERS, resize: Resize = Resize()
    ) -> tuple["Pairs", UInt8[np.ndarray, "k size size 3"]]:
        """The pairs whose images can be decoded, and their `pixels`; the others are counted as skipped.

        Args:
            size: Pixels along each side.
            workers: Number of threads for decoding.
            resize: How images become squares, see `pixels`.

        Returns:
            The pairs, and (k, size, size, 3) uint8.

        Raises:
            FlowsimError: If no image can be decoded.
        """
        squares, good = self.attempted(size, workers, resize)
        return (self, squares) if good.all() else (self.without(~good), squares[good])

    def attempted(
        self, size: int, workers: int = WORKERS, resize: Resize = Resize()
    ) -> tuple[UInt8[np.ndarray, "n size size 3"], Bool[np.ndarray, "n"]]:
        """Pixels of all images, and which of them could be decoded; the pixels of the others mean nothing.

        Args:
            size: Pixels along each side.
            workers: Number of threads for decoding.
            resize: How images become squares, see `pixels`.

        Returns:
            (n, size, size, 3) uint8, and (n,) bool.
        """
        resize.checked()
        squares = np.empty((len(self), checked_size(size), size, 3), np.uint8)

        def keep(row: int, image: Image.Image) -> None:
            squares[row] = square(image, size, resize)

        return squares, self._good(keep, workers)

    def checked(self, workers: int = WORKERS) -> "Pairs":
        """The pairs whose images can be decoded; the others are counted as skipped.

        Reads every image to its end, at the lowest resolution that its format allows.

        Args:
            workers: Number of threads for decoding.

        Returns:
            The pairs.

        Raises:
            FlowsimError: If no image can be decoded.
        """
        good = self._good(lambda row, image: read_roughly(image), workers)
        return self if good.all() else self.without(~good)

    def select(self, indices: Any) -> "Pairs":
        """Select pairs.

        Args:
            indices: Integers, mask or slice; at least one pair.

        Returns:
            The pairs, in this order.

        Raises:
            FlowsimError: For wrong indices, or if they select nothing.
        """
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
            splits=None if self.splits is None else take(self.splits),
            _places=self._places[chosen],
        )

    def _rows(self, indices: Any) -> Int[np.ndarray, "k"]:
        wanted = indices if isinstance(indices, slice) else np.asarray(indices)
        try:
            rows = np.arange(len(self))[wanted]
        except IndexError as error:
            raise FlowsimError(f"Wrong indices for {len(self)} pairs: {error}.") from None
        if rows.ndim != 1 or rows.size == 0:
            raise FlowsimError("Indices of pairs must be a list, a mask or a slice, and select at least one pair.")
        return rows

    def _decode(self, place: int, use: Callable[[Image.Image], Any]) -> Any:
        try:
            image = self._open(place)
            if isinstance(image, Image.Image):
                with image:
                    return use(image)
        except BROKEN as error:
            raise FlowsimError(
                f"Image {self._key(place)!r} of {self.source!r} cannot be decoded ({error}). Repair or remove it, or "
                "leave broken images out with `load(..., verify=True)`."
            ) from None
        raise not_an_image(image, self._key(place), self.source)

    def _key(self, place: int) -> str:
        return self.keys[int(np.flatnonzero(self._places == place)[0])]

    def _good(self, use: Callable[[int, Image.Image], None], workers: int) -> Bool[np.ndarray, "n"]:
        """Which images can be used by `use(row, image)`."""
        good = np.zeros(len(self), bool)

        def attempt(row: int) -> None:
            try:
                image = self.opened(row)
                if isinstance(image, Image.Image):
                    with image:
                        use(row, image)
                    good[row] = True
            except BROKEN:
                return
            if not good[row]:
                raise not_an_image(image, self.keys[row], self.source)

        in_threads(attempt, len(self), workers)
        return good

    def without(self, broken: Bool[np.ndarray, "n"]) -> "Pairs":
        """These pairs without broken images, which are counted as skipped.

        Args:
            broken: (n,) which images cannot be decoded.

        Returns:
            The other pairs.

        Raises:
            FlowsimError: If none are left.
        """
        names = [self.keys[i] for i in np.flatnonzero(broken)]
        if len(names) == len(self):
            raise FlowsimError(
                f"None of the {len(self):,} images of {self.source!r} can be decoded ({names[0]}, ...). "
                "Check that they are complete JPEG, PNG or WebP files."
            )
        skips = Skips(dict(self.skipped), {k: list(v) for k, v in self.examples.items()})
        for name in names:
            skips.add("broken image", name)
        kept = self.select(~broken)
        return dataclasses.replace(kept, skipped=skips.counts, examples=skips.examples())
