"""The clock of a log: the sum of its learning rates, where they are logged densely enough, else its steps."""

import numpy as np

from flowsim.logs.table import Logged
from flowsim.records.result import SUM_OF_RATES

STEPS = "step"
EPOCHS = "epoch"
#: Largest distance of logged rates, relative to the last step.
_DENSE = 0.1


def clock_of(at: np.ndarray, rate: Logged | None, unit: str) -> tuple[np.ndarray, str, str]:
    """Times of rows, the name of their clock, and why, in a sentence.

    The time is the sum of the learning rates of all steps before a row. Between logged steps the rate is a straight
    line; before the first and after the last it is constant. Distances of logged rates are at most a tenth of the run.

    Args:
        at: Steps or epochs of the rows, rising, (T,).
        rate: Learning rates in rising order of step.
        unit: `STEPS` or `EPOCHS`.

    Returns:
        Times (T,), clock, reason.
    """
    plain = at.astype(np.float64)
    if unit == EPOCHS:
        return plain, EPOCHS, "The log has epochs, but no steps."
    if rate is None:
        return plain, STEPS, "The learning rate was not logged."
    rate = rate.kept(np.isfinite(rate.values))
    if not len(rate.at) or rate.values.min() < 0 or rate.values.max() <= 0:
        return plain, STEPS, "No positive learning rate was logged."
    holes = np.diff(np.concatenate([[min(0, at[0])], rate.at, [at[-1]]]))
    if len(rate.at) < 2 or holes.max() > max(1, _DENSE * (at[-1] + 1)):
        return (
            plain,
            STEPS,
            "The learning rate was not logged in every tenth of the run, as its sum needs.",
        )
    sums = sums_of_rates(rate.at, rate.values, at)
    return sums, SUM_OF_RATES, f"The sum of the learning rates, logged at {len(rate.at)} steps."


def sums_of_rates(step: np.ndarray, rate: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Sums of the learning rates of all steps before others, however large these are.

    Between logged steps the rate is a straight line; before the first and after the last it is constant.

    Args:
        step: Logged steps, rising, (k,).
        rate: Their learning rates, (k,).
        at: Steps, (T,).

    Returns:
        The sums, (T,).
    """
    # Breakpoints, and the sum of the rates before each: an arithmetic series between neighbours.
    knots, values = step.astype(np.float64), rate
    length = np.diff(knots)
    parts = length * values[:-1] + np.diff(values) * (length - 1) / 2
    before = np.concatenate([[0.0], np.cumsum(parts)]) + knots[0] * values[0]
    at = at.astype(np.float64)
    k = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 1)
    since = at - knots[k]
    slope = np.append(np.diff(values) / length, 0.0)[k]
    found = before[k] + since * values[k] + slope * since * (since - 1) / 2
    return np.where(at < knots[0], at * values[0], found)
