"""The result of a run: recorded series, the settings that produced them, and checks of conserved quantities."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from flowsim import theory
from flowsim.base.arrays import to_numpy
from flowsim.base.paths import to_config
from flowsim.integrate.descent import Descent
from flowsim.integrate.trajectory import Trajectory, final_status, is_filled
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.kernels import Shared
from flowsim.observables.table import entry
from flowsim.provenance import versions
from flowsim.records.result import Result, Simulation
from flowsim.records.status import Outcome


def assemble(
    flow: GradientFlow,
    start: Any,
    ran: Trajectory | Descent,
    options: dict[str, Any],
    resolve: Callable[[Simulation, float], Result] | None = None,
) -> Simulation:
    """The result of a run that has ended.

    Args:
        flow: The flow, with NumPy numbers.
        start: The start that the user gave; a recipe is written into the settings.
        ran: The run.
        options: The settings of the run.
        resolve: Function that integrates from a snapshot to a time after it; None if that is not possible.
    """
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
                # Arrays that flow have a time axis.
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
            why = entry(name).undefined or "undefined"
            reasons[name] = f"{why} (at {undefined.size} times, first at t = {first:.6g})"
    return Simulation(
        time=ran.ts,
        series={name: ran.series[name] for name in options["observables"] if name in ran.series},
        status=Outcome(status, ran.t, ran.label),
        config={"flow": flow.to_config(), "start": _described(start), "options": options},
        stats=dict(ran.stats),
        versions=versions(),
        snapshot_time=ran.kept[reached],
        snapshots=stored,
        constants=fixed,
        reasons=reasons,
        resolve=resolve,
        clock=ran.clock,
        memory=ran.memory,
    )


def _described(start: Any) -> dict[str, Any]:
    return to_config(start) if isinstance(start, AbstractRecipe) else {"kind": type(start).__name__}


def diagnose(flow: GradientFlow, result: Result, pairs: int | None) -> dict[str, float]:
    """Residual of the conserved quantity and largest relative increase of the loss, if they apply."""
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
        # The constant −βγ² of the logits drops out only of softmaxes.
        and flow.loss.softmax
        and temperature.bounds() is None
        and not flow.schedule.swap.active
        and {"log_gamma", "inverse_temperature"} <= s.keys()
        and float(temperature.lr_ratio) > 0
    ):
        good = np.isfinite(s["log_gamma"]) & np.isfinite(s["inverse_temperature"])
        if good.sum() > 1:
            series = s["log_gamma"][good], s["inverse_temperature"][good]
            policy = parametrization.potential, float(parametrization.scale), float(temperature.lr_ratio)
            kernel: Shared | None = getattr(flow.geometry, "kernel", None)
            if kernel is None or pairs is None:
                residual = theory.conserved_residual(*series, *policy)
            else:
                rates = pairs, float(kernel.own), float(kernel.shared)
                residual = theory.kernel_conserved_residual(*series, *rates, *policy)
            found["conserved_residual"] = float(np.max(np.abs(residual)))
    return found
