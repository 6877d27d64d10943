"""Environment of a run: processes, device and precision; threads; the lock of its record; and TensorBoard.

Several processes share each batch; its loss and gradient are those of the whole batch. On GPUs this also holds for the
statistics of batch normalisation; on CPUs, where PyTorch cannot share them, each process normalises its own part.
Each process draws dropout separately.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import accelerate
import filelock
import numpy as np
import open_clip
import scipy.linalg  # noqa: F401  (the linear algebra that JAX calls; only what is loaded can be limited)
import threadpoolctl
import torch

from flowsim import provenance
from flowsim.base.checks import check
from flowsim.base.files import check_writable
from flowsim.errors import FlowsimError
from flowsim.progress import Progress, silent


@dataclass(frozen=True)
class Session:
    """The processes and devices of one run, by accelerate."""

    accelerator: accelerate.Accelerator

    @classmethod
    def begin(cls, precision: str, cpu: bool) -> "Session":
        """Begin a session with "fp32" or "bf16", on the CPU if `cpu`."""
        if "RANK" not in os.environ:
            # accelerate keeps precision and device for the whole process; a second run may need others.
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        session = cls(accelerate.Accelerator(cpu=cpu, mixed_precision="bf16" if precision == "bf16" else "no"))
        if session.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(session.device)
        return session

    @property
    def device(self) -> torch.device:
        """Device of this process."""
        return self.accelerator.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files."""
        return self.accelerator.is_main_process

    @property
    def rank(self) -> int:
        """Number of this process."""
        return self.accelerator.process_index

    @property
    def processes(self) -> int:
        """Number of processes."""
        return self.accelerator.num_processes

    def memory(self) -> dict[str, float]:
        """Peak GPU memory of the session so far, in bytes; empty on a CPU."""
        if self.device.type != "cuda":
            return {}
        return {"peak_memory_bytes": float(torch.cuda.max_memory_allocated(self.device))}

    def versions(self) -> dict[str, str]:
        """Versions of the packages, and the device."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return {
            "flowsim": provenance.versions()["flowsim"],
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
            "accelerate": accelerate.__version__,
            "device": name,
        }


def is_first_process() -> bool:
    """Whether this process is the first one started by a launcher; works before a session begins."""
    return int(os.environ.get("RANK", "0")) == 0


def synchronised(module: torch.nn.Module, device: str) -> torch.nn.Module:
    """The module with batch normalisation over all processes; unchanged on a CPU, where PyTorch has none."""
    if device != "cuda":
        return module
    from timm.layers.norm_act import convert_sync_batchnorm  # also converts timm's own layers

    return convert_sync_batchnorm(module)


def seed_torch(seed: int, micro: int, rank: int, device: torch.device | None = None) -> None:
    """Seed PyTorch's draws in a micro-batch (dropout), independently of batches and crops.

    With a `device` only its generator and that of the CPU are seeded, which takes much less time than all.
    """
    state = int(np.random.SeedSequence((seed, 2, micro, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1))
    if device is None or device.type not in ("cpu", "cuda"):
        torch.manual_seed(state)
        return
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(state)


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """Limit the threads of PyTorch, and of the linear algebra of the metrics, because idle threads are expensive."""
    if count is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


def check_writable_file(path: Path) -> None:
    """Refuse a file that cannot be written, before any time is spent; only its folder is created."""
    check(not path.is_dir(), f"Cannot write {str(path)!r}: it is a folder. Choose the name of a file.")
    check_writable(path.parent)
    path.parent.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def alone(path: Path | None) -> Iterator[None]:
    """Refuse a record that cannot be written, or that another process is writing."""
    if path is None or not is_first_process():
        yield
        return
    check_writable_file(path)
    lock = filelock.FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise FlowsimError(
            f"{str(path)!r} is being written by another process. Wait for it, stop it, or choose another name."
        ) from None
    except OSError as error:
        raise FlowsimError(
            f"Cannot lock {str(path)!r}: {error.strerror or error}. Choose a folder whose file system has locks."
        ) from None
    try:
        yield
    finally:
        lock.release()
        Path(lock.lock_file).unlink(missing_ok=True)


@contextlib.contextmanager
def scalars(folder: str | None) -> Iterator[Progress]:
    """A progress that sends its numbers to TensorBoard, or does nothing."""
    if folder is None:
        yield silent
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise FlowsimError(
            "TensorBoard is not installed. Use pip install tensorboard, or leave `tensorboard` out."
        ) from None
    check_writable(folder, "Choose another folder as `tensorboard`.")
    with SummaryWriter(folder) as writer:

        def write(text: str, done: int, total: int | None, /, **numbers: float) -> None:
            for name, value in numbers.items():
                writer.add_scalar(name, value, done)

        yield write
