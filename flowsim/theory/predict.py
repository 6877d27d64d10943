"""The closed form of a whole flow, as the same `Result` that a simulation returns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from flowsim.base.arrays import check_whole
from flowsim.base.times import output_times
from flowsim.errors import FlowsimError
from flowsim.records.result import Outcome, Result, Status
from flowsim.theory.cones import fixed_temperature_trajectory, reduced_trajectory

#: Parametrizations of the model -> their names in the formulas.
_NAMES_IN_FORMULAS = {"Exp": "exp", "ScaledExp": "exp", "Softplus": "softplus", "Identity": "identity"}


def predict(flow: Any, start: Any, t1: float | None = None, ts: ArrayLike | None = None, *, seed: int = 0) -> Result:
    """The closed form of a flow from a start, as the same `Result` that `fs.simulate` returns. Derived here.

    It exists for frozen directions of constant positive margin α: `Reduced` with Z of constant diagonal and
    constant off-diagonal, and `Parallel` from `fs.initial.simplex`, where no force has a tangent part. Then

        d ln γ/dt = −2βg(a),  dβ/dt = r β'² (1−γ²) g(a),  g(a) = α(n−1)/(n−1 + e^{αa}),  a = β(1−γ²).

    Args:
        flow: a `GradientFlow`, its temperature fixed, or learnable without clamp.
        start: where it begins, as in `fs.simulate`.
        t1: the last flow time, as in `fs.simulate`.
        ts: the times of output, as in `fs.simulate`.
        seed: draws a random start.

    Returns:
        The series of the run, of shape (time,), without snapshots.

    Raises:
        FlowsimError: for what is no flow or no start, and, with the reason, where no closed form is known.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow(geometry=fs.Reduced())
        >>> closed = fs.theory.predict(flow, fs.initial.simplex(pairs=5, gamma=0.3), t1=1e30)
        >>> round(float(closed.series["gamma"][-1]), 4)
        0.0146
    """
    if not hasattr(flow, "to_config") or not hasattr(flow, "vector_field"):
        raise FlowsimError(
            f"Expected a GradientFlow, but got {type(flow).__name__}. Use fs.GradientFlow.from_preset('Baseline')."
        )
    check_whole("seed", seed, 0, "Use e.g. 0.")
    config = flow.to_config()
    start = start.draw(seed) if hasattr(start, "draw") else start
    if not hasattr(start, "as_cones"):
        raise FlowsimError(
            f"Expected a start, but got {type(start).__name__}. Use e.g. fs.initial.simplex() or result.final.start."
        )
    _check_flow(config)
    cones = start.as_cones(config["geometry"]["kind"])
    frozen = _frozen(cones, config["geometry"]["kind"])
    times = output_times(t1, ts)
    series = _series(cones, frozen, *_trajectory(config["schedule"]["temperature"], cones, frozen, times))
    return Result(
        time=times,
        series=series,
        status=Outcome(Status.PREDICTED, float(times[-1]), "closed form"),
        config={"flow": config, "start": {"kind": "Start"}, "options": {"seed": seed}},
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


def _check_flow(config: Mapping[str, Any]) -> None:
    """Refuse a flow (as configuration) without closed form."""
    policy, geometry = config["schedule"]["temperature"], config["geometry"]["kind"]
    _no_closed_form(
        [
            (geometry not in ("Reduced", "Parallel"), f"the geometry `{geometry}`"),
            (config["loss"]["kind"] != "InfoNCE", f"the loss `{config['loss']['kind']}`"),
            (config["pairing"]["kind"] != "Matched", f"the pairing `{config['pairing']['kind']}`"),
            (config["schedule"]["swap"]["kind"] != "NoSwap", "swaps"),
            (config["rule"]["kind"] != "GradientDescent", f"the rule `{config['rule']['kind']}`"),
            (policy["kind"] not in ("Learnable", "Fixed"), f"the temperature policy `{policy['kind']}`"),
            (policy.get("clamp") is not None, "a clamped temperature"),
        ]
    )


def _frozen(cones: Any, geometry: str) -> _Frozen:
    """The directions of a start on parallel cones; refuses those that move or have no constant positive margin."""
    z = cones.image @ cones.text.T if cones.similarity is None else cones.similarity
    n = len(z)
    off = z[~np.eye(n, dtype=bool)]
    margin = float(np.mean(np.diagonal(z)) - np.mean(off))
    _no_closed_form(
        [
            (bool(max(np.ptp(np.diagonal(z)), np.ptp(off)) > 1e-12), "a similarity matrix without constant margin"),
            (margin <= 0, "mismatched pairs"),
            (geometry == "Parallel" and not _is_simplex(z), "directions that move"),
        ]
    )
    return _Frozen(margin, n)


def _trajectory(
    policy: Mapping[str, Any], cones: Any, frozen: _Frozen, times: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """ln γ and β at the times, of shape (time,) each, for a temperature policy (as configuration)."""
    log_gamma0 = float(cones.log_gamma) if cones.log_gamma is not None else _log_or_zero(abs(float(cones.gamma)))
    margin, pairs = frozen
    if policy["kind"] == "Fixed":
        beta = np.full(len(times), 1 / policy["tau"])
        return np.asarray(fixed_temperature_trajectory(times, log_gamma0, beta[0], margin, pairs)), beta
    parametrization = policy["parametrization"]
    name, scale = _NAMES_IN_FORMULAS[parametrization["kind"]], parametrization.get("scale", 1.0)
    log_gamma, beta = reduced_trajectory(
        times, log_gamma0, 1 / policy["init"], margin, pairs, name, scale, policy["lr_ratio"]
    )
    return np.asarray(log_gamma), np.asarray(beta)


def _series(cones: Any, frozen: _Frozen, log_gamma: np.ndarray, beta: np.ndarray) -> dict[str, np.ndarray]:
    """All series of the run, from ln γ and β of shape (time,)."""
    margin, n = frozen
    with np.errstate(under="ignore"):
        gamma = np.sign(float(cones.gamma)) * np.exp(log_gamma)
        loss = np.log1p((n - 1) * np.exp(-margin * beta * -np.expm1(2 * log_gamma)))
    gap = np.full(len(beta), np.nan)
    if cones.image is not None:
        centres = np.sum((cones.image.mean(0) - cones.text.mean(0)) ** 2)
        gap = np.sqrt((1 - gamma**2) * centres + 4 * gamma**2)
    return {
        "modality_gap": gap, "temperature": 1 / beta, "inverse_temperature": beta, "gamma": gamma,
        "log_gamma": log_gamma, "loss": loss, "margin": np.full(len(beta), margin),
    }  # fmt: skip


def _is_simplex(z: np.ndarray) -> bool:
    """Whether Z is that of x_i = y_i at the corners of a regular simplex: 1, and −1/(n − 1) elsewhere."""
    n = len(z)
    return bool(np.abs(z - np.where(np.eye(n, dtype=bool), 1.0, -1 / (n - 1))).max() <= 1e-12)


def _log_or_zero(value: float) -> float:
    """ln of a number from 0 on; −inf for 0."""
    return math.log(value) if value > 0 else -math.inf


def _no_closed_form(obstacles: Sequence[tuple[bool, str]]) -> None:
    """Refuse with the names of the obstacles that are present."""
    found = [name for present, name in obstacles if present]
    if found:
        raise FlowsimError(f"No closed form is known for {' and '.join(found)}. Use fs.simulate.")
