"""Writing files so that a reader sees the old one or the new one, never half of one; the reference numbers."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flowsim.errors import FlowsimError


def write_atomically(path: str | os.PathLike[str], write: Callable[[str], Any]) -> Path:
    """Let `write` fill a temporary file beside `path`, then put it in its place; folders are made.

    Raises `FlowsimError` where that is not possible, and leaves nothing behind.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        write(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        raise FlowsimError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Choose a folder that you may write to."
        ) from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return path


def write_text(path: str | os.PathLike[str], text: str) -> Path:
    """Write a text file in one step, as UTF-8; raises as `write_atomically`."""
    return write_atomically(path, lambda temporary: Path(temporary).write_text(text, encoding="utf-8"))


def check_writable(folder: str | os.PathLike[str], cure: str = "Choose a folder that you may write to.") -> None:
    """Refuse a folder in which no file can be written, before any time is spent on the content.

    Folders that are missing are not made, and nothing is left behind.

    Args:
        folder: Where files will be written.
        cure: The last sentence of the error.

    Raises:
        FlowsimError: If the folder, or the first one above it that exists, takes no files.
    """
    existing = Path(folder)
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    reason = f"{str(existing)!r} is a file, not a folder"
    if existing.is_dir():
        try:
            tempfile.TemporaryFile(dir=existing).close()
            return
        except OSError as error:
            reason = error.strerror or str(error)
    raise FlowsimError(f"Cannot write to {str(folder)!r}: {reason}. {cure}")


def reference_path(name: str) -> Path:
    """A file of reference numbers, from the installed package or from a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_experiments", package.parent / "experiments"):
        if (path := folder / "reference" / name).is_file():
            return path
    raise FlowsimError(f"The reference numbers {name!r} are missing. Reinstall flowsim, or use a checkout.")
