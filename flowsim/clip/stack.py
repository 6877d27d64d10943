"""Many models in training at once: their weights stacked along a first axis, and one program for the step of all.

A small model leaves most of a GPU idle, because its operations are short. Here each operation does the work of all
runs. The runs share model, data and settings, and differ in schedule and seed; runs of one seed share initial weights
and batches. The forward pass is `torch.func.functional_call` of one open_clip module under two `torch.vmap`, over
seeds and over schedules. The losses are summed, so that one backward pass gives each run its own gradient.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from flowsim.clip.batches import Batches, crop
from flowsim.clip.contrast import Contrast, Temperature
from flowsim.clip.kernels import NU, preconditioner
from flowsim.clip.learner import is_weight, optimizer_of
from flowsim.clip.memory import is_out_of_memory
from flowsim.clip.models import Model
from flowsim.clip.plan import Plan
from flowsim.clip.session import Session
from flowsim.clip.settings import Training
from flowsim.clip.towers import Encoder, vmappable
from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule
from flowsim.torch.device import onto_device
from flowsim.torch.swaps import swapped_steps

Prepare = Callable[[torch.Tensor, "torch.Tensor | None"], torch.Tensor]
Weights = dict[str, torch.Tensor]


class Stack:
    """Runs in training, one for each of S seeds and M schedules.

    - `weights` (S, M, ...) by name: the trained weights. `temperatures`: one for each schedule, of S runs.
    - `models`, `batches`: initial weights and batches of each seed. The modules of all models are alike.
    - `prepare`: makes the input of the image tower of (pixels, boxes); None crops and normalises photos.
    """

    def __init__(
        self,
        settings: Training,
        schedules: Sequence[Schedule],
        seeds: Sequence[int],
        session: Session,
        models: Sequence[Model],
        batches: Sequence[Batches],
        plan: Plan,
        prepare: Prepare | None = None,
    ) -> None:
        self.settings, self.schedules, self.seeds, self.plan = settings, list(schedules), list(seeds), plan
        self.session, self.device, self.model, self.batches = session, session.device, models[0], list(batches)
        self.prepare = prepare or (lambda pixels, boxes: crop(pixels, boxes, self.model.mean, self.model.std))
        self.encoder = Encoder(self.model.module, settings.normalize).to(self.device).train()
        self.weights = self._stacked(models)
        self.temperatures = [
            Temperature(schedule.temperature, settings.clamp, len(self.seeds)).to(self.device)
            for schedule in self.schedules
        ]
        self._fixed = self._fixed_temperatures()
        self.optimizer = self._optimizer()
        self._swaps = Swaps(self.schedules, self.seeds, plan.steps * settings.accumulate)
        self._check()

    def __len__(self) -> int:
        return len(self.seeds) * len(self.schedules)

    def take_step(self, k: int) -> torch.Tensor:
        """Take step k of every run; (S, M, 3): loss, modality gap of the batch, ν or NaN before the step."""
        for group in self.optimizer.param_groups:
            group["lr"] = float(self.plan.rates[k] * group["ratio"])
        noted = self._raw()
        loss, gap = self._differentiate(k)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for temperature in self.temperatures:
            temperature.clamp_()
        return torch.stack([loss, gap, noted], -1)

    def _differentiate(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the gradients of step k to the weights; losses and gaps of the batch, (S, M)."""
        losses, gaps = [], []
        for j in range(self.settings.accumulate):
            micro = k * self.settings.accumulate + j
            images, tokens = self._inputs(micro)
            with self.autocast():
                image, text = self._encode(images, tokens, 0)
            image, text = image.float(), text.float()  # the loss in full precision
            loss = _losses(*self._swaps.apply(micro, image, text), self._inverse_temperatures(k))
            (loss.sum() / self.settings.accumulate).backward()
            losses.append(loss.detach())
            gaps.append(self._gaps(image.detach(), text.detach()))
        return torch.stack(losses).mean(0), torch.stack(gaps).mean(0)

    def gradient(self, k: int) -> Weights:
        """The gradient of step k by name of the weight, (S, M, ...), without taking the step."""
        self._differentiate(k)
        found = {name: weights.grad.clone() for name, weights in self.weights.items() if weights.grad is not None}
        self.optimizer.zero_grad(set_to_none=True)
        return found

    def autocast(self) -> Any:
        """The precision of the towers."""
        if self.settings.precision == "fp32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    @torch.no_grad()
    def embed(self, pixels: torch.Tensor, tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Unit rows of images and of texts by every run, float32 (S, M, n, d)."""
        size = self.settings.batch_size  # fits, because a step takes more memory
        image = [self._embed(part, None) for part in pixels.split(size)]
        text = [self._embed(None, part) for part in tokens.split(size)]
        return torch.cat(image, 2).cpu().numpy(), torch.cat(text, 2).cpu().numpy()

    def _embed(self, pixels: torch.Tensor | None, tokens: torch.Tensor | None) -> torch.Tensor:
        images = None if pixels is None else self.prepare(onto_device(pixels, self.device), None)
        with self.autocast():
            (rows,) = self._encode(images, None if tokens is None else onto_device(tokens, self.device), None)
        return torch.nn.functional.normalize(rows.float(), dim=-1)

    def temperature(self, seed: int, schedule: int, progress: float) -> tuple[float, float | None]:
        """(β, ν) of a run, by the positions of its seed and schedule; ν is None if it is not learnable."""
        return self.temperatures[schedule].value(progress, seed)

    @torch.no_grad()
    def module_of(self, seed: int, schedule: int) -> Any:
        """The open_clip module with the weights of a run, which later calls overwrite."""
        for name, parameter in self.encoder.named_parameters():
            if name in self.weights:
                parameter.copy_(self.weights[name][seed, schedule])
        return self.model.module

    def preconditioner(self, seed: int, schedule: int) -> Weights | None:
        """D of a run by name of the parameter, that of ν as `NU`; None for 1."""
        every = {name.removeprefix("clip."): weights for name, weights in self.weights.items()}
        found = preconditioner(self.optimizer, every, (seed, schedule))
        raw = preconditioner(self.optimizer, {NU: self.temperatures[schedule].raw}, (seed,))
        return None if found is None else found | (raw or {})

    def state(self) -> dict[str, Any]:
        """Weights, temperatures and moments, for a checkpoint."""
        return {
            "weights": {name: w.detach() for name, w in self.weights.items()},
            "raw": [None if t.raw is None else t.raw.detach() for t in self.temperatures],
            "optimizer": self.optimizer.state_dict(),
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        for name, weights in self.weights.items():
            weights.copy_(state["weights"][name])
        for temperature, raw in zip(self.temperatures, state["raw"], strict=True):
            if temperature.raw is not None:
                temperature.raw.copy_(raw)
        self.optimizer.load_state_dict(state["optimizer"])

    # --- parts of a step ------------------------------------------------------------------------------

    def _stacked(self, models: Sequence[Model]) -> Weights:
        """Initial weights (S, M, ...) by name; the scale of the logits belongs to the schedule."""
        every = [dict(Encoder(model.module, self.settings.normalize).named_parameters()) for model in models]
        found = {}
        for name in every[0]:
            if name != "clip.logit_scale" and every[0][name].requires_grad:
                of_seeds = torch.stack([parameters[name].detach().to(self.device) for parameters in every])
                wide = of_seeds[:, None].expand(-1, len(self.schedules), *of_seeds.shape[1:])
                found[name] = wide.clone().requires_grad_(True)
        return found

    def _optimizer(self) -> torch.optim.Optimizer:
        """The optimizer of `Learner`, over all runs: its steps treat each number separately."""
        settings, decay = self.settings, self.settings.weight_decay
        decayed = [w for n, w in self.weights.items() if settings.decay_all or is_weight(n, w.ndim - 2)]
        free = [w for n, w in self.weights.items() if not (settings.decay_all or is_weight(n, w.ndim - 2))]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": decay, "ratio": 1.0},
            {"params": free, "weight_decay": 0.0, "ratio": 1.0},
        ]
        ratios: dict[float, list[torch.Tensor]] = {}
        for temperature in self.temperatures:
            if temperature.raw is not None:
                ratio = float(temperature.policy.lr_ratio)  # pyright: ignore[reportAttributeAccessIssue]
                ratios.setdefault(ratio, []).append(temperature.raw)
        for ratio, params in ratios.items():
            groups.append({"params": params, "weight_decay": decay * settings.temperature_decay, "ratio": ratio})
        return optimizer_of(settings, groups)

    def _inputs(self, micro: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(images, tokens) of a micro-batch, (S, n, ...)."""
        images, tokens = [], []
        for batches in self.batches:
            pixels, words, boxes = batches.batch(micro)
            images.append(self.prepare(onto_device(pixels, self.device), boxes))
            tokens.append(onto_device(words, self.device))
        return torch.stack(images), torch.stack(tokens)

    def _encode(
        self, images: torch.Tensor | None, tokens: torch.Tensor | None, seed_axis: int | None
    ) -> tuple[torch.Tensor, ...]:
        """Features (S, M, n, d); inputs have a first axis of seeds, or are the same for all (`seed_axis` None)."""

        def one(weights: Weights, images: Any, tokens: Any) -> tuple[torch.Tensor, ...]:
            return torch.func.functional_call(self.encoder, weights, (images, tokens))

        of_schedules = torch.vmap(one, in_dims=(0, None, None))
        with vmappable():
            return torch.vmap(of_schedules, in_dims=(0, seed_axis, seed_axis))(self.weights, images, tokens)

    def _fixed_temperatures(self) -> torch.Tensor:
        """β of every step and schedule, (steps, M), on the device; 0 where the temperature is learnable."""
        steps = range(self.plan.steps)
        columns = [
            np.zeros(len(steps))
            if schedule.temperature.learnable
            else [float(schedule.temperature.inverse_temperature(k / self.plan.steps)) for k in steps]
            for schedule in self.schedules
        ]
        return torch.tensor(np.array(columns).T, dtype=torch.float32, device=self.device)

    def _inverse_temperatures(self, k: int) -> torch.Tensor:
        """β of every run, (S, M)."""
        fixed, u = self._fixed[k], k / self.plan.steps
        every = [
            fixed[m].expand(len(self.seeds)) if t.raw is None else t(u, self.device).float()
            for m, t in enumerate(self.temperatures)
        ]
        return torch.stack(every, -1)

    @torch.no_grad()
    def _raw(self) -> torch.Tensor:
        """ν of every run, NaN without one, (S, M)."""
        none = torch.full((len(self.seeds),), torch.nan, device=self.device)
        return torch.stack([none if t.raw is None else t.raw.detach().float() for t in self.temperatures], -1)

    def _gaps(self, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        if not self.settings.normalize:
            image, text = (torch.nn.functional.normalize(rows, dim=-1) for rows in (image, text))
        return torch.linalg.vector_norm((image - text).mean(-2), dim=-1)

    def _check(self) -> None:
        """Refuse a model whose runs are not independent of each other, or that draws random numbers."""
        images, tokens = self._inputs(0)
        try:
            with torch.no_grad(), self.autocast():
                self._encode(images[:, :2], tokens[:, :2], 0)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).strip().splitlines()[0][:120].rstrip(".")
            raise FlowsimError(
                f"Runs of the model {self.model.name!r} cannot be stacked, because of batch normalisation, dropout or "
                f"another operation ({reason}). Use a model without, or `stack=1`."
            ) from None


class Swaps:
    """The swaps of all runs, those of `Contrast`; most micro-batches have none.

    - `when`: which of the first `count` micro-batches have a swap, by position of seed and schedule.
    """

    def __init__(self, schedules: Sequence[Schedule], seeds: Sequence[int], count: int) -> None:
        runs = [(s, m) for m, schedule in enumerate(schedules) if schedule.swap.active for s in range(len(seeds))]
        self.when = {(s, m): swapped_steps(schedules[m].swap, seeds[s], 0, count) for s, m in runs}
        self._contrasts = {(s, m): Contrast(schedules[m], seeds[s]) for s, m in runs}

    def apply(self, micro: int, image: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (S, M, n, d) after the swaps of a micro-batch."""
        swapped = [run for run, steps in self.when.items() if steps[micro]]
        if not swapped:
            return image, text
        images, texts = [], []
        for s, m in swapped:
            new = self._contrasts[s, m].swapped(image[s, m], text[s, m], micro)
            images.append(new[0])
            texts.append(new[1])
        places = onto_device(torch.tensor([s * image.shape[1] + m for s, m in swapped]), image.device)
        return _replaced(image, places, images), _replaced(text, places, texts)


def _replaced(rows: torch.Tensor, places: torch.Tensor, new: list[torch.Tensor]) -> torch.Tensor:
    """Features (S, M, n, d) with those of some runs replaced, by their place among all."""
    return rows.flatten(0, 1).index_copy(0, places, torch.stack(new)).view_as(rows)


def _losses(image: torch.Tensor, text: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    """The contrastive loss of each run, (S, M), of features (S, M, n, d) at β (S, M)."""
    logits = beta[..., None, None] * (image @ text.mT)
    found = 0.0
    for axis in (-1, -2):
        found = found - torch.log_softmax(logits, axis).diagonal(dim1=-2, dim2=-1).mean(-1)
    return found / 2  # pyright: ignore[reportReturnType]
