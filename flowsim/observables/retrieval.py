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
    """A retrieval number in each direction: recalls (scalars), or ranks (one for each query)."""

    image_to_text: Number | Shaped[Array | np.ndarray, " n"]
    text_to_image: Number | Shaped[Array | np.ndarray, " m"]


@metric(pairs=False)
def retrieval_ranks(image: Rows, text: MoreRows, captions_per_image: int = 1) -> Retrieval:
    """Rank of the true match of every query, 1 for the best.

    With c captions per image, row j of `text` belongs to image j // c. For c = 1 the rank is #{j: Z_ij ≥ Z_ii}, which
    counts the match itself and every tie. A text query ranks its image among all n images in the same way. An image
    query takes its best caption, and counts that one and the captions of other images that score as high. Cosines that
    agree to rounding are ties, so that collapsed embeddings rank last, not at random. Normalisation: unit rows.
    Computed in blocks of rows.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (c·n, d).
        captions_per_image: c, the number of consecutive text rows that belong to one image.

    Returns:
        n image→text ranks, and c·n text→image ranks.

    Raises:
        FlowsimError: For rows that no metric can take, see the module; and for numbers of rows that do not fit c.
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
    Normalisation: unit rows. Sample: the whole pool, whose size belongs to the number; chance is k/n for c = 1. Range:
    [0, 1]; NaN where every query would succeed: k above the m − c captions of other images, or above the n − 1 other
    images. Source: the COCO/Flickr30k protocols, Karpathy & Fei-Fei, CVPR 2015.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (c·n, d).
        k: How many candidates a query may return.
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
    """The worst rank that a query can have: an image counts one caption of its own and all of the others."""
    return Retrieval(texts - captions + 1, images)
