"""`compare` and its result."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowsim.base.html import table
from flowsim.comparison.drawing import figure_of
from flowsim.comparison.item import Item, Verdict
from flowsim.comparison.items import REGISTRY, names
from flowsim.comparison.record import Record, Run
from flowsim.errors import unknown_name
from flowsim.plot import paper_style, save


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """The result of `compare`; `comparison["matching"]` is an item.

    Attributes:
        records: A description of each run.
        items: Name -> item, in the order of the report.
    """

    records: tuple[str, ...]
    items: dict[str, Item]

    def __getitem__(self, name: str) -> Item:
        """An item by name; raises `FlowsimError` for an unknown one."""
        if name not in self.items:
            raise unknown_name("item", name, self.items)
        return self.items[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.items)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Name -> verdict of every item."""
        return {name: item.verdict for name, item in self.items.items()}

    @property
    def _title(self) -> str:
        others = len(self.records) - 1
        more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
        return f"Comparison of {self.records[0]}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Records and items as plain data; missing numbers are NaN or None."""
        return {"records": list(self.records), "items": [item.to_dict() for item in self.items.values()]}

    def plot(self) -> Figure:
        """Draw run, simulation and closed forms, with one or more panels for each item that has curves.

        Returns:
            The figure.

        Raises:
            FlowsimError: If no item has anything to draw.
        """
        return figure_of([panel for name, item in self.items.items() for panel in REGISTRY[name].drawings(item)])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure atomically.

        Args:
            path: File to write, .png, .pdf or .svg.

        Returns:
            The path.

        Raises:
            FlowsimError: If the path has another ending, no item has anything to draw, or the file cannot be written.
        """
        with paper_style():
            return save(self.plot(), path)

    def __repr__(self) -> str:
        lines = [f"  {item.name:<17} {item.verdict:<12} {item.sentence}" for item in self.items.values()]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        rows = [(item.name, item.verdict, item.sentence) for item in self.items.values()]
        return table(rows, ("item", "verdict", "in words"), self._title)


def compare(record: Record, *more: Record, parts: Sequence[str] | None = None) -> Comparison:
    """Compare a run with the simulated flow and with closed forms.

    The items:

    - `simulation`: Does the run follow the flow on `Sphere` from its own rows with its schedule? The rows are a batch
      of at most 128 pairs, from the snapshot after the first epoch if there is one, else from the first. As clocks
      differ, one factor of time is fitted. The closed form of parallel cones is drawn from the peak of the gap. If
      only a part of the pairs is simulated (minibatches, or too many pairs), there is no verdict.
    - `exponent`: The slope d ln Δ/d ln β by least squares, compared with −2s²/r (parallel cones; fitted to their
      conserved quantity ln γ − γ²/2 with γ = Δ/2) and −s²/(r n) (free sphere, doubly stochastic softmaxes; n pairs in
      each loss, hence not for minibatches).
    - `slow_closing`: Δ as a function of −1/log(t)², with t in steps and on the clock of the run.
    - `enlargement`: The change of the gap over the first ten steps in at least six records, compared with Theorem 3.3.
    - `matching`: When pairs become matched, how far the softmaxes are from doubly stochastic, and whether the gap
      closes afterwards.
    - `calibration`: A factor of time (with label noise, if that is not enough) fitted to the first 20 % of the run,
      whose prediction of the rest is compared with a constant and a straight line in log t.
    - `kernel_simulation`: Does the run follow the flow of its own rows under its encoders' measured kernels, with
      nothing fitted? The flows with the first kernels, with all of them in turn, with one factor of time, and of free
      rows are given. For trainings with `kernels`; no verdict for minibatches.
    - `forecast`: The last 80 % of the gap and of ln τ, from the kernels and rows at 20 % and a factor of time, with an
      interval, compared with a constant, a line in log t and free rows.

    Args:
        record: A record of training, a simulation, the path of one (.nc), or that of a log of another trainer (see
            `fs.read_log`). It needs `modality_gap` over time.
        *more: The same run from other initialisations, used only by `enlargement`.
        parts: Names of the items. Default: all.

    Returns:
        The items by name, with verdicts and a figure.

    Raises:
        FlowsimError: If a record is not a result, a file cannot be read, a run has no modality gap, or an item is
            unknown.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> found = fs.compare(fs.simulate(flow, start, t1=1e5), parts=["matching"])
        >>> found.verdicts
        {'matching': 'agrees'}
    """
    known = names()
    wanted = known if parts is None else ((parts,) if isinstance(parts, str) else tuple(parts))
    for name in wanted:
        if name not in known:
            raise unknown_name("part of a comparison", name, known)
    runs = [Run.of(r) for r in (record, *more)]
    return Comparison(
        tuple(run.name for run in runs), {name: REGISTRY[name].item(runs) for name in known if name in wanted}
    )
