"""`simulate`: integrate a gradient flow with diffrax, in logarithmic time, with the right method.

The flow is integrated in s = ln(1 + t): curvature decays like 1/t, so that an explicit method crosses
thirty decades in a few hundred steps. Flows with a true equilibrium become stiff in s; they are noticed
(the explicit method exhausts its budget) and continued with an implicit method for few unknowns and with a
stabilised explicit one (Runge-Kutta-Chebyshev) for many. A solve is a chain of *segments*, each one compiled
call; segments end at a switch of method, at a clamp of the temperature, or with the run.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from flowsim import observables as obs
from flowsim import theory
from flowsim.base import notice as _notice
from flowsim.base.arrays import LARGE, check, check_number, to_device, to_numpy, tracing
from flowsim.base.paths import to_config
from flowsim.base.times import output_times
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate.descent import Before, Discrete
from flowsim.integrate.descent import run as run_discrete
from flowsim.integrate.methods import METHODS, Method
from flowsim.integrate.observe import STATE_OBSERVABLES, observe
from flowsim.integrate.segment import segment
from flowsim.integrate.trajectory import Options, Trajectory, final_status, is_filled
from flowsim.model.flow import GradientFlow, State, as_start
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.temperature import AbstractTemperature
from flowsim.numerics import make_room, store_programs, tiled
from flowsim.records.result import FLOW_TIME, SUM_OF_RATES, Outcome, Result, SimulationStopped, Status, load_result

DEFAULT_OBSERVABLES = (
    "modality_gap",
    "temperature",
    "inverse_temperature",
    "raw_temperature",
    "bias",
    "gamma",
    "log_gamma",
    "loss",
    "margin",
    "matched_fraction",
    "doubly_stochastic_defect",
)

#: Snapshots are stored at every output time while they fit into this many bytes.
_SNAPSHOT_BYTES = 64 * 2**20


@tracing()
def simulate(
    flow: GradientFlow,
    start: Start | AbstractRecipe | Result,
    t1: float | None = None,
    ts: "ArrayLike | None" = None,
    *,
    seed: int = 0,
    horizon: float | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    method: Method | None = None,
    max_steps: int = 200_000,
    snapshots: "ArrayLike | None" = None,
    observables: Sequence[str] = DEFAULT_OBSERVABLES,
    precision: Literal["float64", "float32"] = "float64",
    optimizer: Any = None,
    lr: Any = None,
    steps: int | None = None,
    devices: int | Sequence[Any] | None = None,
    throw: bool = True,
) -> Result:
    """Integrate dθ/dt = −∂L/∂θ, dν/dt = −r ∂L/∂ν from `start` and record observables.

    - `start`: a `Start`, a recipe (drawn with `seed`), or a `Result`, which is continued on its own clock.
    - `t1`, `ts`: last flow time, or all output times (increasing; returned exactly as given). Default: 0
      and log-spaced points up to `t1`.
    - `seed`: of the recipe's draw, noisy targets and swap masks.
    - `horizon`: schedules run in progress u = t/`horizon`; default: the last output time. With `optimizer`, in steps:
      u = step/`horizon`, by default the number of steps.
    - `rtol`, `atol`: tolerances of the step controller, on unit rows, ln γ and ν.
    - `method`: "explicit" (Dopri8), "implicit" (Kvaerno5, dense), "krylov" (Kvaerno5 with Newton and GMRES, without a
      matrix), "stabilised" (Runge-Kutta-Chebyshev); default: explicit, then a stiff one if needed. The result says
      which.
    - `snapshots`: times among the outputs at which embeddings are stored, beside the last one, from which a run can
      be continued; default all, if they fit.
    - `observables`: names recorded at every output time; see `fs.observables.names()`.
    - `precision`: "float32" is for speed on short horizons; it is refused beyond t1 = 1e6.
    - `optimizer`: instead of the flow, take `steps` discrete steps of learning rate `lr` (a number, or an optax
      schedule) with "sgd", "momentum" (0.9), "adam", "adamw" (weight decay 0.1 on rows or weights), or a function
      of the learning rate that returns an optax transformation. Without `t1` and `ts`: outputs are log-spaced
      steps, and `time` is Σ learning rates (flow time for "sgd" only). A result of the same optimizer is continued with
      its state, step, draws and schedules. See `discrete`.
    - `devices`: for many pairs (see `GradientFlow.is_tiled`), the number of JAX devices, or the devices, among
      which the pairs are divided; it must divide their number. Default: one.
    - `throw`: raise `SimulationStopped` unless every output time was covered; else return the part before.

    64-bit mode is entered here and left again; results are NumPy. Raises `FlowsimError` for bad input.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> result = fs.simulate(flow, start, t1=1e5)
        >>> round(result.final["modality_gap"], 3)
        0.541
        >>> round(result.at(t=4.0)["temperature"], 3)
        0.689
        >>> longer = fs.simulate(flow, result, t1=1e8)  # continues on its clock
        >>> round(longer.final["modality_gap"], 3)
        0.504
    """
    wall = time.perf_counter()
    check_options(flow, rtol, atol, method, max_steps, seed, precision, observables)
    check_policy(flow)
    origin = _origin(flow, start, seed, horizon, optimizer is not None)
    t0, seed, horizon = origin.t0, origin.seed, origin.horizon
    dtype = np.dtype(precision)
    options: dict[str, Any] = {"seed": seed, "precision": precision, "t0": t0, "observables": list(observables)}
    store_programs()
    make_room()
    with contextlib.ExitStack() as stack, jax.enable_x64(precision == "float64"), _CompileTimer() as timer:
        stack.enter_context(_notice.compiling())
        flow_ = to_device(flow, dtype)
        # Placed in NumPy: JAX would compile a program for every number on the way.
        state = flow_.complete(*to_device(flow.place(origin.start), dtype), seed)
        for name, value in origin.moved.items():
            state = eqx.tree_at(lambda s, name=name: getattr(s.unknowns, name), state, jnp.asarray(value, dtype))
        place, mesh = _placing(flow_, state, devices)
        stack.enter_context(mesh)
        state = place(state)
        if optimizer is None:
            check(lr is None and steps is None, "`lr` and `steps` belong to `optimizer`. Give e.g. optimizer='sgd'.")
            ts_ = output_times(t1, ts, t0)
            horizon_ = float(ts_[-1]) if horizon is None else float(horizon)
            check_number("horizon", horizon_, positive=True, cure="Use the flow time at which the schedule ends.")
            if precision == "float32":
                check(ts_[-1] <= 1e6, "`precision='float32'` cannot hold horizons beyond t1 = 1e6. Use 'float64'.")
                rtol, atol = max(rtol, 1e-5), max(atol, 1e-7)
            options.update(horizon=horizon_, rtol=rtol, atol=atol, method=method)
            chosen = Options(rtol, atol, method, max_steps, tuple(observables), dtype, seed)
            kept = _snapshot_times(ts_, snapshots, state)
            ran: Trajectory | Discrete = Trajectory(flow_, state, t0, ts_, kept, horizon_, chosen)
            while (request := ran.request()) is not None:
                task, how = request
                ran.absorb(to_numpy(segment(flow_, place(to_device(task, dtype)), how)))
        else:
            given = {"t1": t1, "ts": ts, "method": method, "snapshots": snapshots}
            for name in (name for name, value in given.items() if value is not None):
                raise FlowsimError(f"Argument `{name}` does not go with `optimizer`. Leave it out, and give `steps`.")
            ran = run_discrete(flow_, state, t0, optimizer, lr, steps, seed, dtype, horizon, origin.before)
            options.update(
                horizon=ran.ts[-1], optimizer=ran.label, steps=int(steps or 0), step=int(ran.clock[-1]),
                schedule_steps=ran.horizon, lr=float(lr) if not callable(lr) else getattr(lr, "__name__", "schedule"),
            )  # fmt: skip
        if (seen := ran.seen()) is not None:
            ran.fill(to_numpy(observe(flow_, place(to_device(seen, dtype)), tuple(observables))))
    start_config = to_config(start) if isinstance(start, AbstractRecipe) else {"kind": type(start).__name__}
    result = _assemble(flow, ran, options, start_config)
    total = time.perf_counter() - wall
    result.stats.update(compile_seconds=timer.seconds, run_seconds=max(total - timer.seconds, 0.0), wall_seconds=total)
    if throw and not result.status.ok:
        raise SimulationStopped(result)
    return result


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result written by `Result.save`; `at(t)` works on it as before."""
    result = load_result(path)
    # Between the snapshots of optimizers' steps and of training nothing can be integrated.
    integrated = "optimizer" not in result.config.get("options", {"optimizer": None})
    return dataclasses.replace(result, resolve=_resolve) if integrated else result


