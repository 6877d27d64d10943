"""The picture of a run: series on the left, embeddings and their cosines on the right."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowsim import plot
from flowsim.records.result import Result


class _View:
    """Projection from d > 3 dimensions to three; the vertical one is the direction of the gap.

    The other two are principal components, orthogonal to the gap, of the run's rows about the centres of their
    modalities.
    """

    def __init__(self, image: np.ndarray, text: np.ndarray) -> None:
        """Rows of the whole run, (times, n, d) each."""
        rows = np.concatenate([x - x.mean(1, keepdims=True) for x in (image, text)]).reshape(-1, image.shape[-1])
        self.scatter = rows.T @ rows / len(rows)
        # The last time fixes the signs, which otherwise flip from one time to the next.
        self.signs: np.ndarray | None = None
        self.signs = self.axes(image[-1], text[-1])[:2]

    def axes(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Orthonormal rows (3, d): two principal components, then the unit vector along the gap, from texts to images.

        If the gap is zero to rounding, the third is another principal component.
        """
        gap = image.mean(0) - text.mean(0)
        size = np.linalg.norm(gap)
        if size < 1e-12:
            return np.linalg.eigh(self.scatter)[1].T[[-1, -2, -3]]
        gap /= size
        across = np.eye(len(gap)) - np.outer(gap, gap)
        main = np.linalg.eigh(across @ self.scatter @ across)[1].T[[-1, -2]]
        if self.signs is not None:
            main *= np.where(np.sum(main * self.signs, axis=1) < 0, -1.0, 1.0)[:, None]
        return np.stack([*main, gap])


