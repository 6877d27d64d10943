"""A solve as a chain of *segments*: what one compiled call does, and how one call leads to the next.

A segment integrates from one flow time to another in s = ln(1 + t), or to the first event. `Chain` is the state
machine around it: it says which segment comes next (`request`) and takes in what came out (`absorb`). Segments
end at a switch of method, at a clamp of the temperature, at a redraw of masks or targets, or with the run.
`simulate` drives one chain; `sweep` drives many, with their segments batched into one call.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array

from flowsim import observables as obs
from flowsim.base.arrays import bundle, to_device, to_numpy
from flowsim.model.encoders import SMALLEST_OUTPUT, AbstractEncoders
from flowsim.model.flow import GradientFlow, Moving, State
from flowsim.model.temperature import Identity, Learnable
from flowsim.numerics import RungeKuttaChebyshev, StopAtCrossings, arnoldi, without_host_checks
from flowsim.records.result import Status

#: Steps of the explicit method before a problem counts as stiff.
EXPLICIT_BUDGET = 2000
#: Up to this many unknowns the stiff method is implicit with a dense Jacobian.
DENSE_UNKNOWNS = 200
Method = Literal["explicit", "implicit", "krylov", "stabilised"]
METHODS = {
    "explicit": "Dopri8",
    "implicit": "Kvaerno5",
    "krylov": "Kvaerno5 (Krylov)",
    "stabilised": "RungeKuttaChebyshev",
}
#: At this relative tolerance and looser ones the explicit method of sweeps is of lower order: more steps at half the
#: price. A single run costs so little that it is not worth another program.
LOOSE, LOOSE_METHOD = 1e-7, "Tsit5"
#: Where the stabilised method runs out of evaluations, the implicit takes over: dense up to this many unknowns.
_DENSE_LAST_RESORT = 2500
#: Directions that the matrix-free method keeps; with more it is slower, with fewer it cannot solve.
_KRYLOV = 8
#: A stiff segment spans this factor of time; its tolerance never asks for less than rounding noise.
_STIFF_SPAN = 30.0
#: Where rounding noise would exceed this in the state, the solve ends.
_NOISE_LIMIT = 1e-4
#: ln γ below which γ² is nothing to the rest of the state, with room to spare.
_GONE = -40.0
#: A field of this many times its rounding noise is not told from nothing.
_NOISY = 8.0
#: Directions in which the linearised flow is looked at, and numbers that may be kept for them.
_DIRECTIONS, _MOST_NUMBERS = 60, 2**22
#: A perturbation of this many machine epsilons is one, and not rounding.
_PERTURBED = 64.0
#: A growing perturbation is hidden from the error control below this size.
_SEEN = 1e-6


# --- observables of a state ---------------------------------------------------------------------------


#: name -> f(flow, t, state, β, horizon); None where the flow has no such quantity.
STATE_OBSERVABLES: dict[str, Callable[[GradientFlow, Any, State, Any, Any], Any]] = {
    "temperature": lambda f, t, s, b, h: 1 / b,
    "inverse_temperature": lambda f, t, s, b, h: b,
    "raw": lambda f, t, s, b, h: s.moving.raw,
    "bias": lambda f, t, s, b, h: s.moving.bias,
    "gamma": lambda f, t, s, b, h: _gamma(f, s),
    "log_gamma": lambda f, t, s, b, h: _log_gamma(f, s),
    "loss": lambda f, t, s, b, h: f.loss_value(t, s, h),
    "margin": lambda f, t, s, b, h: obs.margin_of_products(*f.rows(s)) if f.is_tiled(s)
    else obs.margin_of_similarity(_pair_similarity(f, s)),
    "matched_fraction": lambda f, t, s, b, h: obs.matched_fraction_of_products(*f.rows(s)) if f.is_tiled(s)
    else obs.matched_fraction_of_similarity(_pair_similarity(f, s)),
    "doubly_stochastic_defect": lambda f, t, s, b, h: obs.doubly_stochastic_defect_of_products(*f.rows(s), 1 / b)
    if f.is_tiled(s) else obs.doubly_stochastic_defect_of_logits(
        b * f.geometry.similarity(s.moving.position, s.constants)
    ),
}  # fmt: skip


def _log_gamma(flow: GradientFlow, state: State) -> Array | None:
    log_gamma = flow.geometry.log_gamma(state.moving.position)
    return None if log_gamma is None else jnp.where(state.constants.sign == 0, -jnp.inf, log_gamma)


def _gamma(flow: GradientFlow, state: State) -> Array | None:
    log_gamma = flow.geometry.log_gamma(state.moving.position)
    return None if log_gamma is None else state.constants.sign * jnp.exp(log_gamma)


def _pair_similarity(flow: GradientFlow, state: State) -> Array:
    return jnp.asarray(flow.geometry.pair_similarity(state.moving.position, state.constants))


def _observe(flow: GradientFlow, t: Any, state: State, horizon: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Named scalars of a state; quantities that this flow does not have are left out."""
    beta = flow.inverse_temperature(t, state, horizon)
    values: dict[str, Any] = {}
    for name in names:
        if name in STATE_OBSERVABLES:
            value = STATE_OBSERVABLES[name](flow, t, state, beta, horizon)
        else:
            rows = flow.geometry.rows(state.moving.position, state.constants)
            if rows is None:
                value = jnp.full_like(beta, jnp.nan)
            else:
                item = obs.REGISTRY[name]
                value = item.function(*rows, 1 / beta) if item.needs_temperature else item.function(*rows)
        if value is not None:
            values[name] = value
    return values


