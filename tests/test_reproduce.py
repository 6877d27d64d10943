"""`reproduce` reuses what is still true, recomputes what is not, and resumes what was interrupted."""

import io
import json
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pytest
from rich.console import Console

import flowsim as fs
from flowsim import reproduce
from flowsim.result import read_netcdf

EXPERIMENT = '''"""A line.

Source: none.
"""

from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

SEED = 3
FULL = {"points": 5}
QUICK = {"points": 3}


def compute(quick, progress):
    with (Path(__file__).parent / "log.txt").open("a") as log:
        log.write("NAME ")
    if (Path(__file__).parent / "fail-NAME").exists():
        raise KeyboardInterrupt
    points = (QUICK if quick else FULL)["points"]
    return xr.Dataset({"y": ("x", [float(i) for i in progress(range(points), "counting")])})


def plot(record):
    figure = Figure()
    figure.subplots().plot(record["y"])
    return figure
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small experiments beside a package of two files."""
    package = tmp_path / "package"
    package.mkdir()
    (package / "core.py").write_text("")
    (package / "plot.py").write_text("")
    monkeypatch.setattr(reproduce, "PACKAGE", package)
    folder = tmp_path / "experiments"
    folder.mkdir()
    for name in ("zeta", "fig1", "alpha"):
        (folder / f"{name}.py").write_text(EXPERIMENT.replace("NAME", name))
    (folder / "_helper.py").write_text("")
    return folder


def quiet(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), width=200, force_terminal=terminal)


def go(folder: Path, *names: str, **options) -> reproduce.Reproduction:
    options = {"console": quiet(), "claims": False, "out": folder.parent / "out", **options}
    return reproduce.run(names, folder=folder, **options)


def go_one_by_one(folder: Path) -> None:
    """All experiments in this process: starting others takes longer."""
    for name in reproduce.experiment_names(folder):
        go(folder, name)


def calls(folder: Path) -> list[str]:
    log = folder / "log.txt"
    return sorted(log.read_text().split()) if log.exists() else []


def test_figures_come_first_and_helpers_not_at_all(folder: Path) -> None:
    assert reproduce.experiment_names(folder) == ["fig1", "alpha", "zeta"]
    assert reproduce.describe("fig1", folder) == "A line."


def test_all_experiments_are_made_and_then_reused(folder: Path) -> None:
    first = go(folder)
    assert calls(folder) == ["alpha", "fig1", "zeta"]
    assert [f.reused for f in first.figures] == [False] * 3
    for item in first.figures:
        assert item.record.is_file()
        assert [f.suffix for f in item.files] == [".png", ".pdf"]
    bytes_before = {f: f.read_bytes() for item in first.figures for f in item.files}
    second = go(folder)
    assert calls(folder) == ["alpha", "fig1", "zeta"]
    assert [f.reused for f in second.figures] == [True] * 3
    assert {f: f.read_bytes() for f in bytes_before} == bytes_before
    assert not list((folder.parent / "out").rglob("*.tmp"))


def test_the_record_says_what_made_it(folder: Path) -> None:
    (item,) = go(folder, "fig1").figures
    attrs = read_netcdf(item.record).attrs
    assert json.loads(attrs["configuration"]) == {"quick": False, "points": 5}
    assert attrs["seed"] == 3
    assert len(attrs["source"]) == 64
    assert "jax" in json.loads(attrs["versions"])


def test_force_computes_again(folder: Path) -> None:
    go(folder, "fig1")
    assert not go(folder, "fig1", force=True).figures[0].reused
    assert calls(folder) == ["fig1", "fig1"]


@pytest.mark.parametrize("old_new", [("SEED = 3", "SEED = 4"), ('"points": 5', '"points": 6'), ("A line", "A word")])
def test_changed_source_seed_or_sizes_compute_again(folder: Path, old_new: tuple[str, str]) -> None:
    go_one_by_one(folder)
    file = folder / "fig1.py"
    file.write_text(file.read_text().replace(*old_new))
    assert [f.reused for f in go(folder).figures] == [False, True, True]


def test_changed_reference_numbers_compute_again(folder: Path) -> None:
    go(folder, "fig1")
    (folder / "reference").mkdir()
    (folder / "reference" / "numbers.csv").write_text("1,2\n")
    assert not go(folder, "fig1").figures[0].reused


def test_changed_package_source_computes_again_unless_it_only_draws(folder: Path) -> None:
    go(folder, "fig1")
    (folder.parent / "package" / "plot.py").write_text("# another colour")
    assert go(folder, "fig1").figures[0].reused
    (folder.parent / "package" / "core.py").write_text("# another equation")
    assert not go(folder, "fig1").figures[0].reused


def test_quick_does_not_pass_for_full(folder: Path) -> None:
    go(folder, "fig1", quick=True)
    assert not go(folder, "fig1").figures[0].reused
    assert read_netcdf(folder.parent / "out" / "records" / "fig1.nc").sizes["x"] == 5


def test_a_damaged_record_is_computed_again(folder: Path) -> None:
    (item,) = go(folder, "fig1").figures
    item.record.write_bytes(b"not netCDF")
    assert not go(folder, "fig1").figures[0].reused


def test_interrupted_work_resumes_at_the_next_experiment(folder: Path) -> None:
    (folder / "fail-zeta").touch()  # it starts when one of the two before it is done
    with pytest.raises(KeyboardInterrupt):
        go(folder)
    made = {p.stem for p in (folder.parent / "out" / "records").glob("*.nc")}
    assert made & {"fig1", "alpha"}
    assert "zeta" not in made
    (folder / "fail-zeta").unlink()
    assert {f.name: f.reused for f in go(folder).figures} == {n: n in made for n in ("fig1", "alpha", "zeta")}


def test_an_unknown_experiment_is_refused_before_anything_is_made(folder: Path) -> None:
    with pytest.raises(fs.FlowsimError, match=r"Unknown experiment 'fig11'. Did you mean 'fig1'\?"):
        go(folder, "alpha", "fig11")
    assert not (folder.parent / "out").exists()


def test_an_unwritable_place_is_refused_before_anything_is_made(folder: Path) -> None:
    (folder.parent / "file").touch()
    with pytest.raises(fs.FlowsimError, match=r"Cannot write to the folder .*Choose another with --out"):
        go(folder, "fig1", out=folder.parent / "file" / "out")
    assert calls(folder) == []


@pytest.mark.parametrize("terminal", [False, True])
def test_the_closing_table_names_the_files(folder: Path, terminal: bool) -> None:
    console = quiet(terminal)
    go(folder, "fig1", console=console)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert "fig1.pdf" in text
    assert "computed" in text
    assert ("fig1: computing" in text) == (not terminal)


def test_a_checkout_in_the_current_folder_wins_over_the_package(folder: Path, tmp_path: Path) -> None:
    project = tmp_path / "pyproject.toml"
    with pytest.raises(fs.FlowsimError, match="There are no experiments here"):
        reproduce.experiments_folder(tmp_path)
    packaged = tmp_path / "package" / "_experiments"
    packaged.mkdir()
    (folder / "fig2.py").write_text(EXPERIMENT)
    project.write_text('[project]\nname = "other"\n')
    assert reproduce.experiments_folder(tmp_path) == packaged
    project.write_text('[project]\nname = "flowsim"\n')
    assert reproduce.experiments_folder(tmp_path) == folder.resolve()


def test_claims_end_a_full_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Verdict:
        def to_dict(self) -> dict[str, str]:
            return {"id": "lemma", "statement": "It holds.", "verdict": "holds", "expected": "holds"}

    from flowsim import claims

    monkeypatch.setattr(claims, "run_all", lambda quick, progress, only, processes: [Verdict()], raising=False)
    go_one_by_one(folder)
    done = go(folder, claims=None)
    assert done.ok
    assert json.loads((folder.parent / "out" / "claims.json").read_text())[0]["id"] == "lemma"
    assert go(folder, "fig1", claims=None).claims == ()


def test_every_experiment_states_seed_sizes_and_source() -> None:
    folder = reproduce.experiments_folder()
    for name in reproduce.experiment_names(folder):
        module = reproduce._load(name, folder)
        assert module.FULL.keys() == module.QUICK.keys()
        assert not any("tol" in key for key in module.FULL)
        json.dumps([module.FULL, module.QUICK])
        assert isinstance(module.SEED, int)
        assert (module.__doc__ or "").count("\n\n") >= 1
        assert "Yaras et al." in (module.__doc__ or "")


def test_figure_2_end_to_end(tmp_path: Path) -> None:
    console = quiet()
    (item,) = reproduce.run(["fig2"], quick=True, out=tmp_path, console=console).figures
    record = read_netcdf(item.record)
    assert record.attrs["max_deviation_modality_gap"] <= 1e-3
    assert record.attrs["max_deviation_temperature"] <= 1e-3
    for name, value in {
        "peak_gap": 1.0568, "peak_temperature": 1.0234, "peak_time": 2.0639, "matched_time": 3.8328,
        "final_gap": 0.54055, "final_temperature": 0.0358,
    }.items():  # fmt: skip
        assert record.attrs[name] == pytest.approx(value, abs=6e-5), name
    assert all(os.path.getsize(f) > 10_000 for f in item.files)
    before = item.files[1].read_bytes()
    (again,) = reproduce.run(["fig2"], quick=True, out=tmp_path, console=console).figures
    assert again.reused
    assert again.files[1].read_bytes() == before
