"""The command line: what it prints, where, and its exit codes; bad input is one sentence with the cure."""

import ast
import contextlib
import dataclasses
import importlib.metadata
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import h5netcdf
import numpy as np
import pytest

import flowsim as fs
from flowsim import cli
from flowsim.base.modules import PARTS, parts_of
from flowsim.cli import clip_options, entry, flows
from flowsim.cli.simulate import Simulate
from flowsim.cli.values import parse_change, parse_over
from flowsim.cli.words import in_options
from flowsim.integrate.options import DEFAULT_OBSERVABLES
from flowsim.model.initial import AbstractRecipe
from flowsim.provenance import versions
from flowsim.records.status import Outcome


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")  # tyro wraps its messages at the width of the terminal


@pytest.fixture
def command(capsys):
    """Run `flowsim ARGUMENTS`; returns (exit code, stdout, stderr)."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(arguments)
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def refuses(command):
    """Assert that the arguments are refused with one sentence that holds all of `parts`, and nothing else."""

    def run(*arguments: str, says: list[str]) -> None:
        before = sorted(Path.cwd().rglob("*"))
        code, out, err = command(*arguments)
        assert code == 2
        assert out == ""
        assert err.startswith("flowsim: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert not set(err) & set("│╭╰─\x1b")
        assert "Traceback" not in err
        for part in says:
            assert part in err
        assert sorted(Path.cwd().rglob("*")) == before, "something was left behind"

    return run


@pytest.fixture
def pairs_file() -> str:
    rng = np.random.default_rng(0)
    np.save("pairs.npy", rng.standard_normal((2, 12, 4)))
    return "pairs.npy"


@pytest.fixture
def no_simulation(monkeypatch):
    """Fail if anything is integrated: bad input must be found before."""

    def simulate(*args, **kwargs):
        raise AssertionError("the simulation ran")

    monkeypatch.setattr("flowsim.integrate.simulate.simulate", simulate)


# --- help and parsing -----------------------------------------------------------------------------------


def test_help_lists_the_commands(command):
    code, out, err = command("--help")
    assert (code, err) == (0, "")
    for name in entry.COMMANDS:
        assert name in out


@pytest.mark.parametrize("name", list(entry.COMMANDS))
def test_help_of_a_command(command, name):
    code, out, err = command(name, "--help")
    assert (code, err) == (0, "")
    assert f"usage: flowsim {name}" in out


def test_version(command):
    code, out, _ = command("--version")
    assert code == 0
    assert out.startswith(f"flowsim {versions()['flowsim']}")


def test_version_of_a_checkout_that_is_not_installed(command, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert command("--version") == (0, "flowsim unknown (not installed)\n", "")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["Give a command: reproduce, claims, simulate, sweep, animate, compare, measure, doctor, lab, check,"]),
        (["simulat"], ["Unknown command 'simulat'. Did you mean 'simulate'"]),
        (["--quick", "reproduce"], ["'--quick' must follow the command"]),
        (["simulate", "--sed", "1"], ["Unknown option of simulate '--sed'. Did you mean '--seed'"]),
        (["reproduce", "--quik"], ["Unknown option of reproduce '--quik'. Did you mean '--quick'"]),
        (["claims", "--jsn"], ["Unknown option of claims '--jsn'. Did you mean '--json'"]),
        (["measure", "a.npy", "--temp", "1"], ["'--temp'. Did you mean '--text' or '--temperature'"]),
        (["simulate", "--no-json"], ["Unknown option of simulate '--no-json'. Did you mean '--json'"]),
        (["simulate", "fig2"], ["Unexpected argument 'fig2'. See flowsim simulate --help."]),
        (["simulate", "--t1"], ["Missing value for argument '--t1'", "See flowsim simulate --help."]),
        (["simulate", "--t1", "--json"], ["Missing value for argument '--t1'"]),
        (["simulate", "--t1", "soon"], ["`--t1` must be a number, but is 'soon'. Use e.g. --t1 1e5."]),
        (["simulate", "--pairs", "2.5"], ["`--pairs` must be a whole number, but is '2.5'"]),
        (["simulate", "--seed", "x"], ["`--seed` must be a whole number"]),
        (["simulate", "--rtol", ""], ["`--rtol` must be a number, but is ''"]),
        (["simulate", "--geometry", "sfere"], ["Unknown geometry 'sfere'. Did you mean 'sphere'?"]),
        (["simulate", "--start", "ring"], ["Unknown start 'ring'. Did you mean 'rings'?"]),
        (["simulate", "--method", "implizit"], ["Unknown method 'implizit'. Did you mean 'implicit'"]),
        (["sweep", "--mode", "zipp"], ["Unknown mode 'zipp'. Did you mean 'zip'?"]),
        (["sweep", "--resume", "run.nc"], ["Unknown option of sweep '--resume'"]),
        (["sweep", "--hidden", "many"], ["`--hidden` must be a whole number, but is 'many'"]),
        (["measure"], ["takes FILE, or FILE and TEXTFILE, but got 0"]),
        (["measure", "a.npy", "b.npy", "c.npy"], ["but got 3"]),
    ],
)
def test_arguments_that_cannot_be_read(refuses, arguments, says):
    refuses(*arguments, says=says)


# --- simulate -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_simulation")
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--preset", "Basline"], ["Unknown schedule 'Basline'. Did you mean 'Baseline'?"]),
        (["--preset", "Baseline", "--schedule", "a.json"], ["exclude each other"]),
        (["--schedule", "a.json"], ["'a.json' cannot be read"]),
        (["--schedule", "Baseline"], ["ends in .json", "--preset"]),
        (
            ["--schedule", "empty.json"],
            ["""empty.json: Expected an object with a "kind", but got""", '{"kind": "Schedule"'],
        ),
        (["--set", "schedule.temperature.init=-0.1"], ["`temperature` must be positive, but is -0.1. Use"]),
        (["--set", "schedule.temperature.init=nan"], ["`temperature` must be positive, but is nan"]),
        (["--set", "schedule.temperature.init=warm"], ["must be a number, but is 'warm'. Its value is 0.07"]),
        (["--set", "schedule.temperature.init=null"], ["must be a number, but is 'null'"]),
        (["--set", "schedule.temperature.init"], ["`--set` takes PATH=VALUE"]),
        (["--set", "schedule.temperature.int=1"], ["Did you mean 'schedule.temperature.init'"]),
        (["--set", "schedule.temperature=1"], ["'schedule.temperature' expects one of ", "Learnable"]),
        (["--set", "schedule.temperature.init=Exp"], ["must be a number"]),
        (["--set", "schedule.temperature.parametrization=Softplu"], ["Did you mean 'Softplus'?"]),
        (["--set", "schedule=TS S9"], ["Unknown schedule 'TS S9'"]),
        (["--set", "geometry=Spere"], ["Did you mean 'Sphere'"]),
        (["--set", "loss=Sigmod"], ["Unknown value of loss 'Sigmod'. Did you mean 'Sigmoid'"]),
        (["--set", 'loss={"kind": "Matched"}'], ["Unknown value of loss 'Matched'"]),
        (["--set", 'schedule.swap={"kind": "HardSwop"}'], ["Did you mean 'HardSwap'"]),
        (["--preset", "HS 1", "--set", "schedule.swap.masks=2.5"], ["must be a whole number, but is '2.5'"]),
        (["--preset", "HS 1", "--set", "schedule.swap.fraction=2"], ["`fraction` must be at most 1"]),
        (["--pairs", "1"], ["`--pairs` must be a whole number of at least 2, but is 1"]),
        (["--start", "uniform", "--dim", "1"], ["`--dim` must be a whole number of at least 2, but is 1"]),
        (["--height", "1.5"], ["`--height` must lie between -1 and 1"]),
        (["--height", "nan"], ["`--height`"]),
        (["--dim", "3"], ["Start 'rings' has no option `--dim`. It takes --pairs, --height, --twist."]),
        (["--start", "mismatched", "--text-factors", "2"], ["no option `--text-factors`", "--fraction"]),
        (["--start", "mismatched", "--fraction", "2"], ["`--fraction` must be at most 1, but is 2"]),
        (["--start", "latents", "--factors", "2", "--text-factors", "3"], ["there are 2 factors"]),
        (["--embeddings", "missing.npy"], ["missing.npy does not exist"]),
        (["--embeddings", "pairs.npy", "--start", "rings"], ["exclude each other"]),
        (["--embeddings", "pairs.npy", "--dim", "3"], ["`--dim` does not go with `--embeddings`"]),
        (["--resume", "missing.nc", "--t1", "9"], ["no file 'missing.nc'"]),
        (["--resume", "pairs.npy", "--t1", "9"], ["Cannot read 'pairs.npy' as netCDF"]),
        (["--resume", "foreign.nc", "--t1", "9"], ["'foreign.nc' is not a flowsim result"]),
        (["--resume", "newer.nc", "--t1", "9"], ["schema version 999", "Upgrade flowsim"]),
        (["--resume", "run.nc", "--pairs", "3"], ["`--pairs` does not go with `--resume`"]),
        (["--resume", "run.nc", "--geometry", "parallel"], ["`--geometry` does not go with `--resume`"]),
        (
            ["--resume", "a.nc", "--t1", "9", "--out", "./a.nc"],
            ["would overwrite the first part", "Choose another name"],
        ),
        (["--out", "run.txt"], ["takes a .nc file, but got 'run.txt'"]),
        (["--out", "pairs.npy/run.nc"], ["'pairs.npy' is a file, not a folder", "--out"]),
        (["--out", "pairs.npy/deep/run.nc"], ["'pairs.npy' is a file, not a folder"]),
        (["--out", "folder.nc"], ["'folder.nc': it is a folder"]),
    ],
)
def test_simulate_refuses(refuses, pairs_file, arguments, says):
    Path("folder.nc").mkdir()
    Path("empty.json").write_text("{}", encoding="utf-8")
    for name, attributes in {
        "foreign.nc": {"title": "sea ice"},
        "newer.nc": {"kind": "flowsim result", "schema_version": 999},
    }.items():
        with h5netcdf.File(name, "w") as file:
            for key, value in attributes.items():
                file.attrs[key] = value
    refuses("simulate", *arguments, says=says)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--t1", "0"], ["`--t1` must be greater than 0, but is 0. Use"]),
        (["--t1", "-5"], ["`--t1` must be greater than 0, but is -5. Use"]),
        (["--t1", "nan"], ["`--t1` must be finite"]),
        (["--t1", "inf"], ["`--t1` must be finite"]),
        (["--seed", "-1"], ["`--seed` must be a whole number of at least 0"]),
        (["--rtol", "0"], ["`--rtol` must be positive"]),
        (["--rtol", "nan"], ["`--rtol` must be positive"]),
        (["--geometry", "parallel", "--start", "uniform"], ["not two exact parallel cones"]),
        (["--geometry", "linear-encoders", "--start", "rings"], ["`LinearEncoders` needs inputs and weights"]),
        (["--geometry", "mlp-encoders"], ["`MLPEncoders` has 2 layer(s)", "Give `--hidden`, e.g. 32"]),
    ],
)
def test_simulate_refuses_numbers_out_of_range(refuses, arguments, says):
    refuses("simulate", *arguments, says=says)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A short run that was saved from the command line, and what it printed as JSON."""
    path = tmp_path_factory.mktemp("runs") / "deep" / "run.nc"
    arguments = ["simulate", "--start", "rings", "--t1", "10", "--json", "--out", str(path)]
    done = subprocess.run(
        [sys.executable, "-m", "flowsim", *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return path, done


def test_simulate_in_a_session_of_its_own(saved):
    """JSON alone on stdout, in a default 32-bit session, with double precision."""
    path, done = saved
    assert done.stderr == f"flowsim: Saved {path}.\n"
    summary = json.loads(done.stdout, parse_constant=pytest.fail)
    assert summary["status"] == "COMPLETED"
    assert summary["time"] == 10
    assert summary["stats"]["loss_increase"] <= 0
    result = fs.load(path)
    assert result.series["modality_gap"].dtype == np.float64
    assert summary["observables"]["modality_gap"] == float(result.series["modality_gap"][-1])
    assert summary["config"]["flow"] == fs.GradientFlow().to_config()


def test_simulate_prints_the_table_and_continues_a_run(saved, command):
    path, _ = saved
    code, out, err = command("simulate", "--resume", str(path), "--t1", "20", "--out", "more.nc")
    assert code == 0
    assert err == "flowsim: Saved more.nc.\n"
    assert out == f"{fs.load('more.nc')!r}\n"
    assert out.startswith("Result\n")
    assert "modality_gap" in out
    assert fs.load("more.nc").time[[0, -1]].tolist() == [10.0, 20.0]


def test_resume_needs_a_later_time(saved, refuses):
    path, _ = saved
    refuses("simulate", "--resume", str(path), says=["needs the new last time. Add e.g. --t1"])
    refuses("simulate", "--resume", str(path), "--t1", "5", says=["`--t1` must be greater than 10, but is 5"])


def test_what_a_resumed_run_brings_cannot_be_set(saved, refuses, command, monkeypatch):
    resume = ("simulate", "--resume", str(saved[0]), "--t1", "20")
    refuses(*resume, "--set", "schedule.temperature.init=0.2", says=["changes nothing with `--resume`", "Leave it out"])
    sigmoid = ("--set", "loss=Sigmoid", "--set", "loss.bias=-1")
    run = fs.load(saved[0])
    biased = dataclasses.replace(
        run, snapshots={**run.snapshots, "bias": np.zeros_like(run.snapshots["raw_temperature"])}
    )
    biased.save("biased.nc")
    refuses("simulate", "--resume", "biased.nc", "--t1", "20", *sigmoid, says=["`--set loss.bias` changes nothing"])
    refuses(*resume, "--seed", "3", says=["continues with the seed of the run"])
    # What does change something stays possible.
    flows = []
    monkeypatch.setattr("flowsim.integrate.simulate.simulate", lambda flow, start, **_: flows.append(flow) or start)
    fixed = ("--set", "schedule.temperature=Fixed", "--set", "schedule.temperature.tau=0.2")
    assert command(*resume, *fixed)[0] == command(*resume, "--set", "schedule.temperature.lr_ratio=0.1")[0] == 0
    assert float(flows[0].schedule.temperature.tau) == 0.2
    assert float(flows[1].schedule.temperature.lr_ratio) == 0.1
    assert command(*resume, *sigmoid)[0] == 0  # the run had no bias


def test_a_record_of_training_cannot_be_resumed(saved, refuses):
    record = fs.load(saved[0])
    dataclasses.replace(record, config={"training": {}}).save("record.nc")
    refuses("simulate", "--resume", "record.nc", "--t1", "20", says=["it is a record of training", "fs.compare"])


def test_a_run_that_stops_early_is_saved_and_says_so(saved, command, monkeypatch):
    whole = fs.load(saved[0])
    reached = whole.time <= 1.0
    series = {name: np.where(reached, values, np.nan) for name, values in whole.series.items()}
    outcome = Outcome(fs.Status.GAMMA_ONE, 1.0, "Dopri8")
    stopped = dataclasses.replace(whole, series=series, status=outcome)
    monkeypatch.setattr("flowsim.integrate.simulate.simulate", lambda *args, **options: stopped)
    code, out, err = command("simulate", "--geometry", "parallel", "--out", "early.nc", "--json")
    assert code == 2
    assert err.startswith("flowsim: Stopped: the cone height γ reached 1")
    assert err.endswith("t = 1. The completed part is saved in early.nc.\n")
    assert err.count("\n") == 1
    summary = json.loads(out, parse_constant=pytest.fail)
    assert summary["status"] == "GAMMA_ONE"
    assert summary["time"] == whole.time[reached][-1]
    assert summary["observables"]["modality_gap"] == whole.series["modality_gap"][reached][-1]
    assert fs.load("early.nc").status.code is fs.Status.GAMMA_ONE


def test_simulate_takes_every_piece(saved, command, monkeypatch, pairs_file):
    """What the options become: flow, start and options of `fs.simulate`."""
    calls = []
    short = fs.load(saved[0])
    monkeypatch.setattr(
        "flowsim.integrate.simulate.simulate", lambda *args, **options: calls.append((args, options)) or short
    )

    assert command("simulate")[0] == 0
    (flow, start), options = calls.pop()
    assert flow.to_config() == fs.GradientFlow.from_preset("Baseline").to_config()
    assert isinstance(start, fs.initial.Rings)
    assert options == {"t1": 1e5, "seed": 0, "rtol": 1e-9, "method": None, "observables": None, "throw": False}

    arguments = "--start matched --pairs 4 --dim 3 --gamma -.2 --t1 1e2 --seed 7 --rtol 1e-6 --method implicit"
    assert command("simulate", "--geometry", "parallel", "--preset", "TS S3", *arguments.split())[0] == 0
    (flow, start), options = calls.pop()
    assert isinstance(flow.geometry, fs.Parallel)
    assert isinstance(flow.schedule.temperature, fs.temperature.Linear)
    assert (start.pairs, start.dim, float(start.gamma)) == (4, 3, -0.2)
    expected = {"t1": 100.0, "seed": 7, "rtol": 1e-6, "method": "implicit", "observables": None, "throw": False}
    assert options == expected

    Path("s.json").write_text(fs.schedules.get("TS A1").to_json(), encoding="utf-8")
    assert command("simulate", "--schedule", "s.json", "--embeddings", pairs_file, "--height", "0.2")[0] == 0
    (flow, start), _ = calls.pop()
    assert isinstance(flow.schedule.temperature, fs.temperature.Cosine)
    np.testing.assert_allclose(np.linalg.norm(start.image, axis=1), 1, rtol=1e-12)
    assert float(start.gamma) == 0.2

    arguments = "--start latents --pairs 6 --dim 3 --factors 4 --text-factors 2 --hidden 5 --noise 0.1"
    assert command("simulate", "--geometry", "mlp-encoders", *arguments.split())[0] == 0
    (flow, start), _ = calls.pop()
    assert isinstance(flow.geometry, fs.MLPEncoders)
    assert (start.factors, start.text_factors, start.hidden) == (4, 2, 5)
    assert float(start.noise) == 0.1
    assert command("simulate", "--start", "mismatched", "--height", "0.2", "--fraction", "0.25")[0] == 0
    (_, start), _ = calls.pop()
    assert (float(start.gamma), float(start.fraction)) == (0.2, 0.25)
    assert command("simulate", "--geometry", "linear-encoders")[0] == 0
    assert isinstance(calls.pop()[0][1], fs.initial.Latents)


@pytest.mark.parametrize("start", flows.STARTS)
def test_every_start_takes_options(start):
    takes = flows.start_options(getattr(fs.initial, start))
    assert {"pairs"} <= takes.keys() <= set(flows.START_OPTIONS)
    assert set(takes.values()) <= {f.name for f in dataclasses.fields(getattr(fs.initial, start))}


def ours(kind):
    """Names of flowsim's own classes of a kind; tests define others."""
    return {name for name in parts_of(kind) if PARTS.is_ours(name)}


def test_choices_are_those_of_the_core():
    from flowsim.integrate import methods
    from flowsim.model.geometry import AbstractGeometry

    assert set(flows.METHODS) == set(methods.METHODS)
    assert set(flows.GEOMETRIES.values()) == ours(AbstractGeometry)
    # Features are no value of an option; `flowsim heads` takes them.
    assert {getattr(fs.initial, name).__name__ for name in flows.STARTS} == ours(AbstractRecipe) - {"FromFeatures"}
    from flowsim.clip import settings

    assert tuple(settings.PRESETS) == clip_options.PRESETS


@pytest.mark.parametrize(
    ("change", "path", "value"),
    [
        ("schedule.temperature.init=0.1", "schedule.temperature.init", 0.1),
        ("schedule.temperature.init=.5", "schedule.temperature.init", 0.5),
        ("schedule.temperature.init=1e-2", "schedule.temperature.init", 0.01),
        ("schedule.temperature.clamp=[0.01, 1]", "schedule.temperature.clamp", (0.01, 1)),
        ("schedule.temperature.clamp=null", "schedule.temperature.clamp", None),
    ],
)
def test_values_of_set(change, path, value):
    assert parse_change(fs.GradientFlow(), change) == (path, value)


def test_objects_of_set():
    flow = fs.GradientFlow()
    assert isinstance(parse_change(flow, "schedule=TS S3")[1], fs.Schedule)
    kind = parse_change(flow, "schedule.temperature.parametrization=Softplus")[1]
    assert isinstance(kind, fs.temperature.Softplus)
    text = 'schedule.temperature={"kind": "Fixed", "tau": 0.2}'
    assert float(parse_change(flow, text)[1].tau) == 0.2
    # Kinds that share a path need not share a parent class.
    for change, kind in (
        ("loss=NTXent", fs.NTXent),
        ("geometry=Parallel", fs.Parallel),
        ("rule=AdamLimit", fs.AdamLimit),
        ("geometry.image_kernel=Shared", fs.kernels.Shared),  # a part where there is none yet
        ('geometry.text_kernel={"kind": "Dense", "matrix": [[2, 1], [1, 2]]}', fs.kernels.Dense),
    ):
        assert isinstance(parse_change(flow, change)[1], kind)
    for change, message in (
        ("geometry.image_kernel=Dense", "Dense needs 'matrix'"),
        ("geometry.image_kernel=Shard", "Did you mean 'Shared'"),
    ):
        with pytest.raises(fs.FlowsimError, match=message):
            Simulate(changes=(change,)).flow_and_start()
    command = Simulate(changes=("schedule.swap=HardSwap", "schedule.swap.masks=8"))
    assert command.flow_and_start()[0].schedule.swap.masks == 8


# --- sweep ----------------------------------------------------------------------------------------------


@pytest.fixture
def sweeps(monkeypatch):
    """Replace the integration by known numbers; the calls of `fs.sweep` as (arguments, options)."""
    from flowsim.integrate import sweep as package
    from flowsim.integrate.sweep import run

    calls = []
    sweep = package.sweep

    def chunk(jobs, ts, horizon, options, *_):
        end = {"status": "COMPLETED", "stopped_at": ts[-1], "steps": 3}
        return [{"loss": job.seed + ts, "gamma": np.full(len(ts), np.nan), **end} for job in jobs]

    monkeypatch.setattr(run, "solve_chunk", chunk)
    monkeypatch.setattr(
        package, "sweep", lambda *args, **options: calls.append((args, options)) or sweep(*args, **options)
    )
    return calls


def test_sweep_takes_every_piece(sweeps, command):
    arguments = "--start cones --dim 4 --pairs 6 --t1 10 --seed 2 --rtol 1e-6 --method implicit --mode zip"
    paths = ("schedule.temperature.init=geom:0.01:1:3", "seed=0:3", "start.height=0.1, 0.2,.3")
    over = [part for path in paths for part in ("--over", path)]
    code, out, err = command(
        "sweep", "--preset", "SLRT 0.1", *arguments.split(), *over, "--to", "r.zarr", "--out", "r.nc"
    )
    assert (code, err) == (0, "flowsim: Saved r.nc.\n")
    assert out == f"{fs.load_sweep('r.nc')!r}\n"
    (flow, start, values), options = sweeps.pop()
    assert float(flow.schedule.temperature.lr_ratio) == 0.1
    assert (start.pairs, start.dim) == (6, 4)
    assert values == {"schedule.temperature.init": [0.01, 0.1, 1.0], "seed": [0, 1, 2], "start.height": [0.1, 0.2, 0.3]}
    del options["progress"]
    assert options == {
        "t1": 10.0,
        "mode": "zip",
        "to": "r.zarr",
        "seed": 2,
        "rtol": 1e-6,
        "method": "implicit",
        "observables": DEFAULT_OBSERVABLES,
        "executor": None,
    }


def test_sweep_as_json(sweeps, command):
    code, out, err = command("sweep", "--over", "seed=3:5", "--over", "loss=InfoNCE,Sigmoid", "--json")
    assert (code, err) == (0, "")
    summary = json.loads(out, parse_constant=pytest.fail)
    assert summary["dims"] == {"seed": 2, "flow.loss": 2}
    assert summary["over"]["seed"] == [3, 4]
    assert summary["over"]["flow.loss"][0] == "InfoNCE()"
    assert summary["counts"] == {"COMPLETED": 4}
    assert summary["time"] == 1e5
    assert summary["observables"]["loss"] == [[1e5 + 3] * 2, [1e5 + 4] * 2]
    assert summary["observables"]["gamma"] == [[None] * 2] * 2
    assert summary["observables"]["status"] == [["COMPLETED"] * 2] * 2
    assert summary["config"]["flow"] == fs.GradientFlow().to_config()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("seed=7", [7]),
        ("seed=0:3", [0, 1, 2]),
        ("schedule.temperature.init=lin:0.25:0.75:3", [0.25, 0.5, 0.75]),
        ("start.twist=lin:-144:144:3", [-144, 0, 144]),
        ("start.pairs=lin:4:8:3", [4, 6, 8]),
        ("start.pairs=3:5", [3, 4]),
        ("schedule=Baseline,TS S3", ["Baseline", "TS S3"]),
        ("schedule.temperature.clamp=[0.01, 1],null", [(0.01, 1), None]),
    ],
)
def test_values_of_over(text, values):
    path, found = parse_over(fs.GradientFlow(), fs.initial.rings(), text)
    assert path == text.partition("=")[0]
    assert found == values
    assert [type(x) for x in found] == [type(x) for x in values]


