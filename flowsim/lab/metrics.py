"""What the lab measures in addition to `flowsim.observables`: all rows in one pool, the distribution gap, robustness.

Rows are unit rows in float64 here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from flowsim.base.checks import check, host_array, shown
from flowsim.lab.landscape import unit
from flowsim.observables.blocks import QUERIES, Rows, neighbours
from flowsim.observables.checks import check_shapes, check_values
from flowsim.observables.rows import EPS64, TIES
from flowsim.progress import silent

#: Rows that a query returns in the mixed pool.
NEAREST = 10


class Mixed(NamedTuple):
    """Retrieval from one pool of both modalities, for each query: images in the first column, texts in the second.

    Attributes:
        rank: Rank of the partner among all other rows, 1 for the best.
        own_modality: Share of the 10 nearest rows that are of the query's own modality; (n − 1)/(2n − 1) by chance.
        same_class: Share of the 10 nearest rows that are of the query's class; NaN without labels.
    """

    rank: Int[np.ndarray, "queries 2"]
    own_modality: Float[np.ndarray, "queries 2"]
    same_class: Float[np.ndarray, "queries 2"]


def mixed_retrieval(image: Any, text: Any, labels: Any = None, queries: Any = None) -> Mixed:
    """Retrieval from one pool of both modalities: does the partner of a row come before rows of its own modality?

    The pool of a query are all other 2n − 1 rows. Rank: 1 + #{other rows at least as close as the partner}, where
    cosines that agree to rounding are ties. Normalisation: unit rows. Source: cf. GR-CLIP, arXiv 2507.19054.

    Args:
        image: Image rows (n, d).
        text: Text rows (n, d).
        labels: Class of each pair (n,), whole numbers, −1 for none.
        queries: Indices of the pairs whose two rows are queries. Default: all.

    Returns:
        Ranks and shares of each query.

    Raises:
        FlowsimError: For invalid rows, see `flowsim.observables`; fewer than 6 pairs; or labels or queries that do not
            fit.
    """
    arrays = {"image": check_values("image", image), "text": check_values("text", text)}
    check_shapes(arrays, pairs=True)
    x, y = (unit(rows) for rows in arrays.values())
    n, classes = len(x), None
    check(n >= 6, f"Retrieval of {NEAREST} rows from a mixed pool needs at least 6 pairs, but got {n}. Give more.")
    if labels is not None:
        classes = np.asarray(labels)
        check(
            classes.shape == (n,) and classes.dtype.kind in "iu",
            f"Argument `labels` must be {n} whole numbers, but has shape {classes.shape} and dtype {classes.dtype}. "
            "Use -1 for none.",
        )
        classes = np.tile(classes, 2)
    places = np.arange(n) if queries is None else host_array(queries)
    if places is None or places.ndim != 1 or places.dtype.kind not in "iu":
        places = np.zeros(0, int)
    check(
        len(places) > 0 and 0 <= places.min() <= places.max() < n,
        f"Argument `queries` must be indices of pairs from 0 to {n - 1}, but is {shown(queries)}. Leave it out.",
    )
    parts = []
    for own, other in ((x, y), (y, x)):
        pool = np.concatenate([own, other]).T
        blocks = [places[at : at + QUERIES // 2] for at in range(0, len(places), QUERIES // 2)]
        parts.append([_mixed(own, pool, block, classes) for block in blocks])
    columns = [[np.concatenate(values) for values in zip(*part, strict=True)] for part in parts]
    return Mixed(*(np.stack(both, axis=1) for both in zip(*columns, strict=True)))


def _mixed(own: np.ndarray, pool: np.ndarray, at: np.ndarray, classes: np.ndarray | None) -> tuple[np.ndarray, ...]:
    """Rank, own share and class share of the rows `at`; the pool has their own modality first."""
    n, k = len(own), NEAREST
    z = own[at] @ pool
    row = np.arange(len(at))
    z[row, at] = -np.inf
    rank = np.sum(z >= z[row, n + at, None] - TIES * EPS64, axis=1)
    nearest = np.argpartition(-z, k - 1, axis=1)[:, :k]
    same = np.full(len(at), np.nan)
    if classes is not None:
        same = np.where(classes[at] >= 0, np.mean(classes[nearest] == classes[at, None], axis=1), np.nan)
    return rank, np.mean(nearest < n, axis=1), same


def ranks(image: np.ndarray, text: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ranks of `observables.retrieval_ranks` for some queries only: image to text, and text to image."""
    x, y = Rows(image), Rows(text)
    to_text, to_image = (neighbours(a, queries, b, queries, 1, TIES * EPS64, silent).rank for a, b in ((x, y), (y, x)))
    return to_text, to_image


def first_hits(image: np.ndarray, text: np.ndarray, queries: np.ndarray) -> Float[np.ndarray, " queries"]:
    """R@1 of each query pair, the mean of both directions: 0, 0.5 or 1."""
    to_text, to_image = ranks(image, text, queries)
    return ((to_text <= 1).astype(float) + (to_image <= 1)) / 2


