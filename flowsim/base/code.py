"""Digests of the code of users' classes and functions, which do not depend on comments and file names."""

import functools
import hashlib
import types
from typing import Any

#: Values of globals and class attributes that count by what they are; others count by their type.
_PLAIN = (int, float, complex, str, bytes, bool, type(None))


def is_users(thing: Any) -> bool:
    """Whether a class or function is defined outside of flowsim."""
    return _home(thing) != "flowsim"


def _home(thing: Any) -> str:
    """The package or top-level module that defines a class or function."""
    return str(getattr(thing, "__module__", None) or "").partition(".")[0]


def code_digest(thing: Any) -> str:
    """SHA-256 of the compiled code of a class or function, and of what it uses of its own package or notebook.

    Args:
        thing: A class or a function.

    Returns:
        Hexadecimal digits. The same code gives the same digits in every process of one version of Python.
    """
    total = hashlib.sha256()
    for part in _parts(thing, _home(thing), set()):
        total.update(f"{part}\0".encode())
    return total.hexdigest()


def _parts(thing: Any, home: str, seen: set[int]) -> list[str]:
    if isinstance(thing, functools.partial):
        return _parts((thing.func, thing.args, tuple(thing.keywords.items())), home, seen)
    # Modules and decorators wrap functions.
    for name in ("__func__", "fget", "method", "__wrapped__"):
        inner = getattr(thing, name, None)
        if inner is not None and not isinstance(thing, type):
            return _parts(inner, home, seen)
    if isinstance(thing, _PLAIN):
        return [repr(thing)]
    if isinstance(thing, (tuple, list)):
        return [type(thing).__name__, *(part for item in thing for part in _parts(item, home, seen))]
    if id(thing) in seen or _home(thing) != home:
        return [getattr(thing, "__qualname__", type(thing).__qualname__)]
    seen.add(id(thing))
    if isinstance(thing, types.FunctionType):
        return _function_parts(thing, home, seen)
    if isinstance(thing, type):
        bases = [part for base in thing.__bases__ for part in _parts(base, home, seen)]
        own = sorted((name, value) for name, value in vars(thing).items() if not name.startswith("__"))
        return [thing.__name__, *bases, *(part for name, value in own for part in (name, *_parts(value, home, seen)))]
    return [type(thing).__qualname__]


def _function_parts(function: types.FunctionType, home: str, seen: set[int]) -> list[str]:
    parts = [function.__name__, *_parts(function.__defaults__ or (), home, seen)]
    for cell in function.__closure__ or ():
        parts += _parts(cell.cell_contents, home, seen)
    waiting = [function.__code__]
    while waiting:
        code = waiting.pop()
        parts += [code.co_code.hex(), repr(code.co_names), repr(code.co_varnames)]
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                waiting.append(constant)
            elif constant != function.__doc__:
                # Sets have no order.
                parts.append(repr(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant))
        # What it uses of its module: constants and functions of a notebook.
        used = (function.__globals__[name] for name in code.co_names if name in function.__globals__)
        parts += [
            part for value in used if not isinstance(value, types.ModuleType) for part in _parts(value, home, seen)
        ]
    return parts
