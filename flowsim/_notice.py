"""A sign of life while JAX compiles, which can take longer than the run: for people who wait, not for logs."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

#: Seconds of compiling without a word.
_PATIENCE = 1.0
_TEXT = "compiling ..."

#: Who is told that compiling begins (True) or has ended (False); the last to come shows it.
_watchers: list[Callable[[bool], None]] = []
_listening = False


@contextlib.contextmanager
def watch(tell: Callable[[bool], None]) -> Iterator[None]:
    """Call `tell(True)` while JAX traces and compiles a program, and `tell(False)` when it is done."""
    global _listening
    if not _listening:
        import jax

        jax.monitoring.register_event_duration_secs_listener(_heard)
        _listening = True
    _watchers.append(tell)
    try:
        yield
    finally:
        _watchers.remove(tell)


def _heard(event: str, duration_secs: float, **_: object) -> None:
    # JAX reports the end of each stage: of tracing, of lowering, and last of compiling.
    if event.startswith("/jax/core/compile/") and _watchers:
        _watchers[-1](not event.endswith("backend_compile_duration"))


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """ "compiling ..." on stderr while a program compiles, if that takes long and somebody sees it.

    Somebody does in a terminal and in IPython. The words are taken away when compiling ends. Where another notice
    shows what happens already, as the command line does, nothing is written.
    """
    if _watchers or not _seen():
        yield
        return
    begin, shown = time.perf_counter(), False

    def tell(compiles: bool) -> None:
        nonlocal shown
        if compiles == shown or (compiles and time.perf_counter() - begin < _PATIENCE):
            return
        shown = compiles
        print(_TEXT if compiles else " " * len(_TEXT), end="\r", file=sys.stderr, flush=True)

    try:
        with watch(tell):
            yield
    finally:
        tell(False)


def _seen() -> bool:
    return sys.stderr.isatty() or hasattr(sys, "ps1") or "get_ipython" in vars(sys.modules.get("builtins"))
