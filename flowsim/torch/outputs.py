"""Where the numbers of a monitor go: a record and its file, TensorBoard, wandb, or a function."""

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowsim import provenance
from flowsim.base.checks import check, shown
from flowsim.base.files import check_writable
from flowsim.errors import FlowsimError
from flowsim.records.load import load_result
from flowsim.records.netcdf import check_name
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Outcome, Status

#: Called with the step, and values by name.
Output = Callable[[int, dict[str, float]], Any]
#: Seconds between two writings of the file of a record.
_SECONDS = 30.0


class Book:
    """Rows of measurements, and the file (.nc) that they are written to, if there is one."""

    def __init__(self, config: dict[str, Any], path: Path | None, resume: bool) -> None:
        self.config, self.path = config, path
        self.rows: list[dict[str, float]] = []
        self._written, self._at, self._failed = 0, -math.inf, False
        # Whether rows of an earlier run are still to be continued.
        self._kept = False
        if path is None:
            return
        check_name(path)
        check_writable(path.parent)
        if not path.exists():
            return
        check(
            resume,
            f"{str(path)!r} exists. Choose another name, remove it, or pass resume=True to go on with its run.",
        )
        found = load_result(path)
        if not isinstance(found, TrainingRecord) or "monitor" not in found.config:
            raise FlowsimError(f"{str(path)!r} is no record of a GapMonitor. Choose another name.")
        columns = found.coordinates | found.series
        self.rows = [{name: float(x[k]) for name, x in columns.items()} for k in range(len(found.time))]
        self._kept = True

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add a row; rows from this step on, which a resumed run repeats, are dropped.

        Raises:
            FlowsimError: If a resumed run begins again before the first row, which would drop all.
        """
        if self._kept and self.rows and step <= self.rows[0]["step"]:
            raise FlowsimError(
                f"{str(self.path)!r} holds {len(self.rows)} rows, up to step {self.rows[-1]['step']:.0f}, but the run "
                f"begins again at step {step}, which would replace all. Resume the step: "
                "controller.load_state_dict(state) or controller.resume_at(step), or pass `step` to the monitor. For a "
                "new run choose another name."
            )
        self._kept = False
        while self.rows and self.rows[-1]["step"] >= step:
            self.rows.pop()
            self._written = min(self._written, len(self.rows))
        self.rows.append({"step": step, **values})
        if time.monotonic() - self._at > _SECONDS:
            self.save()

    def save(self) -> None:
        """Write what is not in the file yet. Failure is a warning: a full disk must not end a training."""
        if self.path is None or self._written == len(self.rows):
            return
        try:
            self.record().save(self.path)
            self._written = len(self.rows)
        except FlowsimError as error:
            if not self._failed:
                warnings.warn(f"The measurements are not saved: {error}", UserWarning, stacklevel=2)
            self._failed = True
        self._at = time.monotonic()

    def record(self) -> TrainingRecord:
        """All rows as a record of training, whose clock is the step."""
        check(self.rows, "Nothing was measured yet. Call the monitor with features, or watch a model in training.")
        names = dict.fromkeys(name for row in self.rows for name in row)
        columns = {name: np.array([row.get(name, math.nan) for row in self.rows]) for name in names}
        steps = columns.pop("step")
        coordinates = {"step": steps.astype(int)}
        if "progress" in columns:
            coordinates["progress"] = columns.pop("progress")
        diverged = not all(np.isfinite(columns[name][-1]) for name in ("train_loss", "modality_gap") if name in columns)
        return TrainingRecord(
            time=steps,
            series=columns,
            status=Outcome(Status.DIVERGED if diverged else Status.COMPLETED, float(steps[-1]), "training in a loop"),
            config=self.config,
            stats={},
            versions={"flowsim": provenance.versions()["flowsim"], "torch": str(torch.__version__)},
            snapshot_time=np.empty(0),
            snapshots={},
            constants={},
            clock="step",
            coordinates=coordinates,
        )


def split(to: Any) -> tuple[Path | None, list[Output]]:
    """The path among the outputs, and functions for the others; raises `FlowsimError` for what is none."""
    path: Path | None = None
    outputs: list[Output] = []
    for one in to if isinstance(to, Sequence) and not isinstance(to, str) else [to]:
        if isinstance(one, (str, os.PathLike)):
            check(path is None, "A monitor writes one file, but `to` has two paths. Use one.")
            path = Path(one)
        elif one is not None:
            outputs.append(_output(one))
    return path, outputs


def _output(target: Any) -> Output:
    if hasattr(target, "add_scalar"):

        def to_tensorboard(step: int, values: dict[str, float]) -> None:
            for name, value in values.items():
                target.add_scalar(f"flowsim/{name}", value, step)

        return to_tensorboard
    if hasattr(target, "log") and hasattr(target, "define_metric"):
        # With an axis of their own the numbers do not depend on how often the loop itself logs.
        target.define_metric("flowsim/step")
        target.define_metric("flowsim/*", step_metric="flowsim/step")
        return lambda step, values: target.log(
            {"flowsim/step": step, **{f"flowsim/{name}": value for name, value in values.items()}}
        )
    if callable(target):
        return lambda step, values: target({"step": step, **values})
    raise FlowsimError(
        f"A monitor cannot write to {shown(target)}. Use a path such as 'run.nc', a SummaryWriter, a run of wandb, "
        "or a function of a dictionary."
    )


def features_of(output: Any) -> tuple[torch.Tensor, torch.Tensor, Any, Any] | None:
    """(image features, text features, β, loss) in the output of a CLIP model; None if it has no features of both.

    Known are the outputs of open_clip (a tuple or a dictionary) and of Hugging Face's CLIPModel.
    """
    if isinstance(output, tuple) and not hasattr(output, "_fields"):
        found = output[:3] if len(output) >= 2 else ()
        image, text, beta = (*found, None, None, None)[:3]
        loss = None
    else:
        held = output if isinstance(output, Mapping) else vars(output) if hasattr(output, "__dict__") else {}
        image = held.get("image_embeds", held.get("image_features"))
        text = held.get("text_embeds", held.get("text_features"))
        beta, loss = held.get("logit_scale"), held.get("loss")
    if isinstance(image, torch.Tensor) and isinstance(text, torch.Tensor) and image.ndim == text.ndim == 2:
        return image, text, beta, loss
    return None
