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
from jaxtyping import Array

from flowsim import observables as obs
from flowsim._arrays import bundle, to_numpy
from flowsim.encoders import SMALLEST_OUTPUT, AbstractEncoders
from flowsim.flow import GradientFlow, Moving, State
from flowsim.numerics import RungeKuttaChebyshev, without_host_checks
from flowsim.result import Status
from flowsim.temperature import Identity, Learnable

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

    `pinned` is 0 while the temperature moves freely, −1/+1 while it is held at the lower/upper bound of ν.
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
    steady: Any


@bundle
class Segment:
    """What a segment returns."""

    series: dict[str, Any]
    snapshots: Moving
    moving: Moving
    log_time: Any
    events: dict[str, Any]
    finished: Any
    force: Any
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


@eqx.filter_jit
def _force_scale(flow: GradientFlow, t: Any, state: State, horizon: Any) -> Any:
    return flow.force_scale(t, state, horizon)


def _velocity(flow: GradientFlow, t: Any, state: State, task: Task) -> Moving:
    velocity = _field(flow, t, state, task.horizon)
    if _clamped(flow):
        assert velocity.raw is not None
        held = jnp.where(task.pinned == 0, velocity.raw, jnp.zeros_like(velocity.raw))
        velocity = dataclasses.replace(velocity, raw=held)
    return velocity


def _tiny(dtype: Any) -> float:
    """What counts as nothing where a crossing is located; single precision cannot tell less apart."""
    return 1e-12 if dtype == np.float64 else 1e-6


def _clamped(flow: GradientFlow) -> bool:
    temperature = flow.schedule.temperature
    return isinstance(temperature, Learnable) and temperature.clamp is not None


def _crossings(flow: GradientFlow, t: Any, state: State, task: Task) -> dict[str, Any]:
    """Quantities that are positive until they end the segment; their zeros are located."""
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
        # The slack lets a trajectory start from the bound itself.
        free = jnp.minimum(raw - low, high - raw) + _tiny(raw.dtype) * (1 + jnp.abs(raw))
        outward = task.pinned * _field(flow, t, state, task.horizon).raw
        found["clamp"] = jnp.where(task.pinned == 0, free, outward)
    return found


def _on_state(
    condition: Callable[[GradientFlow, Any, State, Task], Any],
) -> Callable[..., Any]:
    """A condition on states as diffrax wants it."""

    def cond_fn(t: Any, y: Moving, args: tuple[GradientFlow, Task], **_: Any) -> Any:
        flow, task = args
        return condition(flow, jnp.expm1(t), dataclasses.replace(task.state, moving=y), task)

    return cond_fn


def _event(flow: GradientFlow, task: Task, watch: bool, locate: bool) -> diffrax.Event | None:
    """What ends a segment early: at the end of a step, or (`locate`) at the zero of a crossing."""
    names = list(_crossings(flow, task.t0, task.state, task))

    def crossed(name: str) -> Callable[..., Any]:
        return _on_state(lambda f, t, s, k: _crossings(f, t, s, k)[name] <= 0)

    def nearest(flow: GradientFlow, t: Any, state: State, task: Task) -> Any:
        zero = jnp.min(jnp.stack(list(_crossings(flow, t, state, task).values())))
        return jnp.where(_is_steady(flow, t, state, task), -jnp.ones_like(zero), zero)

    if locate:
        tolerance = _tiny(task.ts.dtype)
        return diffrax.Event(_on_state(nearest), optx.Bisection(tolerance, tolerance, flip="detect"))
    conditions = {"steady": _on_state(_is_steady)} if watch else {}
    conditions |= {name: crossed(name) for name in names}
    return diffrax.Event(conditions) if conditions else None


