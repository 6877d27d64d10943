"""`simulate`: against SciPy, exact invariants, Figure 2, statuses, recompilation, 32-bit sessions, errors."""

import csv
from pathlib import Path

import jax
import numpy as np
import pytest
from reference import parallel_field, sphere_field, unit_rows
from scipy.integrate import solve_ivp

import flowsim as fs
from flowsim.model.losses import InfoNCE
from flowsim.model.temperature import Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

REFERENCE = Path(__file__).parents[1] / "experiments" / "reference"
RINGS = fs.initial.rings()


# --- Figure 2 -----------------------------------------------------------------------------------------


MILESTONES = [0, 2.0639, 3.8326, 3.8330, 1e5, 1e6, 1e12]


def digitised(column):
    """Times and values of a curve of the paper."""
    with (REFERENCE / f"fig2_{'delta' if column == 'modality_gap' else 'tau'}.csv").open() as file:
        rows = list(csv.DictReader(file))
    t = np.array([float(r["time_plus_0.1"]) for r in rows]) - 0.1
    return t[t > 0], np.array([float(r[column]) for r in rows])[t > 0]


@pytest.fixture(scope="module")
def figure_2():
    """One run at all times of the paper's curves and at the milestones."""
    ts = np.unique(np.concatenate([MILESTONES, *(digitised(c)[0] for c in ("modality_gap", "temperature"))]))
    return fs.simulate(fs.GradientFlow.from_preset("Baseline"), RINGS, ts=ts)


@pytest.mark.parametrize("column", ["modality_gap", "temperature"])
def test_figure_2_to_the_digit(column, figure_2):
    """The digitised curves of the paper, at most 1e-3 away (measured: 3.1e-4)."""
    t, paper = digitised(column)
    ours = figure_2.series[column][np.searchsorted(figure_2.time, t)]
    assert np.abs(ours - paper).max() < 1e-3


def test_figure_2_milestones(figure_2):
    at = np.searchsorted(figure_2.time, MILESTONES)
    gap, tau, margin = (figure_2.series[k][at] for k in ("modality_gap", "temperature", "margin"))
    np.testing.assert_allclose(gap, [0.61803, 1.0568, gap[2], gap[3], 0.54055, 0.5265, 0.4732], atol=6e-5)
    assert tau[1] == pytest.approx(1.0234, abs=5e-5)
    assert tau[4] == pytest.approx(0.0358, abs=5e-5)
    assert margin[2] < 0 < margin[3]
    invariant = gap**5 / tau
    np.testing.assert_allclose(invariant, 1.28814, rtol=1e-5)


# --- SciPy --------------------------------------------------------------------------------------------


def scipy_sphere(start, beta, learnable, ts, targets=None):
    n, d = start.image.shape

    def field(t, y):
        x, z = y[: n * d].reshape(n, d), y[n * d : 2 * n * d].reshape(n, d)
        b = np.exp(y[-1]) if learnable else beta
        dx, dz, force = sphere_field(x, z, b, targets, targets)
        return np.concatenate([dx.ravel(), dz.ravel(), [b * force if learnable else 0.0]])

    y0 = np.concatenate([start.image.ravel(), start.text.ravel(), [np.log(beta)]])
    method = "DOP853" if learnable else "Radau"
    y = solve_ivp(field, (0, ts[-1]), y0, method, ts, rtol=1e-11, atol=1e-13).y.T
    x, z = y[:, : n * d].reshape(-1, n, d), y[:, n * d : -1].reshape(-1, n, d)
    return np.linalg.norm(x.mean(1) - z.mean(1), axis=1), np.exp(-y[:, -1])


