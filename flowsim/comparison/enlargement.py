"""Early enlargement: does the gap grow over the first steps, as in Theorem 3.3?"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from flowsim import theory
from flowsim.comparison.drawing import RUN, SIMULATED, signed
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import finite_mean
from flowsim.comparison.words import between, short
from flowsim.plot import COLOURS

#: Steps that count as early.
EARLY = 10
#: Initialisations that a verdict needs: with fewer, even growth in all of them would not have a Clopper-Pearson
#: interval above 1/2.
INITIALISATIONS = 6

CRITERION = (
    f"the change of the gap from the start to the last evaluation within {EARLY} steps (to the first one, where there "
    "are no steps): agrees if the interval of the fraction of initialisations whose gap grew (Clopper and Pearson) is "
    "above 1/2 and that of the mean change (Student) above 0, disagrees if that of the fraction whose gap shrank lies "
    f"above 1/2 and that of the mean change below 0; no verdict with fewer than {INITIALISATIONS} initialisations; "
    "equal records count once; the sign alone is compared"
)


@dataclasses.dataclass(frozen=True)
class Curves:
    """Change of the gap in each initialisation, (count,), and its mean."""

    changes: np.ndarray
    mean: float


@dataclasses.dataclass(frozen=True)
class Theorem:
    """Theorem 3.3 at the runs' mean gap and temperature; `dim` is the dimension of the directions."""

    beta0: float
    gamma0: float
    pairs: int
    dim: int
    found: theory.Theorem33Bound
    #: Growth of the gap per unit of flow time; None if the clock is not flow time.
    measured_rate: float | None

    @property
    def vacuous(self) -> bool:
        """Whether the bound at finite n is trivial."""
        return bool(self.found.bound <= 0)

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return {
            "beta0": self.beta0,
            "gamma0": self.gamma0,
            "pairs": self.pairs,
            "dim": self.dim,
            "limit": float(self.found.limit),
            "bound": float(self.found.bound),
            "proved": bool(self.found.proved),
            "vacuous": self.vacuous,
            "measured_rate": self.measured_rate,
        }

    def words(self) -> str:
        """The theorem as part of a sentence."""
        measured = "only its sign can be compared, because the clock is not flow time"
        if self.measured_rate is not None:
            measured = f"{short(self.measured_rate)} was measured"
        return (
            "by Theorem 3.3 it grows for uniform directions in parallel cones (limit "
            f"{short(float(self.found.limit))} per unit of flow time; the bound at finite n is "
            f"{short(float(self.found.bound))}{', vacuous' if self.vacuous else ''}), and {measured}"
        )


@dataclasses.dataclass(frozen=True)
class Early:
    """The first steps of different initialisations, (count,) each; NaN where a number was not recorded."""

    change: np.ndarray
    gap: np.ndarray
    beta: list[float]
    #: Change of the gap per unit of the run's clock, up to the first evaluation.
    rate: list[float]
    #: Number of records that equal one of these.
    equal: int


@dataclasses.dataclass(frozen=True)
class Measured:
    """How often the gap grew and shrank, and by how much; `theorem` is a reason if it cannot be evaluated."""

    early: Early
    grew: int
    shrank: int
    mean: float
    #: Half width of the interval of the mean; inf for one initialisation.
    half: float
    theorem: Theorem | str

    @property
    def count(self) -> int:
        """Number of different initialisations."""
        return len(self.early.change)

    @property
    def mean_interval(self) -> list[float] | None:
        """95 % interval of the mean change."""
        return [self.mean - self.half, self.mean + self.half] if self.count > 1 else None

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        theorem = self.theorem
        return {
            "records": self.count,
            "equal_records": self.early.equal,
            "grew": self.grew,
            "shrank": self.shrank,
            "fraction": self.grew / self.count,
            "fraction_interval": list(_clopper_pearson(self.grew, self.count)),
            "mean_change": self.mean,
            "mean_change_interval": self.mean_interval,
            "mean_relative_change": float(np.mean(self.early.change / self.early.gap)),
            "steps": EARLY,
            "theorem_3_3": {"limit": None, "reason": theorem} if isinstance(theorem, str) else theorem.numbers(),
        }

    def sentence(self) -> str:
        """The finding in words."""
        said = f"The gap grew in {self.grew} of {self.count} initialisations, by {short(self.mean)} on average"
        said += "" if self.mean_interval is None else f" ({between(self.mean_interval)})"
        if isinstance(self.theorem, str):
            said += f"; Theorem 3.3 cannot be evaluated: {self.theorem}"
        else:
            said += f"; {self.theorem.words()}"
        if self.early.equal:
            said += f"; {self.early.equal} more records equal one of these"
        if self.count < INITIALISATIONS:
            said += f"; at least {INITIALISATIONS} initialisations are needed for a verdict"
        return said + "."

    def curves(self) -> Curves | None:
        """Data of the panel; a histogram needs more than two initialisations."""
        return Curves(self.early.change, self.mean) if self.count > 2 else None