# --- checks and grids ---------------------------------------------------------------------------------


def check_policy(flow: GradientFlow) -> None:
    """Refuse a policy of the user's own that gives anything but positive numbers; ours check their fields."""
    policy = flow.schedule.temperature
    if policy.learnable or policy.positive:
        return
    for progress in np.linspace(0, 1, 9):
        beta = np.asarray(policy.inverse_temperature(progress))
        check(
            beta.ndim == 0 and np.isfinite(beta) and beta > 0,
            f"The policy {type(policy).__name__} gives β = {beta} at progress {progress:g}. "
            "`inverse_temperature` must return one positive number.",
        )


def check_options(
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
        isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32,
        f"Argument `seed` must be a whole number of at least 0 and below 2³², but is {seed!r}. Use e.g. 0.",
    )
    if method is not None and method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if precision not in ("float64", "float32"):
        raise unknown_name("precision", precision, ("float64", "float32"))
    known = [*STATE_OBSERVABLES, *(name for name, item in obs.REGISTRY.items() if item.traceable)]
    for name in observables:
        if name not in known:
            raise unknown_name("observable of a flow", name, known)


class _Origin(NamedTuple):
    """Where a run begins: `moved` are trained scalars by name, `before` is the optimizer run that is continued."""

    start: Start
    t0: float
    moved: dict[str, float]
    seed: int
    horizon: float | None
    before: Before | None


