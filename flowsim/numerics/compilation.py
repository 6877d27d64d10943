"""Compiled programs: a store on disk, so that a machine compiles each only once, and a limit on those in memory."""

import contextlib
import hashlib
import os
import platform
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox.internal as eqxi
import jax
import platformdirs
from jax.experimental.compilation_cache import compilation_cache

#: Environment variable with a folder for compiled programs, or "off". `JAX_COMPILATION_CACHE_DIR` takes precedence.
VARIABLE = "FLOWSIM_CACHE"
_MAX_BYTES = 512 * 2**20
_MOST_REGIONS = Path("/proc/sys/vm/max_map_count")
#: Number of compiled programs between two checks of the room that is left.
_LOOK = 32
_tracing = threading.RLock()
_settled = False
_counted = False
_compiled = 0


def store_programs() -> Path | None:
    """Let JAX store compiled programs in the user's cache folder.

    The environment variable `FLOWSIM_CACHE` gives another folder, or is "off". Nothing changes if JAX already has such
    a folder, or if none can be made. The oldest programs are removed when the store exceeds 512 MiB.

    Returns:
        The folder; None if programs are not stored.
    """
    global _settled
    if not _settled:
        _settled = True
        wanted = os.environ.get(VARIABLE) or platformdirs.user_cache_path("flowsim") / "programs"
        if wanted != "off" and _read("jax_compilation_cache_dir") is None and _read("jax_enable_compilation_cache"):
            folder = Path(wanted) / _processor()
            with contextlib.suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                jax.config.update("jax_compilation_cache_dir", str(folder))
                jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
                jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
                # JAX decides at its first compilation whether to store, which may have happened already.
                compilation_cache.reset_cache()
    folder = _read("jax_compilation_cache_dir")
    return None if folder is None else Path(folder)


def make_room() -> None:
    """Clear JAX's compiled programs if the process cannot hold many more; call it between solves.

    Linux allows a process 65,530 memory regions by default (vm.max_map_count). The program of a solve takes about 200,
    and XLA crashes with a segmentation fault when none is left, after about 170 flows of different structure. Programs
    that are needed again are read from the store.
    """
    global _counted, _compiled
    if not _counted:
        _counted = True
        jax.monitoring.register_event_duration_secs_listener(_count)
    if _compiled < _LOOK:
        return
    _compiled = 0
    with contextlib.suppress(OSError, ValueError):
        if _regions() > int(_MOST_REGIONS.read_text()) // 2:
            with _tracing:
                jax.clear_caches()


def _count(event: str, duration_secs: float, **_: Any) -> None:
    global _compiled
    _compiled += event == "/jax/core/compile/backend_compile_duration"


def _regions() -> int:
    with open("/proc/self/maps", "rb") as regions:
        return sum(1 for _ in regions)


def _read(option: str) -> Any:
    return getattr(jax.config, option)


def _processor() -> str:
    """A name for this type of processor, since programs may not run on another type and home folders are shared."""
    described = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def without_host_checks() -> Iterator[None]:
    """Trace diffrax without its run-time checks (of the order of output times), which call back to Python.

    JAX cannot store programs with callbacks. Use it only with times that were checked.
    """
    with _tracing:
        original = eqxi.error_if
        eqxi.error_if = lambda x, *_, **__: x
        try:
            yield
        finally:
            eqxi.error_if = original
