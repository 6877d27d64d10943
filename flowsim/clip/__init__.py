"""Train real CLIP models (open_clip, PyTorch) with flowsim's schedules; needs the extra `clip`.

    import flowsim as fs
    record = fs.clip.train(fs.clip.preset("smoke"), fs.schedules.get("TS S3"), "run.nc")

- `settings`: the settings of a training run, and presets; `data`: sources of pairs
- `models`: open_clip models, weights loaded safely; `contrast`: temperature, swaps and loss on features
- `training`: the public function; `learner`: one step; `loop`, `plan`, `record`, `checkpoint`: all steps of a run;
  `identity`: whether two runs are the same; `session`: devices and processes; `memory`: that of a GPU
- `kernels`: tangent kernels of the towers; `tangent`: how they are measured; `towers`: towers as functions of weights;
  `kernel_studies`: what kernels explain of many runs
- `stacked`: many runs in one program; `stack`: one step of all of them
- `inputs`: what a run reads; `locked`: frozen image towers
- `embed`, `evaluate`, `labelled`: observables of a model; `frozen`, `stored`: files of its features
- `studies`: the paper's experiment; `tables`, `figures`: its results next to the paper's

Modules are imported on first use; `data` does not need PyTorch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.clip import data, figures
    from flowsim.clip.evaluate import measure
    from flowsim.clip.frozen import features
    from flowsim.clip.kernel_studies import kernel_study
    from flowsim.clip.kernels import kernel
    from flowsim.clip.settings import Training, preset
    from flowsim.clip.studies import early_changes, study
    from flowsim.clip.tables import Tables
    from flowsim.clip.training import train

# No function has the name of its module, which would replace it once the module is loaded.
_HOME = {
    "Tables": "tables", "Training": "settings", "early_changes": "studies", "features": "frozen", "kernel": "kernels",
    "kernel_study": "kernel_studies", "measure": "evaluate", "preset": "settings", "study": "studies",
    "train": "training",
}  # fmt: skip
_MODULES = ("data", "figures")


def __getattr__(name: str) -> Any:
    if name not in _HOME and name not in _MODULES:
        raise AttributeError(f"module 'flowsim.clip' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"flowsim.clip.{_HOME.get(name, name)}")
    except ModuleNotFoundError as error:
        raise FlowsimError(
            f"The bridge to CLIP needs {error.name}, which is not installed. Use pip install 'flowsim[clip]'."
        ) from None
    return module if name in _MODULES else getattr(module, name)


__all__ = [
    "Tables", "Training", "data", "early_changes", "features", "figures", "kernel", "kernel_study", "measure",
    "preset", "study", "train",
]  # fmt: skip
