"""Apply a schedule to a batch of features: temperature, swap and contrastive loss, in PyTorch.

The schedule is the same object as in the simulator. Swaps are drawn and applied by `fs.swaps` (JAX draws, on the CPU);
policies evaluate temperatures in double precision; the loss is open_clip's ClipLoss with the inverse temperature passed
explicitly.
"""

from typing import Any

import jax
import numpy as np
import torch
from open_clip.loss import ClipLoss

from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule
from flowsim.model.swaps import AbstractSwap, step_weights
from flowsim.model.temperature import AbstractTemperature


class _InverseTemperature(torch.autograd.Function):
    """β of a learnable policy at (progress, ν), computed by the policy in double precision."""

    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, policy: AbstractTemperature, progress: float) -> torch.Tensor:
        value = np.float64(raw.item())
        ctx.derivative = float(policy.derivative(progress, value))
        return raw.new_tensor(float(policy.inverse_temperature(progress, value)))

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None]:
        return gradients[0] * ctx.derivative, None, None


class Temperature(torch.nn.Module):
    """The temperature of a schedule in training. `raw` is the trained parameter ν, None if there is none.

    `forward(progress)` is β = 1/τ, a scalar tensor of `raw`'s dtype (float64 if nothing is trained), through
    which the gradient of a learnable temperature flows.
    """

    def __init__(self, policy: AbstractTemperature, clamp: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.policy, self.bounds, self.raw = policy, None, None
        if policy.learnable:
            self.bounds = _bounds(policy, clamp)
            self.raw = torch.nn.Parameter(torch.tensor(float(policy.initial_raw())))
            self.clamp_()

    def forward(self, progress: float) -> torch.Tensor:
        if self.raw is not None:
            return _InverseTemperature.apply(self.raw, self.policy, progress)  # pyright: ignore[reportReturnType]
        return torch.tensor(float(self.policy.inverse_temperature(progress)), dtype=torch.float64)

    def value(self, progress: float) -> tuple[float, float | None]:
        """(β, ν) as plain numbers; ν is None for a temperature that is not learnable."""
        if self.raw is not None:
            raw = float(self.raw.detach())
            return float(self.policy.inverse_temperature(progress, np.float64(raw))), raw
        return float(self.policy.inverse_temperature(progress)), None

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp ν to its bounds, if there are any; called after each step."""
        if self.bounds is not None:
            assert self.raw is not None
            self.raw.clamp_(*self.bounds)


def _bounds(policy: AbstractTemperature, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
    """(ν_min, ν_max): those of the policy, or of `clamp` = (τ_min, τ_max)."""
    if (own := policy.bounds()) is not None or clamp is None:
        return None if own is None else (float(own[0]), float(own[1]))
    low, high = (policy.raw_of(np.float64(1.0 / tau)) for tau in clamp[::-1])
    if low is None or high is None:
        raise FlowsimError(
            f"`clamp` needs the raw parameter at a given temperature, but {type(policy).__name__} does not define "
            "`raw_of`. Define it, or leave `clamp` out."
        )
    return float(low), float(high)


def swap_weights(swap: AbstractSwap, seed: int, step: int, pairs: int, dim: int) -> np.ndarray | None:
    """Weights of the swap in one step, (n, d) or (n, 1) float64; None if the step has no swap.

    Drawn from (seed, step) exactly as in a simulated discrete run, on the CPU, for the whole batch.
    """
    if not swap.active:
        return None
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), step)
        whether, masks, _ = jax.random.split(key, 3)
        if not bool(jax.random.bernoulli(whether, swap.fraction)):
            return None
        weights = step_weights(swap, whether, masks, pairs, dim, np.float64)
    return np.array(weights)[0]


class Contrast:
    """The loss of a batch of unit features under a schedule.

    With several processes each passes its own part of the batch (in order of rank); features are gathered with
    their gradient, so that the loss and its gradient are those of the whole batch.
    """

    def __init__(self, schedule: Schedule, seed: int = 0, rank: int = 0, processes: int = 1) -> None:
        self.swap, self.seed, self.rank, self.processes = schedule.swap, seed, rank, processes
        self._loss = ClipLoss(local_loss=False, gather_with_grad=True, rank=rank, world_size=processes)

    def __call__(
        self, image: torch.Tensor, text: torch.Tensor, inverse_temperature: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Scalar loss of features (n, d), swapped as in `step`, at β."""
        image, text = self.swapped(image, text, step)
        return self._loss(image, text, inverse_temperature.to(image))

    def swapped(self, image: torch.Tensor, text: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The features after the swap of `step`, which enter the loss."""
        pairs, dim = image.shape
        weights = swap_weights(self.swap, self.seed, step, pairs * self.processes, dim)
        if weights is None:
            return image, text
        own = torch.from_numpy(weights[self.rank * pairs : (self.rank + 1) * pairs]).to(image)
        return self.swap.apply(own, image, text)
