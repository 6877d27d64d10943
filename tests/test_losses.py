"""The loss and its gradient against plain formulas, finite differences and 60-digit arithmetic."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plain_gradient, plain_loss

from flowsim.losses import InfoNCE
from flowsim.pairing import LabelNoise, Targets

LOSS = InfoNCE()
VALUE, GRADIENT = jax.jit(LOSS.value), jax.jit(LOSS.gradient)


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def logits_of(seed, n, scale):
    return scale * np.random.default_rng(seed).standard_normal((n, n))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.sampled_from([2, 5, 9]), scale=st.floats(0.01, 60))
def test_value_and_gradient_equal_the_plain_formula(seed, n, scale):
    logits = logits_of(seed, n, scale)
    with jax.enable_x64(True):
        value = VALUE(jnp.asarray(logits), Targets())
        gradient = GRADIENT(jnp.asarray(logits), Targets())
    np.testing.assert_allclose(value, plain_loss(logits), rtol=1e-12, atol=1e-12 * scale)
    np.testing.assert_allclose(gradient, plain_gradient(logits), rtol=1e-9, atol=1e-14)


def test_gradient_is_the_derivative_of_the_value():
    logits = logits_of(0, 6, 3.0)
    step, direction = 1e-5, logits_of(1, 6, 1.0)
    plus, minus = (float(LOSS.value(jnp.asarray(logits + s * step * direction), Targets())) for s in (1, -1))
    slope = float(jnp.sum(LOSS.gradient(jnp.asarray(logits), Targets()) * direction))
    assert slope == pytest.approx((plus - minus) / (2 * step), rel=1e-8)


@pytest.mark.parametrize("scale", [40.0, 230.0, 620.0])
def test_tiny_losses_keep_their_digits(scale):
    """Matched logits whose loss is as small as 1e-300, against 400-digit arithmetic."""
    n = 4
    z = np.eye(n) + 0.02 * logits_of(3, n, 1.0)
    logits = scale * z
    with mpmath.workdps(400):
        m = [[mpmath.mpf(float(x)) for x in row] for row in logits]
        value = mpmath.mpf(0)
        off = []
        for i in range(n):
            row = sum(mpmath.exp(m[i][j] - m[i][i]) for j in range(n) if j != i)
            column = sum(mpmath.exp(m[j][i] - m[i][i]) for j in range(n) if j != i)
            value += mpmath.log1p(row) + mpmath.log1p(column)
            off.append(-(row / (1 + row) + column / (1 + column)) / (2 * n))
        value = value / (2 * n)
        assert float(abs(float(LOSS.value(jnp.asarray(logits), Targets())) / value - 1)) < 1e-12 * scale
    diagonal = np.diagonal(LOSS.gradient(jnp.asarray(logits), Targets()))
    np.testing.assert_allclose(diagonal, [float(x) for x in off], rtol=1e-14 * scale)
    assert float(value) < 1e-10


def test_one_hot_targets_are_a_relabelling():
    """A permutation as targets gives the loss of permuted logits, also where the loss is 1e-100."""
    n, order = 5, np.array([2, 0, 1, 4, 3])
    permutation = np.eye(n)[order]
    for scale in (1.0, 240.0):
        logits = scale * (permutation + 0.05 * logits_of(4, n, 1.0))
        targets = Targets(rows=jnp.asarray(permutation), columns=jnp.asarray(permutation))
        straight = jnp.asarray(logits[:, order])
        assert float(LOSS.value(jnp.asarray(logits), targets)) == pytest.approx(
            float(LOSS.value(straight, Targets())), rel=1e-13
        )
        np.testing.assert_allclose(
            np.asarray(LOSS.gradient(jnp.asarray(logits), targets))[:, order],
            LOSS.gradient(straight, Targets()),
            rtol=1e-12,
        )


def test_soft_targets_equal_the_plain_formula_and_vanish_at_the_fit():
    n = 6
    targets = LabelNoise(0.2).targets(jax.random.key(0), n, np.float64)
    logits = logits_of(5, n, 2.0)
    np.testing.assert_allclose(
        LOSS.gradient(jnp.asarray(logits), targets),
        plain_gradient(logits, np.asarray(targets.rows), np.asarray(targets.columns)),
        rtol=1e-11,
        atol=1e-15,
    )
    fitted = jnp.log(targets.rows)
    assert float(jnp.abs(LOSS.gradient(fitted, targets)).max()) < 1e-16


def test_badly_mismatched_logits_do_not_overflow():
    logits = 1e4 * (1 - 2 * np.eye(4))
    value = float(LOSS.value(jnp.asarray(logits), Targets()))
    assert value == pytest.approx(2e4 + np.log(3), rel=1e-12)
    assert np.isfinite(LOSS.gradient(jnp.asarray(logits), Targets())).all()


def test_gradient_sums_to_zero():
    gradient = LOSS.gradient(jnp.asarray(logits_of(7, 8, 5.0)), Targets())
    assert abs(float(gradient.sum())) < 1e-15
