"""flowsim's schedules and metrics in your own training loop in PyTorch; needs PyTorch, not open_clip.

    controller = fs.torch.TemperatureController(model.logit_scale, "TS S3", total_steps=10_000).attach(optimizer)
    monitor = fs.torch.GapMonitor(every=50, to="run.nc", controller=controller)
    for images, texts in loader:
        image, text, beta = model(images, texts)  # unit rows, and exp(model.logit_scale)
        monitor(image, text)
        loss = clip_loss(*controller.swap(image, text), beta)
        optimizer.zero_grad(); loss.backward(); optimizer.step()

- `controller`: sets or trains the temperature; `policies`: policies evaluated on tensors
- `swaps`: swapped features; `device`: copies to a GPU
- `monitor`: measures features at hand; `metrics`: observables on tensors; `kernels`: kernel numbers
- `outputs`: where the numbers go
- `callbacks`: for the trainers of Hugging Face and Lightning

Modules are imported on first use.
"""

import importlib
from typing import TYPE_CHECKING, Any

from flowsim.errors import FlowsimError

if TYPE_CHECKING:
    from flowsim.torch.callbacks import lightning_callback, trainer_callback
    from flowsim.torch.controller import TemperatureController
    from flowsim.torch.kernels import kernel_numbers
    from flowsim.torch.metrics import measure
    from flowsim.torch.monitor import GapMonitor
    from flowsim.torch.swaps import swap

# No function has the name of its module, which would replace it once the module is loaded.
_HOME = {
    "GapMonitor": "monitor", "TemperatureController": "controller", "kernel_numbers": "kernels",
    "lightning_callback": "callbacks", "measure": "metrics", "swap": "swaps", "trainer_callback": "callbacks",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'flowsim.torch' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"flowsim.torch.{_HOME[name]}")
    except ModuleNotFoundError as error:
        raise FlowsimError(
            f"flowsim.torch needs {error.name}, which is not installed. Use pip install 'flowsim[clip]'."
        ) from None
    return getattr(module, name)


__all__ = [
    "GapMonitor",
    "TemperatureController",
    "kernel_numbers",
    "lightning_callback",
    "measure",
    "swap",
    "trainer_callback",
]
