"""Strict numerics for the whole suite: no silent promotion, no silent broadcasting, no warnings."""

import sys

import hypothesis
import jax
import pytest

from flowsim.base.modules import PARTS
from flowsim.base.processes import compile_quickly
from flowsim.numerics import make_room
from flowsim.observables.table import REGISTRY

# Tests compile much and run little.
compile_quickly()
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# The same examples every time: what fails once can be looked at again.
hypothesis.settings.register_profile("flowsim", derandomize=True)
hypothesis.settings.load_profile("flowsim")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="also run the tests marked slow")
    parser.addoption("--exhaustive", action="store_true", help="also run the tests marked exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for kind in ("slow", "exhaustive"):
        skip = pytest.mark.skip(reason=f"{kind}: run with --{kind}")
        for item in items:
            if kind in item.keywords and not config.getoption(f"--{kind}"):
                item.add_marker(skip)


#: Classes of parts that tests define, by name, before the present test.
_parts: dict[str, type] = {}


def pytest_runtest_setup() -> None:
    # Hundreds of programs in one process, and not all come from simulations.
    make_room()
    _parts.clear()
    _parts.update((name, cls) for name, cls in PARTS.items() if not PARTS.is_ours(name))


def pytest_runtest_teardown() -> None:
    # Observables, claims, items of comparisons, checks and methods that a test or a page registered.
    homes = ("claims.registry", "comparison.item", "doctor.finding", "lab.methods")
    loaded = [sys.modules.get(f"flowsim.{name}") for name in homes]
    for registry in [REGISTRY, *(module.REGISTRY for module in loaded if module)]:
        for name in [name for name in registry if not registry.is_ours(name)]:
            registry.remove(name)
    # A page or a test may define a class under the name of another test's.
    for name, cls in _parts.items():
        if name in PARTS and PARTS[name] is not cls:
            PARTS.add(name, cls, cls.__module__)
