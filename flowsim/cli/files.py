"""Files that commands write and read. Outputs are checked to be writable before any time is spent."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.records.result import Result


def check_writable_folder(folder: Path, option: str = "--out") -> None:
    """Refuse a folder in which nothing can be written; leaves nothing behind."""
    from flowsim.base.files import write_atomically

    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    reason = f"{str(existing)!r} is a file, not a folder"
    if existing.is_dir():
        try:
            write_atomically(existing / f".flowsim-{os.getpid()}", lambda temporary: None).unlink()
            return
        except FlowsimError as error:
            # The message of the system, without the advice for Python users.
            reason = getattr(error.__context__, "strerror", None) or str(error)
    raise FlowsimError(f"Cannot write to {str(folder)!r}: {reason}. Choose another folder with {option}.")


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
