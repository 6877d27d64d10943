"""Simulation: does the run follow the flow from its own embeddings?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.clock import Fit, Window, fit_factor, time_axis
from flowsim.comparison.cones import Cones, fit_cones
from flowsim.comparison.drawing import CLOSED, SIMULATED, along_run, dots
from flowsim.comparison.flow import ScaledFlow, chosen_rows, schedule_from
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.limits import GAP_MOVED, LOG_TAU_MOVED, TRAJECTORY_POINTS, moved
from flowsim.comparison.record import Rows, Run
from flowsim.comparison.statistics import rms
from flowsim.comparison.words import between, percent, short, undecided
from flowsim.plot import label

#: Misfit relative to the spread up to which a simulation agrees, and from which on it disagrees.
_FOLLOWS, _FOLLOWS_NOT = 0.25, 0.5

CRITERION = (
    f"agrees if the rms deviation of the gap (and of ln τ, where a learned one moved by more than {LOG_TAU_MOVED:g}) "
    f"is at most {_FOLLOWS:g} of the run's own standard deviation, disagrees from {_FOLLOWS_NOT:g} of it on; one "
    f"factor of time is fitted; no verdict with fewer than {TRAJECTORY_POINTS} evaluations, for a gap that moved by "
    f"less than {100 * GAP_MOVED:.0f} %, unless all pairs of the run are simulated and each of its losses was of all "
    "of them, and where the simulation stopped while its gap moved"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """The whole run over `axis`, and the simulation and the closed form at the compared evaluations."""

    axis: np.ndarray
    axis_label: str
    gap: np.ndarray
    tau: np.ndarray | None
    x: np.ndarray
    simulated_gap: np.ndarray
    simulated_tau: np.ndarray
    closed: Cones | None


@dataclasses.dataclass(frozen=True)
class Measured:
    """A simulation whose time was fitted to the run at the evaluations of `window`."""

    run: Run
    rows: Rows
    #: Where the simulation starts, in words.
    start: str
    #: The run's clock since then, (T,).
    clock: np.ndarray
    window: Window
    flow: ScaledFlow
    fit: Fit
    #: Deviations relative to the spread of the run; for ln τ only if it moved.
    relative_gap: float
    relative_log_tau: float | None
    closed: Cones | None

    @property
    def unit(self) -> str:
        """Unit of the factor of time."""
        if self.flow.steady:
            return "per unit of the run's clock"
        return f"per {'step' if self.run.step is not None else 'unit of time'}"

    @property
    def rms_gap(self) -> float:
        """Rms deviation of the gap."""
        return rms(self.fit.gap - self.window.gap)

    @property
    def rms_log_tau(self) -> float | None:
        """Rms deviation of ln τ, None if it was not recorded."""
        return None if self.window.log_tau is None else rms(self.fit.log_tau - self.window.log_tau)

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        rows, log_tau = self.rows, self.window.log_tau
        found: dict[str, Any] = {
            "pairs": len(rows[0]), "start": self.start, "clock": self.run.clock_name,
            "time_factor": self.fit.factor, "time_factor_interval": self.fit.interval,
            "time_factor_unit": f"flow time {self.unit}",
            "rms_gap": self.rms_gap, "spread_gap": float(np.std(self.window.gap)), "relative_gap": self.relative_gap,
            "rms_log_tau": self.rms_log_tau,
            "spread_log_tau": None if log_tau is None else float(np.std(log_tau)),
            "relative_log_tau": self.relative_log_tau,
            "gap_of_rows": float(np.linalg.norm(rows[0].mean(0) - rows[1].mean(0))),
            "gap_of_run": float(self.window.gap[0]),
        }  # fmt: skip
        if self.closed is not None:
            found |= {
                "closed_form_margin": self.closed.margin,
                "closed_form_time_factor": self.closed.factor,
                "closed_form_rms_gap": self.closed.rms_gap,
                "closed_form_relative_gap": self.closed.relative_gap,
            }
        return found

    def sentence(self) -> str:
        """The finding in words, without a verdict."""
        within = "" if self.fit.interval is None else f" ({between(self.fit.interval)})"
        deviation = f"the gap deviates by {short(self.rms_gap)}, {percent(self.relative_gap)} of its spread"
        if self.relative_log_tau is not None and self.rms_log_tau is not None:
            deviation += f", and ln τ by {short(self.rms_log_tau)}, {percent(self.relative_log_tau)}"
        return (
            f"From {len(self.rows[0])} pairs {self.start}, with {short(self.fit.factor)}{within} units of flow time "
            f"{self.unit}, {deviation}.{self._reference()}"
        )

    def _reference(self) -> str:
        """A sentence where the run had other parts than the simulation."""
        others = self.run.settings.other_parts
        return f" The simulation has InfoNCE and matched pairs, the run {' and '.join(others)}." if others else ""

    def curves(self) -> Curves:
        """Data of the panels."""
        run, log_tau = self.run, self.run.log_tau
        return Curves(
            run.axis,
            run.axis_label,
            run.gap,
            None if log_tau is None else np.exp(log_tau),
            self.window.axis,
            self.fit.gap,
            np.exp(self.fit.log_tau),
            self.closed,
        )


def measure(run: Run) -> Measured:
    """Simulate from the run's own rows and fit the factor of time; raises `CannotTell`."""
    run.known_schedule()
    if not len(run.snapshot_time):
        raise CannotTell("The run holds no embeddings to start a simulation from.")
    index, start = _first_epoch(run)
    rows = chosen_rows(run, index)
    if rows is None:
        raise CannotTell("The run's snapshots hold no rows to start a simulation from.")
    first = int(np.argmin(np.abs(run.time - run.snapshot_time[index])))
    window = Window.of(run, first)
    gap, log_tau = window.gap, window.log_tau
    if len(gap) < TRAJECTORY_POINTS:
        raise CannotTell(f"Only {len(gap)} evaluations follow the snapshot; {TRAJECTORY_POINTS} are needed.")
    if not moved(gap):
        raise CannotTell(
            f"The gap moved by only {percent(np.ptp(gap) / gap.max())} after the snapshot: any simulation would fit.",
            gap_range=[float(gap.min()), float(gap.max())],
        )
    clock = window.time - time_axis(run)[first]
    compared = run.learnable is not None and log_tau is not None and np.ptp(log_tau) > LOG_TAU_MOVED
    flow = ScaledFlow(rows, schedule_from(run, first))
    used = np.ones(len(clock), bool)
    fit = fit_factor(flow.at, clock, gap, log_tau if compared else None, used, flow.steady, flow.last)
    if not np.isfinite(fit.gap).all():
        raise CannotTell("The simulation ended before the run for every factor of time.")
    relative_gap = rms(fit.gap - gap) / float(np.std(gap))
    relative_log_tau = None
    if compared and log_tau is not None:
        relative_log_tau = rms(fit.log_tau - log_tau) / float(np.std(log_tau))
    closed = fit_cones(run, window, clock)
    return Measured(run, rows, start, clock, window, flow, fit, relative_gap, relative_log_tau, closed)


