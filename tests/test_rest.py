"""Rest: what grows is not at rest, what only has other names behaves the same, saddles are told, slots are filled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.special import softmax

import flowsim as fs
from flowsim.integrate import trajectory
from flowsim.integrate.outlook import Outlook, outlook_of
from flowsim.model.temperature import Fixed, Learnable, Linear, Softplus
from flowsim.numerics import arnoldi

PARALLEL, NOISE = fs.Parallel(), fs.LabelNoise(0.1)


def simplex_height(pairs, noise, tau, gamma, t):
    """γ(t) on simplex cones at constant temperature and targets: the directions rest, ln γ alone moves (SciPy)."""
    z = (pairs * np.eye(pairs) - 1) / (pairs - 1)
    targets = (1 - noise) * np.eye(pairs) + noise / (pairs - 1) * (1 - np.eye(pairs))

    def field(t, y):
        logits = z / tau * (1 - np.exp(2 * y[0]))
        return [2 / tau * np.sum(z * (softmax(logits, axis=1) - targets)) / pairs]

    found = solve_ivp(field, (0, t), [np.log(gamma)], "DOP853", rtol=1e-11, atol=1e-11)
    return float(np.exp(found.y[0, -1]))


# --- what grows is not at rest ------------------------------------------------------------------------


def grown(flow, start, ts, **options):
    return fs.simulate(flow, start, ts=ts, **options).series["gamma"][-1]


@pytest.mark.parametrize("gamma", [1e-20, -1e-20, 1e-30])
def test_a_height_that_grows_from_nothing_is_followed(gamma):
    found = grown(fs.GradientFlow(PARALLEL, Fixed(0.1), pairing=NOISE), fs.initial.simplex(12, gamma), [30.0])
    assert found == pytest.approx(np.sign(gamma) * simplex_height(12, 0.1, 0.1, abs(gamma), 30.0), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flow", "pairs", "gamma", "noise", "t", "options"),
    [
        (fs.GradientFlow(PARALLEL, Fixed(0.1), pairing=fs.LabelNoise(0.2)), 6, 1e-25, 0.2, 60.0, {}),
        (fs.GradientFlow(PARALLEL, Fixed(0.1), fs.DirectedInfoNCE(), NOISE), 12, 1e-20, 0.1, 30.0, {}),
        (fs.GradientFlow(PARALLEL, Fixed(0.1), pairing=fs.FreshRepairing(0.5)), 12, 1e-20, 5 / 12, 30.0, {}),
        (fs.GradientFlow(PARALLEL, Fixed(0.1), pairing=NOISE), 12, 1e-20, 0.1, 30.0, {"precision": "float32"}),
    ],
    ids=["noise 0.2", "directed", "fresh", "float32"],
)
def test_a_height_grows_with_every_loss_and_pairing(flow, pairs, gamma, noise, t, options):
    found = grown(flow, fs.initial.simplex(pairs, gamma), [t], **options)
    assert found == pytest.approx(simplex_height(pairs, noise, 0.1, gamma, t), rel=1e-3 if options else 1e-6)


@pytest.mark.slow
def test_a_height_grows_after_a_schedule_and_in_a_sweep():
    flow, start = fs.GradientFlow(PARALLEL, Linear(0.2, 0.1), pairing=NOISE), fs.initial.simplex(12, 1e-20)
    later = simplex_height(12, 0.1, 0.1, 1e-20, 300.0)
    assert grown(flow, start, [300.0], horizon=1.0) == pytest.approx(later, rel=1e-6)
    flow = fs.GradientFlow(PARALLEL, Fixed(0.1), pairing=NOISE)
    runs = fs.sweep(flow, start, {"start.gamma": [1e-18, 1e-20, 1e-30]}, ts=[12.0])
    wanted = [simplex_height(12, 0.1, 0.1, gamma, 12.0) for gamma in (1e-18, 1e-20, 1e-30)]
    np.testing.assert_allclose(runs["gamma"].to_numpy().ravel(), wanted, rtol=1e-6)


def test_a_height_that_falls_for_ever_is_not_a_steady_state():
    """ln γ falls at a constant rate when all else rests: solved in closed form, and said to be COMPLETED."""
    flow = fs.GradientFlow(PARALLEL, Fixed(0.3))
    result = fs.simulate(flow, fs.initial.simplex(5, 0.3), ts=[0, 1e3, 1e6, 2e6])
    log_gamma = result.series["log_gamma"]
    assert result.status.code is fs.Status.COMPLETED
    assert (log_gamma[3] - log_gamma[2]) / 1e6 == pytest.approx((log_gamma[2] - log_gamma[1]) / (1e6 - 1e3), rel=1e-6)
    assert result.final.start.log_gamma == log_gamma[3]
    longer = fs.simulate(flow, result, ts=[3e6])
    assert longer.series["log_gamma"][0] - log_gamma[3] == pytest.approx(log_gamma[3] - log_gamma[2], rel=1e-6)


# --- other names, the same flow -----------------------------------------------------------------------


NAMES = {"noise 0": fs.LabelNoise(0), "fresh 0": fs.FreshRepairing(0), "clusters of 1": fs.Clusters(1)}
FLOWS = {
    "sphere": (fs.GradientFlow(), fs.initial.rings(), {"ts": [0, 1e14, 1e30]}),
    "parallel": (fs.GradientFlow(PARALLEL, Learnable(0.2)), fs.initial.simplex(6, 0.3), {"ts": [0, 1e14, 1e30]}),
    "directed": (fs.GradientFlow(loss=fs.DirectedInfoNCE()), fs.initial.rings(), {"ts": [0, 1e14, 1e30]}),
    "softplus": (
        fs.GradientFlow(schedule=Learnable(0.07, Softplus())), fs.initial.rings(), {"ts": [0, 1e14, 1e30]}
    ),
    "float32": (fs.GradientFlow(), fs.initial.rings(), {"ts": [0, 1e4, 1e6], "precision": "float32"}),
}  # fmt: skip


@pytest.mark.parametrize("pairing", [n if n == "noise 0" else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
@pytest.mark.parametrize("name", [n if n == "sphere" else pytest.param(n, marks=pytest.mark.slow) for n in FLOWS])
def test_a_pairing_that_changes_nothing_changes_nothing(name, pairing):
    flow, start, options = FLOWS[name]
    plain, other = (fs.simulate(f, start, **options) for f in (flow, flow.replace(pairing=NAMES[pairing])))
    assert plain.status.code is other.status.code is fs.Status.COMPLETED
    rtol = 2e-3 if name == "float32" else 1e-6
    gaps = [run.series["modality_gap"] for run in (other, plain)]
    np.testing.assert_allclose(*gaps, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("name", [n if n == "sphere" else pytest.param(n, marks=pytest.mark.slow) for n in FLOWS])
def test_relabelled_texts_are_matched_texts(name):
    """Frozen mispairing is the matched flow of texts in another order."""
    flow, start, options = FLOWS[name]
    start = start.draw(0)
    flow = flow.replace(pairing=fs.FrozenMispairing(1.0))
    with jax.enable_x64(True):
        targets = np.asarray(flow.initial_state(start, seed=0).targets.rows)
    assert not np.array_equal(targets, np.eye(len(targets)))
    order = targets.argmax(1)
    relabelled = fs.initial.from_arrays(
        start.image, start.text[order], gamma=None if start.gamma is None else float(start.gamma)
    )
    wrong = fs.simulate(flow, start, throw=False, **options)
    right = fs.simulate(flow.replace(pairing=fs.Matched()), relabelled, throw=False, **options)
    assert wrong.status.code is right.status.code
    rtol = 2e-2 if name == "float32" else 1e-6
    np.testing.assert_allclose(wrong.series["modality_gap"], right.series["modality_gap"], rtol=rtol, atol=1e-12)


# --- saddles ------------------------------------------------------------------------------------------


def on_the_sphere(pairs, height):
    """Simplex cones at heights ±`height`, as free rows."""
    return fs.initial.from_arrays(*fs.initial.simplex(pairs, height).draw(0).rows())


def excess(result, noise, tau):
    """β·m − ln[(1 − p)(n − 1)/p] at the end: zero at the equilibria that are not saddles."""
    z = result.final.image @ result.final.text.T
    n = len(z)
    m = np.trace(z) / n - (z.sum() - np.trace(z)) / (n * (n - 1))
    return m / tau - np.log((1 - noise) * (n - 1) / noise)


@pytest.mark.parametrize("height", [1e-13, pytest.param(1e-14, marks=pytest.mark.slow)])
def test_a_tiny_height_grows_below_the_critical_temperature(height):
    flow = fs.GradientFlow(schedule=Fixed(0.2), pairing=NOISE)
    result = fs.simulate(flow, on_the_sphere(12, height), ts=[0, 10.0, 1e3, 1e5])
    assert result.status.code is not fs.Status.SADDLE
    assert result.series["modality_gap"][1] > 2.5 * height
    assert abs(excess(result, 0.1, 0.2)) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loss", "pairing", "noise", "tau", "pairs", "method"),
    [
        (fs.InfoNCE(), fs.LabelNoise(0.2), 0.2, 0.1, 6, None),
        (fs.InfoNCE(), fs.FreshRepairing(0.25), 2 / 12, 0.2, 12, None),
        (fs.DirectedInfoNCE(), NOISE, 0.1, 0.2, 12, None),
        (fs.InfoNCE(), NOISE, 0.1, 0.15, 5, "implicit"),
        (fs.InfoNCE(), NOISE, 0.1, 0.2, 12, "stabilised"),
    ],
)
def test_a_tiny_height_grows_with_every_method(loss, pairing, noise, tau, pairs, method):
    """An implicit method would damp what its error control does not see."""
    flow = fs.GradientFlow(schedule=Fixed(tau), loss=loss, pairing=pairing)
    result = fs.simulate(flow, on_the_sphere(pairs, 1e-13), ts=[0, 1e3, 1e5], method=method)
    assert result.status.code is not fs.Status.SADDLE
    assert abs(excess(result, noise, tau)) < 1e-3


@pytest.mark.parametrize(
    ("flow", "start"),
    [
        (fs.GradientFlow(schedule=Fixed(0.2), pairing=NOISE), on_the_sphere(12, 0.0)),
        pytest.param(
            fs.GradientFlow(PARALLEL, Fixed(0.2), pairing=NOISE), fs.initial.simplex(12, 0.0), marks=pytest.mark.slow
        ),
        pytest.param(
            fs.GradientFlow(schedule=Fixed(0.1)),
            fs.initial.from_arrays(np.tile([1.0, 0, 0], (4, 1)), np.tile([1.0, 0, 0], (4, 1))),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["sphere", "parallel", "collapsed"],
)
def test_rest_on_a_saddle_is_told(flow, start):
    result = fs.simulate(flow, start, ts=[0, 10.0, 1e3])
    assert result.status.code is fs.Status.SADDLE
    assert result.status.ok
    assert "Perturb" in result.status.sentence
    assert result.stats["growth_rate"] > 0
    assert np.ptp(result.series["loss"]) < 1e-12
    assert result.series["modality_gap"].max() < 1e-12


@pytest.mark.slow
def test_a_stable_rest_is_no_saddle():
    """Above the critical temperature X = Y attracts."""
    flow = fs.GradientFlow(schedule=Fixed(0.4), pairing=fs.LabelNoise(0.3))
    result = fs.simulate(flow, on_the_sphere(12, 0.0), ts=[0, 10.0, 1e6])
    assert result.status.code is fs.Status.STEADY


@pytest.mark.slow
def test_single_precision_comes_to_rest_where_double_does():
    """An ordinary noisy run used to rest 3 % off."""
    flow = fs.GradientFlow(schedule=Fixed(0.2), pairing=NOISE)
    single, double = (
        fs.simulate(flow, fs.initial.uniform(12, 20), ts=[0, 10.0, 1e3, 1e4], precision=p)
        for p in ("float32", "float64")
    )
    np.testing.assert_allclose(single.series["modality_gap"], double.series["modality_gap"], rtol=1e-4)


def test_the_outlook_of_a_linear_flow_is_exact():
    """dy/dt = Ay + v with eigenvalues −2, −1e-3, 0, 0.5; the way ahead of the stable part is v/|λ|."""
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    rates = np.array([-2.0, -1e-3, -0.1, -3.0, -5.0, 0.0])
    stable = (q * rates) @ q.T
    force = q @ np.array([1e-3, 1e-6, 0, 0, 0, 0])

    def found(matrix, v):
        with jax.enable_x64(True):
            there = jnp.asarray(matrix)
            h, basis = (np.asarray(x) for x in arnoldi(lambda x: there @ x, jnp.ones(6), 6))
            along, _ = arnoldi(lambda x: there @ x, jnp.asarray(v), 6)
        return {
            "size": np.linalg.norm(v),
            "rate": 0.0,
            "along": np.asarray(along),
            "every": h,
            "seen": basis @ v,
            "noise": 1e-16,
        }

    assert outlook_of(found(stable, force), 1e9) == Outlook(0.0, 0.0, pytest.approx(np.hypot(5e-4, 1e-3), rel=1e-3))
    # Within a time of 1, the slow direction goes only 1e-6.
    way = np.hypot(5e-4 * (1 - np.exp(-2)), 1e-6)
    assert outlook_of(found(stable, force), 1.0).ahead == pytest.approx(way, rel=1e-3)
    rates[5] = 0.5
    outlook = outlook_of(found((q * rates) @ q.T, force + 1e-7 * q[:, 5]), 1e3)
    assert outlook.growth == pytest.approx(0.5, rel=1e-9)
    assert outlook.amplitude == pytest.approx(2e-7, rel=1e-6)


# --- slots of output ----------------------------------------------------------------------------------


HORIZONS = [1000.0, *(pytest.param(h, marks=pytest.mark.slow) for h in (3.0, 30.0, 123.4, 2e3, 1e4))]


@pytest.mark.parametrize("horizon", HORIZONS)
def test_an_output_time_at_the_end_of_a_schedule_holds_a_value(horizon):
    """expm1(log1p(t)) may be larger than t."""
    flow = fs.GradientFlow(fs.Sphere(50), Linear(0.9, 0.8), pairing=fs.LabelNoise(0.2))
    ts = [0, horizon / 2, horizon, 2 * horizon, 3 * horizon, 1e6]
    result = fs.simulate(flow, fs.initial.uniform(5, 3), ts=ts, horizon=horizon)
    assert all(np.isfinite(values).all() for values in result.series.values())


@pytest.mark.slow
def test_a_slot_at_a_time_of_rest_holds_a_value():
    """Output times on both sides of where a run comes to rest, a rounding error apart."""
    flow, start = fs.GradientFlow(schedule=Fixed(0.5)), fs.initial.uniform(5, 3)
    ts = np.geomspace(1.0, 1e7, 6)
    stopped = fs.simulate(flow, start, ts=ts).status.stopped_at
    near = [stopped]
    for _ in range(2):
        near = [np.nextafter(near[0], 0), *near, np.nextafter(near[-1], np.inf)]
    for options in ({}, {"snapshots": [1e7]}):
        result = fs.simulate(flow, start, ts=[*near, 1e7], **options)
        assert all(np.isfinite(values).all() for values in result.series.values())


def test_a_slot_without_a_value_is_a_failure(monkeypatch):
    """Should a slot be passed by, no status says that it holds something."""
    monkeypatch.setattr(trajectory.Trajectory, "reached", property(lambda self: self._kept & (self.ts != 1.0)))
    flow, start = fs.GradientFlow(), fs.initial.rings()
    result = fs.simulate(flow, start, ts=[0, 1.0, 2.0], throw=False)
    assert result.status.code is fs.Status.INCOMPLETE
    runs = fs.sweep(flow, start, {"seed": [0, 1]}, ts=[0, 1.0, 2.0])
    assert runs.counts == {"INCOMPLETE": 2}


def test_an_undefined_observable_has_a_reason():
    flow = fs.GradientFlow(schedule=Fixed(0.5))
    start = fs.initial.from_arrays(np.eye(3), np.eye(3))
    result = fs.simulate(flow, start, ts=[0, 1.0], observables=["modality_gap", "gap_angle", "relative_modality_gap"])
    for name, values in result.series.items():
        assert np.isfinite(values).all() or "undefined" in result.reasons[name]


def test_a_derivative_that_is_not_finite_says_nothing():
    found = {name: np.full((2, 2), np.nan) for name in ("along", "every")}
    numbers = {"size": np.float64(1.0), "rate": np.float64(0.0), "seen": np.zeros(2), "noise": np.float64(0.0)}
    assert outlook_of(found | numbers, 1.0) == Outlook(0.0, 0.0, 0.0)
