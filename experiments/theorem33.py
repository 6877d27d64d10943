"""Early enlargement of the gap, Theorem 3.3: bound, limit n → ∞, and exact initial speeds of random starts.

Directions are uniform on the sphere, in cones at heights ±γ0. The proof bounds 2 dγ/dt from below; the statement is
about dΔ/dt, which is smaller. Both are computed exactly for random starts: the first from the vector field, the second
as the Jacobian-vector product of the gap with it. Source: Yaras et al. 2025, Theorem 3.3.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

import flowsim as fs
from flowsim import observables, theory
from flowsim.progress import Progress, track

SEED = 0
FULL = {"pairs": [8, 32, 128, 512], "dims": [3, 64], "draws": 64}
QUICK = {"pairs": [32], "dims": [3, 64], "draws": 32}

BETA0, GAMMA0, DELTA = 1 / 0.07, 0.3, 0.05
HEIGHTS = np.geomspace(0.005, 0.6, 13)
#: For more pairs only the speeds are drawn, not the signs over all heights.
MANY = 128


def compute(quick: bool, progress: Progress) -> xr.Dataset:
    sizes = QUICK if quick else FULL
    dims, pairs = sizes["dims"], sizes["pairs"]
    speeds = np.empty((len(dims), len(pairs), 2, sizes["draws"]))
    positive = np.full((len(dims), len(pairs), len(HEIGHTS), 2), np.nan)
    jobs = [(i, j) for i in range(len(dims)) for j in range(len(pairs))]
    for i, j in track(jobs, progress, "Monte Carlo"):
        measure = _speeds(pairs[j], dims[i], sizes["draws"])
        speeds[i, j] = measure(GAMMA0)
        if pairs[j] > MANY:
            continue
        for k, height in enumerate(HEIGHTS):
            positive[i, j, k] = (measure(height) > 0).mean(axis=1)
    record = xr.Dataset(
        {
            "speed": (("dim", "pairs", "quantity", "draw"), speeds),
            "fraction_positive": (("dim", "pairs", "height", "quantity"), positive),
        },
        {"dim": dims, "pairs": pairs, "quantity": ["2 dgamma/dt", "dDelta/dt"], "height": HEIGHTS},
    )
    grid = np.geomspace(4, 1e20, 400)
    record["bound_pairs"] = ("bound_pairs", grid)
    bounds = [theory.theorem_3_3_bound(grid, d, BETA0, GAMMA0, DELTA) for d in dims]
    record["bound"] = (("dim", "bound_pairs"), np.stack([b.bound for b in bounds]))
    record["limit"] = ("dim", [float(theory.theorem_3_3_limit(BETA0, GAMMA0, d)) for d in dims])
    record["needed_dim"] = ("needed_dim", np.unique(np.geomspace(3, 1024, 25).astype(int)))
    inverse = [5.0, 1 / 0.07, 100.0]
    record["needed_inverse_temperature"] = ("needed_inverse_temperature", inverse)
    needed = [theory.theorem_3_3_pairs_needed(record["needed_dim"].to_numpy(), b, GAMMA0, DELTA) for b in inverse]
    record["log10_pairs_needed"] = (("needed_inverse_temperature", "needed_dim"), np.stack(needed))
    record.attrs["fraction_gap_slower"] = float((speeds[:, :, 1] < speeds[:, :, 0]).mean())
    record.attrs["smallest_fraction_gap_enlarges"] = float(np.nanmin(positive[..., 1]))
    record.attrs["smallest_fraction_gamma_grows"] = float(np.nanmin(positive[..., 0]))
    for i, d in enumerate(dims):
        needed = float(theory.theorem_3_3_pairs_needed(d, BETA0, GAMMA0, DELTA))
        record.attrs[f"log10_pairs_needed_d{d}"] = needed
        record.attrs[f"limit_d{d}"] = float(record["limit"][i])
        record.attrs[f"mean_speeds_d{d}"] = [float(v) for v in speeds[i, -1].mean(axis=1)]
    return record


def _speeds(pairs: int, dim: int, draws: int):
    """A function γ0 -> (2, draws): 2 dγ/dt and dΔ/dt at t = 0 for the same random rows. Compiled once."""
    flow = fs.GradientFlow(fs.Parallel(), fs.temperature.Learnable(init=1 / BETA0))
    starts = [fs.initial.uniform(pairs, dim, gamma=GAMMA0).draw(SEED + k) for k in range(draws)]
    rows = tuple(np.stack([getattr(start, side) for start in starts]) for side in ("image", "text"))

    @jax.jit
    def measured(template, log_gamma, images, texts):
        def one(rows):
            position = dataclasses.replace(template.unknowns.position, image=rows[0], text=rows[1], log_gamma=log_gamma)
            unknowns = dataclasses.replace(template.unknowns, position=position)
            velocity = flow.vector_field(0.0, dataclasses.replace(template, unknowns=unknowns)).position
            _, gap_speed = jax.jvp(gap, (position,), (velocity,))
            return 2 * jnp.exp(log_gamma) * velocity.log_gamma, gap_speed

        def gap(position):
            rows = flow.geometry.rows(position, template.constants)
            assert rows is not None
            return observables.modality_gap(*rows)

        return jax.lax.map(one, (images, texts))

    def measure(height: float) -> np.ndarray:
        with jax.enable_x64(True):
            template = flow.initial_state(starts[0])
            return np.stack(measured(template, jnp.log(height), *rows))

    return measure


def plot(record: xr.Dataset) -> Figure:
    plot_, colours = fs.plot, fs.plot.COLOURS
    figure = Figure(figsize=(plot_.PAGE, 5.4), layout="constrained")
    axes = figure.subplots(2, 2)
    dims, pairs = record["dim"].to_numpy(), record["pairs"].to_numpy()
    for ax, letter, d in zip(axes[0], "ab", (dims[0], dims[-1]), strict=True):
        _speed_panel(ax, record.sel(dim=d), float(record.attrs[f"log10_pairs_needed_d{d}"]))
        ax.set_title(rf"$\bf{{({letter})}}$ initial speed of the gap, $d = {d}$")
        ax.legend(loc=(0.015, 0.2), labelspacing=0.15, fontsize=7, frameon=True, framealpha=1, edgecolor="none")

    ax = axes[1, 0]
    shades = dict(zip(pairs, ("sky", "green", "orange", "black")[: len(pairs)], strict=True))
    fraction = record["fraction_positive"]
    heights = record["height"].to_numpy()
    markers = dict(zip(pairs, ("o", "^", "s", "D")[: len(pairs)], strict=True))
    for d, style, face in zip((dims[0], dims[-1])[: len(dims)], ("-", (0, (4, 2))), (None, "white"), strict=False):
        for n in pairs[pairs <= MANY]:
            gap = fraction.sel(dim=d, pairs=n, quantity="dDelta/dt")
            ax.plot(
                heights * np.sqrt(2 * n),
                100 * gap,
                ls=style,
                color=colours[shades[n]],
                marker=markers[n],
                mfc=face,
                ms=3.2,
                mew=0.8,
                label=f"$n = {n}$, $d = {d}$",
            )
    least = 100 * record.attrs["smallest_fraction_gamma_grows"]
    ax.axhline(least, color=colours["vermilion"], lw=1.2, ls=":", label=rf"$d\gamma/dt > 0$: {least:.0f} %")
    ax.axvline(1, color=colours["grey"], lw=1, ls="-.", label=r"$\gamma_0 = 1/\sqrt{2n}$")
    ax.set(
        xscale="log",
        ylim=(0, 103),
        xlabel=r"$\gamma_0\sqrt{2n}$",
        ylabel=r"starts with $d\Delta/dt > 0$ (%)",
    )
    ax.legend(
        loc="lower right",
        labelspacing=0.2,
        ncols=2,
        columnspacing=0.8,
        fontsize=7,
        frameon=True,
        framealpha=1,
        edgecolor="none",
    )
    ax.set_title(r"$\bf{(c)}$ starts whose gap opens at first")

    ax = axes[1, 1]
    styles = (("sky", ":"), ("black", "-"), ("vermilion", "--"))
    for b, (colour, line) in zip(record["needed_inverse_temperature"].to_numpy(), styles, strict=True):
        needed = record["log10_pairs_needed"].sel(needed_inverse_temperature=b)
        ax.plot(record["needed_dim"], needed, color=colours[colour], ls=line, label=rf"$\tau_0 = {1 / b:.2g}$")
    practice = np.log10(32768)
    ax.axhspan(0, practice, fc="#CFE3F3", ec="0.5", lw=0, label="batches in use, $n \\leq 2^{15}$")
    top = float(record["log10_pairs_needed"].max()) * 1.04
    ticks = np.arange(0, top, 20)
    ax.set(xscale="log", xlim=(3, 1024), ylim=(0, top), xlabel="dimension $d$", ylabel="pairs $n$")
    ax.yaxis.set_major_locator(FixedLocator(list(ticks)))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.set_yticklabels([f"$10^{{{k:.0f}}}$" for k in ticks])
    ax.legend(labelspacing=0.3)
    ax.set_title(r"$\bf{(d)}$ pairs from which the bound is positive")
    figure.supxlabel(
        rf"Parallel cones, rows uniform on $S^{{d-1}}$: $\tau_0 = 0.07$, $\gamma_0 = {GAMMA0}$, "
        rf"failure probability $\delta = {DELTA}$ (unless varied), "
        f"{record.sizes['draw']} random starts per point.\n"
        "Points: mean; bars: from the 5 % to the 95 % quantile; moved sideways a little to be seen side by side",
        fontsize=8,
    )
    return figure


def _speed_panel(ax, record: xr.Dataset, log10_needed: float) -> None:
    colours = fs.plot.COLOURS
    pairs, limit = record["pairs"].to_numpy(), float(record["limit"])
    last = 10.0 ** (np.ceil(log10_needed) + 2)
    bound_pairs, bound = record["bound_pairs"].to_numpy(), record["bound"].to_numpy()
    shown = bound_pairs <= last
    ax.axvspan(4, 10.0**log10_needed, fc="#E4E4E4", ec="0.5", lw=0, zorder=0, label="bound negative")
    ax.axhline(0, color="black", lw=0.6)
    ax.axhline(limit, color="black", lw=0.9, ls=(0, (5, 3)), label=r"limit $n \to \infty$")
    ax.text(0.98, limit * 1.25, f"${limit:.3g}$", ha="right", fontsize=8, transform=ax.get_yaxis_transform())
    ax.plot(bound_pairs[shown], bound[shown], color=colours["vermilion"], label="bound of Theorem 3.3")
    kinds = (
        ("2 dgamma/dt", "blue", "o", r"$2\,d\gamma/dt$, exact", 0.87),
        ("dDelta/dt", "orange", "s", r"$d\Delta/dt$, exact", 1.15),
    )
    for quantity, colour, marker, label, shift in kinds:
        values = record["speed"].sel(quantity=quantity).to_numpy()
        middle = values.mean(axis=1)
        low, high = np.quantile(values, [0.05, 0.95], axis=1)
        ax.errorbar(
            pairs * shift,
            middle,
            yerr=[middle - low, high - middle],
            ls="",
            marker=marker,
            ms=3.2,
            color=colours[colour],
            elinewidth=1,
            label=label,
        )
    ax.set(xscale="log", xlim=(4, last), xlabel="pairs $n$", ylabel="change of the gap per flow time")
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(-150, 60)
    ax.set_yticks([-100, -10, -1, 0, 1, 10], ["$-100$", "$-10$", "$-1$", "$0$", "$1$", "$10$"])
    ax.yaxis.set_minor_locator(NullLocator())
