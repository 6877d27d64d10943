"""`simulate`: integrate a gradient flow with diffrax, in logarithmic time, with the right method.

The flow is integrated in s = ln(1 + t): curvature decays like 1/t, so that an explicit method crosses
thirty decades in a few hundred steps. Flows with a true equilibrium become stiff in s; they are noticed
(the explicit method exhausts its budget) and continued with an implicit method for few unknowns and with a
stabilised explicit one (Runge-Kutta-Chebyshev) for many. A solve is a chain of *segments*, each one compiled
call; segments end at a switch of method, at a clamp of the temperature, or with the run.
"""

import dataclasses
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array
from numpy.typing import ArrayLike

from flowsim import observables as obs
from flowsim import theory
from flowsim._arrays import check, check_number, to_device, to_numpy
from flowsim.config import to_config
from flowsim.errors import FlowsimError, unknown_name
from flowsim.flow import GradientFlow, Moving, State, as_start
from flowsim.initial import AbstractRecipe, Start
from flowsim.numerics import RungeKuttaChebyshev, store_programs, without_host_checks
from flowsim.result import Outcome, Result, SimulationStopped, Status, load_result
from flowsim.temperature import Identity, Learnable
from flowsim.times import output_times

DEFAULT_OBSERVABLES = (
    "modality_gap",
    "temperature",
    "inverse_temperature",
    "raw",
    "gamma",
    "log_gamma",
    "loss",
    "margin",
    "matched_fraction",
    "doubly_stochastic_defect",
)

#: Steps of the explicit method before a problem counts as stiff.
EXPLICIT_BUDGET = 2000
#: Up to this many unknowns the stiff method is implicit with a dense Jacobian.
DENSE_UNKNOWNS = 200
#: Snapshots are stored at every output time while they fit into this many bytes.
_SNAPSHOT_BYTES = 64 * 2**20

Method = Literal["explicit", "implicit", "stabilised"]
_METHODS = {"explicit": "Dopri8", "implicit": "Kvaerno5", "stabilised": "RungeKuttaChebyshev"}
#: Where the stabilised method runs out of evaluations, up to this many unknowns are handed to the implicit.
_DENSE_LAST_RESORT = 2500
#: A stiff segment spans this factor of time; its tolerance never asks for less than rounding noise.
_STIFF_SPAN = 30.0
#: Where rounding noise would exceed this in the state, the solve ends.
_NOISE_LIMIT = 1e-4


