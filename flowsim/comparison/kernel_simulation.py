"""Kernel simulation: does the run follow the flow of its own rows under its encoders' measured kernels?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.drawing import CLOSED, SIMULATED, along_run, dots
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.kernel_flow import (
    Curve,
    KernelFlow,
    Measured,
    fitted_factor,
    gap_in_training,
    measured_kernels,
)
from flowsim.comparison.limits import GAP_MOVED, LOG_TAU_MOVED, TRAJECTORY_POINTS, moved
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import rms
from flowsim.comparison.words import percent, short, undecided
from flowsim.plot import COLOURS, label

#: Misfit relative to the spread up to which a simulation agrees, and from which on it disagrees.
_FOLLOWS, _FOLLOWS_NOT = 0.25, 0.5

CRITERION = (
    "agrees if, with nothing fitted, the rms deviation of the gap (and of ln τ, where a learned one moved by more than "
    f"{LOG_TAU_MOVED:g}) is at most {_FOLLOWS:g} of the run's own standard deviation, and disagrees from "
    f"{_FOLLOWS_NOT:g} of it on; no verdict with fewer than {TRAJECTORY_POINTS} evaluations, for a gap that moved by "
    f"less than {100 * GAP_MOVED:.0f} %, and unless the kernels are of all pairs of the run and each of its losses was "
    "of all of them"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Gap and τ of the run and of each flow over `axis`, (T,) each; τ is None if it was not recorded."""

    axis: np.ndarray
    axis_label: str
    gap: np.ndarray
    tau: np.ndarray | None
    flows: dict[str, Curve]


