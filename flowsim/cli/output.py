"""Output of commands: sentences and progress on stderr, results and JSON on stdout; and exit codes."""

import contextlib
import json
import math
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from flowsim.progress import Progress, silent

if TYPE_CHECKING:
    from flowsim.records.result import Result

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


def say(sentence: str) -> None:
    """One line on stderr."""
    print("flowsim: " + " ".join(sentence.split()), file=sys.stderr)


def say_saved(path: str | None) -> None:
    """Report a saved file, after everything on stdout; nothing without a file."""
    sys.stdout.flush()
    if path is not None:
        say(f"Saved {path}.")


def print_json(value: Any) -> None:
    """Strict JSON on stdout."""
    print(json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False))


def plain(value: Any) -> Any:
    """Values that strict JSON can hold: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def summary(result: "Result") -> dict[str, Any]:
    """Status and the observables at the last time that was reached."""
    time, status = result.time, result.status
    last = len(time) - 1
    if not status.ok:
        last = max((i for i, t in enumerate(time) if t <= status.stopped_at), default=0)
    return {
        "status": status.code.name,
        "sentence": status.sentence,
        "stopped_at": status.stopped_at,
        "method": status.method,
        "time": time[last],
        "observables": {name: values[last] for name, values in result.series.items()},
        "reasons": result.reasons,
        "stats": result.stats,
        "config": result.config,
        "versions": result.versions,
    }


@contextlib.contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A spinner on stderr if that is a terminal, and a bar once a total is known; yields what moves them.

    It also shows when a program is being compiled, which takes most of the time of a first run.
    """
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    from flowsim.base import notice

    spinner, counted = (SpinnerColumn(), TextColumn("{task.description}")), (BarColumn(), MofNCompleteColumn())
    with Bars(*spinner, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        task, doing = bars.add_task(title, total=None), title

        def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
            nonlocal doing
            doing = f"{title}: {text}"
            bars.columns = (*spinner, *(counted if total else ()), TimeElapsedColumn())
            bars.update(task, description=doing, completed=done, total=total)

        def compiles(yes: bool) -> None:
            bars.update(task, description=f"{doing} (compiling ...)" if yes else doing)

        with notice.watch(compiles):
            yield show
