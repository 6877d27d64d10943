"""`diagnose` and its result."""

import dataclasses
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from flowsim.base.checks import check, check_number, check_whole, checked_clamp, is_real, shown
from flowsim.base.html import table
from flowsim.data.arrays import read_named
from flowsim.doctor.case import Case, Track, case_of_record
from flowsim.doctor.finding import REGISTRY, Finding, names
from flowsim.errors import FlowsimError, unknown_name
from flowsim.logs import read_log
from flowsim.observables import open_embeddings
from flowsim.observables.checks import check_blocks, check_shapes, real_array
from flowsim.records.load import load_any
from flowsim.records.result import Result

PathLike: TypeAlias = str | os.PathLike[str]

#: Endings of files of embeddings or of weights.
_ARRAYS = (".npy", ".npz", ".safetensors", ".pt", ".pth", ".bin", ".h5", ".hdf5", ".zarr", ".zarr.zip", ".parquet")
#: The last part of the name of ν in a checkpoint.
_SCALE = "logit_scale"


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis:
    """The result of `diagnose`; `diagnosis["temperature-at-clamp"]` is a finding.

    Attributes:
        name: What was diagnosed.
        findings: Name -> finding of every check, in the order of the report.
    """

    name: str
    findings: dict[str, Finding]

    def __getitem__(self, name: str) -> Finding:
        """A finding by name; raises `FlowsimError` for an unknown one."""
        if name not in self.findings:
            raise unknown_name("check", name, self.findings)
        return self.findings[name]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.findings)

    @property
    def faults(self) -> list[str]:
        """Names of the faults that were found."""
        return [name for name, one in self.findings.items() if one.found and one.fault]

    @property
    def remarks(self) -> list[str]:
        """Names of what was found and is no fault."""
        return [name for name, one in self.findings.items() if one.found and not one.fault]

    @property
    def _title(self) -> str:
        unknown = sum(one.verdict == "cannot tell" for one in self.findings.values())
        count = f"{len(self.faults)} fault{'' if len(self.faults) == 1 else 's'} found"
        return f"{self.name}: {count}; {len(self.findings)} checks, {unknown} without the data that they need"

    def __repr__(self) -> str:
        lines = [self._title]
        for one in self.findings.values():
            if one.found:
                lines += [
                    f"  {'FAULT' if one.fault else 'remark'}  {one.name}: {one.title}", f"    {one.sentence}",
                    f"    Why: {one.reason}", f"    Try: {one.cure}",
                ]  # fmt: skip
        for verdict, head in (("not found", "Not found"), ("cannot tell", "Cannot tell")):
            some = [one for one in self.findings.values() if one.verdict == verdict]
            if some:
                width = max(len(one.name) for one in some)
                lines += [f"  {head}", *(f"    {one.name:<{width}}  {one.sentence}" for one in some)]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        order = sorted(self.findings.values(), key=lambda one: ("found", "not found", "cannot tell").index(one.verdict))
        rows = [(one.name, one.verdict, one.sentence, one.cure) for one in order]
        marked = [index for index, one in enumerate(order) if one.found and one.fault]
        return table(rows, ("check", "verdict", "in numbers", "try"), self._title, marked=marked)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data."""
        findings = [dataclasses.asdict(one) for one in self.findings.values()]
        return {"name": self.name, "faults": self.faults, "remarks": self.remarks, "findings": findings}


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
            - a checkpoint of weights with a `logit_scale` (.pt, .safetensors), of which nothing is unpickled;
            - embeddings: a file that `fs.observables.load_embeddings` reads, or (image, text), rows (n, d) of pairs.
        embeddings: Embeddings of training pairs at the end of the run, (image, text) or their file, if `source` has
            none. Records of flowsim hold them.
        temperature: τ of the embeddings, for checks of the temperature without a run.
        batch: Pairs in one loss, where it is not recorded.
        pool: Held-out pairs among which recall was measured, where it is not recorded.
        optimizer: Its name, e.g. "adamw", where it is not recorded.
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
            raise unknown_name("check", name, known)
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
        changes["adam"] = "adam" in optimizer.lower()
    if clamp is not None:
        changes |= {"clamp": checked_clamp(clamp), "clamp_known": True}
    case = _case(source, columns)
    if embeddings is not None:
        case = case.with_rows(_pairs(embeddings), True)
    if temperature is not None and case.temperature is None:
        case = dataclasses.replace(case, temperature=Track(np.zeros(1), np.array([float(temperature)])))
    case = dataclasses.replace(case, **{name: value for name, value in changes.items() if value is not None})
    return Diagnosis(case.name, {name: REGISTRY[name].find(case) for name in known if name in wanted})


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
    if path.name.lower().endswith(_ARRAYS) or (path.is_dir() and any(path.rglob("*.npy"))):
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
    """Weights if the file holds a `logit_scale`, else embeddings."""
    if path.suffix.lower() in (".safetensors", ".pt", ".pth", ".bin"):
        held = read_named(path)
        scale = [name for name in held if name.rpartition(".")[2] == _SCALE]
        if scale:
            return _case_of_weights(held, scale[0], path.name)
    return Case(path.name).with_rows(_pairs(path), False)


def _case_of_weights(held: Mapping[str, np.ndarray], scale: str, name: str) -> Case:
    raw = np.asarray(held[scale])
    check(raw.size == 1 and is_real(raw), f"{name}: {scale!r} must be one number, but has shape {raw.shape}.")
    value, bad, kinds = float(raw.reshape(())), [], set()
    for key in held:
        array = held[key]
        if is_real(array) and array.dtype.kind not in "iu":
            kinds.add(str(array.dtype))
            if not np.isfinite(np.asarray(array, np.float32)).all():
                bad.append(key)
    beta = math.exp(min(max(value, -700.0), 700.0))
    tau = Track(np.zeros(1), np.array([1 / beta])) if math.isfinite(value) else None
    half = kinds <= {"float16", "bfloat16"} and len(held) > 1
    weights = {"raw_temperature": value, "dtype": str(raw.dtype), "not_finite": bad, "all_half": half}
    return Case(name, temperature=tau, weights=weights)


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
