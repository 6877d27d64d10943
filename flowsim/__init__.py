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
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, get_origin

# Every public name stands once, in the stub beside this file. Everything is loaded when first used: `flowsim --help`
# starts at once, and figures never cost a solve.
_HOME: dict[str, str] = {
    alias.name: str(node.module)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


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


def _adopt(module: types.ModuleType) -> None:
    module.__class__ = _Module
    # Not by attributes: a package may export a function under the name of the module that defines it.
    for name, value in list(sys.modules.items()):
        if name.startswith(f"{module.__name__}."):
            value.__class__ = _Module


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


sys.modules[__name__].__class__ = _Module


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowsim' has no attribute {name!r}")
    home = _HOME[name]
    value = None if home == __name__ else getattr(importlib.import_module(home), name, None)
    if value is None:  # a module
        value = importlib.import_module(f"{home}.{name}")
    globals()[name] = value
    return value
