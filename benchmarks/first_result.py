"""Waiting time of a user: for the first result of a process, and for the same problem with other numbers.

    python benchmarks/first_result.py [--repeats 7]

A process imports flowsim and simulates the default problem (Figure 2 to t = 1e5). *First ever*: with an empty cache of
compiled programs; *second process*: with the cache filled by the first. *Again*: in one process, after its first call,
each time with another temperature and another height; nothing is compiled. `import diffrax` is the peer of the import.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

CODE = """
import json, time
begin = time.perf_counter()
import numpy as np
import flowsim as fs
def solve(temperature, height):
    flow = fs.GradientFlow(schedule=fs.temperature.Learnable(temperature))
    return fs.simulate(flow, fs.initial.rings(pairs=5, height=height, twist=-144), t1=1e5)
solve(0.07, 0.309)
first = time.perf_counter() - begin
again = []
for temperature, height in zip(np.linspace(0.05, 0.2, {again}), np.linspace(0.2, 0.5, {again})):
    begin = time.perf_counter()
    solve(temperature, height)
    again.append(time.perf_counter() - begin)
print(json.dumps([first, again]))
"""


def process(code: str, cache: str) -> tuple[float, str]:
    """Seconds from start to end of a fresh process, and what it printed."""
    begin = time.perf_counter()
    environment = {**os.environ, "FLOWSIM_CACHE": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - begin, done.stdout


def show(name: str, values: list[float], scale: float, unit: str) -> None:
    """One line: minimum, median, maximum."""
    low, middle, high = min(values), statistics.median(values), max(values)
    print(f"{name:46s} {scale * low:8.2f} / {scale * middle:8.2f} / {scale * high:8.2f} {unit}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    ever, second, imports, peers, again = [], [], [], [], []
    print("minimum / median / maximum")
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as cache:
            ever.append(process(CODE.format(again=0), cache)[0])
            seconds, printed = process(CODE.format(again=7), cache)
            second.append(seconds - sum(json.loads(printed)[1]))
            again += json.loads(printed)[1]
            imports.append(process("import flowsim; flowsim.simulate", cache)[0])
            peers.append(process("import diffrax", cache)[0])
    show("first ever, the whole process", ever, 1, "s")
    show("second process, the whole of it", second, 1, "s")
    show("again with other numbers", again, 1e3, "ms")
    show("import flowsim, and simulate from it", imports, 1, "s")
    show("import diffrax", peers, 1, "s")
    show("ratio of the imports", [a / b for a, b in zip(imports, peers, strict=True)], 1, "")


if __name__ == "__main__":
    main()
