"""A fixed set of 200 problems to judge the choice of methods: status, steps and time of each.

    python benchmarks/solver_problems.py [--first 200] [--skip 0] [--scipy SECONDS] [--json FILE]

Geometries, pairings, losses, schedules, label noise, temperatures from 0.01 to 0.5, matched and mismatched starts, up
to 4,097 unknowns; all at default settings, none tuned. The first 60 are InfoNCE on `Sphere`, `Parallel` and `Reduced`.
A run ends *right* if it covered its output times with finite observables, if γ reached 1 from a mismatched start on
parallel cones, or if an output of an encoder shrank to 0. Times are of a second call, without compilation.

With `--scipy` each problem is also solved by SciPy's LSODA, DOP853 and (up to 500 unknowns) BDF: the same compiled
field in the same variable ln(1 + t), the same tolerances and output times, with a limit in seconds for each method.
Problems with piecewise flows, clamps or early ends are not given to SciPy, and have no peer.
The file of `--json` is written after every problem; with `--skip` its results of the skipped problems are kept.
"""

import argparse
import dataclasses
import itertools
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.model.temperature import Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

Problem = tuple[str, fs.GradientFlow, fs.initial.AbstractRecipe, float, int]

T1 = {"learnable": 1e8, "scheduled": 1e4, "fixed": 1e5}


def problems() -> Iterator[Problem]:
    """(name, flow, start, t1, seed), grouped so that equal structures share a compilation."""
    yield from basic()
    yield from beyond()


def basic() -> Iterator[Problem]:
    """InfoNCE, three geometries, all temperature policies: 60 problems."""
    sphere, parallel, reduced = fs.Sphere(), fs.Parallel(), fs.Reduced()
    uniform, big = fs.initial.uniform(16, 8), fs.initial.uniform(32, 16)
    cones = fs.initial.uniform(16, 8, gamma=0.3)
    matched = fs.initial.matched(16, 8, gamma=0.3)
    flat = fs.initial.uniform(8, 2, gamma=0.1)
    for tau in (0.01, 0.03, 0.07, 0.2, 0.5):
        schedule = fs.Schedule(Fixed(tau))
        yield f"sphere fixed {tau}", fs.GradientFlow(sphere, schedule), uniform, T1["fixed"], 0
        yield f"sphere fixed {tau} large", fs.GradientFlow(sphere, schedule), big, T1["fixed"], 1
        yield (
            f"sphere fixed {tau} rings",
            fs.GradientFlow(sphere, schedule),
            fs.initial.rings(),
            T1["fixed"],
            0,
        )
        yield f"parallel fixed {tau}", fs.GradientFlow(parallel, schedule), cones, T1["fixed"], 0
        yield f"parallel fixed {tau} matched", fs.GradientFlow(parallel, schedule), matched, T1["fixed"], 0
    for tau in (0.02, 0.1, 0.3):
        noisy = fs.GradientFlow(sphere, fs.Schedule(Fixed(tau)), pairing=fs.LabelNoise(0.1))
        yield f"sphere noise {tau}", noisy, fs.initial.uniform(12, 20), T1["fixed"], 0
    for tau in (0.01, 0.07, 0.5):
        schedule = fs.Schedule(Learnable(tau))
        yield f"sphere learnable {tau}", fs.GradientFlow(sphere, schedule), uniform, T1["learnable"], 2
        yield f"parallel learnable {tau}", fs.GradientFlow(parallel, schedule), cones, T1["learnable"], 2
        yield f"parallel learnable {tau} matched", fs.GradientFlow(parallel, schedule), matched, 1e30, 2
    for seed in range(6):
        yield f"parallel flat seed {seed}", fs.GradientFlow(parallel), flat, T1["learnable"], seed
    for parametrization in (ScaledExp(10.0), Softplus(), Identity()):
        name = type(parametrization).__name__
        schedule = fs.Schedule(Learnable(parametrization=parametrization))
        yield f"parallel {name}", fs.GradientFlow(parallel, schedule), cones, T1["learnable"], 3
        yield f"parallel {name} matched", fs.GradientFlow(parallel, schedule), matched, 1e30, 3
    for parametrization in (Exp(), Identity()):
        schedule = fs.Schedule(Learnable(0.5, parametrization))
        name = f"reduced {type(parametrization).__name__}"
        yield name, fs.GradientFlow(reduced, schedule), fs.initial.orthonormal(32, 0.5), 1e100, 0
        yield f"{name} mismatched", fs.GradientFlow(reduced, schedule), cones, T1["learnable"], 0
    for tau in (0.05, 0.5):
        yield f"reduced fixed {tau}", fs.GradientFlow(reduced, fs.Schedule(Fixed(tau))), cones, 1e4, 0
    for name in ("TS S3", "TS A1"):
        yield f"sphere {name}", fs.GradientFlow.from_preset(name), uniform, T1["scheduled"], 4
    clamped = fs.Schedule(Learnable(clamp=(0.05, 1.0)))
    yield "sphere clamp", fs.GradientFlow(sphere, clamped), uniform, T1["learnable"], 5
    for name in ("HS 1e-1", "SS 5e-2"):
        yield f"sphere {name}", fs.GradientFlow.from_preset(name), fs.initial.cones(16, 8), 1e5, 0


