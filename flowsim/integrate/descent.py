"""Steps of an optimizer on the loss of a flow: a compiled loop between outputs, and the state that it keeps."""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from flowsim.base.arrays import to_numpy
from flowsim.base.checks import check, check_number, check_whole
from flowsim.data.order import Order
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate.observe import SavedStates
from flowsim.integrate.origin import Origin
from flowsim.integrate.steps import Minibatch, decays, descent_of, updated
from flowsim.integrate.trajectory import ending, is_filled
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.model.kernels import no_kernels
from flowsim.records.result import FLOW_TIME, SUM_OF_RATES
from flowsim.records.status import Status

#: Most steps at which observables are recorded, evenly in the logarithm, and most bytes of the states that they need.
OUTPUTS, _STATE_BYTES = 257, 2**29
#: Minibatches handed to the compiled loop at once.
_BATCHES = 64


OPTIMIZERS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=0.1, mask=decays),
}


#: Optimizers whose steps are linear in the gradients, so that a kernel may act on the rows.
_LINEAR = ("sgd", "momentum")


@dataclasses.dataclass
class Descent:
    """A finished run, with the same interface as `Trajectory` for `assemble`.

    `steps`: step numbers of the outputs, counted from the first of all continued runs; `horizon`: step at which
    schedules end; `memory`: state of the optimizer.
    """

    flow: GradientFlow
    state: State
    ts: np.ndarray
    kept: np.ndarray
    states: Any
    status: Status
    t: float
    label: str
    clock: str
    stats: dict[str, float]
    steps: np.ndarray
    horizon: float
    memory: tuple[np.ndarray, ...]
    series: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def seen(self) -> SavedStates:
        """The states to observe, with steps as times, padded to a fixed number so that nothing is compiled again."""
        missing = max(_outputs_of(self.state.unknowns) - len(self.steps), 0)

        def padded(x: np.ndarray) -> np.ndarray:
            return np.concatenate([x, np.repeat(x[-1:], missing, axis=0)])

        unknowns = jax.tree.map(padded, self.states)
        return SavedStates(padded(self.steps), unknowns, self.state, np.asarray(self.horizon, self.steps.dtype))

    @property
    def reached(self) -> np.ndarray:
        """Which outputs hold a value."""
        return is_filled(self.states)

    def fill(self, observed: dict[str, Any]) -> None:
        """Store the observables of `seen`."""
        reached = self.reached
        self.series = {name: np.where(reached, np.asarray(x)[: len(reached)], np.nan) for name, x in observed.items()}


