"""Which of ν, β and τ a logged number is: by its name, its range, and what the loss allows.

τ is the temperature, β = 1/τ the inverse temperature that multiplies cosines, and ν = ln β the parameter that open_clip
and Hugging Face call `logit_scale`, as many logs also call β. The rules, in this order:

1. A name that says what it is decides: `inverse_temperature`, `raw_temperature`, `log_temperature`.
2. `temperature`, `tau`: τ if it begins below 1.5; β if it begins at 5 or above; otherwise undecided.
3. `logit_scale` and the like, if there is no other:
   a. At least half of the values are ln 100 = 4.605: ν at open_clip's clamp, even if it began above.
   b. A value is 0 or less: ν, as β is positive.
   c. A value is above 7: β, as ν = 7 is τ = 0.0009.
   d. No loss of n pairs can be as low as the logged one at this β: ν.
   e. It begins within 0.005 of e = 2.718: undecided, as this is also β for ν = 1, a usual mistake.
   f. It begins at ln(1/0.07) = 2.659 or ln 100, the initial values of CLIP and its weights: ν.
   g. It begins between 2.2 and 4.65 and never exceeds 4.65: ν, as β it would be τ from 0.22 to 0.45.
   h. Otherwise it is undecided.
"""

import dataclasses
import json
import math

import numpy as np

from flowsim.errors import FlowsimError

NU, BETA, TAU, LOG_TAU = "raw ν", "inverse temperature β", "temperature τ", "logarithm of the temperature ln τ"
#: Name of a series -> what its column is read as.
READINGS = {"raw_temperature": NU, "inverse_temperature": BETA, "temperature": TAU, "log_temperature": LOG_TAU}
LN_100 = math.log(100)