def _origin(flow: GradientFlow, start: Any, seed: int, horizon: float | None, in_steps: bool) -> _Origin:
    """Where a run from `start` begins; a `Result` is continued on its clock."""
    if not isinstance(start, Result):
        return _Origin(as_start(start, seed), 0.0, {}, seed, horizon, None)
    check(
        "flow" in start.config,
        "This result has no flow: it is a record of training. Simulate from its embeddings, record.at(t).start.",
    )
    if not start.status.ok:
        raise FlowsimError(f"This run cannot be continued. {start.status.sentence}")
    last, options = start.final, start.config["options"]
    moved = {}
    policy = flow.schedule.temperature
    if policy.learnable:
        before, now = start.config["flow"]["schedule"]["temperature"], to_config(policy)
        same = before["kind"] == now["kind"] and before.get("parametrization") == now.get("parametrization")
        raw = last.raw_temperature
        if raw is None or not same:  # another parametrization goes on from the same temperature
            raw = policy.raw_of(np.asarray(last["inverse_temperature"]))
        check(
            raw is not None,
            f"{type(policy).__name__} cannot go on from this run: it does not define `raw_of`, the raw parameter at a "
            "given inverse temperature. Define it, or begin from `result.final.start`.",
        )
        moved["raw_temperature"] = _inside(policy, float(raw))
    if last.bias is not None and flow.loss.bias_rate is not None:
        moved["bias"] = last.bias
    taken = None
    if in_steps and "optimizer" in options:
        check(
            "step" in options,
            "This run was saved without its optimizer's state and cannot be continued. Begin anew from "
            "`result.final.start`.",
        )
        taken = Before(options["optimizer"], start.memory, options["step"], options["schedule_steps"])
    if horizon is None and not in_steps:
        horizon = options["horizon"]
    return _Origin(last.start, last.time, moved, options["seed"], horizon, taken)


def _inside(policy: AbstractTemperature, raw: float) -> float:
    """ν if it lies within the clamp. Raises `FlowsimError` if it does not, as a fresh start would."""
    if (bounds := policy.bounds()) is None:
        return raw
    low, high = (float(bound) for bound in bounds)
    slack = 1e-6 * (1 + abs(raw))
    ended, coldest, hottest = (float(policy.temperature(0.0, np.asarray(x))) for x in (raw, high, low))
    check(
        low - slack <= raw <= high + slack,
        f"The run ended at temperature {ended:.6g}, outside the clamp ({coldest:g}, {hottest:g}). Widen the clamp, or "
        "start from `result.final.start`.",
    )
    return min(max(raw, low), high)


def _placing(
    flow: GradientFlow, state: State, devices: int | Sequence[Any] | None
) -> tuple[Callable[[Any], Any], contextlib.AbstractContextManager[Any]]:
    """(what places a tree of arrays on the devices, the context in which the flow uses them all)."""
    if devices is None:
        return lambda tree: tree, contextlib.nullcontext()
    there = jax.devices()
    if isinstance(devices, int):
        check(
            1 <= devices <= len(there),
            f"Argument `devices` must be between 1 and {len(there)}, the number of JAX devices, but is {devices}.",
        )
        devices = there[:devices]
    check(len(devices) > 0, "Argument `devices` is empty. Give a number, or jax.devices().")
    check(
        flow.is_tiled(state),
        f"Argument `devices` is for {LARGE} pairs or more with InfoNCE, rows without γ and no clusters. Leave it out.",
    )
    pairs = flow.pairs(state)
    check(
        pairs % len(devices) == 0,
        f"{pairs} pairs cannot be divided among {len(devices)} devices. Use a multiple, or fewer devices.",
    )
    mesh = tiled.mesh_of(list(devices))
    return lambda tree: tiled.spread(tree, mesh, pairs), jax.set_mesh(mesh)


