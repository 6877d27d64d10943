"""Progress of trainings: bars on a terminal, otherwise a line from time to time."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from flowsim.cli.output import say


@contextlib.contextmanager
def bars(runs: int = 1) -> Iterator[Callable[[str, dict[str, float]], None]]:
    """Progress bars on stderr, one for each active run; lines from time to time if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        whole = bars.add_task("runs", total=runs, numbers="") if runs > 1 else None

        def heard(name: str, numbers: dict[str, float]) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=numbers["steps"], numbers="")
            bars.update(tasks[name], completed=numbers["step"], numbers=_numbers(numbers))
            if numbers["step"] == numbers["steps"] and whole is not None:
                bars.advance(whole)
                bars.remove_task(tasks[name])

        yield heard


def lines() -> Callable[[str, dict[str, float]], None]:
    """A line on stderr for each tenth of a run."""
    said: dict[str, int] = {}

    def heard(name: str, numbers: dict[str, float]) -> None:
        tenth = int(10 * numbers["step"] / numbers["steps"])
        if said.get(name) != tenth:
            said[name] = tenth
            say(f"{name}: step {numbers['step']:.0f} of {numbers['steps']:.0f}, {_numbers(numbers)}")

    return heard


def _numbers(numbers: dict[str, float]) -> str:
    return (
        f"loss {numbers['loss']:.3f}, τ {numbers['temperature']:.4f}, gap {numbers['modality_gap']:.3f}, "
        f"{numbers['images_per_second']:.0f} images/s"
    )