def scipy_parallel(start, beta, learnable, ts):
    n, d = start.image.shape

    def field(t, y):
        x, z = y[: n * d].reshape(n, d), y[n * d : 2 * n * d].reshape(n, d)
        b = np.exp(y[-1]) if learnable else beta
        dx, dz, dlog, force = parallel_field(x, z, np.exp(y[-2]), b)
        return np.concatenate([dx.ravel(), dz.ravel(), [dlog, b * force if learnable else 0.0]])

    log_gamma = np.log(float(start.gamma))
    y0 = np.concatenate([start.image.ravel(), start.text.ravel(), [log_gamma, np.log(beta)]])
    method = "DOP853" if learnable else "Radau"
    y = solve_ivp(field, (0, ts[-1]), y0, method, ts, rtol=1e-11, atol=1e-13).y.T
    return np.exp(y[:, -2]), np.exp(-y[:, -1])


@pytest.mark.parametrize("learnable", [True, False], ids=["learnable", "fixed"])
@pytest.mark.parametrize("seed", range(4))
def test_sphere_agrees_with_scipy(learnable, seed):
    """Eight random problems; the fixed-temperature ones run into an equilibrium."""
    tau = [0.07, 0.2, 0.3, 0.5][seed]
    start = fs.initial.uniform(5, 3).draw(seed)
    ts = np.array([0, 0.3, 3.0, 30.0, 300.0, 3000.0])
    gap, temperature = scipy_sphere(start, 1 / tau, learnable, ts)
    flow = fs.GradientFlow(schedule=Learnable(tau) if learnable else Fixed(tau))
    result = fs.simulate(flow, start, ts=ts)
    np.testing.assert_allclose(result.series["modality_gap"], gap, atol=1e-6)
    np.testing.assert_allclose(result.series["temperature"], temperature, rtol=1e-6)


@pytest.mark.parametrize("learnable", [True, False], ids=["learnable", "fixed"])
@pytest.mark.parametrize("seed", range(3))
def test_parallel_agrees_with_scipy(learnable, seed):
    tau = [0.1, 0.3, 0.5][seed]
    start = fs.initial.uniform(5, 4, gamma=0.2).draw(seed)
    ts = np.array([0, 0.3, 3.0, 30.0, 300.0])
    gamma, temperature = scipy_parallel(start, 1 / tau, learnable, ts)
    flow = fs.GradientFlow(fs.Parallel(), Learnable(tau) if learnable else Fixed(tau))
    result = fs.simulate(flow, start, ts=ts)
    np.testing.assert_allclose(result.series["gamma"], gamma, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(result.series["temperature"], temperature, rtol=1e-6)


@pytest.mark.slow
def test_noisy_equilibrium_agrees_with_theory():
    """Label noise at fixed temperature: β·m = ln[(1−p)(n−1)/p], to four digits and more."""
    n, noise, tau = 12, 0.1, 0.1
    flow = fs.GradientFlow(schedule=Fixed(tau), pairing=fs.LabelNoise(noise))
    result = fs.simulate(flow, fs.initial.uniform(n, 20), t1=1e5)
    assert result.status.code in (fs.Status.STEADY, fs.Status.COMPLETED)
    similarity = result.final.image @ result.final.text.T
    off = (similarity.sum() - np.trace(similarity)) / (n * (n - 1))
    m = np.trace(similarity) / n - off
    assert m / tau == pytest.approx(np.log((1 - noise) * (n - 1) / noise), rel=1e-6)


@pytest.mark.slow
def test_stiff_methods_without_a_matrix_agree_with_the_explicit():
    flow = fs.GradientFlow(schedule=Fixed(0.3), pairing=fs.LabelNoise(0.1))
    start = fs.initial.uniform(12, 20)
    ts = [0, 10.0, 100.0, 2000.0]
    automatic, explicit, stabilised, krylov = (
        fs.simulate(flow, start, ts=ts, method=m) for m in (None, "explicit", "stabilised", "krylov")
    )
    assert "RungeKuttaChebyshev" in stabilised.status.method
    assert krylov.stats["steps"] < stabilised.stats["steps"] / 10
    for other in (automatic, stabilised, krylov):
        np.testing.assert_allclose(other.series["modality_gap"], explicit.series["modality_gap"], rtol=1e-5, atol=1e-8)


# --- invariants ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parametrization",
    [Exp(), Softplus(), *(pytest.param(p, marks=pytest.mark.slow) for p in (ScaledExp(10.0), Identity()))],
    ids=repr,
)
def test_conserved_quantities_to_t_1e30(parametrization):
    """ln γ − γ²/2 + (2/r)F(β), free rows, r = 0.1, 1, 3: relative residual at most 1e-8."""
    start = fs.initial.matched(16, 8, gamma=0.3)
    for ratio in (0.1, 1.0, 3.0):
        flow = fs.GradientFlow(fs.Parallel(), Learnable(0.07, parametrization, ratio))
        result = fs.simulate(flow, start, t1=1e30)
        assert result.status.code is fs.Status.COMPLETED
        assert result.stats["conserved_residual"] < 1e-8
        assert result.stats["loss_increase"] < 1e-12


