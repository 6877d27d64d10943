"""One interface to threads, processes and the workers of a cluster."""

import contextlib
import importlib.util
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    """Raise `FlowsimError` for an invalid executor, before anything is opened or written."""
    if isinstance(executor, str) and executor.startswith("processes:"):
        count = executor.removeprefix("processes:")
        if not count.isdecimal() or int(count) < 1:
            raise FlowsimError(f"Argument `executor` cannot be {executor!r}. {_CURE}")
    elif isinstance(executor, str):
        try:
            import distributed  # noqa: F401
        except ImportError:
            raise FlowsimError("Clusters need dask. Install it: pip install 'flowsim[cluster]'.") from None
        # Dask would raise the error later, from a background task.
        if not re.fullmatch(r"(\w+://.+|[^:/\s]+:\d+)", executor):
            raise FlowsimError(f"There is no dask scheduler at {executor!r}. {_CURE}")
    elif not (executor is None or isinstance(executor, Executor) or _is_client(executor)):
        raise FlowsimError(f"Argument `executor` cannot be {type(executor).__name__}. {_CURE}")


def check_importable(executor: Any, own: Mapping[str, Any]) -> None:
    """Refuse what a user defined in a notebook or terminal, by name, for workers that must import it."""
    starts = isinstance(executor, str) and executor.startswith("processes:")
    if not (starts or isinstance(executor, ProcessPoolExecutor)):
        return
    lost = [name for name, thing in own.items() if not _is_importable(thing.__module__)]
    if lost:
        raise FlowsimError(
            f"Other processes cannot import {' and '.join(map(repr, lost))}, defined in this session. Move the code "
            "into a .py file and import it, or leave out `executor`."
        )


def _is_importable(module: str) -> bool:
    if module == "__main__":  # processes run the file of a script again, under another name
        return hasattr(sys.modules["__main__"], "__file__")
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@contextlib.contextmanager
def opened(executor: Any, threads: int) -> Iterator[Executor]:
    """A concurrent.futures executor for the user's `executor`, which `check` has passed; None: `threads` threads.

    Closes what it opened; an executor of the user stays open. Raises `FlowsimError` if there is no scheduler.
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
    """Yield (index, `function(*calls[index])`) as calls finish; an error cancels those that have not begun.

    Raises `FlowsimError` if the executor itself is lost, after yielding all finished calls.
    """
    futures: dict[Future[Any], int] = {}
    lost, gone = (BrokenExecutor, CancelledError, *_lost()), None
    try:
        try:
            futures.update((executor.submit(function, *call), index) for index, call in enumerate(calls))
        except lost as error:
            gone = error
        for future in as_completed(futures):
            # Answers are not kept: those of a large sweep would double the memory of its result.
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
                "Repeat the call: what has been stored is kept."
            ) from gone
    finally:
        for future in futures:
            future.cancel()


def _is_client(executor: Any) -> bool:
    """Whether this is a dask client; dask is not imported for the check."""
    return "distributed" in sys.modules and isinstance(executor, sys.modules["distributed"].Client)


class _Cluster(Executor):
    """A dask client as an executor; dask's own hangs if the scheduler dies while it returns a result."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        # Not pure, so that a chunk that failed is computed again and not taken from the scheduler's cache.
        remote, local = self._client.submit(function, *args, **kwargs, pure=False), Future[Any]()

        def ended(remote: Any) -> None:
            if remote.status == "cancelled":
                local.cancel()
            if not local.set_running_or_notify_cancel():
                return
            try:
                local.set_result(remote.result())
            except BaseException as error:
                # The call itself failed, or its result was lost.
                lost = BrokenExecutor(f"the result was lost: {error}")
                local.set_exception(error if remote.status == "error" else lost)

        def cancelled(local: Future[Any]) -> None:
            if local.cancelled() and remote.status != "cancelled":
                remote.cancel()

        remote.add_done_callback(ended)
        local.add_done_callback(cancelled)
        return local


def _lost() -> tuple[type[BaseException], ...]:
    """Exceptions that dask raises if workers die repeatedly or the scheduler is gone."""
    if "distributed" not in sys.modules:
        return ()
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    return KilledWorker, CommClosedError
