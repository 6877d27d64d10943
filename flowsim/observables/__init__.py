"""Every metric of a pair of embedding sets, defined once.

`image` and `text` are arrays of shape (n, d) with samples as rows; row i of one belongs to row i of the
other (metrics that say *unpaired* also take n and m rows). Rows are scaled to unit length first, so that
cosines are inner products. Below, x_i and y_i are the unit rows, Z_ij = ⟨x_i, y_j⟩, and Z_ii are the true
pairs.

Each function works in two ways, with the same definition:

- called with ordinary arrays (NumPy, JAX, lists), it checks them, computes in float64 whatever the
  session's JAX settings, and returns Python floats;
- called inside `jax.jit`, `jax.vmap` or `jax.grad`, it is plain JAX in the precision of its (traced)
  arguments, and checks shapes only.

All functions raise `FlowsimError` for an argument that is not a real 2-d array, has fewer than two rows, a
row of zeros, NaN or infinity, or does not fit the other argument.
"""

from __future__ import annotations

import functools
import html
import inspect
import json
import math
import os
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, NamedTuple, ParamSpec, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Shaped

from flowsim.base.arrays import check_choice, check_whole, host_array, is_real, moderate, namespace, shown
from flowsim.errors import FlowsimError, unknown_name
from flowsim.observables import blocks as _blocks

Rows: TypeAlias = Float[Array | np.ndarray, "n d"]
MoreRows: TypeAlias = Float[Array | np.ndarray, "m d"]
Square: TypeAlias = Float[Array | np.ndarray, "n n"]
Number: TypeAlias = Float[Array, ""] | float
Positive: TypeAlias = Float[Array | np.ndarray, ""] | float

_AT_ONCE = 2_000  # up to so many rows a report is one compiled program, with rows held in float64
_EXACT = 20_000  # up to so many rows a report compares all rows with all others
_EPS64 = float(np.finfo(np.float64).eps)
_BLOCK = 2**22  # most similarities held at once (32 MiB in float64)
_TIES = 32  # cosines within this many machine epsilons are equal: far below any real difference


class PerModality(NamedTuple):
    """One number for each modality."""

    image: Number
    text: Number


class Uniformity(NamedTuple):
    """`uniformity` within the images, within the texts, and between them."""

    image: Number
    text: Number
    cross: Number


class Retrieval(NamedTuple):
    """A retrieval number in each direction: recalls (scalars), or ranks (one for each query)."""

    image_to_text: Number | Shaped[Array | np.ndarray, " n"]
    text_to_image: Number | Shaped[Array | np.ndarray, " m"]


# --- checks, and the two ways of calling -----------------------------------------------------------------


def _check_shapes(arguments: dict[str, Any], pairs: bool) -> None:
    shapes = {name: np.shape(a) for name, a in arguments.items()}
    for name, shape in shapes.items():
        if name == "temperature":
            if shape != ():
                raise FlowsimError(f"Argument `temperature` must be one number, but has shape {shape}.")
            continue
        if len(shape) != 2:
            raise FlowsimError(
                f"Argument `{name}` must be 2-d with samples as rows, but has shape {shape}. "
                "Reshape it to (n, d), or use jax.vmap for a batch."
            )
        if shape[0] < 2:
            raise FlowsimError(f"Argument `{name}` needs at least 2 rows, but has {shape[0]}.")
        if shape[1] < 1:
            raise FlowsimError(f"Argument `{name}` needs at least 1 column, but has shape {shape}.")
        if name in ("similarity", "logits") and shape[0] != shape[1]:
            raise FlowsimError(f"Argument `{name}` must be square, but has shape {shape}.")
    if "image" in shapes and "text" in shapes:
        (n, d), (m, e) = shapes["image"], shapes["text"]
        if d != e:
            raise FlowsimError(f"`image` has {d} columns and `text` has {e}. Use embeddings from one shared space.")
        if pairs and n != m:
            raise FlowsimError(f"`image` has {n} rows and `text` has {m}. Pass pairs: one text row for each image row.")


def _check_values(name: str, value: Any) -> np.ndarray:
    """`value` as a float64 NumPy array that a metric can take."""
    array = _real_array(name, value).astype(np.float64)
    if name == "temperature" and array.ndim == 0:
        if array <= 0:
            raise FlowsimError(f"Argument `temperature` must be positive, but is {array}. Pass τ itself, not log τ.")
        if not 1e-300 <= array < math.inf:
            raise FlowsimError(
                f"Argument `temperature` must be finite and at least 1e-300, but is {array}. Use e.g. 0.07."
            )
    else:
        _check_finite(name, array)
    return array


def _real_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of real numbers, of its own dtype."""
    array = host_array(value)
    if array is None:
        raise FlowsimError(f"Argument `{name}` has rows of different lengths. Pass an array.")
    if not is_real(array):
        raise FlowsimError(
            f"Argument `{name}` must hold real numbers, but has dtype {array.dtype}. Pass a float array."
        )
    return array


def _check_finite(name: str, array: np.ndarray, first: int = 0) -> None:
    """Refuse NaN, infinity and rows of zeros in an array, or in its rows from `first` on."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = bad[0].tolist()
        place[:1] = [index + first for index in place[:1]]
        raise FlowsimError(
            f"Argument `{name}` has NaN or infinity (first at index {tuple(place)}). "
            "Remove those rows, or repair their source."
        )
    if name in ("image", "text") and array.ndim == 2 and array.shape[1]:
        zero = np.flatnonzero(~array.any(axis=1))
        if len(zero):
            raise FlowsimError(
                f"Argument `{name}` has {len(zero)} row(s) of zeros (first: row {zero[0] + first}), "
                "which have no direction. Remove them together with their pairs."
            )


def _check_captions(images: int, texts: int, captions: int, always: bool = False) -> None:
    """Refuse row numbers that do not fit several captions of each image; with `always`, also one of each."""
    if (captions > 1 or always) and texts != captions * images:
        raise FlowsimError(
            f"`image` has {images} rows and `text` has {texts}, but {captions} caption(s) per image need "
            f"{captions * images} text rows. Pass `captions_per_image`, with the captions of one image in consecutive "
            "rows."
        )


def _check_seed(seed: Any) -> None:
    check_whole("seed", seed, 0, "Use e.g. 0.")


def _check_blocks(name: str, array: np.ndarray) -> None:
    """`_check_finite` of many rows, which may be mapped from a file."""
    for start in range(0, len(array), _blocks.BLOCK):
        _check_finite(name, np.asarray(array[start : start + _blocks.BLOCK], np.float64), start)


def _check_counts(options: dict[str, Any]) -> None:
    for name, value in options.items():
        check_whole(name, value, 1, "Use e.g. 1.")


P = ParamSpec("P")
R = TypeVar("R")
_ARRAYS = ("image", "text", "similarity", "logits", "temperature")
#: Metrics that take rows as they are; the others scale them to unit length.
_AS_GIVEN = ("margin_of_products", "matched_fraction_of_products", "doubly_stochastic_defect_of_products")


