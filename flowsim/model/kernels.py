"""Kernels: how a force on one row moves the other rows of its modality.

An encoder with weights θ moves all its outputs together: the gradient flow of the weights moves row i by
Σ_j J_i J_jᵀ F_j, where J_i = ∂x_i/∂θ and F_j = −∂L/∂x_j is the force on row j. Here K stands for J Jᵀ and is constant
in time; the flow of free rows has K = 1. For rows on the sphere

    dX/dt = Π_X K_X Π_X F_X,   dY/dt = Π_Y K_Y Π_Y F_Y

with the row-wise tangent projections Π (`fs.Sphere(image_kernel=..., text_kernel=...)`). The kernel of a network at its
initial weights is the neural tangent kernel (Jacot, Gabriel and Hongler 2018).
"""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowsim.base.arrays import Numeric, number
from flowsim.base.checks import check, check_number, host_array, is_concrete, is_real, shown
from flowsim.base.modules import Described
from flowsim.errors import FlowsimError

#: Largest asymmetry, and largest negative eigenvalue, of a kernel relative to its largest entry or eigenvalue.
_ROUNDING = 1e-9


class AbstractKernel(Described):
    """A kernel of the rows of one modality: a symmetric positive semidefinite map of forces to velocities."""

    @abc.abstractmethod
    def apply(self, vectors: Float[Numeric, "n d"]) -> Float[Numeric, "n d"]:
        """K V.

        Args:
            vectors: One vector for each row, (n, d).

        Returns:
            The vectors that move the rows, (n, d).
        """

    def check_fits(self, pairs: int, dim: int) -> None:
        """Refuse rows of another size than the kernel's.

        Args:
            pairs: n, the number of rows.
            dim: d, their dimension.

        Raises:
            FlowsimError: If the kernel is of another size.
        """
        return


def _square(value: Any) -> Any:
    """A matrix as a numeric leaf, NumPy float64 unless it already is a JAX array."""
    if isinstance(value, jax.core.Tracer) or type(value) is object:  # pyright: ignore
        return value
    found = host_array(value)
    if found is None or not is_real(found):
        raise FlowsimError(f"Expected a matrix of numbers, but got {shown(value)}. Use a NumPy array (n, n).")
    return value if isinstance(value, jax.Array) else found.astype(np.float64)


def _check_matrix(matrix: Any) -> None:
    """Refuse what is no symmetric positive semidefinite matrix; traced values and those of many runs pass."""
    if isinstance(matrix, jax.core.Tracer) or type(matrix) is object or np.ndim(matrix) > 2:  # pyright: ignore
        return
    known = np.asarray(matrix, np.float64)
    check(
        known.ndim == 2 and known.shape[0] == known.shape[1] and known.size > 0,
        f"Argument `matrix` must be square, but has the shape {known.shape}. Give K (n, n).",
    )
    check(np.isfinite(known).all(), "Argument `matrix` must be finite, but is not. Leave out rows without a kernel.")
    scale = np.abs(known).max()
    check(scale > 0, "Argument `matrix` is 0, so that nothing would move. Give a positive kernel.")
    apart = float(np.abs(known - known.T).max() / scale)
    check(
        apart < _ROUNDING,
        f"Argument `matrix` must be symmetric, but differs from its transpose by {apart:.2g} (relative). Use "
        "(K + K.T)/2.",
    )
    values = np.linalg.eigvalsh(known)
    check(
        values[0] > -_ROUNDING * values[-1],
        f"Argument `matrix` must be positive semidefinite, but has the eigenvalue {values[0]:.3g} (largest "
        f"{values[-1]:.3g}). A kernel is J @ J.T; leave out negative eigenvalues.",
    )


