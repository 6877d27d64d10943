"""The grid of a sweep over settings and seeds, and the runs at its points."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np

from flowsim.base import paths
from flowsim.base.checks import check
from flowsim.errors import FlowsimError
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.observables.table import REGISTRY


class Grid:
    """Names, values and shape of the swept parameters."""

    def __init__(self, over: Mapping[str, Iterable[Any]], mode: str) -> None:
        check(len(over) > 0, 'Nothing to sweep. Give e.g. over={"seed": range(8)}.')
        self.over = {path: _values(path, values) for path, values in over.items()}
        lengths = {len(values) for values in self.over.values()}
        self.zipped = mode == "zip"
        check(
            not self.zipped or len(lengths) == 1,
            f"With mode='zip' all values need the same length, but have {sorted(lengths)}. "
            "Give the same number of each, or use mode='product'.",
        )
        # Some paths, such as "loss", are also names of observables.
        self.names = {path: f"flow.{path}" if path in REGISTRY else path for path in self.over}
        self.dims = ("run",) if self.zipped else tuple(self.names.values())
        self.shape = (lengths.pop(),) if self.zipped else tuple(len(values) for values in self.over.values())

    def points(self) -> Iterable[dict[str, Any]]:
        """Path -> value at every point of the grid."""
        combine = zip(*self.over.values(), strict=True) if self.zipped else itertools.product(*self.over.values())
        for values in combine:
            yield dict(zip(self.over, values, strict=True))

    def coords(self) -> dict[str, Any]:
        """Coordinates of the dataset."""
        return {
            name: ("run" if self.zipped else name, np.asarray([_label(value) for value in self.over[path]]))
            for path, name in self.names.items()
        }

    def described(self) -> dict[str, Any]:
        """Path -> values as plain data."""
        return {
            path: [paths.to_config(v) if isinstance(v, eqx.Module) else _label(v) for v in values]
            for path, values in self.over.items()
        }


def _values(path: str, values: Iterable[Any]) -> list[Any]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
        raise FlowsimError(f"The values of {path!r} must be a list, but are {values!r}. Use e.g. [{values!r}].")
    found = list(np.asarray(values) if isinstance(values, jax.Array) else values)
    check(len(found) > 0, f"There are no values for {path!r}. Give at least one.")
    return found


def _label(value: Any) -> Any:
    """The coordinate of a value: itself, or a short text for an object."""
    if isinstance(value, (np.ndarray, np.generic, jax.Array)) and np.ndim(value) == 0:
        return value.item()
    if isinstance(value, Start):
        return f"Start {digest(value)['sha256'][:8]}"
    if not isinstance(value, eqx.Module):
        return value if isinstance(value, (bool, int, float, str)) else str(value)
    fields = dataclasses.fields(value)  # pyright: ignore[reportArgumentType]
    inner = ", ".join(f"{f.name}={_short(getattr(value, f.name))}" for f in fields if f.init)
    return f"{type(value).__name__}({inner})"


def digest(start: Start) -> dict[str, Any]:
    """A hash of the arrays of a start, as plain data."""
    arrays = {f.name: getattr(start, f.name) for f in dataclasses.fields(start)}
    text = json.dumps({name: paths.to_config(array) for name, array in arrays.items()})
    return {"kind": "Start", "sha256": hashlib.sha256(text.encode()).hexdigest()}


def _short(value: Any) -> str:
    value = _label(value)
    return f"{value:g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


@dataclasses.dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    flow: GradientFlow
    start: Start | AbstractRecipe
    seed: int


def job_of(flow: GradientFlow, start: Start | AbstractRecipe, seed: int, values: dict[str, Any]) -> Job:
    """The run at a point of the grid, given as path -> value."""
    values = dict(values)
    seed = values.pop("seed", seed)
    check(
        isinstance(seed, (int, np.integer)) and 0 <= seed < 2**32,
        f"Seeds must be whole numbers from 0 to 2**32 - 1, but one is {seed!r}. Use e.g. range(8).",
    )
    start = values.pop("start", start)
    inner = {path.removeprefix("start."): v for path, v in values.items() if path.startswith("start.")}
    if inner:
        check(
            isinstance(start, AbstractRecipe),
            "Paths into `start` need a recipe, not rows. Use e.g. fs.initial.cones().",
        )
        start = paths.replace(start, inner)
    outer = {path: v for path, v in values.items() if not path.startswith("start.")}
    return Job(flow.replace(**outer) if outer else flow, start, int(seed))


def structures(jobs: list[Job]) -> list[Any]:
    """A key for each job; jobs with equal keys share their programs."""
    known: dict[tuple[int, int], Any] = {}  # most jobs share the objects themselves

    def structure(job: Job) -> Any:
        leaves, tree = jax.tree.flatten(job.flow)
        recipe = jax.tree.flatten(job.start)
        shapes = tuple(np.shape(x) for x in recipe[0])
        return tree, recipe[1], shapes, tuple(np.shape(x) for x in leaves)

    for job in jobs:
        if (key := (id(job.flow), id(job.start))) not in known:
            known[key] = structure(job)
    return [known[id(job.flow), id(job.start)] for job in jobs]
