"""`sweep`: the same as `simulate` run by run, in few programs; storage, resumption, errors."""

import itertools
import threading

import jax
import numpy as np
import pytest
import xarray as xr

import flowsim as fs
from flowsim.base import paths
from flowsim.integrate.options import Options
from flowsim.integrate.sweep import batch, grid
from flowsim.integrate.sweep import run as sweeps
from flowsim.model.losses import InfoNCE
from flowsim.numerics import compilation

FLOW = fs.GradientFlow(fs.Parallel())
START = fs.initial.uniform(8, 2, gamma=0.1)
TIMES = [0.0, 0.05, 0.2, 1.0]
OVER = {"schedule.temperature.init": [0.07, 0.1], "start.gamma": [0.1, -0.2], "seed": [0, 1]}
NAMES = ("modality_gap", "temperature", "gamma", "loss")


def one_by_one(flow, start, **values):
    """What `simulate` makes of one point of the grid."""
    seed = values.pop("seed", 0)
    inner = {k.removeprefix("start."): values.pop(k) for k in list(values) if k.startswith("start.")}
    start = paths.replace(start, inner) if inner else start
    return fs.simulate(flow.replace(**values), start, ts=TIMES, seed=seed, throw=False)


def assert_same(run: xr.Dataset, result):
    """A point of a sweep and a result of `simulate` hold the same, NaN where nothing was reached."""
    assert run["status"].item() == result.status.code.name
    assert run["stopped_at"].item() == pytest.approx(result.status.stopped_at, rel=1e-9)
    assert run["steps"].item() == result.stats["steps"]
    assert set(result.series) == set(run.data_vars) - {"status", "stopped_at", "steps"}
    for name, values in result.series.items():
        np.testing.assert_allclose(run[name], values, rtol=1e-9, atol=1e-9, err_msg=name)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """(eight runs, the folder they are in)."""
    folder = tmp_path_factory.mktemp("sweep") / "runs.zarr"
    return fs.sweep(FLOW, START, OVER, ts=TIMES, to=folder), folder


def test_every_run_is_what_simulate_gives(stored):
    """Over numbers, numbers of the recipe and seeds; labels belong to their values."""
    runs, _ = stored
    assert runs["modality_gap"].dims == (*OVER, "time")
    assert runs["modality_gap"].dtype == np.float64
    assert not jax.config.read("jax_enable_x64")
    np.testing.assert_array_equal(runs.dataset["time"], TIMES)
    compared = [compare(runs, point) for point in points() if runs.dataset.sel(point)["status"] == "COMPLETED"]
    assert len(compared) == runs.counts["COMPLETED"] >= 4


@pytest.mark.slow
def test_runs_that_end_early_are_what_simulate_gives(stored):
    runs, _ = stored
    assert [compare(runs, point) for point in points() if runs.dataset.sel(point)["status"] == "GAMMA_ONE"]


def points():
    return [dict(zip(OVER, values, strict=True)) for values in itertools.product(*OVER.values())]


def compare(runs, point):
    assert_same(runs.dataset.sel(point), one_by_one(FLOW, START, **point))


def test_each_run_has_its_own_status(stored):
    """Beside runs that complete, one that reaches γ = 1 at t = 0.115: NaN afterwards, for it alone."""
    runs, _ = stored
    ended = runs.dataset.sel({"schedule.temperature.init": 0.07, "start.gamma": 0.1, "seed": 1})
    assert ended["status"].item() == "GAMMA_ONE"
    assert ended["stopped_at"].item() == pytest.approx(0.115, abs=5e-4)
    assert np.isfinite(ended["gamma"][:2]).all()
    assert np.isnan(ended["gamma"][2:]).all()
    going = runs.dataset.where(runs["status"] == "COMPLETED", drop=True)
    assert np.isfinite(going["gamma"].to_numpy()).any()
    assert runs.counts["COMPLETED"] + runs.counts["GAMMA_ONE"] == 8
    assert not runs.ok
    for part in ("2 seed", "GAMMA_ONE", "modality_gap"):
        assert part in repr(runs)


