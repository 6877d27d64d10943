"""A model in training: one optimizer step of it, and its weights.

Model, tokenizer and loss come from open_clip, devices and precision from accelerate. Step k depends only on the
settings, the seed and k, which also seed dropout.
"""

import contextlib
import dataclasses
import os
from typing import Any

import numpy as np
import torch

from flowsim.clip.batches import Batches, crop
from flowsim.clip.checkpoint import save_tensors
from flowsim.clip.contrast import Contrast, Temperature
from flowsim.clip.models import Model
from flowsim.clip.plan import Plan
from flowsim.clip.session import Session, seed_torch, synchronised
from flowsim.clip.settings import Training
from flowsim.model.schedules import Schedule
from flowsim.torch.device import onto_device


class Towers(torch.nn.Module):
    """Model and temperature as one module, so that one wrapper for several devices contains both."""

    def __init__(self, clip: torch.nn.Module, temperature: Temperature, normalize: bool = True) -> None:
        super().__init__()
        self.clip, self.temperature, self.normalize = clip, temperature, normalize

    def forward(
        self, images: torch.Tensor, tokens: torch.Tensor, progress: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features (n, d) of both modalities, of unit length if `normalize`, and β."""
        clip: Any = self.clip
        image = clip.encode_image(images, normalize=self.normalize)
        text = clip.encode_text(tokens, normalize=self.normalize)
        return image, text, self.temperature(progress, images.device)


class Learner:
    """A model in training: takes the steps of a plan on batches, with a schedule."""

    def __init__(
        self, settings: Training, schedule: Schedule, session: Session, model: Model, batches: Batches, plan: Plan
    ) -> None:
        self.settings, self.session, self.batches, self.plan = settings, session, batches, plan
        self.temperature = Temperature(schedule.temperature, settings.clamp)
        model.module.logit_scale.requires_grad_(False)  # the schedule sets the temperature
        if session.processes > 1:
            model = dataclasses.replace(model, module=synchronised(model.module, session.device.type))
        self.model = model
        self.towers = Towers(model.module, self.temperature, settings.normalize).to(session.device)
        self.optimizer = _optimizer(settings, self.towers)
        self.wrapped, self.stepper = session.accelerator.prepare(self.towers, self.optimizer)
        self.contrast = Contrast(schedule, settings.seed, session.rank, session.processes)

    def take_step(self, k: int) -> torch.Tensor:
        """Take step k; returns (loss, modality gap of the batch, ν or NaN) before the step, on the device.

        Nothing here waits for the device, so that the host is always ahead of it.
        """
        settings, accelerator, device = self.settings, self.session.accelerator, self.session.device
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.plan.rates[k] * group["ratio"])
        u = k / self.plan.steps
        raw = self.temperature.raw
        noted = torch.full((), torch.nan, device=device) if raw is None else raw.detach().float().clone()
        losses, gaps = [], []
        for j in range(settings.accumulate):
            micro = k * settings.accumulate + j
            # Dropout uses PyTorch's generator: a resumed run must not depend on earlier draws.
            seed_torch(settings.seed, micro, self.session.rank, device)
            pixels, tokens, boxes = self.batches.batch(micro)
            images = crop(onto_device(pixels, device), boxes, self.model.mean, self.model.std)
            tokens = onto_device(tokens, device)
            last = j == settings.accumulate - 1
            with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
                with accelerator.autocast():
                    image, text, beta = self.wrapped(images, tokens, u)
                image, text = image.float(), text.float()  # the loss in full precision
                loss = self.contrast(image, text, beta, micro)
                accelerator.backward(loss / settings.accumulate)
            losses.append(loss.detach())
            gaps.append(self._gap(image.detach(), text.detach()))
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.temperature.clamp_()
        return torch.stack([torch.stack(losses).mean(), torch.stack(gaps).mean(), noted])

    @torch.no_grad()
    def _gap(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Modality gap of the whole batch, from this process's share of its features (n, d)."""
        if not self.settings.normalize:
            image, text = (torch.nn.functional.normalize(rows, dim=1) for rows in (image, text))
        centres = (image - text).mean(0)
        if self.session.processes > 1:
            centres = self.session.accelerator.reduce(centres, "mean")
        return torch.linalg.vector_norm(centres)  # pyright: ignore

    def state(self) -> dict[str, Any]:
        """Weights and moments, for a checkpoint."""
        return {"towers": self.towers.state_dict(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self.towers.load_state_dict(state["towers"])
        self.optimizer.load_state_dict(state["optimizer"])

    def export(self, path: str | os.PathLike[str], progress: float) -> None:
        """Write the model's weights; its `logit_scale` is set to ln β, so that open_clip uses the same β."""
        beta, _ = self.temperature.value(progress)
        module = self.model.open_clip
        with torch.no_grad():
            module.logit_scale.fill_(float(np.log(beta)))
        save_tensors({k: v.cpu() for k, v in module.state_dict().items()}, path)


def is_weight(name: str, ndim: int) -> bool:
    """Whether a parameter with this number of axes has weight decay: open_clip spares gains and biases."""
    return not (ndim < 2 or "bn" in name or "ln" in name or "bias" in name)


def _optimizer(settings: Training, towers: Towers) -> torch.optim.Optimizer:
    """The optimizer over weights, gains and biases, and ν; `ratio` multiplies a group's learning rate."""
    decayed, free = [], []
    for name, parameter in towers.clip.named_parameters():
        if parameter.requires_grad:
            (decayed if settings.decay_all or is_weight(name, parameter.ndim) else free).append(parameter)
    decay = settings.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": decay, "ratio": 1.0},
        {"params": free, "weight_decay": 0.0, "ratio": 1.0},
    ]
    raw = towers.temperature.raw
    if raw is not None:
        ratio = float(towers.temperature.policy.lr_ratio)  # pyright: ignore[reportAttributeAccessIssue]
        groups.append({"params": [raw], "weight_decay": decay if settings.temperature_decay else 0.0, "ratio": ratio})
    return optimizer_of(settings, groups)


def optimizer_of(settings: Training, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of the settings over groups of parameters; empty groups are left out."""
    groups = [g for g in groups if g["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(
        groups, lr=settings.lr, betas=(settings.beta1, settings.beta2), eps=settings.eps, fused=True
    )
