"""Apply a schedule to a batch of features: temperature, swap and contrastive loss, in PyTorch.

The schedule is the same object as in the simulator. Swaps are drawn and applied by `fs.swaps` (JAX draws, on the CPU);
policies evaluate temperatures in double precision; the loss is open_clip's ClipLoss with the inverse temperature passed
explicitly.

No step waits for a GPU: schedules are evaluated on the host, learnable temperatures on the device, and weights of swaps
are drawn ahead. Only a policy whose formula PyTorch cannot evaluate needs the value of ν in each step.
"""

import contextlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import torch
from open_clip.loss import ClipLoss

from flowsim.base.arrays import on_cpu
from flowsim.clip.memory import onto_device
from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule
from flowsim.model.swaps import AbstractSwap, step_weights
from flowsim.model.temperature import AbstractTemperature


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


def torch_policy(policy: AbstractTemperature) -> AbstractTemperature | None:
    """The policy for tensors ν in float64: its numbers are plain; None if PyTorch cannot evaluate its formula.

    It is tried without values ("meta" tensors), so that nothing in it can leave the device.
    """
    plain: Any = jax.tree.map(lambda leaf: float(leaf) if np.ndim(leaf) == 0 else leaf, policy)
    known = np.float64(policy.initial_raw())
    try:
        for progress in (0.0, 0.5, 1.0):
            for formula in (plain.inverse_temperature, plain.derivative):
                traced = formula(progress, torch.empty((), dtype=torch.float64, device="meta"))
                found = formula(progress, torch.tensor(known))
                wanted = getattr(policy, formula.__name__)(progress, known)
                if (
                    not all(isinstance(x, torch.Tensor) and x.shape == () for x in (traced, found))
                    or traced.dtype != torch.float64
                    or not np.isclose(found.item(), float(wanted), rtol=1e-13, atol=0.0)
                ):
                    return None
    except Exception:  # a formula that needs NumPy or JAX fails in many ways
        return None
    return plain


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
            self.bounds = _bounds(policy, clamp)
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
    if not swap.active or not swapped_steps(swap, seed, step, 1)[0]:
        return None
    return _draw(swap, seed, step, pairs, dim)


def swapped_steps(swap: AbstractSwap, seed: int, first: int, count: int) -> np.ndarray:
    """(count,) which of the steps from `first` on have a swap; see `swap_weights`."""
    with _drawing():
        keys = jax.vmap(lambda step: _keys(seed, step)[0])(np.arange(first, first + count))
        return np.asarray(jax.vmap(lambda key: jax.random.bernoulli(key, swap.fraction))(keys))


def _draw(swap: AbstractSwap, seed: int, step: int, pairs: int, dim: int) -> np.ndarray:
    with _drawing():
        whether, masks = _keys(seed, step)
        return np.array(step_weights(swap, whether, masks, pairs, dim, np.float64))[0]


def _keys(seed: int, step: Any) -> tuple[Any, Any]:
    """The keys of a step: whether to swap, and what."""
    whether, masks, _ = jax.random.split(jax.random.fold_in(jax.random.key(np.uint32(seed)), step), 3)
    return whether, masks


@contextlib.contextmanager
def _drawing() -> Iterator[None]:
    with jax.enable_x64(True), on_cpu():
        yield


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
        return torch.from_numpy(_draw(self.swap, self.seed, step, self.pairs, self.dim)[self.mine]).to(self.dtype)


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
