"""Where calls are computed: in threads, in processes, or on the workers of a cluster; one interface for all."""

import contextlib
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import (
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    as_completed,
)
from typing import Any

from flowsim.base.processes import follow_parent
from flowsim.errors import FlowsimError

_CURE = (
    "Use a dask.distributed.Client, its address such as 'tcp://host:8786', "
    "a concurrent.futures executor, or 'processes:4'."
)


def check(executor: Any) -> None:
    """Raise `FlowsimError` for what cannot compute anything, before anything is opened or written."""
    if isinstance(executor, str) and executor.startswith("processes:"):
        count = executor.removeprefix("processes:")
        if not count.isdecimal() or int(count) < 1:
            raise FlowsimError(f"Argument `executor` cannot be {executor!r}. {_CURE}")
    elif isinstance(executor, str):
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise FlowsimError("Clusters need dask. Install it: pip install 'flowsim[cluster]'.") from None
        # Dask would find out in a task of its own, whose error turns up anywhere later.
        if not re.fullmatch(r"(\w+://.+|[^:/\s]+:\d+)", executor):
            raise FlowsimError(f"There is no dask scheduler at {executor!r}. {_CURE}")
    elif not (executor is None or isinstance(executor, Executor) or _is_client(executor)):
        raise FlowsimError(f"Argument `executor` cannot be {type(executor).__name__}. {_CURE}")


@contextlib.contextmanager
def opened(executor: Any, threads: int) -> Iterator[Executor]:
    """A concurrent.futures executor for what the user gave and `check` let pass; None: `threads` threads here.

    What is opened here is closed here; what the user opened stays open. Raises `FlowsimError` where no scheduler is.
    """
    if executor is None:
        with ThreadPoolExecutor(max(threads, 1)) as pool:
            yield pool
    elif isinstance(executor, Executor):
        yield executor
    elif _is_client(executor):
        yield _Cluster(executor)
    elif executor.startswith("processes:"):
        count = int(executor.removeprefix("processes:"))
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), follow_parent) as pool:
            yield pool
    else:
        from distributed import Client

        try:
            client = Client(executor, timeout="10s")
        except (OSError, ValueError):
            raise FlowsimError(f"There is no dask scheduler at {executor!r}. {_CURE}") from None
        with client:
            yield _Cluster(client)


def completed(
    executor: Executor, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]
) -> Iterator[tuple[int, Any]]:
    """(index, `function(*calls[index])`) as they finish; an error cancels what has not begun.

    Raises `FlowsimError` where the executor itself is lost, after everything that was finished.
    """
    futures: dict[Future[Any], int] = {}
    lost, gone = (BrokenExecutor, CancelledError, *_lost()), None
    try:
        try:
            futures.update((executor.submit(function, *call), index) for index, call in enumerate(calls))
        except lost as error:
            gone = error
        for future in as_completed(futures):
            # Answers are not kept: those of a large sweep would be as much again as its result.
            index = futures.pop(future)
            try:
                answer = future.result()
            except lost as error:
                gone = error
                continue
            yield index, answer
        if gone is not None:
            raise FlowsimError(
                f"The workers were lost before the end ({type(gone).__name__}). "
                "Do the same again: what was stored with `to` is kept."
            ) from gone
    finally:
        for future in futures:
            future.cancel()


def _is_client(executor: Any) -> bool:
    """Whether this is a dask client; dask is loaded only where somebody else has loaded it."""
    return "distributed" in sys.modules and isinstance(executor, sys.modules["distributed"].Client)


class _Cluster(Executor):
    """A dask client as an executor. Dask's own never answers where the scheduler dies while it hands out a result."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # Not pure: a chunk that failed must not be answered from the scheduler's memory.
        remote, local = self._client.submit(function, *args, **kwargs, pure=False), Future[Any]()

        def ended(remote: Any) -> None:
            if remote.status == "cancelled":
                local.cancel()
            if not local.set_running_or_notify_cancel():
                return
            try:
                local.set_result(remote.result())
            except BaseException as error:
                # Of the call itself, or of the way here.
                lost = BrokenExecutor(f"the result was lost: {error}")
                local.set_exception(error if remote.status == "error" else lost)

        def cancelled(local: Future[Any]) -> None:
            if local.cancelled() and remote.status != "cancelled":
                remote.cancel()

        remote.add_done_callback(ended)
        local.add_done_callback(cancelled)
        return local


def _lost() -> tuple[type[BaseException], ...]:
    """What dask raises where workers die again and again, or the scheduler is gone."""
    if "distributed" not in sys.modules:
        return ()
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    return KilledWorker, CommClosedError
