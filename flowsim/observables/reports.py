"""All metrics of two embedding sets at once: `report`, and the `Report` that it returns."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from typing import Any

import jax
import numpy as np

from flowsim.base.checks import check_choice, shown
from flowsim.base.html import table
from flowsim.errors import FlowsimError, unknown_name
from flowsim.observables import large
from flowsim.observables.blocks import Sample
from flowsim.observables.checks import (
    check_blocks,
    check_captions,
    check_count,
    check_seed,
    check_shapes,
    check_values,
    moderate_rows,
    real_array,
)
from flowsim.observables.metric import to_host
from flowsim.observables.observable import evaluate, measure
from flowsim.observables.retrieval import last_ranks, retrieval_ranks
from flowsim.observables.separability import linear_separability
from flowsim.observables.table import RECALLS, REGISTRY, names
from flowsim.progress import Progress, silent

#: Up to this many rows a report is one compiled program with all rows in float64.
AT_ONCE = 2_000


@dataclass(frozen=True, repr=False)
class Report:
    """All metrics of one pair of embedding sets, from `report`.

    Attributes:
        values: A float for every metric, by name; NaN if it is missing.
        reasons: Why values are missing, by name.
        pairs: Number of one-to-one pairs; None if rows are not paired one to one.
        dim: d, the dimension; None if it is not known.
        image_rows: Number of image rows.
        text_rows: Number of text rows.
        temperature: τ, if it was given.
        captions_per_image: Number of consecutive text rows of one image.
        seed: Seed of splits and samples.
        samples: For values that were estimated, the size of the sample and the limits `low` and `high` of a 95 %
            confidence interval, by name.
        note: What the values were computed from, if not from rows.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    pairs: int | None
    dim: int | None
    image_rows: int
    text_rows: int
    temperature: float | None = None
    captions_per_image: int = 1
    seed: int = 0
    samples: dict[str, Sample] = field(default_factory=dict)
    note: str = ""

    def __getitem__(self, name: str) -> float:
        """The value of a metric, NaN if it is missing.

        Raises:
            FlowsimError: For an unknown name.
        """
        if name not in self.values:
            raise unknown_name("observable", name, self.values)
        return self.values[name]

    @property
    def _title(self) -> str:
        sample = f"{self.pairs} pairs" if self.pairs else f"{self.image_rows} images, {self.text_rows} texts"
        temperature = "" if self.temperature is None else f", temperature {self.temperature:g}"
        dimension = "" if self.dim is None else f", dimension {self.dim}"
        return f"{sample}{dimension}{temperature}{self.note and f', {self.note}'}"

    def _table(self) -> list[tuple[str, str, str]]:
        common = dict(self._common)
        return [
            (name, f"{v:.6g}", self._sample(name) + REGISTRY[name].description)
            if name not in self.reasons
            else (name, "–", common.get(self.reasons[name], self.reasons[name]))
            for name, v in self.values.items()
        ]

    @property
    def _common(self) -> list[tuple[str, str]]:
        """Reasons of several metrics, which are told once, and what stands in their place."""
        count = Counter(self.reasons.values())
        return [(reason, f"{reason.partition(':')[0]}, see above") for reason, times in count.items() if times > 3]

    def _sample(self, name: str) -> str:
        if name not in self.samples:
            return ""
        s = self.samples[name]
        return f"[{s.low:.6g}, {s.high:.6g}] (95 %) from {s.rows:,} of {s.of:,} rows; "

    def __repr__(self) -> str:
        width = max(len(name) for name in self.values)
        lines = [f"{name:<{width}}  {value:>12}  {text}" for name, value, text in self._table()]
        notes = [f"{reason[0].upper()}{reason[1:]}." for reason, _ in self._common]
        return "\n".join([f"Report: {self._title}", *notes, *lines])

    def _repr_html_(self) -> str:
        notes = [f"{reason[0].upper()}{reason[1:]}." for reason, _ in self._common]
        return table(self._table(), ("metric", "value", "meaning"), " ".join([self._title + "." * bool(notes), *notes]))

    def to_json(self) -> str:
        """The report as strict JSON, with null for a missing value."""
        content = asdict(self)
        content["values"] = {name: v if math.isfinite(v) else None for name, v in self.values.items()}
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def report(
    image: Any,
    text: Any,
    temperature: Any = None,
    captions_per_image: int = 1,
    seed: int = 0,
    *,
    only: Collection[str] | None = None,
    exact: bool = False,
    progress: Progress = silent,
) -> Report:
    """Every metric for two embedding sets, with a reason for each that does not apply.

    Large sets are read in blocks, also from a memory-mapped file (`open_embeddings`). Sums over rows are exact at any
    size, and singular values to about 1e-6. Above 20,000 rows, retrieval and `matched_fraction` use a random sample of
    queries, at least 400, each compared with all rows of the whole pool; uniformities use all pairs among a random
    sample of 4,000 rows; and the classifier uses 20,000 rows of each modality. `samples` has the sizes and 95 %
    confidence intervals. Your own observables (`register`) get all rows at once.

    Args:
        image: Rows (n, d) of real numbers: NumPy, JAX, torch, lists.
        text: Rows (m, d). If m differs from n, only unpaired metrics apply.
        temperature: τ > 0, which some metrics need.
        captions_per_image: c. Above 1, `text` has c·n rows, c consecutive ones for each image; retrieval follows that
            protocol, and metrics of one-to-one pairs are left out.
        seed: Seed of the split of `linear_separability`, and of samples.
        only: Names of the metrics to compute. Default: all.
        exact: Whether all rows are compared also above 20,000 rows. The time grows as n·m.
        progress: Called with a short message before each long step.

    Returns:
        A `Report`.

    Raises:
        FlowsimError: For invalid rows, see `flowsim.observables`; for numbers of rows that do not fit
            `captions_per_image`; and for unknown names in `only`.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144).draw()
        >>> report = fs.observables.report(*start.rows(), temperature=0.07)
        >>> round(report["modality_gap"], 3), report["matched_fraction"]
        (0.618, 0.0)
        >>> report.reasons["text_to_image_at_5"]
        'needs more than 5 candidates, but has 5: every query would succeed'
    """
    c = captions_per_image
    check_count("captions_per_image", c)
    check_seed(seed)
    wanted = wanted_names(only)
    arrays = {"image": real_array("image", image), "text": real_array("text", text)}
    tau = None if temperature is None else check_values("temperature", temperature)
    check_shapes(arrays if tau is None else arrays | {"temperature": tau}, pairs=False)
    (n, d), m = arrays["image"].shape, len(arrays["text"])
    check_captions(n, m, c)
    values, reasons = dict.fromkeys(wanted, math.nan), inapplicable(wanted, n, m, c, tau is not None)
    named = tuple(name for name in wanted if name not in reasons)
    own = tuple(name for name in named if REGISTRY.is_ours(name))
    if max(n, m) <= AT_ONCE:
        for name, array in arrays.items():
            check_blocks(name, array)
        values |= _measure_at_once(own, arrays, tau, c, seed)
        samples = {}
    else:
        rows = large.Large(arrays, c, seed, exact or max(n, m) <= large.EXACT, progress)
        found, samples, left_out = rows.measure(own, tau)
        values |= found
        reasons |= left_out
    for name in named:
        if not REGISTRY.is_ours(name):
            progress(name, 0, None)
            values[name] = measure(REGISTRY[name], **arrays, temperature=tau)
    for name in named:
        if math.isnan(values[name]) and name not in reasons:
            reasons[name] = f"undefined: {REGISTRY[name].undefined}".removesuffix(": ")
    pairs = n if n == m and c == 1 else None
    return Report(values, reasons, pairs, d, n, m, None if tau is None else float(tau), int(c), int(seed), samples)


