"""Closed forms against high precision, independent integration, limits and invariants."""

import itertools
import math
import warnings

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp

from flowsim import theory
from flowsim.errors import FlowsimError

PARAMETRIZATIONS = [("exp", 1.0), ("exp", 2.0), ("exp", 10.0), ("softplus", 1.0), ("identity", 1.0)]
FLOWS = [
    # parametrization, scale, lr_ratio, gamma0, beta0
    ("exp", 1.0, 1.0, 0.5, 2.0),
    ("exp", 1.0, 0.1, 0.9, 14.3),
    ("exp", 2.0, 10.0, 0.99, 0.5),
    ("exp", 10.0, 1.0, 1e-8, 2.0),
    ("softplus", 1.0, 1.0, 0.3, 0.2),
    ("identity", 1.0, 3.0, 0.6, 1.5),
]
few = settings(max_examples=40, deadline=None)


@pytest.fixture(autouse=True)
def _digits():
    with mpmath.workdps(40):
        yield


def raw(beta, parametrization, scale):
    if parametrization == "exp":
        return scale * math.log(beta)
    return beta + math.log(-math.expm1(-beta)) if parametrization == "softplus" else beta


def temperature(nu, parametrization, scale):
    if parametrization == "exp":
        return np.exp(nu / scale)
    return np.logaddexp(0, nu) if parametrization == "softplus" else nu


# --- the potential ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("parametrization", "scale"), PARAMETRIZATIONS)
def test_potential_is_the_integral_of_beta_over_squared_derivative(parametrization, scale):
    for beta in (0.05, 0.7, 2.0, 14.3, 60.0):
        nu, step = raw(beta, parametrization, scale), 1e-5
        around = (
            temperature(nu + step, parametrization, scale),
            temperature(nu - step, parametrization, scale),
        )
        derivative = theory.raw_derivative(beta, parametrization, scale)
        assert derivative == pytest.approx((around[0] - around[1]) / (2 * step), rel=1e-6)
        integral, _ = quad(lambda b: b / theory.raw_derivative(b, parametrization, scale) ** 2, 1.0, beta)
        change = theory.potential(beta, parametrization, scale) - theory.potential(1.0, parametrization, scale)
        assert change == pytest.approx(integral, rel=1e-9)


def test_softplus_potential_against_high_precision():
    betas = np.array([1e-8, 1e-3, 0.1, 1.0, 2.0, 14.0, 100.0, 1e4])
    values = theory.potential(betas, "softplus")
    for beta, value in zip(betas, values, strict=True):
        b = mpmath.mpf(beta)
        exact = (
            b**2 / 2
            + (b + 1) * mpmath.log(1 - mpmath.exp(-b))
            - mpmath.polylog(2, mpmath.exp(-b))
            - b / mpmath.expm1(b)
        )
        assert abs(value - exact) <= 1e-15 * max(1, abs(exact))


@few
@given(st.floats(-8, 4), st.sampled_from(PARAMETRIZATIONS))
def test_inverse_potential(log10_beta, choice):
    beta = 10**log10_beta
    assert theory.inverse_potential(theory.potential(beta, *choice), *choice) == pytest.approx(beta, rel=1e-13)


def test_inverse_potential_at_its_ends():
    assert theory.inverse_potential(1e6) == math.inf
    assert theory.inverse_potential(-1e6, "softplus") == 0.0
    assert theory.inverse_potential(-50.0, "softplus") == pytest.approx(math.exp(-49 + math.pi**2 / 6))
    assert math.isnan(theory.inverse_potential(-1.0, "identity"))


# --- conserved quantities and their inverses ----------------------------------------------------------------


@few
@given(
    st.floats(-30, -0.01),
    st.floats(-6, 6),
    st.floats(0.1, 50),
    st.floats(0.1, 10),
    st.sampled_from(PARAMETRIZATIONS),
)
def test_inverse_temperature_and_gamma_are_inverses(log_gamma0, change, beta0, lr_ratio, choice):
    log_gamma = min(log_gamma0 + change, -1e-3)
    beta = theory.inverse_temperature_of_gamma(log_gamma, log_gamma0, beta0, *choice, lr_ratio)
    if not 0.1 < beta < 1e100:
        return
    pair = np.array([log_gamma0, log_gamma]), np.array([beta0, beta])
    assert np.all(np.abs(theory.conserved_residual(*pair, *choice, lr_ratio)) < 1e-13)
    back = theory.log_gamma_of_inverse_temperature(beta, log_gamma0, beta0, *choice, lr_ratio)
    slack = 1e-15 * (1 + abs(theory.potential(beta, *choice))) / lr_ratio / -math.expm1(2 * log_gamma)
    assert back == pytest.approx(log_gamma, rel=1e-11, abs=100 * slack)


def test_gamma_below_the_smallest_float():
    beta = theory.inverse_temperature_of_gamma(-1e5, math.log(0.5), 2.0, "identity")
    assert beta == pytest.approx(math.sqrt(4 + 1e5 + math.log(0.5) - 0.125), rel=1e-14)
    assert theory.log_gamma_of_inverse_temperature(beta, math.log(0.5), 2.0, "identity") == pytest.approx(-1e5)
    assert theory.inverse_temperature_of_gamma(-1e5, -1.0, 2.0) == math.inf
    assert theory.inverse_temperature_of_gamma(-1e5, -1.0, 2.0, "exp", 10.0) > 1e200


