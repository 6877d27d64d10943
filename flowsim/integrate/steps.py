"""One step of an optimizer on the loss of a flow: on all pairs, or on a minibatch of them."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Int

from flowsim.base.arrays import Numeric
from flowsim.base.modules import bundle
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.model.swaps import step_weights


@bundle
class Minibatch:
    """The pairs of a step.

    Args:
        pairs: Indices (b,), with further first axes for several steps and runs.
        texts: Which of its texts each pair gets, of the same shape; None for the first.
    """

    pairs: Int[Numeric, "*k b"]
    texts: Int[Numeric, "*k b"] | None


def descent_of(
    flow: GradientFlow, state: State, k: Any, total: Any, key: Any, batch: Minibatch | None
) -> tuple[GradientFlow, State, Unknowns]:
    """−∂L/∂θ of a step, with the flow and the state whose loss L is.

    Args:
        flow: The flow.
        state: The state of all pairs.
        k: The step, a number of the type of the unknowns.
        total: The step at which schedules end.
        key: Random key of the step, for its swap and targets.
        batch: The pairs of the step; None for all.

    Returns:
        (flow, state, descent). Flow and state have the swap and the targets of this step, and the pairs of the batch.
        The descent has the form of the unknowns of all pairs.
    """
    if batch is None:
        here, sampled = _sampled(flow, state, key)
        return here, sampled, here.descent(k, sampled, total)
    unknowns, geometry = state.unknowns, flow.geometry

    def taken(position: Any) -> tuple[Any, Any]:
        texts = None if batch.texts is None else jnp.asarray(batch.texts)
        return geometry.take(position, state.constants, jnp.asarray(batch.pairs), texts)

    position, bring_back, constants = jax.vjp(taken, unknowns.position, has_aux=True)
    part = State(dataclasses.replace(unknowns, position=position), constants, state.targets, None)
    here, sampled = _sampled(flow, part, key, redraw=True)
    found = here.descent(k, sampled, total, kernels=False)
    # The kernels act on all rows, also on those outside the batch.
    velocity = geometry.with_kernels(unknowns.position, state.constants, bring_back(found.position)[0])
    return here, sampled, dataclasses.replace(found, position=velocity)


def updated(
    flow: GradientFlow, unknowns: Unknowns, memory: Any, descent: Unknowns, rate: Any, transform: Any
) -> tuple[Unknowns, Any]:
    """The unknowns and the memory of the optimizer after a step.

    Args:
        flow: The flow.
        unknowns: The unknowns before the step.
        memory: State of the optimizer.
        descent: −∂L/∂θ.
        rate: Learning rate.
        transform: The optax transformation at learning rate 1.
    """
    rates = flow.rates
    gradient = jax.tree.map(jnp.negative, descent)
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types, also where the session forbids it
        updates, memory = transform.update(gradient, memory, unknowns)
    # Ratios of learning rates scale the step, because scaling the gradient has no effect on Adam.
    position = jax.tree.map(lambda x, u: x + rate * rates.position * u, unknowns.position, updates.position)
    raw, bias = unknowns.raw_temperature, unknowns.bias
    if raw is not None:
        raw = raw + rate * rates.raw * updates.raw_temperature
    if bias is not None:
        bias = bias + rate * rates.bias * updates.bias
    return Unknowns(flow.geometry.retract(position), _clamped(flow, raw), bias), memory


def decays(unknowns: Unknowns) -> Any:
    """Mask of rows and weights, which alone decay: decay of ν, b or ln γ would be an additional force."""
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[0].name == "position" and path[-1].name != "log_gamma", unknowns
    )


def adamw(
    beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.1, clip: float | None = None
) -> optax.GradientTransformation:
    """AdamW at learning rate 1, whose weight decay spares ν, b and ln γ; `clip` bounds the norm of the gradient."""
    steps = optax.adamw(1.0, beta1, beta2, eps, weight_decay=weight_decay, mask=decays)
    return steps if clip is None else optax.chain(optax.clip_by_global_norm(clip), steps)


def _clamped(flow: GradientFlow, raw: Any) -> Any:
    bounds = flow.schedule.temperature.bounds()
    return raw if bounds is None else jnp.clip(raw, *bounds)


def _sampled(flow: GradientFlow, state: State, key: Any, redraw: bool = False) -> tuple[GradientFlow, State]:
    """The flow and state of one step: its swap, drawn with probability p, and its targets (`redraw`: in any case)."""
    swap, pairing = flow.schedule.swap, flow.pairing
    whether, masks_key, targets_key = jax.random.split(key, 3)
    if swap.active:
        image, _ = flow.rows(state)
        pairs, dim = image.shape
        masks = step_weights(swap, whether, masks_key, pairs, dim, image.dtype)
        flow = eqx.tree_at(lambda f: f.schedule.swap.fraction, flow, jnp.ones_like(swap.fraction))
        state = dataclasses.replace(state, masks=masks)
    if pairing.fresh or (redraw and not pairing.identity):
        dtype = jnp.result_type(*jax.tree.leaves(state.unknowns.position))
        state = dataclasses.replace(state, targets=pairing.draw(targets_key, flow.pairs(state), dtype))
    return flow, state
