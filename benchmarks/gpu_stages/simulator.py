"""The simulator on a GPU: ensembles, a phase diagram of a million runs, the field, a solve of 65,536 pairs.

    python benchmarks/gpu_stages/simulator.py --out DIR [--seconds 120] [--tiny]

Ensembles: the problem of `benchmarks/ensembles.py`, whole ensembles in one compiled program (`benchmarks/
one_program.py`). The first 16 trajectories are the seeds for which `exact_gaps.npz` holds SciPy's DOP853 at rtol 1e-12,
so the error belongs to the timed runs themselves; the other starts are drawn on the device. Peers, on cores of the same
machine that nothing else uses: SciPy's best method on one core, `fs.sweep` on two.

Products in single precision: JAX rounds their factors to TF32 on GPUs unless told otherwise. What the flow asks for is
measured against double precision.

Without a GPU everything runs on the processor. `simulator_phase.npz` holds the phase diagram for
`benchmarks/gpu_figures.py`.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from record import Record

_HERE = Path(__file__).parent
sys.path.append(str(_HERE.parent))
if "--tiny" in sys.argv:
    # Little time for the compiler, here and in helpers.
    _FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"

import equinox as eqx  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from one_program import Problem, ensemble  # noqa: E402

import flowsim as fs  # noqa: E402
from flowsim.base.arrays import to_device  # noqa: E402
from flowsim.numerics import store_programs, tiled  # noqa: E402

#: Output times of the ensembles, as in `ensembles.py`, and its sizes.
TIMES = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 32)])
SIZES = ((5, 3), (16, 8), (32, 8))
TOLERANCES = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
ERROR = 1e-6
CHECKED = 16
#: Trajectories side by side, by pairs: candidates, of which the fastest for the field is used.
LANES = {5: (2**15, 2**17), 16: (2**13, 2**15), 32: (2**11, 2**13, 2**14)}
#: Compiler options that are compared: libraries for all products, or code of the compiler for small ones.
WAYS: dict[str, dict[str, Any]] = {"library": {}, "compiler": {"xla_gpu_gemm_rewrite_size_threshold": 1_000_000}}
#: The phase diagram: temperatures τ0, learning-rate ratios r, times.
PHASE_TAU, PHASE_RATIO, PHASE_TIMES = (0.005, 1.0), (1e-3, 1e2), (0.0, 1e2, 1e4, 1e6)
PHASE_PAIRS, PHASE_DIM, PHASE_HEIGHT = 16, 8, 0.3

#: Seconds that a line of an ensemble may take, and above which it is measured once.
_PATIENCE, _ONCE = 8.0, 1.5


class Size(NamedTuple):
    """What differs between a rehearsal and the real run."""

    sizes: tuple[tuple[int, int], ...]
    lanes: dict[int, tuple[int, ...]]
    counts: tuple[int, ...]
    ways: dict[str, dict[str, Any]]
    phase: int
    phase_lanes: int
    field: tuple[tuple[int, int, str], ...]
    floor_pairs: int
    check: int
    blocks: tuple[int, tuple[int, ...]]
    tiled: int
    sweep: int


FULL = Size(
    SIZES,
    LANES,
    (10**4, 10**5, 10**6),
    WAYS,
    1000,
    2**15,
    (
        *((n, 64, kind) for n in (1024, 4096, 16_384, 65_536) for kind in ("float32", "float64")),
        (16_384, 512, "float32"),
    ),
    16_384,
    4096,
    (16_384, (1024, 2048, 4096, 8192)),
    65_536,
    1024,
)
TINY = Size(
    ((5, 3),),
    {5: (32,)},
    (48, 96),
    {"library": {}},
    5,
    16,
    ((256, 8, "float32"), (256, 8, "float64")),
    256,
    300,
    (512, (128, 256)),
    300,
    32,
)


# --- programs -----------------------------------------------------------------------------------------


class Program(NamedTuple):
    """A compiled program and the seconds that its compilation took, with others beside it."""

    call: Callable[..., Any]
    seconds: float
    trace_seconds: float


class Compiler:
    """Compiles programs side by side, by name."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max(2, min(14, (os.cpu_count() or 2) - 2)))
        self._found: dict[Any, Future[Program]] = {}

    def ask(self, name: Any, make: Callable[[], tuple[Any, tuple[Any, ...]]], dtype: str, options: Any = None) -> None:
        """Compile the function that `make` returns for its arguments, both made in the precision of `dtype`."""

        def compiled() -> Program:
            begin = time.perf_counter()
            with jax.enable_x64(dtype == "float64"):  # the mode is one per thread
                function, given = make()
                lowered = jax.jit(function).lower(*given)
                traced = time.perf_counter()
                call = lowered.compile(compiler_options=options or {})
            return Program(call, time.perf_counter() - traced, traced - begin)

        self._found[name] = self._pool.submit(compiled)

    def wait(self) -> dict[str, Any]:
        """Wait for all, so that none disturbs a measurement."""
        begin = time.perf_counter()
        errors = {str(name): f.exception() for name, f in self._found.items()}
        return {
            "waited": time.perf_counter() - begin,
            "failed": {name: str(error)[:200] for name, error in errors.items() if error is not None},
        }

    def __getitem__(self, name: Any) -> Program:
        return self._found[name].result()

    def drop(self) -> None:
        """Forget all, which frees their memory."""
        self._found = {}


