"""Swaps: the averaged flow against brute force, what swapping does to the gap, and the paper's order of methods."""

import csv
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.stats import spearmanr

from flowsim.base.files import reference_path
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import gap, placed, plain_loss, slope
from flowsim.claims.registry import register
from flowsim.model import initial, schedules
from flowsim.model.geometry import Unnormalized
from flowsim.model.initial import Start
from flowsim.model.schedules import Schedule
from flowsim.model.swaps import AbstractSwap, HardSwap, SoftSwap
from flowsim.model.temperature import Fixed, Learnable

TAU0, PAIRS, DIM, HEIGHT = 0.07, 16, 8, 0.3
START: initial.Cones = initial.cones(PAIRS, DIM, HEIGHT, random_basis=True)
FRACTION, DRAWS, MASKS = 0.5, 10_000, 1024
#: Masks of the runs to long times.
FEW_MASKS = 32
AT, T1 = "`Sphere`, n = 16, d = 8, random cones of γ0 = 0.3 in a random basis, τ0 = 0.07, β = exp(ν), r = 1", 1e5


def _swaps(masks: int) -> dict[str, AbstractSwap]:
    return {
        "HS entry": HardSwap(FRACTION, by="entry", masks=masks),
        "HS row": HardSwap(FRACTION, by="row", masks=masks),
        "SS old": SoftSwap(FRACTION, reading="old", masks=masks),
        "SS updated": SoftSwap(FRACTION, reading="updated", masks=masks),
    }


def _weights(kind: str, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, ...]:
    """(a, b, c, d) of X' = aX + bY and Y' = cX + dY, written out from the definition of each swap."""
    if kind == "HS entry":
        w = rng.integers(0, 2, (draws, PAIRS, DIM)).astype(np.float64)
    elif kind == "HS row":
        w = np.repeat(rng.integers(0, 2, (draws, PAIRS, 1)), DIM, axis=2).astype(np.float64)
    else:
        w = rng.uniform(size=(draws, PAIRS, DIM))
    if kind == "SS updated":
        return w, 1 - w, (1 - w) * w, w + (1 - w) ** 2
    return w, 1 - w, 1 - w, w


def _unit(rows: Any) -> Any:
    return rows / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))


@jax.jit
def _moments(image: Any, text: Any, raw: Any, weights: Any) -> Any:
    """Mean and variance over draws of minus the gradient of the plain loss of swapped features, (n·2d + 1,)."""

    def loss(x: Any, y: Any, nu: Any, w: Any) -> Any:
        x, y = _unit(x), _unit(y)
        a, b, c, d = w
        return plain_loss(jnp.exp(nu) * (a * x + b * y) @ (c * x + d * y).T)

    def one(w: Any) -> Any:
        return -_flat(*jax.grad(loss, argnums=(0, 1, 2))(image, text, raw, w))

    forces = jax.lax.map(one, weights, batch_size=500)
    return jnp.mean(forces, axis=0), jnp.var(forces, axis=0)


def _flat(image: Any, text: Any, raw: Any) -> Any:
    return jnp.concatenate([jnp.ravel(image), jnp.ravel(text), jnp.ravel(raw)])


