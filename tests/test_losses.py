"""The losses and their gradients against plain formulas, finite differences and arithmetic of 400 digits."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import plain_gradient, plain_loss, unit_rows
from scipy.special import logsumexp

import flowsim as fs
from flowsim import losses
from flowsim.base.arrays import to_device
from flowsim.model.losses import DirectedInfoNCE, InfoNCE, NTXent, Regularised, Sigmoid
from flowsim.model.pairing import LabelNoise, Targets
from flowsim.model.temperature import Learnable, ScaledExp

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


# --- the other losses of logits -----------------------------------------------------------------------


def some_targets(name, n):
    """(targets, T, T'): what the package gets and the plain matrices."""
    rng = np.random.default_rng(8)
    if name == "identity":
        return Targets(), np.eye(n), np.eye(n)
    if name == "one-hot":
        rows = columns = np.eye(n)[rng.permutation(n)]
    else:
        rows, columns = rng.dirichlet(np.ones(n), n), rng.dirichlet(np.ones(n), n).T
    return Targets(jnp.asarray(rows), jnp.asarray(columns)), rows, columns


def plain_directed(m, rows, columns):
    """−(1/n) Σ_ij T_ij log softmax_j."""
    return -jnp.sum(rows * jax.nn.log_softmax(m, axis=1)) / len(m)


def plain_sigmoid(m, rows, columns):
    """−(1/n) Σ_ij [T_ij log σ(M_ij) + (1 − T_ij) log σ(−M_ij)]."""
    return -jnp.sum(rows * jax.nn.log_sigmoid(m) + (1 - rows) * jax.nn.log_sigmoid(-m)) / len(m)


PLAIN = {
    "InfoNCE": (InfoNCE(), lambda m, r, c: (plain_directed(m, r, c) + plain_directed(m.T, c.T, r.T)) / 2),
    "image to text": (DirectedInfoNCE(), plain_directed),
    "text to image": (DirectedInfoNCE("text_to_image"), lambda m, r, c: plain_directed(m.T, c.T, r.T)),
    "Sigmoid": (Sigmoid(), plain_sigmoid),
}


@pytest.mark.parametrize("kind", ["identity", "one-hot", "soft"])
@pytest.mark.parametrize("name", PLAIN)
def test_value_and_gradient_equal_the_plain_loss_and_its_derivative(name, kind):
    loss, plain = PLAIN[name]
    targets, rows, columns = some_targets(kind, 5)
    logits = jnp.asarray(logits_of(6, 5, 3.0))
    value, gradient = jax.value_and_grad(plain)(logits, jnp.asarray(rows), jnp.asarray(columns))
    assert float(loss.value(logits, targets)) == pytest.approx(float(value), rel=1e-13)
    np.testing.assert_allclose(loss.gradient(logits, targets), gradient, rtol=1e-11, atol=1e-15)


def test_the_two_directions_make_the_symmetric_loss():
    logits = jnp.asarray(logits_of(9, 5, 2.0))
    there, back = (DirectedInfoNCE(d).value(logits, Targets()) for d in ("image_to_text", "text_to_image"))
    assert float(LOSS.value(logits, Targets())) == pytest.approx(float(there + back) / 2, rel=1e-14)
    assert abs(float(there - back)) > 1e-3


@pytest.mark.parametrize("scale", [40.0, 230.0, 620.0])
def test_sigmoid_keeps_its_digits_where_it_is_tiny(scale):
    n, order = 4, np.array([1, 0, 3, 2])
    hard = np.eye(n)[order]
    logits = scale * (2 * hard - 1 + 0.1 * logits_of(10, n, 1.0))
    targets = Targets(jnp.asarray(hard), jnp.asarray(hard))
    with mpmath.workdps(400):
        signed = [mpmath.mpf(float(x)) for x in ((1 - 2 * hard) * logits).ravel()]
        value = sum(mpmath.log1p(mpmath.exp(x)) for x in signed) / n
        slopes = [float(1 / (1 + mpmath.exp(-x)) / n) for x in signed]
        assert float(abs(float(Sigmoid().value(jnp.asarray(logits), targets)) / value - 1)) < 1e-15 * scale
    assert float(value) < 1e-10
    gradient = np.asarray(Sigmoid().gradient(jnp.asarray(logits), targets))
    np.testing.assert_allclose(((1 - 2 * hard) * gradient).ravel(), slopes, rtol=1e-15 * scale)


# --- losses of rows -----------------------------------------------------------------------------------


def plain_nt_xent(x, y, beta, rows, columns):
    z, n = np.concatenate([x, y]), len(x)
    m = beta * z @ z.T
    total = 0.0
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        want = rows[i] @ m[i, n:] if i < n else columns[:, i - n] @ m[i, :n]
        total += logsumexp(m[i, others]) - want
    return total / (2 * n)


def plain_regularised(x, y, beta, alignment, uniformity):
    def spread(z):
        off = [np.exp(-2 * np.sum((a - b) ** 2)) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]
        return np.log(np.mean(off))

    align = np.mean([np.sum((a - b) ** 2) for a, b in zip(x, y, strict=True)])
    return plain_loss(beta * x @ y.T) + alignment * align + uniformity * (spread(x) + spread(y)) / 2


@pytest.mark.parametrize("kind", ["identity", "one-hot", "soft"])
def test_losses_of_rows_equal_the_plain_formulas(kind):
    rng = np.random.default_rng(11)
    x, y = unit_rows(rng, 5, 3), unit_rows(rng, 5, 3)
    targets, rows, columns = some_targets(kind, 5)
    pair, beta = (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(4.0)
    assert float(NTXent().value(*pair, beta, targets)) == pytest.approx(
        plain_nt_xent(x, y, 4.0, rows, columns), rel=1e-13
    )
    if kind == "identity":
        value = float(Regularised(0.7, -0.3).value(*pair, beta, targets))
        assert value == pytest.approx(plain_regularised(x, y, 4.0, 0.7, -0.3), rel=1e-13)


# --- the flow of each loss ----------------------------------------------------------------------------


FORCES = {
    "text to image": DirectedInfoNCE("text_to_image"),
    "absolute bias": Sigmoid(-2.0, 0.5),
    "relative bias": Sigmoid(0.3, 0.5, relative_bias=True),
    "locked bias": Sigmoid(-2.0, None),
    "NT-Xent": NTXent(),
    "regularised": Regularised(0.7, 0.3),
}


@pytest.mark.parametrize(
    ("name", "swap"),
    [(name, fs.NoSwap()) for name in FORCES]
    + [(name, fs.HardSwap(0.3, masks=3)) for name in ("relative bias", "NT-Xent")],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_field_is_minus_the_gradient_of_the_loss(name, swap):
    """Rows, ν and b move down the loss that is reported, at their own rates."""
    temperature = Learnable(0.3, ScaledExp(2.0), lr_ratio=3.0)
    flow = to_device(
        fs.GradientFlow(schedule=fs.Schedule(temperature, swap), loss=FORCES[name], pairing=LabelNoise(0.2))
    )
    state = flow.initial_state(fs.initial.uniform(5, 3).draw(1))

    @eqx.filter_jit
    def both(unknowns):
        def loss(unknowns):
            return flow.loss_value(0.0, dataclasses.replace(state, unknowns=unknowns))

        return flow.vector_field(0.0, dataclasses.replace(state, unknowns=unknowns)), jax.grad(loss)(unknowns)

    velocity, gradient = both(state.unknowns)
    for which in ("image", "text"):
        moved, slope = (getattr(v.position, which) for v in (velocity, gradient))
        np.testing.assert_allclose(moved, -slope, rtol=1e-10, atol=1e-14)
        assert np.abs(moved).max() > 1e-2
    assert float(velocity.raw_temperature) == pytest.approx(-3.0 * float(gradient.raw_temperature), rel=1e-10)
    trained = getattr(FORCES[name], "bias_rate", None) is not None
    assert (velocity.bias is not None) == trained
    if trained:
        assert float(velocity.bias) == pytest.approx(-0.5 * float(gradient.bias), rel=1e-10)
        assert abs(float(gradient.bias)) > 1e-3


def test_a_locked_bias_acts_and_stays():
    """b of a locked sigmoid loss shifts the logits; the flow has no unknown for it."""
    start = fs.initial.uniform(5, 3).draw(0)
    values = []
    for loss in (Sigmoid(-2.0, None), Sigmoid(-1.0, None), Sigmoid(-1.0), Sigmoid(0.07, None, relative_bias=True)):
        flow = to_device(fs.GradientFlow(loss=loss))
        values.append(float(flow.loss_value(0.0, flow.initial_state(start))))
    assert values[0] != pytest.approx(values[1], rel=1e-2)
    # The same bias, trained or not; and βb = 1 in relative form: τ = 0.07.
    assert values[1] == pytest.approx(values[2], rel=1e-14) == pytest.approx(values[3], rel=1e-13)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: DirectedInfoNCE("text to image"), "Unknown direction.*Did you mean 'text_to_image'"),
        (lambda: Sigmoid(float("nan")), "`bias` must be finite"),
        (lambda: Sigmoid(bias_rate=0.0), "`bias_rate` must be positive, but is 0. Use e.g. 1.0, or None to lock"),
        (lambda: Regularised(alignment=float("inf")), "`alignment` must be finite"),
        (lambda: Regularised(uniformity="much"), "Expected a number, but got 'much'"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()


@pytest.mark.parametrize("size", [1.0, 30.0, 300.0, 2000.0])
def test_one_exponential_gives_what_two_give(size):
    """Below |M| = 319 both directions share their exponentials; above, exp(M) would not be a number."""
    with jax.enable_x64(True):
        logits = jnp.asarray(size * np.random.default_rng(0).uniform(-1, 1, (6, 6)))
        two = losses._matched_residual(logits) + losses._matched_residual(logits.T).T
        np.testing.assert_allclose(losses._matched_residuals(logits), two, rtol=1e-12, atol=1e-300)


def test_the_choice_of_exponentials_can_be_differentiated_and_batched():
    def one(logits):
        return losses._matched_residuals(logits)

    def two(logits):
        return losses._matched_residual(logits) + losses._matched_residual(logits.T).T

    with jax.enable_x64(True):
        logits = jnp.asarray(np.random.default_rng(1).standard_normal((3, 5, 5)))
        batch = logits * jnp.asarray([1.0, 1e3, 5.0])[:, None, None]  # one of them is beyond the limit
        for act in (
            jax.vmap,
            lambda f: jax.vmap(jax.jacfwd(f)),
            lambda f: jax.vmap(lambda m: jax.linearize(f, m)[1](m)),
        ):
            np.testing.assert_allclose(act(one)(batch), act(two)(batch), rtol=1e-10, atol=1e-14)
