"""Optimizers with finite steps against the gradient flow: SGD, momentum, Adam and AdamW from shared starts.

SGD is Euler's method for the flow; with momentum μ time runs 1/(1−μ) times faster; Adam follows a different flow: it
opens the gap further at first and then closes it, while the gradient flow leaves most of it. This goes beyond Yaras et
al. 2025, whose theory is gradient flow and whose CLIP is trained with Adam-like steps. The last panel trains linear
encoders on noisy pairs: held-out retrieval against fixed temperature is an inverted U (compare their tables 2-5).
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

import flowsim as fs
from flowsim.claims.retrieval import held_out_recall, split_latents
from flowsim.progress import Progress, track

SEED = 0
FULL = {
    "pairs": 16, "dim": 8, "steps": 100_000, "rates": [0.08, 0.04, 0.02, 0.01, 0.005], "seeds": 4, "temperatures": 9,
    "retrieval_seeds": 8,
}  # fmt: skip
#: Both starts have the same size, so they share compiled programs.
QUICK = {
    "pairs": 5, "dim": 3, "steps": 4_000, "rates": [0.08, 0.02, 0.005], "seeds": 1, "temperatures": 3,
    "retrieval_seeds": 2,
}  # fmt: skip

LR, MOMENTUM = 1e-3, 0.9
NAMES = ("sgd", "momentum", "adam", "adamw")


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    flow, rings = fs.GradientFlow(), fs.initial.rings()
    cones = fs.initial.cones(sizes["pairs"], sizes["dim"], 0.3)
    columns: dict[str, xr.DataArray] = {}
    for start, label in ((rings, "rings"), (cones, "cones")):
        for name in track(NAMES, progress, f"steps from {label}"):
            run = fs.descend(flow, start, optimizer=name, lr=LR, steps=sizes["steps"], seed=SEED)
            columns[f"{label}_{name}"] = run["modality_gap"].rename(time="lr_sum").drop_attrs()
        run = fs.simulate(flow, start, ts=columns[f"{label}_sgd"]["lr_sum"].to_numpy(), seed=SEED, snapshots=[0.0])
        columns[f"{label}_flow"] = run["modality_gap"].rename(time="lr_sum").drop_attrs()
    # The same number of times as before, to share the compiled program.
    outputs = columns["cones_flow"].size
    rates = sizes["rates"]
    errors = np.empty((2, len(rates), sizes["seeds"]))
    for seed in track(range(sizes["seeds"]), progress, "order in the learning rate"):
        wanted = fs.simulate(flow, cones, ts=np.linspace(0.0, 10.0, outputs), seed=seed, snapshots=[0.0])
        wanted = wanted["modality_gap"].to_numpy()[-1]
        for i, lr in enumerate(rates):
            for k, (name, clock) in enumerate((("sgd", 1.0), ("momentum", 1 / (1 - MOMENTUM)))):
                run = fs.descend(flow, cones, optimizer=name, lr=lr / clock, steps=round(10 / lr), seed=seed)
                errors[k, i, seed] = abs(run.final["modality_gap"] - wanted)
    columns["error"] = xr.DataArray(errors, {"optimizer": list(NAMES[:2]), "lr": rates}, ("optimizer", "lr", "seed"))
    record = xr.Dataset(columns | _retrieval(sizes, progress), attrs={k: sizes[k] for k in ("pairs", "dim")})
    for k, name in enumerate(NAMES[:2]):
        mean = np.log(errors[k]).mean(axis=1)
        record.attrs[f"order_{name}"] = float(np.polyfit(np.log(rates), mean, 1)[0])
    return record


def _retrieval(sizes: dict, progress: Progress) -> dict[str, xr.DataArray]:
    temperatures = np.geomspace(0.02, 2.0, sizes["temperatures"])
    seeds = range(sizes["retrieval_seeds"])
    recall, gap = (np.empty((len(temperatures), len(seeds))) for _ in range(2))
    for i in track(range(len(temperatures)), progress, "retrieval"):
        policy = fs.temperature.Fixed(temperatures[i])
        flow = fs.GradientFlow(fs.LinearEncoders(), policy, pairing=fs.FrozenMispairing(0.3))
        for seed in seeds:
            train, held_out = split_latents(seed)
            run = fs.descend(flow, train, optimizer="adam", lr=0.01, steps=2_000, seed=seed)
            recall[i, seed] = held_out_recall(run.final.start, held_out)
            gap[i, seed] = run.final["modality_gap"]
    coords = {"temperature": temperatures}
    dims = ("temperature", "retrieval_seed")
    return {"recall": xr.DataArray(recall, coords, dims), "training_gap": xr.DataArray(gap, coords, dims)}


def plot(record: xr.Dataset) -> Figure:
    colours = fs.plot.COLOURS
    style = {
        "flow": ("black", "gradient flow", "-", 1.0), "sgd": (colours["blue"], "SGD", (0, (2, 1.5)), 2.4),
        "momentum": (colours["green"], r"momentum $\mu = 0.9$", (0, (6, 1.5)), 1.4),
        "adam": (colours["vermilion"], "Adam", (0, (6, 1.5, 1, 1.5)), 1.4),
        "adamw": (colours["orange"], "AdamW", (0, (1, 1.5)), 2.4),
    }  # fmt: skip
    figure = Figure(figsize=(fs.plot.PAGE, 5.0), layout="constrained")
    axes = figure.subplots(2, 2)
    pairs, dim = record.attrs["pairs"], record.attrs["dim"]
    titles = {"rings": "Figure 2's start", "cones": f"random cones, $n = {pairs}$, $d = {dim}$"}
    for ax, letter, (label, title) in zip(axes[0], "ab", titles.items(), strict=True):
        for name, (colour, text, line, width) in style.items():
            series = record[f"{label}_{name}"]
            ax.plot(series["lr_sum"], series, color=colour, ls=line, lw=width, label=text)
        ax.set(xscale="log", xlabel=r"$\sum$ learning rates", ylabel=r"modality gap $\Delta$", ylim=(0, None))
        ax.set_title(rf"$\bf{{({letter})}}$ {title}")
    axes[0, 1].legend(loc="lower left", handlelength=3)
    ax = axes[1, 0]
    for name, text, marker in (("sgd", "SGD", "o-"), ("momentum", r"momentum", "s--")):
        mean = np.exp(np.log(record["error"].sel(optimizer=name).to_numpy()).mean(axis=-1))
        label = f"{text}: order {record.attrs[f'order_{name}']:.2f}"
        ax.plot(record["lr"], mean, marker, ms=4, color=style[name][0], label=label)
    rate = r"learning rate; with momentum learning rate$\,/\,(1-\mu)$"
    ax.set(xscale="log", yscale="log", xlabel=rate, ylabel=r"error of $\Delta$ at $t = 10$")
    ax.xaxis.set_minor_locator(NullLocator())
    rates = record["lr"].to_numpy()
    ax.set_xticks(rates, [f"{lr:g}" for lr in rates])
    ax.set_ylim(top=5 * ax.get_ylim()[1])  # room for the legend above the lines
    ax.legend(loc="upper left", handlelength=2.4)
    ax.set_title(r"$\bf{(c)}$ distance from the flow")
    ax = axes[1, 1]
    temperature = record["temperature"]
    for name, text, colour, marker in (
        ("recall", "held-out recall at 1", colours["blue"], "o-"),
        ("training_gap", r"gap $\Delta$", colours["vermilion"], "s--"),
    ):
        mean, spread = record[name].mean("retrieval_seed"), record[name].std("retrieval_seed")
        ax.errorbar(temperature, mean, spread, fmt=marker, ms=4, color=colour, label=text, capsize=2)
    ax.set(
        xscale="log",
        xlabel=r"fixed temperature $\tau$",
        ylabel=r"recall (fraction), gap $\Delta$",
        ylim=(0, 1.4 * float(record["recall"].mean("retrieval_seed").max())),
    )
    ax.legend(handlelength=2.4)
    ax.set_title(r"$\bf{(d)}$ linear encoders, 30 % mispaired")
    seeds, draws = record.sizes["seed"], record.sizes["retrieval_seed"]
    figure.supxlabel(
        rf"(a) to (c): $\tau_0 = 0.07$, learned $\beta = e^\nu$, $r = 1$; (a), (b): learning rate {LR:g}; "
        f"(c): geometric mean of {seeds} seed{'s' * (seeds > 1)}, order from the slope.\n"
        f"(d): mean of {draws} seeds, bars: standard deviation over the seeds",
        fontsize=8,
    )
    return figure
