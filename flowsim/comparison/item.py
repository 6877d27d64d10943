"""Items of a comparison, and their registry."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypeVar

from matplotlib.axes import Axes

from flowsim.base.registry import Registry
from flowsim.comparison.record import CannotTell, Run

Verdict = Literal["agrees", "disagrees", "cannot tell"]
C = TypeVar("C")


@dataclasses.dataclass(frozen=True)
class Item:
    """One item of a comparison.

    Attributes:
        name: Name of the item.
        title: Title of its panel.
        verdict: "agrees", "disagrees" or "cannot tell".
        sentence: The finding in words.
        criterion: How the verdict is reached, in words.
        numbers: Name -> number behind the verdict.
        curves: What its panels draw; None if there is nothing to draw.
    """

    name: str
    title: str
    verdict: Verdict
    sentence: str
    criterion: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: Any = dataclasses.field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the curves, as plain data."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "curves"}


@dataclasses.dataclass(frozen=True)
class Finding(Generic[C]):
    """What an item found in a run; `curves` is None if there is nothing to draw."""

    verdict: Verdict
    sentence: str
    numbers: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: C | None = None


@dataclasses.dataclass(frozen=True)
class Panel(Generic[C]):
    """A panel of the figure: the function that draws it, its title (default: the item's), and whether it is shown."""

    draw: Callable[[C, Axes], None]
    title: str = ""
    shown: Callable[[C], bool] = lambda curves: True


@dataclasses.dataclass(frozen=True)
class Part(Generic[C]):
    """How an item is found in runs and drawn."""

    name: str
    title: str
    criterion: str
    find: Callable[[Sequence[Run]], Finding[C]]
    panels: tuple[Panel[C], ...]

    def item(self, runs: Sequence[Run]) -> Item:
        """The item for a run; `runs` holds it and then other initialisations."""
        try:
            found = self.find(runs)
        except CannotTell as reason:
            found = Finding("cannot tell", reason.reason, reason.numbers)
        return Item(self.name, self.title, found.verdict, found.sentence, self.criterion, found.numbers, found.curves)

    def drawings(self, item: Item) -> list[tuple[str, Callable[[Axes], None]]]:
        """Title and drawing function of each panel of an item; empty if it has nothing to show."""
        if item.curves is None:
            return []
        return [
            (f"{panel.title or self.title}: {item.verdict}", lambda ax, draw=panel.draw: draw(item.curves, ax))
            for panel in self.panels
            if panel.shown(item.curves)
        ]


#: Name -> item, in the order of a report.
REGISTRY: Registry[Part[Any]] = Registry("item")


def register(
    name: str, *, title: str, criterion: str, panels: Sequence[Panel[C]]
) -> Callable[[Callable[[Sequence[Run]], Finding[C]]], Part[C]]:
    """Register a function as an item of comparisons.

    Args:
        name: Name of the item.
        title: Title of its panel.
        criterion: When it agrees, disagrees and has no verdict, in words.
        panels: Panels that draw its curves.

    Returns:
        A decorator for the function, which takes the run followed by other initialisations and may raise `CannotTell`.

    Raises:
        FlowsimError: If the name is that of one of flowsim's own items.
    """

    def enter(find: Callable[[Sequence[Run]], Finding[C]]) -> Part[C]:
        return REGISTRY.add(name, Part(name, title, criterion, find, tuple(panels)), find.__module__)

    return enter


def names() -> tuple[str, ...]:
    """Names of all items, in the order of a report."""
    return tuple(REGISTRY)
