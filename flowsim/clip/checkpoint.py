"""Checkpoints: all state that the rest of a run depends on, kept next to its record until the run has ended."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import torch

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.clip.identity import same_configuration
from flowsim.errors import FlowsimError


class Checkpoint:
    """The file of one run."""

    def __init__(self, record: Path) -> None:
        self.path = record.with_suffix(".checkpoint.pt")

    def write(self, config: dict[str, Any], state: dict[str, Any]) -> None:
        """Write the state of a run with this configuration."""
        save_tensors({"run": json.dumps(config, sort_keys=True), **state}, self.path)

    def read(self, config: dict[str, Any]) -> dict[str, Any] | None:
        """The state; None without a checkpoint. Raises `FlowsimError` if it is damaged, or of another run."""
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
            same = same_configuration(json.loads(state["run"]), json.loads(json.dumps(config)))
        except Exception as error:  # a damaged or foreign file fails in many ways
            raise FlowsimError(
                f"The checkpoint {str(self.path)!r} cannot be read ({type(error).__name__}). Remove it to start again."
            ) from None
        check(
            same,
            f"The checkpoint {str(self.path)!r} belongs to a run with other settings. "
            "Use the same settings, another `out`, or `force=True`.",
        )
        return state

    def remove(self) -> None:
        """Remove the file, if there is one."""
        self.path.unlink(missing_ok=True)


def save_tensors(state: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors atomically. Raises `FlowsimError` if this fails, also on a full disk."""

    def write(temporary: str) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # PyTorch's writer hides the system's error
            raise OSError(errno.EIO, "PyTorch could not write all of it; the disk may be full") from error

    write_atomically(path, write)