def measure(runs: Sequence[Run]) -> Measured:
    """Count growth and shrinking over the first steps; raises `CannotTell`."""
    from scipy.stats import t as student

    early = _first_steps(runs)
    change, count = early.change, len(early.change)
    half = float(student.ppf(0.975, count - 1) * change.std(ddof=1) / math.sqrt(count)) if count > 1 else math.inf
    theorem = _theorem_3_3(runs[0], float(np.mean(early.gap)), finite_mean(early.beta), early.rate)
    return Measured(early, int(np.sum(change > 0)), int(np.sum(change < 0)), float(change.mean()), half, theorem)


def judge(found: Measured) -> Verdict:
    """The verdict, by the intervals of the fraction and the mean."""
    if found.count < INITIALISATIONS:
        return "cannot tell"
    if _clopper_pearson(found.grew, found.count)[0] > 0.5 and found.mean - found.half > 0:
        return "agrees"
    if _clopper_pearson(found.shrank, found.count)[0] > 0.5 and found.mean + found.half < 0:
        return "disagrees"
    return "cannot tell"


def draw(curves: Curves, ax: Axes) -> None:
    """Draw a histogram of the changes."""
    ax.hist(curves.changes, bins=min(10, max(3, len(curves.changes) // 2)), color=RUN, alpha=0.8, rwidth=0.92)
    ax.axvline(0, color=COLOURS["grey"], lw=1, ls=":", label="no change")
    ax.axvline(curves.mean, color=SIMULATED, label=f"mean {signed(curves.mean)}")
    ax.margins(y=0.25)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(r"change of the gap over the first steps")
    ax.set_ylabel("initialisations")
    ax.legend(loc="upper left")


@register("enlargement", title="Early enlargement", criterion=CRITERION, panels=(Panel(draw),))
def enlargement(runs: Sequence[Run]) -> Finding[Curves]:
    """The sign of the first change of the gap over initialisations."""
    found = measure(runs)
    return Finding(judge(found), found.sentence(), found.numbers(), found.curves())


def _first_steps(runs: Sequence[Run]) -> Early:
    """The first steps of all runs that have an early evaluation; raises `CannotTell` if none has."""
    changes, gaps, betas, rates = [], [], [], []
    different: set[bytes] = set()
    equal = 0
    for run in runs:
        last = _early(run)
        if last is None:
            continue
        if run.gap.tobytes() in different:
            equal += 1
            continue
        different.add(run.gap.tobytes())
        changes.append(float(run.gap[last] - run.gap[0]))
        gaps.append(float(run.gap[0]))
        betas.append(math.nan if run.beta is None else float(run.beta[0]))
        rates.append(float((run.gap[1] - run.gap[0]) / run.clock[1]) if run.clock[1] > 0 else math.nan)
    if not changes:
        raise CannotTell(f"No record has an evaluation at step 0 and another one up to step {EARLY}.")
    return Early(np.array(changes), np.array(gaps), betas, rates, equal)


def _early(run: Run) -> int | None:
    """Index of the last evaluation within the first ten steps; without steps, the first after the start."""
    if not np.isfinite(run.gap[0]) or run.axis[0] != 0 or len(run.gap) < 2:
        return None
    if run.step is None:
        return 1 if np.isfinite(run.gap[1]) else None
    early = np.flatnonzero((run.step > 0) & (run.step <= EARLY) & np.isfinite(run.gap))
    return int(early[-1]) if early.size else None


def _clopper_pearson(hits: int, count: int) -> tuple[float, float]:
    """95 % interval of a probability."""
    from scipy.stats import beta

    low = float(beta.ppf(0.025, hits, count - hits + 1)) if hits else 0.0
    return low, float(beta.ppf(0.975, hits + 1, count - hits)) if hits < count else 1.0


def _theorem_3_3(run: Run, gap: float, beta: float, rates: Sequence[float]) -> Theorem | str:
    """Theorem 3.3 at a gap and an inverse temperature, or why it cannot be evaluated."""
    pairs, dim, gamma = run.pairs, run.dim, gap / 2
    if not beta > 0:
        return "the run does not record its temperature"
    if pairs is None or dim is None:
        return "the run does not record its numbers of pairs and dimensions"
    if not 0 < gamma < 1 or dim < 3:
        return "it needs a gap between 0 and 2, in three dimensions or more"
    # Directions within the cones have one dimension less than the embeddings.
    found = theory.theorem_3_3_bound(pairs, dim - 1, beta, gamma)
    return Theorem(beta, gamma, pairs, dim - 1, found, finite_mean(rates) if run.in_flow_time else None)
