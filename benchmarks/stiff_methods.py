"""The methods for stiff problems on some of the fixed set: seconds, steps, and how far their results differ.

    python benchmarks/stiff_methods.py [--repeats 7] [--once-above 20] [--json FILE]

Label noise at a fixed temperature has a true equilibrium: ln t grows while the curvature stays. With `automatic` the
explicit method takes the first 2,000 steps and the stabilised one (up to 200 unknowns the dense one) the rest. The
dense method is left out above 1,000 unknowns. Seconds are without compilation. Methods alternate; one whose first run
takes longer than `--once-above` seconds is run once.
"""

import argparse
import json
import statistics

import numpy as np
from solver_problems import problems

import flowsim as fs
from flowsim.integrate.methods import Method

NAMES = ("sphere noise 0.1", "Sphere (64, 16) LabelNoise fixed 0.3", "Parallel (128, 16) LabelNoise fixed 0.05")
METHODS: tuple[Method | None, ...] = (None, "implicit", "krylov", "stabilised")
DENSE = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--once-above", type=float, default=20.0)
    parser.add_argument("--json")
    options = parser.parse_args()
    rows = []
    for name, flow, start, t1, seed in problems():
        if name not in NAMES:
            continue
        results = {}
        unknowns = int(fs.simulate(flow, start, t1=1.0, seed=seed).stats["unknowns"])
        methods: list[Method | None] = [m for m in METHODS if m != "implicit" or unknowns <= DENSE]
        seconds: dict[Method | None, list[float]] = {m: [] for m in methods}
        for repeat in range(options.repeats + 1):
            for method in methods:
                if seconds[method] and seconds[method][0] > options.once_above:
                    continue
                results[method] = fs.simulate(flow, start, t1=t1, seed=seed, method=method, throw=False)
                taken = results[method].stats["run_seconds"]
                # The first run compiles; if it is long, its seconds without compilation are used.
                if repeat or taken > options.once_above:
                    seconds[method].append(taken)
        print(f"{name}: {unknowns} unknowns", flush=True)
        for method in methods:
            result, taken = results[method], seconds[method]
            apart = float(np.nanmax(np.abs(result["modality_gap"].values - results[None]["modality_gap"].values)))
            row = {
                "problem": name, "unknowns": unknowns, "method": method or "automatic", "seconds": taken,
                "status": result.status.code.name, "steps": result.stats["steps"], "apart": apart,
            }  # fmt: skip
            rows.append(row)
            low, middle, high = min(taken), statistics.median(taken), max(taken)
            print(
                f"  {row['method']:10s} {low:7.2f} / {middle:7.2f} / {high:7.2f} s ({len(taken)}), {row['steps']} "
                f"steps, {row['status']}, gap within {apart:.0e} of automatic",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
