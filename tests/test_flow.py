"""The vector field: against hand-written fields, autodiff and symmetries."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import parallel_field, sphere_field, unit_rows

import flowsim as fs
from flowsim.base.arrays import to_device
from flowsim.model.initial import Start
from flowsim.model.temperature import Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

N, D = 6, 4


def field(flow, start, seed=0, t=0.0, horizon=np.inf):
    with jax.enable_x64(True):
        flow = to_device(flow)
        state = flow.initial_state(start, seed)
        return jax.tree.map(np.asarray, eqx.filter_jit(flow.vector_field)(t, state, horizon))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.floats(0.02, 1.0))
def test_sphere_equals_the_hand_written_field(seed, tau):
    start = fs.initial.uniform(N, D).draw(seed)
    velocity = field(fs.GradientFlow(schedule=Learnable(tau, lr_ratio=0.5)), start)
    image, text, force = sphere_field(start.image, start.text, 1 / tau)
    np.testing.assert_allclose(velocity.position.image, image, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(velocity.position.text, text, rtol=1e-9, atol=1e-11)
    assert velocity.raw_temperature == pytest.approx(0.5 / tau * force, rel=1e-9, abs=1e-11)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), tau=st.floats(0.05, 1.0), gamma=st.floats(0.01, 0.9))
def test_parallel_equals_the_hand_written_field(seed, tau, gamma):
    start = fs.initial.uniform(N, D, gamma=gamma).draw(seed)
    velocity = field(fs.GradientFlow(fs.Parallel(), Learnable(tau, lr_ratio=3.0)), start)
    image, text, log_gamma, force = parallel_field(start.image, start.text, gamma, 1 / tau)
    np.testing.assert_allclose(velocity.position.image, image, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(velocity.position.text, text, rtol=1e-9, atol=1e-11)
    assert velocity.position.log_gamma == pytest.approx(log_gamma, rel=1e-9, abs=1e-11)
    assert velocity.raw_temperature == pytest.approx(3.0 / tau * force, rel=1e-9, abs=1e-11)
    reduced = field(fs.GradientFlow(fs.Reduced(), Learnable(tau, lr_ratio=3.0)), start)
    assert reduced.position.log_gamma == pytest.approx(velocity.position.log_gamma, rel=1e-12, abs=1e-13)
    assert reduced.raw_temperature == pytest.approx(velocity.raw_temperature, rel=1e-12, abs=1e-13)


FLOWS = {
    "sphere": (fs.GradientFlow(), fs.initial.uniform(N, D)),
    "sphere softplus noise": (
        fs.GradientFlow(schedule=Learnable(0.3, Softplus()), pairing=fs.LabelNoise(0.2)),
        fs.initial.uniform(N, D),
    ),
    "parallel": (fs.GradientFlow(fs.Parallel(), Learnable(0.2, ScaledExp(2.0))), fs.initial.uniform(N, D, 0.3)),
    "reduced": (fs.GradientFlow(fs.Reduced(), Learnable(0.2, Identity())), fs.initial.uniform(N, D, 0.3)),
    "hard swap": (fs.GradientFlow.from_preset("HS 1e-1"), fs.initial.cones(N, D, random_basis=True)),
    "row swap": (fs.GradientFlow.from_preset("HS rows"), fs.initial.cones(N, D, random_basis=True)),
    "soft swap": (
        fs.GradientFlow(schedule=fs.Schedule(Learnable(0.3), fs.SoftSwap(0.5, "updated"))),
        fs.initial.cones(N, D, random_basis=True),
    ),
    "parallel swap": (
        fs.GradientFlow(fs.Parallel(), fs.schedules.get("HS 1e-1")),
        fs.initial.cones(N, D, random_basis=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FLOWS)
def test_field_is_minus_the_gradient_of_the_loss(name):
    """Autodiff of the loss that is reported, projected by hand, equals the closed-form field."""
    flow, recipe = FLOWS[name]
    velocity = field(flow, recipe.draw(5), seed=5)
    with jax.enable_x64(True):
        flow = to_device(flow)
        state = flow.initial_state(recipe.draw(5), 5)

        def loss(unknowns):
            return flow.loss_value(0.0, dataclasses.replace(state, unknowns=unknowns))

        gradient = jax.jit(jax.grad(loss))(state.unknowns)
    for which in ("image", "text"):
        if getattr(velocity.position, which) is not None:
            # Rows are normalised inside the loss, so that its gradient already is tangent.
            np.testing.assert_allclose(
                getattr(velocity.position, which), -getattr(gradient.position, which), rtol=1e-9, atol=1e-12
            )
    assert velocity.raw_temperature == pytest.approx(-float(gradient.raw_temperature), rel=1e-9)
    if flow.geometry.has_gamma:
        # γ has its own unit metric: dγ/dt = −∂L/∂γ, hence d ln γ/dt = −(∂L/∂ln γ)/γ².
        gamma = float(state.constants.sign) * np.exp(float(state.unknowns.position.log_gamma))
        expected = -float(gradient.position.log_gamma) / gamma**2
        assert velocity.position.log_gamma == pytest.approx(expected, rel=1e-8)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_symmetries_of_the_sphere(seed):
    """Rotation, permutation of pairs and exchange of modalities act on the field as on the state."""
    rng = np.random.default_rng(seed)
    image, text = unit_rows(rng, N, D), unit_rows(rng, N, D)
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    order = rng.permutation(N)
    flow = fs.GradientFlow(schedule=Learnable(0.2))
    plain = field(flow, Start(image, text))
    rotated = field(flow, Start(image @ rotation, text @ rotation))
    permuted = field(flow, Start(image[order], text[order]))
    exchanged = field(flow, Start(text, image))
    tolerance = dict(rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(rotated.position.image, plain.position.image @ rotation, **tolerance)
    np.testing.assert_allclose(permuted.position.text, plain.position.text[order], **tolerance)
    np.testing.assert_allclose(exchanged.position.image, plain.position.text, **tolerance)
    for other in (rotated, permuted, exchanged):
        assert other.raw_temperature == pytest.approx(plain.raw_temperature, rel=1e-10)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_velocities_are_tangent(seed):
    start = fs.initial.uniform(N, D).draw(seed)
    velocity = field(fs.GradientFlow(), start)
    for rows, moved in ((start.image, velocity.position.image), (start.text, velocity.position.text)):
        assert np.abs((rows * moved).sum(1)).max() < 1e-13 * max(1.0, np.abs(moved).max())


def test_embedding_rate_scales_rows_only():
    start = fs.initial.uniform(N, D).draw(0)
    slow, fast = (field(fs.GradientFlow(fs.Sphere(k)), start) for k in (1.0, 4.0))
    np.testing.assert_allclose(fast.position.image, 4 * slow.position.image, rtol=1e-12)
    assert fast.raw_temperature == slow.raw_temperature


def test_sphere_and_parallel_agree_on_the_direction_of_the_gap():
    """On `Sphere` doubly stochastic rings of equal height obey d ln γ/dt = −βg/n, g = −⟨S, ∇ℓ⟩."""
    start = fs.initial.rings().draw()
    with jax.enable_x64(True):
        flow = to_device(fs.GradientFlow())
        state = flow.initial_state(start)
        velocity = flow.vector_field(0.0, state)
        log_gamma = float(velocity.position.image[0, 2] / state.unknowns.position.image[0, 2])
    parallel = field(fs.GradientFlow(fs.Parallel()), start)
    beta, n, gamma = 1 / 0.07, 5, float(start.gamma)
    g_parallel = parallel.position.log_gamma / (-2 * beta)
    gradient = -sphere_field(*start.rows(), beta)[2]
    # On the sphere β multiplies the full similarity, whose shift −γ² drops out of the softmax.
    g_sphere = (1 - gamma**2) * g_parallel
    assert gradient == pytest.approx(-g_sphere, rel=1e-9)
    assert log_gamma == pytest.approx(-beta * g_sphere / n, rel=1e-9)


def test_swap_preserves_the_sum_of_modalities():
    """HS and SS (old features) exchange mass between modalities: X' + Y' = X + Y."""
    with jax.enable_x64(True):
        key = jax.random.key(0)
        rng = np.random.default_rng(0)
        image, text = (jnp.asarray(unit_rows(rng, N, D)) for _ in range(2))
        for swap in (fs.HardSwap(1.0), fs.HardSwap(1.0, "row"), fs.SoftSwap(1.0)):
            masks = swap.draw(key, 4, N, D, np.float64)
            for mask in masks:
                x, y = swap.apply(mask, image, text)
                np.testing.assert_allclose(x + y, image + text, atol=1e-14)
        x, y = fs.SoftSwap(1.0, "updated").apply(jnp.full((N, D), 0.5), image, text)
        np.testing.assert_allclose(y, 0.5 * text + 0.5 * x, atol=1e-15)


def test_zero_swap_fraction_is_no_swap():
    start = fs.initial.cones(N, D).draw(0)
    with_swap = field(fs.GradientFlow(schedule=fs.Schedule(Learnable(), fs.HardSwap(0.0))), start)
    without = field(fs.GradientFlow(), start)
    np.testing.assert_allclose(with_swap.position.image, without.position.image, rtol=1e-12, atol=1e-14)
    assert with_swap.raw_temperature == pytest.approx(without.raw_temperature, rel=1e-12)


def test_fixed_temperature_has_no_raw():
    velocity = field(fs.GradientFlow(schedule=Fixed(0.1)), fs.initial.uniform(N, D).draw(0))
    assert velocity.raw_temperature is None
    assert isinstance(Exp(), fs.temperature.AbstractParametrization)


def products_in(jaxpr):
    """Precisions of all matrix products of a program, those of its inner programs included."""
    found = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            found.append(equation.params["precision"])
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                found += products_in(inner)
    return found


@pytest.mark.parametrize(
    ("flow", "start"),
    [
        (fs.GradientFlow(), fs.initial.uniform(N, D)),
        (fs.GradientFlow(), fs.initial.uniform(300, D)),
        (fs.GradientFlow(fs.Parallel()), fs.initial.cones(N, D)),
        (fs.GradientFlow(loss=fs.NTXent()), fs.initial.uniform(N, D)),
        (fs.GradientFlow(fs.LinearEncoders()), fs.initial.latents(N)),
    ],
    ids=["sphere", "tiles", "parallel", "NT-Xent", "encoders"],
)
def test_products_in_single_precision_are_not_rounded_on_gpus(flow, start):
    """By default JAX rounds their factors to TF32 there; the request is visible on any machine."""
    with jax.enable_x64(False):
        flow = to_device(flow, np.float32)
        state = flow.initial_state(start.draw(0), dtype=np.float32)
        programs = [
            jax.make_jaxpr(lambda s, call=call: call(0.0, s))(state)
            for call in (flow.vector_field, flow.loss_value, flow.descent)
        ]
    highest = jax.lax.Precision.HIGHEST
    for program in programs:
        found = products_in(program.jaxpr)
        assert found
        assert all(precision in (highest, (highest, highest)) for precision in found)


@pytest.mark.parametrize(("run", "pairs"), [("simulate", 7), ("descend", 8), ("sweep", 9)])
def test_runs_observe_with_products_that_are_not_rounded(run, pairs, monkeypatch):
    asked, original = set(), fs.Sphere.rows

    def noted(*arguments):
        asked.add(getattr(jax.config, "jax_default_matmul_precision"))  # noqa: B009
        return original(*arguments)

    monkeypatch.setattr(fs.Sphere, "rows", noted)
    flow, start = fs.GradientFlow(), fs.initial.uniform(pairs, 5)
    if run == "simulate":
        fs.simulate(flow, start, t1=0.1)
    elif run == "descend":
        fs.descend(flow, start, "sgd", 0.1, 2)
    else:
        fs.sweep(flow, start, {"seed": [0, 1]}, t1=0.1)
    assert asked == {"highest"}
