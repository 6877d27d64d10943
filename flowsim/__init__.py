"""flowsim: gradient flow of contrastive losses, and the modality gap it explains.

import flowsim as fs
flow = fs.GradientFlow.from_preset("Baseline")
result = fs.simulate(flow, fs.initial.rings(pairs=5, height=0.309, twist=-144), t1=1e5)
"""

import ast
import functools
import importlib
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, get_origin

if TYPE_CHECKING:
    from flowsim import (
        claims,
        clip,
        extend,
        initial,
        losses,
        observables,
        pairing,
        plot,
        rules,
        schedules,
        swaps,
        temperature,
        theory,
    )
    from flowsim.compare import Comparison, compare
    from flowsim.encoders import LinearEncoders, MLPEncoders
    from flowsim.errors import FlowsimError
    from flowsim.explore import explore
    from flowsim.flow import GradientFlow
    from flowsim.geometry import Parallel, Reduced, Sphere, Subspaces, Unnormalized
    from flowsim.losses import DirectedInfoNCE, InfoNCE, NTXent, Regularised, Sigmoid
    from flowsim.pairing import Clusters, FreshRepairing, FrozenMispairing, LabelNoise, Matched
    from flowsim.result import Result, SimulationStopped, Status, load_results, save_results
    from flowsim.rules import AdamLimit, GradientDescent
    from flowsim.schedules import Schedule
    from flowsim.solve import load, simulate
    from flowsim.swaps import HardSwap, NoSwap, SoftSwap
    from flowsim.sweeps import SweepResult, load_sweep, sweep

# Everything is loaded when first used: `flowsim --help` starts at once, and figures never cost a solve.
_HOME = {
    "compare": ["Comparison", "compare"],
    "encoders": ["LinearEncoders", "MLPEncoders"],
    "errors": ["FlowsimError"],
    "explore": ["explore"],
    "flow": ["GradientFlow"],
    "geometry": ["Parallel", "Reduced", "Sphere", "Subspaces", "Unnormalized"],
    "losses": ["DirectedInfoNCE", "InfoNCE", "NTXent", "Regularised", "Sigmoid"],
    "pairing": ["Clusters", "FreshRepairing", "FrozenMispairing", "LabelNoise", "Matched"],
    "result": ["Result", "SimulationStopped", "Status", "load_results", "save_results"],
    "rules": ["AdamLimit", "GradientDescent"],
    "schedules": ["Schedule"],
    "solve": ["load", "simulate"],
    "swaps": ["HardSwap", "NoSwap", "SoftSwap"],
    "sweeps": ["SweepResult", "load_sweep", "sweep"],
}
_NAMES = {name: module for module, names in _HOME.items() for name in names}
_MODULES = (
    "claims", "clip", "extend", "initial", "losses", "observables", "pairing", "plot", "rules", "schedules", "swaps",
    "temperature", "theory",
)  # fmt: skip


class _Module(types.ModuleType):
    """A module that lists what it defines, so that completion does not offer what it imports."""

    def __dir__(self) -> list[str]:
        if "__all__" in vars(self):
            return list(self.__all__)
        return _defined(self.__name__)

    def __setattr__(self, name: str, value: Any) -> None:
        # The import system puts every module into its package, once it is loaded.
        if isinstance(value, types.ModuleType) and value.__name__ == f"{self.__name__}.{name}":
            _adopt(value)
        super().__setattr__(name, value)


class _Package(_Module):
    """`fs.compare` is the function, also after its module of the same name was imported, which would take its place."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in _NAMES and isinstance(value, types.ModuleType):
            super().__setattr__(name, getattr(value, name))


def _adopt(module: types.ModuleType) -> None:
    module.__class__ = _Module
    for name, value in list(vars(module).items()):
        if isinstance(value, types.ModuleType) and value.__name__ == f"{module.__name__}.{name}":
            _adopt(value)


@functools.cache
def _defined(name: str) -> list[str]:
    """Names without an underscore that the source of a module defines, other than those of annotations."""
    module = sys.modules[name]
    found: set[str] = set()
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)}
    return sorted(n for n in found if not n.startswith("_") and not _annotates(getattr(module, n, None)))


def _annotates(value: Any) -> bool:
    """Whether it is a type variable or an alias of types of others."""
    foreign = isinstance(value, type) and not value.__module__.startswith(__name__)
    return foreign or isinstance(value, (TypeVar, ParamSpec)) or get_origin(value) is not None


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"flowsim.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(f"flowsim.{_NAMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'flowsim' has no attribute {name!r}")


__all__ = [
    "AdamLimit",
    "Clusters",
    "Comparison",
    "DirectedInfoNCE",
    "FlowsimError",
    "FreshRepairing",
    "FrozenMispairing",
    "GradientDescent",
    "GradientFlow",
    "HardSwap",
    "InfoNCE",
    "LabelNoise",
    "LinearEncoders",
    "MLPEncoders",
    "Matched",
    "NTXent",
    "NoSwap",
    "Parallel",
    "Reduced",
    "Regularised",
    "Result",
    "Schedule",
    "Sigmoid",
    "SimulationStopped",
    "SoftSwap",
    "Sphere",
    "Status",
    "Subspaces",
    "SweepResult",
    "Unnormalized",
    "claims",
    "clip",
    "compare",
    "explore",
    "extend",
    "initial",
    "load",
    "load_results",
    "load_sweep",
    "losses",
    "observables",
    "pairing",
    "plot",
    "rules",
    "save_results",
    "schedules",
    "simulate",
    "swaps",
    "sweep",
    "temperature",
    "theory",
]
