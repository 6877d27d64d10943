"""Schedules, presets, JSON and the path grammar."""

import csv
import json
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flowsim as fs
from flowsim.base.paths import get, replace
from flowsim.model.temperature import Fixed, Learnable, Linear, Softplus

TABLES = Path(__file__).parents[1] / "experiments" / "reference" / "tables.csv"


def same(a, b):
    la, sa = jax.tree.flatten(a)
    lb, sb = jax.tree.flatten(b)
    return sa == sb and all(np.array_equal(x, y) for x, y in zip(la, lb, strict=True))


def test_every_method_of_the_papers_tables_is_a_preset():
    with TABLES.open() as file:
        methods = {row["method"] for row in csv.DictReader(file)}
    # Removing the normalisation changes the geometry, not the schedule.
    assert methods - set(fs.schedules.names()) == {"No normalization"}


@pytest.mark.parametrize("name", fs.schedules.names())
def test_json_round_trip(name):
    schedule = fs.schedules.get(name)
    text = schedule.to_json()
    assert json.loads(text)["kind"] == "Schedule"
    assert same(fs.Schedule.from_json(text), schedule)


def test_flow_round_trip():
    flow = fs.GradientFlow(fs.Sphere(2.0), fs.schedules.get("TR scale 10"), pairing=fs.LabelNoise(0.1))
    assert same(fs.GradientFlow.from_config(json.loads(json.dumps(flow.to_config()))), flow)


def test_clamp_survives_json():
    schedule = fs.Schedule(Learnable(clamp=(0.01, 1.0)))
    assert same(fs.Schedule.from_json(schedule.to_json()), schedule)


def test_schedule_from_name_policy_and_file(tmp_path):
    assert same(fs.GradientFlow(schedule="TS S3").schedule, fs.Schedule(Linear(0.01, 0.05)))
    assert same(fs.GradientFlow(schedule=Fixed(0.1)).schedule, fs.Schedule(Fixed(0.1)))
    path = tmp_path / "mine.json"
    path.write_text(fs.schedules.get("SLRT 0.1").to_json())
    assert same(fs.schedules.load(str(path)), fs.schedules.get("SLRT 0.1"))


