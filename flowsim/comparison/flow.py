"""The flow that is simulated from a run's own rows."""

import dataclasses

import numpy as np

from flowsim.comparison.clock import LAST, Curve, grid
from flowsim.comparison.record import Rows, Run
from flowsim.integrate.simulate import simulate
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import from_arrays
from flowsim.model.pairing import LabelNoise, Matched
from flowsim.model.schedules import Schedule

#: Most pairs of a simulation.
MAX_PAIRS = 128
#: Last times at fixed temperature and with label noise, where the flow becomes stiff at its equilibrium.
_LAST_FIXED, _LAST_NOISY = 1e6, 1e4


class ScaledFlow:
    """The flow on `Sphere` from given rows, as a function of the factor between its time and the run's clock.

    Attributes:
        steady: Whether one simulation serves every factor. With a schedule in progress each factor is another flow.
        last: Last time of that simulation.
        curve: That simulation, None if not `steady`.
    """

    def __init__(self, rows: Rows, schedule: Schedule, noise: float | None = None) -> None:
        self.start = from_arrays(*compressed(*rows))
        pairing = Matched() if noise is None else LabelNoise(noise)
        # Explicit, because the flow becomes stiff only at rest, when nothing more happens. 2000 steps, the default of a
        # simulation, reuse its compiled program; with many pairs they would take minutes.
        self._steps = 2000 if noise is None and self.start.pairs <= 32 else 400
        self.flow = GradientFlow(schedule=schedule, pairing=pairing)
        self.steady = schedule.temperature.autonomous
        learned = schedule.temperature.learnable
        self.last = _LAST_NOISY if noise is not None else LAST if learned else _LAST_FIXED
        self.curve: Curve | None = None
        if self.steady:
            self.curve = self._run(grid(self.last))

    def cut(self, last: float) -> bool:
        """Whether the simulation stopped before or near time `last`, the end of the run, while its gap still moved."""
        if self.curve is None:
            return False
        reached = np.flatnonzero(np.isfinite(self.curve.gap))
        gap, end = self.curve.gap[reached], float(self.curve.s[reached[-1]])
        late = gap[self.curve.s[reached] >= end / 2]
        return last >= 0.8 * end and bool(np.ptp(late) > 0.02 * np.max(gap))

    def _run(self, ts: np.ndarray) -> Curve:
        """One simulation, at the times `ts` (T,)."""
        ran = simulate(
            self.flow,
            self.start,
            ts=ts,
            rtol=1e-6,
            atol=1e-8,
            method="explicit",
            max_steps=self._steps,
            throw=False,
            snapshots=ts,
            observables=("modality_gap", "inverse_temperature"),
        )
        gap, log_tau = ran.series["modality_gap"], -np.log(ran.series["inverse_temperature"])
        return Curve(ts, gap, log_tau)

    def at(self, factor: float, clock: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gap and ln τ at times factor × clock, (T,) each; `clock` starts at 0."""
        if self.curve is not None:
            return self.curve.at(factor * clock)
        ran = self._run(factor * clock)
        return ran.gap, ran.log_tau


def compressed(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows in a basis of their span, which the flow never leaves; unchanged if that is not smaller."""
    stacked = np.concatenate([image, text])
    if stacked.shape[1] <= len(stacked):
        return image, text
    basis = np.linalg.qr(stacked.T)[0]
    return image @ basis, text @ basis


def schedule_from(run: Run, index: int) -> Schedule:
    """The run's schedule, with a learnable temperature started at its value at that evaluation."""
    assert run.schedule is not None
    policy, beta = run.learnable, run.beta
    if policy is None or beta is None or not beta[index] > 0:
        return run.schedule
    tau = 1 / beta[index]
    if policy.clamp is not None:  # a rounded clamp could exclude the value
        tau = min(max(tau, float(policy.clamp[0])), float(policy.clamp[1]))
    return dataclasses.replace(run.schedule, temperature=policy.starting_at(tau))


def chosen_rows(run: Run, index: int) -> Rows | None:
    """A batch of rows of a snapshot, at most `MAX_PAIRS` (16 with swaps, which average over masks); None if too few."""
    rows = run.rows(index)
    if rows is None:
        return None
    most = 16 if run.schedule is not None and run.schedule.swap.active else MAX_PAIRS
    count = min(len(rows[0]), run.pairs or MAX_PAIRS, most)
    if count < 2:
        return None
    # Rows of a record may be sorted by source, so choose at random, with a fixed seed.
    chosen = np.arange(count)
    if count < len(rows[0]):
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows[0]))[:count])
    return rows[0][chosen], rows[1][chosen]
