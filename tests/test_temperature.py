"""Temperature policies: one object on floats, NumPy and JAX; parametrizations; bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsim import FlowsimError
from flowsim.temperature import (
    Cosine,
    Exp,
    Fixed,
    Identity,
    Learnable,
    Linear,
    ScaledExp,
    Softplus,
)

PARAMETRIZATIONS = [Exp(), ScaledExp(10.0), ScaledExp(2.0), Softplus(), Identity()]


@pytest.mark.parametrize("policy", [Fixed(0.04), Linear(0.01, 0.05), Cosine(0.01, 0.04, cycles=3)])
def test_same_values_on_floats_numpy_and_jax(policy):
    progress = np.linspace(-0.1, 1.2, 27)
    on_floats = [float(policy.temperature(float(u))) for u in progress]
    np.testing.assert_allclose(policy.temperature(progress), on_floats, rtol=1e-15)
    with jax.enable_x64(True):
        on_jax = jax.jit(lambda p, u: p.temperature(u))(jax.tree.map(jnp.asarray, policy), jnp.asarray(progress))
    np.testing.assert_allclose(on_jax, on_floats, rtol=1e-14)


def test_linear_is_linear_in_temperature_and_holds_at_the_end():
    policy = Linear(0.01, 0.05)
    np.testing.assert_allclose(
        [policy.temperature(u) for u in (0.0, 0.25, 0.5, 1.0, 3.0)], [0.01, 0.02, 0.03, 0.05, 0.05]
    )


def test_cosine_starts_high_and_returns_after_each_cycle():
    policy = Cosine(0.01, 0.04, cycles=4)
    np.testing.assert_allclose([policy.temperature(u) for u in (0, 0.125, 0.25, 0.5, 1)],
                               [0.04, 0.01, 0.04, 0.04, 0.04])  # fmt: skip


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=repr)
@pytest.mark.parametrize("beta", [1e-3, 0.5, 14.3, 100.0])
def test_raw_and_inverse_temperature_are_inverse(parametrization, beta):
    raw = parametrization.raw(np.asarray(beta))
    assert parametrization.inverse_temperature(raw) == pytest.approx(beta, rel=1e-12)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=repr)
@pytest.mark.parametrize("raw", [-3.0, 0.2, 5.0])
def test_derivative_by_finite_differences(parametrization, raw):
    raw = np.asarray(raw)
    step = 1e-6
    slope = (parametrization.inverse_temperature(raw + step) - parametrization.inverse_temperature(raw - step)) / (
        2 * step
    )
    assert parametrization.derivative(raw) == pytest.approx(slope, rel=1e-7)


def test_softplus_does_not_overflow():
    raw = np.array([-800.0, 800.0])
    np.testing.assert_allclose(Softplus().inverse_temperature(raw), [0.0, 800.0], atol=1e-300)
    np.testing.assert_allclose(Softplus().derivative(raw), [0.0, 1.0], atol=1e-300)


def test_learnable_follows_its_raw_value():
    policy = Learnable(0.07, lr_ratio=0.1)
    raw = policy.initial_raw()
    assert policy.temperature(0.3, raw) == pytest.approx(0.07)
    beta = 1 / 0.07
    assert policy.raw_velocity(raw, 2.0) == pytest.approx(0.1 * beta * 2.0)


def test_leaves_keep_double_precision_outside_64_bit_mode():
    assert float(Fixed(0.07).tau) == 0.07
    assert Fixed(0.07).tau.dtype == np.float64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Fixed(-0.1), "`temperature` must be positive, but is -0.1"),
        (lambda: Fixed(float("nan")), "must be positive, but is nan"),
        (lambda: Linear(0.01, 0.0), "`end` must be positive"),
        (lambda: Learnable(0.0), "`temperature` must be positive"),
        (lambda: Learnable(clamp=(0.1, 1.0)), "contain the initial temperature"),
        (lambda: Learnable(clamp=(1.0, 0.01)), "increasing"),
        (lambda: ScaledExp(0), "`scale` must be positive"),
        (lambda: Fixed("warm"), "Expected a number, but got 'warm'"),
    ],
)
def test_bad_input_gets_one_sentence(build, message):
    with pytest.raises(FlowsimError, match=message):
        build()
