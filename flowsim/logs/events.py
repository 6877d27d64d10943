"""Scalars in event files of TensorBoard."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.data.packages import package
from flowsim.errors import FlowsimError
from flowsim.logs.formats import register
from flowsim.logs.source import Source
from flowsim.logs.table import Builder, Logged, Table, number

#: Part of the name of every event file.
_MARK = ".tfevents."


def event_files(folder: Path) -> list[Path]:
    """The event files in a folder, in the order in which they were begun."""
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if _MARK in child.name and child.is_file())


def _is_events(source: Source) -> bool:
    if source.is_folder:
        return bool(_folders(source.path))
    # Length and checksum of the first record, which tells the version of the file.
    return b"brain.Event:" in source.head[:64]


def _folders(folder: Path) -> list[Path]:
    """The folders with event files in a folder: itself, else those within it."""
    if event_files(folder):
        return [folder]
    found = []
    for at, inner, files in os.walk(folder):
        inner.sort()
        if any(_MARK in name for name in files):
            found.append(Path(at))
        if len(found) > 20 or len(Path(at).relative_to(folder).parts) > 4:
            inner.clear()
    return found


def _scalar(value: Any, make: Any) -> float | None:
    """The number of a summary's value; None if it is an image, a text, a histogram."""
    if value.HasField("simple_value"):
        return float(value.simple_value)
    if not value.HasField("tensor") or any(size.size != 1 for size in value.tensor.tensor_shape.dim):
        return None
    try:
        array = make(value.tensor)
    except (TypeError, ValueError):
        return None
    return number(array.reshape(-1)[0]) if array.size == 1 and array.dtype.kind in "fiu" else None


def _scalars(files: list[Path]) -> Iterator[tuple[str, int, float]]:
    """Tag, step and value of the scalars in files, one by one."""
    loader = package("tensorboard.backend.event_processing.event_file_loader", "tensorboard", "logs")
    make = package("tensorboard.util.tensor_util", "tensorboard", "logs").make_ndarray
    for file in files:
        for event in loader.EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                found = _scalar(value, make)
                if found is not None:
                    yield value.tag, event.step, found


def pool_of(value: float | None) -> int | None:
    """A number of pairs; None if it is none."""
    return int(value) if value is not None and 0 < value < 2**53 else None


@register("tensorboard", _is_events, describes="TensorBoard events")
def read_events(source: Source, steps_per_epoch: int | None = None) -> Table:
    """Read scalars event by event. Tags "val/..." of open_clip count epochs, which are changed into steps."""
    files = [source.path]
    if source.is_folder:
        folders = _folders(source.path)
        if not folders:
            raise FlowsimError(f"{str(source.path)!r} holds no event files of TensorBoard. Give the folder of a run.")
        if len(folders) > 1:
            listed = ", ".join(str(folder.relative_to(source.path)) for folder in folders[:5])
            raise FlowsimError(f"{str(source.path)!r} holds event files of several runs: {listed}. Give one of them.")
        files = event_files(folders[0])
    builder, trained, guesses = Builder(), -1, set()
    try:
        for tag, step, value in _scalars(files):
            builder.add(tag, step, value)
            if tag == "train/scale":
                trained = step
            elif tag.startswith("val/") and step > 0 and trained >= 0:
                # The last step of every epoch is logged.
                guesses.add((trained + 1) / step)
    except FlowsimError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise FlowsimError(
            f"{str(source.path)!r} cannot be read as events of TensorBoard ({type(error).__name__}). Check the file."
        ) from None
    columns, notes = builder.columns(), []
    ours = {"train/scale", "train/batch_time"} <= columns.keys()
    held_out = [name for name in columns if name.startswith("val/")]
    if ours and held_out:
        if steps_per_epoch is None and len(guesses) == 1 and (guess := guesses.pop()).is_integer():
            steps_per_epoch = int(guess)
        if steps_per_epoch is None:
            notes.append("The steps of an epoch are not known, so that evaluations, which count epochs, were left out.")
        for name in held_out:
            logged = columns.pop(name)
            if steps_per_epoch is not None:
                columns[name] = Logged(logged.at * np.int64(steps_per_epoch), logged.values)
    found = Table(columns, in_steps=True, steps_per_epoch=steps_per_epoch, notes=notes, trainer="TensorBoard")
    if ours:
        found.trainer, found.learned = "open_clip", True
        pool = columns.pop("val/num_samples", None)
        found.pool = None if pool is None else pool_of(float(pool.values[-1]))
    return found
