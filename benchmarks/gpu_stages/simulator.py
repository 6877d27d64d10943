"""The simulator on a GPU: ensembles, a phase diagram of a million runs, the field, a solve of 65,536 pairs.

    python benchmarks/gpu_stages/simulator.py --out DIR [--seconds 120] [--tiny] [--compile-only 1]

Ensembles: the problem of `benchmarks/ensembles.py`, whole ensembles in one compiled program (`benchmarks/
one_program.py`). The first 16 trajectories are the seeds for which `exact_gaps.npz` holds SciPy's DOP853 at rtol 1e-12,
so the error belongs to the timed runs themselves; the other starts are drawn on the device. Peers, on cores of the same
machine that nothing else uses: SciPy's best method on one core, `fs.sweep` on two.

Products in single precision: JAX rounds their factors to TF32 on GPUs unless told otherwise. What the flow asks for is
measured against double precision.

`--compile-only 1` measures nothing: it compiles the programs of the missing parts into JAX's store
(JAX_COMPILATION_CACHE_DIR), while another stage uses the card.

Without a GPU everything runs on the processor. `simulator_phase.npz` holds the phase diagram for
`benchmarks/gpu_figures.py`.
"""

import contextlib
import dataclasses
import functools
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
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
#: Trajectories side by side, by pairs. More are hardly faster on an H200.
LANES = {5: 2**17, 16: 2**15, 32: 2**14}
#: The same for 10^4 trajectories of 5 pairs, which leave most of 2^17 lanes idle.
FEW = 2**14
#: The phase diagram: temperatures τ0, learning-rate ratios r, times.
PHASE_TAU, PHASE_RATIO, PHASE_TIMES = (0.005, 1.0), (1e-3, 1e2), (0.0, 1e2, 1e4, 1e6)
PHASE_PAIRS, PHASE_DIM, PHASE_HEIGHT = 16, 8, 0.3

#: Seconds that a line of an ensemble may take, and above which it is measured once.
_PATIENCE, _ONCE = 8.0, 0.7
#: Seconds without any new program after which other processes start, although programs are missing; at first more.
_IDLE, _START = 8.0, 30.0


