"""Your own observables: `register` adds them to the table."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Literal, TypeVar, overload

import jax
import jax.numpy as jnp

from flowsim.base.checks import check, check_choice, shown
from flowsim.errors import FlowsimError
from flowsim.observables.observable import Observable
from flowsim.observables.table import REGISTRY, TAKEN, TAKEN_BEGINNINGS

_Function = TypeVar("_Function", bound=Callable[..., Any])


@overload
def register(function: _Function) -> _Function: ...


@overload
def register(
    *,
    name: str | None = None,
    symbol: str = "",
    description: str = "",
    undefined: str = "",
    needs_pairs: bool = True,
    normalise: bool = True,
    traceable: bool = True,
    of: Literal["rows", "state"] = "rows",
) -> Callable[[_Function], _Function]: ...


def register(
    function: Any = None,
    *,
    name: str | None = None,
    symbol: str = "",
    description: str = "",
    undefined: str = "",
    needs_pairs: bool = True,
    normalise: bool = True,
    traceable: bool = True,
    of: Literal["rows", "state"] = "rows",
) -> Any:
    r"""Add an observable, for `fs.simulate(..., observables=[...])` and, if it is one of rows, `report`. A decorator.

    The function itself is unchanged. If you register another one under the same name, it replaces the first, as when
    a cell of a notebook is run again.

    Args:
        function: f(image, text) or f(image, text, temperature) that returns one number, for rows of shapes (n, d) and
            (m, d) and the temperature τ. With `of="state"`: f(moment), see below.
        name: Name in reports and results. Default: the name of the function.
        symbol: LaTeX symbol for axes, e.g. r"\rho".
        description: Formula, range, better direction. Default: the first line of the docstring.
        undefined: When the value is NaN, e.g. "all rows coincide", for reports and results.
        needs_pairs: Whether row i of both modalities must belong together. Reports without pairs then leave it out.
        normalise: Whether rows are scaled to unit length first, as for flowsim's own metrics.
        traceable: Whether the function uses only `jax.numpy`. Otherwise it gets NumPy arrays, and a run calls it once
            for every output time, which is slower.
        of: "rows" for a number of embeddings. "state" for one of the flow, which only a run has: the function gets a
            `Moment` with `flow`, `time`, `state`, `temperature` and `velocity`, and uses `jax.numpy`.

    Returns:
        The function.

    Raises:
        FlowsimError: For a name that flowsim uses itself; for other parameters; for a function that cannot be traced,
            unless `traceable=False`; and for one that does not return one number.

    Examples:
        >>> import jax, jax.numpy as jnp
        >>> import flowsim as fs
        >>> @fs.observables.register(symbol=r"d_\max", description="max ‖x_i − y_i‖, in [0, 2], lower is closer")
        ... def largest_pair_distance(image, text):
        ...     return jnp.max(jnp.linalg.norm(image - text, axis=1))
        >>> fs.observables.report([[1.0, 0.0], [0.0, 1.0]], [[0.0, 2.0], [0.0, 3.0]])["largest_pair_distance"]
        1.4142135623730951
        >>> flow, start = fs.GradientFlow(), fs.initial.rings()
        >>> result = fs.simulate(flow, start, t1=10.0, observables=["modality_gap", "largest_pair_distance"])
        >>> round(result.final["largest_pair_distance"], 3)
        0.694
        >>> @fs.observables.register(of="state", symbol="v", description="speed of the embeddings, ‖dθ/dt‖")
        ... def speed(moment):
        ...     velocities = jax.tree.leaves(moment.velocity.position)
        ...     return jnp.sqrt(sum(jnp.sum(v**2) for v in velocities))
        >>> run = fs.simulate(flow, start, t1=10.0, observables=["speed"])
        >>> bool(run["speed"][-1] < run["speed"][0])
        True
    """
    if function is None:
        return functools.partial(
            register,
            name=name,
            symbol=symbol,
            description=description,
            undefined=undefined,
            needs_pairs=needs_pairs,
            normalise=normalise,
            traceable=traceable,
            of=of,
        )
    check(callable(function), f"Only a function can be an observable, but got {shown(function)}.")
    name = str(getattr(function, "__name__", "")) if name is None else name
    _check_name(name)
    first_line = (inspect.getdoc(function) or "").partition("\n")[0]
    check_choice("kind of observable", of, ("rows", "state"))
    rows = of == "rows"
    check(
        rows or (traceable and needs_pairs and normalise),
        "An observable of states is traced, and has no rows. Leave out `traceable`, `needs_pairs` and `normalise`.",
    )
    made = Observable(
        name,
        function,
        symbol.strip("$"),
        description or first_line or name.replace("_", " "),
        needs_pairs=needs_pairs,
        needs_temperature=rows and _takes_temperature(name, function),
        traceable=traceable,
        undefined=undefined,
        of=of,
        normalise=rows and normalise,
    )
    if not rows:
        _check_takes_moment(name, function)
    elif traceable:
        _check_traceable(made)
    REGISTRY.add(name, made, getattr(function, "__module__", None) or "")
    return function


def _check_name(name: Any) -> None:
    check(
        isinstance(name, str) and name.isidentifier(),
        f"The name of an observable must be a Python name, but is {shown(name)}. Pass `name`, e.g. 'largest_distance'.",
    )
    check(
        not REGISTRY.is_ours(name) and name not in TAKEN and not name.startswith(TAKEN_BEGINNINGS),
        f"flowsim uses the name {name!r} itself. Pass another `name`.",
    )


def _takes_temperature(name: str, function: Callable[..., Any]) -> bool:
    """Whether a function takes (image, text, temperature); False for (image, text)."""
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some built-in functions
        return False
    more = {"temperature": None} if "temperature" in signature.parameters else {}
    try:
        signature.bind(None, None, **more)
    except TypeError:
        raise FlowsimError(
            f"The observable {name!r} must take (image, text) or (image, text, temperature), but takes {signature}."
        ) from None
    return bool(more)


def _check_takes_moment(name: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind(None)
    except (TypeError, ValueError):
        raise FlowsimError(
            f"The observable {name!r} of states must take one argument, a `Moment`: def {name}(moment): ..."
        ) from None


def _check_traceable(observable: Observable) -> None:
    """Trace a function with a few rows. Raises `FlowsimError` if JAX cannot, or if it does not return one number."""
    rows, temperature = jax.ShapeDtypeStruct((4, 3), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
    try:
        jax.eval_shape(observable, rows, rows, temperature)
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):
        raise FlowsimError(
            f"The observable {observable.name!r} cannot be traced: it calls NumPy, or needs the value of a number that "
            "is known only at run time. Write it with jax.numpy, or pass traceable=False."
        ) from None
    except FlowsimError:
        raise
    except Exception:  # may be due to these sizes; a real error appears when the observable is used
        return
