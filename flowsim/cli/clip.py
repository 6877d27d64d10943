"""`flowsim clip train | measure | study | early`: the commands of the bridge (extra `clip`)."""

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from flowsim.cli import (
    EXIT_BAD_INPUT,
    Command,
    Flag,
    _choice,
    _hint,
    _number,
    _print_json,
    _say,
    _summary,
    _text,
    _whole,
    check_writable_file,
    check_writable_folder,
)
from flowsim.errors import FlowsimError, unknown_name

if TYPE_CHECKING:
    from flowsim.clip.settings import Training

_PRESETS = ("smoke", "laptop", "small-gpu", "paper")


@dataclasses.dataclass(frozen=True)
class _Settings:
    """Options that say what is trained on what; those that are not given are the preset's."""

    preset: Annotated[str, _choice("--preset", _PRESETS)] = "smoke"
    """Settings to start from: smoke (generated shapes, seconds), laptop, small-gpu, paper."""
    model: Annotated[str | None, _text("--model", "NAME|FILE.json"), _hint()] = None
    """open_clip model (RN50, ViT-B-32, ...), or a model configuration in its form."""
    pretrained: Annotated[str | None, _text("--pretrained", "TAG|FILE"), _hint()] = None
    """Weights to start from: a tag of open_clip, or a file."""
    data: Annotated[str | None, _text("--data", "SOURCE"), _hint()] = None
    """Folder with images or tars and captions.tsv, WebDataset, COCO captions JSON, or shapes:KEY=VALUE,..."""
    held_out_data: Annotated[str | None, _text("--held-out-data", "SOURCE"), _hint()] = None
    """Another source for evaluation; then all of both sources is used."""
    limit: Annotated[int | None, _whole("--limit", "2048"), _hint()] = None
    """Use this many training pairs."""
    epochs: Annotated[float | None, _number("--epochs", "10"), _hint()] = None
    """Passes over the training pairs."""
    steps: Annotated[int | None, _whole("--steps", "1000"), _hint()] = None
    """Optimizer steps, instead of epochs."""
    batch_size: Annotated[int | None, _whole("--batch-size", "64"), _hint()] = None
    """Pairs of one loss, over all devices."""
    accumulate: Annotated[int | None, _whole("--accumulate", "1"), _hint()] = None
    """Losses averaged before a step; each has its own negatives, so this is not a larger batch."""
    optimizer: Annotated[str | None, _choice("--optimizer", ("adamw", "sgd")), _hint()] = None
    """Optimizer."""
    lr: Annotated[float | None, _number("--lr", "1e-3"), _hint()] = None
    """Largest learning rate."""
    precision: Annotated[str | None, _choice("--precision", ("fp32", "bf16")), _hint()] = None
    """Precision of the model; the loss is always fp32."""
    clamp: Annotated[tuple[float, ...] | None, conf.arg(metavar="MIN MAX", help_behavior_hint="")] = None
    """Bounds of a learnable temperature, e.g. 0.01 1; `--clamp 0 0` takes them away."""
    pairs: Annotated[int | None, _whole("--pairs", "512"), _hint()] = None
    """Pairs that an evaluation embeds."""
    threads: Annotated[int | None, _whole("--threads", "1"), _hint()] = None
    """Threads of one run on a CPU."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    changes: Annotated[
        conf.UseAppendAction[tuple[Annotated[str, _text("--set", "NAME=VALUE")], ...]],
        conf.arg(name="set", help_behavior_hint="(repeatable)"),
    ] = ()
    """Any other setting, e.g. warmup=0.1, image_size=64, augment=centre, weight_decay=0.2."""

    def _training(self, **more: Any) -> "Training":
        settings_ = bridge("settings")
        settings: Training = settings_.preset(self.preset)
        names = (
            "model", "pretrained", "data", "held_out_data", "limit", "epochs", "batch_size", "accumulate", "optimizer",
            "lr", "precision", "pairs", "threads",
        )  # fmt: skip
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.epochs is not None:
            given["steps"] = None
        if self.steps is not None:
            given["steps"] = self.steps
        if self.held_out_data is not None:
            given |= {"split": None, "held_out": None}
        if self.clamp is not None:
            if len(self.clamp) != 2:
                raise FlowsimError(
                    f"Option `--clamp` takes two numbers, but got {len(self.clamp)}. Use --clamp 0.01 1."
                )
            given["clamp"] = None if not any(self.clamp) else self.clamp
        for change in self.changes:
            name, value = parse_setting(settings, change)
            given[name] = value
        if self.preset != "smoke" and "data" not in given:
            raise FlowsimError(f"The preset {self.preset!r} brings no data. Add --data FOLDER, or --data shapes.")
        return settings.replace(**given, **more)


def parse_setting(settings: "Training", text: str) -> tuple[str, Any]:
    """(name, value) of NAME=VALUE, converted to the kind of the setting."""
    name, equals, value = text.partition("=")
    kinds = {f.name: str(f.type) for f in dataclasses.fields(settings)}
    if name not in kinds:
        raise unknown_name("setting", name, kinds)
    if name == "seed":
        raise FlowsimError("Setting `seed` has an option of its own. Use --seed (train), --seeds or --count.")
    kind = kinds[name]
    if not equals:
        raise FlowsimError(f"Option `--set` takes NAME=VALUE, but got {text!r}. Use e.g. --set warmup=0.1.")
    if "None" in kind and value.lower() == "none":
        return name, None
    if "bool" in kind:
        if value.lower() not in ("true", "false"):
            raise FlowsimError(f"Setting `{name}` must be true or false, but is {value!r}.")
        return name, value.lower() == "true"
    if "tuple" in kind:
        raise FlowsimError(f"Setting `{name}` has an option of its own. Use --{name}.")
    for convert in (int, float):
        if convert.__name__ in kind:
            try:
                return name, convert(value)
            except ValueError:
                if "str" not in kind:
                    wanted = "a whole number" if convert is int else "a number"
                    raise FlowsimError(f"Setting `{name}` must be {wanted}, but is {value!r}.") from None
    return name, value


def bridge(module: str) -> Any:
    """A module of `flowsim.clip`; a sentence if PyTorch or open_clip is missing."""
    import importlib

    # The GPU belongs to PyTorch here; JAX only measures.
    if "jax" not in sys.modules:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    try:
        for package in ("torch", "torchvision", "open_clip", "accelerate"):
            importlib.import_module(package)
    except ImportError as error:
        raise FlowsimError(
            f"The bridge to CLIP needs {error.name}, which is not installed. Use pip install 'flowsim[clip]'."
        ) from None
    return importlib.import_module(f"flowsim.clip.{module}")


@dataclasses.dataclass(frozen=True)
class Train(_Settings):
    """Train a CLIP model under a schedule; the record is a result like that of a simulation.

    Example: flowsim clip train --preset smoke --schedule "TS S3" --out run.nc. The same command goes on where it was
    stopped. `accelerate launch -m flowsim clip train ...` uses several GPUs.
    """

    schedule: Annotated[str, _text("--schedule", "NAME|FILE.json"), _hint("(default: Baseline)")] = "Baseline"
    """Schedule of the paper by name, or a JSON file: temperature and swap."""
    seed: Annotated[int, _whole("--seed", "0")] = 0
    """Seed of weights, batches, crops and swaps."""
    out: Annotated[str, _text("--out", "RUN.nc"), _hint("(default: run.nc)")] = "run.nc"
    """The record, written at each evaluation; a checkpoint lies beside it until the run is finished."""
    weights: Annotated[str | None, _text("--weights", "FILE.pt"), _hint()] = None
    """Save the final weights; open_clip reads them."""
    tensorboard: Annotated[str | None, _text("--tensorboard", "DIR"), _hint()] = None
    """Also write the numbers for TensorBoard."""
    force: Flag = False
    """Start again, over a record that is there."""
    json: Flag = False
    """Status and final observables as JSON on stdout."""

    def run(self) -> int:
        check_writable_file(Path(self.out), ".nc")
        from flowsim.model import schedules

        schedule = schedules.load(self.schedule)
        settings = self._training(seed=self.seed)
        train = bridge("train").train
        first = os.environ.get("RANK", "0") == "0"
        with _bars() if first else contextlib.nullcontext(_lines()) as heard:
            record = train(
                settings, schedule, self.out, cpu=self.cpu, force=self.force, weights=self.weights,
                tensorboard=self.tensorboard, progress=lambda numbers: heard(self.schedule, numbers),
            )  # fmt: skip
        if not first:
            return 0
        if self.json:
            _print_json(_summary(record))
        else:
            print(record)
        sys.stdout.flush()
        data = record.config["data"]
        if data["skipped"] or data["held_out_skipped"]:
            _say(f"{data['report']} Held out: {data['held_out_report']}")
        if record.status.ok:
            _say(f"Saved {self.out}.")
            return 0
        _say(f"{record.status.sentence} What was measured before is in {self.out}.")
        return EXIT_BAD_INPUT


@dataclasses.dataclass(frozen=True)
class Measure:
    """Embed pairs with a model and print every observable, retrieval, margins, and accuracies on labelled images.

    Example: flowsim clip measure --model ViT-B-32 --pretrained openai --data captions_val2017.json --pairs 5000
    """

    model: Annotated[str, _text("--model", "NAME|FILE.json"), _hint("(default: flowsim-vit-64)")] = "flowsim-vit-64"
    """open_clip model, or a model configuration."""
    pretrained: Annotated[str | None, _text("--pretrained", "TAG|FILE"), _hint("(default: random weights)")] = None
    """Weights: a tag of open_clip, or a file."""
    data: Annotated[str, _text("--data", "SOURCE"), _hint("(default: shapes)")] = "shapes"
    """Where the pairs come from; see flowsim clip train --help."""
    split: Annotated[str | None, _text("--split", "NAME"), _hint("(default: test if there is one)")] = None
    """Split of the source."""
    pairs: Annotated[int, _whole("--pairs", "512")] = 512
    """Pairs to embed: the retrieval pool. Of more they are drawn at random, always the same."""
    image_size: Annotated[int | None, _whole("--image-size", "224"), _hint()] = None
    """Pixels; default the model's."""
    temperature: Annotated[float | None, _number("--temperature", "0.01"), _hint("(default: that of the weights)")] = (
        None
    )
    """Temperature for loss and softmax."""
    labelled: Annotated[str | None, _text("--labelled", "SOURCE"), _hint()] = None
    """Labelled images for zero-shot (split test) and linear probe (train and test): folders of classes
    (train/dog/1.jpg), WebDataset with .cls (classnames.txt names classes that are numbers), or shapes."""
    template: Annotated[str, _text("--template", "TEXT"), _hint("(default: a photo of a {})")] = "a photo of a {}"
    """Prompt of a class."""
    out: Annotated[str | None, _text("--out", "ROWS.npz"), _hint()] = None
    """Save embeddings and numbers; `flowsim measure` reads the file."""
    figure: Annotated[str | None, _text("--figure", "FILE.png"), _hint()] = None
    """Draw both clouds (PCA) and the margins."""
    cpu: Flag = False
    """Use the CPU even if there is a GPU."""
    json: Flag = False
    """JSON on stdout."""

    def run(self) -> int:
        if self.out is not None:
            check_writable_file(Path(self.out), ".npz")
        measured = bridge("evaluate").measure(
            self.model, self.data, self.pretrained, split=self.split or _test_split(self.data), pairs=self.pairs,
            labelled=self.labelled, template=self.template, image_size=self.image_size, temperature=self.temperature,
            device="cpu" if self.cpu else None,
        )  # fmt: skip
        if self.out is not None:
            measured.save(self.out)
        if self.figure is not None:
            from flowsim import plot

            plot.save(plot.clouds(measured.image, measured.text), self.figure)
        if self.json:
            _print_json(measured.to_dict())
        else:
            print(measured)
        for path in (self.out, self.figure):
            if path is not None:
                _say(f"Saved {path}.")
        return 0


