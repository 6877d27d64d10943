"""Several modalities: every metric of each pair of them, as matrices."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.base.checks import check, check_choice, shown
from flowsim.base.html import table
from flowsim.errors import FlowsimError, unknown_name
from flowsim.observables.reports import Report, report
from flowsim.observables.table import RECALLS, REGISTRY, names
from flowsim.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

#: Metrics of one modality -> what a report calls them.
_OF_ONE = {name: (f"image_{name}", f"text_{name}") for name in ("centre_norm", "uniformity", "effective_rank")}
#: Metrics from one modality to another -> what a report calls both directions.
_DIRECTED = {f"retrieval_at_{k}": (f"image_to_text_at_{k}", f"text_to_image_at_{k}") for k in (1, 5, 10)}
_SHARES = {part: name for name, parts in (_OF_ONE | _DIRECTED).items() for part in parts}


@dataclass(frozen=True, repr=False)
class Pairwise:
    """Metrics of all pairs of modalities, from `pairwise`.

    Attributes:
        modalities: Names of the M modalities.
        values: By name of the metric, an (M, M) array with NaN on the diagonal and where a value is missing; (M,) for
            `centre_norm`, `uniformity` and `effective_rank`, which belong to one modality. Entry (a, b) of
            `retrieval_at_k` is the recall of queries of a among the rows of b.
        reports: The report of each pair, by names in the order of `modalities`; it calls the first `image`, the second
            `text`, and has the reasons for missing values, and samples. Metrics of one modality stand in the first
            report in which it occurs, and in those that would have no other.
    """

    modalities: tuple[str, ...]
    values: dict[str, np.ndarray]
    reports: dict[tuple[str, str], Report]

    def __getitem__(self, name: str) -> xr.DataArray:
        """A metric as a labelled array with dimensions `modality` and, for pairs, `other`.

        Raises:
            FlowsimError: For an unknown name.
        """
        import xarray as xr

        if name not in self.values:
            raise unknown_name("observable", name, self.values)
        array, labels = self.values[name], list(self.modalities)
        dims = ("modality", "other")[: array.ndim]
        return xr.DataArray(array, dict.fromkeys(dims, labels), dims, name, {"description": self._description(name)})

    def __repr__(self) -> str:
        width = max(10, *map(len, self.modalities))
        parts = [f"Pairwise: {self._title}"]
        for name in self.values:
            parts += ["", f"{name}: {self._description(name)}"]
            parts += [
                "  ".join([f"{row[0]:<{width}}", *(f"{cell:>{width}}" for cell in row[1:])]) for row in self._rows(name)
            ]
        return "\n".join(parts)

    def _repr_html_(self) -> str:
        return "".join(
            table(rows[1:], rows[0], f"{name}: {self._description(name)}", names=True)
            for name in self.values
            for rows in [self._rows(name)]
        )

    def to_json(self) -> str:
        """All matrices and the report of each pair as strict JSON, with null for a missing value."""
        content = {
            "modalities": self.modalities,
            "values": {name: _plain(array) for name, array in self.values.items()},
            "reports": {f"{a}, {b}": json.loads(one.to_json()) for (a, b), one in self.reports.items()},
        }
        return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)

    @property
    def _title(self) -> str:
        rows = {}
        for (a, b), one in self.reports.items():
            rows |= {a: one.image_rows, b: one.text_rows}
        one = next(iter(self.reports.values()))
        temperature = "" if one.temperature is None else f", temperature {one.temperature:g}"
        counts = ", ".join(f"{name} {count} rows" for name, count in rows.items())
        return f"{counts}, dimension {one.dim}{temperature}"

    def _rows(self, name: str) -> list[list[str]]:
        """Cells of a table with head."""
        array = self.values[name]
        cells = np.atleast_2d(array) if array.ndim == 1 else array
        labels = [""] if array.ndim == 1 else self.modalities
        shown_ = [["–" if math.isnan(value) else f"{value:.6g}" for value in row] for row in cells]
        return [["", *self.modalities], *([label, *row] for label, row in zip(labels, shown_, strict=True))]

    def _description(self, name: str) -> str:
        part = (_OF_ONE | _DIRECTED).get(name, (name,))[0]
        text = REGISTRY[part].description
        if name in _DIRECTED:
            return f"recall of the true row among the rows of the other modality (columns): {text.partition(': ')[2]}"
        missing = {one.reasons[part] for one in self.reports.values() if part in one.reasons}
        return text + (f" ({missing.pop()})" if len(missing) == 1 and np.isnan(self.values[name]).all() else "")


def pairwise(
    rows: Mapping[str, Any],
    temperature: Any = None,
    *,
    only: Collection[str] | None = None,
    seed: int = 0,
    exact: bool = False,
    progress: Progress = silent,
) -> Pairwise:
    """Every metric for each pair of several modalities.

    Args:
        rows: Rows (n, d) of each modality by its name, e.g. {"image": x, "text": y, "audio": z}; row i of all belongs
            together where they have as many rows. d must be the same.
        temperature: τ > 0, which some metrics need.
        only: Names of the metrics to compute, as in a report, or `centre_norm`, `uniformity`, `effective_rank` and
            `retrieval_at_1`, 5 and 10. Default: all.
        seed: Seed of splits and samples.
        exact: Whether all rows are compared also above 20,000 rows; see `report`.
        progress: Called with a short message before each long step.

    Returns:
        A `Pairwise`: `result["modality_gap"]` is an xarray DataArray, modality by modality.

    Raises:
        FlowsimError: For fewer than two modalities, for unknown names, and for invalid rows, see `report`.

    Examples:
        >>> import numpy as np
        >>> import flowsim as fs
        >>> rng = np.random.default_rng(0)
        >>> shifts = {"image": 2, "text": 0, "audio": -2}
        >>> rows = {name: rng.normal(size=(50, 4)) + shift for name, shift in shifts.items()}
        >>> gaps = fs.observables.pairwise(rows, only=["modality_gap"])["modality_gap"]
        >>> float(gaps.sel(modality="image", other="audio").round(2))
        1.84
    """
    check(
        isinstance(rows, Mapping) and len(rows) > 1 and all(isinstance(name, str) and name for name in rows),
        "Several modalities are given as a dictionary of at least two, e.g. {'image': x, 'text': y, 'audio': z}, but "
        f"got {shown(list(rows) if isinstance(rows, Mapping) else rows)}.",
    )
    wanted = _wanted(only)
    modalities = tuple(rows)
    place = {name: k for k, name in enumerate(modalities)}
    count = len(modalities)
    values = {
        name: np.full(count if name in _OF_ONE else (count, count), math.nan)
        for name in dict.fromkeys(_SHARES.get(one, one) for one in wanted)
    }
    reports, seen = {}, set()
    for a, b in itertools.combinations(modalities, 2):
        known = {
            part for name, parts in _OF_ONE.items() for one, part in zip((a, b), parts, strict=True) if one in seen
        }
        names_ = [name for name in wanted if name not in known] or wanted
        seen |= {a, b}

        def measured(first: str, second: str, only: list[str], step: Progress = _of_pair(progress, a, b)) -> Report:
            try:
                return report(rows[first], rows[second], temperature, seed=seed, only=only, exact=exact, progress=step)
            except FlowsimError as error:
                called = {"image": first, "text": second}
                named = re.sub("`(image|text)`", lambda match: f"`{called[match[1]]}`", str(error))
                raise FlowsimError(named) from error

        reports[a, b] = found = measured(a, b, names_)
        i, j = place[a], place[b]
        for name, value in found.values.items():
            if name in RECALLS:
                at = (i, j) if name.startswith("image") else (j, i)
                values[_SHARES[name]][at] = value
            elif name in _SHARES:
                values[_SHARES[name]][i if name.startswith("image") else j] = value
            else:
                values[name][i, j] = values[name][j, i] = value
        own = [name for name in names_ if not REGISTRY.is_ours(name)]
        if own:  # which need not be symmetric
            for name, value in measured(b, a, own).values.items():
                values[name][j, i] = value
    return Pairwise(modalities, values, reports)


def _of_pair(progress: Progress, a: str, b: str) -> Progress:
    """A progress that names the pair."""

    def step(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        progress(f"{a}, {b}: {text}", done, total, **numbers)

    return step


def _wanted(only: Collection[str] | None) -> list[str]:
    """Names for reports, in their order."""
    known = names()
    if only is None:
        return known
    check(
        isinstance(only, list | tuple | set | frozenset) and len(only) > 0,
        f"Argument `only` must be a list of names, but is {shown(only)}. Use e.g. ['modality_gap'].",
    )
    chosen: set[str] = set()
    for name in only:
        check_choice("observable", name, [*known, *_OF_ONE, *_DIRECTED])
        chosen |= set((_OF_ONE | _DIRECTED).get(_SHARES.get(name, name), (name,)))
    return [name for name in known if name in chosen]


def _plain(array: np.ndarray) -> Any:
    """Nested lists with None for NaN."""
    plain = array.astype(object)
    plain[~np.isfinite(array)] = None
    return plain.tolist()