def _cause(flow: GradientFlow, t: Any, state: State, task: Task) -> dict[str, Any]:
    """Which condition ended a located segment, given its last state: rest, or the crossing that is nearest."""
    crossings = _crossings(flow, t, state, task)
    steady = _is_steady(flow, t, state, task)
    nearest = jnp.min(jnp.stack(list(crossings.values()))) if crossings else 0.0
    return {"steady": steady, **{name: ~steady & (value <= nearest) for name, value in crossings.items()}}


def _is_steady(flow: GradientFlow, t: Any, state: State, task: Task) -> Any:
    """Whether nothing changes any more up to the last output time.

    All of: the schedule has ended; t1·‖field‖ < tolerance, or the field is rounding noise of the forces it
    is the difference of; γ, if it still moves, no longer matters to the rest.
    """
    velocity = _velocity(flow, t, state, task)
    dtype = task.ts.dtype
    eps = jnp.finfo(dtype).eps
    t1 = task.ts[-1]
    moving = state.moving
    force = _force_scale(flow, t, state, task.horizon)
    log_gamma = flow.geometry.log_gamma(moving.position)
    settled = jnp.asarray(flow.schedule.temperature.constant) | (t >= task.horizon)
    if log_gamma is not None:
        # ln γ falls for ever at fixed temperature; what must be steady is γ².
        still = jnp.abs(velocity.position.log_gamma) * t1 < task.steady
        velocity = eqx.tree_at(lambda v: v.position.log_gamma, velocity, None)
        gone = (log_gamma < -40) | (state.constants.sign == 0)
        settled = settled & (still | (gone & bool(jax.tree.leaves(velocity))))
    leaves = [jnp.max(jnp.abs(leaf)) for leaf in jax.tree.leaves(velocity)]
    size = jnp.max(jnp.stack(leaves)) if leaves else jnp.zeros((), dtype)
    small = (size * t1 < task.steady) | (size < 64 * eps * force)
    return small & settled & (t > task.t0)


class How(NamedTuple):
    """What a segment is compiled for. `streamed` observables are recorded on the way, for problems whose states
    are too many to keep; `locate` finds the time of a crossing inside a step; `watch` looks for a steady state
    after every step, instead of at the end only (which is cheaper, for segments of few steps)."""

    solver: str
    max_steps: int
    watch: bool
    locate: bool
    streamed: tuple[str, ...]


