"""Options shared by `simulate`, `descend` and `sweep`, and their checks."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from flowsim import observables as obs
from flowsim.base.checks import check, check_number, shown
from flowsim.errors import unknown_name
from flowsim.integrate.methods import METHODS, Method
from flowsim.model.flow import GradientFlow
from flowsim.records.result import Simulation

Precision = Literal["float64", "float32"]
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
    "direction_margin",
    "doubly_stochastic_defect",
)

#: Last flow time for single precision, and the tolerances that it can reach.
_FLOAT32_LAST, _FLOAT32_RTOL, _FLOAT32_ATOL = 1e6, 1e-5, 1e-7


class Options(NamedTuple):
    """What a user chose for a solve; see `simulate`."""

    rtol: float
    atol: float
    method: Method | None
    max_steps: int
    observables: tuple[str, ...]
    dtype: np.dtype[Any]
    seed: int


def check_run(flow: Any, seed: Any, precision: str, observables: Sequence[str]) -> None:
    """Check the options that all runs share.

    Raises:
        FlowsimError: If `flow` is not a flow, the seed is not a whole number below 2³², or the precision or an
            observable is unknown.
    """
    check(
        isinstance(flow, GradientFlow),
        f"Expected a GradientFlow, but got {type(flow).__name__}. Use fs.GradientFlow.from_preset('Baseline').",
    )
    check(
        isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32,
        f"Argument `seed` must be a whole number of at least 0 and below 2³², but is {seed!r}. Use e.g. 0.",
    )
    if precision not in ("float64", "float32"):
        raise unknown_name("precision", precision, ("float64", "float32"))
    check_observables(observables)


def check_observables(observables: Any) -> None:
    """Refuse names that a run cannot record. Raises `FlowsimError`."""
    check(
        isinstance(observables, Sequence) and not isinstance(observables, str),
        f"Argument `observables` must be a list of names, but is {shown(observables)}. Use e.g. ['modality_gap'].",
    )
    known = [*obs.names("state"), *obs.names("rows")]
    for name in observables:
        if name not in known:
            raise unknown_name("observable of a flow", name if isinstance(name, str) else shown(name), known)


def observables_of(observables: Sequence[str] | None, start: Any) -> Sequence[str]:
    """The observables to record: by default those of a run that is continued, without those unknown in this session."""
    if observables is not None:
        return observables
    if not isinstance(start, Simulation):
        return DEFAULT_OBSERVABLES
    known = {*obs.names("state"), *obs.names("rows")}
    return tuple(name for name in start.config["options"]["observables"] if name in known)


def check_policy(flow: GradientFlow) -> None:
    """Refuse a custom policy that returns anything but positive numbers; flowsim's own check their fields."""
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


def solve_options(
    *,
    rtol: float,
    atol: float,
    method: Any,
    max_steps: int,
    observables: Sequence[str],
    precision: str,
    seed: int,
    last: float,
) -> Options:
    """The options of a solve until flow time `last`.

    Raises:
        FlowsimError: For a tolerance that is not positive, an unknown method, fewer than one step, or a time that is
            too late for single precision.
    """
    check_number("rtol", rtol, positive=True, cure="Use e.g. 1e-9.")
    check_number("atol", atol, positive=True, cure="Use e.g. 1e-12.")
    check(rtol < 1, f"Argument `rtol` must be below 1, but is {rtol:g}. Use e.g. 1e-9.")
    check(max_steps >= 1, f"Argument `max_steps` must be at least 1, but is {max_steps}. Use e.g. 200000.")
    if method is not None and method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if precision == "float32":
        check(last <= _FLOAT32_LAST, "`precision='float32'` is limited to times up to t1 = 1e6. Use 'float64'.")
        rtol, atol = max(rtol, _FLOAT32_RTOL), max(atol, _FLOAT32_ATOL)
    return Options(rtol, atol, method, max_steps, tuple(observables), np.dtype(precision), seed)


def horizon_of(horizon: float | None, last: float) -> float:
    """The flow time at which schedules end: `horizon`, or the last output time."""
    found = last if horizon is None else float(horizon)
    check_number("horizon", found, positive=True, cure="Use the flow time at which the schedule ends.")
    return found