def _test_split(source: str) -> str | None:
    """ "test" for sources that have splits."""
    if source == "shapes" or source.startswith("shapes:"):
        return "test"
    return "test" if any((Path(source) / f"splits.{kind}").is_file() for kind in ("tsv", "csv")) else None


@dataclasses.dataclass(frozen=True)
class _Several(_Settings):
    """Options of commands that train several times."""

    out: Annotated[str, _text("--out", "DIR"), _hint("(default: clip-runs)")] = "clip-runs"
    """Folder of the records."""
    jobs: Annotated[int, _whole("--jobs", "2")] = 1
    """Runs at the same time."""


@dataclasses.dataclass(frozen=True)
class Study(_Several):
    """Train every method of the paper over seeds; tables beside the paper's, figures, rank correlations.

    Example: flowsim clip study --preset laptop --data PHOTOS --methods short --seeds 3 --jobs 2. The same command goes
    on where it was stopped; with --tables it only reads the records that are there.
    """

    methods: Annotated[str, _text("--methods", "all|short|NAME,..."), _hint("(default: all)")] = "all"
    """All presets of the paper, the nine of a short study, or a list."""
    seeds: Annotated[int, _whole("--seeds", "3")] = 3
    """How many seeds, from 0; one seed of all methods comes first."""
    tables: Flag = False
    """Train nothing: tables of the finished records in --out."""
    json: Flag = False
    """Tables and rank correlations as JSON on stdout."""

    def run(self) -> int:
        check_writable_folder(Path(self.out))
        study = bridge("study")
        names = study.methods(self.methods)
        if self.tables:
            records = study.finished(self.out)
        else:
            settings = self._training()
            with _bars(len(names) * self.seeds) as heard:
                records = study.study(settings, self.out, names, self.seeds, jobs=self.jobs, cpu=self.cpu, heard=heard)
        tables = bridge("tables").Tables.of(records)
        saved = bridge("study").report(records, self.out)
        if self.json:
            _print_json(tables.to_dict())
        else:
            print(tables)
        sys.stdout.flush()
        _say(f"Saved {', '.join(str(path) for path in saved)}.")
        return 0


