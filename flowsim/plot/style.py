"""Colours, sizes, labels and style of figures, and writing figures."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flowsim.base.checks import check
from flowsim.base.files import write_atomically
from flowsim.errors import unknown_name
from flowsim.observables.table import entry
from flowsim.records.result import Result

#: The palette of Okabe and Ito (2008) by name.
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
#: Colours of curves, in order; without yellow, which is too light for lines.
CYCLE: tuple[str, ...] = tuple(COLOURS[k] for k in ("blue", "vermilion", "green", "purple", "orange", "sky", "black"))
IMAGE_COLOUR = COLOURS["blue"]
TEXT_COLOUR = COLOURS["vermilion"]
#: Background at times when all pairs are matched.
MATCHED_COLOUR = "#DDEFE8"
TIME_LABEL = r"flow time $t$"
#: Widths of one and two columns of a paper, in inches.
COLUMN, PAGE = 3.4, 7.0
_COLOUR_OF = {
    "modality_gap": COLOURS["blue"],
    "temperature": COLOURS["vermilion"],
    "loss": COLOURS["black"],
    "margin": COLOURS["green"],
}
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
    """Context manager that sets the style of the reproduced figures."""
    with plt.rc_context():
        plt.rcdefaults()
        for key, value in _PAPER.items():
            plt.rcParams[key] = value  # pyright: ignore[reportArgumentType]
        yield


def label(name: str) -> str:
    """The axis label of an observable, with its symbol. All observables are dimensionless.

    Args:
        name: Name of the observable, e.g. "modality_gap".

    Returns:
        The label; for an unknown observable, the name with spaces.
    """
    return entry(name).label


def time_text(t: float) -> str:
    """A time as text for a title, with powers of ten for large and small times.

    Args:
        t: Time, 0 or more.

    Returns:
        Text for matplotlib, e.g. "2.3" or "$10^{5}$".
    """
    if t > 0 and (t >= 1e3 or t < 1e-2):
        exponent = int(np.floor(np.log10(t) + 1e-12))
        digits = f"{t / 10.0**exponent:.2g}"
        power = f"10^{{{exponent}}}"
        return f"${power}$" if digits == "1" else rf"${digits} \times {power}$"
    return f"{t:.3g}"


def _axes(ax: Axes | None) -> Axes:
    """The given axes, or those of a new figure."""
    check(
        ax is None or isinstance(ax, Axes),
        f"Argument `ax` must be one matplotlib Axes, but is {type(ax).__name__}. Use e.g. plt.subplots()[1], or none.",
    )
    return plt.subplots(layout="constrained")[1] if ax is None else ax


def _check_result(result: Any) -> None:
    """Raise `FlowsimError` if this is not a `Result`."""
    check(
        isinstance(result, Result),
        f"Expected a Result, but got {type(result).__name__}. Use the result of fs.simulate(...) or fs.load(...).",
    )


def _check_recorded(result: Any, name: str) -> None:
    """Raise `FlowsimError` if this is not a `Result` or has no such series."""
    _check_result(result)
    if name not in result.series:
        raise unknown_name("observable", name, result.series)


#: Metadata that would differ between runs or versions.
_DATED = {"png": ("Software",), "pdf": ("CreationDate", "Creator", "Producer"), "svg": ("Date", "Creator")}


def save(figure: Figure, path: str | os.PathLike[str], stamp: str = "") -> Path:
    """Write a figure atomically; the same figure gives the same bytes.

    Args:
        figure: The figure.
        path: File to write; its ending, .png, .pdf or .svg, determines the format.
        stamp: A line for the metadata of the file, e.g. what produced it.

    Returns:
        The path.

    Raises:
        FlowsimError: If the ending is unknown or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix[1:].lower()
    known = figure.canvas.get_supported_filetypes()
    check(kind in known, f"A figure cannot be written as {str(path)!r}. Use a name that ends in .png, .pdf or .svg.")
    metadata: dict[str, Any] = dict.fromkeys(_DATED.get(kind, ()))
    if stamp and metadata:
        metadata["Comment" if kind == "png" else "Keywords"] = stamp
    given = {"metadata": metadata} if metadata else {}
    return write_atomically(
        path,
        lambda temporary: figure.savefig(temporary, format=kind, **given),  # pyright: ignore[reportArgumentType]
    )
