"""Films of a run: one frame for each stored snapshot."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import animation
from matplotlib.figure import Figure

from flowsim.base.checks import check
from flowsim.base.files import write_atomically, write_text
from flowsim.base.sources import drawing_hash, write_stamp
from flowsim.plot.embeddings import _cosines, _rows, similarity, sphere
from flowsim.plot.overview import _explain
from flowsim.plot.series import gap, temperature
from flowsim.plot.style import COLOURS, PAGE, _check_result, paper_style, time_text
from flowsim.records.result import Result

#: Resolution of frames, enough for screens.
_FILM_DPI = 120
#: Limit of matplotlib for frames in an .html, in MiB; it drops frames beyond it without an error.
_HTML_MIB = 1024.0
#: Symbols for matplotlib's buttons, because its own need a font from the network.
_BUTTONS = {
    "minus": "\\2212", "plus": "+",
    "pause": "\\275A\\275A", "play": "\\25B6\\FE0E", "flip-horizontal": "\\25C0\\FE0E",
    "fast-backward": "|\\25C0\\FE0E", "fast-forward": "\\25B6\\FE0E|",
    "step-backward": "\\2039", "step-forward": "\\203A",
}  # fmt: skip


def animate(result: Result, path: str, fps: int = 20, frames: int | None = None) -> Path:
    """Write a film of a run: gap, temperature and embeddings, one frame for each stored snapshot.

    Embeddings in three dimensions are drawn on the sphere, others as a matrix of similarities. A .gif carries the
    settings of the run as a comment; an .html needs no network.

    Args:
        result: A run with at least two snapshots, see `snapshots` of `fs.simulate`.
        path: File to write, atomically: .gif, .html (with a player) or .mp4 (needs ffmpeg).
        fps: Frames per second.
        frames: Largest number of frames, from evenly spread snapshots. Default: all snapshots.

    Returns:
        The path.

    Raises:
        FlowsimError: If the path has another ending, or the result has fewer than two snapshots.
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
            return write_text(path, text)
        stamp = write_stamp({"config": result.config, "drawn_by": drawing_hash("animate")})
        writer = _Gif(fps, stamp) if kind == "gif" else animation.FFMpegWriter(fps)

        def write(temporary: str) -> None:
            # The writers choose the format by the file's ending.
            named = f"{temporary}.{kind}"
            film.save(named, writer=writer)
            os.replace(named, temporary)

        return write_atomically(path, write)


def film_kind(path: str) -> str:
    """The format of a film, from its path.

    Args:
        path: Path of the film.

    Returns:
        "gif", "html" or "mp4".

    Raises:
        FlowsimError: If the path has another ending, or ends in .mp4 and ffmpeg is not installed.
    """
    kind = path.rpartition(".")[2].lower()
    check(
        kind in ("gif", "html", "mp4"),
        f"A film cannot be written as {path!r}. Use a name that ends in .gif, .html or .mp4.",
    )
    check(
        kind != "mp4" or animation.FFMpegWriter.isAvailable(),
        "An .mp4 needs ffmpeg, which is not installed. Use .gif or .html.",
    )
    return kind


def _film(result: Result, times: np.ndarray) -> tuple[Figure, Callable[[int], list[Any]]]:
    """The figure of a film, and the function that draws frame k, at `times[k]`."""
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
    # A fixed place, because the best one would move with the dot.
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

    # Laid out once, so that nothing else moves between frames.
    show(len(times) - 1)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    return figure, show


class _Gif(animation.PillowWriter):
    """Writes frames as a .gif with a comment."""

    def __init__(self, fps: int, comment: str) -> None:
        super().__init__(fps)
        self.comment = comment

    def finish(self) -> None:
        self._frames[0].save(  # pyright: ignore[reportAttributeAccessIssue]
            self.outfile,
            format="gif",
            save_all=True,
            append_images=self._frames[1:],  # pyright: ignore[reportAttributeAccessIssue]
            loop=0,
            duration=int(1000 / self.fps),
            comment=self.comment.encode("ascii"),
        )


def _offline(page: str) -> str:
    """matplotlib's player without the style sheet that it would load from the network."""
    signs = "".join(f'.fa-{name}::before {{content: "{sign}"}}\n' for name, sign in _BUTTONS.items())
    page = re.sub(r"<link\b[^>]*>", "", page)
    return f"<meta charset='utf-8'>\n<style>\n.anim-buttons i {{font-style: normal}}\n{signs}</style>\n{page}"
