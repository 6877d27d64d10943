"""Qualitative dynamics: opening and closing, gap and temperature together, the closed gap, the presets."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim import initial, schedules
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import gap, largest, placed, values
from flowsim.geometry import Parallel, Sphere
from flowsim.temperature import Learnable


def _mismatched_runs(system: System, quick: bool) -> list[Any]:
    flow = system.flow(Parallel(), Learnable(0.5))
    return [
        system.simulate(flow, initial.uniform(pairs=8, dim=6, gamma=0.1), seed=seed, t1=1e10)
        for seed in range(5 if quick else 20)
    ]


def _enlarge_then_close(system: System, quick: bool) -> Numbers:
    opened, matched, closing, ratio = [], [], [], []
    for run in _mismatched_runs(system, quick):
        gamma, margin = values(run, "gamma"), values(run, "margin")
        whole = bool(np.isfinite(gamma).all())
        opened.append(whole and gamma.max() > 1.01 * gamma[0])
        matched.append(whole and margin[-1] > 0)
        after = gamma[margin > 0]
        closing.append(bool(whole and after.size > 1 and np.all(np.diff(after) <= 0)))
        ratio.append(gamma[-1] / gamma.max())
    return {
        "fraction_opening": float(np.mean(opened)),
        "fraction_matched_at_end": float(np.mean(matched)),
        "fraction_closing_once_matched": float(np.mean(closing)),
        "mean_final_over_peak": float(np.mean(ratio)),
        "runs": len(opened),
    }


@eqx.filter_jit
def _matched_speeds(flow: Any, state: Any, keys: Any) -> Any:
    """d ln γ/dt and dν/dt for random rows: identical pairs, then independent ones."""

    def one(key: Any) -> Any:
        shape, dtype = state.moving.position.image.shape, state.moving.position.image.dtype
        rows = [jax.random.normal(k, shape, dtype) for k in jax.random.split(key)]
        rows = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in rows]

        def velocity(image: Any, text: Any) -> Any:
            moving = eqx.tree_at(lambda m: (m.position.image, m.position.text), state.moving, (image, text))
            v = flow.vector_field(0.0, dataclasses.replace(state, moving=moving))
            return v.position.log_gamma, v.raw

        return velocity(rows[0], rows[0]), velocity(rows[0], rows[1])

    return jax.lax.map(one, keys)


def _force_sign(system: System, quick: bool) -> Numbers:
    closing, opening, together, found = [], [], [], {}
    for tau in (0.07, 1.0):
        flow = system.flow(Parallel(), Learnable(tau))
        flow, state = placed(flow, initial.uniform(pairs=8, dim=6, gamma=0.3).draw(0))
        keys = jax.random.split(jax.random.key(3), 100 if quick else 1000)
        matched, random = jax.tree.map(np.asarray, _matched_speeds(flow, state, keys))
        closing.append(np.mean(matched[0] <= 0))
        opening.append(np.mean(random[0] > 0))
        # dτ = −dν/β: temperature and height are driven by one scalar.
        for log_gamma, raw in (matched, random):
            together.append(np.mean(np.sign(log_gamma) == np.sign(-raw)))
        found[f"random_opening_tau{tau:g}"] = opening[-1]
    return {
        "fraction_matched_closing": float(np.min(closing)),
        "fraction_random_opening_at_0.07": float(opening[0]),
        "fraction_with_temperature": float(np.min(together)),
        **found,
    }


def _together(system: System, quick: bool) -> Numbers:
    agreements, turns = [], []
    for run in _mismatched_runs(system, quick):
        d_gamma = np.diff(values(run, "log_gamma"))
        d_tau = np.diff(np.log(values(run, "temperature")))
        clear = (np.abs(d_gamma) > 1e-7) & (np.abs(d_tau) > 1e-7)
        whole = bool(np.isfinite(d_gamma).all() and np.isfinite(d_tau).all() and clear.any())
        agreements.append(float(np.mean(d_gamma[clear] * d_tau[clear] > 0)) if whole else np.nan)
        turns.append(np.argmax(values(run, "gamma")) - np.argmax(values(run, "temperature")))
    return {
        "smallest_agreement": float(np.min(agreements)),
        "largest_distance_of_peaks_in_slots": largest(turns),
        "runs": len(agreements),
    }


def _closed(system: System, quick: bool) -> Numbers:
    worst = []
    # Two rings on one equator: both centres are at the origin.
    run = system.simulate(system.flow(Sphere()), initial.rings(height=0.0), t1=1e5)
    worst.append(largest(values(run, "modality_gap")))
    flow = system.flow(Parallel())
    run = system.simulate(flow, initial.uniform(pairs=8, dim=6, gamma=0.0), t1=1e5)
    on_cones = largest(values(run, "gamma"))
    # Rows of a hyperplane stay in it.
    flow = system.flow(Sphere())
    away, speed = [], []
    for seed in range(5):
        start = initial.uniform(pairs=8, dim=6, gamma=0.0).draw(seed)
        moved, state = placed(flow, start)
        velocity = moved.vector_field(0.0, state).position
        away.append(largest(velocity.image[:, -1], velocity.text[:, -1]))
        speed.append(largest(velocity.image))
    return {
        "largest_gap_on_sphere": largest(worst),
        "largest_gamma_on_cones": on_cones,
        "largest_speed_out_of_hyperplane": largest(away),
        "smallest_speed_within": float(np.min(speed)),
    }


PRESETS = [
    name for name in schedules.names() if not name.startswith(("HS", "SS"))
]


def _presets(system: System, quick: bool) -> Numbers:
    names = [n for n in PRESETS if not n.startswith("TS A")] if quick else PRESETS
    gaps: dict[str, list[float]] = {}
    for seed in range(1 if quick else 3):
        recipe = initial.matched(pairs=8, dim=6, gamma=0.3)
        for name in names:
            run = system.simulate(system.flow(Parallel(), name), recipe, seed=seed, t1=1e4)
            gaps.setdefault(name, []).append(values(run, "modality_gap")[-1])
    base = np.array(gaps["Baseline"])
    return {f"ratio {name}": float(np.mean(np.array(g) / base)) for name, g in gaps.items()} | {
        "baseline_gap": float(np.mean(base))
    }


CLAIMS: list[Claim] = []
