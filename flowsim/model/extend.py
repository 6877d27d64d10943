"""What classes of your own need: numbers as fields, NumPy or JAX as it comes, and a name that files can tell.

    @fs.extend.register
    class Square(fs.losses.AbstractLoss):
        strength: Any = eqx.field(converter=fs.extend.number, default=1.0)

The how-to pages add a temperature policy, a loss and a geometry with it.
"""

from typing import TypeVar

import equinox as eqx

from flowsim.base.arrays import bundle, check, check_number, namespace, number
from flowsim.model import schedules
from flowsim.model.flow import KINDS

_Class = TypeVar("_Class", bound=type)


def register(cls: _Class) -> _Class:
    """Make a class known by its name, so that JSON and result files that hold it can be read. A decorator.

    A class of the same name that was registered before, as when a cell is run again, gives way. Raises
    `FlowsimError` for what is no `equinox.Module`, and for the names of flowsim's own classes.

    Examples:
        >>> import flowsim as fs
        >>> @fs.extend.register
        ... class Halves(fs.temperature.Fixed):
        ...     pass
        >>> schedule = fs.Schedule(Halves(0.5))
        >>> fs.Schedule.from_json(schedule.to_json()).temperature.tau.item()
        0.5
    """
    check(
        issubclass(cls, eqx.Module),
        f"{cls!r} cannot be registered. Give a class that is derived from one of flowsim's.",
    )
    known, name = KINDS.get(cls.__name__), cls.__name__
    check(
        known is None or not known.__module__.startswith("flowsim."),
        f"flowsim has a class {name!r} of its own. Give yours another name.",
    )
    schedules.KINDS[name] = KINDS[name] = cls
    return cls


__all__ = ["bundle", "check", "check_number", "namespace", "number", "register"]