class Picture:
    """The panels. Artists are created once and updated, because creating them takes longer than the run."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(11, 6.4), dpi=80)
        self.figure.subplots_adjust(0.06, 0.08, 0.955, 0.88, 0.28, 0.38)
        gap, tau, margin, loss = (self.figure.add_subplot(2, 3, k) for k in (1, 2, 4, 5))
        self.cloud: Any = self.figure.add_subplot(2, 3, 3, projection="3d")
        self.matrix = self.figure.add_subplot(2, 3, 6)
        colours = plot.COLOURS
        self.panels = {"modality_gap": gap, "temperature": tau, "margin": margin, "loss": loss}
        paint = {"modality_gap": "blue", "temperature": "vermilion", "margin": "purple", "loss": "black"}
        self.lines = {name: ax.plot([], [], color=colours[paint[name]])[0] for name, ax in self.panels.items()}
        (self.lines["matched_fraction"],) = margin.plot([], [], color=colours["green"], label="matched fraction")
        self.lines["margin"].set_label("margin")
        self.closed = {
            name: self.panels[name].plot([], [], "k:", lw=1.2, label="closed form")[0]
            for name in ("modality_gap", "temperature")
        }
        self.now = [ax.axvline(1.0, color=colours["grey"], lw=0.8) for ax in self.panels.values()]
        for name, ax in self.panels.items():
            ax.set(xscale="log", xlabel=plot.TIME_LABEL, ylabel=plot.label(name))
        margin.set_ylabel("margin, matched fraction")
        margin.axhline(0, color=colours["grey"], lw=0.6)
        _legend(margin, [self.lines["margin"], self.lines["matched_fraction"]])
        self.now[-1].set_label("time of the panels on the right")
        _legend(loss, [self.now[-1]])
        #: Shown if there is a closed form.
        self.legends = [_legend(self.panels[name], [line]) for name, line in self.closed.items()]
        self.cloud.set_axis_off()
        self.cloud.set_box_aspect((1, 1, 1), zoom=1.4)
        u, v = np.meshgrid(np.linspace(0, 2 * np.pi, 13), np.linspace(0, np.pi, 9))
        self.globe = self.cloud.plot_wireframe(
            np.cos(u) * np.sin(v), np.sin(u) * np.sin(v), np.cos(v), color=colours["grey"], lw=0.4, alpha=0.4
        )
        for end in np.eye(3) * 1.25:
            self.cloud.plot(*np.stack([0.8 * end, 0.95 * end], 1), color=colours["grey"], lw=1)
        self.names = [self.cloud.text(*end, "", fontsize=8, ha="center", va="center") for end in np.eye(3) * 1.3]
        (self.pairs,) = self.cloud.plot([], [], [], color="black", lw=0.8, label="pair")
        (self.images,) = self.cloud.plot([], [], [], "o", color=plot.IMAGE_COLOUR, ms=5, label="image")
        (self.texts,) = self.cloud.plot([], [], [], "^", color=plot.TEXT_COLOUR, ms=5, label="text")
        _legend(self.cloud, [self.images, self.texts, self.pairs], below=True)
        self.cloud.set(xlim=(-1, 1), ylim=(-1, 1), zlim=(-1, 1))
        self.image = self.matrix.imshow(np.zeros((2, 2)), vmin=-1, vmax=1, cmap="RdBu_r", interpolation="nearest")
        self.matrix.set(xlabel="text $j$", ylabel="image $i$", title="cosines")
        for axis in (self.matrix.xaxis, self.matrix.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True))
        self.figure.colorbar(self.image, ax=self.matrix, fraction=0.046, ticks=[-1, 0, 1])
        self.view: _View | None = None

    def curves(self, result: Result, closed: Result | None, facts: str, message: str) -> None:
        """Update everything that does not depend on the time shown."""
        time_ = np.maximum(result.time, result.time[1])
        for name, line in self.lines.items():
            line.set_data(time_, result.series[name])
        for name, line in self.closed.items():
            line.set_data(*(([], []) if closed is None else (np.maximum(closed.time, time_[0]), closed.series[name])))
        for legend in self.legends:
            legend.set_visible(closed is not None)
        for name, ax in self.panels.items():
            values = result.series[name][np.isfinite(result.series[name])]
            spread = name in ("loss", "temperature") and values.min() > 0 and values.max() > 30 * values.min()
            ax.set_yscale("log" if spread else "linear")
            low = min(0.0, values.min()) if name in ("modality_gap", "temperature", "margin") else values.min()
            high = max(values.max(), 1.0) if name == "margin" else values.max()
            room = 0.05 * (high - low) or 0.05
            ax.set_xlim(time_[0], time_[-1])
            ax.set_ylim(*((values.min() / 1.3, high * 1.3) if spread else (low - room * (low < 0), high + room)))
        self.figure.suptitle(message or facts, fontsize=10, color="firebrick" if message else "black")

    def look(self, image: list[np.ndarray], text: list[np.ndarray]) -> None:
        """Choose the view for the rows (n, d) of all times."""
        self.view = _View(np.stack(image), np.stack(text)) if image[0].shape[1] > 3 else None
        projected = ("PC 1", "PC 2", "gap direction")
        for name, words in zip(self.names, projected if self.view else ("$x_1$", "$x_2$", "$x_3$"), strict=True):
            name.set_text(words)

    def embeddings(self, now: float, image: np.ndarray, text: np.ndarray) -> None:
        """Show rows (n, d) at the time `now`, projected by `_View` if d > 3."""
        for line in self.now:
            line.set_xdata([max(now, 1e-30)] * 2)
        similarity = image @ text.T
        title = f"$t$ = {plot.time_text(now)}"
        if self.view is not None:
            title += f"\n{image.shape[1]} dimensions, projected"
            axes = self.view.axes(image, text)
            image, text = image @ axes.T, text @ axes.T
        gone = np.full_like(image, np.nan)
        self.pairs.set_data_3d(*np.stack([image, text, gone], 1).reshape(-1, 3).T)
        self.images.set_data_3d(*image.T)
        self.texts.set_data_3d(*text.T)
        self.cloud.set_title(title, fontsize=10, pad=12)
        n = len(similarity)
        self.image.set(data=similarity, extent=(-0.5, n - 0.5, n - 0.5, -0.5))


def _legend(ax: Any, lines: list[Any], below: bool = False) -> Any:
    """A row of names outside the panel, where no curve runs."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.02)}
    if not below:
        place = {"loc": "lower right", "bbox_to_anchor": (1.02, 0.97)}
    return ax.legend(handles=lines, frameon=False, ncols=len(lines), fontsize=9, handlelength=1.5, **place)
