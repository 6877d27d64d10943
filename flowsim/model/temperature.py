"""Temperature policies: how the temperature τ = 1/β of the softmax behaves during training.

A policy is a pure function of training progress u in [0, 1] and, if the temperature is learnable, of its
raw parameter ν. The very same objects drive the simulator (JAX arrays), real training (plain floats) and
plots (NumPy arrays). Temperatures are dimensionless.

Learnable temperatures are written β = β(ν) with one of four parametrizations; gradient flow moves ν by
dν/dt = −r ∂L/∂ν = −r β'(ν) ∂L/∂β, r the learning-rate ratio.
"""

import abc
import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.base.arrays import (
    Described,
    check,
    check_flag,
    check_fraction,
    check_number,
    is_concrete,
    namespace,
    number,
    plain,
    shown,
)
from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError
from flowsim.model.parametrizations import AbstractParametrization, Exp, Identity, ScaledExp, Softplus


class AbstractTemperature(Described):
    """A temperature policy.

    A policy that is learnable also gives `initial_raw` and `derivative`, and may have an `lr_ratio`.

    Attributes:
        learnable: Whether the flow moves the raw parameter ν.
        autonomous: Whether the policy is independent of progress.
        positive: Whether the checks of its fields ensure β > 0 at every progress; otherwise a run looks itself.
        lr_ratio: r, the learning rate of ν relative to that of the embeddings.
        parametrization: How β depends on ν, if that is one of the parametrizations; None otherwise.
        clamp: (τ_min, τ_max) that the flow does not leave; None without a clamp.
    """

    learnable: ClassVar[bool] = False
    autonomous: ClassVar[bool] = False
    positive: ClassVar[bool] = False
    # Without a type: with one, fields of these names would come before the other fields of a class.
    lr_ratio = 1.0
    parametrization = None
    clamp = None

    @abc.abstractmethod
    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        """β at training progress u (clipped to [0, 1]) and raw parameter ν (learnable policies only)."""

    def initial_raw(self) -> Any:
        """ν at the start; None for policies that are not learnable."""
        return None

    def derivative(self, progress: Any, raw: Any) -> Any:
        """∂β/∂ν at progress u and raw parameter ν (learnable policies only)."""
        raise NotImplementedError(f"{type(self).__name__} is learnable and must define `derivative`.")

    def bounds(self) -> tuple[Any, Any] | None:
        """(ν_min, ν_max) that the flow does not leave; None without a clamp."""
        return None

    def exits(self, raw: Any) -> dict[str, Any]:
        """Quantities that are positive inside the policy's domain, by the name of how a run ends where one is 0."""
        return {}

    def raw_of(self, inverse_temperature: Any) -> Any:
        """ν at which β has this value, to go on from a run with another policy; None if that is not known."""
        return None

    def starting_at(self, temperature: float) -> "AbstractTemperature":
        """The policy with this initial temperature, if it has one to set."""
        return self

    def clamped_to(self, low: float, high: float) -> "AbstractTemperature":
        """The policy held between two temperatures, if it can be."""
        return self

    def breakpoints(self) -> tuple[Any, ...]:
        """Progresses in (0, 1) at which the curve has a kink or jumps, so that steps end there."""
        return ()

    def temperature(self, progress: Any, raw: Any = None) -> Any:
        """τ = 1/β at training progress u and raw parameter ν."""
        return 1.0 / self.inverse_temperature(progress, raw)


class Fixed(AbstractTemperature):
    """A constant temperature: the paper's "FLT" (fixed large temperature)."""

    tau: Any = eqx.field(converter=number, default=0.07)
    autonomous: ClassVar[bool] = True
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_temperature("temperature", self.tau, "Use e.g. Fixed(0.07).")

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return 1.0 / (self.tau + 0.0 * progress)


class Linear(AbstractTemperature):
    """τ(u) = start + (end − start) u: the paper's "TS S0 .. S3". Linear in τ, not in β.

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.temperature.Linear(0.01, 0.05)
        >>> [round(float(policy.temperature(u)), 3) for u in (0.0, 0.5, 1.0)]
        [0.01, 0.03, 0.05]
    """

    start: Any = eqx.field(converter=number, default=0.01)
    end: Any = eqx.field(converter=number, default=0.05)
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        for name in ("start", "end"):
            _check_temperature(name, getattr(self, name), "Use e.g. Linear(0.01, 0.05).")

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return 1.0 / (self.start + (self.end - self.start) * _clip(progress))


class Cosine(AbstractTemperature):
    """τ(u) = low + (high − low)(1 + cos 2πcu)/2: cosine alternation, the paper's "TS A0, A1".

    It starts at `high`, as in Kukleva et al. (ICLR 2023), and makes `cycles` = c full turns. The paper does
    not state the period: c is a parameter.
    """

    low: Any = eqx.field(converter=number, default=0.01)
    high: Any = eqx.field(converter=number, default=0.04)
    cycles: Any = eqx.field(converter=number, default=5.0)
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        cure = "Use e.g. Cosine(0.01, 0.04, cycles=5)."
        for name in ("low", "high"):
            _check_temperature(name, getattr(self, name), cure)
        check_number("cycles", self.cycles, positive=True, cure=cure)
        if is_concrete(self.low) and is_concrete(self.high):
            check(
                self.low <= self.high,
                f"Argument `low` must be at most `high`, but they are {float(self.low):g} and {float(self.high):g}. "
                f"Swap them: Cosine({float(self.high):g}, {float(self.low):g}).",
            )

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        turn = namespace(progress, self.cycles).cos(2 * np.pi * self.cycles * _clip(progress))
        return 1.0 / (self.low + (self.high - self.low) * (1 + turn) / 2)


