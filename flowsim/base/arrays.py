"""Number handling shared by every module: float64 leaves, NumPy/JAX dispatch, 64-bit mode."""

import contextlib
import dataclasses
import inspect
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar, dataclass_transform

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError, unknown_name

#: Arrays of states: NumPy on the host, JAX inside a solve.
Numeric = jax.Array | np.ndarray

#: From this many pairs on nothing n×n is formed where that can be avoided: tiles need a quarter of the processor's
#: time there (docs/performance.md), and from about ten times as many on nothing else fits into memory.
LARGE = 256


T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def bundle(cls: type[T]) -> type[T]:
    """A frozen dataclass of arrays, a tree to JAX.

    For what a solve passes around and users do not write down: a sweep makes ten of them per run, and an
    `equinox.Module` takes twenty times as long to make.
    """
    made: Any = dataclasses.dataclass(frozen=True, eq=False, repr=False)(cls)
    made.__repr__ = lambda self: eqx.tree_pformat(self)
    names = [field.name for field in dataclasses.fields(made)]
    keys = [jax.tree_util.GetAttrKey(name) for name in names]

    def unflatten(_: None, children: Iterable[Any]) -> Any:
        # Without `__init__`: JAX fills trees with whatever it likes, and tests check the types of arguments.
        new = object.__new__(made)
        new.__dict__.update(zip(names, children, strict=True))
        return new

    def flatten(tree: Any) -> tuple[list[Any], None]:
        held = tree.__dict__
        return [held[name] for name in names], None

    jax.tree_util.register_pytree_with_keys(
        made, lambda tree: ([(key, getattr(tree, key.name)) for key in keys], None), unflatten, flatten
    )
    return made


#: Every class of parts by name: geometries, policies, losses, recipes, ..., and the flow itself.
PARTS: Registry[type] = Registry("class")


class Described(eqx.Module):
    """A module that shows its numbers, `Rings(pairs=5, height=0.309, twist=-144)`, and is known by its name.

    A concrete class registers when it is defined, wherever that is: from then on files, paths and the command line
    can name it. Names of flowsim's own classes are refused with a `FlowsimError`.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not cls.__name__.startswith(("_", "Abstract")):
            PARTS.add(cls.__name__, cls, cls.__module__)

    def __repr__(self) -> str:
        fields = [f.name for f in dataclasses.fields(self) if f.init]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in fields)})"


def parts_of(kind: Any) -> dict[str, type]:
    """The concrete classes derived from `kind` (a class, or a tuple of classes), by name."""
    return PARTS.select(lambda cls: issubclass(cls, kind) and not inspect.isabstract(cls))


def _short(value: Any) -> str:
    if is_concrete(value) and not isinstance(value, bool):
        return f"{float(value):.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(_short(v) for v in value)}{',' * (len(value) == 1)})"
    return eqx.tree_pformat(value) if hasattr(value, "shape") else repr(value)


def number(value: Any) -> Any:
    """A numeric leaf: NumPy float64 unless it already is a JAX array.

    NumPy arrays are traced by `equinox.filter_jit`, so that changing the number never recompiles, and,
    unlike `jnp.asarray` outside 64-bit mode, they do not round 0.07 to single precision.
    """
    # Placeholders that JAX puts into modules while it rearranges trees pass through unchanged.
    if isinstance(value, jax.core.Tracer) or type(value) is object:  # pyright: ignore
        return value
    # NumPy reads '0.1' as 0.1, None as NaN, True as 1, and drops imaginary parts.
    found = host_array(value)
    if found is None or not is_real(found):
        raise FlowsimError(f"Expected a number, but got {shown(value)}. Use an int or a float.")
    check(
        found.ndim == 0,
        f"Expected one number, but got an array of shape {found.shape}. To vary it, use fs.sweep(..., over=...).",
    )
    return value if isinstance(value, jax.Array) else found.astype(np.float64)


def optional_number(value: Any) -> Any:
    """`number`, or None."""
    return None if value is None else number(value)


def is_concrete(value: Any) -> bool:
    """Whether `value` is a number that can be checked now (not traced, not batched)."""
    if isinstance(value, jax.core.Tracer):  # pyright: ignore
        return False
    return isinstance(value, (int, float, np.ndarray, np.generic, jax.Array)) and np.ndim(value) == 0


def is_real(array: np.ndarray) -> bool:
    """Whether an array holds real numbers, and no truth values."""
    return array.dtype.kind in "fiu" or jnp.issubdtype(array.dtype, np.floating)  # the latter: bfloat16


def host_array(value: Any) -> np.ndarray | None:
    """`value` as a NumPy array of its own dtype, also a torch tensor of any device and dtype; None if it is none."""
    if all(hasattr(value, name) for name in ("detach", "cpu", "float")):
        value = value.detach().cpu()
        if str(value.dtype) == "torch.bfloat16":  # which NumPy does not have
            value = value.float()
    try:
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # rows of different lengths, among others
        return None


def moderate(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d), those whose squares leave float64 scaled by a power of two; all others as they are."""
    exponents = np.frexp(np.abs(rows).max(axis=1, initial=0.0))[1]
    far = np.abs(exponents) > 500
    if not far.any():
        return rows
    rows = rows.copy()
    with np.errstate(under="ignore"):
        rows[far] = np.ldexp(rows[far], -exponents[far, None])
    return rows


