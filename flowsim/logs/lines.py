"""Logs that print names and numbers in each line: "step 10 loss 2.31 lr 1e-4", "iter=10, loss=2.31"."""

import itertools
import re

from flowsim.logs.formats import register
from flowsim.logs.names import candidates
from flowsim.logs.source import Source
from flowsim.logs.table import Builder, Table, number

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf)"
#: A name, and the number after it; what follows it is no part of a longer number or of a date.
_PAIR = re.compile(rf"([A-Za-z][\w@./-]*)\s*[:=]?\s*\[?\s*({_NUMBER})(?![\w.:]*[\w:])", re.IGNORECASE)
#: Lines of the beginning by which the format is recognised.
_FIRST = 500


def _values(line: str) -> dict[str, float]:
    """The numbers of a line whose names are known; none without a step."""
    found, stepped = {}, False
    for name, text in _PAIR.findall(line):
        series = [series for series, _ in candidates(name)]
        if series and (value := number(text)) is not None:
            found.setdefault(name.lower(), value)
            stepped |= "step" in series
    return found if stepped and len(found) > 1 else {}


def _is_lines(source: Source) -> bool:
    if source.text.lstrip()[:1] in ("{", "["):
        return False
    lines = itertools.islice((line for line in source.text.splitlines() if line.strip()), _FIRST)
    return sum(bool(_values(line)) for line in lines) >= 2


@register("lines", _is_lines, describes='lines such as "step 10 loss 2.3"')
def read_lines(source: Source) -> Table:
    """Read the numbers after known names; lines without a step are left out."""
    builder, row = Builder(), 0
    for line in source.lines():
        if values := _values(line):
            for name, value in values.items():
                builder.add(name, row, value)
            row += 1
    return Table(builder.columns(), notes=list(source.notes))
