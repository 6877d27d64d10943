"""Parts of `simulator.py` that need a process of their own: peers on two cores, and runs whose memory is measured.

    python benchmarks/gpu_stages/simulator_helper.py peers CORES TINY SIZES | solve PAIRS DTYPE | sweep RUNS

Prints one JSON object after every size; the last one counts.
"""

import os
import sys

if sys.argv[1] == "peers":
    os.environ |= {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if sys.argv[2] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in sys.argv[2].split(",")})
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent))

import ensembles  # noqa: E402
import jax  # noqa: E402

import flowsim as fs  # noqa: E402


@np.errstate(over="ignore", invalid="ignore")
def peers(sizes: list[tuple[int, int]], tiny: bool) -> None:
    """Seconds per trajectory of SciPy's best method, and of `fs.sweep`, at errors below 1e-6."""
    found: dict[str, Any] = {}
    for n, d in sizes:
        with np.load(_HERE / "exact_gaps.npz") as held:
            count = 2 if tiny else ensembles.CHECKED
            exact, rows = held[f"gap_{n}_{d}"][:count], held[f"rows_{n}_{d}"]
        starts = [fs.initial.uniform(pairs=n, dim=d).draw(seed) for seed in range(count)]
        assert all((np.asarray(s.rows()) == r).all() for s, r in zip(starts, rows, strict=False)), "other starts"
        methods: dict[str, Any] = {}
        for method in ("LSODA",) if tiny else ("LSODA", "RK45", "DOP853"):
            for rtol in ensembles.TOLERANCES:
                begin = time.perf_counter()
                ensembles.peer_gap(n, d, starts[0], method, rtol)
                once = time.perf_counter() - begin
                if methods and once > 2 * min(m["seconds"] for m in methods.values()):
                    break
                error = max(
                    float(np.abs(ensembles.peer_gap(n, d, s, method, rtol) - e).max())
                    for s, e in zip(starts, exact, strict=True)
                )
                if error < 1e-6:
                    spent = []
                    for _ in range(1 if tiny else 3):
                        begin = time.perf_counter()
                        for start in starts:
                            ensembles.peer_gap(n, d, start, method, rtol)
                        spent.append((time.perf_counter() - begin) / count)
                    methods[method] = {"seconds": statistics.median(spent), "rtol": rtol, "error": error}
                    break
        runs, rtol, error = 16 if tiny else 1024, np.nan, np.nan
        for rtol in ensembles.TOLERANCES[3 if tiny else 2 :]:
            first = ensembles.ours(n, d, count, rtol, workers=2)
            error = float(np.abs(first["modality_gap"].to_numpy() - exact).max())
            if error < 1e-6:
                break
        spent = []
        for _ in range(2 if tiny else 4):
            begin = time.perf_counter()
            ensembles.ours(n, d, runs, rtol, workers=2)
            spent.append((time.perf_counter() - begin) / runs)
        best = min(methods, key=lambda m: methods[m]["seconds"])
        found[f"{n},{d}"] = {
            "scipy": methods,
            "best": best,
            "scipy_seconds": methods[best]["seconds"],
            "sweep_seconds": statistics.median(spent[1:]),
            "sweep_rtol": rtol,
            "sweep_error": error,
            "sweep_runs": runs,
        }
        print(json.dumps(found), flush=True)


def solve(pairs: int, dtype: str) -> None:
    """`fs.simulate` of many pairs for a short time, in tiles: seconds and peak memory of the device."""
    start = fs.initial.uniform(pairs=pairs, dim=64).draw(0)
    precision: Any = dtype
    begin = time.perf_counter()
    ran = fs.simulate(fs.GradientFlow(), start, ts=[0.0, 1e-3], rtol=1e-3, precision=precision)
    first = time.perf_counter() - begin
    memory = jax.devices()[0].memory_stats() or {}
    found = {
        "pairs": pairs,
        "dtype": dtype,
        "backend": jax.default_backend(),
        "first_call_seconds": first,
        "run_seconds": ran.stats["run_seconds"],
        "compile_seconds": ran.stats["compile_seconds"],
        "steps": ran.stats["steps"],
        "rejected": ran.stats["rejected"],
        "peak_bytes": memory.get("peak_bytes_in_use"),
        "status": ran.status.code.name,
        "final": {name: ran.final[name] for name in ("modality_gap", "temperature", "loss")},
    }
    print(json.dumps(found), flush=True)
    begin = time.perf_counter()
    fs.simulate(fs.GradientFlow(), start, ts=[0.0, 1e-3], rtol=1e-3, precision=precision)
    print(json.dumps({**found, "second_call_seconds": time.perf_counter() - begin}), flush=True)


def sweep(runs: int) -> None:
    """`fs.sweep` as it is, on the default device: its batches are made for the caches of processors."""
    ensembles.ours(5, 3, 64, 1e-6)
    begin = time.perf_counter()
    ensembles.ours(5, 3, runs, 1e-6)
    seconds = time.perf_counter() - begin
    backend = jax.default_backend()
    print(json.dumps({"backend": backend, "runs": runs, "milliseconds_per_run": 1e3 * seconds / runs}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "peers":
        wanted = [tuple(map(int, one.split(","))) for one in sys.argv[4].split(";")]
        peers([(n, d) for n, d in wanted], sys.argv[3] == "1")
    elif sys.argv[1] == "solve":
        solve(int(sys.argv[2]), sys.argv[3])
    else:
        sweep(int(sys.argv[2]))
