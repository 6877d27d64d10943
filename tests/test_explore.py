"""The explorer: controls give runs, code gives the same run, and what cannot be is explained in place."""

import matplotlib

matplotlib.use("Agg")

import dataclasses
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest

import flowsim as fs
from flowsim.explorer import CONTROLS, Choice, explore, presets, views


@pytest.fixture(scope="module")
def explorer():
    return explore(view=False)


@pytest.fixture(autouse=True)
def default(explorer):
    """Every test starts from Figure 2."""
    explorer.set(**dataclasses.asdict(Choice()))


def drawn(explorer, name):
    return explorer._picture.lines[name].get_ydata()


def widgets_of(explorer):
    """Name -> widget of a notebook."""
    box = views.notebook(explorer)
    return dict(zip([c.name for c in CONTROLS], box.children[0].children[1:], strict=True))


@pytest.fixture(autouse=True)
def unwatched(explorer):
    """Views of earlier tests are gone."""
    yield
    explorer.watchers.clear()


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
        {"shared": 0.5, "horizon": 10.0},
        *(
            pytest.param(changes, marks=pytest.mark.slow)
            for changes in (
                {"geometry": "Parallel", "policy": "learnable softplus", "twist": 0.0, "horizon": 10.0},
                {"geometry": "Parallel", "shared": 2.0, "twist": 0.0, "horizon": 10.0},
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


def test_a_shared_kernel_closes_the_gap_sooner():
    free, together = (Choice().replace(shared=shared, horizon=100.0) for shared in (0.0, 10.0))
    last = [fs.simulate(c.flow(), c.start(), t1=100.0).series["modality_gap"][-1] for c in (free, together)]
    assert last[1] < 0.5 * last[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", 0.07),  # 0.0701 on a logarithmic slider of floats
        ("temperature", 0.0123),
        ("end", 0.33333),
        ("height", 0.3095),
        ("twist", -143.7),
        ("lr_ratio", 0.125),
        ("horizon", 1.5e5),
        ("noise", 0.0007),
    ],
)
def test_sliders_show_the_number_that_is_run(explorer, name, value):
    controls = widgets_of(explorer)
    explorer.set(**{name: value})
    assert explorer.message == ""
    assert getattr(explorer.choice, name) == value
    shown = controls[name]
    assert shown.value == value
    assert float({v: k for k, v in shown.options}[value]) == value
    assert [v for _, v in shown.options] == sorted(v for _, v in shown.options)
    # Elsewhere its values are round.
    assert all(v == value or v == float(f"{v:.3g}") for _, v in shown.options)


def test_rounding_of_binary_arithmetic_is_not_shown(explorer):
    explorer.set(height=0.31000000000000005)
    assert explorer.choice.height == 0.31


@pytest.mark.parametrize(
    "place",
    [
        {},
        {"policy": "linear", "swap": "soft"},
        {"policy": "cosine", "dim": 5},
        {"policy": "fixed", "mismatch": 0.5},
        {"policy": "fixed", "swap": "hard, rows", "geometry": "Parallel"},
        {"noise": 0.1, "dim": 4, "policy": "learnable softplus"},
        {"mismatch": 0.01, "swap": "none", "policy": "learnable β"},
    ],
    ids=str,
)
def test_unused_controls_are_those_that_the_calls_do_not_hold(place):
    choice = Choice().replace(**place)
    for control in CONTROLS:
        if control.kind == "choice":
            assert control.name not in choice.unused
            continue
        now = getattr(choice, control.name)
        other = next(v for v in reversed(control.values(now)) if v != now)
        changed = choice.replace(**{control.name: other}).code() != choice.code()
        assert changed == (control.name not in choice.unused), control.name


def test_unused_controls_are_disabled_and_change_nothing(explorer):
    controls = widgets_of(explorer)
    assert {name for name, widget in controls.items() if widget.disabled} == {"end", "fraction", "seed"}
    before = explorer.result.series["modality_gap"]
    explorer.set(end=0.3, fraction=0.4, seed=5)
    np.testing.assert_array_equal(explorer.result.series["modality_gap"], before)
    explorer.set(dim=4)
    assert {name for name, widget in controls.items() if widget.disabled} == {"end", "fraction", "twist"}
    before = explorer.result.series["modality_gap"]
    explorer.set(seed=6)
    assert not np.array_equal(explorer.result.series["modality_gap"], before)


@pytest.mark.parametrize(
    ("changes", "sign"),
    [
        ({"height": 0.5}, "solving ..."),
        ({"temperature": 0.2, "horizon": 1e3, "seed": 3}, "solving ..."),
        ({"pairs": 4}, "compiling ..."),
        ({"policy": "fixed"}, "compiling ..."),
        ({"noise": 0.1}, "compiling ..."),
        pytest.param({"dim": 6}, "compiling ...", marks=pytest.mark.slow),
        pytest.param({"swap": "soft"}, "compiling ...", marks=pytest.mark.slow),
        pytest.param({"geometry": "Parallel"}, "compiling ...", marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_picture_of_other_settings_is_marked_while_it_waits(changes, sign, monkeypatch):
    explorer = explore(view=False)
    stage, _, message, *_ = views.notebook(explorer).children[1].children
    (picture,) = stage.children
    seen = []

    def simulate(*args, **options):
        seen.append((message.value, stage._dom_classes, picture.value))
        return fs.simulate(*args, **options)

    monkeypatch.setattr(sys.modules["flowsim.explorer.explorer"], "simulate", simulate)
    old = picture.value
    explorer.set(**changes)
    assert seen == [(f"<i>{sign}</i>", ("flowsim-waits",), old)]
    assert (stage._dom_classes, "..." in message.value) == ((), False)
    assert picture.value != old
    explorer.set(**dataclasses.asdict(explorer.choice))
    assert "solving" in seen[-1][0]
    explorer.set(temperature=-1.0)  # is not run, and leaves no mark
    assert len(seen) == 2
    assert stage._dom_classes == ()


def test_the_mark_goes_when_a_run_breaks_off(explorer, monkeypatch):
    stage, *_ = views.notebook(explorer).children[1].children

    def broken(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["flowsim.explorer.explorer"], "simulate", broken)
    with pytest.raises(KeyboardInterrupt):
        explorer.set(height=0.5)
    assert stage._dom_classes == ()
    assert widgets_of(explorer)["height"].value == explorer.choice.height == 0.309


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 5, "pairs": 5},
        pytest.param({"dim": 8, "pairs": 8, "mismatch": 0.5}, marks=pytest.mark.slow),
        pytest.param({"dim": 4, "pairs": 12, "seed": 3, "height": 0.05}, marks=pytest.mark.slow),
        pytest.param({"dim": 16, "pairs": 4, "geometry": "Parallel"}, marks=pytest.mark.slow),
        pytest.param({"dim": 6, "pairs": 32, "policy": "fixed", "temperature": 0.5}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_projections_show_the_gap_and_say_so(explorer, changes):
    explorer.set(**changes)
    picture = explorer._picture
    assert [name.get_text() for name in picture.names] == ["PC 1", "PC 2", "gap direction"]
    assert f"{changes['dim']} dimensions, projected" in picture.cloud.get_title()
    last = None
    for frame in range(0, len(explorer.result.snapshot_time), 5):
        explorer.scrub(frame)
        image, text = (np.stack(points.get_data_3d(), 1) for points in (picture.images, picture.texts))
        snapshot = explorer.result.at(explorer.result.snapshot_time[frame])
        gap = fs.observables.modality_gap(snapshot.image, snapshot.text)
        # All of the gap lies along the vertical axis, so that pairs cannot coincide while it is open.
        np.testing.assert_allclose(image.mean(0) - text.mean(0), [0, 0, gap], atol=1e-9)
        axes = picture.view.axes(snapshot.image, snapshot.text)
        np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
        # No axis turns round on the way.
        if last is not None and gap > 1e-3:
            assert np.sum(axes[2] * last) > 0.5
        last = axes[2]


def test_three_dimensions_are_shown_as_they_are(explorer):
    names = [name.get_text() for name in explorer._picture.names]
    assert names == ["$x_1$", "$x_2$", "$x_3$"]
    np.testing.assert_array_equal(np.stack(explorer._picture.images.get_data_3d(), 1), explorer.result.final.image)


def test_every_curve_has_a_name(explorer):
    figure, texts = explorer.figure, []
    for ax in figure.axes:
        texts += [text.get_text() for text in ax.get_legend().get_texts()] if ax.get_legend() else []
    wanted = {"margin", "matched fraction", "image", "text", "pair", "closed form", "time of the panels on the right"}
    assert wanted <= set(texts)
    assert not any(legend.get_visible() for legend in explorer._picture.legends)  # no closed form is drawn
    explorer.set(geometry="Parallel", pairs=3, twist=0.0, height=0.3)
    assert all(legend.get_visible() for legend in explorer._picture.legends)


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
    for name in ("picture.doc", "picture", "run.h5", "picture.gif", "calls.ipynb", ""):
        with pytest.raises(fs.FlowsimError, match=r"cannot be written as .*\.nc for the result or \.py for the calls"):
            explorer.save(name)


def test_without_a_display_there_is_a_sentence():
    with pytest.raises(fs.FlowsimError, match="no display for the explorer"):
        fs.explore()


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_window_drives_the_explorer(explorer):
    figure = views.window(explorer)
    widgets = figure.flowsim_widgets
    assert {c.name for c in CONTROLS} <= set(widgets)
    by_name = {c.name: c for c in CONTROLS}

    def move(name, value):
        widgets[name].set_val(by_name[name].values(getattr(explorer.choice, name)).index(value))

    move("height", 0.6)
    assert explorer.choice.height == 0.6
    move("temperature", 0.1)
    assert explorer.choice.temperature == 0.1
    assert widgets["preset"].valtext.get_text() == "(own settings)"
    explorer.set(temperature=0.0701)
    assert widgets["temperature"].valtext.get_text() == "0.0701"
    widgets["time"].set_val(7)
    assert explorer.frame == 7
    names = ["(own settings)", *presets()]
    widgets["preset"].set_val(names.index("FLT 2e-1"))
    assert (explorer.choice.policy, explorer.choice.temperature) == ("fixed", 0.2)
    # What the explorer has is what the widgets show, and moving them to it solved nothing.
    assert widgets["policy"].value_selected == "fixed"
    assert widgets["temperature"].valtext.get_text() == "0.2"
    assert widgets["preset"].valtext.get_text() == "FLT 2e-1"
    assert {name for name, w in widgets.items() if not w.active} == set(explorer.choice.unused)
    plt.close(figure)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_window_says_that_it_waits(explorer, monkeypatch):
    figure = views.window(explorer)
    sign, picture = figure.axes[0].texts[0], figure.axes[0].images[0]
    seen = []

    def simulate(*args, **options):
        seen.append((sign.get_text(), picture.get_alpha()))
        return fs.simulate(*args, **options)

    monkeypatch.setattr(sys.modules["flowsim.explorer.explorer"], "simulate", simulate)
    explorer.set(pairs=7).set(height=0.5)
    assert seen == [("compiling ...", 0.3), ("solving ...", 0.3)]
    assert (sign.get_text(), picture.get_alpha()) == ("", 1.0)
    plt.close(figure)


@pytest.mark.parametrize("waits", [views.window_waits, views.notebook_waits])
def test_the_first_run_says_that_it_compiles(waits, monkeypatch, capsys):
    monkeypatch.setattr("IPython.display.display", lambda shown, **_: print(shown.data))
    with waits():
        assert "compiling ..." in capsys.readouterr().out


def test_the_notebook_drives_the_explorer(explorer, tmp_path):
    box = views.notebook(explorer)
    preset, *controls = box.children[0].children
    stage, player, message, saving, code, _ = box.children[1].children
    (picture,) = stage.children
    by_name = dict(zip([c.name for c in CONTROLS], controls, strict=True))
    assert preset.value == "Figure 2"
    before = picture.value
    by_name["height"].value = 0.6
    assert explorer.choice.height == 0.6
    assert preset.value == "Baseline"  # which says nothing of heights
    assert picture.value != before
    assert "0.6" in code.value
    player.children[1].value = 5
    assert explorer.frame == 5
    preset.value = "SLRT 0.1"
    assert by_name["lr_ratio"].value == pytest.approx(0.1)
    # Code moves what is shown, too.
    explorer.set(temperature=0.033)
    assert by_name["temperature"].value == 0.033
    assert preset.value == "(own settings)"
    assert "0.033" in code.value
    path, save = saving.children
    path.value = str(tmp_path / "run.nc")
    save.click()
    assert "Saved" in message.value
    assert (tmp_path / "run.nc").exists()
    path.value = str(tmp_path / "run.doc")
    save.click()
    assert "cannot be written as" in message.value


@pytest.mark.parametrize("name", list(presets()))
def test_the_box_of_presets_says_which_one_is_set(explorer, name):
    """Without a run: names of the controls decide."""
    explorer._preset = name
    choice = explorer.choice
    try:
        explorer.choice = choice.replace(**presets()[name])
        assert explorer.preset_name == name
        explorer.choice = explorer.choice.replace(temperature=0.0678)
        assert explorer.preset_name == ""
    finally:
        explorer.choice, explorer._preset = choice, ""


def test_it_prints_what_it_is(explorer):
    assert repr(explorer) == "Explorer(Figure 2), with set(NAME=VALUE), result, code() and save(FILE)"
    explorer.set(height=0.5, pairs=4)
    assert repr(explorer).startswith("Explorer(pairs=4, height=0.5), with")
