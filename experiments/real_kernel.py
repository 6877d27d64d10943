"""What measured kernels explain of training: small encoders on photographs beside the flow of their kernels.

Reads the numbers of `flowsim clip kernel-study` on Flickr8k (`reference/kernel_flickr8k.nc`; `docs/real-kernels.md`
explains how they were made): gaps of runs and of kernel flows with nothing fitted, forecasts from the first fifth of
each run, exponents against the effective learning-rate ratio, and the drift of the kernels. Schedules are those of
Yaras et al. 2025; the kernel flow is derived in `flowsim.theory.kernel`.
"""

from pathlib import Path

import xarray as xr
from matplotlib.figure import Figure

from flowsim.comparison.kernel_figure import kernel_figure
from flowsim.progress import Progress
from flowsim.records.netcdf import read_netcdf

SEED = 0
FULL = {"numbers": "kernel_flickr8k.nc"}
QUICK = FULL

REFERENCE = Path(__file__).parent / "reference"


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    return read_netcdf(REFERENCE / FULL["numbers"])


def plot(record: xr.Dataset) -> Figure:
    return kernel_figure(record)