def beyond() -> Iterator[Problem]:
    """Other losses, pairings, geometries, all presets, and up to 4,097 unknowns: 140 problems."""
    uniform, cones = fs.initial.uniform(16, 8), fs.initial.uniform(16, 8, gamma=0.3)
    policies = (("fixed 0.05", Fixed(0.05)), ("fixed 0.3", Fixed(0.3)), ("learnable", Learnable(0.07)))
    losses = (
        fs.Sigmoid(), fs.Sigmoid(bias=0.0, relative_bias=True), fs.DirectedInfoNCE(), fs.NTXent(),
        fs.Regularised(1.0, 1.0),
    )  # fmt: skip
    pairings = (
        fs.LabelNoise(0.01), fs.LabelNoise(0.1), fs.LabelNoise(0.3), fs.FrozenMispairing(0.25),
        fs.FreshRepairing(0.25), fs.Clusters(2),
    )  # fmt: skip
    for text, policy in policies:
        t1 = T1[text.split()[0]]
        for i, loss in enumerate(losses):
            yield f"{type(loss).__name__} {i} {text}", fs.GradientFlow(schedule=policy, loss=loss), uniform, t1, 6
        for geometry, start in ((fs.Sphere(), uniform), (fs.Parallel(), cones)):
            for i, pairing in enumerate(pairings):
                name = f"{type(geometry).__name__} {type(pairing).__name__} {i} {text}"
                yield name, fs.GradientFlow(geometry, policy, pairing=pairing), start, t1, 7
        for angle in (30.0, 60.0, 90.0):
            yield f"subspaces {angle:g} {text}", fs.GradientFlow(fs.Subspaces(angle), policy), uniform, t1, 8
        latents = fs.initial.latents(pairs=16, factors=8, dim=8)
        layers = fs.initial.latents(pairs=16, factors=8, dim=8, hidden=16)
        yield f"linear encoders {text}", fs.GradientFlow(fs.LinearEncoders(), policy), latents, 1e3, 9
        yield f"two layers {text}", fs.GradientFlow(fs.MLPEncoders(), policy), layers, 1e3, 9
        for pairs, dim in ((64, 16), (64, 32), (128, 16)):
            for gamma, geometry in ((None, fs.Sphere()), (0.3, fs.Parallel())):
                for pairing in (fs.Matched(), fs.LabelNoise(0.1)):
                    flow = fs.GradientFlow(geometry, policy, pairing=pairing)
                    name = f"{type(geometry).__name__} ({pairs}, {dim}) {type(pairing).__name__} {text}"
                    yield name, flow, fs.initial.uniform(pairs, dim, gamma=gamma), t1, 10
    yield "unnormalized fixed", fs.GradientFlow(fs.Unnormalized(), Fixed(0.1)), uniform, 1e4, 11
    for name in fs.schedules.names():
        yield f"preset {name}", fs.GradientFlow.from_preset(name), uniform, T1["scheduled"], 12
    for seed in range(12):
        yield f"cold {seed}", fs.GradientFlow(schedule=Fixed(0.01)), fs.initial.cones(16, 8), T1["fixed"], seed


class _TooLong(Exception):
    """SciPy has reached its time limit."""


