"""Many trajectories at once: `fs.sweep` against SciPy's best method for one trajectory, at equal error.

    python benchmarks/ensembles.py [--runs 1024] [--repeats 7] [--json FILE]

The problem: `Sphere`, learnable temperature (β = e^ν, τ0 = 0.07), rows drawn from the uniform distribution, to
t = 1e6, 33 output times. The error is the largest difference of the gap from SciPy's DOP853 at rtol 1e-12, over output
times and the first trajectories. Each solver runs at the loosest tolerance that keeps the error below `--error`.
SciPy integrates a NumPy closed form of the same field in the same variable ln(1 + t), one trajectory after another in
one thread; `sweep` uses all cores. Times are per trajectory, after compilation; the solvers alternate within one run.

The floor is the minimal cost of the field evaluations: six times one exponential and three products for each accepted
step of Tsit5, with the same number of trajectories in parallel as in `sweep`, on all cores.
"""

import argparse
import json
import math
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("OMP_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.integrate.sweep import lanes_of

#: Output times.
TIMES = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 32)])
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9)
SIZES = ((5, 3), (16, 8), (32, 8))
#: Numbers of trajectories for the error and for the timing of SciPy.
CHECKED = 16


def peer(n: int, d: int):
    """The field of ln(1 + t) for SciPy: rows and ν in one vector."""

    def field(s: float, y: np.ndarray) -> np.ndarray:
        image, text, beta = y[: n * d].reshape(n, d), y[n * d : -1].reshape(n, d), math.exp(y[-1])
        similarity = image @ text.T
        weights = np.exp(beta * (similarity - 1))  # rejected steps may leave the sphere
        weights = 0.5 * (weights / weights.sum(1, keepdims=True) + weights / weights.sum(0))
        weights[np.diag_indices(n)] -= 1
        weights /= n
        raw = -beta * np.vdot(weights, similarity)
        weights *= -beta
        along_image, along_text = weights @ text, weights.T @ image
        along_image -= np.sum(along_image * image, 1, keepdims=True) * image
        along_text -= np.sum(along_text * text, 1, keepdims=True) * text
        return math.exp(s) * np.concatenate([along_image.ravel(), along_text.ravel(), [raw]])

    return field


def peer_gap(n: int, d: int, start: fs.initial.Start, method: str, rtol: float) -> np.ndarray:
    image, text = start.rows()
    y0 = np.concatenate([np.ravel(image), np.ravel(text), [-math.log(0.07)]])
    s = np.log1p(TIMES)
    found = solve_ivp(peer(n, d), (s[0], s[-1]), y0, method, s, rtol=rtol, atol=1e-3 * rtol)
    image, text = found.y[: n * d].reshape(n, d, -1), found.y[n * d : -1].reshape(n, d, -1)
    return np.linalg.norm(image.mean(0) - text.mean(0), axis=0)


def ours(n: int, d: int, runs: int, rtol: float, **options) -> fs.SweepResult:
    flow, start = fs.GradientFlow(), fs.initial.uniform(pairs=n, dim=d)
    found = fs.sweep(
        flow,
        start,
        {"seed": range(runs)},
        ts=TIMES,
        rtol=rtol,
        atol=1e-3 * rtol,
        observables=("modality_gap",),
        **options,
    )
    assert found.ok, found.counts
    return found


def floor(n: int, d: int, steps: float) -> float:
    """Minimal seconds for the field evaluations of a trajectory with this number of steps."""
    lanes, cores, count = lanes_of(n), os.cpu_count() or 1, 200
    rows = np.random.default_rng(0).standard_normal((2, lanes, n, d))

    @jax.jit
    def program(x, y):
        def evaluation(_, rows):
            x, y = rows
            weights = jnp.exp(x @ y.mT)
            return x + 1e-9 * (weights @ y), y + 1e-9 * (weights.mT @ x)

        return jax.lax.fori_loop(0, count, evaluation, (x, y))

    with jax.enable_x64(True), ThreadPoolExecutor(cores) as pool:
        x, y = (jnp.asarray(z / np.linalg.norm(z, axis=-1, keepdims=True)) for z in rows)
        jax.block_until_ready(program(x, y))
        # 64-bit mode is set per thread; the program is already compiled.
        begin = time.perf_counter()
        for out in [pool.submit(program.lower(x, y).compile(), x, y) for _ in range(4 * cores)]:
            jax.block_until_ready(out.result())
        seconds = time.perf_counter() - begin
    return 6 * steps * seconds / (4 * cores * count * lanes)


