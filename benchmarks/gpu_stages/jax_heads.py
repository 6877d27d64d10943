"""Stage `jax_heads`: `fs.heads.study` on a GPU, all 26 settings with three seeds in stacks of runs of one structure.

The same runs as in the stage `heads`, by JAX and with flowsim's own heads: a study in stacks, and the speed of one run
and of a stack. `--data FILE.npz` holds features as `fs.data.load` reads them; without it, random ones are drawn.
"""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from record import Record

import flowsim as fs
from flowsim.clip.tables import Tables
from flowsim.heads.learner import Learner, flow_of
from flowsim.heads.pools import Pools
from flowsim.heads.studies import study

#: Processes, because programs of ten structures have to be compiled.
JOBS = max(1, min(6, (os.cpu_count() or 1) // 2))


def random_features(pairs: int) -> fs.data.Features:
    """Features of pairs that share some directions."""
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((pairs, 16))
    image = shared @ rng.standard_normal((16, 64)) + 2
    text = shared[:, None] @ rng.standard_normal((16, 32)) + 0.5 * rng.standard_normal((pairs, 5, 32)) - 2
    split = np.where(np.arange(pairs) < 0.8 * pairs, "train", "test")
    return fs.data.from_arrays(image.astype(np.float16), text.astype(np.float16), split=split)


def speed(settings: fs.heads.Training, runs: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step and pairs per second of a stack of runs."""
    pools = Pools.of(settings)
    flow = flow_of(settings, fs.schedules.get("Baseline"))
    plan = settings.replace(steps=2 * steps).plan(pools.training.pairs)
    learner = Learner(settings, [flow] * runs, list(range(runs)), pools.training, plan)
    learner.advance(0, min(learner.block, steps))  # compiles
    begin = time.perf_counter()
    for k in range(0, steps, learner.block):
        learner.advance(k, min(k + learner.block, steps))
    seconds = time.perf_counter() - begin
    return {"ms_per_step": 1000 * seconds / steps, "pairs_per_second": runs * steps * settings.batch_size / seconds}


def main() -> None:
    record = Record(__doc__, data="", work="")
    given, tiny = record.options, record.tiny
    data = random_features(400 if tiny else 7000) if tiny or not given.data else fs.data.load(given.data)
    settings = fs.heads.Training(data=data, snapshot_pairs=0, evaluations=4)
    if tiny:
        settings = settings.replace(steps=8, batch_size=32, hidden=16, dim=8, pairs=50)

    begun = time.perf_counter()

    def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        print(f"{time.perf_counter() - begun:.0f} s: {text}, step {done} of {total}", flush=True)

    def all_settings() -> dict[str, Any]:
        begin = time.perf_counter()
        folder = Path(given.work) if given.work else record.out
        out, seeds = folder / "jax_heads", range(2 if tiny else 3)
        names = ["Baseline", "FLT 4e-2", "TS S3", "No normalization"] if tiny else "all"
        tables = Tables.of(study(settings, out, names, seeds, stack=32, jobs=JOBS, progress=show))
        seconds = time.perf_counter() - begin
        values = {name: values for name, values in tables.values.items() if np.isfinite(values).any()}
        return {"seconds": seconds, "steps": tables.steps, "methods": tables.methods, "values": values}

    for runs in (1, 3) if tiny else (1, 8, 32):
        record.part(f"speed of {runs}", lambda runs=runs: speed(settings, runs, 8 if tiny else 192), 0 if tiny else 10)
    record.part("all settings", all_settings, 0 if tiny else 60)
    record.finish()


if __name__ == "__main__":
    main()
