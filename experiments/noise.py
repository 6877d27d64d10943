"""Label noise as a second temperature: where the gap settles, over temperature τ and noise p.

Targets (1−p)I + p/(n−1)(J−I) at fixed temperature. Predicted: a critical temperature τ* = n/((n−1)b*),
b* = ln[(1−p)(n−1)/p]; above it the gap closes, below it Δ ≤ 2√(1−τ/τ*) and the logit gap β·m is b*. Free rows from
random cones, and simplex cones with frozen directions, which attain the bound. Derived here, for the loss of Yaras et
al. 2025, eq. 2.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim.progress import Progress

SEED = 0
FULL = {"temperatures": 40, "noises": 40, "seeds": 8, "law_pairs": [8, 16, 64], "t1": 1e4, "law_t1": 1e5, "chunk": 128}
QUICK = {"temperatures": 8, "noises": 8, "seeds": 1, "law_pairs": [8], "t1": 1e2, "law_t1": 1e3, "chunk": 16}

PAIRS, GAMMA0 = 8, 0.6
LAW_NOISES, LAW_BETAS = np.array([0.01, 0.1, 0.3]), np.array([5.0, 10.0, 20.0, 50.0])
#: A larger gap counts as open; the bound at 1 % below τ* is 0.2.
OPEN = 0.02
OPTIONS = {"rtol": 1e-4, "atol": 1e-6, "method": "stabilised"}
LAW_OPTIONS = {"rtol": 1e-5, "atol": 1e-7, "method": "stabilised"}
NORMS = ("mean_pair_cosine", "image_centre_norm", "text_centre_norm")
#: Equal for all sweeps, so that they share compiled programs.
OBSERVABLES = ("modality_gap", *NORMS)


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    temperatures = np.linspace(0.05, 0.7, sizes["temperatures"])
    noises = np.geomspace(0.01, 0.5, sizes["noises"])
    flow = fs.GradientFlow(schedule=fs.temperature.Fixed(0.1), pairing=fs.LabelNoise(0.1))
    grid = {"schedule.temperature.tau": temperatures, "pairing.noise": noises}
    shared = {"ts": [0.0, sizes["t1"]], "observables": OBSERVABLES, "progress": progress, "chunk": sizes["chunk"]}
    random = fs.sweep(
        flow,
        fs.initial.cones(PAIRS, PAIRS, GAMMA0),
        {**grid, "seed": range(SEED, SEED + sizes["seeds"])},
        **shared,
        **OPTIONS,
    )
    frozen = flow.replace(geometry=fs.Reduced())
    simplex = fs.sweep(frozen, fs.initial.simplex(PAIRS, GAMMA0), grid, **shared, **OPTIONS)
    record = xr.Dataset(coords={"temperature": temperatures, "noise": noises})
    record["gap"] = (("temperature", "noise", "seed"), random["modality_gap"].to_numpy()[..., -1])
    record["simplex_gap"] = (("temperature", "noise"), simplex["modality_gap"].to_numpy()[..., -1])
    record["critical"] = ("noise", np.array([fs.theory.critical_temperature(p, PAIRS, "simplex") for p in noises]))
    below = record["temperature"] < record["critical"]
    share = record["temperature"] / record["critical"]
    record["bound"] = 2 * (1 - share).clip(0, None) ** 0.5
    record.attrs["t1"], record.attrs["law_t1"] = sizes["t1"], sizes["law_t1"]
    record.attrs["points"] = int(record["gap"].size)
    record.attrs["on_predicted_side"] = float(((record["gap"] > OPEN) == below).mean())
    record.attrs["on_predicted_side_simplex"] = float(((record["simplex_gap"] > OPEN) == below).mean())
    record.attrs["largest_excess_over_bound"] = float((record["gap"] - record["bound"]).where(below).max())
    record.attrs["largest_error_of_simplex"] = float(np.abs(record["simplex_gap"] - record["bound"]).max())
    record.attrs["unfinished_runs"] = sum(n for k, n in random.counts.items() if not fs.Status[k].covered)
    return record.assign(_law(sizes["law_pairs"], sizes["law_t1"], progress))


def _law(all_pairs: list[int], t1: float, progress: Progress) -> dict:
    """The logit gap β·m of uniform starts over its prediction b*, and the gap, at the last time."""
    shape = (len(all_pairs), len(LAW_BETAS), len(LAW_NOISES))
    logit_gap, gap, wanted = np.empty(shape), np.empty(shape), np.empty(shape)
    for i, n in enumerate(all_pairs):
        flow = fs.GradientFlow(schedule=fs.temperature.Fixed(0.1), pairing=fs.LabelNoise(0.1))
        runs = fs.sweep(
            flow,
            fs.initial.uniform(n, n),
            {"schedule.temperature.tau": 1 / LAW_BETAS, "pairing.noise": LAW_NOISES},
            ts=[0.0, t1],
            seed=SEED,
            observables=OBSERVABLES,
            progress=progress,
            **LAW_OPTIONS,
        )
        last = runs.to_xarray().isel(time=-1)
        pair, image, text = (last[name].to_numpy() for name in NORMS)
        gap[i] = last["modality_gap"].to_numpy()
        everything = (image**2 + text**2 - gap[i] ** 2) / 2
        logit_gap[i] = (pair - (n * everything - pair) / (n - 1)) * LAW_BETAS[:, None]
        wanted[i] = [fs.theory.noise_logit_gap(p, n) for p in LAW_NOISES]
    dims = ("pairs", "beta", "law_noise")
    coords = {"pairs": all_pairs, "beta": LAW_BETAS, "law_noise": LAW_NOISES}
    columns = {"logit_gap": logit_gap, "law_gap": gap, "wanted": wanted}
    return {name: xr.DataArray(values, coords, dims) for name, values in columns.items()}


def plot(record: xr.Dataset) -> Figure:
    plot_ = fs.plot
    figure = Figure(figsize=(plot_.PAGE, 5.4), layout="constrained")
    axes = figure.subplots(2, 2)
    mean = record["gap"].mean("seed")
    panels = (
        (axes[0, 0], mean, "a", f"free rows, random cones, {record.sizes['seed']} seeds"),
        (axes[0, 1], record["simplex_gap"], "b", "simplex cones, frozen directions"),
    )
    top = float(max(mean.max(), record["simplex_gap"].max()))
    for ax, field, letter, title in panels:
        plot_.phase_diagram(
            field, "noise", "temperature", ax, boundary=record["critical"], colourbar=False, vmin=0, vmax=top
        )
        ax.set(xlabel="label noise $p$", ylabel=r"temperature $\tau$")
        ax.legend([ax.lines[0]], [r"predicted $\tau^*(p)$"], loc="upper left", frameon=True, framealpha=1)
        ax.set_title(rf"$\bf{{({letter})}}$ {title}")
    label = rf"gap $\Delta$ at {_at(record.attrs['t1'])}"
    figure.colorbar(axes[0, 0].collections[0], ax=axes[0, :], label=label, pad=0.02)
    _scaling(axes[1, 0], record)
    _law_panel(axes[1, 1], record)
    figure.supxlabel(
        rf"$n = {PAIRS}$, $d = {PAIRS}$, $\gamma_0 = {GAMMA0}$. On the predicted side of the line: "
        rf"{100 * record.attrs['on_predicted_side']:.2f} % of {record.attrs['points']:,} random runs, "
        rf"{100 * record.attrs['on_predicted_side_simplex']:.2f} % of the simplex runs." + "\n"
        r"$m$: mean cosine of pairs less that of non-pairs; open markers: out of reach, since $m \leq n/(n-1)$",
        fontsize=8,
    )
    return figure


def _at(t: float) -> str:
    return rf"$t = {fs.plot.time_text(t).strip('$')}$"


def _scaling(ax, record: xr.Dataset) -> None:
    share = (record["temperature"] / record["critical"]).transpose("temperature", "noise")
    every = xr.broadcast(share, record["gap"])[0].transpose(*record["gap"].dims)
    style = {"ls": "none", "rasterized": True, "mew": 0}
    ax.plot(
        every.to_numpy().ravel(),
        record["gap"].to_numpy().ravel(),
        color=fs.plot.IMAGE_COLOUR,
        marker="o",
        ms=1.6,
        label="random cones, (a)",
        **style,
    )
    ax.plot(
        share.to_numpy().ravel(),
        record["simplex_gap"].to_numpy().ravel(),
        color=fs.plot.TEXT_COLOUR,
        marker="D",
        ms=2.4,
        label="simplex cones, (b)",
        **style,
    )
    x = np.linspace(0, 1, 200)
    ax.plot(x, 2 * np.sqrt(1 - x), color="black", lw=1, label=r"bound $2\sqrt{1-\tau/\tau^*}$")
    ax.set(xlabel=r"$\tau/\tau^*$", ylabel=r"gap $\Delta$", xlim=(0, 2.5), ylim=(-0.05, 2.05))
    ax.legend(markerscale=2.5)
    ax.set_title(r"$\bf{(c)}$ the gap against its bound")


def _law_panel(ax, record: xr.Dataset) -> None:
    for n, marker in zip(record["pairs"].to_numpy(), "os^", strict=False):
        one = record.sel(pairs=n)
        saturated = one["wanted"] > record["beta"] * n / (n - 1)
        for kind, fill in ((~saturated, None), (saturated, "none")):
            ax.plot(
                one["wanted"].where(kind).to_numpy().ravel(),
                one["logit_gap"].where(kind).to_numpy().ravel(),
                ls="none",
                marker=marker,
                ms=5,
                color="black",
                mfc=fill or "black",
                alpha=0.7,
                label=rf"$n = {n}$" if fill is None else None,
            )
    reach = np.array([2.5, 9.0])
    ax.plot(reach, reach, color="black", lw=0.8, label=r"$\beta m = b^*$")
    ax.set(
        xlabel=r"$b^* = \ln[(1-p)(n-1)/p]$",
        ylabel=rf"$\beta m$ at {_at(record.attrs['law_t1'])}",
        xlim=reach,
        ylim=reach,
    )
    ax.plot([], [], "o", ms=5, color="black", mfc="none", alpha=0.7, label=r"open: $b^* > \beta n/(n-1)$")
    ax.legend(loc="upper left")
    ax.set_title(r"$\bf{(d)}$ the logit gap, free rows, $d = n$")
