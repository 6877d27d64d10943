"""How rows of features are scaled when they are read."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from flowsim.base.arrays import moderate
from flowsim.data.rows import Rows

#: The kinds of scaling.
SCALINGS = ("none", "length", "standard")


@dataclass(frozen=True, eq=False)
class Scaling:
    """How rows are scaled when they are read; made by `Features.scaled`.

    Attributes:
        kind: "none", "length" (rows of length √p) or "standard" (zero mean and unit variance in each column).
        image_mean: (p,) mean of each column of the images; None unless the kind is "standard".
        image_deviation: (p,) standard deviation of each column of the images, 1 where the column is constant.
        text_mean: (q,) as `image_mean`, over all captions.
        text_deviation: (q,) as `image_deviation`, over all captions.
    """

    kind: str = "none"
    image_mean: np.ndarray | None = None
    image_deviation: np.ndarray | None = None
    text_mean: np.ndarray | None = None
    text_deviation: np.ndarray | None = None

    def image(self, rows: np.ndarray) -> np.ndarray:
        """Scale rows of images (n, p)."""
        return self._apply(rows, self.image_mean, self.image_deviation)

    def text(self, rows: np.ndarray) -> np.ndarray:
        """Scale rows of texts (n, q)."""
        return self._apply(rows, self.text_mean, self.text_deviation)

    def _apply(self, rows: np.ndarray, mean: np.ndarray | None, deviation: np.ndarray | None) -> np.ndarray:
        if self.kind == "length":
            full = moderate(rows.astype(np.float64))
            return full * (np.sqrt(full.shape[1]) / np.linalg.norm(full, axis=1, keepdims=True))
        if mean is not None and deviation is not None:
            return (rows.astype(np.float64) - mean) / deviation
        return rows


def fit(image: Rows, text: Rows, counts: np.ndarray | None) -> Scaling:
    """The scaling "standard" of features.

    Args:
        image: (n, p).
        text: (n, c, q).
        counts: (n,) number of captions of each image; None if all have c.
    """
    captions = text.shape[1]
    number = np.full(len(text), captions) if counts is None else counts
    return Scaling("standard", *_moments(image, None), *_moments(text, np.arange(captions) < number[:, None]))


def _moments(rows: Rows, used: np.ndarray | None) -> tuple[Float[np.ndarray, "p"], Float[np.ndarray, "p"]]:
    """Mean and standard deviation of each column; `used` (n, c) tells which captions count."""
    count = len(rows) if used is None else int(used.sum())

    def block(where: slice) -> np.ndarray:
        read = rows.read(where)
        return np.asarray(read if used is None else read[used[where]], np.float64)

    mean = sum((block(where).sum(axis=0) for where in rows.blocks()), np.zeros(rows.shape[-1])) / count
    squares = sum((np.square(block(where) - mean).sum(axis=0) for where in rows.blocks()), np.zeros(rows.shape[-1]))
    deviation = np.sqrt(squares / count)
    # What differs from its mean by rounding alone is constant.
    constant = deviation <= 1e-12 * np.abs(mean)
    return mean, np.where(constant, 1.0, deviation)
