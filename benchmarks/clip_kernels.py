"""What measured kernels cost: seconds of eight measurements relative to those of a laptop run.

    python benchmarks/clip_kernels.py [--data FOLDER] [--steps 60]

Takes `--steps` steps of the preset `laptop` (generated shapes without `--data`) with kernels measured eight times, and
relates the time of the measurements to that of the preset's 3,000 steps and their evaluations.
"""

import argparse
import json

import flowsim as fs
from flowsim.clip.training import train

MEASUREMENTS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="shapes:count=3000,size=64")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    preset = fs.clip.preset("laptop")
    short = preset.replace(data=options.data, steps=options.steps, evaluations=2, kernels=MEASUREMENTS)
    run = train(short, "Baseline", cpu=True)
    per_step = run.stats["training_seconds"] / options.steps
    per_evaluation = run.stats["evaluation_seconds"] / len(run.time)
    per_kernel = run.stats["kernel_seconds"] / len(run.kernel_step)
    whole = preset.total_steps(preset.limit or 0) * per_step + preset.evaluations * per_evaluation
    found = {
        "seconds_per_step": per_step,
        "seconds_per_evaluation": per_evaluation,
        "seconds_per_measurement": per_kernel,
        "share_of_a_laptop_run": MEASUREMENTS * per_kernel / whole,
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
