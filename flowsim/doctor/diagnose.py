"""`diagnose`: what a source is, and all checks of it."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flowsim.base.checks import check, check_choice, check_number, check_whole, checked_clamp, shown
from flowsim.doctor.case import Case, Track, case_of_record
from flowsim.doctor.diagnosis import Diagnosis
from flowsim.doctor.finding import REGISTRY, names
from flowsim.doctor.weights import WEIGHTS, case_of_weights, weights_in
from flowsim.errors import FlowsimError, unknown_name
from flowsim.logs import read_log
from flowsim.observables import open_embeddings
from flowsim.observables.checks import check_blocks, check_shapes, real_array
from flowsim.records.load import load_any
from flowsim.records.result import Result

PathLike: TypeAlias = str | os.PathLike[str]

#: Endings of files of embeddings or of weights.
_ARRAYS = (*WEIGHTS, ".npy", ".npz", ".h5", ".hdf5", ".zarr", ".zarr.zip", ".parquet")
#: Names of optimizers, and whether their steps are bounded by the learning rate as Adam's are.
_OPTIMIZERS: dict[str, bool] = {
    **dict.fromkeys(("adam", "adamw", "nadam", "nadamw", "radam", "adamax"), True),
    **dict.fromkeys(("sgd", "lion", "lamb", "lars", "adagrad", "adadelta", "adafactor", "rmsprop", "muon"), False),
    **dict.fromkeys(("shampoo", "other"), False),
}


def diagnose(
    source: Result | PathLike | tuple[Any, Any],
    *,
    embeddings: PathLike | tuple[Any, Any] | None = None,
    temperature: float | None = None,
    batch: int | None = None,
    pool: int | None = None,
    optimizer: str | None = None,
    learned: bool | None = None,
    clamp: tuple[float, float] | None = None,
    columns: Mapping[str, str] | None = None,
    only: Collection[str] | None = None,
) -> Diagnosis:
    """Look for the known faults of contrastive training: verdicts with their numbers, the reason, and what to try.

    Args:
        source: One of

            - a record or simulation, or its file (.nc);
            - a log that `fs.read_log` reads: of open_clip, Weights & Biases, the Hugging Face Trainer, Lightning, or
              any table;
            - a checkpoint (.safetensors, .pt, .bin, .ckpt), or the folder of a model, of which nothing is unpickled;
            - embeddings: a file that `fs.observables.load_embeddings` reads, or (image, text), rows (n, d) of pairs.
        embeddings: Embeddings of training pairs at the end of the run, (image, text) or their file, if `source` has
            none. Records of flowsim hold them.
        temperature: τ of the embeddings, for checks of the temperature without a run.
        batch: Pairs in one loss, where it is not recorded.
        pool: Held-out pairs among which recall was measured, where it is not recorded.
        optimizer: Its name, e.g. "adamw", where it is not recorded; "other" for one that is not known.
        learned: False if the temperature was fixed or scheduled on purpose; None if a record tells.
        clamp: (τ_min, τ_max), where it is not recorded. Default: (0.01, 1), that of CLIP and open_clip.
        columns: Names of the columns of a log; see `fs.read_log`.
        only: Names of the checks. Default: all.

    Returns:
        A finding of every check: "found", "not found", or "cannot tell" with what is missing.

    Raises:
        FlowsimError: If the source is none of these, a file cannot be read, or a check is unknown.

    Examples:
        >>> import flowsim as fs
        >>> settings = fs.heads.Training(data="emoji", hidden=None, dim=32, steps=60, batch_size=256, evaluations=4)
        >>> record = fs.heads.train(settings, fs.Schedule(fs.temperature.Learnable(0.07, lr_ratio=0.0)))
        >>> fs.diagnose(record).faults
        ['temperature-not-trained']
    """
    known = names()
    listed = [only] if isinstance(only, str) else only
    if listed is not None and not (isinstance(listed, Collection) and all(isinstance(one, str) for one in listed)):
        raise FlowsimError(f"Argument `only` must be names of checks, but is {shown(only)}. Leave it out for all.")
    wanted = known if listed is None else tuple(listed)
    for name in wanted:
        if name not in known:
            raise FlowsimError(f"{unknown_name('check', name, known)} All checks: {', '.join(known)}.")
    for name, value in (("batch", batch), ("pool", pool)):
        if value is not None:
            check_whole(name, value, 2, "Use the number of pairs.")
    if temperature is not None:
        check_number("temperature", temperature, positive=True, cure="Use e.g. 0.07.")
    changes: dict[str, Any] = {"batch": batch, "pool": pool, "learned": learned}
    if optimizer is not None:
        check(
            isinstance(optimizer, str), f"Argument `optimizer` must be a name, but is {shown(optimizer)}. Use 'adamw'."
        )
        check_choice("optimizer", optimizer.lower(), _OPTIMIZERS)
        changes["adam"] = _OPTIMIZERS[optimizer.lower()]
    if clamp is not None:
        changes |= {"clamp": checked_clamp(clamp), "clamp_known": True}
    case = _case(source, columns)
    if embeddings is not None:
        case = case.with_rows(_pairs(embeddings), True)
    if temperature is not None and case.temperature is None:
        case = dataclasses.replace(case, temperature=Track(np.zeros(1), np.array([float(temperature)])))
    case = dataclasses.replace(case, **{name: value for name, value in changes.items() if value is not None})
    return Diagnosis(case.name, {name: REGISTRY[name].find(case) for name in known if name in wanted}, case.read)


def _case(source: Any, columns: Mapping[str, str] | None) -> Case:
    if isinstance(source, Result):
        return case_of_record(source, "record")
    if isinstance(source, tuple):
        return Case("embeddings").with_rows(_pairs(source), False)
    if not isinstance(source, (str, os.PathLike)):
        raise FlowsimError(
            f"Expected a record, a path, or (image, text), but got {shown(source)}. Use e.g. fs.diagnose('out.log')."
        )
    path = Path(source)
    if path.suffix.lower() == ".nc":
        found = load_any(path)
        check(
            len(found) == 1,
            f"{str(path)!r} holds {len(found)} runs. Diagnose one of them: fs.diagnose(fs.load_results(path)[name]).",
        )
        return case_of_record(next(iter(found.values())), path.name)
    if path.is_dir():
        return _case_of_folder(path, columns)
    if path.name.lower().endswith(_ARRAYS):
        return _case_of_arrays(path)
    if columns is None and path.suffix.lower() in (".csv", ".tsv"):
        try:
            return case_of_record(read_log(path), path.name)
        except FlowsimError as no_log:
            try:
                return Case(path.name).with_rows(_pairs(path), False)
            except FlowsimError:
                raise no_log from None
    return case_of_record(read_log(path, columns=columns), path.name)


def _case_of_arrays(path: Path) -> Case:
    """Weights, or embeddings and perhaps their temperature."""
    if not path.name.lower().endswith(WEIGHTS):
        return Case(path.name).with_rows(_pairs(path), False)
    if (weights := case_of_weights([path], path.name)) is not None:
        return weights
    try:
        return Case(path.name).with_rows(_pairs(path), False)
    except FlowsimError as error:
        raise FlowsimError(
            f"{error} It is no checkpoint either: it holds neither a `logit_scale` nor layers."
        ) from None


def _case_of_folder(path: Path, columns: Mapping[str, str] | None) -> Case:
    """The log in a folder; else weights or embeddings."""
    try:
        return case_of_record(read_log(path, columns=columns), path.name)
    except FlowsimError as no_log:
        files = weights_in(path)
        if files and (weights := case_of_weights(files, f"{path.name}/{files[0].name}")) is not None:
            return weights
        if any(path.rglob("*.npy")):
            return _case_of_arrays(path)
        raise no_log from None


def _pairs(source: Any) -> tuple[np.ndarray, np.ndarray]:
    """Rows of pairs as they are stored; raises `FlowsimError` if these are none, or not finite."""
    if isinstance(source, tuple):
        check(len(source) == 2, f"Embeddings must be (image, text), but there are {len(source)} arrays. Give two.")
        given = source
    else:
        given = open_embeddings(source)
    arrays = {name: real_array(name, rows) for name, rows in zip(("image", "text"), given, strict=True)}
    check_shapes(arrays, pairs=True)
    for name, rows in arrays.items():
        check_blocks(name, rows)
    return arrays["image"], arrays["text"]
