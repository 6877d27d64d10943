"""Lemma 3.1 and its generalisation: what parallel cones with a learnable temperature conserve."""

from typing import Any

import numpy as np

from flowsim import theory
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import largest, positive, slope, values
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Parallel
from flowsim.model.temperature import Exp, Identity, Learnable, ScaledExp, Softplus

TAU0, GAMMA0 = 0.07, 0.3
RATIOS = (0.1, 1.0, 3.0)
#: Name, start, τ0 and γ0. From the mismatched start γ rises first; a hot and low one stays below γ = 1.
STARTS: tuple[tuple[str, Any, float, float], ...] = (
    ("", initial.matched(pairs=8, dim=6, gamma=GAMMA0), TAU0, GAMMA0),
    ("_mismatched", initial.uniform(pairs=8, dim=6, gamma=0.01), 0.5, 0.01),
)


def _lemma(system: System, quick: bool) -> Numbers:
    deviations, final = [], []
    starts = [(s, g, t) for s in range(1 if quick else 4) for g in (0.1, 0.5) for t in (0.07, 0.3)]
    for seed, gamma0, tau0 in starts:
        flow = system.flow(Parallel(), Learnable(tau0))
        run = system.simulate(flow, initial.matched(pairs=8, dim=6, gamma=gamma0), seed=seed, t1=1e30)
        gamma = np.exp(values(run, "log_gamma"))
        wanted = theory.lemma_3_1(positive(gamma), gamma0, 1 / tau0)
        deviations.append(values(run, "inverse_temperature") / wanted - 1)
        final.append(gamma[-1] / gamma0)
    return {
        "largest_deviation": largest(deviations),
        "largest_final_height_over_start": float(np.max(final)),
        "runs": len(starts),
    }


def _conserved(kinds: list[Any], system: System, quick: bool, quick_horizon: float = 1e30) -> Numbers:
    residuals = {}
    t1 = quick_horizon if quick else 1e30
    # Where β grows faster than a power of ln t, the directions are stiff at long times.
    options: dict[str, Any] = {}
    if t1 > quick_horizon:
        options = {"method": None, "max_steps": 200_000}
    moved = []
    for kind in kinds:
        scale = float(getattr(kind, "scale", 1.0))
        for ratio in RATIOS:
            for name, start, tau0, gamma0 in STARTS:
                flow = system.flow(Parallel(), Learnable(tau0, kind, ratio))
                run = system.simulate(flow, start, t1=t1, **options)
                # The first entry is the configured start, not the first measured state.
                log_gamma = np.concatenate([[np.log(gamma0)], values(run, "log_gamma")])
                beta = np.concatenate([[1 / tau0], positive(values(run, "inverse_temperature"))])
                residual = theory.conserved_residual(log_gamma, beta, kind.potential, scale, ratio)
                suffix = f"_s{scale:g}" if len(kinds) > 1 else ""
                residuals[f"residual_r{ratio:g}{suffix}{name}"] = largest(residual)
                moved.append(np.ptp(log_gamma))
    return {
        "largest_residual": largest(*residuals.values()),
        "smallest_range_of_log_gamma": float(np.min(moved)),
        **residuals,
    }


def _power(system: System, quick: bool) -> Numbers:
    errors, found = [], {}
    for scale in (1.0, 2.0, 10.0):
        for ratio in RATIOS:
            flow = system.flow(Parallel(), Learnable(TAU0, ScaledExp(scale), ratio))
            run = system.simulate(flow, initial.matched(pairs=8, dim=6, gamma=GAMMA0), t1=1e30)
            log_gamma = values(run, "log_gamma")
            measured = slope(
                np.log(positive(values(run, "inverse_temperature"))), log_gamma - np.exp(2 * log_gamma) / 2
            )
            wanted = float(theory.closing_exponent(scale, ratio))
            found[f"slope_s{scale:g}_r{ratio:g}"] = measured
            errors.append(measured / wanted - 1)
    return {"largest_relative_error": largest(errors), **found}


def _claim(name: str, kinds: list[Any], formula: str, quick_horizon: float = 1e30) -> Claim:
    return Claim(
        id=f"conserved-{name}",
        cheap=name == "exp",
        statement=f"Along parallel cones with a learnable temperature, {formula} is constant, from matched and "
        "from mismatched directions, while γ changes by a factor e or more.",
        source="Yaras et al. 2025, Lemma 3.1, generalised here",
        assumptions="`Parallel`, free rows, n = 8, d = 6, matched from γ0 = 0.3, τ0 = 0.07 and mismatched from "
        "γ0 = 0.01, τ0 = 0.5, r = 0.1, 1, 3, no clamp; residual relative to the sum of the magnitudes of the terms, t "
        "from 0 to 1e30" + ("" if quick_horizon == 1e30 else f" (quick: {quick_horizon:g})"),
        measure=lambda system, quick: _conserved(kinds, system, quick, quick_horizon=quick_horizon),
        at_most={"largest_residual": 1e-8},
        at_least={"smallest_range_of_log_gamma": 1.0},
    )


register(
    Claim(
        id="lemma-3.1",
        cheap=True,
        statement="β(t) = β0 √(γ0/γ) exp((γ² − γ0²)/4) along parallel cones with β = exp(ν), r = 1, while γ falls to "
        "less than a tenth.",
        source="Yaras et al. 2025, Lemma 3.1",
        assumptions="`Parallel`, matched free rows, n = 8, d = 6, γ0 = 0.1, 0.5, τ0 = 0.07, 0.3, t from 0 to 1e30",
        measure=_lemma,
        at_most={"largest_deviation": 1e-8, "largest_final_height_over_start": 0.1},
    ),
    _claim("exp", [Exp()], "ln γ − γ²/2 + (2/r) ln β, β = exp(ν),"),
    _claim("scaled-exp", [ScaledExp(2.0), ScaledExp(10.0)], "ln γ − γ²/2 + (2s²/r) ln β, β = exp(ν/s),"),
    _claim("softplus", [Softplus()], "ln γ − γ²/2 + (2/r) F(β), F = ∫β/(1−e^{−β})² dβ, β = ln(1+e^ν),", 1e10),
    _claim("identity", [Identity()], "ln γ − γ²/2 + β²/r, β = ν,", 1e10),
    Claim(
        id="power-of-beta",
        statement="Against ln β, ln γ − γ²/2 has the slope −2s²/r, for β = exp(ν/s) along parallel cones.",
        source="derived here from the conserved quantity",
        assumptions="`Parallel`, matched free rows, n = 8, d = 6, γ0 = 0.3, τ0 = 0.07, s = 1, 2, 10, r = 0.1, 1, 3, t "
        "from 0 to 1e30, slope by least squares",
        measure=_power,
        at_most={"largest_relative_error": 1e-8},
    ),
)
