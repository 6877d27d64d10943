"""Identity of runs: two runs are the same if their settings and the contents of data, model and weights are equal."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from flowsim.base.paths import to_config
from flowsim.clip import data
from flowsim.clip.labelled import Labelled
from flowsim.clip.pools import load_pools
from flowsim.clip.settings import Training
from flowsim.clip.stored import images_digest
from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule
from flowsim.records.load import load_result
from flowsim.records.result import TrainingRecord
from flowsim.records.status import Status


def configuration(settings: Training, schedule: Schedule) -> dict[str, Any]:
    """The part of a record that is known before its data are read; runs that differ here are not the same."""
    return {"kind": "training", "schedule": to_config(schedule), "training": _plain(settings)}


def same_run(record: TrainingRecord, settings: Training, schedule: Schedule) -> bool:
    """Whether a record belongs to this run: the same settings, and equal contents of data, model and weights.

    Records of earlier versions hold no digests; for them only the names of the files are compared.
    """
    config = json.loads(json.dumps(configuration(settings, schedule)))
    if any(record.config.get(key) != value for key, value in config.items()):
        return False
    if not record.config.get("digests"):
        return True
    return same_configuration(record.config, {**record.config, "digests": digests(settings)})


def same_configuration(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two configurations are equal; digests that only one of them has are ignored."""
    a, b = one.get("digests", {}), other.get("digests", {})
    rest = [{k: v for k, v in config.items() if k != "digests"} for config in (one, other)]
    return rest[0] == rest[1] and all(a[name] == b[name] for name in a.keys() & b.keys())


def ended_record(path: Path, settings: Training, schedule: Schedule) -> TrainingRecord | None:
    """The record at `path` if its run has ended, None if it can be resumed; raises `FlowsimError` for another run."""
    found = load_result(path)
    if not isinstance(found, TrainingRecord) or not same_run(found, settings, schedule):
        raise FlowsimError(
            f"{str(path)!r} holds another run. Choose another name or folder, or remove the file. "
            "`train` replaces it with `force=True`."
        )
    return None if found.status.code is Status.UNFINISHED else found


def digests(settings: Training) -> dict[str, str]:
    """Digests of the contents of data, model and weights, which distinguish files of the same name.

    Generated shapes and open_clip's own models have none, because their names identify them.
    """
    found: dict[str, str] = {}
    training, held_out = load_pools(settings)
    for name, pairs in (("data", training), ("held_out_data", held_out)):
        if not data.is_generated(pairs.source):
            found[name] = pairs.digest()
    if settings.labelled is not None and not data.is_generated(settings.labelled):
        found["labelled"] = Labelled.of(settings.labelled).digest()
    for name, file in (("model", settings.model), ("pretrained", settings.pretrained)):
        if file is not None and Path(file).is_file():
            with open(file, "rb") as content:
                found[name] = hashlib.file_digest(content, "sha256").hexdigest()[:16]
    if isinstance(settings.locked_image, str):
        found["locked_image"] = images_digest(settings.locked_image)
    return found


def short_report(pairs: data.Pairs) -> str:
    """The report of pairs, with the source named without its folder, which differs between machines."""
    report, source = pairs.report(), pairs.source
    return report if data.is_generated(source) else report.replace(source, Path(source).name)


def _plain(settings: Training) -> dict[str, Any]:
    """Settings for the record. Files are named without their folders, which differ between machines."""
    config = dataclasses.asdict(settings)
    config["clamp"] = None if settings.clamp is None else list(settings.clamp)
    del config["checkpoint_seconds"]  # has no effect on the record
    if not settings.locked_image:
        del config["locked_image"]  # as in the records of earlier versions
    if not settings.kernels:
        for name in ("kernels", "kernel_pairs", "kernel_directions"):
            del config[name]
    for name in ("data", "held_out_data", "labelled", "model", "pretrained", "locked_image"):
        is_source = name not in ("model", "pretrained", "locked_image")
        if isinstance(config.get(name), str) and not (is_source and data.is_generated(config[name])):
            config[name] = Path(config[name]).name
    return config
