"""The stages of `benchmarks/gpu.py`, ordered by value, with their budgets on one data-centre GPU."""

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage.

    - `seconds`: its budget. `least`: what it needs for its first parts, below which it is not started.
    - `grows`: whether it makes use of what other stages leave.
    - `data`: whether it reads photos or features.
    """

    seconds: float
    least: float
    grows: bool = False
    data: bool = False


STAGES = {
    "machine": Stage(25, 10),
    "parity": Stage(75, 30, data=True),
    "study": Stage(260, 90, grows=True, data=True),
    "simulator": Stage(120, 40),
    "heads": Stage(50, 25, data=True),
}
