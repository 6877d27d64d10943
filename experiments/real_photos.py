"""Heads on frozen features of photographs and captions: all 26 settings of the paper's tables, three seeds.

Reads the numbers of `flowsim heads study` on Flickr8k (`reference/heads_flickr8k.nc`; `docs/real-pairs.md` explains how
they were made): gaps and temperatures over time, final gaps against the paper's, and held-out retrieval against the
gap, at the end and at equal training loss. Yaras et al. 2025, tables 2-5, figures 5 and 6.
"""

from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from flowsim.clip.order_figure import order_figure
from flowsim.progress import Progress
from flowsim.records.netcdf import read_netcdf

SEED = 0
FULL = {"numbers": "heads_flickr8k.nc"}
QUICK = FULL

REFERENCE = Path(__file__).parent / "reference"


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    return read_netcdf(REFERENCE / FULL["numbers"])


def plot(record: xr.Dataset) -> Figure:
    return order_figure(record)
