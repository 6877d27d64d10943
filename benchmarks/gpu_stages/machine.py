"""The machine and its ceilings: rates of matrix products, exponentials, copies and kernel launches.

    python benchmarks/gpu_stages/machine.py --out DIR [--seconds 25] [--tiny]

Random data throughout: products of zeros run faster. Times are medians of repeats after a warm-up, measured by CUDA
events for PyTorch, and by the clock of the host around `block_until_ready` for JAX. Without a GPU the processor is
measured.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

from record import Record

try:
    import torch
except ImportError:
    torch = None

ON_GPU = torch is not None and torch.cuda.is_available()
DEVICE = "cuda" if ON_GPU else "cpu"


def main() -> None:
    record = Record(__doc__)
    record.part("machine", machine)
    record.part("jax", seen_by_jax)
    if torch is not None:
        size = 256 if record.tiny else 8192
        for name in ("bf16", "tf32", "fp32", "fp64"):
            record.part(f"product_{name}", lambda name=name: product(name, size), needs=1)
        record.part("copy", lambda: copy(2**20 if record.tiny else 2**32), needs=1)
        record.part("launches", lambda: launches(1_000 if record.tiny else 20_000), needs=1)
    record.part("exponentials", lambda: exponentials(2**16 if record.tiny else 2**26), needs=4)
    record.finish()


def machine() -> dict[str, Any]:
    """Card, driver, memory and processor."""
    found: dict[str, Any] = {"cores": os.cpu_count()}
    asked = "name,driver_version,memory.total,clocks.sm,clocks.max.sm,power.limit,temperature.gpu"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, timeout=10
        )
        found["nvidia_smi"] = dict(zip(asked.split(","), told.stdout.strip().split(", "), strict=False))
    except (OSError, subprocess.TimeoutExpired):
        found["nvidia_smi"] = None
    if torch is not None:
        found["cuda"], found["cudnn"] = torch.version.cuda, torch.backends.cudnn.version()
    if torch is not None and ON_GPU:
        card = torch.cuda.get_device_properties(0)
        found["card"], found["bytes"] = card.name, card.total_memory
        found["multiprocessors"], found["l2_bytes"] = card.multi_processor_count, getattr(card, "L2_cache_size", None)
        found["capability"] = f"{card.major}.{card.minor}"
    return found


def seen_by_jax() -> dict[str, Any]:
    """JAX's devices, and what it does with products in single precision."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    rows = jax.random.normal(jax.random.key(0), (2, 256, 64), jnp.float32)
    with jax.enable_x64(True):
        exact = rows[0].astype("float64") @ rows[1].astype("float64").T
        wide = {
            name: float(jnp.linalg.norm(jnp.matmul(*_turned(rows), precision=name) - exact) / jnp.linalg.norm(exact))
            for name in ("default", "high", "highest")
        }
    return {
        "backend": jax.default_backend(),
        "devices": [str(d) for d in jax.devices()],
        "kind": device.device_kind,
        "platform_version": str(getattr(device.client, "platform_version", "")).splitlines()[:3],
        "memory_limit": (device.memory_stats() or {}).get("bytes_limit"),
        "relative_error_of_float32_products": wide,
    }


def _turned(rows: Any) -> tuple[Any, Any]:
    return rows[0], rows[1].T


def seconds_of(call: Callable[[], Any], repeats: int = 7, each: float = 0.05) -> dict[str, float]:
    """Median, least and most seconds of a call of PyTorch."""
    assert torch is not None
    call()
    once = _events(call, 1)
    count = max(1, min(100, int(each / max(once, 1e-6))))
    found = [_events(call, count) for _ in range(repeats)]
    return {"seconds": statistics.median(found), "least": min(found), "most": max(found)}


def _events(call: Callable[[], Any], count: int) -> float:
    """Seconds per call, of `count` calls."""
    assert torch is not None
    if not ON_GPU:
        begin = time.perf_counter()
        for _ in range(count):
            call()
        return (time.perf_counter() - begin) / count
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def product(kind: str, size: int) -> dict[str, float]:
    """A product of two square matrices."""
    assert torch is not None
    dtype = {"bf16": torch.bfloat16, "fp64": torch.float64}.get(kind, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = kind == "tf32"
    a, b = (torch.randn(size, size, device=DEVICE, dtype=dtype) for _ in range(2))
    into, multiply = torch.empty_like(a), torch.mm
    found = seconds_of(lambda: multiply(a, b, out=into))
    torch.backends.cuda.matmul.allow_tf32 = False
    return {**found, "size": size, "tflops": 2e-12 * size**3 / found["seconds"]}


def copy(size: int) -> dict[str, float]:
    """A copy on the device, counting what is read and what is written."""
    assert torch is not None
    source = torch.randint(0, 255, (size,), device=DEVICE, dtype=torch.uint8)
    into = torch.empty_like(source)
    found = seconds_of(lambda: into.copy_(source))
    return {**found, "bytes": size, "terabytes_per_second": 2e-12 * size / found["seconds"]}


def launches(count: int) -> dict[str, float]:
    """Small operations one after the other."""
    assert torch is not None
    x = torch.zeros(16, device=DEVICE)

    def call() -> None:
        for _ in range(count):
            x.add_(1.0)

    found = seconds_of(call, repeats=5, each=0)
    return {**found, "operations": count, "per_second": count / found["seconds"]}


def exponentials(size: int, chain: int = 32) -> dict[str, Any]:
    """Exponentials within one program of JAX: a chain in registers, and one per number read and written."""
    import jax
    import jax.numpy as jnp

    found = {}
    for name in ("float32", "float64"):
        with jax.enable_x64(name == "float64"):
            x = jax.random.uniform(jax.random.key(0), (size,), name)
            for kind, length in (("chain", chain), ("stream", 1)):

                @jax.jit
                def program(x: Any, length: int = length) -> Any:
                    for _ in range(length):
                        x = jnp.exp(-x)
                    return x

                jax.block_until_ready(program(x))
                spent = []
                for _ in range(7):
                    begin = time.perf_counter()
                    jax.block_until_ready(program(x))
                    spent.append(time.perf_counter() - begin)
                seconds = statistics.median(spent)
                found[f"{name}_{kind}"] = {"seconds": seconds, "billions_per_second": 1e-9 * size * length / seconds}
    return found


if __name__ == "__main__":
    main()
