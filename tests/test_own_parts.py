"""Parts that a user defines work like built-in ones: in runs, sweeps, files, comparisons, and on the command line."""

import dataclasses
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


class Sinking(AbstractTemperature):
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
    "policy": fs.GradientFlow(schedule=Sinking()),
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
            ["simulate", "--set", "schedule.temperature=Sinking", "--set", "schedule.temperature.end=0.2", "--t1", "1"]
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
    assert f"The class 'Sinking' of '{Sinking.__module__}' is not defined in this session." in done.stdout
    assert f"Import it first: from {Sinking.__module__} import Sinking" in done.stdout


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


# --- observables of states, stored sweeps, the command line ----------------------------------------------------


def speed(moment):
    """‖dθ/dt‖."""
    return jnp.sqrt(sum(jnp.sum(v**2) for v in jax.tree.leaves(moment.velocity.position)))


@pytest.mark.parametrize("geometry", [fs.Sphere(), fs.Parallel(), fs.Reduced(), fs.Unnormalized()])
def test_an_observable_of_states_sees_the_velocity(geometry):
    fs.observables.register(of="state", symbol="v")(speed)
    flow, start = fs.GradientFlow(geometry), fs.initial.matched(pairs=6, dim=3, gamma=0.3)
    run = fs.simulate(flow, start, ts=[0.0, 1.0], observables=["speed", "loss", "temperature"])
    with jax.enable_x64(True):
        state = flow.initial_state(start.draw(0))
        exact = flow.vector_field(0.0, state)
        wanted = np.sqrt(sum(float(np.sum(np.asarray(v) ** 2)) for v in jax.tree.leaves(exact.position)))
    assert run["speed"][0] == pytest.approx(wanted, rel=1e-12)
    assert run["speed"].attrs["long_name"] == "speed $v$"
    swept = fs.sweep(flow, start, {"seed": [0]}, ts=[0.0, 1.0], observables=["speed"])
    assert swept["speed"].values[0] == pytest.approx(run["speed"].values, rel=1e-9)
    # Along gradient flow without a learned temperature dL/dt = −‖dθ/dt‖² in the metric of the geometry.
    assert "speed" in fs.observables.names("state") and "speed" not in fs.observables.names()


def test_an_observable_of_states_is_none_of_rows():
    fs.observables.register(of="state")(speed)
    with pytest.raises(fs.FlowsimError, match="Unknown observable 'speed'"):
        fs.observables.report(np.eye(3), np.eye(3), only=["speed"])
    with pytest.raises(fs.FlowsimError, match="'speed' is not a function of rows. Record it in a run"):
        fs.check(fs.observables.REGISTRY["speed"])
    with pytest.raises(fs.FlowsimError, match="must take one argument, a `Moment`"):
        fs.observables.register(of="state", name="two")(lambda image, text: 0.0)
    with pytest.raises(fs.FlowsimError, match="is traced, and has no rows"):
        fs.observables.register(of="state", traceable=False)(speed)


def test_a_continued_run_and_at_record_the_same():
    fs.observables.register(of="state")(speed)
    run = fs.simulate(fs.GradientFlow(), START, t1=1.0, observables=["speed", "modality_gap"])
    assert fs.simulate(run.flow, run, t1=2.0).names == ["speed", "modality_gap"]
    assert set(run.at(0.1234).values) == {"speed", "modality_gap"}
    fs.observables.REGISTRY.remove("speed")  # as in another session
    assert set(run.at(0.1234).values) == {"modality_gap"}
    with pytest.raises(fs.FlowsimError, match="'alignment' was not recorded. Run again with observables="):
        run["alignment"]


def policy_of(factor):
    """A class as a cell of a notebook defines it, again and again."""

    class Scaled(AbstractTemperature):
        tau: Any = eqx.field(converter=fs.extend.number, default=0.07)

        def inverse_temperature(self, progress, raw=None):
            return factor / (self.tau + 0.0 * progress)

    return Scaled


@pytest.mark.parametrize("of", ["policy", "observable", "function"])
def test_a_stored_sweep_is_not_reused_for_other_code(of, tmp_path):
    def run(factor):
        schedule, names = fs.temperature.Fixed(0.1), ["temperature"]
        if of == "policy":
            schedule = policy_of(factor)()
        elif of == "function":
            schedule = fs.temperature.from_function(lambda u: factor * 0.1 + 0 * u, name="mine")
        else:
            names = ["scaled_gap"]
            fs.observables.register(name="scaled_gap")(lambda image, text: factor * jnp.sum(image - text))
        over = {"start.height": [0.3]}
        flow = fs.GradientFlow(schedule=schedule)
        return fs.sweep(flow, fs.initial.rings(), over, ts=[0.0, 0.1], observables=names, to=tmp_path / "s.zarr")

    first = run(1.0)
    again = run(1.0)
    np.testing.assert_array_equal(first.dataset.to_array().values, again.dataset.to_array().values)
    with pytest.raises(fs.FlowsimError, match=r"The code of .* is not that with which .*s\.zarr' was made"):
        run(2.0)


