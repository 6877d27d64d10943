"""Arrays in `.parquet` files: columns of lists, a column for each number, and other columns; read by pyarrow."""

from pathlib import Path
from typing import Any

import numpy as np

from flowsim.base.checks import check
from flowsim.data.arrays.columns import numbered
from flowsim.data.arrays.named import Entry, PathLike, register
from flowsim.data.given import pad
from flowsim.data.packages import package
from flowsim.errors import FlowsimError


@register(".parquet")
def open_parquet(path: Path) -> dict[str, Entry]:
    """The columns: lists as matrices (m, q), lists of lists as (m, c, q), and `image_0`, `image_1`, ... as one."""
    parquet = package("pyarrow.parquet", "pyarrow")
    file = parquet.ParquetFile(path)
    rows, schema = file.metadata.num_rows, file.schema_arrow
    file.close()
    groups = {
        name: group
        for name, group in numbered(schema.names).items()
        if name not in schema.names and all(_is_number(schema.field(one).type) for one in group)
    }
    grouped = {one for group in groups.values() for one in group}
    found = {
        name: Entry(lambda group=group: _matrix(path, group), (rows, len(group))) for name, group in groups.items()
    }
    for name in schema.names:
        if name not in grouped:
            shape = None if _is_list(schema.field(name).type) else (rows,)
            found[name] = Entry(lambda name=name: read_column(path, name), shape)
    return found


def read_column(path: Path, name: str) -> np.ndarray:
    """One column. Lists of lists must be as many for all rows; see `read_lists` for others."""
    column = columns(path, [name])[name]
    if _is_list(column.type):
        array, counts = read_lists(column, name)
        check(
            counts is None,
            f"{path}: column {name!r} has different numbers of lists in its rows. Write the same number for all.",
        )
        return array
    return plain(column)


def plain(column: Any) -> np.ndarray:
    """A column without lists: missing whole numbers are −1, missing strings are empty, missing floats are NaN."""
    if _is_number(column.type) and not (column.null_count and _is_integer(column.type)):
        return column.to_numpy()
    missing = -1 if _is_integer(column.type) else ""
    return np.array([missing if one is None else one for one in column.to_pylist()])


def read_lists(column: Any, name: str) -> tuple[np.ndarray, np.ndarray | None]:
    """A column of lists (m, q), or of lists of lists (m, c, q), padded with zeros.

    Args:
        column: The column, a chunked array.
        name: Its name, for messages.

    Returns:
        The array, and the number of lists in each row, (m,), or None if all are equal.
    """
    check(len(column) > 0, f"Column {name!r} has no rows. Write at least two.")
    if not _is_list(_items(column.type)):
        return np.concatenate([_vectors(one, name) for one in column.chunks]), None
    counts = np.concatenate([_lengths(one) for one in column.chunks])
    rows = np.concatenate([_vectors(_flat(one, name), name) for one in column.chunks])
    check(counts.min() > 0, f"Column {name!r} has rows without a caption. Leave these pairs out.")
    return pad(rows, counts), None if counts.min() == counts.max() else counts


def columns(path: PathLike, names: list[str]) -> Any:
    """A table of these columns."""
    return package("pyarrow.parquet", "pyarrow").read_table(path, columns=names)


def _matrix(path: Path, group: list[str]) -> np.ndarray:
    table = columns(path, group)
    found = np.empty((len(table), len(group)), np.result_type(*(kind.to_pandas_dtype() for kind in table.schema.types)))
    for place, name in enumerate(group):
        check(table[name].null_count == 0, f"{path}: column {name!r} has empty rows. Leave these pairs out.")
        found[:, place] = table[name].to_numpy()
    return found


def _vectors(lists: Any, name: str) -> np.ndarray:
    """(m, q) of an array of lists of floats."""
    values = _flat(lists, name)
    lengths = _lengths(lists)
    check(
        len(set(lengths.tolist())) == 1,
        f"Column {name!r} must hold lists of equal length, but has lengths {lengths.min()} to {lengths.max()}. "
        "Write all features of one encoder.",
    )
    return values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def _flat(lists: Any, name: str) -> Any:
    """The items of all lists; refuses empty rows and columns of another kind."""
    if not _is_list(lists.type):
        raise FlowsimError(f"Column {name!r} must hold lists of floats, but holds {lists.type}. Write lists.")
    check(lists.null_count == 0, f"Column {name!r} has empty rows. Leave these pairs out.")
    return lists.flatten()


def _lengths(lists: Any) -> np.ndarray:
    return np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False), int)


def _items(kind: Any) -> Any:
    return kind.value_type if _is_list(kind) else None


def _is_list(kind: Any) -> bool:
    types = package("pyarrow", "pyarrow").types
    return kind is not None and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_number(kind: Any) -> bool:
    types = package("pyarrow", "pyarrow").types
    return types.is_integer(kind) or types.is_floating(kind)


def _is_integer(kind: Any) -> bool:
    return package("pyarrow", "pyarrow").types.is_integer(kind)