def timed(call: Callable[[], Any], repeats: int = 3) -> dict[str, float]:
    """Median, least and most seconds of a call that is warm."""
    spent = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        spent.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(spent), "least": min(spent), "most": max(spent)}


def in_loop(function: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
    """`count` evaluations in one program, each at the result of the one before."""
    return lambda first, count: jax.lax.fori_loop(0, count, lambda _, x: function(x), first)


def per_call(program: Callable[[Any, Any], Any], first: Any, wanted: float) -> dict[str, float]:
    """Seconds per evaluation of a program of `in_loop`; three repeats of about `wanted` seconds."""

    def of(count: int) -> float:
        begin = time.perf_counter()
        jax.block_until_ready(program(first, np.int32(count)))
        return time.perf_counter() - begin

    of(1)
    # Two counts, since starting a program takes longer than evaluating a small field.
    count = max(2, min(2000, int(wanted / max(of(3) / 3, 1e-6))))
    spent = [of(count) / count for _ in range(3)]
    return {"seconds": statistics.median(spent), "least": min(spent), "most": max(spent), "evaluations": count}


# --- ensembles ----------------------------------------------------------------------------------------


def exact(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Gaps of the first seeds by DOP853 at rtol 1e-12 (seeds, times), and their starts (seeds, 2, n, d)."""
    with np.load(_HERE / "exact_gaps.npz") as held:
        return held[f"gap_{n}_{d}"], held[f"rows_{n}_{d}"]


def ensemble_problem(n: int, d: int, dtype: str) -> Problem:
    """Uniform rows on the sphere, learnable temperature; the gap."""
    given = jnp.asarray(exact(n, d)[1], dtype)
    flow = to_device(fs.GradientFlow(), np.dtype(dtype))
    state = flow.initial_state(fs.initial.uniform(pairs=n, dim=d).draw(0), dtype=np.dtype(dtype))

    def start(index: Any) -> tuple[Any, Any]:
        drawn = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (2, n, d), dtype)
        drawn = drawn / jnp.sqrt(jnp.sum(drawn**2, axis=-1, keepdims=True))
        rows = jnp.where(index < CHECKED, given[jnp.minimum(index, CHECKED - 1)], drawn)
        return dataclasses.replace(state.unknowns, position=type(state.unknowns.position)(rows[0], rows[1])), None

    def field(t: Any, unknowns: Any, _: Any) -> Any:
        return flow.vector_field(t, dataclasses.replace(state, unknowns=unknowns))

    return Problem(start, field, difference, lambda v: jnp.sqrt(jnp.sum(v**2))[None])


def difference(unknowns: Any) -> Any:
    """Mean image row minus mean text row."""
    return jnp.mean(unknowns.position.image, axis=0) - jnp.mean(unknowns.position.text, axis=0)


def field_of_many(n: int, d: int, lanes: int, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """The field of many trajectories, in a loop."""
    problem = ensemble_problem(n, d, dtype)

    def moved(unknowns: Any) -> Any:
        velocity = jax.vmap(lambda u: problem.field(0.0, u, None))(unknowns)
        return jax.tree.map(lambda x, v: x + 1e-9 * v, unknowns, velocity)

    # In NumPy: JAX would compile every operation.
    rows = np.random.default_rng(0).standard_normal((2, lanes, n, d))
    rows = (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(dtype)
    raw = np.full(lanes, np.log(1 / 0.07), dtype)
    like = jax.eval_shape(lambda: problem.start(jnp.int32(0))[0])
    position = type(like.position)(jnp.asarray(rows[0]), jnp.asarray(rows[1]))
    first = dataclasses.replace(like, position=position, raw_temperature=jnp.asarray(raw))
    return in_loop(moved), (first, np.int32(1))


def choose_ways(size: Size) -> dict[str, Any]:
    """For each size and precision the number of lanes and the compiler options with the fastest field."""
    compiler, found = Compiler(), {}
    cases = [
        (n, d, dtype, lanes, way)
        for n, d in size.sizes
        for dtype in ("float64", "float32")
        for lanes in size.lanes[n]
        for way in size.ways
    ]
    for n, d, dtype, lanes, way in cases:
        compiler.ask(
            (n, d, dtype, lanes, way),
            lambda n=n, d=d, lanes=lanes, dtype=dtype: field_of_many(n, d, lanes, dtype),
            dtype,
            size.ways[way],
        )
    compiling = compiler.wait()
    for n, d, dtype, lanes, way in cases:
        lines = found.setdefault(f"{n},{d},{dtype}", {"lines": []})["lines"]
        try:
            with jax.enable_x64(dtype == "float64"):
                first = field_of_many(n, d, lanes, dtype)[1][0]
                spent = per_call(compiler[n, d, dtype, lanes, way].call, first, 0.01)
            nanoseconds = 1e9 * spent["seconds"] / lanes
            lines.append({"lanes": lanes, "way": way, "nanoseconds_per_field": nanoseconds})
        except Exception as error:  # the other ways remain
            lines.append({"lanes": lanes, "way": way, "error": str(error)[:200]})
    for one in found.values():
        good = [line for line in one["lines"] if "error" not in line]
        one["best"] = min(good, key=lambda line: line["nanoseconds_per_field"]) if good else None
    return {"compiling": compiling, **found}


def chosen(size: Size, ways: Any, n: int, d: int, dtype: str) -> tuple[int, dict[str, Any], str]:
    """Lanes and compiler options of an ensemble."""
    best = ((ways or {}).get(f"{n},{d},{dtype}") or {}).get("best")
    lanes, way = (best["lanes"], best["way"]) if best else (size.lanes[n][0], "library")
    return lanes, size.ways[way], way


def run_ensemble(program: Program, n: int, d: int, dtype: str, lanes: int, way: str, size: Size) -> dict[str, Any]:
    """Errors by tolerance, and seconds by number of trajectories."""
    gaps = exact(n, d)[0]
    number = np.dtype(dtype).type

    def run(count: int, rtol: float) -> Any:
        return jax.block_until_ready(program.call(np.int32(count), number(rtol), number(1e-3 * rtol)))

    errors: dict[float, float] = {}
    for rtol in TOLERANCES:
        seen = np.asarray(run(CHECKED, rtol).seen)[:CHECKED, :, 0]
        errors[rtol] = float(np.abs(seen - gaps).max())
        if errors[rtol] < ERROR:
            break
    rtol = min(errors, key=lambda r: (errors[r] >= ERROR, errors[r]))
    found: dict[str, Any] = {
        "dtype": dtype,
        "lanes": lanes,
        "way": way,
        "compile_seconds": program.seconds,
        "trace_seconds": program.trace_seconds,
        "errors_by_rtol": {f"{r:g}": e for r, e in errors.items()},
        "rtol": rtol,
        "error": errors[rtol],
        "lines": [],
    }
    lines = {(count, rtol): None for count in size.counts}
    if dtype == "float32" and rtol != 1e-5:
        lines[size.counts[-1], 1e-5] = None  # its own: the tightest that `simulate` allows
    for count, at in lines:
        before = [line for line in found["lines"] if line["rtol"] == at] or found["lines"]
        if before and before[-1]["seconds"] * count / before[-1]["runs"] > _PATIENCE:
            found["lines"].append({"runs": count, "rtol": at, "left_out": "would take too long"})
            continue
        begin = time.perf_counter()
        ran = run(count, at)
        once = time.perf_counter() - begin
        seen, accepted, tried = (np.asarray(x)[:count] for x in (ran.seen, ran.accepted, ran.tried))
        missing = int(np.isnan(seen).any(axis=(1, 2)).sum())
        error = float(np.abs(seen[:CHECKED, :, 0] - gaps).max())
        last = seen[:, -1, 0].astype(np.float64)
        rounds = int(ran.rounds)
        del ran
        repeats = 5 if once < _ONCE else 0
        spent = timed(lambda count=count, at=at: run(count, at), repeats) if repeats else {"seconds": once}
        found["lines"].append(
            {
                "runs": count,
                "rtol": at,
                **spent,
                "microseconds_per_run": 1e6 * spent["seconds"] / count,
                "error": error,
                "failed": missing,
                "accepted_mean": float(accepted.mean()),
                "accepted_max": int(accepted.max()),
                "tried_mean": float(tried.mean()),
                "busy": float(tried.sum()) / (rounds * lanes),
                "milliseconds_per_round": 1e3 * spent["seconds"] / rounds,
                "final_gap_mean": float(last.mean()),
                "final_gap_std": float(last.std()),
            }
        )
    return found


def ask_for_ensemble(
    compiler: Compiler, size: Size, ways: Any, name: tuple[int, int, str], halved: int = 0
) -> tuple[int, str]:
    """Begin to compile an ensemble; returns its lanes and its way."""
    n, d, dtype = name
    lanes, options, way = chosen(size, ways, n, d, dtype)
    lanes >>= halved

    def make() -> tuple[Any, tuple[Any, ...]]:
        number = np.dtype(dtype).type
        function = ensemble(ensemble_problem(n, d, dtype), TIMES, size.counts[-1], lanes, number)
        return function, (np.int32(1), number(1e-6), number(1e-9))

    compiler.ask((n, d, dtype), make, dtype, options)
    return lanes, way


# --- the phase diagram --------------------------------------------------------------------------------


def phase_program(side: int, lanes: int) -> tuple[Any, tuple[Any, ...]]:
    """Trajectories of one start, over τ0 (fast index) and the learning-rate ratio of the temperature."""
    flow = to_device(fs.GradientFlow(), np.float64)
    drawn = fs.initial.cones(PHASE_PAIRS, PHASE_DIM, PHASE_HEIGHT).draw(0)
    state = flow.initial_state(drawn)
    (low, high), (least, most) = np.log(PHASE_TAU), np.log(PHASE_RATIO)

    def start(index: Any) -> tuple[Any, Any]:
        column, row = index % side, index // side
        raw = -(low + (high - low) * column / (side - 1))
        ratio = jnp.exp(least + (most - least) * row / (side - 1))
        return dataclasses.replace(state.unknowns, raw_temperature=raw), ratio

    def field(t: Any, unknowns: Any, ratio: Any) -> Any:
        own = eqx.tree_at(lambda f: f.schedule.temperature.lr_ratio, flow, ratio)
        return own.vector_field(t, dataclasses.replace(state, unknowns=unknowns))

    def linear(unknowns: Any) -> Any:
        return jnp.concatenate([difference(unknowns), unknowns.raw_temperature[None]])

    def seen(v: Any) -> Any:
        return jnp.stack([jnp.sqrt(jnp.sum(v[:-1] ** 2)), v[-1]])

    function = ensemble(Problem(start, field, linear, seen), np.array(PHASE_TIMES), side**2, lanes, np.float64)
    return function, (np.int32(1), np.float64(1e-6), np.float64(1e-9))


def run_phase(program: Program, size: Size, lanes: int, out: Path) -> dict[str, Any]:
    """Integrate all points, and write them in 16 bits each."""
    count = size.phase**2

    def run() -> Any:
        with jax.enable_x64(True):
            return jax.block_until_ready(program.call(np.int32(count), np.float64(1e-6), np.float64(1e-9)))

    begin = time.perf_counter()
    ran = run()
    once = time.perf_counter() - begin
    spent = timed(run, 3) if once < _ONCE else {"seconds": once}
    seen = np.asarray(ran.seen).reshape(size.phase, size.phase, len(PHASE_TIMES), 2)
    gap, tau = seen[..., 0], np.exp(-seen[..., -1, 1])
    side = np.linspace(0, size.phase - 1, 3).round().astype(int)
    tau0, ratio = (np.geomspace(*ends, size.phase) for ends in (PHASE_TAU, PHASE_RATIO))
    path = out / "simulator_phase.npz"
    np.savez_compressed(
        path,
        tau0=tau0,
        ratio=ratio,
        times=np.array(PHASE_TIMES[1:]),
        # Steps of 2/65535 and of 1/4000 in the natural logarithm; 0 for a run that failed.
        gap=np.nan_to_num(np.round(gap[..., 1:] * 32767.5)).astype(np.uint16),
        log_tau=np.nan_to_num(np.round(np.log(tau) * 4000)).clip(-32767, 32767).astype(np.int16),
        initial_gap=gap[0, 0, 0],
        start=np.array([PHASE_PAIRS, PHASE_DIM, PHASE_HEIGHT]),
    )
    accepted = np.asarray(ran.accepted)
    return {
        "runs": count,
        **spent,
        "runs_per_second": count / spent["seconds"],
        "compile_seconds": program.seconds,
        "trace_seconds": program.trace_seconds,
        "failed": int(np.isnan(gap).any(axis=-1).sum()),
        "accepted_mean": float(accepted.mean()),
        "accepted_max": int(accepted.max()),
        "busy": float(np.asarray(ran.tried).sum()) / (int(ran.rounds) * lanes),
        "file_bytes": path.stat().st_size,
        "corners": [
            {"tau0": tau0[i], "ratio": ratio[j], "gap": gap[j, i, 1:].tolist(), "tau": tau[j, i]}
            for j in side
            for i in side
        ],
    }


# --- the field of many pairs --------------------------------------------------------------------------


def rows_of(n: int, d: int, dtype: str) -> list[np.ndarray]:
    """Unit rows of images, and of texts near them."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((n, d))
    text = image + rng.standard_normal((n, d))
    return [(x / np.linalg.norm(x, axis=1, keepdims=True)).astype(dtype) for x in (image, text)]


def field_program(n: int, d: int, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """The flow's field, in a loop."""
    image, text = rows_of(n, d, dtype)
    flow = to_device(fs.GradientFlow(), np.dtype(dtype))
    state = flow.initial_state(fs.initial.from_arrays(image, text), dtype=np.dtype(dtype))

    def moved(unknowns: Any) -> Any:
        velocity = flow.vector_field(1.0, dataclasses.replace(state, unknowns=unknowns))
        return jax.tree.map(lambda x, v: x + 1e-9 * v, unknowns, velocity)

    return in_loop(moved), (state.unknowns, np.int32(1))


def floor_program(n: int, d: int, dtype: str, precision: str = "highest") -> tuple[Any, tuple[Any, ...]]:
    """Three products and one exponential, in a loop."""

    def moved(rows: Any) -> Any:
        x, y = rows
        weights = jnp.exp(jnp.matmul(x, y.T, precision=precision))
        moves = jnp.matmul(weights, y, precision=precision), jnp.matmul(weights.T, x, precision=precision)
        return x + 1e-9 * moves[0], y + 1e-9 * moves[1]

    rows = [jnp.asarray(x) for x in rows_of(n, d, dtype)]
    return in_loop(moved), (tuple(rows), np.int32(1))


def field_times(size: Size) -> list[dict[str, Any]]:
    """Milliseconds of the field and of its floor, by pairs, dimension and precision."""
    compiler = Compiler()
    makers: dict[Any, Any] = {}
    for n, d, dtype in size.field:
        makers["field", n, d, dtype] = lambda n=n, d=d, dtype=dtype: field_program(n, d, dtype)
        least = min(n, size.floor_pairs)
        makers["floor", least, d, dtype] = lambda n=least, d=d, dtype=dtype: floor_program(n, d, dtype)
        if dtype == "float32":
            makers["tf32", least, d, dtype] = lambda n=least, d=d: floor_program(n, d, "float32", "default")
    for name, make in makers.items():
        compiler.ask(name, make, name[3])
    compiler.wait()
    measured: dict[Any, dict[str, float]] = {}

    def time_of(kind: str, n: int, d: int, dtype: str) -> dict[str, float] | None:
        name = (kind, n, d, dtype)
        if name not in measured:
            try:
                with jax.enable_x64(dtype == "float64"):
                    measured[name] = per_call(compiler[name].call, makers[name]()[1][0], 0.1)
            except Exception as error:
                print(f"{name}: {str(error)[:200]}", flush=True)
                measured[name] = {}
        return measured[name] or None

    lines = []
    for n, d, dtype in size.field:
        least = min(n, size.floor_pairs)
        line: dict[str, Any] = {"pairs": n, "dim": d, "dtype": dtype, "tiled": n >= 256}
        kinds = ("field", "floor", "tf32") if dtype == "float32" else ("field", "floor")
        for kind in kinds:
            spent = time_of(kind, n if kind == "field" else least, d, dtype)
            if spent:
                scale = 1.0 if kind == "field" else (n / least) ** 2
                line[f"{kind}_ms"] = [1e3 * scale * spent[k] for k in ("least", "seconds", "most")]
                line[f"{kind}_scaled_from"] = n if kind == "field" else least
        if "field_ms" in line:
            line["field_tflops"] = 8e-9 * n**2 * d / line["field_ms"][1]
            if "floor_ms" in line:
                line["to_floor"] = line["field_ms"][1] / line["floor_ms"][1]
        lines.append(line)
    return lines


def precision(n: int) -> dict[str, Any]:
    """Relative errors of single precision: of the flow's loss and field in tiles and with matrices, and of products."""
    found: dict[str, Any] = {}
    for name, pairs in (("tiled", n), ("dense", 200)):
        both = {}
        for dtype in ("float64", "float32"):
            with jax.enable_x64(dtype == "float64"):
                flow = to_device(fs.GradientFlow(), np.dtype(dtype))
                # The same numbers in both: those of single precision.
                image, text = (x.astype(dtype) for x in rows_of(pairs, 64, "float32"))
                state = flow.initial_state(fs.initial.from_arrays(image, text), dtype=np.dtype(dtype))
                state = dataclasses.replace(
                    state,
                    unknowns=dataclasses.replace(
                        state.unknowns, raw_temperature=jnp.asarray(np.float32(np.log(1 / 0.07)), dtype)
                    ),
                )
                assert flow.is_tiled(state) == (name == "tiled")
                value, velocity = jax.jit(lambda s, flow=flow: (flow.loss_value(1.0, s), flow.vector_field(1.0, s)))(
                    state
                )
                both[dtype] = {
                    "value": np.asarray(value, np.float64),
                    "image": np.asarray(velocity.position.image, np.float64),
                    "text": np.asarray(velocity.position.text, np.float64),
                    "temperature": np.asarray(velocity.raw_temperature, np.float64),
                }
        found[name] = {
            "pairs": pairs,
            **{
                key: float(np.linalg.norm(both["float32"][key] - value) / np.linalg.norm(value))
                for key, value in both["float64"].items()
            },
        }
    x, y = rows_of(200, 64, "float32")
    right = x.astype(np.float64) @ y.T.astype(np.float64)
    with jax.enable_x64(False):
        for name in ("default", "highest"):
            got = np.asarray(jnp.matmul(jnp.asarray(x), jnp.asarray(y).T, precision=name), np.float64)
            found[f"product_{name}"] = float(np.linalg.norm(got - right) / np.linalg.norm(right))
    return found


def block_times(size: Size) -> list[dict[str, Any]]:
    """Value and gradient in tiles of different size."""
    n, blocks = size.blocks
    compiler = Compiler()

    def make(block: int, dtype: str) -> tuple[Any, tuple[Any, ...]]:
        def moved(rows: Any) -> Any:
            found = tiled.loss_and_gradient(rows[0], rows[1], 1 / 0.07, block=block)
            return rows[0] - 1e-9 * found.image, rows[1] - 1e-9 * found.text

        return in_loop(moved), (tuple(jnp.asarray(x) for x in rows_of(n, 64, dtype)), np.int32(1))

    cases = [(block, dtype) for dtype in ("float32", "float64") for block in blocks]
    for block, dtype in cases:
        compiler.ask((block, dtype), lambda b=block, k=dtype: make(b, k), dtype)
    compiler.wait()
    lines = []
    for block, dtype in cases:
        with jax.enable_x64(dtype == "float64"):
            first = make(block, dtype)[1][0]
            spent = per_call(compiler[block, dtype].call, first, 0.1)
        lines.append({"pairs": n, "block": block, "dtype": dtype, "ms": 1e3 * spent["seconds"]})
    return lines


# --- other processes ----------------------------------------------------------------------------------


def helper(kind: str, *arguments: Any, timeout: float, on_cpu: bool = False) -> Any:
    """The result of `simulator_helper.py`, a process of its own."""
    return finished(started(kind, *arguments, on_cpu=on_cpu), timeout)


def started(kind: str, *arguments: Any, on_cpu: bool = False) -> "subprocess.Popen[str]":
    call = [sys.executable, str(_HERE / "simulator_helper.py"), kind, *map(str, arguments)]
    environment = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if on_cpu else {})}
    return subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment)


