"""`compare`, and what it returns."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.base.html import table
from flowsim.comparison.drawing import figure_of
from flowsim.comparison.item import Item, Verdict
from flowsim.comparison.items import REGISTRY, names
from flowsim.comparison.record import Record, Run
from flowsim.errors import unknown_name
from flowsim.plot import paper_style


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """What `compare` found: `items` by name, and the `records` that they are about, in words."""

    records: tuple[str, ...]
    items: dict[str, Item]

    def __getitem__(self, name: str) -> Item:
        """An item by name; an unknown name raises `FlowsimError`."""
        if name not in self.items:
            raise unknown_name("item", name, self.items)
        return self.items[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.items)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """Verdict of every item."""
        return {name: item.verdict for name, item in self.items.items()}

    @property
    def _title(self) -> str:
        others = len(self.records) - 1
        more = f" and {others} other{'s' if others > 1 else ''}" if others else ""
        return f"Comparison of {self.records[0]}{more}"

    def to_dict(self) -> dict[str, Any]:
        """Records and items as plain data; what could not be had is NaN or None."""
        return {"records": list(self.records), "items": [item.to_dict() for item in self.items.values()]}

    def plot(self) -> Figure:
        """Closed form, simulation and training, one panel for each item that has something to show.

        Returns:
            The figure.

        Raises:
            FlowsimError: if no item has anything to show.
        """
        return figure_of([panel for name, item in self.items.items() for panel in REGISTRY[name].drawings(item)])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure, atomically.

        Args:
            path: its file, .png, .pdf or .svg.

        Returns:
            The path.

        Raises:
            FlowsimError: for another ending, or if the file cannot be written.
        """
        path = Path(path)
        check(
            path.suffix in (".png", ".pdf", ".svg"),
            f"Figures end in .png, .pdf or .svg, but got {path.name!r}. Use e.g. compare.png.",
        )
        with paper_style():
            figure = self.plot()
            return write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:]))

    def __repr__(self) -> str:
        lines = [f"  {item.name:<13} {item.verdict:<12} {item.sentence}" for item in self.items.values()]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        rows = [(item.name, item.verdict, item.sentence) for item in self.items.values()]
        return table(rows, ("item", "verdict", "in words"), self._title)


def compare(record: Record, *more: Record, parts: Sequence[str] | None = None) -> Comparison:
    """Compare a run with the simulation and with the closed forms.

    The items:

    - `simulation`: the flow on `Sphere` from the run's own rows (a batch, at most 128 pairs; after the first epoch if
      that snapshot is there, else the first) with the run's schedule. Clocks differ, so that one factor of time is
      fitted; it also draws the closed form of parallel cones, from the peak of the gap. The flow of a part of the
      pairs is shown without a verdict: that of minibatches, or of a run with more pairs.
    - `exponent`: d ln Δ/d ln β by least squares, beside −2s²/r (parallel cones; of the conserved quantity ln γ −
      γ²/2 with γ = Δ/2) and −s²/(r n) (free sphere, doubly stochastic; n pairs in each loss, hence not for
      minibatches).
    - `slow_closing`: Δ against −1/log(t)², t in steps and on the run's clock.
    - `enlargement`: the change of the gap over the first ten steps, over at least six records, beside Theorem 3.3.
    - `matching`: when pairs become matched, how far the softmaxes are from doubly stochastic, and whether the gap
      closes after that.
    - `calibration`: a factor of time (and label noise, if that alone does not do) from the first 20 % of the run,
      which predicts the rest; beside a constant and a straight line in log t.

    Args:
        record: a record of training or a simulated `Result`, or the path of one (.nc). It needs `modality_gap`
            over time.
        *more: other initialisations of the same run, which `enlargement` alone uses.
        parts: names of the items wanted; default all.

    Returns:
        The items by name, with verdicts and a figure.

    Raises:
        FlowsimError: for what is no result, a file that is none, a run without a modality gap, or an unknown item.

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