#: Keys of the flows in the numbers -> how a figure names them.
NAMES = {
    "frozen": "first kernels", "measured_again": "kernels measured again", "one_factor": "first, one factor of time",
    "free_rows": "free rows",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Found:
    """The flows of a run from its first measured kernels on, and their deviations from it."""

    run: Run
    kernels: Measured
    axis: np.ndarray
    gap: np.ndarray
    log_tau: np.ndarray | None
    flows: dict[str, Curve]
    factor: float

    def deviations(self, name: str) -> tuple[float, float | None]:
        """Rms deviation of gap and of ln τ (None if it did not move) of a flow."""
        curve = self.flows[name]
        return rms(curve.gap - self.gap), None if self.log_tau is None else rms(curve.log_tau - self.log_tau)

    @property
    def relative(self) -> tuple[float, float | None]:
        """Deviations of the flow with the first kernels, relative to the spread of the run."""
        gap, log_tau = self.deviations("frozen")
        spread = None if self.log_tau is None else float(np.std(self.log_tau))
        return gap / float(np.std(self.gap)), None if log_tau is None or spread is None else log_tau / spread

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        found: dict[str, Any] = {
            "pairs": self.kernels.pairs, "first_step": float(self.kernels.step[0]),
            "measurements": len(self.kernels.step), "spread_gap": float(np.std(self.gap)),
            "spread_log_tau": None if self.log_tau is None else float(np.std(self.log_tau)),
            "relative_gap": self.relative[0], "relative_log_tau": self.relative[1], "factor": self.factor,
            "final_gap": float(self.gap[-1]),
        }  # fmt: skip
        for name, curve in self.flows.items():
            gap, log_tau = self.deviations(name)
            found |= {f"rms_gap_{name}": gap, f"rms_log_tau_{name}": log_tau, f"final_gap_{name}": float(curve.gap[-1])}
        return found

    def sentence(self) -> str:
        """The finding in words, without a verdict."""
        frozen, again, free = (self.deviations(name) for name in ("frozen", "measured_again", "free_rows"))
        tau = "" if frozen[1] is None else f", ln τ by {short(frozen[1])}"
        return (
            f"From {self.kernels.pairs} pairs at step {self.kernels.step[0]:.0f} with the kernels measured there and "
            f"nothing fitted, the gap deviates by {short(frozen[0])}, {percent(self.relative[0])} of its spread{tau}; "
            f"with kernels measured again at {len(self.kernels.step)} steps by {short(again[0])}, free rows by "
            f"{short(free[0])}."
        )

    def curves(self) -> Curves:
        """Data of the panels."""
        tau = None if self.log_tau is None else np.exp(self.log_tau)
        return Curves(self.axis, self.run.axis_label, self.gap, tau, self.flows)


def measure(run: Run) -> Found:
    """Simulate a run from its first measured kernels on; raises `CannotTell`."""
    run.known_schedule()
    kernels = measured_kernels(run)
    assert run.step is not None
    after = run.step >= kernels.step[0]
    gap, recorded = gap_in_training(run)[after], None if run.log_tau is None else run.log_tau[after]
    if len(gap) < TRAJECTORY_POINTS:
        raise CannotTell(f"Only {len(gap)} evaluations follow the first kernels; {TRAJECTORY_POINTS} are needed.")
    if not moved(gap):
        raise CannotTell(f"The gap moved by only {percent(np.ptp(gap) / gap.max())}: any simulation would fit.")
    compared = run.learnable is not None and recorded is not None and np.ptp(recorded) > LOG_TAU_MOVED
    log_tau = recorded if compared else None
    frozen, free = KernelFlow(run, kernels, 0), KernelFlow(run, kernels, 0, free=True)
    factor = fitted_factor(frozen, gap, log_tau)
    flows = {
        "frozen": frozen.at(),
        "measured_again": KernelFlow(run, kernels, 0, again=True).at(),
        "one_factor": frozen.at(factor),
        "free_rows": free.at(),
    }
    for name, curve in flows.items():
        if not np.isfinite(curve.gap).all():
            raise CannotTell(f"The flow ({NAMES[name]}) stopped before the run did.")
    return Found(run, kernels, frozen.step, gap, log_tau, flows, factor)


def judge(found: Found) -> tuple[Verdict, str]:
    """The verdict, and the reason if data is missing for one, else ""."""
    if missing := found.run.not_simulated(found.kernels.pairs):
        return "cannot tell", missing
    worst = max(value for value in found.relative if value is not None)
    return "agrees" if worst <= _FOLLOWS else "disagrees" if worst >= _FOLLOWS_NOT else "cannot tell", ""


_STYLES = {
    "frozen": (SIMULATED, "-"), "measured_again": (COLOURS["green"], (0, (4, 2))), "one_factor": (CLOSED, (0, (1, 1))),
    "free_rows": (COLOURS["grey"], "-"),
}  # fmt: skip


def draw_gap(curves: Curves, ax: Axes) -> None:
    """Draw the gap of the run and of each flow."""
    along_run(curves.axis, curves.axis_label, ax)
    dots(curves.axis, curves.gap, ax)
    for name, curve in curves.flows.items():
        colour, style = _STYLES[name]
        ax.plot(curves.axis, curve.gap, color=colour, ls=style, lw=1.2, label=NAMES[name], zorder=1.9)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best", fontsize=6)


def draw_temperature(curves: Curves, ax: Axes) -> None:
    """Draw the temperature of the run and of each flow."""
    assert curves.tau is not None
    along_run(curves.axis, curves.axis_label, ax)
    dots(curves.axis, curves.tau, ax)
    for name, curve in curves.flows.items():
        colour, style = _STYLES[name]
        ax.plot(curves.axis, np.exp(curve.log_tau), color=colour, ls=style, lw=1.2, label=NAMES[name], zorder=1.9)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("temperature"))


@register(
    "kernel_simulation",
    title="Kernel simulation",
    criterion=CRITERION,
    panels=(
        Panel(draw_gap, "Gap: run and kernel flow"),
        Panel(draw_temperature, "Temperature: run and kernel flow", lambda curves: curves.tau is not None),
    ),
)
def kernel_simulation(runs: Sequence[Run]) -> Finding[Curves]:
    """The first run compared with the flow of its own rows under its measured kernels."""
    found = measure(runs[0])
    verdict, missing = judge(found)
    sentence = undecided(found.sentence(), missing) if missing else found.sentence()
    return Finding(verdict, sentence, found.numbers(), found.curves())
