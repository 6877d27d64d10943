"""The closed form of a whole flow, as a `Simulation`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowsim.base.checks import check_whole
from flowsim.base.times import output_times
from flowsim.errors import FlowsimError
from flowsim.model.flow import GradientFlow
from flowsim.model.geometry import AbstractGeometry
from flowsim.model.initial import Start
from flowsim.model.recipe import as_start
from flowsim.model.temperature import AbstractTemperature
from flowsim.records.result import Simulation
from flowsim.records.status import Outcome, Status
from flowsim.theory.cones import fixed_temperature_trajectory, reduced_trajectory


def predict(
    flow: GradientFlow, start: Any, t1: float | None = None, ts: ArrayLike | None = None, *, seed: int = 0
) -> Simulation:
    """The closed form of a flow, as a `Simulation` like that of `fs.simulate`. Derived here.

    It exists for frozen directions of constant positive margin α: for `Reduced` if Z has a constant diagonal and a
    constant off-diagonal, and for `Parallel` from `fs.initial.simplex`, where all tangent forces vanish. Then

        d ln γ/dt = −2βg(a),  dβ/dt = r β'² (1−γ²) g(a),  g(a) = α(n−1)/(n−1 + e^{αa}),  a = β(1−γ²).

    Args:
        flow: A flow with a fixed temperature, or a learnable one without clamp, and the loss `InfoNCE` or
            `DirectedInfoNCE`.
        start: A `Start` or a recipe (drawn with `seed`).
        t1: Last flow time, as in `fs.simulate`.
        ts: Output times, as in `fs.simulate`.
        seed: Seed of the recipe.

    Returns:
        The series over flow time, without snapshots.

    Raises:
        FlowsimError: If the input is invalid or no closed form is known; the message names the reason.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow(geometry=fs.Reduced())
        >>> closed = fs.theory.predict(flow, fs.initial.simplex(pairs=5, gamma=0.3), t1=1e30)
        >>> round(float(closed.series["gamma"][-1]), 4)
        0.0146
    """
    if not isinstance(flow, GradientFlow):
        raise FlowsimError(
            f"Expected a GradientFlow, but got {type(flow).__name__}. Use fs.GradientFlow.from_preset('Baseline')."
        )
    check_whole("seed", seed, 0, "Use e.g. 0.")
    begin = as_start(start, seed)
    _check_flow(flow)
    cones = begin.as_cones(type(flow.geometry).__name__)
    frozen = _frozen(cones, flow.geometry)
    times = output_times(t1, ts)
    series = _series(cones, frozen, *_trajectory(flow.schedule.temperature, cones, frozen, times))
    return Simulation(
        time=times,
        series=series,
        status=Outcome(Status.PREDICTED, float(times[-1]), "closed form"),
        config={"flow": flow.to_config(), "start": {"kind": "Start"}, "options": {"seed": seed}},
        stats={},
        versions={},
        snapshot_time=np.empty(0),
        snapshots={},
        constants={},
        reasons={}
        if cones.image is not None
        else {"modality_gap": "needs rows, but the start holds only similarities"},
    )


class _Frozen(NamedTuple):
    """Directions that do not move: their constant margin and the number of pairs."""

    margin: float
    pairs: int


def _check_flow(flow: GradientFlow) -> None:
    """Refuse a flow without a closed form."""
    policy = flow.schedule.temperature
    known = policy.autonomous and (not policy.learnable or _potential(policy) is not None)
    _no_closed_form(
        [
            (not flow.geometry.has_gamma, f"the geometry `{type(flow.geometry).__name__}`"),
            (flow.loss.tile_weights is None, f"the loss `{type(flow.loss).__name__}`"),
            (not flow.pairing.identity, f"the pairing `{type(flow.pairing).__name__}`"),
            (flow.schedule.swap.active, "swaps"),
            (flow.geometry.has_kernels, "kernels"),
            (not flow.rule.is_gradient, f"the rule `{type(flow.rule).__name__}`"),
            (not known, f"the temperature policy `{type(policy).__name__}`"),
            (policy.bounds() is not None, "a clamped temperature"),
        ]
    )


def _potential(policy: AbstractTemperature) -> str | None:
    return None if policy.parametrization is None else policy.parametrization.potential


def _frozen(cones: Start, geometry: AbstractGeometry) -> _Frozen:
    """The directions of a start on parallel cones, which must be fixed and have a constant positive margin."""
    z = cones.image @ cones.text.T if cones.similarity is None else cones.similarity
    n = len(z)
    off = z[~np.eye(n, dtype=bool)]
    margin = float(np.mean(np.diagonal(z)) - np.mean(off))
    _no_closed_form(
        [
            (bool(max(np.ptp(np.diagonal(z)), np.ptp(off)) > 1e-12), "a similarity matrix without constant margin"),
            (margin <= 0, "mismatched pairs"),
            (not geometry.frozen_directions and not _is_simplex(z), "directions that move"),
        ]
    )
    return _Frozen(margin, n)


def _trajectory(
    policy: AbstractTemperature, cones: Start, frozen: _Frozen, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln γ and β at the times, (time,) each."""
    log_gamma0 = float(cones.log_gamma) if cones.log_gamma is not None else _log_or_zero(abs(float(cones.gamma)))
    margin, pairs = frozen
    beta0 = float(policy.inverse_temperature(0.0))
    if not policy.learnable:
        beta = np.full(len(times), beta0)
        return np.asarray(fixed_temperature_trajectory(times, log_gamma0, beta[0], margin, pairs)), beta
    parametrization = policy.parametrization
    assert parametrization is not None and parametrization.potential is not None, "checked by `_check_flow`"
    name, scale = parametrization.potential, float(parametrization.scale)
    log_gamma, beta = reduced_trajectory(times, log_gamma0, beta0, margin, pairs, name, scale, float(policy.lr_ratio))
    return np.asarray(log_gamma), np.asarray(beta)


def _series(cones: Start, frozen: _Frozen, log_gamma: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
    """All series of the run, from ln γ and β, (time,) each."""
    margin, n = frozen
    with np.errstate(under="ignore"):
        gamma = np.sign(float(cones.gamma)) * np.exp(log_gamma)
        loss = np.log1p((n - 1) * np.exp(-margin * beta * -np.expm1(2 * log_gamma)))
    gap = np.full(len(beta), np.nan)
    if cones.image is not None:
        centres = np.sum((cones.image.mean(0) - cones.text.mean(0)) ** 2)
        gap = np.sqrt((1 - gamma**2) * centres + 4 * gamma**2)
    return {
        "modality_gap": gap,
        "temperature": 1 / beta,
        "inverse_temperature": beta,
        "gamma": gamma,
        "log_gamma": log_gamma,
        "loss": loss,
        "margin": -np.expm1(2 * log_gamma) * margin,
        "direction_margin": np.full(len(beta), margin),
    }


def _is_simplex(z: np.ndarray) -> bool:
    """Whether Z is that of x_i = y_i at the corners of a regular simplex: 1, and −1/(n − 1) elsewhere."""
    n = len(z)
    return bool(np.abs(z - np.where(np.eye(n, dtype=bool), 1.0, -1 / (n - 1))).max() <= 1e-12)


def _log_or_zero(value: float) -> float:
    """ln of a number from 0 on; −inf for 0."""
    return math.log(value) if value > 0 else -math.inf


def _no_closed_form(obstacles: Sequence[tuple[bool, str]]) -> None:
    """Raise `FlowsimError` with the obstacles that are present."""
    found = [name for present, name in obstacles if present]
    if found:
        raise FlowsimError(f"No closed form is known for {' and '.join(found)}. Use fs.simulate.")
