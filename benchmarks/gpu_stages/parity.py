"""The bridge against open_clip's own trainer on one device: the same losses, images per second, and peak memory.

    python benchmarks/gpu_stages/parity.py --out DIR [--seconds 75] [--tiny] [--data PHOTOS]

- `parity_...`: 50 steps from the same weights, batches and hyperparameters, with PyTorch's deterministic algorithms.
- `same_data_...`: images/s of both with the same batches in memory; at least 0.95 of open_clip's is wanted.
- `waits`: how often a step of the bridge waits for the device (none should).
- `own_loader_...`: images/s of the bridge with its data on the device, and of open_clip with its own loader (JPEG
  files, decoded, augmented and tokenized by workers); at least twice open_clip's is wanted.

Without --data the pairs are generated shapes. Both sides use PyTorch's settings as they are: fp32 is full precision in
matrix products, and TF32 in convolutions.
"""

import functools
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Read when PyTorch first uses the device; deterministic algorithms need it.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_HERE = Path(__file__).resolve().parent
WORKERS = 8


def main() -> None:
    begin_workers()
    sys.path.insert(0, str(_HERE.parent))
    from record import Record, has_gpu

    record = Record(__doc__, data="")
    cuda = has_gpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation warnings of other packages
        import open_clip_peer
        import torch
    from flowsim.clip.settings import Training, preset

    tiny = record.tiny
    if tiny:
        torch.set_num_threads(1)
    photos = record.options.data
    source = photos or ("shapes:count=96,size=32" if tiny else "shapes:count=3000,size=96")
    steps, batch, limit = (3, 8, 32) if tiny else (50, 512, 2048)
    small = Training(
        model="flowsim-vit-32" if tiny else str(_HERE / "vit-s16-96.json"), image_size=32 if tiny else 96, data=source,
        held_out="test", limit=limit, batch_size=batch, lr=5e-4, threads=1 if tiny else None,
    )  # fmt: skip
    resnet = preset("small-gpu").replace(data=source, limit=limit)
    if tiny:
        resnet = resnet.replace(model="flowsim-vit-32", image_size=32, batch_size=8, threads=1)
    vit = open_clip_peer.quiet(small, steps)
    bf16 = vit.replace(precision="bf16")

    def parity(settings: Training) -> dict[str, Any]:
        smaller = settings.replace(batch_size=min(settings.batch_size, 256))
        return deterministic(lambda: losses(smaller, cuda))

    def speed(settings: Training, seconds: float, steps: int) -> dict[str, Any]:
        settings = open_clip_peer.quiet(settings, 2 if tiny else steps)
        return open_clip_peer.compare(
            settings, 1 if tiny else 3, cuda, skip=0 if tiny else 25, warm=False, seconds=min(seconds, record.left - 3)
        )

    def own(settings: Training, seconds: float) -> dict[str, Any]:
        workers, skip = (1, 1) if tiny else (WORKERS, 25)
        settings = open_clip_peer.quiet(settings, 2 if tiny else skip + 60)
        with tempfile.TemporaryDirectory() as folder:
            return with_own_loader(
                settings, cuda, Path(folder), workers, skip, 1 if tiny else 3, min(seconds, record.left - 3)
            )

    for name, measure, needs in (
        ("parity_fp32", lambda: parity(vit), 10),
        ("parity_bf16", lambda: parity(bf16), 6),
        ("same_data_bf16", lambda: speed(bf16, 16, 85), 8),
        ("waits", lambda: waits(vit if tiny else bf16, cuda), 5),
        ("own_loader_bf16", lambda: own(bf16, 18), 10),
        ("same_data_resnet_bf16", lambda: speed(resnet, 14, 85), 12),
        ("same_data_fp32", lambda: speed(vit, 10, 50), 8),
        ("parity_resnet_bf16", lambda: parity(open_clip_peer.quiet(resnet, steps)), 8),
    ):
        record.part(name, measure, needs=1 if tiny else needs)
    record.finish()


def begin_workers() -> None:
    """Start the process from which workers come: it imports what they need while this one prepares."""
    known = [str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(known)
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(["own_loader"])
    forkserver.ensure_running()


def deterministic(measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Measure with PyTorch's deterministic algorithms."""
    import torch

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what has no deterministic algorithm
            return measure()
    finally:
        torch.use_deterministic_algorithms(False)


def losses(settings: Any, cuda: bool) -> dict[str, Any]:
    """How far the losses of both differ, and those of open_clip's trainer from themselves in a second run."""
    import open_clip_peer

    from flowsim.clip.training import train

    ours = train(settings, cpu=not cuda).training["train_loss"]
    theirs, _ = open_clip_peer.train(settings, cuda)
    again, _ = open_clip_peer.train(settings, cuda)
    same = open_clip_peer.differences(again, theirs)
    return {
        "model": Path(settings.model).stem,
        "batch": settings.batch_size,
        "precision": settings.precision,
        "steps": settings.steps,
        **open_clip_peer.differences(ours, theirs),
        "open_clip_with_itself": {key: same[key] for key in ("largest_relative_difference", "bitwise")},
    }


def with_own_loader(
    settings: Any, cuda: bool, folder: Path, workers: int, skip: int, repeats: int, seconds: float
) -> dict[str, Any]:
    """Images/s of the bridge, and of open_clip's trainer with its own loader on the same photos as files."""
    import open_clip_peer
    from own_loader import batches, write

    from flowsim.clip.pools import load_pools

    begin = time.monotonic()
    rows = write(folder, load_pools(settings)[0])
    found = open_clip_peer.compare(
        settings,
        repeats,
        cuda,
        own=lambda model, steps: batches(rows, model, settings.batch_size, steps, workers),
        skip=skip,
        warm=False,
        seconds=seconds - (time.monotonic() - begin),
    )
    return {**found, "workers": workers, "processors": os.cpu_count(), "files": len(set(rows[0]))}


def waits(settings: Any, cuda: bool) -> dict[str, Any]:
    """How often steps of the bridge wait for the device, by place in the code, for several schedules."""
    import torch

    import flowsim as fs
    from flowsim.clip.learner import Learner
    from flowsim.clip.training import train

    plain = Learner.take_step
    found: dict[str, Any] = {"steps": 6 if cuda else 1, "gpu": cuda}

    def watched(self: Any, k: int, *, where: Counter) -> Any:
        if not cuda or k < 2:  # the first steps allocate
            return plain(self, k)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                return plain(self, k)
            finally:
                torch.cuda.set_sync_debug_mode("default")
                for warning in heard:
                    if "called a synchronizing" in str(warning.message):
                        where[f"{Path(warning.filename).name}:{warning.lineno}"] += 1

    for name, schedule, changes in (
        ("Baseline", fs.schedules.get("Baseline"), {}),
        ("TS S3", fs.schedules.get("TS S3"), {}),
        ("HS 1", fs.schedules.get("HS 1"), {}),
        ("Baseline, images on the host", fs.schedules.get("Baseline"), {"preload": False}),
    ):
        where: Counter = Counter()
        Learner.take_step = functools.partialmethod(watched, where=where)  # pyright: ignore[reportAttributeAccessIssue]
        try:
            record = train(settings.replace(steps=found["steps"], **changes), schedule, cpu=not cuda)
        finally:
            Learner.take_step = plain
        found[name] = {"waits": sum(where.values()), "where": dict(where), "ended": record.status.code.name}
    return found


if __name__ == "__main__":
    main()
