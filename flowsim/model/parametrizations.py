"""Parametrizations of a learnable temperature: how the inverse temperature β depends on the trained parameter ν.

Gradient flow moves ν by dν/dt = −r ∂L/∂ν = −r β'(ν) ∂L/∂β, where r is the learning-rate ratio. Users write
`fs.temperature.Exp`, `ScaledExp`, `Softplus` and `Identity`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx

from flowsim.base.arrays import namespace, number
from flowsim.base.checks import check_number
from flowsim.base.modules import Described


class AbstractParametrization(Described):
    """How the inverse temperature β depends on the trained raw parameter ν.

    Attributes:
        potential: Name of the potential F with dF/dβ = β/β'(ν)² in `fs.theory.potential` ("exp", "softplus",
            "identity"), which gives a conserved quantity on parallel cones; None if there is none.
        scale: s in β = β(ν/s); 1 without a scale.
    """

    potential: ClassVar[str | None] = None
    # Not annotated: annotated, it would be a field, which comes before the other fields of a class.
    scale = 1.0

    @abc.abstractmethod
    def inverse_temperature(self, raw: Any) -> Any:
        """β(ν), elementwise, as the same kind of array as `raw`."""

    @abc.abstractmethod
    def raw(self, inverse_temperature: Any) -> Any:
        """ν(β), the inverse of `inverse_temperature`."""

    @abc.abstractmethod
    def derivative(self, raw: Any) -> Any:
        """dβ/dν at ν, elementwise."""

    def exits(self, raw: Any) -> dict[str, Any]:
        """Quantities that are positive inside the domain of β(ν); see `AbstractTemperature.exits`."""
        return {}


class Exp(AbstractParametrization):
    """β = exp(ν), as in CLIP, where ν is the parameter `logit_scale`."""

    potential: ClassVar[str | None] = "exp"

    def inverse_temperature(self, raw: Any) -> Any:
        return namespace(raw).exp(raw)

    def raw(self, inverse_temperature: Any) -> Any:
        return namespace(inverse_temperature).log(inverse_temperature)

    def derivative(self, raw: Any) -> Any:
        return namespace(raw).exp(raw)


class ScaledExp(AbstractParametrization):
    """β = exp(ν/s): "TR scale s" of Yaras et al. 2025 (whose appendix prints τ where β is meant).

    Args:
        scale: s > 0; 2 and 10 are the presets.

    Raises:
        FlowsimError: If `scale` is not positive.
    """

    scale: Any = eqx.field(converter=number, default=10.0)
    potential: ClassVar[str | None] = "exp"

    def __check_init__(self) -> None:
        check_number("scale", self.scale, positive=True, cure="Use e.g. ScaledExp(10).")

    def inverse_temperature(self, raw: Any) -> Any:
        return namespace(raw, self.scale).exp(raw / self.scale)

    def raw(self, inverse_temperature: Any) -> Any:
        return self.scale * namespace(inverse_temperature, self.scale).log(inverse_temperature)

    def derivative(self, raw: Any) -> Any:
        return namespace(raw, self.scale).exp(raw / self.scale) / self.scale


class Softplus(AbstractParametrization):
    """β = log(1 + e^ν): "TR softplus" of Yaras et al. 2025."""

    potential: ClassVar[str | None] = "softplus"

    def inverse_temperature(self, raw: Any) -> Any:
        # Not `logaddexp(0, ν)`: a literal zero would change dtype under strict promotion.
        xp = namespace(raw)
        return xp.maximum(raw, 0 * raw) + xp.log1p(xp.exp(-abs(raw)))

    def raw(self, inverse_temperature: Any) -> Any:
        xp = namespace(inverse_temperature)
        return inverse_temperature + xp.log(-xp.expm1(-inverse_temperature))

    def derivative(self, raw: Any) -> Any:
        xp = namespace(raw)
        small = xp.exp(-abs(raw))
        return xp.where(raw >= 0, 1 / (1 + small), small / (1 + small))


class Identity(AbstractParametrization):
    """β = ν: the inverse temperature itself is trained. A run ends if β reaches 0, where τ is infinite."""

    potential: ClassVar[str | None] = "identity"

    def inverse_temperature(self, raw: Any) -> Any:
        return raw

    def raw(self, inverse_temperature: Any) -> Any:
        return inverse_temperature

    def derivative(self, raw: Any) -> Any:
        return namespace(raw).ones_like(raw)

    def exits(self, raw: Any) -> dict[str, Any]:
        return {"temperature_infinite": raw}
