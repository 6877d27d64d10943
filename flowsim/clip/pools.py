"""The pairs of a run, for training and for evaluation; many short runs in one process reuse them."""

import functools
import os
from pathlib import Path
from typing import Any

from flowsim.base.checks import check
from flowsim.clip import data
from flowsim.clip.settings import Training


def load_pools(settings: Training) -> tuple[data.Pairs, data.Pairs]:
    """Training pairs and held-out pairs; subsets are the same for every seed."""
    training = _pairs(settings.data, settings.split, settings.limit)
    held_out = _pairs(settings.held_out_data or settings.data, settings.held_out, settings.pairs)
    for pairs, name in ((training, settings.split), (held_out, settings.held_out)):
        where = f"{pairs.source!r}" if name is None else f"{pairs.source!r}, split {name!r},"
        check(len(pairs) >= 2, f"{where} has fewer than 2 pairs. Give more.")
    return training, held_out


def _pairs(source: str, split: str | None, limit: int | None) -> data.Pairs:
    return _loaded(source, split, limit, (data.reader_of(source), _stamp(source)))


@functools.lru_cache(maxsize=4)
def _loaded(source: str, split: str | None, limit: int | None, stamp: Any) -> data.Pairs:
    return data.load(source, split, limit=limit)


def _stamp(source: str) -> Any:
    """A value that changes with the files of a source: their modification times, as far as these are cheap to get."""
    if data.is_generated(source):
        return None
    path = Path(source)
    seen = [path, *(path / f"{name}.{kind}" for name in ("captions", "splits") for kind in ("tsv", "csv"))]
    times = tuple(p.stat().st_mtime_ns for p in seen if os.path.exists(p))
    return times or object()  # for a pattern there are no times, so nothing is reused
