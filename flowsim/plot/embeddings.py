"""Embeddings of both modalities: on the sphere, as similarities, and on their principal components."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.axes3d import Axes3D

from flowsim import observables
from flowsim.base.checks import check
from flowsim.errors import FlowsimError
from flowsim.plot.style import COLOURS, IMAGE_COLOUR, TEXT_COLOUR, _axes, paper_style
from flowsim.records.result import Snapshot


def sphere(embeddings: Snapshot | tuple[Any, Any], ax: Axes | None = None) -> Axes:
    """Draw rows on the unit sphere in three dimensions, with a line between the image and text of each pair.

    Points at the back are drawn fainter.

    Args:
        embeddings: A snapshot, or arrays (image, text) of shape (n, 3) each.
        ax: Axes to draw on, with `projection="3d"`. Default: a new figure.

    Returns:
        The axes.

    Raises:
        FlowsimError: If the rows or the axes are not three-dimensional.
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
    # Draw in the order of depth along the line of sight, which matplotlib only estimates per artist.
    ax.computed_zorder = False
    ax.view_init(elev=18, azim=-60)
    ax.set_proj_type("ortho")
    elevation, azimuth = np.deg2rad([ax.elev, ax.azim])
    sight = np.array([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)])
    _wireframe(ax, sight)
    for x, y in zip(image, text, strict=True):
        depth = float((x + y) @ sight / 2)
        ax.plot(
            *np.column_stack([x, y]),
            color=COLOURS["black"],
            lw=0.9,
            alpha=0.45 + 0.4 * _nearness(depth),
            zorder=2 + depth / 2,
        )
    for rows, colour, marker in ((image, IMAGE_COLOUR, "o"), (text, TEXT_COLOUR, "^")):
        for point in rows:
            depth = float(point @ sight)
            near = _nearness(depth)
            ax.plot(
                *point[:, None],
                ls="",
                marker=marker,
                ms=3.4 + 1.2 * near,
                mew=0.4,
                mec="white",
                color=_faded(colour, 0.45 + 0.55 * near),
                zorder=2.5 + depth,
            )
    ax.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
    ax.set_box_aspect((1, 1, 1), zoom=1.55)  # pyright: ignore[reportArgumentType]
    ax.set_axis_off()
    return ax


def similarity(embeddings: Snapshot | tuple[Any, Any], ax: Axes | None = None) -> Axes:
    """Draw the cosines between all image and text rows; true pairs lie on the diagonal.

    Args:
        embeddings: A snapshot, or arrays (image, text) of shape (n, d) each.
        ax: Axes to draw on. Default: a new figure.

    Returns:
        The axes.

    Raises:
        FlowsimError: If the snapshot holds no rows, or the arrays have different shapes.
    """
    cosines = _cosines(embeddings)
    ax = _axes(ax)
    drawn = ax.imshow(cosines, vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
    ax.set_xlabel("text $j$")
    ax.set_ylabel("image $i$")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    ax.figure.colorbar(drawn, ax=ax, label=r"cosine $S_{ij}$", shrink=0.85)
    return ax


def clouds(image: np.ndarray, text: np.ndarray) -> Figure:
    """Draw both modalities on the first two principal components (PC) of their union, and a histogram of the margins.

    Args:
        image: Unit rows of the images, (n, d).
        text: Unit rows of their texts, (n, d).

    Returns:
        A figure with two panels.

    Raises:
        FlowsimError: As for `fs.observables.margin`.
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
            xlabel=f"PC 1 ({share[0]:.0%} of the variance)",
            ylabel=f"PC 2 ({share[1]:.0%})",
            title=rf"{n} pairs, gap $\Delta$ = {gap:.3f}",
        )
        left.set_aspect("equal", adjustable="datalim")
        left.legend(loc="best", markerscale=1.6)
        right.hist(margins, bins=30, color=COLOURS["blue"], alpha=0.8)
        right.axvline(0, color=COLOURS["black"], lw=0.8, label="matched to the right")
        right.legend(loc="best")
        matched = np.mean(margins > 0)
        right.set(xlabel="margin of a pair", ylabel="pairs", title=f"{matched:.0%} of the pairs are matched")
    return figure


def _cosines(embeddings: Snapshot | tuple[Any, Any]) -> np.ndarray:
    """Cosines between image and text rows, (n, n)."""
    image, text = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in _rows(embeddings))
    return image @ text.T


def _rows(embeddings: Snapshot | tuple[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Image and text rows, (n, d) each, of a snapshot or a pair of arrays."""
    if isinstance(embeddings, Snapshot):
        image, text = embeddings.image, embeddings.text
        if image is None or text is None:
            raise FlowsimError("This snapshot holds only similarities, not rows. Use a run that starts from rows.")
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


def _nearness(depth: float) -> float:
    """0 for a point at the back of the sphere, 1 for one in front."""
    return float(np.clip((depth + 1) / 2, 0.0, 1.0))


def _faded(colour: str, strength: float) -> tuple[float, float, float]:
    """The colour mixed with white, which unlike transparency hides points behind."""
    red, green, blue, _ = to_rgba(colour)
    return (
        1 - strength * (1 - red),
        1 - strength * (1 - green),
        1 - strength * (1 - blue),
    )


def _wireframe(ax: Axes3D, sight: np.ndarray) -> None:
    """Meridians and parallels, fainter at the back."""
    angle = np.linspace(0, 2 * np.pi, 121)
    curves = []
    for z in np.sin(np.deg2rad([-60, -30, 0, 30, 60])):
        radius = np.sqrt(1 - z**2)
        curves.append((radius * np.cos(angle), radius * np.sin(angle), np.full_like(angle, z)))
    for phi in np.deg2rad(np.arange(0, 180, 30)):
        curves.append((np.cos(angle) * np.cos(phi), np.cos(angle) * np.sin(phi), np.sin(angle)))
    # The outline as seen from the viewpoint.
    across = np.linalg.svd(sight[None])[2][1:]
    outline = np.cos(angle)[:, None] * across[0] + np.sin(angle)[:, None] * across[1]
    for x, y, z in curves:
        front = np.column_stack([x, y, z]) @ sight >= 0
        for side, colour, order in ((front, "#C4C4C4", 2.4), (~front, "#E6E6E6", 0.5)):
            hidden = np.where(side | np.roll(side, 1) | np.roll(side, -1), 1.0, np.nan)
            ax.plot(x * hidden, y * hidden, z * hidden, color=colour, lw=0.4, zorder=order)
    ax.plot(*outline.T, color="#A0A0A0", lw=0.6, zorder=0.6)
