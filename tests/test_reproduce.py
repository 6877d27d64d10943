"""`reproduce` reuses what is still true, recomputes what is not, and resumes what was interrupted."""

import io
import json
import os
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import pytest
from PIL import Image
from PIL.GifImagePlugin import GifImageFile
from rich.console import Console

import flowsim as fs
from flowsim import reproduce
from flowsim.base import sources as _sources
from flowsim.base.paths import to_config
from flowsim.cli.animate import Animate
from flowsim.cli.entry import COMMANDS
from flowsim.cli.parsing import parse
from flowsim.records.netcdf import read_netcdf

EXPERIMENT = '''"""A line.

Source: none.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import xarray as xr
from matplotlib.figure import Figure
from flowsim.progress import track

SEED = 3
FULL = {"points": 5}
QUICK = {"points": 3}


def compute(quick, progress):
    with (Path(__file__).parent / "log.txt").open("a") as log:
        log.write("NAME ")
    if (Path(__file__).parent / "fail-NAME").exists():
        raise KeyboardInterrupt
    points = (QUICK if quick else FULL)["points"]
    return xr.Dataset({"y": ("x", [float(i) for i in track(range(points), progress, "counting")])})


def plot(record):
    figure = Figure()
    figure.subplots().plot(record["y"])
    return figure
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three small experiments beside a package of two files."""
    package = tmp_path / "package"
    (package / "plot").mkdir(parents=True)
    (package / "core.py").write_text("")
    (package / "plot" / "series.py").write_text("")
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


@pytest.mark.parametrize(
    ("old", "new", "reused"),
    [
        ("SEED = 3", "SEED = 4", False),
        ('"points": 5', '"points": 6', False),
        ("float(i)", "float(i + 1)", False),
        ("A line", "A word", True),
        ("SEED = 3", "SEED = 3  # any", True),
        ("SEED = 3", "SEED = 3\n\nif TYPE_CHECKING:\n    import os", True),
        ("SEED = 3", "SEED = 3\n\nif len(str()) > 0:\n    import os", False),
    ],
)
def test_changed_code_seed_or_sizes_compute_again_and_words_do_not(
    folder: Path, old: str, new: str, reused: bool
) -> None:
    go(folder, "fig1")
    file = folder / "fig1.py"
    file.write_text(file.read_text().replace(old, new))
    assert go(folder, "fig1").figures[0].reused == reused


def test_changed_reference_numbers_compute_again(folder: Path) -> None:
    go(folder, "fig1")
    (folder / "reference").mkdir()
    (folder / "reference" / "numbers.csv").write_text("1,2\n")
    assert not go(folder, "fig1").figures[0].reused


def test_changed_package_source_computes_again_unless_it_only_draws(folder: Path) -> None:
    go(folder, "fig1")
    (folder.parent / "package" / "plot" / "series.py").write_text("colour = 1")
    assert go(folder, "fig1").figures[0].reused
    (folder.parent / "package" / "core.py").write_text("# another comment")
    assert go(folder, "fig1").figures[0].reused
    (folder.parent / "package" / "core.py").write_text("equation = 1")
    assert not go(folder, "fig1").figures[0].reused


def test_what_an_experiment_imports_counts_also_where_it_shows_numbers(folder: Path) -> None:
    shown = folder.parent / "package" / "claims"
    shown.mkdir()
    for name in ("noise", "swaps"):
        (shown / f"{name}.py").write_text("a = 1")
    source = (folder / "fig1.py").read_text()
    (folder / "fig1.py").write_text(source + "\n\ndef later():\n    from flowsim.claims.noise import a\n")
    before = _sources.computing_hash(folder / "fig1.py", folder.parent / "package")
    (shown / "swaps.py").write_text("a = 2")
    assert _sources.computing_hash(folder / "fig1.py", folder.parent / "package") == before
    (shown / "noise.py").write_text("a = 2")
    assert _sources.computing_hash(folder / "fig1.py", folder.parent / "package") != before


DRAWN = '''"""Words."""

COLOURS = {"black": "#000000"}
LIMIT: int = 3


def paper_style():
    """Style."""
    return LIMIT


def gap(ax):
    return ax.plot(COLOURS["black"])


def other(ax):
    check(ax, "Give axes.")
    return ax
