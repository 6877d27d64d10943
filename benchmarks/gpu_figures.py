"""Figures of what was measured on a GPU, drawn from the records in `benchmarks/results/gpu`.

    python benchmarks/gpu_figures.py            # figures/gpu_{study,heads,speed,phase}.{png,pdf}

`gpu_study`: encoders trained on photographs, nine methods of the paper. `gpu_heads`: heads on frozen features, all
methods. `gpu_speed`: ensembles and fields of the simulator. `gpu_phase`: a phase diagram of a million runs. The stages
`study`, `heads` and `simulator` wrote the records.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from gpu_results import HERE, correlations, ensembles, fields, heads, peers, results, with_practical_temperature
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

import flowsim as fs
from flowsim.base.sources import drawing_hash, write_stamp
from flowsim.clip.figures import _styles, methods_figure
from flowsim.clip.studies import SHORT
from flowsim.plot.phase import _HALO
from flowsim.records.netcdf import read_netcdf

FIGURES = Path(__file__).resolve().parents[1] / "figures"


def study_figure() -> Figure:
    """Gap and temperature of encoders over steps; final gaps against temperature, the paper's and retrieval."""
    return methods_figure(read_netcdf(HERE / "study_numbers.nc"))


def heads_figure() -> Figure:
    """Gap over steps, and the final gap against the paper's, the temperature and retrieval."""
    here = heads()
    style = _style()
    figure = Figure(figsize=(fs.plot.PAGE, 5.4), layout="constrained")
    axes = figure.subplots(2, 2).ravel()
    for name in SHORT:
        gap = here.of(name, here.gap)
        line = style[name]
        axes[0].plot(here.steps[1:], gap[:, 1:].mean(0), **line, ms=4, markevery=3)
        axes[0].fill_between(
            here.steps[1:], gap[:, 1:].min(0), gap[:, 1:].max(0), color=line["color"], alpha=0.15, lw=0
        )
    axes[0].set(xscale="log", yscale="log", xlabel="step", ylabel=r"gap $\Delta$, held out")
    axes[0].set_title(r"$\bf{(a)}$ nine methods: mean and range of three seeds", fontsize=8)
    shown = {
        1: (np.tile(here.paper[:, None], here.gap.shape[1]), r"gap $\Delta$ in the paper", "gap, with the paper's"),
        2: (here.temperature, r"final temperature $\tau$", "gap, with the final temperature"),
    }
    rho = correlations(with_practical_temperature)
    for k, (values, label, name) in shown.items():
        _points(axes[k], values, here.gap[:, :, -1])
        axes[k].set(xscale="log", yscale="log", xlabel=label, ylabel=r"final gap $\Delta$, held out")
        axes[k].set_title(rf"$\bf{{({'abcd'[k]})}}$ {_rho(rho[name])}", fontsize=8)
    _points(axes[3], here.gap[:, :, -1], here.text_retrieval)
    axes[3].set(xscale="log", xlabel=r"final gap $\Delta$, held out", ylabel="R@1 image to text, held out (%)")
    axes[3].set_title(rf"$\bf{{(d)}}$ {_rho(rho['gap, with R@1 image to text'])}", fontsize=8)
    for ax in axes:
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_minor_formatter(NullFormatter())
    keys = ("color", "marker", "fillstyle", "markerfacecolor", "markerfacecoloralt")
    handles = [Line2D([], [], label=m, ms=5, ls="", **{k: style[m][k] for k in keys}) for m in here.methods]
    text = (
        f"Heads with one hidden layer on frozen features of 6,000 photos; {here.steps[-1]:,} steps of 512 pairs. "
        r"$\rho$: Spearman over the methods with $\tau \leq 0.1$ [95 %]"
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=7, title=text, title_fontsize=8)
    return figure