def test_reduced_agrees_with_the_closed_form_to_t_1e100():
    result = fs.simulate(fs.GradientFlow(fs.Reduced(), Learnable(0.5)), fs.initial.orthonormal(32, 0.5), t1=1e100)
    log_gamma, beta = fs.theory.reduced_trajectory(result.time, np.log(0.5), 2.0, 1.0, 32)
    np.testing.assert_allclose(result.series["log_gamma"], log_gamma, rtol=1e-7)
    np.testing.assert_allclose(result.series["inverse_temperature"], beta, rtol=1e-7)


def test_gamma_zero_is_invariant_and_its_sign_is_kept():
    flow = fs.GradientFlow(fs.Parallel())
    zero = fs.simulate(flow, fs.initial.uniform(5, 4, gamma=0.0), t1=10.0)
    assert (zero.series["gamma"] == 0).all()
    plus, minus = (fs.simulate(flow, fs.initial.uniform(5, 4, gamma=g), t1=10.0) for g in (0.2, -0.2))
    np.testing.assert_array_equal(plus.series["gamma"], -minus.series["gamma"])
    assert (minus.series["gamma"] < 0).all()


@pytest.mark.parametrize("seed", range(3))
def test_loss_falls_and_rows_stay_unit(seed):
    result = fs.simulate(fs.GradientFlow(), fs.initial.uniform(5, 3), t1=1e4, seed=seed)
    assert result.stats["loss_increase"] < 1e-10
    for rows in (result.final.image, result.final.text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)


def test_trajectories_commute_with_rotation_and_exchange():
    rng = np.random.default_rng(0)
    image, text = unit_rows(rng, 5, 3), unit_rows(rng, 5, 3)
    rotation = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    flow = fs.GradientFlow()
    plain = fs.simulate(flow, fs.initial.from_arrays(image, text), t1=1e2)
    other = fs.simulate(flow, fs.initial.from_arrays(text @ rotation, image @ rotation), t1=1e2)
    np.testing.assert_allclose(other.final.image, plain.final.text @ rotation, atol=1e-6)
    np.testing.assert_allclose(other.series["modality_gap"], plain.series["modality_gap"], atol=1e-7)


# --- statuses -----------------------------------------------------------------------------------------


def test_gamma_reaching_one_ends_the_run_with_a_status():
    """Mismatched, large β: two of ten seeds run past γ = 1, at t = 0.115 and 0.164."""
    flow = fs.GradientFlow(fs.Parallel())
    start = fs.initial.uniform(8, 2, gamma=0.1)
    result = fs.simulate(flow, start, t1=10.0, seed=1, throw=False)
    assert result.status.code is fs.Status.GAMMA_ONE
    assert result.status.stopped_at == pytest.approx(0.115, abs=5e-4)
    reached = result.time <= result.status.stopped_at
    assert np.isfinite(result.series["gamma"][reached]).all()
    assert np.isnan(result.series["gamma"][~reached]).all()
    assert result.series["gamma"][reached].max() < 1
    with pytest.raises(fs.SimulationStopped, match="γ reached 1") as caught:
        fs.simulate(flow, start, t1=10.0, seed=1)
    assert caught.value.result.status.code is fs.Status.GAMMA_ONE
    with pytest.raises(fs.FlowsimError, match="cannot be continued"):
        fs.simulate(flow, result, t1=20.0)


