"""Figures of results: every function takes a result (or arrays) and `ax=None`, and returns Axes.

    fs.plot.overview(result)
    fs.plot.gap(result, ax=axes[0])

Nothing here shows a figure or changes matplotlib's settings. `paper_style()` is the style of the figures
that `flowsim reproduce` writes; use it as a context where you want it. Colours are those of Okabe and Ito,
which remain distinct under colour blindness.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import AbstractPathEffect, withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from mpl_toolkits.mplot3d.axes3d import Axes3D
from numpy.typing import ArrayLike

from flowsim import observables, theory
from flowsim.base.arrays import check
from flowsim.base.files import write_atomically
from flowsim.base.sources import drawing_hash, write_stamp
from flowsim.errors import FlowsimError, unknown_name
from flowsim.records.result import VARIABLES, Result, Snapshot

if TYPE_CHECKING:
    import xarray as xr

#: The palette of Okabe and Ito (2008), by name.
COLOURS: dict[str, str] = {
    "black": "#000000",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "green": "#009E73",
    "yellow": "#F0E442",
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "purple": "#CC79A7",
    "grey": "#8C8C8C",
}
#: Order in which curves take colours; yellow is left out, too light for lines.
CYCLE: tuple[str, ...] = tuple(COLOURS[k] for k in ("blue", "vermilion", "green", "purple", "orange", "sky", "black"))
IMAGE_COLOUR = COLOURS["blue"]
TEXT_COLOUR = COLOURS["vermilion"]
#: Background where every pair is nearest in both directions.
MATCHED_COLOUR = "#DDEFE8"
TIME_LABEL = r"flow time $t$"

#: Widths of one and two columns of a paper, in inches.
COLUMN, PAGE = 3.4, 7.0

_PAPER: dict[str, Any] = {
    "font.family": "STIXGeneral",
    "mathtext.fontset": "stix",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=CYCLE),
    "axes.titlelocation": "left",
    "lines.linewidth": 1.3,
    "lines.markersize": 3.5,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "figure.dpi": 100,
    "savefig.dpi": 250,
    "pdf.fonttype": 42,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
}


@contextlib.contextmanager
def paper_style() -> Iterator[None]:
    """The style of the reproduced figures, for as long as the context lasts."""
    with plt.rc_context():
        plt.rcdefaults()
        for key, value in _PAPER.items():
            plt.rcParams[key] = value  # pyright: ignore[reportArgumentType]
        yield


def series(result: Result, name: str, ax: Axes | None = None, **line: Any) -> Axes:
    """One recorded observable against flow time, which is logarithmic; shaded where the pairs are matched.

    Losses are drawn on a logarithmic axis too. `line` is passed on to `Axes.plot` (`label`, `color`, ...): with it
    several results are compared on the same axes, where only the first is shaded. Raises `FlowsimError` if `name` was
    not recorded.
    """
    _check_recorded(result, name)
    ax = _axes(ax)
    time, values = result.time, result.series[name]
    colour = _COLOUR_OF.get(name, COLOURS["black"])
    alone = not ax.lines
    ax.plot(time, values, **{"color": colour, **line})
    # A point at t = 0 is drawn at the left edge.
    ax.set_xscale("log", nonpositive="clip")
    positive = time[time > 0]
    if positive.size > 1:
        # Lines that are there already stay inside.
        ends = [positive[0], positive[-1], *([] if alone else ax.get_xlim())]
        ax.set_xlim(min(ends), max(ends))
    finite = values[np.isfinite(values)]
    if name == "loss" and finite.size and (finite > 0).all() and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
    ax.set_xlabel(f"{result.clock} $t$")
    ax.set_ylabel(label(name))
    return shade_matched(result, ax) if alone else ax


def gap(result: Result, ax: Axes | None = None, **line: Any) -> Axes:
    """The modality gap against flow time; `line` as in `series`.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> ax = None
        >>> for name, colour in zip(("Baseline", "TS S3"), fs.plot.CYCLE):
        ...     result = fs.simulate(fs.GradientFlow.from_preset(name), start, t1=1e3)
        ...     ax = fs.plot.gap(result, ax, label=name, color=colour)
        >>> [text.get_text() for text in ax.legend().get_texts()]
        ['Baseline', 'TS S3']
    """
    ax = series(result, "modality_gap", ax, **line)
    _from_zero(ax)
    return ax


def temperature(result: Result, ax: Axes | None = None, **line: Any) -> Axes:
    """The temperature against flow time; `line` as in `series`.

    The axis is logarithmic if the temperatures on it differ by more than a factor 30, else it begins at 0. Either can
    be changed afterwards with `ax.set_yscale`.
    """
    ax = series(result, "temperature", ax, **line)
    values = np.concatenate([np.ravel(np.asarray(drawn.get_ydata(), float)) for drawn in ax.lines])
    values = values[np.isfinite(values)]
    if values.size and values.max() > 30 * values.min():
        ax.set_yscale("log")
    _from_zero(ax)
    return ax


def _check_result(result: Any) -> None:
    check(
        isinstance(result, Result),
        f"Expected a Result, but got {type(result).__name__}. Use what fs.simulate(...) or fs.load(...) returns.",
    )


def _check_recorded(result: Any, name: str) -> None:
    _check_result(result)
    if name not in result.series:
        raise unknown_name("observable", name, result.series)


def _from_zero(ax: Axes) -> None:
    """A linear vertical axis begins at 0, or below if a line goes there.

    The limits stay automatic: fixed ones would hide later lines, and a bottom of 0 has no place on a logarithmic axis.
    """
    for line in ax.lines:
        line.sticky_edges.y.append(0.0)
    ax.update_datalim([(0.0, 0.0)], updatex=False)
    ax.autoscale_view(scalex=False)


def shade_matched(result: Result, ax: Axes) -> Axes:
    """Shade the times at which the margin is positive, where it was recorded."""
    if "margin" in result.series:
        shade_intervals(result.time, result.series["margin"] > 0, ax)
    return ax


def shade_intervals(time: np.ndarray, inside: np.ndarray, ax: Axes) -> Axes:
    """Shade the stretches of `time` (T,) where `inside` (T,) is true."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(int)))
    for first, last in zip(edges[::2], edges[1::2] - 1, strict=True):
        ax.axvspan(float(time[first]), float(time[last]), color=MATCHED_COLOUR, lw=0, zorder=0)
    return ax