def test_side_by_side_with_presets():
    """mode="zip": presets by name, recipe and seed vary together along `run`."""
    over = {"schedule": ["Baseline", "SLRT 0.1"], "start.gamma": [0.05, 0.3], "seed": [4, 5]}
    runs = fs.sweep(FLOW, START, over, ts=TIMES, mode="zip")
    assert runs["loss"].dims == ("run", "time")
    assert runs.dataset["schedule"].to_numpy().tolist() == over["schedule"]
    for i, values in enumerate(zip(*over.values(), strict=True)):
        assert_same(runs.dataset.isel(run=i), one_by_one(FLOW, START, **dict(zip(over, values, strict=True))))


MATCHED = fs.initial.matched(8, 2)


def test_programs_do_not_grow_with_the_number_of_values(stored, monkeypatch):
    """Other numbers, seeds, and three times as many runs in chunks of eight: no new trace."""
    fs.sweep(FLOW, MATCHED, {"seed": range(8)}, ts=TIMES)
    traces = []
    gradient = InfoNCE.gradient
    monkeypatch.setattr(InfoNCE, "gradient", lambda *a: traces.append(1) or gradient(*a))
    fs.sweep(FLOW, MATCHED, {"schedule.temperature.init": np.geomspace(0.2, 1, 12), "seed": [1, 2]}, ts=TIMES, chunk=8)
    fs.sweep(FLOW, MATCHED, {"start.gamma": [0.1, 0.2, 0.3]}, ts=[0.0, 0.1, 0.2, 0.4], seed=3)
    assert not traces
    with jax.enable_x64(True):
        FLOW.vector_field(0.0, FLOW.initial_state(MATCHED.draw(0)))
    assert traces == [1]


def test_chunks_and_threads_do_not_change_results(stored):
    over = {"schedule.temperature.init": [0.1, 0.2, 0.4, 0.8], "seed": [0, 1]}
    whole = fs.sweep(FLOW, MATCHED, over, ts=TIMES)
    parts = fs.sweep(FLOW, MATCHED, over, ts=TIMES, chunk=3, workers=1)
    for name in NAMES:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-12)
    np.testing.assert_array_equal(parts["steps"], whole["steps"])


def test_a_stored_sweep_is_read_and_not_computed(stored, monkeypatch):
    runs, folder = stored
    monkeypatch.setattr(sweeps, "solve_chunk", lambda *args: pytest.fail("computed again"))
    again = fs.sweep(FLOW, START, OVER, ts=TIMES, to=folder)
    xr.testing.assert_equal(again.dataset, runs.dataset)


def test_save_and_load_round_trip(stored, tmp_path):
    runs, _ = stored
    loaded = fs.load_sweep(runs.save(tmp_path / "sub" / "runs.nc"))
    xr.testing.assert_identical(loaded.dataset, runs.dataset)
    assert loaded.counts == runs.counts
    with pytest.raises(fs.FlowsimError, match="Did you mean 'modality_gap'"):
        loaded["modality_gab"]
    xr.Dataset({"a": ("x", [1.0])}).to_netcdf(tmp_path / "foreign.nc", engine="h5netcdf")
    with pytest.raises(fs.FlowsimError, match="not a flowsim sweep. Give a file written by `SweepResult.save`"):
        fs.load_sweep(tmp_path / "foreign.nc")
    with pytest.raises(fs.FlowsimError, match="not a flowsim result"):
        fs.load(tmp_path / "sub" / "runs.nc")


# --- structures: one program each ---------------------------------------------------------------------


@pytest.mark.slow
def test_losses_presets_and_sizes_may_vary():
    over = {
        "loss": [fs.InfoNCE(), fs.Sigmoid(-1.0), fs.NTXent()],
        "schedule": ["TS S3", "Baseline", "HS 1e-1"],
        "start.pairs": [3, 4, 3],
        "seed": [3, 1, 2],
    }
    flow, start = fs.GradientFlow(pairing=fs.FreshRepairing(1.0, redraw=0.3)), fs.initial.uniform(4, 3)
    runs = fs.sweep(flow, start, over, ts=TIMES, mode="zip")
    for i, values in enumerate(zip(*over.values(), strict=True)):
        run = runs.dataset.isel(run=i).dropna("time", how="all")
        result = one_by_one(flow, start, **dict(zip(over, values, strict=True)))
        for name, series in result.series.items():
            np.testing.assert_allclose(run[name], series, rtol=1e-9, atol=1e-9)
        assert np.isnan(run["bias"]).all() == ("bias" not in result.series)


