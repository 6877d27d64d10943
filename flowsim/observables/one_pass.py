"""One pass over all rows of both modalities: finiteness, sums, products of columns, and ranks of sampled queries."""

import dataclasses
import math
from typing import Any

import numpy as np

from flowsim.observables import blocks
from flowsim.observables.checks import check_finite
from flowsim.progress import Progress

#: Columns whose products with those before them are computed together.
_COLUMNS = 256
_SINGLE = float(np.finfo(np.float32).eps) / 2


@dataclasses.dataclass
class Sums:
    """Sums over the unit rows of one modality.

    Args:
        rows: n.
        shift: (d,) a point near the rows, to which `products` refers.
        total: (d,) Σ_i (x_i − shift).
        squared: Σ_i ‖x_i − shift‖².
        products: (d, d) Σ_i (x_i − shift)(x_i − shift)ᵀ, in the lower blocks; None if it is not wanted.
    """

    rows: int
    shift: np.ndarray
    total: np.ndarray
    squared: float = 0.0
    products: np.ndarray | None = None

    @property
    def centre(self) -> np.ndarray:
        """mean_i x_i."""
        return self.shift + self.total / self.rows

    @property
    def spread(self) -> float:
        """Σ_i ‖x_i − centre‖²."""
        return max(self.squared - float(self.total @ self.total) / self.rows, 0.0)

    def add(self, rows: np.ndarray, single: bool) -> None:
        """Add a block of unit rows; with `single`, products are formed in float32."""
        away = rows - self.shift
        self.total += away.sum(axis=0)
        self.squared += float(np.einsum("ij,ij->", away, away))
        if self.products is not None:
            _add_products(self.products, away.astype(np.float32) if single else away)

    def factor(self, single: bool, careful: bool) -> np.ndarray | None:
        """(d, d) with the singular values of the centred rows; None where the products do not tell them.

        Products know a squared singular value to rounding of their trace. What that changes in the sum of singular
        values must be below 1e-6 for products in float32, and below 1e-11 if `careful`.
        """
        assert self.products is not None
        lower = np.tril(self.products)
        centred = lower + np.tril(lower, -1).T - np.outer(self.total, self.total) / self.rows
        squares, directions = np.linalg.eigh(centred)
        trace, count = float(np.trace(self.products)), len(squares)
        unknown = trace * (4 * _SINGLE / count if single else blocks.EPS)
        squares = np.where(squares > unknown, squares, 0.0)
        singular = np.sqrt(squares)
        changes = np.minimum(math.sqrt(unknown), unknown / (2 * np.maximum(singular, 1e-300)))
        change = float(np.linalg.norm(changes) if single else changes.sum())  # rounding of many rows is independent
        limit = 1e-6 if single else 1e-11
        if (single or careful) and change > limit * max(float(singular.sum()), 1e-300):
            return None
        return singular[:, None] * directions.T


def _add_products(products: np.ndarray, rows: np.ndarray) -> None:
    """Add the lower blocks of rowsᵀ rows, in as many products as there are groups of columns."""
    for start in range(0, rows.shape[1], _COLUMNS):
        group = slice(start, start + _COLUMNS)
        products[group, : group.stop] += rows[:, group].T @ rows[:, : group.stop]


