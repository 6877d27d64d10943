"""The loss, its gradient, and the field as the gradient of the loss in all coordinates."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.measures import field, largest, placed, plain_loss, relative
from flowsim.claims.registry import register
from flowsim.model import initial
from flowsim.model.geometry import Parallel, Reduced, Sphere
from flowsim.model.losses import AbstractLoss
from flowsim.model.pairing import Targets
from flowsim.model.temperature import AbstractParametrization, Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

TAU0 = 0.2


def _loss_gradient(system: System, quick: bool) -> Numbers:
    loss = system.flow().loss
    assert isinstance(loss, AbstractLoss)
    n = 8
    gradient = eqx.filter_jit(lambda m: loss.gradient(m, Targets()))
    value = eqx.filter_jit(lambda m: loss.value(m, Targets()))
    plain_value, plain_gradient = jax.jit(plain_loss), jax.jit(jax.grad(plain_loss))
    rng = np.random.default_rng(0)
    errors, finite, losses = [], [], []
    for scale in (1.0, 5.0, 30.0):
        logits = scale * rng.standard_normal((n, n))
        found = gradient(jnp.asarray(logits))
        errors.append(largest(found - plain_gradient(jnp.asarray(logits))))
        losses.append(largest(value(jnp.asarray(logits)) - plain_value(jnp.asarray(logits))))
        direction = rng.standard_normal((n, n))
        step = 1e-5
        ends = [plain_value(jnp.asarray(logits + s * step * direction)) for s in (1, -1)]
        slope = float(ends[0] - ends[1]) / (2 * step)
        finite.append(slope - float(np.sum(np.asarray(found) * direction)))
    # Orthonormal pairs: off-diagonal entries e^{−β}/(n(1 + (n−1)e^{−β})), exact at a loss of 1e-100.
    tiny = []
    for beta in (10.0, 230.0):
        small = np.exp(-beta) / (1 + (n - 1) * np.exp(-beta)) / n
        wanted = small * (1 - n * np.eye(n))
        found = np.asarray(gradient(jnp.asarray(beta * np.eye(n))))
        tiny.append(largest(found / wanted - 1))
        tiny.append(float(value(jnp.asarray(beta * np.eye(n)))) / np.log1p((n - 1) * np.exp(-beta)) - 1)
    return {
        "autodiff_error": largest(errors),
        "finite_difference_error": largest(finite),
        "loss_error": largest(losses),
        "relative_error_at_loss_1e-100": largest(tiny),
    }


#: Potential of a parametrization -> (β(ν/s), ν/s of β), written a second time, independently of the model.
_FORMULAS: dict[str, tuple[Any, Any]] = {
    "exp": (jnp.exp, np.log),
    "softplus": (lambda x: jnp.log1p(jnp.exp(x)), lambda beta: np.log(np.expm1(beta))),
    "identity": (lambda x: x, lambda beta: beta),
}


def _beta(kind: AbstractParametrization, raw: Any) -> Any:
    return _FORMULAS[str(kind.potential)][0](raw / float(kind.scale))


def _raw(kind: AbstractParametrization, beta: float) -> float:
    return float(kind.scale * _FORMULAS[str(kind.potential)][1](beta))


def _dual(value: float) -> tuple[Any, Any]:
    """A number and a unit tangent."""
    return (jnp.asarray(value),), (jnp.ones(()),)


def _unit(rows: Any) -> Any:
    return rows / jnp.sqrt(jnp.sum(rows**2, axis=1, keepdims=True))


def _lifted(rows: Any, height: Any) -> Any:
    column = jnp.broadcast_to(height, (rows.shape[0], 1))
    return jnp.concatenate([jnp.sqrt(1 - height**2) * _unit(rows), column], axis=1)


def _sphere(image: Any, text: Any, gamma: Any) -> Any:
    return _unit(image) @ _unit(text).T


def _cones(image: Any, text: Any, gamma: Any) -> Any:
    return _lifted(image, gamma) @ _lifted(text, -gamma).T


def _force(similarity: Any) -> Any:
    """−∂L/∂(image, text, γ, β) by automatic differentiation of the plain loss."""

    def loss(image: Any, text: Any, gamma: Any, beta: Any) -> Any:
        return plain_loss(beta * similarity(image, text, gamma))

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))
    return lambda *a: jax.tree.map(lambda x: -np.asarray(x), gradient(*(jnp.asarray(x) for x in a)))


def _field_is_gradient(system: System, quick: bool) -> Numbers:
    errors: dict[str, list[float]] = {"rows": [], "gamma": [], "raw": []}
    kinds = (Exp(), ScaledExp(2.0), Softplus(), Identity())
    ratios = (1.0, 0.1, 3.0, 1.0)
    seeds = range(1 if quick else 3)
    forces = {similarity: _force(similarity) for similarity in (_sphere, _cones)}
    for kind, ratio in zip(kinds, ratios, strict=True):
        temperature = Learnable(TAU0, kind, ratio)
        cases: list[tuple[Any, Any]] = [(Parallel(), _cones)]
        if kind == Exp():
            cases += [(Sphere(), _sphere), (Reduced(), _cones)]
        for geometry, similarity in cases:
            flow, force = system.flow(geometry, temperature), forces[similarity]
            gamma = None if similarity is _sphere else 0.3
            for seed in seeds:
                start = initial.uniform(pairs=8, dim=6, gamma=gamma).draw(seed)
                at = (start.image, start.text, np.float64(0.0 if gamma is None else gamma))
                beta, chain = jax.jvp(lambda v, k=kind: _beta(k, v), *_dual(_raw(kind, 1 / TAU0)))
                image, text, height, slope = force(*at, beta)
                raw = slope * np.asarray(chain)
                velocity = field(flow, start)
                position = velocity.position
                if position.image is not None:
                    both = np.concatenate([position.image, position.text])
                    errors["rows"].append(relative(both, np.concatenate([image, text])))
                if gamma is not None:
                    errors["gamma"].append(relative(gamma * position.log_gamma, height))
                errors["raw"].append(relative(velocity.raw_temperature, ratio * raw))
    return {f"{name}_error": largest(e) for name, e in errors.items()}


def _dissipation(system: System, quick: bool) -> Numbers:
    """dL/dt of the plain loss by a JVP along the field, against −Σ v²/rate."""
    ratio = 0.5
    rises, errors = [], []
    for geometry, gamma in ((Sphere(), None), (Parallel(), 0.3)):
        flow = system.flow(geometry, Learnable(TAU0, Exp(), ratio))

        @eqx.filter_jit
        def rate(flow: Any, state: Any, gamma: Any = gamma) -> Any:
            velocity = flow.vector_field(0.0, state)

            def loss(unknowns: Any) -> Any:
                rows = flow.geometry.rows(unknowns.position, state.constants)
                return plain_loss(jnp.exp(unknowns.raw_temperature) * (rows[0] @ rows[1].T))

            change = jax.jvp(loss, (state.unknowns,), (velocity,))[1]
            position = velocity.position
            squares = jnp.sum(position.image**2) + jnp.sum(position.text**2) + velocity.raw_temperature**2 / ratio
            if gamma is not None:
                squares = squares + (gamma * position.log_gamma) ** 2
            return change, squares

        for seed in range(2 if quick else 10):
            for tau in (0.05, 0.3, 1.0):
                start = initial.uniform(pairs=8, dim=6, gamma=gamma).draw(seed)
                moved, state = placed(flow, start)
                state = eqx.tree_at(lambda s: s.unknowns.raw_temperature, state, jnp.asarray(-np.log(tau)))
                change, squares = (np.asarray(x) for x in rate(moved, state))
                rises.append(change)
                errors.append(change / -squares - 1)
    monotone = []
    for schedule, start in (
        (Learnable(0.5), initial.uniform(pairs=8, dim=6, gamma=0.1)),
        (Fixed(0.3), initial.matched(pairs=8, dim=6, gamma=0.3)),
    ):
        run = system.simulate(system.flow(Parallel(), schedule), start, t1=1e5)
        loss = np.asarray(run.series["loss"])
        monotone.append(np.max(np.diff(loss) / loss[:-1]))
    return {
        "largest_loss_rate": float(np.max(rises)),
        "dissipation_error": largest(errors),
        "largest_relative_increase": float(np.max(monotone)),
        "states": len(rises),
    }


def _symmetries(system: System, quick: bool) -> Numbers:
    exchange, permutation, rotation = [], [], []
    for geometry, gamma in ((Sphere(), None), (Parallel(), 0.3)):
        flow = system.flow(geometry, Learnable(TAU0))
        for seed in range(2 if quick else 20):
            start = initial.uniform(pairs=8, dim=6, gamma=gamma).draw(seed)
            rng = np.random.default_rng(seed)
            order, turn = rng.permutation(8), np.linalg.qr(rng.standard_normal((6, 6)))[0]

            def velocity(image: Any, text: Any, flow: Any = flow, gamma: Any = gamma) -> Any:
                v = field(flow, initial.from_arrays(image, text, gamma))
                scalars = [v.raw_temperature] if gamma is None else [v.raw_temperature, v.position.log_gamma]
                return np.asarray(v.position.image), np.asarray(v.position.text), np.asarray(scalars)

            x, y = start.image, start.text
            a, b, c = velocity(x, y)
            # A field that is 0 everywhere shows nothing.
            size = largest(a, b, c) or np.nan
            swapped = velocity(y, x)
            exchange.append(largest(swapped[0] - b, swapped[1] - a, swapped[2] - c) / size)
            moved = velocity(x[order], y[order])
            permutation.append(largest(moved[0] - a[order], moved[1] - b[order], moved[2] - c) / size)
            turned = velocity(x @ turn, y @ turn)
            rotation.append(largest(turned[0] - a @ turn, turned[1] - b @ turn, turned[2] - c) / size)
    return {
        "exchange_error": largest(exchange),
        "permutation_error": largest(permutation),
        "rotation_error": largest(rotation),
    }


register(
    Claim(
        id="loss-gradient",
        cheap=True,
        statement="The gradient of the symmetric contrastive loss is ∇ℓ(M) = (rowsoftmax(M) + "
        "colsoftmax(M))/2n "
        "− I/n: it agrees with automatic and finite differences of the plain log-sum-exp expression, and loss and "
        "gradient keep 12 digits at a loss of 1e-100.",
        source="Yaras et al. 2025, eq. 2 and Appendix B; accuracy measured here",
        assumptions="n = 8, random logits of scale 1, 5, 30; orthonormal pairs at β = 10, 230",
        measure=_loss_gradient,
        at_most={
            "autodiff_error": 1e-13,
            "finite_difference_error": 1e-7,
            "loss_error": 1e-12,
            "relative_error_at_loss_1e-100": 1e-12,
        },
    ),
    Claim(
        id="field-is-gradient",
        cheap=True,
        statement="The vector field is minus the gradient of the loss in every coordinate: rows (projected "
        "on "
        "the sphere), cone height γ and raw temperature ν (times r), for `Sphere`, `Parallel` and `Reduced`, and for "
        "all four parametrizations.",
        source="Yaras et al. 2025, eqs. 3-4 and 11; parametrizations derived here",
        assumptions="random rows, n = 8, d = 6, γ = 0.3, τ = 0.2, r = 1, 0.1, 3, 1; parametrizations other than "
        "exp(ν) on `Parallel`; reference: automatic differentiation",
        measure=_field_is_gradient,
        at_most={"rows_error": 1e-11, "gamma_error": 1e-11, "raw_error": 1e-11},
    ),
    Claim(
        id="loss-decreases",
        statement="With a learnable temperature dL/dt = −(|dθ/dt|² + (dν/dt)²/r), so that the loss falls; along a run "
        "with a learnable and one with a fixed temperature it does not rise.",
        source="gradient flow; measured here",
        assumptions="`Sphere` and `Parallel`, random rows, n = 8, d = 6, r = 0.5, τ = 0.05, 0.3, 1; runs on `Parallel` "
        "to t = 1e5, rises relative to the loss",
        measure=_dissipation,
        at_most={"dissipation_error": 1e-9, "largest_loss_rate": 0.0, "largest_relative_increase": 1e-9},
    ),
    Claim(
        id="symmetries",
        cheap=True,
        statement="The vector field, and with it the flow, commutes with the exchange of the modalities, with "
        "permutations of the pairs and with rotations.",
        source="the loss depends on rows through Z alone, symmetrically; measured here",
        assumptions="`Sphere` and `Parallel`, random rows, n = 8, d = 6; no entry-wise swap",
        measure=_symmetries,
        at_most={"exchange_error": 1e-11, "permutation_error": 1e-11, "rotation_error": 1e-11},
    ),
)
