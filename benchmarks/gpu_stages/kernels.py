"""Stage `kernels`: tangent kernels of both towers during training, and what they forecast.

    python benchmarks/gpu_stages/kernels.py --out DIR [--data FOLDER] [--patch 16] [--lr 1.5e-3] [--steps 600]

The Baseline and a fixed temperature train the model of the study (ViT and text transformer on photos) with batches of
256; kernels of 256 pairs are measured eight times. `kernel_runs.nc` holds the records, with float32 matrices. A part
`compared` holds what `fs.compare` finds in each of them. `--data FOLDER` holds photos and captions; without it
generated shapes are used.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the GPU is PyTorch's

import time
from typing import Any

from record import Record, has_gpu
from runs import settings_of

import flowsim as fs
from flowsim.clip.training import train
from flowsim.records.load import save_results
from flowsim.records.result import TrainingRecord

METHODS = ("Baseline", "FLT 4e-2")
#: Items of a comparison.
ITEMS = ("kernel_simulation", "forecast")


def trained(record: Record, steps: int, pairs: int) -> dict[str, Any]:
    """Train each method; seconds, and the measured rates by name."""
    given = record.options
    base = settings_of(given.data, record.tiny, given.patch, given.lr).replace(
        steps=steps, kernels=8, kernel_pairs=pairs, kernel_directions=2, evaluations=60, observables="gap",
        snapshot_pairs=pairs, augment="centre", captions="first", labelled=None,
    )  # fmt: skip
    records: dict[str, TrainingRecord] = {}
    found: dict[str, Any] = {}
    for method in METHODS:
        begin = time.monotonic()
        run = train(base, method, cpu=not has_gpu())
        records[method] = run
        found[method] = {
            "seconds": time.monotonic() - begin,
            "training_seconds": run.stats["training_seconds"],
            "kernel_seconds": run.stats["kernel_seconds"],
            "step": run.kernel_step,
            **{name: values for name, values in run.kernels.items() if values.ndim == 1},
        }
    save_results(records, record.out / "kernel_runs.nc")
    return found


def compared(record: Record) -> dict[str, Any]:
    """Numbers of the items of `fs.compare` for each run."""
    records = fs.load_results(record.out / "kernel_runs.nc")
    return {
        method: {
            name: {"verdict": item.verdict, "sentence": item.sentence, **item.numbers}
            for name, item in fs.compare(run, parts=ITEMS).items.items()
        }
        for method, run in records.items()
    }


def main() -> None:
    record = Record(__doc__, data="", patch=16, lr=1.5e-3, steps=600)
    steps, pairs = (30, 8) if record.tiny else (record.options.steps, 256)
    if record.part("trained", lambda: trained(record, steps, pairs), needs=0 if record.tiny else 60) is not None:
        record.part("compared", lambda: compared(record), needs=0 if record.tiny else 30)
    record.finish()


if __name__ == "__main__":
    main()
