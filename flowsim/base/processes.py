"""Work in several processes: tracing programs keeps one core busy, and threads cannot share it."""

import contextlib
import importlib.metadata
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.progress import Progress

#: Processes that work at the same time.
WORKERS = 2

#: Seconds between two looks at whether the parent process still lives.
_LOOK = 1.0

Call = tuple[Callable[..., Any], tuple[Any, ...]]


class Stopped(Exception):
    """Another call failed, or the user interrupted."""


_channel: Any = None
_stop: Any = None


def compile_quickly() -> None:
    """Let XLA optimise less, for work that compiles more than it runs. Takes effect before JAX has started."""
    flags = ["--xla_backend_optimization_level=0"]
    # Its older emitters compile in half the time. XLA ends the process at a flag that it does not know.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    present = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join([*present, *(flag for flag in flags if flag not in present)])


def run(
    calls: Sequence[Call],
    progress_of: Callable[[int], Progress],
    quick: bool = False,
    workers: int = WORKERS,
    single: bool = False,
) -> Iterator[tuple[int, Any]]:
    """Run calls `function(progress, *arguments)` in several processes.

    A single call runs in this process. Calls start in order. An error in one stops the others the next time that they
    report progress, where `Stopped` is raised in them.

    Args:
        calls: Functions, which must be importable by name, and their arguments.
        progress_of: Gives the progress that shows how far the call of an index is.
        quick: Whether the processes `compile_quickly`.
        workers: Processes at the same time.
        single: Whether linear algebra outside JAX uses one thread in each process: threads of several processes that
            wait for each other are many times slower.

    Yields:
        (index, result) of each call as it finishes.
    """
    if len(calls) < 2:
        for index, (function, arguments) in enumerate(calls):
            yield index, function(progress_of(index), *arguments)
        return
    context = multiprocessing.get_context("spawn")
    channel, stop = context.SimpleQueue(), context.Event()
    with ProcessPoolExecutor(workers, context, _begin, (channel, stop, quick)) as pool:
        with _one_thread() if single else contextlib.nullcontext():  # the processes start with the first call
            futures = {pool.submit(_work, i, function, arguments): i for i, (function, arguments) in enumerate(calls)}
        waiting = set(futures)
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.1, return_when=FIRST_COMPLETED)
                while not channel.empty():
                    index, told, numbers = channel.get()
                    progress_of(index)(*told, **numbers)
                for future in done:
                    yield futures[future], future.result()
        except BaseException:
            stop.set()
            for future in waiting:
                future.cancel()
            raise


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Processes started within it use one thread for linear algebra, unless the user has chosen a number."""
    chosen = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS") if name not in os.environ}
    os.environ.update(chosen)
    try:
        yield
    finally:
        for name in chosen:
            os.environ.pop(name, None)


def follow_parent() -> None:
    """End with the process that started this one, also where it was killed and could not call off anything."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK)
        os._exit(1)

    threading.Thread(target=look, daemon=True).start()


def _begin(channel: Any, stop: Any, quick: bool) -> None:
    global _channel, _stop
    _channel, _stop = channel, stop
    # The first process hears the interrupt and calls off the work.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    follow_parent()
    if quick:
        compile_quickly()


def _work(index: int, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    def progress(*told: Any, **numbers: float) -> None:
        if _stop.is_set():
            raise Stopped
        _channel.put((index, told, numbers))

    try:
        return function(progress, *arguments)
    except FlowsimError as error:
        # Some carry results that do not travel between processes.
        raise FlowsimError(str(error)) from None
