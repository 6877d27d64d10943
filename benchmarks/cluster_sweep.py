"""A sweep on threads, processes and a dask cluster of this machine: seconds, and whether the numbers are the same.

    python benchmarks/cluster_sweep.py [--runs 4096] [--workers 1 2] [--repeats 7] [--json FILE]

4,096 starts of five pairs to t = 1e6. Timing begins after the workers have started; their first sweep, which compiles,
is not timed. The dask cluster (extra `cluster`) consists of processes with one thread each.
"""

import argparse
import contextlib
import json
import os
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

import flowsim as fs

TIMES = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 32)])


def solve(runs: int, **where: Any) -> np.ndarray:
    flow, start = fs.GradientFlow(), fs.initial.uniform(pairs=5, dim=3)
    found = fs.sweep(flow, start, {"seed": range(runs)}, ts=TIMES, rtol=1e-6, atol=1e-9, **where)
    return found["modality_gap"].to_numpy()


@contextlib.contextmanager
def threads(count: int) -> Iterator[dict[str, Any]]:
    yield {"workers": count}


@contextlib.contextmanager
def processes(count: int) -> Iterator[dict[str, Any]]:
    with ProcessPoolExecutor(count, get_context("spawn")) as pool:
        yield {"executor": pool}


@contextlib.contextmanager
def dask(count: int) -> Iterator[dict[str, Any]]:
    from distributed import Client, LocalCluster

    options = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        yield {"executor": client}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=4096)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    expected, lines = solve(options.runs), []
    for kind in (threads, processes, dask):
        for count in options.workers:
            seconds = []
            try:
                with kind(count) as where:
                    found = solve(options.runs, **where)
                    for _ in range(options.repeats):
                        begin = time.perf_counter()
                        found = solve(options.runs, **where)
                        seconds.append(time.perf_counter() - begin)
            except ImportError:
                print(f"{kind.__name__:10s} not installed")
                continue
            low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
            equal = np.array_equal(found, expected)
            lines.append({"kind": kind.__name__, "workers": count, "seconds": seconds, "same_bits": equal})
            same = "same bits" if equal else "OTHER NUMBERS"
            print(f"{kind.__name__:10s} {count} workers {low:7.2f} / {middle:7.2f} / {high:7.2f} s  {same}", flush=True)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"runs": options.runs, "lines": lines}, file, indent=1)


if __name__ == "__main__":
    main()
