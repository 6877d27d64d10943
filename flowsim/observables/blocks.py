"""Sums, factors and neighbours of large embedding sets, one block of rows at a time.

`flowsim.observables` builds the metrics of large sets from them.
"""

import dataclasses
import math
import mmap
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.special import betaincinv

from flowsim.base.arrays import moderate
from flowsim.progress import Progress

#: Rows converted to float64 at once, and queries compared with them at once: 64 MiB of similarities.
BLOCK = 4096
QUERIES = 2048
EPS = float(np.finfo(np.float64).eps)


class Rows:
    """Unit rows in float64 of an array (n, d) of any real dtype, which may be mapped from a file."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        if isinstance(index, np.ndarray) and len(index) > BLOCK:
            return np.concatenate([self[index[start : start + BLOCK]] for start in range(0, len(index), BLOCK)])
        rows = np.asarray(self.array[index], np.float64)
        release(self.array)
        if self.array.dtype.itemsize < 8:  # whose squares are numbers of float64; the rows are a copy
            rows /= np.sqrt(np.einsum("ij,ij->i", rows, rows))[:, None]
            return rows
        rows = moderate(rows)
        rows = rows / np.abs(rows).max(axis=1, keepdims=True)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """(index of the first row, unit rows) of each block in turn."""
        for start in range(0, len(self), BLOCK):
            yield start, self[start : start + BLOCK]


def release(array: np.ndarray) -> None:
    """Give the pages of a file back that were read so far: they would count as memory of the process."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap) and owner.mode == "r":  # others may hold what the file does not
            mapped = getattr(owner, "_mmap", None)
            if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
                mapped.madvise(mmap.MADV_DONTNEED)
            return
        owner = owner.base


def centre(rows: Rows) -> np.ndarray:
    """mean_i x_i, shape (d,)."""
    return sum(block.sum(axis=0) for _, block in rows.blocks()) / len(rows)  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class PairMeans:
    """Means over pairs.

    Args:
        distance: Of ‖x_i − y_i‖.
        squared: Of ‖x_i − y_i‖².
        cosine: Of ⟨x_i, y_i⟩.
    """

    distance: float
    squared: float
    cosine: float


