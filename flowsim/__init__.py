"""flowsim: gradient flow of contrastive losses, and the modality gap it explains.

    import flowsim as fs
    flow = fs.GradientFlow.from_preset("Baseline")
    result = fs.simulate(flow, fs.initial.rings(pairs=5, height=0.309, twist=-144), t1=1e5)
"""

import importlib
from typing import TYPE_CHECKING, Any

from flowsim import initial, losses, observables, pairing, schedules, swaps, temperature, theory
from flowsim.errors import FlowsimError
from flowsim.flow import GradientFlow
from flowsim.geometry import Parallel, Reduced, Sphere
from flowsim.losses import InfoNCE
from flowsim.pairing import LabelNoise, Matched
from flowsim.result import Result, SimulationStopped, Status
from flowsim.schedules import Schedule
from flowsim.solve import load, simulate
from flowsim.swaps import HardSwap, NoSwap, SoftSwap

if TYPE_CHECKING:
    from flowsim import claims, plot

_LAZY = ("claims", "plot")


def __getattr__(name: str) -> Any:
    # Figures and claims are loaded when first used: the core imports neither.
    if name in _LAZY:
        return importlib.import_module(f"flowsim.{name}")
    raise AttributeError(f"module 'flowsim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


__all__ = [
    "FlowsimError",
    "GradientFlow",
    "HardSwap",
    "InfoNCE",
    "LabelNoise",
    "Matched",
    "NoSwap",
    "Parallel",
    "Reduced",
    "Result",
    "Schedule",
    "SimulationStopped",
    "SoftSwap",
    "Sphere",
    "Status",
    "claims",
    "initial",
    "load",
    "losses",
    "observables",
    "pairing",
    "plot",
    "schedules",
    "simulate",
    "swaps",
    "temperature",
    "theory",
]
