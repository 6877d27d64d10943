"""Findings of a diagnosis, and the registry of checks."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from flowsim.base.registry import Registry
from flowsim.doctor.case import Case

Verdict = Literal["found", "not found", "cannot tell"]


class CannotTell(Exception):
    """A case lacks what a check needs; holds the reason and how to provide it, as sentences."""


def too_few(count: int, what: str, enough: int) -> None:
    """Raise `CannotTell` unless there are enough of something, e.g. "temperatures"."""
    if count < enough:
        raise CannotTell(f"At least {enough} are needed, but the number of recorded {what} is {count}.")


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check says of a case.

    Attributes:
        name: Name of the check.
        title: What it looks for, in words.
        verdict: "found", "not found", or "cannot tell".
        sentence: The verdict with its numbers; for "cannot tell" what is missing.
        reason: Why this matters, from theory; empty unless found.
        cure: What to try; empty unless found.
        fault: Whether this is a fault if it is found; otherwise it is a remark.
        numbers: Name -> number behind the verdict.
    """

    name: str
    title: str
    verdict: Verdict
    sentence: str
    reason: str = ""
    cure: str = ""
    fault: bool = True
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def found(self) -> bool:
        """Whether the verdict is "found"."""
        return self.verdict == "found"


@dataclasses.dataclass(frozen=True)
class Sign:
    """What the function of a check returns.

    Attributes:
        found: Whether it was found.
        sentence: What was found or not, with numbers.
        numbers: Name -> number behind the verdict.
        reason: Replaces the reason of the check, where the case tells more.
        cure: Replaces the cure of the check, where the case tells more.
    """

    found: bool
    sentence: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    reason: str = ""
    cure: str = ""


@dataclasses.dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
        name: Its name.
        title: What it looks for.
        reason: Why this matters.
        cure: What to try.
        fault: Whether a finding is a fault; otherwise it is a remark.
        look: `look(case)` returns a `Sign`, and raises `CannotTell` if the case lacks what it needs.
    """

    name: str
    title: str
    reason: str
    cure: str
    fault: bool
    look: Callable[[Case], Sign]

    def find(self, case: Case) -> Finding:
        """The finding for a case."""
        try:
            sign = self.look(case)
        except CannotTell as missing:
            return Finding(self.name, self.title, "cannot tell", str(missing), fault=self.fault)
        verdict: Verdict = "found" if sign.found else "not found"
        reason, cure = (sign.reason or self.reason, sign.cure or self.cure) if sign.found else ("", "")
        return Finding(self.name, self.title, verdict, sign.sentence, reason, cure, self.fault, sign.numbers)


#: Name -> check, in the order of a diagnosis.
REGISTRY: Registry[Check] = Registry("check")


def register(
    name: str, *, title: str, reason: str, cure: str, fault: bool = True
) -> Callable[[Callable[[Case], Sign]], Callable[[Case], Sign]]:
    """Register a function as a check.

    Args:
        name: Name of the check.
        title: What it looks for, in words.
        reason: Why it matters, as sentences.
        cure: What to try, as sentences.
        fault: Whether a finding is a fault; otherwise it is a remark.

    Returns:
        A decorator for the function, which takes a `Case`, returns a `Sign` and may raise `CannotTell`.

    Raises:
        FlowsimError: If the name is that of one of flowsim's own checks.
    """

    def enter(look: Callable[[Case], Sign]) -> Callable[[Case], Sign]:
        REGISTRY.add(name, Check(name, title, reason, cure, fault, look), look.__module__, look)
        return look

    return enter


def names() -> tuple[str, ...]:
    """Names of all checks, in the order of a diagnosis."""
    return tuple(REGISTRY)
