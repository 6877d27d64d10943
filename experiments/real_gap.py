"""One real CLIP run and many of its beginnings, as in the paper's figures 1 and 4.

Embeddings of training pairs at the start, after one epoch and at the end (PCA); the gap against −1/log(t)²; and the
change of the gap over the first ten steps from many initialisations. Reads the records of `flowsim clip study` and
`flowsim clip early` (`reference/clip_laptop.nc`, `reference/clip_early.nc`; made as `docs/clip.md` says). Yaras et
al. 2025, figures 1 and 4.
"""

from pathlib import Path

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs

SEED = 0
FULL = {"records": "clip_laptop.nc", "early": "clip_early.nc", "run": "Baseline, seed 0", "first_step": 100}
QUICK = FULL

RECORDS = Path(__file__).parent / "reference"


def compute(quick: bool, progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    run = fs.load_results(RECORDS / sizes["records"])[sizes["run"]]
    clouds = []
    # The axes of the last embeddings, for all three times.
    last = np.concatenate([run.snapshots["image"][-1], run.snapshots["text"][-1]]).astype(float)
    _, _, axes = np.linalg.svd(last - last.mean(0), full_matrices=False)
    for k in progress(range(len(run.snapshot_time)), "snapshots"):
        both = np.stack([run.snapshots["image"][k], run.snapshots["text"][k]]).astype(float)
        clouds.append((both - both.mean((0, 1))) @ axes[:2].T)
    steps = run.coordinates["step"]
    at = [int(steps[np.argmin(abs(run.time - t))]) for t in run.snapshot_time]
    early = fs.load_results(RECORDS / sizes["early"])
    record = xr.Dataset(
        {
            "cloud": (("snapshot", "modality", "pair", "axis"), np.array(clouds)),
            "cloud_step": ("snapshot", at),
            "gap": ("step", run.series["seen_modality_gap"]),
            "early_gap": (("seed", "early_step"), np.array([r.series["seen_modality_gap"] for r in early.values()])),
            "early_batch_gap": (
                ("seed", "batch_step"), np.array([r.training["train_modality_gap"] for r in early.values()]),
            ),
        },
        {"step": steps, "early_step": next(iter(early.values())).coordinates["step"]},
    )  # fmt: skip
    late = steps >= sizes["first_step"]
    x = -1 / np.log10(steps[late].astype(float)) ** 2
    slope, offset = np.polyfit(x, run.series["seen_modality_gap"][late], 1)
    r2 = np.corrcoef(x, run.series["seen_modality_gap"][late])[0, 1] ** 2
    record.attrs |= {"slope": float(slope), "offset": float(offset), "r2": float(r2), "first": sizes["first_step"]}
    return record


def plot(record: xr.Dataset) -> Figure:
    colours = fs.plot.COLOURS
    figure = Figure(figsize=(fs.plot.PAGE, 4.5), layout="constrained")
    grid = figure.add_gridspec(2, 6)
    axes = [figure.add_subplot(grid[0, 2 * k : 2 * k + 2]) for k in range(3)]
    gaps = np.interp(record["cloud_step"], record["step"], record["gap"])
    titles = ("at the start", "after one epoch", "at the end")
    limit = float(abs(record["cloud"]).max()) * 1.05
    for k, ax in enumerate(axes):
        for m, (colour, marker, label) in enumerate(
            ((colours["blue"], "o", "images"), (colours["vermilion"], "s", "texts"))
        ):
            x, y = record["cloud"].isel(snapshot=k, modality=m).to_numpy().T
            ax.plot(x, y, marker, color=colour, ms=2.2, mew=0, alpha=0.6, label=label)
        ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xlabel="first axis")
        step = int(record["cloud_step"][k])
        ax.set_title(rf"$\bf{{({'abc'[k]})}}$ {titles[k]} (step {step}): $\Delta = {gaps[k]:.2f}$", fontsize=8)
    axes[0].set_ylabel("second axis")
    axes[0].legend(loc="upper left", markerscale=1.8, handletextpad=0.1)
    left, right = figure.add_subplot(grid[1, :3]), figure.add_subplot(grid[1, 3:])
    late = record.sel(step=record["step"] >= record.attrs["first"])
    x = -1 / np.log10(late["step"].to_numpy().astype(float)) ** 2
    left.plot(x, late["gap"], "o", color=colours["blue"], ms=3.5, label="training pairs, evaluated")
    line = np.array([x.min(), x.max()])
    label = rf"straight line, $R^2 = {record.attrs['r2']:.3f}$"
    left.plot(line, record.attrs["offset"] + record.attrs["slope"] * line, color="black", lw=1, label=label)
    ticks = np.array([100, 200, 500, 1000, 3000])
    left.set_xticks(-1 / np.log10(ticks) ** 2, [f"{t:,}" for t in ticks])
    left.set(xlabel=r"step $t$, on the axis $-1/\log(t)^2$", ylabel=r"gap $\Delta$", ylim=(0, None))
    left.legend(loc="lower left")
    left.set_title(r"$\bf{(d)}$ slow closing")
    gap = record["early_gap"].to_numpy()
    change = gap[:, -1] - gap[:, 0]
    right.hist(change, bins=20, color=colours["blue"], alpha=0.8)
    right.axvline(0, color="black", lw=0.8)
    right.axvline(change.mean(), color=colours["vermilion"], lw=1.2, label=f"mean {change.mean():+.3f}")
    right.set(xlabel=rf"change of $\Delta$ over {int(record['early_step'][-1])} steps", ylabel="initialisations")
    right.legend(loc="upper left")
    right.set_title(rf"$\bf{{(e)}}$ early change: {np.mean(change > 0):.0%} of {len(change)} enlarge")
    return figure
