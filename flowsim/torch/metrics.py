"""Observables on tensors: the definitions of `fs.observables`, on the device of the features.

A test holds each of them to `fs.observables` in double precision.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch

from flowsim.base.checks import check, shown
from flowsim.errors import unknown_name
from flowsim.observables.rows import TIES
from flowsim.torch.device import described, exact


class _Pairs:
    """Unit rows of both modalities in double precision, and what several observables share."""

    def __init__(self, image: torch.Tensor, text: torch.Tensor) -> None:
        rows = [exact(x) for x in (image, text)]
        self.finite = torch.stack([torch.isfinite(x).all() & x.any(1).all() for x in rows]).all()
        # Factorisations refuse what is not finite; the values become NaN in the end.
        self.x, self.y = (_unit(torch.where(torch.isfinite(x), x, 1.0)) for x in rows)
        self.n = len(image)

    @functools.cached_property
    def centres(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x.mean(0), self.y.mean(0)

    @functools.cached_property
    def similarity(self) -> torch.Tensor:
        return self.x @ self.y.T

    @functools.cached_property
    def margins(self) -> torch.Tensor:
        own = self.similarity.diagonal()
        others = _without_diagonal(self.similarity)
        margins = own - torch.maximum(others.amax(0), others.amax(1))
        return torch.where(margins.abs() <= TIES * _eps(margins), 0.0, margins)


def _unit(rows: torch.Tensor) -> torch.Tensor:
    scaled = rows / rows.abs().amax(1, keepdim=True)  # no overflow in the squares
    return scaled / torch.linalg.vector_norm(scaled, dim=1, keepdim=True)


def _eps(tensor: torch.Tensor) -> float:
    return torch.finfo(tensor.dtype).eps


def _without_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    return matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool, device=matrix.device), -math.inf)


def _uniformity(cosines: torch.Tensor) -> torch.Tensor:
    n = len(cosines)
    return (torch.exp(4 * (_without_diagonal(cosines) - 1)).sum() / (n * (n - 1))).log()


def _spread(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    return ((rows - centre) ** 2).sum() / (2 * (len(rows) - 1))


def _relative_gap(p: _Pairs) -> torch.Tensor:
    pairs = ((p.x - p.y) ** 2).sum(1).mean() / 4
    total = pairs + (_spread(p.x, p.centres[0]) + _spread(p.y, p.centres[1])) / 2
    return torch.where(total > (TIES * _eps(total)) ** 2, pairs / total, math.nan)


def _effective_rank(rows: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    centred = rows - centre
    # Rows of zeros, which have no direction, were NaN.
    singular = torch.linalg.svdvals(torch.nan_to_num(centred))
    real = singular > TIES * _eps(singular) * math.sqrt(len(rows))
    total = torch.where(real, singular, 0.0).sum()
    p = torch.where(real, singular, 1.0) / torch.where(total > 0, total, 1.0)
    entropy = -torch.where(real, p * p.log(), 0.0).sum()
    rank = torch.where(total > 0, entropy.exp(), 0.0)
    return torch.where(torch.isfinite(centred).all(), rank, math.nan)


_norm = torch.linalg.vector_norm
#: Name -> function of the pairs. All but `common_share` are names of `fs.observables`.
METRICS: dict[str, Callable[[_Pairs], torch.Tensor]] = {
    "modality_gap": lambda p: _norm(p.centres[0] - p.centres[1]),
    "relative_modality_gap": _relative_gap,
    "mean_pair_cosine": lambda p: (p.x * p.y).sum(1).mean(),
    "margin": lambda p: p.margins.min(),
    "matched_fraction": lambda p: (p.margins > 0).to(p.x.dtype).mean(),
    "image_uniformity": lambda p: _uniformity(p.x @ p.x.T),
    "text_uniformity": lambda p: _uniformity(p.y @ p.y.T),
    "cross_uniformity": lambda p: _uniformity(p.similarity),
    "image_centre_norm": lambda p: _norm(p.centres[0]),
    "text_centre_norm": lambda p: _norm(p.centres[1]),
    "common_share": lambda p: (((p.centres[0] + p.centres[1]) / 2) ** 2).sum(),
    "image_effective_rank": lambda p: _effective_rank(p.x, p.centres[0]),
    "text_effective_rank": lambda p: _effective_rank(p.y, p.centres[1]),
}


@torch.no_grad()
def measure(image: torch.Tensor, text: torch.Tensor, only: Sequence[str] | None = None) -> dict[str, torch.Tensor]:
    """Observables of a batch of features, on their device. Only the effective ranks, by a factorisation, wait for it.

    `common_share` is ‖(mean x + mean y)/2‖², the share of the squared length of all rows that lies in their common
    mean, in [0, 1]. All other names are those of `fs.observables`. Values are NaN if a feature is not finite, or a row
    is zero, which has no direction.

    Args:
        image: Image features (n, d), n ≥ 2, in any floating dtype. They are scaled to unit length.
        text: Text features (n, d).
        only: Names of the observables; None for all.

    Returns:
        Name -> scalar tensor in double precision (single on devices that have no other).

    Raises:
        FlowsimError: If the features do not fit, or for an unknown name.

    Examples:
        >>> import torch
        >>> import flowsim as fs
        >>> image, text = torch.eye(3)[:2], torch.eye(3)[1:]
        >>> {name: round(x.item(), 3) for name, x in fs.torch.measure(image, text, ["modality_gap", "margin"]).items()}
        {'modality_gap': 0.707, 'margin': -1.0}
    """
    check(
        only is None or (isinstance(only, (list, tuple)) and len(only) and all(isinstance(one, str) for one in only)),
        f"Argument `only` must be a list of names, but is {shown(only)}. Leave it out for all.",
    )
    for name in only or ():
        if name not in METRICS:
            raise unknown_name("observable of a batch", name, METRICS)
    check(
        all(isinstance(x, torch.Tensor) and x.ndim == 2 and x.is_floating_point() for x in (image, text))
        and image.shape == text.shape
        and len(image) >= 2,
        f"Features must be two tensors of one shape (n, d) with n ≥ 2, but are {described(image)} and "
        f"{described(text)}. Pass the pairs of one batch.",
    )
    with torch.autocast(image.device.type, enabled=False):
        pairs = _Pairs(image, text)
        found = {name: METRICS[name](pairs) for name in (METRICS if only is None else only)}
        return {name: torch.where(pairs.finite, value, math.nan) for name, value in found.items()}
