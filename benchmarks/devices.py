"""Value and gradient in tiles on several devices: memory per device, and seconds on devices that share one processor.

    python benchmarks/devices.py [--pairs 32768] [--timed 4096] [--dim 64] [--repeats 7] [--json FILE]

The devices are made by XLA from one processor. Memory per device is reported by the compiler (arguments, results and
temporaries; double precision, tiles of 256 rows). Such devices share cores and memory bandwidth, so the seconds (of
`--timed` pairs) show the cost of dividing, not the gain of more hardware: constant time is ideal.
"""

import argparse
import json
import os
import statistics
import time
from typing import Any

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.numerics import tiled

BETA = 1 / 0.07
COUNTS = (1, 2, 4, 8)


def program(count: int) -> tuple[Any, Any]:
    """The jitted value and gradient, and the mesh of the devices."""
    mesh = tiled.mesh_of(jax.devices()[:count])
    by_rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("pairs"))
    function = jax.jit(lambda x, y: tiled.loss_and_gradient(x, y, BETA, block=256, mesh=mesh), in_shardings=by_rows)
    return function, mesh


def memory(count: int, pairs: int, dim: int) -> float:
    """MiB on each device."""
    shapes = [jax.ShapeDtypeStruct((pairs, dim), np.float64)] * 2
    used = program(count)[0].lower(*shapes).compile().memory_analysis()
    return (used.temp_size_in_bytes + used.argument_size_in_bytes + used.output_size_in_bytes) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=32_768)
    parser.add_argument("--timed", type=int, default=4096)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((2, options.timed, options.dim))
    rows /= np.linalg.norm(rows, axis=-1, keepdims=True)
    lines, calls = [], {}
    with jax.enable_x64(True):
        for count in COUNTS:
            function, mesh = program(count)
            given = tiled.spread((jnp.asarray(rows[0]), jnp.asarray(rows[1])), mesh, options.timed)
            calls[count] = lambda function=function, given=given: jax.block_until_ready(function(*given))
            calls[count]()
            mib = memory(count, options.pairs, options.dim)
            lines.append({"devices": count, "pairs": options.pairs, "mib": mib, "timed": options.timed, "seconds": []})
        for _ in range(options.repeats):
            for line in lines:
                begin = time.perf_counter()
                calls[line["devices"]]()
                line["seconds"].append(time.perf_counter() - begin)
    for line in lines:
        low, middle, high = (f(line["seconds"]) for f in (min, statistics.median, max))
        print(f"{line['devices']} devices: {line['mib']:6.1f} MiB on each; {low:.3f} / {middle:.3f} / {high:.3f} s")
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(lines, file, indent=1)


if __name__ == "__main__":
    main()