def run(
    flow: GradientFlow, state: State, optimizer: Any, lr: Any, steps: Any, dtype: Any, origin: Origin, batch: int | None
) -> Descent:
    """Take `steps` steps from `state`, see `descend`; raises `FlowsimError` for invalid options."""
    label, transform = _transform(optimizer)
    check_whole("steps", steps, 1, "Use e.g. 10000.")
    check(
        flow.rule.is_gradient,
        "The flow's `rule` must be GradientDescent(): the optimizer makes the step. Use flow.replace(rule=...).",
    )
    if flow.geometry.has_kernels and label not in _LINEAR:
        raise no_kernels(f"optimizer {label!r}", " or ".join(map(repr, _LINEAR)))
    before, horizon = origin.before, origin.horizon
    first = 0 if before is None else before.step
    last = first + int(steps)
    if horizon is None:
        horizon = last if before is None else before.horizon
    check_number("horizon", horizon, positive=True, cure="Use the step at which schedules end.")
    rates = _rates(lr, first, int(steps))
    elapsed = np.concatenate([[0.0], np.cumsum(np.broadcast_to(rates, (int(steps),)))])
    outputs = _output_steps(int(steps), _outputs_of(state.unknowns))
    unknowns, memory = state.unknowns, transform.init(state.unknowns)  # pyright: ignore[reportArgumentType]
    if before is not None and before.label == label:
        memory = _restored(memory, before.memory, label)
    saved = [to_numpy(unknowns)]
    status = Status.COMPLETED
    rates_, seed = jnp.asarray(rates, dtype), np.uint32(origin.seed)
    batches = None if batch is None else _Batches.of(flow, state, batch, origin.seed)
    for begin, end in itertools.pairwise(outputs.tolist()):
        left: dict[str, Any] = {}
        for since, until in itertools.pairwise(_parts(begin, end, batches)):
            span = tuple(map(np.asarray, (first + since, first + until, float(horizon), first)))
            chosen = None if batches is None else batches.steps(first + since, first + until)
            unknowns, memory, out = _advance(flow, state, unknowns, memory, rates_, span, seed, transform, chosen)
            left = {name: left.get(name, False) | is_left for name, is_left in to_numpy(out).items()}
        host = to_numpy(unknowns)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves(host)):
            status = Status.NON_FINITE
        else:
            exits = [name for name, is_left in left.items() if is_left]
            status = ending(exits) if exits else status
        if status is not Status.COMPLETED:
            break
        saved.append(host)
    reached = len(saved) - 1
    size = sum(x.size for x in jax.tree.leaves(unknowns))
    saved += [jax.tree.map(lambda x: np.full_like(x, np.nan), saved[0])] * (len(outputs) - len(saved))
    states = jax.tree.map(lambda *x: np.stack(x), *saved)
    times = origin.t0 + elapsed[outputs]
    return Descent(
        flow,
        state,
        times,
        times,
        states,
        status,
        float(times[reached]),
        label,
        FLOW_TIME if optimizer in ("sgd", optax.sgd) else SUM_OF_RATES,
        {"steps": int(outputs[reached]), "rejected": 0, "segments": 1, "unknowns": size},
        (first + outputs).astype(dtype),
        float(horizon),
        tuple(np.asarray(x) for x in jax.tree.leaves(memory)),
    )


class _Batches(NamedTuple):
    """The minibatches of a run; `counts` (n,): number of texts of each pair, None if each has one."""

    order: Order
    counts: np.ndarray | None

    @classmethod
    def of(cls, flow: GradientFlow, state: State, batch: int, seed: int) -> "_Batches":
        """Those of `batch` pairs; raises `FlowsimError` if the flow has none."""
        check_whole("batch", batch, 2, "Use e.g. 256: a contrastive loss needs a negative.")
        check(
            flow.pairing.for_batches,
            f"{type(flow.pairing).__name__} belongs to all pairs and has no minibatches. Leave out `batch`; "
            "`Features.mispaired` permutes captions for good.",
        )
        return cls(Order(flow.pairs(state), batch, seed), flow.geometry.texts(state.constants))

    def steps(self, begin: int, end: int) -> Minibatch:
        """The minibatches of steps `begin` to `end`, padded to `_BATCHES` so that nothing is compiled again."""
        chosen = [self.order.indices(min(k, end - 1)) for k in range(begin, begin + _BATCHES)]
        texts = None
        if self.counts is not None:
            texts = [self.order.captions(k, self.counts[pairs]) for k, pairs in enumerate(chosen, start=begin)]
            texts = np.asarray(texts, np.int32)
        return Minibatch(np.asarray(chosen, np.int32), texts)


def _parts(begin: int, end: int, batches: _Batches | None) -> list[int]:
    """Steps from `begin` to `end` at which the compiled loop is interrupted for the next minibatches."""
    return [begin, end] if batches is None else [*range(begin, end, _BATCHES), end]


@functools.lru_cache(maxsize=64)
def _made(optimizer: Callable[[float], Any]) -> Any:
    """The transformation at learning rate 1, cached so that nothing is compiled twice."""
    return optimizer(1.0)


def _transform(optimizer: Any) -> tuple[str, optax.GradientTransformation]:
    if isinstance(optimizer, str):
        if optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", optimizer, OPTIMIZERS)
        return optimizer, _made(OPTIMIZERS[optimizer])
    cure = f"Use {', '.join(map(repr, OPTIMIZERS))}, or a function of the learning rate such as optax.lion."
    if not callable(optimizer):
        raise FlowsimError(f"Argument `optimizer` cannot be {optimizer!r}. {cure}")
    made = _made(optimizer)
    check(
        isinstance(made, optax.GradientTransformation), f"`optimizer` does not return an optax transformation. {cure}"
    )
    named = getattr(optimizer, "func", optimizer)
    return getattr(named, "__name__", type(named).__name__), made


