"""Checks of every part: JSON, `repr`, numbers as leaves, calls of its methods, and reproducible values."""

import dataclasses
import json
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowsim.base import paths
from flowsim.base.arrays import to_device
from flowsim.base.checks import is_concrete
from flowsim.base.modules import Described
from flowsim.conformance.compare import same
from flowsim.conformance.suite import Check, Suite, fail, require


def checks_of(suite: Suite) -> list[Check]:
    """All checks of a suite: those of every part, then those of the kind."""
    of_modules = [Check("json", round_trip), Check("repr", shown), Check("numbers", numbers)]
    return [
        *(of_modules if issubclass(suite.base, Described) else []),
        Check("runs", lambda part: runs(suite, part)),
        Check("pure", lambda part: pure(suite, part), ("runs",)),
        *suite.checks,
    ]


def round_trip(part: Any) -> str:
    """JSON that `from_config` reads back to an equal object."""
    name = type(part).__name__
    back = paths.from_config(json.loads(json.dumps(paths.to_config(part))))
    require(
        type(back) is type(part),
        f"`{name}` read back from JSON is another class of this name. Give your class a unique name.",
    )
    if not bool(eqx.tree_equal(back, part)):
        fail(
            f"`{name}` must come back from JSON as {part!r}, but comes back as {back!r}. Use only numbers, strings, "
            "tuples and parts as fields, and converters that accept their own results."
        )
    return "Writing to JSON and reading back gives an equal object."


def shown(part: Any) -> str:
    """`repr` works, for sessions and messages."""
    text = repr(part)
    return f"It is shown as {text}."


def numbers(part: Any) -> str:
    """Numbers can change without recompilation."""
    traces = 0

    @eqx.filter_jit
    def use(part: Any) -> Any:
        nonlocal traces
        traces += 1
        return jax.tree.leaves(eqx.filter(part, eqx.is_array))

    changed, static = [], []
    for path, value in number_fields(part):
        if (other := _with_another(part, path, value)) is not None:
            use(to_device(part))
            before = traces
            use(to_device(other))
            (static if traces > before else changed).append(path)
    listed = ", ".join(f"`{path}`" for path in static or changed)
    if static:
        fail(
            f"Changing {listed} recompiles all programs. Declare numbers with "
            "eqx.field(converter=fs.extend.number), and whole numbers that are sizes with eqx.field(static=True)."
        )
    return f"Changing {listed} recompiles nothing." if listed else "It has no numbers to change."


def number_fields(part: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(path, number) of all numbers in a part except sizes (static whole numbers)."""
    for field in dataclasses.fields(part):
        if field.init:
            value = getattr(part, field.name)
            if not (field.metadata.get("static") and isinstance(value, int)):
                yield from _numbers_in(value, prefix + field.name)


def _numbers_in(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Described):
        yield from number_fields(value, path + ".")
    elif isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from _numbers_in(item, f"{path}.{i}")
    elif is_concrete(value) and not isinstance(value, bool):
        yield path, value


def _with_another(part: Any, path: str, value: Any) -> Any:
    """The part with another number at a path; None if it accepts none."""
    old = float(value)
    near = [old * 0.999, old * 1.001, old + 1e-3, old - 1e-3]
    for new in [int(old) + 1, int(old) - 1] if isinstance(value, (int, np.integer)) else near:
        if new != old:
            try:
                return paths.replace(part, {path: new})
            except ValueError:  # refused by a check
                continue
    return None


def runs(suite: Suite, part: Any) -> str:
    """The methods can be called."""
    suite.use(part)
    return f"{suite.inside} can be called."


def pure(suite: Suite, part: Any) -> str:
    """The same values from the same arguments."""
    require(
        same(suite.use(part), suite.use(part)),
        f"{suite.inside} must give the same values for the same arguments, but two calls differ. Store nothing between "
        "calls, and draw random numbers from the given key or seed.",
    )
    return f"{suite.inside}: two calls give the same values, to the last bit."
