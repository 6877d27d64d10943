"""The gradient flow itself: state and vector field, pure functions without solver or checks.

    dθ/dt = −∂L/∂θ,   dν/dt = −r ∂L/∂ν,   L = ℓ(β(ν) S(θ))

for embedding coordinates θ (see `geometry`), raw temperature ν (see `temperature`) and loss ℓ (see
`losses`); a rule may replace the gradient by a function of it (see `rules`). Time t is flow time: for plain
gradient descent it is the sum of learning rates.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowsim.base import paths as config
from flowsim.base.arrays import LARGE, Described, Numeric, bundle, check, optional_number, to_device
from flowsim.errors import FlowsimError
from flowsim.model import initial, losses, pairing, rules, schedules
from flowsim.model.encoders import LinearEncoders, MLPEncoders
from flowsim.model.geometry import (
    AbstractGeometry,
    AbstractRowGeometry,
    Constants,
    Parallel,
    Position,
    Reduced,
    Sphere,
    Subspaces,
    Unnormalized,
)  # fmt: skip
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.losses import AbstractLoss, AbstractRowLoss, DirectedInfoNCE, InfoNCE
from flowsim.model.pairing import AbstractPairing, Matched, Targets
from flowsim.model.rules import AbstractRule, GradientDescent
from flowsim.model.schedules import Schedule
from flowsim.model.swaps import HardSwap
from flowsim.numerics import tiled


@bundle
class Moving:
    """The unknowns of the flow: position, raw temperature ν (None if not trained), bias of the loss (likewise)."""

    position: Position
    raw: Float[Numeric, ""] | None
    bias: Float[Numeric, ""] | None = None


@bundle
class State:
    """Everything the vector field needs: what moves, and what stays (geometry's constants, targets, masks)."""

    moving: Moving
    constants: Constants
    targets: Targets
    masks: Numeric | None


class GradientFlow(Described):
    """A contrastive gradient flow: geometry, schedule, loss, pairing and rule.

    `schedule` may be a preset's name or a temperature policy. Structure is static and numbers are leaves,
    so that changing a number never recompiles.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> flow.replace(**{"schedule.temperature.init": 0.2}).schedule.temperature.init.item()
        0.2
        >>> flow = fs.GradientFlow(fs.Parallel(), fs.temperature.Fixed(0.1), pairing=fs.LabelNoise(0.1))
        >>> fs.GradientFlow.from_config(flow.to_config()).pairing.noise.item()
        0.1
    """

    geometry: AbstractGeometry = Sphere()
    schedule: Schedule = eqx.field(converter=schedules.as_schedule, default=Schedule())
    loss: AbstractLoss | AbstractRowLoss = InfoNCE()
    pairing: AbstractPairing = Matched()
    rule: AbstractRule = GradientDescent()

    def __check_init__(self) -> None:
        for name, (kinds, cure) in _PARTS.items():
            part = getattr(self, name)
            if isinstance(part, kinds):
                continue
            if isinstance(part, type):
                cure = f"Write {part.__name__}(), with parentheses."
            elif isinstance(part, str) and part in schedules.names():
                cure = f"For a preset use fs.GradientFlow.from_preset({part!r})."
            raise FlowsimError(f"Argument `{name}` cannot be {part!r}. {cure}")

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

    @property
    def redraw(self) -> Any:
        """Flow time after which masks or targets are drawn anew; None for never.

        Raises `FlowsimError` if swap and pairing name different intervals.
        """
        found = [x.redraw for x in (self.schedule.swap, self.pairing) if x.redraw is not None]
        check(
            len(found) < 2 or float(found[0]) == float(found[1]),
            "Swap and pairing have different `redraw` intervals. Give both the same.",
        )
        return found[0] if found else None

    def initial_state(self, start: Start, seed: int = 0, dtype: Any = np.float64) -> State:
        """The state at a start; call it inside `jax.enable_x64(True)` for float64."""
        moving, constants = to_device(self.place(start), dtype)
        return self.complete(moving, constants, seed)

    def place(self, start: Start) -> tuple[Moving, Constants]:
        """Unknowns and the geometry's constants at a start (NumPy).

        Raises `FlowsimError` if the start does not fit the geometry, the swap or the loss.
        """
        return self.place_all([start])[0]

    def place_all(self, starts: Sequence[Start]) -> list[tuple[Moving, Constants]]:
        """`place` for many starts, sooner than one by one."""
        # Looking up a method of an equinox module takes longer than most of what is done here.
        place, raw = self.geometry.place, optional_number(self.schedule.temperature.initial_raw())
        bias = self.loss.bias if isinstance(self.loss, AbstractLoss) and self._bias_rate is not None else None
        swap = self.schedule.swap
        needs_rows = swap.active or isinstance(self.loss, AbstractRowLoss)
        by_entry = swap.active and not (isinstance(swap, HardSwap) and swap.by == "row")
        placed = []
        for start in starts:
            position, constants = place(start)
            if needs_rows and start.image is None and start.similarity is not None:
                raise FlowsimError(
                    "Swaps and losses of rows need rows, but the start holds only similarities. Give rows."
                )
            if by_entry and getattr(constants, "basis", None) is not None and constants.sign == 0:
                raise FlowsimError(
                    "Swaps of entries in a random basis open cones of height 0, to which side is chance. Use a height "
                    "above 0, the geometry `Sphere`, or swaps of rows."
                )
            placed.append((Moving(position, raw, bias), constants))
        return placed

    def complete(self, moving: Moving, constants: Constants, seed: Any) -> State:
        """The state of what `place` returned, with masks and targets drawn by `seed`."""
        state = State(moving, constants, Targets(), None)
        if not self.draws:
            return state
        masks, targets = self.draw(jax.random.key(seed), state)
        return State(moving, constants, targets, masks)

    @property
    def draws(self) -> bool:
        """Whether a state has masks or targets to draw; random keys cost a program of their own."""
        return self.schedule.swap.active or not isinstance(self.pairing, Matched)

    def draw(self, key: Array, state: State) -> tuple[Array | None, Targets]:
        """Masks of the swap and targets of the pairing for a key."""
        pairing_key, swap_key = jax.random.split(key)
        pairs = self.pairs(state)
        dtype = jnp.result_type(*jax.tree.leaves(state.moving.position))
        masks = None
        if self.schedule.swap.active:
            dim = self.rows(state)[0].shape[1]
            masks = self.schedule.swap.draw(swap_key, self.schedule.swap.masks, pairs, dim, dtype)
        return masks, self.pairing.targets(pairing_key, pairs, dtype)

    def redrawn(self, state: State, seed: Any, index: Any) -> State:
        """The state with the draws of interval `index`; what has no `redraw` keeps its first draw."""
        masks, targets = self.draw(jax.random.fold_in(jax.random.key(seed), index), state)
        return State(
            state.moving,
            state.constants,
            state.targets if self.pairing.redraw is None else targets,
            state.masks if self.schedule.swap.redraw is None else masks,
        )

    def rows(self, state: State) -> tuple[Array, Array]:
        """Unit rows (n, D) of images and texts at a state that has them."""
        rows = self.geometry.rows(state.moving.position, state.constants)
        assert rows is not None, "`place` has checked this"
        return rows

    def pairs(self, state: State) -> int:
        """n, the number of pairs."""
        position = state.moving.position
        if (image := getattr(position, "image", None)) is not None:
            return image.shape[0]
        return jax.eval_shape(self.geometry.similarity, position, state.constants).shape[0]

    def is_tiled(self, state: State) -> bool:
        """Whether the loss and its forces are computed in tiles, never with n×n matrices: for many pairs.

        InfoNCE in both directions or in one, rows without γ, and targets that are described (all but `Clusters`).
        """
        return (
            isinstance(self.loss, InfoNCE | DirectedInfoNCE)
            and isinstance(self.geometry, AbstractRowGeometry)
            and state.targets.rows is None
            and self.pairs(state) >= LARGE
        )

    def _in_tiles(self, function: Any, image: Array, text: Array, beta: Any, state: State) -> Any:
        assert isinstance(self.loss, InfoNCE | DirectedInfoNCE)
        targets = state.targets
        return function(image, text, beta, targets.text_of, targets.noise, weights=self.loss.weights)

    def inverse_temperature(self, t: Any, state: State, horizon: Any = np.inf) -> Any:
        """β at flow time t; schedules run in progress t/horizon."""
        return self.schedule.temperature.inverse_temperature(t / horizon, state.moving.raw)

    def loss_value(self, t: Any, state: State, horizon: Any = np.inf) -> Float[Array, ""]:
        """The loss that the flow descends: L, or (1 − p) L + p E[L∘swap] with a swap of fraction p."""
        beta = self.inverse_temperature(t, state, horizon)
        bias = self._bias(state)
        swap = self.schedule.swap
        in_tiles = self.is_tiled(state)
        if isinstance(self.loss, AbstractLoss) and not swap.active and not in_tiles:
            similarity = self.geometry.similarity(state.moving.position, state.constants)
            return self.loss.value(self.loss.logits(beta, similarity, bias), state.targets)
        image, text = self.rows(state)

        def of_rows(x: Array, y: Array) -> Array:
            if isinstance(self.loss, AbstractRowLoss):
                return self.loss.value(x, y, beta, state.targets)
            if in_tiles:
                return self._in_tiles(tiled.loss, x, y, beta, state)
            return self.loss.value(self.loss.logits(beta, x @ y.T, bias), state.targets)

        plain = of_rows(image, text)
        if not swap.active:
            return plain
        swapped = jnp.mean(jax.lax.map(lambda mask: of_rows(*swap.apply(mask, image, text)), state.masks))
        return (1 - swap.fraction) * plain + swap.fraction * swapped

    def vector_field(self, t: Any, state: State, horizon: Any = np.inf) -> Moving:
        """dθ/dt, dν/dt and db/dt at flow time t."""
        position, constants = state.moving.position, state.constants
        beta = self.inverse_temperature(t, state, horizon)
        if isinstance(self.loss, AbstractRowLoss) or self.schedule.swap.active or self.is_tiled(state):
            force = self._force_on_rows(beta, state)
            velocity = self.geometry.velocity_from_rows(position, constants, force.image, force.text)
        else:
            similarity = self.geometry.similarity(position, constants)
            gradient, force = self._force(beta, similarity, state)
            velocity = self.geometry.velocity(position, constants, -beta * gradient)
        raw = self.schedule.temperature.raw_velocity(state.moving.raw, force.beta)
        bias = None if self._bias_rate is None else self._bias_rate * force.bias
        return self._by_rule(state.moving, Moving(velocity, raw, bias))

    def _force(self, beta: Any, similarity: Numeric, state: State) -> "tuple[Array, Force]":
        """∇ℓ(M) and the forces −∂L/∂β and −∂L/∂b."""
        loss, bias = self.loss, self._bias(state)
        assert isinstance(loss, AbstractLoss)
        gradient = loss.gradient(loss.logits(beta, similarity, bias), state.targets)
        on_beta, on_bias = -jnp.sum(gradient * similarity), None
        if bias is not None:
            total = jnp.sum(gradient)
            on_beta = on_beta + bias * total if loss.relative_bias else on_beta
            on_bias = beta * total if loss.relative_bias else -total
        return gradient, Force(None, None, on_beta, on_bias)

    def _force_on_rows(self, beta: Any, state: State) -> "Force":
        """−∂L/∂X, −∂L/∂Y, −∂L/∂β and −∂L/∂b, averaged over the swaps."""
        swap = self.schedule.swap
        image, text = self.rows(state)
        in_tiles = self.is_tiled(state)

        def force(x: Array, y: Array) -> Force:
            if isinstance(self.loss, AbstractRowLoss):
                gradient = jax.grad(self.loss.value, argnums=(0, 1, 2))(x, y, jnp.asarray(beta), state.targets)
                return Force(-gradient[0], -gradient[1], -gradient[2], None)
            if in_tiles:
                found = self._in_tiles(tiled.loss_and_gradient, x, y, beta, state)
                return Force(-found.image, -found.text, -found.beta, None)
            gradient, rest = self._force(beta, x @ y.T, state)
            return Force(-beta * (gradient @ y), -beta * (gradient.T @ x), rest.beta, rest.bias)

        def swapped(mask: Array) -> Force:
            (x, y), pull_back = jax.vjp(lambda a, b: swap.apply(mask, a, b), image, text)
            there = force(x, y)
            on_image, on_text = pull_back((there.image, there.text))
            return Force(on_image, on_text, there.beta, there.bias)

        plain = force(image, text)
        if not swap.active:
            return plain
        mean = jax.tree.map(lambda f: jnp.mean(f, axis=0), jax.lax.map(swapped, state.masks))
        p = swap.fraction
        return jax.tree.map(lambda a, b: (1 - p) * a + p * b, plain, mean)

    def _by_rule(self, moving: Moving, velocity: Moving) -> Moving:
        """The velocity that the rule makes of −∂L/∂θ; learning-rate ratios multiply what it returns."""
        if isinstance(self.rule, GradientDescent):
            return velocity
        rate = self.geometry.embedding_rate if isinstance(self.geometry, Sphere) else 1.0
        moved = jax.tree.map(lambda v: rate * self.rule.velocity(v / rate), velocity.position)
        position = self.geometry.project(moving.position, moved)
        raw, bias = velocity.raw, velocity.bias
        if raw is not None:
            ratio = self.schedule.temperature.lr_ratio  # pyright: ignore[reportAttributeAccessIssue]
            raw = ratio * self.rule.velocity(raw / jnp.where(ratio == 0, 1.0, ratio))
        if bias is not None:
            bias = self._bias_rate * self.rule.velocity(bias / self._bias_rate)
        return Moving(position, raw, bias)

    @property
    def _bias_rate(self) -> Any:
        return self.loss.bias_rate if isinstance(self.loss, AbstractLoss) else None

    def _bias(self, state: State) -> Any:
        if state.moving.bias is not None:
            return state.moving.bias
        return self.loss.bias if isinstance(self.loss, AbstractLoss) else None


@bundle
class Force:
    """Minus the derivative of the loss by rows, β and b; None where it is not needed."""

    image: Any
    text: Any
    beta: Any
    bias: Any


_PARTS: dict[str, tuple[Any, str]] = {
    "geometry": (AbstractGeometry, "Use a geometry such as fs.Parallel()."),
    "loss": ((AbstractLoss, AbstractRowLoss), "Use a loss such as fs.Sigmoid()."),
    "pairing": (AbstractPairing, "Use a pairing such as fs.LabelNoise(0.1)."),
    "rule": (AbstractRule, "Use a rule such as fs.AdamLimit()."),
}

KINDS: dict[str, type] = {
    **schedules.KINDS,
    **initial.KINDS,
    **losses.KINDS,
    **pairing.KINDS,
    **rules.KINDS,
    **{
        c.__name__: c
        for c in (GradientFlow, Sphere, Unnormalized, Subspaces, Parallel, Reduced, LinearEncoders, MLPEncoders)
    },
}


def as_start(start: Start | AbstractRecipe, seed: int) -> Start:
    """A start, drawn with `seed` if it is a recipe."""
    return as_starts(start, [seed])[0]


def as_starts(start: Start | AbstractRecipe, seeds: Sequence[int]) -> list[Start]:
    """`as_start` for many seeds."""
    if isinstance(start, AbstractRecipe):
        draw = start.draw  # looked up once, as in `place_all`
        return [draw(seed) for seed in seeds]
    if isinstance(start, Start):
        return [start] * len(seeds)
    raise FlowsimError(
        f"Expected a start, but got {type(start).__name__}. Use e.g. fs.initial.rings() or "
        "fs.initial.from_arrays(image, text)."
    )
