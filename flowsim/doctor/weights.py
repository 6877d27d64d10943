"""The case of a checkpoint: its temperature, and which of its tensors are not finite."""

import math
import re
from collections import ChainMap
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from flowsim.base.checks import check, is_real
from flowsim.data.arrays import read_named, usual_pairs
from flowsim.doctor.case import USUAL_CLAMP, Case, Track
from flowsim.logs.names import temperature_kind, words

#: Endings of files of weights, which may also hold embeddings.
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
#: What a column of a log of each kind says, as ν of the number x.
_RAW = {
    "logit_scale": lambda x: x,
    "raw_temperature": lambda x: x,
    "log_temperature": lambda x: -x,
    "inverse_temperature": math.log,
    "temperature": lambda x: math.log(x if x >= 5 else 1 / x),
}
#: Models that follow the trained one.
_COPY = re.compile(r"(?<![a-z])(?:ema|teacher|momentum|m|target|frozen|old)(?![a-z])", re.IGNORECASE)
_READ_AS = {
    "logit_scale": "ν", "raw_temperature": "ν", "log_temperature": "ln τ", "inverse_temperature": "β",
    "temperature": "τ",
}  # fmt: skip


def weights_in(folder: Path) -> list[Path]:
    """The files of the weights in a folder: of a model of Hugging Face, or the last checkpoint of open_clip."""
    for pattern in ("model.safetensors", "model-*-of-*.safetensors", "pytorch_model.bin", "pytorch_model-*-of-*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found
    epochs = {
        int(found[1]): file for file in folder.glob("epoch_*.pt") if (found := re.search(r"_(\d+)\.pt$", file.name))
    }
    latest = folder / "epoch_latest.pt"
    return [epochs[max(epochs)]] if epochs else [latest] if latest.is_file() else []


def case_of_weights(files: list[Path], name: str) -> Case | None:
    """The case of a checkpoint in one or more files; None if these hold no weights."""
    opened = [read_named(file) for file in files]
    held: Mapping[str, np.ndarray] = opened[0] if len(opened) == 1 else ChainMap(*opened)  # pyright: ignore
    scales = _temperatures(held)
    if not any(key.rpartition(".")[2] in ("weight", "bias") for key in held) and (
        not scales or (len(opened) == 1 and usual_pairs(opened[0]))
    ):
        return None
    bad, kinds = [], set()
    for key in held:
        array = held[key]
        if is_real(array) and array.dtype.kind not in "iu":
            kinds.add(str(array.dtype))
            if not np.isfinite(np.asarray(array, np.float32)).all():
                bad.append(key)
    half = kinds <= {"float16", "bfloat16"} and len(held) > 1
    weights = {"raw_temperature": None, "dtype": None, "not_finite": bad, "all_half": half}
    # Sigmoid losses, which also have a bias, are not clamped.
    clamp = None if any(key.rpartition(".")[2] == "logit_bias" for key in held) else USUAL_CLAMP
    if not scales:
        return Case(name, weights=weights, read=("The checkpoint holds no temperature under a name that is known.",))
    key, kind = scales[0]
    raw = np.asarray(held[key])
    check(is_real(raw), f"{name}: {key!r} must be a number, but is of dtype {raw.dtype}. Save it as float32.")
    value = float(raw.reshape(()))
    positive = kind not in ("temperature", "inverse_temperature")
    nu = _RAW[kind](value) if math.isfinite(value) and (positive or value > 0) else math.nan
    tau = Track(np.zeros(1), np.array([math.exp(min(max(-nu, -700.0), 700.0))])) if math.isfinite(nu) else None
    weights |= {"raw_temperature": nu if tau is not None else None, "dtype": str(raw.dtype)}
    read = f"The temperature is {key!r}, read as {_READ_AS[kind]}"
    others = ", ".join(repr(other) for other, _ in scales[1:])
    read += f"; there are others: {others}." if others else "."
    return Case(name, temperature=tau, clamp=clamp, weights=weights, read=(read,))


def _temperatures(held: Mapping[str, np.ndarray]) -> list[tuple[str, str]]:
    """Names of temperatures with their kinds: `logit_scale` before others, short names first, and copies last."""
    found = []
    for key in held:
        kind = temperature_kind(words(key.rpartition(".")[2])[1])
        # Layers of attention may have scales of their own, one for each head.
        if kind is not None and np.size(held[key]) == 1:
            found.append((bool(_COPY.search(key)), list(_RAW).index(kind), len(key), key, kind))
    return [(key, kind) for *_, key, kind in sorted(found)]