def test_objects_of_over():
    text = 'schedule.temperature={"kind": "Fixed", "tau": 0.2},Learnable'
    fixed, learnable = parse_over(fs.GradientFlow(), fs.initial.rings(), text)[1]
    assert float(fixed.tau) == 0.2
    assert isinstance(learnable, fs.temperature.Learnable)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], ["Nothing to sweep. Add e.g. --over seed=0:8."]),
        (["--over", "seed"], ["`--over` takes PATH=V1,V2,..., but got 'seed'"]),
        (["--over", "seed=1", "--over", "seed=2"], ["names 'seed' twice"]),
        (["--over", "seed=-1"], ["Seeds must be whole numbers of at least 0, but one is '-1'"]),
        (["--over", "seed=0.5"], ["Seeds must be whole numbers"]),
        (["--over", "seed=5:5"], ["Range '5:5' is empty"]),
        (["--over", "start.height=geom:0:1:5"], ["same sign and not be 0", "or lin:0:1:5."]),
        (["--over", "start.height=geom:-1:1:5"], ["is geometric, so its ends must have the same sign"]),
        (["--over", "start.height=geom:0.1:1:1"], ["A range is geom:FIRST:LAST:COUNT, but got 'geom:0.1:1:1'"]),
        (["--over", "start.height=lin:0:1"], ["A range is lin:FIRST:LAST:COUNT", "lin:0.01:1:20"]),
        (["--over", "start.height=0.1,,0.2"], ["'0.1,,0.2' has an empty value"]),
        (["--over", "start.height=0.1,high"], ["'height' must be a number, but is 'high'. Its value is 0.309"]),
        (["--over", "start.pairs=4.5"], ["'pairs' must be a whole number, but is '4.5'"]),
        (["--over", "start.hight=0.1"], ["Did you mean 'height'"]),
        (["--over", "schedule.temperature.int=0.1"], ["Did you mean 'schedule.temperature.init'"]),
        (["--over", "schedule=Baselin"], ["Unknown schedule 'Baselin'. Did you mean 'Baseline'"]),
        (["--over", "schedule.temperature.init=0.1,-1"], ["`temperature` must be positive, but is -1"]),
        (
            ["--over", "seed=0:2", "--over", "start.height=0.1", "--mode", "zip"],
            ["seed 2, start.height 1. Give the same number"],
        ),
        (["--over", "noise=0.1,0.2"], ["'noise' belongs to LabelNoise", "use 'pairing.noise'", "--set pairing=LabelN"]),
        (["--over", "pairing.noise=0.1,0.2"], ["'pairing' is Matched, and 'noise' belongs to LabelNoise. Put that"]),
        (["--over", "tau=0.1,0.2"], ["--set schedule.temperature=Fixed"]),
        (["--embeddings", "pairs.npy", "--over", "start.height=0.1"], ["needs a recipe, not your own rows"]),
        (["--over", "seed=0:2", "--to", "runs.nc"], ["stored in a .zarr folder, but got 'runs.nc'"]),
        (["--over", "seed=0:2", "--to", "pairs.npy/r.zarr"], ["'pairs.npy' is a file", "with --to"]),
        (["--over", "seed=0:2", "--out", "runs.zarr"], ["takes a .nc file, but got 'runs.zarr'"]),
        (
            ["--over", "seed=0:2", "--to", "r.zarr", "--executor", "processes:0"],
            ["`--executor` cannot be"],
        ),
        (["--over", "seed=0:2", "--t1", "0"], ["`--t1` must be greater than 0"]),
        (["--over", "seed=0:2", "--geometry", "mlp-encoders", "--to", "r.zarr"], ["Give `--hidden`, e.g. 32"]),
    ],
)
@pytest.mark.usefixtures("pairs_file")
def test_sweep_refuses(refuses, monkeypatch, arguments, says):
    monkeypatch.setattr("flowsim.integrate.sweep.run.solve_chunk", lambda *args: pytest.fail("something was computed"))
    refuses("sweep", *arguments, says=says)


