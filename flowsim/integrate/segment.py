"""One segment of a solve: the compiled call that integrates from one flow time to another or to the first event.

The flow is integrated in s = ln(1 + t), see `simulate`.
"""

import dataclasses
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from flowsim.base.modules import bundle
from flowsim.integrate.methods import norm, solver_of
from flowsim.integrate.observe import observe_state
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.numerics import StopAtCrossings, without_host_checks
from flowsim.observables.observable import Observable

#: ln γ below which γ² has no effect on the rest of the state, with a wide margin.
GONE = -40.0
#: A field below this many times its rounding noise counts as zero.
NOISY = 8.0


@bundle
class Task:
    """The numbers of a segment; changing them never recompiles.

    `pinned` is 0 while ν moves freely and −1/+1 while it is held at its lower/upper bound. `still`: displacement over
    the remaining time that still counts as rest; `rest_after`: no rest is reported before this time; `longest`: the
    longest step in ln(1 + t).
    """

    state: State
    t0: Any
    ts: Any
    snapshot_ts: Any
    horizon: Any
    end: Any
    rtol: Any
    atol: Any
    pinned: Any
    still: Any
    rest_after: Any
    longest: Any


@bundle
class Segment:
    """The output of a segment; `saved` marks the slots that it reached (of `series`, of `snapshots`)."""

    series: dict[str, Any]
    snapshots: Unknowns
    saved: tuple[Any, Any]
    unknowns: Unknowns
    log_time: Any
    events: dict[str, Any]
    finished: Any
    noise: Any
    accepted: Any
    rejected: Any


def _field_in_log_time(s: Any, unknowns: Unknowns, args: tuple[GradientFlow, Task]) -> Unknowns:
    flow, task = args
    state = dataclasses.replace(task.state, unknowns=unknowns)
    velocity = velocity_of(flow, jnp.expm1(s), state, task)
    return jax.tree.map(lambda v: jnp.exp(s) * v, velocity)


@eqx.filter_jit
def _field(flow: GradientFlow, t: Any, state: State, horizon: Any) -> Unknowns:
    # A separate program within that of the segment, so that it is traced once and not at every use by diffrax.
    return flow.vector_field(t, state, horizon)


def velocity_of(flow: GradientFlow, t: Any, state: State, task: Task) -> Unknowns:
    """The vector field, with ν held if it is pinned."""
    velocity = _field(flow, t, state, task.horizon)
    if is_clamped(flow):
        assert velocity.raw_temperature is not None
        held = jnp.where(task.pinned == 0, velocity.raw_temperature, jnp.zeros_like(velocity.raw_temperature))
        velocity = dataclasses.replace(velocity, raw_temperature=held)
    return velocity


def noise_of(flow: GradientFlow, t: Any, state: State, task: Task, velocity: Unknowns) -> Any:
    """Rounding noise of the field: its change when every unknown changes in the last digit.

    If terms cancel, this is eps times their size. If they do not (hard targets, whose residuals are computed without a
    difference), it shrinks with the field.
    """

    def nudged(x: Any) -> Any:
        # Pseudorandom signs: a regular pattern could be a direction in which nothing changes.
        index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape) * jnp.uint32(2654435761)
        eps = jnp.finfo(x.dtype).eps
        return jnp.where((index >> 16) % 2 == 0, x * (1 + eps), x * (1 - eps))

    there = dataclasses.replace(state, unknowns=jax.tree.map(nudged, state.unknowns))
    return largest(jax.tree.map(jnp.subtract, velocity_of(flow, t, there, task), velocity), velocity)


def largest(tree: Any, like: Any) -> Any:
    """Largest absolute entry of all leaves; `like` gives the type if there are none."""
    leaves = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(leaves)) if leaves else jnp.zeros((), jnp.result_type(*jax.tree.leaves(like)))


def tiny(dtype: Any) -> float:
    """Relative distance at which ν counts as being at a bound at the start."""
    return 1e-12 if dtype == np.float64 else 1e-6


def is_clamped(flow: GradientFlow) -> bool:
    """Whether the temperature has a clamp."""
    return flow.schedule.temperature.bounds() is not None


def _crossings(flow: GradientFlow, t: Any, state: State, task: Task) -> dict[str, Any]:
    """Quantities that end the segment when they reach 0."""
    found = flow.exits(state)
    if (bounds := flow.schedule.temperature.bounds()) is not None:
        (low, high), raw = bounds, state.unknowns.raw_temperature
        assert raw is not None
        outward = task.pinned * _field(flow, t, state, task.horizon).raw_temperature
        found["clamp"] = jnp.where(task.pinned == 0, jnp.minimum(raw - low, high - raw), outward)
    return found


def _crossing_values(s: Any, unknowns: Unknowns, args: tuple[GradientFlow, Task]) -> Any:
    """`_crossings` with the signature that `StopAtCrossings` needs."""
    flow, task = args
    return jnp.stack(
        list(_crossings(flow, jnp.expm1(s), dataclasses.replace(task.state, unknowns=unknowns), task).values())
    )


def _rests(s: Any, unknowns: Unknowns, args: tuple[GradientFlow, Task], **_: Any) -> Any:
    """`_is_still` with the signature that diffrax needs."""
    flow, task = args
    return _is_still(flow, jnp.expm1(s), dataclasses.replace(task.state, unknowns=unknowns), task)


