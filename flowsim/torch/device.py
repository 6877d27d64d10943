"""A GPU that PyTorch and JAX share: JAX leaves its memory to PyTorch, and copies to it that nothing waits for."""

import os
from typing import Any

import torch

from flowsim.base.checks import shown

#: Variables by which a user decides how much of a GPU JAX takes.
_JAX_MEMORY = (
    "XLA_PYTHON_CLIENT_PREALLOCATE", "XLA_PYTHON_CLIENT_ALLOCATOR", "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_CLIENT_MEM_FRACTION",
)  # fmt: skip


def share_gpu() -> None:
    """Keep JAX from taking three quarters of a GPU that PyTorch needs; only before JAX has used it.

    A choice of the user in the environment stays.
    """
    if not any(name in os.environ for name in _JAX_MEMORY):
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"


share_gpu()


def onto_device(tensor: torch.Tensor, device: Any) -> torch.Tensor:
    """The tensor on a device. A copy to a GPU goes through pinned memory, so that the host does not wait for it."""
    device = torch.device(device)
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def exact(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in double precision without its history; in single precision where the device has no other."""
    tensor = tensor.detach()
    return tensor.float() if tensor.device.type == "mps" else tensor.double()


def this_process() -> tuple[int, int]:
    """(rank, number of processes) of the default group of `torch.distributed`; (0, 1) without one."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def described(value: Any) -> str:
    """A value in a message: tensors by shape and type."""
    if isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    return shown(value)
