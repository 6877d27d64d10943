"""The fixed set of 60 problems on which the choice of method is judged: status, steps and time of each.

    python benchmarks/solver_problems.py [--json FILE]

Geometries, schedules, temperatures from 0.01 to 0.5, matched, mismatched and noisy, up to 1,025 unknowns; all
at default settings, none tuned. A run ends *right* if it covered its output times with finite observables, or
if γ reached 1 from a mismatched start on parallel cones. Times are of a second call, without compilation.
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np

import flowsim as fs
from flowsim.temperature import Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

T1 = {"learnable": 1e8, "scheduled": 1e4, "fixed": 1e5}


def problems() -> Iterator[tuple[str, fs.GradientFlow, fs.initial.AbstractRecipe, float, int]]:
    """(name, flow, start, t1, seed), grouped so that equal structures share a compilation."""
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


def right(result: fs.Result, name: str) -> bool:
    """Whether this status is a right end for this problem."""
    if result.status.ok:
        finite = all(np.isfinite(v).all() for k, v in result.series.items() if k != "log_gamma")
        return finite
    return result.status.code is fs.Status.GAMMA_ONE and "matched" not in name.split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", default=None)
    arguments = parser.parse_args()
    rows = []
    for name, flow, start, t1, seed in problems():
        result = fs.simulate(flow, start, t1=t1, seed=seed, throw=False)
        # The second run is without compilation.
        again = time.perf_counter()
        result = fs.simulate(flow, start, t1=t1, seed=seed, throw=False)
        seconds = time.perf_counter() - again
        rows.append(
            {
                "problem": name, "status": result.status.code.name, "right": right(result, name),
                "stopped_at": result.status.stopped_at, "method": result.status.method,
                "steps": result.stats["steps"], "rejected": result.stats["rejected"],
                "seconds": round(seconds, 3), "gap": float(result.series["modality_gap"][-1]),
                "conserved_residual": result.stats.get("conserved_residual"),
            }
        )  # fmt: skip
        row = rows[-1]
        print(
            f"{name:34s} {row['status']:10s} {row['steps']:6d} steps {seconds:7.2f} s  {row['method']}",
            flush=True,
        )
    seconds = [r["seconds"] for r in rows]
    wrong = [r["problem"] for r in rows if not r["right"]]
    print(
        f"\n{len(rows)} problems, {len(rows) - len(wrong)} with a right status; "
        f"median {np.median(seconds):.2f} s, worst {max(seconds):.2f} s"
    )
    if wrong:
        print("wrong:", ", ".join(wrong))
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
