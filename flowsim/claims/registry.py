"""All claims by their ids, also those that users add."""

import functools

from flowsim.base.checks import check, shown
from flowsim.base.registry import Registry
from flowsim.claims.base import Claim

REGISTRY: Registry[Claim] = Registry("claim")


def register(*claims: Claim) -> None:
    """Add claims to the table, in this order.

    They are then measured by `fs.claims.run`, `run_all` and `table` like flowsim's own. A claim that was registered
    earlier under the same id is replaced.

    Args:
        *claims: The claims.

    Raises:
        FlowsimError: If flowsim itself has a claim of the same id.

    Examples:
        >>> import flowsim as fs
        >>> def measure(system, quick):
        ...     start = fs.initial.matched(pairs=8, dim=2, gamma=0.5)
        ...     gap = system.simulate(system.flow(fs.Parallel()), start, t1=1e3)["modality_gap"]
        ...     return {"final_over_initial_gap": gap[-1] / gap[0]}
        >>> fs.claims.register(
        ...     fs.claims.Claim(
        ...         id="baseline-halves-the-gap",
        ...         statement="From matched directions the Baseline halves the gap until t = 1e3.",
        ...         source="an example",
        ...         assumptions="`Parallel`, n = 8, d = 2, γ0 = 0.5",
        ...         measure=measure,
        ...         at_most={"final_over_initial_gap": 0.5},
        ...     )
        ... )
        >>> verdict = fs.claims.run("baseline-halves-the-gap")
        >>> verdict.verdict, round(verdict.numbers["final_over_initial_gap"], 3)
        ('holds', 0.05)
    """
    for claim in claims:
        check(isinstance(claim, Claim), f"Expected a claim, but got {shown(claim)}. Use fs.claims.Claim(id=..., ...).")
        REGISTRY.add(claim.id, claim, theme(claim))


def theme(claim: Claim) -> str:
    """The module that measures a claim: claims of one module share compiled programs."""
    measure = claim.measure
    while isinstance(measure, functools.partial):
        measure = measure.func
    return getattr(measure, "__module__", None) or "__main__"
