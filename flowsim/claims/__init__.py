"""Claims: every statement of the theory beside a measurement and a verdict.

    fs.claims.table()                       # all of them, as a readable table
    fs.claims.run("lemma-3.1")              # one
    fs.claims.run("lemma-3.1", system=fs.claims.System(corrupt=...))   # measured on another model

A claim names its source and assumptions, measures the simulator (never the closed forms alone) and is judged
by limits that stand among its numbers. Some are expected to fail: statements that do not hold as printed.
"""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

from flowsim.base import processes as _workers
from flowsim.claims import (
    ambient,
    conserved,
    dynamics,
    exponents,
    figure_2,
    loss_gradient,
    mismatch,
    noise,
    optimizers,
    retrieval,
    sigmoid,
    subspaces,
    swaps,
    temperature_rates,
    theorem_3_2,
    theorem_3_3,
)
from flowsim.claims.base import Claim, System, Table, Verdict
from flowsim.errors import unknown_name

#: Two lanes, measured at the same time: their modules share hardly any compiled program.
_LANES = (
    (loss_gradient, conserved, theorem_3_2, dynamics, optimizers, mismatch, sigmoid, ambient),
    (figure_2, exponents, theorem_3_3, temperature_rates, noise, retrieval, swaps, subspaces),
)
_ORDER = (
    loss_gradient, conserved, exponents, theorem_3_2, theorem_3_3, figure_2, temperature_rates, dynamics,
    noise, optimizers, retrieval, swaps, mismatch, subspaces, sigmoid, ambient,
)  # fmt: skip
#: Claims that need few compiled programs: the field, Figure 2, and two runs on cones.
CHEAP = (
    "loss-gradient", "field-is-gradient", "symmetries", "theorem-3.3-height", "theorem-3.3-gap",
    "theorem-3.3-deduction", "theorem-3.3-bound", "figure-2", "lemma-3.1-on-figure-2", "rings-conserve",
    "rings-exponent", "lemma-3.1", "conserved-exp", "theorem-3.2", "theorem-3.2-as-printed",
    "enlarge-then-close", "gap-moves-with-temperature", "force-sign",
)  # fmt: skip
REGISTRY: dict[str, Claim] = {claim.id: claim for module in _ORDER for claim in module.CLAIMS}


def names() -> list[str]:
    """The ids of all claims, in the order of the table."""
    return list(REGISTRY)


def get(name: str) -> Claim:
    """The claim `name`. Raises `FlowsimError` with the nearest ids if there is none.

    Examples:
        >>> import flowsim as fs
        >>> fs.claims.get("theorem-3.2-as-printed").expected
        'fails'
    """
    if name not in REGISTRY:
        raise unknown_name("claim", name, REGISTRY)
    return REGISTRY[name]


def run(name: str, quick: bool = False, system: System | None = None) -> Verdict:
    """Measure one claim on `system` (default: flowsim itself). `quick`: fewer seeds, not looser limits.

    Examples:
        >>> import flowsim as fs
        >>> verdict = fs.claims.run("figure-2", quick=True)
        >>> verdict.verdict, verdict.as_expected
        ('holds', True)
    """
    return get(name).run(quick, system)


def run_all(
    quick: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    system: System | None = None,
    only: Sequence[str] | None = None,
    processes: bool = False,
) -> list[Verdict]:
    """Measure every claim, or those in `only`: in two threads, or in two `processes`, which is faster.

    `progress(id, done, total)` is called after each. A `system` of your own needs threads. Raises
    `FlowsimError` for an unknown id.
    """
    chosen = {get(name).id for name in (names() if only is None else only)}
    verdicts: dict[str, Verdict] = {}
    lock = threading.Lock()

    def finished(verdict: Verdict) -> None:
        with lock:
            verdicts[verdict.id] = verdict
            if progress is not None:
                progress(verdict.id, len(verdicts), len(chosen))

    if processes and system is None:
        calls = [
            (_measure, (quick, ids)) for module in _ORDER if (ids := [c.id for c in module.CLAIMS if c.id in chosen])
        ]
        for _ in _workers.run(calls, finished, quick):
            pass
    else:

        def measure(lane: Sequence[ModuleType]) -> None:
            for claim in (c for module in lane for c in module.CLAIMS if c.id in chosen):
                finished(claim.run(quick, system))

        with ThreadPoolExecutor(len(_LANES)) as pool:
            for job in [pool.submit(measure, lane) for lane in _LANES]:
                job.result()
    return [verdicts[name] for name in REGISTRY if name in chosen]


def _measure(say: Callable[[Verdict], None], quick: bool, ids: Sequence[str]) -> None:
    for claim in ids:
        say(run(claim, quick))


def table(
    quick: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
    system: System | None = None,
    only: Sequence[str] | None = None,
) -> Table:
    """`run_all` as a table for the terminal and for notebooks."""
    return Table(run_all(quick, progress, system, only))


__all__ = ["CHEAP", "REGISTRY", "Claim", "System", "Table", "Verdict", "get", "names", "run", "run_all", "table"]
