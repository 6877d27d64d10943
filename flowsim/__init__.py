"""flowsim: gradient flow of contrastive losses, and the modality gap it explains.

import flowsim as fs
flow = fs.GradientFlow.from_preset("Baseline")
result = fs.simulate(flow, fs.initial.rings(pairs=5, height=0.309, twist=-144), t1=1e5)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowsim import (
        claims,
        initial,
        losses,
        observables,
        pairing,
        plot,
        schedules,
        swaps,
        temperature,
        theory,
    )
    from flowsim.errors import FlowsimError
    from flowsim.flow import GradientFlow
    from flowsim.geometry import Parallel, Reduced, Sphere
    from flowsim.losses import InfoNCE
    from flowsim.pairing import LabelNoise, Matched
    from flowsim.result import Result, SimulationStopped, Status
    from flowsim.schedules import Schedule
    from flowsim.solve import load, simulate
    from flowsim.swaps import HardSwap, NoSwap, SoftSwap

# Everything is loaded when first used: `flowsim --help` starts at once, and figures never cost a solve.
_HOME = {
    "errors": ["FlowsimError"],
    "flow": ["GradientFlow"],
    "geometry": ["Parallel", "Reduced", "Sphere"],
    "losses": ["InfoNCE"],
    "pairing": ["LabelNoise", "Matched"],
    "result": ["Result", "SimulationStopped", "Status"],
    "schedules": ["Schedule"],
    "solve": ["load", "simulate"],
    "swaps": ["HardSwap", "NoSwap", "SoftSwap"],
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    "claims", "initial", "losses", "observables", "pairing", "plot", "schedules", "swaps", "temperature", "theory",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"flowsim.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"flowsim.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
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
