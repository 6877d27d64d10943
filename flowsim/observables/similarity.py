"""A report from similarities alone: cosines of images and texts, or of all rows with each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy as np

from flowsim.base.checks import check, check_choice, check_whole
from flowsim.observables.checks import check_seed, check_shapes, check_values, real_array
from flowsim.observables.matching import doubly_stochastic_defect, pair_margins
from flowsim.observables.reports import Report, inapplicable, report, wanted_names
from flowsim.observables.retrieval import Retrieval
from flowsim.observables.rows import EPS64, TIES
from flowsim.observables.table import RECALLS, REGISTRY
from flowsim.progress import Progress, silent

_KINDS = ("cross", "gram")
#: Cosines may be off by this much, or by four units of their dtype: float32 rows of 512 numbers give 1e-6.
_ROUNDING = 1e-5


def report_similarity(
    matrix: Any,
    temperature: Any = None,
    dim: int | None = None,
    *,
    kind: str | None = None,
    seed: int = 0,
    only: Collection[str] | None = None,
    progress: Progress = silent,
) -> Report:
    """Every metric that a matrix of similarities determines, with a reason for each that it does not.

    Args:
        matrix: Cosines, not divided by a temperature: either (n, n) of images (rows) with texts (columns), true pairs
            on the diagonal; or (2n, 2n) of all unit rows with each other, images first, which is a Gram matrix. From
            the latter, rows are recovered up to a rotation, which no metric depends on.
        temperature: τ > 0, which some metrics need.
        dim: d, the dimension of the rows behind a Gram matrix, which `wasserstein_uniformity` needs.
        kind: "cross" for cosines of images with texts, "gram" for those of all rows. Default: "gram" if the matrix is
            symmetric with a unit diagonal, "cross" if it is neither.
        seed: Seed of the split of `linear_separability`.
        only: Names of the metrics to compute. Default: all.
        progress: Called with a short message before each long step.

    Returns:
        A `Report`; its `note` tells what it was computed from.

    Raises:
        FlowsimError: For a matrix that is not square, has entries outside [−1, 1], or, as a Gram matrix, is not
            symmetric, has no unit diagonal, an odd size or a negative eigenvalue, each beyond rounding.

    Examples:
        >>> import flowsim as fs
        >>> found = fs.observables.report_similarity([[0.9, 0.4], [0.1, 0.8]])
        >>> round(found["margin"], 3), round(found["mean_pair_cosine"], 3)
        (0.4, 0.85)
        >>> found.reasons["modality_gap"]
        'needs the rows, or the cosines of all rows with each other'
    """
    given = real_array("similarity", matrix)
    rounding = _ROUNDING if given.dtype.kind in "iu" else max(_ROUNDING, 4 * float(ml_dtypes.finfo(given.dtype).eps))
    values = check_values("similarity", given)
    check_shapes({"similarity": values}, pairs=False)
    worst = float(np.abs(values).max())
    check(
        worst <= 1 + rounding,
        f"Similarities must be cosines in [−1, 1], but one has size {worst:.6g}. Divide rows by their lengths first, "
        "and multiply logits by the temperature.",
    )
    if kind is None:
        kind = _kind(values, rounding)
    check_choice("kind of similarities", kind, _KINDS)
    if dim is not None:
        check_whole("dim", dim, 1, "Use the number of columns of the rows, e.g. 512.")
    check_seed(seed)
    tau = None
    if temperature is not None:
        check_shapes({"temperature": temperature}, pairs=False)
        tau = float(check_values("temperature", temperature))
    if kind == "cross":
        return _of_cosines(values, tau, seed, wanted_names(only))
    return _of_gram(values, rounding, tau, dim, seed, only, progress)


def _kind(values: np.ndarray, rounding: float) -> str:
    """ "gram" for a symmetric matrix with a unit diagonal, "cross" for one that is neither; refuses others."""
    unit = np.abs(np.diagonal(values) - 1).max() <= rounding
    symmetric = np.abs(values - values.T).max() <= rounding
    check(
        unit == symmetric,
        f"The matrix is {'' if symmetric else 'not '}symmetric, but its diagonal is {'' if unit else 'not '}1. "
        "Pass kind='cross' (--kind cross) for cosines of images with texts, or kind='gram' (--kind gram) for those of "
        "all rows.",
    )
    return "gram" if unit else "cross"


def _gram_fault(values: np.ndarray, rounding: float) -> str | None:
    """What keeps a matrix from being that of unit rows, of what is seen at once."""
    diagonal = float(np.abs(np.diagonal(values) - 1).max())
    if diagonal > rounding:
        return f"must have a unit diagonal, but is off by {diagonal:.3g}"
    uneven = float(np.abs(values - values.T).max())
    return f"must be symmetric, but is off by {uneven:.3g}" if uneven > rounding else None


def _of_gram(
    values: np.ndarray,
    rounding: float,
    tau: float | None,
    dim: int | None,
    seed: int,
    only: Collection[str] | None,
    progress: Progress,
) -> Report:
    fault = _gram_fault(values, rounding)
    if len(values) % 2 or len(values) < 4:
        fault = f"must have 2n rows, n of images and n of texts, n ≥ 2, but has {len(values)}"
    cure = (
        "Pass u @ u.T of unit rows u, images first; for cosines of images with texts pass kind='cross' (--kind cross)."
    )
    check(fault is None, f"The Gram matrix of all rows {fault}. {cure}")
    progress("eigenvalues", 0, None)
    squares, directions = np.linalg.eigh((values + values.T) / 2)
    # Independent errors of size e in all entries move eigenvalues by about 2e√N.
    check(
        squares[0] >= -2 * rounding * math.sqrt(len(values)) - 1e-10 * squares[-1],
        f"The Gram matrix of all rows must have no negative eigenvalue, but has {squares[0]:.3g}. {cure}",
    )
    # What errors do to eigenvalues that are 0 is as large above 0 as below.
    noise = max(-2 * squares[0], len(values) * EPS64 * squares[-1])
    kept = np.flatnonzero(squares > noise)[-(dim or len(values)) :]
    rank = len(kept)
    rows = directions[:, kept] * np.sqrt(squares[kept])
    if dim is not None:
        rows = np.pad(rows, ((0, 0), (0, dim - rank)))
    n = len(values) // 2
    found = report(rows[:n], rows[n:], tau, seed=seed, only=only, progress=progress)
    note = "from the Gram matrix of all rows"
    if dim is not None:
        lost = float(squares[squares > noise].sum() - squares[kept].sum())
        check(
            lost <= 2 * rounding * len(values),
            f"The Gram matrix has rank {int((squares > noise).sum())}, which {dim} columns cannot have. Check `dim`.",
        )
        return dataclasses.replace(found, note=note)
    name = "wasserstein_uniformity"
    if name in found.values:
        found.values[name] = math.nan
        found.reasons[name] = "needs the dimension of the rows: pass dim=d (--dim d)"
    return dataclasses.replace(found, dim=None, note=f"{note}, of rank {rank}")


def _of_cosines(values: np.ndarray, tau: float | None, seed: int, wanted: tuple[str, ...]) -> Report:
    n = len(values)
    own = np.diagonal(values)
    squared = np.maximum(2 - 2 * own, 0)
    found, reasons = dict.fromkeys(wanted, math.nan), inapplicable(wanted, n, n, 1, tau is not None)
    margins = np.asarray(pair_margins(similarity=values))
    ranks = Retrieval(*(np.count_nonzero(z >= own[:, None] - TIES * EPS64, axis=1) for z in (values, values.T)))
    away = values[~np.eye(n, dtype=bool)]
    known = {
        "pair_distance": lambda: np.mean(np.sqrt(squared)),
        "mean_pair_cosine": lambda: np.mean(own),
        "alignment": lambda: np.mean(squared),
        "margin": lambda: margins.min(),
        "matched_fraction": lambda: np.mean(margins > 0),
        "cross_uniformity": lambda: np.log(np.mean(np.exp(4 * (away - 1)))),
        "doubly_stochastic_defect": lambda: doubly_stochastic_defect(logits=values / (tau or 1)),
        **{
            name: lambda k=k, way=way: np.mean(getattr(ranks, way) <= k)
            for name, (k, way) in RECALLS.items()
        },
    }  # fmt: skip
    for name in wanted:
        if name in reasons:
            continue
        if name in known:
            found[name] = float(known[name]())
        else:
            own_one = "" if REGISTRY.is_ours(name) else ": it is your own observable of rows"
            reasons[name] = f"needs the rows, or the cosines of all rows with each other{own_one}"
    return Report(found, reasons, n, None, n, n, tau, 1, seed, {}, "from cosines of images with texts")
