"""Discrete runs: Euler's method is the flow's limit, ratios scale the step, draws are fresh, bad input is refused."""

import dataclasses
import functools

import numpy as np
import optax
import pytest

import flowsim as fs
from flowsim.model.temperature import Fixed, Identity, Learnable

START = fs.initial.cones(pairs=6, dim=4)


def gap(flow: fs.GradientFlow, optimizer, lr, steps: int, **options) -> float:
    run = fs.descend(flow, START, optimizer=optimizer, lr=lr, steps=steps, **options)
    return float(run.series["modality_gap"][-1])


def test_one_step_of_sgd_is_eulers():
    flow = fs.GradientFlow()
    run = fs.descend(flow, START, optimizer="sgd", lr=1e-3, steps=1)
    speed = [fs.simulate(flow, START, ts=[0.0, h]).series["raw_temperature"] for h in (1e-6,)]
    slope = (speed[0][1] - speed[0][0]) / 1e-6
    assert run.series["raw_temperature"][-1] - run.series["raw_temperature"][0] == pytest.approx(1e-3 * slope, rel=1e-4)


def test_sgd_converges_to_the_flow_with_order_one():
    flow = fs.GradientFlow()
    wanted = fs.simulate(flow, START, ts=[0.0, 2.0]).series["modality_gap"][-1]
    errors = [abs(gap(flow, "sgd", lr, round(2 / lr)) - wanted) for lr in (4e-3, 2e-3, 1e-3)]
    assert np.diff(np.log2(errors)) == pytest.approx(-1.0, abs=0.1)


def test_time_is_the_sum_of_learning_rates_and_schedules_are_functions_of_the_step():
    schedule = optax.cosine_decay_schedule(0.1, 50)
    run = fs.descend(fs.GradientFlow(), START, optimizer="sgd", lr=schedule, steps=50)
    assert run.time[-1] == pytest.approx(sum(float(schedule(k)) for k in range(50)), rel=1e-6)
    assert run.time[0] == 0
    assert run.status.code is fs.Status.COMPLETED
    adam = fs.descend(fs.GradientFlow(), START, optimizer="adam", lr=1e-3, steps=3)
    assert adam.clock == "sum of learning rates"
    assert run.clock == "flow time"


