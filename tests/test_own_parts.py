"""Parts that a user defines work like built-in ones: in runs, sweeps, files, comparisons, and on the command line."""

import subprocess
import sys
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim import cli
from flowsim.model.pairing import AbstractPairing
from flowsim.model.temperature import AbstractTemperature

START = fs.initial.uniform(pairs=6, dim=5)


class Falling(AbstractTemperature):
    """τ = start · (end/start)^u."""

    start: Any = eqx.field(converter=fs.extend.number, default=0.5)
    end: Any = eqx.field(converter=fs.extend.number, default=0.05)

    def inverse_temperature(self, progress, raw=None):
        u = fs.extend.namespace(progress).clip(progress, 0.0, 1.0)
        return (self.start / self.end) ** u / self.start


class TrainedLog(AbstractTemperature):
    """CLIP's temperature, written a second time: β = e^ν."""

    init: Any = eqx.field(converter=fs.extend.number, default=0.07)
    learnable: ClassVar[bool] = True
    autonomous: ClassVar[bool] = True

    def inverse_temperature(self, progress, raw=None):
        return 1 / self.init if raw is None else fs.extend.namespace(raw).exp(raw)

    def initial_raw(self):
        return -np.log(self.init)

    def derivative(self, progress, raw):
        return fs.extend.namespace(raw).exp(raw)


class Shuffled(AbstractPairing):
    """`FreshRepairing`, written a second time."""

    fraction: Any = eqx.field(converter=fs.extend.number, default=0.5)
    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = True

    def targets(self, key, pairs, dtype):
        return fs.FreshRepairing(self.fraction).targets(key, pairs, dtype)

    def draw(self, key, pairs, dtype):
        return fs.FreshRepairing(self.fraction).draw(key, pairs, dtype)


class Square(fs.losses.AbstractLoss):
    """(1/2n) Σ (M_ij − T_ij)²."""

    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def value(self, logits, targets):
        return jnp.sum((logits - jnp.eye(len(logits))) ** 2) / (2 * len(logits))

    def gradient(self, logits, targets):
        return (logits - jnp.eye(len(logits))) / len(logits)


FLOWS = {
    "policy": fs.GradientFlow(schedule=Falling()),
    "learnable": fs.GradientFlow(schedule=TrainedLog()),
    "pairing": fs.GradientFlow(pairing=Shuffled()),
    "loss": fs.GradientFlow(schedule=fs.temperature.Fixed(0.5), loss=Square()),
}


@pytest.mark.parametrize("flow", FLOWS.values(), ids=FLOWS)
def test_a_run_can_be_looked_at_saved_swept_and_compared(flow, tmp_path):
    run = fs.simulate(flow, START, t1=10.0)
    assert run.flow.to_config() == flow.to_config()
    between = (run.time[100] + run.time[101]) / 2
    assert np.isfinite(run.at(between)["modality_gap"])
    loaded = fs.load(run.save(tmp_path / "run.nc"))
    assert loaded.flow.to_config() == flow.to_config()
    assert loaded.at(between)["modality_gap"] == pytest.approx(run.at(between)["modality_gap"], rel=1e-9)
    longer = (
        fs.simulate(loaded.flow, fs.simulate(flow, START, t1=5.0, horizon=10.0), t1=10.0)
        if (not flow.schedule.temperature.learnable)
        else None
    )
    if longer is not None:
        assert longer.series["modality_gap"][-1] == pytest.approx(run.series["modality_gap"][-1], rel=1e-6)
    runs = fs.sweep(flow, START, {"seed": [0, 1]}, t1=10.0)
    assert runs["modality_gap"].values[0] == pytest.approx(run.series["modality_gap"], rel=1e-6)
    assert fs.compare(run).verdicts


def test_a_fresh_pairing_is_drawn_in_every_step():
    ours, own = (
        fs.descend(fs.GradientFlow(pairing=p), START, "adam", 1e-2, 100, seed=3)
        for p in (fs.FreshRepairing(0.5), Shuffled(0.5))
    )
    np.testing.assert_array_equal(own.series["modality_gap"], ours.series["modality_gap"])


@pytest.mark.parametrize("rule", [fs.GradientDescent(), fs.AdamLimit(1e-2)], ids=repr)
def test_a_learnable_policy_moves_like_the_built_in_one(rule):
    ours, own = (
        fs.simulate(fs.GradientFlow(schedule=p, rule=rule), START, t1=2.0)
        for p in (fs.temperature.Learnable(), TrainedLog())
    )
    np.testing.assert_allclose(own.series["temperature"], ours.series["temperature"], rtol=1e-7)
    with pytest.raises(fs.FlowsimError, match="TrainedLog cannot continue this run: it does not define `raw_of`"):
        fs.simulate(fs.GradientFlow(schedule=TrainedLog()), ours, t1=4.0)


def test_the_command_line_knows_it(capsys):
    assert (
        cli.main(
            ["simulate", "--set", "schedule.temperature=Falling", "--set", "schedule.temperature.end=0.2", "--t1", "1"]
        )
        == 0
    )
    assert "modality_gap" in capsys.readouterr().out


def test_a_learnable_policy_without_a_derivative_says_so():
    class Half(AbstractTemperature):
        learnable: ClassVar[bool] = True

        def inverse_temperature(self, progress, raw=None):
            return raw

        def initial_raw(self):
            return np.float64(2.0)

    with pytest.raises(NotImplementedError, match="Half is learnable and must define `derivative`"):
        fs.simulate(fs.GradientFlow(schedule=Half()), START, t1=1.0)


def test_a_file_loads_without_the_class_but_for_its_flow(tmp_path):
    path = fs.simulate(FLOWS["policy"], START, t1=10.0).save(tmp_path / "run.nc")
    code = f"""
import flowsim as fs
run = fs.load({str(path)!r})
print(run.series["modality_gap"][-1], run.final.image.shape, run["temperature"].dims)
try:
    run.flow
except fs.FlowsimError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert "(6, 5) ('time',)" in done.stdout
    assert f"The class 'Falling' of '{Falling.__module__}' is not defined in this session." in done.stdout
    assert f"Import it first: from {Falling.__module__} import Falling" in done.stdout


def test_a_class_that_is_defined_again_takes_the_place_of_the_first():
    def again(tau):
        class Twice(fs.temperature.AbstractTemperature):
            def inverse_temperature(self, progress, raw=None):
                return 1 / tau + 0.0 * progress

        return Twice

    again(0.1)
    second = again(0.4)
    policy = fs.Schedule.from_json(fs.Schedule(second()).to_json()).temperature
    assert float(policy.temperature(0.0)) == pytest.approx(0.4)
    assert jax.config.read("jax_enable_x64") is False
