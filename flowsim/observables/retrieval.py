"""Retrieval in both directions: the rank of the true match of every query, and recall at k."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from flowsim.observables.checks import check_captions
from flowsim.observables.metric import MoreRows, Number, Rows, metric
from flowsim.observables.rows import TIES, by_row, eps, fraction, unit


class Retrieval(NamedTuple):
    """Retrieval in both directions.

    Attributes:
        image_to_text: Recall, or the rank of each image query, shape (n,).
        text_to_image: Recall, or the rank of each text query, shape (m,).
    """

    image_to_text: Number | Shaped[Array | np.ndarray, " n"]
    text_to_image: Number | Shaped[Array | np.ndarray, " m"]


@metric(pairs=False)
def retrieval_ranks(image: Rows, text: MoreRows, captions_per_image: int = 1) -> Retrieval:
    """Rank of the true match of every query, 1 for the best.

    With c captions per image, row j of `text` belongs to image j // c. For c = 1 the rank is #{j: Z_ij ≥ Z_ii}, which
    counts the match itself and every tie. A text query ranks its image among all n images in the same way. The rank of
    an image query counts its best caption and all captions of other images that score at least as high. Cosines that
    agree to rounding are ties, so collapsed embeddings rank last, not at random. Normalisation: unit rows. Computed in
    blocks of rows.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (c·n, d).
        captions_per_image: c, the number of consecutive text rows that belong to one image.

    Returns:
        n image→text ranks, and c·n text→image ranks.

    Raises:
        FlowsimError: For invalid rows, see `flowsim.observables`; and for numbers of rows that do not fit c.
    """
    c, (n, m) = captions_per_image, (image.shape[0], text.shape[0])
    check_captions(n, m, c, always=True)
    x, y = unit(image), unit(text)
    ties = TIES * eps(x)

    def image_query(i: Any, z: Any) -> Any:
        own = jnp.arange(m) // c == i
        best = jnp.max(jnp.where(own, z, -jnp.inf))
        return 1 + jnp.sum(~own & (z >= best - ties))

    return Retrieval(
        by_row(image_query, x, y),
        by_row(lambda j, z: jnp.sum(z >= z[j // c] - ties), y, x),
    )


@metric(pairs=False)
def retrieval_at_k(image: Rows, text: MoreRows, k: int = 1, captions_per_image: int = 1) -> Retrieval:
    """Recall at k: the fraction of queries whose rank is at most k.

    Ranks are those of `retrieval_ranks`: ties count against the query. With c captions per image (c = 5 on COCO and
    Flickr) an image query succeeds if any of its captions ranks ≤ k, and each of the c·n captions is a text query.
    Normalisation: unit rows. Sample: the whole pool, whose size should be reported too; chance is k/n for c = 1. Range:
    [0, 1]; NaN if every query would succeed, for k above the m − c captions of other images or the n − 1 other images.
    Source: the COCO/Flickr30k protocols, Karpathy & Fei-Fei, CVPR 2015.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (c·n, d).
        k: The number of candidates that a query returns.
        captions_per_image: c, the number of consecutive text rows that belong to one image.

    Returns:
        Recall image→text and text→image.

    Raises:
        FlowsimError: As for `retrieval_ranks`.
    """
    ranks = retrieval_ranks(image, text, captions_per_image=captions_per_image)
    last = last_ranks(image.shape[0], text.shape[0], captions_per_image)
    found = (fraction(rank <= k, image) for rank in ranks)
    return Retrieval(*(jnp.full_like(r, jnp.nan) if k >= worst else r for r, worst in zip(found, last, strict=True)))


def last_ranks(images: int, texts: int, captions: int) -> Retrieval:
    """The worst possible ranks in both directions: an image counts one of its captions and all of other images."""
    return Retrieval(texts - captions + 1, images)