def test_digests_of_code():
    from flowsim.base.code import code_digest

    def function_of(body):
        found: dict[str, Any] = {}
        exec(f"def f(x):\n{body}", found)
        return found["f"]

    first = code_digest(function_of("    return x + 1"))
    assert code_digest(function_of('    """With words."""\n    return x + 1  # and a comment')) == first
    assert code_digest(function_of("    return x + 2")) != first
    assert code_digest(policy_of(1.0)) == code_digest(policy_of(1.0)) != code_digest(policy_of(2.0))
    assert code_digest(lambda x: x in {"a", "b", "c"}) == code_digest(lambda x: x in {"c", "b", "a"})


@pytest.mark.parametrize("module", ["__main__", "a-page", "missing.module"])
def test_processes_cannot_import_what_a_notebook_defines(module, monkeypatch):
    here = policy_of(1.0)
    here.__module__ = module
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    flow = fs.GradientFlow(schedule=here())
    with pytest.raises(fs.FlowsimError, match="Other processes cannot import 'Scaled', defined in this session"):
        fs.sweep(flow, START, {"seed": [0, 1]}, ts=[0.0, 0.1], executor="processes:2")
    assert fs.sweep(flow, START, {"seed": [0, 1]}, ts=[0.0, 0.1]).ok  # threads need no import


PARTS_FILE = """
import flowsim as fs


class FromFile(fs.temperature.AbstractTemperature):
    def inverse_temperature(self, progress, raw=None):
        return 5.0 + 0.0 * progress


@fs.observables.register
def first_cosine(image, text):
    return image[0] @ text[0]


fs.claims.register(
    fs.claims.Claim("from-a-file", "X.", "here", "none", lambda system, quick: {"x": 1.0}, at_most={"x": 1.0})
)
"""


def test_the_command_line_imports_parts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts_of_mine.py").write_text(PARTS_FILE)
    given = ["--import", "parts_of_mine.py"]
    monkeypatch.delitem(sys.modules, "parts_of_mine", raising=False)
    simulate = ["simulate", "--set", "schedule.temperature=FromFile", "--t1", "1", "--out", "run.nc"]
    assert cli.main([*simulate, "--observables", "first_cosine,temperature", *given]) == 0
    run = fs.load("run.nc")
    assert run.names == ["first_cosine", "temperature"]
    assert run["temperature"].values == pytest.approx(0.2)
    # As in Python, a policy is a schedule without swaps.
    assert cli.main(["simulate", "--set", "schedule=FromFile", "--t1", "1", "--out", "again.nc", *given]) == 0
    assert fs.load("again.nc").config["flow"] == run.config["flow"]
    assert cli.main(["claims", "from-a-file", *given]) == 0
    assert cli.main(["simulate", "--import", "missing.py"]) == 2
    assert cli.main(["simulate", "--import"]) == 2
    said = capsys.readouterr().err
    assert "There is no file 'missing.py'" in said
    assert "Option `--import` needs a .py file or a module" in said


def test_a_comparison_without_the_class_gives_what_it_can(tmp_path):
    run = fs.simulate(fs.GradientFlow(schedule=Sinking()), fs.initial.rings(), t1=1e3)
    lost = {**run.config, "flow": {**run.config["flow"], "schedule": {**run.config["flow"]["schedule"]}}}
    policy = {**lost["flow"]["schedule"]["temperature"], "kind": "Lost", "module": "elsewhere"}
    lost["flow"]["schedule"]["temperature"] = policy
    found = fs.compare(dataclasses.replace(run, config=lost), parts=["simulation", "exponent", "matching"])
    assert found["matching"].verdict != "cannot tell"
    for name in ("simulation", "exponent"):
        assert "The class 'Lost' of 'elsewhere' is not defined" in found[name].sentence


def test_a_comparison_names_other_parts():
    run = fs.simulate(fs.GradientFlow(loss=fs.DirectedInfoNCE()), fs.initial.rings(), t1=1e3)
    sentence = fs.compare(run, parts=["simulation"])["simulation"].sentence
    assert sentence.endswith("The simulation has InfoNCE and matched pairs, the run DirectedInfoNCE.")


class Undefined(AbstractPairing):
    """Targets that are not numbers."""

    redraw: ClassVar[None] = None
    fresh: ClassVar[bool] = False

    def targets(self, key, pairs, dtype):
        return fs.pairing.Targets(*[jnp.full((pairs, pairs), jnp.nan, dtype)] * 2)


def test_a_field_that_is_not_finite_ends_the_run_and_is_named():
    with pytest.raises(fs.FlowsimError, match=r"The vector field is not finite|vector field is not finite"):
        fs.simulate(fs.GradientFlow(pairing=Undefined()), START, t1=1e3)
