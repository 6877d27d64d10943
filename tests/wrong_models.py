"""Wrong models: right loss, temperature and geometry, each wrapped with one mistake.

A mistake is a number, neutral by default, so that all wrong models share their compiled programs. A wrong
model is `corrupt` for `fs.claims.System`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from flowsim.model.flow import GradientFlow
from flowsim.model.geometry import (
    AbstractGeometry,
    AbstractRowGeometry,
    Parallel,
    Rows,
    Sphere,
    Subspaces,
    Unnormalized,
    normalise,
    tangent,
)
from flowsim.model.losses import AbstractLoss, InfoNCE, Sigmoid, _cross_entropy, _residual
from flowsim.model.pairing import Matched
from flowsim.model.rules import GradientDescent
from flowsim.model.schedules import Schedule
from flowsim.model.swaps import AbstractSwap, NoSwap
from flowsim.model.temperature import AbstractTemperature, Fixed, Learnable


def _leaf(value: Any) -> Any:
    return np.asarray(value, np.float64)


class WrongLoss(AbstractLoss):
    """`factor` scales the gradient; `one_way` = 1 keeps the image-to-text direction alone."""

    right: AbstractLoss
    factor: Any
    one_way: Any
    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def value(self, logits: Any, targets: Any) -> Any:
        rows = _cross_entropy(logits, targets.rows) / logits.shape[0]
        return (1 - self.one_way) * self.right.value(logits, targets) + self.one_way * rows

    def gradient(self, logits: Any, targets: Any) -> Any:
        rows = _residual(logits, targets.rows) / logits.shape[0]
        both = self.right.gradient(logits, targets)
        return self.factor * ((1 - self.one_way) * both + self.one_way * rows)


def _effective(policy: Any, progress: Any, raw: Any) -> Any:
    """β to the `power`: −1 multiplies the similarities by the temperature."""
    return policy.right.inverse_temperature(progress, raw) ** policy.power


def _derivative(policy: Any, raw: Any) -> Any:
    beta = policy.right.inverse_temperature(0.0, raw)
    chain = policy.power * beta ** (policy.power - 1)
    lost = 1 + policy.no_chain * (1 / policy.right.parametrization.derivative(raw) - 1)
    return policy.sign * lost * policy.right.derivative(0.0, raw) * chain


class WrongConstant(AbstractTemperature):
    """`power` of β in the logits, `sign` of ν's flow, `no_chain` = 1 forgets β'(ν)."""

    right: AbstractTemperature
    power: Any
    sign: Any
    no_chain: Any
    learnable: ClassVar[bool] = True
    autonomous: ClassVar[bool] = True

    @property
    def lr_ratio(self) -> Any:
        return self.right.lr_ratio

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return _effective(self, progress, raw)

    def initial_raw(self) -> Any:
        return self.right.initial_raw()

    def derivative(self, progress: Any, raw: Any) -> Any:
        return _derivative(self, raw)


class WrongScheduled(AbstractTemperature):
    """The same for policies that change with progress."""

    right: AbstractTemperature
    power: Any
    sign: Any
    no_chain: Any

    def inverse_temperature(self, progress: Any, raw: Any = None) -> Any:
        return _effective(self, progress, raw)


class WrongCones(AbstractGeometry):
    """`height` scales the force on γ, `rows` the speed of the directions."""

    right: AbstractGeometry
    height: Any
    rows_speed: Any
    has_gamma: ClassVar[bool] = True

    def place(self, start: Any) -> Any:
        return self.right.place(start)

    def to_start(self, position: Any, constants: Any) -> Any:
        return self.right.to_start(position, constants)

    def similarity(self, position: Any, constants: Any) -> Any:
        return self.right.similarity(position, constants)

    def pair_similarity(self, position: Any, constants: Any) -> Any:
        return self.right.pair_similarity(position, constants)

    def velocity(self, position: Any, constants: Any, force: Any) -> Any:
        velocity = self.right.velocity(position, constants, force)
        changes: dict[str, Any] = {"log_gamma": self.height * velocity.log_gamma}
        if velocity.image is not None:
            changes |= {name: self.rows_speed * getattr(velocity, name) for name in ("image", "text")}
        return dataclasses.replace(velocity, **changes)

    def rows(self, position: Any, constants: Any) -> Any:
        return self.right.rows(position, constants)

    def velocity_from_rows(self, position: Any, constants: Any, image_force: Any, text_force: Any) -> Any:
        return self.right.velocity_from_rows(position, constants, image_force, text_force)

    def log_gamma(self, position: Any) -> Any:
        return self.right.log_gamma(position)

    def exits(self, position: Any, constants: Any, in_steps: bool) -> dict[str, Any]:
        return self.right.exits(position, constants, in_steps)

    def project(self, position: Any, velocity: Any) -> Any:
        return self.right.project(position, velocity)

    def retract(self, position: Any) -> Any:
        return self.right.retract(position)


class WrongSphere(AbstractGeometry):
    """`radial` = 1 forgets the tangent projection, `rows_speed` scales the flow, `lift` adds a drift."""

    right: AbstractGeometry
    radial: Any
    rows_speed: Any
    lift: Any
    has_gamma: ClassVar[bool] = False

    def place(self, start: Any) -> Any:
        return self.right.place(start)

    def to_start(self, position: Any, constants: Any) -> Any:
        return self.right.to_start(position, constants)

    def similarity(self, position: Any, constants: Any) -> Any:
        return self.right.similarity(position, constants)

    def pair_similarity(self, position: Any, constants: Any) -> Any:
        return self.right.pair_similarity(position, constants)

    def velocity(self, position: Any, constants: Any, force: Any) -> Any:
        velocity = self.right.velocity(position, constants, force)
        image, text = self.rows(position, constants)
        axis = (jnp.arange(image.shape[1]) == image.shape[1] - 1)[None, :]

        def wrong(v: Any, x: Any, f: Any, drift: Any) -> Any:
            normal = jnp.sum(x * f, axis=1, keepdims=True) * x
            return self.rows_speed * (v + self.radial * normal) + jnp.where(axis, drift, 0.0)

        return dataclasses.replace(
            velocity,
            image=wrong(velocity.image, image, force @ text, self.lift),
            text=wrong(velocity.text, text, force.T @ image, -self.lift),
        )

    def rows(self, position: Any, constants: Any) -> Any:
        return self.right.rows(position, constants)

    def velocity_from_rows(self, position: Any, constants: Any, image_force: Any, text_force: Any) -> Any:
        return self.right.velocity_from_rows(position, constants, image_force, text_force)

    def log_gamma(self, position: Any) -> None:
        return None

    def project(self, position: Any, velocity: Any) -> Any:
        return self.right.project(position, velocity)

    def retract(self, position: Any) -> Any:
        return self.right.retract(position)


def wrong(
    *,
    factor: float = 1.0,
    one_way: float = 0.0,
    power: float = 1.0,
    sign: float = 1.0,
    no_chain: float = 0.0,
    height: float = 1.0,
    rows_speed: float = 1.0,
    radial: float = 0.0,
    lift: float = 0.0,
    lr_ratio: float | None = None,
    one_height: bool = False,
) -> Callable[[GradientFlow], GradientFlow]:
    """A corruption with the given mistakes; without any it wraps the right model.

    `lr_ratio` replaces r; `one_height` gives the free sphere one shared cone height.
    """

    def corrupt(flow: GradientFlow) -> GradientFlow:
        geometry, policy = flow.geometry, flow.schedule.temperature
        assert isinstance(flow.schedule.swap, NoSwap)
        if one_height and isinstance(geometry, Sphere):
            geometry = Parallel()
        if isinstance(geometry, Sphere):
            geometry = WrongSphere(geometry, _leaf(radial), _leaf(rows_speed), _leaf(lift))
        else:
            geometry = WrongCones(geometry, _leaf(height), _leaf(rows_speed))
        if lr_ratio is not None and isinstance(policy, Learnable):
            policy = eqx.tree_at(lambda p: p.lr_ratio, policy, _leaf(lr_ratio))
        kind = WrongConstant if policy.autonomous else WrongScheduled
        temperature = kind(policy, _leaf(power), _leaf(sign), _leaf(no_chain))
        return GradientFlow(
            geometry=geometry,
            schedule=Schedule(temperature),
            loss=WrongLoss(flow.loss, _leaf(factor), _leaf(one_way)),
            pairing=flow.pairing,
        )

    return corrupt


#: name -> (a): to (d) are the mistakes that a reader would fear first.
WRONG_MODELS: dict[str, Callable[[GradientFlow], GradientFlow]] = {
    "lost factor 2 in the gradient": wrong(factor=0.5),
    "temperature multiplied": wrong(power=-1.0),
    "one loss direction": wrong(one_way=1.0),
    "flipped sign of ν": wrong(sign=-1.0),
    "flipped sign of γ": wrong(height=-1.0),
    "lost factor 2 in γ": wrong(height=0.5),
    "lost chain rule of ν": wrong(no_chain=1.0),
    "ignored learning-rate ratio": wrong(lr_ratio=1.0),
    "lost tangent projection": wrong(radial=1.0),
    "frozen rows": wrong(rows_speed=0.0),
    "drift of the rows": wrong(lift=0.01),
    "one shared height on the sphere": wrong(one_height=True),
    "fivefold flipped γ": wrong(height=-5.0),
    "no force": wrong(factor=0.0),
}


# --- swaps, pairs, losses and geometries beyond the paper's flow ------------------------------------


class WrongSwap(AbstractSwap):
    """`nothing` = 1 swaps nothing; `halves` = 1 puts the mean of all masks in the place of each."""

    right: AbstractSwap
    nothing: Any
    halves: Any
    fraction: Any
    redraw: Any
    masks: int = eqx.field(static=True)
    active: ClassVar[bool] = True

    def draw(self, key: Any, count: int, pairs: int, dim: int, dtype: Any) -> Any:
        return self.right.draw(key, count, pairs, dim, dtype)

    def apply(self, weights: Any, image: Any, text: Any) -> Any:
        weights = (1 - self.halves) * weights + 0.5 * self.halves
        return self.right.apply(self.nothing + (1 - self.nothing) * weights, image, text)


class WrongSubspaces(AbstractRowGeometry):
    """`free` = 1 forgets the hyperplanes; `pull` drags every row towards the axis of its modality."""

    right: Subspaces
    free: Any
    pull: Any
    has_gamma: ClassVar[bool] = False

    def place(self, start: Any) -> Any:
        return self.right.place(start)

    def to_start(self, position: Any, constants: Any) -> Any:
        return self.right.to_start(position, constants)

    def rows(self, position: Any, constants: Any) -> Any:
        right = self.right.rows(position, constants)
        free = normalise(position.image), normalise(position.text)
        return tuple(jnp.where(self.free > 0, a, b) for a, b in zip(free, right, strict=True))

    def velocity_from_rows(self, position: Any, constants: Any, image_force: Any, text_force: Any) -> Any:
        rows = self.right.rows(position, constants)
        right = self.right.velocity_from_rows(position, constants, image_force, text_force)
        normals = (constants.image, constants.text)
        cosine = jnp.sum(normals[0] * normals[1])
        axes = (normals[1] - cosine * normals[0], cosine * normals[1] - normals[0])

        def wrong(v: Any, x: Any, f: Any, normal: Any, axis: Any) -> Any:
            lost = (f @ normal)[:, None] * normal[None, :]
            drag = jnp.broadcast_to(axis / jnp.linalg.norm(axis), x.shape)
            return v + tangent(x, self.free * lost + self.pull * drag)

        forces = (image_force, text_force)
        return Rows(*(wrong(*a) for a in zip((right.image, right.text), rows, forces, normals, axes, strict=True)))

    def project(self, position: Any, velocity: Any) -> Any:
        return self.right.project(position, velocity)

    def retract(self, position: Any) -> Any:
        return self.right.retract(position)


def mistaken(
    *,
    nothing: float = 0.0,
    halves: float = 0.0,
    no_targets: bool = False,
    flipped_bias: bool = False,
    no_lengths: bool = False,
    free: float = 0.0,
    pull: float = 0.0,
    power: float = 1.0,
    one_way: float = 0.0,
    radial: float = 0.0,
    lift: float = 0.0,
    lr_ratio: float | None = None,
    no_rule: bool = False,
) -> Callable[[GradientFlow], GradientFlow]:
    """A corruption of what the flow has of swap, pairing, bias and geometry; the rest is left alone.

    `no_targets` keeps the right pairs; `no_lengths` gives rows any length; `no_rule` descends the gradient.
    """

    def corrupt(flow: GradientFlow) -> GradientFlow:
        geometry, temperature, swap = flow.geometry, flow.schedule.temperature, flow.schedule.swap
        loss, pairing = flow.loss, flow.pairing
        if isinstance(geometry, Subspaces):
            geometry = WrongSubspaces(geometry, _leaf(free), _leaf(pull))
        elif isinstance(geometry, Sphere) and no_lengths:
            geometry = Unnormalized()
        elif isinstance(geometry, Sphere) and (radial or lift):
            geometry = WrongSphere(geometry, _leaf(radial), _leaf(1.0), _leaf(lift))
        if lr_ratio is not None and isinstance(temperature, Learnable):
            temperature = eqx.tree_at(lambda p: p.lr_ratio, temperature, _leaf(lr_ratio))
        if power != 1:
            kind = WrongConstant if temperature.autonomous else WrongScheduled
            temperature = kind(temperature, _leaf(power), _leaf(1.0), _leaf(0.0))
        if swap.active and (nothing or halves):
            swap = WrongSwap(swap, _leaf(nothing), _leaf(halves), swap.fraction, swap.redraw, swap.masks)
        if isinstance(loss, Sigmoid) and flipped_bias:
            loss = eqx.tree_at(lambda x: x.bias, loss, _leaf(-loss.bias))
        if isinstance(loss, InfoNCE) and one_way:
            loss = WrongLoss(loss, _leaf(1.0), _leaf(one_way))
        rule = GradientDescent() if no_rule else flow.rule
        return GradientFlow(geometry, Schedule(temperature, swap), loss, Matched() if no_targets else pairing, rule)

    return corrupt


#: Mistakes in what a flow may have beyond temperature and cones; each is run on the claims that are about it.
MISTAKES: dict[str, Callable[[GradientFlow], GradientFlow]] = {
    "swaps nothing": mistaken(nothing=1.0),
    "mean of the masks": mistaken(halves=1.0),
    "ignored targets": mistaken(no_targets=True),
    "flipped sign of the bias": mistaken(flipped_bias=True),
    "rows of any length": mistaken(no_lengths=True),
    "forgotten hyperplanes": mistaken(free=1.0),
    "drag towards the axes": mistaken(pull=1.0),
    "temperature multiplied": mistaken(power=-1.0),
    "one loss direction": mistaken(one_way=1.0),
    "lost tangent projection": mistaken(radial=1.0),
    "drift of the rows": mistaken(lift=0.01),
    "ignored learning-rate ratio": mistaken(lr_ratio=1.0),
    "no rule of Adam": mistaken(no_rule=True),
}


# --- heads on real pairs --------------------------------------------------------------------------------


def no_force(flow: GradientFlow) -> GradientFlow:
    """Nothing is learned."""
    return flow.replace(loss=WrongLoss(flow.loss, _leaf(0.0), _leaf(0.0)))


def no_schedule(flow: GradientFlow) -> GradientFlow:
    """A temperature that should change with progress stays where it starts."""
    policy = flow.schedule.temperature
    if policy.learnable or policy.autonomous:
        return flow
    start = 1 / float(policy.inverse_temperature(0.0))
    return flow.replace(schedule=Schedule(Fixed(start), flow.schedule.swap))


def one_parametrization(flow: GradientFlow) -> GradientFlow:
    """Every learned temperature is the Baseline's."""
    policy = flow.schedule.temperature
    if not policy.learnable:
        return flow
    changed = Learnable(lr_ratio=policy.lr_ratio)
    return flow.replace(schedule=Schedule(changed.clamped_to(0.01, 1.0), flow.schedule.swap))


