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
    "study": Stage(250, 120, data="photos"),
    "parity": Stage(75, 25, data="photos"),
    "simulator": Stage(130, 40, grows=True),
    "heads": Stage(60, 30, data="features.npz"),
    "trial": Stage(45, 25, data="photos"),
    "jax_heads": Stage(180, 80, data="features.npz"),
}
