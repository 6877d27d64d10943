"""Training a CLIP model under a schedule, recorded as a `TrainingRecord`.

The loop is short and our own; model, tokenizer and loss are open_clip's, devices and precision accelerate's.
Step k of a run depends on its settings, its seed and k alone (dropout, where a model has it, is drawn from them too),
and everything else is in the checkpoint: a killed run goes on as if nothing had happened (bit by bit on a CPU).

Several processes share each batch, and its loss and gradient are those of the whole batch. So are the statistics of
batch normalisation on GPUs; on CPUs, where PyTorch cannot share them, each process normalises its own part. Dropout is
drawn by each process for itself.

The record has the simulator's form: one row per evaluation with every observable of N held-out pairs, and of N
training pairs under `seen_...`; `time` is the sum of learning rates, which is flow time for plain SGD only.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import filelock
import numpy as np
import open_clip
import scipy.linalg  # noqa: F401  (the linear algebra that JAX calls; only what is loaded can be limited)
import threadpoolctl
import torch

from flowsim.base.arrays import check
from flowsim.base.files import write_atomically
from flowsim.base.paths import to_config
from flowsim.clip import data, evaluate, models
from flowsim.clip.batches import Batches, crop, onto, prepare
from flowsim.clip.contrast import Contrast, Temperature
from flowsim.clip.settings import Training
from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule, as_schedule
from flowsim.records.load import load_result
from flowsim.records.result import FLOW_TIME, SUM_OF_RATES, TrainingRecord
from flowsim.records.status import Outcome, Status

#: Losses are fetched from the device this often (steps): each fetch waits for it.
_FETCH = 25


class Towers(torch.nn.Module):
    """Model and temperature as one module, so that one wrapper for several devices holds both."""

    def __init__(self, clip: torch.nn.Module, temperature: Temperature, normalize: bool = True) -> None:
        super().__init__()
        self.clip, self.temperature, self.normalize = clip, temperature, normalize

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features (n, d) of both modalities, of unit length if `normalize`, and β."""
        clip: Any = self.clip
        image = clip.encode_image(images, normalize=self.normalize)
        text = clip.encode_text(tokens, normalize=self.normalize)
        return image, text, self.temperature(progress)


def train(
    settings: Training,
    schedule: Schedule | str = "Baseline",
    out: str | os.PathLike[str] | None = None,
    *,
    cpu: bool = False,
    force: bool = False,
    weights: str | os.PathLike[str] | None = None,
    tensorboard: str | None = None,
    progress: Callable[[dict[str, float]], None] | None = None,
) -> TrainingRecord:
    """Train `settings.model` on `settings.data` under a schedule (object, preset's name or JSON file).

    - `out`: record (.nc), written at every evaluation. A checkpoint lies beside it until the run is finished; the
      same call goes on from there, and returns the record of a finished run. A record of another run is not
      overwritten, unless `force`.
    - `weights`: file for the final weights of a run that completes, a state dict that open_clip loads.
    - `progress`: called with step, steps, loss, temperature, modality_gap, images_per_second (by the first process).
    - `tensorboard`: folder for the same numbers.

    Raises `FlowsimError` for bad input before any training, and where a file cannot be written; the record of the last
    evaluation and the last checkpoint are then still there. A loss that is not finite ends the run with status
    DIVERGED; the record holds what came before.
    """
    schedule = as_schedule(schedule)
    path = None if out is None else Path(out)
    config = configuration(settings, schedule)
    first = int(os.environ.get("RANK", "0")) == 0
    if path is not None:
        check(path.suffix == ".nc", f"Records end in .nc, but got {path.name!r}. Use e.g. run.nc.")
        if path.is_file() and not force and (done := _earlier(path, settings, schedule)) is not None:
            check(
                weights is None or Path(weights).exists(),
                f"{str(path)!r} is finished, and its weights were not kept. Use --force to train it again.",
            )
            return done
    if weights is not None and first:
        _check_writable(Path(weights))
    with _alone(path), _threads(settings.threads), _writer(tensorboard if first else None) as write:
        run = _Run(settings, schedule, config, path, cpu)
        if force and run.checkpoint is not None:
            run.checkpoint.unlink(missing_ok=True)
        run.restore()
        return run.go(progress, write, weights)


