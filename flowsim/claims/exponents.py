"""Frozen directions: the closed form, and the laws in time that it tends to."""

from typing import Any

import numpy as np

from flowsim import theory
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import largest, limit, slow_limit, values
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Reduced
from flowsim.model.temperature import Exp, Identity, Learnable, ScaledExp, Softplus

PAIRS, GAMMA0, TAU0 = 32, 0.5, 0.5
#: ln t at which laws are read: the approach goes with 1/ln t.
LOG_TIMES = np.array([100.0, 200.0, 400.0])


#: Constant margins 1 and n/(n − 1).
ORTHONORMAL: Any = initial.orthonormal(pairs=PAIRS, gamma=GAMMA0)
SIMPLEX: Any = initial.simplex(pairs=PAIRS, gamma=GAMMA0)
MARGINS = {"": (ORTHONORMAL, 1.0), "_simplex": (SIMPLEX, PAIRS / (PAIRS - 1))}


def _run(system: System, kind: Any, ratio: float, start: Any = ORTHONORMAL) -> Any:
    """A run from 0 to e^400 with three output times around each of `LOG_TIMES`."""
    flow = system.flow(Reduced(), Learnable(TAU0, kind, ratio))
    near = np.concatenate([x * np.array([0.999, 1.0, 1.001]) for x in LOG_TIMES])
    ts = np.concatenate([[0.0], np.exp(np.concatenate([np.linspace(-2, 99, 54), near]))])
    return system.simulate(flow, start, ts=ts)


def _closed_form(system: System, quick: bool) -> Numbers:
    found = {}
    kinds = [Exp(), Identity()] if quick else [Exp(), ScaledExp(10.0), Softplus(), Identity()]
    for kind in kinds:
        errors = []
        for ratio in (1.0,) if quick else (0.5, 1.0, 2.0):
            for start, margin in MARGINS.values():
                run = _run(system, kind, ratio, start)
                scale = float(getattr(kind, "scale", 1.0))
                wanted = theory.reduced_trajectory(
                    run.time, float(np.log(GAMMA0)), 1 / TAU0, margin, PAIRS, kind.potential, scale, ratio
                )
                errors.append(largest(values(run, "log_gamma") / wanted[0] - 1))
                errors.append(largest(values(run, "inverse_temperature") / wanted[1] - 1))
        found[f"{type(kind).__name__}_error"] = largest(errors)
    return {"largest_relative_error": largest(*found.values()), **found}


def _slopes(run: Any) -> np.ndarray:
    """d ln γ/d ln ln t at `LOG_TIMES`."""
    log_gamma = values(run, "log_gamma")[-9:].reshape(3, 3)
    return (log_gamma[:, 2] - log_gamma[:, 0]) / np.log(1.001 / 0.999)


def _exponent(system: System, quick: bool) -> Numbers:
    errors, found = [], {}
    cases: list[tuple[str, Any, float]] = [("r0.5", Exp(), 0.5), ("r1", Exp(), 1.0), ("r2", Exp(), 2.0)]
    if not quick:
        cases.append(("s10_r1", ScaledExp(10.0), 1.0))
    for name, kind, ratio in cases:
        slopes = _slopes(_run(system, kind, ratio))
        exponent = slow_limit(LOG_TIMES, slopes)
        wanted = float(theory.closing_exponent(float(getattr(kind, "scale", 1.0)), ratio))
        found |= {f"slope_at_400_{name}": slopes[-1], f"exponent_{name}": exponent}
        errors.append(exponent / wanted - 1)
    return {"largest_relative_error": largest(errors), **found}


def _identity_law(system: System, quick: bool) -> Numbers:
    errors, found = [], {}
    for kind in (Identity(),) if quick else (Identity(), Softplus()):
        for ratio in (0.5, 1.0, 2.0):
            for at, (start, margin) in MARGINS.items():
                run = _run(system, kind, ratio, start)
                ratios = values(run, "log_gamma")[-9:].reshape(3, 3)[:, 1] / LOG_TIMES**2
                coefficient = limit(1 / LOG_TIMES, ratios)
                name = f"{kind.potential}_r{ratio:g}{at}"
                found |= {f"ratio_at_400_{name}": ratios[-1], f"coefficient_{name}": coefficient}
                errors.append(coefficient / float(theory.identity_law_coefficient(margin, ratio)) - 1)
    return {"largest_relative_error": largest(errors), **found}


_AT = f"`Reduced`, n = {PAIRS}, γ0 = τ0 = 0.5, t from 0 to e^400"
_ORTHONORMAL_AT = "orthonormal pairs (α = 1)"
_BOTH_AT = f"orthonormal pairs (α = 1) and a simplex (α = {PAIRS}/{PAIRS - 1})"

register(
    Claim(
        id="closed-form",
        statement="Frozen directions of constant margin have a closed form, one quadrature for ln γ(t) and β(t); the "
        "simulation agrees with it from t = 0 to t = e^400.",
        source="derived here from the conserved quantity",
        assumptions=f"{_AT}, {_BOTH_AT}, all parametrizations, r = 0.5, 1, 2 (quick: exp(ν) and ν, r = 1)",
        measure=_closed_form,
        at_most={"largest_relative_error": 1e-7},
    ),
    Claim(
        id="exponent-in-time",
        statement="On frozen directions γ closes like (ln t)^(−2s²/r) for β = exp(ν/s), the paper's 1/log(t)² for "
        "s = r = 1: the local slope d ln γ/d ln ln t, extrapolated in 1/ln t and ln ln t/ln t, is −2s²/r within 1 %.",
        source="Yaras et al. 2025, Theorem 3.2, generalised here",
        assumptions=f"{_AT}, {_ORTHONORMAL_AT}, r = 0.5, 1, 2 at s = 1 and r = 1 at s = 10 (quick: s = 1); slopes at "
        "ln t = 100, 200, 400",
        measure=_exponent,
        at_most={"largest_relative_error": 0.01},
    ),
    Claim(
        id="identity-law",
        statement="On frozen directions the gap closes faster than any power of t if β = ν or softplus: ln γ/(ln t)², "
        "extrapolated in 1/ln t, is −1/(rα²) within 1 %.",
        source="Yaras et al. 2025, Appendix C (Θ(1/t^{log t})); constant derived here",
        assumptions=f"{_AT}, {_BOTH_AT}, r = 0.5, 1, 2 (quick: β = ν); ratios at ln t = 100, 200, 400, extrapolated by "
        "a parabola",
        measure=_identity_law,
        at_most={"largest_relative_error": 0.01},
    ),
)
