"""The table of observables: names, symbols and descriptions of all scalars that reports and runs hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from flowsim.observables import gap, matching, separability, spread
from flowsim.observables.retrieval import retrieval_at_k


@dataclass(frozen=True)
class Observable:
    """A named scalar metric; `function` takes (image, text), then `temperature` where it is needed."""

    name: str
    function: Callable[..., Any]
    symbol: str  # LaTeX, for axes
    description: str  # formula on unit rows, range, better direction
    needs_pairs: bool = True
    needs_temperature: bool = False
    traceable: bool = True  # runs inside jax.jit
    undefined: str = ""  # when the value is NaN


#: Recalls in a report: name -> (k, direction).
RECALLS = {f"{way}_at_{k}": (k, way) for k in (1, 5, 10) for way in ("image_to_text", "text_to_image")}


def _metric(function: Callable[..., Any], symbol: str, description: str, **flags: Any) -> Observable:
    return Observable(function.__name__, function, symbol, description, **flags)


def _recall(name: str) -> Observable:
    k, direction = RECALLS[name]

    def recall(image: Any, text: Any) -> Any:
        return getattr(retrieval_at_k(image, text, k=k), direction)

    to_text = direction == "image_to_text"
    arrow, rank = ("X \\to Y", "#{j: Z_ij ≥ Z_ii}") if to_text else ("Y \\to X", "#{i: Z_ij ≥ Z_jj}")
    description = f"{direction.replace('_to_', '→')} recall: rank {rank} ≤ {k}, in [0, 1], higher is better"
    undefined = f"with no more than {k} candidates every query succeeds"
    return Observable(name, recall, rf"\mathrm{{R@{k}}}_{{{arrow}}}", description, undefined=undefined)


# fmt: off
_OBSERVABLES = (
    _metric(gap.modality_gap, r"\Delta", "‖mean x − mean y‖, in [0, 2], 0 = closed", needs_pairs=False),
    _metric(gap.gap_angle, r"\angle(c_X, c_Y)",
            "degrees between the two centres, in [0, 180]; read with their norms",
            needs_pairs=False, undefined="a centre vanishes, so it has no direction"),
    _metric(gap.image_centre_norm, r"\|c_X\|", needs_pairs=False,
            description="‖mean x‖, in [0, 1], 1 = all images coincide"),
    _metric(gap.text_centre_norm, r"\|c_Y\|", needs_pairs=False,
            description="‖mean y‖, in [0, 1], 1 = all texts coincide"),
    _metric(gap.pair_distance, r"d_\mathrm{pair}", "mean ‖x_i − y_i‖, in [0, 2], lower is closer"),
    _metric(gap.mean_pair_cosine, r"\overline{Z_{ii}}", "mean Z_ii, in [−1, 1], higher is closer"),
    _metric(gap.relative_modality_gap, r"\mathrm{RMG}",
            "d_m/(d_m + ½(d_II + d_TT)), d = (1 − cos)/2, in [0, 1], 0 = closed",
            undefined="all rows coincide"),
    _metric(separability.linear_separability, r"\mathrm{acc}_\mathrm{lin}", needs_pairs=False, traceable=False,
            description="held-out accuracy of image-vs-text logistic regression, 1 = open, 0.5 = closed"),
    _metric(matching.margin, r"\alpha", "min_{i≠j} min(Z_ii − Z_ij, Z_jj − Z_ij), in [−2, 2], > 0 = matched"),
    _metric(matching.matched_fraction, r"f_\mathrm{matched}",
            "fraction of pairs best in their row and column of Z, in [0, 1], higher is better"),
    _metric(spread.alignment, r"\mathcal{A}", "mean ‖x_i − y_i‖², in [0, 4], lower is better"),
    _metric(spread.image_uniformity, r"\mathcal{U}_X", needs_pairs=False,
            description="log mean_{i<j} exp(−2‖x_i − x_j‖²), in [−8, 0], lower is more uniform"),
    _metric(spread.text_uniformity, r"\mathcal{U}_Y", needs_pairs=False,
            description="log mean_{i<j} exp(−2‖y_i − y_j‖²), in [−8, 0], lower is more uniform"),
    _metric(spread.cross_uniformity, r"\mathcal{U}_{XY}",
            "log mean_{i≠j} exp(−2‖x_i − y_j‖²), in [−8, 0], lower is more uniform"),
    _metric(spread.wasserstein_uniformity, r"-\mathcal{W}_2", needs_pairs=False,
            description="−(Wasserstein distance of all rows to uniform), ≤ 0, higher is more uniform"),
    _metric(spread.image_effective_rank, r"r_X", needs_pairs=False,
            description="exp(entropy of σ/Σσ) of the centred images, in [1, min(n − 1, d)]"),
    _metric(spread.text_effective_rank, r"r_Y", needs_pairs=False,
            description="exp(entropy of σ/Σσ) of the centred texts, in [1, min(n − 1, d)]"),
    *(_recall(name) for name in RECALLS),
    _metric(matching.doubly_stochastic_defect, r"\delta_\mathrm{ds}", needs_temperature=True,
            description="largest |softmax column or row sum − 1|, ≥ 0, 0 = no force on the centres"),
)
# fmt: on

REGISTRY: dict[str, Observable] = {observable.name: observable for observable in _OBSERVABLES}


def names() -> list[str]:
    """The names of all scalar metrics, in the order of a report."""
    return list(REGISTRY)


@functools.partial(jax.jit, static_argnums=0)
def evaluate(observables: tuple[Observable, ...], image: Any, text: Any, temperature: Any = None) -> dict[str, Any]:
    """Many traceable observables in one compilation."""
    tau = {True: {"temperature": temperature}, False: {}}
    return {o.name: o.function(image, text, **tau[o.needs_temperature]) for o in observables}
