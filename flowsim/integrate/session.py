"""The context of a run: 64-bit mode, the notice of compiling, timing, devices, and the initial state."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.base import notice
from flowsim.base.arrays import LARGE, full_precision, to_device
from flowsim.base.checks import check
from flowsim.integrate.origin import Origin
from flowsim.model.flow import GradientFlow, State
from flowsim.numerics import make_room, store_programs, tiled
from flowsim.provenance import CompileTimer
from flowsim.records.result import Simulation, SimulationStopped


@dataclasses.dataclass(frozen=True)
class Session:
    """A run about to begin: flow and state on the devices, and `place`, which moves a tree there."""

    flow: GradientFlow
    state: State
    place: Callable[[Any], Any]
    dtype: np.dtype[Any]
    timer: CompileTimer
    began: float

    def finish(self, result: Simulation, throw: bool) -> Simulation:
        """Add the seconds to the result; raises `SimulationStopped` if the run stopped early and `throw` is True."""
        total, compiling = time.perf_counter() - self.began, self.timer.seconds
        result.stats.update(compile_seconds=compiling, run_seconds=max(total - compiling, 0.0), wall_seconds=total)
        if throw and not result.status.ok:
            raise SimulationStopped(result)
        return result


@contextlib.contextmanager
def opened(
    flow: GradientFlow, origin: Origin, precision: str, devices: int | Sequence[Any] | None
) -> Iterator[Session]:
    """A session for a run of `flow` from `origin`.

    Raises:
        FlowsimError: If the start does not fit the flow, or the pairs cannot be divided among the devices.
    """
    began, dtype = time.perf_counter(), np.dtype(precision)
    store_programs()
    make_room()
    with contextlib.ExitStack() as stack, jax.enable_x64(precision == "float64"), CompileTimer() as timer:
        stack.enter_context(notice.compiling())
        stack.enter_context(full_precision())
        flow_ = to_device(flow, dtype)
        # Placed in NumPy: JAX would compile a program for every operation.
        state = flow_.complete(*to_device(flow.place(origin.start), dtype), origin.seed)
        for name, value in origin.moved.items():
            state = eqx.tree_at(lambda s, name=name: getattr(s.unknowns, name), state, jnp.asarray(value, dtype))
        place, mesh = _placing(flow_, state, devices)
        stack.enter_context(mesh)
        yield Session(flow_, place(state), place, dtype, timer, began)


def _placing(
    flow: GradientFlow, state: State, devices: int | Sequence[Any] | None
) -> tuple[Callable[[Any], Any], contextlib.AbstractContextManager[Any]]:
    """The function that places a tree of arrays on the devices, and the context in which the flow uses them."""
    if devices is None:
        return lambda tree: tree, contextlib.nullcontext()
    there = jax.devices()
    if isinstance(devices, int):
        check(
            1 <= devices <= len(there),
            f"Argument `devices` must be between 1 and {len(there)}, the number of JAX devices, but is {devices}.",
        )
        devices = there[:devices]
    check(len(devices) > 0, "Argument `devices` is empty. Give a number, or jax.devices().")
    check(
        flow.is_tiled(state),
        f"Argument `devices` needs at least {LARGE} pairs, InfoNCE, rows without γ and no clusters. Leave it out.",
    )
    pairs = flow.pairs(state)
    check(
        pairs % len(devices) == 0,
        f"{pairs} pairs cannot be divided among {len(devices)} devices. Use a multiple, or fewer devices.",
    )
    mesh = tiled.mesh_of(list(devices))
    return lambda tree: tiled.spread(tree, mesh, pairs), jax.set_mesh(mesh)
