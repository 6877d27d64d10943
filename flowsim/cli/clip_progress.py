"""Progress of trainings: bars on a terminal, otherwise a line from time to time."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flowsim.cli.output import say
from flowsim.progress import Progress


@contextlib.contextmanager
def bars(name: str | None = None, runs: int = 1) -> Iterator[Progress]:
    """Progress bars on stderr, one for each active run or other work; lines from time to time if it is no terminal.

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
            run = _run(name, text)
            if run not in tasks:
                tasks[run] = bars.add_task(run, total=total, numbers="")
            bars.update(tasks[run], completed=done, numbers=_numbers(numbers))
            if done == total and "loss" not in numbers:
                bars.remove_task(tasks.pop(run))
            elif done == total and whole is not None:
                bars.advance(whole)
                bars.remove_task(tasks[run])

        yield show


def lines(name: str | None = None) -> Progress:
    """A line on stderr for each tenth of a run."""
    said: dict[str, int] = {}

    def show(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        run, tenth = _run(name, text), 10 * done // (total or 1)
        if said.get(run) != tenth:
            said[run] = tenth
            unit = "step" if "loss" in numbers else "image"
            say(f"{run}: {unit} {done} of {total}, {_numbers(numbers)}")

    return show


def _run(name: str | None, text: str) -> str:
    """What a line or bar is called: a single run by its name, other work by its own."""
    return name if name is not None and text == "training" else text


def _numbers(numbers: Mapping[str, float]) -> str:
    if "loss" not in numbers:
        return f"{numbers['images_per_second']:.0f} images/s"
    return (
        f"loss {numbers['loss']:.3f}, τ {numbers['temperature']:.4f}, gap {numbers['modality_gap']:.3f}, "
        f"{numbers['images_per_second']:.0f} images/s"
    )
