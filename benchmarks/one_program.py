"""Whole ensembles in one compiled program, for processors that a single trajectory cannot fill, such as GPUs.

`fs.sweep` decides in Python how each run goes on: it detects rest, changes the method, and keeps statuses and times.
Here everything is in one program, starts included: many *lanes* integrate side by side, and a lane that has finished
writes its results and begins with the next trajectory. The field is the flow's own; the method is diffrax's Tsit5, with
its interpolation and the step control of flowsim, in the same variable s = ln(1 + t). There is one explicit method
only: for flows that become stiff use `fs.sweep`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.integrate.methods import norm

_TABLEAU = diffrax.Tsit5.tableau
#: Steps between two exchanges of finished lanes. Results are not affected.
_STEPS = 8
_STAGES = len(_TABLEAU.b_sol)
#: Attempted steps after which a trajectory counts as failed.
_MOST_STEPS = 20_000


class Problem(NamedTuple):
    """What to integrate; all functions are of one trajectory and of JAX arrays.

    - `start`: index of the trajectory -> its unknowns and its parameters.
    - `field`: t, unknowns, parameters -> dθ/dt in the form of the unknowns.
    - `linear`: unknowns -> a vector that is linear in them, which is interpolated at the output times.
    - `seen`: this vector -> what is recorded (m,).
    """

    start: Callable[[Any], tuple[Any, Any]]
    field: Callable[[Any, Any, Any], Any]
    linear: Callable[[Any], Any]
    seen: Callable[[Any], Any]


class Ran(NamedTuple):
    """Results of all trajectories.

    - `seen`: (trajectories, output times, m); NaN where a trajectory failed.
    - `accepted`, `tried`: Steps of each trajectory.
    - `rounds`: Steps of all lanes together; each took the time of one step of a full set of lanes.
    """

    seen: Any
    accepted: Any
    tried: Any
    rounds: Any


class _Lanes(NamedTuple):
    index: Any
    s: Any
    h: Any
    unknowns: Any
    velocity: Any
    parameters: Any
    seen: Any
    accepted: Any
    tried: Any


def ensemble(problem: Problem, ts: np.ndarray, most: int, lanes: int, dtype: Any) -> Callable[..., Ran]:
    """The function `(count, rtol, atol) -> Ran` that integrates the trajectories 0, ..., count − 1; for `jax.jit`.

    Args:
        problem: The trajectories.
        ts: Output times, the first of which is 0.
        most: Largest number of trajectories, which fixes the size of the results.
        lanes: Number of trajectories side by side.
        dtype: float32 or float64.
    """
    at = np.log1p(ts).astype(dtype)
    first, last = at[0], at[-1]
    shape = jax.eval_shape(lambda i: problem.seen(problem.linear(problem.start(i)[0])), jnp.int32(0)).shape
    polynomials = _interpolation().astype(dtype)
    # The coefficients of all stages as arrays, rows filled up with zeros.
    rows = np.zeros((_STAGES - 1, _STAGES), dtype)
    for i, row in enumerate(_TABLEAU.a_lower):
        rows[i, : len(row)] = row
    nodes = np.asarray(_TABLEAU.c, dtype)
    rows, nodes = jnp.asarray(rows), jnp.asarray(nodes)

    @jax.jit  # traced once
    def moving(s: Any, unknowns: Any, parameters: Any) -> Any:
        velocity = problem.field(jnp.expm1(s), unknowns, parameters)
        return jax.tree.map(lambda v: jnp.exp(s) * v, velocity)

    def attempt(lane: _Lanes, rtol: Any, atol: Any) -> _Lanes:
        """One step of one lane; a finished one takes a step of length 0."""
        left = last - lane.s
        ends = lane.h >= left
        h = jnp.minimum(lane.h, left)
        zeros = jax.tree.map(lambda x: jnp.zeros((_STAGES, *x.shape), x.dtype).at[0].set(x), lane.velocity)

        def stage(i: Any, carry: Any) -> Any:
            slopes, _ = carry
            moved = jax.tree.map(jnp.add, lane.unknowns, _combined(h, rows[i], slopes))
            slope = moving(lane.s + nodes[i] * h, moved, lane.parameters)
            return jax.tree.map(lambda ks, k: ks.at[i + 1].set(k), slopes, slope), moved

        # A loop, so that the program has the field once and not for every stage.
        slopes, moved = jax.lax.fori_loop(0, _STAGES - 1, stage, (zeros, lane.unknowns))
        scale = jax.tree.map(lambda a, b: atol + rtol * jnp.maximum(jnp.abs(a), jnp.abs(b)), lane.unknowns, moved)
        error = norm(jax.tree.map(lambda e, w: e / w, _combined(h, _TABLEAU.b_error.astype(dtype), slopes), scale))
        good = error < 1  # not for NaN
        factor = jnp.where(jnp.isfinite(error), jnp.clip(0.9 * jnp.maximum(error, 1e-10) ** -0.2, 0.2, 10.0), 0.2)
        factor = jnp.where(good, factor, jnp.minimum(factor, 1.0))
        new = jnp.where(ends, last, lane.s + h)
        # Outputs within the step, (T,), from what is linear in the unknowns.
        inside = good & (at > lane.s) & (at <= new)
        part = jnp.clip((at - lane.s) / jnp.where(h > 0, h, 1), 0, 1)
        weights = functools.reduce(lambda value, c: value * part + c, polynomials.T[::-1, :, None])  # (7, T)
        slope = jax.vmap(problem.linear)(slopes)
        moves = functools.reduce(jnp.add, [weights[j][:, None] * slope[j][None] for j in range(_STAGES)])
        between = problem.linear(lane.unknowns)[None] + h * moves
        active = left > 0

        def kept(a: Any, b: Any) -> Any:
            return jax.tree.map(lambda x, y: jnp.where(good, x, y), a, b)

        return lane._replace(
            s=jnp.where(good, new, lane.s),
            h=h * factor,
            unknowns=kept(moved, lane.unknowns),
            velocity=kept(jax.tree.map(lambda ks: ks[-1], slopes), lane.velocity),
            seen=jnp.where(inside[:, None], jax.vmap(problem.seen)(between), lane.seen),
            accepted=lane.accepted + (good & active),
            tried=lane.tried + active,
        )

    def begun(index: Any, rtol: Any, atol: Any) -> _Lanes:
        unknowns, parameters = problem.start(index)
        velocity = moving(first, unknowns, parameters)
        # The first step of Hairer, Nørsett and Wanner.
        scale = jax.tree.map(lambda x: atol + rtol * jnp.abs(x), unknowns)
        sizes = [norm(jax.tree.map(lambda x, w: x / w, tree, scale)) for tree in (unknowns, velocity)]
        h = jnp.minimum(0.01 * sizes[0] / jnp.maximum(sizes[1], 1e-6 * sizes[0]), 0.1)
        seen = jnp.full((len(ts), *shape), jnp.nan, dtype).at[0].set(problem.seen(problem.linear(unknowns)))
        none = jnp.zeros((), jnp.int32)
        return _Lanes(index, jnp.asarray(first), h, unknowns, velocity, parameters, seen, none, none)

    def program(count: Any, rtol: Any, atol: Any) -> Ran:
        rtol, atol = jnp.asarray(rtol, dtype), jnp.asarray(atol, dtype)
        none = jnp.full(lanes, most, jnp.int32)  # the index of a lane without a trajectory
        # Zeros, since the compiler would evaluate real starts, which are constants, by itself and slowly.
        shapes = jax.eval_shape(jax.vmap(lambda i: begun(i, rtol, atol)), none)
        now = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        now = now._replace(index=none, s=jnp.broadcast_to(last, (lanes,)))
        ran = Ran(
            jnp.full((most, len(ts), *shape), jnp.nan, dtype),
            jnp.zeros(most, jnp.int32),
            jnp.zeros(most, jnp.int32),
            jnp.int32(0),
        )

        def exchanged(now: _Lanes, ran: Ran, begun_with: Any) -> tuple[_Lanes, Ran, Any]:
            done = (now.s >= last) | (now.tried >= _MOST_STEPS)
            at_index = jnp.where(done, now.index, most)
            failed = (now.s < last)[:, None, None]
            seen = ran.seen.at[at_index].set(jnp.where(failed, jnp.nan, now.seen), mode="drop")
            accepted = ran.accepted.at[at_index].set(now.accepted, mode="drop")
            tried = ran.tried.at[at_index].set(now.tried, mode="drop")
            place = begun_with + jnp.cumsum(done.astype(jnp.int32)) - 1
            index = jnp.where(done, jnp.where(place < count, place, most), now.index)
            new = jax.vmap(lambda i: begun(i, rtol, atol))(index)
            # A lane for which nothing is left stays at the end.
            new = new._replace(s=jnp.where(index < most, new.s, last))

            def choose(a: Any, b: Any) -> Any:
                return jnp.where(done.reshape(-1, *[1] * (a.ndim - 1)), a, b)

            now = jax.tree.map(choose, new, now)
            begun_with = jnp.minimum(begun_with + jnp.sum(done, dtype=jnp.int32), count)
            return now, ran._replace(seen=seen, accepted=accepted, tried=tried), begun_with

        def round_(carry: Any) -> Any:
            now, ran, begun_with = exchanged(*carry)
            step = jax.vmap(lambda lane: attempt(lane, rtol, atol))
            now = jax.lax.fori_loop(0, _STEPS, lambda _, x: step(x), now)
            return now, ran._replace(rounds=ran.rounds + _STEPS), begun_with

        def goes_on(carry: Any) -> Any:
            now, _, begun_with = carry
            return (begun_with < count) | jnp.any(now.index < most)

        return jax.lax.while_loop(goes_on, round_, (now, ran, jnp.int32(0)))[1]

    return program


def _combined(h: Any, row: Any, slopes: Any) -> Any:
    """h Σ_j row_j k_j, for slopes that are stacked along the first axis."""
    return jax.tree.map(lambda ks: h * functools.reduce(jnp.add, [row[j] * ks[j] for j in range(_STAGES)]), slopes)


@functools.cache
def _interpolation() -> np.ndarray:
    """Coefficients (7, 5) of the polynomials in θ that weight the seven stages at a fraction θ of a step."""
    theta = np.linspace(0, 1, 5)
    with jax.enable_x64(True):
        inner = diffrax.Tsit5.interpolation_cls(t0=0.0, t1=1.0, y0=jnp.zeros(7), y1=jnp.zeros(7), k=jnp.eye(7))
        values = np.asarray(jax.jit(jax.vmap(inner.evaluate))(theta))
    return np.linalg.solve(theta[:, None] ** np.arange(5), values).T
