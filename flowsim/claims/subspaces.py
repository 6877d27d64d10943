"""Modalities confined to two hyperplanes: does the gap's angle become the hyperplanes'?"""

from typing import Any

import numpy as np

from flowsim import initial
from flowsim.claims.base import Claim, Numbers, System
from flowsim.geometry import Subspaces
from flowsim.initial import Start
from flowsim.temperature import Fixed

PAIRS, DIM, T1, HEIGHT = 16, 8, 1e3, 0.6
ANGLES = (20.0, 45.0, 70.0)
OBSERVABLES = ("gap_angle", "modality_gap", "image_centre_norm", "text_centre_norm")


def cones_in_hyperplanes(angle: float, seed: int, mirrored: bool) -> Start:
    """Random cones about the axes that are orthogonal to the hyperplanes' intersection, `angle` degrees apart.

    `mirrored`: for each pair there is its mirror image through the plane of both axes.
    """
    rng = np.random.default_rng(seed)
    phi = np.deg2rad(angle)
    axes = np.zeros((2, DIM))
    axes[0, -2] = 1.0
    axes[1, -2], axes[1, -1] = np.cos(phi), -np.sin(phi)
    rows = []
    for axis in axes:
        inside = rng.standard_normal((PAIRS // 2 if mirrored else PAIRS, DIM - 2))
        inside /= np.linalg.norm(inside, axis=1, keepdims=True)
        inside = np.concatenate([inside, -inside]) if mirrored else inside
        flat = np.concatenate([inside, np.zeros((PAIRS, 2))], axis=1)
        rows.append(np.sqrt(1 - HEIGHT**2) * flat + HEIGHT * axis)
    return initial.from_arrays(*rows)


def _start(kind: str, angle: float, seed: int) -> Start:
    if kind == "uniform":
        return initial.uniform(PAIRS, DIM).draw(seed)
    return cones_in_hyperplanes(angle, seed, kind == "mirrored")


def _runs(system: System, quick: bool, kind: str) -> dict[str, np.ndarray]:
    """Last observables by angle and seed."""
    found: dict[str, list[Any]] = {name: [] for name in OBSERVABLES}
    for angle in ANGLES:
        flow = system.flow(Subspaces(angle), Fixed(0.05))
        starts = [_start(kind, angle, seed) for seed in range(2 if quick else 8)]
        runs = system.sweep(flow, starts[0], {"start": starts}, ts=[0.0, T1], observables=OBSERVABLES)
        for name, rows in found.items():
            rows.append(runs[name].to_numpy()[:, -1])
    return {name: np.stack(rows) for name, rows in found.items()}


def _measure(system: System, quick: bool, kind: str) -> Numbers:
    found = _runs(system, quick, kind)
    errors = np.abs(found["gap_angle"] - np.asarray(ANGLES)[:, None])
    centres = np.minimum(found["image_centre_norm"], found["text_centre_norm"])
    return {
        "largest_error_in_degrees": float(np.max(errors)),
        "smallest_centre_norm": float(np.min(centres)),
        **{f"mean_angle_at_{a:g}": float(v) for a, v in zip(ANGLES, found["gap_angle"].mean(axis=1), strict=True)},
        **{f"deviation_at_{a:g}": float(v) for a, v in zip(ANGLES, found["gap_angle"].std(axis=1), strict=True)},
        **{f"mean_centre_norm_at_{a:g}": float(v) for a, v in zip(ANGLES, centres.mean(axis=1), strict=True)},
        **{f"mean_gap_at_{a:g}": float(v) for a, v in zip(ANGLES, found["modality_gap"].mean(axis=1), strict=True)},
    }


def _mirrored(system: System, quick: bool) -> Numbers:
    found = _measure(system, quick, "mirrored")
    without = _measure(system, quick, "cones")["largest_error_in_degrees"]
    return {**found, "largest_error_without_mirror_images": without}


_AT = "`Subspaces`, hyperplanes at φ = 20, 45, 70 degrees, n = 16, d = 8, τ = 0.05, t = 1e3, 8 seeds (quick: 2)"
_CONES = "cones of height 0.6 about the axes orthogonal to the hyperplanes' intersection"

CLAIMS = [
    Claim(
        id="subspace-angle-mirrored",
        statement="Modalities confined to hyperplanes at angle φ keep their centres at exactly this angle if the "
        "rows are symmetric about the plane of both axes: centres then stay orthogonal to the intersection.",
        source="arXiv 2510.03268, under an assumption made explicit here",
        assumptions=f"{_AT}; {_CONES}, every pair with its mirror image",
        measure=_mirrored,
        at_most={"largest_error_in_degrees": 1e-3},
        at_least={"smallest_centre_norm": 0.02},
    ),
    Claim(
        id="subspace-angle",
        statement="Modalities confined to hyperplanes at angle φ end with centres at the angle φ, to 5 degrees.",
        source="arXiv 2510.03268 (the gap converges to the angle of the hyperplanes), without its assumptions",
        assumptions=f"{_AT}; uniform rows: the centres are short, and their angle is that of the start's noise",
        measure=lambda system, quick: _measure(system, quick, "uniform"),
        at_most={"largest_error_in_degrees": 5.0},
        expected="fails",
    ),
]
