"""Figures of what was measured on a GPU: the phase diagram of DIR/simulator_phase.npz.

    python benchmarks/gpu_figures.py DIR FIGURE.png

The file is written by `benchmarks/gpu_stages/simulator.py`.
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.plot.phase import _HALO


def phase_record(path: Path) -> xr.Dataset:
    """The file that `gpu_stages/simulator.py` writes: gap over time, τ0 and r, and the temperature at the last time."""
    with np.load(path) as held:
        pairs, dim, height = held["start"]
        return xr.Dataset(
            {
                "modality_gap": (("ratio", "tau0", "time"), held["gap"] / 32767.5),
                "temperature": (("ratio", "tau0"), np.exp(held["log_tau"] / 4000)),
            },
            coords={name: held[key] for name, key in (("tau0", "tau0"), ("ratio", "ratio"), ("time", "times"))},
            attrs={
                "initial_gap": float(held["initial_gap"]),
                "pairs": int(pairs),
                "dim": int(dim),
                "height": float(height),
            },
        )


def phase_figure(path: Path) -> Figure:
    """The gap early and late, and the late temperature, over the starting temperature and its learning rate."""
    record = phase_record(path)
    figure = Figure(figsize=(fs.plot.PAGE, 2.9), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    first = record.attrs["initial_gap"]
    gap = record["modality_gap"] / first
    times = [float(record["time"][i]) for i in (0, -1)]
    spread = float(np.abs(gap - 1).max())
    colours = {"cmap": "RdBu_r", "vmin": 1 - spread, "vmax": 1 + spread}
    text = [rf"$t = {fs.plot.time_text(t).strip('$')}$" for t in times]
    for ax, letter, t, at in zip(axes[:2], "ab", times, text, strict=True):
        fs.plot.phase_diagram(
            gap.sel(time=t), "tau0", "ratio", ax, levels=[0.25, 0.5, 0.75, 1.0, 1.25], colourbar=False, **colours
        )
        ax.set_title(rf"$\bf{{({letter})}}$ gap / initial gap at {at}")
    figure.colorbar(axes[1].collections[0], ax=axes[:2], pad=0.02, aspect=30)
    fs.plot.phase_diagram(
        record["temperature"].copy(data=np.log10(record["temperature"].to_numpy())),
        "tau0",
        "ratio",
        axes[2],
        levels=np.arange(-3, 0.1, 0.25),
        contours={"linestyles": "solid"},
        colourbar=False,
        cmap="cividis",
    )
    figure.colorbar(axes[2].collections[0], ax=axes[2], pad=0.02, aspect=30)
    axes[2].set_title(rf"$\bf{{(c)}}$ $\log_{{10}}\,\tau$ at {text[1]}")
    for ax in axes:
        ax.set(xlabel=r"starting temperature $\tau_0$", ylabel=None)
        for name, ratio, marker in (("Baseline", 1.0, "o"), ("SLRT", 0.1, "s")):
            ax.plot(0.07, ratio, marker, color="black", mfc="white", ms=4, label=name, path_effects=_HALO)
    axes[0].set_ylabel(r"learning-rate ratio $r$ of the temperature")
    axes[0].legend(loc="upper left", fontsize=7, frameon=True, framealpha=0.8, borderpad=0.3)
    figure.supxlabel(
        rf"{record.sizes['tau0'] * record.sizes['ratio']:,} runs of one start, random mismatched cones on the sphere: "
        rf"$n = {record.attrs['pairs']}$, $d = {record.attrs['dim']}$, $\gamma_0 = {record.attrs['height']:g}$, "
        r"$\beta = e^\nu$.",
        fontsize=8,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the records")
    parser.add_argument("figure", type=Path, help="file to write, .png or .pdf")
    options = parser.parse_args()
    with fs.plot.paper_style():
        fs.plot.save(phase_figure(options.folder / "simulator_phase.npz"), options.figure)


if __name__ == "__main__":
    main()
