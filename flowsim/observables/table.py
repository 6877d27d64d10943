"""The table of observables: names, symbols and descriptions of all numbers in reports and results."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from flowsim.base.registry import Registry
from flowsim.errors import unknown_name
from flowsim.observables import gap, matching, separability, spread
from flowsim.observables.observable import Observable
from flowsim.observables.retrieval import retrieval_at_k

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
_OF_ROWS = (
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
    _metric(matching.matched_fraction, r"f_\mathrm{matched}", label="matched fraction",
            description="fraction of pairs best in their row and column of Z, in [0, 1], higher is better"),
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
            label="doubly stochastic defect",
            description="largest |softmax column or row sum − 1|, ≥ 0, 0 = no force on the centres"),
)
# fmt: on


def _unused(*_: Any, **__: Any) -> Any:
    raise AssertionError("runs and records compute their own observables")


def _state(name: str, symbol: str, description: str, label: str = "") -> Observable:
    return Observable(name, _unused, symbol, description, of="state", label=label)


def _step(name: str, label: str, description: str) -> Observable:
    return Observable(name, _unused, "", description, of="step", label=label)


# fmt: off
_OF_STATES = (
    _state("temperature", r"\tau", "temperature of the softmax"),
    _state("inverse_temperature", r"\beta", "inverse temperature"),
    _state("raw_temperature", r"\nu", "raw parameter of the learnable temperature", r"raw temperature $\nu$"),
    _state("bias", "b", "bias of the sigmoid loss"),
    _state("gamma", r"\gamma", "signed cone height", r"cone height $\gamma$"),
    _state("log_gamma", r"\ln|\gamma|", "logarithm of the absolute cone height", r"$\ln|\gamma|$"),
    _state("loss", r"\mathcal{L}", "loss that the flow descends"),
    _state("direction_margin", r"\alpha_H",
           "`margin` of the directions in parallel cones, of Z = H_X H_Yᵀ: that of the theory, margin/(1 − γ²)"),
    _state("direction_matched_fraction", r"f_H",
           "`matched_fraction` of the directions in parallel cones, of Z = H_X H_Yᵀ", "matched fraction of directions"),
)
# fmt: on
_OF_STEPS = (
    _step("train_loss", r"training loss $\mathcal{L}$", "loss of the batch of each step"),
    _step("train_temperature", r"temperature $\tau$", "temperature in each step"),
    _step("train_modality_gap", r"batch gap $\Delta$", "distance of the modality centres in the batch of each step"),
    _step("learning_rate", r"learning rate $\eta$", "learning rate of each step"),
)

#: All observables by name: those of rows in the order of a report, then those of states and of steps.
REGISTRY: Registry[Observable] = Registry("observable")
for _one in (*_OF_ROWS, *_OF_STATES, *_OF_STEPS):
    REGISTRY.add(_one.name, _one, __name__)
#: Other names, and beginnings of names, that files of results and sweeps use.
TAKEN = frozenset(
    [
        "time",
        "step",
        "steps",
        "epoch",
        "progress",
        "train_step",
        "snapshot_time",
        "status",
        "stopped_at",
        "method",
        "run",
        "seed",
        "pair",
        "dim",
    ]
)
TAKEN_BEGINNINGS = ("snapshot_", "constant_", "memory_", "seen_", "train_", "_")


def names(of: Literal["rows", "state", "step"] = "rows") -> list[str]:
    """The names of observables.

    Args:
        of: "rows" for the metrics of a report, in its order; "state" for the numbers that only a run of a flow has;
            "step" for those that only training records have.

    Returns:
        The names. Those of "rows" and "state" go into `fs.simulate(..., observables=[...])`.

    Examples:
        >>> import flowsim as fs
        >>> fs.observables.names()[:2], fs.observables.names("state")[:2]
        (['modality_gap', 'gap_angle'], ['temperature', 'inverse_temperature'])
    """
    return [name for name, observable in REGISTRY.items() if observable.of == of]


def entry(name: str) -> Observable:
    """The entry of a name, for its label and description; a minimal one for a name that only a file has."""
    return REGISTRY.get(name) or Observable(name, _unused, "", name.replace("_", " "), of="step")


def entries(wanted: Iterable[str]) -> tuple[Observable, ...]:
    """The entries of known names; `FlowsimError` for others.

    Programs are compiled for entries, not for names, so an observable that is registered again is compiled again.
    """
    found = []
    for name in wanted:
        if name not in REGISTRY:
            raise unknown_name("observable", name, REGISTRY)
        found.append(REGISTRY[name])
    return tuple(found)
