"""Arnoldi's method: a linear map restricted to a small Krylov space."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def arnoldi(
    multiply: Callable[[Array], Array], start: Float[Array, " n"], steps: int
) -> tuple[Float[Array, "m m"], Float[Array, "m n"]]:
    """An orthonormal basis Q of the Krylov space of `start`, and the map A in it, H = Q A Qᵀ.

    The eigenvalues of H approach the outermost ones of A, and Qᵀ e^{Ht} e_1 |start| approaches e^{At} start.

    Args:
        multiply: The product of A with a vector of shape (n,).
        start: The first direction, not zero.
        steps: m, the dimension of the space and the number of products with A.

    Returns:
        H of shape (m, m), and Q of shape (m, n), whose rows are the directions.
    """
    norm = jnp.linalg.norm(start)
    basis = jnp.zeros((steps + 1, start.size), start.dtype).at[0].set(start / jnp.where(norm > 0, norm, 1))
    matrix = jnp.zeros((steps + 1, steps), start.dtype)

    def step(j: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        basis, matrix = carry
        image = multiply(basis[j])
        along = basis @ image
        rest = image - along @ basis
        again = basis @ rest  # once is not enough in floating point
        rest = rest - again @ basis
        norm = jnp.linalg.norm(rest)
        column = (along + again).at[j + 1].set(norm)
        return basis.at[j + 1].set(rest / jnp.where(norm > 0, norm, 1)), matrix.at[:, j].set(column)

    basis, matrix = jax.lax.fori_loop(0, steps, step, (basis, matrix))
    return matrix[:steps], basis[:steps]
