"""A result as a run for comparisons: its series, steps and settings."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.errors import FlowsimError
from flowsim.logs.read import is_saved, read_log
from flowsim.model import schedules
from flowsim.model.initial import Start
from flowsim.model.schedules import Schedule
from flowsim.model.temperature import AbstractTemperature
from flowsim.records.load import load_result
from flowsim.records.result import FLOW_TIME, Result, TrainingRecord

Record = Result | str | os.PathLike[str]
#: Unit rows (image, text) of pairs, (n, d) each.
Rows = tuple[np.ndarray, np.ndarray]

#: Series that depend on which pairs were observed.
_OF_PAIRS = ("matched_fraction", "margin", "doubly_stochastic_defect")


class CannotTell(Exception):
    """A run lacks the data that an item needs; holds the reason and the numbers known so far."""

    def __init__(self, reason: str, **numbers: Any) -> None:
        super().__init__(reason)
        self.reason = reason
        self.numbers = numbers


@dataclasses.dataclass(frozen=True)
class Training:
    """Settings of a training; None if not recorded."""

    model: str | None
    data: str | None
    optimizer: str | None
    steps: int | None
    batch_size: int | None
    clamp: tuple[float, float] | None

    @staticmethod
    def of(said: Mapping[str, Any]) -> "Training":
        """From the settings of a record."""
        model, data, optimizer = (str(said[k]) if said.get(k) else None for k in ("model", "data", "optimizer"))
        batch, clamp = said.get("batch_size"), said.get("clamp")
        return Training(
            model,
            data,
            optimizer,
            said.get("steps") or None,
            None if batch is None else int(batch),
            None if clamp is None else (float(clamp[0]), float(clamp[1])),
        )

    def __str__(self) -> str:
        steps = None if self.steps is None else f"{self.steps} steps"
        known = [word for word in (self.model, self.data, self.optimizer, steps) if word is not None]
        return f"training ({', '.join(known)})" if known else "training"


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run; None if not recorded."""

    #: With the clamp of the training.
    schedule: Schedule | None
    #: Why there is none, as a sentence.
    no_schedule: str
    #: Loss and pairing of a flow, where they are not those that a comparison simulates.
    other_parts: tuple[str, ...]
    training: Training | None
    training_pairs: int | None
    #: Dimension of the embeddings.
    dim: int | None
    geometry: str
    #: For a descent in finite steps, with its learning rate.
    optimizer: str | None
    rate: float | None

    @staticmethod
    def of(config: Mapping[str, Any]) -> "Settings":
        """From the configuration of a record."""
        flow, options, said = (config.get(k, {}) for k in ("flow", "options", "training"))
        training = Training.of(said) if said else None
        held, rate = config.get("schedule") or flow.get("schedule"), options.get("lr")
        schedule, why = None, "The run does not record its schedule."
        if held is not None:
            try:
                schedule = _clamped(schedules.Schedule.from_json(json.dumps(held)), training)
            except FlowsimError as error:  # a class that this session does not know
                why = str(error)
        usual = {"loss": "InfoNCE", "pairing": "Matched"}
        others = (flow[part]["kind"] for part, kind in usual.items() if part in flow and flow[part]["kind"] != kind)
        pairs, dim = config.get("data", {}).get("training_pairs"), config.get("embed_dim")
        return Settings(
            schedule,
            why,
            tuple(others),
            training,
            None if pairs is None else int(pairs),
            None if dim is None else int(dim),
            flow.get("geometry", {}).get("kind", "flow"),
            options.get("optimizer"),
            rate if isinstance(rate, (int, float)) else None,
        )

    def __str__(self) -> str:
        if self.training is not None:
            return str(self.training)
        how = "the flow" if self.optimizer is None else f"steps of {self.optimizer}"
        return f"{how} on {self.geometry}"