def frozen_temperature(flow: GradientFlow) -> GradientFlow:
    """A learned temperature does not move."""
    policy = flow.schedule.temperature
    if not policy.learnable:
        return flow
    return flow.replace(schedule=Schedule(Fixed(0.07), flow.schedule.swap))


def learns_by_swaps(flow: GradientFlow) -> GradientFlow:
    """Nothing is learned without swaps."""
    return flow if flow.schedule.swap.active else no_force(flow)


# --- heads in minibatches ---------------------------------------------------------------------------


class ManyNegatives(AbstractLoss):
    """The negatives of a batch count as often as those of `pairs` pairs would; with all pairs it is the right loss."""

    right: AbstractLoss
    pairs: Any
    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def _weighted(self, logits: Any) -> Any:
        batch = logits.shape[0]
        return logits + jnp.log((self.pairs - 1) / (batch - 1)) * (1 - jnp.eye(batch, dtype=logits.dtype))

    def value(self, logits: Any, targets: Any) -> Any:
        return self.right.value(self._weighted(logits), targets)

    def gradient(self, logits: Any, targets: Any) -> Any:
        return self.right.gradient(self._weighted(logits), targets)


def many_negatives(flow: GradientFlow) -> GradientFlow:
    """Weights negatives such that the number of pairs in a batch does not matter; for 128 pairs."""
    return flow.replace(loss=ManyNegatives(flow.loss, _leaf(128.0)))


def wrong_loss(factor: float = 1.0, one_way: float = 0.0) -> Callable[[GradientFlow], GradientFlow]:
    """`WrongLoss` for flows whose geometry and policy stay right."""
    return lambda flow: flow.replace(loss=WrongLoss(flow.loss, _leaf(factor), _leaf(one_way)))
