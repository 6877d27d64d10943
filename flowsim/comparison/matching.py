"""Matching: does the gap close once the pairs are matched?"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from flowsim.comparison.drawing import RUN, along_run
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.limits import GAP_MOVED
from flowsim.comparison.record import Run
from flowsim.comparison.words import percent, short
from flowsim.plot import COLOURS, MATCHED_COLOUR

#: Fraction of the closing of the gap that may come before half of the pairs match.
_CLOSED_BEFORE = 0.5
#: Fraction of it that may be undone after all pairs match.
_REGROWN = 0.1

CRITERION = (
    f"agrees if at most {_CLOSED_BEFORE:g} of the closing of the gap after its peak came before half of the recorded "
    f"pairs were matched, and the gap grew again by at most {_REGROWN:g} of the closing once all were; disagrees if it "
    "grew again by more; no verdict if more of the closing came before, as it does in flows on parallel cones too, "
    f"where half are matched at the first evaluation, or if the gap closed by less than {100 * GAP_MOVED:.0f} %"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Gap, matched fraction and doubly stochastic defect over `x`, (T,) each."""

    x: np.ndarray
    label: str
    gap: np.ndarray
    fraction: np.ndarray
    defect: np.ndarray | None
    #: Position from which on all pairs are matched.
    matched_from: float | None


@dataclasses.dataclass(frozen=True)
class Events:
    """Events in the gap and the matching of a run, as indices of evaluations; series are (T,)."""

    run: Run
    fraction: np.ndarray
    defect: np.ndarray | None
    #: Evaluations with the largest and with the last gap.
    peak: int
    end: int
    #: The first evaluations with half of the pairs, and with all pairs matched.
    half: int | None
    everyone: int | None
    #: How far the gap closed since its peak.
    closing: float

    def at(self, index: int | None) -> float | None:
        """The position of an evaluation on the run's axis."""
        return None if index is None else float(self.run.axis[index])

    def place(self, index: int) -> str:
        """The position of an evaluation in words."""
        return f"{self.run.axis_word} {self.run.axis[index]:.3g}"

    @property
    def matched_last(self) -> float:
        """The last matched fraction."""
        return float(self.fraction[np.isfinite(self.fraction)][-1])

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return _defect_numbers(self.run, self.defect) | {
            "gap_peak_at": self.at(self.peak),
            "half_matched_at": self.at(self.half),
            "all_matched_at": self.at(self.everyone),
            "matched_at_peak": float(self.fraction[self.peak]),
            "matched_last": self.matched_last,
            "closing": self.closing,
        }

    def stochastic(self) -> str:
        """How far the softmaxes are from doubly stochastic, as part of a sentence."""
        if self.defect is None:
            return ""
        last = float(self.defect[np.isfinite(self.defect)][-1])
        return f"; the softmaxes are {short(last)} from doubly stochastic"

    def curves(self) -> Curves:
        """Data of the panel."""
        run = self.run
        return Curves(run.axis, run.axis_label, run.gap, self.fraction, self.defect, self.at(self.everyone))


@dataclasses.dataclass(frozen=True)
class Order:
    """Fractions of the closing of the gap before half of the pairs were matched, and undone after all were.

    `before` is an upper and `at_least` a lower bound, because pairs match between evaluations.
    """

    before: float
    at_least: float
    regrown: float

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return {
            "closed_before_half_matched": self.before,
            "closed_before_half_matched_at_least": self.at_least,
            "regrown_after_matching": self.regrown,
        }


def measure(run: Run) -> Events:
    """Find the events; raises `CannotTell`."""
    fraction, margin, defect = (run.series(name) for name in ("matched_fraction", "margin", "doubly_stochastic_defect"))
    if fraction is None:
        reason = "The run does not record the matched fraction of the pairs whose gap it records."
        raise CannotTell(reason, **_defect_numbers(run, defect))
    gap = run.gap
    peak, end = int(np.nanargmax(gap)), int(np.flatnonzero(np.isfinite(gap))[-1])
    # All pairs are matched if the margin is positive or, if it was not recorded, if the fraction is 1.
    everyone = _first(margin > 0) if margin is not None else _first(fraction >= 1)
    return Events(run, fraction, defect, peak, end, _first(fraction >= 0.5), everyone, float(gap[peak] - gap[end]))


