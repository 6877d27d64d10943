"""Progress of trainings: bars on a terminal, otherwise a line from time to time."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flowsim.cli.output import say
from flowsim.progress import Progress


@contextlib.contextmanager
def bars(name: str | None = None, runs: int = 1) -> Iterator[Progress]:
    """Progress bars on stderr, one for each active run; lines from time to time if stderr is not a terminal.

    `name`: the name of a single run. The runs of a study report their own.
    """
    if not sys.stderr.isatty():
        yield lines(name)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    with Bars(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        whole = bars.add_task("runs", total=runs, numbers="") if runs > 1 else None

        def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
            run = name or text
            if run not in tasks:
                tasks[run] = bars.add_task(run, total=total, numbers="")
            bars.update(tasks[run], completed=done, numbers=_numbers(numbers))
            if done == total and whole is not None:
                bars.advance(whole)
                bars.remove_task(tasks[run])

        yield show


def lines(name: str | None = None) -> Progress:
    """A line on stderr for each tenth of a run."""
    said: dict[str, int] = {}

    def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        run, tenth = name or text, 10 * done // (total or 1)
        if said.get(run) != tenth:
            said[run] = tenth
            say(f"{run}: step {done} of {total}, {_numbers(numbers)}")

    return show


def _numbers(numbers: Mapping[str, float]) -> str:
    return (
        f"loss {numbers['loss']:.3f}, τ {numbers['temperature']:.4f}, gap {numbers['modality_gap']:.3f}, "
        f"{numbers['images_per_second']:.0f} images/s"
    )
