"""Figures draw the data of the result, return Axes and leave matplotlib's settings alone."""

import matplotlib

matplotlib.use("Agg")

import dataclasses
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from mpl_toolkits.mplot3d.art3d import Line3D
from PIL import Image
from PIL.GifImagePlugin import GifImageFile

import flowsim as fs
from flowsim import plot
from flowsim.base import sources as _sources
from flowsim.plot.film import _film
from flowsim.records.result import Result


@pytest.fixture(scope="module")
def result() -> Result:
    ts = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 40)])
    return fs.simulate(fs.GradientFlow(), fs.initial.rings(), ts=ts)


@pytest.fixture(autouse=True)
def settings_untouched() -> Iterator[None]:
    before = dict(matplotlib.rcParams)
    yield
    assert dict(matplotlib.rcParams) == before
    plt.close("all")


@pytest.mark.parametrize("name", ["modality_gap", "temperature", "loss", "margin"])
def test_a_series_draws_the_data_of_the_result(result: Result, name: str) -> None:
    ax = plot.series(result, name)
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), result.time)
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.series[name])
    assert ax.get_xscale() == "log"
    assert ax.get_xlabel() == plot.TIME_LABEL
    assert ax.get_ylabel() == plot.label(name)


@pytest.mark.parametrize(("function", "name"), [(plot.gap, "modality_gap"), (plot.temperature, "temperature")])
def test_gap_and_temperature_draw_into_the_given_axes(result: Result, function, name: str) -> None:
    given = plt.subplots()[1]
    ax = function(result, ax=given)
    assert ax is given
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), result.series[name])
    ax.figure.canvas.draw()


def test_matched_times_are_shaded(result: Result) -> None:
    ax = plot.gap(result)
    (patch,) = ax.patches
    left, right = patch.get_extents().transformed(ax.transData.inverted()).intervalx
    matched = result.time[result.series["margin"] > 0]
    np.testing.assert_allclose([left, right], [matched[0], matched[-1]], rtol=1e-9)


def test_every_stretch_is_shaded_once() -> None:
    ax = plot.shade_intervals(np.arange(6.0), np.array([True, False, True, True, False, True]), plt.subplots()[1])
    assert len(ax.patches) == 3


def test_a_sphere_shows_every_point_and_joins_the_pairs(result: Result) -> None:
    snapshot = result.at(0.0)
    for embeddings in (snapshot, (snapshot.image, snapshot.text)):
        ax = plot.sphere(embeddings)
        drawn = []
        for line in ax.lines:
            assert isinstance(line, Line3D)
            drawn.append(np.array(line.get_data_3d()))
        points = np.concatenate([d.T for d in drawn if d.shape[1] == 1])
        for rows in (snapshot.image, snapshot.text):
            assert all(np.abs(points - row).max(axis=1).min() == 0 for row in rows)
        chords = [d for d in drawn if d.shape[1] == 2]
        assert len(chords) == len(snapshot.image)
        np.testing.assert_array_equal(np.stack([c[:, 1] for c in chords]), snapshot.text)


def test_the_similarity_matrix_is_drawn(result: Result) -> None:
    image, text = result.final.image, result.final.text
    ax = plot.similarity((3 * image, text), ax=plt.subplots()[1])
    np.testing.assert_allclose(ax.images[0].get_array(), image @ text.T, atol=1e-14)


def test_the_overview_has_four_series_and_six_spheres(result: Result) -> None:
    axes = plot.overview(result)
    assert all(isinstance(ax, Axes) for ax in axes)
    assert [ax.name for ax in axes] == ["rectilinear"] * 4 + ["3d"] * 6
    np.testing.assert_array_equal(axes[0].lines[0].get_ydata(), result.series["modality_gap"])
    axes[0].figure.canvas.draw()
    given = list(plt.subplots(2, 2)[1].flat)
    assert plot.overview(result, ax=given) == given


def test_wrong_input_is_refused_in_a_sentence(result: Result) -> None:
    with pytest.raises(fs.FlowsimError, match="Did you mean 'modality_gap'"):
        plot.series(result, "modalitygap")
    with pytest.raises(fs.FlowsimError, match="three dimensions"):
        plot.sphere((np.eye(4), np.eye(4)))
    with pytest.raises(fs.FlowsimError, match="three-dimensional axes"):
        plot.sphere((np.eye(3), np.eye(3)), ax=plt.subplots()[1])
    with pytest.raises(fs.FlowsimError, match="same shape"):
        plot.similarity((np.eye(3), np.eye(4)))
    with pytest.raises(fs.FlowsimError, match="Give more"):
        plot.overview(result, ax=[plt.subplots()[1]])


