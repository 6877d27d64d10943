"""The gradient flow: its state and vector field, as pure functions without solver or checks.

    dθ/dt = −∂L/∂θ,   dν/dt = −r ∂L/∂ν,   L = ℓ(β(ν) S(θ))

for embedding coordinates θ (see `geometry`), raw temperature ν (see `temperature`) and loss ℓ (see
`losses`); a rule may replace the gradient by a function of it (see `rules`). Time t is flow time: for plain
gradient descent, the sum of the learning rates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from flowsim.base import paths
from flowsim.base.arrays import LARGE, Numeric, full_precision, optional_number, to_device
from flowsim.base.checks import check
from flowsim.base.modules import Described, bundle
from flowsim.errors import FlowsimError
from flowsim.model import schedules
from flowsim.model.geometry import AbstractGeometry, Sphere
from flowsim.model.geometry.base import Constants, Position
from flowsim.model.initial import Start
from flowsim.model.kernels import no_kernels
from flowsim.model.losses import AbstractLoss, AbstractRowLoss, InfoNCE
from flowsim.model.pairing import AbstractPairing, Matched, Targets
from flowsim.model.rules import AbstractRule, GradientDescent
from flowsim.model.schedules import Schedule
from flowsim.numerics import tiled


@bundle
class Unknowns:
    """The unknowns of the flow: the position, and the raw temperature ν and the bias of the loss (None if fixed)."""

    position: Position
    raw_temperature: Float[Numeric, ""] | None
    bias: Float[Numeric, ""] | None = None


class Rates(NamedTuple):
    """Relative learning rates of the position, the raw temperature and the bias."""

    position: Any = 1.0
    raw: Any = 1.0
    bias: Any = 1.0


@bundle
class State:
    """Everything the vector field needs: the unknowns, the geometry's constants, the targets and the swap masks."""

    unknowns: Unknowns
    constants: Constants
    targets: Targets
    masks: Numeric | None