@pytest.mark.slow
def test_inverse_temperature_reaching_zero_ends_the_run_with_a_status():
    flow = fs.GradientFlow(fs.Sphere(1e-3), Learnable(2.0, Identity()))
    result = fs.simulate(flow, RINGS, t1=1e3, throw=False)
    assert result.status.code is fs.Status.TEMPERATURE_INFINITE
    assert np.nanmin(result.series["inverse_temperature"]) >= 0


def test_steady_state_holds_its_value():
    ts = [0, 1e2, 1e3, 1e5, 1e6, 1e7]  # as many as above: the compiled programs are shared
    result = fs.simulate(fs.GradientFlow(schedule=Fixed(0.5)), fs.initial.uniform(5, 3), ts=ts)
    assert result.status.code is fs.Status.STEADY
    assert result.status.stopped_at < 1e7
    later = result.time > result.status.stopped_at
    assert later.sum() >= 2
    assert np.ptp(result.series["loss"][later]) == 0
    assert result.final.time == 1e7


def test_a_matched_learnable_run_is_never_steady():
    result = fs.simulate(fs.GradientFlow(fs.Parallel(), Learnable(0.5)), fs.initial.matched(5, 4, gamma=0.3), t1=1e20)
    assert result.status.code is fs.Status.COMPLETED


@pytest.mark.slow
def test_log_gamma_goes_on_falling_after_everything_else_is_steady():
    flow = fs.GradientFlow(fs.Parallel(), Fixed(0.3))
    result = fs.simulate(flow, fs.initial.matched(5, 4, gamma=0.3), ts=[0, 1e4, 1e6, 2e6])
    log_gamma = result.series["log_gamma"]
    assert result.status.ok
    assert log_gamma[3] - log_gamma[2] == pytest.approx(log_gamma[2] / 1, rel=1e-2)


@pytest.mark.slow
def test_clamp_is_reached_held_and_released():
    """Figure 2 under open_clip's clamp [0.01, 1]: τ stops at 1 exactly and leaves it later."""
    flow = fs.GradientFlow(schedule=Learnable(clamp=(0.01, 1.0)))
    ts = np.concatenate([[0.0], np.geomspace(0.1, 100, 60)])
    tau = fs.simulate(flow, RINGS, ts=ts).series["temperature"]
    free = fs.simulate(fs.GradientFlow(), RINGS, ts=ts).series["temperature"]
    assert free.max() > 1
    assert tau.max() == 1.0
    assert (tau == 1.0).sum() >= 2
    assert tau[-1] < 0.9
    before = free < 0.9
    before[np.argmax(free > 0.9) :] = False
    np.testing.assert_allclose(tau[before], free[before], rtol=1e-7)


def test_max_steps_is_a_status():
    result = fs.simulate(
        fs.GradientFlow(), fs.initial.uniform(5, 3), t1=1e5, method="explicit", max_steps=5, throw=False
    )
    assert result.status.code is fs.Status.MAX_STEPS
    assert np.isnan(result.series["loss"][-1])
    assert np.isfinite(result.series["loss"][0])


# --- contracts ----------------------------------------------------------------------------------------


def test_changing_a_number_never_recompiles(monkeypatch):
    flow = fs.GradientFlow(fs.Parallel())
    fs.simulate(flow, fs.initial.uniform(5, 4, gamma=0.1), t1=1.0, throw=False)
    traces = []
    gradient = InfoNCE.gradient
    monkeypatch.setattr(InfoNCE, "gradient", lambda *a: traces.append(1) or gradient(*a))
    for changes, start, options in (
        ({"schedule.temperature.init": 0.2}, fs.initial.uniform(5, 4, gamma=0.1), {"t1": 1.0}),
        ({"schedule.temperature.lr_ratio": 0.1}, fs.initial.uniform(5, 4, gamma=0.3), {"t1": 7.0}),
        ({}, fs.initial.uniform(5, 4, gamma=0.0), {"t1": 2, "seed": 5}),
        ({}, fs.initial.matched(5, 4, gamma=0.2), {"t1": 1.0, "rtol": 1e-6}),
        ({}, fs.initial.uniform(5, 4, gamma=-0.1), {"t1": 1.0, "horizon": 3.0, "seed": 2}),
    ):
        fs.simulate(flow.replace(**changes), start, throw=False, **options)
    assert not traces
    fs.simulate(
        flow.replace(**{"schedule.temperature.parametrization": Softplus()}),
        fs.initial.uniform(5, 4, gamma=0.1),
        t1=1.0,
        throw=False,
    )
    assert traces


