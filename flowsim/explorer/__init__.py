"""Explore a flow by moving sliders: `fs.explore()`.

In a notebook the controls are ipywidgets (extra `explore`), in plain IPython with a window they are matplotlib's;
without a display there is one sentence. Both views show one `Explorer`, which can be driven from code as well:

    explorer = fs.explore(view=False)
    explorer.set(height=0.5, policy="fixed", temperature=0.2)
    explorer.result, explorer.code(), explorer.save("picture.png")

Moving a slider changes a number, which compiles nothing; another number of pairs or dimension, geometry, policy or
swap is another structure and compiles for some seconds the first time.
"""

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowsim import plot, theory
from flowsim.base.arrays import check
from flowsim.base.files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.integrate.simulate import simulate
from flowsim.model import initial, schedules, swaps, temperature
from flowsim.model.flow import GradientFlow
from flowsim.model.geometry import Parallel, Sphere
from flowsim.model.pairing import LabelNoise, Matched
from flowsim.model.schedules import Schedule
from flowsim.records.result import Result

#: Output times of a run: as many for every choice, so that one program serves all.
POINTS = 121
_FIRST = 1e-2

_POLICIES = ("learnable exp", "learnable exp(ν/10)", "learnable softplus", "learnable β", "fixed", "linear", "cosine")
_SWAPS = ("none", "hard, entries", "hard, rows", "soft")


@dataclasses.dataclass(frozen=True)
class Control:
    """One control: `kind` is "number", "log" (positive, over decades), "whole" or "choice".

    `step` is that between the values of a slider; with `kind` "log", the step of the mantissa, 1 to 10.
    """

    name: str
    kind: Literal["number", "log", "whole", "choice"]
    label: str
    low: float = 0.0
    high: float = 1.0
    step: float = 0.01
    options: tuple[str, ...] = ()

    def values(self, value: float) -> list[float]:
        """The values of its slider in order: round numbers, and `value`, so that no slider shows another number."""
        if self.kind == "log":
            mantissas = np.arange(round(9 / self.step)) * self.step + 1
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            found = {float(f"{mantissa:.4g}e{decade}") for decade in decades for mantissa in mantissas}
        else:
            found = set(map(_decimal, np.arange(self.low, self.high + self.step / 2, self.step)))
        return sorted({x for x in found if self.low <= x <= self.high} | {value})


def _decimal(value: float) -> float:
    """Without the rounding of binary arithmetic: 0.31 for 0.31000000000000005."""
    return float(f"{value:.12g}")


CONTROLS = (
    Control("geometry", "choice", "geometry", options=("Sphere", "Parallel")),
    Control("pairs", "whole", "pairs n", 2, 32),
    Control("dim", "whole", "dimension d", 3, 16),
    Control("height", "number", "cone height γ₀", 0.0, 0.95, 0.001),
    Control("twist", "number", "twist (degrees)", -180.0, 180.0, 1.0),
    Control("mismatch", "number", "mismatched fraction", 0.0, 1.0),
    Control("noise", "number", "label noise p", 0.0, 0.5, 0.005),
    Control("policy", "choice", "temperature policy", options=_POLICIES),
    Control("temperature", "log", "temperature τ₀", 0.01, 1.0, 0.1),
    Control("end", "log", "other τ (linear, cosine)", 0.01, 1.0, 0.1),
    Control("lr_ratio", "log", "learning-rate ratio r", 0.1, 10.0, 0.1),
    Control("swap", "choice", "swap", options=_SWAPS),
    Control("fraction", "number", "swapped fraction p", 0.0, 1.0),
    Control("horizon", "log", "last time t₁", 1.0, 1e12, 1.0),
    Control("seed", "whole", "seed", 0, 31),
)
_BY_NAME = {control.name: control for control in CONTROLS}


