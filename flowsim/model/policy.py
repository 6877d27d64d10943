"""What every temperature policy answers: β at a progress and, if it is learnable, how its raw parameter ν moves."""

import abc
from typing import Any, ClassVar

from flowsim.base.checks import check, check_number, is_concrete
from flowsim.base.modules import Described


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


def check_temperature(name: str, value: Any, cure: str) -> None:
    """Refuse a temperature that is not positive, or so low that 1/τ is beyond float64."""
    check_number(name, value, positive=True, cure=cure)
    if is_concrete(value):
        check(float(value) >= 1e-300, f"Argument `{name}` must be at least 1e-300, but is {float(value):g}. {cure}")