@pytest.mark.slow
def test_programs_may_be_forgotten_while_other_threads_work(tmp_path, monkeypatch):
    """Before every chunk, as if the process could hold no program more."""
    flow, start, over = fs.GradientFlow(), fs.initial.uniform(4, 3), {"start.pairs": [3, 4, 5], "seed": range(6)}
    expected = fs.sweep(flow, start, over, ts=TIMES, chunk=1)
    (tmp_path / "max_map_count").write_text("2")
    monkeypatch.setattr(compilation, "_MOST_REGIONS", tmp_path / "max_map_count")
    monkeypatch.setattr(compilation, "_LOOK", 0)
    forgetful = fs.sweep(flow, start, over, ts=TIMES, chunk=1, workers=3)
    np.testing.assert_array_equal(forgetful["modality_gap"], expected["modality_gap"])


@pytest.mark.slow
def test_single_precision_is_explicit():
    over = {"schedule.temperature.init": [0.1, 0.3]}
    rough = fs.sweep(FLOW, MATCHED, over, ts=TIMES, precision="float32")
    exact = fs.sweep(FLOW, MATCHED, over, ts=TIMES)
    np.testing.assert_allclose(rough["modality_gap"], exact["modality_gap"], atol=1e-3)
    assert np.abs(rough["modality_gap"] - exact["modality_gap"]).max() > 1e-12


# --- storage, with runs that cost nothing -------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """Replace the integration by known numbers; the list of seeds that were computed."""
    seeds = []

    def chunk(jobs, ts, horizon, options, programs, stop):
        seeds.extend(job.seed for job in jobs)
        one = {"status": "COMPLETED", "stopped_at": ts[-1], "steps": 3, "log_gamma": np.full(len(ts), -np.inf)}
        return [{"loss": job.seed + np.asarray(ts), **one} for job in jobs]

    monkeypatch.setattr(sweeps, "solve_chunk", chunk)
    return seeds


def test_an_interrupted_sweep_goes_on_where_it_stopped(computed, tmp_path, monkeypatch):
    options = {"ts": TIMES, "to": tmp_path / "runs.zarr", "chunk": 3, "workers": 1}
    over = {"seed": range(8)}
    working = sweeps.solve_chunk

    def failing(*args):
        if computed:
            raise KeyboardInterrupt
        return working(*args)

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "solve_chunk", failing)
        with pytest.raises(KeyboardInterrupt):
            fs.sweep(FLOW, MATCHED, over, **options)
    assert computed == [0, 1, 2]
    tracked = []
    runs = fs.sweep(FLOW, MATCHED, over, **options, progress=lambda *told: tracked.append(told))
    assert computed == list(range(8))
    assert tracked == [("sweeping", 0, 2), ("sweeping", 1, 2), ("sweeping", 2, 2)]
    np.testing.assert_array_equal(runs["loss"], np.arange(8)[:, None] + np.asarray(TIMES))
    again = fs.sweep(FLOW, MATCHED, over, **options)
    assert len(computed) == 8
    xr.testing.assert_equal(again.dataset, runs.dataset)
    assert (again["log_gamma"] == -np.inf).all()


def test_an_interrupt_calls_off_what_runs_in_other_threads(monkeypatch):
    """Python waits for its threads: without a word to them the session would go on for as long as the chunk takes."""
    told, running = [], threading.Event()

    def chunk(jobs, ts, horizon, options, programs, stop):
        if jobs[0].seed == 0:
            running.wait(60)
            raise KeyboardInterrupt
        running.set()
        told.append(stop.wait(60))
        return []

    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "solve_chunk", chunk)
        with pytest.raises(KeyboardInterrupt):
            fs.sweep(FLOW, MATCHED, {"seed": range(2)}, ts=TIMES, chunk=1, workers=2)
    assert told == [True]


