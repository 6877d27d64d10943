"""A controller and a monitor in the trainers of Hugging Face and Lightning."""

import importlib
from typing import Any

from flowsim.errors import FlowsimError
from flowsim.torch.controller import TemperatureController
from flowsim.torch.monitor import GapMonitor


def trainer_callback(controller: TemperatureController | None = None, monitor: GapMonitor | None = None) -> Any:
    """A callback for `transformers.Trainer`: attaches the controller, resumes it, and closes the monitor at the end.

    Args:
        controller: The controller. In a run that resumes from a checkpoint it goes on at the trainer's step.
        monitor: The monitor, which watches the model: `monitor.watch(model)`.

    Returns:
        A `transformers.TrainerCallback`.

    Raises:
        FlowsimError: If transformers is not installed.
    """
    base = _package("transformers", "transformers").TrainerCallback

    class Flowsim(base):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if controller is None:
                return
            if not controller.attached:
                controller.attach(kwargs["optimizer"])
            if controller.step != state.global_step:
                controller.resume_at(state.global_step)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if monitor is not None:
                monitor.close()

    return Flowsim()


def lightning_callback(controller: TemperatureController | None = None, monitor: GapMonitor | None = None) -> Any:
    """A callback for a Lightning `Trainer`: attaches the controller, and keeps its state in checkpoints.

    Args:
        controller: The controller of the module's model.
        monitor: The monitor, which watches the model, `monitor.watch(model)`, or is called in `training_step`.

    Returns:
        A `lightning.pytorch.Callback`.

    Raises:
        FlowsimError: If Lightning is not installed.
    """
    base = _package("lightning.pytorch", "lightning").Callback

    class Flowsim(base):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            if controller is None or controller.attached:
                return
            if not trainer.optimizers:
                raise FlowsimError("The module has no optimizer. Return one from `configure_optimizers`.")
            controller.attach(trainer.optimizers[0])

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            if monitor is not None:
                monitor.close()

        def state_dict(self) -> dict[str, Any]:
            return {} if controller is None else controller.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            if controller is not None:
                controller.load_state_dict(state_dict)

    return Flowsim()


def _package(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise FlowsimError(f"This needs {name}, which is not installed. Use pip install 'flowsim[loops]'.") from None
