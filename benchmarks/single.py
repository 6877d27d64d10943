"""One trajectory: `fs.simulate` against SciPy, a plain diffrax solve, torchdiffeq and a plain PyTorch loop.

    python benchmarks/single.py [--sizes 5,3 32,8 128,16] [--error 1e-6] [--repeats 7] [--json FILE]

The problem is that of `ensembles.py`: `Sphere`, learnable temperature, uniform rows, to t = 1e6, 33 output times. Each
solver runs at the loosest tolerance (the loop: with the fewest steps) that keeps the error of the gap below `--error`,
measured against SciPy's DOP853 at rtol 1e-12. All integrate in ln(1 + t), in double precision, with the closed form of
the gradient; the PyTorch solvers need torch and torchdiffeq. Times are without compilation, and the solvers alternate
within one run; `simulate` returns ten observables at all output times, the others only the gap.
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from ensembles import TIMES, TOLERANCES, peer_gap

import flowsim as fs

Solve = Callable[[float], np.ndarray]


def ours(start: fs.initial.Start) -> Solve:
    """tolerance -> gap at the output times, with `fs.simulate`."""
    return lambda rtol: fs.simulate(fs.GradientFlow(), start, ts=TIMES, rtol=rtol, atol=1e-3 * rtol).series[
        "modality_gap"
    ]


def scipy(method: str) -> Callable[[fs.initial.Start], Solve]:
    return lambda start: lambda rtol: peer_gap(start.pairs, start.dim or 0, start, method, rtol)


def plain_diffrax(start: fs.initial.Start) -> Solve:
    """Tsit5 with a direct implementation of the formula, compiled as a whole."""
    s = jnp.log1p(jnp.asarray(TIMES))

    def field(s: Any, state: Any, _: Any) -> Any:
        x, y, nu = state
        beta, similarity = jnp.exp(nu), x @ y.T
        weights = (jax.nn.softmax(beta * similarity, 1) + jax.nn.softmax(beta * similarity, 0)) / 2
        gradient = (weights - jnp.eye(len(x))) / len(x)
        forces = (-beta * gradient @ y, -beta * gradient.T @ x)
        along = [f - jnp.sum(f * z, 1, keepdims=True) * z for f, z in zip(forces, (x, y), strict=True)]
        return jax.tree.map(lambda v: jnp.exp(s) * v, (*along, -beta * jnp.sum(gradient * similarity)))

    @jax.jit
    def gap(image: Any, text: Any, rtol: Any) -> Any:
        found = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5(),
            s[0],
            s[-1],
            None,
            (image, text, -jnp.log(0.07)),
            saveat=diffrax.SaveAt(ts=s),
            max_steps=100_000,
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=1e-3 * rtol),
        )
        assert found.ys is not None
        return jnp.linalg.norm(found.ys[0].mean(1) - found.ys[1].mean(1), axis=1)

    return lambda rtol: np.asarray(gap(*start.rows(), rtol))


def _torch_field(n: int, d: int) -> Any:
    import torch

    eye = torch.eye(n, dtype=torch.float64)

    def field(s: Any, state: Any) -> Any:
        x, y, beta = state[: n * d].reshape(n, d), state[n * d : -1].reshape(n, d), state[-1].exp()
        similarity = x @ y.T
        weights = (torch.softmax(beta * similarity, 1) + torch.softmax(beta * similarity, 0)) / 2
        gradient = (weights - eye) / n
        on_x, on_y = -beta * gradient @ y, -beta * gradient.T @ x
        on_x, on_y = on_x - (on_x * x).sum(1, keepdim=True) * x, on_y - (on_y * y).sum(1, keepdim=True) * y
        return math.exp(s) * torch.cat([on_x.ravel(), on_y.ravel(), -beta * (gradient * similarity).sum()[None]])

    return field


def _torch_gap(states: Any, n: int, d: int) -> np.ndarray:
    image, text = states[:, : n * d].reshape(-1, n, d), states[:, n * d : -1].reshape(-1, n, d)
    return (image.mean(1) - text.mean(1)).norm(dim=1).numpy()


def _torch_start(start: fs.initial.Start) -> Any:
    import torch

    return torch.tensor(np.concatenate([*(np.ravel(rows) for rows in start.rows()), [-math.log(0.07)]]))


def torchdiffeq(start: fs.initial.Start) -> Solve | None:
    """Its dopri5."""
    try:
        import torch
        from torchdiffeq import odeint  # pyright: ignore[reportMissingImports]
    except ImportError:
        return None
    n, d, y0 = start.pairs, start.dim or 0, _torch_start(start)
    field, s = _torch_field(n, d), torch.tensor(np.log1p(TIMES))
    with torch.no_grad():
        return lambda rtol: _torch_gap(odeint(field, y0, s, rtol=rtol, atol=1e-3 * rtol, method="dopri5"), n, d)


def torch_loop(start: fs.initial.Start) -> Solve | None:
    """Classical Runge-Kutta steps of equal length in ln(1 + t), 1/tolerance of them to a power that fits its order."""
    try:
        import torch
    except ImportError:
        return None
    n, d, y0 = start.pairs, start.dim or 0, _torch_start(start)
    field, s = _torch_field(n, d), np.log1p(TIMES)

    def solve(rtol: float) -> np.ndarray:
        longest, y, states = 2.0 * rtol**0.25, y0, [y0]
        for begin, end in itertools.pairwise(s):
            count = math.ceil((end - begin) / longest)
            h = (end - begin) / count
            for k in range(count):
                at = begin + k * h
                k1 = field(at, y)
                k2 = field(at + h / 2, y + h / 2 * k1)
                k3 = field(at + h / 2, y + h / 2 * k2)
                y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + field(at + h, y + h * k3))
            states.append(y)
        return _torch_gap(torch.stack(states), n, d)

    return solve


KINDS: dict[str, Callable[[fs.initial.Start], Solve | None]] = {
    "simulate": ours, "SciPy LSODA": scipy("LSODA"), "SciPy DOP853": scipy("DOP853"), "plain diffrax": plain_diffrax,
    "torchdiffeq": torchdiffeq, "PyTorch loop": torch_loop,
}  # fmt: skip


def measure(n: int, d: int, limit: float, repeats: int) -> dict[str, Any]:
    """Tolerance, error and seconds of each."""
    start = fs.initial.uniform(pairs=n, dim=d).draw(0)
    exact = peer_gap(n, d, start, "DOP853", 1e-12)
    report: dict[str, Any] = {"pairs": n, "dim": d}
    calls = {}
    for name, make in KINDS.items():
        if (solve := make(start)) is None:
            continue
        for rtol in TOLERANCES:
            error = float(np.abs(solve(rtol) - exact).max())
            if error <= limit:
                report[name] = {"rtol": rtol, "error": error, "seconds": []}
                calls[name] = solve
                break
    for _ in range(repeats):
        for name, solve in calls.items():
            begin = time.perf_counter()
            solve(report[name]["rtol"])
            report[name]["seconds"].append(time.perf_counter() - begin)
    return report


@np.errstate(over="ignore", invalid="ignore")
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["5,3", "32,8", "128,16"])
    parser.add_argument("--error", type=float, default=1e-6)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json")
    options = parser.parse_args()
    reports = []
    with jax.enable_x64(True):
        for size in options.sizes:
            n, d = (int(x) for x in size.split(","))
            report = measure(n, d, options.error, options.repeats)
            reports.append(report)
            print(f"n = {n}, d = {d}: error <= {options.error:g}; minimum / median / maximum")
            for name in KINDS:
                if name in report:
                    one = report[name]
                    ms = [1e3 * f(one["seconds"]) for f in (min, statistics.median, max)]
                    print(
                        f"    {name:14s} {ms[0]:9.2f} / {ms[1]:9.2f} / {ms[2]:9.2f} ms   "
                        f"rtol {one['rtol']:g}, error {one['error']:.1e}",
                        flush=True,
                    )
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(reports, file, indent=1)


if __name__ == "__main__":
    main()