class Size(NamedTuple):
    """What differs between a rehearsal and the real run."""

    sizes: tuple[tuple[int, int], ...]
    lanes: dict[int, int]
    few: int
    counts: tuple[int, ...]
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
    FEW,
    (10**4, 10**5, 10**6),
    1000,
    2**15,
    (
        *((n, 64, dtype) for n in (1024, 4096, 16_384, 65_536) for dtype in ("float32", "float64")),
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
    {5: 32},
    16,
    (48, 96),
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
    """A compiled program, its arguments, and the seconds that it took, with others beside it."""

    call: Callable[..., Any]
    given: tuple[Any, ...]
    seconds: float
    trace_seconds: float


class Compiler:
    """Compiles programs by name, in the order in which they are asked for; nobody waits for one that hangs."""

    def __init__(self, most: int = 7) -> None:
        self._traces: queue.Queue[Callable[[], None]] = queue.Queue()
        self._compiles: queue.Queue[Callable[[], None]] = queue.Queue()
        self._found: dict[Any, Future[Program]] = {}
        # Traces share one lock of Python: one after another, the first is ready the earliest.
        workers = [self._traces] + [self._compiles] * max(2, min(most, (os.cpu_count() or 2) - 4))
        for work in workers:
            threading.Thread(target=_work_off, args=(work,), daemon=True).start()

    def ask(self, name: Any, make: Callable[[], tuple[Any, tuple[Any, ...]]], dtype: str) -> None:
        """Compile the function that `make` returns for its arguments, both made in the precision of `dtype`."""
        if name in self._found:
            return
        future: Future[Program] = Future()
        self._found[name] = future

        def traced() -> None:
            begin = time.perf_counter()
            try:
                with jax.enable_x64(dtype == "float64"):  # the mode is one per thread
                    function, given = make()
                    lowered = jax.jit(function).lower(*given)
            except Exception as error:
                future.set_exception(error)
                return
            spent = time.perf_counter() - begin
            self._compiles.put(lambda: compiled(lowered, given, spent))

        def compiled(lowered: Any, given: tuple[Any, ...], spent: float) -> None:
            begin = time.perf_counter()
            try:
                with jax.enable_x64(dtype == "float64"):
                    call = lowered.compile()
            except Exception as error:
                future.set_exception(error)
                return
            future.set_result(Program(call, given, time.perf_counter() - begin, spent))
            print(f"compiled after {spent:.1f} s and {time.perf_counter() - begin:.1f} s: {name}", flush=True)

        self._traces.put(traced)

    def has(self, names: Iterable[Any]) -> bool:
        """Whether these are compiled, or have failed."""
        return all(self._found[name].done() for name in names)

    @property
    def missing(self) -> int:
        """Number of programs that are not ready; while it is not 0, measurements share the machine."""
        return sum(not future.done() for future in self._found.values())

    def __getitem__(self, name: Any) -> Program:
        return self._found[name].result(timeout=0)


def _work_off(work: "queue.Queue[Callable[[], None]]") -> None:
    while True:
        work.get()()


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
        drawn = jax.random.normal(jax.random.fold_in(jax.random.key(0), index), (2, n, d), "float32").astype(dtype)
        drawn = drawn / jnp.sqrt(jnp.sum(drawn**2, axis=-1, keepdims=True))
        rows = jnp.where(index < CHECKED, given[jnp.minimum(index, CHECKED - 1)], drawn)
        return dataclasses.replace(state.unknowns, position=type(state.unknowns.position)(rows[0], rows[1])), None

    def field(t: Any, unknowns: Any, _: Any) -> Any:
        return flow.vector_field(t, dataclasses.replace(state, unknowns=unknowns))

    return Problem(start, field, difference, lambda v: jnp.sqrt(jnp.sum(v**2))[None])


def difference(unknowns: Any) -> Any:
    """Mean image row minus mean text row."""
    return jnp.mean(unknowns.position.image, axis=0) - jnp.mean(unknowns.position.text, axis=0)


def run_ensemble(
    program: Program,
    n: int,
    d: int,
    dtype: str,
    counts: tuple[int, ...],
    lanes: int,
    left: Callable[[], float],
    tell: Callable[[Any], None],
) -> dict[str, Any]:
    """Errors by tolerance, and seconds by number of trajectories; `tell` gets what there is after every line."""
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
        "compile_seconds": program.seconds,
        "trace_seconds": program.trace_seconds,
        "errors_by_rtol": {f"{r:g}": e for r, e in errors.items()},
        "rtol": rtol,
        "error": errors[rtol],
        "lines": [],
    }
    lines = {(count, rtol): None for count in counts}
    if dtype == "float32" and rtol != 1e-5:
        lines[counts[-1], 1e-5] = None  # its own: the tightest that `simulate` allows
    for count, at in lines:
        done = [line for line in found["lines"] if "seconds" in line]
        before = [line for line in done if line["rtol"] == at] or done
        full = max(count, lanes)  # fewer take as long as all lanes
        if before and before[-1]["seconds"] * full / max(before[-1]["runs"], lanes) > min(_PATIENCE, left()):
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
        repeats = 3 if once < _ONCE else 0
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
        tell(found)
    return found


def ensemble_program(n: int, d: int, dtype: str, most: int, lanes: int) -> tuple[Any, tuple[Any, ...]]:
    number = np.dtype(dtype).type
    function = ensemble(ensemble_problem(n, d, dtype), TIMES, most, lanes, number)
    return function, (np.int32(1), number(1e-6), number(1e-9))


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


def run_phase(program: Program, size: Size, out: Path) -> dict[str, Any]:
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
        "busy": float(np.asarray(ran.tried).sum()) / (int(ran.rounds) * size.phase_lanes),
        "file_bytes": path.stat().st_size,
        "corners": [
            {"tau0": tau0[i], "ratio": ratio[j], "gap": gap[j, i, 1:].tolist(), "tau": tau[j, i]}
            for j in side
            for i in side
        ],
    }


# --- the field of many pairs --------------------------------------------------------------------------


@functools.cache
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

    return in_loop(moved), (tuple(rows_of(n, d, dtype)), np.int32(1))


def field_names(size: Size, n: int, d: int, dtype: str) -> list[tuple[str, int, int, str]]:
    """Programs of the field, of its floor and of the same with TF32."""
    least = min(n, size.floor_pairs)
    names = [("field", n, d, dtype), ("floor", least, d, dtype), ("tf32", least, d, dtype)]
    return names if dtype == "float32" else names[:2]


