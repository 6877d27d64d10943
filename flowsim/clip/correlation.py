"""Rank correlation over methods, with an interval that counts methods and seeds."""

import dataclasses

import numpy as np
from scipy.stats import rankdata

#: Draws of the bootstrap.
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's ρ with a 95 % interval from resampling methods (and seeds within them).

    Attributes:
        rho: Spearman's ρ of the means over seeds.
        low: Lower end of the interval.
        high: Upper end of the interval.
        methods: Number of methods.
    """

    rho: float
    low: float
    high: float
    methods: int

    def __repr__(self) -> str:
        return f"ρ = {self.rho:+.2f} [{self.low:+.2f}, {self.high:+.2f}] over {self.methods} methods"


def rank_correlation(x: np.ndarray, y: np.ndarray, seed: int = 0) -> Correlation | None:
    """Spearman's ρ of the means over seeds, with a bootstrap over methods and seeds within them.

    Args:
        x: (methods, seeds); NaN where a seed is missing.
        y: (methods, seeds), or (methods, 1).
        seed: Seed of the bootstrap.

    Returns:
        The correlation; None with fewer than four methods, and if all means of x or of y are equal.
    """
    good = np.isfinite(x).any(axis=1) & np.isfinite(y).any(axis=1)
    if good.sum() < 4:
        return None
    x, y = x[good], y[good]
    if np.ptp(np.nanmean(x, 1)) == 0 or np.ptp(np.nanmean(y, 1)) == 0:
        return None
    rng = np.random.default_rng(seed)
    methods = rng.integers(0, len(x), (_DRAWS, len(x)))
    a, b = (_resampled(values[methods], rng) for values in (x, y))
    draws = [_spearman(u, v) for u, v in zip(a, b, strict=True) if np.ptp(u) > 0 and np.ptp(v) > 0]
    if not draws:
        return None
    low, high = np.quantile(draws, [0.025, 0.975])
    return Correlation(_spearman(np.nanmean(x, 1), np.nanmean(y, 1)), float(low), float(high), len(x))


def _resampled(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap means over the last axis: as many draws with replacement as there are values (NaN: missing)."""
    missing = np.isnan(values)
    there = np.take_along_axis(values, np.argsort(missing, axis=-1, kind="stable"), -1)
    count = (~missing).sum(-1, keepdims=True)
    drawn = np.take_along_axis(there, np.floor(rng.random(values.shape) * count).astype(int), -1)
    return np.where(np.arange(values.shape[-1]) < count, drawn, 0.0).sum(-1) / count[..., 0]


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])