class Piecewise(AbstractTemperature):
    """τ(u) through given points: straight lines between them, or steps. Constant before the first and after the last.

    `fs.temperature.piecewise` makes one from a list of points.

    Args:
        points: Pairs (u, τ) with u in [0, 1], increasing.
        steps: Whether τ keeps the value of the last point until the next, instead of going there in a straight line.

    Raises:
        FlowsimError: For fewer than one point, progresses that do not increase or leave [0, 1], or a temperature that
            is not positive.
    """

    points: tuple[tuple[Any, Any], ...] = eqx.field(converter=lambda points: _points(points))
    steps: bool = eqx.field(static=True, converter=plain, default=False)
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        cure = "Use e.g. piecewise([(0.0, 0.07), (0.3, 0.02)])."
        check_flag("steps", self.steps)
        for progress, tau in self.points:
            check_fraction("points", progress)
            _check_temperature("points", tau, cure)
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

    def starting_at(self, temperature: float) -> "AbstractTemperature":
        """The policy with this initial temperature, if it has one to set."""
        return self

    def clamped_to(self, low: float, high: float) -> "AbstractTemperature":
        """The policy held between two temperatures, if it can be."""
        return self

    def breakpoints(self) -> tuple[Any, ...]:
        return tuple(u for u, _ in self.points)


def piecewise(points: Iterable[tuple[float, float]], steps: bool = False) -> Piecewise:
    """A temperature through the points (u, τ): straight lines between them, or steps.

    Args:
        points: Pairs (u, τ): progress in [0, 1], increasing, and temperature.
        steps: Whether τ keeps the value of the last point until the next.

    Returns:
        A policy whose numbers can be swept ("schedule.temperature.points.1.0").

    Raises:
        FlowsimError: As `Piecewise`.

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.temperature.piecewise([(0.0, 0.07), (0.5, 0.02), (1.0, 0.04)])
        >>> [round(float(policy.temperature(u)), 3) for u in (0.0, 0.25, 0.5, 1.0)]
        [0.07, 0.045, 0.02, 0.04]
    """
    return Piecewise(tuple(points), steps)


#: Functions that policies of this session are made from, by name: a file can hold the name only.
_FUNCTIONS: Registry[Callable[[Any], Any]] = Registry("function of progress")


class FromFunction(AbstractTemperature):
    """τ(u) as a function of one's choice; `fs.temperature.from_function` makes one and registers the function.

    Args:
        function: The name of the registered function.
        count: The function is called with `count` times progress: 1, or the number of steps of an optax schedule.
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
        # In training and plots, where JAX may work in single precision.
        with jax.enable_x64(True):
            tau = np.asarray(self._call(jnp.asarray(self.count * progress, jnp.float64)), np.float64)
        return 1.0 / (tau + 0.0 * progress)

    def _call(self, x: Any) -> Any:
        try:
            with jax.numpy_dtype_promotion("standard"):  # users and optax mix types
                return _FUNCTIONS[self.function](x)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
            raise FlowsimError(
                f"The function {self.function!r} cannot be compiled: it asks for the value of a number that is known "
                "only when the program runs. Use jax.numpy instead of NumPy, and jnp.where(condition, a, b) instead of "
                "`if`; for steps, fs.temperature.piecewise(..., steps=True)."
            ) from error


def from_function(function: Any, steps: int | None = None, name: str | None = None) -> FromFunction:
    """A temperature policy from a function of progress, τ = f(u), or from an optax schedule.

    The function is traced by JAX: use `jax.numpy` instead of NumPy, and `jnp.where(condition, a, b)` instead of `if`.

    Args:
        function: τ at progress u in [0, 1] (beyond 1 in runs that are continued); with `steps`, τ at a step, as an
            optax schedule.
        steps: Steps in which an optax schedule runs; progress 1 is step `steps`.
        name: What a file calls the function. Default: its own name; for a lambda, one made from its code. To read a
            file in another session, call `from_function` with the same function and name first.

    Returns:
        The policy. Look at it with `policy.temperature(np.linspace(0, 1))`.

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
        name = getattr(function, "__qualname__", type(function).__name__)
        if "<" in name:  # a lambda, or a function inside another
            code = getattr(function, "__code__", None)
            cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
            told = repr((code and (code.co_code, code.co_consts, code.co_names), cells))
            name = f"{name.rpartition('.')[2].strip('<>')}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"
    _FUNCTIONS.add(name, function, getattr(function, "__module__", "") or "")
    return FromFunction(name, 1.0 if steps is None else float(steps))


