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


def reference_path(name: str) -> Path:
    """A file of reference numbers, from the installed package or from a checkout."""
    package = Path(__file__).parents[1]
    for folder in (package / "_experiments", package.parent / "experiments"):
        if (path := folder / "reference" / name).is_file():
            return path
    raise FlowsimError(f"The reference numbers {name!r} are missing. Reinstall flowsim, or use a checkout.")
