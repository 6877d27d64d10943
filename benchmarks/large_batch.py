"""Value and gradient of InfoNCE for large batches: seconds and peak memory, in tiles, with n×n matrices, in NumPy.

    python benchmarks/large_batch.py [--pairs 256 512 ...] [--dim 64] [--repeats 7] [--kinds tiled dense numpy]
        [--single] [--devices 1] [--json FILE]

Every line is measured in a fresh process, whose peak memory (VmHWM) includes Python, JAX and the compiler; the
first call, which compiles, is not timed. Above `--once-above` pairs there is only this first call, which is timed
including compilation (one or two seconds). `numpy` is a direct implementation: n×n logits, two softmaxes, four matrix
products. CPU time, summed over all threads, hardly depends on other work.
"""

import argparse
import json
import math
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BETA = 1 / 0.07


def rows_of(pairs: int, dim: int, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of images, and of texts near them."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((pairs, dim))
    text = image + rng.standard_normal((pairs, dim))
    image, text = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (image, text))
    return image, text


def plain(image: np.ndarray, text: np.ndarray) -> tuple[Any, ...]:
    """(L, ∂L/∂X, ∂L/∂Y, ∂L/∂β) in NumPy."""
    n = len(image)
    similarity = image @ text.T
    logits = similarity * image.dtype.type(BETA)
    value, gradient = 0.0, -2 * np.eye(n, dtype=image.dtype)
    for axis in (0, 1):
        largest = logits.max(axis, keepdims=True)
        e = np.exp(logits - largest)
        total = e.sum(axis, keepdims=True)
        value += float((np.log(total) + largest).sum() - np.trace(logits))
        gradient += e / total
    gradient /= 2 * n
    return value / (2 * n), BETA * gradient @ text, BETA * gradient.T @ image, np.sum(gradient * similarity)


def prepared(kind: str, image: np.ndarray, text: np.ndarray, devices: int) -> Callable[[], Any]:
    """The call to time."""
    if kind == "numpy":
        return lambda: plain(image, text)
    import jax
    import jax.numpy as jnp

    from flowsim.model.losses import InfoNCE
    from flowsim.model.pairing import Targets
    from flowsim.numerics import tiled

    jax.config.update("jax_enable_x64", image.dtype == np.float64)

    def dense(x: Any, y: Any, beta: Any) -> Any:
        similarity, loss = x @ y.T, InfoNCE()
        gradient = loss.gradient(beta * similarity, Targets())
        value = loss.value(beta * similarity, Targets())
        return value, beta * (gradient @ y), beta * (gradient.T @ x), jnp.sum(gradient * similarity)

    given = (jnp.asarray(image), jnp.asarray(text), jnp.asarray(BETA, image.dtype))
    mesh = None
    if devices > 1:
        mesh = tiled.mesh_of(jax.devices()[:devices])
        given = tiled.spread(given, mesh, len(image))
    function = jax.jit(dense if kind == "dense" else lambda x, y, b: tiled.loss_and_gradient(x, y, b, mesh=mesh))
    return lambda: jax.block_until_ready(function(*given))


def measure(kind: str, pairs: int, dim: int, repeats: int, single: bool, devices: int) -> dict[str, Any]:
    """One line, in this process."""
    call = prepared(kind, *rows_of(pairs, dim, np.float32 if single else np.float64), devices)
    value, seconds, busy = math.nan, [], []
    for index in range(repeats + 1):
        begin = time.perf_counter(), time.process_time()
        value = float(call()[0])
        if index or repeats == 0:
            seconds.append(time.perf_counter() - begin[0])
            busy.append(time.process_time() - begin[1])
    held = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    assert held is not None
    peak = int(held[1]) / 1024
    return {"kind": kind, "pairs": pairs, "value": value, "seconds": seconds, "busy": busy, "peak_mib": round(peak)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pairs", type=int, nargs="+", default=[256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--once-above", type=int, default=8192)
    parser.add_argument("--kinds", nargs="+", default=["tiled", "dense", "numpy"])
    parser.add_argument("--single", action="store_true", help="float32 instead of float64")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--json", default=None)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    same = ["--dim", str(options.dim), "--devices", str(options.devices), *["--single"] * options.single]
    if options.here:
        kind, pairs = options.kinds[0], options.pairs[0]
        print(json.dumps(measure(kind, pairs, options.dim, options.repeats, options.single, options.devices)))
        return
    lines = []
    for pairs in options.pairs:
        for kind in options.kinds:
            repeats = options.repeats if pairs <= options.once_above else 0
            command = [sys.executable, __file__, "--here", "--kinds", kind, "--pairs", str(pairs)]
            done = subprocess.run([*command, "--repeats", str(repeats), *same], capture_output=True, text=True)
            if done.returncode:
                print(f"{kind:6s} {pairs:8d} pairs: failed, {done.stderr.strip().splitlines()[-1:]}", flush=True)
                continue
            lines.append(line := json.loads(done.stdout.splitlines()[-1]))
            low, middle, high = min(line["seconds"]), statistics.median(line["seconds"]), max(line["seconds"])
            print(
                f"{kind:6s} {pairs:8d} pairs  {low:9.4f} / {middle:9.4f} / {high:9.4f} s  "
                f"{statistics.median(line['busy']):9.4f} s of processors  {line['peak_mib']:6d} MiB  "
                f"loss {line['value']:.12g}  load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(lines, file, indent=1)


if __name__ == "__main__":
    main()
