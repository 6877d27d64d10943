"""The flow of a run's own rows under the kernels that were measured during the run."""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

from flowsim.comparison.flow import compressed
from flowsim.comparison.record import CannotTell, Rows, Run
from flowsim.integrate.descend import descend
from flowsim.integrate.simulate import simulate
from flowsim.model.curves import Piecewise
from flowsim.model.flow import GradientFlow
from flowsim.model.geometry.rows import Sphere
from flowsim.model.initial import from_arrays
from flowsim.model.kernels import Dense
from flowsim.model.schedules import Schedule

#: Output times of each piece, the same in all so that one program serves them.
_POINTS = 65
#: Points of a temperature in progress within a piece.
_TEMPERATURES = 33
#: Gaps of minibatches are averaged over this fraction of the steps taken, before and after.
_AVERAGED = 0.02
#: Most steps of a piece.
_STEPS = 4_000
#: Logarithms of the factors of time that are simulated to fit one.
FACTORS = np.linspace(math.log(0.05), math.log(20.0), 13)


@dataclasses.dataclass(frozen=True)
class Measured:
    """Kernels and rows of a run at K steps.

    Attributes:
        step: Steps of the measurements, (K,).
        time: Flow time of the embeddings at these steps, (K,): the sum of learning rates, by momentum 1/(1 − momentum)
            times as long.
        rows: Unit rows at each of them, (m, d) each.
        image: Kernels of the images, (K, m, m).
        text: Kernels of the texts, (K, m, m).
        temperature_scale: Factor on the learning rate of ν, (K,).
    """

    step: np.ndarray
    time: np.ndarray
    rows: list[Rows]
    image: np.ndarray
    text: np.ndarray
    temperature_scale: np.ndarray

    @property
    def pairs(self) -> int:
        """m."""
        return self.image.shape[-1]

    def until(self, step: float) -> "Measured":
        """Without the measurements after a step."""
        count = int(np.sum(self.step <= step))
        parts = (self.step, self.time, self.rows, self.image, self.text, self.temperature_scale)
        return Measured(*(part[:count] for part in parts))  # pyright: ignore[reportArgumentType]


def measured_kernels(run: Run) -> Measured:
    """The kernels in the record of a run; raises `CannotTell` without any."""
    record = run.trained_record
    if record is None or not len(record.kernel_step) or run.step is None:
        raise CannotTell("The run holds no kernels of its encoders. Train with `kernels=8` to measure them.")
    if not run.result.config.get("training", {}).get("normalize", True):
        raise CannotTell("The kernels are those of features that were not normalised, and not of rows on the sphere.")
    held = record.kernels
    if "image_matrix" not in held or not np.isfinite(held["image_matrix"]).all():
        raise CannotTell("The run holds no whole kernels.")
    image, text = (_of_batches(run, np.asarray(held[f"{name}_matrix"], np.float64)) for name in ("image", "text"))
    if not (image.any(axis=(1, 2)).all() and text.any(axis=(1, 2)).all()):
        raise CannotTell("The kernel of a frozen tower is 0, and a flow with fixed rows is not simulated.")
    rows = [_unit(pair) for pair in zip(held["image"], held["text"], strict=True)]
    return Measured(
        record.kernel_step, flow_time(run, record.kernel_step), rows, image, text, held["temperature_scale"]
    )


def gap_in_training(run: Run) -> np.ndarray:
    """The gap at the evaluations of a run, (T,), of the rows that its steps saw.

    With batch normalisation these are not the rows of an evaluation, which uses running statistics. Gaps of minibatches
    are averaged over a few steps.
    """
    batch, step = run.batch_gap, run.step
    if batch is None or step is None or not np.isfinite(batch).all():
        return run.gap
    width = np.round(_AVERAGED * step).astype(int) if run.minibatches else np.zeros(len(step), int)
    found = []
    for k, w in zip(step.astype(int), width, strict=True):
        near = batch[max(0, k - w) : k + w + 1]
        found.append(float(np.mean(near if len(near) else batch[-1 - w :])))
    return np.array(found)


def flow_time(run: Run, step: np.ndarray) -> np.ndarray:
    """The flow time of the embeddings at steps."""
    assert run.step is not None
    training = run.result.config.get("training", {})
    momentum = float(training.get("momentum") or 0.0) if training.get("optimizer") == "sgd" else 0.0
    return np.interp(step, run.step, run.clock) / (1 - momentum)


