"""Files that commands write and read. Outputs are checked to be writable before any time is spent."""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowsim.base.files import check_writable
from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.records.result import Result

#: The argument `columns` in a message of the library.
_ARGUMENT = re.compile(r'columns=(\{"\w+": "[^"{}\\]*"(?:, "\w+": "[^"{}\\]*")*\})')

#: Endings of figures.
FIGURES = (".png", ".pdf", ".svg")


def check_writable_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder in which nothing can be written; leaves nothing behind."""
    check_writable(folder, f"Choose another folder with {option}.")


def check_writable_file(path: Path, suffix: str, *others: str) -> None:
    """Refuse a file that cannot be written, or that ends in none of the suffixes; leaves nothing behind."""
    if path.suffix not in (suffix, *others):
        kinds = " or ".join((suffix, *others))
        raise FlowsimError(f"Option `--out` takes a {kinds} file, but got {path.name!r}. Use e.g. run{suffix}.")
    if path.is_dir():
        raise FlowsimError(f"Cannot write {str(path)!r}: it is a folder. Choose another name with --out.")
    check_writable_folder(path.parent)


def _as_option(columns: re.Match[str]) -> str:
    """`columns={"step": "iter"}` as the command line takes it."""
    return "--columns " + ",".join(f"{series}={column}" for series, column in json.loads(columns[1]).items())


def columns_in(text: str | None) -> dict[str, str] | None:
    """The columns that `--columns step=iter,loss=l` names; None for None."""
    if text is None:
        return None
    found = {}
    for part in text.split(","):
        series, equals, column = part.partition("=")
        if not equals or not series.strip() or not column.strip():
            raise FlowsimError(
                f"Option `--columns` takes SERIES=COLUMN,..., but got {part!r}. Use e.g. --columns "
                "step=iter,temperature=my_tau."
            )
        found[series.strip()] = column.strip()
    return found


def saved_runs(files: Sequence[str], name: str | None, columns: Mapping[str, str] | None = None) -> "dict[str, Result]":
    """The runs in files of flowsim and in logs of other trainers by name, or only the one called `name`.

    `columns` names the columns of logs: series -> column.
    """
    from flowsim.logs.read import is_saved, read_logs
    from flowsim.records.load import load_any

    runs: dict[str, Result] = {}
    with as_options():
        for file in files:
            runs |= load_any(file) if is_saved(file) else read_logs(file, columns=columns)
    if name is None:
        return runs
    if name not in runs:
        raise unknown_name("run", name, runs)
    return {name: runs[name]}


@contextlib.contextmanager
def as_options() -> Iterator[None]:
    """Turn the argument `columns` in messages of the library into the option."""
    try:
        yield
    except FlowsimError as error:
        raise FlowsimError(_ARGUMENT.sub(_as_option, str(error))) from None
