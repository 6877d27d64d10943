"""A suite: all checks of one kind of part, and how a check passes or fails."""

import dataclasses
from collections.abc import Callable
from typing import Any, NoReturn

#: Examines a part and returns what it found in a sentence, or None if it does not apply; raises `Unmet` on failure.
Look = Callable[[Any], str | None]


class Unmet(Exception):
    """A requirement that a part does not meet, as a sentence."""


def require(condition: Any, sentence: str) -> None:
    """Fail the check with this sentence unless the condition holds."""
    if not bool(condition):
        fail(sentence)


def fail(sentence: str) -> NoReturn:
    """Fail the check with this sentence."""
    raise Unmet(sentence)


@dataclasses.dataclass(frozen=True)
class Check:
    """One check: its name, its function, and the checks that must pass before it makes sense."""

    name: str
    look: Look
    after: tuple[str, ...] = ()


class Suite:
    """The checks of one kind of part, in the order in which they are defined.

    Args:
        kind: Name of the kind, e.g. "loss".
        base: The abstract class of the parts.
        use: Calls the methods of a part once, without compiling, and returns a tree of arrays.
        inside: The methods that `use` calls, for sentences.
    """

    def __init__(self, kind: str, base: type, use: Callable[[Any], Any], inside: str) -> None:
        self.kind = kind
        self.base = base
        self.use = use
        self.inside = inside
        self.checks: list[Check] = []

    def check(self, name: str, *after: str) -> Callable[[Look], Look]:
        """Add a check, which is run if the part runs and the checks `after` have passed."""

        def add(look: Look) -> Look:
            self.checks.append(Check(name, look, ("runs", *after)))
            return look

        return add
