"""The gradient flow itself: state and vector field, pure functions without solver or checks.

    dθ/dt = −∂L/∂θ,   dν/dt = −r ∂L/∂ν,   L = ℓ(β(ν) S(θ))

for embedding coordinates θ (see `geometry`), raw temperature ν (see `temperature`) and loss ℓ (see
`losses`). Time t is flow time: for plain gradient descent it is the sum of learning rates.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from flowsim import config, initial, schedules
from flowsim._arrays import Numeric, check, to_device
from flowsim.errors import FlowsimError
from flowsim.geometry import AbstractGeometry, Parallel, Reduced, Sphere
from flowsim.initial import AbstractRecipe, Start
from flowsim.losses import AbstractLoss, InfoNCE
from flowsim.pairing import AbstractPairing, LabelNoise, Matched, Targets
from flowsim.schedules import Schedule


class Moving(eqx.Module):
    """The unknowns of the flow: the geometry's position and the raw temperature ν (None if not trained)."""

    position: PyTree
    raw: Float[Numeric, ""] | None


class State(eqx.Module):
    """Everything the vector field needs: what moves, and what stays (geometry's constants, targets, masks)."""

    moving: Moving
    constants: PyTree
    targets: Targets
    masks: Array | None


class GradientFlow(eqx.Module):
    """A contrastive gradient flow: geometry, schedule, loss and pairing.

    `schedule` may be a preset's name or a temperature policy. Structure is static and numbers are leaves,
    so that changing a number never recompiles.
    """

    geometry: AbstractGeometry = Sphere()
    schedule: Schedule = eqx.field(converter=schedules.as_schedule, default=Schedule())
    loss: AbstractLoss = InfoNCE()
    pairing: AbstractPairing = Matched()

    @classmethod
    def from_preset(cls, name: str, **parts: Any) -> "GradientFlow":
        """The flow of a preset of the paper, e.g. "Baseline" or "TS S3"; `parts` as in the constructor."""
        return cls(schedule=schedules.get(name), **parts)

    def replace(self, **changes: Any) -> "GradientFlow":
        """A copy with values at dotted paths replaced: `replace(**{"schedule.temperature.init": 0.1})`.

        A schedule may be given by name. Raises `FlowsimError` for a path that does not exist.
        """
        return config.replace(self, changes)

    def to_config(self) -> dict[str, Any]:
        """Plain data that `from_config` reads back."""
        return config.to_config(self)

    @classmethod
    def from_config(cls, data: Any) -> "GradientFlow":
        """The flow that `to_config` described."""
        flow = config.from_config(data, KINDS)
        check(isinstance(flow, GradientFlow), 'Expected a GradientFlow. Start with {"kind": "GradientFlow"}.')
        return flow

    def initial_state(self, start: Start, seed: int = 0, dtype: Any = np.float64) -> State:
        """The state at a start; call it inside `jax.enable_x64(True)` for float64."""
        position, constants = self.geometry.place(start)
        temperature = self.schedule.temperature
        moving = to_device(Moving(position, temperature.initial_raw()), dtype)
        constants = to_device(constants, dtype)
        pairing_key, swap_key = jax.random.split(jax.random.key(seed))
        masks = None
        if self.schedule.swap.active:
            rows = self.geometry.rows(moving.position, constants)
            if rows is None:
                raise FlowsimError("Swaps need rows, but the start holds only similarities. Give rows.")
            pairs, dim = rows[0].shape
            masks = self.schedule.swap.draw(swap_key, pairs, dim, dtype)
        targets = self.pairing.targets(pairing_key, start.pairs, dtype)
        return State(moving, constants, targets, masks)

    def inverse_temperature(self, t: Any, state: State, horizon: Any = np.inf) -> Any:
        """β at flow time t; schedules run in progress t/horizon."""
        return self.schedule.temperature.inverse_temperature(t / horizon, state.moving.raw)

    def loss_value(self, t: Any, state: State, horizon: Any = np.inf) -> Float[Array, ""]:
        """The loss that the flow descends: L, or (1 − p) L + p E[L∘swap] with a swap of fraction p."""
        beta = self.inverse_temperature(t, state, horizon)
        plain = self.loss.value(beta * self.geometry.similarity(state.moving.position, state.constants), state.targets)
        swap = self.schedule.swap
        if not swap.active:
            return plain
        image, text = self._rows(state)

        def swapped(mask: Array) -> Array:
            x, y = swap.apply(mask, image, text)
            return self.loss.value(beta * (x @ y.T), state.targets)

        return (1 - swap.fraction) * plain + swap.fraction * jnp.mean(jax.lax.map(swapped, state.masks))

    def vector_field(self, t: Any, state: State, horizon: Any = np.inf) -> Moving:
        """dθ/dt and dν/dt at flow time t."""
        temperature = self.schedule.temperature
        position, constants = state.moving.position, state.constants
        beta = self.inverse_temperature(t, state, horizon)
        if self.schedule.swap.active:
            image_force, text_force, beta_force = self._swapped_forces(beta, state)
            velocity = self.geometry.velocity_from_rows(position, constants, image_force, text_force)
        else:
            similarity = self.geometry.similarity(position, constants)
            gradient = self.loss.gradient(beta * similarity, state.targets)
            velocity = self.geometry.velocity(position, constants, -beta * gradient)
            beta_force = -jnp.sum(gradient * similarity)
        return Moving(velocity, temperature.raw_velocity(state.moving.raw, beta_force))

    def _rows(self, state: State) -> tuple[Array, Array]:
        rows = self.geometry.rows(state.moving.position, state.constants)
        assert rows is not None
        return rows

    def _swapped_forces(self, beta: Any, state: State) -> tuple[Array, Array, Array]:
        """Forces −∂L/∂X, −∂L/∂Y on the rows and −∂L/∂β of the averaged loss."""
        swap = self.schedule.swap
        image, text = self._rows(state)

        def forces(x: Array, y: Array) -> tuple[Array, Array, Array]:
            similarity = x @ y.T
            gradient = self.loss.gradient(beta * similarity, state.targets)
            return -beta * (gradient @ y), -beta * (gradient.T @ x), -jnp.sum(gradient * similarity)

        def swapped(mask: Array) -> tuple[Array, Array, Array]:
            (x, y), pull_back = jax.vjp(lambda a, b: swap.apply(mask, a, b), image, text)
            on_x, on_y, on_beta = forces(x, y)
            return *pull_back((on_x, on_y)), on_beta

        plain = forces(image, text)
        mean = jax.tree.map(lambda f: jnp.mean(f, axis=0), jax.lax.map(swapped, state.masks))
        p = swap.fraction
        return jax.tree.map(lambda a, b: (1 - p) * a + p * b, plain, mean)


KINDS: dict[str, type] = {
    **schedules.KINDS,
    **initial.KINDS,
    **{c.__name__: c for c in (GradientFlow, Sphere, Parallel, Reduced, InfoNCE, Matched, LabelNoise)},
}


def as_start(start: "Start | AbstractRecipe", seed: int) -> Start:
    """A start, drawn with `seed` if it is a recipe."""
    if isinstance(start, AbstractRecipe):
        return start.draw(seed)
    if isinstance(start, Start):
        return start
    raise FlowsimError(
        f"Expected a start, but got {type(start).__name__}. Use e.g. fs.initial.rings() or "
        "fs.initial.from_arrays(image, text)."
    )
