"""What readers of logs return: columns of logged values, as the file names them."""

import dataclasses
import re
from array import array
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from flowsim.base.checks import shown
from flowsim.errors import FlowsimError

#: A number as PyTorch prints it: "tensor(0.512, device='cuda:0')".
_TENSOR = re.compile(r"\s*tensor\(\[?\s*([^,\]\s)]+)\s*\]?\s*[,)]")


@dataclasses.dataclass(frozen=True)
class Logged:
    """The values of one column in the order of the file; NaN is a value that was logged as such.

    Attributes:
        at: Their row numbers, or their steps in a `Table` that is `in_steps`, (k,).
        values: The values, (k,).
    """

    at: np.ndarray
    values: np.ndarray

    def kept(self, mask: np.ndarray) -> "Logged":
        """The values at which a mask (k,) is true."""
        return Logged(self.at[mask], self.values[mask])


@dataclasses.dataclass
class Table:
    """A log before its columns are understood.

    Attributes:
        columns: Name in the file -> values.
        in_steps: Whether `at` are steps; otherwise they are row numbers, and a column holds the steps.
        settings: Settings of the training that the log tells, e.g. `batch_size`, `steps`.
        series: Name of a series -> the column that holds it, where the format settles it.
        because: Name of a column -> why it is read as it is, where the format settles it.
        steps_per_epoch: Number of steps of an epoch, if known.
        notes: What had to be left out or changed, in sentences.
        trainer: The trainer whose format it is.
        pool: Number of pairs among which held-out pairs are retrieved, if known.
        learned: Whether the trainer is known to learn ν = ln β without weight decay, within its clamp τ in [0.01, 1].
    """

    columns: dict[str, Logged]
    in_steps: bool = False
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    series: dict[str, str] = dataclasses.field(default_factory=dict)
    because: dict[str, str] = dataclasses.field(default_factory=dict)
    steps_per_epoch: int | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    trainer: str = ""
    pool: int | None = None
    learned: bool = False


class Builder:
    """Collects values row by row, sixteen bytes each."""

    def __init__(self) -> None:
        self._held: dict[str, tuple[array[int], array[float]]] = {}

    def column(self, name: str) -> tuple[Callable[[int], None], Callable[[float], None]]:
        """Functions that append a row number or step, and a value, to a column."""
        held = self._held.get(name)
        if held is None:
            held = self._held[name] = (array("q"), array("d"))
        return held[0].append, held[1].append

    def add(self, name: str, at: int, value: float) -> None:
        """Add one value."""
        add_at, add_value = self.column(name)
        add_at(at)
        add_value(value)

    def take_back(self, name: str, at: int) -> bool:
        """Remove the last value of a column if it is that of a row; returns whether it was."""
        rows, values = self._held[name]
        if not len(rows) or rows[-1] != at:
            return False
        rows.pop()
        values.pop()
        return True

    def columns(self) -> dict[str, Logged]:
        """The columns that hold values."""
        return {
            name: Logged(np.array(at, np.int64), np.array(values, np.float64))
            for name, (at, values) in self._held.items()
            if len(at)
        }


def number(value: Any) -> float | None:
    """A number of a log, also as text, in any spelling of NaN, or printed by PyTorch; None if it is none."""
    try:
        return None if isinstance(value, bool) else float(value)
    except OverflowError:  # a huge whole number of JSON
        return float("inf") if value > 0 else float("-inf")
    except (TypeError, ValueError):
        printed = _TENSOR.match(value) if isinstance(value, str) else None
        return None if printed is None else number(printed[1])


def table_of(found: Any, reader: str) -> Table:
    """What a reader returned as a table: a table, or columns by name, where NaN means that nothing was logged."""
    if isinstance(found, Table):
        return found
    if not isinstance(found, Mapping) or not found:
        raise FlowsimError(
            f"The reader of {reader!r} must return columns by name, but gives {shown(found)}. Return e.g. "
            '{"step": [...], "loss": [...]}.'
        )
    columns = {}
    for name, given in found.items():
        try:
            values = np.asarray(given, np.float64)
        except (TypeError, ValueError):
            values = np.empty((0, 0))
        if values.ndim != 1 or values.shape != np.shape(next(iter(found.values()))):
            raise FlowsimError(
                f"Columns of the reader of {reader!r} must be lists of numbers of one length, but {str(name)!r} is not."
            )
        rows = np.flatnonzero(~np.isnan(values))
        columns[str(name)] = Logged(rows, values[rows])
    return Table(columns)


def in_order(logged: Logged) -> tuple[Logged, int]:
    """The values in rising order of step, one for each; and how many were superseded by others.

    A step that is not above all before it begins again where a run was resumed: what was logged from there on before
    belongs to a branch that was given up. If that happens often, the file is not in the order of time; then only the
    last value of each step counts.
    """
    at, values = logged.at, logged.values
    if len(at) < 2 or bool(np.all(at[1:] > at[:-1])):
        return logged, 0
    back = int(np.sum(at[1:] < at[:-1]))
    keep = np.ones(len(at), bool)
    if back <= max(1, len(at) // 20):
        keep[:-1] = at[:-1] < np.minimum.accumulate(at[::-1])[::-1][1:]
        kept = logged.kept(keep)
        changed = int(len(at) - len(kept.at))
    else:
        order = np.argsort(at, kind="stable")
        sorted_at = at[order]
        last = np.concatenate([sorted_at[1:] != sorted_at[:-1], [True]])
        kept = Logged(sorted_at[last], values[order][last])
        changed = int(len(at) - len(kept.at))
    # A number that is logged twice in the same row of time, as by an evaluation, supersedes nothing.
    again = (at[1:] == at[:-1]) & ((values[1:] == values[:-1]) | (np.isnan(values[1:]) & np.isnan(values[:-1])))
    return kept, max(0, changed - int(again.sum()))


def resumed(superseded: int) -> list[str]:
    """The note about values that others superseded; none without such."""
    if not superseded:
        return []
    return [
        f"Up to {superseded} values of a column were superseded by later ones: the run was resumed, or the log holds a "
        "step more than once."
    ]
