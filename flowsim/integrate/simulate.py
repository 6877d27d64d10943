"""`simulate`: integrate a gradient flow with diffrax in logarithmic time, and choose the method.

The flow is integrated in s = ln(1 + t): curvature decays like 1/t, so an explicit method crosses thirty decades in a
few hundred steps. Flows with a true equilibrium become stiff in s. The explicit method then runs out of steps, and the
solve continues with an implicit method for few unknowns or a stabilised explicit one (Runge-Kutta-Chebyshev) for many.
A solve is a chain of *segments*, each a compiled call. A segment ends when the method changes, at a clamp of the
temperature, or with the run.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from flowsim.base.arrays import to_device, to_numpy
from flowsim.base.checks import check
from flowsim.base.modules import tracing
from flowsim.base.times import output_times
from flowsim.integrate.assemble import assemble, diagnose
from flowsim.integrate.methods import Method
from flowsim.integrate.observe import observe
from flowsim.integrate.options import (
    DEFAULT_OBSERVABLES,
    Precision,
    check_policy,
    check_run,
    horizon_of,
    observables_of,
    solve_options,
)
from flowsim.integrate.origin import origin_of
from flowsim.integrate.segment import segment
from flowsim.integrate.session import opened
from flowsim.integrate.trajectory import Trajectory
from flowsim.model.flow import GradientFlow, State
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.records.load import load_result
from flowsim.records.result import Result, Simulation
from flowsim.records.status import Status

#: Snapshots are stored at every output time if they fit into this many bytes.
_SNAPSHOT_BYTES = 64 * 2**20


@tracing()
def simulate(
    flow: GradientFlow,
    start: Start | AbstractRecipe | Result,
    t1: float | None = None,
    ts: "ArrayLike | None" = None,
    *,
    seed: int = 0,
    horizon: float | None = None,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    method: Method | None = None,
    max_steps: int = 200_000,
    snapshots: "ArrayLike | None" = None,
    observables: Sequence[str] | None = None,
    precision: Precision = "float64",
    devices: int | Sequence[Any] | None = None,
    throw: bool = True,
) -> Simulation:
    """Integrate dθ/dt = −∂L/∂θ, dν/dt = −r ∂L/∂ν from a start and record observables.

    JAX's 64-bit mode is switched on for the run only; the arrays of the result are NumPy. For steps of an optimizer
    use `fs.descend`.

    Args:
        flow: Geometry, schedule, loss, pairing and rule.
        start: A `Start`, a recipe (drawn with `seed`), or a `Result`, which is continued on its own clock.
        t1: Last flow time. There are then 257 output times: 0 and log-spaced times up to `t1`, or log-spaced times from
            the end of a continued run.
        ts: Output times instead, strictly increasing; they are returned exactly as given.
        seed: Seed of the recipe, noisy targets and swap masks. A continued run keeps its own.
        horizon: Flow time at which schedules end: they run in progress u = t/`horizon`. Default: that of the continued
            run, else the last output time.
        rtol: Relative tolerance of a step, on unit rows, ln γ and ν. Good values: 1e-9; 1e-6 for plots.
        atol: Absolute tolerance of a step.
        method: "explicit" (Dopri8), "implicit" (Kvaerno5, dense), "krylov" (Kvaerno5 with Newton and GMRES, without a
            matrix) or "stabilised" (Runge-Kutta-Chebyshev). Default: explicit, then a stiff one if needed; the status
            of the result names the methods used.
        max_steps: Maximum number of steps of one method. By default the explicit method is left after 2,000.
        snapshots: Output times at which embeddings are stored, in addition to the last one, from which the run can be
            continued. Default: all if they fit into 64 MiB, else an even selection.
        observables: Names recorded at every output time, of `fs.observables.names("rows")` and `names("state")`.
            Default: those of the continued run, else `DEFAULT_OBSERVABLES`, such as gap, temperature, loss, margin.
        precision: "float64" or "float32". The latter is faster on short horizons; `rtol` is then at least 1e-5, `atol`
            at least 1e-7, and times beyond 1e6 are refused.
        devices: JAX devices that share the pairs, or their number, which must divide the number of pairs. Only for many
            pairs, see `GradientFlow.is_tiled`. Default: one device.
        throw: Whether to raise `SimulationStopped` if an output time was not reached. If False, the result holds the
            part before.

    Returns:
        Observables over flow time, snapshots of the embeddings, and how the run ended.

    Raises:
        FlowsimError: If the input is invalid; nothing is computed then.
        SimulationStopped: If the run ended before the last output time and `throw` is True.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> result = fs.simulate(flow, start, t1=1e5)
        >>> round(result.final["modality_gap"], 3)
        0.541
        >>> round(result.at(t=4.0)["temperature"], 3)
        0.689
        >>> longer = fs.simulate(flow, result, t1=1e8)  # continues on its clock
        >>> round(longer.final["modality_gap"], 3)
        0.504
    """
    observables = observables_of(observables, start)
    check_run(flow, seed, precision, observables)
    check_policy(flow)
    origin = origin_of(flow, start, seed, horizon, in_steps=False)
    times = output_times(t1, ts, origin.t0)
    horizon = horizon_of(origin.horizon, float(times[-1]))
    options = solve_options(
        rtol=rtol,
        atol=atol,
        method=method,
        max_steps=max_steps,
        observables=observables,
        precision=precision,
        seed=origin.seed,
        last=float(times[-1]),
    )
    with opened(flow, origin, precision, devices) as session:
        pairs = flow.pairs(session.state) if flow.geometry.has_kernels else None
        kept = _snapshot_times(times, snapshots, session.state)
        ran = Trajectory(session.flow, session.state, origin.t0, times, kept, horizon, options)
        while (request := ran.request()) is not None:
            task, spec = request
            ran.absorb(to_numpy(segment(session.flow, session.place(to_device(task, session.dtype)), spec)))
        if (seen := ran.seen()) is not None:
            placed = session.place(to_device(seen, session.dtype))
            ran.fill(to_numpy(observe(session.flow, placed, options.observables)))
    settings = {
        "seed": origin.seed, "precision": precision, "t0": origin.t0, "observables": list(observables),
        "horizon": horizon, "rtol": options.rtol, "atol": options.atol, "method": method,
    }  # fmt: skip
    result = assemble(flow, start, ran, settings, _resolve)
    result.stats.update(diagnose(flow, result, pairs))
    return session.finish(result, throw)


def load(path: str | os.PathLike[str]) -> Result:
    """Read a result from a file.

    Args:
        path: A netCDF file (.nc) written by `Result.save`.

    Returns:
        The result. If it is a simulation of the flow, `at(t)` integrates between its snapshots as before.

    Raises:
        FlowsimError: If the file is missing, damaged, not a flowsim result, or written by a newer flowsim.
    """
    result = load_result(path)
    # Steps of an optimizer and training cannot be integrated between snapshots.
    if isinstance(result, Simulation) and "optimizer" not in result.config["options"]:
        return dataclasses.replace(result, resolve=_resolve)
    return result


def _snapshot_times(ts: np.ndarray, snapshots: ArrayLike | None, state: State) -> np.ndarray:
    if snapshots is not None:
        wanted = np.atleast_1d(np.asarray(snapshots, np.float64))
        missing = wanted[~np.isin(wanted, ts)]
        check(
            missing.size == 0,
            f"Snapshot time {missing[0] if missing.size else 0:g} is not an output time. Add it to `ts`.",
        )
        return np.union1d(wanted, ts[-1:])
    size = 8 * sum(x.size for x in jax.tree.leaves(state.unknowns))
    count = int(min(len(ts), max(2, _SNAPSHOT_BYTES // max(size, 1))))
    return ts[np.unique(np.linspace(0, len(ts) - 1, count).round().astype(int))]


def _resolve(result: Simulation, t: float) -> Simulation:
    """Integrate from the last snapshot before t up to t, with the settings of the run."""
    index = int(np.searchsorted(result.snapshot_time, t)) - 1
    keep = slice(0, index + 1)
    head = dataclasses.replace(
        result,
        time=result.snapshot_time[keep],
        series={k: v[np.isin(result.time, result.snapshot_time[keep])] for k, v in result.series.items()},
        snapshot_time=result.snapshot_time[keep],
        snapshots={k: v[keep] for k, v in result.snapshots.items()},
        status=dataclasses.replace(result.status, code=Status.COMPLETED),
    )
    options = result.config["options"]
    return simulate(
        result.flow,
        head,
        ts=[t],
        rtol=options["rtol"],
        atol=options["atol"],
        method=options["method"],
        precision=options["precision"],
    )


__all__ = ["DEFAULT_OBSERVABLES", "load", "simulate"]
