"""Provenance of results: the installed versions they depend on, and the time spent compiling."""

import functools
import importlib.metadata
from typing import Any

import jax


def versions() -> dict[str, str]:
    """Installed versions of the packages that determine the numbers, by name."""
    return {name: _version(name) for name in ("flowsim", "jax", "diffrax", "equinox", "numpy")}


@functools.cache
def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


class CompileTimer:
    """A context manager that measures the `seconds` JAX spends tracing and compiling inside it."""

    _open: "list[CompileTimer]" = []  # noqa: RUF012
    _listening = False

    def __enter__(self) -> "CompileTimer":
        self.seconds = 0.0
        if not CompileTimer._listening:
            jax.monitoring.register_event_duration_secs_listener(CompileTimer._heard)
            CompileTimer._listening = True
        CompileTimer._open.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        CompileTimer._open.remove(self)

    @staticmethod
    def _heard(event: str, duration_secs: float, **_: Any) -> None:
        if event.startswith("/jax/core/compile/"):
            for timer in CompileTimer._open:
                timer.seconds += duration_secs
