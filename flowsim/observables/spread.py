"""The shape of the clouds: alignment, uniformity and effective rank."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowsim.observables.metric import MoreRows, Number, PerModality, Rows, metric
from flowsim.observables.rows import TIES, by_row, eps, unit


class Uniformity(NamedTuple):
    """The result of `uniformity`.

    Attributes:
        image: Within the images.
        text: Within the texts.
        cross: Between images and texts.
    """

    image: Number
    text: Number
    cross: Number


@metric(pairs=True)
def alignment(image: Rows, text: Rows) -> Number:
    """Alignment mean_i ‖x_i − y_i‖₂².

    Normalisation: unit rows. Sample: the n true pairs. Range: [0, 4]; lower is better aligned.
    Source: Wang & Isola, ICML 2020, exponent 2.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The mean squared distance.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return jnp.mean(jnp.sum((unit(image) - unit(text)) ** 2, axis=1))


@metric(pairs=True)
def uniformity(image: Rows, text: Rows) -> Uniformity:
    """`image_uniformity`, `text_uniformity` and `cross_uniformity` together.

    Normalisation: unit rows. Sample: distinct rows within a modality, non-pairs across, in blocks of rows.
    Range: [−8, 0] each; lower is more uniform. Source: Wang & Isola, ICML 2020, t = 2.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The three numbers.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return Uniformity(image_uniformity(image, text), text_uniformity(image, text), cross_uniformity(image, text))


@metric(pairs=False)
def image_uniformity(image: Rows, text: MoreRows) -> Number:
    """log mean_{i<j} exp(−2‖x_i − x_j‖₂²) over the images; unpaired; see `uniformity`.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The uniformity.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    x = unit(image)
    return _log_mean_kernel(x, x)


@metric(pairs=False)
def text_uniformity(image: Rows, text: MoreRows) -> Number:
    """log mean_{i<j} exp(−2‖y_i − y_j‖₂²) over the texts; unpaired; see `uniformity`.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The uniformity.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    y = unit(text)
    return _log_mean_kernel(y, y)


@metric(pairs=True)
def cross_uniformity(image: Rows, text: Rows) -> Number:
    """log mean_{i≠j} exp(−2‖x_i − y_j‖₂²), true pairs excluded; see `uniformity`.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The uniformity.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return _log_mean_kernel(unit(image), unit(text))


def _log_mean_kernel(queries: Rows, others: Rows) -> Float[Array, ""]:
    """log mean_{i≠j} exp(−2‖q_i − o_j‖²) of unit rows, i.e. of exp(−4(1 − cosine))."""
    n = queries.shape[0]
    sums = by_row(lambda i, z: jnp.sum(jnp.where(jnp.arange(n) == i, 0.0, jnp.exp(4.0 * (z - 1.0)))), queries, others)
    return jnp.log(jnp.sum(sums) / (n * (n - 1)))


@metric(pairs=False)
def wasserstein_uniformity(image: Rows, text: MoreRows) -> Number:
    """Minus the Wasserstein distance to uniformity, −√(‖µ‖² + 1 + tr Σ − (2/√d) tr Σ^{1/2}).

    µ and Σ are the mean and covariance (ddof = 1) of all image and text rows stacked; tr Σ^{1/2} is the sum of
    the singular values of the centred stack, divided by √(rows − 1). Normalisation: unit rows. Sample: all rows,
    unpaired. Range: about [−√2, 0]; higher is more uniform. Source: Fang et al. 2023, the "uniformity" of
    Yaras et al. 2025.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        Minus the distance.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    stack = jnp.concatenate([unit(image), unit(text)])
    mean = jnp.mean(stack, axis=0)
    centred = stack - mean[None, :]
    return distance_to_uniform(mean, centred, stack.shape[0])


def distance_to_uniform(mean: Any, centred: Any, rows: int) -> Float[Array, ""]:
    """`wasserstein_uniformity` from the mean and the centred rows, or a factor of them with their singular values."""
    # Without `full_matrices=False` the left factor, rows × rows, would be allocated although it is not needed.
    singular = jnp.linalg.svd(centred, compute_uv=False, full_matrices=False) / math.sqrt(rows - 1)
    squared = jnp.sum(mean**2) + 1 + jnp.sum(singular**2) - 2 / math.sqrt(centred.shape[1]) * jnp.sum(singular)
    return -jnp.sqrt(jnp.maximum(squared, 0))


@metric(pairs=False)
def effective_rank(image: Rows, text: MoreRows) -> PerModality:
    """Effective rank exp(−Σ_k p_k log p_k) of each modality, p = σ/Σσ, σ the singular values of centred rows.

    Normalisation: unit rows, then centred. Sample: all rows, unpaired. Range: [1, min(n − 1, d)], and 0
    when all rows coincide to rounding. Source: Roy & Vetterli, EUSIPCO 2007.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        Both ranks.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return PerModality(image_effective_rank(image, text), text_effective_rank(image, text))


@metric(pairs=False)
def image_effective_rank(image: Rows, text: MoreRows) -> Number:
    """`effective_rank` of the images.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The rank.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return rank_of_centred(*_centred(unit(image)))


@metric(pairs=False)
def text_effective_rank(image: Rows, text: MoreRows) -> Number:
    """`effective_rank` of the texts.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The rank.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return rank_of_centred(*_centred(unit(text)))


def _centred(unit_rows: MoreRows) -> tuple[MoreRows, int]:
    return unit_rows - jnp.mean(unit_rows, axis=0, keepdims=True), unit_rows.shape[0]


def rank_of_centred(centred: Any, rows: int) -> Float[Array, ""]:
    """`effective_rank` from the centred rows, or a factor of them with their singular values."""
    singular = jnp.linalg.svd(centred, compute_uv=False, full_matrices=False)
    real = singular > TIES * eps(singular) * math.sqrt(rows)
    total = jnp.sum(jnp.where(real, singular, 0))
    p = jnp.where(real, singular, 1) / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(real, p * jnp.log(p), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)
