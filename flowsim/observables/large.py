"""Metrics of many rows: in blocks, and above `EXACT` rows from samples of queries, unless exact values are wanted."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np

from flowsim.observables import blocks, one_pass
from flowsim.observables.gap import angle_between, relative
from flowsim.observables.matching import without_ties
from flowsim.observables.retrieval import Retrieval
from flowsim.observables.rows import EPS64, TIES
from flowsim.observables.separability import linear_separability
from flowsim.observables.spread import distance_to_uniform, rank_of_centred
from flowsim.observables.table import RECALLS
from flowsim.progress import Progress

#: Up to this many rows a report compares all rows with all others.
EXACT = 20_000
#: Beyond it, at least so many queries are compared with all rows, and so many rows with each other.
FEWEST = 400
AMONG = 4_000


class Large:
    """The rows of a report, and intermediate results that several metrics share.

    Args:
        arrays: `image` (n, d) and `text` (m, d), in any real dtype.
        captions: The number of consecutive text rows that belong to one image.
        seed: Seed of the samples.
        exact: Whether all rows are compared with all others.
        progress: Called with a short message before each long step.
    """

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        captions: int,
        seed: int,
        exact: bool,
        progress: Progress,
    ):
        self.rows = {name: blocks.Rows(array) for name, array in arrays.items()}
        self.captions, self.seed, self.exact, self.progress = captions, seed, exact, progress
        self._wanted: tuple[str, ...] = ()

    def measure(
        self, names: tuple[str, ...], tau: np.ndarray | None
    ) -> tuple[dict[str, float], dict[str, blocks.Sample], dict[str, str]]:
        """Values, samples, and reasons for missing values, by name.

        Args:
            names: The metrics.
            tau: The temperature, if it is known.

        Raises:
            FlowsimError: For NaN, infinity and rows of zeros.
        """
        values, samples, reasons = {}, {}, {}
        self._wanted = names
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            self.progress("sums", 0, None)
            _ = self._pass  # which refuses bad rows
            for name in names:
                self.progress(name, 0, None)
                if name in RECALLS:
                    k, direction = RECALLS[name]
                    values[name], sample = self._fraction(getattr(self._pairs, direction).rank <= k, direction)
                elif name in self._SUMS:
                    values[name], sample = float(self._SUMS[name](self)), None
                elif name == "doubly_stochastic_defect":
                    assert tau is not None
                    values[name], sample = self._defect(float(tau), reasons)
                else:
                    values[name], sample = self._COMPARISONS[name](self, reasons)
                if sample is not None:
                    samples[name] = sample
        return values, samples, reasons

    # What several metrics share.

    @functools.cached_property
    def _pass(self) -> one_pass.Pass:
        """Sums of all rows and, if only some queries are compared, their ranks, from one pass over both files."""
        wanted = set(self._wanted)
        products = bool(wanted & {"wasserstein_uniformity", "image_effective_rank", "text_effective_rank"})
        compared = bool(wanted & {"margin", "matched_fraction", *RECALLS})
        searches = self._searches if compared and not self.exact else {}
        return one_pass.one_pass(self.rows, products, not self.exact, searches, self.progress)

    @functools.cached_property
    def _centres(self) -> dict[str, np.ndarray]:
        return {name: sums.centre for name, sums in self._pass.sums.items()}

    @property
    def _means(self) -> blocks.PairMeans:
        assert self._pass.pairs is not None
        return self._pass.pairs

    @functools.cached_property
    def _factors(self) -> dict[str, np.ndarray]:
        found = {name: sums.factor(not self.exact, self.exact) for name, sums in self._pass.sums.items()}
        if not self.exact and any(factor is None for factor in found.values()):
            again = one_pass.one_pass(self.rows, True, False, {}, self.progress)
            found = {name: sums.factor(False, False) for name, sums in again.sums.items()}
        return {
            name: blocks.factor(self.rows[name], self._centres[name]) if factor is None else factor
            for name, factor in found.items()
        }

    def _within(self, name: str) -> float:
        """Mean of (1 − cosine)/2 over distinct rows of a modality."""
        return self._pass.sums[name].spread / (2 * (len(self.rows[name]) - 1))

    def _of_both(self) -> Any:
        centres = [self._centres[name] for name in self.rows]
        counts = [len(rows) for rows in self.rows.values()]
        mean, both = blocks.factor_of_both(*self._factors.values(), centres, counts)  # pyright: ignore
        return distance_to_uniform(mean, both, sum(counts))

    # Comparisons of rows with all others.

    def _chosen(self, queries: str, others: str) -> np.ndarray:
        """Indices of the queries: all, or a random sample with the cost of comparing `EXACT` rows."""
        n = len(self.rows[queries])
        return self._drawn(n, n if self.exact else max(FEWEST, EXACT**2 // len(self.rows[others])))

    def _drawn(self, rows: int, count: int) -> np.ndarray:
        """Indices of a random sample of so many rows, in their order; of all if there are no more."""
        if count >= rows:
            return np.arange(rows)
        return np.sort(np.random.default_rng(self.seed).choice(rows, count, replace=False))

    def _compare(self, queries: str, others: str, chosen: np.ndarray, first: np.ndarray, count: int) -> Any:
        return blocks.neighbours(
            self.rows[queries],
            chosen,
            self.rows[others],
            first,
            count,
            TIES * EPS64,
            lambda text, done, total, /, **numbers: self.progress(f"{queries} to {others}, {text}", done, total),
        )

    @functools.cached_property
    def _queries(self) -> Any:
        """The queries in each direction: the same pairs in both, as margins need."""
        images = self._chosen("image", "text")
        return Retrieval(images, images if self.captions == 1 else self._chosen("text", "image"))

    @functools.cached_property
    def _searches(self) -> dict[str, one_pass.Search]:
        """Searches of the sampled queries, by the modality that is searched."""
        images, texts, c = *self._queries, self.captions
        found = {}
        for queries, others, chosen, first, count in (
            ("image", "text", images, c * images, c), ("text", "image", texts, texts // c, 1)
        ):  # fmt: skip
            rows = self.rows[queries][chosen]
            own = [np.einsum("ij,ij->i", rows, self.rows[others][first + k]) for k in range(count)]
            found[others] = one_pass.Search(rows, np.max(own, axis=0), first, count, TIES * EPS64)
        return found

    @functools.cached_property
    def _pairs(self) -> Any:
        """`Neighbours` of the queries in each direction."""
        images, texts, c = *self._queries, self.captions
        if not self.exact:
            return Retrieval(*(self._found(self._searches[name], self.rows[name]) for name in ("text", "image")))
        return Retrieval(
            self._compare("image", "text", images, c * images, c), self._compare("text", "image", texts, texts // c, 1)
        )

    def _found(self, search: one_pass.Search, others: blocks.Rows) -> Any:
        other = np.einsum("ij,ij->i", search.queries, others[search.nearest])
        return blocks.Neighbours(search.own, other, search.rank, np.full(len(other), np.nan))

    def _fraction(self, hits: np.ndarray, direction: str) -> tuple[float, blocks.Sample | None]:
        value, of = float(np.mean(hits)), len(self.rows[direction.partition("_")[0]])
        return value, None if len(hits) == of else blocks.sample_of_fraction(value, len(hits), of)

    @functools.cached_property
    def _margins(self) -> np.ndarray:
        to_text, to_image = self._pairs
        return without_ties(to_text.own - np.maximum(to_text.other, to_image.other), 1.0)

    def _matched(self) -> tuple[float, blocks.Sample | None]:
        """A pair is matched if nothing is as close, in either direction: the rank is 1, as ties count."""
        to_text, to_image = self._pairs
        return self._fraction((to_text.rank == 1) & (to_image.rank == 1), "image")

    def _margin(self, reasons: dict[str, str]) -> tuple[float, None]:
        value, n = float(self._margins.min()), len(self.rows["image"])
        if len(self._margins) == n:
            return value, None
        reasons["margin"] = (
            f"a minimum over all pairs, which {len(self._margins):,} of {n:,} pairs only bound: it is at most "
            f"{value:.4g}; exact=True (--exact) takes all"
        )
        return math.nan, None

    def _uniformity(self, queries: str, others: str) -> tuple[float, blocks.Sample | None]:
        """Log of the mean kernel: of all rows with all others, or among a random sample of rows."""
        n = len(self.rows[queries])
        if self.exact:
            kernels = (
                self._compare(queries, queries, np.arange(n), np.arange(n), 1)
                if queries == others
                else self._pairs.image_to_text
            ).kernel
            return float(np.log(np.mean(kernels))), None
        chosen = self._drawn(n, AMONG)
        parts = blocks.kernel_means(self.rows[queries][chosen], self.rows[others][chosen])
        sample = None if len(parts) == n else blocks.sample_of_log_mean(parts, n)
        return float(np.log(np.mean(parts))), sample

    def _defect(self, tau: float, reasons: dict[str, str]) -> tuple[float, None]:
        if not self.exact:
            reasons["doubly_stochastic_defect"] = (
                f"a maximum over sums of all pairs, of which there are {len(self.rows['image']):,}²; "
                "exact=True (--exact) takes all"
            )
            return math.nan, None
        return blocks.softmax_defect(*self.rows.values(), 1 / tau, self.progress), None  # pyright: ignore

    def _separability(self) -> tuple[float, blocks.Sample | None]:
        """Fitted and tested on at most `EXACT` rows of each modality, even if `exact`: a fit needs no more."""
        rng = np.random.default_rng(self.seed)
        kept = {}
        for name, rows in self.rows.items():
            n = len(rows)
            kept[name] = rows[slice(None) if n <= EXACT else np.sort(rng.choice(n, EXACT, replace=False))]
        value = linear_separability(kept["image"], kept["text"], seed=self.seed)
        judged = sum((len(rows) + 1) // 2 for rows in kept.values())
        whole = sum(len(rows) for rows in self.rows.values())
        cut = any(len(rows) > EXACT for rows in self.rows.values())
        return value, blocks.sample_of_fraction(value, judged, whole) if cut else None

    #: Sums and factorisations, exact at any size.
    _SUMS: ClassVar[dict[str, Callable[[Large], Any]]] = {
        "modality_gap": lambda s: np.linalg.norm(s._centres["image"] - s._centres["text"]),
        "gap_angle": lambda s: angle_between(s._centres["image"], s._centres["text"]),
        "image_centre_norm": lambda s: np.linalg.norm(s._centres["image"]),
        "text_centre_norm": lambda s: np.linalg.norm(s._centres["text"]),
        "pair_distance": lambda s: s._means.distance,
        "mean_pair_cosine": lambda s: s._means.cosine,
        "alignment": lambda s: s._means.squared,
        "relative_modality_gap": lambda s: relative(s._means.squared / 4, s._within("image"), s._within("text")),
        "wasserstein_uniformity": lambda s: s._of_both(),
        "image_effective_rank": lambda s: rank_of_centred(s._factors["image"], len(s.rows["image"])),
        "text_effective_rank": lambda s: rank_of_centred(s._factors["text"], len(s.rows["text"])),
    }
    #: (value, sample) of metrics that compare rows with all others, or fit; they may add a reason for a missing value.
    _COMPARISONS: ClassVar[dict[str, Callable[[Large, dict[str, str]], tuple[float, blocks.Sample | None]]]] = {
        "margin": lambda s, reasons: s._margin(reasons),
        "matched_fraction": lambda s, _: s._matched(),
        "image_uniformity": lambda s, _: s._uniformity("image", "image"),
        "text_uniformity": lambda s, _: s._uniformity("text", "text"),
        "cross_uniformity": lambda s, _: s._uniformity("image", "text"),
        "linear_separability": lambda s, _: s._separability(),
    }
