"""Batches of runs: the segments that they request go through one compiled call."""

import itertools
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import numpy as np

from flowsim.base.arrays import full_precision, to_device, to_numpy, unstack
from flowsim.integrate.observe import observe_many
from flowsim.integrate.options import Options
from flowsim.integrate.segment import SegmentSpec, segments
from flowsim.integrate.sweep.grid import Job, structures
from flowsim.integrate.trajectory import Trajectory, final_status
from flowsim.model.flow import GradientFlow, State, Unknowns
from flowsim.model.initial import Start
from flowsim.model.pairing import Targets
from flowsim.model.recipe import as_starts

#: Above this many bytes of states, a chunk computes its observables during the solve.
_STATE_BYTES = 256 * 2**20
#: Batches hold so many runs that their similarities fit into the cache: more would cost more per run.
_CACHE_BYTES, _MOST_LANES = 2**16, 64
#: Steps after which a segment ends, so that runs in a batch do not wait long for each other.
_STEPS = 64

_T = TypeVar("_T")


class CalledOff(Exception):
    """The sweep was interrupted or another chunk failed."""


class Programs:
    """Compiles each program once even if several threads request it."""

    def __init__(self) -> None:
        self._locks: dict[Any, threading.Lock] = defaultdict(threading.Lock)
        self._ready: set[Any] = set()

    def __call__(self, key: Any, call: Callable[[], Any]) -> Any:
        if key in self._ready:
            return call()
        with self._locks[key]:
            out = call()
            self._ready.add(key)
        return out


#: One per process, because a worker computes many chunks.
PROGRAMS = Programs()


def solve_chunk(
    jobs: list[Job],
    ts: np.ndarray,
    horizon: float,
    options: Options,
    programs: Programs,
    stop: threading.Event | None,
) -> list[dict[str, Any]]:
    """Series, status, time at the end and steps of each job."""
    with jax.enable_x64(options.dtype == np.float64), full_precision():
        starts: list[Start] = []
        for shared in _runs_of(jobs, lambda job: job.start):
            starts += as_starts(shared[0].start, [job.seed for job in shared])
        lanes = lanes_of(starts[0].pairs)
        states = _initial_states(jobs, starts, lanes, options)
        size = 8 * len(ts) * len(jobs) * sum(x.size for x in jax.tree.leaves(states[0].unknowns))
        kept = ts if size <= _STATE_BYTES else ts[-1:]
        trajectories = [
            Trajectory(job.flow, state, 0.0, ts, kept, horizon, options._replace(seed=job.seed), _STEPS)
            for job, state in zip(jobs, states, strict=True)
        ]
        structure = structures(jobs[:1])[0]
        while True:
            asked: dict[SegmentSpec, list[tuple[Trajectory, Any]]] = defaultdict(list)
            for trajectory in trajectories:
                if (request := trajectory.request()) is not None:
                    asked[request[1]].append((trajectory, request[0]))
            if not asked:
                break
            for how, batch in ((h, part) for h, all_ in asked.items() for part in _parts(all_, lanes)):
                if stop is not None and stop.is_set():
                    raise CalledOff
                size = _padded(len(batch), lanes)
                flows = _stack([trajectory.flow for trajectory, _ in batch], size, options.dtype)
                tasks = _stack([task for _, task in batch], size, options.dtype)
                outs = programs((structure, how, size), lambda f=flows, k=tasks, h=how: to_numpy(segments(f, k, h)))
                for (trajectory, _), out in zip(batch, unstack(outs, range(len(batch))), strict=True):
                    trajectory.absorb(out)
        _observe(trajectories, lanes, options, structure, programs)
    return [
        {
            **trajectory.series,
            "status": final_status(trajectory.status, trajectory.reached).name,
            "stopped_at": trajectory.t,
            "steps": trajectory.stats["steps"],
        }
        for trajectory in trajectories
    ]


def _observe(trajectories: list[Trajectory], lanes: int, options: Options, structure: Any, programs: Programs) -> None:
    held = [(trajectory, seen) for trajectory in trajectories if (seen := trajectory.seen()) is not None]
    for waiting in _parts(held, lanes):
        size = _padded(len(waiting), lanes)
        flows = _stack([trajectory.flow for trajectory, _ in waiting], size, options.dtype)
        stacked = _stack([seen for _, seen in waiting], size, options.dtype)
        call = lambda f=flows, s=stacked: to_numpy(observe_many(f, s, options.observables))  # noqa: E731
        found = programs((structure, "observe", size), call)
        for i, (trajectory, _) in enumerate(waiting):
            trajectory.fill({name: values[i] for name, values in found.items()})


def lanes_of(pairs: int) -> int:
    """Number of runs with `pairs` pairs in one compiled call, a power of two."""
    fit = max(1, _CACHE_BYTES // (8 * pairs**2))
    return min(_MOST_LANES, 1 << (fit.bit_length() - 1))


def _parts(items: Sequence[Any], lanes: int) -> list[Sequence[Any]]:
    return [items[i : i + lanes] for i in range(0, len(items), lanes)]


def _padded(count: int, lanes: int) -> int:
    """The size that a batch is padded to: one of three, so that few programs are compiled."""
    return next(size for size in (1, min(8, lanes), lanes) if size >= count)


def _stack(trees: Sequence[Any], size: int, dtype: Any) -> Any:
    """Trees of the same structure stacked along a new first axis, the last one repeated up to `size`."""
    trees = [*trees, *[trees[-1]] * (size - len(trees))]
    if all(tree is trees[0] for tree in trees):
        return to_device(jax.tree.map(lambda x: np.repeat(np.asarray(x)[None], size, axis=0), trees[0]), dtype)
    return to_device(jax.tree.map(lambda *leaves: np.stack([np.asarray(x) for x in leaves]), *trees), dtype)


def _runs_of(items: Iterable[_T], key: Callable[[_T], object]) -> Iterable[list[_T]]:
    """Groups of consecutive items whose key is the same object."""
    return (list(group) for _, group in itertools.groupby(items, key=lambda item: id(key(item))))


@eqx.filter_jit
def _complete(flows: GradientFlow, placed_unknowns: Unknowns, constants: Any, seeds: Any) -> State:
    return eqx.filter_vmap(lambda f, m, c, s: f.complete(m, c, s))(flows, placed_unknowns, constants, seeds)


def _initial_states(jobs: list[Job], starts: list[Start], lanes: int, options: Options) -> list[State]:
    states = []
    for part in _parts(list(zip(jobs, starts, strict=True)), lanes):
        placed = []
        for shared in _runs_of(part, lambda item: item[0].flow):
            placed += shared[0][0].flow.place_all([start for _, start in shared])
        if not part[0][0].flow.draws:
            # The same as `GradientFlow.complete`, which would take longer to dispatch than all the rest.
            states += [State(unknowns, constants, Targets(), None) for unknowns, constants in placed]
            continue
        size = _padded(len(part), lanes)
        flows = _stack([job.flow for job, _ in part], size, options.dtype)
        placed_unknowns = _stack([unknowns for unknowns, _ in placed], size, options.dtype)
        constants = _stack([constants for _, constants in placed], size, options.dtype)
        seeds = np.asarray([job.seed for job, _ in part] + [0] * (size - len(part)), np.uint32)
        found = to_numpy(_complete(flows, placed_unknowns, constants, seeds))
        states += unstack(found, range(len(part)))
    return states
