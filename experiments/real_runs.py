"""Real CLIP training under the paper's schedules, at laptop size: gap, temperature, and the order of the methods.

Reads the records of `flowsim clip study --preset laptop` on 2,048 photographs (`reference/clip_laptop.nc`;
`docs/clip.md` explains how they were made) and computes the numbers of the paper's tables 2-5 and Figure 6: final gaps
next to the paper's, gaps at equal training loss, retrieval against gap. Yaras et al. 2025, tables 2-5, figures 6 and 7.
"""

from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.clip import figures
from flowsim.progress import Progress

SEED = 0
FULL = {"records": "clip_laptop.nc"}
QUICK = FULL

RECORDS = Path(__file__).parent / "reference"


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    return figures.methods_numbers(fs.load_results(RECORDS / FULL["records"]))  # pyright: ignore[reportArgumentType]


def plot(record: xr.Dataset) -> Figure:
    return figures.methods_figure(record)