@dataclasses.dataclass(frozen=True)
class Choice:
    """What the controls are set to; the defaults are Figure 2 of the paper. `check` says what does not go together."""

    geometry: str = "Sphere"
    pairs: int = 5
    dim: int = 3
    height: float = 0.309
    twist: float = -144.0
    mismatch: float = 0.0
    noise: float = 0.0
    policy: str = "learnable exp"
    temperature: float = 0.07
    end: float = 0.05
    lr_ratio: float = 1.0
    swap: str = "none"
    fraction: float = 0.1
    horizon: float = 1e5
    seed: int = 0

    def replace(self, **changes: Any) -> "Choice":
        """A copy with some controls moved. Raises `FlowsimError` for unknown names and values out of range."""
        for name, value in changes.items():
            if name not in _BY_NAME:
                raise unknown_name("control", name, _BY_NAME)
            control = _BY_NAME[name]
            if control.kind == "choice":
                if value not in control.options:
                    raise unknown_name(control.label, value, control.options)
                continue
            check(
                isinstance(value, (int, float, np.number)) and control.low <= value <= control.high,
                f"Control `{name}` must be from {control.low:g} to {control.high:g}, but is {value!r}.",
            )
            changes[name] = int(value) if control.kind == "whole" else _decimal(float(value))
        return dataclasses.replace(self, **changes)

    @property
    def rings(self) -> bool:
        """Whether the start is two regular rings (in three dimensions, without mismatch), else random cones."""
        return self.dim == 3 and self.mismatch == 0

    @property
    def unused(self) -> frozenset[str]:
        """Names of the controls that change nothing here, whatever they are set to."""
        idle = {
            "twist": not self.rings,
            "end": self.policy not in ("linear", "cosine"),
            "lr_ratio": not self.policy.startswith("learnable"),
            "fraction": self.swap == "none",
            "seed": self.rings and self.swap == "none",
        }
        return frozenset(name for name, is_idle in idle.items() if is_idle)

    @property
    def structure(self) -> tuple[Any, ...]:
        """Choices of one structure share a compiled program."""
        return self.geometry, self.pairs, self.dim, self.noise > 0, self.policy, self.swap

    def flow(self) -> GradientFlow:
        """The flow of this choice."""
        return GradientFlow(
            Sphere() if self.geometry == "Sphere" else Parallel(),
            Schedule(self._policy(), self._swap()),
            pairing=LabelNoise(self.noise) if self.noise > 0 else Matched(),
        )

    def start(self) -> Any:
        """Its recipe: rings, or random cones of which a fraction of the texts changed places."""
        if self.rings:
            return initial.rings(self.pairs, self.height, self.twist)
        # A height adds a dimension.
        return initial.mismatched(self.pairs, self.dim - 1, self.height, self.mismatch)

    def times(self) -> np.ndarray:
        """Output times, (POINTS,)."""
        first = min(_FIRST, self.horizon / 10)
        return np.concatenate([[0.0], np.geomspace(first, self.horizon, POINTS - 1)])

    def _policy(self) -> Any:
        init, ratio = self.temperature, self.lr_ratio
        return {
            "learnable exp": lambda: temperature.Learnable(init, temperature.Exp(), ratio),
            "learnable exp(ν/10)": lambda: temperature.Learnable(init, temperature.ScaledExp(10.0), ratio),
            "learnable softplus": lambda: temperature.Learnable(init, temperature.Softplus(), ratio),
            "learnable β": lambda: temperature.Learnable(init, temperature.Identity(), ratio),
            "fixed": lambda: temperature.Fixed(init),
            "linear": lambda: temperature.Linear(init, self.end),
            "cosine": lambda: temperature.Cosine(min(init, self.end), max(init, self.end)),
        }[self.policy]()

    def _swap(self) -> Any:
        return {
            "none": lambda: swaps.NoSwap(),
            "hard, entries": lambda: swaps.HardSwap(self.fraction, masks=16),
            "hard, rows": lambda: swaps.HardSwap(self.fraction, by="row", masks=16),
            "soft": lambda: swaps.SoftSwap(self.fraction, masks=16),
        }[self.swap]()

    def code(self) -> str:
        """The flowsim calls that give the same run."""
        parametrization = {
            "learnable exp": "Exp()", "learnable exp(ν/10)": "ScaledExp(10.0)", "learnable softplus": "Softplus()",
            "learnable β": "Identity()",
        }.get(self.policy)  # fmt: skip
        low, high = sorted((self.temperature, self.end))
        policy = {
            "fixed": f"Fixed({self.temperature!r})",
            "linear": f"Linear({self.temperature!r}, {self.end!r})",
            "cosine": f"Cosine({low!r}, {high!r})",
        }.get(self.policy, f"Learnable({self.temperature!r}, fs.temperature.{parametrization}, {self.lr_ratio!r})")
        swap = {
            "none": "",
            "hard, entries": f", fs.HardSwap({self.fraction!r}, masks=16)",
            "hard, rows": f', fs.HardSwap({self.fraction!r}, by="row", masks=16)',
            "soft": f", fs.SoftSwap({self.fraction!r}, masks=16)",
        }[self.swap]
        pairing = f", pairing=fs.LabelNoise({self.noise!r})" if self.noise > 0 else ""
        start = (
            f"rings({self.pairs}, {self.height!r}, {self.twist!r})"
            if self.rings
            else f"mismatched({self.pairs}, {self.dim - 1}, {self.height!r}, {self.mismatch!r})"
        )
        first = min(_FIRST, self.horizon / 10)
        seed = "" if "seed" in self.unused else f", seed={self.seed}"
        return "\n".join(
            [
                "import numpy as np",
                "import flowsim as fs",
                f"flow = fs.GradientFlow(fs.{self.geometry}(), fs.Schedule(fs.temperature.{policy}{swap}){pairing})",
                f"start = fs.initial.{start}",
                f"ts = np.concatenate([[0.0], np.geomspace({first!r}, {self.horizon!r}, {POINTS - 1})])",
                f"result = fs.simulate(flow, start, ts=ts{seed})",
            ]
        )