def shown(value: Any) -> str:
    """A value in a message, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:56]} ..."


def check(condition: Any, message: str) -> None:
    if not bool(condition):
        raise FlowsimError(message)


def plain(value: Any) -> Any:
    """Python's own numbers and lists for those of NumPy and JAX: the values of static fields."""
    found = isinstance(value, (np.ndarray, np.generic, jax.Array)) and not isinstance(value, jax.core.Tracer)  # pyright: ignore
    return value.tolist() if found else value


def is_whole(value: Any) -> bool:
    """Whether `value` is a whole number, and no truth value or duration."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, (bool, np.timedelta64))


def check_whole(name: str, value: Any, minimum: int, cure: str) -> None:
    """Refuse what is not a whole number of at least `minimum` (and below 2³², as sizes and seeds are)."""
    if not is_whole(value) or not minimum <= value < 2**32:
        text = "the text " * isinstance(value, str) + shown(value)  # '5' reads like the number
        limit = " and below 2³²" * (is_whole(value) and value >= minimum)
        raise FlowsimError(
            f"Argument `{name}` must be a whole number of at least {minimum}{limit}, but is {text}. {cure}"
        )


def check_choice(kind: str, value: Any, known: Iterable[str]) -> None:
    """Refuse what is none of the known names of a `kind`."""
    names = tuple(known)
    if not isinstance(value, str) or value not in names:
        raise unknown_name(kind, value if isinstance(value, str) else shown(value), names)


def check_flag(name: str, value: Any) -> None:
    """Refuse what is neither True nor False."""
    check(isinstance(value, bool), f"Argument `{name}` must be True or False, but is {shown(value)}. Use one of them.")


def check_number(name: str, value: Any, *, positive: bool = False, minimum: float | None = None, cure: str) -> None:
    """Refuse what is no number, not finite, or not positive, or below `minimum`; traced values pass."""
    if isinstance(value, jax.core.Tracer) or type(value) is object or (np.ndim(value) > 0 and hasattr(value, "dtype")):  # pyright: ignore
        return  # the last: the numbers of many runs
    if not is_concrete(value) or not is_real(np.asarray(value)):
        raise FlowsimError(f"Argument `{name}` must be a number, but is {shown(value)}. {cure}")
    number_ = float(value)
    wanted = "positive" if positive else (f"at least {minimum:g}" if minimum is not None else "finite")
    good = np.isfinite(number_) and (not positive or number_ > 0) and (minimum is None or number_ >= minimum)
    check(good, f"Argument `{name}` must be {wanted}, but is {number_:g}. {cure}")


def check_fraction(name: str, value: Any) -> None:
    """Refuse a number outside [0, 1]; traced values pass."""
    check_number(name, value, minimum=0.0, cure="Use a fraction between 0 and 1.")
    if is_concrete(value):
        check(value <= 1, f"Argument `{name}` must be at most 1, but is {float(value):g}. Use a number from 0 to 1.")


def check_redraw(interval: Any) -> None:
    """Refuse an interval of flow time that is not positive; None passes."""
    if interval is not None:
        check_number("redraw", interval, positive=True, cure="Use the flow time between two draws, or None.")


def namespace(*values: Any) -> Any:
    """`jax.numpy` if any of the values is a JAX array or tracer, else `numpy`."""
    return jnp if any(isinstance(v, jax.Array) for v in values) else np


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Within it JAX's errors about traced values become one sentence that names the class of the user's that fails.

    Raises `FlowsimError` for Python conditions on, and NumPy functions of, values that are known only when a compiled
    program runs, if a method of a class that is not flowsim's is on the way; other errors pass unchanged.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError) as error:
        # The deepest method of somebody else's module. Frames of libraries have modules of their own as `self`.
        found = [
            (owner, frame.f_code.co_name, line)
            for frame, line in traceback.walk_tb(error.__traceback__)
            if isinstance(owner := frame.f_locals.get("self"), Described)
            and not type(owner).__module__.startswith("flowsim.")
        ]
        if not found:
            raise
        owner, method, line = found[-1]
        raise FlowsimError(
            f"`{type(owner).__name__}.{method}` (line {line}) cannot be compiled: it asks for the value of a number "
            "that is known only when the program runs. Use jax.numpy (or xp = fs.extend.namespace(x)) for NumPy, and "
            "jnp.where(condition, a, b) instead of `if`."
        ) from error


def unstack(tree: PyTree, indices: Iterable[int]) -> list[PyTree]:
    """The trees with these indices of trees that are stacked along a first axis."""
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in indices]


def to_device(tree: PyTree, dtype: Any = np.float64) -> PyTree:
    """All floating NumPy leaves as JAX arrays of `dtype` (call it inside `jax.enable_x64(True)`)."""

    leaves, structure = jax.tree.flatten(tree)
    arrays = {}
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        if isinstance(leaf, jax.Array):
            leaves[i] = leaf if leaf.dtype == dtype else leaf.astype(dtype)
        else:
            arrays[i] = np.asarray(leaf, dtype)
    # One transfer for all is several times faster than one each.
    for i, array in jax.device_put(arrays).items():
        leaves[i] = array
    return jax.tree.unflatten(structure, leaves)


def to_numpy(tree: PyTree) -> PyTree:
    """All JAX leaves as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)
