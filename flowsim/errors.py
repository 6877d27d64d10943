"""The one exception that flowsim raises for bad input, and the wording of its messages."""

import difflib
from collections.abc import Iterable


class FlowsimError(ValueError):
    """Bad input. The message is one sentence (or two) and names the cure.

    The command line prints it and exits with code 2.
    """


def unknown_name(kind: str, name: object, known: Iterable[str]) -> FlowsimError:
    """The error for a name that does not exist, with the nearest known names."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    if not near:
        folded = {n.lower(): n for n in names}
        near = [folded[m] for m in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.4)]
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(names)}."
    return FlowsimError(f"Unknown {kind} {str(name)!r}. {hint}")
