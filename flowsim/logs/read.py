"""`read_log`: the log of another trainer as a record."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowsim.base.checks import check, shown
from flowsim.errors import FlowsimError, unknown_name
from flowsim.logs.columns import understand
from flowsim.logs.formats import format_of
from flowsim.logs.names import SERIES
from flowsim.logs.record import record_of
from flowsim.logs.rows import runs_of
from flowsim.logs.source import Source
from flowsim.logs.table import Table, table_of
from flowsim.records.load import load_result
from flowsim.records.result import TrainingRecord

PathLike = str | os.PathLike[str]

#: Series that columns are usually named as, for messages.
_USUAL = (
    "step, epoch, loss, val_loss, learning_rate, temperature, inverse_temperature, raw_temperature, logit_scale, "
    "log_temperature, gap, image_to_text_at_10, recall_at_10"
)


def read_log(
    path: PathLike, *, columns: Mapping[str, str] | None = None, format: str | None = None, name: str | None = None
) -> TrainingRecord:
    """Read the log of any trainer as a record of training.

    The format is recognised by its content; text may be compressed with gzip. Known are `out.log`, `results.jsonl`,
    event files of TensorBoard and the folder of a run of open_clip; event files of other trainers; CSV exports and the
    history (CSV or JSON lines) of W&B; `trainer_state.json` of Hugging Face's Trainer; `metrics.csv` of Lightning; any
    CSV, TSV or JSON lines; and records of flowsim (.nc). `fs.logs.register` adds formats.

    The record has a row for each step at which something was logged, with NaN for what was not:

    - `train_loss`, `learning_rate`, and `loss`, that of held-out pairs;
    - `temperature` τ, `inverse_temperature` β = 1/τ, and `raw_temperature` ν = ln β if that was logged;
    - observables by their names or usual synonyms ("val/image_to_text_R@1" is `image_to_text_at_1`), those of
      training batches as `seen_...`; `recall_at_1` and the like where a log does not tell the direction.

    What was logged at every step from 0 on is also in `training`, as in records of flowsim: `train_loss` and
    `learning_rate` (then only there), `train_temperature` and `train_modality_gap`. `step` and, if known, `epoch` and
    `progress` are coordinates. The time is the sum of learning rates if these were logged in every tenth of the run;
    else it is the step, or the epoch if there are no steps.

    Where a run was resumed, later rows replace earlier ones. `record.config["log"]` says how each column was read and
    why, which columns were not used, what was left out, and in its `unit` whether steps are optimizer steps ("step"),
    or "epoch" or "row" where the log has no steps.

    Args:
        path: A file or folder.
        columns: Name of a series -> column that holds it, for names that are not recognised: "step", "epoch", "loss"
            (of training batches), "val_loss", "learning_rate", "temperature", "inverse_temperature" (β),
            "raw_temperature" (ν = ln β), "logit_scale" (ν or β, told by its range), "log_temperature", "gap",
            "recall_at_10" and the like for recall of both directions, or an observable such as "image_to_text_at_10".
        format: Name of the format, one of `fs.logs.FORMATS`. Default: recognised by content.
        name: Which run of a file with several (an export of W&B).

    Returns:
        The record. Its status is DIVERGED if the loss is not finite at the end, else COMPLETED.

    Raises:
        FlowsimError: If the log is missing, of no known format or damaged, holds no known series or several runs, a
            column or name is unknown, it cannot be decided whether a column is ν, β or τ, or a package is missing that
            reads the format.

    Examples:
        >>> from pathlib import Path
        >>> import flowsim as fs
        >>> _ = Path("log.csv").write_text("iter,my_tau,l\\n0,0.07,5.5\\n10,0.06,4.1\\n")
        >>> record = fs.read_log("log.csv", columns={"step": "iter", "temperature": "my_tau", "loss": "l"})
        >>> record.series["train_loss"]
        array([5.5, 4.1])
    """
    records = read_logs(path, columns=columns, format=format)
    if name is not None:
        if name not in records:
            raise unknown_name("run", name, records)
        return records[name]
    if len(records) > 1:
        listed = ", ".join(map(repr, list(records)[:8]))
        raise FlowsimError(f"{str(path)!r} holds {len(records)} runs: {listed}. Choose one with `name`.")
    return next(iter(records.values()))


def read_logs(
    path: PathLike, *, columns: Mapping[str, str] | None = None, format: str | None = None
) -> dict[str, TrainingRecord]:
    """Read all runs of a log; see `read_log`.

    Args:
        path: A file or folder.
        columns: Name of a series -> column that holds it.
        format: Name of the format. Default: recognised by content.

    Returns:
        Name -> record; the path -> record if there is only one.

    Raises:
        FlowsimError: As for `read_log`.
    """
    check(isinstance(path, (str, os.PathLike)), f"Expected a path, but got {shown(path)}. Use e.g. 'out.log'.")
    named = _checked(columns)
    source = Source(Path(path))
    check(source.path.exists(), f"There is no {str(path)!r}. Give the path of a log, or of a saved result (.nc).")
    try:
        if format is None and is_saved(path):
            return {str(path): _own(path)}
        chosen = format_of(source, format)
        table = table_of(chosen.read(source), chosen.name)
    except OSError as error:
        raise FlowsimError(f"{str(path)!r} cannot be read: {error.strerror or error}. Check the file.") from None
    tables: dict[str, Table] = runs_of(table)
    kind, file = chosen.name, source.path.name or source.path.resolve().name
    found = {}
    for name, part in tables.items():
        try:
            found[name or str(path)] = record_of(understand(part, named), part, file, kind)
        except FlowsimError as error:
            text = str(error)
            raise FlowsimError(text if file in text else f"{str(path)!r}: {text}") from None
    return found


def is_saved(path: PathLike) -> bool:
    """Whether a path is that of a file of flowsim, by its name (.nc) or content; otherwise it may be a log."""
    path = Path(path)
    if path.suffix == ".nc":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


def _own(path: PathLike) -> TrainingRecord:
    """A record that flowsim saved."""
    result: Any = load_result(path)
    if not isinstance(result, TrainingRecord):
        raise FlowsimError(f"{str(path)!r} is a simulation, not a log of training. Read it with fs.load.")
    return result


def _checked(columns: Mapping[str, str] | None) -> dict[str, str]:
    """Columns by the names of series, which are known; raises `FlowsimError`."""
    if columns is None:
        return {}
    if not isinstance(columns, Mapping):
        raise FlowsimError(
            f"Argument `columns` must be names of series with columns, but is {shown(columns)}. Use e.g. "
            '{"temperature": "my_tau"}.'
        )
    for series in columns:
        if series not in SERIES:
            raise FlowsimError(f"{unknown_name('series', series, SERIES)} Usual ones: {_USUAL}.")
    return dict(columns)
