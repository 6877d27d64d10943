"""A run at a glance: gap, temperature, loss and margin, and the embeddings on the sphere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from flowsim.base.checks import check
from flowsim.errors import FlowsimError
from flowsim.plot.embeddings import sphere
from flowsim.plot.series import gap, series, temperature
from flowsim.plot.style import COLOURS, IMAGE_COLOUR, TEXT_COLOUR, _check_result, time_text
from flowsim.records.result import Result, Snapshot


def overview(result: Result, ax: Sequence[Axes] | None = None) -> list[Axes]:
    """Draw gap, temperature, loss and margin over time, and up to six spheres if the rows have three dimensions.

    Args:
        result: A run.
        ax: Axes for the time series, one per recorded quantity; no spheres are drawn then. Default: a new figure.

    Returns:
        The axes, time series first.

    Raises:
        FlowsimError: If `result` is not a result, or there are too few axes.

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
            f"The overview draws {len(names)} panels. Give a list of {len(names)} Axes, e.g. "
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
    """Explain the shading, and below the figure the markers on the spheres."""
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


def _shown_snapshots(result: Result) -> list[Snapshot]:
    """Up to six stored snapshots, spread over the stored times, if their rows have three dimensions."""
    times = result.snapshot_time
    if not len(times):
        return []
    image = result.at(float(times[0])).image
    if image is None or image.shape[1] != 3:
        return []
    gaps = result.series.get("modality_gap", np.zeros(len(result.time)))[np.isin(result.time, times)]
    steps = np.abs(np.diff(gaps)) if gaps.size == len(times) and np.isfinite(gaps).all() else np.zeros(0)
    # Half of them follow the movement of the gap, half the stored times.
    moved = np.concatenate([[0.0], np.cumsum(steps)]) if steps.sum() > 0 else np.zeros(len(times))
    measure = moved / max(moved[-1], 1e-300) + np.linspace(0, 1, len(times))
    wanted = np.linspace(0, measure[-1], 6)
    return [result.at(float(times[i])) for i in np.unique(np.searchsorted(measure, wanted))]
