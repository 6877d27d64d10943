"""Arrays in text tables, `.csv` and `.tsv`: a column for each number, or columns that hold lists in JSON."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.data.arrays.columns import numbered
from flowsim.data.arrays.named import Entry, register
from flowsim.data.packages import package
from flowsim.errors import FlowsimError


@register(".csv", ".tsv")
def open_table(path: Path) -> dict[str, Entry]:
    """Columns `image_0`, `image_1`, ... as one array `image`, columns of lists as matrices, and all other columns."""
    library = package("pandas", "pandas")
    separator = "\t" if path.name.lower().endswith(".tsv") else ","
    names = [str(one) for one in library.read_csv(path, sep=separator, nrows=0).columns]

    @functools.cache
    def table() -> Any:  # read once for all of its columns
        return library.read_csv(path, sep=separator, low_memory=False)

    groups = numbered(names)
    grouped = {one for group in groups.values() for one in group}
    found = {name: Entry(_matrix(path, table, group)) for name, group in groups.items()}
    for name in names:
        if name not in grouped and name not in found:
            found[name] = Entry(_column(path, table, name))
    return found


def _matrix(path: Path, table: Callable[[], Any], group: list[str]) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        chosen = table()[group]
        words = [name for name, kind in chosen.dtypes.items() if kind.kind not in "fiu"]
        if words:
            raise FlowsimError(f"{path}: column {words[0]!r} must hold numbers. Remove other entries.")
        return chosen.to_numpy(np.float64)

    return read


def _column(path: Path, table: Callable[[], Any], name: str) -> Callable[[], np.ndarray]:
    def read() -> np.ndarray:
        column = table()[name]
        if column.dtype.kind in "fiub":
            return column.to_numpy()
        texts = column.fillna("").astype(str).tolist()
        if not texts or not texts[0].lstrip().startswith("["):
            return np.array(texts, dtype=str)
        rows = []
        for place, text in enumerate(texts):
            try:
                rows.append(np.array(json.loads(text), np.float64))
            except (ValueError, TypeError, RecursionError):
                raise FlowsimError(
                    f"{path}: column {name!r} must hold lists of numbers in JSON, but does not in row {place}. Write "
                    "them with json.dumps(row.tolist())."
                ) from None
        if len({row.shape for row in rows}) > 1:
            raise FlowsimError(f"{path}: column {name!r} holds lists of different lengths. Write equal ones.")
        return np.stack(rows)

    return read
