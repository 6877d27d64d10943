"""Phase diagrams: a swept quantity over two parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import AbstractPathEffect, withStroke
from numpy.typing import ArrayLike

from flowsim.base.checks import check
from flowsim.errors import unknown_name
from flowsim.plot.style import _axes, label

if TYPE_CHECKING:
    import xarray as xr


#: A white outline, so that black lines and letters are readable on any colour.
_HALO: list[AbstractPathEffect] = [withStroke(linewidth=2.6, foreground="white")]


def phase_diagram(
    field: xr.DataArray,
    x: str,
    y: str,
    ax: Axes | None = None,
    *,
    boundary: ArrayLike | Callable[[np.ndarray], Any] | None = None,
    colourbar: bool = True,
    levels: ArrayLike = (),
    contours: Mapping[str, Any] | None = None,
    **colours: Any,
) -> Axes:
    """Draw a swept quantity over two parameters, one cell per point, with contours and a predicted boundary.

    Args:
        field: A variable of a sweep, e.g. `runs["modality_gap"].isel(time=-1)`; other dimensions are averaged.
        x: Dimension of the horizontal axis, which is logarithmic if the values are spaced geometrically. For a sweep
            over one parameter use "time" as the other dimension; without t = 0 (`.isel(time=slice(1, None))`) its axis
            is logarithmic.
        y: Dimension of the vertical axis, likewise.
        ax: Axes to draw on. Default: a new figure.
        boundary: A predicted line: one y for each value of x, a DataArray over x, or a function of x.
        colourbar: Whether to draw a colour bar.
        levels: Values at which contours are drawn, from a spline through the cells.
        contours: Options of `Axes.contour` for the contours.
        **colours: Options of `Axes.pcolormesh` (`cmap`, `vmin`, `vmax`).

    Returns:
        The axes; the mesh is `ax.collections[0]`.

    Raises:
        FlowsimError: If `field` is not a variable of a sweep, a dimension is missing or does not hold numbers, or the
            boundary does not fit x.

    Examples:
        >>> import flowsim as fs
        >>> flow = fs.GradientFlow(schedule=fs.temperature.Fixed(0.1), pairing=fs.LabelNoise(0.1))
        >>> over = {"pairing.noise": [0.01, 0.1], "schedule.temperature.tau": [0.1, 0.5]}
        >>> runs = fs.sweep(flow, fs.initial.cones(pairs=4, dim=3), over, t1=10.0)
        >>> ax = fs.plot.phase_diagram(runs["modality_gap"].isel(time=-1), *over)
        >>> ax.get_xscale(), ax.get_ylabel()
        ('log', 'schedule.temperature.tau')
    """
    import xarray as xr

    check(
        isinstance(field, xr.DataArray) and field.dtype.kind in "fiub",
        f"Expected one variable of a sweep, but got {type(field).__name__}"
        f"{f' of {field.dtype}' if isinstance(field, xr.DataArray) else ''}. "
        'Use e.g. runs["modality_gap"].isel(time=-1).',
    )
    for name in (x, y):
        if name not in field.dims:
            raise unknown_name("dimension", name, [str(d) for d in field.dims])
        check(
            field[name].dtype.kind in "fiu",
            f"Dimension {name!r} does not hold numbers. Give one that does.",
        )
    check(x != y, f"Both axes are {x!r}. Give two dimensions of {', '.join(repr(str(d)) for d in field.dims)}.")
    ax = _axes(ax)
    table = field.mean([d for d in field.dims if d not in (x, y)]).transpose(y, x)
    across, up = (np.asarray(table[name], float) for name in (x, y))
    for values, set_scale in ((across, ax.set_xscale), (up, ax.set_yscale)):
        if _is_geometric(values):
            set_scale("log")
    style = {"cmap": "cividis", "rasterized": True, **colours}
    mesh = ax.pcolormesh(_edges(across), _edges(up), table.to_numpy(), **style)
    if colourbar:
        ax.figure.colorbar(mesh, ax=ax, label=label(str(field.name or "")))
    if np.size(levels):
        from scipy.interpolate import RectBivariateSpline

        fine = [_finely(values) for values in (across, up)]
        order = [min(3, len(values) - 1) for values in (across, up)]
        spline = RectBivariateSpline(_place(up), _place(across), table.to_numpy(), kx=order[1], ky=order[0])
        smooth = spline(_place(fine[1]), _place(fine[0]))
        inside = [level for level in np.ravel(levels) if smooth.min() < level < smooth.max()]
        if inside:
            lines = ax.contour(
                *fine, smooth, levels=inside, **{"colors": "black", "linewidths": 0.7, **(contours or {})}
            )
            lines.set_path_effects(_HALO)
            for text in ax.clabel(lines, fmt="%.3g", fontsize=7):
                text.set_path_effects(_HALO)
    if boundary is not None:
        ax.plot(*_boundary(boundary, x, across), color="black", lw=1.2, label="predicted", path_effects=_HALO)
        ax.set_ylim(float(_edges(up)[0]), float(_edges(up)[-1]))
    ax.set(xlabel=x, ylabel=y)
    return ax


def _boundary(boundary: Any, x: str, across: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (x, y) of a predicted line over the values of x."""
    predicted: Any = boundary(across) if callable(boundary) else boundary
    dims = getattr(predicted, "dims", None)  # of a DataArray
    check(
        dims is None or dims == (x,),
        f"The boundary is a function of {', '.join(map(repr, dims or ()))}, but must give y over {x!r}. "
        "Exchange x and y, or give one value for each x.",
    )
    # A DataArray may have other x values than the cells.
    at = across if dims is None or x not in predicted.coords else np.asarray(predicted[x], float)
    values = np.asarray(predicted, float)
    check(
        values.shape == at.shape,
        f"The boundary has shape {values.shape}, but {x!r} has {at.size} values. Give y for each of them.",
    )
    return at, values


def _is_geometric(values: np.ndarray) -> bool:
    """Whether the values are spaced geometrically rather than evenly."""
    if len(values) < 2 or (values <= 0).any():
        return False
    steps, factors = np.diff(values), np.diff(np.log(values))
    if len(values) == 2:
        return bool(values.max() > 3 * values.min())
    return bool(np.ptp(factors) * abs(steps).max() < np.ptp(steps) * abs(factors).max())


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of cells around the values, halfway between them on their axis."""
    at = _place(values)
    if len(at) == 1:
        return values + np.array([-0.5, 0.5])
    middle = (at[1:] + at[:-1]) / 2
    edges = np.concatenate([[2 * at[0] - middle[0]], middle, [2 * at[-1] - middle[-1]]])
    return np.exp(edges) if _is_geometric(values) else edges


def _place(values: np.ndarray) -> np.ndarray:
    """Positions of the values on their axis: logarithms if the axis is logarithmic."""
    return np.log(values) if _is_geometric(values) else values


def _finely(values: np.ndarray) -> np.ndarray:
    """121 values over the same range, with the same spacing."""
    return (np.geomspace if _is_geometric(values) else np.linspace)(values[0], values[-1], 121)
