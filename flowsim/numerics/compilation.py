"""How programs are compiled: once a machine, by storing them from one process to the next; and how many are held."""

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

#: A folder for compiled programs, or "off". JAX's own `JAX_COMPILATION_CACHE_DIR` goes before it.
VARIABLE = "FLOWSIM_CACHE"
_MAX_BYTES = 512 * 2**20
_MOST_REGIONS = Path("/proc/sys/vm/max_map_count")
#: Programs compiled between two looks at how many more the process can hold.
_LOOK = 32
_tracing = threading.RLock()
_settled = False
_counted = False
_compiled = 0


def store_programs() -> Path | None:
    """Let JAX keep compiled programs in the user's cache folder; the folder, or None where it is off.

    `FLOWSIM_CACHE` names another folder, or is "off". A folder that the session has set in JAX already is
    left alone, and so is everything where no folder can be made. Oldest programs go when 512 MiB are full.
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
                # JAX decides about storing at its first compilation, which may be long ago.
                compilation_cache.reset_cache()
    folder = _read("jax_compilation_cache_dir")
    return None if folder is None else Path(folder)


def make_room() -> None:
    """Let JAX forget its compiled programs where the process could not hold many more; call it between solves.

    Linux grants a process 65,530 regions of memory (vm.max_map_count). A solver's program takes about 200, and XLA
    ends the process with a segmentation fault where it gets none: after some 170 flows of different structure.
    What is needed again is read from the store.
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
    """A name for this kind of processor: programs of one may not run on another, and homes are shared."""
    described = platform.machine() + platform.processor()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        described += next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


@contextlib.contextmanager
def without_host_checks() -> Iterator[None]:
    """Trace diffrax without its checks at run time (the order of output times), which call back to Python.

    JAX cannot store programs that call back. Whoever uses this has checked the times already.
    """
    with _tracing:
        original = eqxi.error_if
        eqxi.error_if = lambda x, *_, **__: x
        try:
            yield
        finally:
            eqxi.error_if = original
