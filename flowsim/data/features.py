"""Features of image-text pairs: the vectors that frozen encoders give, from which heads are trained."""

import dataclasses
import functools
import hashlib
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from flowsim.base.checks import check, check_choice, check_fraction, check_whole, is_whole
from flowsim.base.html import table
from flowsim.data.rows import Rows
from flowsim.data.scaling import SCALINGS, Scaling, fit
from flowsim.errors import FlowsimError, unknown_name

#: The split on which scalings are fitted, and in which texts are mispaired.
TRAIN = "train"
#: Pairs from which the common mode that is shown is estimated.
_SHOWN = 1000


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Features:
    """Features of image-text pairs, in memory or mapped from files; made by `fs.data.from_arrays` and `fs.data.load`.

    Below, N is the number of pairs, p and q are the numbers of columns of images and texts, and c is the largest number
    of captions of an image.

    Attributes:
        stored_image: The stored rows of `image`.
        stored_text: The stored rows of `text`.
        split: (N,) name of the split of each pair; None without splits.
        names: (N,) name of each image; None without names.
        counts: (N,) number of captions of each image; None if all have c.
        labels: (N,) class of each image as index into `classes`, −1 for none; None without labels.
        classes: Names of the K classes.
        class_text: (K, q) text features of the classes, for zero-shot classification; None without them.
        source: Where the features come from, for records.
        scaling: How rows are scaled when they are read; see `scaled`.

    Examples:
        >>> import flowsim as fs
        >>> features = fs.data.emoji()
        >>> features.pairs, features.captions, features.image_dim, features.text_dim
        (1655, 2, 128, 128)
        >>> features.splits
        {'train': 1332, 'val': 152, 'test': 171}
        >>> train = features.scaled("length").part("train")
        >>> train.image_rows([0, 1]).shape, train.text_rows([0, 1], caption=[0, 1]).shape
        ((2, 128), (2, 128))
    """

    stored_image: Rows
    stored_text: Rows
    split: np.ndarray | None = None
    names: np.ndarray | None = None
    counts: np.ndarray | None = None
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    class_text: np.ndarray | None = None
    source: str = "arrays"
    scaling: Scaling = Scaling()

    @property
    def image(self) -> np.ndarray:
        """(N, p) rows of images as they are stored, not scaled; a memory map where its rows are consecutive."""
        return self.stored_image.whole()

    @property
    def text(self) -> np.ndarray:
        """(N, c, q) captions of each image as they are stored; beyond `counts` they are padding."""
        return self.stored_text.whole()

    @property
    def pairs(self) -> int:
        """N, the number of pairs."""
        return len(self.stored_image)

    def __len__(self) -> int:
        return self.pairs

    @property
    def captions(self) -> int:
        """c, the largest number of captions of an image."""
        return self.stored_text.shape[1]

    @property
    def image_dim(self) -> int:
        """p, the number of columns of images."""
        return self.stored_image.shape[1]

    @property
    def text_dim(self) -> int:
        """q, the number of columns of texts."""
        return self.stored_text.shape[2]

    @property
    def splits(self) -> dict[str, int]:
        """Number of pairs of each split, in the order of their first pairs; empty without splits."""
        if self.split is None:
            return {}
        names, first, number = np.unique(self.split, return_index=True, return_counts=True)
        return {str(names[k]): int(number[k]) for k in np.argsort(first)}

    def part(self, name: str) -> "Features":
        """The pairs of one split.

        Args:
            name: Name of the split, e.g. "train".

        Returns:
            The pairs, in their order, with the same scaling.

        Raises:
            FlowsimError: If there is no such split.
        """
        check(
            self.split is not None,
            f"{self.source!r} has no splits. Use all pairs, or give the split of each with `split`.",
        )
        if name not in self.splits:
            raise unknown_name("split", name, self.splits)
        return self.take(np.flatnonzero(self.split == name))

    def take(self, index: Any) -> "Features":
        """Select pairs. Rows of a memory map stay in the file.

        Args:
            index: Integers, a mask or a slice; at least one pair.

        Returns:
            The pairs in this order, with the same scaling.

        Raises:
            FlowsimError: For wrong indices, or if they select nothing.
        """
        chosen = self._chosen(index)
        check(len(chosen) > 0, "The index selects no pair. Select at least one.")
        return dataclasses.replace(
            self,
            stored_image=self.stored_image.take(chosen),
            stored_text=self.stored_text.take(chosen),
            **{
                name: None if (values := getattr(self, name)) is None else values[chosen]
                for name in ("split", "names", "counts", "labels")
            },
        )

    def scaled(self, how: str) -> "Features":
        """The same features with another scaling, which is applied when rows are read.

        Args:
            how: One of

                - "none": rows as they are stored;
                - "length": rows of length √p for images and √q for texts. Means are kept; the mean direction of the
                  rows (their common mode) is what makes the modality gap of heads at the start;
                - "standard": zero mean and unit variance in each column, fitted on the split "train" if there is one,
                  else on all pairs, and over all captions. This removes the common mode.

        Returns:
            The features. A scaling replaces the one before. Parts keep it, so scale before you take parts.

        Raises:
            FlowsimError: If `how` is none of these.
        """
        check_choice("scaling", how, SCALINGS)
        if how != "standard":
            return dataclasses.replace(self, scaling=Scaling(how))
        fitted = self.part(TRAIN) if TRAIN in self.splits else self
        return dataclasses.replace(self, scaling=fit(fitted.stored_image, fitted.stored_text, fitted.counts))

    def image_rows(self, index: Any = None, dtype: Any = np.float32) -> Float[np.ndarray, "n p"]:
        """Scaled rows of images.

        Args:
            index: Integers, a mask or a slice; None for all pairs.
            dtype: Of the result.

        Returns:
            (n, p), a new array.

        Raises:
            FlowsimError: For wrong indices, or if rows do not fit into `dtype`.
        """
        return _converted(self.scaling.image(self.stored_image.read(self._chosen(index))), dtype)

    def text_rows(self, index: Any = None, caption: Any = None, dtype: Any = np.float32) -> Float[np.ndarray, "n q"]:
        """Scaled rows of texts, one caption of each image.

        Args:
            index: Integers, a mask or a slice; None for all pairs.
            caption: (n,) which caption of each of these images, from 0, or one number for all; None for the first.
            dtype: Of the result.

        Returns:
            (n, q), a new array.

        Raises:
            FlowsimError: For wrong indices, for captions that an image does not have, or if rows do not fit into
                `dtype`.
        """
        chosen = self._chosen(index)
        within: Any = 0
        if caption is not None:
            within = self._captions(caption, chosen)
        return _converted(self.scaling.text(self.stored_text.read(chosen, within)), dtype)

    def every_text(self, dtype: Any = np.float32) -> tuple[Float[np.ndarray, "m q"], Int[np.ndarray, "m"]]:
        """Scaled rows of all captions, without padding.

        Args:
            dtype: Of the rows.

        Returns:
            (m, q) rows, those of one image together, and (m,) the pair that each belongs to.

        Raises:
            FlowsimError: If rows do not fit into `dtype`.
        """
        owner, which = np.nonzero(np.arange(self.captions) < self._number_of_captions()[:, None])
        return _converted(self.scaling.text(self.stored_text.read(owner, which)), dtype), owner

    def class_rows(self, dtype: Any = np.float32) -> Float[np.ndarray, "k q"]:
        """Text features of the classes, scaled like texts.

        Args:
            dtype: Of the result.

        Returns:
            (K, q), in the order of `classes`.

        Raises:
            FlowsimError: If there are none, or if rows do not fit into `dtype`.
        """
        if self.class_text is None:
            raise FlowsimError(
                f"{self.source!r} has no text features of classes. Give them as `class_text`, with `classes`."
            )
        return _converted(self.scaling.text(self.class_text), dtype)

    def mispaired(self, fraction: float, seed: int = 0) -> "Features":
        """The same features, with a random fraction of the images having the captions of another image.

        As in `fs.pairing.FrozenMispairing`, the texts of a random subset are shifted cyclically. With splits, only
        pairs of the split "train" change.

        Args:
            fraction: The fraction of mispaired images, from 0 to 1, rounded to whole pairs. A single pair cannot be
                exchanged and stays right.
            seed: Seed of the subset.

        Returns:
            The features; names and labels stay with the images.

        Raises:
            FlowsimError: If `fraction` is outside [0, 1], or there are splits but no "train".
        """
        check_fraction("fraction", fraction)
        check_whole("seed", seed, 0, "Use e.g. 0.")
        check(
            self.split is None or TRAIN in self.splits,
            f"Texts are mispaired in the split {TRAIN!r}, but there are only {', '.join(map(repr, self.splits))}. "
            f"Name one {TRAIN!r}, or leave splits out.",
        )
        pool = np.arange(self.pairs) if self.split is None else np.flatnonzero(self.split == TRAIN)
        subset = np.random.default_rng(np.random.SeedSequence((seed, 2))).permutation(pool)
        subset = subset[: round(fraction * len(pool))]
        text_of = np.arange(self.pairs)
        text_of[subset] = np.roll(subset, -1)
        return dataclasses.replace(
            self,
            stored_text=self.stored_text.take(text_of),
            counts=None if self.counts is None else self.counts[text_of],
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of arrays and scaling in hexadecimal, which identifies the data of runs; reads all rows once.

        Names of images and the source have no influence, and neither has padding.
        """
        found = hashlib.sha256()

        def add(name: str, array: np.ndarray | None) -> None:
            if array is not None:
                found.update(f"{name} {_kind(array)} {array.shape}\n".encode())
                found.update(_content(array))

        number = self._number_of_captions()
        for name, rows in (("image", self.stored_image), ("text", self.stored_text)):
            found.update(f"{name} {_kind(rows.array)} {rows.shape}\n".encode())
            for where in rows.blocks():
                block = rows.read(where)
                if name == "text" and self.counts is not None:
                    used = np.arange(self.captions) < number[where, None]
                    block = np.where(used[:, :, None], block, np.zeros((), block.dtype))
                found.update(_content(block))
        add("counts", None if self.counts is None else self.counts.astype(np.int64))
        add("labels", None if self.labels is None else self.labels.astype(np.int64))
        add("class_text", self.class_text)
        for name, names in (("split", () if self.split is None else self.split.tolist()), ("classes", self.classes)):
            found.update(repr((name, list(names))).encode("utf-8", "surrogatepass"))
        found.update(f"scaling {self.scaling.kind}\n".encode())
        for field in dataclasses.fields(self.scaling)[1:]:
            add(field.name, getattr(self.scaling, field.name))
        return found.hexdigest()

    def to_config(self) -> dict[str, Any]:
        """Facts that identify the features in the configuration of a run."""
        return {"kind": "Features", "source": self.source, "pairs": self.pairs, "scaling": self.scaling.kind,
                "digest": self.digest}  # fmt: skip

    def _chosen(self, index: Any) -> Int[np.ndarray, "n"]:
        """Indices of pairs as integers."""
        if index is None:
            return np.arange(self.pairs)
        wanted = index if isinstance(index, slice) else np.asarray(index)
        if not isinstance(wanted, slice) and wanted.size == 0:
            wanted = wanted.astype(int)
        try:
            chosen = np.arange(self.pairs)[wanted]
        except IndexError as error:
            raise FlowsimError(
                f"Wrong indices for {self.pairs} pairs: {error}. Use integers, a mask or a slice."
            ) from None
        check(chosen.ndim == 1, "Indices of pairs must be a list, a mask or a slice. For one pair use e.g. [0].")
        return chosen

    def _number_of_captions(self) -> Int[np.ndarray, "n"]:
        return np.full(self.pairs, self.captions) if self.counts is None else self.counts

    def _captions(self, caption: Any, chosen: np.ndarray) -> Int[np.ndarray, "n"]:
        """Which caption of each chosen image; refuses those that it does not have."""
        which = np.asarray(caption)
        if is_whole(caption) or which.shape == ():
            which = np.full(len(chosen), caption)
        check(
            which.shape == chosen.shape and (which.dtype.kind in "iu" or which.size == 0),
            f"Argument `caption` must be {len(chosen)} whole numbers, one for each image, but has shape {which.shape} "
            f"and dtype {which.dtype}. Leave it out for the first captions.",
        )
        which = which.astype(int)
        number = self._number_of_captions()[chosen]
        wrong = np.flatnonzero((which < 0) | (which >= number))
        if len(wrong):
            k = wrong[0]
            raise FlowsimError(
                f"Image {chosen[k]} has no caption {which[k]}. Its captions are 0 to {number[k] - 1}; see `counts`."
            )
        return which

    def _common_modes(self) -> tuple[float, float]:
        """‖mean row‖ / mean ‖row‖ of images and of first captions, from at most 1,000 pairs."""
        sample = np.unique(np.linspace(0, self.pairs - 1, min(self.pairs, _SHOWN)).astype(int))
        found = []
        for rows in (self.image_rows(sample, np.float64), self.text_rows(sample, None, np.float64)):
            lengths = np.linalg.norm(rows, axis=1).mean()
            found.append(float(np.linalg.norm(rows.mean(axis=0)) / lengths) if lengths > 0 else 0.0)
        return found[0], found[1]

    def __repr__(self) -> str:
        return f"<Features: {', '.join(f'{name} {value}' for name, value in self._summary())}>"

    def _repr_html_(self) -> str:
        return table(self._summary(), caption=f"Features of {self.pairs:,} image-text pairs", names=True)

    def _summary(self) -> list[tuple[str, str]]:
        captions = f"{self.captions}"
        if self.counts is not None and self.counts.min() < self.captions:
            captions = f"{self.counts.min()} to {self.captions}"
        lines = [
            ("pairs", f"{self.pairs:,}"),
            ("image", f"{self.image_dim} columns of {self.stored_image.array.dtype}"),
            ("text", f"{self.text_dim} columns of {self.stored_text.array.dtype}"),
            ("captions", captions),
        ]
        if self.split is not None:
            lines.append(("splits", ", ".join(f"{name} ({number:,})" for name, number in self.splits.items())))
        if self.classes:
            lines.append(("classes", f"{len(self.classes)}"))
        image, text = self._common_modes()
        return [
            *lines,
            ("scaling", self.scaling.kind),
            ("common mode", f"image {image:.2f}, text {text:.2f}"),
            ("source", self.source),
        ]


def _converted(rows: np.ndarray, dtype: Any) -> np.ndarray:
    """Rows as a new array of a dtype; refuses a dtype in which they are infinite."""
    with np.errstate(over="ignore"):
        converted = rows.astype(dtype)
    check(
        np.isfinite(converted).all(),
        f"Rows do not fit into {np.dtype(dtype)}. Use `dtype=np.float64`, or `scaled('length')`.",
    )
    return converted


def _kind(array: np.ndarray) -> str:
    """The dtype, whatever the order of its bytes."""
    return array.dtype.newbyteorder("<").str


def _content(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False)).tobytes()
