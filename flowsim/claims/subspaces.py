"""Modalities confined to two hyperplanes: does the gap's angle become the hyperplanes'?"""

from typing import Any

import numpy as np

from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Subspaces
from flowsim.model.initial import Start
from flowsim.model.temperature import Fixed

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


def _runs(system: System, kind: str, seeds: int) -> dict[str, np.ndarray]:
    """First and last observables by angle and seed, shape (angle, seed, 2)."""
    found: dict[str, list[Any]] = {name: [] for name in OBSERVABLES}
    for angle in ANGLES:
        flow = system.flow(Subspaces(angle), Fixed(0.05))
        starts = [_start(kind, angle, seed) for seed in range(seeds)]
        runs = system.sweep(flow, starts[0], {"start": starts}, ts=[0.0, T1], observables=OBSERVABLES)
        for name, rows in found.items():
            rows.append(runs[name].to_numpy())
    return {name: np.stack(rows) for name, rows in found.items()}


def _errors(found: dict[str, np.ndarray]) -> np.ndarray:
    """|angle between the centres − angle of the hyperplanes| in degrees, shape (angle, seed, 2)."""
    return np.abs(found["gap_angle"] - np.asarray(ANGLES)[:, None, None])


def _measure(system: System, quick: bool, kind: str) -> Numbers:
    whole = _runs(system, kind, 2 if quick else 8)
    found = {name: rows[..., -1] for name, rows in whole.items()}
    centres = np.minimum(found["image_centre_norm"], found["text_centre_norm"])
    return {
        "largest_error_in_degrees": float(np.max(_errors(whole)[..., -1])),
        "smallest_centre_norm": float(np.min(centres)),
        **{f"mean_angle_at_{a:g}": float(v) for a, v in zip(ANGLES, found["gap_angle"].mean(axis=1), strict=True)},
        **{f"deviation_at_{a:g}": float(v) for a, v in zip(ANGLES, found["gap_angle"].std(axis=1), strict=True)},
        **{f"mean_centre_norm_at_{a:g}": float(v) for a, v in zip(ANGLES, centres.mean(axis=1), strict=True)},
        **{f"mean_gap_at_{a:g}": float(v) for a, v in zip(ANGLES, found["modality_gap"].mean(axis=1), strict=True)},
    }


def _about_the_axes(system: System, quick: bool) -> Numbers:
    mean = _errors(_runs(system, "cones", 8 if quick else 16)).mean(axis=1)
    mirrored = _measure(system, quick, "mirrored")
    return {
        "largest_share_of_the_error_left": float(np.max(mean[:, 1] / mean[:, 0])),
        "largest_mean_error_in_degrees": float(np.max(mean[:, 1])),
        "smallest_mean_error_at_the_start": float(np.min(mean[:, 0])),
        "largest_error_in_degrees_of_mirror_images": mirrored["largest_error_in_degrees"],
        "smallest_centre_norm_of_mirror_images": mirrored["smallest_centre_norm"],
        **{f"mean_error_at_{a:g}": float(v) for a, v in zip(ANGLES, mean[:, 1], strict=True)},
        **{f"mean_error_at_the_start_at_{a:g}": float(v) for a, v in zip(ANGLES, mean[:, 0], strict=True)},
    }


_AT = "`Subspaces`, hyperplanes at φ = 20, 45, 70 degrees, n = 16, d = 8, τ = 0.05, t = 1e3, 8 seeds (quick: 2)"
_CONES = "cones of height 0.6 about the axes orthogonal to the hyperplanes' intersection"

register(
    Claim(
        id="subspace-angle-mirrored",
        statement="In hyperplanes at angle φ the centres of random cones about the axes turn towards this angle: of "
        "the mean error at the start half or less is left, at most 5 degrees. Where every pair has its mirror image "
        "through the plane of the axes, the angle is φ by symmetry, and the flow keeps it.",
        source="arXiv 2510.03268, under assumptions made explicit here",
        assumptions=f"{_AT}; random {_CONES}, 16 seeds (quick: 8), and mirrored ones",
        measure=_about_the_axes,
        at_most={
            "largest_share_of_the_error_left": 0.5,
            "largest_mean_error_in_degrees": 5.0,
            "largest_error_in_degrees_of_mirror_images": 1e-3,
        },
        at_least={"smallest_mean_error_at_the_start": 1.0, "smallest_centre_norm_of_mirror_images": 0.02},
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
)
