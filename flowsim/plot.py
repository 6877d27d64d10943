"""Figures of results: every function takes a result (or arrays) and `ax=None`, and returns Axes.

    fs.plot.overview(result)
    fs.plot.gap(result, ax=axes[0])

Nothing here shows a figure or changes matplotlib's settings. `paper_style()` is the style of the figures
that `flowsim reproduce` writes; use it as a context where you want it. Colours are those of Okabe and Ito,
which remain distinct under colour blindness.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.axes3d import Axes3D

from flowsim import observables
from flowsim._arrays import check
from flowsim._files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.result import VARIABLES, Result, Snapshot

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


def series(result: Result, name: str, ax: Axes | None = None) -> Axes:
    """One recorded observable against flow time, which is logarithmic; shaded where the pairs are matched.

    Losses are drawn on a logarithmic axis too. Raises `FlowsimError` if `name` was not recorded.
    """
    if name not in result.series:
        raise unknown_name("observable", name, result.series)
    ax = _axes(ax)
    time, values = result.time, result.series[name]
    colour = _COLOUR_OF.get(name, COLOURS["black"])
    ax.plot(time, values, color=colour)
    # A point at t = 0 is drawn at the left edge.
    ax.set_xscale("log", nonpositive="clip")
    positive = time[time > 0]
    if positive.size > 1:
        ax.set_xlim(positive[0], positive[-1])
    finite = values[np.isfinite(values)]
    if name == "loss" and finite.size and (finite > 0).all() and finite.max() > 30 * finite.min():
        ax.set_yscale("log")
    ax.set_xlabel(f"{result.clock} $t$")
    ax.set_ylabel(label(name))
    shade_matched(result, ax)
    return ax


def gap(result: Result, ax: Axes | None = None) -> Axes:
    """The modality gap against flow time."""
    ax = series(result, "modality_gap", ax)
    ax.set_ylim(bottom=min(0.0, ax.get_ylim()[0]))
    return ax


def temperature(result: Result, ax: Axes | None = None) -> Axes:
    """The temperature against flow time; logarithmic if it varies by more than a factor 30."""
    ax = series(result, "temperature", ax)
    values = result.series["temperature"]
    values = values[np.isfinite(values)]
    if values.size and values.max() > 30 * values.min():
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0.0)
    return ax


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
    image, text = _rows(embeddings)
    ax = _axes(ax)
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (image, text)]
    drawn = ax.imshow(unit[0] @ unit[1].T, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    ax.set_xlabel("text $j$")
    ax.set_ylabel("image $i$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.figure.colorbar(drawn, ax=ax, label=r"cosine $S_{ij}$", shrink=0.85)
    return ax


def overview(result: Result, ax: Sequence[Axes] | None = None) -> list[Axes]:
    """Gap, temperature, loss and margin against time; for rows in three dimensions also up to six spheres.

    `ax`: four Axes for the time series, if you have them; then no spheres are drawn. Returns the list of
    Axes, time series first.
    """
    names = [n for n in ("modality_gap", "temperature", "loss", "margin") if n in result.series]
    if ax is not None:
        if len(ax) < len(names):
            raise FlowsimError(f"The overview draws {len(names)} panels, but got {len(ax)} Axes. Give more.")
        axes = list(ax)[: len(names)]
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
    return axes


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
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _rows(embeddings: Snapshot | tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    if isinstance(embeddings, Snapshot):
        image, text = embeddings.image, embeddings.text
        if image is None or text is None:
            raise FlowsimError("This snapshot holds only similarities, not rows. Start from rows.")
    else:
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


def clouds(image: np.ndarray, text: np.ndarray, margins: np.ndarray | None = None) -> Figure:
    """Both modalities on the two main axes of their union (PCA), and the margins of the pairs.

    `image`, `text`: unit rows (n, d) of pairs; `margins` (n,): cosine of each pair minus that of its nearest
    non-pair, in either direction (computed here if missing).
    """
    if margins is None:
        similarity = image @ text.T
        others = np.where(np.eye(len(image), dtype=bool), -np.inf, similarity)
        margins = np.diag(similarity) - np.maximum(others.max(0), others.max(1))
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
            xlabel=f"first axis ({share[0]:.0%} of the variance)", ylabel=f"second axis ({share[1]:.0%})",
            title=rf"{n} pairs, gap $\Delta$ = {gap:.3f}",
        )  # fmt: skip
        left.set_aspect("equal", adjustable="datalim")
        left.legend(loc="best", markerscale=1.6)
        right.hist(margins, bins=30, color=COLOURS["blue"], alpha=0.8)
        right.axvline(0, color=COLOURS["black"], lw=0.8)
        matched = np.mean(margins > 0)
        right.set(xlabel="margin of a pair", ylabel="pairs", title=f"{matched:.0%} of the pairs are matched")
    return figure


def save(figure: Figure, path: str) -> None:
    """Write a figure, atomically; its kind follows the suffix. Raises `FlowsimError` if that is not possible."""
    kind = path.rpartition(".")[2].lower()
    known = figure.canvas.get_supported_filetypes()
    check(kind in known, f"A figure cannot be written as {path!r}. Use a name that ends in .png, .pdf or .svg.")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=kind))
