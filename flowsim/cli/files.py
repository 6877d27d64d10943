"""Files that commands write and read. Outputs are checked to be writable before any time is spent."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowsim.base.files import check_writable
from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.records.result import Result


def check_writable_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder in which nothing can be written; leaves nothing behind."""
    check_writable(folder, f"Choose another folder with {option}.")


def check_writable_file(path: Path, suffix: str) -> None:
    """Refuse a file that cannot be written, or that ends in another suffix; leaves nothing behind."""
    if path.suffix != suffix:
        raise FlowsimError(f"Option `--out` takes a {suffix} file, but got {path.name!r}. Use e.g. run{suffix}.")
    if path.is_dir():
        raise FlowsimError(f"Cannot write {str(path)!r}: it is a folder. Choose another name with --out.")
    check_writable_folder(path.parent)


def saved_runs(files: Sequence[str], name: str | None) -> "dict[str, Result]":
    """The runs in the files by name, or only the one called `name`."""
    from flowsim.records.load import load_any

    runs = {key: result for file in files for key, result in load_any(file).items()}
    if name is None:
        return runs
    if name not in runs:
        raise unknown_name("run", name, runs)
    return {name: runs[name]}