def order_of(found: Events) -> Order:
    """The order in which the gap closed and the pairs matched."""
    gap, fraction, half, everyone = found.run.gap, found.fraction, found.half, found.everyone
    known = np.isfinite(gap)
    level = np.interp(np.arange(len(gap)), np.flatnonzero(known), gap[known])

    def closed(index: int) -> float:
        if index <= found.peak:
            return 0.0
        return float(np.clip((gap[found.peak] - level[index]) / found.closing, 0.0, 1.0))

    # Half became matched between the last evaluation with fewer and the first with half.
    unmatched = np.flatnonzero(fraction[:half] < 0.5)
    before = 1.0 if half is None else closed(half)
    at_least = before if half is None else closed(int(unmatched[-1])) if unmatched.size else 0.0
    regrown = 0.0
    if everyone is not None and everyone < found.end:
        after = gap[everyone : found.end + 1]
        after = after[np.isfinite(after)]
        regrown = float(np.max(after - np.minimum.accumulate(after))) / found.closing
    return Order(before, at_least, regrown)


def judge(order: Order) -> Verdict:
    """The verdict, by the closing before the matching and its undoing afterwards."""
    if order.regrown > _REGROWN:
        return "disagrees"
    return "agrees" if order.before <= _CLOSED_BEFORE else "cannot tell"


def sentence(found: Events, order: Order) -> str:
    """The finding in words."""
    came = " to ".join(dict.fromkeys([percent(order.at_least), percent(order.before)]))
    if found.half is None:
        when = f"never half of the pairs are matched ({percent(found.matched_last)} in the end)"
    else:
        when = f"half of the pairs are matched at {found.place(found.half)}"
    if found.everyone is not None:
        when += f" and all at {found.run.axis[found.everyone]:.3g}"
    elif found.half is not None:
        when += ", never all"
    return (
        f"The gap peaks at {found.place(found.peak)} with {percent(found.fraction[found.peak])} matched, {when}, and "
        f"{came} of the closing came before half were{found.stochastic()}."
    )


def draw(curves: Curves, ax: Axes) -> None:
    """Draw gap and matched fraction, and the defect on a second axis."""
    gap, defect = curves.gap, curves.defect
    ax.plot(curves.x, gap / np.nanmax(gap), color=RUN, label="gap / its peak")
    ax.plot(curves.x, curves.fraction, color=COLOURS["green"], ls=(0, (1, 1)), label="matched fraction")
    if curves.matched_from is not None:
        ax.axvspan(curves.matched_from, curves.x[-1], color=MATCHED_COLOUR, lw=0, zorder=0, label="all pairs matched")
    along_run(curves.x, curves.label, ax)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("fraction")
    handles = ax.get_legend_handles_labels()[0]
    if defect is not None and np.nanmax(defect) > 1e-12:  # below, it is rounding
        top = ax.twinx()
        handles += top.plot(
            curves.x,
            np.maximum(defect, 1e-16),
            color=COLOURS["orange"],
            ls=(0, (4, 2)),
            lw=1,
            label="doubly stochastic defect (right)",
        )
        top.set_yscale("log")
        top.set_ylabel("doubly stochastic defect")
        top.spines["right"].set_visible(True)
    # Below the panel, because three curves from corner to corner leave no room inside.
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, columnspacing=0.9)


@register("matching", title="Matching", criterion=CRITERION, panels=(Panel(draw),))
def matching(runs: Sequence[Run]) -> Finding[Curves]:
    """The order of matching and closing in the first run."""
    found = measure(runs[0])
    numbers, curves = found.numbers(), found.curves()
    if found.closing <= GAP_MOVED * found.run.gap[found.peak]:
        reason = (
            f"The gap closed by less than {percent(GAP_MOVED)} after its peak at {found.place(found.peak)}, "
            f"with {percent(found.fraction[found.peak])} of the pairs matched{found.stochastic()}."
        )
        return Finding("cannot tell", reason, numbers, curves)
    if found.half == 0:
        reason = (
            "Half of the pairs are matched from the first evaluation on, so that the order of matching and closing "
            f"does not show{found.stochastic()}."
        )
        return Finding("cannot tell", reason, numbers, curves)
    order = order_of(found)
    return Finding(judge(order), sentence(found, order), numbers | order.numbers(), curves)


def _defect_numbers(run: Run, defect: np.ndarray | None) -> dict[str, Any]:
    """The first numbers of the item: the name of its axis, and the defect if it was recorded."""
    found: dict[str, Any] = {"axis": run.axis_name}
    if defect is not None:
        finite = defect[np.isfinite(defect)]
        found |= {
            "defect_first": float(finite[0]),
            "defect_largest": float(finite.max()),
            "defect_last": float(finite[-1]),
        }
    return found


def _first(hit: np.ndarray) -> int | None:
    """The first index at which a mask is true."""
    there = np.flatnonzero(hit)
    return int(there[0]) if there.size else None
