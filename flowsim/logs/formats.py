"""The registry of formats of logs, and the choice of the one of a file."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flowsim.base.checks import check_choice
from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError
from flowsim.logs.names import candidates
from flowsim.logs.source import Source
from flowsim.logs.table import Table

_Read = TypeVar("_Read", bound=Callable[[Source], Any])
#: Columns by name, in which NaN means that nothing was logged.
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """One format of logs; made by `register`.

    Attributes:
        name: Its name, for `format=`.
        recognizes: Function that tells by the content whether a source is of this format.
        describes: Description of such a source, for messages.
        read: `read(source)` returns the columns.
    """

    name: str
    recognizes: Callable[[Source], bool]
    describes: str
    read: Callable[[Source], Table | Columns]


#: What a file holds whose run has not logged yet.
_NO_ROWS = "one line with names of columns, and no rows"
#: Formats by name; the last registered one is tried first.
FORMATS: Registry[Format] = Registry("format of logs")


def register(
    name: str, recognizes: Callable[[Source], bool], *, describes: str | None = None
) -> Callable[[_Read], _Read]:
    """Decorator that registers a function as the reader of a format of logs.

    The last registered format is tried first. Registering a name again replaces the format.

    Args:
        name: Its name.
        recognizes: Function of a source that tells whether it is of this format. A source has `path`, `head` (its
            first bytes), `text` (the same as text, empty for binary files), `is_folder`, and `lines()`.
        describes: Description of such a log for messages; default: the name.

    Returns:
        The decorator of `read(source)`, which returns columns of one length by name. NaN means that nothing was logged
        in a row. Names are understood as those of a CSV file, see `read_log`.

    Raises:
        FlowsimError: For the name of one of flowsim's own formats.

    Examples:
        >>> from pathlib import Path
        >>> import flowsim as fs
        >>> @fs.logs.register("my trainer", lambda source: source.text.startswith("my trainer"))
        ... def read(source):
        ...     rows = [line.split() for line in source.lines()][1:]
        ...     return {"step": [int(r[1]) for r in rows], "temperature": [float(r[3]) for r in rows]}
        >>> _ = Path("mine.txt").write_text("my trainer\\nstep 0 tau 0.07\\nstep 9 tau 0.05\\n")
        >>> fs.read_log("mine.txt").series["temperature"]
        array([0.07, 0.05])
    """

    def add(read: _Read) -> _Read:
        FORMATS.add(name, Format(name, recognizes, describes or name, read), read.__module__, read)
        return read

    return add


def format_of(source: Source, name: str | None) -> Format:
    """The format of a source: the named one, or the one that recognises it; raises `FlowsimError` if none does."""
    if name is not None:
        check_choice("format of logs", name, FORMATS)
        return FORMATS[name]
    found = next((one for one in reversed(list(FORMATS.values())) if one.recognizes(source)), None)
    if found is not None:
        return found
    held = _held(source)
    if held == _NO_ROWS:
        raise FlowsimError(f"{str(source.path)!r} holds {held}. Read it when something was logged.")
    raise FlowsimError(
        f"{str(source.path)!r} is no log that flowsim knows; it holds {held}. "
        f"It reads {', '.join(one.describes for one in FORMATS.values())}. For others, write a CSV file and name its "
        'columns: columns={"step": "iter", "temperature": "my_tau"}.'
    )


def _held(source: Source) -> str:
    """What a source holds, in words."""
    if source.is_folder:
        names = sorted(child.name for child in source.path.iterdir())
        more = f" and {len(names) - 5} others" * (len(names) > 5)
        return f"the files {', '.join(names[:5])}{more}" if names else "no files"
    if not source.head:
        return "nothing"
    if source.encoding is None:
        return "binary data"
    lines = [line.strip() for line in source.text.splitlines() if line.strip()]
    if not lines:
        return "empty lines"
    first = lines[0]
    if len(lines) == 1 and any(True for name in re.split("[,;\t]", first) for _ in candidates(name)):
        return _NO_ROWS
    return f"text that begins with {first[:60] + ' ...' * (len(first) > 60)!r}"
