"""The bridge: flowsim's schedules on real CLIP models (open_clip, PyTorch); extra `clip`.

    import flowsim as fs
    record = fs.clip.train(fs.clip.preset("smoke"), fs.schedules.get("TS S3"), "run.nc")

- `settings`: what a training run is, and the presets; `data`, `shapes`: where pairs come from
- `models`: open_clip models, weights loaded safely; `contrast`: temperature, swaps and loss on features
- `train`: the loop; `evaluate`: observables of a model; `study`: the paper's experiment
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowsim.clip.evaluate import measure
    from flowsim.clip.settings import Training, preset
    from flowsim.clip.study import study
    from flowsim.clip.train import train

_HOME = {"measure": "evaluate", "Training": "settings", "preset": "settings", "study": "study", "train": "train"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowsim.clip' has no attribute {name!r}")
    return getattr(importlib.import_module(f"flowsim.clip.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__


__all__ = ["Training", "measure", "preset", "study", "train"]