def test_works_in_a_32_bit_session_and_leaves_it_alone():
    assert not jax.config.read("jax_enable_x64")
    result = fs.simulate(fs.GradientFlow(), RINGS, t1=1e5)
    assert result.series["modality_gap"].dtype == np.float64
    assert result.series["modality_gap"][-1] == pytest.approx(0.54055, abs=5e-6)
    assert not jax.config.read("jax_enable_x64")


@pytest.mark.parametrize(
    ("flow", "start", "t1", "status"),
    [
        (fs.GradientFlow(schedule=Learnable(clamp=(0.06, 0.5))), RINGS, 10.0, fs.Status.COMPLETED),
        (fs.GradientFlow(fs.Parallel(), Learnable(0.02)), fs.initial.uniform(8, 2, 0.1), 2.0, fs.Status.GAMMA_ONE),
        (fs.GradientFlow(schedule=Learnable(0.5, Identity())), RINGS, 20.0, fs.Status.TEMPERATURE_INFINITE),
    ],
)
def test_single_precision_finds_crossings(flow, start, t1, status):
    single, exact = (fs.simulate(flow, start, t1=t1, seed=1, precision=p, throw=False) for p in ("float32", "float64"))
    assert single.status.code is exact.status.code is status
    assert single.status.stopped_at == pytest.approx(exact.status.stopped_at, rel=1e-2)
    held = np.isfinite(single.series["temperature"]) & np.isfinite(exact.series["temperature"])
    if status is fs.Status.COMPLETED:
        assert single.series["temperature"].max() == pytest.approx(0.5, rel=1e-5)
        np.testing.assert_allclose(single.series["temperature"][held], exact.series["temperature"][held], rtol=1e-2)


@pytest.mark.parametrize(
    ("flow", "reported"),
    [
        (fs.GradientFlow(fs.Reduced()), True),
        (fs.GradientFlow(fs.Reduced(), loss=fs.Sigmoid()), False),
        (fs.GradientFlow(fs.Reduced(), rule=fs.AdamLimit()), False),
    ],
)
def test_the_conserved_quantity_is_reported_only_where_it_is_conserved(flow, reported):
    found = fs.simulate(flow, fs.initial.orthonormal(4, 0.3), t1=1.0).stats.get("conserved_residual")
    assert (found is not None) == reported
    assert found is None or found < 1e-8


def test_snapshots_keep_the_end_and_say_where_they_begin():
    early = fs.simulate(fs.GradientFlow(), RINGS, ts=[0.0, 1.0, 10.0], snapshots=[0.0])
    assert fs.simulate(fs.GradientFlow(), early, t1=20.0).time[0] == 10.0
    late = fs.simulate(fs.GradientFlow(), RINGS, ts=[1.0, 5.0, 10.0], snapshots=[10.0])
    with pytest.raises(fs.FlowsimError, match="stored from t = 10 on"):
        late.at(5.5)


@pytest.mark.slow
def test_single_precision_is_explicit():
    result = fs.simulate(fs.GradientFlow(), RINGS, t1=1e3, precision="float32")
    exact = fs.simulate(fs.GradientFlow(), RINGS, t1=1e3)
    np.testing.assert_allclose(result.series["modality_gap"], exact.series["modality_gap"], atol=1e-3)
    assert result.series["modality_gap"].dtype == np.float32


