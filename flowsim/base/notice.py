"""A notice while JAX compiles, which can take longer than the run: for people who wait, not for logs."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

#: Seconds before the notice appears.
_PATIENCE = 1.0
_TEXT = "compiling ..."

#: Called with True when compiling begins and False when it ends; only the last one added is called.
_watchers: list[Callable[[bool], None]] = []
_lock = threading.Lock()
_depth = 0
_listening = False


@contextlib.contextmanager
def watch(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call `tell(True)` when JAX begins to trace or compile a program, and `tell(False)` when it ends."""
    global _listening, _depth
    import jax

    with _lock:
        if not _listening:
            # JAX records the beginning of each stage as a scalar, and its end as a duration.
            jax.monitoring.register_scalar_listener(lambda event, value, **_: _heard(event, 1))
            jax.monitoring.register_event_duration_secs_listener(lambda event, duration_secs, **_: _heard(event, -1))
            _listening = True
        if not _watchers:
            _depth = 0
        _watchers.append(tell)
    try:
        yield
    finally:
        with _lock:
            _watchers.remove(tell)


def _heard(event: str, change: int) -> None:
    global _depth
    if not (event.startswith("/jax/core/compile/") and _watchers):
        return
    with _lock:
        before, _depth = _depth, max(_depth + change, 0)
        told = _watchers[-1] if _watchers and (before > 0) != (_depth > 0) else None
    if told is not None:
        told(change > 0)


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Show "compiling ..." on stderr while programs are compiled, if that takes long and stderr is a terminal.

    Notebooks already mark a running cell, and would keep the text. It is erased when compiling ends. If another notice
    is open, as on the command line, nothing is shown.
    """
    if _watchers or not sys.stderr.isatty():
        yield
        return
    begin = time.perf_counter()
    waiting: threading.Timer | None = None
    busy = shown = False

    def write(text: str) -> None:
        nonlocal shown
        if busy == (text == _TEXT):
            shown = busy
            print(text, end="\r", file=sys.stderr, flush=True)

    def tell(compiles: bool) -> None:
        nonlocal busy, waiting
        busy = compiles
        if waiting is not None:
            waiting.cancel()
        if compiles:
            waiting = threading.Timer(max(begin + _PATIENCE - time.perf_counter(), 0.0), write, [_TEXT])
            waiting.daemon = True
            waiting.start()
        elif shown:
            write(" " * len(_TEXT))

    try:
        with watch(tell):
            yield
    finally:
        tell(False)
