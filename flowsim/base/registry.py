"""Registries of named things, in order of definition, for files, the command line and users."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

from flowsim.errors import FlowsimError, unknown_name

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one kind by name, in order of definition.

    Names that flowsim itself uses are protected. A new entry replaces a user's entry of the same name and comes last,
    as when a cell of a notebook is run again.

    Args:
        kind: What an entry is, e.g. "observable", for messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}
        self._ours: set[str] = set()
        self._functions: dict[str, Any] = {}
        _ALL.append(self)

    def add(self, name: str, entry: T, module: str, function: Any = None) -> T:
        """Register an entry.

        Args:
            name: Its name.
            entry: The entry.
            module: The module that defines it; names from flowsim's modules are protected.
            function: The user's function in an entry that is no part of a model, for `registered_as`.

        Returns:
            The entry.

        Raises:
            FlowsimError: If flowsim itself has an entry of this name.
        """
        ours = module.partition(".")[0] == "flowsim"
        if name in self._ours and not ours:
            raise FlowsimError(f"flowsim already has a {self.kind} named {name!r}. Choose another name.")
        if ours:
            self._ours.add(name)
        self._entries.pop(name, None)
        self._entries[name] = entry
        self._functions.pop(name, None)
        if function is not None:
            self._functions[name] = function
        return entry

    def remove(self, name: str) -> None:
        """Remove an entry of a user.

        Args:
            name: Its name.

        Raises:
            FlowsimError: For unknown names and for flowsim's own.
        """
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        if name in self._ours:
            raise FlowsimError(f"The {self.kind} {name!r} belongs to flowsim and cannot be removed.")
        del self._entries[name]
        self._functions.pop(name, None)

    def is_ours(self, name: str) -> bool:
        """Whether the entry `name` is one of flowsim's, not of a user."""
        return name in self._ours

    def select(self, condition: Callable[[T], bool]) -> dict[str, T]:
        """The entries for which the condition is true, by name."""
        return {name: entry for name, entry in self._entries.items() if condition(entry)}

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


_ALL: list[Registry[Any]] = []


def registered_as(function: Any) -> str | None:
    """What a function is registered as besides a part of a model, e.g. "reader 'parquet'"; None if it is not."""
    entries = ((registry.kind, name, one) for registry in _ALL for name, one in registry._functions.items())
    return next((f"{kind} {name!r}" for kind, name, one in entries if one is function), None)
