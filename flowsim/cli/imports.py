"""Python files that define parts of a user: imported before a command runs."""

import contextlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

from flowsim.errors import FlowsimError

#: The option that every command takes.
OPTION = "--import"


def split_imports(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without `--import`, and the modules that it names."""
    rest, homes = [], []
    waiting = iter(argv)
    for token in waiting:
        name, equals, value = token.partition("=")
        if name != OPTION:
            rest.append(token)
            continue
        value = value if equals else next(waiting, "")
        if not value or value.startswith("--"):
            raise FlowsimError(f"Option `{OPTION}` needs a .py file or a module. Use e.g. {OPTION} my_parts.py.")
        homes.append(value)
    return rest, homes


@contextlib.contextmanager
def current_folder_first() -> Iterator[None]:
    """Make modules of the current folder importable, also while the command runs."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(here)


def imported(home: str) -> ModuleType:
    """A dotted module, or a .py file. Raises `FlowsimError` if it cannot be imported."""
    try:
        if not home.endswith(".py"):
            return importlib.import_module(home)
        if not Path(home).is_file():
            raise FlowsimError(f"There is no file {home!r}. Give a .py file, or a module as in `import my.module`.")
        name = Path(home).stem
        # A file may have the name of another module that is loaded, e.g. types.py.
        held = getattr(sys.modules.get(name), "__file__", None)
        taken = name in sys.modules and (held is None or Path(held).resolve() != Path(home).resolve())
        spec = importlib.util.spec_from_file_location(f"imported_{name}" if taken else name, home)
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
