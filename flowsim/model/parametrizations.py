"""Parametrizations of a learnable temperature: how the inverse temperature β depends on the trained parameter ν.

Gradient flow moves ν by dν/dt = −r ∂L/∂ν = −r β'(ν) ∂L/∂β, r the learning-rate ratio. They are public as
`fs.temperature.Exp`, `ScaledExp`, `Softplus` and `Identity`.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx

from flowsim.base.arrays import namespace, number
from flowsim.base.checks import check_number
from flowsim.base.modules import Described


class AbstractParametrization(Described):
    """How the inverse temperature β depends on the raw parameter ν that is trained.

    Attributes:
        potential: Name of the potential P with P'(β) = 1/(β'(ν))² among those of `fs.theory.potential` ("exp",
            "softplus", "identity"), with which a quantity is conserved on parallel cones; None if there is none.
        scale: The s of β = β(ν/s), 1 without a scale.
    """

    potential: ClassVar[str | None] = None
    # Without a type: with one, a field of this name would come before the other fields of a class.
    scale = 1.0

    @abc.abstractmethod
    def inverse_temperature(self, raw: Any) -> Any:
        """β(ν), elementwise; same kind of array as `raw`."""

    @abc.abstractmethod
    def raw(self, inverse_temperature: Any) -> Any:
        """ν(β), the inverse function."""

    @abc.abstractmethod
    def derivative(self, raw: Any) -> Any:
        """β'(ν)."""

    def exits(self, raw: Any) -> dict[str, Any]:
        """Quantities that are positive inside the domain of β(ν), by the name of how a run ends where one is 0."""
        return {}


class Exp(AbstractParametrization):
    """β = exp(ν): CLIP's own (its parameter `logit_scale` is ν)."""

    potential: ClassVar[str | None] = "exp"

    def inverse_temperature(self, raw: Any) -> Any:
        return namespace(raw).exp(raw)

    def raw(self, inverse_temperature: Any) -> Any:
        return namespace(inverse_temperature).log(inverse_temperature)

    def derivative(self, raw: Any) -> Any:
        return namespace(raw).exp(raw)


class ScaledExp(AbstractParametrization):
    """β = exp(ν/s): the paper's "TR scale s" (its appendix prints τ where β is meant)."""

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
    """β = log(1 + e^ν): the paper's "TR softplus"."""

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
    """β = ν: the inverse temperature itself is trained; it may reach 0, where τ is infinite."""

    potential: ClassVar[str | None] = "identity"

    def inverse_temperature(self, raw: Any) -> Any:
        return raw

    def raw(self, inverse_temperature: Any) -> Any:
        return inverse_temperature

    def derivative(self, raw: Any) -> Any:
        return namespace(raw).ones_like(raw)

    def exits(self, raw: Any) -> dict[str, Any]:
        return {"temperature_infinite": raw}