@dataclasses.dataclass(frozen=True)
class Early(_Several):
    """The change of the gap over the first steps, from many initialisations (the paper's Figure 4b)."""

    count: Annotated[int, _whole("--count", "100")] = 100
    """Initialisations."""

    def run(self) -> int:
        check_writable_folder(Path(self.out))
        settings = self._training()
        steps = self.steps or 10
        with _bars(self.count) as heard:
            records = bridge("study").early_changes(
                settings, self.out, self.count, steps, jobs=self.jobs, cpu=self.cpu, heard=heard
            )
        print(f"Change of the gap over the first steps, {len(records)} initialisations")
        for name, changes in bridge("study").changes(records).items():
            good = [c for c in changes if math.isfinite(c)]
            if not good:
                print(f"  {name:<22} not finite in any")
                continue
            lost = f" ({len(changes) - len(good)} not finite)" if len(good) < len(changes) else ""
            print(
                f"  {name:<22} enlarged in {sum(c > 0 for c in good)}, mean {sum(good) / len(good):+.4f}, "
                f"from {min(good):+.4f} to {max(good):+.4f}{lost}"
            )
        _say(f"Saved {Path(self.out) / 'early.nc'}.")
        return 0


COMMANDS: dict[str, type[Command]] = {"train": Train, "measure": Measure, "study": Study, "early": Early}


