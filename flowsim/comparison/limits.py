"""Limits that several criteria share: what must happen before anything can be said."""

import numpy as np

#: Part of its largest value by which the gap must move.
GAP_MOVED = 0.05
#: Range of ln τ from which on the temperature is compared too.
LOG_TAU_MOVED = 0.02
#: Evaluations that a line is fitted to, at least.
LINE_POINTS = 8
#: Evaluations that a trajectory is fitted to, at least.
TRAJECTORY_POINTS = 5


def moved(gap: np.ndarray) -> bool:
    """Whether a gap (T,) moved enough."""
    return bool(np.ptp(gap) > GAP_MOVED * np.max(gap))
