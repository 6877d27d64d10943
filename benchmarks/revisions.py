"""Two revisions of flowsim against each other: import, first result, single runs, sweeps.

    git worktree add ../old REVISION
    python benchmarks/revisions.py ../old . [--repeats 5]

Each measurement is a process of its own with one of the checkouts on its path; the two alternate, so that a machine
that is busy for a while slows down both. Printed are medians in seconds and the ratio second/first, with the smallest
and largest ratio of a pair. The disk cache of compiled programs is off.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

#: Name -> code that prints seconds. `fs` and `time` are imported before, except for the first.
MEASUREMENTS = {
    "import flowsim": "import time; begin = time.perf_counter(); import flowsim as fs; fs.GradientFlow, fs.simulate",
    "first result": "fs.simulate(fs.GradientFlow(), fs.initial.rings(), t1=1e5)",
    "one run, 5 pairs": "repeat(30, lambda i: fs.simulate(flow(i), fs.initial.rings(), t1=1e5))",
    "one run, 64 pairs": "repeat(5, lambda i: fs.simulate(flow(i), fs.initial.uniform(pairs=64, dim=16), t1=1e4))",
    "parallel cones to 1e30": "repeat(20, lambda i: fs.simulate(flow(i, fs.Parallel()), matched, t1=1e30))",
    "sweep of 64 runs": "repeat(3, lambda i: fs.sweep(flow(i), start, {'seed': range(64)}, ts=[0.0, 1e4]))",
    "sweep of 512 runs": "repeat(2, lambda i: fs.sweep(flow(i), start, {'seed': range(512)}, ts=[0.0, 1e4]))",
}
#: The first call of `repeat` compiles and is not counted.
PREAMBLE = """
import statistics, time
import flowsim as fs
start, matched = fs.initial.uniform(pairs=8, dim=8), fs.initial.matched(8, 4)

def flow(i, geometry=fs.Sphere()):
    return fs.GradientFlow(geometry, fs.temperature.Learnable(0.07 + 1e-6 * i))

def repeat(count, call):
    times = []
    for i in range(count + 1):
        begin = time.perf_counter()
        call(i)
        times.append(time.perf_counter() - begin)
    print(statistics.median(times[1:]))
"""


def measure(name: str, code: str, checkout: Path) -> float:
    """Seconds of one measurement in a process of its own."""
    if name == "import flowsim":
        program = f"{code}; print(time.perf_counter() - begin)"
    elif name == "first result":
        program = f"{PREAMBLE}\nbegin = time.perf_counter()\n{code}\nprint(time.perf_counter() - begin)"
    else:
        program = f"{PREAMBLE}\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(checkout.resolve()), "FLOWSIM_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd="/", check=False
    )
    if done.returncode:
        sys.exit(f"{name} in {checkout}:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="checkout of the older revision")
    parser.add_argument("second", type=Path, help="checkout of the newer revision")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    found = {}
    print(f"{'':<26}{'first':>10}{'second':>10}{'ratio':>8}   range")
    for name, code in MEASUREMENTS.items():
        pairs = [(measure(name, code, given.first), measure(name, code, given.second)) for _ in range(given.repeats)]
        first, second = (statistics.median(times) for times in zip(*pairs, strict=True))
        ratios = [b / a for a, b in pairs]
        found[name] = {"first": first, "second": second, "ratio": second / first, "ratios": ratios}
        print(
            f"{name:<26}{first:>10.4f}{second:>10.4f}{second / first:>8.2f}   {min(ratios):.2f} .. {max(ratios):.2f}",
            flush=True,
        )
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
