"""Measure the modality gap and its companions on the features that a training loop has at hand."""

import json
import weakref
from collections.abc import Sequence
from typing import Any

import torch

from flowsim.base.checks import check, check_whole, shown
from flowsim.errors import FlowsimError
from flowsim.records.result import TrainingRecord
from flowsim.torch.controller import TemperatureController
from flowsim.torch.device import this_process
from flowsim.torch.kernels import kernel_numbers
from flowsim.torch.metrics import measure
from flowsim.torch.outputs import Book, features_of, split


class GapMonitor:
    """Measures features every k steps, and at the end: gap, relative gap, uniformity, margin, ranks and temperature.

    Call it with the features of a batch in every step, or let it `watch` a model. In the steps between it returns at
    once, and only the steps that are measured wait for a GPU. Features are detached, so nothing of the graph is kept;
    `close` measures those of the last step. Values are NaN where features are not finite. Numbers are in
    double precision, by the definitions of `fs.observables`, for at most `rows` pairs of the batch; margins, ranks and
    matched fractions depend on how many those are.

    With several processes of `torch.distributed` the first one measures and writes, the others do nothing: local
    features give the numbers of its share of the batch, gathered ones those of the batch.

    Args:
        every: k, the number of steps between two measurements.
        to: Where the numbers go: a path such as "run.nc" (a record that `fs.load` and `fs.compare` read; written at
            most every 30 seconds, and at the end), a SummaryWriter of TensorBoard, a run of wandb, a function of a
            dictionary, or a list of these. `record` has the numbers in any case.
        controller: The controller of the temperature, from which steps and temperatures are then taken.
        only: Names of the observables; None for all. See `fs.torch.measure`.
        rows: The most pairs to measure, the first ones of the batch.
        kernels: The model, to measure the kernel numbers `image_own`, `image_shared`, `text_own` and `text_shared` as
            well; see `fs.torch.kernel_numbers`. Then call the monitor before the backward pass. They cost two backward
            passes in each measured step, and need a single process.
        resume: Whether an existing file is continued. Rows that the run repeats are replaced; a run that begins again
            before the first row is refused, as it would replace all.

    Raises:
        FlowsimError: For arguments that are not allowed, or a file that exists or cannot be written.

    Examples:
        >>> import torch
        >>> import flowsim as fs
        >>> monitor = fs.torch.GapMonitor(every=10)
        >>> image, text = torch.eye(3)[:2], torch.eye(3)[1:]
        >>> for step in range(30):
        ...     measured = monitor(image, text, step, inverse_temperature=14.3)
        >>> monitor.record()["modality_gap"].values.round(3)
        array([0.707, 0.707, 0.707])
    """

    def __init__(
        self,
        every: int = 50,
        *,
        to: Any = None,
        controller: TemperatureController | None = None,
        only: Sequence[str] | None = None,
        rows: int = 1024,
        kernels: torch.nn.Module | None = None,
        resume: bool = False,
    ) -> None:
        check_whole("every", every, 1, "Use e.g. 50.")
        check_whole("rows", rows, 2, "Use e.g. 1024.")
        check(
            controller is None or isinstance(controller, TemperatureController),
            "Argument `controller` must be a TemperatureController. Pass that of the model, or leave it out.",
        )
        check(
            kernels is None or isinstance(kernels, torch.nn.Module),
            f"Argument `kernels` must be a model, but is {shown(kernels)}. Pass the model whose features are measured.",
        )
        # The backward pass of gathered features would wait for the other processes.
        check(kernels is None or this_process()[1] == 1, "Kernels need a single process. Leave `kernels` out.")
        self.kernels = kernels
        self.every, self.only, self.rows, self.controller = int(every), only, int(rows), controller
        measure(torch.eye(2), torch.eye(2), only)  # unknown names fail here, not in the loop
        path, self._outputs = split(to)
        first = this_process()[0] == 0
        self._book = Book(self._config(), path if first else None, resume)
        self._calls, self._latest = 0, -1
        # The batch of the last step, if that was not measured.
        self._last: tuple[Any, ...] | None = None
        # Also if the loop ends with an error.
        self._end = weakref.finalize(self, self._book.save)
        self._hooks: list[Any] = []

    def __call__(
        self,
        image: torch.Tensor,
        text: torch.Tensor,
        step: int | None = None,
        *,
        loss: torch.Tensor | float | None = None,
        inverse_temperature: torch.Tensor | float | None = None,
    ) -> dict[str, float] | None:
        """Measure a batch if its step is due.

        Args:
            image: Image features (n, d), in any floating dtype, of unit length or not.
            text: Text features (n, d).
            step: The step; None takes that of the controller, or counts the calls.
            loss: The loss of the batch, `train_loss` in the record. With gradient accumulation pass it before it is
                divided by the number of micro-batches.
            inverse_temperature: β, which multiplies the cosines in the loss: the output `logit_scale` of open_clip.
                None takes that of the controller.

        Returns:
            The values by name if the batch was measured, else None.

        Raises:
            FlowsimError: If the features do not fit, or if a resumed run begins again before the first row of its file.
        """
        if step is None:
            step = self._calls if self.controller is None else self.controller.step
        self._calls += 1
        if self.controller is not None:
            self.controller.use()
        for name, value in (("loss", loss), ("inverse_temperature", inverse_temperature)):
            check(
                value is None or isinstance(value, (torch.Tensor, int, float)),
                f"Argument `{name}` must be a number or a tensor, but is {shown(value)}. Pass that of the batch.",
            )
        # A step of several micro-batches is measured once; a batch of one pair has no margin.
        if step == self._latest or len(image) < 2 or this_process()[0] != 0:
            return None
        if step % self.every:
            if self._last is None or self._last[0] != step:
                given = (image, text, loss, *self._now(inverse_temperature))
                self._last = (step, *(_detached(x) for x in given))
            return None
        return self._measure(step, image, text, loss, *self._now(inverse_temperature))

    def _now(self, beta: Any) -> tuple[Any, Any]:
        """β and the learning rate of this step."""
        if self.controller is None:
            return beta, None
        if beta is None:
            beta = self.controller.parameter.detach().exp()
        return beta, self.controller.learning_rate()

    def _measure(
        self, step: int, image: torch.Tensor, text: torch.Tensor, loss: Any, beta: Any, rate: Any
    ) -> dict[str, float]:
        """Measure, keep and pass on."""
        self._latest, self._last = step, None
        values = self._values(image, text, {"inverse_temperature": beta, "train_loss": loss, "learning_rate": rate})
        if self.controller is not None:
            values["progress"] = step / self.controller.total_steps
        self._tell(image)
        self._book.add(step, values)
        for output in self._outputs:
            output(step, values)
        return values

    def watch(self, model: torch.nn.Module) -> "GapMonitor":
        """Measure what a model returns in training mode, without a call in the loop.

        Known are the outputs of open_clip's models and of Hugging Face's CLIPModel.

        Args:
            model: The model itself, before it is wrapped for several processes, or after.

        Returns:
            The monitor.

        Raises:
            FlowsimError: In training, if the model returns no features of both modalities.
        """
        self._hooks.append(model.register_forward_hook(self._seen))
        return self

    def record(self) -> TrainingRecord:
        """What was measured so far, as a record whose clock is the step.

        Raises:
            FlowsimError: If nothing was measured.
        """
        return self._book.record()

    def close(self) -> None:
        """Measure the last batch, write the rest to the file, and stop watching."""
        if self._last is not None:
            self._measure(*self._last)
        self._book.save()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def __enter__(self) -> "GapMonitor":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _seen(self, model: torch.nn.Module, _: Any, output: Any) -> None:
        if not model.training:
            return
        found = features_of(output)
        if found is None:
            raise FlowsimError(
                f"{type(model).__name__} returns no features of images and texts that are known. Call the monitor with "
                "the features instead: monitor(image, text)."
            )
        image, text, beta, loss = found
        held = getattr(model, "logit_scale", None)
        if beta is None and isinstance(held, torch.Tensor):
            beta = held.detach().exp()
        self(image, text, loss=loss, inverse_temperature=beta)

    @torch.no_grad()
    def _values(self, image: torch.Tensor, text: torch.Tensor, more: dict[str, Any]) -> dict[str, float]:
        """All values, fetched from the device at once."""
        found = measure(image[: self.rows], text[: self.rows], self.only)
        if self.kernels is not None and (image.requires_grad or text.requires_grad):  # not the last batch, in `close`
            seen, read = image[: self.rows], text[: self.rows]
            more = more | kernel_numbers(seen, read, self.kernels.parameters(), seed=self._calls)
        numbers = {**found, **more}
        dtype, device = next(iter(found.values())).dtype, image.device
        kept = {
            name: torch.as_tensor(x, device=device).detach().to(dtype).mean()
            for name, x in numbers.items()
            if x is not None
        }
        values = dict(zip(kept, torch.stack(list(kept.values())).tolist(), strict=True))
        if "inverse_temperature" in values:
            values["temperature"] = 1 / values["inverse_temperature"] if values["inverse_temperature"] else float("inf")
        return values

    def _tell(self, image: torch.Tensor) -> None:
        """Settings that show only in training."""
        config, training = self._book.config, self._book.config["training"]
        config.setdefault("embed_dim", int(image.shape[1]))
        if this_process()[1] == 1:  # with several, these may be the rows of one process or of all
            training.setdefault("batch_size", len(image))
        optimizer = None if self.controller is None else self.controller.optimizer
        if self.controller is not None and optimizer is not None and "optimizer" not in training:
            training["optimizer"] = type(optimizer).__name__.lower()
            training["temperature_decay"] = self.controller.decays

    def _config(self) -> dict[str, Any]:
        """Settings for the record, in the form of those of `fs.clip.train`."""
        config: dict[str, Any] = {"monitor": {"every": self.every, "rows": self.rows}, "training": {}}
        if self.controller is not None:
            clamp = self.controller.clamp
            config["schedule"] = json.loads(self.controller.schedule.to_json())
            config["training"] = {"steps": self.controller.total_steps, "clamp": None if clamp is None else list(clamp)}
        return config


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value