def test_unreachable_temperatures_are_nan():
    turning = math.log(0.5) + (1 - 0.25) / 2  # Q at γ = 1
    beta = 2.0 * np.exp(turning / 2 * np.array([0.99, 1.01]))
    log_gamma = theory.log_gamma_of_inverse_temperature(beta, math.log(0.5), 2.0)
    assert -0.1 < log_gamma[0] < 0
    assert np.isnan(log_gamma[1])
    assert np.isnan(theory.inverse_temperature_of_gamma(-0.1, -8.0, 0.5, "identity", 1.0, 10.0))


def test_lemma_3_1_is_the_special_case():
    gamma = np.array([0.8, 0.5, 1e-3, 1e-30])
    expected = theory.inverse_temperature_of_gamma(np.log(gamma), math.log(0.5), 2.0)
    np.testing.assert_allclose(theory.lemma_3_1(gamma, 0.5, 2.0), expected, rtol=1e-13)


def test_residual_passes_nan_of_ended_runs_on():
    residual = theory.conserved_residual(np.array([-1.0, np.nan]), np.array([2.0, np.nan]))
    assert residual[0] == 0
    assert np.isnan(residual[1])


# --- frozen directions --------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [1.0, 0.3, 12 / 11, -0.4])
def test_gap_force_against_the_gradient_of_the_loss(margin):
    n, a = 12, 3.7
    z = np.full((n, n), 0.1) + margin * np.eye(n)
    weights = np.exp(a * z)
    gradient = (weights / weights.sum(1, keepdims=True) + weights / weights.sum(0)) / (2 * n) - np.eye(n) / n
    assert theory.gap_force(a, margin, n) == pytest.approx(-np.sum(z * gradient), rel=1e-13)
    gamma = 0.2
    rate = theory.fixed_temperature_rate(a / (1 - gamma**2), margin, n, gamma)
    assert rate == pytest.approx(2 * a / (1 - gamma**2) * theory.gap_force(a, margin, n), rel=1e-13)


def test_log_gap_force_where_the_force_underflows():
    a = np.array([0.0, 1.0, 1e4, 1e8])
    assert theory.log_gap_force(a, 1.0, 32)[3] == pytest.approx(math.log(31) - 1e8)
    np.testing.assert_allclose(np.exp(theory.log_gap_force(a, 1.0, 32)), theory.gap_force(a, 1.0, 32))
    assert theory.gap_force(-1e5, 1.0, 32) == 1.0