def presets() -> dict[str, dict[str, Any]]:
    """Name -> controls of the paper's presets, as far as the controls reach."""
    found: dict[str, dict[str, Any]] = {"Figure 2": dataclasses.asdict(Choice())}
    kinds = {"Exp": "learnable exp", "ScaledExp": "learnable exp(ν/10)", "Softplus": "learnable softplus"}
    for name in schedules.names():
        schedule = schedules.get(name)
        policy, swap = schedule.temperature, schedule.swap
        moved: dict[str, Any] = {"swap": "none"}
        if isinstance(policy, temperature.Fixed):
            moved |= {"policy": "fixed", "temperature": float(policy.tau)}
        elif isinstance(policy, temperature.Linear):
            moved |= {"policy": "linear", "temperature": float(policy.start), "end": float(policy.end)}
        elif isinstance(policy, temperature.Cosine):
            moved |= {"policy": "cosine", "temperature": float(policy.low), "end": float(policy.high)}
        elif isinstance(policy, temperature.Learnable):
            if isinstance(policy.parametrization, temperature.ScaledExp) and policy.parametrization.scale != 10:
                continue
            kind = kinds[type(policy.parametrization).__name__]
            moved |= {"policy": kind, "temperature": float(policy.init), "lr_ratio": float(policy.lr_ratio)}
        if isinstance(swap, swaps.HardSwap):
            by = {"entry": "hard, entries", "row": "hard, rows"}[swap.by]
            moved |= {"swap": by, "fraction": float(swap.fraction)}
        elif isinstance(swap, swaps.SoftSwap):
            moved |= {"swap": "soft", "fraction": float(swap.fraction)}
        found[name] = moved
    return found


