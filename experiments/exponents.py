"""How fast the gap closes: local power of ln t up to t = 1e100, against the laws, by geometry.

Parallel cones close like (ln t)^(−2s²/r) for β = exp(ν/s) and learning-rate ratio r, for any number of pairs. Free rows
on the sphere with doubly stochastic softmaxes, such as those of Figure 2, close like (ln t)^(−s²/(r n)), far more
slowly. Source: Yaras et al. 2025, Theorem 3.2 (Parallel, r = s = 1); the rest is derived in `flowsim.theory`.
"""

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

import flowsim as fs
from flowsim import theory
from flowsim.progress import Progress, track

SEED = 0
FULL = {"points": 481, "rings": [2, 5, 8], "free_rows": True, "log10_t1": 100}
QUICK = {"points": 241, "rings": [5], "free_rows": False, "log10_t1": 100}

#: Frozen orthonormal pairs, γ0 and τ0 of the runs with parallel cones.
PAIRS, GAMMA0, TAU0 = 32, 0.5, 0.5
FREE_PAIRS, FREE_DIM = 16, 8
#: (scale s, learning-rate ratio r)
LAWS = ((1.0, 0.1), (2.0, 1.0), (1.0, 1.0), (1.0, 10.0))
#: Times ln t from which the sphere is shown: two starts need until ln t = 20 to match and cool down.
SPHERE_FROM = 25
#: Partners that differ by less than this angle, in degrees, count as aligned.
ALIGNED = 0.1
OBSERVABLES = ("modality_gap", "temperature", "inverse_temperature", "log_gamma", "loss", "margin")


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    ts = np.concatenate([[0.0], np.geomspace(1e-2, 10.0 ** sizes["log10_t1"], sizes["points"] - 1)])
    jobs = [("Reduced", PAIRS, s, r) for s, r in LAWS]
    if sizes["free_rows"]:
        jobs += [("Parallel", FREE_PAIRS, s, r) for s, r in LAWS]
    jobs += [("Sphere", n, 1.0, 1.0) for n in sizes["rings"]]
    jobs += [("Sphere", 5, s, r) for s, r in LAWS if (s, r) != (1.0, 1.0)]
    slopes, laws, residuals, log_gammas, angles = [], [], [], [], []
    late = ts > np.exp(1.0)
    log_time = np.log(ts[late])
    for geometry, pairs, scale, ratio in track(jobs, progress, "integrating"):
        result = _run(geometry, pairs, scale, ratio, ts)
        if geometry == "Sphere":
            log_gamma = np.log(result.series["modality_gap"] / 2)
            law = theory.sphere_exponent(pairs, scale, ratio)
            conserved = theory.sphere_conserved_quantity(
                log_gamma, result.series["inverse_temperature"], pairs, "exp", scale, ratio
            )
            residual = np.ptp(conserved) / np.abs(log_gamma).max()
            angles.append(_angle(result)[late])
        else:
            log_gamma = result.series["log_gamma"]
            law = theory.closing_exponent(scale, ratio)
            residual = result.stats["conserved_residual"]
            angles.append(np.zeros(late.sum()))
        slopes.append(theory.local_slope(log_gamma[late], log_time))
        log_gammas.append(log_gamma[late])
        laws.append(float(law))
        residuals.append(float(residual))
    run = {
        "geometry": [j[0] for j in jobs],
        "pairs": [j[1] for j in jobs],
        "scale": [j[2] for j in jobs],
        "lr_ratio": [j[3] for j in jobs],
    }
    record = xr.Dataset(coords={"log_time": log_time})
    for name, values in run.items():
        record[name] = ("run", values)
    record["local_slope"] = (("run", "log_time"), np.stack(slopes))
    record["log_gamma"] = (("run", "log_time"), np.stack(log_gammas))
    record["angle"] = (("run", "log_time"), np.stack(angles))
    record["law"] = ("run", laws)
    record["conserved_residual"] = ("run", residuals)
    record.attrs["max_conserved_residual"] = float(np.max(residuals))
    return record


def _angle(result: fs.Result) -> np.ndarray:
    """Largest angle between the horizontal directions of partners, in degrees, at every time."""
    image, text = (np.asarray(result.snapshots[side]) for side in ("image", "text"))
    turned = (image[..., 0] + 1j * image[..., 1]) / (text[..., 0] + 1j * text[..., 1])
    return np.degrees(np.abs(np.angle(turned))).max(axis=1)


def _run(geometry: str, pairs: int, scale: float, ratio: float, ts: np.ndarray) -> fs.Result:
    # exp(ν/1) is exp(ν), so one parametrization serves all, and compiles once per geometry and size.
    learnable = fs.temperature.Learnable(
        init=0.07 if geometry == "Sphere" else TAU0,
        parametrization=fs.temperature.ScaledExp(scale),
        lr_ratio=ratio,
    )
    if geometry == "Sphere":
        # Five pairs: the start of Figure 2. Others: matched rings; any twist keeps the symmetry.
        start = fs.initial.rings(pairs=pairs, twist=-144.0 if pairs == 5 else 0.0)
        flow = fs.GradientFlow(fs.Sphere(), fs.Schedule(learnable))
    elif geometry == "Parallel":
        start = fs.initial.matched(FREE_PAIRS, FREE_DIM, GAMMA0)
        flow = fs.GradientFlow(fs.Parallel(), fs.Schedule(learnable))
    else:
        start = fs.initial.orthonormal(PAIRS, GAMMA0)
        flow = fs.GradientFlow(fs.Reduced(), fs.Schedule(learnable))
    return fs.simulate(flow, start, ts=ts, observables=OBSERVABLES, seed=SEED, snapshots=ts)