@pytest.mark.parametrize(("to", "again"), [([], "start again"), (["--to", "r.zarr"], "resume")])
def test_an_interrupted_sweep_says_how_to_go_on(command, monkeypatch, to, again):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("flowsim.integrate.sweep.run.solve_chunk", interrupted)
    code, _, err = command("sweep", "--over", "seed=0:2", *to)
    assert (code, err) == (130, f"flowsim: Interrupted; run the same command to {again}.\n")


def test_sweep_shows_its_progress_on_a_terminal(sweeps, command, monkeypatch):
    shown = []

    @contextlib.contextmanager
    def progress(title):
        shown.append(title)
        yield lambda *told: shown.append(told)

    monkeypatch.setattr("flowsim.cli.sweep.progress", progress)
    assert command("sweep", "--over", "seed=0:200", "--t1", "1")[0] == 0
    assert shown == ["Sweep", ("sweeping", 0, 2), ("sweeping", 1, 2), ("sweeping", 2, 2)]


# --- measure --------------------------------------------------------------------------------------------


def test_measure(command, pairs_file):
    code, out, err = command("measure", pairs_file, "--temperature", "0.1")
    assert (code, err) == (0, "")
    assert "modality_gap" in out
    code, out, err = command("measure", pairs_file, "--temperature", "0.1", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out, parse_constant=pytest.fail)
    image, text = np.load(pairs_file)
    known = fs.observables.report(image, text, temperature=0.1)
    assert report["values"]["modality_gap"] == known["modality_gap"]


