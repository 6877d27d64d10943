"""Values of `--set PATH=VALUE` and `--over PATH=V1,V2,...`: numbers, ranges, JSON, and names of presets and objects."""

import contextlib
import dataclasses
import json
import math
import re
import typing
from typing import TYPE_CHECKING, Any

from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.model.flow import GradientFlow


def parse_change(flow: "GradientFlow", change: str) -> tuple[str, Any]:
    """(path, value) of "PATH=VALUE": a number, JSON, a preset's name, or the name of a class of parts.

    Raises `FlowsimError` if the path does not exist, or if the value has another type than the present one.
    """
    from flowsim.model import schedules

    path, equals, text = change.partition("=")
    if not (path and equals and text):
        raise FlowsimError(
            f"Option `--set` takes PATH=VALUE, but got {change!r}. Use e.g. --set schedule.temperature.init=0.1."
        )
    value = _value_at(flow, path, text)
    return path, schedules.load(value) if path == "schedule" and isinstance(value, str) else value


def parse_over(flow: "GradientFlow", start: Any, text: str) -> tuple[str, list[Any]]:
    """(path, values) of "PATH=V1,V2,...", or of a range in place of the list.

    Raises `FlowsimError` as `parse_change` does.
    """
    from flowsim.model.initial import AbstractRecipe

    path, equals, listed = text.partition("=")
    if not (path and equals and listed):
        raise FlowsimError(f"Option `--over` takes PATH=V1,V2,..., but got {text!r}. Use e.g. --over seed=0:8.")
    tokens = _tokens(listed)
    if path == "seed":
        for token in tokens:
            if not token.isdecimal():
                raise FlowsimError(f"Seeds must be whole numbers of at least 0, but one is {token!r}. Use e.g. 0:8.")
        return path, [int(token) for token in tokens]
    if path.startswith("start."):
        if not isinstance(start, AbstractRecipe):
            raise FlowsimError(f"Path {path!r} needs a recipe, not your own rows. Use --start, not --embeddings.")
        return path, [_value_at(start, path.removeprefix("start."), token) for token in tokens]
    return path, [_value_at(flow, path, token) for token in tokens]


def _tokens(text: str) -> list[str]:
    """The values of a list or a range, as text."""
    kind, *numbers = text.split(":")
    if kind in ("lin", "geom"):
        return _spaced(text, kind, numbers)
    if found := re.fullmatch(r"(-?\d+):(-?\d+)", text):
        whole = [str(i) for i in range(int(found[1]), int(found[2]))]
        if not whole:
            raise FlowsimError(f"Range {text!r} is empty. Its end, which is not included, must be larger.")
        return whole
    return _listed(text)


def _spaced(text: str, kind: str, numbers: list[str]) -> list[str]:
    """The values of "lin:FIRST:LAST:COUNT" or "geom:FIRST:LAST:COUNT"."""
    import numpy as np

    try:
        first, last, count = float(numbers[0]), float(numbers[1]), int("".join(numbers[2:]))
    except (ValueError, IndexError):
        first, last, count = 0.0, 0.0, 0
    if count < 2 or not math.isfinite(first + last):
        raise FlowsimError(
            f"A range is {kind}:FIRST:LAST:COUNT, but got {text!r}. Use e.g. {kind}:0.01:1:20 (20 values)."
        )
    if kind == "geom" and first * last <= 0:
        raise FlowsimError(
            f"Range {text!r} is geometric, so its ends must have the same sign and not be 0. "
            f"Use e.g. geom:0.01:1:20, or lin:{':'.join(numbers)}."
        )
    values = {"lin": np.linspace, "geom": np.geomspace}[kind](first, last, count)
    return [f"{x:.17g}" for x in values]


