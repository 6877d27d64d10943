"""Memory of a GPU: what to do when it is full."""

import contextlib
from collections.abc import Callable, Iterator

import torch

from flowsim.errors import FlowsimError


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
