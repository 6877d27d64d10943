"""Modules that show their numbers and register on definition; bundles of arrays; errors of users' modules."""

import contextlib
import dataclasses
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, dataclass_transform

import equinox as eqx
import jax

from flowsim.base.checks import is_concrete
from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError

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

    def functions(self) -> dict[str, Callable[..., Any]]:
        """Functions of a user that the part calls by name; what is stored depends on their code."""
        return {}

    def __repr__(self) -> str:
        fields = [f.name for f in dataclasses.fields(self) if f.init]  # pyright: ignore[reportArgumentType]
        return f"{type(self).__name__}({', '.join(f'{name}={_short(getattr(self, name))}' for name in fields)})"


def parts_of(kind: Any) -> dict[str, type]:
    """The concrete classes derived from `kind` (a class, or a tuple of classes), by name."""
    return PARTS.select(lambda cls: issubclass(cls, kind) and not inspect.isabstract(cls))


def parts_in(part: Any) -> Iterator[Described]:
    """A part, and all parts that it is made of."""
    if isinstance(part, Described):
        yield part
        for field in dataclasses.fields(part):  # pyright: ignore[reportArgumentType]
            yield from parts_in(getattr(part, field.name))


def _short(value: Any) -> str:
    if is_concrete(value) and not isinstance(value, bool):
        return f"{float(value):.6g}"
    if isinstance(value, tuple):
        return f"({', '.join(_short(v) for v in value)}{',' * (len(value) == 1)})"
    return eqx.tree_pformat(value) if hasattr(value, "shape") else repr(value)


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
            f"`{type(owner).__name__}.{method}` (line {line}) cannot be compiled: it needs the value of a number "
            "that is known only when the program runs. Use jax.numpy (or xp = fs.extend.namespace(x)) for NumPy, and "
            "jnp.where(condition, a, b) instead of `if`."
        ) from error
