"""What the flow linearised at an apparent rest point will do: what grows, and how far the state will still move."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from flowsim.integrate.segment import NOISY, Task, noise_of, velocity_of
from flowsim.model.flow import GradientFlow
from flowsim.numerics import arnoldi


class Outlook(NamedTuple):
    """What the flow linearised at a state will do.

    `growth`: rate of the fastest growing perturbation, 0 if none grows; `amplitude`: its size now; `ahead`: how far
    the state will move in all other directions until the last output time.
    """

    growth: float
    amplitude: float
    ahead: float


@eqx.filter_jit
def linearised(flow: GradientFlow, task: Task, with_gamma: bool, directions: int) -> dict[str, Any]:
    """The field and its derivative in a few directions, at the state of a task."""
    gamma = lambda unknowns: unknowns.position.log_gamma  # noqa: E731
    unknowns = task.state.unknowns
    kept = unknowns if with_gamma else eqx.tree_at(gamma, unknowns, None)
    flat, unravel = ravel_pytree(kept)

    def field(x: Array) -> tuple[Array, Any]:
        there = unravel(x)
        there = there if with_gamma else eqx.tree_at(gamma, there, gamma(unknowns), is_leaf=lambda leaf: leaf is None)
        velocity = velocity_of(flow, task.t0, dataclasses.replace(task.state, unknowns=there), task)
        if with_gamma:
            return ravel_pytree(velocity)[0], jnp.zeros_like(task.t0)
        return ravel_pytree(eqx.tree_at(gamma, velocity, None))[0], gamma(velocity)

    velocity, rate = field(flat)
    if directions == 0:
        return {"rate": rate, "every": jnp.zeros((0, 0), rate.dtype)}
    multiply = lambda v: jax.jvp(lambda x: field(x)[0], (flat,), (v,))[1]  # noqa: E731
    anywhere = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)
    starts = jnp.stack([velocity, anywhere])
    matrices, bases = jax.vmap(lambda start: arnoldi(multiply, start, directions))(starts)
    noise = noise_of(flow, task.t0, task.state, task, velocity_of(flow, task.t0, task.state, task))
    return {
        "size": jnp.linalg.norm(velocity),
        "rate": rate,
        "noise": noise,
        "along": matrices[0],
        "every": matrices[1],
        "seen": bases[1] @ velocity,
    }


def outlook_of(found: dict[str, Any], remaining: float) -> Outlook:
    """The `Outlook` from the output of `linearised` (NumPy); all zeros if the derivative is not finite."""
    if not found["every"].size or not all(np.isfinite(x).all() for x in found.values()):
        return Outlook(0.0, 0.0, 0.0)
    rates, vectors = np.linalg.eig(found["every"])
    scale = np.abs(rates).max(initial=0.0)
    top = int(np.argmax(rates.real))  # pyright: ignore
    growth = float(rates[top].real)
    amplitude = 0.0
    if growth > 1e-6 * scale and growth * remaining > 1:
        amplitude = abs(np.vdot(vectors[:, top], found["seen"])) / growth
    else:
        growth = 0.0
    # The remaining displacement is ∫ exp(Aτ) v dτ, in the Krylov space of the field v.
    rates, vectors = np.linalg.eig(found["along"])
    parts = found["size"] * np.linalg.lstsq(vectors, np.eye(len(rates))[0], rcond=None)[0]
    falls = rates.real < -1e-10 * scale  # pyright: ignore
    # Without a restoring force, only a drift well above the noise counts.
    drifts = ~falls & (np.abs(parts) > NOISY * found["noise"] * np.sqrt(len(rates)))
    stable = np.where(falls, rates, -1)
    way = np.where(falls, np.expm1(stable * remaining) / stable, np.where(drifts & (growth == 0), remaining, 0))
    return Outlook(growth, amplitude, float(np.linalg.norm(vectors @ (parts * way))))