def plot(record: xr.Dataset) -> Figure:
    plot_, colours = fs.plot, fs.plot.COLOURS
    figure = Figure(figsize=(plot_.PAGE, 3.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    log_time = record["log_time"].to_numpy()
    last = float(log_time[-1])
    by_law = dict(zip(LAWS, ("vermilion", "green", "black", "blue"), strict=True))
    by_pairs = {2: "orange", 5: "black", 8: "purple"}
    styles = {"Reduced": "-", "Parallel": (0, (1, 1)), "Sphere": "-"}
    for i in range(record.sizes["run"]):
        geometry, pairs = str(record["geometry"].values[i]), int(record["pairs"][i])
        law = (float(record["scale"][i]), float(record["lr_ratio"][i]))
        panel = axes[1] if geometry == "Sphere" else axes[0]
        colour = by_pairs[pairs] if geometry == "Sphere" and law == (1.0, 1.0) else by_law[law]
        speed = -record["local_slope"][i].to_numpy()
        # The last point is a one-sided difference.
        panel.plot(log_time[:-1], speed[:-1], color=colours[colour], ls=styles[geometry])
        turning = np.flatnonzero(record["angle"][i].to_numpy() > ALIGNED)
        if turning.size and log_time[turning[-1]] > SPHERE_FROM:
            at = turning[-1]
            panel.plot(log_time[at], speed[at], "o", ms=3.5, mfc="white", color=colours[colour], zorder=3)
            panel.annotate(
                f"bend: here the rings stop turning,\npartners are within {ALIGNED:g}°",
                (log_time[at], speed[at]),
                (-14, 9),
                textcoords="offset points",
                ha="right",
                fontsize=7,
                color=colours[colour],
                arrowprops={"arrowstyle": "-", "lw": 0.6, "color": colours[colour]},
            )
        if geometry == "Parallel":
            continue
        exact = -float(record["law"][i])
        panel.axhline(exact, color=colours[colour], lw=0.7, ls=(0, (6, 3)), zorder=1)
        name = [] if geometry == "Reduced" else [f"$n = {pairs}$"]
        name += [f"$s = {law[0]:g}$"] if law[0] != 1 else []
        name += [f"$r = {law[1]:g}$"] if law[1] != 1 or geometry == "Reduced" else []
        panel.annotate(
            f"{', '.join(name)}: {exact:.3g}",
            (1.02, exact),
            xycoords=panel.get_yaxis_transform(),
            va="center",
            fontsize=8,
            color=colours[colour],
            annotation_clip=False,
        )
    titles = (
        r"Parallel cones: law $2s^2/r$, any $n$",
        r"Free rows on the sphere, rings in $d = 3$: law $s^2/(rn)$",
    )
    for ax, letter, title in zip(axes, "ab", titles, strict=True):
        ax.set_yscale("log")
        ax.set(xlim=(5 if letter == "a" else SPHERE_FROM, last), ylim=(0.012, 33), xlabel=r"$\ln t$")
        ax.set_title(rf"$\bf{{({letter})}}$ {title}")
        decades = np.array([20, 40, 60, 80, 100])
        top = ax.secondary_xaxis("top")
        top.set_xticks(decades * np.log(10), [f"$10^{{{k}}}$" for k in decades])
        top.set_xlabel("flow time $t$")
        top.spines["top"].set_visible(True)
    axes[0].set_ylabel(r"local power $-\,d \ln\gamma\,/\,d \ln\ln t$")
    handles = [
        axes[0].plot([], [], color="0.25", ls=styles["Reduced"])[0],
        axes[0].plot([], [], color="0.25", ls=styles["Parallel"])[0],
        axes[0].plot([], [], color="0.25", lw=0.7, ls=(0, (6, 3)))[0],
    ]
    figure.legend(
        handles,
        [
            rf"frozen $Z = I$, $n = {PAIRS}$",
            rf"free matched rows, $n = {FREE_PAIRS}$, $d = {FREE_DIM}$",
            r"law as $t \to \infty$",
        ],
        loc="outside lower center",
        ncols=3,
        title_fontsize=8,
        title=rf"$\beta = e^{{\nu/s}}$, learning-rate ratio $r$; "
        rf"(a) $\gamma_0 = {GAMMA0}$, $\tau_0 = {TAU0}$; "
        r"(b) $\gamma_0 = 0.309$, $\tau_0 = 0.07$, twist $-144^\circ$ ($n = 5$: Figure 2) or $0^\circ$",
    )
    return figure
