"""Rules: how a gradient becomes a velocity, for gradient descent and for the small-step limit of Adam."""

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
        """The velocity, entry by entry.

        Args:
            descent: −∂L/∂θ, of any shape.
        """


class GradientDescent(AbstractRule):
    """dθ/dt = −∂L/∂θ: the small-step limit of (stochastic) gradient descent, with t the sum of learning rates."""

    is_gradient: ClassVar[bool] = True

    def velocity(self, descent: Float[Numeric, "..."]) -> Float[Numeric, "..."]:
        return descent


class AdamLimit(AbstractRule):
    """dθ/dt = −g/(|g| + ε) entry by entry, with g = ∂L/∂θ: the limit of Adam as the learning rate goes to 0.

    At fixed β1 and β2 the averages of g and g² become instantaneous on the scale of t, the sum of learning rates:
    m → g and v → g². The limit is sign descent, smoothed by ε. Source: derived here.

    Args:
        epsilon: ε, the size of g over which the field changes sign. 1e-3 can be integrated; with much smaller values
            the flow becomes stiff and slides along g = 0.

    Raises:
        FlowsimError: If `epsilon` is not positive.
    """

    epsilon: Any = eqx.field(converter=number, default=1e-3)

    def __check_init__(self) -> None:
        check_number("epsilon", self.epsilon, positive=True, cure="Use e.g. 1e-3.")

    def velocity(self, descent: Float[Numeric, "..."]) -> Float[Numeric, "..."]:
        return descent / (jnp.abs(descent) + self.epsilon)
