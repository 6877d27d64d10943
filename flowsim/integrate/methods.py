"""The integration methods by name, and the norm in which they measure errors."""

from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array

from flowsim.model.flow import Unknowns
from flowsim.numerics import RungeKuttaChebyshev

Method = Literal["explicit", "implicit", "krylov", "stabilised"]
METHODS = {
    "explicit": "Dopri8",
    "implicit": "Kvaerno5",
    "krylov": "Kvaerno5 (Krylov)",
    "stabilised": "RungeKuttaChebyshev",
}
#: From this relative tolerance on, sweeps use an explicit method of lower order: more steps, but half the cost. For a
#: single run another program is not worth compiling.
LOOSE, LOOSE_METHOD = 1e-7, "Tsit5"
#: Krylov directions of the matrix-free method: with more it is slower, with fewer it fails to converge.
_KRYLOV = 8


def norm(error: Unknowns) -> Array:
    """Largest root mean square over the leaves, so that a scalar ν or ln γ counts as much as all rows."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in jax.tree.leaves(error)]))


def _chord_norm(update: Unknowns) -> Array:
    """`norm`, with updates far below the tolerance counted as zero.

    The chord iteration takes a growing update for divergence. Near a solution limited by rounding the second update
    may be larger than the first although both are negligible.
    """
    size = norm(update)
    return jnp.where(size < 0.1, jnp.zeros_like(size), size)


def solver_of(name: str, rtol: Any, atol: Any) -> diffrax.AbstractAdaptiveSolver:
    """The solver of a name in `METHODS`, or Tsit5."""
    if name == "Dopri8":
        return diffrax.Dopri8()
    if name == "Tsit5":
        return diffrax.Tsit5()
    if name == "Kvaerno5":
        return diffrax.Kvaerno5(root_finder=diffrax.VeryChord(rtol, atol, norm=_chord_norm))
    if name == "Kvaerno5 (Krylov)":
        # Without a matrix a new Jacobian costs one evaluation, so each Newton step can have its own.
        linear = lx.GMRES(rtol=1e-2, atol=1e-14, norm=norm, restart=_KRYLOV, stagnation_iters=_KRYLOV)
        newton = optx.Newton(rtol, atol, norm=_chord_norm, cauchy_termination=False, linear_solver=linear)
        return diffrax.Kvaerno5(root_finder=newton)
    return RungeKuttaChebyshev()
