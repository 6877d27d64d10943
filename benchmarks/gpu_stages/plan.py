"""The stages of `benchmarks/gpu.py`, ordered by value, with their budgets on one data-centre GPU."""

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage.

    - `seconds`: its budget. `least`: what it needs for its first parts, below which it is not started.
    - `grows`: whether it makes use of what other stages leave.
    - `data`: what it reads in the folder of the data.
    """

    seconds: float
    least: float
    grows: bool = False
    data: str | None = None


STAGES = {
    "machine": Stage(20, 10),
    "parity": Stage(34, 20, data="photos"),
    "trial": Stage(60, 25, data="photos"),
    "study": Stage(185, 90, data="photos"),
    "simulator": Stage(120, 40, grows=True),
    "heads": Stage(60, 30, data="features.npz"),
}