class GradientFlow(Described):
    """A contrastive gradient flow: geometry, schedule, loss, pairing and rule.

    The structure is static and numbers are leaves, so changing a number never recompiles.

    Args:
        geometry: Coordinates of the embeddings, e.g. `fs.Parallel()`.
        schedule: Temperature policy and swap: a `Schedule`, a preset's name, a `.json` file, or a temperature policy.
        loss: The loss, e.g. `fs.Sigmoid()`.
        pairing: The targets of the loss, e.g. `fs.LabelNoise(0.1)`.
        rule: How the gradient becomes a velocity, e.g. `fs.AdamLimit()`.

    Raises:
        FlowsimError: If a part is not of its kind.

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
        if self.geometry.has_kernels and not self.rule.is_gradient:
            raise no_kernels(f"rule {type(self.rule).__name__}", "GradientDescent()")

    @classmethod
    def from_preset(cls, name: str, **parts: Any) -> "GradientFlow":
        """The flow with a schedule of Yaras et al. 2025.

        Args:
            name: The preset, e.g. "Baseline" or "TS S3"; see `fs.schedules.names()`.
            parts: Any of `geometry`, `loss`, `pairing` and `rule`.

        Raises:
            FlowsimError: For an unknown name.
        """
        return cls(schedule=schedules.get(name), **parts)

    def replace(self, **changes: Any) -> "GradientFlow":
        """A copy with the values at dotted paths replaced: `replace(**{"schedule.temperature.init": 0.1})`.

        Args:
            changes: New values by path. A schedule may be given by name.

        Raises:
            FlowsimError: For a path that does not exist.
        """
        return paths.replace(self, changes)

    def to_config(self) -> dict[str, Any]:
        """The flow as plain data (dictionaries, lists, numbers, text) that `from_config` reads back."""
        return paths.to_config(self)

    @classmethod
    def from_config(cls, data: Any) -> "GradientFlow":
        """The flow from the data of `to_config`.

        Raises:
            FlowsimError: For unknown classes and fields, and for the data of something else.
        """
        flow = paths.from_config(data)
        check(isinstance(flow, GradientFlow), 'Expected a GradientFlow. Start with {"kind": "GradientFlow"}.')
        return flow

    @property
    def redraw(self) -> Any:
        """Flow time between two draws of masks or targets; None if they are drawn once.

        Raises:
            FlowsimError: If swap and pairing have different intervals.
        """
        found = [x.redraw for x in (self.schedule.swap, self.pairing) if x.redraw is not None]
        check(
            len(found) < 2 or float(found[0]) == float(found[1]),
            "Swap and pairing have different `redraw` intervals. Give both the same.",
        )
        return found[0] if found else None

    def initial_state(self, start: Start, seed: int = 0, dtype: Any = np.float64) -> State:
        """The state at a start, with masks and targets drawn from `seed`; float64 needs `jax.enable_x64(True)`."""
        unknowns, constants = to_device(self.place(start), dtype)
        return self.complete(unknowns, constants, seed)

    def place(self, start: Start) -> tuple[Unknowns, Constants]:
        """Unknowns and the geometry's constants at a start (NumPy).

        Raises:
            FlowsimError: If the start does not fit the geometry, the swap or the loss.
        """
        return self.place_all([start])[0]

    def place_all(self, starts: Sequence[Start]) -> list[tuple[Unknowns, Constants]]:
        """`place` for many starts, faster than one by one."""
        # Looking up a method of an equinox module takes longer than most of the work here.
        place, raw = self.geometry.place, optional_number(self.schedule.temperature.initial_raw())
        bias = self.loss.bias if self.loss.bias_rate is not None else None
        swap = self.schedule.swap
        needs_rows = swap.active or isinstance(self.loss, AbstractRowLoss)
        by_entry = swap.active and swap.splits_rows
        placed = []
        for start in starts:
            position, constants = place(start)
            if needs_rows and start.image is None and start.similarity is not None:
                raise FlowsimError("Swaps and losses of rows need rows; the start has only similarities. Give rows.")
            if by_entry and getattr(constants, "basis", None) is not None and constants.sign == 0:
                raise FlowsimError(
                    "In a random basis, swaps of entries drive cones of height 0 to a random side. Use a height above "
                    "0, the geometry `Sphere`, or swaps of rows."
                )
            placed.append((Unknowns(position, raw, bias), constants))
        return placed

    def complete(self, unknowns: Unknowns, constants: Constants, seed: Any) -> State:
        """The state made of what `place` returned, with masks and targets drawn from `seed`."""
        state = State(unknowns, constants, Targets(), None)
        if not self.draws:
            return state
        masks, targets = self.draw(jax.random.key(seed), state)
        return State(unknowns, constants, targets, masks)

    @property
    def draws(self) -> bool:
        """Whether a state has masks or targets to draw. If not, no program for random keys is compiled."""
        return self.schedule.swap.active or not self.pairing.identity

    def draw(self, key: Array, state: State) -> tuple[Array | None, Targets]:
        """Masks of the swap (None without one) and targets of the pairing for a random key."""
        pairing_key, swap_key = jax.random.split(key)
        pairs = self.pairs(state)
        dtype = jnp.result_type(*jax.tree.leaves(state.unknowns.position))
        masks = None
        if self.schedule.swap.active:
            dim = self.rows(state)[0].shape[1]
            masks = self.schedule.swap.draw(swap_key, self.schedule.swap.masks, pairs, dim, dtype)
        return masks, self.pairing.targets(pairing_key, pairs, dtype)

    def redrawn(self, state: State, seed: Any, index: Any) -> State:
        """The state with the draws of interval `index`; masks or targets without `redraw` keep their first draw."""
        masks, targets = self.draw(jax.random.fold_in(jax.random.key(seed), index), state)
        return State(
            state.unknowns,
            state.constants,
            state.targets if self.pairing.redraw is None else targets,
            state.masks if self.schedule.swap.redraw is None else masks,
        )

    def rows(self, state: State) -> tuple[Any, Any]:
        """Rows (n, D) of images and texts, as they enter the loss, at a state that has them."""
        rows = self.geometry.rows(state.unknowns.position, state.constants)
        assert rows is not None, "`place` has checked this"
        return rows

    def pairs(self, state: State) -> int:
        """n, the number of pairs."""
        position = state.unknowns.position
        if (image := getattr(position, "image", None)) is not None:
            return image.shape[0]
        return jax.eval_shape(self.geometry.similarity, position, state.constants).shape[0]

    def is_tiled(self, state: State) -> bool:
        """Whether the loss and its forces are computed in tiles, without n×n matrices, as for many pairs.

        This needs a loss with `tile_weights`, a geometry `of_rows`, and targets that are not written out as matrices.
        """
        return (
            self.loss.tile_weights is not None
            and self.geometry.of_rows
            and state.targets.rows is None
            and self.pairs(state) >= LARGE
        )

    def _in_tiles(self, function: Any, image: Array, text: Array, beta: Any, state: State) -> Any:
        targets = state.targets
        return function(image, text, beta, targets.text_of, targets.noise, weights=self.loss.tile_weights)

    def inverse_temperature(self, t: Any, state: State, horizon: Any = np.inf) -> Any:
        """β at flow time t; arguments as for `vector_field`."""
        return self.schedule.temperature.inverse_temperature(t / horizon, state.unknowns.raw_temperature)

    def exits(self, state: State, in_steps: bool = False) -> dict[str, Any]:
        """Quantities that are positive inside the domain of geometry and policy, by name; a run ends where one is 0.

        `in_steps`: whether the run takes the finite steps of an optimizer, which jump over single points.
        """
        found = self.geometry.exits(state.unknowns.position, state.constants, in_steps)
        return {**found, **self.schedule.temperature.exits(state.unknowns.raw_temperature)}

    @full_precision()
    def loss_value(self, t: Any, state: State, horizon: Any = np.inf) -> Float[Array, ""]:
        """The loss that the flow descends, L or (1 − p) L + p E[L∘swap]; arguments as for `vector_field`."""
        beta, bias = self.inverse_temperature(t, state, horizon), self._bias(state)
        swap, in_tiles = self.schedule.swap, self.is_tiled(state)
        if isinstance(self.loss, AbstractLoss) and not swap.active and not in_tiles:
            similarity = self.geometry.similarity(state.unknowns.position, state.constants)
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

    @property
    def rates(self) -> "Rates":
        """Relative learning rates of the position, the raw temperature and the bias."""
        bias_rate = self.loss.bias_rate
        rate_of_bias = 1.0 if bias_rate is None else bias_rate
        return Rates(self.geometry.rate, self.schedule.temperature.lr_ratio, rate_of_bias)

    def vector_field(self, t: Any, state: State, horizon: Any = np.inf) -> Unknowns:
        """dθ/dt, dν/dt and db/dt, in the form of the unknowns.

        Args:
            t: Flow time.
            state: The state, e.g. from `initial_state`.
            horizon: Flow time at which schedules end; they depend on the progress t/horizon.
        """
        rates = self.rates
        if self.rule.is_gradient:
            return self._descent(t, state, horizon, rates)
        velocity = jax.tree.map(self.rule.velocity, self.descent(t, state, horizon))
        position = jax.tree.map(lambda v: rates.position * v, velocity.position)
        # A rule that acts on single entries may violate the constraints.
        position = self.geometry.project(state.unknowns.position, position)
        raw = None if velocity.raw_temperature is None else rates.raw * velocity.raw_temperature
        bias = None if velocity.bias is None else rates.bias * velocity.bias
        return Unknowns(position, raw, bias)

    def descent(self, t: Any, state: State, horizon: Any = np.inf, kernels: bool = True) -> Unknowns:
        """−∂L/∂θ in the geometry's metric, −∂L/∂ν and −∂L/∂b, with all rates 1, no rule, and kernels if `kernels`."""
        return self._descent(t, state, horizon, Rates(), kernels)

    @full_precision()
    def _descent(self, t: Any, state: State, horizon: Any, rates: "Rates", kernels: bool = True) -> Unknowns:
        position, constants = state.unknowns.position, state.constants
        beta = self.inverse_temperature(t, state, horizon)
        if isinstance(self.loss, AbstractRowLoss) or self.schedule.swap.active or self.is_tiled(state):
            force = self._force_on_rows(beta, state)
            velocity = self.geometry.velocity_from_rows(position, constants, force.image, force.text)
        else:
            similarity = self.geometry.similarity(position, constants)
            gradient, force = self._force(beta, similarity, state)
            velocity = self.geometry.velocity(position, constants, -beta * gradient)
        if kernels:
            velocity = self.geometry.with_kernels(position, constants, velocity)
        velocity = jax.tree.map(lambda v: rates.position * v, velocity)
        raw, bias = state.unknowns.raw_temperature, None if self.loss.bias_rate is None else rates.bias * force.bias
        if raw is not None:
            raw = rates.raw * self.schedule.temperature.derivative(t / horizon, raw) * force.beta
        return Unknowns(velocity, raw, bias)

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

    def _bias(self, state: State) -> Any:
        if state.unknowns.bias is not None:
            return state.unknowns.bias
        return self.loss.bias


@bundle
class Force:
    """Minus the derivatives of the loss with respect to the rows, β and b; None where not needed."""

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