def measure(n: int, d: int, runs: int, repeats: int, limit: float) -> dict:
    recipe = fs.initial.uniform(pairs=n, dim=d)
    starts = [recipe.draw(seed) for seed in range(CHECKED)]
    exact = np.array([peer_gap(n, d, start, "DOP853", 1e-12) for start in starts])
    report: dict = {"pairs": n, "dim": d, "runs": runs, "error_limit": limit}

    def error(gap: np.ndarray) -> float:
        return float(np.abs(gap - exact).max())

    peers = {}
    for method in ("LSODA", "RK45", "DOP853", "BDF", "Radau"):
        for rtol in TOLERANCES:
            begin = time.perf_counter()
            peer_gap(n, d, starts[0], method, rtol)
            # Too slow: implicit methods build dense Jacobians.
            if peers and time.perf_counter() - begin > 4 * min(p["seconds"] for p in peers.values()):
                break
            begin = time.perf_counter()
            gap = np.array([peer_gap(n, d, start, method, rtol) for start in starts])
            if error(gap) <= limit:
                seconds = (time.perf_counter() - begin) / CHECKED
                peers[method] = {"seconds": seconds, "rtol": rtol, "error": error(gap)}
                break
    best = min(peers, key=lambda m: peers[m]["seconds"])
    report["scipy"] = peers
    enough = (r for r in TOLERANCES if error(ours(n, d, CHECKED, r)["modality_gap"].to_numpy()) <= limit)
    rtol = next(enough, TOLERANCES[-1])
    begin = time.perf_counter()
    full = ours(n, d, runs, rtol)
    report["first_call_seconds"] = time.perf_counter() - begin
    steps = float(full["steps"].mean())
    report["ours"] = {"rtol": rtol, "error": error(full["modality_gap"].to_numpy()[:CHECKED]), "steps": steps}
    mine, theirs, least = [], [], []
    for _ in range(repeats):
        begin = time.perf_counter()
        ours(n, d, runs, rtol)
        mine.append((time.perf_counter() - begin) / runs)
        least.append(floor(n, d, steps))
        begin = time.perf_counter()
        for start in starts:
            peer_gap(n, d, start, best, peers[best]["rtol"])
        theirs.append((time.perf_counter() - begin) / CHECKED)
    ratios = [b / a for a, b in zip(mine, theirs, strict=True)]
    above = [a / b for a, b in zip(mine, least, strict=True)]
    for name, values, scale in (
        ("ours_ms", mine, 1e3),
        ("scipy_ms", theirs, 1e3),
        ("ratio", ratios, 1),
        ("floor_ms", least, 1e3),
        ("to_floor", above, 1),
    ):
        report[name] = [scale * f(values) for f in (min, statistics.median, max)]
    report["best"] = best
    report["by_runs_ms"] = {}
    for few in (1, 16, 128):
        ours(n, d, few, rtol)
        begin = time.perf_counter()
        ours(n, d, few, rtol)
        report["by_runs_ms"][few] = 1e3 * (time.perf_counter() - begin) / few
    return report


@np.errstate(over="ignore", invalid="ignore")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=[f"{n},{d}" for n, d in SIZES])
    parser.add_argument("--runs", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--error", type=float, default=1e-6)
    parser.add_argument("--json")
    options = parser.parse_args()
    reports = []
    for size in options.sizes:
        n, d = (int(x) for x in size.split(","))
        report = measure(n, d, options.runs, options.repeats, options.error)
        reports.append(report)
        print(f"n = {n}, d = {d}: error <= {options.error:g}")
        for method, one in report["scipy"].items():
            print(
                f"    SciPy {method:<7} {1e3 * one['seconds']:8.2f} ms  rtol {one['rtol']:g}  error {one['error']:.1e}"
            )
        print(f"    sweep          rtol {report['ours']['rtol']:g}  error {report['ours']['error']:.1e}")
        for name, text in (
            ("scipy_ms", f"{report['best']} ms"),
            ("ours_ms", "sweep ms"),
            ("ratio", "ratio"),
            ("floor_ms", "floor ms"),
            ("to_floor", "sweep/floor"),
        ):
            print(f"    {text:<14} min {report[name][0]:.3f}, median {report[name][1]:.3f}, max {report[name][2]:.3f}")
        print(f"    first call with {options.runs} runs {report['first_call_seconds']:.2f} s", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(reports, file, indent=2)


if __name__ == "__main__":
    main()
