"""Selected rows of an array that may be a memory map: nothing is read before it is asked for."""

import mmap
from dataclasses import dataclass
from typing import Any

import numpy as np

#: Numbers that are read at once where all rows are needed.
_BLOCK = 2**22


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of an array, in an order.

    Attributes:
        array: (N, ...), often a memory map.
        places: (n,) the row of the array that is row i here; None for all of them in their order.
    """

    array: np.ndarray
    places: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array) if self.places is None else len(self.places)

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, ...)."""
        return (len(self), *self.array.shape[1:])

    def read(self, index: Any, within: Any = None) -> np.ndarray:
        """Read rows.

        Args:
            index: Integers or a slice.
            within: Index along the second axis: one for all rows, or one for each of the integers; None for all.

        Returns:
            The rows; a view where that is possible.
        """
        if self.places is not None:
            index = self.places[index]
        return self.array[index] if within is None else self.array[index, within]

    def take(self, index: np.ndarray) -> "Rows":
        """Select rows by integers (n,): a view where they are consecutive; rows of a memory map stay in the file."""
        places = index if self.places is None else self.places[index]
        if len(places) and np.array_equal(places, np.arange(places[0], places[0] + len(places))):
            return Rows(self.array[places[0] : places[0] + len(places)])
        return Rows(self.array, places) if is_mapped(self.array) else Rows(self.array[places])

    def whole(self) -> np.ndarray:
        """All rows as an array; scattered rows of a memory map are read from the file."""
        return self.array if self.places is None else self.array[self.places]

    def blocks(self) -> list[slice]:
        """Slices that together cover all rows, each of about four million numbers."""
        size = max(1, _BLOCK // max(1, int(np.prod(self.array.shape[1:]))))
        return [slice(start, min(start + size, len(self))) for start in range(0, len(self), size)]


def is_mapped(array: np.ndarray) -> bool:
    """Whether an array, or the one it is a view of, is mapped from a file."""
    owner: Any = array
    while isinstance(owner, np.ndarray):
        if isinstance(owner, np.memmap):
            return True
        owner = owner.base
    return isinstance(owner, mmap.mmap)