def speed_figure() -> Figure:
    """Time per run of an ensemble by its size, and the field of large batches against its floor."""
    colours = fs.plot.COLOURS
    figure = Figure(figsize=(fs.plot.PAGE, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for size, colour, mark in (("5,3", "blue", "o"), ("16,8", "vermilion", "s"), ("32,8", "green", "^")):
        for dtype, line in (("float64", "-"), ("float32", "--")):
            every = [one for one in ensembles() if (one.size, one.dtype) == (size, dtype)]
            label = f"$n, d = {size.replace(',', ', ')}$, {dtype}"
            runs, spent = [one.runs for one in every], [1e6 * one.seconds for one in every]
            left.plot(runs, spent, mark + line, color=colours[colour], ms=4, label=label)
        theirs = peers(size)
        if theirs is not None:
            left.axhline(1e6 * theirs["scipy_seconds"], color=colours[colour], ls=":", lw=1)
            left.axhline(1e6 * theirs["sweep_seconds"], color=colours[colour], ls="-.", lw=1)
    for key, text in (("scipy_seconds", "SciPy, one core"), ("sweep_seconds", "fs.sweep, two cores")):
        highest = max(1e6 * theirs[key] for theirs in map(peers, ("5,3", "16,8")) if theirs is not None)
        left.annotate(text, (1e6, highest), (0, 2), textcoords="offset points", ha="right", va="bottom", fontsize=7)
    left.set(xscale="log", yscale="log", xlabel="runs at once", ylabel="microseconds per run", ylim=(0.5, 2e5))
    left.set_title(rf"$\bf{{(a)}}$ ensembles on {results('simulator')['device']}, error $< 10^{{-6}}$", fontsize=8)
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=7, ncols=2, handlelength=3)
    for dtype, colour in (("float32", "orange"), ("float64", "purple")):
        every = [one for one in fields() if one["dtype"] == dtype and one["dim"] == 64]
        for key, mark, text in (("field_ms", "o-", "field"), ("floor_ms", "s:", "floor")):
            middle = [sorted(one[key])[1] for one in every]
            right.plot(
                [one["pairs"] for one in every], middle, mark, color=colours[colour], ms=4, label=f"{text}, {dtype}"
            )
    right.set(xscale="log", yscale="log", xlabel="pairs $n$", ylabel="milliseconds")
    right.set_title(r"$\bf{(b)}$ one evaluation of the field, $d = 64$", fontsize=8)
    right.xaxis.set_minor_formatter(NullFormatter())
    right.set_xticks([one["pairs"] for one in every], [f"{one['pairs']:,}" for one in every])
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), fontsize=7, ncols=2, handlelength=3)
    return figure


def _style() -> dict[str, dict[str, Any]]:
    """Style of each method; six fillings of a marker do not suffice for eight fixed temperatures."""
    style = _styles(heads().methods)
    for name in ("FLT 3e-1", "FLT 4e-1"):
        style[name]["marker"] = "d"
    return style


def _points(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """A point for each method, with bars over the range of its seeds; (methods, seeds)."""
    here, style = heads(), _style()
    for k, name in enumerate(here.methods):
        if np.isfinite(x[k]).all():
            bars = [np.abs(np.array([[v.min()], [v.max()]]) - v.mean()) for v in (x[k], y[k])]
            mark = {key: v for key, v in style[name].items() if key not in ("ls", "lw")}
            ax.errorbar(x[k].mean(), y[k].mean(), bars[1], bars[0], ls="", ms=5, elinewidth=0.7, **mark)


def _rho(found: object) -> str:
    rho, low, high = (getattr(found, name) for name in ("rho", "low", "high"))
    return rf"$\rho = {rho:+.2f}$ [${low:+.2f}$, ${high:+.2f}$]"


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


DRAWN = {
    "gpu_study": (study_figure, ("study_numbers.nc",)),
    "gpu_heads": (heads_figure, ("heads.json",)),
    "gpu_speed": (speed_figure, ("simulator.json",)),
    "gpu_phase": (lambda: phase_figure(HERE / "simulator_phase.npz"), ("simulator_phase.npz",)),
}


def stamp(name: str) -> dict[str, str]:
    """What a figure depends on: the code that draws it, and its numbers."""
    numbers = hashlib.sha256()
    for file in DRAWN[name][1]:
        numbers.update((HERE / file).read_bytes())
    return {"drawn_by": drawing_hash(Path(__file__).resolve()), "numbers": numbers.hexdigest()}


def main() -> None:
    with fs.plot.paper_style():
        for name, (draw, _) in DRAWN.items():
            figure = draw()
            for kind in ("png", "pdf"):
                fs.plot.save(figure, str(FIGURES / f"{name}.{kind}"), write_stamp(stamp(name)))


if __name__ == "__main__":
    main()