@dataclasses.dataclass(frozen=True)
class Run:
    """A result as a run: its gap over evaluations (T,), steps (T,) if they are known, and settings."""

    result: Result
    name: str
    gap: np.ndarray
    step: np.ndarray | None
    settings: Settings

    @staticmethod
    def of(record: Record) -> "Run":
        """From a result, or the path of one.

        Args:
            record: A result, or the path of one or of a log of another trainer.

        Returns:
            The run.

        Raises:
            FlowsimError: If this is not a result, the file cannot be read, or it has no modality gap.
        """
        path = None
        if isinstance(record, (str, os.PathLike)):
            path = Path(record)
            record = load_result(path) if is_saved(path) else read_log(path)
        if not isinstance(record, Result):
            raise FlowsimError(
                f"Expected a result or the path of one, but got {type(record).__name__}. "
                "Use fs.simulate(...) or a saved run such as 'run.nc'."
            )
        gap = _series(record, "modality_gap")
        of_log = isinstance(record, TrainingRecord) and "log" in record.config
        if gap is None and of_log:
            raise FlowsimError(
                f"The log {record.config['log']['source']!r} holds no modality gap, which a comparison needs. Record "
                "it with flowsim.torch.GapMonitor, or measure stored embeddings with `flowsim measure`; `flowsim "
                "doctor LOG` reads temperature and loss alone."
            )
        if gap is None:
            raise FlowsimError(
                f"{'This result' if path is None else repr(str(path))} holds no modality gap, which a comparison "
                "needs. Record `modality_gap`."
            )
        if isinstance(record, TrainingRecord) and of_log:
            record, gap = _evaluated(record, gap)
        settings = Settings.of(record.config)
        step = None
        trained = record if isinstance(record, TrainingRecord) else None
        if trained is not None and "step" in trained.coordinates:
            step = np.asarray(trained.coordinates["step"], np.float64)
        elif settings.optimizer is not None and settings.rate is not None:
            step = np.round((record.time - record.time[0]) / settings.rate)
        file = record.config["log"]["source"] if of_log else None if path is None else path.name
        return Run(record, str(settings) if file is None else f"{file}: {settings}", gap, step, settings)

    # --- clocks

    @property
    def time(self) -> np.ndarray:
        """Times of the evaluations, (T,)."""
        return self.result.time

    @property
    def clock(self) -> np.ndarray:
        """The run's own clock, starting at 0, (T,)."""
        return self.result.time - self.result.time[0]

    @property
    def clock_name(self) -> str:
        """Name of the clock."""
        return self.result.clock

    @property
    def in_flow_time(self) -> bool:
        """Whether the clock is the flow time of the embeddings; for a network it is that of the weights."""
        return self.result.clock == FLOW_TIME and self.settings.training is None

    @property
    def axis(self) -> np.ndarray:
        """Steps if they are known, else the clock, (T,)."""
        return self.clock if self.step is None else self.step

    @property
    def axis_name(self) -> str:
        """Name of the axis."""
        return self.clock_name if self.step is None else "step"

    @property
    def axis_label(self) -> str:
        """Label of the axis in a figure."""
        return f"{self.clock_name} $t$" if self.step is None else "step"

    @property
    def axis_word(self) -> str:
        """Word before a position on the axis in a sentence."""
        return "t =" if self.step is None else "step"

    @property
    def epoch(self) -> np.ndarray | None:
        """Epochs of the evaluations, (T,)."""
        return None if self.trained_record is None else self.trained_record.coordinates.get("epoch")

    # --- series

    @property
    def trained_record(self) -> TrainingRecord | None:
        """The record if it is one of a training, else None."""
        return self.result if isinstance(self.result, TrainingRecord) else None

    def series(self, name: str) -> np.ndarray | None:
        """A series (T,), or None; series about pairs only if they describe the same pairs as `gap`."""
        of_training = _key(self.result, "modality_gap") == "seen_modality_gap"
        if name in _OF_PAIRS and (_key(self.result, name) == f"seen_{name}") != of_training:
            return None
        return _series(self.result, name)

    @property
    def beta(self) -> np.ndarray | None:
        """Inverse temperature (T,), recorded or from the temperature; None if there is no positive value."""
        beta, tau = self.series("inverse_temperature"), self.series("temperature")
        if beta is None and tau is not None:
            beta = 1 / tau
        return None if beta is None or not np.any(beta > 0) else beta

    @property
    def log_tau(self) -> np.ndarray | None:
        """ln τ (T,), NaN where β is not positive."""
        beta = self.beta
        return None if beta is None else -np.log(np.where(beta > 0, beta, np.nan))

    @property
    def batch_gap(self) -> np.ndarray | None:
        """Gap of each batch of a training, (steps,)."""
        return None if self.trained_record is None else self.trained_record.training.get("train_modality_gap")

    @property
    def batch_temperature(self) -> np.ndarray | None:
        """Temperature at each step of a training, (steps,)."""
        return None if self.trained_record is None else self.trained_record.training.get("train_temperature")

    # --- settings

    @property
    def schedule(self) -> Schedule | None:
        """The schedule as it ran."""
        return self.settings.schedule

    def known_schedule(self) -> Schedule:
        """The schedule; raises `CannotTell` if it is not known."""
        if self.settings.schedule is None:
            raise CannotTell(self.settings.no_schedule)
        return self.settings.schedule

    @property
    def learnable(self) -> AbstractTemperature | None:
        """The temperature's policy, if it is learned and laws are known for its parametrization."""
        policy = None if self.schedule is None else self.schedule.temperature
        parametrization = None if policy is None or not policy.learnable else policy.parametrization
        return None if parametrization is None or parametrization.potential is None else policy

    @property
    def pairs(self) -> int | None:
        """Candidates in the loss: the batch of a training, else all pairs."""
        if self.settings.training is not None and self.settings.training.batch_size is not None:
            return self.settings.training.batch_size
        held = self._held()
        for name in ("image", "similarity"):
            if name in held:
                return int(held[name].shape[-2])
        return None

    @property
    def trained(self) -> int | None:
        """Number of pairs of the training set, else of those in the snapshots; at least a batch."""
        known = self.settings.training_pairs
        if known is None:
            held = self._held()
            known = held["image"].shape[-2] if "image" in held else None
        found = [int(count) for count in (known, self.pairs) if count is not None]
        return max(found) if found else None

    @property
    def minibatches(self) -> str:
        """A sentence if each loss used only a part of the pairs, else ""."""
        if self.pairs is None or self.trained is None or self.pairs >= self.trained:
            return ""
        return f"the run was trained on minibatches of {self.pairs} of {self.trained} pairs"

    def not_simulated(self, pairs: int) -> str:
        """In words, what a flow of `pairs` pairs omits of the run; empty if the run has all of them in one loss."""
        if self.minibatches:
            return f"{self.minibatches}, which is not the flow of {pairs} of them"
        if self.trained is not None and pairs < self.trained:
            return f"only {pairs} of the run's {self.trained} pairs were simulated"
        return ""

    # --- embeddings

    @property
    def snapshot_time(self) -> np.ndarray:
        """Times of the stored snapshots."""
        return self.result.snapshot_time

    @property
    def dim(self) -> int | None:
        """Dimension of the embeddings."""
        if self.settings.dim is not None:
            return self.settings.dim
        for index in range(len(self.snapshot_time)):
            rows = self.rows(index)
            return None if rows is None else rows[0].shape[1]
        return None

    def rows(self, index: int) -> Rows | None:
        """Unit rows of a stored snapshot; None if it holds no finite rows."""
        held = {**self.result.constants, **{k: v[index] for k, v in self.result.snapshots.items()}}
        fields = {f.name for f in dataclasses.fields(Start)}
        try:
            image, text = Start(**{k: np.asarray(v) for k, v in held.items() if k in fields}).rows()
        except FlowsimError:  # similarities, or inputs of encoders
            return None
        if image is None or text is None or not (np.isfinite(image).all() and np.isfinite(text).all()):
            return None
        return np.asarray(image, np.float64), np.asarray(text, np.float64)

    def _held(self) -> dict[str, np.ndarray]:
        """Arrays of all snapshots, and constant ones."""
        return {**self.result.constants, **self.result.snapshots}


