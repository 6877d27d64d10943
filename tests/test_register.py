"""Observables of users, and the table that holds all: names, labels, reports, runs, sweeps."""

import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim import observables as obs
from flowsim.errors import FlowsimError
from flowsim.integrate.observe import STATE_OBSERVABLES
from flowsim.observables import large, reports

RNG = np.random.default_rng(0)
IMAGE, TEXT = RNG.normal(size=(2, 12, 5))
START = fs.initial.uniform(pairs=5, dim=4)
TS = [0.0, 0.5, 2.0]


def far(image, text):
    """max ‖x_i − y_i‖, in [0, 2], lower is closer

    More about it.
    """
    return jnp.max(jnp.linalg.norm(image - text, axis=1))


def far_of(image, text):
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    return np.max(np.linalg.norm(image - text, axis=1))


def test_one_function_in_reports_runs_and_sweeps():
    assert obs.register(far) is far
    assert obs.names()[-1] == "far"
    report = obs.report(IMAGE, TEXT)
    assert report["far"] == pytest.approx(far_of(IMAGE, TEXT), rel=1e-14)
    assert "max ‖x_i − y_i‖, in [0, 2], lower is closer" in repr(report)
    assert obs.report(IMAGE, TEXT[:9]).reasons["far"].startswith("needs pairs")
    assert list(obs.report(IMAGE, TEXT, only=["far"]).values) == ["far"]
    names = ("modality_gap", "far")
    result = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=names)
    assert result["far"].attrs["long_name"] == "far"
    for t, found in zip(TS, result.series["far"], strict=True):
        snapshot = result.at(t)
        assert found == pytest.approx(obs.report(snapshot.image, snapshot.text)["far"], rel=1e-12)
    streamed = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=names, snapshots=[0.0])
    np.testing.assert_allclose(streamed.series["far"], result.series["far"], rtol=1e-8)
    runs = fs.sweep(fs.GradientFlow(), START, {"seed": [0, 1]}, ts=TS, observables=names)
    np.testing.assert_allclose(runs["far"][0], result.series["far"], rtol=1e-6)


def test_what_cannot_be_traced_is_called_on_the_host():
    called = []

    @obs.register(name="far", traceable=False)
    def _(image, text):
        assert isinstance(image, np.ndarray)
        assert image.dtype == np.float64
        called.append(len(image))
        return max(np.linalg.norm(x - y) for x, y in zip(image, text, strict=True))

    assert obs.report(IMAGE, TEXT)["far"] == pytest.approx(far_of(IMAGE, TEXT), rel=1e-14)
    assert called == [12]
    names = ("far", "linear_separability", "loss")
    result = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=names)
    last = result.final
    assert last["far"] == pytest.approx(far_of(last.image, last.text), rel=1e-12)
    assert last["linear_separability"] == obs.linear_separability(last.image, last.text)
    streamed = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=names, snapshots=[0.0])
    np.testing.assert_allclose(streamed.series["far"], result.series["far"], rtol=1e-8)
    runs = fs.sweep(fs.GradientFlow(), START, {"seed": [0, 1]}, ts=TS, observables=names)
    np.testing.assert_allclose(runs["far"][0], result.series["far"], rtol=1e-6)


def test_a_cell_that_runs_again_replaces_its_observable():
    flow = fs.GradientFlow()
    for factor in (1.0, 3.0):

        @obs.register(name="constant")
        def _(image, text, factor=factor):
            return jnp.asarray(factor)

        assert obs.report(IMAGE, TEXT)["constant"] == factor
        assert fs.simulate(flow, START, ts=TS, observables=["constant"]).final["constant"] == factor
        streamed = fs.simulate(flow, START, ts=TS, observables=["constant"], snapshots=[0.0])
        assert streamed.series["constant"][1] == factor
        runs = fs.sweep(flow, START, {"seed": [0]}, ts=TS, observables=["constant"])
        assert runs["constant"].values[0, -1] == factor


def test_temperature_is_passed_where_it_is_asked_for():
    @obs.register(symbol=r"$\tau^2$")
    def squared(image, text, temperature):
        return temperature**2

    assert obs.REGISTRY["squared"].needs_temperature
    assert obs.REGISTRY["squared"].label == r"squared $\tau^2$"
    assert fs.plot.label("squared") == r"squared $\tau^2$"
    assert obs.report(IMAGE, TEXT, temperature=0.5)["squared"] == 0.25
    assert obs.report(IMAGE, TEXT).reasons["squared"] == "needs a temperature: pass temperature=τ"
    result = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=["temperature", "squared"])
    np.testing.assert_allclose(result.series["squared"], result.series["temperature"] ** 2, rtol=1e-15)


def test_rows_are_scaled_unless_told_otherwise():
    for normalise in (True, False):

        @obs.register(name="length", normalise=normalise, needs_pairs=False)
        def _(image, text):
            return jnp.linalg.norm(image[0])

        wanted = 1.0 if normalise else np.linalg.norm(IMAGE[0])
        assert obs.report(IMAGE, TEXT)["length"] == pytest.approx(wanted, rel=1e-14)
        assert obs.report(IMAGE, TEXT[:9])["length"] == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("traceable", [True, False])