def wanted_names(only: Collection[str] | None) -> tuple[str, ...]:
    """The names of a report, in the order of the table."""
    known = names()
    if only is None:
        return tuple(known)
    if not isinstance(only, list | tuple | set | frozenset):
        raise FlowsimError(f"Argument `only` must be a list of names, but is {shown(only)}. Use e.g. ['modality_gap'].")
    chosen = list(only)
    for name in chosen:
        check_choice("observable", name, known)
    if not chosen:
        raise FlowsimError("Argument `only` names no metric. Use e.g. ['modality_gap'], or leave it out for all.")
    return tuple(name for name in known if name in chosen)


def inapplicable(wanted: tuple[str, ...], n: int, m: int, captions: int, has_temperature: bool) -> dict[str, str]:
    """Why metrics do not apply to n image rows and m text rows, by name."""
    paired = n == m and captions == 1
    hint = "row i of both must be a pair"
    if captions > 1:
        hint = f"it takes one text per image, for example text[::{captions}]"
    elif m > n and m % n == 0:
        hint += f", or pass captions_per_image={m // n} (--captions-per-image {m // n}) if each image has so many"
    reasons = {}
    for name in wanted:
        if REGISTRY[name].needs_pairs and not (paired or (captions > 1 and name in RECALLS)):
            reasons[name] = f"needs pairs: image has {n} rows, text {m}; {hint}"
        elif REGISTRY[name].needs_temperature and not has_temperature:
            reasons[name] = "needs a temperature: pass temperature=τ"
        elif name in RECALLS:
            k, direction = RECALLS[name]
            candidates = getattr(last_ranks(n, m, captions), direction)
            if k >= candidates:
                reasons[name] = f"needs more than {k} candidates, but has {candidates}: every query would succeed"
    return reasons


def _measure_at_once(
    wanted: tuple[str, ...], arrays: dict[str, np.ndarray], tau: np.ndarray | None, captions: int, seed: int
) -> dict[str, float]:
    """Metrics of rows that fit into memory in float64."""
    rows = moderate_rows({name: array.astype(np.float64) for name, array in arrays.items()})
    traced = tuple(REGISTRY[name] for name in wanted if REGISTRY[name].traceable and name not in RECALLS)
    given = rows if tau is None else rows | {"temperature": tau}
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        values = jax.tree.map(to_host, evaluate(traced, **given))
    if "linear_separability" in wanted:
        values["linear_separability"] = linear_separability(rows["image"], rows["text"], seed=seed)
    recalls = [name for name in wanted if name in RECALLS]
    if recalls:
        ranks = retrieval_ranks(rows["image"], rows["text"], captions_per_image=captions)
        for name in recalls:
            k, direction = RECALLS[name]
            values[name] = float(np.mean(getattr(ranks, direction) <= k))
    return values
