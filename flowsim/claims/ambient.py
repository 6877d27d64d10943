"""The force on the gap in the ambient space, and what the tangent projection makes of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from flowsim import theory
from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import field, gap_force, largest, plain_loss
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Sphere
from flowsim.model.losses import AbstractLoss
from flowsim.model.pairing import Targets
from flowsim.model.temperature import Learnable

BETA, PAIRS = 25.0, 6


def _shift_forces(loss: AbstractLoss, image: Any, text: Any, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """−∂L/∂c for a common shift c of all image rows, and of all text rows, without normalisation."""
    gradient = np.asarray(loss.gradient(jnp.asarray(beta * image @ text.T), Targets()))
    return -beta * text.T @ gradient.sum(axis=0), -beta * image.T @ gradient.sum(axis=1)


def _plain_shift_forces(image: Any, text: Any, beta: float) -> tuple[np.ndarray, np.ndarray]:
    """The same by automatic differentiation of the plain loss."""

    def loss(a: Any, b: Any) -> Any:
        return plain_loss(beta * (image + a[None, :]) @ (text + b[None, :]).T)

    zero = jnp.zeros(image.shape[1])
    found = jax.grad(loss, argnums=(0, 1))(zero, zero)
    return -np.asarray(found[0]), -np.asarray(found[1])


def _doubly_stochastic(rng: np.random.Generator) -> Float[np.ndarray, "n n"]:
    p = np.exp(rng.standard_normal((PAIRS, PAIRS)))
    for _ in range(2000):
        p /= p.sum(axis=1, keepdims=True)
        p /= p.sum(axis=0, keepdims=True)
    return p


def _rows_of(logits: Float[np.ndarray, "n n"]) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows whose logits at `BETA` are these (up to one constant, which no softmax sees)."""
    z = (logits - logits.max()) / BETA
    # Orthonormal texts; one more dimension makes the images' lengths 1.
    room = 1 - np.sum(z**2, axis=1, keepdims=True)
    text = np.eye(PAIRS, PAIRS + 1)
    return np.concatenate([z, np.sqrt(room)], axis=1), text


def _force(system: System, quick: bool) -> Numbers:
    loss = system.flow().loss
    assert isinstance(loss, AbstractLoss)
    errors, both, silent, loud = [], [], [], []
    for seed in range(3 if quick else 20):
        rng = np.random.default_rng(seed)
        start = initial.uniform(PAIRS, PAIRS + 1).draw(seed)
        p, offsets = _doubly_stochastic(rng), 0.5 * rng.standard_normal(PAIRS)
        # Offsets of the rows leave the row softmax alone and spoil the column softmax.
        image, text = _rows_of(np.log(p) + offsets[:, None])
        other_text, other_image = _rows_of((np.log(p) + offsets[None, :]).T)
        ring = initial.rings(PAIRS, 0.3, twist=360.0 * rng.uniform()).draw().rows()
        cases = {
            "random": (start.image, start.text),
            "rows only": (image, text),
            "columns only": (other_image, other_text),
            "both": _rows_of(np.log(p)),
            "ring": ring,
        }
        found = {name: _shift_forces(loss, *rows, beta=BETA) for name, rows in cases.items()}
        for name, rows in cases.items():
            wanted = _plain_shift_forces(*(jnp.asarray(x) for x in rows), beta=BETA)
            errors.append(largest(found[name][0] - wanted[0], found[name][1] - wanted[1]))
        both.append(largest(*found["both"], *found["ring"]))
        silent.append(largest(found["rows only"][0], found["columns only"][1]))
        loud += [largest(found["rows only"][1]), largest(found["columns only"][0]), *map(largest, found["random"])]
    return {
        "autodiff_error": largest(errors),
        "largest_force_if_both_doubly_stochastic": largest(both),
        "largest_force_on_the_matching_modality": largest(silent),
        "smallest_force_on_the_other": float(np.min(loud)),
    }


def _projection(system: System, quick: bool) -> Numbers:
    errors, ambient, speeds = [], [], []
    loss = system.flow().loss
    assert isinstance(loss, AbstractLoss)
    cases = [(n, h, tau, k) for n in (5,) if quick for h in (0.1, 0.309) for tau in (0.2, 1.0) for k in (1.0, 3.0)]
    cases += [
        (n, h, tau, k)
        for n in (2, 3, 5, 8)
        if not quick
        for h in (0.1, 0.309, 0.8)
        for tau in (0.2, 1.0)
        for k in (1.0, 3.0)
    ]
    for n, height, tau, k in cases:
        start = initial.rings(n, height, twist=25.0).draw()
        image, text = start.rows()
        flow = system.flow(Sphere(k), Learnable(tau))
        velocity = field(flow, start).position
        rate = (np.mean(velocity.image[:, -1]) - np.mean(velocity.text[:, -1])) / (2 * height)
        cosines = image @ text.T
        wanted = -k / tau * gap_force(cosines, 1 / tau) / n
        errors.append((rate - wanted) / np.abs(wanted))
        ambient.append(largest(*_shift_forces(loss, image, text, 1 / tau)))
        speeds.append(np.abs(rate))
    return {
        "largest_relative_error": largest(errors),
        "largest_ambient_force": largest(ambient),
        "smallest_speed": float(np.min(speeds)),
        "states": float(len(cases)),
        "exponent_of_figure_2": float(theory.sphere_exponent(5)),
    }


register(
    Claim(
        id="ambient-force",
        statement="The ambient force on a common shift of all image rows is −βYᵀ(∇ℓᵀ1), on all text rows −βXᵀ(∇ℓ1). "
        "Both vanish if both softmaxes are doubly stochastic; if only the row softmax is, that on the images vanishes "
        "alone.",
        source="arXiv 2603.29080, with the condition on both softmaxes derived here",
        assumptions=f"n = {PAIRS}, β = {BETA:g}; rings, random rows, and rows made for logits ln P + offsets with P "
        "doubly stochastic; reference: automatic differentiation",
        measure=_force,
        at_most={
            "autodiff_error": 1e-12,
            "largest_force_if_both_doubly_stochastic": 1e-12,
            "largest_force_on_the_matching_modality": 1e-12,
        },
        at_least={"smallest_force_on_the_other": 1e-3},
    ),
    Claim(
        id="projection-moves-gap",
        statement="Where the ambient force on the centres vanishes the tangent projection still moves the gap: on "
        "twisted rings d ln γ/dt = −kβg/n.",
        source="derived here",
        assumptions="`Sphere`, rings twisted by 25°, n = 2, 3, 5, 8, γ = 0.1, 0.309, 0.8, τ = 0.2, 1, k = 1, 3 "
        "(quick: n = 5)",
        measure=_projection,
        at_most={"largest_relative_error": 1e-9, "largest_ambient_force": 1e-12},
        at_least={"smallest_speed": 1e-6},
    ),
)
