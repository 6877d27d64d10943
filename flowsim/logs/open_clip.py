"""Logs of open_clip: out.log, results.jsonl, TensorBoard events, and the folder with all of them.

Train lines show β as "Logit Scale", before the update of their step; those of 2021 showed ν as "logit_scale", after it.
Eval lines count epochs: epoch e comes after e times the steps of an epoch.
"""

import dataclasses
import math
import re
from array import array
from collections.abc import Iterator

import numpy as np

from flowsim.logs.events import event_files, pool_of, read_events
from flowsim.logs.formats import register
from flowsim.logs.rows import is_json_lines, read_json_lines
from flowsim.logs.source import Source
from flowsim.logs.table import Builder, Logged, Table, in_order, number, resumed

_TRAIN = re.compile(r"Train Epoch: (\d+) \[\s*([\d,]+)\s*/\s*([\d,]+) \(")
_EVAL = re.compile(r"Eval Epoch: (\d+) (?!\s*\[)(.*)")
_METRIC = re.compile(r"([\w@./-]+): (\S+)")
_PARAMETER = re.compile(r"INFO \|   (\w+): (.*)")
#: Parameters that a record tells, and their names there.
_SETTINGS = {"model": "model", "lr": "lr", "wd": "weight_decay", "warmup": "warmup", "precision": "precision"}
#: Names in out.log -> those in events.
_TAGS = {"LR": "train/lr", "Logit Scale": "train/scale"}
#: Larger counts, and numbers of epochs, are damage; their product fits into 64 bits.
_LARGEST, _MOST_EPOCHS = 10**13, 10**5
_BECAUSE_BETA = "open_clip logs β as `Logit Scale`."
_BECAUSE_NU = "open_clip of 2021 logged its parameter ν as `logit_scale`."


def _whole(text: str) -> int | None:
    text = text.strip().replace(",", "")
    return int(text) if text.isdecimal() and len(text) < 14 and int(text) < _LARGEST else None


@dataclasses.dataclass
class _Lines:
    """What the lines of an out.log hold. `batch`: pairs per step at the time of a line, 0 if that is not known."""

    parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    train: Builder = dataclasses.field(default_factory=Builder)
    evaluations: Builder = dataclasses.field(default_factory=Builder)
    epoch: array = dataclasses.field(default_factory=lambda: array("q"))
    seen: array = dataclasses.field(default_factory=lambda: array("q"))
    samples: array = dataclasses.field(default_factory=lambda: array("q"))
    batch: array = dataclasses.field(default_factory=lambda: array("q"))
    #: The epoch of each evaluation.
    evaluated: array = dataclasses.field(default_factory=lambda: array("q"))
    #: Pairs in one step, by the parameters so far; 0 if that is not known.
    pairs: int = 0
    pool: int | None = None
    old: bool = False
    damaged: int = 0

    def add(self, line: str) -> None:
        """Understand one line."""
        if (found := _TRAIN.search(line)) is not None:
            self._add_train(found, line)
        elif (found := _EVAL.search(line)) is not None:
            row = len(self.evaluated)
            metrics = [(name, number(text)) for name, text in _METRIC.findall(found[2])]
            epoch = _whole(found[1])
            if epoch is not None and epoch <= _MOST_EPOCHS and metrics:
                self.evaluated.append(epoch)
                for name, value in metrics:
                    if name == "num_samples":
                        self.pool = pool_of(value)
                    elif value is not None and name != "epoch":
                        self.evaluations.add(name, row, value)
        elif (found := _PARAMETER.search(line)) is not None:
            self.parameters[found[1]] = found[2].strip()
            self.pairs = self._pairs()

    def _add_train(self, found: re.Match[str], line: str) -> None:
        epoch, seen, samples = (_whole(text) for text in found.groups())
        values = dict(_values(line[found.end() :].split()))
        # A line that is cut off lacks what comes last.
        whole = {"Logit Scale", "logit_scale"} & values.keys() and any("oss" in name for name in values)
        if epoch is None or epoch > _MOST_EPOCHS or seen is None or samples is None or not whole:
            self.damaged += 1
            return
        self.old |= "logit_scale" in values
        row = len(self.epoch)
        self.epoch.append(epoch)
        self.seen.append(seen)
        self.samples.append(samples)
        self.batch.append(self.pairs)
        for name, value in values.items():
            if value is not None:
                self.train.add(name, row, value)

    def _pairs(self) -> int:
        """Pairs in one step, by the parameters so far; 0 if that is not known."""
        usual = {"batch_size": "", "accum_freq": "1", "world_size": "1"}
        sizes = [_whole(self.parameters.get(name, one)) for name, one in usual.items()]
        found = math.prod(size or 0 for size in sizes)
        return found if found < _LARGEST else 0


