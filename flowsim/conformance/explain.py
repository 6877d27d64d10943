"""An exception of a part as one sentence: the method, the line, the error, and the cure if it is known."""

import traceback
from typing import Any

import jax

from flowsim.base.modules import Described
from flowsim.errors import FlowsimError

_TRACED = (
    "Numbers are not known yet while a program is compiled: use jax.numpy (or xp = fs.extend.namespace(x)) instead of "
    "NumPy, and jnp.where(condition, a, b) instead of `if`."
)
#: Type of error -> cure.
_CURES: tuple[tuple[type[BaseException], str], ...] = (
    (jax.errors.UnexpectedTracerError, "Do not store values between calls; return them."),
    (jax.errors.JAXTypeError, _TRACED),
    (jax.errors.JAXIndexError, _TRACED),
    (NotImplementedError, "Define that method."),
)


def explained(error: BaseException, function: Any = None) -> str:
    """One sentence about an exception of a part, or of the `function` of an observable."""
    where = _place(error, getattr(function, "__code__", None))
    if not where and isinstance(error, FlowsimError):
        return str(error)  # flowsim's own sentence about the part
    said = " ".join(str(error).partition("\n")[0].split())
    text = f"{where or 'A call'} raised {type(error).__name__}" + (f": {said}" if said else "")
    cure = next((cure for kind, cure in _CURES if isinstance(error, kind)), "")
    if "truth value of an array" in text:
        cure = "Use np.where or xp.where(condition, a, b) instead of `if`."
    return f"{text}{'' if text.endswith(('.', '!', '?')) else '.'} {cure}".strip()


def _place(error: BaseException, code: Any) -> str:
    """The deepest method of a part on the way to the error, preferably a user's; empty if there is none."""
    found, ours = "", ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        if isinstance(owner, Described) and not frame.f_globals.get("__name__", "").startswith(("equinox.", "jax.")):
            name = f"`{type(owner).__name__}.{frame.f_code.co_name}` (line {line})"
            if type(owner).__module__.startswith("flowsim."):
                ours = name
            else:
                found = name
        elif frame.f_code is code:
            found = f"`{frame.f_code.co_name}` (line {line})"
    return found or ours
