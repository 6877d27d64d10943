"""One real CLIP run and many of its beginnings, as in the paper's figures 1 and 4.

Embeddings of training pairs at the start, after one epoch and at the end (PCA); the gap against −1/log(t)²; and the
change of the gap over the first ten steps from many initialisations. Reads the records of `flowsim clip study` and
`flowsim clip early` (`reference/clip_laptop.nc`, `reference/clip_early.nc`; see `docs/clip.md` for how to make them).
Yaras et al. 2025, figures 1 and 4.
"""

from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.clip import figures
from flowsim.progress import Progress

SEED = 0
RUN = "Baseline, seed 0"
FULL = {"early": 100}
QUICK = {"early": 10}

RECORDS = Path(__file__).parent / "reference"


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    run = fs.load_results(RECORDS / "clip_laptop.nc", [RUN])[RUN]
    count = (QUICK if quick else FULL)["early"]
    return figures.gap_numbers(run, fs.load_results(RECORDS / "clip_early.nc", [f"seed {k}" for k in range(count)]))  # pyright: ignore[reportArgumentType]


def plot(record: xr.Dataset) -> Figure:
    return figures.gap_figure(record)