class Search:
    """Ranks of the own rows of some queries among all rows of the other modality, which come block by block.

    Cosines are computed in float32. Those that rounding could put on either side of the own one are computed again in
    float64, so that ranks are those of float64.

    Args:
        queries: (q, d) unit rows.
        own: (q,) the largest cosine with a query's own rows.
        first: (q,) the index of its first own row.
        count: Number of consecutive own rows.
        ties: Cosines that differ by at most this count as equal.
    """

    def __init__(self, queries: np.ndarray, own: np.ndarray, first: np.ndarray, count: int, ties: float):
        self.queries, self.own, self.first, self.count, self.ties = queries, own, first, count, ties
        self.single = queries.astype(np.float32)
        # |fl(Σ a_k b_k) − Σ a_k b_k| ≤ d u Σ |a_k b_k| ≤ d u, and two more u for the rounding of the rows.
        doubt = (queries.shape[1] + 4) * _SINGLE + ties
        self.low, self.high = ((own + sign * doubt).astype(np.float32)[:, None] for sign in (-1, 1))
        self.low, self.high = np.nextafter(self.low, np.float32(-9)), np.nextafter(self.high, np.float32(9))
        self.rank = np.ones(len(queries), np.int64)
        self.top, self.nearest = np.full(len(queries), -np.inf, np.float32), np.zeros(len(queries), np.int64)

    def add(self, start: int, rows: np.ndarray, single: np.ndarray) -> None:
        """Compare all queries with a block of rows, whose first has index `start`; `single` is it in float32."""
        for at in range(0, len(self.queries), blocks.QUERIES):
            self._add(slice(at, at + blocks.QUERIES), start, rows, single)

    def _add(self, part: slice, start: int, rows: np.ndarray, single: np.ndarray) -> None:
        """`add` for a part of the queries, whose cosines fit into memory."""
        z = self._cosines(self.single[part], self.first[part], start, single)
        best = z.argmax(axis=1)
        highest = z[np.arange(len(z)), best]
        self.nearest[part] = np.where(highest > self.top[part], best + start, self.nearest[part])
        self.top[part] = np.maximum(highest, self.top[part])
        above, doubtful = z > self.high[part], z >= self.low[part]
        doubtful ^= above
        mine, least = self.queries[part], self.own[part] - self.ties
        if np.count_nonzero(doubtful) > 0.02 * z.size:  # one by one would take longer than all at once
            exact = self._cosines(mine, self.first[part], start, rows)
            self.rank[part] += np.count_nonzero(exact >= least[:, None], axis=1)
            return
        self.rank[part] += np.count_nonzero(above, axis=1)
        queries, columns = np.divmod(np.flatnonzero(doubtful), len(rows))
        for at in range(0, len(queries), blocks.BLOCK):
            i, j = queries[at : at + blocks.BLOCK], columns[at : at + blocks.BLOCK]
            equal = np.einsum("ij,ij->i", mine[i], rows[j]) >= least[i]
            self.rank[part] += np.bincount(i[equal], minlength=len(z))

    def _cosines(self, queries: np.ndarray, first: np.ndarray, start: int, rows: np.ndarray) -> np.ndarray:
        """Cosines of queries with a block of rows; −∞ for their own rows, which begin at `first`."""
        z = queries @ rows.T
        for k in range(self.count):
            column = first + k - start
            here = np.flatnonzero((column >= 0) & (column < len(rows)))
            z[here, column[here]] = -np.inf
        return z


@dataclasses.dataclass
class Pass:
    """What one pass found.

    Args:
        sums: Sums of each modality.
        pairs: Means over pairs; None unless both modalities have as many rows.
    """

    sums: dict[str, Sums]
    pairs: blocks.PairMeans | None


def one_pass(
    rows: dict[str, blocks.Rows], products: bool, single: bool, searches: dict[str, Search], progress: Progress
) -> Pass:
    """Read all rows once, block by block.

    Args:
        rows: The rows of each modality, `image` and `text`.
        products: Whether products of columns are wanted.
        single: Whether these are formed in float32.
        searches: By the modality that is searched.
        progress: Called after every few blocks.

    Raises:
        FlowsimError: For NaN, infinity and rows of zeros.
    """
    sums: dict[str, Sums] = {}
    means, longest = np.zeros(3), max(map(len, rows.values()))
    paired = len({len(one) for one in rows.values()}) == 1
    for start in range(0, longest, blocks.BLOCK):
        if start % (16 * blocks.BLOCK) == 0 and longest > blocks.BLOCK:
            progress("rows", start, longest)
        read: dict[str, Any] = {}
        for name, one in rows.items():
            if start < len(one):
                with np.errstate(invalid="ignore", divide="ignore"):
                    read[name] = block = one[start : start + blocks.BLOCK]
                    if name not in sums:
                        d = block.shape[1]
                        sums[name] = Sums(len(one), block.mean(axis=0), np.zeros(d))
                        sums[name].products = np.zeros((d, d)) if products else None
                    sums[name].add(block, single)
                if not np.isfinite(sums[name].total).all():
                    check_finite(name, np.asarray(one.array[start : start + blocks.BLOCK], np.float64), start)
                if name in searches:
                    searches[name].add(start, block, block.astype(np.float32))
        if paired:
            means += blocks.sums_of_pairs(read["image"], read["text"])
    return Pass(sums, blocks.PairMeans(*(float(one) / longest for one in means)) if paired else None)
