"""The contrastive loss against the size of a shift along the gap, as in figure 3 of Liang et al. 2022."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsim import observables
from flowsim.base.arrays import on_cpu
from flowsim.model.losses import InfoNCE
from flowsim.model.pairing import Targets
from flowsim.observables.blocks import Rows
from flowsim.progress import Progress, track

#: Shifts, as fractions of the gap: 0 leaves the rows, 1 makes the means coincide, negative ones widen the gap.
SHIFTS: tuple[float, ...] = tuple(round(k / 20, 2) for k in range(-20, 41))
#: Temperatures of Liang et al. 2022, figure 3, and what lies between.
TEMPERATURES: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
#: At most this many pairs are in one loss, which grows with their number.
LOSS_PAIRS = 2_000


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d) scaled to unit length, float64."""
    return Rows(rows)[:]


def moved(image: np.ndarray, text: np.ndarray, by: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both modalities moved towards each other by half of `by` each; not scaled to unit length."""
    return image - by / 2, text + by / 2


def losses(
    image: np.ndarray, text: np.ndarray, gap: np.ndarray, shifts: Sequence[float], temperatures: Sequence[float]
) -> np.ndarray:
    """InfoNCE of shifted pairs, (temperatures, shifts); of the first `LOSS_PAIRS` pairs, which come in random order."""
    found = []
    for shift in shifts:
        x, y = (unit(rows) for rows in moved(image[:LOSS_PAIRS], text[:LOSS_PAIRS], shift * gap))
        found.append(loss_of(x, y, temperatures))
    return np.array(found).T


def loss_of(image: np.ndarray, text: np.ndarray, temperatures: Sequence[float]) -> np.ndarray:
    """InfoNCE of unit rows (n, d), at each temperature; of the first `LOSS_PAIRS` pairs."""
    with on_cpu(), jax.enable_x64(True):
        z = jnp.asarray(image[:LOSS_PAIRS] @ text[:LOSS_PAIRS].T)
        return np.asarray(_losses(z, 1 / jnp.asarray(temperatures, jnp.float64)))


@jax.jit
def _losses(z: Any, betas: Any) -> Any:
    return jax.lax.map(lambda beta: InfoNCE().value(beta * z, Targets(None, None)), betas)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """The judged pairs, shifted along the gap of the fitted pairs.

    Attributes:
        shifts: λ, fractions of the gap, (S,).
        temperatures: τ, (T,).
        loss: InfoNCE, (T, S).
        gap: The modality gap after the shift, (S,).
        recall_at_1: R@1, mean of both directions, (S,).
        hits: Of each query, (S, queries): the mean of its two directions, whose mean is `recall_at_1`.
        pairs: Number of pairs in the loss.
    """

    shifts: np.ndarray
    temperatures: np.ndarray
    loss: np.ndarray
    gap: np.ndarray
    recall_at_1: np.ndarray
    hits: np.ndarray
    pairs: int

    @functools.cached_property
    def best(self) -> np.ndarray:
        """Index of the shift with the lowest loss, at each temperature, (T,)."""
        return np.argmin(self.loss, axis=1)

    @functools.cached_property
    def here(self) -> int:
        """Index of the shift 0."""
        return int(np.argmin(np.abs(self.shifts)))

    def rows(self) -> list[dict[str, Any]]:
        """For each temperature: the best shift and what it costs, against no shift, with a paired standard error."""
        found = []
        for tau, loss, k in zip(self.temperatures, self.loss, self.best, strict=True):
            change = self.hits[k] - self.hits[self.here]
            found.append(
                {
                    "temperature": float(tau),
                    "best_shift": float(self.shifts[k]),
                    "at_the_edge": bool(k in (0, len(self.shifts) - 1)),
                    "loss": float(loss[k]),
                    "loss_without_shift": float(loss[self.here]),
                    "modality_gap": float(self.gap[k]),
                    "recall_at_1": float(self.recall_at_1[k]),
                    "change_of_recall_at_1": float(change.mean()),
                    "standard_error": float(change.std(ddof=1) / np.sqrt(len(change))),
                }
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Curves and minima as plain data."""
        names = ("shifts", "temperatures", "loss", "gap", "recall_at_1")
        return {"pairs": self.pairs, **{name: getattr(self, name).tolist() for name in names}, "minima": self.rows()}


def landscape(
    image: np.ndarray,
    text: np.ndarray,
    gap: np.ndarray,
    hits: Any,
    temperatures: Sequence[float],
    shifts: Sequence[float],
    progress: Progress,
) -> Landscape:
    """The landscape of judged unit rows along the gap vector (d,) of the fitted ones.

    Args:
        image: Judged image rows (n, d).
        text: Judged text rows (n, d).
        gap: m_x − m_y of the fitted pairs (d,).
        hits: `hits(image, text)` gives the mean of both directions of R@1 of each query.
        temperatures: τ.
        shifts: λ; 0 is added.
        progress: Called before each step.
    """
    loss, gaps, found = [], [], []
    shifts = sorted({0.0, *shifts})
    for shift in track(shifts, progress, "loss landscape"):
        x, y = (unit(rows) for rows in moved(image, text, shift * gap))
        loss.append(loss_of(x, y, temperatures))
        with on_cpu():
            gaps.append(observables.modality_gap(x, y))
        found.append(hits(x, y))
    table = np.array(found)
    return Landscape(
        np.array(shifts), np.array(temperatures), np.array(loss).T, np.array(gaps), table.mean(axis=1), table,
        min(len(image), LOSS_PAIRS),
    )  # fmt: skip
