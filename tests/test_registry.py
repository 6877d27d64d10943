"""The registry of names: order, protection of flowsim's own, users' entries that give way."""

import pytest

from flowsim.base.registry import Registry
from flowsim.errors import FlowsimError


@pytest.fixture
def registry():
    found: Registry[int] = Registry("number")
    found.add("one", 1, "flowsim.model")
    found.add("two", 2, "flowsim.model")
    found.add("mine", 3, "__main__")
    return found


def test_entries_come_in_the_order_of_definition(registry):
    assert dict(registry) == {"one": 1, "two": 2, "mine": 3}
    registry.add("other", 4, "__main__")
    registry.add("mine", 5, "__main__")
    assert list(registry) == ["one", "two", "other", "mine"] and registry["mine"] == 5
    assert registry.select(lambda value: value > 3) == {"other": 4, "mine": 5}


def test_names_of_flowsim_are_protected(registry):
    assert registry.is_ours("one") and not registry.is_ours("mine")
    with pytest.raises(FlowsimError, match="flowsim already has a number named 'one'. Choose another name."):
        registry.add("one", 5, "flowsim_of_somebody_else")
    with pytest.raises(FlowsimError, match="'one' belongs to flowsim and cannot be removed"):
        registry.remove("one")


def test_a_user_takes_an_entry_back(registry):
    registry.remove("mine")
    assert "mine" not in registry and len(registry) == 2
    with pytest.raises(FlowsimError, match="Unknown number 'too'. Did you mean 'two'"):
        registry.remove("too")