def test_the_paper_style_ends_with_its_context() -> None:
    with plot.paper_style():
        assert matplotlib.rcParams["font.family"] == ["STIXGeneral"]


def test_labels_have_symbols() -> None:
    assert plot.label("temperature") == r"temperature $\tau$"
    assert plot.label("alignment") == r"alignment $\mathcal{A}$"
    assert [plot.time_text(t) for t in (0.0, 2.3, 1e5, 2.5e6)] == [
        "0",
        "2.3",
        "$10^{5}$",
        r"$2.5 \times 10^{6}$",
    ]


def film_of(dim: int, pairs: int = 5, geometry=None) -> Result:
    times = np.concatenate([[0.0], np.geomspace(0.1, 10, 3)])
    flow = fs.GradientFlow(geometry or fs.Sphere())
    return fs.simulate(flow, fs.initial.uniform(pairs, dim), ts=times, snapshots=times)


@pytest.mark.parametrize(("dim", "pairs"), [(3, 5), (2, 4), (4, 5), (8, 16), (64, 3)])
def test_every_frame_has_the_same_axes(dim: int, pairs: int) -> None:
    result = film_of(dim, pairs)
    with plot.paper_style():
        figure, show = _film(result, result.snapshot_time)
        for frame, t in enumerate(result.snapshot_time):
            show(frame)
            figure.canvas.draw()
            # Gap, temperature, embeddings, and the colour bar of the similarities.
            assert len(figure.axes) == (3 if dim == 3 else 4)
            right = figure.axes[2]
            assert right.get_position().width > 0.15
            if dim != 3:
                image, text = result.at(float(t)).image, result.at(float(t)).text
                np.testing.assert_allclose(right.images[0].get_array(), image @ text.T, atol=1e-12)


