"""Heads in training: the compiled steps of one run, or of many runs of the same structure in one program.

The model is a geometry of the simulator (`LinearEncoders`, `MLPEncoders`), its loss and schedule are those of a
`GradientFlow`, and a step is that of `fs.descend`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowsim.base.arrays import full_precision, to_device, to_numpy
from flowsim.base.checks import check
from flowsim.clip.plan import Plan
from flowsim.data.features import Features
from flowsim.data.order import Order
from flowsim.heads.settings import Training
from flowsim.integrate.steps import Minibatch, adamw, decays, descent_of, updated
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.model.geometry.base import normalise
from flowsim.model.geometry.encoders import Inputs, LinearEncoders, MLPEncoders, Weights
from flowsim.model.inputs import FromFeatures
from flowsim.model.pairing import Targets
from flowsim.model.schedules import Schedule

#: Most steps between two fetches of losses from the device, and most bytes of features handed over for them.
_BLOCK, _BLOCK_BYTES = 64, 2**26
#: Most bytes of training features that stay on the device; of more, each step gets its own.
_RESIDENT = 2**31


def flow_of(settings: Training, schedule: Schedule) -> GradientFlow:
    """The flow of which a training takes steps: the heads as geometry, and the schedule with the clamp of the settings.

    Args:
        settings: The settings.
        schedule: The schedule.

    Raises:
        FlowsimError: If a learnable temperature cannot be clamped.
    """
    policy = schedule.temperature
    if policy.learnable and policy.bounds() is None and settings.clamp is not None:
        policy = policy.clamped_to(*settings.clamp)
        check(
            policy.bounds() is not None,
            f"`clamp` cannot bound the temperature of {type(policy).__name__}. Use clamp=None.",
        )
    heads = LinearEncoders if settings.hidden is None else MLPEncoders
    return GradientFlow(heads(settings.normalize), Schedule(policy, schedule.swap))


@functools.lru_cache(maxsize=64)
def _transform(
    optimizer: str, momentum: float, beta1: float, beta2: float, eps: float, decay: float, clip: float | None
) -> optax.GradientTransformation:
    """The optimizer at learning rate 1; kept, so that nothing is compiled twice."""
    if optimizer == "adamw":
        return adamw(beta1, beta2, eps, decay, clip)
    steps = [optax.add_decayed_weights(decay, decays), optax.sgd(1.0, momentum or None)]
    return optax.chain(*([] if clip is None else [optax.clip_by_global_norm(clip)]), *steps)


class Learner:
    """Runs of the same structure, with their weights: `flows[r]` is trained with `seeds[r]`.

    It is used within `jax.enable_x64(settings.precision == "float64")`.
    """

    def __init__(
        self, settings: Training, flows: Sequence[GradientFlow], seeds: Sequence[int], training: Features, plan: Plan
    ) -> None:
        self.settings, self.flows, self.plan, self.training = settings, list(flows), plan, training
        self.dtype = np.dtype(settings.precision)
        self.together = len(flows) > 1
        self.seeds = list(dict.fromkeys(seeds))
        self.which = np.array([self.seeds.index(seed) for seed in seeds], np.int32)
        self.transform = _transform(
            settings.optimizer, settings.momentum, settings.beta1, settings.beta2, settings.eps, settings.weight_decay,
            settings.clip,
        )  # fmt: skip
        recipe = FromFeatures(training, settings.dim, settings.hidden)
        drawn = {seed: recipe.weights(seed) for seed in self.seeds}
        each = []
        for flow, seed in zip(flows, seeds, strict=True):
            image_hidden, image, text_hidden, text = drawn[seed]
            raw = flow.schedule.temperature.initial_raw()
            each.append(Unknowns(Weights(image_hidden, image, text_hidden, text), None if raw is None else _host(raw)))
        self.flow: GradientFlow = to_device(self._joined(self.flows), self.dtype)
        self.unknowns: Unknowns = to_device(self._joined(each), self.dtype)
        start: Any = self.transform.init
        self.memory = jax.vmap(start)(self.unknowns) if self.together else start(self.unknowns)
        self.orders = [Order(training.pairs, settings.batch_size, seed) for seed in self.seeds]
        self.keys = jnp.stack([jax.random.key(seed) for seed in self.seeds])
        self.rates = jnp.asarray(plan.rates, self.dtype)
        self.counts = np.full(training.pairs, training.captions) if training.counts is None else training.counts
        every = settings.captions == "all"
        size = training.image_dim + training.text_dim * (training.captions if every else 1)
        self.inputs: Inputs | None = None
        self.block = _BLOCK
        if training.pairs * size * self.dtype.itemsize <= _RESIDENT:
            # The texts of all captions, padded as in the file; only those that exist are drawn.
            start_ = recipe.inputs(self.dtype)
            text = start_[1] if every else start_[1][:, :1]
            self.inputs = Inputs(*(jnp.asarray(x) for x in (start_[0], text)))
        else:
            one = settings.batch_size * (training.image_dim + training.text_dim) * self.dtype.itemsize
            self.block = max(1, min(_BLOCK, _BLOCK_BYTES // (one * len(self.seeds))))

    def _joined(self, each: Sequence[Any]) -> Any:
        """The trees of all runs, stacked along a first axis; that of a single run itself."""
        return jax.tree.map(lambda *x: np.stack(x), *each) if self.together else each[0]

    def advance(self, begin: int, end: int) -> np.ndarray:
        """Take steps `begin` to `end`, at most `block`; (runs, steps, 3): loss, gap of the batch, ν or NaN before each.

        Args:
            begin: The first step.
            end: The step after the last.
        """
        batches = [self._batches(order, begin, end) for order in self.orders]
        stacked = jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *batches)
        span = tuple(map(np.asarray, (begin, end, float(self.plan.steps))))
        self.unknowns, self.memory, noted = _advance(
            self.flow, self.unknowns, self.memory, self.which, self.inputs, self.rates, span, self.keys, stacked,
            self.transform, self.together,
        )  # fmt: skip
        found = np.asarray(noted, np.float64)[..., : end - begin, :]
        return found if self.together else found[None]

    def _batches(self, order: Order, begin: int, end: int) -> Any:
        """The batches of steps `begin` to `end`, padded to `block`: indices, or features that are not on the device."""
        padded = [min(k, end - 1) for k in range(begin, begin + self.block)]
        chosen = [order.indices(k) for k in padded]
        texts = [np.zeros(order.batch, int)] * self.block
        if self.settings.captions == "all":
            texts = [order.captions(k, self.counts[pairs]) for k, pairs in zip(padded, chosen, strict=True)]
        if self.inputs is not None:
            return Minibatch(np.asarray(chosen, np.int32), np.asarray(texts, np.int32))
        image = np.stack([self.training.image_rows(pairs, self.dtype) for pairs in chosen])
        text = [self.training.text_rows(pairs, which, self.dtype) for pairs, which in zip(chosen, texts, strict=True)]
        return Inputs(image, np.stack(text))

    def embed(self, image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of all runs, float64: images (runs, n, d) and texts (runs, m, d).

        Args:
            image: Features of images (n, p).
            text: Features of texts (m, q).
        """
        found = []
        for rows in _embed(self.flow, self.unknowns.position, image, text, self.together):
            rows = np.asarray(rows, np.float64)
            with np.errstate(invalid="ignore"):  # of runs that have diverged
                found.append(rows / np.linalg.norm(rows, axis=-1, keepdims=True))
        return (found[0], found[1]) if self.together else (found[0][None], found[1][None])

    def temperature(self, run: int, step: int) -> tuple[float, float | None]:
        """(β, ν) of a run after `step` steps; ν is None if it is not learned."""
        raw = self.unknowns.raw_temperature
        value = None if raw is None else float(np.asarray(raw)[run] if self.together else raw)
        policy = self.flows[run].schedule.temperature
        beta = policy.inverse_temperature(step / self.plan.steps, None if value is None else np.float64(value))
        return float(beta), value

    def weights(self, run: int) -> Unknowns:
        """The unknowns of a run (NumPy)."""
        return jax.tree.map(lambda x: x[run] if self.together else x, to_numpy(self.unknowns))

    def state(self, run: int) -> list[np.ndarray]:
        """The arrays that a run continues from."""
        leaves = jax.tree.leaves(to_numpy((self.unknowns, self.memory)))
        return [x[run] if self.together else x for x in leaves]

    def restore(self, states: Sequence[Sequence[np.ndarray]]) -> None:
        """Inverse of `state`, for all runs.

        Raises `FlowsimError` if the arrays have other shapes.
        """
        leaves, tree = jax.tree.flatten((self.unknowns, self.memory))
        joined = [np.stack(x) if self.together else x[0] for x in zip(*states, strict=True)]
        fits = [x.shape for x in joined] == [x.shape for x in leaves]
        check(fits, "The checkpoint does not fit these settings. Remove it, or use `force=True`.")
        placed = [jnp.asarray(new, old.dtype) for new, old in zip(joined, leaves, strict=True)]
        self.unknowns, self.memory = jax.tree.unflatten(tree, placed)