@pytest.mark.parametrize(("parametrization", "scale", "lr_ratio", "gamma0", "beta0"), FLOWS)
def test_reduced_trajectory_against_integration_of_the_flow(parametrization, scale, lr_ratio, gamma0, beta0):
    margin, pairs = 0.8, 12
    ts = np.concatenate([[0.0], np.logspace(-6, 4, 40)])

    def field(s, state):  # in s = ln(1 + t), with the raw parameter
        beta, remaining = temperature(state[1], parametrization, scale), -np.expm1(2 * state[0])
        force = theory.gap_force(beta * remaining, margin, pairs)
        slope = theory.raw_derivative(beta, parametrization, scale)
        return np.exp(s) * np.array([-2 * beta * force, lr_ratio * slope * remaining * force])

    start, s = [math.log(gamma0), raw(beta0, parametrization, scale)], np.log1p(ts)
    exact = solve_ivp(field, (0, s[-1]), start, "DOP853", s, rtol=1e-12, atol=1e-13)
    log_gamma, beta = theory.reduced_trajectory(ts, start[0], beta0, margin, pairs, parametrization, scale, lr_ratio)
    np.testing.assert_allclose(log_gamma, exact.y[0], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(beta, temperature(exact.y[1], parametrization, scale), rtol=1e-9)


@pytest.mark.parametrize(("parametrization", "scale", "lr_ratio", "gamma0", "beta0"), FLOWS)
def test_reduced_trajectory_to_the_far_future(parametrization, scale, lr_ratio, gamma0, beta0):
    ts = np.concatenate([[0.0], np.logspace(-10, 100, 300)])
    how = parametrization, scale, lr_ratio
    log_gamma, beta = theory.reduced_trajectory(ts, math.log(gamma0), beta0, 1.0, 32, *how)
    assert (log_gamma[0], beta[0]) == (pytest.approx(math.log(gamma0)), pytest.approx(beta0, rel=1e-14))
    assert np.all(np.abs(theory.conserved_residual(log_gamma, beta, *how)) < 1e-14)
    assert np.all(np.diff(log_gamma) <= 0)
    assert np.all(np.diff(beta) >= 0)
    order = np.random.default_rng(0).permutation(ts.size)  # any order, any shape
    again, _ = theory.reduced_trajectory(ts[order].reshape(7, 43), math.log(gamma0), beta0, 1.0, 32, *how)
    np.testing.assert_array_equal(again.ravel(), log_gamma[order])


def test_time_along_the_reduced_trajectory_against_high_precision():
    ts = np.array([1e-3, 1e4, 1e100])
    log_gamma, _ = theory.reduced_trajectory(ts, math.log(0.5), 2.0, 1.0, 32)

    def slowness(drop):  # dt/dD by Lemma 3.1
        beta = 2 * mpmath.exp((drop + mpmath.expm1(-2 * drop) / 8) / 2)
        return (1 + mpmath.exp(beta * (1 - mpmath.exp(-2 * drop) / 4)) / 31) / (2 * beta)

    with mpmath.workdps(20):
        for t, value in zip(ts, log_gamma, strict=True):
            drop = mpmath.mpf(math.log(0.5)) - mpmath.mpf(value)
            assert float(mpmath.quad(slowness, mpmath.linspace(0, drop, 25)) / t - 1) == pytest.approx(0, abs=1e-11)


@few
@given(
    st.floats(-8, -1e-4),
    st.floats(0.01, 200),
    st.floats(0.05, 2),
    st.integers(2, 5000),
    st.floats(0.01, 30),
    st.sampled_from(PARAMETRIZATIONS),
)
def test_reduced_trajectory_follows_its_own_field(log_gamma0, beta0, margin, pairs, lr_ratio, choice):
    log_ts = np.log(10.0) * np.array([-3, 1, 10, 50, 99])[:, None] + np.linspace(-1e-4, 1e-4, 3)
    ts = np.exp(log_ts)
    log_gamma, beta = theory.reduced_trajectory(ts, log_gamma0, beta0, margin, pairs, *choice, lr_ratio)
    speed = (log_gamma[:, 2] - log_gamma[:, 0]) / (ts[:, 2] - ts[:, 0])
    field = -theory.fixed_temperature_rate(beta[:, 1], margin, pairs, np.exp(log_gamma[:, 1]))
    change = np.abs(log_gamma[:, 1]) * 1e-9 / ts[:, 1]  # what rounding leaves of a difference
    # The difference over 1e-4 of the time is off by the square of that times the logarithmic rate.
    rate = 1 + np.abs(field) * ts[:, 1]
    assert np.all(np.abs(speed - field) <= 1e-6 * (1 + (1e-1 * rate) ** 2) * np.abs(field) + change)


def test_frozen_directions_at_extreme_arguments():
    log_gamma, beta = theory.reduced_trajectory(1e100, -math.inf, 2.0, 1.0, 32)
    assert log_gamma == -math.inf
    assert 230 < beta < 250
    assert theory.reduced_trajectory(0.0, -1.0, 2.0, 1.0, 32) == (-1.0, 2.0)
    log_gamma, beta = theory.reduced_trajectory([0.0, 1e100], -1.0, 1e4, 1.0, 32, "softplus")
    np.testing.assert_allclose(log_gamma, -1.0)
    np.testing.assert_allclose(beta, 1e4)


def test_fixed_temperature_trajectory():
    margin, pairs, beta, gamma0 = 1.1, 12, 5.0, 0.7
    ts = np.concatenate([[0.0], np.logspace(-4, 4, 30)])
    log_gamma = theory.fixed_temperature_trajectory(ts, math.log(gamma0), beta, margin, pairs)
    exact = solve_ivp(
        lambda s, y: -np.exp(s) * theory.fixed_temperature_rate(beta, margin, pairs, np.exp(y)),
        (0, math.log1p(ts[-1])),
        [math.log(gamma0)],
        "DOP853",
        np.log1p(ts),
        rtol=1e-12,
        atol=1e-13,
    )
    np.testing.assert_allclose(log_gamma, exact.y[0], rtol=1e-10)
    # A temperature that hardly learns is a fixed one, and late decay is exponential.
    slow, _ = theory.reduced_trajectory(ts, math.log(gamma0), beta, margin, pairs, "exp", 1.0, 1e-12)
    np.testing.assert_allclose(slow, log_gamma, rtol=1e-7)
    late = theory.fixed_temperature_trajectory([1e4, 1e100], math.log(gamma0), beta, margin, pairs)
    assert late[1] == pytest.approx(-1e100 * theory.fixed_temperature_rate(beta, margin, pairs), rel=1e-12)


@pytest.mark.parametrize(
    ("scale", "slopes"), [(1.0, [-0.894, -1.42, -1.68, -1.80, -1.89]), (10.0, [-272, -173, -182, -188, -193])]
)
def test_the_power_of_the_logarithm_is_approached_slowly(scale, slopes):
    slope = math.nan
    for log_t, expected in zip([5, 20, 50, 100, 200], slopes, strict=True):
        log_ts = log_t * np.exp([-1e-3, 0.0, 1e-3])
        log_gamma, beta = theory.reduced_trajectory(np.exp(log_ts), math.log(0.5), 2.0, 1.0, 32, "exp", scale)
        slope = theory.local_slope(log_gamma, log_ts)[1]
        field = -log_t * np.exp(log_t) * theory.fixed_temperature_rate(beta[1], 1.0, 32, np.exp(log_gamma[1]))
        assert slope == pytest.approx(field, rel=1e-5)
        assert slope == pytest.approx(expected, abs=0.006 * scale**2)
    limit = theory.closing_exponent(scale)
    assert limit == -2 * scale**2
    assert slope == pytest.approx(limit, rel=0.06)


def test_the_law_of_the_identity():
    ts = np.exp([100.0, 200.0, 230.0])
    for parametrization in ("identity", "softplus"):
        log_gamma, _ = theory.reduced_trajectory(ts, math.log(0.5), 2.0, 1.0, 32, parametrization)
        ratio = log_gamma / np.log(ts) ** 2
        assert ratio[:2] == pytest.approx([-1.070, -1.035], abs=6e-4)
        assert ratio[2] == pytest.approx(theory.identity_law_coefficient(1.0), rel=0.031)
    assert theory.identity_law_coefficient(0.5, 2.0) == -2.0


def test_local_slope_of_a_pure_power_of_the_logarithm():
    log_time = np.linspace(1, 200, 400)
    np.testing.assert_allclose(theory.local_slope(-1.5 * np.log(log_time) + 3, log_time), -1.5, rtol=1e-9)


# --- Theorem 3.2 --------------------------------------------------------------------------------------------


@few
@given(st.floats(0.05, 0.95), st.floats(1.0, 40), st.floats(0.1, 1.1), st.integers(2, 1000))
def test_corrected_bound_starts_at_gamma0_and_is_never_crossed(gamma0, excess, margin, pairs):
    minimum = theory.theorem_3_2_assumption(gamma0, 1.0, margin, pairs).minimum_inverse_temperature
    beta0 = float(minimum * excess)
    assumption = theory.theorem_3_2_assumption(gamma0, beta0, margin, pairs)
    assert assumption.minimum_inverse_temperature == minimum
    if not assumption.holds:
        assert assumption.c4 <= 0 or excess == pytest.approx(1)
        return
    assert theory.theorem_3_2_bound(0.0, gamma0, beta0, margin, pairs) == pytest.approx(gamma0, rel=1e-12)
    ts = np.logspace(-3, 100, 30)
    log_gamma, _ = theory.reduced_trajectory(ts, math.log(gamma0), beta0, margin, pairs)
    bound = theory.log_theorem_3_2_bound(np.log(ts), gamma0, beta0, margin, pairs)
    assert np.all(log_gamma >= bound - 1e-12)
    np.testing.assert_allclose(np.exp(bound), theory.theorem_3_2_bound(ts, gamma0, beta0, margin, pairs))


def test_printed_bound_is_crossed_where_c4_squared_is_below_c2():
    gamma0, margin, pairs = 0.05, 1.0, 2
    beta0 = float(theory.theorem_3_2_assumption(gamma0, 1.0, margin, pairs).minimum_inverse_temperature)
    assumption = theory.theorem_3_2_assumption(gamma0, beta0, margin, pairs)
    assert assumption.holds
    assert assumption.c4**2 < 0.5 * (assumption.c4 + 0.1)
    ts = np.array([0.0, 1.0, 1e10, 1e50])
    log_gamma, _ = theory.reduced_trajectory(ts, math.log(gamma0), beta0, margin, pairs)
    printed = theory.theorem_3_2_bound(ts, gamma0, beta0, margin, pairs, "printed")
    assert np.min(np.exp(log_gamma) / printed) < 0.7
    assert printed[0] / gamma0 == pytest.approx((assumption.c4 + 0.1) / assumption.c4**2)


# --- Theorem 3.3 --------------------------------------------------------------------------------------------


def test_bessel_ratio_against_high_precision():
    orders = [0.0, 0.5, 1.0, 10.0, 255.0, 511.0, 1000.0]
    a = np.array([1e-8, 1e-3, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8])
    for order in orders:
        exact = [float(mpmath.besseli(order + 1, x) / mpmath.besseli(order, x)) for x in a]
        np.testing.assert_allclose(theory.bessel_ratio(order, a), exact, rtol=1e-14)


def test_bessel_ratio_satisfies_its_recurrence():
    order, a = np.meshgrid(
        [0.5, 30.0, 511.0, 1e4, 1e5], [1e-8, 1.0, 99.0, 1e3, 1e5, 1e6, 1.1e6, 1e7, 1e8], indexing="ij"
    )
    now, after = theory.bessel_ratio(order, a), theory.bessel_ratio(order + 1, a)
    np.testing.assert_allclose(1 / (2 * (order + 1) / a + after), now, rtol=1e-14)
    assert theory.bessel_ratio(0.0, 0.0) == 0.0
    assert theory.bessel_ratio(0.5, 1e12) == pytest.approx(1 - 1e-12, rel=1e-15)


def test_bessel_ratio_of_three_dimensions():
    a = np.array([1e-3, 0.5, 13.0, 200.0])
    np.testing.assert_allclose(theory.bessel_ratio(0.5, a), 1 / np.tanh(a) - 1 / a, rtol=1e-9)


@pytest.mark.parametrize(("dim", "a"), [(2, 0.5), (3, 13.0), (512, 0.1), (512, 70.0), (1024, 13.0), (1024, 1e4)])
def test_mean_exponential_against_high_precision(dim, a):
    exact = mpmath.log(mpmath.hyp0f1(mpmath.mpf(dim) / 2, mpmath.mpf(a) ** 2 / 4))
    assert theory.log_mean_exponential(a, dim) == pytest.approx(float(exact), rel=1e-12)


def test_mean_exponential_is_that_of_a_uniform_direction():
    mean, _ = quad(lambda u: math.exp(4 * u) / 2, -1, 1)  # in three dimensions each coordinate is uniform
    assert theory.log_mean_exponential(4.0, 3) == pytest.approx(math.log(mean), rel=1e-13)


@pytest.mark.parametrize(
    ("dim", "bound", "limit", "log10_pairs"),
    [(3, -15, 15.8, 4.41), (512, -36, 0.435, 16.26), (1024, -36, 0.218, 16.95)],
)
def test_theorem_3_3_is_vacuous_at_practical_settings(dim, bound, limit, log10_pairs):
    beta0, gamma0 = 1 / 0.07, 0.3
    result = theory.theorem_3_3_bound(2048, dim, beta0, gamma0)
    assert result.bound == pytest.approx(bound, abs=0.5)
    assert result.limit == pytest.approx(limit, abs=0.05 if dim == 3 else 6e-4)
    assert result.limit == theory.theorem_3_3_limit(beta0, gamma0, dim)
    assert not result.proved
    needed = theory.theorem_3_3_pairs_needed(dim, beta0, gamma0)
    assert needed == pytest.approx(log10_pairs, abs=0.01)
    around = theory.theorem_3_3_bound(10.0 ** (needed + np.array([-0.01, 0.01, 20])), dim, beta0, gamma0)
    assert around.bound[0] < 0 < around.bound[1]
    assert around.proved[1]
    assert around.bound[2] == pytest.approx(result.limit, rel=1e-3)


def test_theorem_3_3_bound_against_its_formula_in_high_precision():
    pairs, dim, beta0, gamma0, delta = 10**6, 5, 6.0, 0.2, 0.1
    a = mpmath.mpf(beta0) * (1 - mpmath.mpf(gamma0) ** 2)
    rho = mpmath.mpf(dim - 2) / 2
    eps = mpmath.sqrt(mpmath.log((4 * pairs + 1) / mpmath.mpf(delta)) / (2 * pairs))
    front = mpmath.gamma(mpmath.mpf(dim) / 2) * (2 / a) ** rho
    xi2 = front * mpmath.besseli(rho, a)
    xi1 = front * (mpmath.besseli(rho - 1, a) - 2 * rho / a * mpmath.besseli(rho, a))
    bracket = (xi1 - 2 * mpmath.exp(a) * eps) / (xi2 + 2 * mpmath.sinh(a) * eps) - 2 * eps
    result = theory.theorem_3_3_bound(pairs, dim, beta0, gamma0, delta)
    assert result.bound == pytest.approx(float(4 * beta0 * gamma0 * bracket), rel=1e-12)
    assert result.epsilon == pytest.approx(float(eps), rel=1e-14)
    assert bool(result.proved) == bool(xi1 >= 2 * mpmath.exp(a) * eps)


def test_pairs_needed_is_exact_to_one_pair():
    n = round(10 ** theory.theorem_3_3_pairs_needed(3, 5.0, 0.3))
    bound = theory.theorem_3_3_bound([n - 1, n], 3, 5.0, 0.3).bound
    assert bound[0] <= 0 < bound[1]


def test_theorem_3_3_at_extreme_arguments():
    result = theory.theorem_3_3_bound(2048, 1024, 1e4, 0.01)
    assert np.isfinite(result.bound)
    assert not result.proved
    assert 1000 < theory.theorem_3_3_pairs_needed(1024, 1e4, 0.01) < 2000


# --- the exponential loss -----------------------------------------------------------------------------------


def test_exponential_loss_with_its_gap_dependence():
    ts = np.array([0.0, 1.0, 100.0, 1e4])
    exact = solve_ivp(
        lambda t, y: -2 * 3.0 * np.exp(-3.0 * (1 - np.exp(2 * y))),
        (0, ts[-1]),
        [math.log(0.6)],
        "DOP853",
        ts,
        rtol=1e-11,
        atol=1e-12,
    )
    result = theory.exponential_loss_log_gamma(ts, lambda t: 3.0, math.log(0.6))
    np.testing.assert_allclose(result, exact.y[0], rtol=1e-8)
    leading = theory.exponential_loss_log_gamma(ts, lambda t: 3.0, math.log(0.6), leading_order=True)
    np.testing.assert_allclose(leading, math.log(0.6) - 6 * math.exp(-3) * ts, rtol=1e-10)
    assert np.all(result <= leading)
    # Θ: the ratio of the two settles.
    assert (result - leading)[3] == pytest.approx((result - leading)[2], rel=1e-3)


def test_linear_schedule_of_the_inverse_temperature():
    ts, beta0, beta1 = np.array([0.0, 250.0]), 2.0, 7.0
    result = theory.exponential_loss_log_gamma(
        ts, lambda t: beta0 + (beta1 - beta0) * t / 250, -0.1, leading_order=True
    )
    rate = theory.linear_inverse_temperature_rate(beta0, beta1)
    assert result[1] == pytest.approx(-0.1 - 250 * rate, rel=1e-10)
    c = ((beta0 + 1) * math.exp(-beta0) - (beta1 + 1) * math.exp(-beta1)) / (beta1 - beta0)
    assert rate == pytest.approx(2 * c, rel=1e-13)
    assert rate == theory.linear_inverse_temperature_rate(beta1, beta0)
    assert theory.linear_inverse_temperature_rate(3.0, 3.0) == pytest.approx(6 * math.exp(-3), rel=1e-14)
    assert theory.linear_inverse_temperature_rate(3.0, 3.0 + 1e-9) == pytest.approx(6 * math.exp(-3), rel=1e-8)
    assert 0 <= theory.linear_inverse_temperature_rate(1.0, 1e4) < 2e-4
    assert theory.exponential_loss_log_gamma([0.0], lambda t: 2.0, -1.0) == pytest.approx([-1.0])


# --- label noise --------------------------------------------------------------------------------------------


def test_critical_temperatures():
    noise = theory.effective_noise(np.array([0.1, 0.3]), 12)
    assert theory.critical_temperature(noise, 12) == pytest.approx([0.2325, 0.324], abs=5e-5)
    assert theory.critical_temperature(noise[0], 12, "orthonormal") == pytest.approx(0.2132, abs=5e-5)
    gap = theory.equilibrium_gap_bound(0.2, theory.critical_temperature(noise[0], 12))
    assert gap == pytest.approx(0.7481, abs=6e-5)
    assert theory.equilibrium_gap_bound(0.3, 0.2) == 0.0


@few
@given(st.floats(0.01, 0.45), st.integers(2, 500))
def test_softmax_equals_the_targets_at_the_logit_gap(noise, pairs):
    logits = theory.noise_logit_gap(noise, pairs) * np.eye(pairs)
    softmax = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert softmax[0, 0] == pytest.approx(1 - noise, rel=1e-12)
    assert softmax[0, 1] == pytest.approx(noise / (pairs - 1), rel=1e-12)


# --- Figure 2 -----------------------------------------------------------------------------------------------


def test_figure_2_conserves_beta_times_gap_to_the_fifth():
    fig = theory.FIGURE_2
    n = fig["pairs"]
    gaps = np.array([fig["initial_gap"], fig["peak_gap"], fig["final_gap"]])
    betas = 1 / np.array([fig["temperature0"], fig["peak_temperature"], fig["final_temperature"]])
    conserved = theory.sphere_conserved_quantity(np.log(gaps / 2), betas, n)
    assert np.exp(n * conserved[0]) * 2**n == pytest.approx(1.28814, abs=1e-5)
    np.testing.assert_allclose(np.exp(n * (conserved - conserved[0])), 1, rtol=2e-3)  # τ is given to 3 digits
    assert theory.sphere_exponent(n) == -0.2
    assert theory.ring_height() == pytest.approx(math.cos(math.radians(72)), rel=1e-15)


@few
@given(
    st.floats(0.1, 50),
    st.floats(0.1, 10),
    st.floats(0.1, 10),
    st.integers(2, 20),
    st.sampled_from(PARAMETRIZATIONS),
)
def test_sphere_conserved_quantity_has_the_right_derivative(beta, lr_ratio, rate, pairs, choice):
    step = 1e-4 * beta
    force = [
        theory.sphere_conserved_quantity(0.0, b, pairs, *choice, lr_ratio, rate) for b in (beta - step, beta + step)
    ]
    expected = rate * beta / (lr_ratio * pairs * theory.raw_derivative(beta, *choice) ** 2)
    assert (force[1] - force[0]) / (2 * step) == pytest.approx(expected, rel=1e-6)
    assert theory.sphere_exponent(pairs, 2.0, lr_ratio, rate) == pytest.approx(-rate * 4 / (lr_ratio * pairs))


# --- errors and hygiene -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.potential(-1.0), "`inverse_temperature` must be positive, but is -1. Use"),
        (
            lambda: theory.potential(1.0, "softpuls"),
            "Unknown parametrization 'softpuls'. Did you mean 'softplus'",
        ),
        (lambda: theory.potential(1.0, "identity", 2.0), "`scale` must be 1 .*Use 'exp'"),
        (lambda: theory.closing_exponent(1.0, -1.0), "`lr_ratio` must be positive, but is -1. Use"),
        (lambda: theory.closing_exponent(0.0), "`scale` must be positive"),
        (lambda: theory.conserved_residual(-1.0, 2.0), "must be a series.*Use"),
        (
            lambda: theory.log_gamma_of_inverse_temperature(2.0, 0.1, 2.0),
            "`log_gamma0` must be below 0, but is 0.1",
        ),
        (lambda: theory.log_gap_force(1.0, -1.0, 2), "`margin` must be positive"),
        (lambda: theory.gap_force(1.0, 1.0, 1), "`pairs` must be at least 2, but is 1. Use two or more"),
        (
            lambda: theory.reduced_trajectory(-1.0, -1.0, 2.0, 1.0, 8),
            "`ts` must lie between 0 and inf|`ts` must be",
        ),
        (lambda: theory.reduced_trajectory(math.inf, -1.0, 2.0, 1.0, 8), "`ts`"),
        (lambda: theory.reduced_trajectory(math.nan, -1.0, 2.0, 1.0, 8), "`ts`"),
        (
            lambda: theory.reduced_trajectory(1.0, math.nan, 2.0, 1.0, 8),
            "`log_gamma0` must be one number, but is nan",
        ),
        (lambda: theory.fixed_temperature_trajectory(1.0, 0.0, 2.0, 1.0, 8), "`log_gamma0` must be below 0"),
        (lambda: theory.local_slope([1.0, 2.0], [1.0, 2.0]), "Use three times or more"),
        (lambda: theory.local_slope([1.0, 2.0, 3.0], [-1.0, 1.0, 2.0]), "`log_time` must be positive"),
        (
            lambda: theory.theorem_3_2_bound(1.0, 1.2, 2.0, 1.0, 8),
            "`gamma0` must lie between 0 and 1, but is 1.2",
        ),
        (lambda: theory.theorem_3_2_bound(1.0, 0.01, 0.5, 1.0, 8), "`beta0` must give c4.*Use a larger"),
        (
            lambda: theory.log_theorem_3_2_bound(1.0, 0.5, 9.0, 1.0, 8, "print"),
            "Unknown choice of constants 'print'. Did you mean",
        ),
        (lambda: theory.bessel_ratio(-1.0, 1.0), "`order` must be at least 0"),
        (lambda: theory.theorem_3_3_limit(1.0, 0.5, 1), "`dim` must be at least 2"),
        (lambda: theory.theorem_3_3_bound(8, 3, 1.0, 0.5, 1.5), "`delta` must lie between 0 and 1"),
        (lambda: theory.exponential_loss_log_gamma([1.0, 0.0], lambda t: 1.0, -1.0), "Use np.sort"),
        (lambda: theory.noise_logit_gap(0.0, 8), "`noise` must lie between 0 and 1"),
        (lambda: theory.critical_temperature(0.9, 8), "Use a `noise` below"),
        (lambda: theory.equilibrium_gap_bound(0.0, 0.2), "`temperature` must be positive"),
    ],
)
def test_bad_arguments_say_how_to_mend_them(call, message):
    with pytest.raises(FlowsimError, match=message):
        call()


