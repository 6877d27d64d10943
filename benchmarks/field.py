"""One evaluation of the vector field against its floor, and against NumPy and PyTorch.

    python benchmarks/field.py [--pairs 64 128 ... 8192] [--dims 64] [--repeats 7] [--single] [--json FILE]

The floor is the work that every evaluation on n×n matrices needs: three products of n×n×d (similarities, and the forces
on both modalities) and one exponential of n×n, compiled by XLA in one program. Field and floor are evaluated many times
within one program, each time at slightly different rows, as in a solve. From 256 pairs the field uses tiles, with one
more product but a quarter of the memory traffic, so it may fall below this floor. `numpy` is a direct implementation of
the closed form, `torch` the loss with automatic differentiation (if PyTorch is installed). All alternate within one
run; a repeat is the mean over about a tenth of a second.
"""

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

# Threads that wait for work would take the cores from the next measurement.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0", "OPENBLAS_THREAD_TIMEOUT": "4"}

import jax
import jax.numpy as jnp
import numpy as np

import flowsim as fs

#: Evaluates the field a given number of times.
Call = Callable[[int], Any]


#: Change of the rows from one evaluation to the next.
STEP = 1e-9


def ours(image: np.ndarray, text: np.ndarray) -> Call:
    """The field of `Sphere` with a learnable temperature."""
    flow = fs.GradientFlow()
    state = flow.initial_state(fs.initial.from_arrays(image, text), dtype=image.dtype)

    def moved(unknowns: Any) -> Any:
        velocity = flow.vector_field(1.0, dataclasses.replace(state, unknowns=unknowns))
        return jax.tree.map(lambda x, v: x + x.dtype.type(STEP) * v, unknowns, velocity)

    return repeated(moved, state.unknowns)


def floor(image: np.ndarray, text: np.ndarray) -> Call:
    """Three products and one exponential."""

    def moved(rows: Any) -> Any:
        x, y = rows
        weights = jnp.exp(x @ y.T)
        return x + x.dtype.type(STEP) * (weights @ y), y + x.dtype.type(STEP) * (weights.T @ x)

    return repeated(moved, (jnp.asarray(image), jnp.asarray(text)))


def repeated(function: Callable[[Any], Any], first: Any) -> Call:
    """`count` evaluations in one program, each at the result of the one before."""

    @jax.jit
    def program(first: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, x: function(x), first)

    return lambda count: jax.block_until_ready(program(first, count))


def by_python(function: Callable[[], Any]) -> Call:
    """`count` calls."""

    def call(count: int) -> None:
        for _ in range(count):
            function()

    return call


def numpy(image: np.ndarray, text: np.ndarray) -> Call:
    """The closed form with n×n matrices."""
    beta, n = image.dtype.type(1 / 0.07), len(image)

    def field() -> Any:
        similarity = image @ text.T
        weights = np.exp(beta * (similarity - 1))
        gradient = weights / (2 * n * weights.sum(1, keepdims=True)) + weights / (2 * n * weights.sum(0))
        np.fill_diagonal(gradient, gradient.diagonal() - 1 / n)
        forces = [-beta * (gradient @ text), -beta * (gradient.T @ image)]
        moved = [f - np.sum(f * x, 1, keepdims=True) * x for f, x in zip(forces, (image, text), strict=True)]
        return *moved, -beta * np.sum(gradient * similarity)

    return by_python(field)


def torch(image: np.ndarray, text: np.ndarray) -> Call | None:
    """Cross entropies of the logits, differentiated automatically."""
    try:
        import torch as t
    except ImportError:
        return None
    x, y = (t.tensor(rows, requires_grad=True) for rows in (image, text))
    nu = t.tensor(np.log(1 / 0.07), dtype=x.dtype, requires_grad=True)
    labels = t.arange(len(image))

    def field() -> Any:
        logits = nu.exp() * t.nn.functional.normalize(x) @ t.nn.functional.normalize(y).T
        loss = (t.nn.functional.cross_entropy(logits, labels) + t.nn.functional.cross_entropy(logits.T, labels)) / 2
        return t.autograd.grad(loss, (x, y, nu))

    return by_python(field)


KINDS = {"field": ours, "floor": floor, "numpy": numpy, "torch": torch}


def measure(pairs: int, dim: int, dtype: Any, repeats: int) -> dict[str, Any]:
    """Seconds per call of each kind, and the ratios to the floor, over the repeats."""
    rng = np.random.default_rng(0)
    image, text = (rng.standard_normal((pairs, dim)) for _ in range(2))
    rows = [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (image, text)]
    calls = {name: call for name, make in KINDS.items() if (call := make(*rows)) is not None}
    counts, seconds = {}, {name: [] for name in calls}
    for name, call in calls.items():
        call(1)  # compiles
        begin = time.perf_counter()
        call(2)
        counts[name] = max(1, int(0.2 / (time.perf_counter() - begin)))
    for _ in range(repeats):
        for name, call in calls.items():
            begin = time.perf_counter()
            call(counts[name])
            seconds[name].append((time.perf_counter() - begin) / counts[name])
    ratios = {name: [a / b for a, b in zip(values, seconds["floor"], strict=True)] for name, values in seconds.items()}
    return {"pairs": pairs, "dim": dim, "dtype": np.dtype(dtype).name, "seconds": seconds, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048, 4096, 8192])
    parser.add_argument("--dims", type=int, nargs="+", default=[64])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--single", action="store_true", help="float32 instead of float64")
    parser.add_argument("--json")
    options = parser.parse_args()
    lines = []
    with jax.enable_x64(not options.single):
        for pairs, dim in itertools.product(options.pairs, options.dims):
            line = measure(pairs, dim, np.float32 if options.single else np.float64, options.repeats)
            lines.append(line)
            print(f"n = {pairs}, d = {dim}, {line['dtype']}")
            for name, values in line["seconds"].items():
                ratio = line["ratios"][name]
                print(
                    f"    {name:6s} {1e6 * min(values):11.1f} / {1e6 * statistics.median(values):11.1f} / "
                    f"{1e6 * max(values):11.1f} us   to the floor {min(ratio):6.2f} / "
                    f"{statistics.median(ratio):6.2f} / {max(ratio):6.2f}",
                    flush=True,
                )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(lines, file, indent=1)


if __name__ == "__main__":
    main()