def judge(found: Measured) -> tuple[Verdict, str]:
    """The verdict, and the reason if data is missing for one, else ""."""
    worst = found.relative_gap if found.relative_log_tau is None else max(found.relative_gap, found.relative_log_tau)
    verdict: Verdict = "agrees" if worst <= _FOLLOWS else "disagrees" if worst >= _FOLLOWS_NOT else "cannot tell"
    missing = found.run.not_simulated(len(found.rows[0]))
    if not missing and verdict == "disagrees" and found.flow.cut(found.fit.factor * float(found.clock[-1])):
        missing = "the simulation stopped there while its gap still moved"
    return ("cannot tell", missing) if missing else (verdict, "")


def draw_gap(curves: Curves, ax: Axes) -> None:
    """Draw the gap of the run, the simulation and the closed form."""
    along_run(curves.axis, curves.axis_label, ax)
    dots(curves.axis, curves.gap, ax)
    ax.plot(curves.x, curves.simulated_gap, color=SIMULATED, label="simulation", zorder=1.9)
    if curves.closed is not None:
        _draw_closed(curves.closed.axis, curves.closed.gap, ax)
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def draw_temperature(curves: Curves, ax: Axes) -> None:
    """Draw the temperature of the run, the simulation and the closed form."""
    assert curves.tau is not None
    along_run(curves.axis, curves.axis_label, ax)
    dots(curves.axis, curves.tau, ax)
    ax.plot(curves.x, curves.simulated_tau, color=SIMULATED, label="simulation", zorder=1.9)
    if curves.closed is not None:
        _draw_closed(curves.closed.axis, curves.closed.tau, ax)
    drawn = np.concatenate([np.ravel(np.asarray(line.get_ydata())) for line in ax.lines])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.max() > 10 * drawn.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(label("temperature"))
    ax.legend(loc="best")


@register(
    "simulation",
    title="Simulation",
    criterion=CRITERION,
    panels=(
        Panel(draw_gap, "Gap: run, simulation, closed form"),
        Panel(draw_temperature, "Temperature", lambda curves: curves.tau is not None),
    ),
)
def simulation(runs: Sequence[Run]) -> Finding[Curves]:
    """The first run compared with the flow from its own rows."""
    found = measure(runs[0])
    verdict, missing = judge(found)
    sentence = undecided(found.sentence(), missing) if missing else found.sentence()
    return Finding(verdict, sentence, found.numbers(), found.curves())


def _first_epoch(run: Run) -> tuple[int, str]:
    """The snapshot to start from: after the first epoch if stored, or the first one if the schedule needs it."""
    times, epoch = run.snapshot_time, run.epoch
    constant = run.schedule is None or run.schedule.temperature.autonomous
    if epoch is not None and constant:
        at = np.interp(times, run.time, epoch)
        near = int(np.argmin(np.abs(at - 1)))
        if 0 < near < len(times) - 1 and abs(at[near] - 1) < 0.5:
            return near, "after the first epoch"
    return 0, "at the start"


def _draw_closed(x: np.ndarray, y: np.ndarray, ax: Axes) -> None:
    ax.plot(x, y, color=CLOSED, ls=(0, (4, 2)), lw=1, label="parallel cones")