def _check_writable(path: Path) -> None:
    """Refuse a file that cannot be written, before any time is spent; leaves nothing behind but its folder."""
    check(not path.is_dir(), f"Cannot write {str(path)!r}: it is a folder. Choose the name of a file.")
    write_atomically(path.with_name(f".{path.name}.probe"), lambda temporary: None).unlink()


@contextlib.contextmanager
def _alone(path: Path | None) -> Any:
    """Refuse a record that another process is writing."""
    if path is None or int(os.environ.get("RANK", "0")) != 0:
        yield
        return
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise FlowsimError(
            f"{str(path)!r} is being written by another process. Wait for it, stop it, or choose another name."
        ) from None
    except OSError as error:
        raise FlowsimError(
            f"Cannot write {str(path)!r}: {error.strerror or error}. Choose a folder that you may write to."
        ) from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def _threads(count: int | None) -> Any:
    """Limit the threads of PyTorch, and those of the linear algebra that measures: waiting threads cost most."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


@dataclasses.dataclass
class _Log:
    """What the record will hold: rows of evaluations, values of steps, embeddings."""

    rows: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    steps: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    snapshot_steps: list[int] = dataclasses.field(default_factory=list)
    snapshots: dict[str, list[np.ndarray]] = dataclasses.field(default_factory=dict)

    def state(self) -> dict[str, Any]:
        """Tensors and plain lists, which a checkpoint can hold."""
        numbers = {
            part: {k: torch.tensor(v, dtype=torch.float64) for k, v in getattr(self, part).items()}
            for part in ("rows", "steps")
        }
        rows = {k: torch.from_numpy(np.stack(v)) for k, v in self.snapshots.items()}
        return {**numbers, "snapshot_steps": list(self.snapshot_steps), "snapshots": rows}

    @classmethod
    def of(cls, state: dict[str, Any]) -> "_Log":
        """The inverse of `state`."""
        rows, steps = ({k: v.tolist() for k, v in state[part].items()} for part in ("rows", "steps"))
        snapshots = {k: list(v.numpy()) for k, v in state["snapshots"].items()}
        return cls(rows, steps, state["snapshot_steps"], snapshots)


class _Run:
    """One training run, from its data to its record."""

    def __init__(
        self, settings: Training, schedule: Schedule, config: dict[str, Any], path: Path | None, cpu: bool
    ) -> None:
        self.settings, self.schedule, self.path = settings, schedule, path
        self.checkpoint = None if path is None else path.with_suffix(".checkpoint.pt")
        if "RANK" not in os.environ:
            # accelerate keeps precision and device for the whole session; a second run may want others.
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        self.accelerator = accelerate.Accelerator(
            cpu=cpu, mixed_precision="bf16" if settings.precision == "bf16" else "no"
        )
        self.device, self.main = self.accelerator.device, self.accelerator.is_main_process
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        check(
            settings.batch_size % processes == 0,
            f"A batch of {settings.batch_size} pairs cannot be shared by {processes} processes. Use a multiple.",
        )
        self.model = models.build(settings.model, settings.pretrained, settings.image_size, settings.seed)
        train_pairs, held_out = _load(settings)
        self.labelled = None
        if self.main and settings.labelled is not None:
            self.labelled = evaluate.Labelled.of(settings.labelled)
        digests = _digests(settings)
        size, tokenize, resize = self.model.image_size, self.model.tokenize, self.model.resize
        self.batches: Batches = prepare(train_pairs, tokenize, size, settings, rank, processes, resize)
        onto(self.batches, self.device)
        train_pairs = self.batches.pairs
        self.steps = settings.total_steps(len(train_pairs))
        self.seen = evaluate.sample(train_pairs, settings.pairs, tokenize, size, resize)
        self.held_out = evaluate.sample(held_out, settings.pairs, tokenize, size, resize)
        held_out = self.held_out.pairs

        self.temperature = Temperature(schedule.temperature, settings.clamp)
        self.model.module.logit_scale.requires_grad_(False)  # the schedule has the temperature
        if processes > 1:
            self.model = dataclasses.replace(self.model, module=_synchronised(self.model.module, self.device.type))
        self.towers = Towers(self.model.module, self.temperature, settings.normalize).to(self.device)
        self.optimizer = _optimizer(settings, self.towers)
        self.wrapped, self.stepper = self.accelerator.prepare(self.towers, self.optimizer)
        self.contrast = Contrast(schedule, settings.seed, rank, processes)
        self.rank = rank

        self.rates = np.array([settings.learning_rate(k, self.steps) for k in range(self.steps)])
        self.elapsed = np.concatenate([[0.0], np.cumsum(self.rates)])
        self.evaluations = set(_evaluation_steps(settings, self.steps, len(train_pairs)))
        first_epoch = min(settings.steps_per_epoch(len(train_pairs)), self.steps)
        self.snapshot_steps = {0, first_epoch, self.steps} if settings.snapshot_pairs else set()
        self.per_epoch = len(train_pairs) / (settings.batch_size * settings.accumulate)
        self.log, self.step = _Log(), 0
        self.accuracies: dict[str, float] = {}
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.config = {
            **config,
            "evaluation": {
                "pairs": len(self.held_out), "seen_pairs": len(self.seen), "captions": "first", "crop": "centre",
                "retrieval_pool": len(self.held_out),
            },
            "data": {
                "training_pairs": len(train_pairs), "report": _short(train_pairs.report(), train_pairs.source),
                "held_out_report": _short(held_out.report(), held_out.source),
                "skipped": dict(train_pairs.skipped), "held_out_skipped": dict(held_out.skipped),
            },
            "steps": self.steps, "negatives": settings.batch_size - 1, "embed_dim": self.model.embed_dim,
            "digests": digests,
        }  # fmt: skip

    # --- the loop

    def go(
        self, progress: Callable[[dict[str, float]], None] | None, write: Callable[[dict], None],
        weights: str | os.PathLike[str] | None = None,
    ) -> TrainingRecord:  # fmt: skip
        """Train to the last step; the finished record. The weights of a completed run are exported before it."""
        saved = time.monotonic()
        pending: list[torch.Tensor] = []
        self.wrapped.train()
        status = Status.COMPLETED
        if self.step == 0 and not self.log.rows:
            self.evaluate()
        begin, since = time.perf_counter(), self.step
        while self.step < self.steps:
            pending.append(self.take_step())
            self.step += 1
            here = self.step in self.evaluations or self.step == self.steps
            # The main process alone saves: clocks differ, and nobody may wait for another.
            due = self.main and self.checkpoint is not None
            due = due and time.monotonic() - saved > self.settings.checkpoint_seconds
            if not (here or due or len(pending) == _FETCH):
                continue
            values = torch.stack(pending).cpu().double().numpy()
            pending.clear()
            seconds = time.perf_counter() - begin
            self.seconds["training"] += seconds
            count = self.settings.batch_size * self.settings.accumulate
            speed = (self.step - since) * count / max(seconds, 1e-9)
            self.note(values)
            numbers = {
                "step": self.step, "steps": self.steps, "loss": float(values[-1, 0]),
                "temperature": self.log.steps["train_temperature"][-1], "modality_gap": float(values[-1, 1]),
                "images_per_second": speed,
            }  # fmt: skip
            if self.main:
                write(numbers)
                if progress is not None:
                    progress(numbers)
            if not np.isfinite(values[:, :2]).all():
                status = Status.DIVERGED
                break
            if here and not self.evaluate():
                status = Status.DIVERGED
                break
            if due:
                self.save_checkpoint()
                saved = time.monotonic()
            begin, since = time.perf_counter(), self.step
        if self.main:
            if status is Status.COMPLETED:
                self.finish(weights)
            result = self.result(status)
            if self.path is not None:
                result.save(self.path)
                assert self.checkpoint is not None
                self.checkpoint.unlink(missing_ok=True)
        else:
            result = self.result(status)
        self.accelerator.wait_for_everyone()
        return result

    def finish(self, weights: str | os.PathLike[str] | None) -> None:
        """What comes after the last step: accuracies on labelled images, and the weights."""
        if self.checkpoint is not None and (self.labelled is not None or weights is not None):
            self.save_checkpoint()  # if one of them fails, the training is not lost
        if self.labelled is not None:
            found = evaluate.classify(self.model, self.labelled, self.device)
            self.accuracies = {"zero_shot": found.zero_shot}
            if found.linear_probe is not None:
                self.accuracies["linear_probe"] = found.linear_probe
            self.config["labelled"] = {
                "images": found.images, "classes": found.classes, "skipped": found.skipped,
                "template": self.labelled.template,
            }  # fmt: skip
        if weights is not None:
            self.export(weights)

    def take_step(self) -> torch.Tensor:
        """One optimizer step; (loss, modality gap of the batch, ν or NaN) on the device, before the step."""
        k, settings = self.step, self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.rates[k] * group["ratio"])
        u = k / self.steps
        raw = self.temperature.raw
        noted = torch.full((), torch.nan, device=self.device) if raw is None else raw.detach().float().clone()
        losses, gaps = [], []
        for j in range(settings.accumulate):
            micro = k * settings.accumulate + j
            # Dropout draws from PyTorch's generator: a run that goes on must not depend on what was drawn before.
            torch.manual_seed(_seed_of(settings.seed, micro, self.rank))
            pixels, tokens, boxes = self.batches.batch(micro)
            images = crop(pixels.to(self.device, non_blocking=True), boxes, self.model.mean, self.model.std)
            last = j == settings.accumulate - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    image, text, beta = self.wrapped(images, tokens.to(self.device), u)
                image, text = image.float(), text.float()  # the loss in full precision
                loss = self.contrast(image, text, beta, micro)
                self.accelerator.backward(loss / settings.accumulate)
            losses.append(loss.detach())
            gaps.append(self.batch_gap(image.detach(), text.detach()))
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.temperature.clamp_()
        return torch.stack([torch.stack(losses).mean(), torch.stack(gaps).mean(), noted])

    @torch.no_grad()
    def batch_gap(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Modality gap of the whole batch, from this process's share of its features (n, d)."""
        if not self.settings.normalize:
            image, text = (torch.nn.functional.normalize(rows, dim=1) for rows in (image, text))
        centres = (image - text).mean(0)
        if self.contrast.processes > 1:
            centres = self.accelerator.reduce(centres, "mean")
        return torch.linalg.vector_norm(centres)  # pyright: ignore

    def note(self, values: np.ndarray) -> None:
        """Take fetched values of the last steps into the log."""
        policy = self.schedule.temperature
        for k, (loss, gap, raw) in zip(range(self.step - len(values), self.step), values, strict=True):
            beta = policy.inverse_temperature(k / self.steps, np.float64(raw) if policy.learnable else None)
            row = {
                "train_loss": loss, "train_modality_gap": gap, "train_temperature": 1.0 / float(beta),
                "learning_rate": self.rates[k],
            }  # fmt: skip
            for name, value in row.items():
                self.log.steps.setdefault(name, []).append(float(value))

    # --- evaluation and record

    def evaluate(self) -> bool:
        """Observe the model now, on held-out pairs and on training pairs; the main process writes the record.

        False, and nothing is noted, if its embeddings are not finite any more.
        """
        begin = time.perf_counter()
        rows = [evaluate.embed(self.model, pairs, self.device, self.accelerator.autocast)
                for pairs in (self.held_out, self.seen)]  # fmt: skip
        if not all(np.isfinite(part).all() for pair in rows for part in pair):
            return False
        beta, raw = self.temperature.value(self.step / self.steps)
        row = {
            "step": self.step, "epoch": self.step / self.per_epoch, "progress": self.step / self.steps,
            "temperature": 1.0 / beta, "inverse_temperature": beta,
        }  # fmt: skip
        if raw is not None:
            row["raw_temperature"] = raw
        row |= evaluate.observe(*rows[0], beta, self.settings.observables)
        image, text = rows[1]
        seen = evaluate.observe(image, text, beta, self.settings.observables)
        row |= {f"seen_{name}": value for name, value in seen.items()}
        for name, value in row.items():
            self.log.rows.setdefault(name, []).append(float(value))
        if self.step in self.snapshot_steps:
            count = self.settings.snapshot_pairs
            self.log.snapshot_steps.append(self.step)
            kept = {"image": image[:count].astype(np.float32), "text": text[:count].astype(np.float32)}
            for name, value in (kept | ({} if raw is None else {"raw_temperature": np.float64(raw)})).items():
                self.log.snapshots.setdefault(name, []).append(np.asarray(value))
        self.wrapped.train()
        self.seconds["evaluation"] += time.perf_counter() - begin
        if self.main and self.path is not None:
            self.result(Status.UNFINISHED).save(self.path)
        self.accelerator.wait_for_everyone()
        return True

    def result(self, status: Status) -> TrainingRecord:
        """The record so far."""
        rows = {k: np.array(v) for k, v in self.log.rows.items()}
        steps = rows.pop("step").astype(int)
        coordinates = {"step": steps, "epoch": rows.pop("epoch"), "progress": rows.pop("progress")}
        plain_sgd = self.settings.optimizer == "sgd" and self.settings.momentum == 0 and self.settings.weight_decay == 0
        taken = len(self.log.steps.get("train_loss", ())) * self.settings.batch_size * self.settings.accumulate
        return TrainingRecord(
            time=self.elapsed[steps],
            series=rows,
            status=Outcome(status, float(self.elapsed[self.step]), f"training with {self.settings.optimizer}"),
            config=self.config,
            stats={
                "training_seconds": self.seconds["training"],
                "evaluation_seconds": self.seconds["evaluation"],
                "images_per_second": taken / max(self.seconds["training"], 1e-9),
                "parameters": float(sum(p.numel() for p in self.model.module.parameters())),
                **_memory(self.device),
                **self.accuracies,
            },
            versions=_versions(self.device),
            snapshot_time=self.elapsed[self.log.snapshot_steps],
            snapshots={k: np.stack(v) for k, v in self.log.snapshots.items()},
            constants={},
            clock=FLOW_TIME if plain_sgd else SUM_OF_RATES,
            coordinates=coordinates,
            training={k: np.array(v) for k, v in self.log.steps.items()},
        )

    # --- checkpoints

    def save_checkpoint(self) -> None:
        """Everything that the rest of the run depends on, atomically."""
        assert self.checkpoint is not None
        state = {
            "run": json.dumps(self.config, sort_keys=True), "step": self.step, "towers": self.towers.state_dict(),
            "optimizer": self.optimizer.state_dict(), "log": self.log.state(), "seconds": dict(self.seconds),
        }  # fmt: skip
        _save(state, self.checkpoint)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one. Raises `FlowsimError` if it is damaged or of another run."""
        if self.checkpoint is None or not self.checkpoint.exists():
            return
        try:
            state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
            same = _same(json.loads(state["run"]), json.loads(json.dumps(self.config)))
        except Exception as error:  # a damaged or foreign file fails in many ways
            raise FlowsimError(
                f"The checkpoint {str(self.checkpoint)!r} cannot be read ({type(error).__name__}). "
                "Remove it to start again."
            ) from None
        check(
            same,
            f"The checkpoint {str(self.checkpoint)!r} belongs to a run with other settings. "
            "Give those again, another --out, or --force.",
        )
        self.towers.load_state_dict(state["towers"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log, self.step, self.seconds = _Log.of(state["log"]), state["step"], state["seconds"]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write the model's weights; its `logit_scale` is set to ln β, so that open_clip uses the same β."""
        beta, _ = self.temperature.value(self.step / self.steps)
        with torch.no_grad():
            self.model.module.logit_scale.fill_(float(np.log(beta)))
        _save({k: v.cpu() for k, v in self.model.module.state_dict().items()}, path)


