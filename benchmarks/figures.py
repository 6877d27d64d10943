"""The figure of docs/performance.md, drawn from the results that the other benchmarks wrote with `--json`.

    python benchmarks/figures.py            # benchmarks/results/*.json -> figures/performance.{png,pdf}

    python benchmarks/field.py --json benchmarks/results/field.json
    python benchmarks/single.py --json benchmarks/results/single.json
    python benchmarks/ensembles.py --json benchmarks/results/ensembles.json
    python benchmarks/large_batch.py --pairs 256 512 1024 2048 4096 8192 --once-above 4096 --kinds tiled dense \\
        --json benchmarks/results/large_batch.json
    python benchmarks/large_batch.py --pairs 16384 65536 --once-above 4096 --kinds tiled \\
        --json benchmarks/results/large_batch_tiled.json
    python benchmarks/cluster_sweep.py --json benchmarks/results/cluster_sweep.json
    python benchmarks/field.py --pairs 1024 --dims 8 16 32 64 128 256 512 --json benchmarks/results/field_dim.json
    python benchmarks/devices.py --json benchmarks/results/devices.json
    python benchmarks/solver_problems.py --scipy 4 --json benchmarks/results/solver_problems.json

Points are medians, bars reach from the smallest to the largest repeat. The figure carries a stamp of this code and of
the numbers that it draws; a test compares it with the current code and numbers.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

import flowsim as fs
from flowsim.base.sources import drawing_hash, write_stamp
from flowsim.plot import COLOURS, PAGE

HERE = Path(__file__).resolve().parent
#: Files of benchmarks/results that are drawn.
DRAWN = (
    "cluster_sweep", "devices", "ensembles", "field", "field_dim", "large_batch", "large_batch_tiled", "single",
    "solver_problems",
)  # fmt: skip
#: A marker for each colour, so that lines differ without it.
MARKERS = {
    "orange": "^",
    "green": "s",
    "blue": "o",
    "purple": "D",
    "sky": "v",
    "black": "P",
    "vermilion": "D",
    "grey": "",
}


def results(name: str) -> Any:
    """What a benchmark wrote, one of `DRAWN`."""
    assert name in DRAWN
    return json.loads((HERE / "results" / f"{name}.json").read_text(encoding="utf-8"))


def stamp() -> dict[str, str]:
    """What the figure carries in its metadata: the code that draws it, and the numbers."""
    numbers = hashlib.sha256()
    for name in DRAWN:
        numbers.update((HERE / "results" / f"{name}.json").read_bytes())
    return {"drawn_by": drawing_hash(Path(__file__).resolve()), "numbers": numbers.hexdigest()}


def title(ax: Axes, text: str) -> None:
    """A title that begins with the letter of the panel."""
    letter, _, rest = text.partition(" ")
    ax.set_title(rf"$\bf{{{letter}}}$ {rest}")


def curve(
    ax: Axes, x: Sequence[float], repeats: Sequence[Sequence[float] | np.ndarray], label: str, colour: str, **line: Any
) -> None:
    """Medians with bars from minimum to maximum, on logarithmic axes."""
    middle = np.array([np.median(r) for r in repeats])
    low, high = (np.array([f(r) for r in repeats]) for f in (min, max))
    style = {"marker": MARKERS[colour], "capsize": 2, "elinewidth": 0.7, **line}
    ax.errorbar(x, middle, [middle - low, high - middle], label=label, color=COLOURS[colour], **style)
    ax.set(xscale="log", yscale="log")


def ticks(ax: Axes, values: Sequence[float]) -> None:
    """Ticks of the horizontal axis at what was measured."""
    ax.set_xticks(list(values), [f"{value:,}" for value in values])
    ax.xaxis.set_minor_formatter(NullFormatter())


def field(ax: Axes, name: str, against: str) -> None:
    lines = results(name)
    kinds = (("torch", "PyTorch, autodiff", "orange"), ("numpy", "NumPy", "green"), ("field", "flowsim", "blue"),
             ("floor", "floor: 3 products, 1 exp", "grey"))  # fmt: skip
    for kind, label, colour in kinds:
        held = [line for line in lines if kind in line["seconds"]]
        curve(
            ax,
            [line[against] for line in held],
            [line["seconds"][kind] for line in held],
            label,
            colour,
            **({"linestyle": "--", "marker": ""} if kind == "floor" else {}),
        )
    if against == "pairs":
        title(ax, "(a) one evaluation of the field, $d = 64$")
        ax.set(xlabel="pairs $n$", ylabel="seconds")
    else:
        title(ax, f"(i) the field, $n$ = {lines[0]['pairs']:,}")
        ax.set(xlabel="dimensions $d$", ylabel="seconds")
        ax.set_ylim(top=0.8)
    ticks(ax, [line[against] for line in lines])
    ax.tick_params(axis="x", labelsize=7)
    ax.legend(loc="upper left")


def single(ax: Axes) -> None:
    lines = results("single")
    kinds = {"PyTorch loop": "orange", "torchdiffeq": "purple", "SciPy DOP853": "sky", "SciPy LSODA": "green",
             "simulate": "blue", "plain diffrax": "black"}  # fmt: skip
    for kind, colour in kinds.items():
        held = [line for line in lines if kind in line]
        if held:
            label = {"simulate": "fs.simulate"}.get(kind, kind)
            curve(ax, [line["pairs"] for line in held], [line[kind]["seconds"] for line in held], label, colour)
    title(ax, "(b) one trajectory, error below $10^{-6}$")
    ax.set(xlabel="pairs $n$", ylabel="seconds", ylim=(None, 8))
    ticks(ax, [line["pairs"] for line in lines])
    ax.legend(ncols=2, loc="upper left")


def ensembles(ax: Axes) -> None:
    lines = results("ensembles")
    pairs = [line["pairs"] for line in lines]
    for name, label, colour, line in (
        ("scipy_ms", "SciPy's best", "green", {}),
        ("ours_ms", "fs.sweep", "blue", {}),
        ("floor_ms", "floor: field alone", "grey", {"linestyle": "--", "marker": ""}),
    ):
        curve(ax, pairs, [np.array(one[name]) / 1e3 for one in lines], label, colour, **line)
    title(ax, f"(c) {lines[0]['runs']:,} trajectories, each")
    ax.set(xlabel="pairs $n$", ylabel="seconds per trajectory")
    ax.set_ylim(top=0.6)
    ticks(ax, pairs)
    ax.legend(loc="upper left")


def by_runs(ax: Axes) -> None:
    for line, colour in zip(results("ensembles"), ("blue", "vermilion", "green"), strict=True):
        runs = [*(int(k) for k in line["by_runs_ms"]), line["runs"]]
        seconds = [*line["by_runs_ms"].values(), line["ours_ms"][1]]
        label = f"$n = {line['pairs']}$, $d = {line['dim']}$"
        ax.loglog(runs, np.array(seconds) / 1e3, marker=MARKERS[colour], label=label, color=COLOURS[colour])
    title(ax, "(d) one call of fs.sweep")
    ax.set(xlabel="trajectories", ylabel="seconds per trajectory")
    ax.legend()


def large(axes: Sequence[Axes]) -> None:
    lines = results("large_batch") + results("large_batch_tiled")
    for kind, label, colour in (("dense", "n×n matrices", "vermilion"), ("tiled", "tiles", "blue")):
        held = [line for line in lines if line["kind"] == kind]
        pairs = [line["pairs"] for line in held]
        curve(axes[0], pairs, [line["seconds"] for line in held], label, colour)
        axes[1].loglog(
            pairs, [line["peak_mib"] for line in held], marker=MARKERS[colour], label=label, color=COLOURS[colour]
        )
    pairs = np.array([line["pairs"] for line in lines if line["kind"] == "tiled"], float)
    axes[1].loglog(pairs, 8 * pairs**2 / 2**20, "--", label="one n×n matrix", color=COLOURS["grey"])
    title(axes[0], "(e) value and gradient, $d = 64$")
    axes[0].set(xlabel="pairs $n$", ylabel="seconds")
    title(axes[1], "(f) peak memory of the process")
    axes[1].set(xlabel="pairs $n$", ylabel="MiB", ylim=(100, None))
    for ax in axes:
        ticks(ax, [int(n) for n in pairs])
        ax.tick_params(axis="x", labelsize=7)
        ax.legend()


def workers(ax: Axes) -> None:
    found = results("cluster_sweep")
    for kind, label, colour in (
        ("threads", "threads", "blue"),
        ("processes", "processes", "vermilion"),
        ("dask", "dask workers", "green"),
    ):
        held = [line for line in found["lines"] if line["kind"] == kind]
        curve(ax, [line["workers"] for line in held], [line["seconds"] for line in held], label, colour)
    counts = sorted({line["workers"] for line in found["lines"]})
    title(ax, f"(g) {found['runs']:,} trajectories, $n = 5$")
    ax.set(xlabel="workers", ylabel="seconds")
    ax.set(xscale="linear", xticks=counts, yscale="linear", ylim=(0, None))
    ax.legend()


def devices(ax: Axes) -> None:
    found = results("devices")
    counts, pairs = [line["devices"] for line in found], found[0]["pairs"]
    ax.loglog(counts, [line["mib"] for line in found], "o-", color=COLOURS["blue"], label="on each, as compiled")
    ideal = [found[0]["mib"] / count for count in counts]
    ax.loglog(counts, ideal, "--", color=COLOURS["grey"], label="one, divided")
    title(ax, f"(j) value and gradient, $n$ = {pairs:,}")
    ax.set(xlabel="devices", ylabel="MiB on each")
    ax.set_yticks([10, 20, 40, 80], ["10", "20", "40", "80"])
    ticks(ax, counts)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend()


def problems(ax: Axes) -> None:
    found = results("solver_problems")
    both = [line for line in found if line.get("scipy_seconds")]
    alone = [line for line in found if str(line.get("scipy_method", "")).startswith("none")]
    ax.loglog(
        [x["scipy_seconds"] for x in both],
        [x["seconds"] for x in both],
        ".",
        color=COLOURS["blue"],
        label=f"{len(both)} problems",
    )
    limit = max((x["scipy_seconds"] for x in both), default=1.0)
    ax.loglog(
        [1.6 * limit] * len(alone),
        [x["seconds"] for x in alone],
        "x",
        color=COLOURS["vermilion"],
        label=f"{len(alone)} not finished by SciPy",
    )
    ends = np.array([1e-2, 1.6 * limit])
    ax.loglog(ends, ends, "--", color=COLOURS["grey"], label="equal")
    title(ax, f"(h) the fixed set of {len(found)} problems")
    ax.set(xlabel="seconds, SciPy's best", ylabel="seconds, fs.simulate")
    ax.legend()


def main() -> None:
    with fs.plot.paper_style():
        figure, axes = plt.subplots(5, 2, figsize=(PAGE, 12.0), layout="constrained")
        field(axes[0, 0], "field", "pairs")
        single(axes[0, 1])
        ensembles(axes[1, 0])
        by_runs(axes[1, 1])
        large(axes[2])
        workers(axes[3, 0])
        problems(axes[3, 1])
        field(axes[4, 0], "field_dim", "dim")
        devices(axes[4, 1])
        figure.supxlabel(
            "Points: medians; bars: from the smallest to the largest repeat. Floor: the products and exponentials that "
            "are needed, alone",
            fontsize=8,
        )
        for kind in ("png", "pdf"):
            fs.plot.save(figure, str(HERE.parent / "figures" / f"performance.{kind}"), write_stamp(stamp()))


if __name__ == "__main__":
    main()