def test_replace_by_path():
    flow = fs.GradientFlow()
    new = flow.replace(**{"schedule.temperature.init": 0.1, "schedule.temperature.lr_ratio": 3.0})
    assert float(get(new, "schedule.temperature.init")) == 0.1
    assert float(get(new, "schedule.temperature.lr_ratio")) == 3.0
    assert float(get(flow, "schedule.temperature.init")) == 0.07
    assert jax.tree.structure(new) == jax.tree.structure(flow)
    both = flow.replace(**{"schedule": "TS S3", "schedule.temperature.end": 0.09})
    assert float(get(both, "schedule.temperature.end")) == 0.09
    structural = flow.replace(**{"schedule.temperature.parametrization": Softplus()})
    assert isinstance(get(structural, "schedule.temperature.parametrization"), Softplus)
    clamped = replace(fs.Schedule(Learnable(clamp=(0.01, 1.0))), {"temperature.clamp.1": 2.0})
    assert float(get(clamped, "temperature.clamp.1")) == 2.0


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.schedules.get("Baselin"), "Unknown schedule 'Baselin'. Did you mean 'Baseline'"),
        (lambda: fs.GradientFlow().replace(**{"schedule.temprature.init": 1}), "Did you mean 'schedule.temperature'"),
        (lambda: fs.GradientFlow().replace(**{"schedule.temperature.init.x": 1}), "goes too deep"),
        (lambda: fs.GradientFlow().replace(**{"loss.x": 1}), "has no fields"),
        (lambda: fs.GradientFlow().replace(**{"schedule.temperature.init": -1}), "must be positive, but is -1"),
        (lambda: fs.GradientFlow(schedule=3), "Expected a schedule"),
        (lambda: fs.Schedule.from_json("{"), "not valid JSON"),
        (lambda: fs.Schedule.from_json('{"kind": "Sched"}'), "Unknown kind 'Sched'. Did you mean 'Schedule'"),
        (lambda: fs.Schedule.from_json('{"kind": "Fixed", "tua": 1}'), "Unknown field of Fixed 'tua'"),
        (lambda: fs.Schedule.from_json('{"kind": "Fixed"}'), "Expected a Schedule"),
        (lambda: fs.Schedule.from_json("{}"), '"kind"'),
        (lambda: fs.schedules.load("nowhere.json"), "cannot be read"),
        (lambda: fs.HardSwap(1.5), "at most 1"),
        (lambda: fs.HardSwap(by="rows"), "Did you mean 'row'"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()


class Signed(fs.temperature.AbstractTemperature):
    """β = `start` − 2u."""

    start: Any = eqx.field(converter=fs.extend.number, default=1.0)

    def inverse_temperature(self, progress, raw=None):
        return self.start - 2 * progress


def test_a_policy_that_is_not_positive_is_refused_before_anything_is_solved():
    flow = fs.GradientFlow(schedule=Signed())
    with pytest.raises(fs.FlowsimError, match=r"The policy Signed gives β = 0.0 at progress 0.5"):
        fs.simulate(flow, fs.initial.rings(), t1=1.0)
    with pytest.raises(fs.FlowsimError, match=r"The policy Signed gives β = 0.0 at progress 0.75"):
        fs.sweep(flow, fs.initial.rings(), {"schedule.temperature.start": [2.5, 1.5]}, t1=1.0)


def test_numbers_are_single():
    with pytest.raises(fs.FlowsimError, match=r"array of shape \(2,\). To vary it, use fs.sweep"):
        fs.temperature.Fixed([0.1, 0.2])


def test_objects_show_their_numbers():
    assert repr(fs.initial.rings(pairs=5, height=0.3)) == "Rings(pairs=5, height=0.3, twist=-144)"
    text = repr(fs.GradientFlow.from_preset("TR scale 10"))
    assert "temperature=Learnable(init=0.07, parametrization=ScaledExp(scale=10), lr_ratio=1, clamp=None)" in text


def test_a_class_is_known_from_its_definition_on():
    schedule = fs.Schedule(Signed(3.0))
    assert fs.Schedule.from_json(schedule.to_json()).temperature == schedule.temperature
    with pytest.raises(fs.FlowsimError, match="flowsim already has a class named 'Fixed'. Choose another name"):
        type("Fixed", (Signed,), {})
    fixed = fs.Schedule.from_json(fs.Schedule(fs.temperature.Fixed(0.2)).to_json()).temperature
    assert isinstance(fixed, Fixed) and fixed.tau == 0.2


def test_a_class_that_this_session_does_not_know_is_named_with_its_module():
    text = fs.Schedule(Signed(3.0)).to_json()
    for module, cure in (
        ("policies", "Import it first: from policies import Unseen"),
        ("__main__", "Define it as in the session that wrote this"),
    ):
        odd = text.replace("Signed", "Unseen").replace(Signed.__module__, module)
        with pytest.raises(fs.FlowsimError, match=f"The class 'Unseen' of '{module}' is not defined.*{cure}"):
            fs.Schedule.from_json(odd)


def test_schedule_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(fs.FlowsimError, match=r"none.json' cannot be read: No such file or directory. Write one"):
        fs.schedules.load(str(tmp_path / "none.json"))
    (tmp_path / "odd.json").write_text('{"kind": "Exponential"}')
    with pytest.raises(fs.FlowsimError, match=r"odd.json: Unknown kind 'Exponential'.*must be defined first"):
        fs.schedules.load(str(tmp_path / "odd.json"))


# --- policies from points and from functions ------------------------------------------------------------


def test_points_are_joined_by_lines_or_steps():
    points = [(0.0, 0.07), (0.5, 0.02), (1.0, 0.04)]
    lines, steps = fs.temperature.piecewise(points), fs.temperature.piecewise(points, steps=True)
    u = np.linspace(0, 1.5, 31)
    np.testing.assert_allclose(lines.temperature(u), np.interp(u, *zip(*points, strict=True)), rtol=1e-14)
    np.testing.assert_allclose(steps.temperature(u), np.where(u < 0.5, 0.07, np.where(u < 1, 0.02, 0.04)), rtol=1e-14)
    schedule = fs.Schedule(lines)
    assert fs.Schedule.from_json(schedule.to_json()).temperature == lines


@pytest.mark.parametrize("steps", [False, True])
def test_a_run_ends_steps_where_the_temperature_jumps(steps):
    """Four runs, each with its own fixed temperature, are one run with a temperature in steps."""
    taus = (0.3, 0.1, 0.5)
    policy = fs.temperature.piecewise([(k / 3, tau) for k, tau in enumerate(taus)], steps=steps)
    start, ts = fs.initial.uniform(pairs=5, dim=4), [0.0, 1.0, 2.0, 3.0]
    run = fs.simulate(fs.GradientFlow(schedule=policy), start, ts=ts)
    assert run.stats["rejected"] < 40
    if steps:
        state: fs.Result | fs.initial.AbstractRecipe = start
        for k, tau in enumerate(taus):
            flow = fs.GradientFlow(schedule=fs.temperature.Fixed(tau))
            state = fs.simulate(flow, state, ts=[k, k + 1.0], horizon=3.0)
            assert run.series["modality_gap"][k + 1] == pytest.approx(state.final["modality_gap"], rel=1e-8)
    runs = fs.sweep(fs.GradientFlow(schedule=policy), start, {"schedule.temperature.points.1.1": [0.1, 0.2]}, ts=ts)
    assert runs.counts == {"COMPLETED": 2}
    assert runs["modality_gap"].values[0] == pytest.approx(run.series["modality_gap"], rel=1e-8)


def test_a_batch_reaches_a_last_output_time_that_is_the_end_of_the_schedule():
    runs = fs.sweep(fs.GradientFlow.from_preset("TS A1"), fs.initial.cones(pairs=6, dim=5), {"seed": range(6)}, t1=1e5)
    assert runs.counts == {"COMPLETED": 6}


def test_a_function_is_a_policy():
    policy = fs.temperature.from_function(lambda u: 0.07 * 0.1**u)
    line = fs.temperature.from_function(lambda u: 0.01 + 0.04 * jnp.clip(u, 0, 1))
    u = np.linspace(0, 1, 5)
    np.testing.assert_allclose(policy.temperature(u), 0.07 * 0.1**u, rtol=1e-15)
    start = fs.initial.rings()
    by_function = fs.simulate(fs.GradientFlow(schedule=line), start, t1=10.0)
    built_in = fs.simulate(fs.GradientFlow.from_preset("TS S3"), start, t1=10.0)
    np.testing.assert_allclose(by_function.series["modality_gap"], built_in.series["modality_gap"], rtol=1e-8)
    assert by_function.flow.schedule.temperature == line
    assert by_function.at(5.05)["temperature"] == pytest.approx(0.01 + 0.04 * 0.505)


def test_an_optax_schedule_is_a_policy():
    policy = fs.temperature.from_function(optax.cosine_decay_schedule(0.07, 1000, alpha=0.1), steps=1000)
    np.testing.assert_allclose(policy.temperature(np.array([0.0, 0.5, 1.0])), [0.07, 0.0385, 0.007], rtol=1e-12)
    assert fs.simulate(fs.GradientFlow(schedule=policy), fs.initial.rings(), t1=1.0).status.ok


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.temperature.piecewise([]), r"must be pairs \(progress, temperature\)"),
        (lambda: fs.temperature.piecewise([(0.0, 0.1), (0.0, 0.2)]), "must increase"),
        (lambda: fs.temperature.piecewise([(0.0, -0.1)]), "must be positive"),
        (lambda: fs.temperature.piecewise([(2.0, 0.1)]), "must be at most 1"),
        (lambda: fs.temperature.from_function(0.07), "Expected a function of progress, but got 0.07"),
        (lambda: fs.temperature.FromFunction("gone"), "The function 'gone' is not defined in this session"),
        (lambda: simulated(lambda u: 0.1 if u < 0.5 else 0.2), "cannot be compiled.*piecewise"),
        (lambda: simulated(lambda u: u - 0.5), r"gives β = -2.0 at progress 0"),
    ],
)
def test_points_and_functions_that_are_none_get_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()


def simulated(function):
    flow = fs.GradientFlow(schedule=fs.temperature.from_function(function))
    return fs.simulate(flow, fs.initial.rings(), t1=1.0)