def test_a_chunk_that_was_called_off_computes_nothing(monkeypatch):
    stop = threading.Event()
    stop.set()
    monkeypatch.setattr(batch, "segments", lambda *args: pytest.fail("computed"))
    options = Options(1e-6, 1e-9, None, 100, ("loss",), np.dtype(np.float64), 0)
    with pytest.raises(batch.CalledOff):
        batch.solve_chunk([grid.Job(FLOW, MATCHED, 0)], np.asarray(TIMES), 1.0, options, batch.Programs(), stop)


@pytest.mark.parametrize(
    ("flow", "start", "over", "options"),
    [
        (FLOW.replace(schedule="SLRT 0.1"), MATCHED, {"seed": [0, 1]}, {}),
        (FLOW, fs.initial.matched(8, 2, gamma=0.1), {"seed": [0, 1]}, {}),
        (FLOW, MATCHED.draw(0), {"seed": [0, 1]}, {}),
        (FLOW, MATCHED, {"seed": [0, 2]}, {}),
        (FLOW, MATCHED, {"seed": [0, 1]}, {"rtol": 1e-6}),
        (FLOW, MATCHED, {"seed": [0, 1]}, {"horizon": 7.0}),
        (FLOW, MATCHED, {"seed": [0, 1]}, {"ts": [0.0, 2.0]}),
        (FLOW, MATCHED, {"seed": [0, 1]}, {"observables": ("loss",)}),
    ],
)
def test_a_folder_holds_one_sweep(computed, tmp_path, flow, start, over, options):
    folder = tmp_path / "runs.zarr"
    fs.sweep(FLOW, MATCHED, {"seed": [0, 1]}, ts=TIMES, to=folder)
    with pytest.raises(fs.FlowsimError, match="holds another sweep. Use the settings it was made with, or another"):
        fs.sweep(flow, start, over, **({"ts": TIMES, "to": folder} | options))
    assert computed == [0, 1]


def test_own_rows_are_told_apart(computed, tmp_path):
    first, other = (MATCHED.draw(seed) for seed in (0, 1))
    options = {"over": {"seed": [0]}, "ts": TIMES, "to": tmp_path / "runs.zarr"}
    fs.sweep(FLOW, first, **options)
    fs.sweep(FLOW, MATCHED.draw(0), **options)
    with pytest.raises(fs.FlowsimError, match="holds another sweep"):
        fs.sweep(FLOW, other, **options)


@pytest.mark.parametrize("kind", ["file", "below a file", "folder", "group"])
def test_what_is_not_a_sweep_is_left_alone(computed, tmp_path, kind):
    path = tmp_path / "runs.zarr"
    if kind == "group":
        import zarr

        zarr.open_group(str(path), mode="w").create_array("loss", shape=(2,), dtype="float64")
    elif kind == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("hello")
    else:
        path.write_text("hello")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(fs.FlowsimError, match=r"(Cannot write|holds another sweep).*another folder"):
        fs.sweep(FLOW, MATCHED, {"seed": [0]}, ts=TIMES, to=path / "x.zarr" if kind == "below a file" else path)
    assert sorted(tmp_path.rglob("*")) == before
    assert not computed