def _clamped(schedule: Schedule, training: Training | None) -> Schedule:
    """The schedule with the clamp of the training, if its learnable temperature has none."""
    policy = schedule.temperature
    if training is None or training.clamp is None or not policy.learnable or policy.bounds() is not None:
        return schedule
    return dataclasses.replace(schedule, temperature=policy.clamped_to(*training.clamp))


def _evaluated(record: TrainingRecord, gap: np.ndarray) -> tuple[TrainingRecord, np.ndarray]:
    """The rows of a log that have a gap, and the gap; ln τ is a straight line between the steps that logged it."""
    keep = np.isfinite(gap)
    series = {name: values[keep] for name, values in record.series.items()}
    tau = record.series.get("temperature")
    good = np.zeros(len(gap), bool) if tau is None else np.isfinite(tau) & (tau > 0)
    if tau is not None and good.any():
        # Rows before the first logged temperature have none.
        at = np.asarray(record.coordinates.get("step", record.time), np.float64)
        filled = np.exp(np.interp(at[keep], at[good], np.log(tau[good]), left=np.nan))
        series |= {"temperature": filled, "inverse_temperature": 1 / filled}
    coordinates = {name: values[keep] for name, values in record.coordinates.items()}
    return dataclasses.replace(record, time=record.time[keep], series=series, coordinates=coordinates), gap[keep]


def _key(result: Result, name: str) -> str | None:
    """The name under which a series is stored, that of training pairs first; None if it has no finite value."""
    for key in (f"seen_{name}", name):
        if key in result.series and np.isfinite(result.series[key]).any():
            return key
    return None


def _series(result: Result, name: str) -> np.ndarray | None:
    """A series over evaluations, of training pairs if recorded; None if it has no finite value."""
    key = _key(result, name)
    return None if key is None else np.asarray(result.series[key], np.float64)