def sphere(embeddings: Snapshot | tuple[Any, Any], ax: Axes | None = None) -> Axes:
    """Rows on the unit sphere in three dimensions: image and text points, each pair joined by a line.

    `embeddings`: a snapshot, or arrays (image, text) of shape (n, 3). What lies behind the centre is drawn
    fainter. `ax` must have `projection="3d"`. Raises `FlowsimError` for rows that are not three-dimensional.
    """
    image, text = _rows(embeddings)
    if image.shape[1:] != (3,) or text.shape[1:] != (3,):
        raise FlowsimError(
            f"Spheres need rows in three dimensions, but these have {image.shape[-1]}. "
            "Use `fs.plot.similarity`, which draws any dimension."
        )
    if ax is None:
        ax = plt.figure().add_subplot(projection="3d")
    if not isinstance(ax, Axes3D):
        raise FlowsimError('Spheres need three-dimensional axes. Use fig.add_subplot(projection="3d").')
    # The order of drawing is by depth along the line of sight, which matplotlib would guess per artist.
    ax.computed_zorder = False
    ax.view_init(elev=18, azim=-60)
    ax.set_proj_type("ortho")
    elevation, azimuth = np.deg2rad([ax.elev, ax.azim])
    sight = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    _wireframe(ax, sight)
    for x, y in zip(image, text, strict=True):
        depth = float((x + y) @ sight / 2)
        ax.plot(
            *np.column_stack([x, y]), color=COLOURS["black"], lw=0.9, alpha=0.45 + 0.4 * _nearness(depth),
            zorder=2 + depth / 2,
        )  # fmt: skip
    for rows, colour, marker in ((image, IMAGE_COLOUR, "o"), (text, TEXT_COLOUR, "^")):
        for point in rows:
            depth = float(point @ sight)
            near = _nearness(depth)
            ax.plot(
                *point[:, None], ls="", marker=marker, ms=3.4 + 1.2 * near, mew=0.4, mec="white",
                color=_faded(colour, 0.45 + 0.55 * near), zorder=2.5 + depth,
            )  # fmt: skip
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    ax.set_box_aspect((1, 1, 1), zoom=1.55)  # pyright: ignore[reportArgumentType]
    ax.set_axis_off()
    return ax


def similarity(embeddings: Snapshot | tuple[Any, Any], ax: Axes | None = None) -> Axes:
    """The cosines between all image and text rows; matched pairs lie on the diagonal."""
    cosines = _cosines(embeddings)
    ax = _axes(ax)
    drawn = ax.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    ax.set_xlabel("text $j$")
    ax.set_ylabel("image $i$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.figure.colorbar(drawn, ax=ax, label=r"cosine $S_{ij}$", shrink=0.85)
    return ax


def _cosines(embeddings: Snapshot | tuple[Any, Any]) -> np.ndarray:
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in _rows(embeddings))
    return image @ text.T


def phase_diagram(
    field: xr.DataArray,
    x: str,
    y: str,
    ax: Axes | None = None,
    *,
    boundary: ArrayLike | Callable[[np.ndarray], Any] | None = None,
    colourbar: bool = True,
    levels: ArrayLike = (),
    contours: Mapping[str, Any] | None = None,
    **colours: Any,
) -> Axes:
    """A swept quantity over two of its parameters, one cell per point; lines of equal value and a predicted line.

    - `field`: a variable of a sweep, e.g. `runs["modality_gap"].isel(time=-1)`; other dimensions are averaged.
    - `x`, `y`: the dimensions of the axes, logarithmic where their values are spaced so. For a sweep over one
      parameter use "time" as the other; without t = 0 (`.isel(time=slice(1, None))`) its axis is logarithmic.
    - `boundary`: the predicted line: y for each value of x, in order or as a DataArray over x, or a function of x.
    - `levels`: values whose lines are drawn, on a spline through the cells; `contours`: how, as `Axes.contour` has it.
    - `colours`: passed on to `Axes.pcolormesh` (`cmap`, `vmin`, `vmax`). The mesh is `ax.collections[0]`.

    Raises `FlowsimError` for what is no variable of a sweep, for dimensions that it does not have or that hold names
    instead of numbers, and for a boundary that does not belong to x.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow(schedule=fs.temperature.Fixed(0.1), pairing=fs.LabelNoise(0.1))
        >>> over = {"pairing.noise": [0.01, 0.1], "schedule.temperature.tau": [0.1, 0.5]}
        >>> runs = fs.sweep(flow, fs.initial.cones(pairs=4, dim=3), over, t1=10.0)
        >>> ax = fs.plot.phase_diagram(runs["modality_gap"].isel(time=-1), *over)
        >>> ax.get_xscale(), ax.get_ylabel()
        ('log', 'schedule.temperature.tau')
    """
    import xarray as xr

    check(
        isinstance(field, xr.DataArray) and field.dtype.kind in "fiub",
        f"Expected one variable of a sweep, but got {type(field).__name__}"
        f"{f' of {field.dtype}' if isinstance(field, xr.DataArray) else ''}. "
        'Use e.g. runs["modality_gap"].isel(time=-1).',
    )
    for name in (x, y):
        if name not in field.dims:
            raise unknown_name("dimension", name, [str(d) for d in field.dims])
        check(
            field[name].dtype.kind in "fiu",
            f"Dimension {name!r} holds names, which have no place on an axis. Give one that holds numbers.",
        )
    check(x != y, f"Both axes are {x!r}. Give two dimensions of {', '.join(repr(str(d)) for d in field.dims)}.")
    ax = _axes(ax)
    table = field.mean([d for d in field.dims if d not in (x, y)]).transpose(y, x)
    across, up = (np.asarray(table[name], float) for name in (x, y))
    for values, set_scale in ((across, ax.set_xscale), (up, ax.set_yscale)):
        if _is_geometric(values):
            set_scale("log")
    style = {"cmap": "cividis", "rasterized": True, **colours}
    mesh = ax.pcolormesh(_edges(across), _edges(up), table.to_numpy(), **style)
    if colourbar:
        ax.figure.colorbar(mesh, ax=ax, label=label(str(field.name or "")))
    if np.size(levels):
        from scipy.interpolate import RectBivariateSpline

        fine = [_finely(values) for values in (across, up)]
        order = [min(3, len(values) - 1) for values in (across, up)]
        spline = RectBivariateSpline(_place(up), _place(across), table.to_numpy(), kx=order[1], ky=order[0])
        smooth = spline(_place(fine[1]), _place(fine[0]))
        inside = [level for level in np.ravel(levels) if smooth.min() < level < smooth.max()]
        if inside:
            lines = ax.contour(
                *fine, smooth, levels=inside, **{"colors": "black", "linewidths": 0.7, **(contours or {})}
            )
            lines.set_path_effects(_HALO)
            for text in ax.clabel(lines, fmt="%.3g", fontsize=7):
                text.set_path_effects(_HALO)
    if boundary is not None:
        ax.plot(*_boundary(boundary, x, across), color="black", lw=1.2, label="predicted", path_effects=_HALO)
        ax.set_ylim(float(_edges(up)[0]), float(_edges(up)[-1]))
    ax.set(xlabel=x, ylabel=y)
    return ax


