"""The run of Figure 2: its start and milestones."""

from __future__ import annotations

import math


def ring_height() -> float:
    """(√5 − 1)/4, the height γ0 of the two pentagons that Figure 2 of Yaras et al. 2025 starts from."""
    return (math.sqrt(5) - 1) / 4


#: The run behind Figure 2 of Yaras et al. 2025: two twisted regular pentagons on the free sphere, β = exp(ν),
#: r = 1. The start and "shown_*" are taken from the paper; the other milestones are derived here by two independent
#: integrations.
FIGURE_2: dict[str, float | tuple[float, ...] | dict[float, float]] = {
    "pairs": 5,
    "dim": 3,
    "height": ring_height(),
    "twist_degrees": -144.0,
    "temperature0": 0.07,
    "initial_gap": 2 * ring_height(),
    "peak_time": 2.0639,
    "peak_gap": 1.0568,
    "peak_temperature": 1.0234,
    "matching_time": 3.8328,  # the margin turns positive; shown as "matched at 4.0"
    "final_time": 1e5,
    "final_gap": 0.54055,
    "final_temperature": 0.0358,
    "later_gaps": {1e6: 0.5265, 1e12: 0.4732},  # the paper's run, continued
    "shown_time_shift": 0.1,  # the paper's time axis shows t + 0.1
    "shown_snapshots": (0.0, 0.4, 2.3, 4.0, 1e2, 1e5),
}