def _metric(*, pairs: bool) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make plain JAX code callable both inside a trace and, in float64, outside."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        options = tuple(name for name in signature.parameters if name not in _ARRAYS)
        plain: Callable[..., Any] = function
        compiled = jax.jit(plain, static_argnames=options)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs).arguments
            arrays = {name: value for name, value in given.items() if name in _ARRAYS}
            counts = {name: value for name, value in given.items() if name not in _ARRAYS}
            _check_counts(counts)
            if any(isinstance(value, Tracer) for value in arrays.values()):
                _check_shapes(arrays, pairs)
                with jax.numpy_dtype_promotion("standard"):
                    dtype = jnp.result_type(jnp.float32, *(v for v in arrays.values() if np.ndim(v)))
                return plain(**{name: jnp.asarray(v, dtype) for name, v in arrays.items()}, **counts)
            arrays = {name: _check_values(name, value) for name, value in arrays.items()}
            _check_shapes(arrays, pairs)
            if function.__name__ not in _AS_GIVEN:
                arrays = _moderate(arrays)
            with jax.ensure_compile_time_eval(), jax.enable_x64(True):
                return jax.tree.map(_to_host, compiled(**arrays, **counts))

        return wrapper

    return decorate


def _moderate(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows with the same directions, of lengths that compilers do not take for 0 or infinity."""
    return {name: moderate(value) if name in ("image", "text") else value for name, value in arrays.items()}


def _to_host(leaf: Any) -> Any:
    array = np.asarray(leaf)
    return array if array.ndim else array.item()


# --- pieces ----------------------------------------------------------------------------------------------


def _unit(rows: MoreRows) -> MoreRows:
    scaled = rows / jnp.max(jnp.abs(rows), axis=1, keepdims=True)  # no overflow in the squares
    return scaled / jnp.linalg.norm(scaled, axis=1, keepdims=True)


def _by_row(function: Callable[..., Any], queries: Any, others: Any) -> Any:
    """`function(i, similarities of query i to all others)` for every i, in blocks that fit in memory."""

    def one(item: Any) -> Any:
        i, query = item
        return function(i, jnp.matmul(others, query, precision=jax.lax.Precision.HIGHEST))

    n, items = queries.shape[0], (jnp.arange(queries.shape[0]), queries)
    block = max(1, _BLOCK // others.shape[0])
    return jax.vmap(one)(items) if n <= block else jax.lax.map(one, items, batch_size=block)


def _pair_gaps(image: Rows, text: Rows) -> Float[Array, " n"]:
    """Z_ii − max_{j≠i} Z_ij for every row i of unit rows."""
    return _by_row(lambda i, z: z[i] - jnp.max(jnp.where(jnp.arange(z.size) == i, -jnp.inf, z)), image, text)


def _pair_margins(image: Rows, text: Rows) -> Float[Array, " n"]:
    """Z_ii − max_{j≠i} max(Z_ij, Z_ji) for every pair, Z = image · textᵀ; ties are 0."""
    longest = [jnp.max(jnp.linalg.norm(rows, axis=1)) for rows in (image, text)]
    return _without_ties(jnp.minimum(_pair_gaps(image, text), _pair_gaps(text, image)), longest[0] * longest[1])


def _without_ties(margins: Any, scale: Any) -> Any:
    """Margins, exactly 0 where two similarities of size `scale` agree to rounding, whose sign means nothing."""
    return namespace(margins).where(abs(margins) <= _TIES * _eps(margins) * scale, 0.0, margins)


def _pair_margins_of(similarity: Square) -> Float[Array, " n"]:
    """`_pair_margins` of a given Z."""
    diagonal, others = _off_diagonal(similarity)
    margins = diagonal - jnp.maximum(jnp.max(others, axis=1), jnp.max(others, axis=0))
    return _without_ties(margins, jnp.max(jnp.abs(similarity)))


def _off_diagonal(similarity: Square) -> tuple[Float[Array, " n"], Square]:
    diagonal = jnp.diagonal(similarity)
    return diagonal, jnp.where(jnp.eye(similarity.shape[0], dtype=bool), -jnp.inf, similarity)


def _eps(array: Any) -> float:
    return float(jnp.finfo(array.dtype).eps)


def _fraction(hits: Any, like: Any) -> Float[Array, ""]:
    """Share of true entries. The size is counted: XLA turns n/n into n·(1/n), which is not 1 for n = 49."""
    yes, no = jnp.sum(hits, dtype=like.dtype), jnp.sum(~hits, dtype=like.dtype)
    return yes / (yes + no)


def _centre(rows: MoreRows) -> Float[Array, " d"]:
    return jnp.mean(_unit(rows), axis=0)


def _spread(unit: MoreRows) -> Float[Array, ""]:
    """Mean of (1 − cosine)/2 over distinct rows, from distances to their mean: no n×n matrix."""
    return jnp.sum((unit - jnp.mean(unit, axis=0, keepdims=True)) ** 2) / (2 * (unit.shape[0] - 1))


def _log_mean_kernel(queries: Rows, others: Rows) -> Float[Array, ""]:
    """log mean_{i≠j} exp(−2‖q_i − o_j‖²) of unit rows, i.e. of exp(−4(1 − cosine))."""
    n = queries.shape[0]
    sums = _by_row(lambda i, z: jnp.sum(jnp.where(jnp.arange(n) == i, 0.0, jnp.exp(4.0 * (z - 1.0)))), queries, others)
    return jnp.log(jnp.sum(sums) / (n * (n - 1)))


# --- the gap ---------------------------------------------------------------------------------------------


@_metric(pairs=False)
def modality_gap(image: Rows, text: MoreRows) -> Number:
    """Modality gap Δ = ‖mean_i x_i − mean_j y_j‖₂.

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 2], 0 when the centres coincide.
    Source: Liang et al., NeurIPS 2022; Yaras et al., CPAL 2025. Called L2M elsewhere.

    Examples:
        >>> import flowsim as fs
        >>> round(fs.observables.modality_gap([[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]), 3)
        1.414
    """
    return jnp.linalg.norm(_centre(image) - _centre(text))


@_metric(pairs=False)
def centre_norms(image: Rows, text: MoreRows) -> PerModality:
    """Norms of the two centres, (‖mean_i x_i‖₂, ‖mean_j y_j‖₂).

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 1]; 1 when all rows of the modality
    coincide. Near 0 the direction of a centre, and with it `gap_angle`, means nothing. Source: Liang et
    al., NeurIPS 2022.
    """
    return PerModality(image_centre_norm(image, text), text_centre_norm(image, text))


@_metric(pairs=False)
def image_centre_norm(image: Rows, text: MoreRows) -> Number:
    """‖mean_i x_i‖₂ of the images; see `centre_norms`."""
    return jnp.linalg.norm(_centre(image))


@_metric(pairs=False)
def text_centre_norm(image: Rows, text: MoreRows) -> Number:
    """‖mean_j y_j‖₂ of the texts; see `centre_norms`."""
    return jnp.linalg.norm(_centre(text))


@_metric(pairs=False)
def gap_angle(image: Rows, text: MoreRows) -> Number:
    """Angle between the two centres in degrees: arccos of the cosine of mean_i x_i and mean_j y_j.

    Normalisation: unit rows. Sample: all rows, unpaired. Range: [0, 180]. NaN when a centre vanishes to
    rounding, and ill-posed when it nearly does: always read it beside `centre_norms`. Source: arXiv
    2510.03268.
    """
    return _angle(_centre(image), _centre(text))


def _angle(a: Any, b: Any) -> Float[Array, ""]:
    r, s = jnp.linalg.norm(a), jnp.linalg.norm(b)
    angle = 2 * jnp.atan2(jnp.linalg.norm(a / r - b / s), jnp.linalg.norm(a / r + b / s))
    return jnp.where(jnp.minimum(r, s) > _TIES * _eps(a), jnp.degrees(angle), jnp.nan)


@_metric(pairs=True)
def pair_distance(image: Rows, text: Rows) -> Number:
    """Mean distance of true pairs, mean_i ‖x_i − y_i‖₂.

    Normalisation: unit rows. Sample: the n true pairs. Range: [0, 2], at least `modality_gap`.
    Source: Yaras et al., CPAL 2025. Called L2I elsewhere.
    """
    return jnp.mean(jnp.linalg.norm(_unit(image) - _unit(text), axis=1))


@_metric(pairs=True)
def mean_pair_cosine(image: Rows, text: Rows) -> Number:
    """Mean cosine of true pairs, mean_i Z_ii = 1 − `alignment`/2.

    Normalisation: unit rows. Sample: the n true pairs. Range: [−1, 1]; 1 when pairs coincide.
    Source: Hessel et al., EMNLP 2021 (CLIPScore, without its factor and clipping).
    """
    return jnp.mean(jnp.sum(_unit(image) * _unit(text), axis=1))


@_metric(pairs=True)
def relative_modality_gap(image: Rows, text: Rows) -> Number:
    """Relative modality gap d_m / (d_m + ½(d_II + d_TT)) with the distance d = (1 − cosine)/2.

    d_m is the mean over true pairs; d_II and d_TT are means over distinct rows of one modality (the
    diagonal is excluded). Normalisation: unit rows. Sample: n pairs; sums of rows, no n×n matrix. Range:
    [0, 1]; 0 when pairs coincide, 1 when each modality is a point; NaN when everything is one point. Some
    code divides d_II + d_TT by 8 instead of 2: its odds r/(1 − r), divided by 4, are those here. Source:
    Schrodi et al., ICLR 2025.
    """
    x, y = _unit(image), _unit(text)
    return _relative(jnp.mean(jnp.sum((x - y) ** 2, axis=1)) / 4, _spread(x), _spread(y))


def _relative(pairs: Any, within_image: Any, within_text: Any) -> Float[Array, ""]:
    total = jnp.asarray(pairs + (within_image + within_text) / 2)
    return jnp.where(total > (_TIES * _eps(total)) ** 2, pairs / total, jnp.nan)


def linear_separability(image: Any, text: Any, seed: int = 0) -> float:
    """Accuracy of a logistic regression that tells images from texts, on rows held out from its fit.

    Each modality is split at random (by `seed`) into halves: one to fit on, one to judge on; equal row
    numbers get the same split, so that pairs stay together. The fit is with intercept, weights 1/n per
    modality and a small L2 penalty, which may count a gap below about 0.01 as closed; the accuracy is the
    mean of the two modalities' accuracies. Normalisation: unit rows. Sample: all rows, unpaired. Range:
    [0, 1]; 1 open gap, 0.5 closed. Source: cf. arXiv 2405.18570. Raises `FlowsimError` inside jit: it is a
    fit, for stored embeddings.
    """
    if isinstance(image, Tracer) or isinstance(text, Tracer):
        raise FlowsimError("linear_separability fits a classifier and cannot be traced. Call it outside jax.jit.")
    _check_seed(seed)
    arrays = {"image": _check_values("image", image), "text": _check_values("text", text)}
    _check_shapes(arrays, pairs=False)
    fit, judge = [], []
    for rows, label in ((arrays["image"], -1.0), (arrays["text"], 1.0)):
        rows = rows / np.abs(rows).max(axis=1, keepdims=True)
        rows = label * np.column_stack([rows / np.linalg.norm(rows, axis=1, keepdims=True), np.ones(len(rows))])
        order = np.random.default_rng(seed).permutation(len(rows))
        fit.append(rows[order[: len(rows) // 2]])
        judge.append(rows[order[len(rows) // 2 :]])
    weights = _logistic_regression(np.concatenate(fit), np.repeat([0.5 / len(f) for f in fit], [len(f) for f in fit]))
    # Rows carry their label as a sign; a score of exactly zero counts as an image.
    return float(np.mean([np.mean(judge[0] @ weights >= 0), np.mean(judge[1] @ weights > 0)]))


def _logistic_regression(signed: np.ndarray, weights: np.ndarray, penalty: float = 1e-6) -> np.ndarray:
    """Minimiser w of Σ_i weights_i log(1 + exp(−⟨w, signed_i⟩)) + penalty/2 ‖w without intercept‖²."""
    from scipy.optimize import minimize
    from scipy.special import expit

    ridge = np.full(signed.shape[1], penalty)
    ridge[-1] = 0.0

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        scores = signed @ w
        value = weights @ np.logaddexp(0.0, -scores) + 0.5 * ridge @ w**2
        return float(value), ridge * w - signed.T @ (weights * expit(-scores))

    return minimize(loss, np.zeros(signed.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x


# --- matching --------------------------------------------------------------------------------------------


@_metric(pairs=True)
def margin(image: Rows, text: Rows) -> Number:
    """Margin α = min_{i≠j} min(Z_ii − Z_ij, Z_jj − Z_ij).

    Normalisation: unit rows. Sample: all n(n−1) non-pairs, in blocks of rows; cosines that agree to rounding are
    ties, of margin 0. Range: [−2, 2]; the pairs are perfectly matched when it is positive. For parallel cones
    [√(1−γ²) h, ±γ] the theory uses the margin of the directions h: pass those. Source: Yaras et al., CPAL 2025.
    """
    return jnp.min(_pair_margins(_unit(image), _unit(text)))


@_metric(pairs=True)
def pair_margins(image: Rows, text: Rows) -> Float[Array | np.ndarray, " n"]:
    """Margin of every pair, Z_ii − max_{j≠i} max(Z_ij, Z_ji), shape (n,); its smallest entry is `margin`.

    Normalisation: unit rows. Sample: the n true pairs against all non-pairs, in blocks of rows. Range: [−2, 2] each.
    """
    return _pair_margins(_unit(image), _unit(text))


@_metric(pairs=True)
def matched_fraction(image: Rows, text: Rows) -> Number:
    """Fraction of pairs with Z_ii > max_{j≠i} Z_ij and Z_ii > max_{j≠i} Z_ji.

    Normalisation: unit rows. Sample: the n true pairs against all non-pairs, in blocks of rows; cosines
    that agree to rounding are ties and do not count. Range: [0, 1]; 1 when `margin` is positive. Source:
    the matching condition of Yaras et al., CPAL 2025, pair by pair.
    """
    x, y = _unit(image), _unit(text)
    return _fraction(_pair_margins(x, y) > 0, x)


@_metric(pairs=True)
def margin_of_similarity(similarity: Square) -> Number:
    """`margin` of a given matrix Z of shape (n, n), n ≥ 2, with true pairs on the diagonal.

    No normalisation: Z is taken as it is, of any scale; entries that agree to rounding of the largest are ties, of
    margin 0. Range: real. Source: Yaras et al., CPAL 2025. Raises `FlowsimError` when Z is not square.
    """
    return jnp.min(_pair_margins_of(similarity))


@_metric(pairs=True)
def matched_fraction_of_similarity(similarity: Square) -> Number:
    """`matched_fraction` of a given matrix Z of shape (n, n), n ≥ 2, with true pairs on the diagonal.

    No normalisation; entries that agree to rounding of the largest are ties and do not count. Range: [0, 1].
    Raises `FlowsimError` when Z is not square.
    """
    return _fraction(_pair_margins_of(similarity) > 0, similarity)


@_metric(pairs=True)
def margin_of_products(image: Rows, text: Rows) -> Number:
    """`margin_of_similarity` of Z = image · textᵀ, in blocks of rows: Z is never formed.

    No normalisation: rows are taken as they are. Range: real.
    """
    return jnp.min(_pair_margins(image, text))


@_metric(pairs=True)
def matched_fraction_of_products(image: Rows, text: Rows) -> Number:
    """`matched_fraction_of_similarity` of Z = image · textᵀ, in blocks of rows: Z is never formed.

    No normalisation; ties as there. Range: [0, 1].
    """
    return _fraction(_pair_margins(image, text) > 0, image)


@_metric(pairs=True)
def doubly_stochastic_defect_of_products(image: Rows, text: Rows, temperature: Positive) -> Number:
    """`doubly_stochastic_defect_of_logits` of M = image · textᵀ/τ, in blocks of rows: M is never formed.

    No normalisation: rows are taken as they are. Range: [0, n − 1].
    """
    return _defect(image, text, 1 / temperature)


@_metric(pairs=True)
def doubly_stochastic_defect(image: Rows, text: Rows, temperature: Positive) -> Number:
    """Defect max(max_j |Σ_i P_ij − 1|, max_i |Σ_j Q_ij − 1|), P and Q the row and column softmax of Z/τ.

    `temperature` is τ = 1/β, not β. Normalisation: unit rows. Sample: n pairs, in blocks of rows. Range:
    [0, n − 1]; 0 means that the loss exerts no ambient force on the centres, which does not by itself
    freeze the gap on the sphere. Source: the gradient of the symmetric contrastive loss, cf. arXiv
    2603.29080. Raises `FlowsimError` when the temperature is not positive.
    """
    return _defect(_unit(image), _unit(text), 1 / temperature)


def _defect(x: Rows, y: Rows, beta: Any) -> Float[Array, ""]:
    row_norms = _by_row(lambda i, z: jax.nn.logsumexp(beta * z), x, y)
    column_norms = _by_row(lambda j, z: jax.nn.logsumexp(beta * z), y, x)
    column_sums = _by_row(lambda j, z: jnp.sum(jnp.exp(beta * z - row_norms)), y, x)
    row_sums = _by_row(lambda i, z: jnp.sum(jnp.exp(beta * z - column_norms)), x, y)
    return jnp.maximum(jnp.max(jnp.abs(column_sums - 1)), jnp.max(jnp.abs(row_sums - 1)))


@_metric(pairs=True)
def doubly_stochastic_defect_of_logits(logits: Square) -> Number:
    """`doubly_stochastic_defect` of given logits M = βZ of shape (n, n).

    No normalisation, any scale; an offset added to all logits changes nothing. Range: [0, n − 1].
    Raises `FlowsimError` when M is not square.
    """
    column_sums = jnp.sum(jax.nn.softmax(logits, axis=1), axis=0)
    row_sums = jnp.sum(jax.nn.softmax(logits, axis=0), axis=1)
    return jnp.maximum(jnp.max(jnp.abs(column_sums - 1)), jnp.max(jnp.abs(row_sums - 1)))


@_metric(pairs=False)
def retrieval_ranks(image: Rows, text: MoreRows, captions_per_image: int = 1) -> Retrieval:
    """Rank of the true match of every query, 1 for the best: n image→text ranks, c·n text→image ranks.

    With c = `captions_per_image`, `text` has c·n rows and row j belongs to image j // c. For c = 1 the rank
    is #{j: Z_ij ≥ Z_ii}, which counts the match itself and every tie. A text query ranks its image among
    all n images in the same way; an image query takes its best caption and counts that one and the other
    images' captions that score as high. Cosines that agree to rounding are ties, so collapsed embeddings
    rank last, not at random. Normalisation: unit rows. Computed in blocks of rows.
    """
    c, (n, m) = captions_per_image, (image.shape[0], text.shape[0])
    _check_captions(n, m, c, always=True)
    x, y = _unit(image), _unit(text)
    ties = _TIES * _eps(x)

    def image_query(i: Any, z: Any) -> Any:
        own = jnp.arange(m) // c == i
        best = jnp.max(jnp.where(own, z, -jnp.inf))
        return 1 + jnp.sum(~own & (z >= best - ties))

    return Retrieval(
        _by_row(image_query, x, y),
        _by_row(lambda j, z: jnp.sum(z >= z[j // c] - ties), y, x),
    )


@_metric(pairs=False)
def retrieval_at_k(image: Rows, text: MoreRows, k: int = 1, captions_per_image: int = 1) -> Retrieval:
    """Recall at k, image→text and text→image: the fraction of queries whose rank is at most k.

    Ranks are those of `retrieval_ranks`: ties count against the query; with c captions per image (c = 5 on
    COCO and Flickr) an image query succeeds if any of its captions ranks ≤ k, and each of the c·n captions
    is a text query. Normalisation: unit rows. Sample: the whole pool, whose size belongs beside the number;
    chance is k/n for c = 1. Range: [0, 1]; NaN where every query would succeed: k above the m − c captions of
    other images, or above the n − 1 other images. Source: the COCO/Flickr30k protocols, Karpathy & Fei-Fei,
    CVPR 2015.
    """
    ranks = retrieval_ranks(image, text, captions_per_image=captions_per_image)
    last = _last_ranks(image.shape[0], text.shape[0], captions_per_image)
    found = (_fraction(rank <= k, image) for rank in ranks)
    return Retrieval(*(jnp.full_like(r, jnp.nan) if k >= worst else r for r, worst in zip(found, last, strict=True)))


def _last_ranks(images: int, texts: int, captions: int) -> Retrieval:
    """The worst rank that a query can have: an image counts one caption of its own and all of the others."""
    return Retrieval(texts - captions + 1, images)


# --- shape of each modality ------------------------------------------------------------------------------


@_metric(pairs=True)
def alignment(image: Rows, text: Rows) -> Number:
    """Alignment mean_i ‖x_i − y_i‖₂².

    Normalisation: unit rows. Sample: the n true pairs. Range: [0, 4]; lower is better aligned.
    Source: Wang & Isola, ICML 2020, exponent 2.
    """
    return jnp.mean(jnp.sum((_unit(image) - _unit(text)) ** 2, axis=1))


@_metric(pairs=True)
def uniformity(image: Rows, text: Rows) -> Uniformity:
    """`image_uniformity`, `text_uniformity` and `cross_uniformity` together.

    Normalisation: unit rows. Sample: distinct rows within a modality, non-pairs across, in blocks of rows.
    Range: [−8, 0] each; lower is more uniform. Source: Wang & Isola, ICML 2020, t = 2.
    """
    return Uniformity(image_uniformity(image, text), text_uniformity(image, text), cross_uniformity(image, text))


@_metric(pairs=False)
def image_uniformity(image: Rows, text: MoreRows) -> Number:
    """log mean_{i<j} exp(−2‖x_i − x_j‖₂²) over the images; unpaired; see `uniformity`."""
    x = _unit(image)
    return _log_mean_kernel(x, x)


@_metric(pairs=False)
def text_uniformity(image: Rows, text: MoreRows) -> Number:
    """log mean_{i<j} exp(−2‖y_i − y_j‖₂²) over the texts; unpaired; see `uniformity`."""
    y = _unit(text)
    return _log_mean_kernel(y, y)


@_metric(pairs=True)
def cross_uniformity(image: Rows, text: Rows) -> Number:
    """log mean_{i≠j} exp(−2‖x_i − y_j‖₂²), true pairs excluded; see `uniformity`."""
    return _log_mean_kernel(_unit(image), _unit(text))


@_metric(pairs=False)
def wasserstein_uniformity(image: Rows, text: MoreRows) -> Number:
    """Minus the Wasserstein distance to uniformity, −√(‖µ‖² + 1 + tr Σ − (2/√d) tr Σ^{1/2}).

    µ and Σ are mean and covariance (ddof = 1) of all image and text rows stacked; tr Σ^{1/2} is the sum of
    the singular values of the centred stack over √(rows − 1). Normalisation: unit rows. Sample: all rows,
    unpaired. Range: about [−√2, 0]; higher is more uniform. Source: Fang et al. 2023, the "uniformity" of
    Yaras et al. 2025.
    """
    stack = jnp.concatenate([_unit(image), _unit(text)])
    mean = jnp.mean(stack, axis=0)
    centred = stack - mean[None, :]
    return _distance_to_uniform(mean, centred, stack.shape[0])


def _distance_to_uniform(mean: Any, centred: Any, rows: int) -> Float[Array, ""]:
    """`wasserstein_uniformity` from the mean and the centred rows, or a factor of them with their singular values."""
    # Without `full_matrices=False` the left factor, rows × rows, would be allocated even though it is not wanted.
    singular = jnp.linalg.svd(centred, compute_uv=False, full_matrices=False) / math.sqrt(rows - 1)
    squared = jnp.sum(mean**2) + 1 + jnp.sum(singular**2) - 2 / math.sqrt(centred.shape[1]) * jnp.sum(singular)
    return -jnp.sqrt(jnp.maximum(squared, 0))


@_metric(pairs=False)
def effective_rank(image: Rows, text: MoreRows) -> PerModality:
    """Effective rank exp(−Σ_k p_k log p_k) of each modality, p = σ/Σσ, σ the singular values of centred rows.

    Normalisation: unit rows, then centred. Sample: all rows, unpaired. Range: [1, min(n − 1, d)], and 0
    when all rows coincide to rounding. Source: Roy & Vetterli, EUSIPCO 2007.
    """
    return PerModality(image_effective_rank(image, text), text_effective_rank(image, text))


@_metric(pairs=False)
def image_effective_rank(image: Rows, text: MoreRows) -> Number:
    """`effective_rank` of the images."""
    return _effective_rank(*_centred(_unit(image)))


@_metric(pairs=False)
def text_effective_rank(image: Rows, text: MoreRows) -> Number:
    """`effective_rank` of the texts."""
    return _effective_rank(*_centred(_unit(text)))


def _centred(unit: MoreRows) -> tuple[MoreRows, int]:
    return unit - jnp.mean(unit, axis=0, keepdims=True), unit.shape[0]


def _effective_rank(centred: Any, rows: int) -> Float[Array, ""]:
    """`effective_rank` from the centred rows, or a factor of them with their singular values."""
    singular = jnp.linalg.svd(centred, compute_uv=False, full_matrices=False)
    real = singular > _TIES * _eps(singular) * math.sqrt(rows)
    total = jnp.sum(jnp.where(real, singular, 0))
    p = jnp.where(real, singular, 1) / jnp.where(total > 0, total, 1)
    entropy = -jnp.sum(jnp.where(real, p * jnp.log(p), 0))
    return jnp.where(total > 0, jnp.exp(entropy), 0)


# --- the registry ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Observable:
    """A named scalar metric; `function` takes (image, text), then `temperature` where it is needed."""

    name: str
    function: Callable[..., Any]
    symbol: str  # LaTeX, for axes
    description: str  # formula on unit rows, range, better direction
    needs_pairs: bool = True
    needs_temperature: bool = False
    traceable: bool = True  # runs inside jax.jit
    undefined: str = ""  # when the value is NaN


def _observable(function: Callable[..., Any], symbol: str, description: str, **flags: Any) -> Observable:
    return Observable(function.__name__, function, symbol, description, **flags)


_RECALLS = {f"{way}_at_{k}": (k, way) for k in (1, 5, 10) for way in ("image_to_text", "text_to_image")}


def _recall(name: str) -> Observable:
    k, direction = _RECALLS[name]

    def recall(image: Any, text: Any) -> Any:
        return getattr(retrieval_at_k(image, text, k=k), direction)

    to_text = direction == "image_to_text"
    arrow, rank = ("X \\to Y", "#{j: Z_ij ≥ Z_ii}") if to_text else ("Y \\to X", "#{i: Z_ij ≥ Z_jj}")
    description = f"{direction.replace('_to_', '→')} recall: rank {rank} ≤ {k}, in [0, 1], higher is better"
    undefined = f"with no more than {k} candidates every query succeeds"
    return Observable(name, recall, rf"\mathrm{{R@{k}}}_{{{arrow}}}", description, undefined=undefined)


# fmt: off
_OBSERVABLES = (
    _observable(modality_gap, r"\Delta", "‖mean x − mean y‖, in [0, 2], 0 = closed", needs_pairs=False),
    _observable(gap_angle, r"\angle(c_X, c_Y)",
                "degrees between the two centres, in [0, 180]; read with their norms",
                needs_pairs=False, undefined="a centre vanishes, so it has no direction"),
    _observable(image_centre_norm, r"\|c_X\|", needs_pairs=False,
                description="‖mean x‖, in [0, 1], 1 = all images coincide"),
    _observable(text_centre_norm, r"\|c_Y\|", needs_pairs=False,
                description="‖mean y‖, in [0, 1], 1 = all texts coincide"),
    _observable(pair_distance, r"d_\mathrm{pair}", "mean ‖x_i − y_i‖, in [0, 2], lower is closer"),
    _observable(mean_pair_cosine, r"\overline{Z_{ii}}", "mean Z_ii, in [−1, 1], higher is closer"),
    _observable(relative_modality_gap, r"\mathrm{RMG}",
                "d_m/(d_m + ½(d_II + d_TT)), d = (1 − cos)/2, in [0, 1], 0 = closed",
                undefined="all rows coincide"),
    _observable(linear_separability, r"\mathrm{acc}_\mathrm{lin}", needs_pairs=False, traceable=False,
                description="held-out accuracy of image-vs-text logistic regression, 1 = open, 0.5 = closed"),
    _observable(margin, r"\alpha", "min_{i≠j} min(Z_ii − Z_ij, Z_jj − Z_ij), in [−2, 2], > 0 = matched"),
    _observable(matched_fraction, r"f_\mathrm{matched}",
                "fraction of pairs best in their row and column of Z, in [0, 1], higher is better"),
    _observable(alignment, r"\mathcal{A}", "mean ‖x_i − y_i‖², in [0, 4], lower is better"),
    _observable(image_uniformity, r"\mathcal{U}_X", needs_pairs=False,
                description="log mean_{i<j} exp(−2‖x_i − x_j‖²), in [−8, 0], lower is more uniform"),
    _observable(text_uniformity, r"\mathcal{U}_Y", needs_pairs=False,
                description="log mean_{i<j} exp(−2‖y_i − y_j‖²), in [−8, 0], lower is more uniform"),
    _observable(cross_uniformity, r"\mathcal{U}_{XY}",
                "log mean_{i≠j} exp(−2‖x_i − y_j‖²), in [−8, 0], lower is more uniform"),
    _observable(wasserstein_uniformity, r"-\mathcal{W}_2", needs_pairs=False,
                description="−(Wasserstein distance of all rows to uniform), ≤ 0, higher is more uniform"),
    _observable(image_effective_rank, r"r_X", needs_pairs=False,
                description="exp(entropy of σ/Σσ) of the centred images, in [1, min(n − 1, d)]"),
    _observable(text_effective_rank, r"r_Y", needs_pairs=False,
                description="exp(entropy of σ/Σσ) of the centred texts, in [1, min(n − 1, d)]"),
    *(_recall(name) for name in _RECALLS),
    _observable(doubly_stochastic_defect, r"\delta_\mathrm{ds}", needs_temperature=True,
                description="largest |softmax column or row sum − 1|, ≥ 0, 0 = no force on the centres"),
)
# fmt: on

REGISTRY: dict[str, Observable] = {observable.name: observable for observable in _OBSERVABLES}


def names() -> list[str]:
    """The names of all scalar metrics, in the order of a report."""
    return list(REGISTRY)


# --- report ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Report:
    """All metrics of one pair of embedding sets, from `report`.

    `values` has a float for every name, NaN where `reasons` says why it is missing. `pairs` is the number of
    one-to-one pairs (None when rows are not paired one to one), `dim` the dimension. `samples` says of values that were
    estimated how many rows were taken of how many, and the limits `low` and `high` of a 95 % confidence interval.
    """

    values: dict[str, float]
    reasons: dict[str, str]
    pairs: int | None
    dim: int
    image_rows: int
    text_rows: int
    temperature: float | None = None
    captions_per_image: int = 1
    seed: int = 0
    samples: dict[str, _blocks.Sample] = field(default_factory=dict)

    def __getitem__(self, name: str) -> float:
        """The value of a metric, NaN if missing; an unknown name raises `FlowsimError`."""
        if name not in self.values:
            raise unknown_name("observable", name, self.values)
        return self.values[name]

    @property
    def _title(self) -> str:
        sample = f"{self.pairs} pairs" if self.pairs else f"{self.image_rows} images, {self.text_rows} texts"
        temperature = "" if self.temperature is None else f", temperature {self.temperature:g}"
        return f"{sample}, dimension {self.dim}{temperature}"

    def _table(self) -> list[tuple[str, str, str]]:
        return [
            (name, f"{v:.6g}", self._sample(name) + REGISTRY[name].description)
            if name not in self.reasons
            else (name, "–", self.reasons[name])
            for name, v in self.values.items()
        ]

    def _sample(self, name: str) -> str:
        if name not in self.samples:
            return ""
        s = self.samples[name]
        return f"[{s.low:.6g}, {s.high:.6g}] (95 %) from {s.rows:,} of {s.of:,} rows; "

    def __repr__(self) -> str:
        width = max(len(name) for name in self.values)
        lines = [f"{name:<{width}}  {value:>12}  {text}" for name, value, text in self._table()]
        return "\n".join([f"Report: {self._title}", *lines])

    def _repr_html_(self) -> str:
        cells = [[f"<td style='text-align:left'>{html.escape(c)}</td>" for c in row] for row in self._table()]
        rows = "".join(f"<tr>{''.join(row)}</tr>" for row in cells)
        head = "<tr><th>metric</th><th>value</th><th>meaning</th></tr>"
        return f"<table><caption>{html.escape(self._title)}</caption>{head}{rows}</table>"

    def to_json(self) -> str:
        """Strict JSON: a missing value is null, and its reason is under `reasons`."""
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
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Every metric of `REGISTRY` for two embedding sets, with a reason for each that does not apply.

    Many rows are read in blocks, also from a file that is mapped into memory (`open_embeddings`). Sums over rows and
    factorisations are exact at any size. Beyond 20,000 rows, metrics that compare all rows with all others take a
    random sample of queries, each compared with all rows of the pool, and the classifier a sample of rows; `samples`
    has their number and a 95 % confidence interval.

    Args:
        image: rows (n, d) of real numbers: NumPy, JAX, torch, lists.
        text: rows (m, d).
        temperature: τ > 0, needed by `doubly_stochastic_defect` alone.
        captions_per_image: c; above 1, `text` has c·n rows, c in a row for each image: retrieval follows that
            protocol, and metrics over one-to-one pairs are left out. With unequal row numbers the unpaired metrics
            remain.
        seed: of the split of `linear_separability`, and of samples.
        only: names of the metrics wanted; default all.
        exact: compare all rows beyond 20,000 too. The time grows with n·m.
        progress: called with a few words before each long step.

    Returns:
        A `Report`.

    Raises:
        FlowsimError: for bad input.

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
    _check_counts({"captions_per_image": c})
    _check_seed(seed)
    wanted = _wanted(only)
    arrays = {"image": _real_array("image", image), "text": _real_array("text", text)}
    tau = None if temperature is None else _check_values("temperature", temperature)
    _check_shapes(arrays if tau is None else arrays | {"temperature": tau}, pairs=False)
    for name, array in arrays.items():
        _check_blocks(name, array)
    (n, d), m = arrays["image"].shape, len(arrays["text"])
    _check_captions(n, m, c)
    paired = n == m and c == 1
    hint = f"it takes one text per image, for example text[::{c}]" if c > 1 else "row i of both must be a pair"

    values, reasons = dict.fromkeys(wanted, math.nan), {}
    for name in wanted:
        if REGISTRY[name].needs_pairs and not (paired or (c > 1 and name in _RECALLS)):
            reasons[name] = f"needs pairs: image has {n} rows, text {m}; {hint}"
        elif REGISTRY[name].needs_temperature and tau is None:
            reasons[name] = "needs a temperature: pass temperature=τ"
        elif name in _RECALLS:
            k, direction = _RECALLS[name]
            candidates = getattr(_last_ranks(n, m, c), direction)
            if k >= candidates:
                reasons[name] = f"needs more than {k} candidates, but has {candidates}: every query would succeed"
    named = tuple(name for name in wanted if name not in reasons)
    if max(n, m) <= _AT_ONCE:
        values |= _measure_at_once(named, arrays, tau, c, seed)
        samples = {}
    else:
        large = _Large(arrays, c, seed, exact or max(n, m) <= _EXACT, progress or (lambda step: None))
        found, samples, left_out = large.measure(named, tau)
        values |= found
        reasons |= left_out
    reasons |= {
        name: f"undefined: {REGISTRY[name].undefined}"
        for name in named
        if math.isnan(values[name]) and name not in reasons
    }
    return Report(
        values, reasons, n if paired else None, d, n, m, None if tau is None else float(tau), int(c), int(seed), samples
    )


def _wanted(only: Collection[str] | None) -> tuple[str, ...]:
    """The names of a report, in the order of the registry."""
    if only is None:
        return tuple(REGISTRY)
    if not isinstance(only, list | tuple | set | frozenset):
        raise FlowsimError(f"Argument `only` must be a list of names, but is {shown(only)}. Use e.g. ['modality_gap'].")
    chosen = list(only)
    for name in chosen:
        check_choice("observable", name, REGISTRY)
    if not chosen:
        raise FlowsimError("Argument `only` names no metric. Use e.g. ['modality_gap'], or leave it out for all.")
    return tuple(name for name in REGISTRY if name in chosen)


def _measure_at_once(
    names: tuple[str, ...], arrays: dict[str, np.ndarray], tau: np.ndarray | None, captions: int, seed: int
) -> dict[str, float]:
    """Metrics of rows that memory holds in float64."""
    rows = _moderate({name: array.astype(np.float64) for name, array in arrays.items()})
    traced = tuple(name for name in names if REGISTRY[name].traceable and name not in _RECALLS)
    given = rows if tau is None else rows | {"temperature": tau}
    with jax.ensure_compile_time_eval(), jax.enable_x64(True):
        values = jax.tree.map(_to_host, _evaluate(traced, **given))
    if "linear_separability" in names:
        values["linear_separability"] = linear_separability(rows["image"], rows["text"], seed=seed)
    recalls = [name for name in names if name in _RECALLS]
    if recalls:
        ranks = retrieval_ranks(rows["image"], rows["text"], captions_per_image=captions)
        for name in recalls:
            k, direction = _RECALLS[name]
            values[name] = float(np.mean(getattr(ranks, direction) <= k))
    return values


class _Large:
    """Metrics of many rows: in blocks, and beyond `_EXACT` rows from samples of queries unless `exact`."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        captions: int,
        seed: int,
        exact: bool,
        progress: Callable[[str], None],
    ):
        self.rows = {name: _blocks.Rows(array) for name, array in arrays.items()}
        self.captions, self.seed, self.exact, self.progress = captions, seed, exact, progress

    def measure(
        self, names: tuple[str, ...], tau: np.ndarray | None
    ) -> tuple[dict[str, float], dict[str, _blocks.Sample], dict[str, str]]:
        """Values, what was sampled, and why something is missing, by name."""
        values, samples, reasons = {}, {}, {}
        with jax.ensure_compile_time_eval(), jax.enable_x64(True):
            for name in names:
                self.progress(name)
                if name in _RECALLS:
                    k, direction = _RECALLS[name]
                    values[name], sample = self._fraction(getattr(self._pairs, direction).rank <= k, direction)
                elif name in self._SUMS:
                    values[name], sample = float(self._SUMS[name](self)), None
                elif name == "doubly_stochastic_defect":
                    assert tau is not None
                    values[name], sample = self._defect(float(tau), reasons)
                else:
                    values[name], sample = getattr(self, f"_{name}")(reasons)
                if sample is not None:
                    samples[name] = sample
        return values, samples, reasons

    # What several metrics share.

    @functools.cached_property
    def _centres(self) -> dict[str, np.ndarray]:
        return {name: _blocks.centre(rows) for name, rows in self.rows.items()}

    @functools.cached_property
    def _means(self) -> _blocks.PairMeans:
        return _blocks.pair_means(self.rows["image"], self.rows["text"])

    @functools.cached_property
    def _factors(self) -> dict[str, np.ndarray]:
        return {name: _blocks.factor(rows, self._centres[name]) for name, rows in self.rows.items()}

    def _within(self, name: str) -> float:
        """`_spread` of a modality."""
        return _blocks.spread(self.rows[name], self._centres[name]) / (2 * (len(self.rows[name]) - 1))

    def _of_both(self) -> Any:
        centres = [self._centres[name] for name in self.rows]
        counts = [len(rows) for rows in self.rows.values()]
        mean, both = _blocks.factor_of_both(*self._factors.values(), centres, counts)  # pyright: ignore
        return _distance_to_uniform(mean, both, sum(counts))

    _SUMS: ClassVar[dict[str, Callable[[_Large], Any]]] = {
        "modality_gap": lambda s: np.linalg.norm(s._centres["image"] - s._centres["text"]),
        "gap_angle": lambda s: _angle(s._centres["image"], s._centres["text"]),
        "image_centre_norm": lambda s: np.linalg.norm(s._centres["image"]),
        "text_centre_norm": lambda s: np.linalg.norm(s._centres["text"]),
        "pair_distance": lambda s: s._means.distance,
        "mean_pair_cosine": lambda s: s._means.cosine,
        "alignment": lambda s: s._means.squared,
        "relative_modality_gap": lambda s: _relative(s._means.squared / 4, s._within("image"), s._within("text")),
        "wasserstein_uniformity": lambda s: s._of_both(),
        "image_effective_rank": lambda s: _effective_rank(s._factors["image"], len(s.rows["image"])),
        "text_effective_rank": lambda s: _effective_rank(s._factors["text"], len(s.rows["text"])),
    }

    # Comparisons of rows with all others.

    def _chosen(self, queries: str, others: str) -> np.ndarray:
        """Indices of the queries: all, or as many drawn at random as a comparison of `_EXACT` rows takes."""
        n = len(self.rows[queries])
        count = n if self.exact else min(n, max(1000, _EXACT**2 // len(self.rows[others])))
        return np.arange(n) if count == n else np.sort(np.random.default_rng(self.seed).choice(n, count, replace=False))

    def _compare(self, queries: str, others: str, chosen: np.ndarray, first: np.ndarray, count: int) -> Any:
        return _blocks.neighbours(
            self.rows[queries], chosen, self.rows[others], first, count, _TIES * _EPS64,
            lambda step: self.progress(f"{queries} to {others}, {step}"),
        )  # fmt: skip

    @functools.cached_property
    def _queries(self) -> Any:
        """The queries in each direction. The same pairs in both, so that their margins are known."""
        images = self._chosen("image", "text")
        return Retrieval(images, images if self.captions == 1 else self._chosen("text", "image"))

    @functools.cached_property
    def _pairs(self) -> Any:
        """`Neighbours` of the queries in each direction."""
        images, texts, c = *self._queries, self.captions
        return Retrieval(
            self._compare("image", "text", images, c * images, c), self._compare("text", "image", texts, texts // c, 1)
        )

    def _fraction(self, hits: np.ndarray, direction: str) -> tuple[float, _blocks.Sample | None]:
        value, of = float(np.mean(hits)), len(self.rows[direction.partition("_")[0]])
        return value, None if len(hits) == of else _blocks.sample_of_fraction(value, len(hits), of)

    @functools.cached_property
    def _margins(self) -> np.ndarray:
        to_text, to_image = self._pairs
        return _without_ties(to_text.own - np.maximum(to_text.other, to_image.other), 1.0)

    def _margin(self, reasons: dict[str, str]) -> tuple[float, None]:
        value, n = float(self._margins.min()), len(self.rows["image"])
        if len(self._margins) == n:
            return value, None
        reasons["margin"] = (
            f"a minimum over all pairs, which {len(self._margins):,} of {n:,} pairs only bound: it is at most "
            f"{value:.4g}; exact=True (--exact) takes all"
        )
        return math.nan, None

    def _matched_fraction(self, reasons: dict[str, str]) -> tuple[float, _blocks.Sample | None]:
        return self._fraction(self._margins > 0, "image")

    def _log_mean(self, kernels: np.ndarray, of: int) -> tuple[float, _blocks.Sample | None]:
        value = float(np.log(np.mean(kernels)))
        return value, None if len(kernels) == of else _blocks.sample_of_log_mean(kernels, of)

    def _uniformity(self, name: str) -> tuple[float, _blocks.Sample | None]:
        chosen = self._chosen(name, name)
        return self._log_mean(self._compare(name, name, chosen, chosen, 1).kernel, len(self.rows[name]))

    def _image_uniformity(self, reasons: dict[str, str]) -> tuple[float, _blocks.Sample | None]:
        return self._uniformity("image")

    def _text_uniformity(self, reasons: dict[str, str]) -> tuple[float, _blocks.Sample | None]:
        return self._uniformity("text")

    def _cross_uniformity(self, reasons: dict[str, str]) -> tuple[float, _blocks.Sample | None]:
        return self._log_mean(self._pairs.image_to_text.kernel, len(self.rows["image"]))

    def _defect(self, tau: float, reasons: dict[str, str]) -> tuple[float, None]:
        if not self.exact:
            reasons["doubly_stochastic_defect"] = (
                f"a maximum over sums of all pairs, of which there are {len(self.rows['image']):,}²; "
                "exact=True (--exact) takes all"
            )
            return math.nan, None
        return _blocks.softmax_defect(*self.rows.values(), 1 / tau, self.progress), None  # pyright: ignore

    def _linear_separability(self, reasons: dict[str, str]) -> tuple[float, _blocks.Sample | None]:
        """Fitted and judged on at most `_EXACT` rows of each modality, also with `exact`: a fit needs no more."""
        rng = np.random.default_rng(self.seed)
        kept = {}
        for name, rows in self.rows.items():
            n = len(rows)
            kept[name] = rows[slice(None) if n <= _EXACT else np.sort(rng.choice(n, _EXACT, replace=False))]
        value = linear_separability(kept["image"], kept["text"], seed=self.seed)
        judged = sum((len(rows) + 1) // 2 for rows in kept.values())
        whole = sum(len(rows) for rows in self.rows.values())
        cut = any(len(rows) > _EXACT for rows in self.rows.values())
        return value, _blocks.sample_of_fraction(value, judged, whole) if cut else None


@functools.partial(jax.jit, static_argnums=0)
def _evaluate(names: tuple[str, ...], image: Any, text: Any, temperature: Any = None) -> dict[str, Any]:
    """Many traceable observables in one compilation."""
    tau = {True: {"temperature": temperature}, False: {}}
    return {name: REGISTRY[name].function(image, text, **tau[REGISTRY[name].needs_temperature]) for name in names}


def load_embeddings(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read (image, text), float64 arrays of shapes (n, d) and (m, d), from a NumPy file.

    Either a `.npy` file with an array of shape (2, n, d), images first, or a `.npz` file with arrays
    `image` and `text`. Pickled objects are never loaded. Raises `FlowsimError`, naming the file, when it is
    missing or unreadable, is no such file, or holds something that no metric can take.
    """
    image, text = open_embeddings(path)
    return np.array(image, np.float64), np.array(text, np.float64)


def open_embeddings(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """As `load_embeddings`, but in the dtype of the file, and mapped into memory from a `.npy` file: for `report`."""
    cure = "Save it with np.save(path, np.stack([image, text])) or np.savez(path, image=image, text=text)."
    if not isinstance(path, str | os.PathLike) or not str(path):  # a whole number would be taken for an open file
        raise FlowsimError(f"Expected the path of a .npy or .npz file, but got {shown(path)}. {cure}")
    try:
        with open(path, "rb") as file:
            magic = file.read(6)
            if magic != b"\x93NUMPY" and not magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
                raise FlowsimError(f"{path} is not a NumPy file (.npy or .npz). {cure}")
            file.seek(0)
            if magic.startswith(b"PK"):
                content = np.load(file, allow_pickle=False)
                if not {"image", "text"} <= set(content.files):
                    found = ", ".join(content.files) or "nothing"
                    raise FlowsimError(f"{path} needs arrays `image` and `text`, but holds: {found}. {cure}")
                image, text = content["image"], content["text"]
            else:
                content = np.load(path, mmap_mode="r", allow_pickle=False)
                if content.ndim != 3 or content.shape[0] != 2:
                    raise FlowsimError(f"{path} holds an array of shape {content.shape}, not (2, n, d). {cure}")
                image, text = content
    except FlowsimError:
        raise
    except FileNotFoundError:
        raise FlowsimError(f"{path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise FlowsimError(f"{path} is a directory. Pass a .npy or .npz file.") from None
    except OSError as error:
        raise FlowsimError(f"{path} cannot be read ({error.strerror or error}). Check the file.") from error
    except Exception as error:  # NumPy and zipfile raise many kinds for a file that is damaged or foreign
        if "allow_pickle" in str(error) or "Python objects in dtype" in str(error):
            raise FlowsimError(f"{path} holds pickled Python objects, which are not loaded. {cure}") from error
        raise FlowsimError(f"{path} is damaged or not a NumPy file ({error}). {cure}") from error
    try:
        arrays = {"image": _real_array("image", image), "text": _real_array("text", text)}
        for name, array in arrays.items():
            _check_blocks(name, array)
        _check_shapes(arrays, pairs=False)
    except FlowsimError as error:
        raise FlowsimError(f"{path}: {error}") from error
    return arrays["image"], arrays["text"]
