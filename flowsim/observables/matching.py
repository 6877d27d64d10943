"""Whether pairs are matched: margins of pairs over non-pairs, and how far the softmaxes are from doubly stochastic.

Each metric takes either rows, from which no n×n matrix is formed, or the n×n matrix itself.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowsim.base.arrays import namespace
from flowsim.observables.metric import Number, Positive, Rows, Square, metric
from flowsim.observables.rows import TIES, by_row, eps, fraction, unit


@metric(pairs=True)
def margin(
    image: Rows | None = None, text: Rows | None = None, *, similarity: Square | None = None, normalise: bool = True
) -> Number:
    """Margin α = min_{i≠j} min(Z_ii − Z_ij, Z_jj − Z_ij), Z_ij = ⟨x_i, y_j⟩.

    Sample: all n(n−1) non-pairs, in blocks of rows. Similarities that agree to rounding are ties, with margin 0. Range:
    [−2, 2] for unit rows, real otherwise; the pairs are perfectly matched if it is positive. The margin of parallel
    cones [√(1−γ²) h, ±γ] is 1 − γ² times that of their directions h. The theory uses the latter: pass h, or record
    `direction_margin` in a run.
    Source: Yaras et al., CPAL 2025.

    Args:
        image: Image rows, shape (n, d), n ≥ 2.
        text: Text rows, shape (n, d).
        similarity: Z of shape (n, n) instead of the rows, with true pairs on the diagonal. It is used as it is.
        normalise: Whether rows are scaled to unit length first.

    Returns:
        α.

    Raises:
        FlowsimError: For invalid rows, see `flowsim.observables`; for a matrix that is not square; and unless either
            rows or a matrix are given.

    Examples:
        >>> import flowsim as fs
        >>> fs.observables.margin([[1.0, 0.0], [0.0, 1.0]], [[2.0, 0.0], [0.0, 3.0]])
        1.0
        >>> fs.observables.margin(similarity=[[0.9, 0.4], [0.1, 0.8]])
        0.4
    """
    return jnp.min(_pair_margins(image, text, similarity, normalise))


@metric(pairs=True)
def pair_margins(
    image: Rows | None = None, text: Rows | None = None, *, similarity: Square | None = None, normalise: bool = True
) -> Float[Array | np.ndarray, " n"]:
    """Margin of every pair, Z_ii − max_{j≠i} max(Z_ij, Z_ji); its smallest entry is `margin`.

    Sample: the n true pairs against all non-pairs, in blocks of rows. Range: [−2, 2] each for unit rows.

    Args:
        image: Image rows, shape (n, d), n ≥ 2.
        text: Text rows, shape (n, d).
        similarity: Z of shape (n, n) instead of the rows, with true pairs on the diagonal. It is used as it is.
        normalise: Whether rows are scaled to unit length first.

    Returns:
        The margins, shape (n,).

    Raises:
        FlowsimError: As for `margin`.
    """
    return _pair_margins(image, text, similarity, normalise)


@metric(pairs=True)
def matched_fraction(
    image: Rows | None = None, text: Rows | None = None, *, similarity: Square | None = None, normalise: bool = True
) -> Number:
    """Fraction of pairs with Z_ii > max_{j≠i} Z_ij and Z_ii > max_{j≠i} Z_ji.

    Sample: the n true pairs against all non-pairs, in blocks of rows. Similarities that agree to rounding are ties and
    do not count. Range: [0, 1]; 1 when `margin` is positive. Source: the matching condition of Yaras et al., CPAL 2025,
    for each pair.

    Args:
        image: Image rows, shape (n, d), n ≥ 2.
        text: Text rows, shape (n, d).
        similarity: Z of shape (n, n) instead of the rows, with true pairs on the diagonal. It is used as it is.
        normalise: Whether rows are scaled to unit length first.

    Returns:
        The fraction.

    Raises:
        FlowsimError: As for `margin`.
    """
    margins = _pair_margins(image, text, similarity, normalise)
    return fraction(margins > 0, margins)


@metric(pairs=True)
def doubly_stochastic_defect(
    image: Rows | None = None,
    text: Rows | None = None,
    temperature: Positive | None = None,
    *,
    logits: Square | None = None,
    normalise: bool = True,
) -> Number:
    """Defect max(max_j |Σ_i P_ij − 1|, max_i |Σ_j Q_ij − 1|), P and Q the row and column softmax of M = Z/τ.

    Sample: n pairs, in blocks of rows. Range: [0, n − 1]; 0 means that the loss exerts no ambient force on the centres,
    which alone does not freeze the gap on the sphere. A constant added to all logits changes nothing. Source: the
    gradient of the symmetric contrastive loss, cf. arXiv 2603.29080.

    Args:
        image: Image rows, shape (n, d), n ≥ 2.
        text: Text rows, shape (n, d).
        temperature: τ = 1/β, not β.
        logits: M of shape (n, n) instead of rows and temperature. It is used as it is.
        normalise: Whether rows are scaled to unit length first.

    Returns:
        The defect.

    Raises:
        FlowsimError: As for `margin`; and if the temperature is not positive.
    """
    if logits is not None:
        return _defect_of_logits(logits)
    assert image is not None and text is not None and temperature is not None
    x, y = (unit(image), unit(text)) if normalise else (image, text)
    return _defect_of_rows(x, y, 1 / temperature)


def _pair_margins(
    image: Rows | None, text: Rows | None, similarity: Square | None, normalise: bool
) -> Float[Array, " n"]:
    if similarity is not None:
        return _margins_of_similarity(similarity)
    assert image is not None and text is not None
    return _margins_of_rows(*((unit(image), unit(text)) if normalise else (image, text)))


def _margins_of_rows(image: Rows, text: Rows) -> Float[Array, " n"]:
    longest = [jnp.max(jnp.linalg.norm(rows, axis=1)) for rows in (image, text)]
    return without_ties(jnp.minimum(_gaps(image, text), _gaps(text, image)), longest[0] * longest[1])


def _gaps(queries: Rows, others: Rows) -> Float[Array, " n"]:
    """Z_ii − max_{j≠i} Z_ij for every query i."""
    return by_row(lambda i, z: z[i] - jnp.max(jnp.where(jnp.arange(z.size) == i, -jnp.inf, z)), queries, others)


def _margins_of_similarity(similarity: Square) -> Float[Array, " n"]:
    diagonal = jnp.diagonal(similarity)
    others = jnp.where(jnp.eye(similarity.shape[0], dtype=bool), -jnp.inf, similarity)
    margins = diagonal - jnp.maximum(jnp.max(others, axis=1), jnp.max(others, axis=0))
    return without_ties(margins, jnp.max(jnp.abs(similarity)))


def without_ties(margins: Any, scale: Any) -> Any:
    """Margins, set to 0 where two similarities of size `scale` agree to rounding and the sign is meaningless."""
    return namespace(margins).where(abs(margins) <= TIES * eps(margins) * scale, 0.0, margins)


def _defect_of_rows(x: Rows, y: Rows, beta: Any) -> Float[Array, ""]:
    row_norms = by_row(lambda i, z: jax.nn.logsumexp(beta * z), x, y)
    column_norms = by_row(lambda j, z: jax.nn.logsumexp(beta * z), y, x)
    column_sums = by_row(lambda j, z: jnp.sum(jnp.exp(beta * z - row_norms)), y, x)
    row_sums = by_row(lambda i, z: jnp.sum(jnp.exp(beta * z - column_norms)), x, y)
    return jnp.maximum(jnp.max(jnp.abs(column_sums - 1)), jnp.max(jnp.abs(row_sums - 1)))


def _defect_of_logits(logits: Square) -> Float[Array, ""]:
    column_sums = jnp.sum(jax.nn.softmax(logits, axis=1), axis=0)
    row_sums = jnp.sum(jax.nn.softmax(logits, axis=0), axis=1)
    return jnp.maximum(jnp.max(jnp.abs(column_sums - 1)), jnp.max(jnp.abs(row_sums - 1)))
