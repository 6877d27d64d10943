"""Results of a sweep: columns by run, in memory and in a Zarr folder from which later calls resume."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from flowsim.base.checks import check
from flowsim.errors import FlowsimError
from flowsim.records.status import Status

#: Runs that one thread computes and that are stored together.
CHUNK = 128


class Found:
    """Columns of results by run."""

    def __init__(self, runs: int, times: int, observables: Sequence[str]) -> None:
        self.series = {name: np.full((runs, times), np.nan) for name in observables}
        self.known: set[str] = set()
        self.status = np.full(runs, "", dtype="<U24")
        self.stopped_at = np.full(runs, np.nan)
        self.steps = np.zeros(runs, np.int64)

    @property
    def done(self) -> np.ndarray:
        """Mask of the finished runs."""
        return self.status != ""

    def put(self, indices: list[int], values: list[dict[str, Any]]) -> None:
        """Store the results of these runs."""
        for index, one in zip(indices, values, strict=True):
            for name, column in self.series.items():
                if name in one:
                    column[index] = one[name]
                    self.known.add(name)
            self.status[index], self.stopped_at[index], self.steps[index] = (
                one["status"],
                one["stopped_at"],
                one["steps"],
            )

    def columns(self) -> dict[str, np.ndarray]:
        """All columns, without observables that no run has."""
        series = {name: values for name, values in self.series.items() if name in self.known}
        return {**series, "status": self.status, "stopped_at": self.stopped_at, "steps": self.steps}


class Store:
    """A Zarr folder that is filled run by run; `found` holds the runs that are already there."""

    def __init__(
        self, path: Path, runs: int, times: np.ndarray, observables: Sequence[str], settings: dict[str, Any]
    ) -> None:
        check(path.suffix == ".zarr", f"Sweeps are stored in a .zarr folder, but got {path.name!r}. Use e.g. run.zarr.")
        try:
            import zarr
        except ImportError:
            raise FlowsimError("Storing a sweep needs zarr. Install it: pip install 'flowsim[sweep]'.") from None
        text = json.dumps({**settings, "times": times.tolist()}, sort_keys=True)
        self.found = Found(runs, len(times), observables)
        fresh = not path.exists() or (path.is_dir() and not any(path.iterdir()))
        try:
            self.group = zarr.open_group(str(path), mode="a" if fresh else "r+")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "something else is stored there"
            raise FlowsimError(f"Cannot write {str(path)!r}: {reason}. Choose another folder.") from None
        attrs = self.group.attrs
        if not fresh:
            held = json.loads(str(attrs.get("config", "{}")))
            held.setdefault("code", {})  # missing in older folders
            changed = [name for name, code in settings["code"].items() if held["code"].get(name, code) != code]
            check(
                not changed,
                f"The code of {' and '.join(map(repr, changed))} is not that with which {str(path)!r} was made. Use "
                "another folder, or delete this one.",
            )
            check(
                held == json.loads(text),
                f"{str(path)!r} holds another sweep. Use the settings it was made with, or another folder.",
            )
            self.arrays: dict[str, Any] = dict(self.group.arrays())
            self._read()
            return
        step, create = min(CHUNK, runs), self.group.create_array
        size: Any = {"shape": (runs,), "chunks": (step,)}
        table: Any = {"shape": (runs, len(times)), "chunks": (step, len(times))}
        self.arrays = {name: create(name, **table, dtype="float64", fill_value=np.nan) for name in observables}
        self.arrays["status"] = create("status", **size, dtype="int8", fill_value=-1)
        self.arrays["stopped_at"] = create("stopped_at", **size, dtype="float64", fill_value=np.nan)
        self.arrays["steps"] = create("steps", **size, dtype="int64", fill_value=0)
        attrs["known"] = []
        attrs["config"] = text

    def _read(self) -> None:
        names = [status.name for status in Status]
        self.found.status[:] = [names[c] if c >= 0 else "" for c in self.arrays["status"][:]]
        self.found.stopped_at[:] = self.arrays["stopped_at"][:]
        self.found.steps[:] = self.arrays["steps"][:]
        for name, column in self.found.series.items():
            column[:] = self.arrays[name][:]
        self.found.known = set(self._known)

    @property
    def _known(self) -> list[Any]:
        known = self.group.attrs["known"]
        assert isinstance(known, list)
        return known

    def write(self, indices: list[int]) -> None:
        """Store these runs, their status last, so that runs that are stored only in part are computed again."""
        where = np.asarray(indices)
        found = self.found
        if found.known != set(self._known):
            self.group.attrs["known"] = sorted(found.known)
        names = [status.name for status in Status]
        status = np.asarray([names.index(s) for s in found.status[where]], np.int8)
        for name, column in (found.series | {"stopped_at": found.stopped_at, "steps": found.steps}).items():
            self.arrays[name].oindex[where] = column[where]
        self.arrays["status"].oindex[where] = status
