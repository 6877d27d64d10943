"""Temperature policies: one object on floats, NumPy and JAX; parametrizations; bad input."""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsim import FlowsimError
from flowsim.base.modules import tracing
from flowsim.model.temperature import (
    AbstractTemperature,
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
    np.testing.assert_allclose(
        [policy.temperature(u) for u in (0, 0.125, 0.25, 0.5, 1)], [0.04, 0.01, 0.04, 0.04, 0.04]
    )


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
    assert policy.derivative(0.3, raw) == pytest.approx(beta)
    assert policy.lr_ratio == 0.1


def test_leaves_keep_double_precision_outside_64_bit_mode():
    assert float(Fixed(0.07).tau) == 0.07
    assert Fixed(0.07).tau.dtype == np.float64


def test_what_is_just_allowed():
    assert Learnable(lr_ratio=0).lr_ratio == 0  # a frozen temperature
    assert Cosine(0.1, 0.1).low == 0.1
    assert float(Fixed(np.float16(0.5)).tau) == 0.5
    assert Fixed(np.int64(2)).tau.dtype == np.float64


class OfMyOwn(AbstractTemperature):
    """A policy whose rule a test replaces."""

    rule: Callable[[Any], Any] = eqx.field(static=True)

    def inverse_temperature(self, progress, raw=None):
        return self.rule(progress)


@pytest.mark.parametrize(
    "rule",
    [
        lambda u: 10.0 if u < 0.5 else 20.0,
        lambda u: np.select([u < 0.5], [10.0], 20.0),
        lambda u: np.interp(u, [0, 1], [10, 20.0]),
        lambda u: 10.0 + float(u),
        lambda u: 10.0 + math.exp(u),
        lambda u: [10.0, 20.0][int(u > 0.5)],
        lambda u: 10.0 + (5.0 if u > 0.2 and u < 0.7 else 0.0),
        lambda u: max(10.0, 20.0 * u),
    ],
    ids=["if", "select", "interp", "float", "math", "index", "and", "max"],
)
def test_a_policy_that_cannot_be_compiled_is_named_with_the_cure(rule):
    policy = OfMyOwn(rule)
    with (
        pytest.raises(FlowsimError, match=r"`OfMyOwn\.inverse_temperature` \(line \d+\) cannot .* jnp\.where"),
        tracing(),
    ):
        jax.eval_shape(policy.inverse_temperature, jnp.asarray(0.5))


def test_other_errors_pass_unchanged():
    with pytest.raises(jax.errors.TracerBoolConversionError), tracing():
        jax.eval_shape(bool, jnp.asarray(0.5))
    with pytest.raises(ZeroDivisionError), tracing():
        OfMyOwn(lambda u: 1 / 0).inverse_temperature(0.5)


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
        (lambda: Fixed(1e-320), "`temperature` must be at least 1e-300, but is 9.99989e-321"),
        (lambda: Learnable(lr_ratio=-1), "`lr_ratio` must be at least 0, but is -1"),
        (lambda: Learnable(lr_ratio=float("inf")), "`lr_ratio` must be at least 0, but is inf"),
        (lambda: Cosine(0.1, 0.01), r"`low` must be at most `high`.*Swap them: Cosine\(0.01, 0.1\)"),
        (lambda: Cosine(0.01, 0.1, cycles=-1), "`cycles` must be positive"),
    ],
)
def test_bad_input_gets_one_sentence(build, message):
    with pytest.raises(FlowsimError, match=message):
        build()
