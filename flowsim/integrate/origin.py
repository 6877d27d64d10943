"""Where a run begins: at a start, or at the end of another run, whose clock it continues."""

from typing import Any, NamedTuple

import numpy as np

from flowsim.base.checks import check
from flowsim.base.paths import to_config
from flowsim.errors import FlowsimError
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import Start
from flowsim.model.recipe import as_start
from flowsim.model.temperature import AbstractTemperature
from flowsim.records.result import Result, Simulation


class Before(NamedTuple):
    """The descent that is continued: its optimizer with state, the steps taken, and the steps of its schedules."""

    label: str
    memory: tuple[np.ndarray, ...]
    step: int
    horizon: float


class Origin(NamedTuple):
    """Where a run begins: `moved` are learned scalars by name, `before` is the descent that is continued."""

    start: Start
    t0: float
    moved: dict[str, float]
    seed: int
    horizon: float | None
    before: Before | None


def origin_of(flow: GradientFlow, start: Any, seed: int, horizon: float | None, in_steps: bool) -> Origin:
    """Where a run from `start` begins; a `Result` is continued on its clock."""
    if not isinstance(start, Result):
        return Origin(as_start(start, seed), 0.0, {}, seed, horizon, None)
    if not isinstance(start, Simulation):
        raise FlowsimError(
            "This result has no flow: it is a record of training. Start from its embeddings, record.at(t).start."
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
        if raw is None or not same:  # another parametrization starts at the same temperature
            raw = policy.raw_of(np.asarray(last["inverse_temperature"]))
        check(
            raw is not None,
            f"{type(policy).__name__} cannot continue this run: it does not define `raw_of`, the raw parameter at a "
            "given inverse temperature. Define it, or start from `result.final.start`.",
        )
        moved["raw_temperature"] = _inside(policy, float(raw))
    if last.bias is not None and flow.loss.bias_rate is not None:
        moved["bias"] = last.bias
    taken = None
    if in_steps and "optimizer" in options:
        check(
            "step" in options,
            "This run was saved without the state of its optimizer and cannot be continued. Start from "
            "`result.final.start`.",
        )
        taken = Before(options["optimizer"], start.memory, options["step"], options["schedule_steps"])
    if horizon is None and not in_steps:
        horizon = options["horizon"]
    return Origin(last.start, last.time, moved, options["seed"], horizon, taken)


def _inside(policy: AbstractTemperature, raw: float) -> float:
    """ν, which must lie within the clamp; raises `FlowsimError` otherwise, as for a new start."""
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