def simulate(
    flow: GradientFlow,
    start: Start | AbstractRecipe | Result,
    t1: float | None = None,
    ts: ArrayLike | None = None,
    *,
    seed: int = 0,
    horizon: float | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    method: Method | None = None,
    max_steps: int = 200_000,
    snapshots: ArrayLike | None = None,
    observables: Sequence[str] = DEFAULT_OBSERVABLES,
    precision: Literal["float64", "float32"] = "float64",
    throw: bool = True,
) -> Result:
    """Integrate dθ/dt = −∂L/∂θ, dν/dt = −r ∂L/∂ν from `start` and record observables.

    - `start`: a `Start`, a recipe (drawn with `seed`), or a `Result`, which is continued on its own clock.
    - `t1`, `ts`: last flow time, or all output times (increasing; returned exactly as given). Default: 0
      and log-spaced points up to `t1`.
    - `seed`: of the recipe's draw, noisy targets and swap masks.
    - `horizon`: schedules run in progress u = t/`horizon`; default: the last output time.
    - `rtol`, `atol`: tolerances of the step controller, on unit rows, ln γ and ν.
    - `method`: "explicit" (Dopri8), "implicit" (Kvaerno5, dense), "stabilised" (Runge-Kutta-Chebyshev);
      default: explicit, then a stiff one if needed. The result says which.
    - `snapshots`: times among the outputs at which embeddings are stored; default all, if they fit.
    - `observables`: names recorded at every output time; see `fs.observables.names()`.
    - `precision`: "float32" is for speed on short horizons; it is refused beyond t1 = 1e6.
    - `throw`: raise `SimulationStopped` unless every output time was covered; else return the part before.

    64-bit mode is entered here and left again; results are NumPy. Raises `FlowsimError` for bad input.
    """
    wall = time.perf_counter()
    _check_options(flow, rtol, atol, method, max_steps, seed, precision, observables)
    start_, t0, raw, seed, horizon = _resume(flow, start, seed, horizon)
    ts_ = output_times(t1, ts, t0)
    horizon_ = float(ts_[-1]) if horizon is None else float(horizon)
    check_number("horizon", horizon_, positive=True, cure="Use the flow time at which the schedule ends.")
    if precision == "float32":
        check(ts_[-1] <= 1e6, "`precision='float32'` cannot hold horizons beyond t1 = 1e6. Use 'float64'.")
        rtol, atol = max(rtol, 1e-5), max(atol, 1e-7)
    dtype = np.dtype(precision)

    store_programs()
    with jax.enable_x64(precision == "float64"), _CompileTimer() as timer:
        flow_ = to_device(flow, dtype)
        state = flow_.initial_state(start_, seed, dtype)
        if raw is not None:
            state = eqx.tree_at(lambda s: s.moving.raw, state, jnp.asarray(raw, dtype))
        kept = _snapshot_times(ts_, snapshots, state)
        run = _chain(flow_, state, t0, ts_, kept, horizon_, rtol, atol, method, max_steps, tuple(observables), dtype)
    options = {
        "seed": seed, "horizon": horizon_, "rtol": rtol, "atol": atol, "precision": precision,
        "method": method, "t0": t0, "observables": list(observables),
    }  # fmt: skip
    start_config = to_config(start) if isinstance(start, AbstractRecipe) else {"kind": type(start).__name__}
    result = _assemble(flow, run, ts_, kept, options, start_config)
    total = time.perf_counter() - wall
    result.stats.update(compile_seconds=timer.seconds, run_seconds=max(total - timer.seconds, 0.0), wall_seconds=total)
    if throw and not result.status.ok:
        raise SimulationStopped(result)
    return result


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result written by `Result.save`; `at(t)` works on it as before."""
    return dataclasses.replace(load_result(path), resolve=_resolve)


# --- checks and grids ---------------------------------------------------------------------------------


def _check_options(
    flow: Any, rtol: float, atol: float, method: str | None, max_steps: int, seed: int, precision: str,
    observables: Sequence[str],
) -> None:  # fmt: skip
    check(
        isinstance(flow, GradientFlow),
        f"Expected a GradientFlow, but got {type(flow).__name__}. Use fs.GradientFlow.from_preset('Baseline').",
    )
    check_number("rtol", rtol, positive=True, cure="Use e.g. 1e-9.")
    check_number("atol", atol, positive=True, cure="Use e.g. 1e-12.")
    check(rtol < 1, f"Argument `rtol` must be below 1, but is {rtol:g}. Use e.g. 1e-9.")
    check(max_steps >= 1, f"Argument `max_steps` must be at least 1, but is {max_steps}. Use e.g. 200000.")
    check(
        isinstance(seed, (int, np.integer)) and seed >= 0,
        f"Argument `seed` must be a whole number of at least 0, but is {seed!r}. Use e.g. 0.",
    )
    if method is not None and method not in _METHODS:
        raise unknown_name("method", method, _METHODS)
    if precision not in ("float64", "float32"):
        raise unknown_name("precision", precision, ("float64", "float32"))
    known = [*_STATE_OBSERVABLES, *(name for name, item in obs.REGISTRY.items() if item.traceable)]
    for name in observables:
        if name not in known:
            raise unknown_name("observable of a flow", name, known)


def _resume(
    flow: GradientFlow, start: Any, seed: int, horizon: float | None
) -> tuple[Start, float, float | None, int, float | None]:
    """(start, t0, raw ν or None, seed, horizon), continuing the clock of a `Result`."""
    if not isinstance(start, Result):
        return as_start(start, seed), 0.0, None, seed, horizon
    if not start.status.ok:
        raise FlowsimError(f"This run cannot be continued. {start.status.sentence}")
    last = start.final
    options = start.config["options"]
    raw = None
    policy = flow.schedule.temperature
    if isinstance(policy, Learnable):
        before = start.config["flow"]["schedule"]["temperature"].get("parametrization")
        if last.raw is not None and before == to_config(policy.parametrization):
            raw = last.raw
        else:  # another parametrization goes on from the same temperature
            raw = float(policy.parametrization.raw(np.asarray(last["inverse_temperature"])))
    if horizon is None:
        horizon = options["horizon"]
    return last.start, last.time, raw, options["seed"], horizon


def _snapshot_times(ts: np.ndarray, snapshots: ArrayLike | None, state: State) -> np.ndarray:
    if snapshots is not None:
        wanted = np.atleast_1d(np.asarray(snapshots, np.float64))
        missing = wanted[~np.isin(wanted, ts)]
        check(
            missing.size == 0,
            f"Snapshot time {missing[0] if missing.size else 0:g} is not an output time. Add it to `ts`.",
        )
        return np.sort(wanted)
    size = 8 * sum(x.size for x in jax.tree.leaves(state.moving))
    count = int(min(len(ts), max(2, _SNAPSHOT_BYTES // max(size, 1))))
    return ts[np.unique(np.linspace(0, len(ts) - 1, count).round().astype(int))]


# --- observables of a state ---------------------------------------------------------------------------


#: name -> f(flow, t, state, β, horizon); None where the flow has no such quantity.
_STATE_OBSERVABLES: dict[str, Callable[[GradientFlow, Any, State, Any, Any], Any]] = {
    "temperature": lambda f, t, s, b, h: 1 / b,
    "inverse_temperature": lambda f, t, s, b, h: b,
    "raw": lambda f, t, s, b, h: s.moving.raw,
    "gamma": lambda f, t, s, b, h: _gamma(f, s),
    "log_gamma": lambda f, t, s, b, h: _log_gamma(f, s),
    "loss": lambda f, t, s, b, h: f.loss_value(t, s, h),
    "margin": lambda f, t, s, b, h: obs.margin_of_similarity(_pair_similarity(f, s)),
    "matched_fraction": lambda f, t, s, b, h: obs.matched_fraction_of_similarity(_pair_similarity(f, s)),
    "doubly_stochastic_defect": lambda f, t, s, b, h: obs.doubly_stochastic_defect_of_logits(
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
        if name in _STATE_OBSERVABLES:
            value = _STATE_OBSERVABLES[name](flow, t, state, beta, horizon)
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


class _Task(eqx.Module):
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


class _Segment(eqx.Module):
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


def _solver(method: str, task: _Task) -> diffrax.AbstractAdaptiveSolver:
    if method == "explicit":
        return diffrax.Dopri8()
    if method == "implicit":
        return diffrax.Kvaerno5(root_finder=diffrax.VeryChord(task.rtol, task.atol, norm=_chord_norm))
    return RungeKuttaChebyshev()


def _field_in_log_time(s: Any, moving: Moving, args: tuple[GradientFlow, _Task]) -> Moving:
    flow, task = args
    state = dataclasses.replace(task.state, moving=moving)
    velocity = _velocity(flow, jnp.expm1(s), state, task)
    return jax.tree.map(lambda v: jnp.exp(s) * v, velocity)


def _velocity(flow: GradientFlow, t: Any, state: State, task: _Task) -> Moving:
    velocity = flow.vector_field(t, state, task.horizon)
    if _clamped(flow):
        assert velocity.raw is not None
        held = jnp.where(task.pinned == 0, velocity.raw, jnp.zeros_like(velocity.raw))
        velocity = dataclasses.replace(velocity, raw=held)
    return velocity


def _clamped(flow: GradientFlow) -> bool:
    temperature = flow.schedule.temperature
    return isinstance(temperature, Learnable) and temperature.clamp is not None


def _crossings(flow: GradientFlow, t: Any, state: State, task: _Task) -> dict[str, Any]:
    """Quantities that are positive until they end the segment; their zeros are located."""
    found: dict[str, Any] = {}
    log_gamma = flow.geometry.log_gamma(state.moving.position)
    if log_gamma is not None:
        found["gamma_one"] = jnp.where(state.constants.sign == 0, jnp.ones_like(log_gamma), -log_gamma)
    temperature = flow.schedule.temperature
    raw = state.moving.raw
    if isinstance(temperature, Learnable) and isinstance(temperature.parametrization, Identity):
        found["temperature_infinite"] = raw
    if isinstance(temperature, Learnable) and temperature.clamp is not None:
        assert raw is not None
        low, high = temperature.raw_bounds()
        # The slack lets a trajectory start from the bound itself.
        free = jnp.minimum(raw - low, high - raw) + 1e-12 * (1 + jnp.abs(raw))
        outward = task.pinned * flow.vector_field(t, state, task.horizon).raw
        found["clamp"] = jnp.where(task.pinned == 0, free, outward)
    return found


def _on_state(
    condition: Callable[[GradientFlow, Any, State, _Task], Any],
) -> Callable[..., Any]:
    """A condition on states as diffrax wants it."""

    def cond_fn(t: Any, y: Moving, args: tuple[GradientFlow, _Task], **_: Any) -> Any:
        flow, task = args
        return condition(flow, jnp.expm1(t), dataclasses.replace(task.state, moving=y), task)

    return cond_fn


def _event(flow: GradientFlow, task: _Task, locate: bool) -> diffrax.Event:
    """What ends a segment early: at the end of a step, or (`locate`) at the zero of a crossing."""
    names = list(_crossings(flow, task.t0, task.state, task))

    def crossed(name: str) -> Callable[..., Any]:
        return _on_state(lambda f, t, s, k: _crossings(f, t, s, k)[name] <= 0)

    def nearest(flow: GradientFlow, t: Any, state: State, task: _Task) -> Any:
        zero = jnp.min(jnp.stack(list(_crossings(flow, t, state, task).values())))
        return jnp.where(_is_steady(flow, t, state, task), -jnp.ones_like(zero), zero)

    if locate:
        return diffrax.Event(_on_state(nearest), optx.Bisection(1e-12, 1e-12, flip="detect"))
    return diffrax.Event({"steady": _on_state(_is_steady), **{name: crossed(name) for name in names}})


def _cause(flow: GradientFlow, t: Any, state: State, task: _Task) -> dict[str, Any]:
    """Which condition ended a located segment, given its last state."""
    crossings = _crossings(flow, t, state, task)
    causes = {k: v < 1e-9 for k, v in crossings.items() if k != "clamp"}
    causes["steady"] = _is_steady(flow, t, state, task)
    if "clamp" in crossings:
        causes["clamp"] = ~jnp.any(jnp.stack(list(causes.values())))
    return causes


def _is_steady(flow: GradientFlow, t: Any, state: State, task: _Task) -> Any:
    """Whether nothing changes any more up to the last output time.

    All of: the schedule has ended; t1·‖field‖ < tolerance, or the field is rounding noise of the forces it
    is the difference of; γ, if it still moves, no longer matters to the rest.
    """
    velocity = _velocity(flow, t, state, task)
    dtype = task.ts.dtype
    eps = jnp.finfo(dtype).eps
    t1 = task.ts[-1]
    moving = state.moving
    force = _force(flow, t, state, task)
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


def _force(flow: GradientFlow, t: Any, state: State, task: _Task) -> Any:
    """Size of the forces whose difference the field is: times the machine epsilon, its rounding noise."""
    beta = flow.inverse_temperature(t, state, task.horizon)
    similarity = flow.geometry.similarity(state.moving.position, state.constants)
    force = beta * jnp.linalg.norm(flow.loss.gradient(beta * similarity, state.targets))
    return force if state.targets.rows is None else force + beta / similarity.shape[0]


@eqx.filter_jit
def _segment(
    flow: GradientFlow,
    task: _Task,
    *,
    method: str,
    max_steps: int,
    locate: bool,
    streamed: tuple[str, ...],
) -> _Segment:
    """Integrate from `task.t0` to `task.end` or the first event.

    `streamed` observables are recorded on the way, for problems whose states are too many to keep.
    """
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
            _solver(method, task),
            t0=s0,
            t1=s1,
            dt0=None,
            y0=task.state.moving,
            args=(flow, task),
            saveat=diffrax.SaveAt(subs=subs),
            stepsize_controller=controller,
            event=_event(flow, task, locate),
            max_steps=max_steps,
            adjoint=diffrax.ForwardMode(),
            throw=False,
        )
    assert solution.ts is not None and solution.ys is not None
    log_time = solution.ts[1][-1]
    moving = jax.tree.map(lambda x: x[-1], solution.ys[1])
    events = solution.event_mask
    ended = dataclasses.replace(task.state, moving=moving)
    if locate:
        occurred = solution.result == diffrax.RESULTS.event_occurred
        events = {k: occurred & v for k, v in _cause(flow, jnp.expm1(log_time), ended, task).items()}
    assert isinstance(events, dict)
    return _Segment(
        series=solution.ys[2] if streamed else {},
        snapshots=solution.ys[0],
        moving=moving,
        log_time=log_time,
        events=events,
        finished=solution.result == diffrax.RESULTS.successful,
        force=_force(flow, jnp.expm1(log_time), ended, task),
        accepted=solution.stats["num_accepted_steps"],
        rejected=solution.stats["num_rejected_steps"],
    )


@eqx.filter_jit
def _observe_all(
    flow: GradientFlow, ts: Any, moving: Moving, state: State, horizon: Any, names: tuple[str, ...]
) -> dict[str, Any]:
    """Observables of the states `moving`, stacked along time."""

    def one(item: tuple[Any, Moving]) -> dict[str, Any]:
        return _observe(flow, item[0], dataclasses.replace(state, moving=item[1]), horizon, names)

    return jax.lax.map(one, (ts, moving))


# --- the chain of segments ----------------------------------------------------------------------------


@dataclasses.dataclass
class _Run:
    """Output of a chain: filled slots, and how it ended."""

    series: dict[str, np.ndarray]
    snapshots: Moving
    state: State
    status: Status
    stopped_at: float
    method: str
    stats: dict[str, float]


def _chain(
    flow: GradientFlow, state: State, t0: float, ts: np.ndarray, kept: np.ndarray, horizon: float,
    rtol: float, atol: float, method: Method | None, max_steps: int, names: tuple[str, ...], dtype: Any,
) -> _Run:  # fmt: skip
    current: str = method or "explicit"
    unknowns = sum(x.size for x in jax.tree.leaves(state.moving))
    stiff = "implicit" if unknowns <= DENSE_UNKNOWNS else "stabilised"
    # Observables are computed afterwards where every state is kept: that compiles in half the time.
    stream = len(kept) < len(ts)
    locate = _clamped(flow)
    stats: dict[str, float] = {"steps": 0, "rejected": 0, "segments": 0, "unknowns": unknowns}
    labels: list[str] = []
    series: dict[str, np.ndarray] = {}
    states: Any = None
    t, pinned = t0, _initially_pinned(flow, state, t0, horizon)
    force = 0.0
    status = None
    while status is None:
        span, noise = float(ts[-1]), 0.0
        if current != "explicit":
            # Rounding noise of the field in logarithmic time, with a margin for the implicit solves.
            rate = 1e2 * np.finfo(dtype).eps * force
            span = min(span, max(1.0, _STIFF_SPAN * t), max(_NOISE_LIMIT, rtol) / max(rate, 1e-300))
            noise = rate * span
            if span < min(1.01 * t, ts[-1]):
                status = Status.PRECISION
                break
        numbers = (span, max(rtol, noise), max(atol, noise))
        task = _Task(state, *(np.asarray(x) for x in (t, ts, kept, horizon, *numbers, pinned, 1e-3 * rtol)))
        task = to_device(dataclasses.replace(task, pinned=np.asarray(float(pinned))), dtype)
        budget = EXPLICIT_BUDGET if method is None and current == "explicit" else max_steps
        out = to_numpy(
            _segment(
                flow, task, method=current, max_steps=budget, locate=locate,
                streamed=names if stream else (),
            )
        )  # fmt: skip
        occurred = {k for k, v in out.events.items() if bool(v)}
        if not locate and occurred - {"steady"}:
            # A crossing ended the step; do the segment again, finding its time.
            locate = True
            continue
        stats["segments"] += 1
        stats["steps"] += int(out.accepted)
        stats["rejected"] += int(out.rejected)
        label = _METHODS[current]
        if not labels or label not in labels[-1]:
            labels.append(f"{label} from t = {t:.3g}" if labels else label)
        finished = bool(out.finished) and not occurred
        end = span if finished else float(np.expm1(out.log_time))
        done = finished and span == ts[-1]
        force = float(out.force)
        for name, values in out.series.items():
            into = series.setdefault(name, np.full(values.shape, np.nan, values.dtype))
            _fill(into, values, ts, t, end, t == t0)
        if states is None:
            states = jax.tree.map(lambda x: np.full_like(x, np.nan), out.snapshots)
        for into, values in zip(jax.tree.leaves(states), jax.tree.leaves(out.snapshots), strict=True):
            _fill(into, values, kept, t, end, t == t0)
        state = dataclasses.replace(state, moving=jax.tree.map(jnp.asarray, out.moving))
        t = end
        if done:
            status = Status.COMPLETED
        elif occurred & _ENDINGS.keys():
            status = next(_ENDINGS[k] for k in _ENDINGS if k in occurred)
        elif not all(np.isfinite(x).all() for x in jax.tree.leaves(out.moving)):
            status = Status.NON_FINITE
        elif "clamp" in occurred:
            state, pinned = _toggle(flow, state, pinned)
        elif finished:
            continue
        elif method is None and current == "explicit":
            current = stiff
        elif method is None and current == "stabilised" and unknowns <= _DENSE_LAST_RESORT:
            current = "implicit"
        else:
            status = Status.MAX_STEPS
    if status is Status.STEADY:
        _hold(flow, state, series, states, ts, kept, t, horizon, names)
    if not stream:
        arguments = (jnp.asarray(ts, dtype), jax.tree.map(jnp.asarray, states), state)
        computed = _observe_all(flow, *arguments, jnp.asarray(horizon, dtype), names)
        series = {name: np.where(_is_filled(states), x, np.nan) for name, x in computed.items()}
    return _Run(series, states, state, status, t, ", then ".join(labels), stats)


_ENDINGS = {
    "steady": Status.STEADY,
    "gamma_one": Status.GAMMA_ONE,
    "temperature_infinite": Status.TEMPERATURE_INFINITE,
}


def _fill(into: np.ndarray, new: np.ndarray, ts: np.ndarray, begin: float, end: float, first: bool) -> None:
    """Copy the output slots that a segment from `begin` to `end` reached."""
    slots = ((ts >= begin) if first else (ts > begin)) & (ts <= end)
    into[slots] = new[slots]


def _is_filled(states: Moving) -> np.ndarray:
    leaves = jax.tree.leaves(states)
    return np.array([all(np.isfinite(x[i]).all() for x in leaves) for i in range(len(leaves[0]))])


def _hold(
    flow: GradientFlow, state: State, series: dict[str, np.ndarray], states: Moving, ts: np.ndarray,
    kept: np.ndarray, end: float, horizon: float, names: tuple[str, ...],
) -> None:  # fmt: skip
    """Fill the slots after a steady state."""
    rate = 0.0
    if flow.geometry.has_gamma:
        # With everything else at rest ln γ goes on at a constant rate.
        rate = float(flow.vector_field(jnp.asarray(end), state, jnp.asarray(horizon)).position.log_gamma)
    later = kept > end
    for into, value in zip(jax.tree.leaves(states), jax.tree.leaves(state.moving), strict=True):
        into[later] = np.asarray(value)
    if flow.geometry.has_gamma:
        states.position.log_gamma[later] += rate * (kept[later] - end)
    if not series:
        return
    one = jax.tree.map(lambda x: x[None], state.moving)
    values = to_numpy(_observe_all(flow, jnp.asarray([end]), one, state, jnp.asarray(horizon), names))
    after = ts > end
    for name, value in values.items():
        series[name][after] = value[0]
    if "log_gamma" in series:
        series["log_gamma"][after] += rate * (ts[after] - end)
    if "gamma" in series:
        sign = np.asarray(state.constants.sign)
        series["gamma"][after] = sign * np.exp(values["log_gamma"][0] + rate * (ts[after] - end))


def _initially_pinned(flow: GradientFlow, state: State, t0: float, horizon: float) -> int:
    if not _clamped(flow):
        return 0
    low, high = (float(b) for b in flow.schedule.temperature.raw_bounds())  # pyright: ignore
    raw = float(state.moving.raw)  # pyright: ignore[reportArgumentType]
    velocity = float(flow.vector_field(t0, state, horizon).raw)  # pyright: ignore[reportArgumentType]
    tiny = 1e-12 * (1 + abs(raw))
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


# --- results ------------------------------------------------------------------------------------------


def _assemble(
    flow: GradientFlow, run: _Run, ts: np.ndarray, kept: np.ndarray, options: dict[str, Any],
    start_config: dict[str, Any],
) -> Result:  # fmt: skip
    reached = np.flatnonzero(_is_filled(run.snapshots))
    constants = to_numpy(run.state.constants)
    starts = [
        flow.geometry.to_start(jax.tree.map(lambda x, i=i: x[i], run.snapshots.position), constants) for i in reached
    ]
    stored: dict[str, np.ndarray] = {}
    fixed: dict[str, np.ndarray] = {}
    position = run.snapshots.position
    flowing = {f.name for f in dataclasses.fields(position) if getattr(position, f.name) is not None}
    for field in dataclasses.fields(Start):
        values = [getattr(s, field.name) for s in starts]
        if not values or values[0] is None:
            continue
        if field.name in flowing or field.name == "gamma":
            stored[field.name] = np.stack([np.asarray(v) for v in values])
        else:
            fixed[field.name] = np.asarray(values[0])
    if run.snapshots.raw is not None:
        stored["raw"] = np.asarray(run.snapshots.raw)[reached]
    reasons = {}
    if starts and starts[0].image is None:
        missing = [name for name, values in run.series.items() if np.isnan(values).all()]
        reasons = dict.fromkeys(missing, "needs rows, but the start holds only similarities")
    result = Result(
        time=ts,
        series={name: run.series[name] for name in options["observables"] if name in run.series},
        status=Outcome(run.status, run.stopped_at, run.method),
        config={"flow": flow.to_config(), "start": start_config, "options": options},
        stats=dict(run.stats),
        versions=_versions(),
        snapshot_time=kept[reached],
        snapshots=stored,
        constants=fixed,
        reasons=reasons,
        resolve=_resolve,
    )
    result.stats.update(_diagnose(flow, result))
    return result


def _diagnose(flow: GradientFlow, result: Result) -> dict[str, float]:
    """Residual of the conserved quantity and largest relative increase of the loss, where they apply."""
    found: dict[str, float] = {}
    temperature = flow.schedule.temperature
    s = result.series
    finite = np.isfinite(s["loss"]) if "loss" in s else np.zeros(0, bool)
    if finite.sum() > 1 and temperature.constant:
        loss = s["loss"][finite]
        found["loss_increase"] = float(np.max(np.diff(loss) / np.maximum(loss[:-1], 1e-300), initial=0.0))
    conserved = (
        flow.geometry.has_gamma
        and isinstance(temperature, Learnable)
        and temperature.clamp is None
        and not flow.schedule.swap.active
        and {"log_gamma", "inverse_temperature"} <= s.keys()
        and float(temperature.lr_ratio) > 0
    )
    if conserved:
        assert isinstance(temperature, Learnable)
        good = np.isfinite(s["log_gamma"]) & np.isfinite(s["inverse_temperature"])
        if good.sum() > 1:
            residual = theory.conserved_residual(
                s["log_gamma"][good],
                s["inverse_temperature"][good],
                temperature.parametrization.name,
                float(getattr(temperature.parametrization, "scale", 1.0)),
                float(temperature.lr_ratio),
            )
            found["conserved_residual"] = float(np.max(np.abs(residual)))
    return found


def _resolve(result: Result, t: float) -> Result:
    """Integrate from the last snapshot before t to t, with the settings of the run."""
    flow = GradientFlow.from_config(result.config["flow"])
    index = int(np.searchsorted(result.snapshot_time, t)) - 1
    keep = slice(0, index + 1)
    head = dataclasses.replace(
        result,
        time=result.snapshot_time[keep],
        series={k: v[np.isin(result.time, result.snapshot_time[keep])] for k, v in result.series.items()},
        snapshot_time=result.snapshot_time[keep],
        snapshots={k: v[keep] for k, v in result.snapshots.items()},
        status=dataclasses.replace(result.status, code=Status.COMPLETED),
    )
    options = result.config["options"]
    return simulate(
        flow, head, ts=[t], rtol=options["rtol"], atol=options["atol"], method=options["method"],
        precision=options["precision"], observables=tuple(options["observables"]),
    )  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("flowsim", "jax", "diffrax", "equinox", "numpy")
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "unknown"
    return found


class _CompileTimer:
    """Seconds that JAX spends tracing and compiling while this is open."""

    _open: "list[_CompileTimer]" = []  # noqa: RUF012
    _listening = False

    def __enter__(self) -> "_CompileTimer":
        self.seconds = 0.0
        if not _CompileTimer._listening:
            jax.monitoring.register_event_duration_secs_listener(_CompileTimer._heard)
            _CompileTimer._listening = True
        _CompileTimer._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _CompileTimer._open.remove(self)

    @staticmethod
    def _heard(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            for timer in _CompileTimer._open:
                timer.seconds += duration_secs


__all__ = ["DEFAULT_OBSERVABLES", "load", "simulate"]