def _save(state: Any, path: str | os.PathLike[str]) -> None:
    """Write tensors atomically. Raises `FlowsimError` where that is not possible, also on a full disk."""

    def write(temporary: str) -> None:
        try:
            torch.save(state, temporary)
        except RuntimeError as error:  # PyTorch's own writer hides what the system said
            raise OSError(errno.EIO, "PyTorch could not write all of it; the disk may be full") from error

    write_atomically(path, write)


def _seed_of(seed: int, micro: int, rank: int) -> int:
    """Seed of what PyTorch draws in a micro-batch (dropout), apart from those of batches and crops."""
    return int(np.random.SeedSequence((seed, 2, micro, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _synchronised(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """The module with batch normalisation over all processes; as it is on a CPU, where PyTorch has none."""
    if device != "cuda":
        return module
    from timm.layers.norm_act import convert_sync_batchnorm  # also knows timm's own kind

    return convert_sync_batchnorm(module)


def _optimizer(settings: Training, towers: Towers) -> torch.optim.Optimizer:
    """The optimizer over weights, gains and biases, and ν; `ratio` multiplies a group's learning rate."""
    decayed, free = [], []
    for name, parameter in towers.clip.named_parameters():
        if parameter.requires_grad:
            # open_clip's rule: no weight decay on gains and biases.
            gain = parameter.ndim < 2 or "bn" in name or "ln" in name or "bias" in name
            (free if gain and not settings.decay_all else decayed).append(parameter)
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay, "ratio": 1.0},
        {"params": free, "weight_decay": 0.0, "ratio": 1.0},
    ]
    raw = towers.temperature.raw
    if raw is not None:
        ratio = float(towers.temperature.policy.lr_ratio)  # pyright: ignore[reportAttributeAccessIssue]
        groups.append({"params": [raw], "weight_decay": decay if settings.temperature_decay else 0.0, "ratio": ratio})
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )


def _evaluation_steps(settings: Training, steps: int, pairs: int) -> list[int]:
    """About `evaluations` steps, half of them evenly spaced, half in the logarithm; 0, an epoch and the last."""
    half = settings.evaluations / 2
    even = np.linspace(0, steps, max(2, round(half)))
    log = np.geomspace(1, steps, max(1, round(half)))
    epoch = min(settings.steps_per_epoch(pairs), steps)
    return np.unique(np.round(np.concatenate([even, log, [epoch]])).astype(int)).tolist()


def _load(settings: Training) -> tuple[data.Pairs, data.Pairs]:
    """Training pairs and held-out pairs; subsets are the same for every seed."""
    train_pairs = _pairs(settings.data, settings.split, settings.limit)
    held_out = _pairs(settings.held_out_data or settings.data, settings.held_out, settings.pairs)
    for pairs, name in ((train_pairs, settings.split), (held_out, settings.held_out)):
        check(len(pairs) >= 2, f"{pairs.source!r}, split {name!r}, has fewer than 2 pairs. Give more.")
    return train_pairs, held_out


def _pairs(source: str, split: str | None, limit: int | None) -> data.Pairs:
    """Pairs of a source; many short runs in one process share them."""
    return _loaded(source, split, limit, _stamp(source))


@functools.lru_cache(maxsize=4)
def _loaded(source: str, split: str | None, limit: int | None, stamp: Any) -> data.Pairs:
    return data.load(source, split, limit=limit)


def _stamp(source: str) -> Any:
    """What changes when the files of a source do: their times, as far as they are seen at once."""
    if data.is_generated(source):
        return None
    path = Path(source)
    seen = [path, *(path / f"{name}.{kind}" for name in ("captions", "splits") for kind in ("tsv", "csv"))]
    times = tuple(p.stat().st_mtime_ns for p in seen if p.exists())
    return times or object()  # a pattern: nothing is seen, and nothing is shared


def _digests(settings: Training) -> dict[str, str]:
    """Digits that tell the content of files from other files of the same name: data, model and weights.

    Shapes and open_clip's own models are told by their names.
    """
    found: dict[str, str] = {}
    train_pairs, held_out = _load(settings)
    for name, pairs in (("data", train_pairs), ("held_out_data", held_out)):
        if not data.is_generated(pairs.source):
            found[name] = pairs.digest()
    if settings.labelled is not None and not data.is_generated(settings.labelled):
        found["labelled"] = evaluate.Labelled.of(settings.labelled).digest()
    for name, file in (("model", settings.model), ("pretrained", settings.pretrained)):
        if file is not None and Path(file).is_file():
            with open(file, "rb") as content:
                found[name] = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    return found


def _short(report: str, source: str) -> str:
    """A report that names its source without its folder, which differs from machine to machine."""
    return report if data.is_generated(source) else report.replace(source, Path(source).name)


def _plain(settings: Training) -> dict[str, Any]:
    """Settings for the record. Files are named without their folders, which differ from machine to machine."""
    config = dataclasses.asdict(settings)
    config["clamp"] = None if settings.clamp is None else list(settings.clamp)
    del config["checkpoint_seconds"]  # changes nothing in the record
    for name in ("data", "held_out_data", "labelled", "model", "pretrained"):
        if config[name] is not None and not data.is_generated(config[name]):
            config[name] = Path(config[name]).name
    return config


def configuration(settings: Training, schedule: Schedule) -> dict[str, Any]:
    """What the record says of a run before its data are read; two runs that differ here are not the same."""
    return {"kind": "training", "schedule": to_config(schedule), "training": _plain(settings)}


def same_run(record: TrainingRecord, settings: Training, schedule: Schedule) -> bool:
    """Whether a record is one of this run: the same settings, on the same data, model and weights by their content.

    Records of earlier versions hold no digests; those are told by the names of their files.
    """
    config = json.loads(json.dumps(configuration(settings, schedule)))
    if any(record.config.get(key) != value for key, value in config.items()):
        return False
    return not record.config.get("digests") or _same(record.config, {**record.config, "digests": _digests(settings)})


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations are equal; a digest that only one of them has says nothing."""
    a, b = one.get("digests", {}), other.get("digests", {})
    rest = [{k: v for k, v in config.items() if k != "digests"} for config in (one, other)]
    return rest[0] == rest[1] and all(a[name] == b[name] for name in a.keys() & b.keys())


def _earlier(path: Path, settings: Training, schedule: Schedule) -> TrainingRecord | None:
    """The record at `path` if its run has ended, None if it is to go on. Raises `FlowsimError` for another run's."""
    found = load_result(path)
    check(
        same_run(found, settings, schedule),
        f"{str(path)!r} holds another run. Choose another name or folder, or remove the file (train: --force).",
    )
    return None if found.status.code is Status.UNFINISHED else found


@contextlib.contextmanager
def _writer(folder: str | None) -> Any:
    """A function that sends numbers to TensorBoard, or does nothing."""
    if folder is None:
        yield lambda numbers: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise FlowsimError("TensorBoard is not installed. Use pip install tensorboard, or leave it out.") from None
    try:
        writer = SummaryWriter(folder)
    except OSError as error:
        raise FlowsimError(
            f"Cannot write to the folder {folder!r}: {error.strerror or error}. Choose another for TensorBoard."
        ) from None
    with writer:

        def write(numbers: dict[str, float]) -> None:
            for name in ("loss", "temperature", "modality_gap", "images_per_second"):
                writer.add_scalar(name, numbers[name], int(numbers["step"]))

        yield write


def _memory(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {"peak_memory_bytes": float(torch.cuda.max_memory_allocated(device))}


def _versions(device: torch.device) -> dict[str, str]:
    import importlib.metadata

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {
        "flowsim": importlib.metadata.version("flowsim"), "torch": torch.__version__,
        "open_clip": open_clip.__version__, "accelerate": accelerate.__version__, "device": name,
    }  # fmt: skip