def test_arguments_may_be_lists_integers_and_arrays():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert theory.potential([1, 2]).shape == (2,)
        assert isinstance(theory.potential(2), float)
        assert theory.gap_force(np.ones((3, 1)), 1, np.array([2, 5])).shape == (3, 2)
        assert theory.theorem_3_3_bound([100, 1000], np.array([[3], [8]]), 5, 0.3).bound.shape == (2, 2)
        assert theory.theorem_3_2_bound([0, 1], 0.5, 9, 1, 8).shape == (2,)


# --- the ends of float64 --------------------------------------------------------------------------------------

BETAS = [1e-300, 1e-100, 1e-12, 1e-5, 0.3, 14.3, 800.0, 1e20, 1e100, 1e200, 1e300]
HEIGHTS = [1e-300, 1e-20, 1e-3, 0.3, 0.9, 1 - 1e-9, 1 - 1e-15]
MARGINS = [1e-300, 1e-20, 0.5, 2.0]
PAIRS = [2, 5, 1e6]
LIMIT = mpmath.mpf(2) ** 1024


def close(value, exact, rel):
    """Whether a float is the exact number, to `rel`, or infinite or 0 where that leaves float64."""
    if abs(exact) >= LIMIT:
        return math.isinf(value) and (value > 0) == (exact > 0)
    return abs(mpmath.mpf(float(value)) - exact) <= rel * abs(exact) + mpmath.mpf("1e-307")


