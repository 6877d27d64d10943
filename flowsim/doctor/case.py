"""A case: what is known of a run, of embeddings or of weights, in one form for all checks."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule
from flowsim.model.temperature import AbstractTemperature
from flowsim.records.result import Result, TrainingRecord
from flowsim.records.status import Status

#: The clamp of open_clip and CLIP, assumed where a run does not record one.
USUAL_CLAMP = (0.01, 1.0)
#: Rows that checks compare with each other; of more, a random sample is taken.
MOST_ROWS = 4096
#: What the steps of a case count.
STEP = "step"

Rows = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Track:
    """Finite values of a quantity along a run.

    Attributes:
        step: Steps, rising, (k,).
        value: Values, (k,).
    """

    step: np.ndarray
    value: np.ndarray

    def __len__(self) -> int:
        return len(self.step)

    def since(self, step: float) -> "Track":
        """The part from a step on; the last value if nothing else is left."""
        keep = self.step >= step
        keep[-1] = True
        return Track(self.step[keep], self.value[keep])

    @property
    def first(self) -> float:
        """The first value."""
        return float(self.value[0])

    @property
    def last(self) -> float:
        """The last value."""
        return float(self.value[-1])


@dataclasses.dataclass(frozen=True)
class Case:
    """What checks look at; None for what is not known.

    Attributes:
        name: What the case is, in words.
        unit: What its steps count: optimizer steps ("step"), or the "epoch" or "row" of a log without steps.
        steps: Number of steps of the run.
        loss: Loss of the training batches.
        broken: The step from which on no recorded loss is finite; or no recorded feature, if losses are.
        lost: Number of recorded losses that are not finite, and the first step of such a one, if later ones are.
        held_out_loss: Loss of held-out pairs.
        held_out_broken: The step from which on no logged loss of held-out pairs is finite.
        temperature: τ.
        rate: Learning rate.
        gap: Modality gap of held-out pairs.
        recall: Recall of held-out pairs, the mean of the recorded directions.
        recall_at: Its k: 10, or the next smaller one that is recorded; None if a log tells only a mean over several.
        pool: Number of pairs among which held-out pairs are retrieved.
        batch: Pairs in one loss.
        policy: The temperature's policy.
        learned: Whether the temperature is learned.
        clamp: (τ_min, τ_max); the usual one if a run records none.
        clamp_known: Whether the clamp was recorded.
        adam: Whether the optimizer is Adam or AdamW.
        decayed: Whether weight decay acts on the temperature.
        given: Rows (image, text) of all pairs at the end as they are stored, (n, d) each, finite and without zeros.
        rows: Unit rows of these pairs, or of a sample of `MOST_ROWS`, float64.
        of_training: Whether these are training pairs.
        weights: Numbers about the parameters of a checkpoint.
        read: How the columns of a log were read, in sentences.
    """

    name: str
    unit: str = STEP
    steps: int | None = None
    loss: Track | None = None
    broken: int | None = None
    lost: tuple[int, int] | None = None
    held_out_loss: Track | None = None
    held_out_broken: int | None = None
    temperature: Track | None = None
    rate: Track | None = None
    gap: Track | None = None
    recall: Track | None = None
    recall_at: int | None = 10
    pool: int | None = None
    batch: int | None = None
    policy: AbstractTemperature | None = None
    learned: bool | None = None
    clamp: tuple[float, float] | None = USUAL_CLAMP
    clamp_known: bool = False
    adam: bool | None = None
    decayed: bool | None = None
    given: Rows | None = None
    rows: Rows | None = None
    of_training: bool = False
    weights: Mapping[str, Any] | None = None
    read: tuple[str, ...] = ()

    @property
    def among(self) -> str:
        """The pairs of `rows`, in words."""
        if self.rows is None or self.given is None:
            return "no pairs"
        count, whole = len(self.rows[0]), len(self.given[0])
        return f"{count:,} pairs" if count == whole else f"a sample of {count:,} of {whole:,} pairs"

    def with_rows(self, given: Rows | None, of_training: bool) -> "Case":
        """The case with embeddings; None, or rows that are not finite, leave it without."""
        sample = None if given is None else _sampled(given)
        if sample is None:
            return dataclasses.replace(self, given=None, rows=None)
        return dataclasses.replace(self, given=given, rows=sample, of_training=of_training)


def case_of_record(record: Result, name: str) -> Case:
    """The case of a run: a record of training, a log, or a simulation."""
    trained = record if isinstance(record, TrainingRecord) else None
    config = record.config
    said = config.get("training", {}) if isinstance(config.get("training"), dict) else {}
    policy = _policy(config)
    loss, broken, lost = _training_loss(record)
    log = config.get("log", {})
    if broken is None and record.status.code is Status.DIVERGED:
        broken = _diverged_at(record, loss)
    clamp, known = USUAL_CLAMP, False
    bounds = None if policy is None else policy.bounds()
    if policy is not None and bounds is not None and policy.learnable:
        tau = sorted(1 / float(policy.inverse_temperature(0.0, np.float64(raw))) for raw in bounds)
        clamp, known = (tau[0], tau[1]), True
    elif "clamp" in said or policy is not None:
        value = said.get("clamp")
        clamp, known = (None if value is None else (float(value[0]), float(value[1]))), True
    optimizer = said.get("optimizer")
    rows = None
    if len(record.snapshot_time):
        try:
            last = record.final
            rows = None if last.image is None or last.text is None else (last.image, last.text)
        except FlowsimError:  # similarities only
            rows = None
    temperature = _temperature(record)
    recall, at = _recall(record)
    ends = [track.step[-1] for track in (loss, temperature) if track is not None]
    if trained is not None and len(trained.coordinates.get("step", ())):
        ends.append(trained.coordinates["step"][-1])
    batch, pool = said.get("batch_size"), config.get("evaluation", {}).get("retrieval_pool")
    case = Case(
        name=name,
        unit=str(log.get("unit", STEP)),
        steps=int(max(ends)) if ends else None,
        loss=loss,
        broken=broken,
        lost=None if broken is not None else lost,
        held_out_loss=_row_track(record, "loss") if trained is not None else None,
        held_out_broken=log.get("columns", {}).get("loss", {}).get("not_finite_from"),
        temperature=temperature,
        rate=_track(record, "learning_rate"),
        gap=_row_track(record, "modality_gap"),
        recall=recall,
        recall_at=at,
        pool=None if pool is None else int(pool),
        batch=None if batch is None else int(batch),
        policy=policy,
        learned=None if policy is None else policy.learnable,
        clamp=clamp,
        clamp_known=known,
        adam=None if optimizer is None else "adam" in str(optimizer),
        decayed=bool(said["temperature_decay"]) if "temperature_decay" in said else None,
        read=_reading(log),
    )
    return case.with_rows(rows, trained is not None)


def _sampled(rows: Rows) -> Rows | None:
    """Unit rows in float64, a sample of `MOST_ROWS` if there are more; None if they are not finite."""
    count = len(rows[0])
    index = np.arange(count)
    if count > MOST_ROWS:
        index = np.sort(np.random.default_rng(0).choice(count, MOST_ROWS, replace=False))
    image, text = (np.asarray(part[index], np.float64) for part in rows)
    if not (np.isfinite(image).all() and np.isfinite(text).all()):
        return None
    return tuple(part / np.linalg.norm(part, axis=1, keepdims=True) for part in (image, text))  # pyright: ignore


def _policy(config: Mapping[str, Any]) -> AbstractTemperature | None:
    held = config.get("schedule") or config.get("flow", {}).get("schedule")
    if held is None:
        return None
    try:
        return Schedule.from_json(json.dumps(held)).temperature
    except FlowsimError:  # a class that this session does not know
        return None


def _steps(record: Result) -> np.ndarray:
    """Steps of the rows of a record; their times if steps are not known."""
    if isinstance(record, TrainingRecord) and "step" in record.coordinates:
        return np.asarray(record.coordinates["step"], np.float64)
    return np.asarray(record.time, np.float64)


def _finite(step: np.ndarray, value: np.ndarray) -> Track | None:
    keep = np.isfinite(value)
    return Track(step[keep], np.asarray(value, np.float64)[keep]) if keep.any() else None


def _row_track(record: Result, name: str) -> Track | None:
    values = record.series.get(name)
    return None if values is None else _finite(_steps(record), values)


def _step_track(record: Result, name: str) -> Track | None:
    values = record.training.get(name) if isinstance(record, TrainingRecord) else None
    return None if values is None else _finite(np.arange(len(values), dtype=np.float64), values)


def _track(record: Result, name: str) -> Track | None:
    """A series of every step, else of rows."""
    return _step_track(record, name) or _row_track(record, name)


def _training_loss(record: Result) -> tuple[Track | None, int | None, tuple[int, int] | None]:
    """The loss of training batches; `broken` and `lost` of a `Case`, if that is known from the values themselves."""
    steps, values = _steps(record), record.series.get("train_loss")
    if isinstance(record, TrainingRecord) and "train_loss" in record.training:
        values = record.training["train_loss"]
        # A single loss that is not finite is skipped by gradient scaling; a run that ends so is broken.
        good, bad = np.flatnonzero(np.isfinite(values)), np.flatnonzero(~np.isfinite(values))
        first = int(good[-1]) + 1 if len(good) else 0
        lost = (len(bad), int(bad[0])) if len(bad) else None
        return _finite(np.arange(len(values), dtype=np.float64), values), first if first < len(values) else None, lost
    if values is None:
        values = None if isinstance(record, TrainingRecord) else record.series.get("loss")
    # In rows NaN may mean that nothing was logged, so the reader of the log counted.
    entry = record.config.get("log", {}).get("columns", {}).get("train_loss", {})
    lost = (int(entry["not_finite"]), int(entry["first_not_finite"])) if "not_finite" in entry else None
    return (None, None, lost) if values is None else (_finite(steps, values), None, lost)


def _diverged_at(record: Result, loss: Track | None) -> int:
    """The first row after the last finite loss; or after the last finite gap, if the loss stays finite."""
    steps, gap = _steps(record), _row_track(record, "modality_gap")
    for track in (loss, gap):
        after = steps if track is None else steps[steps > track.step[-1]]
        if len(after) and (track is not None or loss is gap is None):
            return int(after[0])
    return int(steps[-1])


def _reading(log: Mapping[str, Any]) -> tuple[str, ...]:
    """How a log was read, in sentences."""
    columns = {name: entry for name, entry in log.get("columns", {}).items() if "column" in entry}
    if not columns:
        return ()
    parts, told = [], set()
    for name, entry in columns.items():
        column, kind = entry["column"], entry.get("read_as", "")
        if column not in told or name == "step":  # τ, β and ν of one column are told once
            parts.append(f"{name} from {column!r}" + (f" as {kind}" if kind else ""))
        told.add(column)
    said = [f"{', '.join(parts)}."]
    said += [f"{entry['column']!r} is {entry['read_as']}: {entry['because']}" for entry in _explained(columns)]
    if log.get("unused"):
        said.append(f"Not used: {', '.join(map(repr, log['unused']))}.")
    return (*said, *log.get("notes", ()))


def _explained(columns: Mapping[str, Any]) -> list[Any]:
    """Entries that tell why, one for each column."""
    return list({entry["column"]: entry for entry in columns.values() if "because" in entry}.values())


def _temperature(record: Result) -> Track | None:
    for name in ("train_temperature", "temperature"):
        if (found := _track(record, name)) is not None:
            return found
    beta = _row_track(record, "inverse_temperature")
    if beta is None or not (beta.value > 0).all():
        return None
    return Track(beta.step, 1 / beta.value)


def _recall(record: Result) -> tuple[Track | None, int | None]:
    """Recall of both directions at the largest k of 10, 5 and 1, whose relative error is the smallest."""
    for k in (10, 5, 1):
        names = (f"image_to_text_at_{k}", f"text_to_image_at_{k}")
        known = [record.series[name] for name in names if name in record.series]
        if not known and f"recall_at_{k}" in record.series:
            known = [record.series[f"recall_at_{k}"]]
        if known and (found := _finite(_steps(record), np.mean(known, axis=0))) is not None:
            return found, k
    return _row_track(record, "mean_recall"), None
