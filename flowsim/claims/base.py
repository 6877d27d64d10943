"""What a claim is, how it is judged, and the system that it is measured on."""

import dataclasses
import inspect
import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from flowsim.base.checks import check, check_number, host_array, shown
from flowsim.base.html import table
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate.descend import descend
from flowsim.integrate.simulate import simulate
from flowsim.integrate.sweep import SweepResult, sweep
from flowsim.model.flow import GradientFlow
from flowsim.model.geometry import AbstractGeometry, Sphere
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.model.pairing import AbstractPairing, Matched
from flowsim.records.result import Result

Numbers = dict[str, float]
Expected = Literal["holds", "fails"]
Finding = Literal["holds", "fails", "undecided"]

#: Steps after which a run of a claim gives up: twice what the stiffest right one needs.
MAX_STEPS = 10_000


def _unchanged(flow: GradientFlow) -> GradientFlow:
    return flow


@dataclasses.dataclass(frozen=True)
class System:
    """The system under test, from which a claim takes every flow and every run.

    A wrong model must turn the claims that depend on what it breaks. Starts, closed forms and verdicts do not pass
    through it.

    Args:
        corrupt: Turns a right flow into the one that is measured. Default: the flow itself.
    """

    corrupt: Callable[[GradientFlow], GradientFlow] = _unchanged

    def flow(
        self,
        geometry: AbstractGeometry | None = None,
        schedule: Any = "Baseline",
        pairing: AbstractPairing | None = None,
        **parts: Any,
    ) -> GradientFlow:
        """The flow under test.

        Args:
            geometry: Default: `Sphere()`.
            schedule: A schedule, the name of a preset, or a temperature policy.
            pairing: Default: `Matched()`.
            **parts: Other arguments of `GradientFlow`.

        Returns:
            The flow, after `corrupt`.
        """
        flow = GradientFlow(
            geometry=Sphere() if geometry is None else geometry,
            schedule=schedule,
            pairing=Matched() if pairing is None else pairing,
            **parts,
        )
        return self.corrupt(flow)

    def simulate(self, flow: GradientFlow, start: Start | AbstractRecipe, **options: Any) -> Result:
        """`fs.simulate` with the explicit method and at most 10,000 steps.

        Args:
            flow: From `System.flow`.
            start: As in `fs.simulate`.
            **options: Other arguments of `fs.simulate`.

        Returns:
            The run. A run that ends early raises nothing and has NaN at its later output times.
        """
        options = {"method": "explicit", "max_steps": MAX_STEPS, "throw": False, **options}
        return simulate(flow, start, **options)

    def sweep(
        self, flow: GradientFlow, start: Start | AbstractRecipe, over: Mapping[str, Any], **options: Any
    ) -> SweepResult:
        """`fs.sweep` in one thread, with tolerances for claims about the size or order of gaps.

        Args:
            flow: From `System.flow`.
            start: As in `fs.sweep`.
            over: As in `fs.sweep`.
            **options: Other arguments of `fs.sweep`. Default: `rtol=1e-6`, `atol=1e-9`.

        Returns:
            The runs.
        """
        return sweep(flow, start, over, **{"rtol": 1e-6, "atol": 1e-9, "workers": 1, **options})

    def descend(
        self, flow: GradientFlow, start: Start | AbstractRecipe, optimizer: Any, lr: float, steps: int, **options: Any
    ) -> Result:
        """`fs.descend`.

        Args:
            flow: From `System.flow`.
            start: As in `fs.descend`.
            optimizer: As in `fs.descend`.
            lr: As in `fs.descend`.
            steps: As in `fs.descend`.
            **options: Other arguments of `fs.descend`.

        Returns:
            The run. A run that ends early raises nothing and has NaN at its later output times.
        """
        return descend(flow, start, optimizer, lr, steps, throw=False, **options)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement, how to measure it, and which verdict is expected.

    Args:
        id: A short name, e.g. "lemma-3.1".
        statement: What is claimed, in one sentence.
        source: Where it comes from.
        assumptions: Geometry, start, parameters and times of the measurement.
        measure: `measure(system, quick)` returns numbers by name. `quick` reduces sizes (seeds, horizons), never
            tolerances.
        expected: "holds", or "fails" for a statement of the paper that does not hold as printed or is not claimed for
            this flow. The statement is then quoted, and the numbers show by how much it fails.
        cheap: Whether `flowsim reproduce --quick` measures it too; for claims that need few compiled programs.
        at_most: Upper limits of numbers by name. The claim holds if all limits are respected.
        at_least: Lower limits of numbers by name.

    Raises:
        FlowsimError: If there is no limit, or `expected` is another word.
    """

    id: str
    statement: str
    source: str
    assumptions: str
    measure: Callable[[System, bool], Mapping[str, Any]]
    expected: Expected = "holds"
    cheap: bool = False
    at_most: Mapping[str, float] = dataclasses.field(default_factory=dict)
    at_least: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.expected not in ("holds", "fails"):
            raise unknown_name("expected verdict", self.expected, ("holds", "fails"))
        check(
            len(self.at_most) + len(self.at_least) > 0,
            f"The claim {self.id!r} has no limits, so that nothing could make it fail. Give `at_most` or `at_least`.",
        )
        for name, limit in (*self.at_most.items(), *self.at_least.items()):
            check_number(f"limit of {name}", limit, cure="Use e.g. at_most={'largest_error': 1e-8}.")
        try:
            inspect.signature(self.measure).bind(None, None)
        except (TypeError, ValueError):
            raise FlowsimError(
                f"The measurement of the claim {self.id!r} must be a function of (system, quick), but is "
                f"{shown(self.measure)}."
            ) from None

    def judge(self, numbers: Mapping[str, float]) -> Finding:
        """Whether every limit is respected.

        A number that is not finite supports nothing. A claim that is expected to hold then fails; one that is expected
        to fail is undecided, so that a broken run is never taken for a finding.

        Args:
            numbers: The measured numbers by name.

        Returns:
            "holds", "fails" or "undecided".

        Raises:
            FlowsimError: If a number with a limit was not measured.
        """
        for name in (*self.at_most, *self.at_least):
            if name not in numbers:
                raise FlowsimError(
                    f"The measurement of the claim {self.id!r} gave no number {name!r}, which has a limit. It gave: "
                    f"{', '.join(map(repr, numbers)) or 'nothing'}."
                )
        decisive = [numbers[name] for name in (*self.at_most, *self.at_least)]
        if not all(math.isfinite(value) for value in decisive):
            return "fails" if self.expected == "holds" else "undecided"
        good = all(numbers[name] <= limit for name, limit in self.at_most.items())
        good = good and all(numbers[name] >= limit for name, limit in self.at_least.items())
        return "holds" if good else "fails"

    def run(self, quick: bool = False, system: System | None = None) -> "Verdict":
        """Measure and judge.

        Args:
            quick: Smaller sizes at the same limits.
            system: What is measured. Default: flowsim itself.

        Returns:
            The verdict; its numbers include the limits.

        Raises:
            FlowsimError: If the measurement returns no dictionary, or lacks a number with a limit.
        """
        begin = time.perf_counter()
        check(
            system is None or isinstance(system, System),
            f"Argument `system` cannot be {system!r}. Use e.g. System(corrupt=lambda flow: flow.replace(...)).",
        )
        with jax.enable_x64(True), np.errstate(all="ignore"):
            measured = self.measure(System() if system is None else system, quick)
            check(
                isinstance(measured, Mapping),
                f"The measurement of {self.id!r} returned {measured!r}. Return a dict of named numbers.",
            )
            numbers = {name: _plain(self.id, name, value) for name, value in measured.items()}
        verdict = self.judge(numbers)
        numbers |= {f"{name}_at_most": float(limit) for name, limit in self.at_most.items()}
        numbers |= {f"{name}_at_least": float(limit) for name, limit in self.at_least.items()}
        return Verdict(
            self.id,
            self.statement,
            self.source,
            self.assumptions,
            numbers,
            self.expected,
            verdict,
            time.perf_counter() - begin,
        )


def _plain(claim: str, name: str, value: Any) -> float:
    """A measured value as a number of Python; raises `FlowsimError` for anything else."""
    found = host_array(value)
    if found is None or found.size != 1 or found.dtype.kind not in "biuf":
        raise FlowsimError(f"The number {name!r} of the claim {claim!r} must be one number, but is {shown(value)}.")
    number = found.item()
    return float(number) if isinstance(number, (float, bool)) else number


@dataclasses.dataclass(frozen=True, repr=False)
class Verdict:
    """A measured claim.

    Attributes:
        id: As in `Claim`.
        statement: As in `Claim`.
        source: As in `Claim`.
        assumptions: As in `Claim`.
        numbers: The measured numbers, and the limits as `NAME_at_most` and `NAME_at_least`.
        expected: The expected verdict.
        verdict: "holds", "fails" or "undecided".
        seconds: How long the measurement took.
    """

    id: str
    statement: str
    source: str
    assumptions: str
    numbers: Numbers
    expected: Expected
    verdict: Finding
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether the verdict is the expected one."""
        return self.verdict == self.expected

    def to_dict(self) -> dict[str, Any]:
        """Plain data for strict JSON: {id, statement, source, assumptions, numbers, expected, verdict}.

        Numbers that are not finite become null.
        """
        numbers = {name: v if math.isfinite(v) else None for name, v in self.numbers.items()}
        return {
            "id": self.id,
            "statement": self.statement,
            "source": self.source,
            "assumptions": self.assumptions,
            "numbers": numbers,
            "expected": self.expected,
            "verdict": self.verdict,
        }

    def key_numbers(self) -> str:
        """Numbers with their limits, as text."""
        limits = {}
        for suffix, sign in (("_at_most", "≤"), ("_at_least", "≥")):
            for name, value in self.numbers.items():
                if name.endswith(suffix):
                    limits[name.removesuffix(suffix)] = f" ({sign} {value:.10g})"
        measured = {k: v for k, v in self.numbers.items() if not k.endswith(("_at_most", "_at_least"))}
        order = [*limits, *(k for k in measured if k not in limits)]
        return ", ".join(f"{name} {measured[name]:.4g}{limits.get(name, '')}" for name in order)

    def __repr__(self) -> str:
        return "\n".join(
            [
                f"{self.id}: {self.verdict} (expected: {self.expected})",
                *textwrap.wrap(self.statement, 110, initial_indent="  ", subsequent_indent="  "),
                f"  source: {self.source}",
                f"  assumptions: {self.assumptions}",
                *(f"  {name:<40} {value:.6g}" for name, value in self.numbers.items()),
            ]
        )

    def _repr_html_(self) -> str:
        return Table([self])._repr_html_()