def _boundary(boundary: Any, x: str, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) of a predicted line over the values of x."""
    predicted: Any = boundary(across) if callable(boundary) else boundary
    dims = getattr(predicted, "dims", None)  # of a DataArray
    check(
        dims is None or dims == (x,),
        f"The boundary lies over {', '.join(map(repr, dims or ()))}, but must give y over {x!r}. "
        "Exchange x and y, or give one value for each x.",
    )
    # Labelled values know their places, which need not be those of the cells.
    at = across if dims is None or x not in predicted.coords else np.asarray(predicted[x], float)
    values = np.asarray(predicted, float)
    check(
        values.shape == at.shape,
        f"The boundary has shape {values.shape}, but {x!r} has {at.size} values. Give y for each of them.",
    )
    return at, values


def exponent(result: Result, name: str = "modality_gap", ax: Axes | None = None, *, law: float | None = None) -> Axes:
    """The local power p(t) = −d ln Δ / d ln ln t of a recorded quantity, against flow time; `law`: its limit.

    A gap that closes like Δ ~ (ln t)^−p settles at p: 2s²/r for γ on parallel cones, s²/(rn) for rings on the sphere
    (see `fs.theory.predict`), for learnable temperatures and late times. For "gamma" it is taken of ln γ, which does
    not underflow. Times up to t = e are left out. Raises `FlowsimError` if `name` was not recorded.

    Examples:
        >>> import flowsim as fs
        >>> result = fs.simulate(fs.GradientFlow(), fs.initial.rings(pairs=5, height=0.309, twist=-144), t1=1e30)
        >>> round(float(fs.plot.exponent(result, law=0.2).lines[0].get_ydata()[-1]), 1)
        0.2
    """
    _check_recorded(result, name)
    late = result.time > np.e
    log = result.series["log_gamma"] if name == "gamma" and "log_gamma" in result.series else None
    values = np.log(np.abs(result.series[name])) if log is None else log
    ax = _axes(ax)
    speed = -theory.local_slope(values[late], np.log(result.time[late]))
    # The ends are one-sided differences.
    ax.plot(result.time[late][1:-1], speed[1:-1], color=_COLOUR_OF.get(name, COLOURS["black"]))
    if law is not None:
        ax.axhline(law, color=COLOURS["grey"], lw=0.8, ls=(0, (6, 3)), label=f"law: {law:.3g}")
    symbol = label(name).rpartition("$")[0].rpartition("$")[2] or name
    ax.set(xscale="log", xlabel=TIME_LABEL, ylabel=rf"local power $-\,d \ln {symbol}\,/\,d \ln\ln t$")
    return ax


def gap_against_retrieval(
    gap: ArrayLike, retrieval: ArrayLike, names: Sequence[str] | None = None, ax: Axes | None = None
) -> Axes:
    """One point per run: its gap and its retrieval (recall, as `fs.observables.retrieval` or a record has it).

    `names` are written beside the points. From four points on the title gives Spearman's rank correlation.
    Raises `FlowsimError` for different numbers of values.
    """
    gap, retrieval = (np.asarray(values, float).ravel() for values in (gap, retrieval))
    check(
        len(gap) == len(retrieval) == len(gap if names is None else names),
        f"{len(gap)} gaps, {len(retrieval)} recalls and {len(gap if names is None else names)} names do not "
        "belong together. Give one of each per run.",
    )
    ax = _axes(ax)
    ax.plot(gap, retrieval, "o", color=COLOURS["blue"])
    for x, y, name in zip(gap, retrieval, names or [], strict=names is not None):
        ax.annotate(name, (x, y), (4, 2), textcoords="offset points", fontsize=7)
    if len(gap) > 3:
        from scipy.stats import spearmanr

        rank = spearmanr(gap, retrieval).statistic  # pyright: ignore[reportAttributeAccessIssue]
        ax.set_title(rf"Spearman's $\rho = {rank:+.2f}$")
    ax.set(xlabel=label("modality_gap"), ylabel="retrieval (recall, fraction of queries)")
    return ax


#: Black lines and letters that can be read on any colour.
_HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground="white")]


def _is_geometric(values: np.ndarray) -> bool:
    """Whether neighbours have the same ratio, rather than the same difference."""
    if len(values) < 2 or (values <= 0).any():
        return False
    steps, factors = np.diff(values), np.diff(np.log(values))
    if len(values) == 2:
        return bool(values.max() > 3 * values.min())
    return bool(np.ptp(factors) * abs(steps).max() < np.ptp(steps) * abs(factors).max())


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells around the values, halfway in between on their axis."""
    at = _place(values)
    if len(at) == 1:
        return values + np.array([-0.5, 0.5])
    middle = (at[1:] + at[:-1]) / 2
    edges = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return np.exp(edges) if _is_geometric(values) else edges


