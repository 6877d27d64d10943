"""Crossings are seen inside steps: the controller against exact solutions, clamps of every kind, batches."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim.model.temperature import Identity, Learnable, ScaledExp, Softplus
from flowsim.numerics import StopAtCrossings

TS = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 60)])


# --- the controller, on an oscillator whose steps are long --------------------------------------------


def stopped(value, t1=20.0, solver=None, args=None):
    """(time, whether an event ended the solve, steps) for y = (cos t, −sin t)."""

    def field(t, y, args):
        return jnp.stack([y[1], -y[0]])

    controller = StopAtCrossings(diffrax.PIDController(rtol=1e-10, atol=1e-12), value, field)
    with jax.enable_x64(True):
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            solver or diffrax.Dopri8(),
            0.0,
            t1,
            None,
            jnp.asarray([1.0, 0.0]),
            args=args,
            stepsize_controller=controller,
            saveat=diffrax.SaveAt(t1=True),
            max_steps=2000,
            throw=False,
        )
    assert solution.ts is not None
    return (
        float(solution.ts[-1]),
        bool(solution.result == diffrax.RESULTS.event_occurred),
        int(solution.stats["num_steps"]),
    )


@pytest.mark.parametrize("depth", [0.5, 1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize(
    "solver", [diffrax.Dopri8(), diffrax.Tsit5(), diffrax.Kvaerno5()], ids=lambda s: type(s).__name__
)
def test_a_dip_is_found_however_short(depth, solver):
    """cos t + 1 − depth is negative for 2√(2 depth) around π: for 2.8e-4 at depth 1e-8, a thousandth of a step."""
    t, occurred, steps = stopped(lambda t, y, args: (y[0] + 1 - depth)[None], solver=solver)
    assert occurred
    assert t == pytest.approx(np.pi - np.arccos(1 - depth), abs=1e-5)
    assert steps < 600


@pytest.mark.parametrize("depth", [1e-6, 1e-8])
def test_a_zero_that_rounding_steps_over_ends_the_solve(depth):
    """y[0] + 1 is a multiple of 1.1e-16, which most depths are not. Compilers must not add 1 to a constant."""

    def value(t, y, depth):
        return (y[0] + 1 - depth)[None]

    for exact in depth * np.linspace(1, 1.4, 20):
        t, occurred, steps = stopped(value, args=exact)
        assert occurred
        assert t == pytest.approx(np.pi - np.arccos(1 - exact), abs=1e-5)
        assert steps < 100


@pytest.mark.parametrize("height", [1e-8, 1e-3])
def test_what_stays_above_zero_does_not_stop_the_solve(height):
    t, occurred, _ = stopped(lambda t, y, args: (y[0] + 1 + height)[None])
    assert not occurred
    assert t == 20.0


def test_the_first_of_several_zeros_ends_the_solve_on_the_zero():
    t, occurred, _ = stopped(lambda t, y, args: jnp.stack([y[0] + 0.5, 3.0 - t]))
    assert occurred
    assert t == pytest.approx(2 * np.pi / 3, abs=1e-10)


def test_a_value_that_begins_at_zero_and_rises_is_no_crossing():
    t, occurred, _ = stopped(lambda t, y, args: (-y[1])[None])  # sin t
    assert occurred
    assert t == pytest.approx(np.pi, abs=1e-10)


# --- clamps -------------------------------------------------------------------------------------------


PEAKS = {  # excursions beyond the clamp that were shorter than a step
    "issue": (lambda **k: fs.GradientFlow(schedule=Learnable(0.07, **k)), fs.initial.uniform(6, 3), 9, 0.41514),
    "sphere": (lambda **k: fs.GradientFlow(schedule=Learnable(0.07, **k)), fs.initial.uniform(6, 3), 4, None),
    "parallel": (
        lambda **k: fs.GradientFlow(fs.Parallel(), Learnable(0.3, **k)), fs.initial.uniform(6, 4, gamma=0.1), 2, None
    ),
    "noise": (
        lambda **k: fs.GradientFlow(schedule=Learnable(0.07, **k), pairing=fs.LabelNoise(0.1)),
        fs.initial.uniform(6, 3), 5, None,
    ),
    "softplus": (
        lambda **k: fs.GradientFlow(schedule=Learnable(0.3, Softplus(), **k)), fs.initial.uniform(6, 3), 1, None
    ),
    "scaled": (
        lambda **k: fs.GradientFlow(schedule=Learnable(0.07, ScaledExp(0.7), **k)), fs.initial.uniform(6, 3), 4, None
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [n if n in ("issue", "parallel") else pytest.param(n, marks=pytest.mark.slow) for n in PEAKS]
)
def test_a_short_excursion_meets_the_clamp(name):
    make, start, seed, highest = PEAKS[name]
    ts = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 400)])  # some of them lie within the excursion
    if highest is None:
        highest = fs.simulate(make(), start, ts=ts, seed=seed).series["temperature"].max() * (1 - 3e-4)
    tau = fs.simulate(make(clamp=(1e-3, highest)), start, ts=ts, seed=seed).series["temperature"]
    assert tau.max() == pytest.approx(highest, rel=1e-12)
    assert tau.max() <= highest * (1 + 1e-12)


@pytest.mark.slow
def test_the_lower_bound_is_met_too():
    flow = fs.GradientFlow(schedule=Learnable(0.5))
    start = fs.initial.uniform(6, 3)
    ts = np.concatenate([[0.0], np.geomspace(1e-2, 1e6, 80)])
    free = fs.simulate(flow, start, ts=ts).series["temperature"]
    low = 0.9 * free[-1] + 0.1 * free.max()
    tau = fs.simulate(flow.replace(**{"schedule.temperature.clamp": (low, 2.0)}), start, ts=ts).series["temperature"]
    assert tau.min() == pytest.approx(low, rel=1e-12)
    assert tau[-1] == pytest.approx(low, rel=1e-12)


SWEEPS = {  # one run of a batch meets a bound, another does not
    "open_clip": (Learnable(0.07, clamp=(0.01, 1.0)), fs.Sphere(), fs.initial.rings(), [0.02, 0.07, 0.3, 0.9]),
    "softplus": (Learnable(0.2, Softplus(), clamp=(0.05, 0.31)), fs.Sphere(), fs.initial.rings(), [0.06, 0.2, 0.3]),
    "parallel": (
        Learnable(0.3, clamp=(0.05, 0.6)), fs.Parallel(), fs.initial.uniform(6, 4, gamma=0.1), [0.1, 0.3, 0.59]
    ),
    "identity": (Learnable(0.5, Identity(), clamp=(0.2, 3.0)), fs.Sphere(), fs.initial.rings(), [0.21, 0.5, 2.9]),
    "cones": (Learnable(0.1, clamp=(0.03, 0.12)), fs.Sphere(), fs.initial.cones(6, 4), [0.031, 0.1, 0.119]),
}  # fmt: skip


@pytest.mark.parametrize("precision", ["float64", pytest.param("float32", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [n if n == "open_clip" else pytest.param(n, marks=pytest.mark.slow) for n in SWEEPS])
def test_runs_of_a_batch_meet_their_bounds_on_their_own(name, precision):
    policy, geometry, start, inits = SWEEPS[name]
    flow = fs.GradientFlow(geometry, policy)
    runs = fs.sweep(flow, start, {"schedule.temperature.init": inits}, ts=TS, precision=precision)
    low, high = policy.clamp
    exact = precision == "float64"
    tau = runs["temperature"].to_numpy()
    assert np.nanmin(tau) >= low * (1 - (1e-12 if exact else 1e-5))
    assert np.nanmax(tau) <= high * (1 + (1e-12 if exact else 1e-5))
    for i, init in enumerate(inits):
        alone = fs.simulate(
            flow.replace(**{"schedule.temperature.init": init}), start, ts=TS, precision=precision, throw=False
        )
        assert runs["status"].to_numpy()[i] == alone.status.code.name
        np.testing.assert_allclose(tau[i], alone.series["temperature"], rtol=1e-6 if exact else 5e-3)


# --- continuing under a clamp -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("clamp", "refused"),
    [((0.01, 0.5), True), ((1.05, 2.0), True), ((0.01, 1.0), True), ((0.01, 1.03), False), (None, False)],
)
@pytest.mark.parametrize("how", ["flow", "optimizer"])
def test_a_run_outside_the_clamp_is_not_continued(clamp, refused, how):
    """The run of Figure 2 stands at τ = 1.0229 at t = 2."""
    flow = fs.GradientFlow(schedule=Learnable(0.07, clamp=clamp and (min(clamp[0], 0.07), max(clamp[1], 0.07))))
    flow = (
        flow.replace(**{"schedule.temperature.init": 1.2, "schedule.temperature.clamp": clamp})
        if clamp == (1.05, 2.0)
        else flow
    )
    run = fs.simulate(fs.GradientFlow(), fs.initial.rings(), t1=2.0)

    def go_on():
        return fs.simulate(flow, run, t1=2.5) if how == "flow" else fs.descend(flow, run, "sgd", lr=0.01, steps=5)

    if refused:
        with pytest.raises(fs.FlowsimError, match="ended at temperature 1.022.*outside the clamp"):
            go_on()
    else:
        assert go_on().series["temperature"][0] == pytest.approx(run.series["temperature"][-1], rel=1e-12)


# --- cones that collapse under forces on the rows -----------------------------------------------------


@pytest.mark.parametrize("by", ["row", "entry"])
def test_cones_that_collapse_with_swaps_end_there(by):
    """The height reaches 1 with a finite slope; a trial step beyond it must still have a field."""
    swap = fs.HardSwap(0.1, by=by, masks=4)
    flow = fs.GradientFlow(fs.Parallel(), fs.Schedule(swap=swap))
    run = fs.simulate(flow, fs.initial.cones(pairs=6, dim=5), t1=20.0, max_steps=200, throw=False)
    assert run.status.code is fs.Status.GAMMA_ONE
    assert run.stats["steps"] < 60
    near = fs.simulate(flow, fs.initial.cones(pairs=6, dim=5), t1=run.status.stopped_at * (1 - 1e-6))
    assert 1 - 1e-4 < near.final.gamma < 1
