"""`flowsim check`: test a part that you wrote against what flowsim expects of its kind."""

import contextlib
import dataclasses
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from tyro import conf

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
        with _current_folder_first():
            part = _named(self.part[0])
            from flowsim.conformance import check

            found = check(part)
        print(found)
        return 0 if found.ok else 1


@contextlib.contextmanager
def _current_folder_first() -> Iterator[None]:
    """Make modules of the current folder importable, also while the part is checked."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def _named(text: str) -> Any:
    """The object that MODULE:NAME refers to."""
    home, _, name = text.rpartition(":")
    if not home or not name:
        raise FlowsimError(f"Expected MODULE:CLASS, but got {text!r}. Use e.g. my_losses.py:Ranking.")
    module = _imported(home)
    if not hasattr(module, name):
        raise unknown_name(f"name in {home}", name, [key for key in dir(module) if not key.startswith("_")])
    return getattr(module, name)


def _imported(home: str) -> ModuleType:
    """A dotted module, or a .py file. Raises `FlowsimError` if it cannot be imported."""
    try:
        if not home.endswith(".py"):
            return importlib.import_module(home)
        if not Path(home).is_file():
            raise FlowsimError(f"There is no file {home!r}. Give a .py file, or a module as in `import my.module`.")
        name = Path(home).stem
        # A file may have the name of a loaded module, e.g. types.py.
        spec = importlib.util.spec_from_file_location(f"checked_{name}" if name in sys.modules else name, home)
        assert spec is not None and spec.loader is not None, "a .py file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look up their module
        spec.loader.exec_module(module)
        return module
    except FlowsimError:
        raise
    except (Exception, SystemExit) as error:  # whatever the user's module raises
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f.lineno for f in frames if Path(f.filename).resolve() == Path(home).resolve()]
        where = f" (line {lines[-1]})" if lines else ""
        said = str(error).rstrip(".")
        raise FlowsimError(f"{home!r} cannot be imported: {type(error).__name__}{where}: {said}.") from None