def test_large_reports_give_all_rows_at_once(monkeypatch, traceable):
    obs.register(name="far", traceable=traceable)(far if traceable else far_of)
    monkeypatch.setattr(reports, "AT_ONCE", 10)
    monkeypatch.setattr(large, "EXACT", 10)
    said = []
    found = obs.report(IMAGE.astype(np.float32), TEXT.astype(np.float32), progress=lambda text, *_: said.append(text))
    assert found["far"] == pytest.approx(far_of(IMAGE, TEXT), rel=1e-5)
    assert "far" not in found.samples
    assert "far" in said


def test_undefined_values_say_why():
    @obs.register(undefined="it always is")
    def nothing(image, text):
        return jnp.asarray(jnp.nan)

    @obs.register
    def nothing_more(image, text):
        return jnp.asarray(jnp.nan)

    report = obs.report(IMAGE, TEXT)
    assert report.reasons["nothing"] == "undefined: it always is"
    assert report.reasons["nothing_more"] == "undefined"
    result = fs.simulate(fs.GradientFlow(), START, ts=TS, observables=["nothing"])
    assert result.reasons["nothing"].startswith("it always is (at 3 times")


def test_own_metrics_do_not_change_by_a_users():
    before = obs.report(IMAGE, TEXT, temperature=0.1).values
    obs.register(far)
    after = obs.report(IMAGE, TEXT, temperature=0.1).values
    assert {name: after[name] for name in before} == before


def test_flows_without_rows_say_so():
    obs.register(far)
    start = fs.initial.from_similarity(np.eye(4) * 0.9 + 0.1, gamma=0.3)
    result = fs.simulate(fs.GradientFlow(fs.Reduced()), start, ts=TS, observables=["far", "gamma"])
    assert result.reasons["far"] == "needs rows, but the start holds only similarities"


@pytest.mark.parametrize("name", ["modality_gap", "gamma", "learning_rate", "time", "snapshot_mine", "seed", "status"])
def test_names_of_flowsim_are_refused(name):
    with pytest.raises(FlowsimError, match=f"flowsim uses the name '{name}' itself. Pass another `name`."):
        obs.register(far, name=name)
    assert all(obs.REGISTRY.is_ours(name) for name in obs.REGISTRY)


def test_bad_observables_are_refused():
    with pytest.raises(FlowsimError, match="must be a Python name, but is 'two words'"):
        obs.register(far, name="two words")
    with pytest.raises(FlowsimError, match="must be a Python name, but is '<lambda>'"):
        obs.register(lambda image, text: 0.0)
    with pytest.raises(FlowsimError, match="Only a function can be an observable, but got 3"):
        obs.register(3)
    with pytest.raises(
        FlowsimError, match=r"must take \(image, text\) or \(image, text, temperature\), but takes \(x\)"
    ):
        obs.register(lambda x: x, name="x")
    with pytest.raises(FlowsimError, match="'far' cannot be traced.*jax.numpy, or pass traceable=False"):
        obs.register(far_of, name="far")
    with pytest.raises(FlowsimError, match=r"'rows' must be one number, but has shape \(4,\)"):
        obs.register(lambda image, text: image[:, 0], name="rows")
    obs.register(lambda image, text: image[:, 0], name="rows", traceable=False)
    with pytest.raises(FlowsimError, match=r"'rows' must be one number, but has shape \(12,\)"):
        obs.report(IMAGE, TEXT)


def test_mistakes_that_depend_on_the_rows_show_in_use():
    @obs.register
    def tenth(image, text):
        if image.shape[1] < 10:
            raise ValueError("ten dimensions are needed")
        return image[0, 9]

    with pytest.raises(ValueError, match="ten dimensions are needed"):
        obs.report(IMAGE, TEXT)


def test_one_table_holds_everything():
    assert set(obs.names("state")) | set(obs.names()) >= STATE_OBSERVABLES.keys() >= set(obs.names("state"))
    assert set(obs.names("step")) == {"train_loss", "train_temperature", "train_modality_gap", "learning_rate"}
    for name, entry in obs.REGISTRY.items():
        assert entry.name == name
        assert entry.description
        assert entry.label == fs.plot.label(name)
    assert fs.plot.label("inverse_temperature") == r"inverse temperature $\beta$"
    assert fs.plot.label("gamma") == r"cone height $\gamma$"
    assert fs.plot.label("seen_modality_gap") == "seen modality gap"
    with pytest.raises(FlowsimError, match="not a function of rows"):
        obs.REGISTRY["gamma"](IMAGE, TEXT)
    with pytest.raises(FlowsimError, match="Unknown observable 'gamma'"):
        obs.report(IMAGE, TEXT, only=["gamma"])
