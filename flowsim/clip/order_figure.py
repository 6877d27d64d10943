"""The figure of a study with many methods: gaps and temperatures over time, the paper's order, retrieval."""

from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from flowsim import plot
from flowsim.clip.correlation import rank_correlation
from flowsim.clip.figures import _legend, _styles, _with_range
from flowsim.clip.findings import EXTREME

if TYPE_CHECKING:
    import xarray as xr

#: Methods whose curves are drawn; all are drawn in the panels of final values.
_CURVES = ("Baseline", "FLT 1e-2", "FLT 4e-2", "TS S3", "TR softplus", "SLRT 0.1", "HS 1e-2", "SS 5e-2")


def order_figure(record: "xr.Dataset") -> Figure:
    """Gap and temperature over time; final gap against the paper's, temperature and retrieval; retrieval at equal loss.

    Curves are means over seeds; bars are the range over seeds.

    Args:
        record: Numbers from `fs.clip.figures.methods_numbers`.

    Returns:
        The figure.
    """
    figure = Figure(figsize=(plot.PAGE, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    methods = [str(m) for m in record["method"].to_numpy()]
    style, mean = _styles(methods), record.mean("seed")
    for k, method in enumerate(name for name in _CURVES if name in methods):
        here, draw = mean.sel({"method": method}), {**style[method], "ms": 3}
        for ax, name in ((axes[0, 0], "modality_gap"), (axes[0, 1], "temperature")):
            ax.plot(here["step"], here[name], markevery=((k + 0.5) / len(_CURVES) * 0.22, 0.22), **draw)
    for ax, x, y in (
        (axes[0, 2], "paper_gap", "final_gap"),
        (axes[1, 0], "final_temperature", "final_gap"),
        (axes[1, 1], "final_gap", "final_image_retrieval"),
        (axes[1, 2], "at_loss_gap", "at_loss_image_retrieval"),
    ):
        for method in methods:
            one = record.sel({"method": method})
            _with_range(ax, one[x].to_numpy(), one[y].to_numpy(), style[method])
    gap, labels = r"gap $\Delta$, held out", ("step", "text to image R@1, %")
    axes[0, 0].set(xlabel=labels[0], ylabel=gap, ylim=(0, None))
    axes[0, 0].set_xscale("symlog", linthresh=1)  # from step 0 on
    axes[0, 0].set_xlim(0, int(record["step"][-1]))
    axes[0, 0].set_xticks([0, 1, 10, 100, 1000], ["0", "1", "10", "100", "1,000"])
    axes[0, 1].set(xlabel=labels[0], ylabel=r"temperature $\tau$", yscale="log")
    axes[0, 2].set(xlabel=r"gap $\Delta$ in the paper", ylabel=rf"final {gap}", xscale="log", yscale="log")
    axes[1, 0].set(xlabel=r"final temperature $\tau$", ylabel=rf"final {gap}", xscale="log", yscale="log")
    axes[1, 1].set(xlabel=rf"final {gap}", ylabel=labels[1], xscale="log")
    axes[1, 2].set(xlabel=r"gap $\Delta$ at equal loss", ylabel=labels[1], xscale="log")
    _plain_ticks(axes[0, 1], y=(0.01, 0.02, 0.05, 0.1))
    _plain_ticks(axes[0, 2], (0.02, 0.1, 0.5), (0.05, 0.1, 0.2, 0.5))
    _plain_ticks(axes[1, 0], (0.01, 0.1, 1), (0.05, 0.1, 0.2, 0.5))
    for ax in axes[1, 1:]:
        _plain_ticks(ax, (0.05, 0.1, 0.2, 0.5))
    titles = ("gap", "temperature", "order of the methods", "gap and temperature", "retrieval and gap", "at equal loss")
    usual = [name for name in methods if name not in EXTREME]
    pairs = {
        2: ("final_gap", "paper_gap", methods), 3: ("final_gap", "final_temperature", methods),
        4: ("final_gap", "final_image_retrieval", usual), 5: ("at_loss_gap", "at_loss_image_retrieval", usual),
    }  # fmt: skip
    for i, (ax, title) in enumerate(zip(axes.flat, titles, strict=True)):
        text = _correlation(record, *pairs[i]) if i in pairs else ""
        ax.set_title(rf"$\bf{{({'abcdef'[i]})}}$ {title}{text}", fontsize=8.5, loc="left")
    handles = [Line2D([], [], label=method, **{**style[method], "ms": 5}) for method in methods]
    seeds = record.sizes["seed"]
    above = f"Curves, of some methods: mean of {seeds} seeds; bars: range over the seeds." if seeds > 1 else "One seed."
    more = rf"$\rho$: Spearman's rank correlation [95 % interval]; in (e) and (f) without {', '.join(EXTREME)}."
    _legend(figure, handles, methods, above, more)
    return figure


def _correlation(record: "xr.Dataset", x: str, y: str, methods: list[str]) -> str:
    """Spearman's ρ with its interval, for a title; empty if it cannot be said."""
    chosen = record.sel({"method": methods})
    values = [chosen[name] for name in (x, y)]
    one, other = (v.expand_dims("seed", -1) if "seed" not in v.dims else v.transpose("method", "seed") for v in values)
    found = rank_correlation(one.to_numpy(), other.to_numpy())
    if found is None:
        return ""
    return "\n" + rf"$\rho = {found.rho:+.2f}$ [${found.low:+.2f}$, ${found.high:+.2f}$]"


def _plain_ticks(ax: Axes, x: tuple[float, ...] = (), y: tuple[float, ...] = ()) -> None:
    """Ticks of logarithmic axes as plain numbers."""
    if x:
        ax.set_xticks(x, [f"{value:g}" for value in x])
        ax.xaxis.set_minor_formatter(NullFormatter())
    if y:
        ax.set_yticks(y, [f"{value:g}" for value in y])
        ax.yaxis.set_minor_formatter(NullFormatter())