def finished(process: "subprocess.Popen[str]", timeout: float) -> Any:
    try:
        told = process.communicate(timeout=max(timeout, 0.1))[0]
    except subprocess.TimeoutExpired:
        process.kill()
        told = process.communicate()[0]
    # One line after every size, so that what is finished counts.
    lines = [line for line in told.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"the helper ended with code {process.returncode} and without a result")
    return json.loads(lines[-1])


def ratios(record: Record, size: Size) -> list[dict[str, Any]]:
    """How many times faster than the peers, by size and number of runs."""
    peers, lines = record.result("peers") or {}, []
    for n, d in size.sizes:
        theirs = peers.get(f"{n},{d}")
        for dtype in ("float64", "float32"):
            mine = record.result(f"ensemble {n},{d} {dtype}")
            if theirs is None or mine is None:
                continue
            for line in mine["lines"]:
                if "seconds" in line:
                    each = line["seconds"] / line["runs"]
                    lines.append(
                        {
                            "size": f"{n},{d}",
                            "dtype": dtype,
                            "runs": line["runs"],
                            "rtol": line["rtol"],
                            "error": line["error"],
                            "to_scipy": theirs["scipy_seconds"] / each,
                            "to_sweep": theirs["sweep_seconds"] / each,
                        }
                    )
    return lines