def _integrate(flow: GradientFlow, task: Task, how: How) -> Segment:
    """Integrate from `task.t0` to `task.end` or the first event."""
    solver, max_steps, watch, locate, streamed = how
    s0, s1 = jnp.log1p(task.t0), jnp.log1p(task.end)

    def observe(s: Any, moving: Moving, args: Any) -> dict[str, Any]:
        state = dataclasses.replace(task.state, moving=moving)
        return _observe(flow, jnp.expm1(s), state, task.horizon, streamed)

    def clip(ts: Array) -> Array:
        return jnp.clip(jnp.log1p(ts), s0, s1)

    controller: Any = diffrax.PIDController(rtol=task.rtol, atol=task.atol, norm=_norm)
    if not flow.schedule.temperature.constant:
        # The schedule has a kink where it ends.
        controller = diffrax.ClipStepSizeController(controller, jump_ts=jnp.log1p(task.horizon)[None])
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
            event=_event(flow, task, watch, locate),
            max_steps=max_steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
    assert solution.ts is not None and solution.ys is not None
    log_time = solution.ts[1][-1]
    moving = jax.tree.map(lambda x: x[-1], solution.ys[1])
    ended = dataclasses.replace(task.state, moving=moving)
    finished = solution.result == diffrax.RESULTS.successful
    events: Any = solution.event_mask
    if locate:
        occurred = solution.result == diffrax.RESULTS.event_occurred
        events = {k: occurred & v for k, v in _cause(flow, jnp.expm1(log_time), ended, task).items()}
    elif not watch:
        steady = ~finished & _is_steady(flow, jnp.expm1(log_time), ended, task)
        events = {"steady": steady} if events is None else {**events, "steady": steady}
    assert isinstance(events, dict)
    return Segment(
        series=solution.ys[2] if streamed else {},
        snapshots=solution.ys[0],
        moving=moving,
        log_time=log_time,
        events=events,
        finished=finished,
        force=_force_scale(flow, jnp.expm1(log_time), ended, task.horizon),
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
    "steady": Status.STEADY,
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
        self._t0 = t0
        self._labels: list[str] = []
        self._method: str = options.method or "explicit"
        self._most_steps, self._explicit_steps = most_steps, 0
        self._stiff = "implicit" if self.unknowns <= DENSE_UNKNOWNS else "stabilised"
        # Observables are computed afterwards where every state is kept: that compiles in half the time.
        self._streamed = options.observables if len(kept) < len(ts) else ()
        self._locate = _clamped(flow)
        self._pinned = _initially_pinned(flow, state, t0, horizon)
        self._force = 0.0
        self._end = t0
        self._redraw = None if flow.redraw is None else float(flow.redraw)
        self._drawn = 0

    @property
    def label(self) -> str:
        """The methods used, in words."""
        return ", then ".join(self._labels)

    def request(self) -> tuple[Task, How] | None:
        """The next segment, or None if there is none (and `status` is set)."""
        if self.status is not None:
            return None
        options, t, last = self.options, self.t, float(self.ts[-1])
        span, noise = last, 0.0
        if self._method != "explicit":
            # Rounding noise of the field in logarithmic time, with a margin for the implicit solves.
            rate = 1e2 * np.finfo(options.dtype).eps * self._force
            span = min(span, max(1.0, _STIFF_SPAN * t), max(_NOISE_LIMIT, options.rtol) / max(rate, 1e-300))
            noise = rate * span
            if span < min(1.01 * t, last):
                self.status = Status.PRECISION
                return None
        if self._redraw is not None:
            interval = round(t / self._redraw, 9)
            if int(interval) != self._drawn:
                self._drawn = int(interval)
                self.state = _redrawn(self.flow, self.state, options.seed, self._drawn)
            span = min(span, (self._drawn + 1) * self._redraw)
        self._end = span
        numbers = (t, self.ts, self.kept, self.horizon, span, max(options.rtol, noise), max(options.atol, noise),
                   float(self._pinned), 1e-3 * options.rtol)  # fmt: skip
        task = Task(self.state, *(np.asarray(x, options.dtype) for x in numbers))
        steps = options.max_steps
        if self._method == "explicit":
            steps = min(self._explicit_budget, self._most_steps or self._explicit_budget)
        brief = self._method == "explicit" and self._most_steps is not None and not self._locate
        return task, How(self._solver, steps, not brief, self._locate, self._streamed)

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
        if not self._locate and occurred - {"steady"}:
            # A crossing ended the step; do the segment again, finding its time.
            self._locate = True
            return
        self._record(out)
        spent = int(out.accepted) + int(out.rejected)
        self._explicit_steps += spent
        finished = bool(out.finished) and not occurred
        begin, self.t = self.t, self._end if finished else float(np.expm1(out.log_time))
        self._force = float(out.force)
        for name, values in out.series.items():
            into = self.series.setdefault(name, np.full(values.shape, np.nan, values.dtype))
            _fill(into, values, self.ts, begin, self.t, begin == self._t0)
        if self.states is None:
            self.states = jax.tree.map(lambda x: np.full_like(x, np.nan), out.snapshots)
        for into, values in zip(jax.tree.leaves(self.states), jax.tree.leaves(out.snapshots), strict=True):
            _fill(into, values, self.kept, begin, self.t, begin == self._t0)
        self.state = dataclasses.replace(self.state, moving=out.moving)
        free = self.options.method is None
        if finished and self._end == self.ts[-1]:
            self.status = Status.COMPLETED
        elif occurred & _ENDINGS.keys():
            self._conclude(next(_ENDINGS[k] for k in _ENDINGS if k in occurred))
        elif not all(np.isfinite(x).all() for x in jax.tree.leaves(out.moving)):
            self.status = Status.NON_FINITE
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

    def _record(self, out: Segment) -> None:
        self.stats["segments"] += 1
        self.stats["steps"] += int(out.accepted)
        self.stats["rejected"] += int(out.rejected)
        label = self._solver
        if not self._labels or self._labels[-1].split(" from ")[0] != label:
            self._labels.append(f"{label} from t = {self.t:.3g}" if self._labels else label)

    def _conclude(self, status: Status) -> None:
        # At rest under these masks or targets is not at rest under the next ones.
        if status is Status.STEADY and self._redraw is not None:
            _hold(self, (self.ts > self.t) & (self.ts <= self._end), (self.kept > self.t) & (self.kept <= self._end))
            self.t = self._end
            self.status = Status.COMPLETED if self.t == self.ts[-1] else None
        elif status is Status.STEADY:
            _hold(self, self.ts > self.t, self.kept > self.t)
            self.status = status
        else:
            self.status = status

    def seen(self) -> Seen | None:
        """The states to observe after the solve; None where observables were streamed, or nothing was reached."""
        if self._streamed or self.states is None:
            return None
        dtype = self.options.dtype
        return Seen(self.ts.astype(dtype), self.states, self.state, np.asarray(self.horizon, dtype))

    def fill(self, observed: dict[str, Any]) -> None:
        """Take in the observables of `seen`."""
        reached = is_filled(self.states)
        self.series = {name: np.where(reached, np.asarray(x), np.nan) for name, x in observed.items()}


@eqx.filter_jit
def _redraw(flow: GradientFlow, state: State, seed: Any, index: Any) -> State:
    return flow.redrawn(state, seed, index)


def _redrawn(flow: GradientFlow, state: State, seed: int, index: int) -> State:
    return to_numpy(_redraw(flow, state, np.uint32(seed), np.uint32(index)))


def _fill(into: np.ndarray, new: np.ndarray, ts: np.ndarray, begin: float, end: float, first: bool) -> None:
    """Copy the output slots that a segment from `begin` to `end` reached."""
    slots = ((ts >= begin) if first else (ts > begin)) & (ts <= end)
    into[slots] = new[slots]


def is_filled(states: Moving) -> np.ndarray:
    """Which slots hold a state."""
    leaves = jax.tree.leaves(states)
    return np.all([np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves], axis=0)


def _hold(chain: Chain, slots: np.ndarray, kept: np.ndarray) -> None:
    """Fill slots after a steady state."""
    flow, state, end = chain.flow, chain.state, chain.t
    rate = 0.0
    if flow.geometry.has_gamma:
        # With everything else at rest ln γ goes on at a constant rate.
        velocity = flow.vector_field(jnp.asarray(end), state, jnp.asarray(chain.horizon))
        rate = float(velocity.position.log_gamma)
    for into, value in zip(jax.tree.leaves(chain.states), jax.tree.leaves(state.moving), strict=True):
        into[kept] = np.asarray(value)
    if flow.geometry.has_gamma:
        chain.states.position.log_gamma[kept] += rate * (chain.kept[kept] - end)
    if not chain.series:
        return
    one = jax.tree.map(lambda x: x[None], state.moving)
    seen = Seen(jnp.asarray([end]), one, state, jnp.asarray(chain.horizon))
    values = to_numpy(observe(flow, seen, chain.options.observables))
    for name, value in values.items():
        chain.series[name][slots] = value[0]
    if "log_gamma" in chain.series:
        chain.series["log_gamma"][slots] += rate * (chain.ts[slots] - end)
    if "gamma" in chain.series:
        sign = np.asarray(state.constants.sign)
        later = values["log_gamma"][0] + rate * (chain.ts[slots] - end)
        chain.series["gamma"][slots] = sign * np.exp(later)


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