def _restored(fresh: Any, memory: tuple[np.ndarray, ...], label: str) -> Any:
    """The state of the optimizer in the continued run; `fresh` gives its structure."""
    leaves, tree = jax.tree.flatten(fresh)
    check(
        [np.shape(x) for x in leaves] == [np.shape(x) for x in memory],
        f"The state of the optimizer {label!r} in this run does not fit. Use the optimizer of the run, or start from "
        "`result.final.start`.",
    )
    return jax.tree.unflatten(tree, [jnp.asarray(old, new.dtype) for old, new in zip(memory, leaves, strict=True)])


def _rates(lr: Any, first: int, steps: int) -> np.ndarray:
    """Learning rates from step `first` on, (steps,), or (1,) for a constant one."""
    if callable(lr):
        with jax.numpy_dtype_promotion("standard"):
            steps_ = first + jnp.arange(steps)
            rates = np.asarray(jax.vmap(lr)(steps_), np.float64)  # pyright: ignore[reportCallIssue]
        check(rates.shape == (steps,), "The learning-rate schedule must return one number per step.")
        check(np.isfinite(rates).all() and (rates >= 0).all(), "The learning-rate schedule must be finite and >= 0.")
        check(rates.sum() > 0, "The learning-rate schedule is 0 in every step. Use a positive one.")
        return rates
    check_number("lr", lr, positive=True, cure="Use e.g. 1e-3, or an optax schedule.")
    return np.asarray([lr], np.float64)


def _outputs_of(unknowns: Unknowns) -> int:
    """Most outputs of a run, whose states are kept."""
    return min(OUTPUTS, max(17, _STATE_BYTES // sum(x.nbytes for x in jax.tree.leaves(unknowns))))


def _output_steps(steps: int, most: int) -> np.ndarray:
    spaced = np.geomspace(1, steps, most - 1) if steps > 1 else np.ones(1)
    return np.unique(np.concatenate([[0], np.round(spaced).astype(int), [steps]]))


@eqx.filter_jit
def _advance(
    flow: GradientFlow,
    state: State,
    unknowns: Unknowns,
    memory: Any,
    rates: Any,
    span: Any,
    seed: Any,
    transform: optax.GradientTransformation,
    batches: Minibatch | None,
) -> tuple[Unknowns, Any, dict[str, Any]]:
    """From step `begin` to `end` of `span` = (begin, end, steps of schedules, first step of `rates`).

    `batches` are the minibatches from step `begin` on. Also returns which domains the flow left on the way.
    """
    begin, end, total, first = span
    key = jax.random.key(seed)

    def step(k: Any, carry: Any) -> Any:
        unknowns, memory, left = carry
        here, batch = dataclasses.replace(state, unknowns=unknowns), None
        if batches is not None:
            batch = jax.tree.map(lambda x: x[k - begin], batches)
        at = jnp.asarray(k, total.dtype)
        _, _, descent = descent_of(flow, here, at, total, jax.random.fold_in(key, k), batch)
        rate = rates[jnp.minimum(k - first, rates.shape[0] - 1)]
        unknowns, memory = updated(flow, unknowns, memory, descent, rate, transform)
        here_left = _outside(flow, dataclasses.replace(state, unknowns=unknowns))
        return unknowns, memory, jax.tree.map(jnp.logical_or, left, here_left)

    none = jax.tree.map(jnp.zeros_like, _outside(flow, dataclasses.replace(state, unknowns=unknowns)))
    return jax.lax.fori_loop(begin, end, step, (unknowns, memory, none))


def _outside(flow: GradientFlow, state: State) -> dict[str, Any]:
    """Whether the state has left the domain of the geometry or policy, by the name of the exit."""
    return {name: jnp.asarray(inside <= 0) for name, inside in flow.exits(state, in_steps=True).items()}