'''


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Words", "More words", True),  # docstrings
        ("LIMIT: int = 3", "LIMIT: float = 3  # at most", True),  # comments, types
        ("def gap", "\n\n\ndef gap", True),  # places
        ("return ax\n", "return None\n", True),  # what this figure does not use
        ('"Give axes."', '"Give one."', True),  # messages
        ("#000000", "#000001", False),
        ("ax.plot", "ax.semilogx", False),
        ("LIMIT: int = 3", "LIMIT = 4", False),  # what it uses by way of the style
    ],
)
def test_the_drawing_code_of_a_figure_is_what_it_uses(folder: Path, old: str, new: str, same: bool) -> None:
    package = folder.parent / "package"
    (folder / "fig1.py").write_text("import flowsim as fs\n\n\ndef plot(record):\n    return fs.plot.gap(record)\n")
    (package / "plot" / "series.py").write_text(DRAWN)
    before = _sources.drawing_hash(folder / "fig1.py", package)
    assert old in DRAWN
    (package / "plot" / "series.py").write_text(DRAWN.replace(old, new))
    assert (_sources.drawing_hash(folder / "fig1.py", package) == before) == same


def test_figures_say_what_made_them(folder: Path) -> None:
    (item,) = go(folder, "fig1").figures
    stamps = [_sources.read_stamp(file) for file in item.files]
    assert stamps[0] == stamps[1]
    assert stamps[0].pop("numbers")
    assert stamps[0] == reproduce.stamp("fig1", folder)
    (folder / "fig1.py").write_text((folder / "fig1.py").read_text().replace('record["y"]', '-record["y"]'))
    assert stamps[0]["drawn_by"] != reproduce.stamp("fig1", folder)["drawn_by"]
    assert stamps[0] != reproduce.stamp("fig1", folder, quick=True)
    item.files[0].write_bytes(b"another picture")
    with pytest.raises(fs.FlowsimError, match="carries no stamp"):
        _sources.read_stamp(item.files[0])


def test_a_stamp_ends_where_its_text_ends(tmp_path: Path) -> None:
    """The checksum of a PNG chunk comes next, and may be printable."""
    file = tmp_path / "a.png"
    file.write_bytes(b'\x89PNG tEXt flowsim {"seed": 0, "experiment": "a"}q}]}\x00')
    assert _sources.read_stamp(file) == {"seed": 0, "experiment": "a"}


CHECKOUT = Path(__file__).resolve().parents[1]
#: The figures of the repository; an installed package has none.
COMMITTED = CHECKOUT / "figures"


NAMES = reproduce.experiment_names(CHECKOUT / "experiments")
CURE = "Run `flowsim reproduce {} --out figures` and commit figures/{}.*"


@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_are_what_the_code_draws(name: str) -> None:
    """By the drawing code, the sizes and the seed. Comments, types and messages do not count."""
    png, pdf = (_sources.read_stamp(COMMITTED / f"{name}.{kind}") for kind in ("png", "pdf"))
    assert png == pdf, "They show different records. " + CURE.format(name, name)
    now = reproduce.stamp(name, CHECKOUT / "experiments")
    for key in ("experiment", "configuration", "seed", "drawn_by"):
        assert png[key] == now[key], CURE.format(name, name)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_are_what_the_code_computes(name: str) -> None:
    """By the experiment, its reference numbers, and the package without what only shows numbers.

    For releases: every change of the package asks for a complete `flowsim reproduce`, also one that moves no curve.
    """
    carried = _sources.read_stamp(COMMITTED / f"{name}.png")
    assert carried["computed_by"] == reproduce.stamp(name, CHECKOUT / "experiments")["computed_by"], CURE.format(
        name, name
    )


def test_the_committed_figure_of_the_benchmarks_is_what_the_code_draws() -> None:
    benchmark = reproduce._load("figures", CHECKOUT / "benchmarks")
    for kind in ("png", "pdf"):
        carried = _sources.read_stamp(COMMITTED / f"performance.{kind}")
        assert carried == benchmark.stamp(), "Run `python benchmarks/figures.py` and commit figures/performance.*"


def test_the_committed_film_is_what_the_code_draws() -> None:
    """Made by the command beside it in the README."""
    line = re.search(r"`flowsim (animate [^`]*--out fig2.gif)`", (CHECKOUT / "README.md").read_text(encoding="utf-8"))
    assert line is not None
    command = parse(line[1].split(), "flowsim", COMMANDS)
    assert isinstance(command, Animate)
    flow, start = command.flow_and_start()
    carried = _sources.read_stamp(COMMITTED / "fig2.gif")
    assert carried["drawn_by"] == _sources.drawing_hash("animate"), f"Run `flowsim {line[1]}` and move it to figures/"
    assert carried["config"]["flow"] == json.loads(json.dumps(flow.to_config()))
    assert carried["config"]["start"] == json.loads(json.dumps(to_config(start)))
    with Image.open(COMMITTED / "fig2.gif") as film:
        assert isinstance(film, GifImageFile) and film.n_frames == command.frames


def said(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("terminal", [False, True])
def test_every_finished_figure_gets_a_line(folder: Path, terminal: bool) -> None:
    console = quiet(terminal)
    go(folder, "fig1", console=console)
    go(folder, "alpha", "fig1", "zeta", console=console)
    lines = [line for line in said(console).replace("\r", "\n").splitlines() if re.match(r"\S*\[\d/\d\]", line)]
    png = str(folder.parent / "out" / "fig1.png")
    assert re.fullmatch(rf"\S*\[1/1\] fig1 +\d\.\d s  {png}", lines[0])
    # The reused one comes first; then the others, in any order, with the time left until the last.
    assert re.fullmatch(rf"\S*\[1/3\] fig1 +reused  {png}  about .* left", lines[1])
    assert re.search(r"\[2/3\] (alpha|zeta ) +\S+ s  .*png  about .* left$", lines[2])
    assert re.search(r"\[3/3\] (alpha|zeta ) +\S+ s  .*png$", lines[3])
    assert ("fig1: computing" in said(console)) == (not terminal)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (4.24, "4.2 s"),
        (9.97, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (210, "3 min 30 s"),
        (3599.7, "1 h"),
        (3900, "1 h 5 min"),
    ],
)
def test_times_for_people(seconds: float, text: str) -> None:
    assert reproduce.duration(seconds) == text


def test_the_time_left_follows_what_was_done() -> None:
    screen = reproduce._Screen(quiet(), ["fig2", "noise", "swaps"], claims=False)
    # 21 + 440 + 210 seconds of work, two at a time.
    assert screen.time_left() == "about 6 min left"
    screen.begin -= 84.0
    screen.finished(reproduce.Figures("swaps", Path("swaps.nc"), (Path("swaps.png"),), 84.0, False))
    # 210 of 671 in 84 s: 461 · (84 + 30) / (210 + 60) s.
    assert screen.time_left() == "about 3 min left"
    screen.begin -= 3600.0
    assert screen.time_left() == "about 1 h 46 min left"
    screen.skip(["fig2", "noise"])
    assert screen.time_left() == ""


def test_the_time_left_counts_claims() -> None:
    screen = reproduce._Screen(quiet(), ["fig2", "noise"], claims=True)
    screen.skip(["fig2", "noise"])
    assert screen.time_left() == "about 3 min left"
    screen.show("claims", "lemma-3.1", 50, 59)
    assert screen.time_left() == "about 10 s left"


def test_figures_go_to_folders_that_git_ignores(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    (full,), (quick,) = (go(folder, "fig1", out=None, quick=q).figures for q in (False, True))
    places = [str(f) for item in (full, quick) for f in (*item.files, item.record)]
    assert places[0] == "figures/full/fig1.png"
    assert places[3] == "figures/quick/fig1.png"
    ignored = (CHECKOUT / ".gitignore").read_text().split()
    places += ["figures/full/claims.json", "figures/records/fig1.nc", "figures/claims.json"]  # with --out figures
    assert [p for p in places if not any(p == i or p.startswith(i) for i in ignored)] == []


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
    console = quiet()
    done = go(folder, claims=None, console=console)
    assert done.ok
    assert said(console).splitlines()[-1].startswith("1 claims: 1 hold, 0 fail, all as expected. Numbers: ")
    assert json.loads((folder.parent / "out" / "claims.json").read_text())[0]["id"] == "lemma"
    assert go(folder, "fig1", claims=None).claims == ()


@pytest.mark.parametrize(
    ("verdicts", "text"),
    [
        ("hh ff", "1 hold, 1 fail, all as expected"),
        ("hf", "1 hold, 0 fail; not as expected: c0 (holds)"),
        ("hh fh hh", "2 hold, 1 fail; not as expected: c1 (fails)"),
        ("uf ff", "0 hold, 1 fail, 1 undecided; not as expected: c0 (undecided)"),
    ],
)
def test_the_closing_line_counts(verdicts: str, text: str) -> None:
    words = {"h": "holds", "f": "fails", "u": "undecided"}
    listed = [{"id": f"c{i}", "verdict": words[v], "expected": words[e]} for i, (v, e) in enumerate(verdicts.split())]
    assert reproduce.tally(listed) == text


def test_every_experiment_states_seed_sizes_and_source() -> None:
    folder = reproduce.experiments_folder()
    for name in reproduce.experiment_names(folder):
        module = reproduce._load(name, folder)
        assert module.FULL.keys() == module.QUICK.keys()
        assert not any("tol" in key for key in module.FULL)
        json.dumps([module.FULL, module.QUICK])
        assert isinstance(module.SEED, int)
        assert (module.__doc__ or "").count("\n\n") >= 1
        assert "Yaras et al." in " ".join((module.__doc__ or "").split())


def test_figure_2_end_to_end(tmp_path: Path) -> None:
    console = quiet()
    (item,) = reproduce.run(["fig2"], quick=True, out=tmp_path, console=console).figures
    record = read_netcdf(item.record)
    assert record.attrs["max_deviation_modality_gap"] <= 1e-3
    assert record.attrs["max_deviation_temperature"] <= 1e-3
    for name, value in {
        "peak_gap": 1.0568,
        "peak_temperature": 1.0234,
        "peak_time": 2.0639,
        "matched_time": 3.8328,
        "final_gap": 0.54055,
        "final_temperature": 0.0358,
    }.items():
        assert record.attrs[name] == pytest.approx(value, abs=6e-5), name
    assert all(os.path.getsize(f) > 10_000 for f in item.files)
    before = item.files[1].read_bytes()
    (again,) = reproduce.run(["fig2"], quick=True, out=tmp_path, console=console).figures
    assert again.reused
    assert again.files[1].read_bytes() == before
