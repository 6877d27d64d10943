"""The figure of a lab: what each method does to gap and retrieval, and the loss landscape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from flowsim.plot import COLOURS, CYCLE, PAGE

if TYPE_CHECKING:
    from flowsim.lab.lab import Lab

_MARKERS = "osD^vp<>h"


def figure_of(lab: Lab) -> Figure:
    """Four panels: R@1 and mixed R@10 against the gap, the loss landscape, and gap and R@1 along the shift."""
    figure = plt.figure(figsize=(PAGE, 5.9), layout="constrained")
    axes = figure.subplots(2, 2)
    handles = _scatter(axes[0, 0], lab, "recall_at_1")
    _scatter(axes[0, 1], lab, "mixed_recall_at_10")
    axes[0, 0].set(ylabel="R@1, mean of both directions")
    axes[0, 1].set(ylabel="R@10 in the mixed pool")
    _landscape(axes[1, 0], lab)
    _along(axes[1, 1], lab)
    titles = ("gap and retrieval", "gap and retrieval from both modalities", "loss along the gap", "cost of a shift")
    for letter, title, ax in zip("abcd", titles, axes.flat, strict=True):
        ax.set_title(rf"$\bf{{({letter})}}$ {title}", loc="left")
    figure.legend(handles=handles, loc="outside upper center", ncols=5, frameon=False)
    figure.supxlabel(
        f"{lab.fitted:,} pairs fitted, {lab.judged:,} other pairs judged. Bars and band: two standard errors of the "
        "difference to the rows as they are (none, dotted).",
        fontsize=8,
    )
    return figure


def _scatter(ax: Axes, lab: Lab, metric: str) -> list[Any]:
    """One point for each method; the bars compare it with the lines of `none`."""
    here = lab["none"]
    for draw, value in ((ax.axvline, here["modality_gap"]), (ax.axhline, here[metric])):
        draw(value, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0)
    handles = []
    for k, method in enumerate(lab.values):
        colour = "black" if method == "none" else CYCLE[(k - 1) % (len(CYCLE) - 1)]
        errors = [2 * lab.difference(method, name).standard_error for name in ("modality_gap", metric)]
        bars = ax.errorbar(
            lab[method]["modality_gap"], lab[method][metric], errors[1], errors[0], ls="", lw=0.8, capsize=0,
            marker="*" if method == "none" else _MARKERS[(k - 1) % len(_MARKERS)], ms=8 if method == "none" else 5,
            color=colour, mfc="none", mew=1.1, label=method.replace("_", " "),
        )  # fmt: skip
        handles.append(bars)
    ax.set(xlabel=r"modality gap $\Delta$")
    gaps = [values["modality_gap"] for values in lab.values.values()]
    if min(gaps) > 1e-3:
        ax.set_xscale("log")
        low, high = min(gaps) / 1.35, max(gaps) * 1.35
        ticks = [tick for tick in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if low < tick < high]
        ax.set(xlim=(low, high), xticks=ticks, xticklabels=[f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_formatter(NullFormatter())
    return handles


def _landscape(ax: Axes, lab: Lab) -> None:
    """The loss at each temperature, scaled to its range; the table has its values."""
    scene = lab.landscape
    colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(scene.temperatures)))
    for tau, loss, k, colour in zip(scene.temperatures, scene.loss, scene.best, colours, strict=True):
        scaled = (loss - loss[k]) / max(float(np.ptp(loss)), 1e-300)
        ax.plot(scene.shifts, scaled, color=colour, label=rf"$\tau = {tau:g}$")
        ax.plot(scene.shifts[k], 0, "o", color=colour, mec="black", mew=0.5, ms=5, zorder=3, clip_on=False)
    _mark(ax)
    ax.set(xlabel="shift (fraction of the gap)", ylabel="loss, scaled to its range", ylim=(0, 1.3))
    ax.set_yticks([0, 0.5, 1])
    ax.legend(fontsize=7, ncols=4, handlelength=1.2, columnspacing=0.8, loc="upper center")


def _along(ax: Axes, lab: Lab) -> None:
    scene = lab.landscape
    change = scene.hits - scene.hits[scene.here]
    error = 2 * change.std(axis=1, ddof=1) / np.sqrt(change.shape[1])
    ax.plot(scene.shifts, scene.recall_at_1, color=COLOURS["vermilion"], label="R@1")
    ax.fill_between(
        scene.shifts, scene.recall_at_1 - error, scene.recall_at_1 + error, color=COLOURS["vermilion"], alpha=0.2, lw=0
    )
    ax.plot(scene.shifts, scene.gap, color=COLOURS["blue"], label=r"gap $\Delta$")
    _mark(ax)
    ax.set(xlabel="shift (fraction of the gap)", ylim=(0, None))
    ax.legend()


def _mark(ax: Axes) -> None:
    for place in (0, 1):
        ax.axvline(place, color=COLOURS["grey"], lw=0.8, ls=":", zorder=0)