def _listed(text: str) -> list[str]:
    """The values between commas; commas within brackets and braces do not separate."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    parts = [part.strip() for part in parts]
    if not all(parts):
        raise FlowsimError(f"List {text!r} has an empty value. Use e.g. 0.1,0.2.")
    return parts


def _value_at(owner: Any, path: str, text: str) -> Any:
    """The value of a text for a path; names of presets stay names."""
    from flowsim.base import paths
    from flowsim.base.modules import parts_of
    from flowsim.model import schedules
    from flowsim.model.policy import AbstractTemperature

    old = paths.get(owner, path)
    value = _parse_value(text)
    if path == "schedule" and isinstance(value, str):
        if value in parts_of(AbstractTemperature):
            return schedules.Schedule(_object_at(owner, "schedule.temperature", value))
        schedules.load(value)
        return value
    if isinstance(value, dict):
        value = paths.from_config(value)
    optional = old is None and _takes_part(owner, path)
    if dataclasses.is_dataclass(old) or (optional and value is not None):
        value = _object_at(owner, path, value)
    if isinstance(value, list):
        value = tuple(value)
    if not optional and dataclasses.is_dataclass(old) != dataclasses.is_dataclass(value):
        raise FlowsimError(f"{path!r} expects {_expected(owner, path, old)}, but got {text!r}.")
    _check_kind(path, text, old, value)
    return value


def _object_at(owner: Any, path: str, value: Any) -> Any:
    """`value`, or the object that it names; raises `FlowsimError` if the path does not take it."""
    from flowsim.base.modules import parts_of

    kinds = _kinds_at(owner, path)
    alike = parts_of(kinds)
    if isinstance(value, str):
        if value not in alike:
            raise unknown_name(f"value of {path}", value, alike)
        needed = _required(alike[value])
        if needed:
            fields = ", ".join(f'"{name}": ...' for name in needed)
            raise FlowsimError(
                f"{value} needs {' and '.join(map(repr, needed))}. Give JSON: --set '{path}="
                f'{{"kind": "{value}", {fields}}}\'.'
            )
        return alike[value]()
    if dataclasses.is_dataclass(value) and not isinstance(value, kinds):
        raise unknown_name(f"value of {path}", type(value).__name__, alike)
    return value


def _takes_part(owner: Any, path: str) -> bool:
    """Whether a path whose value is None may hold a part, such as a kernel."""
    from flowsim.base.modules import Described

    kinds = _kinds_at(owner, path)
    return any(isinstance(kind, type) and issubclass(kind, Described) for kind in typing.get_args(kinds))


def _required(cls: Any) -> list[str]:
    """Fields of a class that have no default."""
    missing = dataclasses.MISSING
    return [f.name for f in dataclasses.fields(cls) if f.init and f.default is missing and f.default_factory is missing]


def _kinds_at(owner: Any, path: str) -> Any:
    """The class or classes that a path takes."""
    from flowsim.base import paths

    before, _, name = path.rpartition(".")
    parent = paths.get(owner, before) if before else owner
    return next(f.type for f in dataclasses.fields(parent) if f.name == name)


def _check_kind(path: str, text: str, old: Any, value: Any) -> None:
    """Refuse a value of another type than the present one."""
    for kind, wanted in ((bool, "true or false"), (int, "a whole number"), (str, "a string")):
        if isinstance(old, kind):
            if type(value) is not kind:
                raise FlowsimError(f"Path {path!r} must be {wanted}, but is {text!r}. Its value is {old}.")
            return
    if hasattr(old, "shape") and (isinstance(value, bool) or not isinstance(value, (int, float))):
        raise FlowsimError(f"Path {path!r} must be a number, but is {text!r}. Its value is {float(old):g}.")


def _parse_value(text: str) -> Any:
    for convert in (int, float):
        with contextlib.suppress(ValueError):
            return convert(text)
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _expected(owner: Any, path: str, old: Any) -> str:
    """The values that a path takes, for messages."""
    from flowsim.base.modules import parts_of

    if dataclasses.is_dataclass(old):
        return f"one of {', '.join(parts_of(_kinds_at(owner, path)))}"
    kinds = ((bool, "true or false"), (int, "a whole number"), (str, "a string"), (tuple, "a list"))
    return next((wanted for kind, wanted in kinds if isinstance(old, kind)), "a number")