def _host(value: Any) -> np.ndarray:
    return np.asarray(value, np.float64)


@eqx.filter_jit
def _advance(
    flows: Any, unknowns: Any, memory: Any, which: Any, inputs: Inputs | None, rates: Any, span: Any, keys: Any,
    batches: Any, transform: optax.GradientTransformation, together: bool,
) -> tuple[Any, Any, Any]:  # fmt: skip
    """Steps `begin` to `end` of `span` = (begin, end, steps of the run) of all runs."""

    def one(flow: GradientFlow, unknowns: Unknowns, memory: Any, which: Any) -> tuple[Any, Any, Any]:
        return _steps(flow, unknowns, memory, which, inputs, rates, span, keys, batches, transform)

    return eqx.filter_vmap(one)(flows, unknowns, memory, which) if together else one(flows, unknowns, memory, which[0])


def _steps(
    flow: GradientFlow, unknowns: Unknowns, memory: Any, which: Any, inputs: Inputs | None, rates: Any, span: Any,
    keys: Any, batches: Any, transform: Any,
) -> tuple[Any, Any, Any]:  # fmt: skip
    begin, end, total = span
    dtype = rates.dtype
    noted = jnp.zeros((jax.tree.leaves(batches)[0].shape[1], 3), dtype)

    def step(k: Any, carry: Any) -> Any:
        unknowns, memory, noted = carry
        batch = jax.tree.map(lambda x: x[which, k - begin], batches)
        resident = inputs is not None
        state = State(unknowns, inputs if resident else batch, Targets(), None)
        at, key = jnp.asarray(k, dtype), jax.random.fold_in(keys[which], k)
        until = jnp.asarray(total, dtype)
        here, sampled, descent = descent_of(flow, state, at, until, key, batch if resident else None)
        with full_precision():  # as in the descent, so that the compiler sees the same products
            image, text = map(normalise, here.rows(sampled))
        gap = jnp.linalg.norm(jnp.mean(image - text, axis=0))
        raw = jnp.asarray(jnp.nan, dtype) if unknowns.raw_temperature is None else unknowns.raw_temperature
        values = jnp.stack([here.loss_value(at, sampled, until), gap, raw])
        unknowns, memory = updated(flow, unknowns, memory, descent, rates[k], transform)
        return unknowns, memory, noted.at[k - begin].set(values)

    return jax.lax.fori_loop(begin, end, step, (unknowns, memory, noted))


@eqx.filter_jit
def _embed(flows: Any, weights: Any, image: Any, text: Any, together: bool) -> tuple[Any, Any]:
    """Outputs of all runs, one after the other."""
    numbers, structure = eqx.partition(flows, eqx.is_array)

    def one(run: tuple[Any, Weights]) -> tuple[Any, Any]:
        geometry: Any = eqx.combine(run[0], structure).geometry
        weights = run[1]
        with full_precision():
            return (
                geometry.encode(image, weights.image_hidden, weights.image_weights),
                geometry.encode(text, weights.text_hidden, weights.text_weights),
            )

    return jax.lax.map(one, (numbers, weights)) if together else one((numbers, weights))


def structure_of(flow: GradientFlow) -> Any:
    """What runs must share to be one program: the tree of the flow without its numbers.

    Args:
        flow: A flow.
    """
    return jax.tree.structure(flow)
