"""Checks of kernels."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.conformance.compare import CLOSE, compiled, difference, finite, keeps_dtype
from flowsim.conformance.suite import Suite, require
from flowsim.errors import FlowsimError
from flowsim.model.kernels import AbstractKernel

#: (pairs, dimensions) tried, in this order; kernels of one size fit one of them.
_SIZES = ((4, 3), *((n, d) for n in range(2, 17) for d in range(2, 9) if (n, d) != (4, 3)))


def _size(kernel: AbstractKernel) -> tuple[int, int]:
    """Numbers of pairs and of dimensions that fit the kernel."""
    matrix = getattr(kernel, "matrix", None)
    held = 0 if matrix is None else np.shape(matrix)[-1]
    for pairs, dim in _SIZES:
        if held in (0, pairs, pairs * dim):
            try:
                kernel.check_fits(pairs, dim)
            except FlowsimError:
                continue
            return pairs, dim
    return (held or 4), 3


def _vectors(kernel: AbstractKernel, seed: int) -> Array:
    return jnp.asarray(np.random.default_rng(seed).standard_normal(_size(kernel)))


def _apply(kernel: AbstractKernel, vectors: Any) -> Any:
    return kernel.apply(vectors)


SUITE = Suite("kernel", AbstractKernel, lambda kernel: _apply(kernel, _vectors(kernel, 0)), "`apply`")


@SUITE.check("jit")
def jit(kernel: AbstractKernel) -> str:
    vectors = _vectors(kernel, 0)
    apart = difference(compiled(_apply, kernel, vectors), _apply(kernel, vectors))
    require(apart < 1e-12, f"`apply` must not change when compiled, but differs by {apart:.2g} (relative).")
    return "`apply` gives the same values when compiled."


@SUITE.check("shape", "jit")
def shape(kernel: AbstractKernel) -> str:
    vectors = _vectors(kernel, 0)
    found = compiled(_apply, kernel, vectors)
    require(
        np.shape(found) == vectors.shape,
        f"`apply` must have the shape of the vectors, but has {np.shape(found)} for {vectors.shape}.",
    )
    require(finite(found), "`apply` must be finite, but is not.")
    return "`apply` is finite and has the shape of the vectors."


@SUITE.check("dtype", "shape")
def dtype(kernel: AbstractKernel) -> str:
    return keeps_dtype("`apply`", _apply, kernel, _vectors(kernel, 0))


@SUITE.check("linear", "shape")
def linear(kernel: AbstractKernel) -> str:
    first, second = _vectors(kernel, 0), _vectors(kernel, 1)
    both = compiled(_apply, kernel, first - 2 * second)
    apart = difference(both, compiled(_apply, kernel, first) - 2 * compiled(_apply, kernel, second))
    require(apart < CLOSE, f"`apply` must be linear in the vectors, but is off by {apart:.2g} (relative).")
    return "`apply` is linear."


@SUITE.check("symmetric", "linear")
def symmetric(kernel: AbstractKernel) -> str:
    first, second = _vectors(kernel, 0), _vectors(kernel, 1)
    one = float(np.sum(np.asarray(first) * np.asarray(compiled(_apply, kernel, second))))
    other = float(np.sum(np.asarray(second) * np.asarray(compiled(_apply, kernel, first))))
    apart = abs(one - other) / max(abs(one), abs(other), 1e-300)
    require(
        apart < CLOSE,
        f"`apply` must be symmetric, ⟨U, K V⟩ = ⟨V, K U⟩, but these differ by {apart:.2g} (relative).",
    )
    return "`apply` is symmetric."


@SUITE.check("positive", "linear")
def positive(kernel: AbstractKernel) -> str:
    pairs, dim = _size(kernel)
    size = pairs * dim
    columns = [compiled(_apply, kernel, jnp.reshape(jnp.eye(size)[k], (pairs, dim))) for k in range(size)]
    matrix = np.stack([np.asarray(column).ravel() for column in columns])
    values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    require(values[-1] > 0, "`apply` must move something, but is 0 everywhere.")
    require(
        values[0] > -1e-9 * values[-1],
        f"`apply` must be positive semidefinite, so that the loss falls, but has the eigenvalue {values[0]:.3g} "
        f"(largest {values[-1]:.3g}).",
    )
    return (
        f"`apply` is positive semidefinite: its eigenvalues lie between {max(values[0], 0):.3g} and {values[-1]:.3g}."
    )
