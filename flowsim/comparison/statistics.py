"""Least-squares lines, with intervals that allow for deviations that are correlated in time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: A bend counts if a parabola departs from the line by more than this fraction of the range, at this significance.
BEND, BEND_LEVEL = 0.05, 0.01


@dataclasses.dataclass(frozen=True)
class Deviations:
    """Error of a linear estimate, Σ w u of deviations u, as a mixture of Student distributions.

    The deviations are an AR(1) process plus white noise: their correlation at a distance of k evaluations is
    (1 - q) ρ^k, plus q at k = 0. ρ and q are unknown, and estimates of them are biased low in short series. Therefore
    each pair (ρ, q) on a grid has its error (`scales`) and its weight (`weights`), the restricted likelihood of the
    residuals (Harville 1974) with the prior 1/√(1 - ρ²), which lies between priors flat in ρ and flat in artanh ρ.
    """

    weights: np.ndarray
    scales: np.ndarray
    freedom: int

    #: Longer series are averaged over neighbours to this number of points.
    most = 128

    @classmethod
    def of(cls, design: np.ndarray, deviations: np.ndarray, estimator: np.ndarray) -> "Deviations":
        """From the fitted columns (T, p), the residuals (T,), and the weights w (T,) of the estimate."""
        if len(design) > cls.most:
            groups = np.array_split(np.arange(len(design)), cls.most)
            design, deviations = (np.stack([v[g].mean(0) for g in groups]) for v in (design, deviations))
            estimator = np.array([estimator[g].sum() for g in groups])
        count, lost = design.shape
        size = float(np.abs(deviations).max())
        deviations = deviations / size if size > 0 else deviations
        apart = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
        found = []
        for rho in np.tanh(np.linspace(0.0, 4.0, 14)):
            for noise in (0.0, 0.35, 0.7) if rho > 0 else (0.0,):
                correlation = (1 - noise) * rho**apart + noise * np.eye(count)
                root = np.linalg.cholesky(correlation)
                columns, rest = np.split(np.linalg.solve(root, np.column_stack([design, deviations])), [lost], 1)
                q, r = np.linalg.qr(columns)
                rest = rest[:, 0] - q @ (q.T @ rest[:, 0])
                square = max(float(rest @ rest), 1e-300)
                likelihood = -np.log(np.diag(root)).sum() - np.log(np.abs(np.diag(r))).sum()
                likelihood -= (count - lost) / 2 * math.log(square)
                prior = 0.5 * math.log1p(-(rho**2)) - (math.log(3) if rho > 0 else 0.0)
                variance = square / (count - lost) * float(estimator @ correlation @ estimator)
                found.append((likelihood + prior, math.sqrt(variance) * size))
        logs, scales = np.array(found).T
        weights = np.exp(logs - logs.max())
        return cls(weights / weights.sum(), scales, count - lost)

    def half_width(self) -> float:
        """Half width of the 95 % interval."""
        from scipy.optimize import brentq
        from scipy.stats import t as student

        last = float(student.ppf(0.975, self.freedom) * self.scales.max())
        if last <= 0:
            return 0.0
        return float(brentq(lambda half: self.p(half) - 0.05, 0.0, last * (1 + 1e-9)))  # pyright: ignore

    def p(self, estimate: float) -> float:
        """Two-sided p-value of an estimate for the hypothesis that it is zero."""
        from scipy.stats import t as student

        scales = np.maximum(self.scales, 1e-300)
        return float(2 * self.weights @ student.sf(abs(estimate) / scales, self.freedom))


class Slope(NamedTuple):
    """Slope of a line with its 95 % interval, its intercept, and R²."""

    slope: float
    interval: list[float]
    intercept: float
    r2: float


def fit_slope(x: np.ndarray, y: np.ndarray) -> Slope:
    """Least-squares line through points (T,), T > 2, with the interval of its slope."""
    dx = x - x.mean()
    estimator = dx / np.sum(dx * dx)
    slope = float(estimator @ y)
    intercept = float(y.mean() - slope * x.mean())
    deviations = y - intercept - slope * x
    half = Deviations.of(np.column_stack([np.ones_like(dx), dx / np.std(dx)]), deviations, estimator).half_width()
    spread = float(np.sum((y - y.mean()) ** 2))
    r2 = 1 - float(np.sum(deviations**2)) / spread if spread > 0 else math.nan
    return Slope(slope, [slope - half, slope + half], intercept, r2)


@dataclasses.dataclass(frozen=True)
class Line:
    """A least-squares line and its bend: the fraction of the range by which a parabola departs, and its p-value."""

    slope: float
    intercept: float
    r2: float
    bend: float
    p: float

    @property
    def straight(self) -> bool:
        """Whether there is no significant bend."""
        return not (self.bend > BEND and self.p < BEND_LEVEL)


def fit_line(x: np.ndarray, y: np.ndarray) -> Line:
    """Least-squares line through points (T,), and its bend.

    The p-value is for independent deviations, which is fast; use `fit_tested_line` for verdicts.
    """
    from scipy.stats import f

    u = (x - x.mean()) / max(float(np.std(x)), 1e-300)
    linear = np.polynomial.polynomial.polyfit(u, y, 1)
    square = np.polynomial.polynomial.polyfit(u, y, 2)
    fitted = [np.polynomial.polynomial.polyval(u, c) for c in (linear, square)]
    errors = [float(np.sum((y - v) ** 2)) for v in fitted]
    total = float(np.sum((y - y.mean()) ** 2))
    rest = max(errors[1], 1e-24 * total)
    statistic = max(errors[0] - errors[1], 0.0) / (rest / max(len(x) - 3, 1))
    p = float(f.sf(statistic, 1, max(len(x) - 3, 1))) if total > 0 else 1.0
    width = float(np.ptp(y))
    bend = float(np.max(np.abs(fitted[1] - fitted[0]))) / width if width > 0 else 0.0
    slope = float(linear[1] / max(float(np.std(x)), 1e-300))
    r2 = 1 - errors[0] / total if total > 0 else math.nan
    return Line(slope, float(linear[0]) - slope * float(x.mean()), r2, bend, p)


def fit_tested_line(x: np.ndarray, y: np.ndarray) -> Line:
    """`fit_line` with the p-value of its bend for deviations that may be correlated."""
    u = (x - x.mean()) / np.std(x)
    design = np.stack([np.ones_like(u), u, u * u], axis=1)
    inverse = np.linalg.pinv(design)
    coefficients = inverse @ y
    p = Deviations.of(design, y - design @ coefficients, inverse[2]).p(float(coefficients[2]))
    return dataclasses.replace(fit_line(x, y), p=p)


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def finite_mean(values: Sequence[float]) -> float:
    """Mean of the finite values; NaN if there are none."""
    good = [v for v in values if math.isfinite(v)]
    return sum(good) / len(good) if good else math.nan