# --- one segment --------------------------------------------------------------------------------------


@bundle
class Task:
    """The numbers of a segment; changing them never recompiles.

    `pinned` is 0 while the temperature moves freely, −1/+1 while it is held at the lower/upper bound of ν. `still`:
    what may move in all of the time that is left and counts as rest; `rest_after`: no rest is reported before this
    time; `longest`: the longest step in ln(1 + t).
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
    """What a segment returns; `saved` says which slots it reached (of `series`, of `snapshots`)."""

    series: dict[str, Any]
    snapshots: Moving
    saved: tuple[Any, Any]
    moving: Moving
    log_time: Any
    events: dict[str, Any]
    finished: Any
    noise: Any
    accepted: Any
    rejected: Any


def _norm(error: Moving) -> Array:
    """Largest root mean square over the leaves: a scalar ν or ln γ counts as much as all rows."""
    return jnp.max(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in jax.tree.leaves(error)]))


def _chord_norm(update: Moving) -> Array:
    """`_norm`, with updates far below the tolerance counted as zero.

    The chord iteration reads a growing update as divergence. Near a rounding-limited solution the second
    update may well be larger than the first, and both be negligible.
    """
    size = _norm(update)
    return jnp.where(size < 0.1, jnp.zeros_like(size), size)


def _solver(name: str, task: Task) -> diffrax.AbstractAdaptiveSolver:
    if name == "Dopri8":
        return diffrax.Dopri8()
    if name == "Tsit5":
        return diffrax.Tsit5()
    if name == "Kvaerno5":
        return diffrax.Kvaerno5(root_finder=diffrax.VeryChord(task.rtol, task.atol, norm=_chord_norm))
    if name == "Kvaerno5 (Krylov)":
        # Without a matrix a new Jacobian costs one evaluation, so that each Newton step may have its own.
        linear = lx.GMRES(rtol=1e-2, atol=1e-14, norm=_norm, restart=_KRYLOV, stagnation_iters=_KRYLOV)
        newton = optx.Newton(task.rtol, task.atol, norm=_chord_norm, cauchy_termination=False, linear_solver=linear)
        return diffrax.Kvaerno5(root_finder=newton)
    return RungeKuttaChebyshev()


def _field_in_log_time(s: Any, moving: Moving, args: tuple[GradientFlow, Task]) -> Moving:
    flow, task = args
    state = dataclasses.replace(task.state, moving=moving)
    velocity = _velocity(flow, jnp.expm1(s), state, task)
    return jax.tree.map(lambda v: jnp.exp(s) * v, velocity)


@eqx.filter_jit
def _field(flow: GradientFlow, t: Any, state: State, horizon: Any) -> Moving:
    # A program of its own within a segment's, so that it is traced once and not wherever diffrax asks for it.
    return flow.vector_field(t, state, horizon)


def _velocity(flow: GradientFlow, t: Any, state: State, task: Task) -> Moving:
    velocity = _field(flow, t, state, task.horizon)
    if _clamped(flow):
        assert velocity.raw is not None
        held = jnp.where(task.pinned == 0, velocity.raw, jnp.zeros_like(velocity.raw))
        velocity = dataclasses.replace(velocity, raw=held)
    return velocity


def _noise(flow: GradientFlow, t: Any, state: State, task: Task, velocity: Moving) -> Any:
    """Rounding noise of the field: how much it changes when every unknown changes in its last digit.

    Where terms cancel this is eps times their size, whatever they are; where they do not (hard targets, whose
    residuals are computed without a difference) it shrinks with the field.
    """

    def nudged(x: Any) -> Any:
        # Signs that look random: a pattern of the rows could be a direction in which nothing changes.
        index = jnp.arange(x.size, dtype=jnp.uint32).reshape(x.shape) * jnp.uint32(2654435761)
        eps = jnp.finfo(x.dtype).eps
        return jnp.where((index >> 16) % 2 == 0, x * (1 + eps), x * (1 - eps))

    there = dataclasses.replace(state, moving=jax.tree.map(nudged, state.moving))
    return _largest(jax.tree.map(jnp.subtract, _velocity(flow, t, there, task), velocity), velocity)


def _largest(tree: Any, like: Any) -> Any:
    """Largest entry of all leaves; `like` gives the type where there are none."""
    leaves = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(tree)]
    return jnp.max(jnp.stack(leaves)) if leaves else jnp.zeros((), jnp.result_type(*jax.tree.leaves(like)))


def _tiny(dtype: Any) -> float:
    """What counts as nothing where the temperature starts at a bound."""
    return 1e-12 if dtype == np.float64 else 1e-6


def _clamped(flow: GradientFlow) -> bool:
    temperature = flow.schedule.temperature
    return isinstance(temperature, Learnable) and temperature.clamp is not None


def _crossings(flow: GradientFlow, t: Any, state: State, task: Task) -> dict[str, Any]:
    """Quantities that are positive until they end the segment."""
    found: dict[str, Any] = {}
    log_gamma = flow.geometry.log_gamma(state.moving.position)
    if log_gamma is not None:
        found["gamma_one"] = jnp.where(state.constants.sign == 0, jnp.ones_like(log_gamma), -log_gamma)
    if isinstance(flow.geometry, AbstractEncoders):
        shortest = flow.geometry.smallest_output(state.moving.position, state.constants)
        found["output_zero"] = shortest - SMALLEST_OUTPUT
    temperature = flow.schedule.temperature
    raw = state.moving.raw
    if isinstance(temperature, Learnable) and isinstance(temperature.parametrization, Identity):
        found["temperature_infinite"] = raw
    if isinstance(temperature, Learnable) and temperature.clamp is not None:
        assert raw is not None
        low, high = temperature.raw_bounds()
        outward = task.pinned * _field(flow, t, state, task.horizon).raw
        found["clamp"] = jnp.where(task.pinned == 0, jnp.minimum(raw - low, high - raw), outward)
    return found


def _crossing_values(s: Any, moving: Moving, args: tuple[GradientFlow, Task]) -> Any:
    """`_crossings` as `StopAtCrossings` wants them."""
    flow, task = args
    return jnp.stack(
        list(_crossings(flow, jnp.expm1(s), dataclasses.replace(task.state, moving=moving), task).values())
    )


def _rests(s: Any, moving: Moving, args: tuple[GradientFlow, Task], **_: Any) -> Any:
    """`_is_still` as diffrax wants it."""
    flow, task = args
    return _is_still(flow, jnp.expm1(s), dataclasses.replace(task.state, moving=moving), task)


def _is_still(flow: GradientFlow, t: Any, state: State, task: Task) -> Any:
    """Whether the flow may be at rest up to the last output time; `Chain` looks closer.

    All of: the schedule has ended; t1·‖field‖ is below the tolerance, or the field is its own rounding noise; γ, if it
    still moves, falls and no longer matters to the rest.
    """
    velocity = _velocity(flow, t, state, task)
    noise = _NOISY * _noise(flow, t, state, task, velocity)
    t1 = task.ts[-1]
    log_gamma = flow.geometry.log_gamma(state.moving.position)
    settled = jnp.asarray(flow.schedule.temperature.constant) | (t >= task.horizon)
    if log_gamma is not None:
        rate = velocity.position.log_gamma
        velocity = eqx.tree_at(lambda v: v.position.log_gamma, velocity, None)
        fixed = (jnp.abs(rate) * t1 < task.still) | (jnp.abs(rate) <= noise)
        gone = _is_gone(log_gamma, rate) | (state.constants.sign == 0)
        settled = settled & (fixed | (gone & bool(jax.tree.leaves(velocity))))
    size = _largest(velocity, state.moving)
    return ((size * t1 < task.still) | (size <= noise)) & settled & (t > task.rest_after)


def _is_gone(log_gamma: Any, rate: Any) -> Any:
    """Whether γ is too small to matter to the rest, and falls."""
    return (log_gamma < _GONE) & (rate <= 0)


class How(NamedTuple):
    """What a segment is compiled for. `streamed` observables are recorded on the way, for problems whose states
    are too many to keep; `watch` looks for rest after every step, instead of at the end only (which is cheaper, for
    segments of few steps)."""

    solver: str
    max_steps: int
    watch: bool
    streamed: tuple[str, ...]


def _integrate(flow: GradientFlow, task: Task, how: How) -> Segment:
    """Integrate from `task.t0` to `task.end` or the first event."""
    solver, max_steps, watch, streamed = how
    s0, s1 = jnp.log1p(task.t0), jnp.log1p(task.end)

    def observe(s: Any, moving: Moving, args: Any) -> dict[str, Any]:
        state = dataclasses.replace(task.state, moving=moving)
        return _observe(flow, jnp.expm1(s), state, task.horizon, streamed)

    def clip(ts: Array) -> Array:
        return jnp.clip(jnp.log1p(ts), s0, s1)

    controller: Any = diffrax.PIDController(rtol=task.rtol, atol=task.atol, norm=_norm, dtmax=task.longest)
    if not flow.schedule.temperature.constant:
        # The schedule has a kink where it ends.
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.log1p(task.horizon)[None])
    crossings = list(_crossings(flow, task.t0, task.state, task))
    if crossings:
        controller = StopAtCrossings(controller, _crossing_values, _field_in_log_time)  # pyright: ignore
    subs = [diffrax.SubSaveAt(ts=clip(task.snapshot_ts)), diffrax.SubSaveAt(t1=True)]
    if streamed:
        subs.append(diffrax.SubSaveAt(ts=clip(task.ts), fn=observe))
    with without_host_checks():
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(_field_in_log_time),
            _solver(solver, task),
            t0=s0,
            t1=s1,
            dt0=None,
            y0=task.state.moving,
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
    moving = jax.tree.map(lambda x: x[-1], solution.ys[1])
    ended = dataclasses.replace(task.state, moving=moving)
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
    slots = [jnp.isfinite(solution.ts[i]) for i in (0, 2 if streamed else 0)]
    return Segment(
        series=solution.ys[2] if streamed else {},
        snapshots=solution.ys[0],
        saved=(slots[1], slots[0]),
        moving=moving,
        log_time=log_time,
        events={"steady": steady, **{name: crossed & (values[name] <= 0) for name in crossings}},
        finished=finished,
        noise=_noise(flow, t, ended, task, _velocity(flow, t, ended, task)),
        accepted=solution.stats["num_accepted_steps"],
        rejected=solution.stats["num_rejected_steps"],
    )


@eqx.filter_jit
def segment(flow: GradientFlow, task: Task, how: How) -> Segment:
    """Integrate from `task.t0` to `task.end` or the first event."""
    return _integrate(flow, task, how)


@eqx.filter_jit
def segments(flows: GradientFlow, tasks: Task, how: How) -> Segment:
    """`segment` for many flows and tasks of the same structure at once, stacked along a first axis."""
    return eqx.filter_vmap(lambda flow, task: _integrate(flow, task, how))(flows, tasks)


def _observe_states(flow: GradientFlow, seen: "Seen", names: tuple[str, ...]) -> dict[str, Any]:
    def one(item: tuple[Any, Moving]) -> dict[str, Any]:
        state = dataclasses.replace(seen.state, moving=item[1])
        return _observe(flow, item[0], state, seen.horizon, names)

    return jax.lax.map(one, (seen.ts, seen.moving))


@eqx.filter_jit
def observe(flow: GradientFlow, seen: "Seen", names: tuple[str, ...]) -> dict[str, Any]:
    """Observables of a sequence of states, stacked along time."""
    return _observe_states(flow, seen, names)


@eqx.filter_jit
def observe_many(flows: GradientFlow, seen: "Seen", names: tuple[str, ...]) -> dict[str, Any]:
    """`observe` for many flows of the same structure at once."""
    return eqx.filter_vmap(lambda flow, one: _observe_states(flow, one, names))(flows, seen)


@bundle
class Seen:
    """States to observe: `moving` along `ts`; everything else as in `state`."""

    ts: Any
    moving: Moving
    state: State
    horizon: Any


# --- what lies ahead of a state that seems at rest ----------------------------------------------------


class Outlook(NamedTuple):
    """What the flow, linearised at a state, will do.

    `growth`: rate of the fastest growing perturbation, 0 if none grows; `amplitude`: its size now; `ahead`: how far
    the state has to go in all other directions until the last output time.
    """

    growth: float
    amplitude: float
    ahead: float


@eqx.filter_jit
def _linearised(flow: GradientFlow, task: Task, with_gamma: bool, directions: int) -> dict[str, Any]:
    """The field and its derivative in a few directions, at the state of a task."""
    gamma = lambda moving: moving.position.log_gamma  # noqa: E731
    moving = task.state.moving
    kept = moving if with_gamma else eqx.tree_at(gamma, moving, None)
    flat, unravel = ravel_pytree(kept)

    def field(x: Array) -> tuple[Array, Any]:
        there = unravel(x)
        there = there if with_gamma else eqx.tree_at(gamma, there, gamma(moving), is_leaf=lambda leaf: leaf is None)
        velocity = _velocity(flow, task.t0, dataclasses.replace(task.state, moving=there), task)
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
    noise = _noise(flow, task.t0, task.state, task, _velocity(flow, task.t0, task.state, task))
    return {
        "size": jnp.linalg.norm(velocity), "rate": rate, "noise": noise,
        "along": matrices[0], "every": matrices[1], "seen": bases[1] @ velocity,
    }  # fmt: skip


def _outlook(found: dict[str, Any], remaining: float) -> Outlook:
    """The `Outlook` for a time from what `_linearised` found (NumPy); nothing where the derivative is not finite."""
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
    # The rest of the way is ∫ exp(Aτ) v dτ, in the Krylov space of the field v.
    rates, vectors = np.linalg.eig(found["along"])
    parts = found["size"] * np.linalg.lstsq(vectors, np.eye(len(rates))[0], rcond=None)[0]
    falls = rates.real < -1e-10 * scale  # pyright: ignore
    # Where nothing pulls back or pushes, what looks like noise is none.
    drifts = ~falls & (np.abs(parts) > _NOISY * found["noise"] * np.sqrt(len(rates)))
    stable = np.where(falls, rates, -1)
    way = np.where(falls, np.expm1(stable * remaining) / stable, np.where(drifts & (growth == 0), remaining, 0))
    return Outlook(growth, amplitude, float(np.linalg.norm(vectors @ (parts * way))))


# --- the chain of segments ----------------------------------------------------------------------------


class Options(NamedTuple):
    """What a user chose for a solve; see `simulate`."""

    rtol: float
    atol: float
    method: Method | None
    max_steps: int
    observables: tuple[str, ...]
    dtype: np.dtype[Any]
    seed: int


_ENDINGS = {
    "gamma_one": Status.GAMMA_ONE,
    "temperature_infinite": Status.TEMPERATURE_INFINITE,
    "output_zero": Status.OUTPUT_ZERO,
}


class Chain:
    """One solve on its way: `request` the next segment, run it, `absorb` what came out, until `status` is set.

    `most_steps`: steps of the explicit method after which a segment ends in any case, so that runs that are solved
    side by side wait for each other no longer than that.
    """

    def __init__(
        self, flow: GradientFlow, state: State, t0: float, ts: np.ndarray, kept: np.ndarray, horizon: float,
        options: Options, most_steps: int | None = None,
    ) -> None:  # fmt: skip
        self.flow: GradientFlow = flow
        self.state: State = state
        self.options: Options = options
        self.ts: np.ndarray = ts
        self.kept: np.ndarray = kept
        self.t: float = t0
        self.horizon: float = horizon
        self.status: Status | None = None
        self.series: dict[str, np.ndarray] = {}
        self.states: Any = None
        self.unknowns: int = sum(x.size for x in jax.tree.leaves(state.moving))
        self.stats: dict[str, float] = {"steps": 0, "rejected": 0, "segments": 0, "unknowns": self.unknowns}
        self._labels: list[str] = []
        self._method: str = options.method or "explicit"
        self._most_steps, self._explicit_steps = most_steps, 0
        self._stiff = "implicit" if self.unknowns <= DENSE_UNKNOWNS else "stabilised"
        # Observables are computed afterwards where every state is kept: that compiles in half the time.
        self._streamed = options.observables if len(kept) < len(ts) else ()
        self._seen, self._kept = np.zeros(len(ts), bool), np.zeros(len(kept), bool)
        self._pinned = _initially_pinned(flow, state, t0, horizon)
        self._noise = 0.0
        self._end = t0
        self._rest_after, self._growth = t0, 0.0
        self._redraw = None if flow.redraw is None else float(flow.redraw)
        self._drawn = 0

    @property
    def label(self) -> str:
        """The methods used, in words."""
        return ", then ".join(self._labels)

    def request(self) -> tuple[Task, How] | None:
        """The next segment, or None if there is none (and `status` is set)."""
        while self.status is None and (found := self._next()) is None:
            pass  # a rest was held to the next redraw
        return None if self.status is not None else found  # pyright: ignore

    def _next(self) -> tuple[Task, How] | None:
        options, t, last = self.options, self.t, float(self.ts[-1])
        span, noise, longest = last, 0.0, np.inf
        if self._redraw is not None:
            interval = round(t / self._redraw, 9)
            if int(interval) != self._drawn:
                self._drawn = int(interval)
                self.state = _redrawn(self.flow, self.state, options.seed, self._drawn)
            span = min(span, (self._drawn + 1) * self._redraw)
        if self._method != "explicit":
            # With a margin for the implicit solves.
            rate = 10 * self._noise
            wanted, span = span, min(span, max(1.0, _STIFF_SPAN * t))
            span = min(span, max(_NOISE_LIMIT, options.rtol) / max(rate, 1e-300))
            if span < min(1.01 * t, last):
                self._end = wanted
                self._settle(Status.PRECISION)
                return None
            noise = rate * span
            growth = self._hidden_growth(span)
            if growth > 0:
                # An implicit method would step over what grows from below the tolerance, and damp it.
                span = min(span, t + 10 / growth)
                longest = 0.25 / (growth * (1 + span))
        self._end = span
        task = self._task(span, max(options.rtol, noise), max(options.atol, noise), longest)
        steps = options.max_steps
        if self._method == "explicit":
            steps = min(self._explicit_budget, self._most_steps or self._explicit_budget)
        brief = self._method == "explicit" and self._most_steps is not None
        return task, How(self._solver, steps, not brief, self._streamed)

    def _task(self, span: float, rtol: float, atol: float, longest: float = np.inf) -> Task:
        numbers = (self.t, self.ts, self.kept, self.horizon, span, rtol, atol, float(self._pinned),
                   1e-3 * self.options.rtol, self._rest_after, longest)  # fmt: skip
        return Task(self.state, *(np.asarray(x, self.options.dtype) for x in numbers))

    @property
    def _solver(self) -> str:
        loose = self._method == "explicit" and self._most_steps is not None and self.options.rtol >= LOOSE
        return LOOSE_METHOD if loose else METHODS[self._method]

    @property
    def _explicit_budget(self) -> int:
        return EXPLICIT_BUDGET if self.options.method is None else self.options.max_steps

    def absorb(self, out: Segment) -> None:
        """Take in what the requested segment returned (NumPy leaves)."""
        occurred = {k for k, v in out.events.items() if bool(v)}
        self._record(out)
        spent = int(out.accepted) + int(out.rejected)
        self._explicit_steps += spent
        finished = bool(out.finished) and not occurred
        self.t = self._end if finished else float(np.expm1(out.log_time))
        self._noise = float(out.noise)
        self._take(out)
        self.state = dataclasses.replace(self.state, moving=out.moving)
        free = self.options.method is None
        if finished and self._end == self.ts[-1]:
            self.status = Status.COMPLETED
        elif occurred & _ENDINGS.keys():
            self.status = next(_ENDINGS[k] for k in _ENDINGS if k in occurred)
        elif not all(np.isfinite(x).all() for x in jax.tree.leaves(out.moving)):
            self.status = Status.NON_FINITE
        elif "steady" in occurred:
            self._settle(None)
        elif "clamp" in occurred:
            self.state, self._pinned = _toggle(self.flow, self.state, self._pinned)
        elif finished:
            self._explicit_steps = 0
        elif self._method == "explicit" and spent > 0 and self._explicit_steps < self._explicit_budget:
            pass  # made room for others
        elif free and self._method == "explicit":
            self._method = self._stiff
        elif free and self._method == "stabilised":
            self._method = "implicit" if self.unknowns <= _DENSE_LAST_RESORT else "krylov"
        else:
            self.status = Status.MAX_STEPS

    def _take(self, out: Segment) -> None:
        """Copy the output slots that a segment reached."""
        seen, kept = (
            ~done & np.asarray(saved) & (times <= self._end)
            for done, saved, times in zip((self._seen, self._kept), out.saved, (self.ts, self.kept), strict=True)
        )
        for name, values in out.series.items():
            self.series.setdefault(name, np.full(values.shape, np.nan, values.dtype))[seen] = values[seen]
        if self.states is None:
            self.states = jax.tree.map(lambda x: np.full_like(x, np.nan), out.snapshots)
        for into, values in zip(jax.tree.leaves(self.states), jax.tree.leaves(out.snapshots), strict=True):
            into[kept] = values[kept]
        self._seen |= seen
        self._kept |= kept

    def _record(self, out: Segment) -> None:
        self.stats["segments"] += 1
        self.stats["steps"] += int(out.accepted)
        self.stats["rejected"] += int(out.rejected)
        label = self._solver
        if not self._labels or self._labels[-1].split(" from ")[0] != label:
            self._labels.append(f"{label} from t = {self.t:.3g}" if self._labels else label)

    def _hidden_growth(self, span: float) -> float:
        """Rate of a perturbation that grows, but is too small for the error control to see; else 0."""
        outlook, _ = self._look_ahead(span - self.t)
        hidden = _PERTURBED * np.finfo(self.options.dtype).eps < outlook.amplitude < _SEEN
        return outlook.growth if hidden else 0.0

    def _look_ahead(self, remaining: float) -> tuple[Outlook, float]:
        """The outlook at the present state, and d ln γ/dt where γ goes its own way (0 elsewhere)."""
        task, with_gamma = self._task(self._end, 1.0, 1.0), True
        log_gamma = self.flow.geometry.log_gamma(self.state.moving.position)
        if log_gamma is not None:
            with_gamma = bool((self.state.constants.sign != 0) & (log_gamma > _GONE))
        unknowns = self.unknowns - (not with_gamma)
        directions = min(unknowns, _DIRECTIONS, _MOST_NUMBERS // max(unknowns, 1))
        # In double precision also where the run is in single: what is asked for is the distance from rest.
        with jax.enable_x64(True):
            flow, task = to_device((self.flow, task), np.float64)
            found = to_numpy(_linearised(flow, task, with_gamma, directions))
        return _outlook(found, remaining), float(found["rate"])

    def _settle(self, otherwise: Status | None) -> None:
        """At what seems a rest: hold it, or go on. `otherwise`: the status where it is none; None to go on."""
        remaining = self._end - self.t if self._redraw is not None else float(self.ts[-1]) - self.t
        outlook, rate = self._look_ahead(remaining)
        options, eps = self.options, np.finfo(self.options.dtype).eps
        sign = float(getattr(self.state.constants, "sign", 1.0))
        # A height of exactly 0 stays, but the smallest other one would grow.
        growth, amplitude = max((outlook.growth, outlook.amplitude), (rate if sign == 0 else 0.0, 0.0))
        matters = growth * remaining + np.log(max(amplitude, eps)) > np.log(options.rtol)
        if matters and amplitude > _PERTURBED * eps:
            self._go_on(otherwise, self.t + 5 / growth)
        elif outlook.ahead > 10 * options.rtol or (sign != 0 and rate * remaining > options.rtol):
            self._go_on(otherwise, 1 + 2 * self.t)
        else:
            self._hold(Status.SADDLE if matters else Status.STEADY, growth, 0.0 if sign == 0 else rate)

    def _go_on(self, otherwise: Status | None, rest_after: float) -> None:
        self.status = otherwise
        self._rest_after = rest_after

    def _hold(self, status: Status, growth: float, rate: float) -> None:
        """Fill the slots after a rest; at rest under these masks or targets is not at rest under the next ones."""
        begin, end = self.t, self._end if self._redraw is not None else float(self.ts[-1])
        slots, kept = ~self._seen & (self.ts <= end), ~self._kept & (self.kept <= end)
        for into, value in zip(jax.tree.leaves(self.states), jax.tree.leaves(self.state.moving), strict=True):
            into[kept] = np.asarray(value)
        if self._streamed:
            one = jax.tree.map(lambda x: np.asarray(x)[None], self.state.moving)
            at = np.asarray([begin], self.options.dtype), np.asarray(self.horizon, self.options.dtype)
            seen = to_device(Seen(at[0], one, self.state, at[1]), self.options.dtype)
            for name, value in to_numpy(observe(self.flow, seen, self._streamed)).items():
                self.series[name][slots] = value[0]
        if abs(rate) * (end - begin) > self.options.rtol:
            # With everything else at rest, ln γ falls at a constant rate. That is no rest, but all there is to solve.
            status = Status.COMPLETED
            self.states.position.log_gamma[kept] += rate * (self.kept[kept] - begin)
            if "log_gamma" in self.series:
                self.series["log_gamma"][slots] += rate * (self.ts[slots] - begin)
            if "gamma" in self.series:
                self.series["gamma"][slots] *= np.exp(rate * (self.ts[slots] - begin))
            position = self.state.moving.position
            fallen = dataclasses.replace(position, log_gamma=np.asarray(position.log_gamma + rate * (end - begin)))
            moving = dataclasses.replace(self.state.moving, position=fallen)
            self.state = dataclasses.replace(self.state, moving=moving)
        self._seen |= slots
        self._kept |= kept
        if status is Status.SADDLE:
            self.stats["growth_rate"] = growth
        if self._redraw is None:
            self.status = status
            self.t = end if status is Status.COMPLETED else begin
        else:
            self.t = self._rest_after = end
            self.status = Status.COMPLETED if end == self.ts[-1] else None

    def seen(self) -> Seen | None:
        """The states to observe after the solve; None where observables were streamed, or nothing was reached."""
        if self._streamed or self.states is None:
            return None
        dtype = self.options.dtype
        return Seen(self.ts.astype(dtype), self.states, self.state, np.asarray(self.horizon, dtype))

    def fill(self, observed: dict[str, Any]) -> None:
        """Take in the observables of `seen`."""
        self.series = {name: np.where(self.reached, np.asarray(x), np.nan) for name, x in observed.items()}

    @property
    def reached(self) -> np.ndarray:
        """Which output times hold a value."""
        return self._seen if self._streamed else self._kept & is_filled(self.states)


def final_status(status: Status | None, reached: np.ndarray) -> Status:
    """The status of a finished run: one that says that all output times hold values is checked."""
    assert status is not None
    return Status.INCOMPLETE if status.covered and not reached.all() else status


@eqx.filter_jit
def _redraw(flow: GradientFlow, state: State, seed: Any, index: Any) -> State:
    return flow.redrawn(state, seed, index)


def _redrawn(flow: GradientFlow, state: State, seed: int, index: int) -> State:
    return to_numpy(_redraw(flow, state, np.uint32(seed), np.uint32(index)))


def is_filled(states: Moving) -> np.ndarray:
    """Which slots hold a state."""
    leaves = jax.tree.leaves(states)
    return np.all([np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves], axis=0)


def _initially_pinned(flow: GradientFlow, state: State, t0: float, horizon: float) -> int:
    if not _clamped(flow):
        return 0
    low, high = (float(b) for b in flow.schedule.temperature.raw_bounds())  # pyright: ignore
    raw = float(state.moving.raw)  # pyright: ignore[reportArgumentType]
    velocity = float(flow.vector_field(t0, state, horizon).raw)  # pyright: ignore[reportArgumentType]
    tiny = _tiny(state.moving.raw.dtype) * (1 + abs(raw))  # pyright: ignore[reportOptionalMemberAccess]
    return int(raw >= high - tiny and velocity > 0) - int(raw <= low + tiny and velocity < 0)


def _toggle(flow: GradientFlow, state: State, pinned: int) -> tuple[State, int]:
    """Reaching a bound pins ν exactly there; an inward velocity sets it free again."""
    if pinned:
        return state, 0
    low, high = flow.schedule.temperature.raw_bounds()  # pyright: ignore[reportAttributeAccessIssue]
    raw = state.moving.raw
    assert raw is not None
    upper = bool(abs(high - raw) < abs(raw - low))
    bound = jnp.asarray(high if upper else low, raw.dtype)
    return eqx.tree_at(lambda s: s.moving.raw, state, bound), 1 if upper else -1
