"""Label noise on free rows: where the logit gap settles, and the critical temperature above which no gap is left."""

import numpy as np

from flowsim import theory
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import largest, values
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Sphere
from flowsim.model.pairing import LabelNoise
from flowsim.model.temperature import Fixed
from flowsim.records.result import Result

_OPTIONS = {
    "method": "stabilised",
    "rtol": 1e-6,
    "atol": 1e-8,
    "max_steps": 20_000,
    "observables": ("modality_gap", "mean_pair_cosine", "image_centre_norm", "text_centre_norm"),
    "snapshots": [0.0],
}


def _mean_advantage(run: Result, pairs: int) -> float:
    """m = mean cosine of pairs − mean cosine of non-pairs, at the end."""
    gap, pair, image, text = (values(run, name)[-1] for name in _OPTIONS["observables"])
    everything = (image**2 + text**2 - gap**2) / 2
    return float(pair - (pairs * everything - pair) / (pairs - 1))


def _law(system: System, quick: bool) -> Numbers:
    errors, closed, last = [], [], []
    saturated = 0
    for n in (8,) if quick else (8, 16):
        for noise in (0.01, 0.1, 0.3):
            wanted = float(theory.noise_logit_gap(noise, n))
            for beta in (5.0, 10.0, 20.0, 50.0):
                flow = system.flow(Sphere(), Fixed(1 / beta), LabelNoise(noise))
                start = initial.uniform(pairs=n, dim=n)
                run = system.simulate(flow, start, ts=[0.0, 3e4], **_OPTIONS)
                if wanted <= beta * n / (n - 1):
                    errors.append(beta * _mean_advantage(run, n) / wanted - 1)
                    last.append(values(run, "modality_gap")[-1])
                else:
                    saturated += 1
                    closed.append(values(run, "modality_gap")[-1])
    return {
        "largest_relative_error": largest(errors),
        "largest_gap_where_saturated": largest(closed),
        "smallest_gap_elsewhere": float(np.min(last)),
        "cells": float(len(errors) + saturated),
        "saturated_cells": float(saturated),
    }


def _bound(system: System, quick: bool) -> Numbers:
    n = 8
    excess, below, above, equality = [], [], [], []
    for noise in (0.1,) if quick else (0.05, 0.1, 0.3):
        critical = float(theory.critical_temperature(noise, n, "simplex"))
        for share in (0.4, 0.8, 1.25):
            tau = share * critical
            flow = system.flow(Sphere(), Fixed(tau), LabelNoise(noise))
            for seed in range(1 if quick else 3):
                cones, simplex = initial.cones(pairs=n, dim=n, height=0.6), initial.simplex(pairs=n, gamma=0.6)
                for start, ratios in ((cones, below), (simplex, equality)):
                    run = system.simulate(flow, start, ts=[0.0, 1e4], seed=seed, **_OPTIONS)
                    gap = values(run, "modality_gap")[-1]
                    if share > 1:
                        above.append(gap)
                        continue
                    ratio = gap / float(theory.equilibrium_gap_bound(tau, critical))
                    excess.append(ratio - 1)
                    ratios.append(ratio)
    return {
        "largest_excess_over_bound": float(np.max(excess)),
        "largest_gap_above_critical": largest(above),
        "error_of_simplex_cones": largest(np.asarray(equality) - 1),
        "random_starts_smallest_share_of_bound": float(np.min(below)),
        "random_starts_largest_share_of_bound": float(np.max(below)),
    }


register(
    Claim(
        id="noise-law",
        statement="With label noise p at fixed β free rows in n dimensions settle at β·m = ln[(1−p)(n−1)/p], m the "
        "mean cosine of pairs minus that of non-pairs, wherever this is at most βn/(n−1); elsewhere the gap closes.",
        source="derived here",
        assumptions="`Sphere`, d = n = 8, 16 (quick: 8), p = 0.01, 0.1, 0.3, β = 5, 10, 20, 50, uniform rows, t = 3e4",
        measure=_law,
        at_most={"largest_relative_error": 1e-4, "largest_gap_where_saturated": 1e-3},
    ),
    Claim(
        id="noise-bound",
        statement="With label noise p at fixed τ below τ* = n/((n−1)b*) the gap of free rows settles at or below "
        "2√(1−τ/τ*): at it from simplex cones, below it from random ones; above τ* the gap closes.",
        source="derived here",
        assumptions="`Sphere`, d = n = 8, p = 0.05, 0.1, 0.3 (quick: 0.1), τ/τ* = 0.4, 0.8, 1.25, random and simplex "
        "cones of γ0 = 0.6, 3 seeds (quick: 1), t = 1e4",
        measure=_bound,
        at_most={
            "largest_excess_over_bound": 1e-4,
            "largest_gap_above_critical": 1e-3,
            "error_of_simplex_cones": 1e-4,
            "random_starts_largest_share_of_bound": 0.99,
        },
    ),
)