def test_measure_without_pairs(command):
    rng = np.random.default_rng(1)
    np.savez("a.npz", image=rng.standard_normal((6, 4)), text=rng.standard_normal((12, 4)))
    code, out, _ = command("measure", "a.npz", "--json")
    assert code == 0
    report = json.loads(out, parse_constant=pytest.fail)
    assert report["values"]["margin"] is None
    assert "pairs" in report["reasons"]["margin"]
    assert command("measure", "a.npz", "--captions-per-image", "2")[0] == 0


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.full((2, 4, 3), np.nan), ["bad.npy", "NaN"]),
        (np.ones((4, 3)), ["bad.npy", "(4, 3)", "(2, n, d)"]),
        (np.ones((3, 4, 3)), ["bad.npy", "(3, 4, 3)"]),
        (np.array([["a", "b"], ["c", "d"]]), ["bad.npy"]),
        (np.zeros((2, 4, 3)), ["bad.npy", "zero"]),
    ],
)
def test_measure_refuses_arrays(refuses, array, says):
    np.save("bad.npy", array)
    refuses("measure", "bad.npy", says=says)
    refuses("simulate", "--embeddings", "bad.npy", says=["bad.npy"])


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.npy", ["missing.npy does not exist"]),
        ("notes.npy", ["notes.npy is not a NumPy file"]),
        ("cut.npy", ["cut.npy"]),
        ("pickled.npy", ["pickled"]),
        ("other.npz", ["other.npz holds an array of shape (3,), not (2, n, d)"]),
        ("unequal.npz", ["unequal.npz"]),
        (".", ["damaged"]),
    ],
)
def test_measure_refuses_files(refuses, pairs_file, name, says):
    Path("notes.npy").write_text("hello", encoding="utf-8")
    Path("cut.npy").write_bytes(Path(pairs_file).read_bytes()[:150])
    np.save("pickled.npy", np.array([{"a": 1}, None], dtype=object))
    np.savez("other.npz", a=np.ones(3))
    np.savez("unequal.npz", image=np.ones((4, 3)), text=np.ones((4, 5)))
    refuses("measure", name, says=says)


