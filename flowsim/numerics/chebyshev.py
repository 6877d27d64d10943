"""A stabilised explicit Runge-Kutta-Chebyshev method of order two, as a diffrax solver.

For stiff problems whose Jacobian has (nearly) real negative eigenvalues, such as gradient flows close to an
equilibrium. With s stages it is stable up to hρ ≈ 0.65 s² (step h, spectral radius ρ), so its cost grows only with
the square root of the stiffness. It needs only evaluations of the field: memory and time per stage are those of an
explicit method, for any number of unknowns.

Source: Sommeijer, Shampine and Verwer, J. Comput. Appl. Math. 88 (1997) 315-326.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import (
    RESULTS,
    AbstractAdaptiveSolver,
    ODETerm,
    ThirdOrderHermitePolynomialInterpolation,
)
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

_DAMPING = 2 / 13
_SAFETY = 1.2
#: Up to this many unknowns the linearised field is stored, which may take n×n numbers.
_KEPT = 50_000


class RungeKuttaChebyshev(AbstractAdaptiveSolver):
    """The Runge-Kutta-Chebyshev method of order two, with the number of stages chosen at every step.

    The spectral radius of the Jacobian is tracked by the power method on Jacobian-vector products, which starts from
    the vector of the last step.

    Args:
        max_evaluations: Most evaluations of the field. A solve that needs more ends with
            `RESULTS.max_steps_reached`.
        power_iterations: Steps of the power method per step of the solver.
    """

    max_evaluations: int = eqx.field(static=True, default=5_000_000)
    power_iterations: int = eqx.field(static=True, default=2)

    term_structure: ClassVar[Any] = ODETerm
    interpolation_cls: ClassVar[Callable[..., Any]] = ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms: Any) -> int:
        return 2

    def error_order(self, terms: Any) -> int:
        return 3

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> tuple[Array, Array]:
        # A fixed pseudo-random vector: a smooth one may have no component along the stiffest direction.
        flat, _ = ravel_pytree(y0)
        vector = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
        return _dominant(terms, t0, y0, args, vector, iterations=20)[1], jnp.zeros((), flat.dtype)

    def step(
        self,
        terms: Any,
        t0: Any,
        t1: Any,
        y0: Any,
        args: Any,
        solver_state: tuple[Array, Array],
        made_jump: Any,
    ) -> tuple[Any, Any, dict[str, Any], tuple[Array, Array], RESULTS]:
        del made_jump
        h = t1 - t0
        vector, work = solver_state
        # In logarithmic time the Jacobian grows along the step: take it at the end.
        radius, vector = _dominant(terms, t1, y0, args, vector, self.power_iterations)
        stages = jnp.maximum(jnp.ceil(1 + jnp.sqrt(1 + 1.54 * h * _SAFETY * radius)), 2)
        affordable = work + stages <= self.max_evaluations
        stages = jnp.where(affordable, stages, 2)

        flat0, unravel = ravel_pytree(y0)

        def field(t: Any, y: Array) -> Array:
            return ravel_pytree(terms.vf(t, unravel(y), args))[0]

        f0 = field(t0, flat0)
        flat1 = _stages(field, t0, h, flat0, f0, stages.astype(int))
        f1 = field(t1, flat1)
        error = 0.8 * (flat0 - flat1) + 0.4 * h * (f0 + f1)
        y1 = unravel(flat1)
        k = jax.tree.map(lambda a, b: jnp.stack([a, b]), unravel(h * f0), unravel(h * f1))
        result = RESULTS.where(affordable, RESULTS.successful, RESULTS.max_steps_reached)
        return y1, unravel(error), dict(y0=y0, y1=y1, k=k), (vector, work + stages), result

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)


def _dominant(
    terms: Any, t: Any, y: Any, args: Any, vector: Float[Array, " m"], iterations: int
) -> tuple[Float[Array, ""], Float[Array, " m"]]:
    """Spectral radius and dominant vector of the Jacobian at (t, y), by the power method."""
    flat, unravel = ravel_pytree(y)
    field = lambda z: ravel_pytree(terms.vf(t, unravel(z), args))[0]  # noqa: E731
    if flat.size <= _KEPT:
        jacobian = jax.linearize(field, flat)[1]
    else:
        jacobian = lambda v: jax.jvp(field, (flat,), (v,))[1]  # noqa: E731
    tiny = jnp.finfo(flat.dtype).tiny

    def iterate(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        image = jacobian(carry[1])
        norm = jnp.linalg.norm(image)
        return norm, jnp.where(norm > tiny, image / jnp.maximum(norm, tiny), carry[1])

    unit = vector / jnp.linalg.norm(vector)
    return jax.lax.fori_loop(0, iterations, iterate, (jnp.zeros((), flat.dtype), unit))


def _stages(
    field: Callable[[Any, Array], Array],
    t0: Any,
    h: Any,
    y0: Float[Array, " m"],
    f0: Float[Array, " m"],
    stages: Array,
) -> Float[Array, " m"]:
    """The recursion over stages, which carries the Chebyshev polynomials T_j and two derivatives at w0."""
    dtype = y0.dtype
    s = stages.astype(dtype)
    offset = _DAMPING / s**2
    w0 = 1 + offset
    # T_s'/T_s'' in closed form, w0 = cosh θ.
    root = jnp.sqrt(offset * (2 + offset))
    theta = jnp.arcsinh(root)
    t_s = jnp.cosh(s * theta)
    dt_s = s * jnp.sinh(s * theta) / root
    w1 = dt_s / ((s**2 * t_s - w0 * dt_s) / root**2)

    one = jnp.ones((), dtype)
    b2 = 1 / (4 * w0**2)
    # (T, T', T'') of degrees 1 and 0.
    last, before = (w0, one, 0 * one), (one, 0 * one, 0 * one)
    y1 = y0 + b2 * w1 * h * f0
    carry0 = (jnp.asarray(2), y1, y0, last, before, b2, b2, w1 / (4 * w0**2))

    def body(carry: Any) -> Any:
        j, y_last, y_before, last, before, b_last, b_before, c_last = carry
        new = (
            2 * w0 * last[0] - before[0],
            2 * last[0] + 2 * w0 * last[1] - before[1],
            4 * last[1] + 2 * w0 * last[2] - before[2],
        )
        b = new[2] / new[1] ** 2
        a_last = 1 - b_last * last[0]
        mu, nu = 2 * b * w0 / b_last, -b / b_before
        mu_t = 2 * b * w1 / b_last
        f = field(t0 + c_last * h, y_last)
        y = (1 - mu - nu) * y0 + mu * y_last + nu * y_before + mu_t * h * (f - a_last * f0)
        return j + 1, y, y_last, new, last, b, b_last, w1 * new[2] / new[1]

    return jax.lax.while_loop(lambda c: c[0] <= stages, body, carry0)[1]
