"""Temperatures from points and from functions of progress, available as `fs.temperature.piecewise` and so on."""

import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.base.arrays import namespace, number, plain
from flowsim.base.checks import check, check_flag, check_fraction, check_number, is_concrete, shown
from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError
from flowsim.model.policy import AbstractTemperature, check_temperature


class Piecewise(AbstractTemperature):
    """τ(u) through given points: piecewise linear, or in steps. Constant before the first and after the last point.

    `fs.temperature.piecewise` makes one from a list of points.

    Args:
        points: Pairs (u, τ) with u in [0, 1], increasing.
        steps: Whether τ keeps the value of a point until the next one, instead of being interpolated.

    Raises:
        FlowsimError: If there are no points, u does not increase or leaves [0, 1], or a temperature is not positive.
    """

    points: tuple[tuple[Any, Any], ...] = eqx.field(converter=lambda points: _points(points))
    steps: bool = eqx.field(static=True, converter=plain, default=False)
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        cure = "Use e.g. piecewise([(0.0, 0.07), (0.3, 0.02)])."
        check_flag("steps", self.steps)
        for progress, tau in self.points:
            check_fraction("points", progress)
            check_temperature("points", tau, cure)
        progresses = [float(u) for u, _ in self.points if is_concrete(u)]
        check(
            all(a < b for a, b in itertools.pairwise(progresses)),
            f"The progresses of `points` must increase, but are {progresses}. {cure}",
        )

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        xp = namespace(progress, *(tau for _, tau in self.points))
        (first, tau), *rest = self.points
        total = tau + 0.0 * progress
        for u, value in rest:
            if self.steps:
                total = xp.where(progress >= u, value + 0.0 * progress, total)
            else:
                total = total + (value - tau) * xp.clip((progress - first) / (u - first), 0.0, 1.0)
            first, tau = u, value
        return 1.0 / total

    def breakpoints(self) -> tuple[Any, ...]:
        return tuple(u for u, _ in self.points)


def piecewise(points: Iterable[tuple[float, float]], steps: bool = False) -> Piecewise:
    """A temperature through the points (u, τ): piecewise linear, or in steps.

    Args:
        points: Pairs (u, τ): progress in [0, 1], increasing, and temperature.
        steps: Whether τ keeps the value of a point until the next one.

    Returns:
        A policy whose numbers can be swept ("schedule.temperature.points.1.0").

    Raises:
        FlowsimError: If there are no points, u does not increase or leaves [0, 1], or a temperature is not positive.

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.temperature.piecewise([(0.0, 0.07), (0.5, 0.02), (1.0, 0.04)])
        >>> [round(float(policy.temperature(u)), 3) for u in (0.0, 0.25, 0.5, 1.0)]
        [0.07, 0.045, 0.02, 0.04]
    """
    return Piecewise(tuple(points), steps)


#: Functions registered in this session, by name: files store only the name.
_FUNCTIONS: Registry[Callable[[Any], Any]] = Registry("function of progress")


class FromFunction(AbstractTemperature):
    """τ(u) given by a Python function; `fs.temperature.from_function` makes one and registers the function.

    Args:
        function: The name of the registered function.
        count: Factor on progress before the call: 1, or the number of steps of an optax schedule.

    Raises:
        FlowsimError: If no function of this name is registered, or `count` is not positive.
    """

    function: str = eqx.field(static=True)
    count: Any = eqx.field(converter=number, default=1.0)

    def __check_init__(self) -> None:
        check(
            self.function in _FUNCTIONS,
            f"The function {shown(self.function)} is not defined in this session. Give it again: "
            "fs.temperature.from_function(f, name=...).",
        )
        check_number("count", self.count, positive=True, cure="Use the number of steps of the schedule.")

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        if isinstance(progress, jax.Array):
            return 1.0 / (jnp.asarray(self._call(self.count * progress), progress.dtype) + 0.0 * progress)
        # In training and plots JAX may be in single precision.
        with jax.enable_x64(True):
            tau = np.asarray(self._call(jnp.asarray(self.count * progress, jnp.float64)), np.float64)
        return 1.0 / (tau + 0.0 * progress)

    def functions(self) -> dict[str, Callable[..., Any]]:
        return {self.function: _FUNCTIONS[self.function]}

    def _call(self, x: Any) -> Any:
        try:
            with jax.numpy_dtype_promotion("standard"):  # users and optax mix types
                return _FUNCTIONS[self.function](x)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            raise FlowsimError(
                f"The function {self.function!r} cannot be compiled: it needs the value of a number that is known "
                "only at run time. Use jax.numpy instead of NumPy, and jnp.where(condition, a, b) instead of `if`; for "
                "steps, fs.temperature.piecewise(..., steps=True)."
            ) from error


def from_function(function: Any, steps: int | None = None, name: str | None = None) -> FromFunction:
    """A temperature policy from a function of progress, τ = f(u), or from an optax schedule.

    The function is traced by JAX: use `jax.numpy` instead of NumPy, and `jnp.where(condition, a, b)` instead of `if`.

    Args:
        function: τ as a function of progress u in [0, 1] (above 1 in continued runs); with `steps`, τ as a function of
            the step, as an optax schedule.
        steps: Number of steps of an optax schedule; progress 1 is step `steps`.
        name: Name of the function in files. Default: its own name; for a lambda or a nested function, one derived
            from its code. To read such a file in another session, first call `from_function` there with the same
            function and name.

    Returns:
        The policy. Inspect it with `policy.temperature(np.linspace(0, 1))`.

    Raises:
        FlowsimError: If `function` is not callable.

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.temperature.from_function(lambda u: 0.07 * 0.1**u)
        >>> round(float(policy.temperature(1.0)), 4)
        0.007
    """
    if not callable(function):
        raise FlowsimError(f"Expected a function of progress, but got {shown(function)}. Use e.g. lambda u: 0.07 + u.")
    if name is None:
        name = str(getattr(function, "__qualname__", type(function).__name__))
        if "<" in name:  # a lambda, or a function inside another
            code = getattr(function, "__code__", None)
            cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
            told = repr((code and (code.co_code, code.co_consts, code.co_names), cells))
            name = f"{name.rpartition('.')[2].strip('<>')}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    _FUNCTIONS.add(name, function, getattr(function, "__module__", "") or "")
    return FromFunction(name, 1.0 if steps is None else float(steps))


def _points(points: Any) -> Any:
    """Pairs (u, τ) as numbers."""
    found = tuple(tuple(point) for point in points) if isinstance(points, Iterable) else ()
    check(
        len(found) > 0 and all(len(point) == 2 for point in found),
        f"Argument `points` must be pairs (progress, temperature), but is {shown(points)}. Use e.g. [(0.0, 0.07)].",
    )
    return tuple((number(u), number(tau)) for u, tau in found)
