"""The explorer: controls give runs, code gives the same run, and what cannot be is explained in place."""

import matplotlib

matplotlib.use("Agg")

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest

import flowsim as fs
from flowsim.explore import CONTROLS, Choice, explore, presets, views


@pytest.fixture(scope="module")
def explorer():
    return explore(view=False)


@pytest.fixture(autouse=True)
def default(explorer):
    """Every test starts from Figure 2."""
    explorer.set(**dataclasses.asdict(Choice()))


def drawn(explorer, name):
    return explorer._picture.lines[name].get_ydata()


def test_the_default_is_figure_2(explorer):
    gap = explorer.result.series["modality_gap"]
    assert gap[0] == pytest.approx(0.618)
    assert gap.max() == pytest.approx(1.0568, abs=2e-3)
    np.testing.assert_array_equal(drawn(explorer, "modality_gap"), gap)
    assert explorer.message == ""


@pytest.mark.parametrize("name", ["height", "twist", "temperature", "lr_ratio", "horizon"])
def test_moving_a_number_changes_the_run_and_compiles_nothing(explorer, name):
    before = explorer.result
    moved = {"height": 0.5, "twist": 20.0, "temperature": 0.2, "lr_ratio": 3.0, "horizon": 1e4}[name]
    explorer.set(**{name: moved})
    assert getattr(explorer.choice, name) == moved
    assert not np.array_equal(explorer.result.series["modality_gap"], before.series["modality_gap"])
    assert explorer.result.stats["compile_seconds"] < 0.05
    np.testing.assert_array_equal(drawn(explorer, "temperature"), explorer.result.series["temperature"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -1.0}, "Control `temperature` must be from 0.01 to 1, but is -1.0."),
        ({"policy": "fixt"}, "Did you mean 'fixed'"),
        ({"tempratur": 0.1}, "Did you mean 'temperature'"),
    ],
)
def test_what_cannot_be_is_explained_and_changes_nothing(explorer, changes, message):
    choice, result = explorer.choice, explorer.result
    explorer.set(**changes)
    assert message in explorer.message
    assert explorer.message in explorer.figure.get_suptitle()
    assert explorer.choice == choice
    assert explorer.result is result


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 0.5, "temperature": 0.03},
        {"mismatch": 0.5, "dim": 5, "pairs": 6, "seed": 3, "horizon": 10.0},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"geometry": "Parallel", "policy": "learnable softplus", "twist": 0.0, "horizon": 10.0},
                {"noise": 0.1, "policy": "fixed", "temperature": 0.2, "horizon": 10.0},
                {"swap": "hard, rows", "fraction": 0.3, "policy": "linear", "horizon": 10.0},
            )
        ),
    ],
)
def test_the_code_gives_the_run_that_is_shown(explorer, changes):
    explorer.set(**changes)
    assert explorer.message == ""
    names = {}
    exec(explorer.code(), names)
    ours, theirs = explorer.result.series, names["result"].series
    for name in ("modality_gap", "temperature", "loss"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_closed_form_is_drawn_where_there_is_one(explorer):
    assert len(explorer._picture.closed["modality_gap"].get_xdata()) == 0
    explorer.set(geometry="Parallel", pairs=3, twist=0.0, height=0.3)  # a simplex of three
    found = explorer._picture.closed["modality_gap"].get_ydata()
    np.testing.assert_allclose(found, explorer.result.series["modality_gap"], rtol=1e-6)


def test_a_slider_that_snaps_to_its_grid_changes_nothing(explorer):
    box = views.notebook(explorer)
    controls = dict(zip([c.name for c in CONTROLS], box.children[0].children[1:], strict=True))
    before = explorer.choice
    controls["temperature"].value = 0.0701  # what a browser makes of 0.07
    controls["horizon"].value = 1.001e5
    assert explorer.choice == before
    controls["temperature"].value = 0.0705
    assert explorer.choice.temperature == 0.0705
    controls["height"].value = 0.31000000000000005
    assert explorer.choice.height == 0.31


def test_scrubbing_shows_another_time(explorer):
    explorer.scrub(0)
    first = explorer._picture.image.get_array().copy()
    wanted = explorer.result.snapshots["image"][0] @ explorer.result.snapshots["text"][0].T
    np.testing.assert_allclose(first, wanted, atol=1e-12)
    explorer.scrub(10**6)
    assert explorer.frame == len(explorer.result.snapshot_time) - 1
    assert not np.allclose(explorer._picture.image.get_array(), first)


def test_presets_are_the_schedules_of_the_paper(explorer):
    found = presets()
    assert {"Figure 2", "Baseline", "FLT 4e-2", "TS S3", "TR softplus", "SLRT 0.1", "HS rows", "SS 5e-2"} <= set(found)
    for name, controls in found.items():
        if name == "Figure 2":
            continue
        wanted = fs.schedules.get(name)
        flow = Choice().replace(**controls).flow()
        assert type(flow.schedule.temperature) is type(wanted.temperature)
        for u in (0.0, 0.4, 1.0):
            assert flow.schedule.temperature.temperature(u) == pytest.approx(wanted.temperature.temperature(u))
        assert flow.schedule.swap.fraction == wanted.swap.fraction
    with pytest.raises(fs.FlowsimError, match="Did you mean 'TS S3'"):
        explorer.preset("TS S33")


def test_exports(explorer, tmp_path):
    for name in ("picture.png", "picture.pdf", "run.nc", "calls.py"):
        explorer.save(str(tmp_path / name))
    assert fs.load(tmp_path / "run.nc").status == explorer.result.status
    assert "fs.simulate(" in (tmp_path / "calls.py").read_text("utf-8")
    with pytest.raises(fs.FlowsimError, match="cannot be written as"):
        explorer.save(str(tmp_path / "picture.doc"))


def test_without_a_display_there_is_a_sentence():
    with pytest.raises(fs.FlowsimError, match="no display to explore on"):
        fs.explore()


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_window_drives_the_explorer(explorer):
    figure = views.window(explorer)
    widgets = figure.flowsim_widgets
    assert {c.name for c in CONTROLS} <= set(widgets)
    widgets["height"].set_val(0.6)
    assert explorer.choice.height == 0.6
    widgets["temperature"].set_val(-1.0)  # on a logarithmic slider
    assert explorer.choice.temperature == pytest.approx(0.1)
    widgets["time"].set_val(7)
    assert explorer.frame == 7
    names = list(presets())
    widgets["preset"].set_val(names.index("FLT 2e-1"))
    assert (explorer.choice.policy, explorer.choice.temperature) == ("fixed", 0.2)
    # What the explorer has is what the widgets show, and moving them to it solved nothing.
    assert widgets["policy"].value_selected == "fixed"
    assert widgets["temperature"].valtext.get_text() == "0.2"
    assert widgets["preset"].valtext.get_text() == "FLT 2e-1"
    plt.close(figure)


def test_the_notebook_drives_the_explorer(explorer, tmp_path):
    box = views.notebook(explorer)
    preset, *controls = box.children[0].children
    picture, player, message, saving, code = box.children[1].children
    by_name = dict(zip([c.name for c in CONTROLS], controls, strict=True))
    before = picture.value
    by_name["height"].value = 0.6
    assert explorer.choice.height == 0.6
    assert picture.value != before
    assert "0.6" in code.value
    player.children[1].value = 5
    assert explorer.frame == 5
    preset.value = "SLRT 0.1"
    assert by_name["lr_ratio"].value == pytest.approx(0.1)
    explorer.set(temperature=0.07)
    path, save = saving.children
    path.value = str(tmp_path / "run.nc")
    save.click()
    assert "Saved" in message.value
    assert (tmp_path / "run.nc").exists()
    path.value = str(tmp_path / "run.doc")
    save.click()
    assert "cannot be written as" in message.value
