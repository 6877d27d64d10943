"""A suite: all checks of one kind of part, and how one of them passes or fails."""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

#: Looks at a part and says what it found. Raises `Unmet` where the part fails; None where nothing applies to it.
Look = Callable[[Any], str | None]


class Unmet(Exception):
    """What a part must do and does not do, as a sentence."""


def require(condition: Any, sentence: str) -> None:
    """Fail the check with this sentence unless the condition holds."""
    if not bool(condition):
        fail(sentence)


def fail(sentence: str) -> NoReturn:
    """Fail the check with this sentence."""
    raise Unmet(sentence)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its name, what it does, and the checks that have to pass before it makes sense."""

    name: str
    look: Look
    after: tuple[str, ...] = ()


class Suite:
    """The checks of one kind of part, in the order in which they are defined.

    Args:
        kind: What the parts are, in a word or two.
        base: Their abstract class.
        use: Uses a part once, by ordinary calls, and returns what it gives (a tree of arrays).
        inside: What is written after "it runs", the methods that `use` calls.
    """

    def __init__(self, kind: str, base: type, use: Callable[[Any], Any], inside: str) -> None:
        self.kind = kind
        self.base = base
        self.use = use
        self.inside = inside
        self.checks: list[Check] = []

    def check(self, name: str, *after: str) -> Callable[[Look], Look]:
        """Add a check, which is done if the part runs and the checks `after` have passed."""

        def add(look: Look) -> Look:
            self.checks.append(Check(name, look, ("runs", *after)))
            return look

        return add