def ask_for_field(compiler: Compiler, size: Size, n: int, d: int, dtype: str) -> list[Any]:
    names = field_names(size, n, d, dtype)
    makers = {
        "field": lambda n: field_program(n, d, dtype),
        "floor": lambda n: floor_program(n, d, dtype),
        "tf32": lambda n: floor_program(n, d, dtype, "default"),
    }
    for name in names:
        compiler.ask(name, lambda name=name: makers[name[0]](name[1]), dtype)
    return names


def field_times(
    compiler: Compiler, size: Size, n: int, d: int, dtype: str, measured: dict[Any, dict[str, float]]
) -> dict[str, Any]:
    """Milliseconds of the field and of its floor; `measured` holds what is known of the floor."""
    line: dict[str, Any] = {"pairs": n, "dim": d, "dtype": dtype, "tiled": n >= 256, "compiling": compiler.missing}
    for name in field_names(size, n, d, dtype):
        kind, least = name[:2]
        if name not in measured:
            try:
                with jax.enable_x64(dtype == "float64"):
                    program = compiler[name]
                    measured[name] = per_call(program.call, program.given[0], 0.1)
            except Exception as error:
                line[f"{kind}_error"] = str(error)[:200]
                continue
        scale = (n / least) ** 2
        line[f"{kind}_ms"] = [1e3 * scale * measured[name][k] for k in ("least", "seconds", "most")]
        line[f"{kind}_scaled_from"] = least
    if "field_ms" in line:
        line["field_tflops"] = 8e-9 * n**2 * d / line["field_ms"][1]
        if "floor_ms" in line:
            line["to_floor"] = line["field_ms"][1] / line["floor_ms"][1]
    return line


def precision_program(pairs: int, dtype: str) -> tuple[Any, tuple[Any, ...]]:
    """The flow's loss and field, in double precision at the same numbers as in single precision."""
    flow = to_device(fs.GradientFlow(), np.dtype(dtype))
    image, text = (x.astype(dtype) for x in rows_of(pairs, 64, "float32"))
    state = flow.initial_state(fs.initial.from_arrays(image, text), dtype=np.dtype(dtype))
    raw = np.float32(np.log(1 / 0.07)).astype(dtype)
    unknowns = dataclasses.replace(state.unknowns, raw_temperature=raw)

    def both(unknowns: Any) -> tuple[Any, Any]:
        at = dataclasses.replace(state, unknowns=unknowns)
        return flow.loss_value(1.0, at), flow.vector_field(1.0, at)

    return both, (unknowns,)


def product_program(precision: str) -> tuple[Any, tuple[Any, ...]]:
    return lambda x, y: jnp.matmul(x, y.T, precision=precision), tuple(rows_of(200, 64, "float32"))


def ask_for_precision(compiler: Compiler, size: Size) -> list[Any]:
    names: list[Any] = []
    for kind, pairs in (("tiled", size.check), ("dense", 200)):
        for dtype in ("float64", "float32"):
            names.append((kind, dtype))
            compiler.ask(names[-1], lambda pairs=pairs, dtype=dtype: precision_program(pairs, dtype), dtype)
    for name in ("default", "highest"):
        names.append(("product", name))
        compiler.ask(names[-1], lambda name=name: product_program(name), "float32")
    return names


def precision(compiler: Compiler, size: Size) -> dict[str, Any]:
    """Relative errors of single precision: of the flow's loss and field in tiles and with matrices, and of products."""
    found: dict[str, Any] = {}
    for kind, pairs in (("tiled", size.check), ("dense", 200)):
        both = {}
        for dtype in ("float64", "float32"):
            program = compiler[kind, dtype]
            with jax.enable_x64(dtype == "float64"):
                value, velocity = program.call(*program.given)
            both[dtype] = {
                "value": np.asarray(value, np.float64),
                "image": np.asarray(velocity.position.image, np.float64),
                "text": np.asarray(velocity.position.text, np.float64),
                "temperature": np.asarray(velocity.raw_temperature, np.float64),
            }
        found[kind] = {
            "pairs": pairs,
            **{
                key: float(np.linalg.norm(both["float32"][key] - value) / np.linalg.norm(value))
                for key, value in both["float64"].items()
            },
        }
    x, y = (rows.astype(np.float64) for rows in rows_of(200, 64, "float32"))
    right = x @ y.T
    for name in ("default", "highest"):
        program = compiler["product", name]
        got = np.asarray(program.call(*program.given), np.float64)
        found[f"product_{name}"] = float(np.linalg.norm(got - right) / np.linalg.norm(right))
    return found


