"""The explorer: a choice of settings, its run and its picture, driven by views or from code."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from flowsim import plot, theory
from flowsim.base.checks import check
from flowsim.base.files import write_text
from flowsim.errors import FlowsimError, unknown_name
from flowsim.explorer.choice import CONTROLS, Choice, presets
from flowsim.explorer.picture import Picture
from flowsim.integrate.simulate import simulate
from flowsim.records.result import Result


class Explorer:
    """A choice of settings with its run and picture. `fs.explore` makes one.

    Args:
        choice: The initial settings.

    Attributes:
        choice: The settings of the last run that worked.
        result: The result of that run.
        message: Why the last change failed or the run stopped early, else "".
        frame: Index of the stored time whose embeddings are shown.
        seconds: Duration of the last run in seconds.
        watchers: Functions that are called with "compiling ..." or "solving ..." before a run, and with "" when the
            picture is up to date.
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
        self._picture = Picture()
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
        """Name of a preset that matches the controls, preferably the last one chosen; "" if there is none."""
        known, now = presets(), dataclasses.asdict(self.choice)
        return next((name for name in (self._preset, *known) if name and known[name].items() <= now.items()), "")

    def set(self, **changes: Any) -> "Explorer":
        """Change controls, run and draw. If that is not possible, only `message` changes, which gives the reason.

        Args:
            **changes: Control -> value; see `CONTROLS`.

        Returns:
            The explorer itself.
        """
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
        """Set the controls to a preset of the paper.

        Args:
            name: Name of the preset, such as "Figure 2" or "Baseline".

        Returns:
            The explorer itself.

        Raises:
            FlowsimError: If the preset is unknown.
        """
        known = presets()
        if name not in known:
            raise unknown_name("preset", name, known)
        self._preset = name
        return self.set(**known[name])

    def scrub(self, frame: int) -> "Explorer":
        """Show the embeddings at another stored time.

        Args:
            frame: Index of the stored time; values out of range are clipped.

        Returns:
            The explorer itself.
        """
        self.frame = int(np.clip(frame, 0, len(self.result.snapshot_time) - 1))
        self._draw_rows()
        self._tell("")
        return self

    def code(self) -> str:
        """Python code that computes the run shown."""
        return self.choice.code()

    def save(self, path: str) -> Path:
        """Write the picture, the result or the code.

        Args:
            path: File to write: .png, .pdf or .svg for the picture, .nc for the result, .py for the code.

        Returns:
            The path.

        Raises:
            FlowsimError: If the path has another ending or the file cannot be written.
        """
        check(
            path.endswith((".png", ".pdf", ".svg", ".nc", ".py")),
            f"The explorer cannot be written as {path!r}. Use a name that ends in .png, .pdf or .svg for the picture, "
            ".nc for the result or .py for the calls.",
        )
        if path.endswith(".nc"):
            return self.result.save(path)
        if path.endswith(".py"):
            return write_text(path, self.code() + "\n")
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
        except FlowsimError:  # no closed form is known
            closed = None
        facts = f"{self.result.status.code.name}, {self.result.status.method}, {1000 * self.seconds:.0f} ms"
        residual = self.result.stats.get("conserved_residual")
        if residual is not None:
            facts += f"; conserved quantity to {residual:.0e}"
        self._picture.curves(self.result, closed, facts, self.message)
        rows = [self._rows(frame) for frame in range(len(self.result.snapshot_time))]
        self._picture.look([image for image, _ in rows], [text for _, text in rows])
        self._draw_rows()