def sums_of_pairs(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sums of ‖x_i − y_i‖, of its square, and of ⟨x_i, y_i⟩ over unit rows."""
    away = x - y
    squared = np.einsum("ij,ij->i", away, away)
    return np.array([np.sqrt(squared).sum(), squared.sum(), np.einsum("ij,ij->", x, y)])


def factor(rows: Rows, mean: np.ndarray) -> np.ndarray:
    """R (k, d), k ≤ d, of X − mean = QR, which has the singular values of the centred rows.

    The R of the rows so far is stacked on the next block and factored again. Its small singular values are accurate to
    rounding of the largest one; those from XᵀX only to the square root of rounding.
    """
    found = np.zeros((0, len(mean)))
    for _, block in rows.blocks():
        found = np.linalg.qr(np.concatenate([found, block - mean]), mode="r")
    return found  # pyright: ignore


def factor_of_both(image: np.ndarray, text: np.ndarray, centres: Any, counts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and factor of both modalities stacked, from the factors, centres and numbers of rows of each.

    Σ (x − m)(x − m)ᵀ = Σ (x − c)(x − c)ᵀ + n (c − m)(c − m)ᵀ adds one row for each modality.
    """
    mean = sum(n * c for n, c in zip(counts, centres, strict=True)) / sum(counts)
    shifts = [math.sqrt(n) * (c - mean)[None, :] for n, c in zip(counts, centres, strict=True)]
    return mean, np.concatenate([image, text, *shifts])  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Results of comparing each query with all rows of the other set.

    Args:
        own: The largest cosine with the query's own rows.
        other: The largest cosine with other rows.
        rank: One plus the number of other rows at least as close as the best own one.
        kernel: The mean of exp(−2‖q − o‖²) over other rows.
    """

    own: np.ndarray
    other: np.ndarray
    rank: np.ndarray
    kernel: np.ndarray


def neighbours(
    queries: Rows,
    chosen: np.ndarray,
    others: Rows,
    first: np.ndarray,
    count: int,
    ties: float,
    progress: Progress,
) -> Neighbours:
    """Compare the chosen queries with all rows of the other set.

    Args:
        queries: The queries.
        chosen: Indices of the queries to compare.
        others: The rows of the other set.
        first: Index of the first own row of each chosen query.
        count: Number of consecutive own rows of a query.
        ties: Cosines that differ by at most this count as equal.
        progress: Called with a message before each long step.
    """
    parts = []
    step = max(1, min(QUERIES, QUERIES * 8 // count))
    for at in range(0, len(chosen), step):
        if len(chosen) > step:
            progress("queries", at, len(chosen))
        parts.append(_neighbours(queries[chosen[at : at + step]], others, first[at : at + step], count, ties))
    return Neighbours(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def _neighbours(queries: np.ndarray, others: Rows, first: np.ndarray, count: int, ties: float) -> tuple[Any, ...]:
    place = np.arange(len(queries))
    own = np.full(len(queries), -np.inf)
    for k in range(count):
        own = np.maximum(own, np.sum(queries * others[first + k], axis=1))
    other, kernel = np.full(len(queries), -np.inf), np.zeros(len(queries))
    rank = np.ones(len(queries), np.int64)
    for start, block in others.blocks():
        z = queries @ block.T
        for k in range(count):
            column = first + k - start
            here = (column >= 0) & (column < len(block))
            z[place[here], column[here]] = -np.inf
        other = np.maximum(other, z.max(axis=1))
        rank += np.count_nonzero(z >= (own - ties)[:, None], axis=1)
        z -= 1
        z *= 4
        kernel += np.exp(z, out=z).sum(axis=1)
    return own, other, rank, kernel / (len(others) - count)


def softmax_defect(image: Rows, text: Rows, beta: float, progress: Progress) -> float:
    """max(max_j |Σ_i P_ij − 1|, max_i |Σ_j Q_ij − 1|), P and Q the row and column softmax of βZ."""
    progress("softmax of images", 0, 4)
    of_images = _log_norms(image, text, beta)
    progress("softmax of texts", 1, 4)
    of_texts = _log_norms(text, image, beta)
    progress("sums of columns", 2, 4)
    columns = _softmax_sums(text, image, beta, of_images)
    progress("sums of rows", 3, 4)
    rows = _softmax_sums(image, text, beta, of_texts)
    return float(max(np.abs(columns - 1).max(), np.abs(rows - 1).max()))


def _log_norms(queries: Rows, others: Rows, beta: float) -> np.ndarray:
    """ln Σ_o exp(β⟨q, o⟩) of every query."""
    found = []
    for start in range(0, len(queries), QUERIES):
        rows = queries[start : start + QUERIES]
        top, total = np.full(len(rows), -np.inf), np.zeros(len(rows))
        for _, block in others.blocks():
            logits = beta * (rows @ block.T)
            higher = np.maximum(top, logits.max(axis=1))
            total = total * np.exp(top - higher) + np.exp(logits - higher[:, None]).sum(axis=1)
            top = higher
        found.append(top + np.log(total))
    return np.concatenate(found)


def _softmax_sums(queries: Rows, others: Rows, beta: float, log_norms: np.ndarray) -> np.ndarray:
    """Σ_o exp(β⟨q, o⟩ − log_norms[o]) of every query."""
    found = []
    for start in range(0, len(queries), QUERIES):
        rows = queries[start : start + QUERIES]
        total = np.zeros(len(rows))
        for at, block in others.blocks():
            total += np.exp(beta * (rows @ block.T) - log_norms[None, at : at + len(block)]).sum(axis=1)
        found.append(total)
    return np.concatenate(found)


# --- samples ---------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Sample:
    """The sample from which a value was estimated.

    Args:
        rows: Number of rows in the sample.
        of: Number of all rows.
        low: Lower limit of a 95 % confidence interval.
        high: Its upper limit.
    """

    rows: int
    of: int
    low: float
    high: float


_Z = 1.959963984540054  # quantile of the normal distribution at 97.5 %


def sample_of_fraction(fraction: float, rows: int, of: int) -> Sample:
    """The interval of Clopper and Pearson for a fraction of `rows` independent draws: it covers at least 95 %."""
    hits = round(fraction * rows)
    low = float(betaincinv(hits, rows - hits + 1, 0.025)) if hits else 0.0
    high = float(betaincinv(hits + 1, rows - hits, 0.975)) if hits < rows else 1.0
    return Sample(rows, of, low, high)


def sample_of_log_mean(parts: np.ndarray, of: int) -> Sample:
    """Interval for the logarithm of the mean of a kernel over pairs of `m` rows, drawn without replacement from `of`.

    The mean over pairs of drawn rows is a U-statistic, whose variance is 4/m times that of `parts`, the means of each
    row's pairs (Hoeffding); the logarithm is that of the delta method.
    """
    m, mean = len(parts), float(np.mean(parts))
    error = 2 * float(np.std(parts, ddof=1)) / math.sqrt(m) * math.sqrt(1 - m / of) / mean
    return Sample(m, of, math.log(mean) - _Z * error, math.log(mean) + _Z * error)


def kernel_means(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """For each i, the mean of exp(−2‖x_i − y_j‖²) and exp(−2‖x_j − y_i‖²) over j ≠ i, of unit rows."""
    of_rows, of_columns = np.zeros(len(x)), np.zeros(len(x))
    for start in range(0, len(x), QUERIES):
        z = x[start : start + QUERIES] @ y.T
        kernel = np.exp(4 * (z - 1))
        np.fill_diagonal(kernel[:, start:], 0.0)
        of_rows[start : start + QUERIES] = kernel.sum(axis=1)
        of_columns += kernel.sum(axis=0)
    return (of_rows + of_columns) / (2 * (len(x) - 1))