class Explorer:
    """A choice, its run, and their picture. `message` explains in words what could not be done, else "".

    The result stays that of the last choice that could be run. `frame` counts the stored times. Functions in `watchers`
    are called with "compiling ..." or "solving ..." before a run, and with "" when the picture is up to date.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice: Choice = choice
        self.message: str = ""
        self.seconds: float = 0.0
        self.watchers: list[Callable[[str], None]] = []
        self._compiled: set[tuple[Any, ...]] = set()
        self._preset: str = ""
        self.result: Result = self._run(choice)
        self.frame: int = len(self.result.snapshot_time) - 1
        self._picture = _Picture()
        self._show()

    def __repr__(self) -> str:
        moved = dataclasses.asdict(self.choice).items() - dataclasses.asdict(Choice()).items()
        settings = ", ".join(f"{c.name}={getattr(self.choice, c.name)!r}" for c in CONTROLS if c.name in dict(moved))
        return f"Explorer({settings or 'Figure 2'}), with set(NAME=VALUE), result, code() and save(FILE)"

    @property
    def figure(self) -> Figure:
        """The picture."""
        return self._picture.figure

    @property
    def preset_name(self) -> str:
        """The preset that the controls are set to: the last one chosen if it is still so, else any, else ""."""
        known, now = presets(), dataclasses.asdict(self.choice)
        return next((name for name in (self._preset, *known) if name and known[name].items() <= now.items()), "")

    def set(self, **changes: Any) -> "Explorer":
        """Move controls, run, and draw; what cannot be is explained in `message` and changes nothing else."""
        try:
            choice = self.choice.replace(**changes)
            self._tell("solving ..." if choice.structure in self._compiled else "compiling ...")
            self.result = self._run(choice)
            self.choice, self.frame = choice, len(self.result.snapshot_time) - 1
            self.message = "" if self.result.status.ok else self.result.status.sentence
        except FlowsimError as error:
            self.message = str(error)
        finally:
            self._show()
            self._tell("")
        return self

    def preset(self, name: str) -> "Explorer":
        """Set the controls to a preset of the paper. Raises `FlowsimError` for an unknown one."""
        known = presets()
        if name not in known:
            raise unknown_name("preset", name, known)
        self._preset = name
        return self.set(**known[name])

    def scrub(self, frame: int) -> "Explorer":
        """Show the embeddings at another of the stored times, 0 to the last."""
        self.frame = int(np.clip(frame, 0, len(self.result.snapshot_time) - 1))
        self._draw_rows()
        self._tell("")
        return self

    def code(self) -> str:
        """The flowsim calls that give the run that is shown."""
        return self.choice.code()

    def save(self, path: str) -> Path:
        """Write the picture (.png, .pdf, .svg), the result (.nc), or the calls (.py); by the ending of `path`."""
        check(
            path.endswith((".png", ".pdf", ".svg", ".nc", ".py")),
            f"The explorer cannot be written as {path!r}. Use a name that ends in .png, .pdf or .svg for the picture, "
            ".nc for the result or .py for the calls.",
        )
        if path.endswith(".nc"):
            return self.result.save(path)
        if path.endswith(".py"):
            return write_atomically(path, lambda temporary: Path(temporary).write_text(self.code() + "\n", "utf-8"))
        plot.save(self.figure, path)
        return Path(path)

    def _tell(self, text: str) -> None:
        for watcher in self.watchers:
            watcher(text)

    def _run(self, choice: Choice) -> Result:
        begin = time.perf_counter()
        result = simulate(choice.flow(), choice.start(), ts=choice.times(), seed=choice.seed, throw=False)
        self.seconds = time.perf_counter() - begin
        self._compiled.add(choice.structure)
        return result

    def _rows(self, frame: int) -> tuple[np.ndarray, np.ndarray]:
        snapshot = self.result._snapshot(frame)
        assert snapshot.image is not None and snapshot.text is not None
        return snapshot.image, snapshot.text

    def _draw_rows(self) -> None:
        self._picture.embeddings(self.result.snapshot_time[self.frame], *self._rows(self.frame))

    def _show(self) -> None:
        try:
            choice = self.choice
            closed = theory.predict(choice.flow(), choice.start(), ts=choice.times(), seed=choice.seed)
        except FlowsimError:  # there is none
            closed = None
        facts = f"{self.result.status.code.name}, {self.result.status.method}, {1000 * self.seconds:.0f} ms"
        residual = self.result.stats.get("conserved_residual")
        if residual is not None:
            facts += f"; conserved quantity to {residual:.0e}"
        self._picture.curves(self.result, closed, facts, self.message)
        rows = [self._rows(frame) for frame in range(len(self.result.snapshot_time))]
        self._picture.look([image for image, _ in rows], [text for _, text in rows])
        self._draw_rows()


class _View:
    """From d > 3 dimensions to the three that are drawn; the vertical one is the direction of the gap.

    The other two are the principal components of the run's rows about the centre of their modality, across the gap.
    """

    def __init__(self, image: np.ndarray, text: np.ndarray) -> None:
        """Rows of the whole run, (times, n, d) each."""
        rows = np.concatenate([x - x.mean(1, keepdims=True) for x in (image, text)]).reshape(-1, image.shape[-1])
        self.scatter = rows.T @ rows / len(rows)
        # Those of the last time give the signs: without, eigenvectors turn round from one time to the next.
        self.signs: np.ndarray | None = None
        self.signs = self.axes(image[-1], text[-1])[:2]

    def axes(self, image: np.ndarray, text: np.ndarray) -> np.ndarray:
        """Orthonormal rows (3, d): two principal components, then the unit vector along the gap, from texts to images.

        Where the gap is zero to rounding the third is another principal component.
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


class _Picture:
    """The panels. Artists are made once and get new data: making them anew takes longer than the run."""

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
        #: Shown where there is a closed form.
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
        """Everything that does not depend on the time that is shown."""
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
        """Rows (n, d) at the time `now`; beyond three dimensions as `_View` projects them."""
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


def explore(view: bool = True, **choice: Any) -> Explorer:
    """Open the explorer with some controls set; see the module. `view=False` opens no window.

    Returns the `Explorer`. Raises `FlowsimError` for unknown controls or values, and, with `view`, where there is
    neither a notebook nor a display.
    """
    first = Choice().replace(**choice)
    if not view:
        return Explorer(first)
    waits, show = _view()
    with waits():
        explorer = Explorer(first)
    show(explorer)
    return explorer


def _view() -> tuple[Callable[[], contextlib.AbstractContextManager[None]], Callable[[Explorer], Any]]:
    """What says that the first run compiles, and what shows the explorer."""
    shell = sys.modules.get("IPython")
    kernel = None if shell is None else getattr(shell.get_ipython(), "kernel", None)
    if kernel is not None:
        try:
            import ipywidgets  # noqa: F401
        except ImportError:
            raise FlowsimError("Sliders in a notebook need ipywidgets. Use pip install 'flowsim[explore]'.") from None
        from flowsim.explorer.views import notebook, notebook_waits

        return notebook_waits, notebook
    import matplotlib

    if matplotlib.get_backend().lower() in ("agg", "pdf", "svg", "ps", "template", "cairo") or not _display():
        raise FlowsimError(
            "There is no display to explore on. Use a notebook, a terminal with a display and matplotlib's GUI "
            "(%matplotlib), or fs.explore(view=False), which can be driven from code."
        )
    from flowsim.explorer.views import window, window_waits

    return window_waits, window


def _display() -> bool:
    return sys.platform != "linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