def test_measure_refuses_a_temperature(refuses, pairs_file):
    refuses("measure", pairs_file, "--temperature", "-0.1", says=["`--temperature` must be positive", "-0.1"])
    refuses("measure", pairs_file, "--temperature", "hot", says=["`--temperature` must be a number"])
    refuses("measure", pairs_file, "--captions-per-image", "0", says=["`--captions-per-image`"])


# --- claims and reproduce -------------------------------------------------------------------------------


def test_claims_and_experiments_refuse_unknown_names(refuses):
    name = fs.claims.names()[0]
    refuses("claims", name[:-1] + "~", says=["Unknown claim", f"Did you mean {name!r}"])
    refuses("reproduce", "fig22", says=["Unknown experiment 'fig22'. Did you mean 'fig2'"])


def test_reproduce_finds_an_unwritable_folder_first(refuses, monkeypatch):
    from flowsim import reproduce

    monkeypatch.setattr(reproduce, "run", lambda *a, **k: pytest.fail("computed"))
    Path("file").write_text("", encoding="utf-8")
    refuses("reproduce", "--out", "file", says=["Cannot write to 'file': 'file' is a file"])
    refuses("reproduce", "--out", "file/figures", says=["'file' is a file, not a folder"])


@pytest.mark.parametrize("verdict", ["holds", "fails"])
def test_exit_code_and_json_of_claims(command, monkeypatch, verdict):
    class Verdict:
        def __init__(self, name: str) -> None:
            self.as_expected, self.name = verdict == "holds", name

        def to_dict(self) -> dict:
            numbers = {"ratio": np.float64(2), "rate": math.inf, "grid": np.arange(2.0)}
            return {"id": self.name, "numbers": numbers, "expected": "holds", "verdict": verdict}

    monkeypatch.setattr(fs.claims, "names", lambda: ["a", "b"])
    monkeypatch.setattr(fs.claims, "run_all", lambda quick, progress, only, processes: [Verdict(name) for name in only])
    code, out, err = command("claims", "--json", "--quick")
    assert err == ""
    assert code == (0 if verdict == "holds" else 1)
    found = json.loads(out, parse_constant=pytest.fail)
    assert [f["id"] for f in found] == ["a", "b"]
    assert found[0]["numbers"] == {"ratio": 2, "rate": None, "grid": [0, 1]}