class Learnable(AbstractTemperature):
    """A trained temperature: β = β(ν), dν/dt = −r ∂L/∂ν. The paper's "Baseline" with its defaults.

    - `init`: the starting temperature τ0.
    - `parametrization`: β(ν); `Exp()` is CLIP's.
    - `lr_ratio`: r, the learning rate of ν relative to that of the embeddings ("SLRT" is 0.1).
    - `clamp`: None, or (τ_min, τ_max): a projected flow that stops ν at the bound (open_clip: (0.01, 1)).

    Examples:
        >>> import flowsim as fs
        >>> policy = fs.temperature.Learnable(init=0.07, parametrization=fs.temperature.Softplus())
        >>> nu = policy.initial_raw()
        >>> round(float(policy.temperature(0.0, nu)), 6)
        0.07
    """

    init: Any = eqx.field(converter=number, default=0.07)
    parametrization: AbstractParametrization = Exp()
    lr_ratio: Any = eqx.field(converter=number, default=1.0)
    clamp: tuple[Any, Any] | None = eqx.field(converter=lambda clamp: _bounds(clamp), default=None)
    learnable: ClassVar[bool] = True
    autonomous: ClassVar[bool] = True
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        _check_temperature("temperature", self.init, "Use e.g. Learnable(init=0.07).")
        check(
            isinstance(self.parametrization, AbstractParametrization),
            f"Argument `parametrization` cannot be {shown(self.parametrization)}. Use e.g. fs.temperature.Softplus().",
        )
        check_number("lr_ratio", self.lr_ratio, minimum=0.0, cure="Use e.g. Learnable(lr_ratio=1.0); 0 never moves it.")
        if self.clamp is not None:
            low, high = self.clamp
            for name, bound in (("clamp[0]", low), ("clamp[1]", high)):
                _check_temperature(name, bound, "Use e.g. clamp=(0.01, 1.0).")
            if is_concrete(low) and is_concrete(high) and is_concrete(self.init):
                check(
                    low < high and low <= self.init <= high,
                    f"The clamp ({float(low):g}, {float(high):g}) must be increasing and contain the initial "
                    f"temperature {float(self.init):g}. Widen the clamp or change `init`.",
                )

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        # Without a raw value: the curve that is known before training, its starting value.
        if raw is None:
            return 1.0 / (self.init + 0.0 * progress)
        return self.parametrization.inverse_temperature(raw)

    def initial_raw(self) -> Any:
        return self.parametrization.raw(1.0 / self.init)

    def derivative(self, progress: Any, raw: Any) -> Any:
        return self.parametrization.derivative(raw)

    def exits(self, raw: Any) -> dict[str, Any]:
        return self.parametrization.exits(raw)

    def raw_of(self, inverse_temperature: Any) -> Any:
        return self.parametrization.raw(inverse_temperature)

    def starting_at(self, temperature: float) -> "Learnable":
        return dataclasses.replace(self, init=temperature)

    def clamped_to(self, low: float, high: float) -> "Learnable":
        return dataclasses.replace(self, init=min(max(float(self.init), low), high), clamp=(low, high))

    def bounds(self) -> tuple[Any, Any] | None:
        if self.clamp is None:
            return None
        # ν grows with β, so that ν_max belongs to τ_min.
        low, high = self.clamp
        return self.parametrization.raw(1.0 / high), self.parametrization.raw(1.0 / low)


def _check_temperature(name: str, value: Any, cure: str) -> None:
    """Refuse a temperature that is not positive, or so low that 1/τ is beyond float64."""
    check_number(name, value, positive=True, cure=cure)
    if is_concrete(value):
        check(float(value) >= 1e-300, f"Argument `{name}` must be at least 1e-300, but is {float(value):g}. {cure}")


def _points(points: Any) -> Any:
    """Pairs (u, τ) as numbers."""
    found = tuple(tuple(point) for point in points) if isinstance(points, Iterable) else ()
    check(
        len(found) > 0 and all(len(point) == 2 for point in found),
        f"Argument `points` must be pairs (progress, temperature), but is {shown(points)}. Use e.g. [(0.0, 0.07)].",
    )
    return tuple((number(u), number(tau)) for u, tau in found)


def _bounds(clamp: Any) -> Any:
    """(τ_min, τ_max) as numbers; None for no clamp."""
    if clamp is None:
        return None
    pair = tuple(clamp) if isinstance(clamp, (tuple, list)) or getattr(clamp, "ndim", 0) == 1 else ()
    check(
        len(pair) == 2,
        f"Argument `clamp` must be (tau_min, tau_max), but is {shown(clamp)}. Use e.g. (0.01, 1.0).",
    )
    return tuple(number(bound) for bound in pair)


def _clip(progress: Any) -> Any:
    return namespace(progress).clip(progress, 0.0, 1.0)


__all__ = [
    "AbstractParametrization", "AbstractTemperature", "Cosine", "Exp", "Fixed", "FromFunction", "Identity", "Learnable",
    "Linear", "Piecewise", "ScaledExp", "Softplus", "from_function", "piecewise",
]  # fmt: skip
