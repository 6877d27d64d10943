"""Observables of the states of a solve, computed during the solve or afterwards."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flowsim import observables as obs
from flowsim.base.modules import bundle
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.observables.observable import Observable, inside_trace
from flowsim.observables.table import entries

#: Observables that need the flow, and metrics that a flow computes without rows or in tiles:
#: name -> f(flow, t, state, β, horizon), which returns None if the flow has no such quantity.
STATE_OBSERVABLES: dict[str, Callable[[GradientFlow, Any, State, Any, Any], Any]] = {
    "temperature": lambda f, t, s, b, h: 1 / b,
    "inverse_temperature": lambda f, t, s, b, h: b,
    "raw_temperature": lambda f, t, s, b, h: s.unknowns.raw_temperature,
    "bias": lambda f, t, s, b, h: s.unknowns.bias,
    "gamma": lambda f, t, s, b, h: _gamma(f, s),
    "log_gamma": lambda f, t, s, b, h: _log_gamma(f, s),
    "loss": lambda f, t, s, b, h: f.loss_value(t, s, h),
    "margin": lambda f, t, s, b, h: obs.margin(*f.rows(s), normalise=False) if f.is_tiled(s)
    else obs.margin(similarity=_similarity(f, s)),
    "matched_fraction": lambda f, t, s, b, h: obs.matched_fraction(*f.rows(s), normalise=False) if f.is_tiled(s)
    else obs.matched_fraction(similarity=_similarity(f, s)),
    "direction_margin": lambda f, t, s, b, h: _of_directions(obs.margin, f, s),
    "direction_matched_fraction": lambda f, t, s, b, h: _of_directions(obs.matched_fraction, f, s),
    "doubly_stochastic_defect": lambda f, t, s, b, h: obs.doubly_stochastic_defect(*f.rows(s), 1 / b, normalise=False)
    if f.is_tiled(s) else obs.doubly_stochastic_defect(logits=b * _similarity(f, s)),
}  # fmt: skip


def _log_gamma(flow: GradientFlow, state: State) -> Array | None:
    log_gamma = flow.geometry.log_gamma(state.unknowns.position)
    return None if log_gamma is None else jnp.where(state.constants.sign == 0, -jnp.inf, log_gamma)


def _gamma(flow: GradientFlow, state: State) -> Array | None:
    log_gamma = flow.geometry.log_gamma(state.unknowns.position)
    return None if log_gamma is None else state.constants.sign * jnp.exp(log_gamma)


def _similarity(flow: GradientFlow, state: State) -> Array:
    return jnp.asarray(flow.geometry.similarity(state.unknowns.position, state.constants))


def _of_directions(metric: Callable[..., Any], flow: GradientFlow, state: State) -> Any:
    """A metric of Z, the similarity of the directions within parallel cones; None without cones."""
    if not flow.geometry.has_gamma:
        return None
    return metric(similarity=jnp.asarray(flow.geometry.pair_similarity(state.unknowns.position, state.constants)))


@dataclasses.dataclass(frozen=True)
class Moment:
    """What an observable of states gets: the flow at one time, inside a compiled program.

    Attributes:
        flow: The flow.
        time: Flow time t.
        state: Its state; `state.unknowns.position` holds the coordinates of the geometry, such as `image` and `text`.
        horizon: Flow time at which schedules end.
    """

    flow: GradientFlow
    time: Any
    state: State
    horizon: Any

    @property
    def inverse_temperature(self) -> Any:
        """β."""
        return self.flow.inverse_temperature(self.time, self.state, self.horizon)

    @property
    def temperature(self) -> Any:
        """τ = 1/β."""
        return 1 / self.inverse_temperature

    @property
    def rows(self) -> Any:
        """The embeddings (image, text), each (n, d)."""
        return self.flow.rows(self.state)

    @property
    def velocity(self) -> Unknowns:
        """d/dt of the unknowns: `velocity.position`, and `velocity.raw_temperature` of a learnable policy."""
        return self.flow.vector_field(self.time, self.state, self.horizon)


def observe_state(
    flow: GradientFlow, t: Any, state: State, horizon: Any, observables: tuple[Observable, ...]
) -> dict[str, Any]:
    """Observables of a state by name, without those that the flow does not have."""
    beta = flow.inverse_temperature(t, state, horizon)
    values: dict[str, Any] = {}
    for observable in observables:
        if observable.name in STATE_OBSERVABLES:
            value = STATE_OBSERVABLES[observable.name](flow, t, state, beta, horizon)
        elif observable.of == "state":
            value = observable.one_number(observable.function(Moment(flow, t, state, horizon)))
            value = None if value is None else jnp.asarray(value, beta.dtype)
        else:
            rows = flow.geometry.rows(state.unknowns.position, state.constants)
            value = jnp.full_like(beta, jnp.nan) if rows is None else inside_trace(observable, *rows, 1 / beta)
        if value is not None:
            values[observable.name] = value
    return values


@bundle
class SavedStates:
    """States to observe: `unknowns` at the times `ts`, everything else from `state`."""

    ts: Any
    unknowns: Unknowns
    state: State
    horizon: Any


def observe(flow: GradientFlow, seen: SavedStates, names: tuple[str, ...]) -> dict[str, Any]:
    """Observables of a sequence of states, stacked along time."""
    return _observe_one(flow, seen, entries(names))


def observe_many(flows: GradientFlow, seen: SavedStates, names: tuple[str, ...]) -> dict[str, Any]:
    """`observe` for many flows of the same structure at once."""
    return _observe_many(flows, seen, entries(names))


def _observe_states(flow: GradientFlow, seen: SavedStates, observables: tuple[Observable, ...]) -> dict[str, Any]:
    def one(item: tuple[Any, Unknowns]) -> dict[str, Any]:
        state = dataclasses.replace(seen.state, unknowns=item[1])
        return observe_state(flow, item[0], state, seen.horizon, observables)

    return jax.lax.map(one, (seen.ts, seen.unknowns))


@eqx.filter_jit
def _observe_one(flow: GradientFlow, seen: SavedStates, observables: tuple[Observable, ...]) -> dict[str, Any]:
    return _observe_states(flow, seen, observables)


@eqx.filter_jit
def _observe_many(flows: GradientFlow, seen: SavedStates, observables: tuple[Observable, ...]) -> dict[str, Any]:
    return eqx.filter_vmap(lambda flow, one: _observe_states(flow, one, observables))(flows, seen)
