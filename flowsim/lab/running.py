"""`run`: every method fitted on one half of the pairs and judged on the other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from flowsim import observables
from flowsim.base.arrays import on_cpu
from flowsim.base.checks import check, check_number, host_array, shown
from flowsim.lab import metrics
from flowsim.lab.lab import Lab
from flowsim.lab.labels import Labels, labels_of
from flowsim.lab.landscape import LOSS_PAIRS, SHIFTS, TEMPERATURES, landscape, loss_of, unit
from flowsim.lab.methods import Method, Transform, chosen
from flowsim.observables.checks import check_seed, check_shapes, check_values, real_array
from flowsim.observables.large import EXACT
from flowsim.progress import Progress, silent, track

#: At most this many pairs are used, half of them judged; at most so many of these are queries.
MOST, QUERIES = EXACT, 2_000
#: Fewer pairs leave no pool of more than ten rows.
LEAST = 24
#: Sizes of the noise, relative to the length of a row.
NOISE = (0.1, 0.3)


def run(
    image: Any,
    text: Any,
    *,
    temperature: float = 0.01,
    labels: Any = None,
    classes: Any = None,
    class_text: Any = None,
    methods: Sequence[str | Method] | str | Method | None = None,
    temperatures: Sequence[float] | None = None,
    shifts: Sequence[float] | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Lab:
    """Fit every method on one random half of the pairs, and judge it on the other half.

    All rows are scaled to unit length before a method and again after it. Metrics are those of `fs.observables`, and:

    - `modality_gap_by_chance`: the gap to expect where the true means are equal; for all methods but `none`, with the
      error of means that were estimated from the fitted half;
    - retrieval from one mixed pool (`mixed_retrieval`), and the distribution gap that centring leaves
      (`distribution_gap`);
    - `zero_shot`: the share of judged images whose nearest class text is that of their class. Without `class_text`, a
      class is the mean of the fitted texts of that class;
    - R@1 after Gaussian noise on all rows (0.1 and 0.3 of the length of a row), after rounding entries to 8 bits and
      to their sign;
    - the contrastive loss against a shift along the gap (`Lab.landscape`).

    Standard errors are those of paired differences to `none` over the judged pairs (jackknife for both gaps; the
    standard error of a modality gap near its size by chance, as after `centre`, is up to √2 times too large). They do
    not include the choice of the fitted half: other seeds show its effect.

    Above 20,000 pairs a random sample of 20,000 is used. Above 2,000 judged pairs, 2,000 of them are queries, each
    compared with all judged rows (1,000 in the landscape); losses are those of at most 2,000 pairs.

    Args:
        image: Image rows (n, d), n ≥ 24: NumPy, JAX, torch, lists.
        text: Text rows (n, d); row i is the pair of row i of `image`.
        temperature: τ of the model, for losses and the method `shift`; 0.01 for CLIP.
        labels: Class of each pair (n,): whole numbers, −1 for none, or names, "" for none.
        classes: Names of the K classes, needed for labels that are names with `class_text`.
        class_text: Text rows of the classes (K, d).
        methods: Names (`names()`) or objects with `fit`. Default: all. `none` is always included.
        temperatures: τ of the loss landscape; `temperature` is added. Default: `TEMPERATURES`, from 0.01 to 1.
        shifts: Shifts of the loss landscape, as fractions of the gap: 0 (always added) leaves the rows, 1 makes the
            means meet. Default: `SHIFTS`, from −1 to 2.
        seed: Seed of the halves, of noise and of samples.
        progress: Called before each step.

    Returns:
        A `Lab`.

    Raises:
        FlowsimError: For invalid or unpaired rows, fewer than 24 pairs, labels that do not fit, unknown methods, or a
            method that leaves a row without a direction.

    Examples:
        >>> import numpy as np
        >>> import flowsim as fs
        >>> rng = np.random.default_rng(0)
        >>> image = rng.normal(size=(200, 16))
        >>> text = image + 0.1 * rng.normal(size=(200, 16)) + 2.0
        >>> lab = fs.lab.run(image, text, methods=["centre", "rotate"])
        >>> [round(lab[name]["modality_gap"], 2) for name in ("none", "centre", "rotate")]
        [0.92, 0.03, 0.87]
    """
    arrays = {"image": real_array("image", image), "text": real_array("text", text)}
    check_shapes(arrays | {"temperature": temperature}, pairs=True)
    (given, dim), known = arrays["image"].shape, chosen(methods)
    check(given >= LEAST, f"The lab needs at least {LEAST} pairs, half of them to judge, but got {given}. Give more.")
    check_seed(seed)
    check_number("temperature", temperature, minimum=1e-4, cure="Pass τ itself, e.g. 0.01.")
    taus = _numbers(
        "temperatures", TEMPERATURES if temperatures is None else temperatures, 1e-4, "Pass τ itself, e.g. (0.01, 0.1)."
    )
    places = _numbers(
        "shifts", SHIFTS if shifts is None else shifts, None, "Use fractions of the gap, e.g. (0.0, 0.5, 1.0)."
    )
    found = labels_of(labels, classes, class_text, given, dim)
    order = np.random.default_rng(seed).permutation(given)[:MOST]
    x, y = (unit(check_values(name, array[order])) for name, array in arrays.items())
    half = len(order) // 2
    trial = _Trial(
        fitted=(x[:half], y[:half]),
        judged=(x[half:], y[half:]),
        labels=None if found is None else (found.take(order[:half]), found.take(order[half:])),
        temperature=float(temperature),
        seed=int(seed),
    )
    judged = {name: trial.judge(name, method) for name, method in track(known.items(), progress, "methods")}
    gap = trial.fitted[0].mean(axis=0) - trial.fitted[1].mean(axis=0)
    taus = sorted({float(temperature), *taus})
    return Lab(
        values={name: values for name, (values, _) in judged.items()},
        contributions={name: contributions for name, (_, contributions) in judged.items()},
        methods={name: _description(method) for name, method in known.items()},
        landscape=landscape(*trial.judged, gap, trial.some_hits, taus, places, progress),
        notes=trial.notes(given),
        pairs=given,
        fitted=half,
        judged=len(order) - half,
        dim=dim,
        temperature=float(temperature),
        seed=int(seed),
    )


def _numbers(name: str, values: Any, minimum: float | None, cure: str) -> list[float]:
    """A list of numbers, checked."""
    listed = host_array(values)
    check(
        listed is not None and listed.ndim == 1,
        f"Argument `{name}` must be a list of numbers, but is {shown(values)}. {cure}",
    )
    for value in values:
        check_number(name, value, minimum=minimum, cure=cure)
    return [float(value) for value in values]


def _description(method: Any) -> str:
    return (type(method).__doc__ or "").strip().partition("\n")[0]


@dataclasses.dataclass(frozen=True, eq=False)
class _Trial:
    """The two halves of the pairs, each (image, text), with their labels; and how a method is judged."""

    fitted: tuple[np.ndarray, np.ndarray]
    judged: tuple[np.ndarray, np.ndarray]
    labels: tuple[Labels, Labels] | None
    temperature: float
    seed: int

    @property
    def queries(self) -> np.ndarray:
        """Indices of the judged pairs that are queries: the first, as pairs are in random order."""
        return np.arange(min(len(self.judged[0]), QUERIES))

    def hits(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """R@1 of each query."""
        return metrics.first_hits(x, y, self.queries)

    def some_hits(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """R@1 of at most 1,000 queries, for the many shifts of the landscape."""
        return metrics.first_hits(x, y, self.queries[:1_000])

    def judge(self, name: str, method: Any) -> tuple[dict[str, float], dict[str, np.ndarray]]:
        """Values by name, and the contributions of judged pairs to those that have standard errors."""
        if dataclasses.is_dataclass(method) and getattr(method, "temperature", 0.0) is None:
            method = dataclasses.replace(method, temperature=self.temperature)  # pyright: ignore
        transform = method.fit(*(rows.copy() for rows in self.fitted))  # pyright: ignore[reportAttributeAccessIssue]
        check(
            callable(transform),
            f"Method {name!r} must return a function of (image, text) from `fit`, but gives {shown(transform)}. Return "
            "e.g. lambda image, text: (image, text).",
        )
        x, y = _applied(name, transform, *self.judged)
        given = {
            "modality_gap": metrics.gap_contributions(x, y),
            "relative_modality_gap": metrics.relative_gap_contributions(x, y),
            **self._retrieval(x, y),
            **self._robustness(x, y),
        }
        if self.labels is not None:
            given["zero_shot"] = self._zero_shot(name, transform, x)
        values = {metric: float(np.nanmean(each)) for metric, each in given.items() if np.isfinite(each).any()}
        with on_cpu():
            report = observables.report(
                x, y, seed=self.seed, only=["modality_gap", "relative_modality_gap", "linear_separability", "alignment"]
            ).values
        # The means over n pairs of modalities with the same mean differ by √(mean ‖d‖²/n), d = x − y less its mean, and
        # methods subtract the means of the fitted pairs.
        sizes = 1 / len(x) + (1 / len(self.fitted[0]) if getattr(method, "depends_on_pairs", True) else 0)
        spread = max(report.pop("alignment") - report["modality_gap"] ** 2, 0.0)
        values["modality_gap_by_chance"] = float(np.sqrt(spread * sizes))
        values |= report
        values["distribution_gap"] = metrics.frechet(x, y)
        values["distribution_gap_by_chance"] = metrics.distribution_gap_by_chance(x, y, self.seed)
        values["loss"] = float(loss_of(x, y, (self.temperature,))[0])
        return values, given

    def _retrieval(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        ranks = metrics.ranks(x, y, self.queries)
        for k in (1, 5, 10):
            hits = [np.asarray(rank <= k, float) for rank in ranks]
            found |= {f"image_to_text_at_{k}": hits[0], f"text_to_image_at_{k}": hits[1]}
            found[f"recall_at_{k}"] = (hits[0] + hits[1]) / 2
        mixed = metrics.mixed_retrieval(
            x, y, None if self.labels is None else self.labels[1].of_pair, queries=self.queries
        )
        for k in (1, 10):
            found[f"mixed_recall_at_{k}"] = np.mean(mixed.rank <= k, axis=1)
        found["mixed_ndcg_at_10"] = np.mean(np.where(mixed.rank <= 10, 1 / np.log2(1 + mixed.rank), 0.0), axis=1)
        found["own_modality_at_10"] = np.mean(mixed.own_modality, axis=1)
        if self.labels is not None:
            found["same_class_at_10"] = np.mean(mixed.same_class, axis=1)
        return found

    def _robustness(self, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        for size in NOISE:
            of_images, of_texts = (metrics.noisy(each, size, self.seed, k) for k, each in enumerate((x, y)))
            found[f"recall_at_1_noise_{size:g}"] = self.hits(of_images, of_texts)
        found["recall_at_1_int8"] = self.hits(metrics.as_int8(x), metrics.as_int8(y))
        found["recall_at_1_one_bit"] = self.hits(metrics.as_signs(x), metrics.as_signs(y))
        return found

    def _zero_shot(self, name: str, transform: Transform, x: np.ndarray) -> np.ndarray:
        assert self.labels is not None
        fitted, judged = self.labels
        if judged.text is not None:
            rows = _applied(name, transform, self.judged[0], judged.text)[1]
            return metrics.class_accuracy(x, judged.of_pair, rows, np.ones(len(rows), bool))
        rows, member = _applied(name, transform, *self.fitted)[1], fitted.of_pair >= 0
        sums = np.zeros((fitted.number, rows.shape[1]))
        np.add.at(sums, fitted.of_pair[member], rows[member])
        return metrics.class_accuracy(x, judged.of_pair, sums, np.isin(np.arange(fitted.number), fitted.of_pair))

    def notes(self, given: int) -> tuple[str, ...]:
        """What a reader of the numbers should know, as sentences."""
        (fitted, dim), judged = self.fitted[0].shape, len(self.judged[0])
        found = []
        if fitted + judged < given:
            found.append(f"A random sample of {fitted + judged:,} of the {given:,} pairs is used.")
        if len(self.queries) < judged:
            found.append(
                f"{len(self.queries):,} of the {judged:,} judged pairs are queries (1,000 in the landscape), against "
                "all judged rows."
            )
        if judged > LOSS_PAIRS:
            found.append(f"Losses are those of {LOSS_PAIRS:,} pairs.")
        if fitted < dim:
            found.append(f"Fitted on {fitted:,} pairs in {dim} dimensions: covariances and rotations are uncertain.")
        copies = [judged - len(np.unique(rows, axis=0)) for rows in self.judged]
        if max(copies):
            found.append(
                f"{copies[0]:,} judged images and {copies[1]:,} judged texts are copies of others, whose pairs cannot "
                "be told apart."
            )
        if self.labels is not None and self.labels[1].text is None:
            found.append("Zero-shot: a class is the mean of the fitted texts of that class.")
        return tuple(found)


def _applied(name: str, transform: Any, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Transformed rows, scaled to unit length; raises `FlowsimError` if there is nothing to scale."""
    made = transform(image.copy(), text.copy())
    check(
        isinstance(made, tuple | list) and len(made) == 2,
        f"The transform of method {name!r} must return (image, text), but returned {type(made).__name__}.",
    )
    found = []
    for kind, before, after in zip(("image", "text"), (image, text), made, strict=True):
        rows = real_array(f"{kind} of method {name}", after).astype(np.float64)
        check(
            rows.ndim == 2 and len(rows) == len(before) and np.isfinite(rows).all(),
            f"Method {name!r} turns {kind} rows of shape {before.shape} into shape {rows.shape}, or into NaN or "
            "infinity. Return as many rows of finite numbers, or leave it out of `methods`.",
        )
        zero = np.flatnonzero(np.linalg.norm(rows, axis=1) <= 1e-12)
        check(
            not len(zero),
            f"Method {name!r} leaves {len(zero)} {kind} row(s) at zero, which have no direction. "
            "Leave it out of `methods`, or remove those pairs.",
        )
        found.append(unit(rows))
    check(
        found[0].shape[1] == found[1].shape[1],
        f"Method {name!r} gives images {found[0].shape[1]} columns and texts {found[1].shape[1]}. Give both the same.",
    )
    return found[0], found[1]
