"""Real CLIP training under the paper's schedules, at laptop size: gap, temperature, and the order of the methods.

Reads the records of `flowsim clip study --preset laptop` on 2,048 photographs (`reference/clip_laptop.nc`; how they
were made is in `docs/clip.md`) and computes what the paper's tables 2-5 and Figure 6 show: final gaps beside the
paper's, gaps at equal training loss, retrieval against gap. Yaras et al. 2025, tables 2-5, figures 6 and 7.
"""

import math
from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

import flowsim as fs
from flowsim.clip.tables import Tables, smoothed_loss, split_name

SEED = 0
FULL = {"records": "clip_laptop.nc"}
QUICK = FULL

RECORDS = Path(__file__).parent / "reference"
#: Points of the smoothed training loss that are kept.
POINTS = 150


def compute(quick: bool, progress) -> xr.Dataset:
    records = fs.load_results(RECORDS / (QUICK if quick else FULL)["records"])
    tables = Tables.of(records)
    names = dict(zip(tables.methods, range(len(tables.methods)), strict=True))
    shape = (len(names), len(tables.seeds))
    steps = next(iter(records.values())).coordinates["step"]
    curves = {
        name: np.full((*shape, len(steps)), np.nan) for name in ("seen_modality_gap", "modality_gap", "temperature")
    }
    chosen = np.unique(np.linspace(0, tables.steps - 1, POINTS).astype(int))
    loss = np.full((*shape, len(chosen)), np.nan)
    for name, record in progress(list(records.items()), "records"):
        method, seed = split_name(name)
        at = names[method], tables.seeds.index(seed)
        for series, values in curves.items():
            values[at] = record.series[series]
        loss[at] = smoothed_loss(record)[chosen]
    dims = ("method", "seed")
    record = xr.Dataset(
        {name: ((*dims, "step"), values) for name, values in curves.items()}
        | {f"final_{name}": (dims, values) for name, values in tables.values.items()}
        | {f"at_loss_{name}": (dims, values) for name, values in tables.at_loss.items()}
        | {"train_loss": ((*dims, "train_step"), loss)},
        {"method": list(tables.methods), "seed": list(tables.seeds), "step": steps, "train_step": chosen},
    )
    printed = {method: row["modality_gap"] for (_, method), row in tables.paper.items()}
    record["paper_gap"] = ("method", [printed.get(m, math.nan) for m in tables.methods])
    record.attrs["loss_level"] = tables.loss_level
    for name, found in (("paper", tables.with_paper()), ("tau", tables.correlation("gap", "temperature")),
                        ("recall", tables.correlation("gap", "image_retrieval"))):  # fmt: skip
        if found is not None:
            record.attrs[f"rho_{name}"] = [found.rho, found.low, found.high]
    return record


def plot(record: xr.Dataset) -> Figure:
    figure = Figure(figsize=(fs.plot.PAGE, 4.7), layout="constrained")
    axes = figure.subplots(2, 3)
    methods = [str(m) for m in record["method"].to_numpy()]
    style = _styles(methods)
    mean = record.mean("seed")
    for method in methods:
        here, draw = mean.sel(method=method), {"color": style[method][0], "ls": style[method][1], "lw": 1.2}
        axes[0, 0].plot(here["step"], here["seen_modality_gap"], label=method, **draw)
        axes[0, 1].plot(here["step"], here["temperature"], **draw)
        gap = np.interp(here["train_step"], here["step"], here["seen_modality_gap"])
        axes[0, 2].plot(here["train_loss"], gap, **draw)
        for ax, x, y in (
            (axes[1, 0], "final_temperature", "final_gap"), (axes[1, 1], "paper_gap", "final_gap"),
            (axes[1, 2], "final_gap", "final_seen_image_retrieval"),
        ):  # fmt: skip
            ax.plot(here[x], here[y], _marker(method), color=style[method][0], ms=5, mfc=_face(method, style))
    axes[0, 0].set(xlabel="step", ylabel=r"gap $\Delta$, training pairs", ylim=(0, None))
    axes[0, 1].set(xlabel="step", ylabel=r"temperature $\tau$", yscale="log")
    axes[0, 1].set_yticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes[0, 1].yaxis.set_minor_formatter(NullFormatter())
    axes[0, 2].axvline(record.attrs["loss_level"], color=fs.plot.COLOURS["grey"], lw=0.7, ls=":")
    axes[0, 2].set(xlabel="training loss", ylabel=r"gap $\Delta$, training pairs", ylim=(0, None))
    axes[0, 2].set_xlim(math.log(64) + 0.1, 0)
    axes[1, 0].set(xlabel=r"final temperature $\tau$", ylabel=r"final gap $\Delta$, held out", xscale="log")
    axes[1, 0].set_xticks([0.01, 0.02, 0.05, 0.1], ["0.01", "0.02", "0.05", "0.1"])
    axes[1, 0].xaxis.set_minor_formatter(NullFormatter())
    axes[1, 1].set(xlabel=r"gap $\Delta$ in the paper", ylabel=r"final gap $\Delta$, held out")
    axes[1, 2].set(xlabel=r"final gap $\Delta$, held out", ylabel="image R@1 on training pairs, %")
    titles = ("gap", "temperature", "gap at equal loss", "gap and temperature", "order of the methods",
              "retrieval and gap")  # fmt: skip
    rho = {3: "tau", 4: "paper", 5: None}
    for i, (ax, title) in enumerate(zip(axes.flat, titles, strict=True)):
        found = record.attrs.get(f"rho_{rho.get(i)}")
        text = "" if found is None else rf", $\rho = {found[0]:+.2f}$"
        ax.set_title(rf"$\bf{{({'abcdef'[i]})}}$ {title}{text}")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(5, len(labels)), frameon=False)
    return figure


def _styles(methods: list[str]) -> dict[str, tuple[str, str]]:
    """Colour and line of each method: colour by family, line within it."""
    colours, lines = fs.plot.COLOURS, ("-", "--", ":", "-.")
    family = {"Baseline": "black", "FLT": "blue", "TS": "vermilion", "TR": "green", "SLRT": "purple", "HS": "orange",
              "SS": "sky", "No": "grey"}  # fmt: skip
    found: dict[str, tuple[str, str]] = {}
    count: dict[str, int] = {}
    for method in methods:
        head = method.split()[0]
        found[method] = colours[family[head]], lines[count.get(head, 0) % len(lines)]
        count[head] = count.get(head, 0) + 1
    return found


def _marker(method: str) -> str:
    return {"FLT": "s", "TS": "^", "TR": "v", "SLRT": "D", "HS": "p", "SS": "h"}.get(method.split()[0], "o")


def _face(method: str, style: dict[str, tuple[str, str]]) -> str:
    """Filled for the first method of a family."""
    return style[method][0] if style[method][1] == "-" else "white"
