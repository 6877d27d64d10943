"""Checks of arguments: each raises one sentence with the cure."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.errors import FlowsimError, unknown_name


def is_concrete(value: Any) -> bool:
    """Whether `value` is a number that can be checked now (not traced, not batched)."""
    if isinstance(value, jax.core.Tracer):  # pyright: ignore
        return False
    return isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and np.ndim(value) == 0


def is_real(array: np.ndarray) -> bool:
    """Whether an array holds real numbers, and no truth values."""
    return array.dtype.kind in "fiu" or jnp.issubdtype(array.dtype, np.floating)  # the latter: bfloat16


def host_array(value: Any) -> np.ndarray | None:
    """`value` as a NumPy array of its own dtype, also a torch tensor of any device and dtype; None if it is none."""
    if all(hasattr(value, name) for name in ("detach", "cpu", "float")):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, among others
        return None


def shown(value: Any) -> str:
    """A value in a message, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:56]} ..."


def check(condition: Any, message: str) -> None:
    """Raise an error unless a condition holds.

    Args:
        condition: What must be true; a value that is known now, not a traced one.
        message: One sentence with what is wrong, and one with the cure.

    Raises:
        FlowsimError: If the condition is false.
    """
    if not bool(condition):
        raise FlowsimError(message)


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, and no truth value or duration."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def check_whole(name: str, value: Any, minimum: int, cure: str) -> None:
    """Refuse what is not a whole number of at least `minimum` (and below 2³², as sizes and seeds are)."""
    if not is_whole(value) or not minimum <= value < 2**32:
        text = "the text " * isinstance(value, str) + shown(value)  # '5' reads like the number
        limit = " and below 2³²" * (is_whole(value) and value >= minimum)
        raise FlowsimError(
            f"Argument `{name}` must be a whole number of at least {minimum}{limit}, but is {text}. {cure}"
        )


def check_choice(kind: str, value: Any, known: Iterable[str]) -> None:
    """Refuse what is none of the known names of a `kind`."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(kind, value if isinstance(value, str) else shown(value), names)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    check(isinstance(value, bool), f"Argument `{name}` must be True or False, but is {shown(value)}. Use one of them.")


def check_number(name: str, value: Any, *, positive: bool = False, minimum: float | None = None, cure: str) -> None:
    """Refuse an argument that is not a finite number in its range; traced values pass.

    Args:
        name: The argument's name.
        value: Its value.
        positive: Whether it must be above 0.
        minimum: The smallest value that is allowed.
        cure: The last sentence of the message, e.g. "Use e.g. Fixed(0.07)."

    Raises:
        FlowsimError: If it is no number, not finite, or outside its range.
    """
    if isinstance(value, jax.core.Tracer) or type(value) is object or (np.ndim(value) > 0 and hasattr(value, "dtype")):  # pyright: ignore
        return  # the last: the numbers of many runs
    if not is_concrete(value) or not is_real(np.asarray(value)):
        raise FlowsimError(f"Argument `{name}` must be a number, but is {shown(value)}. {cure}")
    number_ = float(value)
    wanted = "positive" if positive else (f"at least {minimum:g}" if minimum is not None else "finite")
    good = np.isfinite(number_) and (not positive or number_ > 0) and (minimum is None or number_ >= minimum)
    check(good, f"Argument `{name}` must be {wanted}, but is {number_:g}. {cure}")


def check_fraction(name: str, value: Any) -> None:
    """Refuse a number outside [0, 1]; traced values pass."""
    check_number(name, value, minimum=0.0, cure="Use a fraction between 0 and 1.")
    if is_concrete(value):
        check(value <= 1, f"Argument `{name}` must be at most 1, but is {float(value):g}. Use a number from 0 to 1.")


def checked_clamp(clamp: Any) -> tuple[float, float] | None:
    """(τ_min, τ_max) or None; raises `FlowsimError` for anything else."""
    if clamp is None:
        return None
    check(
        isinstance(clamp, (tuple, list)) and len(clamp) == 2,
        f"Argument `clamp` must be (tau_min, tau_max) or None, but is {shown(clamp)}. Use e.g. (0.01, 1.0).",
    )
    for name, bound in zip(("clamp[0]", "clamp[1]"), clamp, strict=True):
        check_number(name, bound, positive=True, cure="Use e.g. clamp=(0.01, 1.0).")
    check(clamp[0] < clamp[1], f"The clamp {tuple(clamp)} must be increasing. Use e.g. (0.01, 1.0).")
    return float(clamp[0]), float(clamp[1])


def check_redraw(interval: Any) -> None:
    """Refuse an interval of flow time that is not positive; None passes."""
    if interval is not None:
        check_number("redraw", interval, positive=True, cure="Use the flow time between two draws, or None.")
