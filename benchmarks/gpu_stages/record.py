"""The record of one stage of `benchmarks/gpu.py`: parts that are measured one by one, and a file that is always whole.

Every stage is a script with the same options:

    python benchmarks/gpu_stages/machine.py --out DIR [--seconds 60] [--tiny]

writes DIR/machine.json after every part. Parts that are finished there are not measured again, a part that fails does
not stop the next, and a part for which too little time is left is left out and named.
"""

import argparse
import importlib.metadata
import json
import math
import os
import platform
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Torch and JAX share the card: neither may take all of its memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from flowsim.base.files import write_text

_PACKAGES = ("flowsim", "jax", "jaxlib", "diffrax", "numpy", "scipy", "torch", "torchvision", "timm", "open_clip_torch")


class Record:
    """The record of a stage, made from the command line of its script.

    - `tiny`: small sizes, for a rehearsal on any machine.
    - `out`: folder of the record, and of other files of the stage.
    - `options`: all options.
    """

    def __init__(self, description: str | None, **defaults: Any) -> None:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--out", type=Path, required=True, help="folder of the record")
        parser.add_argument("--seconds", type=float, default=600.0, help="time that the stage may take")
        parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal on any machine")
        for name, value in defaults.items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
        self.options = parser.parse_args()
        self.out, self.tiny = self.options.out, self.options.tiny
        self.name = Path(sys.argv[0]).stem
        self._begin = time.monotonic()
        self._path = self.out / f"{self.name}.json"
        head = {"stage": self.name, "tiny": self.tiny, "device": device_name(), "versions": _versions()}
        held = json.loads(self._path.read_text(encoding="utf-8")) if self._path.is_file() else {}
        same = all(held.get(key) == value for key, value in head.items())
        self._held: dict[str, Any] = {**head, "complete": False, "parts": held["parts"] if same else {}}
        self._write()

    @property
    def left(self) -> float:
        """Seconds that are left to the stage."""
        return self.options.seconds - (time.monotonic() - self._begin)

    def part(self, name: str, measure: Callable[[], Any], needs: float = 0.0, again: bool = False) -> Any:
        """Measure one part, unless it is in the record already; returns its result, or None.

        Args:
            name: Name of the part.
            measure: Function that measures it, and returns what JSON can hold.
            needs: Seconds that it takes; it is left out if fewer are left.
            again: Measure it even if it is in the record.

        Returns:
            The result; None if the part failed or was left out.
        """
        before = self._held["parts"].get(name, {})
        if "result" in before and not again:
            print(f"{self.name}: {name}: in the record already", flush=True)
            return before["result"]
        if self.left < needs:
            self._note(name, {"left_out": f"needs {needs:.0f} s, but {max(self.left, 0):.0f} s are left"})
            return None
        begin = time.monotonic()
        try:
            found: dict[str, Any] = {"result": _plain(measure())}
        except Exception as error:  # whatever happens, the next part is measured
            traceback.print_exc()
            found = {
                **{k: v for k, v in self._held["parts"].get(name, {}).items() if k == "so_far"},
                "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"[:500],
            }
        self._note(name, {**found, "seconds": round(time.monotonic() - begin, 3)})
        return found.get("result")

    def so_far(self, name: str, found: Any) -> None:
        """Write what there is of a part that is not finished: all that remains should the stage be ended."""
        if "result" not in self._held["parts"].get(name, {}):
            self._held["parts"][name] = {"so_far": _plain(found)}
            self._write()

    def result(self, name: str) -> Any:
        """The result of an earlier part, or None."""
        return self._held["parts"].get(name, {}).get("result")

    def finish(self) -> None:
        """Mark the record as complete if every part has a result."""
        self._held["complete"] = all("result" in part for part in self._held["parts"].values())
        self._write()

    def _note(self, name: str, found: dict[str, Any]) -> None:
        self._held["parts"][name] = found
        self._write()
        text = json.dumps(found.get("result", found))
        print(
            f"{self.name}: {name}: {text[:600]}{'...' * (len(text) > 600)} ({found.get('seconds', 0):.1f} s)",
            flush=True,
        )

    def _write(self) -> None:
        write_text(self._path, json.dumps(self._held, indent=1) + "\n")


def device_name() -> str:
    """Name of the card, or of the processor where there is none."""
    try:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    except ImportError:
        pass
    model = [
        line.partition(":")[2].strip()
        for line in (Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ())
        if line.startswith("model name")
    ]
    return f"{model[0] if model else platform.machine()}, {os.cpu_count()} cores"


def has_gpu() -> bool:
    """Whether PyTorch has a GPU."""
    try:
        import torch
    except ImportError:
        return False
    return torch.cuda.is_available()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plain(value: Any) -> Any:
    """A value for JSON: numbers of NumPy become plain, and those that are not finite None."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