def test_a_temperature_schedule_runs_in_progress_of_steps():
    run = fs.descend(
        fs.GradientFlow(schedule=fs.temperature.Linear(0.1, 0.3)), START, optimizer="sgd", lr=0.01, steps=100
    )
    np.testing.assert_allclose(run.series["temperature"], 0.1 + 0.2 * run.time / run.time[-1], rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_learning_rate_ratio_scales_the_step_of_the_temperature(optimizer):
    """A factor on the gradient would do nothing to Adam."""
    moved = []
    for ratio in (1.0, 0.25):
        flow = fs.GradientFlow(schedule=Learnable(lr_ratio=ratio))
        raw = fs.descend(flow, START, optimizer=optimizer, lr=1e-3, steps=1).series["raw_temperature"]
        moved.append(raw[-1] - raw[0])
    assert moved[1] / moved[0] == pytest.approx(0.25, rel=1e-9)


def test_adamw_leaves_the_temperature_alone():
    """Weight decay acts on the rows, where the retraction takes it back, and not on ν."""
    decayed = functools.partial(optax.adamw, weight_decay=0.5)
    plain = fs.descend(fs.GradientFlow(), START, optimizer="adam", lr=1e-2, steps=50).series["raw_temperature"][-1]
    ours = fs.descend(fs.GradientFlow(), START, optimizer="adamw", lr=1e-2, steps=50).series["raw_temperature"][-1]
    other = fs.descend(fs.GradientFlow(), START, optimizer=decayed, lr=1e-2, steps=50).series["raw_temperature"][-1]
    assert abs(ours - plain) < 0.1 * abs(other - plain)


def test_adamw_does_not_decay_the_height_of_cones():
    """A decaying ln γ would send γ to 1."""
    flow, start = fs.GradientFlow(fs.Reduced(), Fixed(0.01)), fs.initial.orthonormal(6, gamma=1e-3)
    run = fs.descend(flow, start, optimizer="adamw", lr=1e-2, steps=100)
    assert run.series["gamma"][-1] <= 1e-3 * (1 + 1e-12)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_rate_of_the_embeddings_scales_their_step(optimizer):
    moved = []
    for rate in (1.0, 0.25):
        run = fs.descend(fs.GradientFlow(fs.Sphere(rate)), START, optimizer=optimizer, lr=1e-6, steps=1)
        moved.append(run.snapshots["image"][-1] - run.snapshots["image"][0])
    np.testing.assert_allclose(moved[1], 0.25 * moved[0], atol=1e-10)
    assert np.abs(moved[0]).max() > 1e-8


@pytest.mark.parametrize(
    ("flow", "start", "status"),
    [
        (fs.GradientFlow(schedule=Learnable(0.5, Identity())), fs.initial.rings(), fs.Status.TEMPERATURE_INFINITE),
        (fs.GradientFlow(fs.Parallel(), Learnable(0.02)), fs.initial.uniform(8, 2, gamma=0.1), fs.Status.GAMMA_ONE),
    ],
)
def test_a_run_that_leaves_the_flow_ends_with_a_status(flow, start, status):
    run = fs.descend(flow, start, optimizer="sgd", lr=0.05, steps=400, seed=1, throw=False)
    assert run.status.code is status
    assert np.isnan(run.series["temperature"][-1])
    reached = run.series["inverse_temperature"][np.isfinite(run.series["inverse_temperature"])]
    assert reached.min() > 0


def test_only_plain_sgd_keeps_flow_time():
    momentum = functools.partial(optax.sgd, momentum=0.9)
    clocks = [fs.descend(fs.GradientFlow(), START, optimizer=o, lr=1e-3, steps=2).clock for o in (optax.sgd, momentum)]
    assert clocks == ["flow time", "sum of learning rates"]


def test_rows_stay_on_the_sphere_and_the_clamp_holds():
    flow = fs.GradientFlow(schedule=Learnable(clamp=(0.06, 0.08)))
    run = fs.descend(flow, START, optimizer="adam", lr=0.05, steps=200)
    np.testing.assert_allclose(np.linalg.norm(run.final.image, axis=1), 1.0, rtol=1e-12)
    assert run.series["temperature"].min() >= 0.06 - 1e-12
    assert run.series["temperature"].max() <= 0.08 + 1e-12


def test_adam_does_not_leave_a_tilted_hyperplane():
    flow = fs.GradientFlow(fs.Subspaces(40.0))
    final = fs.descend(flow, START, optimizer="adam", lr=1e-2, steps=100).final
    normal = np.zeros(final.text.shape[1])
    normal[-1], normal[-2] = np.cos(np.deg2rad(40.0)), np.sin(np.deg2rad(40.0))
    assert np.abs(final.image[:, -1]).max() < 1e-12
    assert np.abs(final.text @ normal).max() < 1e-12


def test_swaps_and_pairings_are_drawn_in_every_step():
    start = START.draw(0)

    def spread(schedule, pairing=fs.Matched()) -> float:
        flow = fs.GradientFlow(schedule=schedule, pairing=pairing)
        runs = [fs.descend(flow, start, optimizer="sgd", lr=0.05, steps=20, seed=seed) for seed in (1, 2, 3)]
        return float(np.ptp([run.series["modality_gap"][-1] for run in runs]))

    assert spread(Fixed(0.1)) == 0
    assert spread(fs.Schedule(Fixed(0.1), fs.HardSwap(0.5))) > 1e-6
    assert spread(Fixed(0.1), fs.FreshRepairing(0.5)) > 1e-6


def test_the_sigmoid_bias_is_trained_unless_locked():
    free = fs.descend(fs.GradientFlow(loss=fs.Sigmoid(-1.0)), START, optimizer="sgd", lr=1e-2, steps=5)
    locked = fs.descend(
        fs.GradientFlow(loss=fs.Sigmoid(-1.0, bias_rate=None)), START, optimizer="sgd", lr=1e-2, steps=5
    )
    assert free.series["bias"][-1] != free.series["bias"][0]
    assert "bias" not in locked.series


def test_a_diverging_run_ends_with_a_status():
    flow = fs.GradientFlow(fs.Unnormalized(), Fixed(0.01))
    run = fs.descend(flow, START, optimizer="sgd", lr=1e200, steps=50, throw=False)
    assert run.status.code is fs.Status.NON_FINITE
    assert np.isnan(run.series["modality_gap"][-1])
    with pytest.raises(fs.SimulationStopped, match="not finite"):
        fs.descend(flow, START, optimizer="sgd", lr=1e200, steps=50)


CONTINUED = {
    "sgd": (fs.GradientFlow(), "sgd", 0.01, {}),
    "adam": (fs.GradientFlow(), "adam", 0.01, {}),
    "adam, rates by step": (fs.GradientFlow(), "adam", optax.cosine_decay_schedule(0.01, 100), {}),
    "momentum, swaps": (fs.GradientFlow(schedule=fs.Schedule(Fixed(0.1), fs.HardSwap(0.5))), "momentum", 0.01, {}),
    "adamw, fresh pairs": (fs.GradientFlow(pairing=fs.FreshRepairing(0.5)), "adamw", 0.01, {}),
    "adam, schedule": (fs.GradientFlow(schedule=fs.temperature.Linear(0.05, 0.3)), "adam", 0.01, {"horizon": 100}),
    "lion, sigmoid": (fs.GradientFlow(loss=fs.Sigmoid(-1.0)), optax.lion, 0.01, {}),
    "adam, single precision": (fs.GradientFlow(), "adam", 0.01, {"precision": "float32"}),
}


@pytest.mark.parametrize(
    "name", [n if n in ("adam", "momentum, swaps") else pytest.param(n, marks=pytest.mark.slow) for n in CONTINUED]
)
def test_a_continued_run_is_the_whole_run(name, tmp_path):
    """40 + 60 steps are 100: the optimizer's state, its step, draws and schedules go on, also from a file."""
    flow, optimizer, lr, options = CONTINUED[name]
    once = fs.descend(flow, START, optimizer=optimizer, lr=lr, steps=100, seed=5, **options)
    head = fs.descend(flow, START, optimizer=optimizer, lr=lr, steps=40, seed=5, **options)
    precision = {k: v for k, v in options.items() if k == "precision"}
    again = fs.load(head.save(tmp_path / "run.nc"))
    more = fs.descend(flow, again, optimizer=optimizer, lr=lr, steps=60, **precision)
    assert more.time[-1] == pytest.approx(once.time[-1])
    rtol = 1e-5 if precision else 1e-12
    for key in ("modality_gap", "temperature", "loss"):
        assert more.series[key][-1] == pytest.approx(once.series[key][-1], rel=rtol)
    third = fs.descend(flow, more, optimizer=optimizer, lr=0.01, steps=5, **precision)
    assert third.config["options"]["step"] == 105


def test_another_optimizer_begins_with_a_state_of_its_own():
    head = fs.descend(fs.GradientFlow(), START, optimizer="adam", lr=0.01, steps=20)
    by_sgd = fs.descend(fs.GradientFlow(), head, optimizer="sgd", lr=0.01, steps=5)
    anew = fs.descend(
        fs.GradientFlow(schedule=Learnable(head.final["temperature"])),
        head.final.start,
        optimizer="sgd",
        lr=0.01,
        steps=5,
    )
    assert by_sgd.series["modality_gap"][-1] == pytest.approx(anew.series["modality_gap"][-1], rel=1e-9)


def test_a_run_without_its_optimizers_state_is_not_continued():
    head = fs.descend(fs.GradientFlow(), START, optimizer="adam", lr=0.01, steps=5)
    with pytest.raises(fs.FlowsimError, match="The state of the optimizer 'adam' in this run does not fit"):
        fs.descend(fs.GradientFlow(), dataclasses.replace(head, memory=()), optimizer="adam", lr=0.01, steps=5)
    options = {k: v for k, v in head.config["options"].items() if k != "step"}
    old = dataclasses.replace(head, config={**head.config, "options": options})
    with pytest.raises(fs.FlowsimError, match="saved without the state of its optimizer"):
        fs.descend(fs.GradientFlow(), old, optimizer="adam", lr=0.01, steps=5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimizer": "adm"}, r"Unknown optimizer 'adm'. Did you mean 'adam'"),
        ({"lr": -1.0}, "`lr` must be positive"),
        ({"lr": None}, "`lr` must be a number"),
        ({"steps": 0}, "`steps` must be a whole number of at least 1, but is 0. Use e.g. 10000"),
        ({"optimizer": 3}, "`optimizer` cannot be 3"),
        ({"optimizer": lambda lr: None}, "does not return an optax transformation"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(fs.FlowsimError, match=says):
        fs.descend(fs.GradientFlow(), START, **{"optimizer": "sgd", "lr": 1e-3, "steps": 5, **options})


def test_a_rule_and_an_optimizer_exclude_each_other():
    with pytest.raises(fs.FlowsimError, match="the optimizer makes the step"):
        fs.descend(fs.GradientFlow(rule=fs.AdamLimit()), START, optimizer="sgd", lr=1e-3, steps=5)