# --- the stage ----------------------------------------------------------------------------------------


def keep_from_peers() -> list[int]:
    """Leave the last two cores to the peers, if there are enough; returns theirs."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 6:
        os.sched_setaffinity(0, cores[:-2])
    return cores[-2:]


def main() -> None:
    record = Record(__doc__)
    size = TINY if record.tiny else FULL
    if record.tiny:
        store_programs()  # the next rehearsal compiles less
    peers_at = keep_from_peers()
    peers: subprocess.Popen[str] | None = None
    names = [(n, d, dtype) for n, d in size.sizes for dtype in ("float64", "float32")]
    if record.result("peers") is None:
        peers = started("peers", ",".join(map(str, peers_at)), int(record.tiny), on_cpu=True)
    try:
        ways = record.part("ways", lambda: choose_ways(size), needs=15)
        compiler, lanes = Compiler(), {}
        phase_lanes, options = size.phase_lanes, {}
        if (PHASE_PAIRS, PHASE_DIM) in size.sizes:
            phase_lanes, options, _ = chosen(size, ways, PHASE_PAIRS, PHASE_DIM, "float64")
        if record.result("phase") is None:
            compiler.ask("phase", lambda: phase_program(size.phase, phase_lanes), "float64", options)
        for name in names:
            if record.result(_called(name)) is None:
                lanes[name] = ask_for_ensemble(compiler, size, ways, name)
        if lanes:
            record.part("compiling", compiler.wait)
            compiler.wait()  # also where the record has this part already
        for name in names:
            record.part(_called(name), lambda name=name: _with_room(compiler, size, ways, name, lanes), needs=5)
        record.part("phase", lambda: run_phase(compiler["phase"], size, phase_lanes, record.out), needs=6)
        compiler.drop()
        record.part("precision", lambda: precision(size.check), needs=5)
        record.part("field", lambda: field_times(size), needs=12)
        if peers is not None:
            record.part("peers", lambda: finished(peers, record.left - 2), needs=1)
        record.part("ratios", lambda: ratios(record, size))
        for dtype in ("float64", "float32")[: 1 if record.tiny else 2]:
            record.part(
                f"solve {dtype}",
                lambda dtype=dtype: helper("solve", size.tiled, dtype, timeout=min(40.0, record.left - 1)),
                needs=14,
            )
        record.part("blocks", lambda: block_times(size), needs=8)
        record.part("sweep", lambda: helper("sweep", size.sweep, timeout=record.left - 1), needs=15)
    finally:
        if peers is not None and peers.poll() is None:
            peers.kill()
    record.finish()


def _called(name: tuple[int, int, str]) -> str:
    n, d, dtype = name
    return f"ensemble {n},{d} {dtype}"


def _with_room(compiler: Compiler, size: Size, ways: Any, name: tuple[int, int, str], lanes: dict[Any, Any]) -> Any:
    """`run_ensemble`, with fewer lanes if memory does not suffice."""
    for halved in range(1, 6):
        try:
            with jax.enable_x64(name[2] == "float64"):
                n, d, dtype = name
                side, way = lanes[name]
                return run_ensemble(compiler[name], n, d, dtype, side, way, size)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
                raise
        with contextlib.suppress(Exception):
            lanes[name] = ask_for_ensemble(compiler, size, ways, name, halved)
    raise MemoryError("not enough memory, even with fewer lanes")


if __name__ == "__main__":
    main()