@dataclasses.dataclass(frozen=True)
class Reading:
    """What a column is read as, and why, in a sentence."""

    read_as: str
    because: str


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What else is known when a column is read.

    Attributes:
        loss: The training loss at the same steps, (k,); NaN where it is not known.
        batch: Number of pairs in one loss.
    """

    loss: np.ndarray | None = None
    batch: int | None = None


def reading_of(column: str, kind: str, values: np.ndarray, known: Evidence) -> Reading:
    """What a column is.

    Args:
        column: Its name, for messages.
        kind: What its name says: a name of `READINGS`, or "logit_scale".
        values: Its values in rising order of step, (k,).
        known: What else is known.

    Returns:
        The reading.

    Raises:
        FlowsimError: If it cannot be decided, or contradicts the name.
    """
    finite = values[np.isfinite(values)]
    if not finite.size:
        return Reading(READINGS.get(kind, BETA), "It holds no finite value.")
    first, low, high = float(finite[0]), float(finite.min()), float(finite.max())
    span = f"It goes from {low:.4g} to {high:.4g}"
    if kind in ("raw_temperature", "log_temperature"):
        return Reading(READINGS[kind], "Its name says so.")
    if kind == "inverse_temperature":
        if low <= 0:
            raise _undecided(column, f"its name says β, which is positive, but it holds {low:.4g}")
        return Reading(BETA, "Its name says so.")
    if kind == "temperature":
        if low > 0 and first < 1.5:
            return Reading(TAU, f"Its name says so, and it begins at {first:.4g}, below 1.5.")
        if low > 0 and first >= 5:
            return Reading(BETA, f"{span}; as τ it would leave no contrast, as β it begins at τ = {1 / first:.3g}.")
        raise _undecided(column, f"its name says τ, but it begins at {first:.4g}")
    return _by_range(column, values, finite, known)


def check_named(series: str, column: str, values: np.ndarray) -> Reading:
    """The reading that the user asks for; raises `FlowsimError` if the values contradict it."""
    finite = values[np.isfinite(values)]
    if series == "temperature" and finite.size and finite.min() > 7:
        raise FlowsimError(
            f"Column {column!r} was named as temperature, but it is at least {finite.min():.4g}, which leaves no "
            f'contrast. For β use columns={{"inverse_temperature": {json.dumps(column, ensure_ascii=False)}}}.'
        )
    if series in ("temperature", "inverse_temperature") and finite.size and finite.min() <= 0:
        raise FlowsimError(
            f"Column {column!r} was named as {series}, which is positive, but it holds {finite.min():.4g}. For ν "
            f'use columns={{"raw_temperature": {json.dumps(column, ensure_ascii=False)}}}.'
        )
    return Reading(READINGS[series], "It was named so.")


def convert(read_as: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """τ and β of logged values, and ν if that was logged."""
    with np.errstate(all="ignore"):
        if read_as == NU:
            return {
                "temperature": np.exp(-values), "inverse_temperature": np.exp(values), "raw_temperature": values,
            }  # fmt: skip
        if read_as == LOG_TAU:
            return {"temperature": np.exp(values), "inverse_temperature": np.exp(-values)}
        inverse = 1 / values
    if read_as == BETA:
        return {"temperature": inverse, "inverse_temperature": values}
    return {"temperature": values, "inverse_temperature": inverse}


def relation(values: np.ndarray, tau: np.ndarray) -> str | None:
    """What the values of another column are of a temperature at the same steps, within 2 %; None if nothing."""
    good = np.isfinite(values) & np.isfinite(tau) & (tau > 0)
    if not good.any():
        return None
    values, nu = values[good], -np.log(tau[good])
    known = {BETA: np.exp(nu), NU: nu, TAU: np.exp(-nu), LOG_TAU: -nu}
    return next((name for name, same in known.items() if np.allclose(values, same, rtol=0.02, atol=1e-12)), None)


def _by_range(column: str, values: np.ndarray, finite: np.ndarray, known: Evidence) -> Reading:
    """Rule 3."""
    first, low, high = float(finite[0]), float(finite.min()), float(finite.max())
    span = f"It goes from {low:.4g} to {high:.4g}"
    at_clamp = np.abs(finite - LN_100) < 2e-3
    if at_clamp.sum() >= max(2, len(finite) / 2):
        return Reading(NU, f"{span}, and {int(at_clamp.sum())} of {len(finite)} values are ln 100, the clamp of ν.")
    if low <= 0:
        return Reading(NU, f"{span}, and β is positive.")
    if high > 7:
        return Reading(BETA, f"{span}; ν = {high:.4g} would be a temperature of {math.exp(-min(high, 700.0)):.1e}.")
    if (bound := _impossible(values, known)) is not None:
        return Reading(NU, f"{span}; {bound}.")
    start = next((value for value in (math.log(1 / 0.07), LN_100) if abs(first - value) < 0.006), None)
    if start is not None:
        return Reading(NU, f"{span}, and begins at {first:.4g}, where ν of CLIP and its weights does.")
    if abs(first - math.e) < 0.005:
        raise _undecided(column, f"it begins at {first:.4g}, which may be ν, or β = e = exp(1)")
    if 2.2 <= first <= 4.65 and high <= 4.65:
        return Reading(
            NU,
            f"{span}, where ν of CLIP lies (it starts at 2.659 and is clamped at 4.605); as β it would be a "
            f"temperature of {1 / high:.2f} to {1 / low:.2f}.",
        )
    raise _undecided(column, f"it goes from {low:.4g} to {high:.4g} and begins at {first:.4g}")


def _impossible(values: np.ndarray, known: Evidence) -> str | None:
    """Why the values cannot be β, by the bound ln(1 + (n − 1) e^(−2β)) of the contrastive loss of n pairs."""
    if known.loss is None or known.batch is None or known.batch < 2:
        return None
    there = np.isfinite(values) & np.isfinite(known.loss)
    if not there.any():
        return None
    loss, beta = known.loss[there], values[there]
    bound = np.log1p((known.batch - 1) * np.exp(-2 * beta))
    worst = int(np.argmin(loss - bound))
    if loss[worst] < 0.98 * bound[worst]:
        return (
            f"as β = {beta[worst]:.4g} the loss of {known.batch} pairs would be at least {bound[worst]:.3g}, but it is "
            f"{loss[worst]:.3g}"
        )
    return None


def _undecided(column: str, why: str) -> FlowsimError:
    raw, inverse, tau = (
        f"columns={{{json.dumps(name)}: {json.dumps(column, ensure_ascii=False)}}}"
        for name in ("raw_temperature", "inverse_temperature", "temperature")
    )
    return FlowsimError(f"Column {column!r} may be ν, β or τ: {why}. Say which with {raw}, {inverse} or {tau}.")
