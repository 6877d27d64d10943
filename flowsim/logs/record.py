"""The record of a log: its series over all logged steps, in the form of a record of training."""

from typing import Any

import numpy as np

from flowsim.base.paths import to_config
from flowsim.errors import FlowsimError
from flowsim.logs.clock import STEPS, clock_of
from flowsim.logs.columns import Found
from flowsim.logs.table import Logged, Table
from flowsim.model.schedules import Schedule
from flowsim.model.temperature import Learnable
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Outcome, Status

#: Series of a log -> series of every step in a record.
_OF_STEPS = {
    "train_loss": "train_loss", "learning_rate": "learning_rate", "temperature": "train_temperature",
    "seen_modality_gap": "train_modality_gap",
}  # fmt: skip
#: Series that come first.
_FIRST = ("train_loss", "loss", "learning_rate", "temperature", "inverse_temperature", "raw_temperature")
#: open_clip's clamp of τ.
_CLAMP = (0.01, 1.0)
#: Columns that are listed as unused.
_LISTED = 50


def record_of(found: Found, table: Table, source: str, kind: str) -> TrainingRecord:
    """The record of a log.

    Args:
        found: Its series.
        table: The log.
        source: Name of the file.
        kind: Name of the format.

    Returns:
        The record.

    Raises:
        FlowsimError: If it has no series besides step and epoch.
    """
    series = {name: logged for name, logged in found.series.items() if name != "epoch"}
    if not series:
        held = ", ".join(table.columns) if len(table.columns) <= 12 else f"{len(table.columns)} columns"
        raise FlowsimError(
            f"{source!r} holds no loss, temperature or observable under a name that flowsim knows"
            + (f": {held}. " if table.columns else ", as it has no numbers. ")
            + 'Name its columns: columns={"step": "iter", "temperature": "my_tau", "loss": "l"}.'
        )
    at = np.unique(np.concatenate([logged.at for logged in series.values()]))
    whole = found.unit == STEPS
    at = at.astype(np.int64) if whole else at
    time, clock, why = clock_of(at, series.get("learning_rate"), found.unit)
    training = _of_every_step(series) if whole else {}
    # A name stands once in a record: what has the same one along steps is not repeated along rows.
    twice = {name for name in training if _OF_STEPS[name] == name}
    order = [*(name for name in _FIRST if name in series), *(name for name in series if name not in _FIRST)]
    rows = {name: _spread(series[name], at) for name in order if name not in twice}
    coordinates = _coordinates(found, table, at) if whole else {"epoch": at}
    settings = {**({"steps": int(at[-1])} if whole and at[-1] > 0 else {"steps": None}), **table.settings}
    bad = _broken(series.get("train_loss", series.get("loss")))
    status = Status.COMPLETED if bad is None else Status.DIVERGED
    stopped = float(time[-1] if bad is None else time[np.searchsorted(at, bad)])
    if table.learned:
        settings["temperature_decay"] = False
    config: dict[str, Any] = {"kind": "log", "training": settings}
    if table.pool is not None:
        config["evaluation"] = {"retrieval_pool": table.pool}
    if (schedule := _schedule(table, series)) is not None:
        config["schedule"] = schedule
    config["log"] = {
        "format": kind,
        "source": source,
        "unit": "row" if found.counted else found.unit,
        "columns": found.columns,
        "unused": found.unused[:_LISTED],
        "clock": why,
        "notes": found.notes,
    }
    return TrainingRecord(
        time=time,
        series=rows,
        status=Outcome(status, stopped, f"log of {table.trainer or kind}"),
        config=config,
        stats={},
        versions={},
        snapshot_time=np.empty(0),
        snapshots={},
        constants={},
        clock=clock,
        coordinates=coordinates,
        training={_OF_STEPS[name]: values for name, values in training.items()},
    )


def _of_every_step(series: dict[str, Logged]) -> dict[str, np.ndarray]:
    """Series of training that hold a value for every step from 0 on, (N,) each, N the same for all."""
    dense = {}
    for name in _OF_STEPS:
        logged = series.get(name)
        if logged is not None and len(logged.at) > 1 and logged.at[0] == 0 and logged.at[-1] == len(logged.at) - 1:
            dense[name] = logged.values
    count = len(next(iter(dense.values()))) if dense else 0
    return {name: values for name, values in dense.items() if len(values) == count}


def _spread(logged: Logged, at: np.ndarray) -> np.ndarray:
    """Values over all rows, NaN where nothing was logged."""
    values = np.full(len(at), np.nan)
    values[np.searchsorted(at, logged.at)] = logged.values
    return values


def _coordinates(found: Found, table: Table, at: np.ndarray) -> dict[str, np.ndarray]:
    """Steps, and epochs and progress if they are known."""
    coordinates: dict[str, np.ndarray] = {"step": at}
    epoch = found.series.get("epoch")
    if table.steps_per_epoch:
        coordinates["epoch"] = at / table.steps_per_epoch
    elif epoch is not None:
        known = np.isin(epoch.at, at)
        coordinates["epoch"] = _spread(epoch.kept(known), at)
    total = table.settings.get("steps")
    if total and total >= at[-1]:
        coordinates["progress"] = at / total
    return coordinates


def _broken(loss: Logged | None) -> float | None:
    """The first step of the last values of the loss, if these are not finite."""
    if loss is None or not len(loss.at) or np.isfinite(loss.values[-1]):
        return None
    finite = np.flatnonzero(np.isfinite(loss.values))
    return float(loss.at[finite[-1] + 1 if finite.size else 0])


def _schedule(table: Table, series: dict[str, Logged]) -> dict[str, Any] | None:
    """The schedule of a trainer that is known to learn ν, if its start was logged and lies within the clamp."""
    tau = series.get("temperature")
    if not table.learned or tau is None or tau.at[0] != 0:
        return None
    first = float(tau.values[0])
    if not 0.999 * _CLAMP[0] <= first <= 1.001 * _CLAMP[1]:  # a log is rounded
        return None
    return to_config(Schedule(Learnable(init=min(max(first, _CLAMP[0]), _CLAMP[1]), clamp=_CLAMP)))
