"""Memory of a GPU: copies to it that nothing waits for, and what to do when it is full."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flowsim.errors import FlowsimError

#: Variables by which a user decides how much of a GPU JAX takes.
_JAX_MEMORY = (
    "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
)  # fmt: skip


def share_gpu() -> None:
    """Keep JAX from taking three quarters of a GPU that PyTorch needs; only before JAX has used it.

    A choice of the user in the environment stays.
    """
    if not any(name in os.environ for name in _JAX_MEMORY):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


share_gpu()


def onto_device(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on a device. A copy to a GPU goes through pinned memory, so that the host does not wait for it."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU is full."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in str(error)


@contextlib.contextmanager
def enough_memory(cure: str) -> Iterator[None]:
    """Raise `FlowsimError` with this cure where the memory of a GPU is full."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise FlowsimError(f"The memory of the GPU is full. {cure}") from None


class Blocks:
    """Work in blocks that become smaller where the memory of a GPU is full, and then stay so.

    - `size`: rows of a block.
    """

    def __init__(self, size: int) -> None:
        self.size = size

    def map(self, do: Callable[[torch.Tensor], torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """`do` of all rows, block by block, concatenated."""
        parts: list[torch.Tensor] = []
        done = 0
        while done < len(rows):
            part, full = rows[done : done + self.size], False
            try:
                parts.append(do(part))
            except RuntimeError as error:
                if not is_out_of_memory(error) or len(part) == 1:
                    raise
                full = True
            if not full:
                done += len(part)
                continue
            # Only here, where the error no longer holds what filled the memory.
            self.size = (len(part) + 1) // 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(parts)