def scipys_best(flow: fs.GradientFlow, recipe: fs.initial.AbstractRecipe, t1: float, seed: int, limit: float):
    """(seconds, method) of SciPy's fastest method within the limit; (None, reason) if none finishes."""
    if flow.redraw is not None or getattr(flow.schedule.temperature, "clamp", None):
        return None, "no peer"
    with jax.enable_x64(True):
        state = flow.initial_state(recipe.draw(seed), seed)
        y0, unravel = ravel_pytree(state.unknowns)

        @jax.jit
        def field(s, y):
            moved = dataclasses.replace(state, unknowns=unravel(y))
            return ravel_pytree(flow.vector_field(jnp.expm1(s), moved, t1))[0] * jnp.exp(s)

        field(0.0, y0).block_until_ready()
        found = []
        for method in ("LSODA", "DOP853", *(["BDF"] if len(y0) <= 500 else [])):
            begin = time.perf_counter()

            def timed(s, y, begin=begin):
                if time.perf_counter() - begin > limit:
                    raise _TooLong
                return np.asarray(field(s, y))

            times = np.log1p(np.concatenate([[0.0], np.geomspace(1e-2, t1, 256)]))
            try:
                out = solve_ivp(
                    timed, (0, times[-1]), np.asarray(y0), method, np.minimum(times, times[-1]), rtol=1e-9, atol=1e-12
                )
            except _TooLong:
                continue
            if out.success:
                found.append((time.perf_counter() - begin, method))
    return min(found) if found else (None, f"none within {limit:g} s")


def right(result: fs.Result, name: str) -> bool:
    """Whether this status is correct for this problem."""
    if result.status.ok:
        finite = all(np.isfinite(v).all() for k, v in result.series.items() if k != "log_gamma")
        return finite
    if result.status.code is fs.Status.OUTPUT_ZERO:
        return isinstance(result.flow.geometry, fs.LinearEncoders | fs.MLPEncoders)
    return result.status.code is fs.Status.GAMMA_ONE and "matched" not in name.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=200, help="use only this many problems, from the first")
    parser.add_argument("--skip", type=int, default=0, help="number of problems to skip at the beginning")
    parser.add_argument("--scipy", type=float, default=0.0, help="time limit in seconds for each of SciPy's methods")
    parser.add_argument("--json", default=None)
    arguments = parser.parse_args()
    rows = []
    if arguments.json and arguments.skip and Path(arguments.json).exists():
        rows = json.loads(Path(arguments.json).read_text(encoding="utf-8"))[: arguments.skip]
    for name, flow, start, t1, seed in itertools.islice(problems(), arguments.skip, arguments.first):
        result = fs.simulate(flow, start, t1=t1, seed=seed, throw=False)
        # The second run is without compilation.
        again = time.perf_counter()
        result = fs.simulate(flow, start, t1=t1, seed=seed, throw=False)
        seconds = time.perf_counter() - again
        rows.append(
            {
                "problem": name,
                "status": result.status.code.name,
                "right": right(result, name),
                "stopped_at": result.status.stopped_at,
                "method": result.status.method,
                "steps": result.stats["steps"],
                "rejected": result.stats["rejected"],
                "seconds": seconds,
                "gap": float(result.series["modality_gap"][-1]),
                "conserved_residual": result.stats.get("conserved_residual"),
            }
        )
        row = rows[-1]
        peer = ""
        if arguments.scipy:
            peers = scipys_best(flow, start, t1, seed, arguments.scipy) if result.status.ok else (None, "no peer")
            row["scipy_seconds"], row["scipy_method"] = peers
            peer = f"  SciPy {row['scipy_seconds'] or math.nan:7.2f} s {row['scipy_method']}"
        print(
            f"{name:44s} {row['status']:10s} {row['steps']:6d} steps {seconds:7.2f} s  {row['method']}{peer}",
            flush=True,
        )
        if arguments.json:
            Path(arguments.json).write_text(json.dumps(rows, indent=1), encoding="utf-8")
    seconds = [r["seconds"] for r in rows]
    wrong = [r["problem"] for r in rows if not r["right"]]
    print(
        f"\n{len(rows)} problems, {len(rows) - len(wrong)} with a right status; "
        f"median {np.median(seconds):.2f} s, worst {max(seconds):.2f} s"
    )
    ratios = [r["scipy_seconds"] / r["seconds"] for r in rows if r.get("scipy_seconds")]
    if ratios:
        none = sum(r["scipy_method"].startswith("none") for r in rows)
        print(
            f"SciPy's best / ours: minimum {min(ratios):.2f}, median {np.median(ratios):.2f}, maximum "
            f"{max(ratios):.2f} over {len(ratios)} problems; {none} more that SciPy did not finish"
        )
    if wrong:
        print("wrong:", ", ".join(wrong))


if __name__ == "__main__":
    main()
