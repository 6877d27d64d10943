"""`flowsim check`: test a part that you wrote against what flowsim expects of its kind."""

import dataclasses
import sys
from typing import Annotated, Any

from tyro import conf

from flowsim.cli.imports import current_folder_first, imported
from flowsim.errors import FlowsimError, unknown_name


@dataclasses.dataclass(frozen=True)
class Check:
    """Check a part that you wrote: a policy, loss, geometry, pairing, swap, rule, recipe or observable.

    A class is built with its defaults; the name of an object or function also works. The exit code is 0 if all checks
    passed, else 1.

    Example: flowsim check my_losses.py:Ranking
    """

    part: Annotated[
        conf.Positional[tuple[str, ...]], conf.arg(metavar="MODULE:CLASS", help_behavior_hint="")
    ] = ()  # fmt: skip
    """The part: a module or a .py file, from the current folder, and a name in it."""

    def run(self) -> int:
        """Check and print the table."""
        if len(self.part) != 1:
            raise FlowsimError(
                f"Command `check` takes one MODULE:CLASS, but got {len(self.part)}. Use e.g. flowsim check "
                "my_losses.py:Ranking."
            )
        if "jax" not in sys.modules:
            from flowsim.base import processes

            processes.compile_quickly()
        with current_folder_first():
            part = _named(self.part[0])
            from flowsim.conformance import check

            found = check(part)
        print(found)
        return 0 if found.ok else 1


def _named(text: str) -> Any:
    """The object that MODULE:NAME refers to."""
    home, _, name = text.rpartition(":")
    if not home or not name:
        raise FlowsimError(f"Expected MODULE:CLASS, but got {text!r}. Use e.g. my_losses.py:Ranking.")
    module = imported(home)
    if not hasattr(module, name):
        raise unknown_name(f"name in {home}", name, [key for key in dir(module) if not key.startswith("_")])
    return getattr(module, name)