# --- the words of the command line -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (
            "Argument `t1` must be positive, but is -1. Use e.g. t1=1e5.",
            "Option `--t1` must be positive, but is -1. Use e.g. --t1 1e5.",
        ),
        ("Give `text_factors`, e.g. 4.", "Give `--text-factors`, e.g. 4."),
        ("Train again with `force=True`.", "Train again with `--force`."),
        ("Take all with `held_out=None`.", "Take all with `--set held_out=none`."),
        ("Use `seed=3`, not `seed=None`.", "Use `--seed 3`, not no `--seed`."),
        ("Run `fs.clip.study` first.", "Run `flowsim clip study` first."),
        # Values that come from elsewhere, and words that are no options.
        ("Argument `seed` must be positive. Use e.g. seed=1.", None),
        ("Argument `init` must be positive.", None),
        ("Setting `seed` of shapes must be positive.", None),
        ("Use the geometry `Sphere`, or `fs.load`.", None),
    ],
)
def test_arguments_become_options(said, words):
    options = ["--t1", "--seed", "--force", "--text-factors"]
    assert in_options(said, options, {"t1": -1.0}, ["held_out", "seed"]) == (said if words is None else words)


def test_the_bridge_names_no_options():
    """Its errors are for Python; the command line puts options in their place."""
    for path in (Path(fs.__file__).parent / "clip").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not re.search(r"(^|[\\s`(])--[a-z]", node.value), (path, node.value)


# --- the process ----------------------------------------------------------------------------------------


def test_the_command_line_adds_little_to_the_core():
    """Help must be quick: a command imports what it needs when it runs."""
    code = """
import sys
import flowsim
core = set(sys.modules)
from flowsim import cli
cli.main(["--help"])
print(sorted({name.split(".")[0] for name in set(sys.modules) - core}))
print(sorted(name for name in set(sys.modules) - core if name.startswith("flowsim.")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    *_, packages, rooms = done.stdout.splitlines()
    assert not {"jax", "diffrax", "xarray", "matplotlib"} & set(ast.literal_eval(packages))
    light = ("flowsim.errors", "flowsim.progress", "flowsim.base", "flowsim.base.files", "flowsim.cli")
    assert all(name in light or name.startswith("flowsim.cli.") for name in ast.literal_eval(rooms))


def test_an_interrupt_says_how_to_go_on(command, monkeypatch):
    from flowsim import reproduce

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(reproduce, "run", interrupted)
    code, _, err = command("reproduce")
    assert code == 130
    assert err == "flowsim: Interrupted; run the same command to resume.\n"


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
def test_a_reader_that_goes_away():
    """`flowsim ... | head` ends quietly when `head` is done."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "flowsim", "--help"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=120)
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 141