class References(HTMLParser):
    """What a page would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.styles: list[str] = []

    def handle_starttag(self, tag, attrs) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "poster", "srcset")]

    def handle_data(self, data: str) -> None:
        self.found += re.findall(r"@import[^;]*|url\((?!['\"]?data:)[^)]*\)|https?://[^\s\"'<>]+", data)
        self.styles += re.findall(r"\.fa-([a-z-]+)::before", data)


@pytest.mark.parametrize("dim", [3, 8])
def test_a_film_as_a_page_needs_no_network(tmp_path: Path, dim: int) -> None:
    text = plot.animate(film_of(dim), str(tmp_path / "flow.html")).read_text("utf-8")
    page = References()
    page.feed(text)
    assert page.found == []
    assert text.count("data:image/png;base64") == 4
    # Every button has a sign.
    signs = set(re.findall(r"<i class=.fa fa-([a-z-]+)", text))
    assert len(signs) == 8
    assert signs <= set(page.styles)
    # The page of matplotlib itself would fetch something.
    page.feed('<link rel="stylesheet" href="https://example.org/a.css"><style>@import "b.css";</style>')
    assert len(page.found) == 2


def test_a_film_shows_at_most_so_many_frames_and_says_of_what(tmp_path: Path) -> None:
    times = np.concatenate([[0.0], np.geomspace(0.1, 100, 20)])
    result = fs.simulate(fs.GradientFlow(), fs.initial.rings(), ts=times, snapshots=times)
    for frames, shown in ((2, 2), (7, 7), (500, 21), (None, 21)):
        path = plot.animate(result, str(tmp_path / "flow.gif"), frames=frames)
        with Image.open(path) as film:
            assert isinstance(film, GifImageFile) and film.n_frames == shown
    stamp = _sources.read_stamp(path)
    assert stamp["config"] == json.loads(json.dumps(result.config))
    assert stamp["drawn_by"] == _sources.drawing_hash("animate")


def test_figures_say_what_their_shading_and_signs_mean(result: Result) -> None:
    axes = plot.overview(result)
    assert [t.get_text() for t in axes[0].get_legend().get_texts()] == ["all pairs matched"]
    (signs,) = axes[0].figure.legends
    assert [t.get_text() for t in signs.get_texts()] == ["image", "pair", "text"]
    given = list(plt.subplots(2, 2)[1].flat)
    plot.overview(result, ax=given)
    assert not given[0].figure.legends


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(tmp_path: Path, kind: str) -> None:
    written = []
    for name in "ab":
        figure, ax = plt.subplots()
        ax.plot([0, 1])
        with matplotlib.rc_context({"svg.hashsalt": "0"}):
            written.append(plot.save(figure, str(tmp_path / f"{name}.{kind}"), _sources.write_stamp({"a": "(1)\\"})))
    assert written[0].read_bytes() == written[1].read_bytes()
    if kind != "svg":
        assert _sources.read_stamp(written[1]) == {"a": "(1)\\"}


def test_a_film_has_a_frame_for_each_snapshot(tmp_path):
    times = np.concatenate([[0.0], np.geomspace(0.1, 100, 4)])
    result = fs.simulate(fs.GradientFlow(), fs.initial.rings(), ts=times, snapshots=times)
    path = fs.plot.animate(result, str(tmp_path / "flow.gif"), fps=5)
    with Image.open(path) as film:
        assert isinstance(film, GifImageFile) and film.n_frames == 5
        first = np.asarray(film.convert("RGB")).copy()
        film.seek(4)
        assert (np.asarray(film.convert("RGB")) != first).any()
    with pytest.raises(fs.FlowsimError, match="cannot be written as"):
        fs.plot.animate(result, "flow.avi")
    with pytest.raises(fs.FlowsimError, match="fewer than two"):
        fs.plot.animate(dataclasses.replace(result, snapshot_time=times[:1]), "flow.gif")


def test_a_phase_diagram_shows_cells_lines_and_the_prediction():
    x, y = np.geomspace(0.01, 1, 5), np.linspace(0, 2, 4)
    values = np.log(x)[None, :, None] + y[:, None, None] + np.array([-0.5, 0.5])
    field = xr.DataArray(values, {"y": y, "x": x, "seed": [0, 1]}, ("y", "x", "seed"))
    ax = fs.plot.phase_diagram(field, "x", "y", levels=[-1.0, 9.0], boundary=lambda x: 1 + x, cmap="viridis")
    mesh, lines = ax.collections
    np.testing.assert_allclose(mesh.get_array(), np.log(x)[None, :] + y[:, None])
    assert (ax.get_xscale(), ax.get_yscale(), mesh.get_cmap().name) == ("log", "linear", "viridis")
    # The only level inside the range, where ln x + y = -1.
    vertices = np.concatenate([path.vertices for path in lines.get_paths()])
    np.testing.assert_allclose(np.log(vertices[:, 0]) + vertices[:, 1], -1, atol=1e-2)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 1 + x)
    with pytest.raises(fs.FlowsimError, match=r"Unknown dimension 'z'"):
        fs.plot.phase_diagram(field, "z", "y")


def test_the_exponent_of_parallel_cones_tends_to_its_law():
    flow = fs.GradientFlow(fs.Reduced(), fs.temperature.Learnable(0.07))
    cones = fs.simulate(flow, fs.initial.orthonormal(4, 0.3), ts=np.geomspace(1, 1e100, 300))
    ax = fs.plot.exponent(cones, "gamma", law=2.0)
    power = np.asarray(ax.lines[0].get_ydata())
    assert abs(power[-1] - 2) < 0.1 < abs(power[50] - 2)
    np.testing.assert_allclose(ax.lines[1].get_ydata(), 2.0)
    with pytest.raises(fs.FlowsimError, match=r"Unknown observable 'gap'"):
        fs.plot.exponent(cones, "gap")


def test_gap_against_retrieval_has_a_point_for_each_run():
    ax = fs.plot.gap_against_retrieval([0.1, 0.2, 0.3, 0.4], [0.9, 0.8, 0.7, 0.1], names=list("abcd"))
    assert [t.get_text() for t in ax.texts] == list("abcd")
    assert "-1.00" in ax.get_title()
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.9, 0.8, 0.7, 0.1])
    with pytest.raises(fs.FlowsimError, match="2 gaps, 1 recalls and 2 names"):
        fs.plot.gap_against_retrieval([0.1, 0.2], [0.9])


def test_cells_hold_their_values_also_on_logarithmic_axes():
    x = np.array([0.01, 0.1, 0.9])
    field = xr.DataArray(np.zeros((2, 3)), {"y": [0.0, 1.0], "x": x}, ("y", "x"), name="modality_gap")
    ax = fs.plot.phase_diagram(field, "x", "y")
    (mesh,) = ax.collections
    assert isinstance(mesh, QuadMesh)
    corners = np.asarray(mesh.get_coordinates())[0, :, 0]
    assert (corners[:-1] < x).all()
    assert (x < corners[1:]).all()
    assert ax.get_xlim()[0] < 0.01
    assert ax.get_xlim()[1] > 0.9
    assert "modality gap" in ax.figure.axes[1].get_ylabel()  # the colour bar


def test_results_are_compared_on_the_same_axes(result):
    start = fs.initial.rings(height=0.6)
    higher = fs.simulate(fs.GradientFlow(schedule=fs.temperature.Fixed(0.05)), start, ts=result.time)
    ax = fs.plot.gap(result, label="low", color="red")
    bands = len(ax.patches)
    fs.plot.gap(higher, ax, label="high", color="blue")
    assert ax.get_ylim()[1] > np.nanmax(higher.series["modality_gap"])
    assert ax.get_ylim()[0] == 0
    assert len(ax.patches) == bands
    assert [line.get_color() for line in ax.lines] == ["red", "blue"]
    # Another run, of another length, leaves both whole.
    longer = fs.simulate(fs.GradientFlow(), start, t1=1e5)
    fs.plot.gap(longer, ax)
    fs.plot.gap(result, ax)
    assert ax.get_xlim()[1] == 1e5


def test_a_logarithmic_axis_holds_every_point(result):
    """The page `start` compares runs so: scale and limits must not depend on what was drawn before."""
    cold = fs.simulate(fs.GradientFlow(schedule=fs.temperature.Fixed(0.05)), fs.initial.rings(), ts=result.time)
    for draw, name in ((plot.temperature, "temperature"), (plot.gap, "modality_gap")):
        ax = plt.subplots()[1]
        for run in (result, cold):
            draw(run, ax)
        assert ax.get_ylim()[0] == 0
        ax.set_yscale("log")
        bottom, top = ax.get_ylim()
        values = np.concatenate([run.series[name] for run in (result, cold)])
        assert 0 < bottom < values.min() < values.max() < top < 10 * values.max()
        # It may also be logarithmic from the first line on.
        early = plt.subplots()[1]
        early.set_yscale("log")
        for run in (result, cold):
            draw(run, early)
        assert early.get_ylim() == (bottom, top)


def test_temperatures_far_apart_are_drawn_on_a_logarithmic_axis(result):
    cold = fs.simulate(fs.GradientFlow(schedule=fs.temperature.Fixed(0.01)), fs.initial.rings(), ts=result.time)
    ax = plot.temperature(result)
    assert ax.get_yscale() == "linear"
    plot.temperature(cold, ax)
    assert ax.get_yscale() == "log"
    assert 0 < ax.get_ylim()[0] < 0.01


FIELD = xr.DataArray(np.ones((4, 5)), {"y": np.arange(4.0), "x": np.arange(5.0)}, ("y", "x"), name="gap")


@pytest.mark.parametrize(
    ("field", "x", "y", "boundary", "message"),
    [
        (FIELD.to_dataset(), "x", "y", None, r'got Dataset. Use e.g. runs\["modality_gap"\]'),
        (FIELD.astype(str), "x", "y", None, "got DataArray of <U"),
        (FIELD, "x", "x", None, "Both axes are 'x'. Give two dimensions of 'y', 'x'"),
        (FIELD.assign_coords(x=list("abcde")), "x", "y", None, "'x' does not hold numbers"),
        (FIELD, "x", "y", FIELD["y"] + 1, "is a function of 'y', but must give y over 'x'"),
        (FIELD, "x", "y", FIELD, "is a function of 'y', 'x', but"),
        (FIELD, "x", "y", [1.0, 2.0], r"shape \(2,\), but 'x' has 5 values"),
        (FIELD, "x", "y", lambda x: x[:3], r"shape \(3,\), but 'x' has 5 values"),
    ],
)
def test_what_does_not_belong_to_a_phase_diagram(field, x, y, boundary, message):
    draw = getattr(plot.phase_diagram, "__wrapped__", plot.phase_diagram)  # past the type checks of the tests
    with pytest.raises(fs.FlowsimError, match=message):
        draw(field, x, y, boundary=boundary)


def test_a_boundary_with_labels_stands_at_its_labels():
    half = FIELD["x"][::-2] / 2
    line = plot.phase_diagram(FIELD, "x", "y", boundary=half).lines[0]
    np.testing.assert_array_equal(line.get_xydata(), [[4, 2], [2, 1], [0, 0]])