def ask_for_block(compiler: Compiler, size: Size, block: int, dtype: str) -> tuple[str, int, str]:
    """Value and gradient in tiles of one size."""

    def make() -> tuple[Any, tuple[Any, ...]]:
        def moved(rows: Any) -> Any:
            found = tiled.loss_and_gradient(rows[0], rows[1], 1 / 0.07, block=block)
            return rows[0] - 1e-9 * found.image, rows[1] - 1e-9 * found.text

        return in_loop(moved), (tuple(rows_of(size.blocks[0], 64, dtype)), np.int32(1))

    name = ("block", block, dtype)
    compiler.ask(name, make, dtype)
    return name


def block_times(compiler: Compiler, size: Size, names: list[tuple[str, int, str]]) -> list[dict[str, Any]]:
    """Milliseconds by size of the tiles."""
    lines = []
    for name in names:
        _, block, dtype = name
        program = compiler[name]
        with jax.enable_x64(dtype == "float64"):
            spent = per_call(program.call, program.given[0], 0.05)
        lines.append({"pairs": size.blocks[0], "block": block, "dtype": dtype, "ms": 1e3 * spent["seconds"]})
    return lines


# --- other processes ----------------------------------------------------------------------------------


def started(kind: str, *arguments: Any, on_cpu: bool = False) -> "subprocess.Popen[str]":
    call = [sys.executable, str(_HERE / "simulator_helper.py"), kind, *map(str, arguments)]
    environment = {**os.environ, **({"JAX_PLATFORMS": "cpu"} if on_cpu else {})}
    return subprocess.Popen(call, stdout=subprocess.PIPE, text=True, env=environment)


class Told:
    """What another process has told so far, one JSON object in a line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process, self.last = process, None
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            if line.startswith("{"):
                self.last = json.loads(line)

    def result(self, timeout: float) -> Any:
        """The last object after the end of the process, which is ended after `timeout` seconds."""
        self._reader.join(max(timeout, 0.1))
        self.end()
        self._reader.join(1.0)
        if self.last is None:
            raise RuntimeError(f"the helper ended with code {self.process.poll()} and without a result")
        return self.last

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()


# --- the stage ----------------------------------------------------------------------------------------


def keep_from_peers() -> list[int]:
    """Leave the last two cores to the peers, if there are enough; returns theirs."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) >= 6:
        os.sched_setaffinity(0, cores[:-2])
    return cores[-2:]


class Task(NamedTuple):
    """A part of the record: the seconds it needs, its programs (None: another process), and its measurement."""

    name: str
    needs: float
    programs: list[Any] | None
    measure: Callable[[], Any]


def _called(n: int, d: int, dtype: str, few: bool = False) -> str:
    return f"ensemble {n},{d} {dtype}{', few lanes' * few}"