def test_values_of_every_kind_have_labels(computed, tmp_path):
    """Objects, pairs of numbers, None and JAX arrays become coordinates that a file can hold."""
    over = {
        "loss": [fs.InfoNCE(), fs.Sigmoid(-1.0, None)],
        "schedule.temperature.clamp": [None, (0.01, 1.0)],
        "schedule.temperature.init": jax.numpy.asarray([0.25, 0.5]),
    }
    runs = fs.sweep(FLOW, MATCHED, over, ts=TIMES, to=tmp_path / "runs.zarr")
    # An observable is called "loss", too.
    assert runs["loss"].dims == ("flow.loss", "schedule.temperature.clamp", "schedule.temperature.init", "time")
    labels = runs.dataset["flow.loss"].to_numpy().tolist()
    assert labels == ["InfoNCE()", "Sigmoid(bias=-1, bias_rate=None, relative_bias=False)"]
    assert runs.dataset["schedule.temperature.clamp"].to_numpy().tolist() == ["None", "(0.01, 1.0)"]
    assert runs.dataset["schedule.temperature.init"].to_numpy().tolist() == [0.25, 0.5]
    xr.testing.assert_identical(fs.load_sweep(runs.save(tmp_path / "runs.nc")).dataset, runs.dataset)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("over", "options", "message"),
    [
        ({}, {}, "Nothing to sweep. Give e.g. over="),
        ({"seed": []}, {}, "There are no values for 'seed'. Give at least one"),
        ({"schedule": "Baseline"}, {}, r"The values of 'schedule' must be a list, but are 'Baseline'.*\['Baseline'\]"),
        ({"schedule.temperature.int": [0.1]}, {}, "Did you mean 'schedule.temperature.init'"),
        ({"start.gama": [0.1]}, {}, "Did you mean 'gamma'"),
        ({"schedule": ["Baselin"]}, {}, "Unknown schedule 'Baselin'. Did you mean 'Baseline'"),
        ({"schedule.temperature.init": [0.1, -1.0]}, {}, "`temperature` must be positive, but is -1"),
        ({"schedule.temperature.init": ["hot"]}, {}, "holds a number, not 'hot'"),
        ({"seed": [-1]}, {}, r"Seeds must be whole numbers from 0 to 2\*\*32 - 1, but one is -1"),
        ({"seed": [0.5]}, {}, "Seeds must be whole numbers"),
        ({"seed": [2**32]}, {}, "Seeds must be whole numbers"),
        ({"seed": [0, 1], "start.gamma": [0.1]}, {"mode": "zip"}, r"need the same length, but have \[1, 2\]"),
        ({"seed": [0]}, {"chunk": 0}, "`chunk` must be at least 1"),
        ({"seed": [0]}, {"t1": None}, "Give `t1`"),
        ({"seed": [0]}, {"rtol": 0.0}, "`rtol` must be positive"),
        ({"seed": [0]}, {"observables": ("modality_gab",)}, "Did you mean 'modality_gap'"),
        ({"seed": [0]}, {"to": "runs.nc"}, "stored in a .zarr folder, but got 'runs.nc'. Use e.g. run.zarr"),
        ({"seed": [0], "start": [fs.initial.uniform(4, 3)]}, {"to": "runs.zarr"}, "not two exact parallel cones"),
    ],
)
def test_bad_input_gets_one_sentence(over, options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweeps, "solve_chunk", lambda *args: pytest.fail("something was computed"))
    with pytest.raises(fs.FlowsimError, match=message):
        fs.sweep(FLOW, MATCHED, over, **({"t1": 1.0} | options))
    assert not list(tmp_path.iterdir())


def test_paths_into_rows_are_refused():
    with pytest.raises(fs.FlowsimError, match="Paths into `start` need a recipe"):
        fs.sweep(FLOW, MATCHED.draw(0), {"start.gamma": [0.1]}, t1=1.0)


@pytest.mark.parametrize(
    ("geometry", "start"),
    [
        (fs.Parallel(), fs.initial.uniform(8, 2, gamma=0.1)),
        pytest.param(fs.Parallel(), fs.initial.simplex(6, 0.2), marks=pytest.mark.slow),
        pytest.param(fs.Sphere(), fs.initial.uniform(8, 2), marks=pytest.mark.slow),
    ],
    ids=["parallel", "simplex", "circle"],
)
def test_ties_count_alike_alone_in_a_batch_and_in_the_metrics(geometry, start):
    """In two dimensions pairs come to coincide, and the sign of rounding decided who matched."""
    flow = fs.GradientFlow(geometry, fs.temperature.Fixed(0.5))
    ts, names = [0, 1.0, 30.0, 1e3], ("margin", "matched_fraction")
    runs = fs.sweep(flow, start, {"seed": range(6)}, ts=ts, observables=names)
    for seed in range(6):
        alone = fs.simulate(flow, start, ts=ts, seed=seed, observables=names, throw=False)
        np.testing.assert_array_equal(runs["matched_fraction"][seed], alone.series["matched_fraction"])
        np.testing.assert_allclose(runs["margin"][seed], alone.series["margin"], atol=1e-9)
        end, last = alone.final.start, int(np.flatnonzero(np.isfinite(alone.series["margin"]))[-1])
        assert alone.series["matched_fraction"][last] == fs.observables.matched_fraction(end.image, end.text)
        matched = alone.series["matched_fraction"] == 1
        np.testing.assert_array_equal(alone.series["margin"] > 0, matched)