class Shared(AbstractKernel):
    """K = own·I + shared·11ᵀ: a force on a row moves it by `own`, and all rows, itself too, by `shared`.

    The mean of the rows moves at the rate own + n·shared, and differences at the rate own. It costs O(nd). Encoders
    have large shared parts: for a small open_clip ViT at its initial weights the mean of 64 rows moves 40 to 80 times
    faster than their differences.

    Args:
        own: Rate of differences, at least 0. 1 is that of free rows.
        shared: Rate that all rows have in common, at least 0.

    Raises:
        FlowsimError: If a rate is negative, or both are 0.
    """

    own: Any = eqx.field(converter=number, default=1.0)
    shared: Any = eqx.field(converter=number, default=0.0)

    def __check_init__(self) -> None:
        check_number("own", self.own, minimum=0.0, cure="Use e.g. 1.0.")
        check_number("shared", self.shared, minimum=0.0, cure="Use e.g. 0.1.")
        rates = [x for x in (self.own, self.shared) if is_concrete(x)]
        if len(rates) == 2:
            check(
                float(rates[0]) + float(rates[1]) > 0, "A kernel of 0 moves nothing. Give a positive `own` or `shared`."
            )

    def apply(self, vectors: Float[Numeric, "n d"]) -> Float[Numeric, "n d"]:
        return self.own * jnp.asarray(vectors) + self.shared * jnp.sum(vectors, axis=0, keepdims=True)


class Dense(AbstractKernel):
    """K (n, n), the same for all d components: row i moves by Σ_j K_ij F_j.

    The sample kernel of an encoder is K_ij = tr(J_i J_jᵀ)/d. For linear encoders x_i = W a_i, K = A Aᵀ is exact.

    Args:
        matrix: K (n, n), symmetric and positive semidefinite.

    Raises:
        FlowsimError: If it is not.
    """

    matrix: Float[Numeric, "n n"] = eqx.field(converter=_square)

    def __check_init__(self) -> None:
        _check_matrix(self.matrix)

    def apply(self, vectors: Float[Numeric, "n d"]) -> Float[Numeric, "n d"]:
        return jnp.asarray(self.matrix) @ vectors

    def check_fits(self, pairs: int, dim: int) -> None:
        held = np.shape(self.matrix)[-1]
        check(held == pairs, f"The kernel is of {held} rows, but the start has {pairs} pairs. Give K of all pairs.")


class Blocks(AbstractKernel):
    """K (n·d, n·d), a matrix J_i J_jᵀ for every two rows: the whole kernel of an encoder, for small problems.

    Entry (i·d + a, j·d + b) says how a force on component b of row j moves component a of row i.

    Args:
        matrix: K (n·d, n·d), symmetric and positive semidefinite.

    Raises:
        FlowsimError: If it is not.
    """

    matrix: Float[Numeric, "nd nd"] = eqx.field(converter=_square)

    def __check_init__(self) -> None:
        _check_matrix(self.matrix)

    def apply(self, vectors: Float[Numeric, "n d"]) -> Float[Numeric, "n d"]:
        return (jnp.asarray(self.matrix) @ vectors.ravel()).reshape(vectors.shape)

    def check_fits(self, pairs: int, dim: int) -> None:
        held = np.shape(self.matrix)[-1]
        check(
            held == pairs * dim,
            f"The kernel is of {held} numbers, but the start has {pairs} pairs of {dim} dimensions. Give K of "
            f"({pairs * dim}, {pairs * dim}).",
        )


def check_kernel(name: str, kernel: Any, kinds: type | tuple[type, ...] = AbstractKernel) -> None:
    """Refuse an argument that is neither a kernel of these kinds nor None.

    Args:
        name: Name of the argument.
        kernel: Its value.
        kinds: Classes that are allowed.

    Raises:
        FlowsimError: If it is something else.
    """
    if kernel is None or isinstance(kernel, kinds):
        return
    if isinstance(kernel, AbstractKernel):
        raise FlowsimError(
            f"Argument `{name}` cannot be {type(kernel).__name__}: it does not keep the cones parallel. Use "
            "fs.kernels.Shared(own, shared), or the geometry `Sphere`."
        )
    raise FlowsimError(
        f"Argument `{name}` must be a kernel, but is {shown(kernel)}. Use e.g. fs.kernels.Shared(1.0, 0.1)."
    )


def no_kernels(what: str, cure: str) -> FlowsimError:
    """The error for something that is not linear in gradients, which kernels of rows cannot describe.

    Args:
        what: What it is, e.g. "rule AdamLimit".
        cure: What to use instead.
    """
    return FlowsimError(
        f"The {what} has no kernels, because it acts on the weights of an encoder, not on its rows. Use {cure} with "
        "the kernel of the preconditioned weights, J D J.T."
    )