def _brute_force(kind: str, start: Start, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Field of (1 − p) L + p E[L∘swap], and the standard deviation of its swapped part over draws."""
    image, text = start.rows()
    raw = np.float64(-np.log(TAU0))
    rng = np.random.default_rng(2024)
    ones, zeros = np.ones((1, PAIRS, DIM)), np.zeros((1, PAIRS, DIM))
    plain = _moments(image, text, raw, (ones, zeros, zeros, ones))[0]
    mean, variance = _moments(image, text, raw, _weights(kind, rng, draws))
    return np.asarray((1 - FRACTION) * plain + FRACTION * mean), FRACTION * np.sqrt(np.asarray(variance))


@eqx.filter_jit
def _velocity(flow: Any, state: Any) -> Any:
    velocity = flow.vector_field(0.0, state)
    return _flat(velocity.position.image, velocity.position.text, velocity.raw_temperature)


def _field(system: System, swap: AbstractSwap, start: Start, seed: int) -> np.ndarray:
    flow, state = placed(system.flow(schedule=Schedule(Learnable(TAU0), swap)), start, seed)
    return np.asarray(_velocity(flow, state))


def _gap_speed(start: Start, velocity: np.ndarray) -> float:
    """dΔ/dt of a velocity of all rows."""
    rows = [jnp.asarray(x) for x in start.rows()]
    parts = [jnp.asarray(v) for v in np.split(velocity[:-1].reshape(2 * PAIRS, DIM), 2)]
    return float(jax.jvp(gap, tuple(rows), tuple(parts))[1])


def _averaged(system: System, quick: bool) -> Numbers:
    scalars, rms, beyond, found = [], [], [], {}
    for kind, swap in _swaps(MASKS).items():
        for seed in range(1 if quick else 3):
            start = START.draw(seed)
            velocity = _field(system, swap, start, seed)
            wanted, spread = _brute_force(kind, start, DRAWS)
            z = (velocity - wanted) / (spread * np.sqrt(1 / MASKS + 1 / DRAWS))
            scalars.append(z[-1])
            rms.append(np.sqrt(np.mean(z**2)))
            beyond.append(np.mean(np.abs(z) > 3))
            name = f"{kind.lower().replace(' ', '_')}_{seed}"
            found[f"gap_speed_{name}"] = _gap_speed(start, velocity)
            found[f"gap_speed_brute_force_{name}"] = _gap_speed(start, wanted)
    return {
        "largest_deviation_of_temperature_in_standard_errors": float(np.max(np.abs(scalars))),
        "largest_rms_deviation_in_standard_errors": float(np.max(rms)),
        "fraction_beyond_3_standard_errors": float(np.mean(beyond)),
        "entries": float(len(rms) * (2 * PAIRS * DIM + 1)),
        **found,
    }


def _masks(system: System, quick: bool) -> Numbers:
    counts = np.array([4, 16, 64, 256])
    found: dict[str, float] = {}
    slopes = []
    start = START.draw(0)
    for kind in ("HS entry",) if quick else ("HS entry", "HS row", "SS old"):
        wanted, _ = _brute_force(kind, start, DRAWS)
        errors = []
        for count in counts:
            swap = _swaps(int(count))[kind]
            deviations = [_field(system, swap, start, seed) - wanted for seed in range(8 if quick else 24)]
            errors.append(np.sqrt(np.mean(np.square(deviations))))
        name = kind.lower().replace(" ", "_")
        slopes.append(slope(np.log(counts), np.log(errors)))
        found |= {f"order_{name}": slopes[-1], f"error_at_256_{name}": errors[-1]}
    return {"largest_order": float(np.max(slopes)), "smallest_order": float(np.min(slopes)), **found}


def _redrawn(system: System, quick: bool) -> Numbers:
    """One mask at a time: final gap against the averaged flow."""
    t1 = 4.0
    intervals = (1.0, 0.25, 0.0625) if quick else (1.0, 0.25, 0.0625, 0.015625)
    start = START.draw(0)
    many = system.flow(schedule=Schedule(Learnable(TAU0), HardSwap(FRACTION, by="entry", masks=MASKS)))
    options: dict[str, Any] = {"ts": [0.0, t1], "observables": ("modality_gap",)}
    wanted = float(system.sweep(many, start, {"seed": [0]}, **options)["modality_gap"].to_numpy()[0, -1])
    flows = [
        system.flow(schedule=Schedule(Learnable(TAU0), HardSwap(FRACTION, by="entry", masks=1, redraw=interval)))
        for interval in intervals
    ]
    over = {"schedule": [flow.schedule for flow in flows], "seed": range(8 if quick else 32)}
    gaps = system.sweep(flows[0], start, over, **options)["modality_gap"].to_numpy()[..., -1]
    errors = np.sqrt(np.mean((gaps - wanted) ** 2, axis=1))
    bias = np.abs(np.mean(gaps - wanted, axis=1))
    return {
        "order": slope(np.log(intervals), np.log(errors)),
        "error_ratio": errors[-1] / errors[0],
        "error_at_largest": errors[0],
        "error_at_smallest": errors[-1],
        "bias_at_largest": bias[0],
        "bias_at_smallest": bias[-1],
        "averaged_gap": wanted,
    }


def _final_gaps(system: System, swaps: dict[str, AbstractSwap | None], seeds: int) -> dict[str, np.ndarray]:
    """Gap at `T1` by method and seed, from shared starts."""
    parts = [
        system.flow(schedule=Schedule(Learnable(TAU0)) if swap is None else Schedule(Learnable(TAU0), swap))
        for swap in swaps.values()
    ]
    over = {"schedule": [flow.schedule for flow in parts], "seed": range(seeds)}
    runs = system.sweep(parts[0], START, over, ts=[0.0, T1], observables=("modality_gap",))
    return dict(zip(swaps, runs["modality_gap"].to_numpy()[..., -1], strict=True))


def _lower(system: System, quick: bool) -> Numbers:
    # Batches of 8 and 32 runs fill their programs.
    fractions, seeds = ((1e-2, 1.0), 4) if quick else ((1e-3, 1e-2, 1e-1, 1.0), 8)
    swaps: dict[str, AbstractSwap | None] = {"none": None}
    swaps |= {f"entry_{p:g}": HardSwap(p, by="entry", masks=FEW_MASKS) for p in fractions}
    swaps |= {f"row_{p:g}": HardSwap(p, by="row", masks=FEW_MASKS) for p in fractions}
    swaps |= {} if quick else {"soft_0.05": SoftSwap(0.05, reading="old", masks=FEW_MASKS)}
    gaps = _final_gaps(system, swaps, seeds)
    others = [g for name, g in gaps.items() if name != "none"]
    entry = [gaps["none"], *(gaps[f"entry_{p:g}"] for p in fractions)]
    row = [gaps["none"], *(gaps[f"row_{p:g}"] for p in fractions)]
    return {
        "smallest_drop": float(np.min([gaps["none"] - g for g in others])),
        "smallest_drop_with_fraction_entry": float(np.min(-np.diff(entry, axis=0))),
        "smallest_drop_with_fraction_row": float(np.min(-np.diff(row, axis=0))),
        "smallest_advantage_of_entry_over_row": float(np.min(np.subtract(row, entry)[1:])),
        "runs": float(len(gaps) * seeds),
        **{f"mean_gap_{name}": float(np.mean(g)) for name, g in gaps.items()},
        **{f"deviation_{name}": float(np.std(g)) for name, g in gaps.items()},
    }


def _readings(system: System, quick: bool) -> Numbers:
    fractions = (0.05,) if quick else (0.05, 1.0)
    swaps: dict[str, AbstractSwap | None] = {"none": None}
    swaps |= {f"{r}_{p:g}": SoftSwap(p, reading=r, masks=FEW_MASKS) for p in fractions for r in ("old", "updated")}
    gaps = _final_gaps(system, swaps, 4 if quick else 8)
    differences = [gaps[f"updated_{p:g}"] - gaps[f"old_{p:g}"] for p in fractions]
    return {
        "smallest_drop": float(np.min([gaps["none"] - g for name, g in gaps.items() if name != "none"])),
        "smallest_excess_of_updated_over_old": float(np.min(differences)),
        "largest_excess_of_updated_over_old": float(np.max(differences)),
        **{f"mean_gap_{name}": float(np.mean(g)) for name, g in gaps.items()},
    }


# --- the paper's order --------------------------------------------------------------------------------

#: What Table 2 compares.
TABLE_2 = ("Baseline", "FLT 4e-2", "TS S3", "TR softplus", "SLRT 0.1", "HS 1e-3", "SS 5e-2")
ORDER_T1 = 1e6
WITHOUT_NORMALISATION = "No normalization"


def paper_gaps() -> dict[str, float]:
    """Final gap of each method in the paper's tables, by name; 26 distinct settings."""
    with reference_path("tables.csv").open(encoding="utf-8", newline="") as file:
        return {row["method"]: float(row["modality_gap"]) for row in csv.DictReader(file)}


def _few_masks(schedule: Schedule) -> Schedule:
    if not schedule.swap.active:
        return schedule
    return dataclasses.replace(schedule, swap=dataclasses.replace(schedule.swap, masks=FEW_MASKS))


def simulated_gaps(system: System, names: list[str], seeds: int) -> np.ndarray:
    """Gap at `ORDER_T1` by method and seed, from shared starts.

    The run without normalisation has τ = 1: without it the temperature is a choice of units.
    """
    by_preset = [name for name in names if name != WITHOUT_NORMALISATION]
    flows = [system.flow(schedule=_few_masks(schedules.get(name))) for name in by_preset]
    over = {"schedule": [flow.schedule for flow in flows], "seed": range(seeds)}
    options: dict[str, Any] = {"ts": [0.0, ORDER_T1], "observables": ("modality_gap",)}
    runs = system.sweep(flows[0], START, over, **options)
    rows = dict(zip(by_preset, runs["modality_gap"].to_numpy()[..., -1], strict=True))
    if WITHOUT_NORMALISATION in names:
        flow = system.flow(Unnormalized(), Fixed(1.0))
        runs = system.sweep(flow, START, {"seed": range(seeds)}, **options)
        rows[WITHOUT_NORMALISATION] = runs["modality_gap"].to_numpy()[..., -1]
    return np.stack([rows[name] for name in names])


def rank_correlation(gaps: np.ndarray, paper: np.ndarray, draws: int = 2000) -> tuple[float, float, float]:
    """Spearman's ρ of the mean over seeds with the paper, and its 95 % interval.

    The interval is a bootstrap over methods and over seeds, because another set of methods would give another
    order. Gaps are compared to three digits, as printed in the tables.

    Args:
        gaps: Final gaps, shape (methods, seeds).
        paper: The paper's gaps, shape (methods,).
        draws: Resamples of the bootstrap.

    Returns:
        ρ, and the lower and upper end of the interval.
    """
    rng = np.random.default_rng(0)
    methods, seeds = gaps.shape

    def rho(rows: np.ndarray, chosen: np.ndarray) -> float:
        means = gaps[rows][:, chosen].mean(axis=1).round(3)
        # Resamples with one gap alone have no order.
        if np.ptp(means) == 0 or np.ptp(paper[rows]) == 0:
            return 0.0
        return float(spearmanr(means, paper[rows]).statistic)  # pyright: ignore

    resampled = [rho(rng.integers(0, methods, methods), rng.integers(0, seeds, seeds)) for _ in range(draws)]
    low, high = np.percentile(resampled, [2.5, 97.5])
    return rho(np.arange(methods), np.arange(seeds)), float(low), float(high)


def _order(names: list[str], system: System, quick: bool) -> Numbers:
    printed = paper_gaps()
    gaps = simulated_gaps(system, names, 2 if quick else 8)
    paper = np.array([printed[name] for name in names])
    if not np.isfinite(gaps).all():
        return {"rank_correlation": np.nan, "interval_low": np.nan, "interval_high": np.nan}
    rho, low, high = rank_correlation(gaps, paper, 500 if quick else 2000)
    by_seed = [rank_correlation(gaps[:, [i]], paper, 1)[0] for i in range(gaps.shape[1])]
    return {
        "rank_correlation": rho,
        "interval_low": low,
        "interval_high": high,
        "smallest_of_a_seed": float(np.min(by_seed)),
        "methods": float(len(names)),
        **{f"gap_{name.lower().replace(' ', '_')}": float(g) for name, g in zip(names, gaps.mean(axis=1), strict=True)},
    }


def _all_methods(system: System, quick: bool) -> Numbers:
    names = list(paper_gaps())
    if quick:
        # Without the methods that need a program of their own.
        names = [n for n in names if n.startswith(("FLT 1e-2", "FLT 2e-2", "FLT 4e-2", "FLT 7e-2", "HS 1", "SL", "B"))]
    return _order(names, system, quick)


def _table_2(system: System, quick: bool) -> Numbers:
    names = [n for n in TABLE_2 if not quick or n in ("Baseline", "FLT 4e-2", "SLRT 0.1", "HS 1e-3")]
    return _order(names, system, quick)


register(
    Claim(
        id="swap-average",
        statement="A swap acts on the loss, not on the state: the field of K masks agrees with minus the gradient of "
        "(1−p)L + pE[L∘swap] averaged over 10,000 masks, within the sampling error of both.",
        source="the swaps of Yaras et al. 2025, section 4, in continuous time; derived here",
        assumptions=f"{AT}; p = 0.5, K = 1024; HS by entry and by row, SS in both readings; gradients by automatic "
        "differentiation of the plain loss",
        measure=_averaged,
        at_most={
            "largest_deviation_of_temperature_in_standard_errors": 3.0,
            "largest_rms_deviation_in_standard_errors": 1.3,
            "fraction_beyond_3_standard_errors": 0.01,
        },
    ),
    Claim(
        id="swap-masks",
        statement="The error of the field of K fixed masks against the averaged field falls like 1/√K.",
        source="sampling; measured here",
        assumptions=f"{AT}; p = 0.5, K = 4 .. 256, 24 draws of masks (quick: 8)",
        measure=_masks,
        at_most={"largest_order": -0.4},
        at_least={"smallest_order": -0.6},
    ),
    Claim(
        id="swap-redraw",
        statement="The gap under one mask at a time, redrawn after every h of flow time, tends to that of the "
        "averaged flow like √h: order 0.3 to 0.75 in h.",
        source="averaging; measured here",
        assumptions=f"{AT}; HS by entry, p = 0.5, h = 1 .. 1/64 (quick: 1/16), gap at t = 4, 32 draws (quick: 8)",
        measure=_redrawn,
        at_least={"order": 0.3},
        at_most={"order": 0.75, "error_ratio": 0.35},
    ),
    Claim(
        id="swaps-lower-gap",
        statement="From the same start swapping ends at a smaller gap than no swap; hard swaps the smaller the larger "
        "p, and of entries at a smaller one than of whole rows, for every seed.",
        source="Yaras et al. 2025, Table 5 and Figure 5",
        assumptions=f"{AT}; p = 1e-3 .. 1 (quick: 1e-2, 1), K = 32 fixed masks, t = 1e5, 8 seeds "
        "(quick: 4); SS at p = 0.05",
        measure=_lower,
        at_least={
            "smallest_drop": 0.01,
            "smallest_drop_with_fraction_entry": 0.01,
            "smallest_drop_with_fraction_row": 0.01,
            "smallest_advantage_of_entry_over_row": 0.01,
        },
    ),
    Claim(
        id="soft-swap-reading",
        statement="It matters whether the second line of SoftSwap uses the old or the updated image features: from the "
        "same start both end at a smaller gap than no swap, the old ones at a smaller one than the updated, for every "
        "seed.",
        source="Yaras et al. 2025, section 4.2, which can be read both ways",
        assumptions=f"{AT}; p = 0.05, 1 (quick: 0.05), K = 32 fixed masks, t = 1e5, 8 seeds (quick: 4)",
        measure=_readings,
        at_least={"smallest_drop": 0.005, "smallest_excess_of_updated_over_old": 0.005},
    ),
    Claim(
        id="paper-order",
        statement="The methods of Tables 2-5 end in an order that correlates with the paper's: Spearman's ρ of the "
        "final gaps is at least 0.5, and its 95 % interval over methods and seeds lies above 0.2.",
        source="Yaras et al. 2025, Tables 2-5",
        assumptions=f"{AT}; all 26 settings (quick: those that share programs), t = 1e6, 8 seeds (quick: 2); "
        "No normalization: free rows, τ = 1",
        measure=_all_methods,
        at_least={"rank_correlation": 0.5, "interval_low": 0.2},
    ),
    Claim(
        id="paper-order-table-2",
        statement="The methods of Table 2 end in the paper's order: ρ at least 0.9.",
        source="Yaras et al. 2025, Table 2",
        assumptions=f"{AT}; t = 1e6, 8 seeds (quick: 2, four of the methods)",
        measure=_table_2,
        at_least={"rank_correlation": 0.9},
        expected="fails",
    ),
)