def _snapshot_times(ts: np.ndarray, snapshots: ArrayLike | None, state: State) -> np.ndarray:
    if snapshots is not None:
        wanted = np.atleast_1d(np.asarray(snapshots, np.float64))
        missing = wanted[~np.isin(wanted, ts)]
        check(
            missing.size == 0,
            f"Snapshot time {missing[0] if missing.size else 0:g} is not an output time. Add it to `ts`.",
        )
        return np.union1d(wanted, ts[-1:])
    size = 8 * sum(x.size for x in jax.tree.leaves(state.unknowns))
    count = int(min(len(ts), max(2, _SNAPSHOT_BYTES // max(size, 1))))
    return ts[np.unique(np.linspace(0, len(ts) - 1, count).round().astype(int))]


# --- results ------------------------------------------------------------------------------------------


def _assemble(
    flow: GradientFlow, ran: Trajectory | Discrete, options: dict[str, Any], start_config: dict[str, Any]
) -> Result:
    status = final_status(ran.status, ran.reached)
    reached = np.flatnonzero(is_filled(ran.states))
    constants, position = to_numpy(ran.state.constants), ran.states.position
    at_times = flow.geometry.to_start(jax.tree.map(lambda x: x[reached], position), constants)
    stored: dict[str, np.ndarray] = {}
    fixed: dict[str, np.ndarray] = {}
    if reached.size:
        at_first = flow.geometry.to_start(jax.tree.map(lambda x: x[reached[0]], position), constants)
        for field in dataclasses.fields(Start):
            if (values := getattr(at_times, field.name)) is not None:
                # What flows has an axis more.
                flows = np.ndim(values) > np.ndim(getattr(at_first, field.name))
                (stored if flows else fixed)[field.name] = np.asarray(values)
    for name in ("raw_temperature", "bias"):
        if (moved := getattr(ran.states, name)) is not None:
            stored[name] = np.asarray(moved)[reached]
    reasons = {}
    if reached.size and at_times.image is None:
        missing = [name for name, values in ran.series.items() if np.isnan(values).all()]
        reasons = dict.fromkeys(missing, "needs rows, but the start holds only similarities")
    for name, values in ran.series.items():
        if name not in reasons and (undefined := np.flatnonzero(np.isnan(values) & ran.reached)).size:
            first = ran.ts[undefined[0]]
            why = getattr(obs.REGISTRY.get(name), "undefined", "") or "undefined"
            reasons[name] = f"{why} (at {undefined.size} times, first at t = {first:.6g})"
    result = Result(
        time=ran.ts,
        series={name: ran.series[name] for name in options["observables"] if name in ran.series},
        status=Outcome(status, ran.t, ran.label),
        config={"flow": flow.to_config(), "start": start_config, "options": options},
        stats=dict(ran.stats),
        versions=versions(),
        snapshot_time=ran.kept[reached],
        snapshots=stored,
        constants=fixed,
        reasons=reasons,
        resolve=_resolve if isinstance(ran, Trajectory) else None,
        clock=FLOW_TIME if isinstance(ran, Trajectory) or ran.is_descent else SUM_OF_RATES,
        memory=() if isinstance(ran, Trajectory) else ran.memory,
    )
    if isinstance(ran, Trajectory):
        result.stats.update(_diagnose(flow, result))
    return result


def _diagnose(flow: GradientFlow, result: Result) -> dict[str, float]:
    """Residual of the conserved quantity and largest relative increase of the loss, where they apply."""
    found: dict[str, float] = {}
    temperature = flow.schedule.temperature
    s = result.series
    finite = np.isfinite(s["loss"]) if "loss" in s else np.zeros(0, bool)
    if finite.sum() > 1 and temperature.autonomous:
        loss = s["loss"][finite]
        found["loss_increase"] = float(np.max(np.diff(loss) / np.maximum(loss[:-1], 1e-300), initial=0.0))
    parametrization = temperature.parametrization
    if (
        parametrization is not None
        and parametrization.potential is not None
        and flow.geometry.has_gamma
        and flow.rule.is_gradient
        # The constant −βγ² of the logits drops out of softmaxes alone.
        and flow.loss.softmax
        and temperature.bounds() is None
        and not flow.schedule.swap.active
        and {"log_gamma", "inverse_temperature"} <= s.keys()
        and float(temperature.lr_ratio) > 0
    ):
        good = np.isfinite(s["log_gamma"]) & np.isfinite(s["inverse_temperature"])
        if good.sum() > 1:
            residual = theory.conserved_residual(
                s["log_gamma"][good],
                s["inverse_temperature"][good],
                parametrization.potential,
                float(parametrization.scale),
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


def versions() -> dict[str, str]:
    """Installed versions of what the numbers depend on."""
    return {name: _version(name) for name in ("flowsim", "jax", "diffrax", "equinox", "numpy")}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


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
