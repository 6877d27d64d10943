"""Results: labels, files, reprs."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
import xarray as xr

import flowsim as fs
from flowsim.records.load import load_any


@pytest.fixture(scope="module")
def result():
    return fs.simulate(fs.GradientFlow(), fs.initial.rings(), ts=np.concatenate([[0], np.geomspace(0.1, 100, 20)]))


@pytest.fixture(scope="module")
def cones():
    return fs.simulate(fs.GradientFlow(fs.Parallel()), fs.initial.uniform(5, 4, gamma=0.2), t1=5.0, throw=False)


def test_labelled_series(result):
    array = result["modality_gap"]
    assert isinstance(array, xr.DataArray)
    assert array.dims == ("time",)
    assert array.attrs["long_name"] == r"modality gap $\Delta$"
    assert array.time.attrs["long_name"] == "flow time $t$"
    # xarray would add them to the labels: "flow time t [flow time]".
    assert "units" not in array.attrs | array.time.attrs
    np.testing.assert_array_equal(array.time, result.time)
    assert set(result.to_xarray().data_vars) >= {"modality_gap", "temperature", "loss", "margin"}
    with pytest.raises(fs.FlowsimError, match="Did you mean 'modality_gap'"):
        result["modalty_gap"]


@pytest.mark.parametrize("which", ["result", "cones"])
def test_save_and_load_round_trip(which, tmp_path, request):
    saved = request.getfixturevalue(which)
    path = saved.save(tmp_path / "sub" / "run.nc")
    assert [p.name for p in path.parent.iterdir()] == ["run.nc"]
    loaded = fs.load(path)
    for name, values in saved.series.items():
        np.testing.assert_array_equal(loaded.series[name], values)
    assert loaded.status == saved.status
    assert loaded.config == saved.config
    assert loaded.versions == saved.versions
    np.testing.assert_array_equal(loaded.final.image, saved.final.image)
    assert loaded.final.gamma == saved.final.gamma
    t = 0.5 * saved.time[3] + 0.5 * saved.time[4]
    assert loaded.at(t)["modality_gap"] == pytest.approx(saved.at(t)["modality_gap"], abs=1e-8)


def as_training(result, **fields):
    """A record of training with the series of a simulation."""
    common = {f.name: getattr(result, f.name) for f in dataclasses.fields(fs.Result)}
    return fs.TrainingRecord(**{**common, "config": {"kind": "training"}, **fields})


def test_records_of_training_keep_their_steps_and_their_clock(result, tmp_path):
    rates, steps = np.linspace(0.1, 1.0, 40), np.arange(len(result.time))
    record = as_training(
        result, clock="sum of learning rates", coordinates={"step": steps}, training={"learning_rate": rates}
    )
    loaded = fs.load(record.save(tmp_path / "run.nc"))
    assert loaded.clock == "sum of learning rates"
    np.testing.assert_array_equal(loaded["learning_rate"], rates)
    assert loaded["learning_rate"].dims == ("train_step",)
    np.testing.assert_array_equal(loaded["modality_gap"].step, steps)
    assert loaded["modality_gap"].time.attrs["clock"] == "sum of learning rates"
    assert "sum of learning rates" in repr(loaded)
    assert fs.load(result.save(tmp_path / "flow.nc")).clock == "flow time"


def test_several_results_in_one_file(result, cones, tmp_path):
    path = fs.save_results({"rings, seed 0": result, "cones": cones}, tmp_path / "runs.nc")
    loaded = fs.load_results(path)
    assert loaded.keys() == load_any(path).keys() == {"rings, seed 0", "cones"}
    for name, saved in (("rings, seed 0", result), ("cones", cones)):
        for key, values in saved.series.items():
            np.testing.assert_array_equal(loaded[name].series[key], values)
        assert loaded[name].status == saved.status
    assert list(fs.load_results(path, ["cones"])) == ["cones"]
    with pytest.raises(fs.FlowsimError, match="Unknown run 'cone'. Did you mean 'cones'?"):
        fs.load_results(path, ["cone"])
    single = result.save(tmp_path / "run.nc")
    assert list(load_any(single)) == [str(single)]
    with pytest.raises(fs.FlowsimError, match=r"does not hold several results. Read it with `fs.load`"):
        fs.load_results(single)
    with pytest.raises(fs.FlowsimError, match="is not a flowsim result. It holds several: read them with `fs.load_res"):
        fs.load(path)
    with pytest.raises(fs.FlowsimError, match="must not be empty or contain '/'"):
        fs.save_results({"a/b": result}, path)
    with pytest.raises(fs.FlowsimError, match="There is no file"):
        fs.load_results(tmp_path / "missing.nc")


def test_continue_a_loaded_run(result, tmp_path):
    loaded = fs.load(result.save(tmp_path / "run.nc"))
    tail = fs.simulate(loaded.flow, loaded, ts=[100.0, 1000.0])
    direct = fs.simulate(loaded.flow, fs.initial.rings(), ts=[0.0, 1000.0])
    assert tail.series["temperature"][-1] == pytest.approx(direct.series["temperature"][-1], rel=1e-7)


def test_the_flow_of_a_result(cones, result):
    assert isinstance(cones.flow, fs.GradientFlow)
    assert cones.flow.to_config() == fs.GradientFlow(fs.Parallel()).to_config()
    changed = fs.GradientFlow(schedule=fs.temperature.Fixed(0.3), pairing=fs.LabelNoise(0.2))
    assert dataclasses.replace(result, config={"flow": changed.to_config()}).flow.to_config() == changed.to_config()
    with pytest.raises(fs.FlowsimError, match="it is a record of training. To simulate from its embeddings"):
        _ = as_training(result).flow


@pytest.fixture(scope="module")
def said(result, tmp_path_factory):
    """What calls with arguments of the wrong kind say, in one session without run-time type checks."""
    folder = tmp_path_factory.mktemp("kinds")
    result.save(folder / "run.nc")
    setup = (
        "import json, matplotlib; matplotlib.use('Agg')\n"
        "import flowsim as fs, matplotlib.pyplot as plt\n"
        "run, found = fs.load('run.nc'), {}\n"
    )
    calls = (
        f"try:\n    {call}\nexcept fs.FlowsimError as error:\n    found[{call!r}] = str(error)\n"
        for call in WRONG_KINDS
    )
    code = setup + "".join(calls) + "print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


WRONG_KINDS = {
    "run.at('1')": "`t` must be a number, but is '1'",
    "run.at(None)": "`t` must be a number, but is None",
    "fs.load(3)": "Expected the path of a saved result, but got int",
    "fs.load_results(3)": "Expected the path of a saved result, but got int",
    "fs.simulate(run.flow, fs.initial.rings(), t1='1e5')": "`t1` must be a number, but is '1e5'. Use e.g. t1=1e5.",
    "fs.simulate(run.flow, fs.initial.rings(), t1=[1.0, 2.0])": "`t1` must be a number",
    "fs.simulate(run.flow, fs.initial.rings(), ts=['soon'])": "`ts` must hold numbers",
    "fs.initial.rings(pairs='5')": "at least 2, but is the text '5'",
    "fs.initial.cones(dim='8')": "at least 3, but is the text '8'",
    "fs.initial.latents(factors='4')": "at least 1, but is the text '4'",
    "fs.plot.gap(run, 3)": "`ax` must be one matplotlib Axes, but is int",
    "fs.plot.overview(run, plt.subplots()[1])": "Give a list of 4 Axes",
    "fs.plot.phase_diagram(run, 'a', 'b')": "Expected one variable of a sweep, but got Simulation",
}


@pytest.mark.parametrize("call", WRONG_KINDS)
def test_wrong_kinds_get_one_sentence(call, said):
    assert WRONG_KINDS[call] in said[call]


def test_an_interrupted_write_leaves_the_old_file(result, tmp_path, monkeypatch):
    path = result.save(tmp_path / "run.nc")
    before = path.read_bytes()

    def fail(self, target, **_):
        with open(target, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", fail)
    with pytest.raises(fs.FlowsimError, match="No space left on device"):
        result.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


def test_one_name_is_one_observable_on_every_geometry(result, cones):
    """`margin` and `matched_fraction` of runs are those of reports, also on cones; theirs of directions are apart."""
    names = ["gamma", "margin", "direction_margin", "matched_fraction", "direction_matched_fraction"]
    flow, start = fs.GradientFlow(fs.Reduced()), fs.initial.simplex(5, 0.4)
    reduced = fs.simulate(flow, start, t1=5.0, observables=names)
    for run in (result, cones, reduced):
        for snapshot in (run._snapshot(0), run.final):
            report = fs.observables.report(snapshot.image, snapshot.text, only=["margin", "matched_fraction"])
            assert snapshot["margin"] == pytest.approx(report["margin"], abs=1e-12)
            assert snapshot["matched_fraction"] == report["matched_fraction"]
    for run in (cones, reduced):
        start = run.final.start
        assert run.final["direction_margin"] == pytest.approx(fs.observables.margin(start.image, start.text), abs=1e-12)
        np.testing.assert_allclose(
            run.series["margin"], (1 - run.series["gamma"] ** 2) * run.series["direction_margin"], atol=1e-12
        )
    np.testing.assert_array_equal(reduced.series["matched_fraction"], reduced.series["direction_matched_fraction"])
    assert np.abs(cones.series["margin"] - cones.series["direction_margin"]).max() > 0.01
    assert not {"direction_margin", "direction_matched_fraction"} & result.series.keys()
    assert cones["direction_margin"].attrs["long_name"] == r"direction margin $\alpha_H$"


def test_older_files_call_the_margin_of_directions_margin(result, cones, tmp_path):
    for run in (result, cones):
        older = run.to_xarray().assign_attrs(schema_version=1)
        if run is cones:
            older = older.drop_vars("margin")
            older = older.rename(direction_margin="margin")
        older.to_netcdf(tmp_path / "older.nc", engine="h5netcdf")
        loaded, now = fs.load(tmp_path / "older.nc"), "direction_margin" if run is cones else "margin"
        np.testing.assert_array_equal(loaded.series[now], run.series[now])
        assert ("margin" in loaded.series) == (run is result)


def test_files_that_are_not_ours(result, tmp_path):
    with pytest.raises(fs.FlowsimError, match="There is no file"):
        fs.load(tmp_path / "missing.nc")
    (tmp_path / "text.nc").write_text("hello")
    with pytest.raises(fs.FlowsimError, match="Cannot read"):
        fs.load(tmp_path / "text.nc")
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(fs.FlowsimError, match="not a flowsim result"):
        fs.load(tmp_path / "foreign.nc")
    xr.Dataset(attrs={"kind": "flowsim sweep"}).to_netcdf(tmp_path / "sweep.nc", engine="h5netcdf")
    with pytest.raises(fs.FlowsimError, match="It is a sweep: read it with `fs.load_sweep`"):
        fs.load(tmp_path / "sweep.nc")
    newer = result.to_xarray().assign_attrs(schema_version=99)
    newer.to_netcdf(tmp_path / "newer.nc", engine="h5netcdf")
    with pytest.raises(fs.FlowsimError, match="schema version 99.*Upgrade flowsim"):
        fs.load(tmp_path / "newer.nc")
    with pytest.raises(fs.FlowsimError, match="end in .nc"):
        result.save(tmp_path / "run.pkl")
    (tmp_path / "file").write_text("")
    with pytest.raises(fs.FlowsimError, match="Cannot write"):
        result.save(tmp_path / "file" / "run.nc")


def test_reprs_are_readable(result, cones):
    text = repr(result)
    assert "modality_gap" in text
    assert "Dopri8" in text
    assert "steps" in text
    assert "<table>" in result._repr_html_()
    assert "conserved quantity" in repr(cones)
    assert "t=" in repr(result.final)


def test_at_outside_the_run(result):
    with pytest.raises(fs.FlowsimError, match="outside the run"):
        result.at(1e9)


def test_reduced_from_similarity_says_why_vectors_are_missing():
    result = fs.simulate(fs.GradientFlow(fs.Reduced()), fs.initial.from_similarity(np.eye(5), 0.3), t1=10.0)
    assert np.isnan(result.series["modality_gap"]).all()
    assert "only similarities" in result.reasons["modality_gap"]
    assert np.isfinite(result.series["gamma"]).all()
    assert result.final.image is None
    assert "only similarities" in repr(result)
