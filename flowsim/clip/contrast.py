"""Apply a schedule to a batch of features: temperature, swap and contrastive loss, in PyTorch.

The schedule is the same object as in the simulator. Swaps are drawn and applied by `fs.swaps` (JAX draws, on the CPU);
policies evaluate temperatures in double precision; the loss is open_clip's ClipLoss with the inverse temperature passed
explicitly.

No step waits for a GPU: schedules are evaluated on the host, learnable temperatures on the device, and weights of swaps
are drawn ahead. Only a policy whose formula PyTorch cannot evaluate needs the value of ν in each step.
"""

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from open_clip.loss import ClipLoss

from flowsim.model.schedules import Schedule
from flowsim.model.swaps import AbstractSwap
from flowsim.model.temperature import AbstractTemperature
from flowsim.torch.device import onto_device
from flowsim.torch.policies import raw_bounds, torch_policy
from flowsim.torch.swaps import draw, swapped_steps


class _InverseTemperature(torch.autograd.Function):
    """β of a learnable policy at (progress, ν), and its derivative, computed by the policy in double precision."""

    @staticmethod
    def forward(ctx: Any, raw: torch.Tensor, policy: AbstractTemperature, progress: float, on_device: bool) -> Any:
        exact = raw.detach().double() if on_device else raw.detach().cpu().double().numpy()[()]
        slope, beta = policy.derivative(progress, exact), policy.inverse_temperature(progress, exact)
        ctx.save_for_backward(_like(slope, raw))
        return _like(beta, raw)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None, None, None]:
        return gradients[0] * ctx.saved_tensors[0], None, None, None


def _like(value: Any, raw: torch.Tensor) -> torch.Tensor:
    """A number, array or tensor with shape, dtype and device of ν; never ν itself."""
    if isinstance(value, torch.Tensor):
        return value.to(raw.dtype, copy=True).expand(raw.shape)
    if np.ndim(value) == 0:
        return torch.full(raw.shape, float(value), dtype=raw.dtype, device=raw.device)
    return torch.tensor(value, dtype=raw.dtype, device=raw.device)


class Temperature(torch.nn.Module):
    """The temperature of a schedule in training. `raw` is the trained parameter ν, None if there is none.

    `forward(progress, device)` is β = 1/τ, a scalar tensor of `raw`'s dtype and device (float64 on `device` if nothing
    is trained), through which the gradient of a learnable temperature flows. On a GPU a policy is evaluated there if
    its formula consists of operators and functions of `flowsim.base.arrays.namespace`, as in every policy of flowsim.
    With a number of `runs`, ν and β are those of several runs, (runs,).
    """

    def __init__(
        self, policy: AbstractTemperature, clamp: tuple[float, float] | None = None, runs: int | None = None
    ) -> None:
        super().__init__()
        self.policy, self.bounds, self.raw = policy, None, None
        self._shape = () if runs is None else (runs,)
        self._on_device: AbstractTemperature | None = None
        if policy.learnable:
            self.bounds = raw_bounds(policy, clamp)
            self.raw = torch.nn.Parameter(torch.full(self._shape, float(policy.initial_raw())))
            self._on_device = torch_policy(policy)
            self.clamp_()

    def forward(self, progress: float, device: torch.device | str = "cpu") -> torch.Tensor:
        if self.raw is not None:
            policy = self.policy if self._on_device is None else self._on_device
            on_device = self._on_device is not None
            return _InverseTemperature.apply(self.raw, policy, progress, on_device)  # pyright: ignore[reportReturnType]
        # Filled on the device: a copy of a number from the host would wait.
        beta = float(self.policy.inverse_temperature(progress))
        return torch.full(self._shape, beta, dtype=torch.float64, device=device)

    def value(self, progress: float, run: int | None = None) -> tuple[float, float | None]:
        """(β, ν) of a run as plain numbers; ν is None for a temperature that is not learnable."""
        if self.raw is not None:
            raw = float(self.raw.detach()[() if run is None else run])
            return float(self.policy.inverse_temperature(progress, np.float64(raw))), raw
        return float(self.policy.inverse_temperature(progress)), None

    @torch.no_grad()
    def clamp_(self) -> None:
        """Clamp ν to its bounds, if there are any; called after each step."""
        if self.bounds is not None:
            assert self.raw is not None
            self.raw.clamp_(*self.bounds)


#: Steps for which it is decided at once whether they have a swap.
_DECIDED = 1024


class _Weights:
    """Weights of the swaps of a run as tensors; those of the next step are drawn while this one is computed."""

    def __init__(self, swap: AbstractSwap, seed: int, mine: slice, pairs: int, dim: int, like: torch.Tensor) -> None:
        self.swap, self.seed, self.mine, self.pairs, self.dim = swap, seed, mine, pairs, dim
        self.device, self.dtype = like.device, like.dtype
        self._decided: tuple[int, np.ndarray] = (-1, np.empty(0, bool))
        self._next: tuple[int, Future[torch.Tensor]] | None = None
        self._drawer = ThreadPoolExecutor(1)

    def fits(self, mine: slice, pairs: int, dim: int, like: torch.Tensor) -> bool:
        """Whether these are weights for such features."""
        return (self.mine, self.pairs, self.dim, self.device, self.dtype) == (mine, pairs, dim, like.device, like.dtype)

    def of(self, step: int) -> torch.Tensor | None:
        """Weights of one step on the device; None if it has no swap."""
        found = None
        if self._swaps(step):
            if self._next is not None and self._next[0] == step:
                drawn = self._next[1].result()
            else:
                drawn = self._tensor(step)
            found = onto_device(drawn, self.device)
        if self._swaps(step + 1) and (self._next is None or self._next[0] != step + 1):
            self._next = (step + 1, self._drawer.submit(self._tensor, step + 1))
        return found

    def _swaps(self, step: int) -> bool:
        block, place = divmod(step, _DECIDED)
        if self._decided[0] != block:
            self._decided = (block, swapped_steps(self.swap, self.seed, block * _DECIDED, _DECIDED))
        return bool(self._decided[1][place])

    def _tensor(self, step: int) -> torch.Tensor:
        return torch.from_numpy(draw(self.swap, self.seed, step, self.pairs, self.dim)[self.mine]).to(self.dtype)


class Contrast:
    """The loss of a batch of unit features under a schedule.

    With several processes each passes its own part of the batch (in order of rank); features are gathered with
    their gradient, so that the loss and its gradient are those of the whole batch.
    """

    def __init__(self, schedule: Schedule, seed: int = 0, rank: int = 0, processes: int = 1) -> None:
        self.swap, self.seed, self.rank, self.processes = schedule.swap, seed, rank, processes
        self._loss = ClipLoss(local_loss=False, gather_with_grad=True, rank=rank, world_size=processes)
        self._weights: _Weights | None = None

    def __call__(
        self, image: torch.Tensor, text: torch.Tensor, inverse_temperature: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Scalar loss of features (n, d), swapped as in `step`, at β."""
        image, text = self.swapped(image, text, step)
        return self._loss(image, text, inverse_temperature.to(image))

    def swapped(self, image: torch.Tensor, text: torch.Tensor, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The features after the swap of `step`, which enter the loss."""
        if not self.swap.active:
            return image, text
        pairs, dim = image.shape
        shape = slice(self.rank * pairs, (self.rank + 1) * pairs), pairs * self.processes, dim
        if self._weights is None or not self._weights.fits(*shape, image):
            self._weights = _Weights(self.swap, self.seed, *shape, image)
        weights = self._weights.of(step)
        return (image, text) if weights is None else self.swap.apply(weights, image, text)
