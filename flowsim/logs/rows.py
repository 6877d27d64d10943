"""Logs in rows: CSV and TSV files, JSON lines and lists; exports of W&B and Lightning's metrics.csv among them."""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.logs.formats import register
from flowsim.logs.names import candidates
from flowsim.logs.source import Source
from flowsim.logs.table import Builder, Logged, Table, number

_DELIMITERS = ",;\t|"
#: Numbers with a comma, as spreadsheets of some languages write them.
_COMMA = re.compile(r"[+-]?\d*,\d+(?:[eE][+-]?\d+)?")
#: A column of an export of W&B: "run - metric", with "__MIN" and "__MAX" of the values that a point stands for.
_OF_RUN = re.compile(r"(.+) - (.+?)(__MIN|__MAX)?")
#: Bytes of a JSON file that is read as a whole.
_LARGEST_JSON = 1 << 29


def _dialect(source: Source) -> tuple[str, list[str]] | None:
    """Delimiter and names of a file of delimited columns; None if it is none.

    Names come first, and numbers in the next line that is not empty. The delimiter is the one that splits both most.
    """
    lines = [line for line in source.text.splitlines()[:20] if line.strip()]
    if len(lines) < 2 or lines[0].lstrip()[:1] in ("{", "["):
        return None
    best = None
    for delimiter in _DELIMITERS:
        try:
            rows = list(csv.reader(lines, delimiter=delimiter))
        except csv.Error:
            continue
        names, first = [name.strip() for name in rows[0]], rows[1:]
        numbers = any(_value(cell, delimiter) is not None for row in first for cell in row[: len(names)])
        if (
            numbers
            and all(_value(name, delimiter) is None for name in names)
            and len(names) > (len(best[1]) if best else 0)
        ):
            best = delimiter, names
    return best


def _value(cell: str, delimiter: str) -> float | None:
    """The number in a cell."""
    found = number(cell)
    if found is None and delimiter != "," and _COMMA.fullmatch(cell.strip()):
        return number(cell.replace(",", "."))
    return found


@register("csv", lambda source: _dialect(source) is not None, describes="CSV with names in the first line")
def read_csv(source: Source) -> Table:
    """Read delimited columns line by line."""
    found = _dialect(source)
    if found is None:
        raise FlowsimError(
            f"{str(source.path)!r} is no CSV file with names in the first line and numbers below. Check the file, or "
            "leave `format` out."
        )
    delimiter, names = found
    builder, row, ragged, unread = Builder(), 0, 0, 0
    columns = [builder.column(name) for name in names]
    words, short, cut = Words(), 0, ""
    try:
        rows = csv.reader((line for line in source.lines() if line.strip()), delimiter=delimiter)
        next(rows)
        for cells in rows:
            if len(cells) > len(names):
                ragged += 1
                continue
            few = len(cells) < len(names)
            short += few
            cut = names[len(cells) - 1] if few and cells else ""
            for (add_at, add_value), name, cell in zip(columns, names, cells, strict=False):
                value = _value(cell, delimiter) if cell else None
                if value is not None:
                    add_at(row)
                    add_value(value)
                elif "\ufffd" in cell:
                    unread += 1
                elif cell:
                    words.add(name, cell)
            row += 1
    except csv.Error as error:
        raise FlowsimError(f"{str(source.path)!r} cannot be read as CSV: {error}. Write the file again.") from None
    notes = list(source.notes)
    if ragged:
        notes.append(f"{ragged} lines with more fields than names were skipped.")
    if short:
        notes.append(f"{short} lines have fewer fields than names.")
    if cut and builder.take_back(cut, row - 1):
        notes.append(f"The last line is cut off, so its last field ({cut!r}) was left out.")
    if unread:
        notes.append(f"{unread} damaged fields were skipped.")
    held = builder.columns()
    return Table(held, notes=[*notes, *words.notes(held)])


