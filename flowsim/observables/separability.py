"""Whether a linear classifier can separate images from texts."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.core import Tracer

from flowsim.errors import FlowsimError
from flowsim.observables.checks import check_seed, check_shapes, check_values


def linear_separability(image: Any, text: Any, seed: int = 0) -> float:
    """Accuracy of a logistic regression that separates images from texts, on held-out rows.

    Each modality is split at random into a training half and a test half, with the same split for equal numbers of
    rows, so that pairs stay together. The fit has an intercept, weights 1/n per modality and a small L2 penalty, with
    which a gap below about 0.01 may count as closed. The accuracy is averaged over the two modalities. Normalisation:
    unit rows. Sample: all rows, unpaired. Range: [0, 1]; 1 for an open gap, 0.5 for a closed one. Source: cf. arXiv
    2405.18570.

    Args:
        image: Image rows, shape (n, d).
        text: Text rows, shape (m, d).
        seed: Seed of the split.

    Returns:
        The accuracy.

    Raises:
        FlowsimError: For invalid rows, see `flowsim.observables`; and inside `jax.jit`.
    """
    if isinstance(image, Tracer) or isinstance(text, Tracer):
        raise FlowsimError("linear_separability fits a classifier and cannot be traced. Call it outside jax.jit.")
    check_seed(seed)
    arrays = {"image": check_values("image", image), "text": check_values("text", text)}
    check_shapes(arrays, pairs=False)
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
