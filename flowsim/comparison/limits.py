"""Limits shared by several criteria: how much data a verdict needs."""

import numpy as np

#: Fraction of its largest value by which the gap must move.
GAP_MOVED = 0.05
#: Range of ln τ above which the temperature is compared too.
LOG_TAU_MOVED = 0.02
#: Fewest evaluations to fit a line.
LINE_POINTS = 8
#: Fewest evaluations to fit a trajectory.
TRAJECTORY_POINTS = 5


def moved(gap: np.ndarray) -> bool:
    """Whether a gap (T,) moved enough."""
    return bool(np.ptp(gap) > GAP_MOVED * np.max(gap))
