"""Temperature policies on tensors: β and its derivative on the device of the raw parameter ν, in double precision."""

from typing import Any

import jax
import numpy as np
import torch

from flowsim.errors import FlowsimError
from flowsim.model.temperature import AbstractTemperature
from flowsim.torch.device import exact

#: Types that are too coarse for ν.
HALF = (torch.float16, torch.bfloat16)


def at_least_single(tensor: torch.Tensor) -> torch.dtype:
    """The type in which ν of a parameter is kept."""
    return torch.float32 if tensor.dtype in HALF else tensor.dtype


class InverseTemperature(torch.autograd.Function):
    """β, known exactly, as a function of `logit_scale` = ln β."""

    @staticmethod
    def forward(ctx: Any, logit_scale: torch.Tensor, exact: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logit_scale, exact)
        return exact.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[torch.Tensor, None]:
        logit_scale, exact = ctx.saved_tensors
        return (gradients[0] * exact).to(logit_scale.dtype), None


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


class Learned:
    """The formulas of a learnable policy. A policy that PyTorch cannot evaluate needs the value of ν on the host."""

    def __init__(self, policy: AbstractTemperature) -> None:
        self.policy, self._on_device = policy, torch_policy(policy)

    def beta(self, progress: float, raw: torch.Tensor) -> torch.Tensor:
        """β at ν, in double precision."""
        return self._value("inverse_temperature", progress, raw)

    def log_beta(self, progress: float, raw: torch.Tensor) -> torch.Tensor:
        """ln β at ν."""
        return self.beta(progress, raw).log()

    def log_slope(self, progress: float, raw: torch.Tensor) -> torch.Tensor:
        """∂ ln β/∂ν at ν."""
        return self._value("derivative", progress, raw) / self.beta(progress, raw)

    def raw_of(self, log_beta: torch.Tensor) -> torch.Tensor | None:
        """ν at ln β; None if the policy does not say."""
        beta = exact(log_beta).exp()
        try:
            found = (self._on_device or self.policy).raw_of(beta if self._on_device else beta.cpu().numpy())
        except TypeError:  # a formula of NumPy
            found = self.policy.raw_of(beta.cpu().numpy())
        return None if found is None else torch.as_tensor(found, dtype=beta.dtype, device=beta.device)

    def _value(self, formula: str, progress: float, raw: torch.Tensor) -> torch.Tensor:
        at = exact(raw)
        if self._on_device is not None:
            found = getattr(self._on_device, formula)(progress, at)
        else:
            found = getattr(self.policy, formula)(progress, at.cpu().double().numpy()[()])
        return torch.as_tensor(found, dtype=at.dtype, device=at.device).expand(at.shape)


def raw_bounds(policy: AbstractTemperature, clamp: tuple[float, float] | None) -> tuple[float, float] | None:
    """(ν_min, ν_max): those of the policy, or of `clamp` = (τ_min, τ_max)."""
    if (own := policy.bounds()) is not None or clamp is None:
        return None if own is None else (float(own[0]), float(own[1]))
    low, high = (policy.raw_of(np.float64(1.0 / tau)) for tau in clamp[::-1])
    if low is None or high is None:
        raise FlowsimError(
            f"`clamp` needs the raw parameter at a given temperature, but {type(policy).__name__} does not define "
            "`raw_of`. Define it, or use clamp=None."
        )
    return float(low), float(high)
