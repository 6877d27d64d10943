"""From the columns of a table to series over steps: names, readings, units."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from flowsim.errors import FlowsimError, unknown_name
from flowsim.logs.clock import EPOCHS, STEPS
from flowsim.logs.names import FRACTIONS, SERIES, candidates
from flowsim.logs.table import Logged, Table, in_order, resumed
from flowsim.logs.temperature import READINGS, Evidence, Reading, check_named, convert, reading_of, relation

_KINDS = (*READINGS, "logit_scale")
#: Largest step; floating point holds whole numbers up to it.
_LARGEST = 2**53


@dataclasses.dataclass
class Found:
    """Series of a log.

    Attributes:
        unit: What rows are counted in, `STEPS` or `EPOCHS`.
        counted: Whether rows were counted, because no column holds steps or epochs.
        series: Name in the record -> values in rising order of step.
        columns: Name of a series -> its column, as what it was read, and why.
        unused: Columns of numbers that hold no known series.
        notes: What was left out or changed, in sentences.
    """

    unit: str
    counted: bool = False
    series: dict[str, Logged] = dataclasses.field(default_factory=dict)
    columns: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    unused: list[str] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)


def understand(table: Table, named: Mapping[str, str]) -> Found:
    """The series of a table.

    Args:
        table: A log.
        named: Name of a series -> column, as the user says.

    Returns:
        The series.

    Raises:
        FlowsimError: If a name or column is unknown, steps are no whole numbers, or a temperature is undecided.
    """
    asked = {series: _column(table, column) for series, column in named.items()}
    ranked: dict[str, list[tuple[int, int, str]]] = {}
    for order, column in enumerate(table.columns):
        if column not in asked.values():
            for series, rank in candidates(column):
                ranked.setdefault(series, []).append((rank, order, column))
    guessed = {series: [column for *_, column in sorted(found)] for series, found in ranked.items()}
    chosen = {series: columns[0] for series, columns in guessed.items()} | table.series
    # Loss has two names; what the user says about temperature replaces all guesses about it.
    asked_series = {SERIES[series]: column for series, column in asked.items()}
    if any(kind in asked_series for kind in _KINDS):
        chosen = {series: column for series, column in chosen.items() if series not in _KINDS}
    elif table.series:  # what the format settles, too
        kinds = [series for series in chosen if series in _KINDS and series not in table.series]
        chosen = {series: column for series, column in chosen.items() if series not in kinds}
    chosen |= asked_series
    found, steps = _axis(table, chosen, () if "step" in asked_series else guessed.get("step", ()))
    found.notes = [*table.notes, *found.notes]
    placed = {column: _placed(table.columns[column], steps) for column in chosen.values()}
    superseded = 0
    for column, logged in placed.items():
        placed[column], count = in_order(logged)
        superseded = max(superseded, count)
    found.notes.extend(resumed(superseded))
    for series, column in chosen.items():
        if series in ("step", *_KINDS):
            continue
        _add(found, series, column, placed[column], series in asked_series)
    _add_temperature(found, table, {kind: chosen[kind] for kind in _KINDS if kind in chosen}, placed, asked_series)
    used = {entry["column"] for entry in found.columns.values()} | {chosen.get("step")}
    found.unused = [column for column in table.columns if column not in used]
    return found


def _column(table: Table, column: Any) -> str:
    """A column by the name that the user gives; raises `FlowsimError` for an unknown one."""
    if column in table.columns:
        return column
    near = [name for name in table.columns if name.lower() == str(column).lower()]
    if len(near) == 1:
        return near[0]
    raise unknown_name("column", column, table.columns)


def _axis(table: Table, chosen: Mapping[str, str], counters: Sequence[str]) -> tuple[Found, np.ndarray | None]:
    """Unit of the rows, and the step of every row number; None if the table is in steps.

    Rows without a step take that of another of the `counters` that agrees with it in all rows that have both, as in
    logs of open_clip by W&B, where `step` is missing in evaluations.
    """
    if table.in_steps:
        return Found(STEPS), None
    rows = int(max((logged.at.max(initial=-1) for logged in table.columns.values()), default=-1)) + 1
    unit, column = (STEPS, chosen["step"]) if "step" in chosen else (EPOCHS, chosen.get("epoch"))
    if column is None:
        found = Found(STEPS, counted=True)
        found.notes.append("No column holds steps; rows are counted.")
        return found, np.arange(rows, dtype=np.float64)
    steps = _spread(table.columns[column], rows)
    for other in counters:
        more = _spread(table.columns[other], rows)
        both = np.isfinite(steps) & np.isfinite(more)
        if both.any() and np.array_equal(steps[both], more[both]):
            steps = np.where(np.isfinite(steps), steps, more)
    found, known = Found(unit), steps[np.isfinite(steps)]
    if unit == STEPS:
        found.columns["step"] = {"column": column}
        whole = np.abs(known - np.round(known)) < 1e-6
        if not whole.all() or (known < 0).any() or (known > _LARGEST).any():
            bad = known[~whole | (known < 0) | (known > _LARGEST)][0]
            raise FlowsimError(
                f"Column {column!r} should hold steps, whole numbers from 0 on, but holds {bad:g}. Name another one "
                'with columns={"step": "NAME"}.'
            )
        steps = np.round(steps)
    if len(known) < rows:
        found.notes.append(f"{rows - len(known)} of {rows} rows have no {unit} and were skipped.")
    return found, steps


def _spread(logged: Logged, rows: int) -> np.ndarray:
    """Values over all rows of a file, NaN where there is none."""
    values = np.full(rows, np.nan)
    values[logged.at] = logged.values
    return values


def _placed(logged: Logged, steps: np.ndarray | None) -> Logged:
    """Values with steps instead of row numbers."""
    if steps is None:
        return logged
    at = steps[logged.at]
    there = np.isfinite(at)
    return Logged(at[there], logged.values[there])


def _add(found: Found, series: str, column: str, logged: Logged, asked: bool) -> None:
    """Add a series that is no temperature."""
    if not len(logged.at):
        return
    entry: dict[str, Any] = {"column": column}
    values, plain = logged.values, series.removeprefix("seen_")
    finite = values[np.isfinite(values)]
    if plain in FRACTIONS and finite.size and finite.max() > 1:
        if finite.max() > 100 or finite.min() < 0:
            found.notes.append(f"Column {column!r} is no recall, as it is not within 0 and 100; it was left out.")
            return
        values = values / 100
        entry |= {"read_as": "percent", "because": f"It reaches {finite.max():.4g}, and a recall is at most 1."}
    if plain == "modality_gap" and finite.size and (finite.max() > 2.001 or finite.min() < 0):
        found.notes.append(
            f"Column {column!r} is no modality gap of unit rows, which is within 0 and 2"
            + ("." if asked else "; it was left out.")
        )
        if not asked:
            return
    if series in ("train_loss", "loss") and len(bad := np.flatnonzero(~np.isfinite(values))):
        entry |= {"not_finite": len(bad), "first_not_finite": int(logged.at[bad[0]])}
        good = np.flatnonzero(np.isfinite(values))
        if bad[-1] == len(values) - 1:
            entry["not_finite_from"] = int(logged.at[good[-1] + 1 if len(good) else 0])
    found.series[series] = Logged(logged.at, values)
    found.columns[series] = entry


def _add_temperature(
    found: Found, table: Table, kinds: Mapping[str, str], placed: Mapping[str, Logged], asked: Mapping[str, str]
) -> None:
    """Add temperature, inverse temperature and raw temperature of the first column that holds one."""
    kinds = {kind: column for kind, column in kinds.items() if len(placed[column].at)}
    if not kinds:
        return
    kind, column = next(iter(kinds.items()))
    logged = placed[column]
    if kind in asked and kind in READINGS:  # what is named "logit_scale" is ν or β by its range
        reading = check_named(kind, column, logged.values)
    elif column in table.because and kind in READINGS:
        reading = Reading(READINGS[kind], table.because[column])
    else:
        loss = found.series.get("train_loss")
        known = Evidence(None if loss is None else _at(loss, logged.at), table.settings.get("batch_size"))
        reading = reading_of(column, kind, logged.values, known)
    for series, values in convert(reading.read_as, logged.values).items():
        found.series[series] = Logged(logged.at, values)
        found.columns[series] = {"column": column, "read_as": reading.read_as, "because": reading.because}
    for other in dict.fromkeys(name for name in kinds.values() if name != column):
        same = relation(_at(placed[other], logged.at), found.series["temperature"].values)
        found.notes.append(
            f"The temperature is that of column {column!r}. Column {other!r} "
            + (f"holds it too, as {same}." if same else "is neither τ, β, ν nor ln τ of it.")
        )


def _at(logged: Logged, at: np.ndarray) -> np.ndarray:
    """Values at given steps, NaN where there is none."""
    place = np.clip(np.searchsorted(logged.at, at), 0, max(len(logged.at) - 1, 0))
    if not len(logged.at):
        return np.full(len(at), np.nan)
    return np.where(logged.at[place] == at, logged.values[place], np.nan)
