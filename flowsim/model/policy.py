"""The interface of temperature policies: β as a function of progress and, if learnable, of the raw parameter ν."""

import abc
from typing import Any, ClassVar

from flowsim.base.checks import check, check_number, is_concrete
from flowsim.base.modules import Described


class AbstractTemperature(Described):
    """A temperature policy.

    A learnable policy also defines `initial_raw` and `derivative`, and may have an `lr_ratio`.

    Attributes:
        learnable: Whether the flow moves the raw parameter ν.
        autonomous: Whether the policy is independent of progress.
        positive: Whether the checks of its fields ensure β > 0 at every progress; otherwise each run checks it.
        lr_ratio: r, the learning rate of ν relative to that of the embeddings.
        parametrization: β(ν), if it is an `AbstractParametrization`; None otherwise.
        clamp: Bounds (τ_min, τ_max) of the temperature; None without a clamp.
    """

    learnable: ClassVar[bool] = False
    autonomous: ClassVar[bool] = False
    positive: ClassVar[bool] = False
    # Not annotated: annotated, they would be fields, which come before the other fields of a class.
    lr_ratio = 1.0
    parametrization = None
    clamp = None

    @abc.abstractmethod
    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        """β = 1/τ > 0, as a NumPy value for NumPy arguments and a JAX value for JAX arguments.

        With operators and functions of `flowsim.base.arrays.namespace(raw)` it also takes tensors of PyTorch, so that
        training on a GPU need not fetch ν in every step.

        Args:
            progress: Training progress u, of any shape. It exceeds 1 in continued runs.
            raw: ν, for learnable policies only.
        """

    def initial_raw(self) -> Any:
        """ν at the start; None for policies that are not learnable."""
        return None

    def derivative(self, progress: Any, raw: Any) -> Any:
        """∂β/∂ν, for learnable policies only; arguments as for `inverse_temperature`."""
        raise NotImplementedError(f"{type(self).__name__} is learnable and must define `derivative`.")

    def bounds(self) -> tuple[Any, Any] | None:
        """Bounds (ν_min, ν_max) of the raw parameter; None without a clamp."""
        return None

    def exits(self, raw: Any) -> dict[str, Any]:
        """Quantities that are positive inside the policy's domain; a run ends where one reaches 0.

        The key "temperature_infinite" has a status of its own; with other keys the status is `LEFT_DOMAIN`.
        """
        return {}

    def raw_of(self, inverse_temperature: Any) -> Any:
        """ν at this β, to continue a run that had another policy; None if it is not known."""
        return None

    def starting_at(self, temperature: float) -> "AbstractTemperature":
        """A copy with this initial temperature; the policy itself if it has no such parameter."""
        return self

    def clamped_to(self, low: float, high: float) -> "AbstractTemperature":
        """A copy clamped to temperatures in [low, high]; the policy itself if it cannot be clamped."""
        return self

    def breakpoints(self) -> tuple[Any, ...]:
        """Values of progress in [0, 1] at which the curve has a kink or a jump; solver steps end there."""
        return ()

    def temperature(self, progress: Any, raw: Any = None) -> Any:
        """τ = 1/β; arguments as for `inverse_temperature`."""
        return 1.0 / self.inverse_temperature(progress, raw)


def check_temperature(name: str, value: Any, cure: str) -> None:
    """Raise `FlowsimError` if a temperature is not positive, or so low that 1/τ overflows float64."""
    check_number(name, value, positive=True, cure=cure)
    if is_concrete(value):
        check(float(value) >= 1e-300, f"Argument `{name}` must be at least 1e-300, but is {float(value):g}. {cure}")