def distribution_gap(image: Any, text: Any) -> float:
    """Fréchet distance of the two modalities after each is centred: what a shift of the means cannot close.

    √(tr Σ_x + tr Σ_y − 2 tr (Σ_x^{1/2} Σ_y Σ_x^{1/2})^{1/2}), the 2-Wasserstein distance of two normal distributions
    with the covariances (ddof = 1) of both modalities and the same mean. Normalisation: unit rows, then centred.
    Sample: all rows, unpaired. Range: [0, about √2]; 0 when the covariances are equal. With few rows it is biased
    upwards: compare it with its value by chance, which `run` gives.

    Args:
        image: Image rows (n, d).
        text: Text rows (m, d).

    Returns:
        The distance.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    arrays = {"image": check_values("image", image), "text": check_values("text", text)}
    check_shapes(arrays, pairs=False)
    return frechet(unit(arrays["image"]), unit(arrays["text"]))


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """`distribution_gap` of rows that are taken as they are."""
    # With Σ_x = AᵀA and Σ_y = BᵀB the trace of the root is the sum of the singular values of ABᵀ.
    a, b = (np.linalg.qr(rows - rows.mean(axis=0), mode="r") / np.sqrt(len(rows) - 1) for rows in (x, y))
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(np.sqrt(max(np.sum(a**2) + np.sum(b**2) - 2 * cross, 0.0)))


def distribution_gap_by_chance(x: np.ndarray, y: np.ndarray, seed: int, draws: int = 3) -> float:
    """Mean of `frechet` after image and text are exchanged in a random half of the pairs, each modality centred."""
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    rng, found = _generator(seed, 2), []
    for _ in range(draws):
        flip = rng.random(len(x))[:, None] < 0.5
        found.append(frechet(np.where(flip, y, x), np.where(flip, x, y)))
    return float(np.mean(found))


def gap_contributions(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " n"]:
    """Jackknife pseudo-values of the modality gap, n Δ − (n − 1) Δ without pair i.

    Where the means are equal, in many dimensions, their standard error is √2 times that of Δ.
    """
    n, total = len(x), (x - y).sum(axis=0)
    without = np.linalg.norm(total - (x - y), axis=1) / (n - 1)
    return n * np.linalg.norm(total) / n - (n - 1) * without


def relative_gap_contributions(x: np.ndarray, y: np.ndarray) -> Float[np.ndarray, " n"]:
    """Jackknife pseudo-values of the relative modality gap."""
    n = len(x)
    squared = np.sum((x - y) ** 2, axis=1)

    def value(pairs: Any, within: Any) -> Any:
        with np.errstate(invalid="ignore"):  # where all rows coincide
            return pairs / (pairs + within)

    # Σ_{i<j} ‖x_i − x_j‖² = m Σ‖x_i‖² − ‖Σ x_i‖², and d = ‖x_i − x_j‖²/4.
    def within(total_squares: Any, m: int) -> Any:
        return (m**2 - total_squares) / (2 * m * (m - 1))

    whole = [np.sum(rows.sum(axis=0) ** 2) for rows in (x, y)]
    parts = [np.sum((rows.sum(axis=0) - rows) ** 2, axis=1) for rows in (x, y)]
    all_ = value(squared.mean() / 4, (within(whole[0], n) + within(whole[1], n)) / 2)
    without = value((squared.sum() - squared) / (n - 1) / 4, (within(parts[0], n - 1) + within(parts[1], n - 1)) / 2)
    return n * all_ - (n - 1) * without


def noisy(rows: np.ndarray, size: float, seed: int, modality: int) -> np.ndarray:
    """Unit rows plus Gaussian noise with expected squared norm `size`²; the same draw for every method."""
    noise = _generator(seed, modality).normal(size=rows.shape)
    return rows + size / np.sqrt(rows.shape[1]) * noise


def _generator(seed: int, purpose: int) -> np.random.Generator:
    """A stream that differs from `default_rng(seed)`, from which users may have drawn their rows."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(purpose,)))


def as_int8(rows: np.ndarray) -> np.ndarray:
    """Rows of whole numbers from −127 to 127, each row scaled by its largest entry and rounded."""
    return np.rint(127 * rows / np.abs(rows).max(axis=1, keepdims=True))


def as_signs(rows: np.ndarray) -> np.ndarray:
    """Rows of −1 and 1: one bit for each entry."""
    return np.where(rows >= 0, 1.0, -1.0)


def class_accuracy(
    image: np.ndarray, labels: Shaped[np.ndarray, " n"], classes: np.ndarray, known: np.ndarray
) -> Float[np.ndarray, " n"]:
    """1 where the nearest class row is that of the image's class, else 0; NaN for images without a class.

    Args:
        image: Unit rows (n, d).
        labels: Class of each image, an index into `classes`; −1 for none.
        classes: A row for each class (K, d).
        known: (K,) whether the class has a row; images of other classes are left out.
    """
    scores = image @ unit(np.where(known[:, None], classes, 1.0)).T
    scores[:, ~known] = -np.inf
    judged = (labels >= 0) & known[np.maximum(labels, 0)]
    return np.where(judged, scores.argmax(axis=1) == labels, np.nan)
