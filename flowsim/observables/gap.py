"""How far apart the two modalities are: distances and angles of their centres, and distances of true pairs."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from flowsim.observables.metric import MoreRows, Number, PerModality, Rows, metric
from flowsim.observables.rows import TIES, centre, eps, unit


@metric(pairs=False)
def modality_gap(image: Rows, text: MoreRows) -> Number:
    """Modality gap Δ = ‖mean_i x_i − mean_j y_j‖₂.

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 2], 0 when the centres coincide.
    Source: Liang et al., NeurIPS 2022; Yaras et al., CPAL 2025. Called L2M elsewhere.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        Δ.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.

    Examples:
        >>> import flowsim as fs
        >>> round(fs.observables.modality_gap([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]), 3)
        1.414
    """
    return jnp.linalg.norm(centre(image) - centre(text))


@metric(pairs=False)
def centre_norms(image: Rows, text: MoreRows) -> PerModality:
    """Norms of the two centres, (‖mean_i x_i‖₂, ‖mean_j y_j‖₂).

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 1]; 1 when all rows of the modality
    coincide. Near 0 the direction of a centre, and hence `gap_angle`, is meaningless. Source: Liang et
    al., NeurIPS 2022.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        Both norms.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return PerModality(image_centre_norm(image, text), text_centre_norm(image, text))


@metric(pairs=False)
def image_centre_norm(image: Rows, text: MoreRows) -> Number:
    """‖mean_i x_i‖₂ of the images; see `centre_norms`.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The norm.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return jnp.linalg.norm(centre(image))


@metric(pairs=False)
def text_centre_norm(image: Rows, text: MoreRows) -> Number:
    """‖mean_j y_j‖₂ of the texts; see `centre_norms`.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The norm.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return jnp.linalg.norm(centre(text))


@metric(pairs=False)
def gap_angle(image: Rows, text: MoreRows) -> Number:
    """Angle between the two centres in degrees: arccos of the cosine of mean_i x_i and mean_j y_j.

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 180]; NaN when a centre vanishes to
    rounding, and ill-conditioned when it nearly does: always read it together with `centre_norms`. Source: arXiv
    2510.03268.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).

    Returns:
        The angle in degrees.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return angle_between(centre(image), centre(text))


def angle_between(a: Any, b: Any) -> Float[Array, ""]:
    """`gap_angle` from the two centres."""
    r, s = jnp.linalg.norm(a), jnp.linalg.norm(b)
    angle = 2 * jnp.atan2(jnp.linalg.norm(a / r - b / s), jnp.linalg.norm(a / r + b / s))
    return jnp.where(jnp.minimum(r, s) > TIES * eps(a), jnp.degrees(angle), jnp.nan)


@metric(pairs=True)
def pair_distance(image: Rows, text: Rows) -> Number:
    """Mean distance of true pairs, mean_i ‖x_i − y_i‖₂.

    Normalisation: unit rows. Sample: the n true pairs. Range: [0, 2], at least `modality_gap`.
    Source: Yaras et al., CPAL 2025. Called L2I elsewhere.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The mean distance.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return jnp.mean(jnp.linalg.norm(unit(image) - unit(text), axis=1))


@metric(pairs=True)
def mean_pair_cosine(image: Rows, text: Rows) -> Number:
    """Mean cosine of true pairs, mean_i Z_ii = 1 − `alignment`/2.

    Normalisation: unit rows. Sample: the n true pairs. Range: [−1, 1]; 1 when pairs coincide.
    Source: Hessel et al., EMNLP 2021 (CLIPScore, without its factor and clipping).

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The mean cosine.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    return jnp.mean(jnp.sum(unit(image) * unit(text), axis=1))


@metric(pairs=True)
def relative_modality_gap(image: Rows, text: Rows) -> Number:
    """Relative modality gap d_m / (d_m + ½(d_II + d_TT)) with the distance d = (1 − cosine)/2.

    d_m is the mean over true pairs; d_II and d_TT are means over distinct rows of one modality (the
    diagonal is excluded). Normalisation: unit rows. Sample: n pairs; sums of rows, no n×n matrix. Range:
    [0, 1]; 0 when pairs coincide, 1 when each modality is a point; NaN when everything is one point. Some
    code divides d_II + d_TT by 8 instead of 2; its odds r/(1 − r) are 4 times those here. Source:
    Schrodi et al., ICLR 2025.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (n, d).

    Returns:
        The ratio.

    Raises:
        FlowsimError: For invalid rows; see `flowsim.observables`.
    """
    x, y = unit(image), unit(text)
    return relative(jnp.mean(jnp.sum((x - y) ** 2, axis=1)) / 4, _spread(x), _spread(y))


def relative(pairs: Any, within_image: Any, within_text: Any) -> Float[Array, ""]:
    """`relative_modality_gap` from d_m, d_II and d_TT."""
    total = jnp.asarray(pairs + (within_image + within_text) / 2)
    return jnp.where(total > (TIES * eps(total)) ** 2, pairs / total, jnp.nan)


def _spread(unit_rows: MoreRows) -> Float[Array, ""]:
    """Mean of (1 − cosine)/2 over distinct rows, from distances to their mean: no n×n matrix."""
    return jnp.sum((unit_rows - jnp.mean(unit_rows, axis=0, keepdims=True)) ** 2) / (2 * (unit_rows.shape[0] - 1))
