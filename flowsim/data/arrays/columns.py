"""Columns of tables that together are one array: `image_0`, `image_1`, ..."""

import re
from collections.abc import Iterable

_NUMBERED = re.compile(r"(.*?)[ _.\-]*(\d+)$")


def numbered(columns: Iterable[str]) -> dict[str, list[str]]:
    """Columns whose names differ only in their number, from 0 or 1 up without gaps, in order, by their common name."""
    groups: dict[str, dict[int, str]] = {}
    for column in columns:
        match = _NUMBERED.fullmatch(column)
        if match is not None:
            groups.setdefault(match[1] or "array", {})[int(match[2])] = column
    return {
        name: [found[k] for k in sorted(found)]
        for name, found in groups.items()
        if len(found) > 1 and min(found) <= 1 and max(found) - min(found) == len(found) - 1
    }