def rate_of_line(a, b):
    a, b = mpmath.mpf(a), mpmath.mpf(b)
    if a == b:
        return 2 * a * mpmath.exp(-a)
    return 2 * ((a + 1) * mpmath.exp(-a) - (b + 1) * mpmath.exp(-b)) / (b - a)


def grid(*values):
    return list(itertools.product(*values))


CLOSE_BETAS = [(a, b * f) for a, b in grid(BETAS[1:], BETAS[1:]) for f in (1.0, 1 + 1e-12, 0.5)]
CLOSE_BETAS += [(a, a * f) for a in BETAS[1:] for f in (1 + 4e-16, 1 + 1e-9, 1 + 1e-3)]
EXTREME = {
    "linear_inverse_temperature_rate": (theory.linear_inverse_temperature_rate, rate_of_line, CLOSE_BETAS, 1e-12),
    "closing_exponent": (
        theory.closing_exponent, lambda s, r: -2 * mpmath.mpf(s) ** 2 / mpmath.mpf(r),
        grid([1e-160, 1e-3, 10.0, 1e150], BETAS), 1e-14,
    ),
    "identity_law_coefficient": (
        theory.identity_law_coefficient, lambda m, r: -1 / (mpmath.mpf(r) * mpmath.mpf(m) ** 2),
        grid([*MARGINS, 1e-160, 1e160], BETAS), 1e-14,
    ),
    "sphere_exponent": (
        theory.sphere_exponent, lambda n, s, r: -mpmath.mpf(s) ** 2 / (mpmath.mpf(r) * mpmath.mpf(n)),
        grid(PAIRS, [1e-160, 1.0, 1e150], BETAS), 1e-14,
    ),
    "lemma_3_1": (
        theory.lemma_3_1,
        lambda g, g0, b: mpmath.mpf(b) * mpmath.sqrt(mpmath.mpf(g0) / mpmath.mpf(g))
        * mpmath.exp((mpmath.mpf(g) ** 2 - mpmath.mpf(g0) ** 2) / 4),
        grid(HEIGHTS, HEIGHTS, BETAS), 1e-14,
    ),
    "theorem_3_2_minimum": (
        lambda g, m, n: theory.theorem_3_2_assumption(g, 1.0, m, n).minimum_inverse_temperature,
        lambda g, m, n: mpmath.log(4 * (mpmath.mpf(n) - 1)) / (mpmath.mpf(m) * (1 - mpmath.mpf(g) ** 2)),
        grid(HEIGHTS, MARGINS, PAIRS), 1e-13,
    ),
    "equilibrium_gap_bound": (
        theory.equilibrium_gap_bound,
        lambda t, c: 2 * mpmath.sqrt(max(1 - mpmath.mpf(t) / mpmath.mpf(c), 0)),
        grid(BETAS, BETAS) + [(b * (1 - 1e-9), b) for b in BETAS], 1e-14,
    ),
    "bessel_ratio": (
        theory.bessel_ratio,
        lambda o, a: 1 - (2 * mpmath.mpf(o) + 1) / (2 * mpmath.mpf(a)) if a > 1 else mpmath.mpf(a) / (2 * (o + 1)),
        grid([0.0, 0.5, 255.0, 1e3], [1e-300, 1e-100, 1e-12, 1e20, 1e154, 1e200, 1e300]), 1e-13,
    ),
    "raw_derivative": (
        lambda b: theory.raw_derivative(b, "softplus"), lambda b: -mpmath.expm1(-mpmath.mpf(b)),
        grid(BETAS), 1e-15,
    ),
    "potential": (
        lambda b: theory.potential(b, "identity"), lambda b: mpmath.mpf(b) ** 2 / 2, grid(BETAS), 1e-15,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EXTREME)
def test_formulas_at_the_ends_of_float64(name):
    """No warnings (they are errors here), no silent NaN, digits as in the middle."""
    function, exact, arguments, rel = EXTREME[name]
    with mpmath.workdps(250):
        wrong = [a for a in arguments if not close(function(*a), exact(*a), rel)]
    assert wrong == []


def inverse_temperature_exactly(log_gamma, log_gamma0, beta0, parametrization, ratio):
    after, before = mpmath.mpf(log_gamma), mpmath.mpf(log_gamma0)
    change = mpmath.mpf(ratio) / 2 * (before - after - (mpmath.exp(2 * before) - mpmath.exp(2 * after)) / 2)
    if parametrization == "exp":
        return mpmath.mpf(beta0) * mpmath.exp(change)
    square = mpmath.mpf(beta0) ** 2 + 2 * change
    return mpmath.sqrt(square) if square >= 0 else None


@pytest.mark.parametrize("parametrization", ["exp", "identity"])
def test_inverse_temperature_of_gamma_at_the_ends_of_float64(parametrization):
    heights = [-690.0, -46.0, -1.0, -1e-9, -1e-15]
    for case in grid(heights, heights, BETAS, [1e-3, 1.0, 1e3]):
        log_gamma, log_gamma0, beta0, ratio = case
        exact = inverse_temperature_exactly(log_gamma, log_gamma0, beta0, parametrization, ratio)
        found = theory.inverse_temperature_of_gamma(log_gamma, log_gamma0, beta0, parametrization, 1.0, ratio)
        assert math.isnan(found) if exact is None else close(found, exact, 1e-10), case


@pytest.mark.parametrize(("parametrization", "scale"), PARAMETRIZATIONS)
def test_log_gamma_of_inverse_temperature_at_the_ends_of_float64(parametrization, scale):
    """It solves its equation: ln γ inserted into the conserved quantity gives that of the start back."""
    for case in grid(BETAS, [-690.0, -7.0, -0.1, -1e-9], BETAS, [1e-3, 1.0, 1e3]):
        beta, log_gamma0, beta0, ratio = case
        found = theory.log_gamma_of_inverse_temperature(beta, log_gamma0, beta0, parametrization, scale, ratio)
        if parametrization == "softplus":
            continue  # its potential at these β has a test of its own; here no warning and no crash
        b, b0, r = (mpmath.mpf(x) for x in (beta, beta0, ratio))
        change = mpmath.mpf(scale) ** 2 * mpmath.log(b / b0) if parametrization == "exp" else (b**2 - b0**2) / 2
        start = mpmath.mpf(log_gamma0)
        goal = 2 / r * change
        if goal < start - mpmath.expm1(2 * start) / 2:
            assert math.isnan(found), case
        elif goal > LIMIT:
            assert found == -math.inf, case
        else:
            end = mpmath.mpf(float(found))
            reached = start - end + (mpmath.exp(2 * max(end, -1e4)) - mpmath.exp(2 * start)) / 2
            # Of ln γ only its own digits are there.
            assert abs(reached - goal) <= 1e-14 * (abs(goal) + abs(end) + abs(start)), case


TRAJECTORIES = [
    # ln γ0, β0, margin, pairs, parametrization, scale, ratio: all of them jumped at early times
    (-690.0, 1e-12, 1e-3, 1e6, "exp", 1.0, 1e3),
    (-1.0, 1e-12, 0.5, 1e6, "softplus", 1.0, 1e3),
    (-1e6, 1e-100, 1e-3, 5.0, "softplus", 1.0, 1e3),
    (-0.1, 14.3, 1e-20, 1e6, "exp", 0.1, 1.0),
    (-1.0, 100.0, 1e-300, 2.0, "exp", 1.0, 1e3),
    (-1.0, 14.3, 1.2, 5.0, "identity", 1.0, 1.0),
    (-1e-9, 1e3, 0.5, 2.0, "exp", 10.0, 1.0),
]


@pytest.mark.parametrize("case", TRAJECTORIES, ids=str)
def test_trajectories_from_extreme_starts_move_one_way_and_in_time(case):
    ts = np.array([0.0, 1e-300, 1e-10, 1.0, 1e5, 1e100, 1e300])
    log_gamma, beta = theory.reduced_trajectory(ts, *case)
    assert np.all(np.isfinite(log_gamma)) and np.all(np.isfinite(beta))
    assert np.all(np.diff(log_gamma) <= 1e-13 * abs(case[0]))
    assert np.all(np.diff(beta) >= -1e-12 * beta[:-1])
    # At early times both rates are those of the start.
    start, beta0, margin, pairs, *_, ratio = case
    early = 1e-6 / (beta0 * theory.gap_force(-beta0 * math.expm1(2 * start), margin, pairs) * (1 + ratio))
    if early < 1e290:
        first, at_first = theory.reduced_trajectory(np.array([early]), *case)
        drop = 2 * beta0 * theory.gap_force(-beta0 * math.expm1(2 * start), margin, pairs) * early
        assert start - first[0] == pytest.approx(drop, abs=2e-3 * drop + 4e-16 * abs(start))
        assert at_first[0] == pytest.approx(beta0, rel=0.2)


def test_trajectories_beyond_float64_are_refused_and_not_followed_for_ever():
    with pytest.raises(FlowsimError, match="leaves the range of float64"):
        theory.reduced_trajectory([1.0], -1.0, 1e-300, 1.0, 5, "identity")
