"""Rules: how a gradient becomes a velocity. Gradient descent, and the small-step limit of Adam."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Float

from flowsim.base.arrays import Numeric, number
from flowsim.base.checks import check_number
from flowsim.base.modules import Described


class AbstractRule(Described):
    """A map from the negative gradient of one array of unknowns to its velocity.

    Attributes:
        is_gradient: Whether the velocity is the negative gradient itself.
    """

    is_gradient: ClassVar[bool] = False

    @abc.abstractmethod
    def velocity(self, descent: Float[Numeric, "..."]) -> Float[Numeric, "..."]:
        """The velocity for −∂L/∂θ of any shape, entry by entry."""


class GradientDescent(AbstractRule):
    """dθ/dt = −∂L/∂θ: the small-step limit of (stochastic) gradient descent, t = Σ learning rates."""

    is_gradient: ClassVar[bool] = True

    def velocity(self, descent: Float[Numeric, "..."]) -> Float[Numeric, "..."]:
        return descent


class AdamLimit(AbstractRule):
    """dθ/dt = −g/(|g| + ε) entry by entry, g = ∂L/∂θ: the limit of Adam as the learning rate goes to 0.

    At fixed β1 and β2 the averages of g and g² forget faster and faster compared to t = Σ learning rates, so
    that m → g and v → g²: sign descent, smoothed by ε. Where g changes sign the field turns within ε; large ε
    (1e-3) keep it integrable, small ones make the flow slide. Source: derived here.
    """

    epsilon: Any = eqx.field(converter=number, default=1e-3)

    def __check_init__(self) -> None:
        check_number("epsilon", self.epsilon, positive=True, cure="Use e.g. 1e-3.")

    def velocity(self, descent: Float[Numeric, "..."]) -> Float[Numeric, "..."]:
        return descent / (jnp.abs(descent) + self.epsilon)
