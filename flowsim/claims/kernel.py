"""Kernels: what parallel cones conserve, how the gap closes, and the encoders whose flow they are."""

import functools
from typing import Any

import jax
import numpy as np

from flowsim import theory
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import largest, positive, values
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Parallel, Reduced, Sphere
from flowsim.model.geometry.encoders import LinearEncoders
from flowsim.model.kernels import Dense, Shared
from flowsim.model.temperature import Exp, Fixed, Learnable

PAIRS, OWN, GAMMA0, TAU0 = 8, 0.7, 0.4, 0.3
#: n·shared/own.
RATIOS = (0.1, 1.0, 40.0)
#: ln t at which exponents are read.
LOG_TIMES = np.array([100.0, 110.0, 120.0])


def _kernel(ratio: float) -> Shared:
    return Shared(OWN, ratio * OWN / PAIRS)


def _conserved(system: System, quick: bool) -> Numbers:
    found, moved, free = {}, [], []
    for ratio in RATIOS:
        kernel = _kernel(ratio)
        flow = system.flow(Parallel(kernel), Learnable(TAU0, Exp(), 2.0))
        run = system.simulate(flow, initial.matched(pairs=PAIRS, dim=6, gamma=GAMMA0), t1=1e30)
        # The first entry is the configured start, not the first measured state.
        log_gamma = np.concatenate([[np.log(GAMMA0)], values(run, "log_gamma")])
        beta = np.concatenate([[1 / TAU0], positive(values(run, "inverse_temperature"))])
        residual = theory.kernel_conserved_residual(log_gamma, beta, PAIRS, OWN, kernel.shared, lr_ratio=2.0)
        found[f"residual_ratio{ratio:g}"] = largest(residual)
        free.append(largest(theory.conserved_residual(log_gamma, beta, lr_ratio=2.0)))
        moved.append(np.ptp(log_gamma))
    return {
        "largest_residual": largest(*found.values()),
        "smallest_residual_of_free_rows": float(np.min(free)),
        "smallest_range_of_log_gamma": float(np.min(moved)),
        **found,
    }


def _exponent(system: System, quick: bool) -> Numbers:
    errors, found = [], {}
    for ratio in RATIOS:
        kernel = _kernel(ratio)
        flow = system.flow(Reduced(kernel), Learnable(0.5))
        run = system.simulate(flow, initial.orthonormal(PAIRS, 0.5), ts=np.exp(np.concatenate([[0.0], LOG_TIMES])))
        log_gamma, beta = values(run, "log_gamma"), positive(values(run, "inverse_temperature"))
        slope = (log_gamma[-1] - log_gamma[-3]) / np.log(beta[-1] / beta[-3])
        effective = theory.effective_lr_ratio(PAIRS, OWN, kernel.shared)
        found |= {f"effective_ratio{ratio:g}": float(effective), f"slope_ratio{ratio:g}": float(slope)}
        errors.append(slope / float(theory.closing_exponent(1.0, effective)) - 1)
    return {"largest_relative_error": largest(errors), **found}


def _linear_encoders(system: System, quick: bool) -> Numbers:
    """Velocities of the rows of linear encoders, by their weights and by their kernel."""
    errors, free = [], []
    geometry = LinearEncoders()
    for seed in range(1 if quick else 4):
        start = initial.latents(pairs=6, factors=4, dim=3).draw(seed)
        position, constants = geometry.place(start)
        kernels, rows = [], []
        for inputs, weights in (
            (constants.image, position.image_weights),
            (constants.first_text, position.text_weights),
        ):
            outputs = np.asarray(inputs) @ np.asarray(weights)
            length = np.linalg.norm(outputs, axis=1)
            kernels.append(Dense(np.asarray(inputs) @ np.asarray(inputs).T / np.outer(length, length)))
            rows.append(outputs / length[:, None])
        there: Any = initial.from_arrays(*rows)
        with jax.enable_x64(True):
            encoders = system.flow(geometry, Fixed(0.5))
            state = encoders.initial_state(start)
            velocity = encoders.vector_field(0.0, state).position
            rows_of = functools.partial(geometry.rows, constants=state.constants)
            moved = jax.jvp(rows_of, (state.unknowns.position,), (velocity,))[1]
            for kind, gathered in ((Sphere(1.0, *kernels), errors), (Sphere(), free)):
                flow = system.flow(kind, Fixed(0.5))
                found = flow.vector_field(0.0, flow.initial_state(there)).position
                for mine, theirs in ((found.image, moved[0]), (found.text, moved[1])):
                    scale = np.abs(theirs).max()
                    gathered.append(float(np.abs(np.asarray(mine) - np.asarray(theirs)).max() / scale))
    return {"largest_relative_error": largest(errors), "smallest_error_of_free_rows": float(np.min(free))}


register(
    Claim(
        id="kernel-conserved",
        statement="Along parallel cones under K = own·I + shared·11ᵀ, ∫ (1−γ²) dγ/(γ[own + n·shared·(1−γ²)]) + "
        "(2/r) ln β is constant, while γ falls by a factor e or more; the conserved quantity of free rows is not.",
        source="derived here",
        assumptions="`Parallel`, matched rows, n = 8, d = 6, γ0 = 0.4, τ0 = 0.3, β = e^ν, r = 2, own = 0.7, "
        "n·shared/own = 0.1, 1, 40; residual relative to the sum of the magnitudes of the terms, t from 0 to 1e30",
        measure=_conserved,
        at_most={"largest_residual": 1e-9},
        at_least={"smallest_range_of_log_gamma": 1.0, "smallest_residual_of_free_rows": 1e-3},
    ),
    Claim(
        id="kernel-exponent",
        statement="A shared kernel acts like a smaller learning rate of the temperature: on frozen directions the "
        "slope d ln γ/d ln β at late times is −2/r_eff within 1 %, with r_eff = r/(own + n·shared).",
        source="derived here",
        assumptions="`Reduced`, orthonormal directions, n = 8, γ0 = 0.5, τ0 = 0.5, β = e^ν, r = 1, own = 0.7, "
        "n·shared/own = 0.1, 1, 40; slope between ln t = 100 and 120",
        measure=_exponent,
        at_most={"largest_relative_error": 0.01},
    ),
    Claim(
        id="kernel-linear-encoders",
        statement="The gradient flow of the weights of linear encoders moves unit rows x = Wa/|Wa| with the velocity "
        "of rows under the kernel K_ij = ⟨a_i, a_j⟩/(|Wa_i||Wa_j|); free rows have another one.",
        source="derived here",
        assumptions="`LinearEncoders` on latents and `Sphere` with `Dense` kernels, n = 6, 4 factors, d = 3, τ = 0.5, "
        "seeds 0 to 3 (quick: 0); largest entry of the difference relative to the largest velocity",
        measure=_linear_encoders,
        at_most={"largest_relative_error": 1e-10},
        at_least={"smallest_error_of_free_rows": 0.1},
    ),
)