def _values(words: list[str]) -> Iterator[tuple[str, float | None]]:
    """Losses, rate and temperature in the words of a train line."""
    for before, word, after in zip(["", *words], words, words[1:], strict=False):
        if word.endswith("oss:"):
            yield word[:-1], number(after)
        elif word == "LR:":
            yield "LR", number(after)
        elif word == "Scale:" and before == "Logit":
            yield "Logit Scale", number(after)
        elif word in ("logit_scale", "logit_scale:"):
            yield "logit_scale", number(after)


def is_out_log(source: Source) -> bool:
    """Whether a text has lines of open_clip's trainer."""
    return _TRAIN.search(source.text) is not None or _EVAL.search(source.text) is not None


@register("open_clip out.log", is_out_log, describes="open_clip's out.log")
def read_out_log(source: Source) -> Table:
    """Read out.log line by line."""
    lines = _Lines()
    for line in source.lines():
        if "Epoch: " in line or "INFO |   " in line:
            lines.add(line)
    notes = list(source.notes)
    if lines.damaged:
        notes.append(f"{lines.damaged} damaged lines were skipped.")
    return _table(lines, notes)


def _table(lines: _Lines, notes: list[str]) -> Table:
    """The table of what the lines hold, with steps counted from samples and epochs."""
    epoch, seen, samples, batch = (
        np.array(part, np.int64) for part in (lines.epoch, lines.seen, lines.samples, lines.batch)
    )
    if (unknown := batch == 0).any():
        guess = _batch_of(seen[unknown], lines.old)
        batch = np.where(unknown, guess, batch)
        notes.append(f"The log does not tell the batch size; it is taken as {guess}, the largest that fits its counts.")
    per_epoch = np.maximum(samples // batch, 1)
    # Since 2022 the count includes the step that the line is about.
    step = epoch * per_epoch + np.maximum(seen // batch - (not lines.old), 0)
    steps_per_epoch = int(per_epoch[-1]) if len(per_epoch) else None
    evaluated = np.array(lines.evaluated, np.int64)
    held_out = {f"val/{name}": logged for name, logged in lines.evaluations.columns().items()}
    table = Table({}, steps_per_epoch=steps_per_epoch, notes=notes, trainer="open_clip", learned=True)
    if steps_per_epoch is None:  # evaluations alone
        table.columns = held_out | {"epoch": Logged(np.arange(len(evaluated)), evaluated.astype(np.float64))}
    else:
        table.in_steps = True
        trained = lines.train.columns()
        table.columns = {name: Logged(step[logged.at], logged.values) for name, logged in trained.items()}
        after = evaluated * steps_per_epoch
        table.columns |= {name: Logged(after[logged.at], logged.values) for name, logged in held_out.items()}
    for name, series, because in (
        ("logit_scale", "raw_temperature", _BECAUSE_NU),
        ("Logit Scale", "inverse_temperature", _BECAUSE_BETA),
    ):
        if name in table.columns:
            table.series, table.because = {series: name}, {name: because}
    table.pool = lines.pool
    table.settings = _settings(lines, int(batch[-1]) if len(batch) else None, steps_per_epoch)
    return table


def _batch_of(seen: np.ndarray, old: bool) -> int:
    """The pairs of a step, by counts of samples, which are multiples of it. The first line of an epoch shows it.

    In 2021 every hundredth step was shown, and the first one as 0.
    """
    guess = math.gcd(*(int(count) for count in np.unique(seen)))
    return max(guess // 100 if old and guess % 100 == 0 else guess, 1)


def _settings(lines: _Lines, batch: int | None, steps_per_epoch: int | None) -> dict[str, str | int | float]:
    """Settings of the training, by the parameters that the log lists."""
    said = lines.parameters
    found: dict[str, str | int | float] = {}
    for name, called in _SETTINGS.items():
        if said.get(name, "None") != "None":
            value = number(said[name])
            found[called] = said[name] if value is None or called == "model" else value
    if said:
        found["optimizer"] = said.get("opt", "adamw")
    if batch:
        found["batch_size"] = batch
    epochs = _whole(said.get("epochs", ""))
    if epochs and steps_per_epoch:
        found["steps"] = epochs * steps_per_epoch
    return found


def is_results(source: Source) -> bool:
    """Whether a file is open_clip's results.jsonl."""
    first = source.text.lstrip().splitlines()[:1]
    return (
        bool(first)
        and is_json_lines(source)
        and '"epoch"' in first[0]
        and ("_R@1" in first[0] or "zeroshot-val" in first[0])
    )


@register("open_clip results.jsonl", is_results, describes="its results.jsonl")
def read_results(source: Source) -> Table:
    """Read the metrics of every evaluated epoch."""
    table = read_json_lines(source)
    epoch = table.columns.pop("epoch", None)
    pool = table.columns.pop("num_samples", None)
    table.pool = None if pool is None or not len(pool.values) else pool_of(float(pool.values[-1]))
    table.columns = {f"val/{name}": logged for name, logged in table.columns.items()}
    if epoch is not None:
        table.columns["epoch"] = epoch
    table.trainer = "open_clip"
    return table


def is_folder(source: Source) -> bool:
    """Whether a folder is that of a run of open_clip."""
    path = source.path
    return source.is_folder and ((path / "out.log").is_file() or (path / "checkpoints" / "results.jsonl").is_file())


@register("open_clip", is_folder, describes="and the folder of its run")
def read_folder(source: Source) -> Table:
    """Merge the logs of a run. Those of TensorBoard and results.jsonl are exact, out.log is rounded."""
    path = source.path
    found, per_epoch = Table({}, in_steps=True, trainer="open_clip", learned=True), None
    log, results = Source(path / "out.log"), Source(path / "checkpoints" / "results.jsonl")
    if log.path.is_file() and is_out_log(log):
        found = read_out_log(log)
        per_epoch = found.steps_per_epoch
        if per_epoch is None:  # evaluations alone, which results.jsonl has with all digits
            return read_results(results) if results.path.is_file() and is_results(results) else found
        found = dataclasses.replace(
            found,
            columns={_tag(name): logged for name, logged in found.columns.items()},
            series={series: _tag(name) for series, name in found.series.items()},
            because={_tag(name): why for name, why in found.because.items()},
        )
    more: list[Table] = []
    if event_files(path / "tensorboard"):
        more.append(read_events(Source(path / "tensorboard"), per_epoch))
        per_epoch = per_epoch or more[0].steps_per_epoch
    if results.path.is_file() and is_results(results):
        if per_epoch is None and not more:
            return read_results(results)
        if per_epoch is not None:
            more.append(_in_steps(read_results(results), per_epoch))
    columns, superseded = dict(found.columns), 0
    for table in more:
        for name, logged in table.columns.items():
            columns[name], count = _over(columns.get(name), logged)
            superseded = max(superseded, count)
    notes = [*found.notes, *(note for table in more for note in table.notes), *resumed(superseded)]
    pool = next((table.pool for table in (found, *more) if table.pool), None)
    return dataclasses.replace(found, columns=columns, steps_per_epoch=per_epoch, notes=notes, pool=pool)


def _tag(name: str) -> str:
    """The tag of an event for a name in out.log."""
    return f"train/{name.lower()}" if name.endswith("oss") and "/" not in name else _TAGS.get(name, name)


def _in_steps(table: Table, steps_per_epoch: int) -> Table:
    """A table whose rows are epochs, with steps instead."""
    columns = dict(table.columns)
    epoch = columns.pop("epoch", None)
    if epoch is None:
        return dataclasses.replace(table, columns={})
    epoch = epoch.kept((epoch.values >= 0) & (epoch.values <= _MOST_EPOCHS))
    rows = int(max(logged.at.max(initial=-1) for logged in table.columns.values())) + 1
    step = np.full(rows, -1, np.int64)
    step[epoch.at] = np.round(epoch.values * steps_per_epoch).astype(np.int64)
    placed = {name: Logged(step[logged.at], logged.values) for name, logged in columns.items()}
    found = {name: logged.kept(logged.at >= 0) for name, logged in placed.items()}
    return dataclasses.replace(table, columns=found, in_steps=True, steps_per_epoch=steps_per_epoch)


def _over(one: Logged | None, better: Logged) -> tuple[Logged, int]:
    """The values of both in order of step, those of `better` where both have a step; and how many were superseded."""
    better, superseded = in_order(better)
    if one is None:
        return better, superseded
    one, count = in_order(one)
    rest = one.kept(~np.isin(one.at, better.at))
    at, values = np.concatenate([rest.at, better.at]), np.concatenate([rest.values, better.values])
    order = np.argsort(at, kind="stable")
    return Logged(at[order], values[order]), max(superseded, count)
