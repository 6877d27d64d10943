"""The doctor's confusion table: what it finds in runs with planted faults and in healthy ones, over several seeds.

    python benchmarks/doctor.py --seeds 3 4 5 6 7 --out benchmarks/results/doctor.json

The thresholds of the checks were chosen on seeds 0 to 2, which the tests use. Runs take about two seconds each.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import planted_faults  # pyright: ignore[reportMissingImports]

import flowsim as fs
from flowsim.base.files import write_text


def measure(seeds: list[int]) -> dict[str, Any]:
    """Counts of runs, of findings of the planted fault, and of other findings, by what was planted."""
    faults, healthy = {}, {}
    for name in planted_faults.FAULTS:
        found = [fs.diagnose(planted_faults.FAULTS[name](seed)) for seed in seeds]
        others = Counter(other for one in found for other in one.faults if other != name)
        hits = sum(one[name].found for one in found)
        faults[name] = {"runs": len(seeds), "found": hits, "others": dict(others), "remark": not found[0][name].fault}
        print(f"{name:<32} {faults[name]['found']} of {len(seeds)}   others: {dict(others) or 'none'}", flush=True)
    for preset in planted_faults.HEALTHY:
        alarms = [fs.diagnose(planted_faults.run(preset, seed)).faults for seed in seeds]
        healthy[preset] = {"runs": len(seeds), "alarms": sum(bool(one) for one in alarms)}
        names = sorted({other for one in alarms for other in one})
        print(f"healthy: {preset:<23} {healthy[preset]['alarms']} alarms in {len(seeds)} {names or ''}", flush=True)
    return {"seeds": seeds, "faults": faults, "healthy": healthy}


def main() -> None:
    """Measure, print, and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5, 6, 7])
    parser.add_argument("--out", help="file for the counts, .json")
    given = parser.parse_args()
    found = measure(given.seeds)
    if given.out:
        write_text(given.out, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