@contextlib.contextmanager
def _bars(runs: int = 1) -> Iterator[Callable[[str, dict[str, float]], None]]:
    """Progress bars on stderr, one for each run at work; a line now and then where that is no terminal."""
    if not sys.stderr.isatty():
        yield _lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[numbers]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, Any] = {}
        whole = bars.add_task("runs", total=runs, numbers="") if runs > 1 else None

        def heard(name: str, numbers: dict[str, float]) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=numbers["steps"], numbers="")
            bars.update(tasks[name], completed=numbers["step"], numbers=_numbers(numbers))
            if numbers["step"] == numbers["steps"] and whole is not None:
                bars.advance(whole)
                bars.remove_task(tasks[name])

        yield heard


def _lines() -> Callable[[str, dict[str, float]], None]:
    said: dict[str, int] = {}

    def heard(name: str, numbers: dict[str, float]) -> None:
        tenth = int(10 * numbers["step"] / numbers["steps"])
        if said.get(name) != tenth:
            said[name] = tenth
            _say(f"{name}: step {numbers['step']:.0f} of {numbers['steps']:.0f}, {_numbers(numbers)}")

    return heard


def _numbers(numbers: dict[str, float]) -> str:
    return (
        f"loss {numbers['loss']:.3f}, τ {numbers['temperature']:.4f}, gap {numbers['modality_gap']:.3f}, "
        f"{numbers['images_per_second']:.0f} images/s"
    )