def tasks_of(record: Record, size: Size, compiler: Compiler) -> list[Task]:
    """All parts that are not in the record yet, the most valuable first; begins to compile in this order."""
    tasks: list[Task] = []
    measured: dict[Any, dict[str, float]] = {}

    def new(name: str) -> bool:
        return record.result(name) is None

    def ensembles(dtype: str, sizes: Iterable[tuple[int, int]], needs: float, few: bool = False) -> None:
        counts = size.counts[: 1 if few else None]
        for n, d in sizes:
            name, lanes = _called(n, d, dtype, few), size.few if few else size.lanes[n]
            if not new(name):
                continue
            compiler.ask(name, lambda n=n, d=d, lanes=lanes: ensemble_program(n, d, dtype, counts[-1], lanes), dtype)

            def measure(name: str = name, n: int = n, d: int = d, lanes: int = lanes) -> Any:
                def tell(found: Any) -> None:
                    record.so_far(name, found)

                beside = compiler.missing
                with jax.enable_x64(dtype == "float64"):
                    ran = run_ensemble(compiler[name], n, d, dtype, counts, lanes, lambda: record.left - 2, tell)
                return {**ran, "compiling": [beside, compiler.missing]}

            tasks.append(Task(name, needs, [name], measure))

    def field(lines: Iterable[tuple[int, int, str]]) -> None:
        for n, d, dtype in lines:
            name = f"field {n},{d} {dtype}"
            if new(name):
                programs = ask_for_field(compiler, size, n, d, dtype)
                needs = 2 + 4 * (n / 65_536) ** 2 * d / 64
                tasks.append(
                    Task(
                        name,
                        needs,
                        programs,
                        lambda n=n, d=d, dtype=dtype: field_times(compiler, size, n, d, dtype, measured),
                    )
                )

    ensembles("float64", size.sizes[:2], 5)
    ensembles("float64", size.sizes[:1], 2, few=True)
    if new("phase"):
        compiler.ask("phase", lambda: phase_program(size.phase, size.phase_lanes), "float64")
        tasks.append(Task("phase", 16, ["phase"], lambda: run_phase(compiler["phase"], size, record.out)))
    if new("precision"):
        tasks.append(Task("precision", 2, ask_for_precision(compiler, size), lambda: precision(compiler, size)))
    field(size.field)
    ensembles("float32", size.sizes[:2], 3)
    ensembles("float64", size.sizes[2:], 6)
    for dtype in ("float64", "float32")[: 1 if record.tiny else 2]:
        tasks.append(
            Task(
                f"solve {dtype}",
                14,
                None,
                lambda dtype=dtype: Told(started("solve", size.tiled, dtype)).result(min(30.0, record.left - 2)),
            )
        )
    for dtype in ("float32", "float64"):
        name = f"blocks {dtype}"
        if new(name):
            programs = [ask_for_block(compiler, size, block, dtype) for block in size.blocks[1]]
            tasks.append(Task(name, 3, programs, lambda programs=programs: block_times(compiler, size, programs)))
    ensembles("float32", size.sizes[2:], 4)
    tasks.append(Task("sweep", 15, None, lambda: Told(started("sweep", size.sweep)).result(record.left - 2)))
    return tasks


def next_task(tasks: list[Task], compiler: Compiler, idle: float) -> Task | None:
    """The first whose programs are there; other processes only if it is their turn, or if nothing else comes."""
    for i, task in enumerate(tasks):
        if task.programs is None:
            if i == 0 or idle > _IDLE:
                return task
        elif compiler.has(task.programs):
            return task
    return None


def too_late() -> Any:
    raise TimeoutError("its programs were not compiled in time")


def compile_only(record: Record, size: Size) -> None:
    """Compile the programs of the missing parts into JAX's store."""
    compiler = Compiler(most=12)
    tasks_of(record, size, compiler)
    while compiler.missing and record.left > 0:
        time.sleep(0.1)
    print(f"simulator: {compiler.missing} programs not compiled, {record.left:.0f} s left", flush=True)
    sys.stdout.flush()
    os._exit(0)


def main() -> None:
    record = Record(__doc__, compile_only=0)
    size = TINY if record.tiny else FULL
    if record.tiny:
        store_programs()  # the next rehearsal compiles less
    if record.options.compile_only:
        compile_only(record, size)
    peers_at = keep_from_peers()
    sizes = [f"{n},{d}" for n, d in size.sizes if record.result(f"peers {n},{d}") is None]
    peers: Told | None = None
    if sizes:
        peers = Told(started("peers", ",".join(map(str, peers_at)), int(record.tiny), ";".join(sizes), on_cpu=True))
    compiler = Compiler()
    # The first programs may take longer: the card starts, too.
    tasks, last = tasks_of(record, size, compiler), time.monotonic() + _START

    def note_peers(ended: bool) -> None:
        """Note what the peers have told; with `ended` also what they have not."""
        for name in list(sizes):
            told = (peers.last if peers is not None else None) or {}
            if ended or name in told:
                record.part(f"peers {name}", lambda told=told, name=name: told[name])
                sizes.remove(name)

    try:
        while tasks:
            note_peers(False)
            task = next_task(tasks, compiler, time.monotonic() - last)
            late = next((t for t in tasks if t.needs > record.left), None)
            if late is not None:
                ready = late.programs is None or compiler.has(late.programs)
                record.part(late.name, late.measure if ready else too_late, needs=late.needs if ready else 0)
                tasks.remove(late)
            elif task is not None:
                record.part(task.name, task.measure, needs=task.needs)
                tasks.remove(task)
                last = time.monotonic()
            else:
                time.sleep(0.02)
        if peers is not None and sizes:
            with contextlib.suppress(RuntimeError):  # it has told nothing
                peers.result(record.left - 1.5)
            note_peers(True)
    finally:
        if peers is not None:
            peers.end()
    record.finish()
    if compiler.missing:
        # A thread in the compiler would keep the process.
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main()
