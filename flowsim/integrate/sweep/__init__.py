"""Many runs of one flow over grids of settings and seeds."""

from flowsim.integrate.sweep.batch import lanes_of
from flowsim.integrate.sweep.run import SweepResult, load_sweep, sweep
from flowsim.integrate.sweep.store import CHUNK

__all__ = ["CHUNK", "SweepResult", "lanes_of", "load_sweep", "sweep"]