def _is_still(flow: GradientFlow, t: Any, state: State, task: Task) -> Any:
    """Whether the flow may be at rest until the last output time; `Trajectory` then examines it more closely.

    Three conditions: the schedule has ended; t1·‖field‖ is below the tolerance or the field is rounding noise; γ, if it
    still moves, falls and no longer affects the rest of the state.
    """
    velocity = velocity_of(flow, t, state, task)
    noise = NOISY * noise_of(flow, t, state, task, velocity)
    t1 = task.ts[-1]
    log_gamma = flow.geometry.log_gamma(state.unknowns.position)
    settled = jnp.asarray(flow.schedule.temperature.autonomous) | (t >= task.horizon)
    if log_gamma is not None:
        rate = velocity.position.log_gamma
        velocity = eqx.tree_at(lambda v: v.position.log_gamma, velocity, None)
        fixed = (jnp.abs(rate) * t1 < task.still) | (jnp.abs(rate) <= noise)
        gone = is_gone(log_gamma, rate) | (state.constants.sign == 0)
        settled = settled & (fixed | (gone & bool(jax.tree.leaves(velocity))))
    size = largest(velocity, state.unknowns)
    return ((size * t1 < task.still) | (size <= noise)) & settled & (t > task.rest_after)


def is_gone(log_gamma: Any, rate: Any) -> Any:
    """Whether γ is too small to affect the rest of the state, and falls."""
    return (log_gamma < GONE) & (rate <= 0)


class SegmentSpec(NamedTuple):
    """What a segment is compiled for.

    `streamed` observables are recorded during the solve, if the states need too much memory. With `watch`, rest is
    checked after every step; without, only at the end, which is cheaper for segments of few steps.
    """

    solver: str
    max_steps: int
    watch: bool
    streamed: tuple[Observable, ...]


def _integrate(flow: GradientFlow, task: Task, how: SegmentSpec) -> Segment:
    """Integrate from `task.t0` to `task.end` or the first event."""
    solver, max_steps, watch, streamed = how
    s0, s1 = jnp.log1p(task.t0), jnp.log1p(task.end)

    def observe(s: Any, unknowns: Unknowns, args: Any) -> dict[str, Any]:
        state = dataclasses.replace(task.state, unknowns=unknowns)
        return observe_state(flow, jnp.expm1(s), state, task.horizon, streamed)

    def clip(ts: Array) -> Array:
        return jnp.clip(jnp.log1p(ts), s0, s1)

    controller: Any = diffrax.PIDController(rtol=task.rtol, atol=task.atol, norm=norm, dtmax=task.longest)
    if not flow.schedule.temperature.autonomous:
        # The schedule has a kink where it ends, and may have others before.
        kinks = [u * task.horizon for u in flow.schedule.temperature.breakpoints()]
        jumps = jnp.log1p(jnp.stack([*kinks, task.horizon]))
        # A jump at the end would add a step of one unit in the last place before the last output time.
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.where(jumps < s1, jumps, jnp.inf))
    crossings = list(_crossings(flow, task.t0, task.state, task))
    if crossings:
        controller = StopAtCrossings(controller, _crossing_values, _field_in_log_time)  # pyright: ignore
    subs = [diffrax.SubSaveAt(ts=clip(task.snapshot_ts)), diffrax.SubSaveAt(t1=True)]
    if streamed:
        subs.append(diffrax.SubSaveAt(ts=clip(task.ts), fn=observe))
    with without_host_checks():
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_field_in_log_time),
            solver_of(solver, task.rtol, task.atol),
            t0=s0,
            t1=s1,
            dt0=None,
            y0=task.state.unknowns,
            args=(flow, task),
            saveat=diffrax.SaveAt(subs=subs),
            stepsize_controller=controller,
            event=diffrax.Event({"steady": _rests}) if watch else None,
            max_steps=max_steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
    assert solution.ts is not None and solution.ys is not None
    log_time = solution.ts[1][-1]
    unknowns = jax.tree.map(lambda x: x[-1], solution.ys[1])
    ended = dataclasses.replace(task.state, unknowns=unknowns)
    finished = solution.result == diffrax.RESULTS.successful
    occurred = solution.result == diffrax.RESULTS.event_occurred
    t = jnp.expm1(log_time)
    if watch:
        assert isinstance(solution.event_mask, dict)
        steady = solution.event_mask["steady"]
    else:
        steady = ~finished & ~occurred & _is_still(flow, t, ended, task)
    values = _crossings(flow, t, ended, task)
    crossed = occurred & ~steady
    # Rounding may keep the value that ended the segment just above zero.
    last = 0.0 if not values else jnp.maximum(jnp.min(jnp.stack(list(values.values()))), 0.0)
    slots = [jnp.isfinite(solution.ts[i]) for i in (0, 2 if streamed else 0)]
    return Segment(
        series=solution.ys[2] if streamed else {},
        snapshots=solution.ys[0],
        saved=(slots[1], slots[0]),
        unknowns=unknowns,
        log_time=log_time,
        events={"steady": steady, **{name: crossed & (values[name] <= last) for name in crossings}},
        finished=finished,
        noise=noise_of(flow, t, ended, task, velocity_of(flow, t, ended, task)),
        accepted=solution.stats["num_accepted_steps"],
        rejected=solution.stats["num_rejected_steps"],
    )


@eqx.filter_jit
def segment(flow: GradientFlow, task: Task, how: SegmentSpec) -> Segment:
    """Integrate from `task.t0` to `task.end` or the first event."""
    return _integrate(flow, task, how)


@eqx.filter_jit
def segments(flows: GradientFlow, tasks: Task, how: SegmentSpec) -> Segment:
    """`segment` for many flows and tasks of the same structure at once, stacked along a first axis."""
    return eqx.filter_vmap(lambda flow, task: _integrate(flow, task, how))(flows, tasks)
