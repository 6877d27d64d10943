"""The stages of `benchmarks/gpu.py`, ordered by value, with their budgets on one data-centre GPU."""

from typing import NamedTuple


class Stage(NamedTuple):
    """A stage.

    - `seconds`: its budget. `least`: what it needs for its first parts, below which it is not started.
    - `grows`: whether it makes use of what other stages leave.
    - `data`: what it reads in the folder of the data.
    - `works`: whether it has files that need not be kept.
    - `compiles`: the stage whose programs are compiled beside this one, which does not measure speed.
    """

    seconds: float
    least: float
    grows: bool = False
    data: str | None = None
    works: bool = False
    compiles: str | None = None


STAGES = {
    "machine": Stage(20, 10),
    "study": Stage(460, 120, data="photos", works=True, compiles="simulator"),
    "parity": Stage(75, 25, data="photos"),
    "simulator": Stage(150, 40, grows=True),
    "heads": Stage(60, 30, data="features.npz"),
    "trial": Stage(80, 25, data="photos"),
    "kernels": Stage(150, 90, data="photos"),
    "jax_heads": Stage(200, 80, data="features.npz", works=True),
}
