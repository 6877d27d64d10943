"""A solve as a chain of segments.

`Trajectory` is the state machine around the segments: `request` returns the next one, and `absorb` takes its output.
Segments end at a change of method, at a clamp of the temperature, at a redraw of masks or targets, or with the run.
`simulate` drives one trajectory; `sweep` drives many and batches their segments into one call.
"""

import dataclasses
from collections.abc import Collection
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.base.arrays import to_device, to_numpy
from flowsim.integrate.methods import LOOSE, LOOSE_METHOD, METHODS
from flowsim.integrate.observe import SavedStates, observe
from flowsim.integrate.options import Options
from flowsim.integrate.outlook import Outlook, linearised, outlook_of
from flowsim.integrate.segment import GONE, Segment, SegmentSpec, Task, is_clamped, tiny
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.observables.table import entries
from flowsim.records.result import FLOW_TIME
from flowsim.records.status import Status

#: Steps of the explicit method before a problem counts as stiff.
EXPLICIT_BUDGET = 2000
#: Up to this many unknowns the stiff method is implicit with a dense Jacobian.
DENSE_UNKNOWNS = 200
#: If the stabilised method runs out of steps, an implicit one takes over: dense up to this many unknowns.
_DENSE_LAST_RESORT = 2500
#: A stiff segment spans at most this factor of time.
_STIFF_SPAN = 30.0
#: The solve ends where rounding noise in the state would exceed this.
_NOISE_LIMIT = 1e-4
#: Krylov directions of the linearised flow, and the most numbers that may be stored for them.
_DIRECTIONS, _MOST_NUMBERS = 60, 2**22
#: A perturbation counts as real, not as rounding, above this many machine epsilons.
_PERTURBED = 64.0
#: A growing perturbation is hidden from the error control below this size.
_SEEN = 1e-6


def ending(exits: Collection[str]) -> Status:
    """The status of a run that left the domain of its geometry or policy, from the names of its exits."""
    known = {status.name: status for status in (Status.GAMMA_ONE, Status.TEMPERATURE_INFINITE, Status.OUTPUT_ZERO)}
    return next((status for name, status in known.items() if name.lower() in exits), Status.LEFT_DOMAIN)