def test_output_times_are_exact_and_progress_follows_the_horizon():
    ts = np.array([0.0, 0.1, 1.0, 50.0, 100.0, 1000.0])
    flow = fs.GradientFlow(schedule="TS S3")
    result = fs.simulate(flow, fs.initial.uniform(5, 3), ts=ts, horizon=100.0)
    assert np.array_equal(result.time, ts)
    expected = flow.schedule.temperature.temperature(np.clip(ts / 100.0, 0, 1))
    np.testing.assert_allclose(result.series["temperature"], expected, rtol=1e-12)
    assert result.config["options"]["horizon"] == 100.0


def test_continuing_keeps_the_clock():
    flow = fs.GradientFlow()
    whole = fs.simulate(flow, RINGS, ts=[0, 10.0, 1000.0])
    head = fs.simulate(flow, RINGS, t1=10.0)
    tail = fs.simulate(flow, head, t1=1000.0)
    assert tail.time[0] == 10.0
    assert tail.series["modality_gap"][-1] == pytest.approx(whole.series["modality_gap"][-1], abs=1e-8)
    other = flow.replace(**{"schedule.temperature.parametrization": Softplus()})
    switched = fs.simulate(other, head, ts=[10.0, 11.0])
    assert switched.series["temperature"][0] == pytest.approx(head.series["temperature"][-1], rel=1e-12)


def test_at_integrates_to_times_that_are_not_stored():
    flow = fs.GradientFlow()
    result = fs.simulate(flow, RINGS, t1=1e3)
    exact = fs.simulate(flow, RINGS, ts=[0, 4.0]).final
    snapshot = result.at(4.0)
    np.testing.assert_allclose(snapshot.image, exact.image, atol=1e-8)
    assert snapshot["modality_gap"] == pytest.approx(exact["modality_gap"], abs=1e-8)


@pytest.mark.slow
def test_streamed_and_stored_observables_agree():
    ts = np.array([0.0, 1.0, 10.0, 100.0])
    names = ("modality_gap", "loss", "image_effective_rank", "pair_distance")
    stored = fs.simulate(fs.GradientFlow(), RINGS, ts=ts, observables=names)
    streamed = fs.simulate(fs.GradientFlow(), RINGS, ts=ts, observables=names, snapshots=[10.0])
    assert list(stored.series) == list(names)
    assert list(streamed.snapshot_time) == [10.0, 100.0]
    for name in names:
        np.testing.assert_allclose(streamed.series[name], stored.series[name], rtol=1e-7)


SIMULATE = fs.simulate
FLOW = fs.GradientFlow()


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: SIMULATE(FLOW, RINGS), "Give `t1`"),
        (lambda: SIMULATE(FLOW, RINGS, t1=0), "`t1` must be greater than 0, but is 0"),
        (lambda: SIMULATE(FLOW, RINGS, t1=-1), "`t1` must be greater"),
        (lambda: SIMULATE(FLOW, RINGS, t1=float("nan")), "`t1` must be finite"),
        (lambda: SIMULATE(FLOW, RINGS, ts=[1, 1]), "must increase strictly"),
        (lambda: SIMULATE(FLOW, RINGS, ts=[-1, 1]), "before the clock"),
        (lambda: SIMULATE(FLOW, RINGS, t1=2, ts=[0, 1]), "Leave `t1` out"),
        (lambda: SIMULATE(FLOW, RINGS, t1=1, rtol=-1), "`rtol` must be positive"),
        (lambda: SIMULATE(FLOW, RINGS, t1=1, seed=-1), "`seed` must be a whole number"),
        (lambda: SIMULATE(FLOW, RINGS, t1=1, observables=["modalitygap"]), "Did you mean 'modality_gap'"),
        (lambda: SIMULATE(FLOW, RINGS, ts=[0, 1], snapshots=[0.5]), "not an output time"),
        (lambda: SIMULATE(FLOW, RINGS, t1=1e9, precision="float32"), "is limited to times up to t1 = 1e6"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()
