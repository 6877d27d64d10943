"""The bridge: flowsim's schedules on real CLIP models (open_clip, PyTorch); extra `clip`.

    import flowsim as fs
    record = fs.clip.train(fs.clip.preset("smoke"), fs.schedules.get("TS S3"), "run.nc")

- `settings`: what a training run is, and the presets; `data`, `shapes`: where pairs come from
- `models`: open_clip models, weights loaded safely; `contrast`: temperature, swaps and loss on features
- `train`: the loop; `evaluate`: observables of a model
- `study`: the paper's experiment; `tables`: its outcome beside the paper's
"""

import importlib
from typing import TYPE_CHECKING, Any

from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.clip.evaluate import measure
    from flowsim.clip.settings import Training, preset
    from flowsim.clip.study import study
    from flowsim.clip.tables import Tables
    from flowsim.clip.train import train

_HOME = {
    "Tables": "tables", "Training": "settings", "measure": "evaluate", "preset": "settings", "study": "study",
    "train": "train",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowsim.clip' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"flowsim.clip.{_HOME[name]}"), name)
    except ModuleNotFoundError as error:
        raise FlowsimError(
            f"The bridge to CLIP needs {error.name}, which is not installed. Use pip install 'flowsim[clip]'."
        ) from None


__all__ = ["Tables", "Training", "measure", "preset", "study", "train"]
