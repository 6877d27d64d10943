"""The exception that flowsim raises for bad input, and the message for unknown names."""

import difflib
from collections.abc import Iterable


class FlowsimError(ValueError):
    """Bad input. The message says what is wrong and how to fix it.

    The command line prints it and exits with code 2.
    """


def unknown_name(kind: str, name: object, known: Iterable[str]) -> FlowsimError:
    """The error for a name that does not exist, which suggests the nearest known names.

    Args:
        kind: The kind of thing that has the name, e.g. "observable".
        name: The unknown name.
        known: All known names.

    Returns:
        The error, to be raised.
    """
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=3, cutoff=0.4)
    if not near:
        folded = {n.lower(): n for n in names}
        near = [folded[m] for m in difflib.get_close_matches(str(name).lower(), folded, n=3, cutoff=0.4)]
    hint = f"Did you mean {' or '.join(repr(n) for n in near)}?" if near else f"Known: {', '.join(names)}."
    return FlowsimError(f"Unknown {kind} {str(name)!r}. {hint}")
