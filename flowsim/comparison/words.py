"""Numbers in sentences."""

from collections.abc import Sequence


def short(value: float) -> str:
    """A number with three digits."""
    return "0" if value == 0 else f"{value:.3g}"


def between(ends: Sequence[float]) -> str:
    """An interval: "0.1 .. 0.2"."""
    return f"{ends[0]:.3g} .. {ends[1]:.3g}"


def percent(value: float) -> str:
    """A fraction in per cent."""
    return f"{100 * value:.0f} %"


def undecided(sentence: str, reason: str) -> str:
    """The sentence, with the reason why there is no verdict."""
    return f"{sentence.removesuffix('.')}; no verdict, because {reason}."