def _of_batches(run: Run, kernels: np.ndarray) -> np.ndarray:
    """Kernels (K, m, m) of the mean motion of a run on minibatches of B of N pairs, positive semidefinite.

    A row is in a batch with probability B/N, so that the part of the kernel that only the row itself feels acts B/N as
    fast. That part is the smallest eigenvalue.
    """
    pairs, trained = run.pairs, run.trained
    share = 1.0 if pairs is None or trained is None else min(1.0, pairs / trained)
    found = []
    for matrix in kernels:
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        # Records hold single precision, whose rounding can make an eigenvalue of 0 negative.
        values = np.maximum(values, 0.0)
        made = (vectors * (values - (1 - share) * values[0])) @ vectors.T
        found.append((made + made.T) / 2)
    return np.array(found)


def _unit(rows: Any) -> Rows:
    image, text = (np.asarray(x, np.float64) for x in rows)
    return tuple(x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))  # pyright: ignore


@dataclasses.dataclass(frozen=True)
class Curve:
    """Gap and ln τ at the evaluations of a run from a step on, (T,) each; NaN where the flow stopped."""

    gap: np.ndarray
    log_tau: np.ndarray


class KernelFlow:
    """The flow from the rows of one measurement, until the end of the run.

    With swaps it is a descent in the run's own steps, because the average over swaps is expensive.

    Args:
        run: The run.
        kernels: Its kernels.
        first: The measurement whose rows it starts from.
        again: Whether later measurements replace the kernels (piecewise constant in time).
        free: Whether rows move freely, K = 1, instead.
        until: The step at which it ends; None for the end of the run.

    Attributes:
        step: The evaluations of the run from the start of the flow on, (T,).
    """

    def __init__(
        self,
        run: Run,
        kernels: Measured,
        first: int,
        again: bool = False,
        free: bool = False,
        until: float | None = None,
    ) -> None:
        self.run, self.kernels, self.first, self.free = run, kernels, first, free
        policy = run.known_schedule().temperature
        if policy.learnable and run.learnable is None:
            raise CannotTell(f"The temperature {type(policy).__name__} is not simulated with kernels.")
        assert run.step is not None
        begin, last = float(kernels.step[first]), float(run.step[-1]) if until is None else until
        self.step = run.step[(run.step >= begin) & (run.step <= last)]
        self._index = int(np.searchsorted(run.step, begin))
        changes = [float(s) for s in kernels.step[first:] if s < last] if again else [begin]
        ends = [*changes[1:], last]
        self._pieces = [(first + k, a, b) for k, (a, b) in enumerate(zip(changes, ends, strict=True)) if b > a]

    def at(self, factor: float = 1.0) -> Curve:
        """Gap and ln τ, if flow time runs `factor` times as fast as the run's."""
        rows, tau = self.kernels.rows[self.first], self._temperature(self._index)
        steps, gaps, taus = [self.step[:1]], [], []
        for k, begin, end in self._pieces:
            ran = self._piece(k, begin, end, rows, tau, factor)
            gap, beta = ran.series["modality_gap"], ran.series["inverse_temperature"]
            if not (ran.status.ok and np.isfinite(gap).all() and np.isfinite(beta).all()):
                break
            final = ran.final
            rows, tau = (final.image, final.text), float(1 / beta[-1])
            # Back from the time of the piece to steps, on which flow time depends through the learning rates.
            grid = np.linspace(begin, end, 513)
            clock = flow_time(self.run, grid)
            steps.append(np.interp(clock[0] + ran.time[1:] / factor, clock, grid))
            gaps += [gap[:1], gap[1:]] if not gaps else [gap[1:]]
            taus += [1 / beta[:1], 1 / beta[1:]] if not taus else [1 / beta[1:]]
        if not gaps:
            return Curve(np.full(len(self.step), np.nan), np.full(len(self.step), np.nan))
        axis, gap, log_tau = np.concatenate(steps), np.concatenate(gaps), np.log(np.concatenate(taus))
        there = self.step <= axis[-1] * (1 + 1e-9)
        return Curve(*(np.where(there, np.interp(self.step, axis, values), np.nan) for values in (gap, log_tau)))

    @functools.cached_property
    def scan(self) -> tuple[np.ndarray, np.ndarray]:
        """Gap and ln τ for every factor exp(`FACTORS`), (13, T) each."""
        schedule = self.run.known_schedule()
        if len(self._pieces) == 1 and schedule.temperature.autonomous and not schedule.swap.active:
            curves = self._from_one()
        else:
            curves = [self.at(math.exp(x)) for x in FACTORS]
        return np.array([curve.gap for curve in curves]), np.array([curve.log_tau for curve in curves])

    def _from_one(self) -> list[Curve]:
        """Curves of every factor from one simulation, which lasts as long as the largest factor needs."""
        ((k, begin, end),) = self._pieces
        largest = math.exp(FACTORS[-1])
        ran = self._piece(k, begin, end, self.kernels.rows[self.first], self._temperature(self._index), largest)
        gap, log_tau = ran.series["modality_gap"], -np.log(ran.series["inverse_temperature"])
        there = np.isfinite(gap) & np.isfinite(log_tau)
        clock = flow_time(self.run, self.step)
        # Early times are resolved on a logarithmic axis, whose first point is that of the simulation.
        x, unit = np.log1p(ran.time[there] / ran.time[1]), ran.time[1]
        found = []
        for factor in np.exp(FACTORS):
            at = np.log1p(factor * (clock - clock[0]) / unit)
            found.append(Curve(*(np.interp(at, x, v[there], right=np.nan) for v in (gap, log_tau))))
        return found

    def _temperature(self, index: int) -> float:
        """τ of the run at an evaluation."""
        beta, policy = self.run.beta, self.run.known_schedule().temperature
        return float(policy.temperature(0.0, policy.initial_raw())) if beta is None else float(1 / beta[index])

    def _piece(self, k: int, begin: float, end: float, rows: Rows, tau: float, factor: float) -> Any:
        """The flow between two steps, with the kernels of measurement k."""
        times = flow_time(self.run, np.array([begin, end]))
        span, kernels = factor * float(times[1] - times[0]), self.kernels
        geometry = Sphere() if self.free else Sphere(1.0, Dense(kernels.image[k]), Dense(kernels.text[k]))
        flow = GradientFlow(geometry, self._schedule(begin, end, tau, float(kernels.temperature_scale[k])))
        start, observed = from_arrays(*compressed(*rows)), ("modality_gap", "inverse_temperature")
        if flow.schedule.swap.active:
            count = max(1, round(end - begin))
            return descend(flow, start, "sgd", span / count, count, seed=self._seed, observables=observed, throw=False)
        ts = np.concatenate([[0.0], np.geomspace(span / 1e4, span, _POINTS - 1)])
        return simulate(
            flow, start, ts=ts, rtol=1e-5, atol=1e-7, method="stabilised", max_steps=_STEPS, throw=False,
            snapshots=[0.0, span], observables=observed,
        )  # fmt: skip

    @property
    def _seed(self) -> int:
        return int(self.run.result.config.get("training", {}).get("seed", 0))

    def _schedule(self, begin: float, end: float, tau: float, scale: float) -> Schedule:
        """The schedule of a piece: ν starts at τ, its learning rate scaled; a temperature in progress by points."""
        schedule = self.run.known_schedule()
        policy: Any = schedule.temperature
        if policy.learnable:
            if policy.clamp is not None:  # a rounded clamp could exclude the value
                tau = min(max(tau, float(policy.clamp[0])), float(policy.clamp[1]))
            ratio = float(policy.lr_ratio) * scale
            starting = dataclasses.replace(policy.starting_at(tau), lr_ratio=ratio)
            return dataclasses.replace(schedule, temperature=starting)
        if policy.autonomous:
            return schedule
        # Progress is in steps, and the time of a piece is the sum of learning rates.
        grid = np.linspace(begin, end, 513)
        clock = flow_time(self.run, grid)
        share = np.linspace(0.0, 1.0, _TEMPERATURES)
        at = np.interp(clock[0] + share * (clock[-1] - clock[0]), clock, grid) / float(self.run.axis[-1])
        points = tuple((float(u), float(policy.temperature(v))) for u, v in zip(share, at, strict=True))
        return dataclasses.replace(schedule, temperature=Piecewise(points))


def fitted_factor(flow: KernelFlow, gap: np.ndarray, log_tau: np.ndarray | None, used: slice = slice(None)) -> float:
    """The factor of time, from 0.05 to 20, that brings a flow closest to gap and ln τ of the run.

    It minimises the mean square of the deviations, each relative to its own spread. Between factors that were simulated
    the flow is interpolated.

    Args:
        flow: The flow.
        gap: Gap at its evaluations, (T,).
        log_tau: ln τ there; None to fit the gap alone.
        used: Evaluations that count.
    """
    fine = np.linspace(FACTORS[0], FACTORS[-1], 401)
    cost = np.zeros(len(fine))
    for values, known in zip(flow.scan, (gap, log_tau), strict=True):
        if known is not None:
            run, spread = known[used], max(float(np.std(known[used])), 1e-12)
            between = np.array([np.interp(fine, FACTORS, column) for column in values[:, used].T])
            cost = cost + np.mean(((between - run[:, None]) / spread) ** 2, axis=0)
    return math.exp(float(fine[int(np.nanargmin(np.where(np.isfinite(cost), cost, 1e6)))]))
