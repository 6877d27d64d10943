"""Logs of Hugging Face's Trainer: trainer_state.json, alone or in a folder of checkpoints; and Lightning's folders."""

from pathlib import Path
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.logs.formats import register
from flowsim.logs.rows import read_csv, table_of_rows, whole_json
from flowsim.logs.source import Source
from flowsim.logs.table import Table

_NAME = "trainer_state.json"


def _file(path: Path) -> Path | None:
    """The state in a folder: its own, else that of the last checkpoint."""
    if (path / _NAME).is_file():
        return path / _NAME
    found = [child / _NAME for child in path.glob("checkpoint-*") if (child / _NAME).is_file()]
    steps = {file: file.parent.name.removeprefix("checkpoint-") for file in found}
    counted = [file for file, step in steps.items() if step.isdecimal()]
    return max(counted, key=lambda file: int(steps[file]), default=None)


def _is_state(source: Source) -> bool:
    if source.is_folder:
        return _file(source.path) is not None
    return source.text.lstrip("\ufeff \t\r\n")[:1] == "{" and '"log_history"' in source.text


@register("trainer_state.json", _is_state, describes="trainer_state.json")
def read_state(source: Source) -> Table:
    """Read the history of logs in the state of a trainer."""
    if source.is_folder:
        file = _file(source.path)
        if file is None:
            raise FlowsimError(
                f"{str(source.path)!r} holds no {_NAME}. Give the file, or the folder of its checkpoints."
            )
        source = Source(file)
    state = whole_json(source)
    history: Any = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list):
        raise FlowsimError(
            f"{str(source.path)!r} holds no list `log_history`. Give a trainer_state.json of the Trainer."
        )
    table = table_of_rows(history, [])
    # The mean over the whole run, which the Trainer writes at its end.
    table.columns.pop("train_loss", None)
    settings: dict[str, Any] = {}
    for name, called in (("train_batch_size", "batch_size"), ("max_steps", "steps")):
        if isinstance(value := state.get(name), int) and not isinstance(value, bool) and value > 0:
            settings[called] = value
    table.settings, table.trainer = settings, "Hugging Face Trainer"
    return table


def _metrics(path: Path) -> list[Path]:
    """Files of Lightning in a folder: its own, else those of the versions below it, in their order."""
    if (path / "metrics.csv").is_file():
        return [path / "metrics.csv"]
    found = [*path.glob("version_*/metrics.csv"), *path.glob("*/version_*/metrics.csv")]
    return sorted(found, key=lambda file: (len(file.parent.name), file.parent.name))


def _is_lightning_folder(source: Source) -> bool:
    return source.is_folder and bool(_metrics(source.path))


@register("lightning", _is_lightning_folder, describes="folders of Lightning's CSVLogger")
def read_lightning(source: Source) -> Table:
    """Read metrics.csv of a folder; of several versions the last one."""
    files = _metrics(source.path)
    table = read_csv(Source(files[-1]))
    if len(files) > 1:
        table.notes.append(f"The folder has {len(files)} versions; {files[-1].relative_to(source.path)} was read.")
    return table
