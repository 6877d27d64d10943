"""Temperature policies: how the temperature τ = 1/β of the softmax behaves during training.

A policy is a pure function of training progress u in [0, 1] and, if the temperature is learnable, of its
raw parameter ν. The same objects work in the simulator (JAX arrays), in real training (plain floats) and in
plots (NumPy arrays). Temperatures are dimensionless.

A learnable temperature has one of four parametrizations β = β(ν). Gradient flow moves ν by
dν/dt = −r ∂L/∂ν = −r β'(ν) ∂L/∂β, where r is the learning-rate ratio.
"""

import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import numpy as np

from flowsim.base.arrays import namespace, number
from flowsim.base.checks import check, check_number, is_concrete, shown
from flowsim.model.curves import FromFunction, Piecewise, from_function, piecewise
from flowsim.model.parametrizations import AbstractParametrization, Exp, Identity, ScaledExp, Softplus
from flowsim.model.policy import AbstractTemperature, check_temperature


class Fixed(AbstractTemperature):
    """A constant temperature: "FLT" (fixed large temperature) of Yaras et al. 2025.

    Args:
        tau: τ, at least 1e-300.

    Raises:
        FlowsimError: If the temperature is not positive or too small.
    """

    tau: Any = eqx.field(converter=number, default=0.07)
    autonomous: ClassVar[bool] = True
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        check_temperature("temperature", self.tau, "Use e.g. Fixed(0.07).")

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return 1.0 / (self.tau + 0.0 * progress)


class Linear(AbstractTemperature):
    """τ(u) = start + (end − start) u: "TS S0" to "TS S3" of Yaras et al. 2025. Linear in τ, not in β.

    Args:
        start: τ at the start of training.
        end: τ at its end.

    Raises:
        FlowsimError: If a temperature is not positive or too small.

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
            check_temperature(name, getattr(self, name), "Use e.g. Linear(0.01, 0.05).")

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return 1.0 / (self.start + (self.end - self.start) * _clip(progress))


class Cosine(AbstractTemperature):
    """τ(u) = low + (high − low)(1 + cos 2πcu)/2: cosine alternation, "TS A0" and "TS A1" of Yaras et al. 2025.

    It starts at `high`, as in Kukleva et al. (ICLR 2023). Yaras et al. do not state the period.

    Args:
        low: The lowest temperature.
        high: The highest temperature, at the start.
        cycles: c, the number of periods during training.

    Raises:
        FlowsimError: If a temperature or `cycles` is not positive, or `low` is above `high`.
    """

    low: Any = eqx.field(converter=number, default=0.01)
    high: Any = eqx.field(converter=number, default=0.04)
    cycles: Any = eqx.field(converter=number, default=5.0)
    positive: ClassVar[bool] = True

    def __check_init__(self) -> None:
        cure = "Use e.g. Cosine(0.01, 0.04, cycles=5)."
        for name in ("low", "high"):
            check_temperature(name, getattr(self, name), cure)
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


class Learnable(AbstractTemperature):
    """A trained temperature: β = β(ν), dν/dt = −r ∂L/∂ν. The defaults are the "Baseline" of Yaras et al. 2025.

    Args:
        init: The initial temperature τ0.
        parametrization: β(ν); `Exp()` is CLIP's.
        lr_ratio: r, the learning rate of ν relative to that of the embeddings ("SLRT" is 0.1).
        clamp: None, or (τ_min, τ_max): a projected flow that stops ν at the bound (open_clip: (0.01, 1)).

    Raises:
        FlowsimError: If a temperature is not positive, `lr_ratio` is negative, or the clamp does not increase or
            does not contain `init`.

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
        check_temperature("temperature", self.init, "Use e.g. Learnable(init=0.07).")
        check(
            isinstance(self.parametrization, AbstractParametrization),
            f"Argument `parametrization` cannot be {shown(self.parametrization)}. Use e.g. fs.temperature.Softplus().",
        )
        check_number("lr_ratio", self.lr_ratio, minimum=0.0, cure="Use e.g. Learnable(lr_ratio=1.0); 0 never moves it.")
        if self.clamp is not None:
            low, high = self.clamp
            for name, bound in (("clamp[0]", low), ("clamp[1]", high)):
                check_temperature(name, bound, "Use e.g. clamp=(0.01, 1.0).")
            if is_concrete(low) and is_concrete(high) and is_concrete(self.init):
                check(
                    low < high and low <= self.init <= high,
                    f"The clamp ({float(low):g}, {float(high):g}) must be increasing and contain the initial "
                    f"temperature {float(self.init):g}. Widen the clamp or change `init`.",
                )

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        # Without a raw value only the initial temperature is known.
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
        # ν grows with β, so ν_max belongs to τ_min.
        low, high = self.clamp
        return self.parametrization.raw(1.0 / high), self.parametrization.raw(1.0 / low)


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
