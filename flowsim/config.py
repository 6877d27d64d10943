"""Flows, schedules and recipes as plain data: JSON round trip, and the one path grammar.

`to_config` turns a module into nested dictionaries {"kind": class name, field: value, ...}; `from_config`
turns them back. `replace(module, {"schedule.temperature.init": 0.1})` changes one value by its path; the
same paths serve `GradientFlow.replace`, sweeps, JSON and the command line.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowsim.errors import FlowsimError, unknown_name


def to_config(value: Any) -> Any:
    """Nested plain data (str, int, float, list, dict, None) that `from_config` reads back exactly."""
    if isinstance(value, eqx.Module):
        fields = dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
        content = {f.name: to_config(getattr(value, f.name)) for f in fields if not f.name.startswith("_")}
        return {"kind": type(value).__name__, **content}
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "shape"):
        return np.asarray(value).tolist()
    raise FlowsimError(f"{value!r} cannot be written as JSON. Use flowsim's own objects and plain numbers.")


def from_config(config: Any, known: Mapping[str, type]) -> Any:
    """The object that `to_config` described; `known` maps class names to classes.

    Raises `FlowsimError` for unknown kinds and fields, with near-miss hints.
    """
    if isinstance(config, list):
        return tuple(from_config(c, known) for c in config)
    if not isinstance(config, Mapping):
        return config
    if "kind" not in config:
        raise FlowsimError(f'Expected an object with a "kind", but got the keys {sorted(config)}.')
    kind = config["kind"]
    if kind not in known:
        hint = unknown_name("kind", kind, known)
        raise FlowsimError(f"{hint} A class of your own must be registered first: fs.extend.register.")
    cls = known[kind]
    names = [f.name for f in dataclasses.fields(cls) if f.init]
    for name in config:
        if name != "kind" and name not in names:
            raise unknown_name(f"field of {kind}", name, names)
    try:
        return cls(**{n: from_config(v, known) for n, v in config.items() if n != "kind"})
    except TypeError as error:
        raise FlowsimError(f"{kind} cannot be built from {dict(config)}: {error}.") from None


def replace(module: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of `module` with the values at dotted paths replaced.

    Integer path components index tuples ("schedule.temperature.clamp.0"). Raises `FlowsimError` for a
    path that does not exist, naming what does.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        grouped.setdefault(head, {})[rest] = value
    for head, inner in grouped.items():
        # A whole object first (converters turn a preset's name into a schedule), then values inside it.
        if "" in inner:
            _child(module, head, prefix)
            module = _with(module, head, inner.pop(""))
        if inner:
            module = _with(module, head, replace(_child(module, head, prefix), inner, f"{prefix}{head}."))
    return module


def _with(module: Any, name: str, value: Any) -> Any:
    if isinstance(module, tuple):
        return tuple(value if str(i) == name else v for i, v in enumerate(module))
    old = getattr(module, name)
    if isinstance(old, eqx.Module) and not isinstance(value, (eqx.Module, str)):
        raise FlowsimError(f"Path {name!r} holds {type(old).__name__}, not {value!r}. Give an object of its kind.")
    if isinstance(old, np.ndarray) and not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)):
        raise FlowsimError(f"Path {name!r} holds a number, not {value!r}. Give a number.")
    if type(old) is int and not isinstance(value, (int, np.integer)):
        raise FlowsimError(f"Path {name!r} holds a whole number, not {value!r}. Give a whole number.")
    return dataclasses.replace(module, **{name: value})


def get(module: Any, path: str) -> Any:
    """The value at a dotted path."""
    for i, head in enumerate(parts := path.split(".")):
        module = _child(module, head, "".join(p + "." for p in parts[:i]))
    return module


def _child(module: Any, name: str, prefix: str) -> Any:
    if isinstance(module, tuple):
        if not name.isdigit() or int(name) >= len(module):
            raise unknown_name("path", prefix + name, [f"{prefix}{i}" for i in range(len(module))])
        return module[int(name)]
    if not isinstance(module, eqx.Module):
        raise FlowsimError(f"Path {prefix + name!r} goes too deep: {prefix[:-1]!r} is {module!r}, a value.")
    names = [f.name for f in dataclasses.fields(module) if f.init]  # pyright: ignore[reportArgumentType]
    if name not in names:
        if not names:
            raise FlowsimError(f"Path {prefix + name!r} does not exist: {type(module).__name__} has no fields.")
        deeper = next(_paths_ending(module, name), None)
        if deeper is not None:
            raise FlowsimError(f"Unknown path {prefix + name!r}. Did you mean {prefix + deeper!r}?")
        raise unknown_name("path", prefix + name, [prefix + n for n in names])
    return getattr(module, name)


def _paths_ending(module: Any, name: str) -> Iterator[str]:
    """Paths below `module` whose last component is `name`, nearest first."""
    inner = [(f.name, getattr(module, f.name)) for f in dataclasses.fields(module) if f.init]
    for field, value in inner:
        if dataclasses.is_dataclass(value) and any(f.name == name for f in dataclasses.fields(value) if f.init):
            yield f"{field}.{name}"
    for field, value in inner:
        if dataclasses.is_dataclass(value):
            yield from (f"{field}.{path}" for path in _paths_ending(value, name))
