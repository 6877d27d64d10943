"""Checks of embeddings: rows of pairs at the end of a run, or from a file."""

import math

import numpy as np

from flowsim import observables
from flowsim.doctor.case import MOST_ROWS, Case, Rows
from flowsim.doctor.finding import CannotTell, Sign, register

#: Share of the squared length of rows along their mean that counts as dominant; and the share that does if recall
#: without it grows by this factor and by this many standard errors.
DOMINANT, LARGE, GAIN, ERRORS = 0.8, 0.5, 1.1, 3.0
#: Effective rank as a fraction of the largest possible one, below which rows count as collapsed.
COLLAPSED = 0.1
#: A gap and a recall from which pairs count as aligned across an open gap.
OPEN, ALIGNED = 0.5, 0.5
#: Share of pairs with the text (or image) of another one that counts.
DUPLICATES = 0.02
#: Fewest pairs that say something about the distribution.
FEWEST = 20


def _rows(case: Case) -> Rows:
    if case.rows is None:
        raise CannotTell("No embeddings are known. Give them as `embeddings`.")
    if len(case.rows[0]) < FEWEST:
        raise CannotTell(f"Only {len(case.rows[0])} pairs are known.")
    return case.rows


def _hits(image: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Whether each pair is retrieved first, as the mean of both directions, (n,)."""
    ranks = observables.retrieval_ranks(image, text)
    return np.mean([np.asarray(rank) <= 1 for rank in ranks], axis=0)


def _recall(image: np.ndarray, text: np.ndarray) -> float:
    """Mean recall at 1 of both directions."""
    return float(_hits(image, text).mean())


@register(
    "common-component",
    title="one direction that dominates the rows",
    reason="A component that all rows of a modality share says nothing about a pair, but adds to every cosine, so that "
    "differences between pairs become small beside it. Encoders move such a common mode much faster than differences.",
    cure="Subtract each modality's mean before retrieval (`flowsim lab` shows what this gains), remove the common mode "
    "from the inputs, or train longer at a temperature that is not too low.",
)
def common_component(case: Case) -> Sign:
    """The share of the squared length of rows along their mean, and recall without it."""
    image, text = _rows(case)
    shares = {name: float(np.sum(rows.mean(0) ** 2)) for name, rows in (("image", image), ("text", text))}
    hits = _hits(image, text)
    without = [rows - rows.mean(0) for rows in (image, text)]
    rest = _hits(*without) if all(np.linalg.norm(x, axis=1).min() > 1e-9 for x in without) else np.full(len(hits), 0.0)
    before, after = float(hits.mean()), float(rest.mean())
    error = float(np.std(rest - hits) / math.sqrt(len(hits)))  # of the difference, with the same pairs
    gains = after >= GAIN * before and after - before > ERRORS * error
    share = max(shares.values())
    return Sign(
        share >= DOMINANT or (share >= LARGE and gains),
        f"The common component holds {100 * shares['image']:.0f} % of the squared length of image rows and "
        f"{100 * shares['text']:.0f} % of that of text rows; R@1 among {case.among} is {before:.3g}, and "
        f"{after:.3g} without it.",
        {**{f"{name}_share": share for name, share in shares.items()}, "recall": before, "recall_without": after},
    )


@register(
    "collapsed-rank",
    title="rows that span few dimensions",
    reason="Rows in a few dimensions cannot tell many pairs apart: with margins, n pairs need room that grows with n.",
    cure="Check for an output that is constant or saturated, for a bottleneck in the projection, and for a text tower "
    "that ignores most of its input. A lower temperature spreads rows.",
)
def collapsed_rank(case: Case) -> Sign:
    """The effective rank of each modality, against the largest possible one."""
    image, text = _rows(case)
    most = min(len(image) - 1, image.shape[1])
    ranks = {
        "image": float(observables.image_effective_rank(image, text)),
        "text": float(observables.text_effective_rank(image, text)),
    }
    return Sign(
        min(ranks.values()) < max(COLLAPSED * most, min(2.0, most / 2)),
        f"The effective rank is {ranks['image']:.3g} for image rows and {ranks['text']:.3g} for text rows, of at most "
        f"{most}.",
        {f"{name}_effective_rank": rank for name, rank in ranks.items()},
    )


@register(
    "no-alignment",
    title="modalities that are not aligned",
    reason="The partner of a row is found as often as any other row. Either nothing was learned, or image i and text i "
    "do not belong together. The gap does not tell: it compares means only, and is small for any two sets of rows that "
    "are spread evenly.",
    cure="Check first that image i and text i belong together, in training and in the file. Judge by retrieval, not by "
    "the gap.",
)
def no_alignment(case: Case) -> Sign:
    """Whether recall is that of chance."""
    image, text = _rows(case)
    gap, recall, chance = float(observables.modality_gap(image, text)), _recall(image, text), 1 / len(image)
    low = recall < chance + 3 * math.sqrt(chance / (2 * len(image)))
    return Sign(
        low,
        f"The gap is {gap:.3g}; R@1 among {case.among} is {recall:.3g}, where chance is {chance:.2g}.",
        {"modality_gap": gap, "recall": recall},
    )


@register(
    "gap-open-with-alignment",
    title="an open gap between modalities that are aligned",
    reason="Retrieval across modalities compares cosines of one query with one modality, which a common shift hardly "
    "changes. So a gap costs little there; it matters where both modalities are in one pool.",
    cure="Nothing, if you only retrieve across modalities. For mixed pools subtract each modality's mean, or train "
    "with a larger temperature. `flowsim lab` measures both.",
    fault=False,
)
def gap_open_with_alignment(case: Case) -> Sign:
    """Whether the gap is large while recall is high."""
    image, text = _rows(case)
    gap, recall = float(observables.modality_gap(image, text)), _recall(image, text)
    return Sign(
        gap > OPEN and recall > ALIGNED,
        f"The gap is {gap:.3g}; R@1 among {case.among} is {recall:.3g}.",
        {"modality_gap": gap, "recall": recall},
    )


@register(
    "duplicates",
    title="pairs that share a text or an image",
    reason="Of k equal rows in a batch the softmax can give each at most 1/k, so each costs ln k in both directions: a "
    "floor of the loss. While it is reached, the loss keeps pulling the temperature as if pairs were mislabelled.",
    cure="Remove or merge duplicates, draw batches without them, or count every pair with the same text as a true one.",
)
def duplicates(case: Case) -> Sign:
    """The share of rows that another row equals, and the floor of the loss that they set."""
    _rows(case)
    assert case.given is not None
    n, numbers = len(case.given[0]), {}
    for name, part in zip(("image", "text"), case.given, strict=True):
        _, group, count = np.unique(_keys(part), return_inverse=True, return_counts=True)
        numbers[f"{name}_share"] = float(np.mean(count[group] > 1))
        numbers[f"{name}_floor"] = float(np.mean(np.log(count[group])))
    shares = [numbers[f"{name}_share"] for name in ("image", "text")]
    said = f"{100 * shares[0]:.3g} % of the image rows and {100 * shares[1]:.3g} % of the text rows equal another one"
    floor = max(numbers["image_floor"], numbers["text_floor"])
    more = f"; with all {n:,} pairs in one batch the loss cannot fall below {floor:.3g}" if floor else ""
    return Sign(max(shares) >= DUPLICATES, f"{said}{more}.", numbers)


def _keys(rows: np.ndarray) -> np.ndarray:
    """A number of 64 bits for each row, the same for rows that are equal to six digits; blocks of rows at a time."""
    weights = np.random.default_rng(0).integers(1, 2**63, rows.shape[1], dtype=np.uint64) * 2 + 1
    keys = []
    for start in range(0, len(rows), MOST_ROWS):
        block = np.asarray(rows[start : start + MOST_ROWS], np.float64)
        block = block / np.linalg.norm(block, axis=1, keepdims=True)
        whole = np.round(block * 1e6).astype(np.int64).astype(np.uint64)
        keys.append(np.sum(whole * weights, axis=1, dtype=np.uint64))  # modulo 2⁶⁴
    return np.concatenate(keys)
