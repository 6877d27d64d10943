"""One protocol for progress: what long work calls as it advances, whatever it is."""

from collections.abc import Collection, Iterator
from typing import Protocol, TypeVar, runtime_checkable

Job = TypeVar("Job")


@runtime_checkable
class Progress(Protocol):
    """Called as `progress(text, done, total, **numbers)` while work advances.

    `fs.sweep`, `fs.observables.report`, `fs.claims.run_all`, `fs.clip.train`, `study` and `features` take one, and an
    experiment's `compute` is given one.
    """

    def __call__(self, text: str, done: int, total: int | None, /, **numbers: float) -> None:
        """Show how far the work is.

        Args:
            text: The step, claim or run that the numbers belong to.
            done: How many of its parts are done.
            total: How many there are; None where that is unknown.
            **numbers: What the work measures on its way, e.g. `loss` of a training.
        """
        ...


def silent(text: str, done: int, total: int | None, /, **numbers: float) -> None:
    """A progress that shows nothing."""


def track(jobs: Collection[Job], progress: Progress, text: str) -> Iterator[Job]:
    """Yield the jobs one by one, and report how many are done.

    Args:
        jobs: What is to be done.
        progress: Called before the first job and after each.
        text: The name of the work.

    Yields:
        The jobs.
    """
    progress(text, 0, len(jobs))
    for done, job in enumerate(jobs, start=1):
        yield job
        progress(text, done, len(jobs))
