"""What a study says about the statements of Yaras et al. 2025: numbers and verdicts, checked seed by seed."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowsim.clip.correlation import Correlation, rank_correlation

if TYPE_CHECKING:
    from flowsim.clip.tables import Tables

#: Methods that train far from the temperatures in use, or without one: left out of correlations with retrieval.
EXTREME = ("FLT 2e-1", "FLT 3e-1", "FLT 4e-1", "No normalization")
#: Largest difference of ln τ between temperatures that count as equal.
_SAME_TEMPERATURE = 0.15

#: Statement -> methods that should end with a smaller gap than the Baseline.
_BELOW = {
    "fixed temperatures of 0.04 to 0.1 end with a smaller gap than the Baseline": ("FLT 4e-2", "FLT 7e-2", "FLT 1e-1"),
    "rising temperatures end with a smaller gap than the Baseline": ("TS S1", "TS S2", "TS S3"),
    "a slower temperature ends with a smaller gap than the Baseline": (
        "TR softplus", "TR scale 2", "TR scale 10", "SLRT 0.1",
    ),
    "swaps end with a smaller gap than the Baseline": ("HS 1e-3", "HS 1e-2", "HS 1e-1", "HS 1", "HS rows", "SS 5e-2"),
}  # fmt: skip
_FIXED = ("FLT 1e-2", "FLT 2e-2", "FLT 4e-2", "FLT 7e-2", "FLT 1e-1")
_RETRIEVAL = {"image to text": "text_retrieval", "text to image": "image_retrieval"}


class Finding(NamedTuple):
    """A statement, what the runs of a study measured, and whether they support it.

    Attributes:
        statement: The statement.
        numbers: Means over seeds, or a rank correlation with its interval.
        verdict: "supported", "in part", "contradicted" or "cannot tell". An order counts if every seed has it.
    """

    statement: str
    numbers: str
    verdict: str


def findings(tables: "Tables") -> list[Finding]:
    """The statements of the paper that a study can check, with final held-out gaps and retrieval.

    Args:
        tables: Tables of the study.

    Returns:
        One finding for each statement whose methods the study has.
    """
    found = [_falls(tables), _order_of_fixed(tables)]
    found += [_below(tables, statement, names) for statement, names in _BELOW.items()]
    found += [_paper_order(tables)]
    usual = [name for name in tables.methods if name not in EXTREME]
    for way, column in _RETRIEVAL.items():
        numbers = tables.values
        statement = f"a smaller gap goes with better retrieval, {way}"
        found.append(_retrieval(tables, statement, usual, numbers, column))
        alike = _with_temperature_of_baseline(tables)
        found.append(_retrieval(tables, f"{statement}, at the Baseline's temperature", alike, numbers, column))
        found.append(_retrieval(tables, f"{statement}, at equal training loss", usual, tables.at_loss, column))
    return [one for one in found if one is not None]


def _of(tables: "Tables", method: str, column: str = "gap") -> np.ndarray:
    """Final values of a method, (seeds,)."""
    return tables.values[column][tables.methods.index(method)]


def _gaps(tables: "Tables", names: "list[str] | tuple[str, ...]") -> str:
    return ", ".join(f"{name} {np.nanmean(_of(tables, name)):.3f}" for name in names)


def _falls(tables: "Tables") -> Finding | None:
    if "Baseline" not in tables.methods:
        return None
    tau = _of(tables, "Baseline", "temperature")
    numbers = f"Baseline: τ ends at {np.nanmean(tau):.4f} (largest of the seeds {np.nanmax(tau):.4f})"
    return Finding(
        "the learned temperature falls below 0.07", numbers, "supported" if np.nanmax(tau) < 0.07 else "contradicted"
    )


def _order_of_fixed(tables: "Tables") -> Finding | None:
    names = [name for name in _FIXED if name in tables.methods]
    if len(names) < 2:
        return None
    falls = np.diff([_of(tables, name) for name in names], axis=0)
    falls = falls[np.isfinite(falls)] < 0
    verdict = "supported" if falls.all() else ("contradicted" if not falls.any() else "in part")
    return Finding("a lower fixed temperature ends with a larger gap", _gaps(tables, names), verdict)


def _below(tables: "Tables", statement: str, names: tuple[str, ...]) -> Finding | None:
    """Whether methods end below the Baseline, each in every seed that both have."""
    names = tuple(name for name in names if name in tables.methods)
    if not names or "Baseline" not in tables.methods:
        return None
    every = []
    for name in names:
        difference = _of(tables, name) - _of(tables, "Baseline")
        every.append(bool((difference[np.isfinite(difference)] < 0).all()))
    verdict = "supported" if all(every) else ("contradicted" if not any(every) else "in part")
    return Finding(statement, _gaps(tables, ("Baseline", *names)), verdict)


def _paper_order(tables: "Tables") -> Finding | None:
    found = tables.with_paper()
    if found is None:
        return None
    verdict = "supported" if found.low > 0 else ("contradicted" if found.high < 0 else "cannot tell")
    return Finding("the order of the methods by gap agrees with the paper's", repr(found), verdict)


def _with_temperature_of_baseline(tables: "Tables") -> list[str]:
    """Methods that end at the temperature of the Baseline, by the mean over seeds of ln τ."""
    if "Baseline" not in tables.methods:
        return []
    log = np.nanmean(np.log(tables.values["temperature"]), axis=1)
    near = abs(log - log[tables.methods.index("Baseline")]) < _SAME_TEMPERATURE
    return [name for name, is_near in zip(tables.methods, near, strict=True) if is_near]


def _retrieval(
    tables: "Tables", statement: str, names: list[str], values: dict[str, np.ndarray], column: str
) -> Finding | None:
    """Whether retrieval falls with the gap over methods."""
    chosen = [tables.methods.index(name) for name in names]
    if column not in values or "gap" not in values:
        return None
    found = rank_correlation(values["gap"][chosen], values[column][chosen])
    return None if found is None else Finding(statement, repr(found), _improves(found))


def _improves(found: Correlation) -> str:
    """The verdict on "a smaller gap goes with better retrieval" of a correlation of gap and retrieval."""
    return "supported" if found.high < 0 else ("contradicted" if found.low > 0 else "cannot tell")
