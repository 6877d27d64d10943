"""Measurements that several claims share; references never use the package's own loss or field."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import softmax

from flowsim.base.arrays import to_device
from flowsim.model.flow import GradientFlow, State
from flowsim.model.initial import Start
from flowsim.records.result import Result


def plain_loss(logits: Float[Array, "n n"]) -> Float[Array, ""]:
    """(1/2n) Σ_i [lse(M_i,:) − M_ii + lse(M_:,i) − M_ii], written as it reads."""
    rows = jax.nn.logsumexp(logits, axis=1)
    columns = jax.nn.logsumexp(logits, axis=0)
    return jnp.mean(rows + columns - 2 * jnp.diagonal(logits)) / 2


def gap_force(z: Float[np.ndarray, "n n"], a: float) -> float:
    """g(a) = −⟨Z, ∇ℓ(aZ)⟩ by SciPy's softmax."""
    n = len(z)
    gradient = (softmax(a * z, axis=1) + softmax(a * z, axis=0)) / (2 * n) - np.eye(n) / n
    return -float(np.sum(z * gradient))


def margin(z: Float[np.ndarray, "n n"]) -> float:
    """min_{i≠j} min(Z_ii − Z_ij, Z_jj − Z_ij)."""
    d = np.diagonal(z)
    return float(np.min((np.minimum(d[:, None], d[None, :]) - z)[~np.eye(len(z), dtype=bool)]))


def gap(image: Float[Array, "n d"], text: Float[Array, "n d"]) -> Float[Array, ""]:
    """Δ = ‖mean of image rows − mean of text rows‖."""
    return jnp.linalg.norm(jnp.mean(image, axis=0) - jnp.mean(text, axis=0))


def placed(flow: GradientFlow, start: Start, seed: int = 0) -> tuple[GradientFlow, State]:
    """Flow and state at a start as JAX arrays."""
    flow = to_device(flow)
    return flow, flow.initial_state(start, seed)


def field(flow: GradientFlow, start: Start) -> Any:
    """dθ/dt and dν/dt at a start."""
    # Not compiled: one evaluation takes less than a compilation.
    flow, state = placed(flow, start)
    return flow.vector_field(0.0, state)


def values(result: Result, name: str) -> np.ndarray:
    """A recorded series."""
    return np.asarray(result.series[name])


def positive(x: Any) -> np.ndarray:
    """`x` with NaN where it is not positive, so that a wrong model's output never stops a closed form."""
    x = np.asarray(x, np.float64)
    return np.where(x > 0, x, np.nan)


def largest(*arrays: Any) -> float:
    """Largest magnitude of all entries; NaN if any is NaN."""
    return float(np.max([np.max(np.abs(np.asarray(a, np.float64))) for a in arrays]))


def relative(measured: Any, wanted: Any) -> float:
    """Largest deviation, relative to the largest entry of `wanted`."""
    wanted = np.asarray(wanted, np.float64)
    return largest(np.asarray(measured, np.float64) - wanted) / largest(wanted)


def slope(x: Any, y: Any) -> float:
    """Least-squares slope of y against x; NaN if an entry is not finite."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    x = x - x.mean()
    return float(np.sum(x * (y - y.mean())) / np.sum(x**2))


def limit(x: Any, y: Any) -> float:
    """Value at x = 0 of the polynomial through the given points."""
    return float(np.linalg.solve(np.vander(np.asarray(x, np.float64)), np.asarray(y, np.float64))[-1])


def slow_limit(log_times: Any, y: Any) -> float:
    """Limit of y = y∞ + a/L + b ln L/L through three points, L = ln t.

    With αβ = L + 2 ln L + O(1), which dβ/dt = rβ²g implies, these are the leading terms of a local exponent.
    """
    x = np.asarray(log_times, np.float64)
    terms = np.column_stack([np.ones_like(x), 1 / x, np.log(x) / x])
    return float(np.linalg.solve(terms, np.asarray(y, np.float64))[0])
