"""The stabilised method: order, stability far beyond the explicit limit, error estimate, bounded work."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowsim.numerics import RungeKuttaChebyshev


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def solve(field, y0, t1, controller, dt0=None, solver=None, args=None):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(field),
        solver or RungeKuttaChebyshev(),
        0.0,
        t1,
        dt0,
        jnp.asarray(y0),
        args,
        stepsize_controller=controller,
        max_steps=100_000,
        throw=False,
    )


def test_order_two_on_a_nonautonomous_problem():
    """y' = −10(y − cos t) − sin t has the solution cos t."""
    field = lambda t, y, _: -10 * (y - jnp.cos(t)) - jnp.sin(t)  # noqa: E731
    errors = []
    for steps in (40, 80, 160):
        end = solve(field, [1.0], 2.0, diffrax.ConstantStepSize(), 2.0 / steps).ys[-1, 0]
        errors.append(abs(float(end) - np.cos(2.0)))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    assert (orders > 1.8).all()
    assert (orders < 2.4).all()


@pytest.mark.parametrize("size", [50, 200])
def test_heat_equation_in_few_steps(size):
    """The spectral radius is 4/h²; the step is set by accuracy, not by stability."""
    h = 1 / (size + 1)
    x = np.arange(1, size + 1) * h
    start = np.sin(np.pi * x) + 0.3 * np.sin(40 * np.pi * x)

    def field(t, y, _):
        padded = jnp.pad(y, 1)
        return (padded[2:] - 2 * y + padded[:-2]) / h**2

    solution = solve(field, start, 0.5, diffrax.PIDController(rtol=1e-6, atol=1e-8))
    rate = 4 / h**2 * np.sin(np.pi * h / 2) ** 2
    error = np.abs(np.asarray(solution.ys[-1]) - np.exp(-rate * 0.5) * np.sin(np.pi * x)).max()
    assert solution.result == diffrax.RESULTS.successful
    assert error < 5e-6
    # An explicit method of order five needs about 0.5·(4/h²)/3.3 steps: 1,600 and 24,000.
    assert int(solution.stats["num_accepted_steps"]) < 600


def test_stability_with_many_stages():
    """One step of λh = −1e6 stays bounded and is damped."""
    end = solve(lambda t, y, _: -1e6 * y, np.ones(3), 1.0, diffrax.ConstantStepSize(), 1.0).ys[-1]
    assert np.abs(np.asarray(end)).max() < 1


@pytest.mark.slow
def test_error_estimate_controls_the_error():
    field = lambda t, y, _: jnp.array([y[1], 5 * (1 - y[0] ** 2) * y[1] - y[0]])  # noqa: E731
    exact = solve(field, [2.0, 0.0], 5.0, diffrax.PIDController(rtol=1e-12, atol=1e-12), solver=diffrax.Dopri8()).ys[-1]
    errors = [
        float(jnp.abs(solve(field, [2.0, 0.0], 5.0, diffrax.PIDController(rtol=r, atol=r)).ys[-1] - exact).max())
        for r in (1e-4, 1e-6, 1e-8)
    ]
    assert errors[0] < 0.2
    assert errors[1] < errors[0] / 5
    assert errors[2] < errors[1] / 5
    assert errors[2] < 5e-4


def test_work_is_bounded():
    solution = solve(
        lambda t, y, _: -1e8 * (y - jnp.cos(50 * t)),
        np.ones(2),
        1.0,
        diffrax.PIDController(rtol=1e-6, atol=1e-6),
        solver=RungeKuttaChebyshev(max_evaluations=1000),
    )
    assert solution.result == diffrax.RESULTS.max_steps_reached