class Trajectory:
    """One solve in progress: `request` the next segment, run it, `absorb` its output, until `status` is set.

    `most_steps`: steps of the explicit method after which a segment ends in any case, so that runs in a batch do not
    wait long for each other.
    """

    clock = FLOW_TIME
    memory: tuple[np.ndarray, ...] = ()

    def __init__(
        self,
        flow: GradientFlow,
        state: State,
        t0: float,
        ts: np.ndarray,
        kept: np.ndarray,
        horizon: float,
        options: Options,
        most_steps: int | None = None,
    ) -> None:
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
        self.size: int = sum(x.size for x in jax.tree.leaves(state.unknowns))
        self.stats: dict[str, float] = {"steps": 0, "rejected": 0, "segments": 0, "unknowns": self.size}
        self._labels: list[str] = []
        self._method: str = options.method or "explicit"
        self._most_steps, self._explicit_steps = most_steps, 0
        self._stiff = "implicit" if self.size <= DENSE_UNKNOWNS else "stabilised"
        # If every state is kept, observables are computed afterwards, which compiles in half the time.
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
        """Names of the methods used."""
        return ", then ".join(self._labels)

    def request(self) -> tuple[Task, SegmentSpec] | None:
        """The next segment, or None at the end, when `status` is set."""
        while self.status is None and (found := self._next()) is None:
            pass  # a state at rest was held until the next redraw
        return None if self.status is not None else found  # pyright: ignore

    def _next(self) -> tuple[Task, SegmentSpec] | None:
        options, t, last = self.options, self.t, float(self.ts[-1])
        span, noise, longest = last, 0.0, np.inf
        if self._redraw is not None:
            interval = round(t / self._redraw, 9)
            if int(interval) != self._drawn:
                self._drawn = int(interval)
                self.state = _redrawn(self.flow, self.state, options.seed, self._drawn)
            span = min(span, (self._drawn + 1) * self._redraw)
        if self._method != "explicit":
            # With a safety margin for the implicit solves.
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
                # An implicit method would step over a perturbation below the tolerance and damp it.
                span = min(span, t + 10 / growth)
                longest = 0.25 / (growth * (1 + span))
        self._end = span
        task = self._task(span, max(options.rtol, noise), max(options.atol, noise), longest)
        steps = options.max_steps
        if self._method == "explicit":
            steps = min(self._explicit_budget, self._most_steps or self._explicit_budget)
        brief = self._method == "explicit" and self._most_steps is not None
        return task, SegmentSpec(self._solver, steps, not brief, entries(self._streamed))

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
        """Process the output of the requested segment (NumPy leaves)."""
        occurred = {k for k, v in out.events.items() if bool(v)}
        self._record(out)
        spent = int(out.accepted) + int(out.rejected)
        self._explicit_steps += spent
        finished = bool(out.finished) and not occurred
        self.t = self._end if finished else float(np.expm1(out.log_time))
        self._noise = float(out.noise)
        self._take(out)
        self.state = dataclasses.replace(self.state, unknowns=out.unknowns)
        free = self.options.method is None
        if finished and self._end == self.ts[-1]:
            self.status = Status.COMPLETED
        elif exits := occurred - {"steady", "clamp"}:
            self.status = ending(exits)
        elif np.isnan(self._noise) or not all(np.isfinite(x).all() for x in jax.tree.leaves(out.unknowns)):
            self.status = Status.NON_FINITE
        elif "steady" in occurred:
            self._settle(None)
        elif "clamp" in occurred:
            self.state, self._pinned = _toggle(self.flow, self.state, self._pinned)
        elif finished:
            self._explicit_steps = 0
        elif self._method == "explicit" and spent > 0 and self._explicit_steps < self._explicit_budget:
            pass  # ended early for the other runs of the batch
        elif free and self._method == "explicit":
            self._method = self._stiff
        elif free and self._method == "stabilised":
            self._method = "implicit" if self.size <= _DENSE_LAST_RESORT else "krylov"
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
        """Rate of a growing perturbation that is too small for the error control to see; else 0."""
        outlook, _ = self._look_ahead(span - self.t)
        hidden = _PERTURBED * np.finfo(self.options.dtype).eps < outlook.amplitude < _SEEN
        return outlook.growth if hidden else 0.0

    def _look_ahead(self, remaining: float) -> tuple[Outlook, float]:
        """The outlook at the current state, and d ln γ/dt if γ is treated separately, else 0."""
        task, with_gamma = self._task(self._end, 1.0, 1.0), True
        log_gamma = self.flow.geometry.log_gamma(self.state.unknowns.position)
        if log_gamma is not None:
            with_gamma = bool((self.state.constants.sign != 0) & (log_gamma > GONE))
        size = self.size - (not with_gamma)
        directions = min(size, _DIRECTIONS, _MOST_NUMBERS // max(size, 1))
        # In double precision even for runs in single, because the distance from rest is small.
        with jax.enable_x64(True):
            flow, task = to_device((self.flow, task), np.float64)
            found = to_numpy(linearised(flow, task, with_gamma, directions))
        return outlook_of(found, remaining), float(found["rate"])

    def _settle(self, otherwise: Status | None) -> None:
        """At an apparent rest: hold the state, or continue with `otherwise` as the status (None: integrate on)."""
        remaining = self._end - self.t if self._redraw is not None else float(self.ts[-1]) - self.t
        outlook, rate = self._look_ahead(remaining)
        options, eps = self.options, np.finfo(self.options.dtype).eps
        sign = float(getattr(self.state.constants, "sign", 1.0))
        # A height of exactly 0 stays 0, but any other would grow.
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
        """Fill the slots after a rest, up to the next redraw of masks or targets, which may end the rest."""
        begin, end = self.t, self._end if self._redraw is not None else float(self.ts[-1])
        slots, kept = ~self._seen & (self.ts <= end), ~self._kept & (self.kept <= end)
        for into, value in zip(jax.tree.leaves(self.states), jax.tree.leaves(self.state.unknowns), strict=True):
            into[kept] = np.asarray(value)
        if self._streamed:
            one = jax.tree.map(lambda x: np.asarray(x)[None], self.state.unknowns)
            at = np.asarray([begin], self.options.dtype), np.asarray(self.horizon, self.options.dtype)
            seen = to_device(SavedStates(at[0], one, self.state, at[1]), self.options.dtype)
            for name, value in to_numpy(observe(self.flow, seen, self._streamed)).items():
                self.series[name][slots] = value[0]
        if abs(rate) * (end - begin) > self.options.rtol:
            # With everything else at rest, ln γ changes at a constant rate, which needs no further integration.
            status = Status.COMPLETED
            self.states.position.log_gamma[kept] += rate * (self.kept[kept] - begin)
            if "log_gamma" in self.series:
                self.series["log_gamma"][slots] += rate * (self.ts[slots] - begin)
            if "gamma" in self.series:
                self.series["gamma"][slots] *= np.exp(rate * (self.ts[slots] - begin))
            position = self.state.unknowns.position
            fallen = dataclasses.replace(position, log_gamma=np.asarray(position.log_gamma + rate * (end - begin)))
            unknowns = dataclasses.replace(self.state.unknowns, position=fallen)
            self.state = dataclasses.replace(self.state, unknowns=unknowns)
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

    def seen(self) -> SavedStates | None:
        """The states to observe after the solve; None if observables were streamed or no output was reached."""
        if self._streamed or self.states is None:
            return None
        dtype = self.options.dtype
        return SavedStates(self.ts.astype(dtype), self.states, self.state, np.asarray(self.horizon, dtype))

    def fill(self, observed: dict[str, Any]) -> None:
        """Store the observables of `seen`."""
        self.series = {name: np.where(self.reached, np.asarray(x), np.nan) for name, x in observed.items()}

    @property
    def reached(self) -> np.ndarray:
        """Which output times hold a value."""
        return self._seen if self._streamed else self._kept & is_filled(self.states)


def final_status(status: Status | None, reached: np.ndarray) -> Status:
    """The status of a finished run; checks that all output times hold values if it claims so."""
    assert status is not None
    return Status.INCOMPLETE if status.covered and not reached.all() else status


@eqx.filter_jit
def _redraw(flow: GradientFlow, state: State, seed: Any, index: Any) -> State:
    return flow.redrawn(state, seed, index)


def _redrawn(flow: GradientFlow, state: State, seed: int, index: int) -> State:
    return to_numpy(_redraw(flow, state, np.uint32(seed), np.uint32(index)))


def is_filled(states: Unknowns) -> np.ndarray:
    """Which slots hold a state."""
    leaves = jax.tree.leaves(states)
    return np.all([np.isfinite(x).all(axis=tuple(range(1, x.ndim))) for x in leaves], axis=0)


def _initially_pinned(flow: GradientFlow, state: State, t0: float, horizon: float) -> int:
    if not is_clamped(flow):
        return 0
    low, high = (float(b) for b in flow.schedule.temperature.bounds())  # pyright: ignore
    raw = float(state.unknowns.raw_temperature)  # pyright: ignore[reportArgumentType]
    velocity = float(flow.vector_field(t0, state, horizon).raw_temperature)  # pyright: ignore[reportArgumentType]
    slack = tiny(state.unknowns.raw_temperature.dtype) * (1 + abs(raw))  # pyright: ignore[reportOptionalMemberAccess]
    return int(raw >= high - slack and velocity > 0) - int(raw <= low + slack and velocity < 0)


def _toggle(flow: GradientFlow, state: State, pinned: int) -> tuple[State, int]:
    """Pin ν exactly at the bound that it reached, or release it when its velocity points inwards."""
    if pinned:
        return state, 0
    low, high = flow.schedule.temperature.bounds()  # pyright: ignore[reportGeneralTypeIssues]
    raw = state.unknowns.raw_temperature
    assert raw is not None
    upper = bool(abs(high - raw) < abs(raw - low))
    bound = jnp.asarray(high if upper else low, raw.dtype)
    return eqx.tree_at(lambda s: s.unknowns.raw_temperature, state, bound), 1 if upper else -1