class Words:
    """Columns that hold text under a name that is known, so that they do not vanish without a word."""

    def __init__(self) -> None:
        self._held: dict[str, str] = {}
        self._known: dict[str, bool] = {}

    def add(self, name: str, cell: str) -> None:
        """A cell that is no number."""
        if name not in self._known:
            self._known[name] = any(True for _ in candidates(name))
            if self._known[name]:
                self._held[name] = cell

    def notes(self, columns: Mapping[str, Logged]) -> list[str]:
        """A sentence for each that holds no numbers at all."""
        return [
            f"Column {name!r} holds text such as {cell[:40]!r} instead of numbers, and was left out."
            for name, cell in self._held.items()
            if name not in columns
        ]


def flat(row: Mapping[str, Any], words: Words, before: str = "", depth: int = 0) -> Iterator[tuple[str, float]]:
    """Name and value of the numbers in a row of JSON; those of nested ones as "outer/inner"."""
    for name, value in row.items():
        if isinstance(value, Mapping):
            if depth < 4 and "_type" not in value:
                yield from flat(value, words, f"{before}{name}/", depth + 1)
        elif (found := number(value)) is not None:
            yield f"{before}{name}", found
        elif isinstance(value, str):
            words.add(f"{before}{name}", value)


def table_of_rows(rows: Iterable[Any], notes: list[str]) -> Table:
    """A table of rows of JSON; others are skipped and counted."""
    builder, words, count, skipped = Builder(), Words(), 0, 0
    for row in rows:
        if not isinstance(row, Mapping):
            skipped += 1
            continue
        for name, value in flat(row, words):
            builder.add(name, count, value)
        count += 1
    if skipped:
        notes = [*notes, f"{skipped} damaged lines were skipped."]
    held = builder.columns()
    return Table(held, notes=[*notes, *words.notes(held)])


def _parsed(line: str) -> Any:
    """A line of JSON; None if it is damaged."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def is_json_lines(source: Source) -> bool:
    """Whether the first line that is not empty is an object of JSON."""
    first = next((line for line in source.text.splitlines() if line.strip()), "")
    return first.lstrip()[:1] == "{" and isinstance(_parsed(first), dict)


@register("jsonl", is_json_lines, describes="JSON lines")
def read_json_lines(source: Source) -> Table:
    """Read an object a line."""
    table = table_of_rows((_parsed(line) for line in source.lines() if line.strip()), [])
    table.notes.extend(source.notes)
    return table


def whole_json(source: Source) -> Any:
    """The content of a JSON file; raises `FlowsimError` if it is damaged or large."""
    with source.open() as file:
        try:
            content = file.read(_LARGEST_JSON + 1)
            if len(content) <= _LARGEST_JSON:
                return json.loads(content)
            why = "it is larger than 512 MiB"
        except (ValueError, RecursionError, EOFError, OSError) as error:
            why = f"it is damaged ({type(error).__name__})"
    raise FlowsimError(f"{str(source.path)!r} cannot be read as JSON: {why}. Write it again, or as JSON lines.")


def _is_json_list(source: Source) -> bool:
    return source.text.lstrip("\ufeff \t\r\n")[:1] == "["


@register("json", _is_json_list, describes="lists of rows in JSON")
def read_json_list(source: Source) -> Table:
    """Read a list of objects."""
    found = whole_json(source)
    return table_of_rows(found if isinstance(found, list) else [found], list(source.notes))


def runs_of(table: Table) -> dict[str, Table]:
    """The runs of an export of W&B by name, with columns named as in the run; one named "" for other tables."""
    of_run: dict[str, dict[str, Logged]] = {}
    shared, averaged = {}, False
    for column, logged in table.columns.items():
        found = _OF_RUN.fullmatch(column)
        if found is None:
            shared[column] = logged
            continue
        run, name, end = found.groups()
        columns = of_run.setdefault(run, {})
        if end is None:
            columns[name] = logged
        else:
            middle = table.columns.get(f"{run} - {name}")
            averaged |= middle is not None and not _same(middle, logged)
    of_run = {run: columns for run, columns in of_run.items() if columns}
    if not of_run:
        return {"": table}
    notes = list(table.notes)
    if averaged:
        notes.append("W&B exported means of several steps each; export with full fidelity for every value.")
    return {run: Table(shared | columns, notes=notes, trainer="W&B") for run, columns in of_run.items()}


def _same(one: Logged, other: Logged) -> bool:
    return len(one.at) == len(other.at) and bool(((one.values == other.values) | (one.values != one.values)).all())
