"""The grid of output times, shared by simulations and predictions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from flowsim.base.checks import check, check_number, host_array, is_real, shown
from flowsim.errors import FlowsimError

#: Number of output times, including 0, if only `t1` is given; fixed, so that changing `t1` never recompiles.
OUTPUT_POINTS = 257
#: First log-spaced output time, relative to min(t1, 1).
_FIRST_OUTPUT = 1e-3


def output_times(t1: float | None, ts: ArrayLike | None, t0: float = 0.0) -> np.ndarray:
    """Output times: `ts` as given, or log-spaced times up to `t1`.

    Args:
        t1: The last flow time; None if `ts` is given.
        ts: All output times; None if `t1` is given.
        t0: Flow time of the start. The log-spaced times begin there, or with 0 if t0 = 0.

    Returns:
        Increasing times, shape (T,).

    Raises:
        FlowsimError: For times that are not numbers, not finite, not strictly increasing, or before t0.
    """
    check(
        t1 is None or (np.ndim(t1) == 0 and np.asarray(t1).dtype.kind in "fiu"),
        f"Argument `t1` must be a number, but is {shown(t1)}. Use e.g. t1=1e5.",
    )
    if ts is None:
        check(t1 is not None, "Give `t1` (the last flow time) or `ts` (all output times).")
        check_number("t1", t1, cure="Use e.g. t1=1e5.")
        assert t1 is not None
        check(t1 > t0, f"Argument `t1` must be greater than {t0:g}, but is {t1:g}. Use e.g. t1={t0 + 1e5:g}.")
        check(t1 >= 1e-300, f"Argument `t1` must be at least 1e-300, but is {t1:g}. Use e.g. t1=1e5.")
        if t0 > 0:
            grid = np.geomspace(t0, t1, OUTPUT_POINTS)
            grid[0], grid[-1] = t0, t1
            return grid
        grid = np.geomspace(_FIRST_OUTPUT * min(t1, 1.0), t1, OUTPUT_POINTS - 1)
        grid[-1] = t1
        return np.concatenate([[0.0], grid])
    found = host_array(ts)
    if found is None or not (is_real(found) or found.size == 0):
        raise FlowsimError(
            f"Argument `ts` must hold numbers, but is {shown(ts)}. Use e.g. np.geomspace(1e-2, 1e5, 100)."
        )
    times = np.atleast_1d(found.astype(np.float64))
    check(
        times.ndim == 1 and times.size >= 1 and np.isfinite(times).all(),
        "Argument `ts` must be a list of finite times. Use e.g. np.geomspace(1e-2, 1e5, 100).",
    )
    check((np.diff(times) > 0).all(), "Argument `ts` must increase strictly. Sort it and drop duplicates.")
    check(times[0] >= t0, f"Argument `ts` starts at {times[0]:g}, before the clock at {t0:g}. Start later.")
    check(times[-1] > t0, f"Argument `ts` ends at {times[-1]:g}. Give a time after {t0:g}.")
    if t1 is not None:
        check(t1 == times[-1], f"`t1` = {t1:g} differs from the last of `ts`, {times[-1]:g}. Leave `t1` out.")
    return times