class Table:
    """All verdicts, readable as text and in a notebook; iterates over its verdicts."""

    def __init__(self, verdicts: list[Verdict]) -> None:
        self.verdicts: list[Verdict] = list(verdicts)

    @property
    def as_expected(self) -> bool:
        """Whether every verdict is the expected one."""
        return all(v.as_expected for v in self.verdicts)

    def to_json(self) -> str:
        """A JSON list of the verdicts, strict (no NaN)."""
        data = [v.to_dict() for v in self.verdicts]
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False)

    def __iter__(self) -> Any:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    def __getitem__(self, claim: str) -> Verdict:
        return next(v for v in self.verdicts if v.id == claim)

    def _summary(self) -> str:
        good = sum(v.as_expected for v in self.verdicts)
        return f"{good} of {len(self.verdicts)} verdicts are as expected"

    def __repr__(self) -> str:
        width = max((len(v.id) for v in self.verdicts), default=2)
        lines = [f"{'claim':<{width}}  {'verdict':<9}  expected  statement and key numbers"]
        for v in self.verdicts:
            mark = " " if v.as_expected else "!"
            indent = " " * (width + 22)
            lines += [
                f"{v.id:<{width}} {mark}{v.verdict:<9}  {v.expected:<8}  "
                + textwrap.fill(v.statement, 100, subsequent_indent=indent),
                textwrap.fill(v.key_numbers(), 100 + len(indent), initial_indent=indent, subsequent_indent=indent),
            ]
        return "\n".join([*lines, self._summary()])

    def _repr_html_(self) -> str:
        rows = [(v.id, v.verdict, v.expected, v.statement, v.key_numbers()) for v in self.verdicts]
        surprises = [index for index, v in enumerate(self.verdicts) if not v.as_expected]
        head = ("claim", "verdict", "expected", "statement", "numbers")
        return table(rows, head, self._summary(), marked=surprises)
