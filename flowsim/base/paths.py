"""Flows, schedules and recipes as plain data, for JSON, and dotted paths to their values.

`to_config` turns a module into nested dictionaries {"kind": class name, field: value, ...}, and `from_config` turns
them back. `replace(module, {"schedule.temperature.init": 0.1})` changes a value by its path. The same paths are used
in `GradientFlow.replace`, in sweeps and on the command line.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowsim.base.checks import shown
from flowsim.base.modules import PARTS, parts_of
from flowsim.errors import FlowsimError, unknown_name


def to_config(value: Any) -> Any:
    """An object as nested plain data (str, bool, int, float, list, dict, None) that `from_config` reads back exactly.

    Args:
        value: A flow, a part of one, or a value of a field.

    Returns:
        The data; a dictionary for a flow or a part.

    Raises:
        FlowsimError: For anything that cannot be written as JSON.
    """
    if isinstance(value, eqx.Module):
        fields = dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
        content = {f.name: to_config(getattr(value, f.name)) for f in fields if not f.name.startswith("_")}
        cls = type(value)
        home = {} if PARTS.is_ours(cls.__name__) else {"module": cls.__module__}
        return {"kind": cls.__name__, **home, **content}
    if isinstance(value, (list, tuple)):
        return [to_config(v) for v in value]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if hasattr(value, "shape"):
        return np.asarray(value).tolist()
    if hasattr(value, "to_config"):  # names data that are stored elsewhere
        return value.to_config()
    raise FlowsimError(f"{value!r} cannot be written as JSON. Use flowsim's own objects and plain numbers.")


def from_config(config: Any, example: str = "GradientFlow") -> Any:
    """The object from the data of `to_config`.

    Classes are looked up by name among those defined in this session; nothing is imported.

    Args:
        config: The data.
        example: Name of a class for error messages.

    Returns:
        The object; lists become tuples.

    Raises:
        FlowsimError: For unknown classes and fields; the message suggests the nearest names.
    """
    if isinstance(config, list):
        return tuple(from_config(c) for c in config)
    if not isinstance(config, Mapping):
        return config
    if "kind" not in config:
        raise FlowsimError(
            f'Expected an object with a "kind", but got {f"the keys {sorted(config)}" if config else "an empty one"}. '
            f'Name its class, e.g. {{"kind": "{example}", ...}}.'
        )
    kind, module = config["kind"], config.get("module")
    if kind == "Features":
        raise FlowsimError(
            f"The features of {config.get('source')!r} are not stored with their recipe. Load them again with "
            "fs.data.load, and give them to fs.initial.from_features."
        )
    if not isinstance(kind, str) or kind not in PARTS:
        raise _undefined(kind, module)
    cls = PARTS[kind]
    names = _fields(cls)
    given = {name: value for name, value in config.items() if name not in ("kind", "module")}
    for name in given:
        if name not in names:
            raise unknown_name(f"field of {kind}", name, names)
    try:
        return cls(**{name: from_config(value) for name, value in given.items()})
    except TypeError as error:
        raise FlowsimError(f"{kind} cannot be built from {dict(config)}: {error}.") from None


def _undefined(kind: Any, module: Any) -> FlowsimError:
    """The error for a class that is not defined in this session."""
    if not isinstance(module, str):
        return FlowsimError(f"{unknown_name('kind', kind, PARTS)} A class that you wrote must be defined first.")
    cure = "Define it as in the session that wrote this"
    if module != "__main__":
        cure = f"Import it first: from {module} import {kind}"
    return FlowsimError(f"The class {kind!r} of {module!r} is not defined in this session. {cure}.")


def replace(module: Any, changes: Mapping[str, Any], prefix: str = "") -> Any:
    """A copy of `module` with the values at dotted paths replaced.

    Args:
        module: A flow or a part of one.
        changes: New values by path, e.g. "schedule.temperature.init". Numbers in a path index tuples
            ("schedule.temperature.clamp.0").
        prefix: Path of `module` itself, for error messages.

    Returns:
        The copy.

    Raises:
        FlowsimError: For a path that does not exist, with the nearest ones, and for a value of another kind.
    """
    grouped: dict[str, dict[str, Any]] = {}
    for path, value in changes.items():
        head, _, rest = path.partition(".")
        grouped.setdefault(head, {})[rest] = value
    for head, inner in grouped.items():
        # First whole objects (converters turn a preset's name into a schedule), then values inside them.
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
        raise FlowsimError(f"Path {name!r} holds {type(old).__name__}, not {shown(value)}. Give an object of its kind.")
    if isinstance(old, np.ndarray) and not isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)):
        raise FlowsimError(f"Path {name!r} holds a number, not {shown(value)}. Give a number.")
    if type(old) is int and not isinstance(value, (int, np.integer)):
        raise FlowsimError(f"Path {name!r} holds a whole number, not {shown(value)}. Give a whole number.")
    return dataclasses.replace(module, **{name: value})


def get(module: Any, path: str) -> Any:
    """The value at a dotted path.

    Args:
        module: A flow or a part of one.
        path: E.g. "schedule.temperature.init".

    Returns:
        The value or part.

    Raises:
        FlowsimError: For a path that does not exist.
    """
    for i, head in enumerate(parts := path.split(".")):
        module = _child(module, head, "".join(p + "." for p in parts[:i]))
    return module


def _child(module: Any, name: str, prefix: str) -> Any:
    if isinstance(module, tuple):
        if not name.isdigit() or int(name) >= len(module):
            raise unknown_name("path", prefix + name, [f"{prefix}{i}" for i in range(len(module))])
        return module[int(name)]
    if not isinstance(module, eqx.Module):
        raise FlowsimError(
            f"Path {prefix + name!r} goes too deep: {prefix[:-1]!r} is {module!r}, a value. Put an object there first."
        )
    names = _fields(type(module))
    if name not in names:
        deeper = next(_paths_ending(module, name), None)
        if deeper is not None:
            raise FlowsimError(f"Unknown path {prefix + name!r}. Did you mean {prefix + deeper!r}?")
        if (error := _needs_another(module, name, prefix)) is not None:
            raise error
        if not names:
            kind = type(module).__name__
            raise FlowsimError(f"Path {prefix + name!r} does not exist: {kind} has no fields. Change {prefix[:-1]!r}.")
        raise unknown_name("path", prefix + name, [prefix + n for n in names])
    return getattr(module, name)


def _fields(cls: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(cls) if f.init]


def _needs_another(module: Any, name: str, prefix: str) -> FlowsimError | None:
    """The error for a path that would exist with another class here or below; None if no class has it."""
    places = [(prefix[:-1], module)]
    for place, held in places:  # nearest first; grows in the loop
        if not dataclasses.is_dataclass(held):
            continue
        places += [(f"{place}.{f}".lstrip("."), getattr(held, f)) for f in _fields(type(held))]
        kinds = [cls.__name__ for cls in _alike(held) if name in _fields(cls)] if place else []
        if kinds:
            return FlowsimError(
                f"Path {prefix + name!r} does not exist: {place!r} is {type(held).__name__}, and {name!r} belongs to "
                f"{' or '.join(kinds)}. Put that there first and use '{place}.{name}' (command line: "
                f"--set {place}={kinds[0]})."
            )
    return None


def _alike(module: Any) -> list[type]:
    """The concrete classes that could replace `module`."""
    bases = tuple(cls for cls in type(module).__mro__[1:] if cls.__name__.startswith("Abstract"))
    return list(parts_of(bases).values())


def _paths_ending(module: Any, name: str) -> Iterator[str]:
    """Paths inside `module` whose last component is `name`, nearest first."""
    inner = [(field, getattr(module, field)) for field in _fields(type(module))]
    for field, value in inner:
        if dataclasses.is_dataclass(value) and any(f.name == name for f in dataclasses.fields(value) if f.init):
            yield f"{field}.{name}"
    for field, value in inner:
        if dataclasses.is_dataclass(value):
            yield from (f"{field}.{path}" for path in _paths_ending(value, name))