def _place(values: np.ndarray) -> np.ndarray:
    return np.log(values) if _is_geometric(values) else values


def _finely(values: np.ndarray) -> np.ndarray:
    return (np.geomspace if _is_geometric(values) else np.linspace)(values[0], values[-1], 121)


def overview(result: Result, ax: Sequence[Axes] | None = None) -> list[Axes]:
    """Gap, temperature, loss and margin against time; for rows in three dimensions also up to six spheres.

    `ax`: four Axes for the time series, if you have them; then no spheres are drawn. Returns the list of
    Axes, time series first.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow.from_preset("Baseline")
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> axes = fs.plot.overview(fs.simulate(flow, start, t1=1e5))
        >>> len(axes)  # gap, temperature, loss, margin, and six spheres
        10
    """
    _check_result(result)
    names = [n for n in ("modality_gap", "temperature", "loss", "margin") if n in result.series]
    if ax is not None:
        check(
            not isinstance(ax, Axes) and all(isinstance(panel, Axes) for panel in np.ravel(np.asarray(ax, object))),
            f"The overview draws {len(names)} panels. Give a list of as many Axes, e.g. "
            "plt.subplots(2, 2)[1].ravel(), or none.",
        )
        ax = list(np.ravel(np.asarray(ax, object)))
        if len(ax) < len(names):
            raise FlowsimError(f"The overview draws {len(names)} panels, but got {len(ax)} Axes. Give more.")
        axes = ax[: len(names)]
        shown = []
    else:
        shown = _shown_snapshots(result)
        figure = plt.figure(figsize=(8, 6.4 if shown else 5), layout="constrained")
        grid = figure.add_gridspec(2, 1, height_ratios=[4, 1.2]) if shown else figure.add_gridspec(1, 1)
        panels = grid[0].subgridspec(2, 2)
        axes = [figure.add_subplot(panels[i // 2, i % 2]) for i in range(len(names))]
        for i, snapshot in enumerate(shown):
            place = grid[1].subgridspec(1, len(shown))[i]
            panel = figure.add_subplot(place, projection="3d")
            sphere(snapshot, ax=panel)
            panel.set_title(f"$t$ = {time_text(snapshot.time)}", loc="center")
            axes.append(panel)
    draw = {"modality_gap": gap, "temperature": temperature}
    for name, panel in zip(names, axes, strict=False):
        if name in draw:
            draw[name](result, ax=panel)
        else:
            series(result, name, ax=panel)
        if name == "margin":
            panel.axhline(0, color=COLOURS["grey"], lw=0.8, ls=":")
    _explain(axes[0], bool(shown))
    return axes


def _explain(ax: Axes, spheres: bool, loc: Any = "best") -> None:
    """What the shading means, and below the figure the signs on the spheres."""
    if ax.patches:
        ax.legend([ax.patches[0]], ["all pairs matched"], loc=loc, frameon=True, facecolor="white", edgecolor="none")
    figure = ax.get_figure(root=True)
    if spheres and figure is not None:
        signs = (("image", {"ls": "", "marker": "o", "color": IMAGE_COLOUR}), ("pair", {"color": COLOURS["black"]}),
                 ("text", {"ls": "", "marker": "^", "color": TEXT_COLOUR}))  # fmt: skip
        lines = [
            Line2D([], [], label=name, ms=5, lw=0.9, **style)  # pyright: ignore[reportArgumentType]
            for name, style in signs
        ]
        figure.legend(handles=lines, loc="outside lower right", ncols=3, frameon=False)


#: Frames are for screens.
_FILM_DPI = 120
#: MiB of frames in an .html; matplotlib leaves out, without an error, what exceeds it.
_HTML_MIB = 1024.0
#: Signs for matplotlib's buttons, whose own come with a font from the network.
_BUTTONS = {
    "minus": "\\2212", "plus": "+",
    "pause": "\\275A\\275A", "play": "\\25B6\\FE0E", "flip-horizontal": "\\25C0\\FE0E",
    "fast-backward": "|\\25C0\\FE0E", "fast-forward": "\\25B6\\FE0E|",
    "step-backward": "\\2039", "step-forward": "\\203A",
}  # fmt: skip


def animate(result: Result, path: str, fps: int = 20, frames: int | None = None) -> Path:
    """Film of a run: gap and temperature as they grow, and the embeddings, one frame for each stored snapshot.

    In three dimensions the embeddings are on the sphere, else the matrix of similarities is shown. The file carries a
    stamp with the settings of the run (.gif), and needs no network (.html).

    Args:
        result: a run with at least two snapshots: simulate with `snapshots=np.geomspace(...)`.
        path: the film: .gif, .html (with a player), or .mp4 (needs ffmpeg). Written atomically.
        fps: frames per second.
        frames: at most so many, of snapshots evenly spread; default all.

    Returns:
        The path.

    Raises:
        FlowsimError: for another ending, or a result with fewer than two snapshots.
    """
    kind = film_kind(path)
    _check_result(result)
    count = len(result.snapshot_time)
    check(
        count > 1,
        "A film needs snapshots, but this result holds fewer than two. Simulate with e.g. snapshots=result.time[1:].",
    )
    chosen = np.unique(np.linspace(0, count - 1, count if frames is None else min(frames, count)).round().astype(int))
    times = result.snapshot_time[chosen]
    with paper_style():
        plt.rcParams["savefig.dpi"] = _FILM_DPI
        plt.rcParams["animation.embed_limit"] = _HTML_MIB
        figure, show = _film(result, times)
        film = animation.FuncAnimation(figure, show, frames=len(times), interval=1000 / fps)
        if kind == "html":
            text = _offline(film.to_jshtml(fps=fps))
            return write_atomically(path, lambda temporary: Path(temporary).write_text(text, "utf-8"))
        stamp = write_stamp({"config": result.config, "drawn_by": drawing_hash("animate")})
        writer = _Gif(fps, stamp) if kind == "gif" else animation.FFMpegWriter(fps)

        def write(temporary: str) -> None:
            # The writers choose the format by the ending.
            named = f"{temporary}.{kind}"
            film.save(named, writer=writer)
            os.replace(named, temporary)

        return write_atomically(path, write)


def _film(result: Result, times: np.ndarray) -> tuple[Figure, Callable[[int], list[Any]]]:
    """The figure of a film, and what draws frame k of it, at `times[k]`."""
    snapshots = [result.at(float(t)) for t in times]
    figure = Figure(figsize=(PAGE, 2.8), layout="constrained")
    grid = figure.add_gridspec(1, 3, width_ratios=(1, 1, 1.1))
    left, middle = figure.add_subplot(grid[0]), figure.add_subplot(grid[1])
    gap(result, ax=left)
    temperature(result, ax=middle)
    dots = []
    for ax, name in ((left, "modality_gap"), (middle, "temperature")):
        ax.lines[0].set_alpha(0.3)
        (dot,) = ax.plot([], [], "o", ms=5, color=COLOURS["black"], clip_on=False)
        dots.append((dot, name))
    flat = _rows(snapshots[0])[0].shape[1] != 3
    # A place of its own: the best one would move with the dot.
    _explain(left, not flat, "lower left")
    right = figure.add_subplot(grid[2], projection=None if flat else "3d")
    if flat:
        similarity(snapshots[0], ax=right)

    def show(frame: int) -> list[Any]:
        snapshot = snapshots[frame]
        t = max(snapshot.time, result.time[result.time > 0].min())
        for dot, name in dots:
            dot.set_data([t], [np.interp(snapshot.time, result.time, result.series[name])])
        if flat:
            right.images[0].set_data(_cosines(snapshot))
        else:
            right.clear()
            sphere(snapshot, ax=right)
        right.set_title(f"$t$ = {time_text(snapshot.time)}", loc="center")
        return []

    # Laid out once: frames differ only where something moves.
    show(len(times) - 1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, show


class _Gif(animation.PillowWriter):
    """Frames as a .gif with a comment."""

    def __init__(self, fps: int, comment: str) -> None:
        super().__init__(fps)
        self.comment = comment

    def finish(self) -> None:
        self._frames[0].save(  # pyright: ignore[reportAttributeAccessIssue]
            self.outfile, format="gif", save_all=True,
            append_images=self._frames[1:],  # pyright: ignore[reportAttributeAccessIssue]
            loop=0, duration=int(1000 / self.fps), comment=self.comment.encode("ascii"),
        )  # fmt: skip


def _offline(page: str) -> str:
    """matplotlib's player without the style sheet that it would fetch."""
    signs = "".join(f'.fa-{name}::before {{content: "{sign}"}}\n' for name, sign in _BUTTONS.items())
    page = re.sub(r"<link\b[^>]*>", "", page)
    return f"<meta charset='utf-8'>\n<style>\n.anim-buttons i {{font-style: normal}}\n{signs}</style>\n{page}"


def film_kind(path: str) -> str:
    """ "gif", "html" or "mp4". Raises `FlowsimError` for another ending, or .mp4 without ffmpeg."""
    kind = path.rpartition(".")[2].lower()
    check(kind in ("gif", "html", "mp4"), f"A film cannot be written as {path!r}. Use a name in .gif, .html or .mp4.")
    check(
        kind != "mp4" or animation.FFMpegWriter.isAvailable(),
        "An .mp4 needs ffmpeg, which is not installed. Use .gif or .html.",
    )
    return kind


#: Colours and words of the three sources that a comparison overlays.
_RUN, _SIMULATED, _CLOSED = COLOURS["blue"], COLOURS["vermilion"], COLOURS["black"]


def comparison(items: Mapping[str, Any]) -> Figure:
    """Closed form, simulation and training on one figure: what `fs.compare` found, a panel for each comparison.

    `items`: name -> item with `curves` and `verdict`, as in `Comparison.items`. Items that could tell nothing have
    no panel. Returns the figure.
    """
    panels: list[tuple[str, Any, Any]] = []
    shown = {name: item for name, item in items.items() if item.curves}
    if "simulation" in shown:
        panels.append(("Gap: run, simulation, closed form", _draw_gap, shown["simulation"]))
        if shown["simulation"].curves["tau"] is not None:
            panels.append(("Temperature", _draw_temperature, shown["simulation"]))
    drawing = {
        "exponent": _draw_exponent,
        "slow_closing": _draw_closing,
        "matching": _draw_matching,
        "calibration": _draw_calibration,
        "enlargement": _draw_enlargement,
    }
    panels += [(shown[k].title, draw, shown[k]) for k, draw in drawing.items() if k in shown]
    if not panels:
        raise FlowsimError("This comparison has nothing to draw: no item could tell anything. Read its sentences.")
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = plt.figure(figsize=(PAGE if columns == 2 else COLUMN, 2.35 * rows + 0.1), layout="constrained")
    for index, (title, draw, item) in enumerate(panels):
        ax = figure.add_subplot(rows, columns, index + 1)
        draw(item.curves, ax)
        ax.set_title(rf"$\bf{{({chr(97 + index)})}}$ {title}: {item.verdict}", loc="left")
    return figure


def _steps_axis(curves: Mapping[str, Any], x: np.ndarray, ax: Axes) -> None:
    """Logarithmic from the first positive value on, where there are decades; that at 0 stands at the left edge."""
    positive = x[x > 0]
    if positive.size > 1 and positive[-1] > 30 * positive[0]:
        ax.set_xscale("log", nonpositive="clip")
        ax.set_xlim(positive[0], positive[-1])
    elif positive.size:
        ax.set_xlim(x[0], positive[-1])
    ax.set_xlabel(curves["label"])


def _dots(x: np.ndarray, y: np.ndarray, ax: Axes) -> None:
    """The run as dots, few enough (even in log x, where that is the axis) to leave lines visible."""
    order = np.argsort(x)
    logs = np.log(np.maximum(x[order], x[x > 0].min())) if ax.get_xscale() == "log" else x[order]
    room = np.round((logs - logs[0]) / max(float(np.ptp(logs)), 1e-300) * 50)
    shown = order[np.unique(room, return_index=True)[1]]
    ax.plot(x[shown], y[shown], ls="", marker="o", ms=3, mew=0, color=_RUN, label="run")


def _draw_gap(curves: Mapping[str, Any], ax: Axes) -> None:
    _steps_axis(curves, curves["whole_x"], ax)
    _dots(curves["whole_x"], curves["whole_gap"], ax)
    ax.plot(curves["x"], curves["simulated_gap"], color=_SIMULATED, label="simulation", zorder=1.9)
    if "closed_gap" in curves:
        ax.plot(curves["closed_x"], curves["closed_gap"], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="parallel cones")
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_temperature(curves: Mapping[str, Any], ax: Axes) -> None:
    _steps_axis(curves, curves["whole_x"], ax)
    _dots(curves["whole_x"], curves["whole_tau"], ax)
    ax.plot(curves["x"], curves["simulated_tau"], color=_SIMULATED, label="simulation", zorder=1.9)
    if "closed_tau" in curves:
        ax.plot(curves["closed_x"], curves["closed_tau"], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="parallel cones")
    drawn = np.concatenate([np.ravel(line.get_ydata()) for line in ax.lines])
    drawn = drawn[np.isfinite(drawn)]
    if drawn.max() > 10 * drawn.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    ax.set_ylabel(label("temperature"))
    ax.legend(loc="best")


def _draw_exponent(curves: Mapping[str, Any], ax: Axes) -> None:
    x, gap = curves["x"], curves["gap"]
    at = np.exp(x) if curves["exponential"] else x
    order = np.argsort(at)
    if curves["exponential"]:
        ax.set_xscale("log")
    _dots(at, gap, ax)
    ax.plot(at[order], curves["fit"][order], color=_RUN, lw=1, label=f"fit: {_signed(curves['exponent'])}")
    # The laws say a slope, not a level: they pass through the middle of the run.
    centre, level = float(np.mean(x)), float(np.mean(np.log(gap)))
    low, high = np.log(gap.min()), np.log(gap.max())
    margin = 0.25 * max(high - low, 0.2)
    names = {"parallel": "parallel cones", "sphere": f"sphere, $n = {curves['pairs']}$"}
    styles = {"parallel": (COLOURS["black"], (0, (4, 2))), "sphere": (COLOURS["green"], (0, (1, 1)))}
    for name, (power, _) in curves["laws"].items():
        colour, style = styles[name]
        line = np.exp(level + power * (np.linspace(x.min(), x.max(), 200) - centre))
        along = np.linspace(x.min(), x.max(), 200)
        along = np.exp(along) if curves["exponential"] else along
        ax.plot(along, line, color=colour, ls=style, lw=1, label=f"{names[name]}: {_signed(power)}", zorder=2.5)
    ax.set_yscale("log")
    ax.set_ylim(np.exp(low - margin), np.exp(high + margin))
    for axis in (ax.xaxis, ax.yaxis) if curves["exponential"] else (ax.yaxis,):
        _plain_ticks(axis)
    ax.set_xlabel(label("inverse_temperature") if curves["exponential"] else r"potential $F(\beta)$")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_closing(curves: Mapping[str, Any], ax: Axes) -> None:
    x, t = curves["x"], curves["t"]
    late = t >= curves["from"] * (1 - 1e-9)
    ax.plot(x[late], curves["gap"][late], ls="", marker="o", ms=2.6, mew=0, color=_RUN, label="run")
    ax.plot(
        x[~late],
        curves["gap"][~late],
        ls="",
        marker="o",
        ms=2.6,
        mfc="none",
        mew=0.6,
        color=_RUN,
        label="before, not in the fit",
    )
    ax.plot(x[late], curves["intercept"] + curves["slope"] * x[late], color=_CLOSED, ls=(0, (4, 2)), lw=1, label="line")
    if "straight" in curves:
        first, last = (-1 / np.log(s) ** 2 for s in curves["straight"])
        ax.axvspan(first, last, color=MATCHED_COLOUR, lw=0, zorder=0, label="straight")
    ends = t[late]
    ax.set_xlim(1.12 * x[late][0] - 0.12 * x[late][-1], 0.0)
    height = np.ptp(curves["gap"][late])
    ax.set_ylim(curves["gap"][late].min() - 0.35 * height, curves["gap"][late].max() + 0.15 * height)
    shown = [s for s in 10.0 ** np.arange(1, 31) if ends[0] * 0.999 <= s <= ends[-1] * 1.001]
    if shown:
        # A second reading of the axis; crowded towards the limit, where only every so many decades fit.
        places = [-1 / np.log(s) ** 2 for s in shown]
        kept: list[int] = []
        for i, place in enumerate(places):
            if not kept or place - places[kept[-1]] > 0.09 * abs(ax.get_xlim()[0]):
                kept.append(i)
        for i in kept:
            ax.annotate(
                f"${'k' if curves['word'] == 'step' else 't'} = 10^{{{round(np.log10(shown[i]))}}}$",
                (places[i], 0.02), xycoords=ax.get_xaxis_transform(), fontsize=7, ha="center", color=COLOURS["grey"],
            )  # fmt: skip
    ax.set_xlabel(r"$-1/\ln(k)^2$, $k$ the step" if curves["word"] == "step" else r"$-1/\ln(t)^2$, $t$ the flow time")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


def _draw_matching(curves: Mapping[str, Any], ax: Axes) -> None:
    gap, defect = curves["gap"], curves["defect"]
    ax.plot(curves["x"], gap / np.nanmax(gap), color=_RUN, label="gap / its peak")
    ax.plot(curves["x"], curves["matched"], color=COLOURS["green"], ls=(0, (1, 1)), label="matched fraction")
    if curves.get("all") is not None:
        ax.axvspan(curves["all"], curves["x"][-1], color=MATCHED_COLOUR, lw=0, zorder=0, label="all pairs matched")
    _steps_axis(curves, curves["x"], ax)
    ax.set_ylim(0, 1.05)
    ax.set_ylabel("fraction")
    handles = ax.get_legend_handles_labels()[0]
    if defect is not None and np.nanmax(defect) > 1e-12:  # below, it is rounding
        top = ax.twinx()
        handles += top.plot(
            curves["x"], np.maximum(defect, 1e-16), color=COLOURS["orange"], ls=(0, (4, 2)), lw=1,
            label="doubly stochastic defect (right)",
        )  # fmt: skip
        top.set_yscale("log")
        top.set_ylabel("doubly stochastic defect")
        top.spines["right"].set_visible(True)
    # Below: three curves from corner to corner leave no room inside.
    ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, -0.27), ncols=2, columnspacing=0.9)


def _draw_calibration(curves: Mapping[str, Any], ax: Axes) -> None:
    x, rest = curves["x"], curves["rest"]
    ax.axvspan(x[0], curves["seen_until"], color="#E4E4E4", lw=0, zorder=0, label="seen by the fit")
    _dots(x, curves["gap"], ax)
    ax.plot(x, curves["predicted"], color=_SIMULATED, label="simulation", zorder=1.9)
    ax.plot(x[rest], curves["constant"][rest], color=COLOURS["grey"], ls=(0, (1, 1)), label="constant")
    ax.plot(x[rest], curves["line"][rest], color=COLOURS["purple"], ls=(0, (4, 2)), lw=1, label=r"line in $\log t$")
    ax.set_xlim(x[0], x[-1])
    ax.set_xlabel(curves["label"])
    ax.set_ylim(bottom=0)
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best", ncols=2)


def _draw_enlargement(curves: Mapping[str, Any], ax: Axes) -> None:
    ax.hist(curves["changes"], bins=min(10, max(3, len(curves["changes"]) // 2)), color=_RUN, alpha=0.8, rwidth=0.92)
    ax.axvline(0, color=COLOURS["grey"], lw=1, ls=":", label="no change")
    ax.axvline(curves["mean"], color=_SIMULATED, label=f"mean {_signed(curves['mean'])}")
    ax.margins(y=0.25)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel(r"change of the gap over the first steps")
    ax.set_ylabel("initialisations")
    ax.legend(loc="upper left")


def _signed(value: float) -> str:
    """A number with a minus sign instead of a hyphen."""
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def _plain_ticks(axis: Any) -> None:
    """Few plain numbers on a logarithmic axis of less than two decades, where powers of ten say little."""
    low, high = axis.get_view_interval()
    if high < 100 * low:
        axis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5) if high > 6 * low else (1, 1.5, 2, 3, 4, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
        axis.set_minor_formatter(NullFormatter())


def time_text(t: float) -> str:
    """A time for a title: 0, 2.3, or a power of ten."""
    if t > 0 and (t >= 1e3 or t < 1e-2):
        exponent = int(np.floor(np.log10(t) + 1e-12))
        digits = f"{t / 10.0**exponent:.2g}"
        power = f"10^{{{exponent}}}"
        return f"${power}$" if digits == "1" else rf"${digits} \times {power}$"
    return f"{t:.3g}"


def label(name: str) -> str:
    """The axis label of an observable; all are dimensionless."""
    if name in VARIABLES:
        return VARIABLES[name][1]
    if name in observables.REGISTRY:
        return f"{name.replace('_', ' ')} ${observables.REGISTRY[name].symbol}$"
    return name.replace("_", " ")


_COLOUR_OF = {
    "modality_gap": COLOURS["blue"],
    "temperature": COLOURS["vermilion"],
    "loss": COLOURS["black"],
    "margin": COLOURS["green"],
}


def _axes(ax: Axes | None) -> Axes:
    check(
        ax is None or isinstance(ax, Axes),
        f"Argument `ax` must be one matplotlib Axes, but is {type(ax).__name__}. Use e.g. plt.subplots()[1], or none.",
    )
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _rows(embeddings: Snapshot | tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(embeddings, Snapshot):
        image, text = embeddings.image, embeddings.text
        if image is None or text is None:
            raise FlowsimError("This snapshot holds only similarities, not rows. Start from rows.")
    else:
        pair = isinstance(embeddings, (tuple, list)) and len(embeddings) == 2
        given = type(embeddings).__name__
        check(pair, f"Expected rows, but got {given}. Give a snapshot, result.at(t), or a pair (image, text).")
        image, text = embeddings
    image, text = np.asarray(image, np.float64), np.asarray(text, np.float64)
    if image.ndim != 2 or image.shape != text.shape:
        raise FlowsimError(
            f"Expected two matrices of the same shape (n, d), but got {image.shape} and {text.shape}. "
            "Give one text row per image row."
        )
    return image, text


def _shown_snapshots(result: Result) -> list[Snapshot]:
    """Up to six stored snapshots, evenly spread in logarithmic time, if their rows have three dimensions."""
    times = result.snapshot_time
    if not len(times):
        return []
    image = result.at(float(times[0])).image
    if image is None or image.shape[1] != 3:
        return []
    gaps = result.series.get("modality_gap", np.zeros(len(result.time)))[np.isin(result.time, times)]
    steps = np.abs(np.diff(gaps)) if gaps.size == len(times) and np.isfinite(gaps).all() else np.zeros(0)
    # As many where the gap moves as where it rests.
    moved = np.concatenate([[0.0], np.cumsum(steps)]) if steps.sum() > 0 else np.zeros(len(times))
    measure = moved / max(moved[-1], 1e-300) + np.linspace(0, 1, len(times))
    wanted = np.linspace(0, measure[-1], 6)
    return [result.at(float(times[i])) for i in np.unique(np.searchsorted(measure, wanted))]


def _nearness(depth: float) -> float:
    return float(np.clip((depth + 1) / 2, 0.0, 1.0))


def _faded(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white: unlike transparency it hides what lies behind."""
    red, green, blue, _ = to_rgba(colour)
    return (
        1 - strength * (1 - red),
        1 - strength * (1 - green),
        1 - strength * (1 - blue),
    )


def _wireframe(ax: Axes3D, sight: np.ndarray) -> None:
    """Meridians and parallels, the half behind fainter."""
    angle = np.linspace(0, 2 * np.pi, 121)
    curves = []
    for z in np.sin(np.deg2rad([-60, -30, 0, 30, 60])):
        radius = np.sqrt(1 - z**2)
        curves.append((radius * np.cos(angle), radius * np.sin(angle), np.full_like(angle, z)))
    for phi in np.deg2rad(np.arange(0, 180, 30)):
        curves.append((np.cos(angle) * np.cos(phi), np.cos(angle) * np.sin(phi), np.sin(angle)))
    # The outline, as seen.
    across = np.linalg.svd(sight[None])[2][1:]
    outline = np.cos(angle)[:, None] * across[0] + np.sin(angle)[:, None] * across[1]
    for x, y, z in curves:
        front = np.column_stack([x, y, z]) @ sight >= 0
        for side, colour, order in ((front, "#C4C4C4", 2.4), (~front, "#E6E6E6", 0.5)):
            hidden = np.where(side | np.roll(side, 1) | np.roll(side, -1), 1.0, np.nan)
            ax.plot(x * hidden, y * hidden, z * hidden, color=colour, lw=0.4, zorder=order)
    ax.plot(*outline.T, color="#A0A0A0", lw=0.6, zorder=0.6)


def clouds(image: np.ndarray, text: np.ndarray) -> Figure:
    """Both modalities on the first two principal components (PC) of their union, and the margins of the pairs.

    `image`, `text`: unit rows (n, d) of pairs.
    """
    margins = observables.pair_margins(image, text)
    both = np.concatenate([image, text])
    centred = both - both.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / (singular**2).sum()
    flat = centred @ axes[:2].T
    with paper_style():
        figure = Figure(figsize=(6.6, 2.9), layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        n = len(image)
        left.plot(*flat[:n].T, "o", color=COLOURS["blue"], ms=2.2, alpha=0.6, mew=0, label="images")
        left.plot(*flat[n:].T, "s", color=COLOURS["vermilion"], ms=2.0, alpha=0.6, mew=0, label="texts")
        gap = np.linalg.norm(image.mean(0) - text.mean(0))
        left.set(
            xlabel=f"PC 1 ({share[0]:.0%} of the variance)", ylabel=f"PC 2 ({share[1]:.0%})",
            title=rf"{n} pairs, gap $\Delta$ = {gap:.3f}",
        )  # fmt: skip
        left.set_aspect("equal", adjustable="datalim")
        left.legend(loc="best", markerscale=1.6)
        right.hist(margins, bins=30, color=COLOURS["blue"], alpha=0.8)
        right.axvline(0, color=COLOURS["black"], lw=0.8, label="matched to the right")
        right.legend(loc="best")
        matched = np.mean(margins > 0)
        right.set(xlabel="margin of a pair", ylabel="pairs", title=f"{matched:.0%} of the pairs are matched")
    return figure


#: Entries of the metadata that would differ from run to run or version to version.
_DATED = {"png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer"), "svg": ("Date", "Creator")}


def save(figure: Figure, path: str, stamp: str = "") -> Path:
    """Write a figure, atomically; the same figure gives the same bytes.

    Args:
        figure: what is written.
        path: its file; the kind follows the suffix, .png, .pdf or .svg.
        stamp: a line for the metadata of the file, which says what made it.

    Returns:
        The path.

    Raises:
        FlowsimError: if the suffix is unknown, or the file cannot be written.
    """
    kind = path.rpartition(".")[2].lower()
    known = figure.canvas.get_supported_filetypes()
    check(kind in known, f"A figure cannot be written as {path!r}. Use a name that ends in .png, .pdf or .svg.")
    metadata: dict[str, Any] = dict.fromkeys(_DATED.get(kind, ()))
    if stamp and metadata:
        metadata["Comment" if kind == "png" else "Keywords"] = stamp
    given = {"metadata": metadata} if metadata else {}
    return write_atomically(
        path,
        lambda temporary: figure.savefig(temporary, format=kind, **given),  # pyright: ignore[reportArgumentType]
    )
