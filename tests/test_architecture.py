"""The house: which room may import which, what the core may load, and what it must leave alone."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import flowsim as fs
from flowsim.base.modules import PARTS

PACKAGE = Path(fs.__file__).parent

#: Rooms from left to right -> those that they may import. Everything may import `errors`.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "progress": set(),
    "base": {"progress"},
    "provenance": set(),
    "data": {"base"},
    "numerics": {"base"},
    "model": {"base", "data", "numerics"},
    "observables": {"progress", "base", "data", "numerics"},
    "conformance": {"base", "model", "observables"},
    "records": {"base", "model", "observables"},
    "logs": {"base", "data", "model", "observables", "records"},
    "theory": {"base", "model", "records"},
    "plot": {"base", "observables", "records", "theory"},
    "lab": {"progress", "base", "data", "model", "observables", "plot"},
    "doctor": {"base", "data", "model", "observables", "records", "logs"},
    "torch": {"base", "provenance", "model", "observables", "records"},
    "integrate": {"progress", "base", "data", "provenance", "numerics", "model", "observables", "records", "theory"},
    "comparison": {"progress", "base", "model", "observables", "records", "logs", "theory", "plot", "integrate"},
    "explorer": {"base", "model", "observables", "records", "theory", "plot", "integrate"},
    "clip": {"progress", "base", "data", "provenance", "model", "observables", "records", "torch", "plot"},
    "heads": {"progress", "base", "data", "provenance", "numerics", "model", "observables", "records", "integrate",
              "clip"},
    "claims": {"progress", "base", "data", "numerics", "model", "observables", "records", "theory", "integrate", "clip",
               "heads"},
    "reproduce": {"progress", "base", "provenance", "records", "plot", "integrate", "claims"},
    "cli": {"progress", "base", "data", "model", "observables", "conformance", "records", "logs", "plot", "lab",
            "doctor", "torch", "integrate", "comparison", "claims", "explorer", "clip", "heads", "reproduce"},
    "__main__": {"cli"},
}  # fmt: skip
#: The top level names everything; it is no room. The experiments come last and use the top level.
OUTSIDE = ("__init__", "_experiments")
#: Files with fewer rights than their room: closed forms know nothing of runs.
NARROW = {"theory": ({"base"}, {"predict.py"})}


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "_experiments" not in p.parts]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions, by `import_module`, and by attributes of the
    package itself (`flowsim.simulate`); names of `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            within = ("flowsim", *path.relative_to(PACKAGE).with_suffix("").parts) if node.level else ()
            base = ".".join([*within[: -node.level or None], *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "flowsim":
            found.add(f"flowsim.{node.attr}")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            name = node.args[0]
            parts = name.values if isinstance(name, ast.JoinedStr) else [name]
            text = "".join(str(p.value) if isinstance(p, ast.Constant) else "*" for p in parts)
            found.add(text)
    return found


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports; a name taken from the top level counts as the room that defines it."""
    rooms = set()
    for name in imported_modules(path):
        head, _, rest = name.partition(".")
        if head != "flowsim" or not rest or rest.startswith("__"):
            continue
        first = rest.partition(".")[0]
        if first in MAY_IMPORT:
            rooms.add(first)
        else:
            assert first in fs.__all__, f"{path}: {name}"
            home = getattr(fs, first)
            rooms.add(getattr(inspect.getmodule(home), "__name__", "").split(".")[1])
    return rooms


def test_every_room_is_in_the_table_and_every_entry_is_a_room():
    assert {room(p) for p in sources()} - set(OUTSIDE) == MAY_IMPORT.keys()


def test_rooms_import_only_what_stands_to_their_left():
    seen: set[str] = set()
    for name, allowed in MAY_IMPORT.items():
        assert allowed <= seen, name
        seen.add(name)


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    name = room(path)
    if name in OUTSIDE:
        return
    allowed = MAY_IMPORT[name]
    if name in NARROW and path.name not in NARROW[name][1]:
        allowed = NARROW[name][0]
    assert imported_rooms(path) <= allowed | {"errors", name}


def test_the_test_sees_every_way_to_import(tmp_path):
    ways = (
        "from flowsim.cli import main",
        "def f():\n    import flowsim.cli",
        "import flowsim\nflowsim.claims.run",
        "from flowsim import claims",
        "import importlib\nimportlib.import_module('flowsim.clip.training')",
    )
    for way in ways:
        (tmp_path / "a.py").write_text(way)
        assert imported_rooms(tmp_path / "a.py") & {"cli", "claims", "clip"}, way


def test_the_map_tells_the_rooms_and_what_they_import():
    """docs/map.md lists the rooms in this order."""
    text = (Path(__file__).parents[1] / "docs" / "map.md").read_text(encoding="utf-8")
    listed = [
        line.split("`")[1].removeprefix("flowsim/").strip("/").removesuffix(".py")
        for line in text.splitlines()
        if line.startswith("| `flowsim/")
    ]
    assert listed == [name for name in MAY_IMPORT if name != "__main__"]


def test_no_pickles_anywhere():
    for path in sources():
        assert not {n.split(".")[0] for n in imported_modules(path)} & {
            "pickle",
            "dill",
            "cloudpickle",
            "joblib",
        }
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load":
                for keyword in node.keywords:
                    assert keyword.arg != "allow_pickle" or ast.literal_eval(keyword.value) is False, path


def test_everything_public_has_a_docstring():
    for name in fs.__all__:
        thing = getattr(fs, name)
        assert (inspect.getdoc(thing) or "").strip(), f"flowsim.{name} has no docstring"
        if inspect.isclass(thing):
            for method, function in vars(thing).items():
                if not method.startswith("_") and inspect.isfunction(function):
                    assert inspect.getdoc(function), f"flowsim.{name}.{method} has no docstring"


@pytest.fixture(scope="module")
def fresh() -> dict:
    """What `import flowsim` and one use of the core do to a fresh session."""
    code = """
import json, sys
import flowsim as fs
fs.GradientFlow, fs.simulate, fs.initial.rings, fs.observables, fs.theory
loaded = sorted({name.split(".")[0] for name in sys.modules})
import jax, jax.numpy as jnp
print(json.dumps({"loaded": loaded, "x64": jax.config.jax_enable_x64, "dtype": str(jnp.ones(1).dtype),
                  "promotion": jax.config.jax_numpy_dtype_promotion, "nans": jax.config.jax_debug_nans}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stderr == ""
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "name",
    ["matplotlib", "torch", "dask", "xarray", "h5netcdf", "pandas", "tyro", "rich", "zarr", "open_clip"],
)
def test_the_core_loads_only_what_it_needs(fresh, name):
    assert name not in fresh["loaded"]


def test_data_is_read_without_jax_and_torch():
    code = "import sys; import flowsim.clip.data; print([m for m in ('jax', 'torch', 'equinox') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"


def test_import_leaves_jax_as_it_is(fresh):
    assert fresh["x64"] is False
    assert fresh["dtype"] == "float32"
    assert fresh["promotion"] == "standard"
    assert fresh["nans"] is False


def _parts_of_the_model() -> set[str]:
    """Names of the concrete classes of parts; the flow, its schedule and a start are none."""
    for name in ("losses", "pairing", "rules", "swaps", "temperature", "initial", "schedules"):
        getattr(fs, name)
    ours = {name for name in PARTS if PARTS.is_ours(name) and not inspect.isabstract(PARTS[name])}
    return ours - {"GradientFlow", "Schedule"}


def _asked(tree: ast.AST) -> set[str]:
    """Names of classes that code asks a value for: `isinstance(x, A | B)`, `type(x) is A`, `type(x) in (A, B)`."""
    found: set[str] = set()
    for node in ast.walk(tree):
        about: list[ast.AST] = []
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass"):
            about = [node.args[1]]
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
            about = list(node.comparators)
        elif isinstance(node, ast.Match):
            about = [case.pattern for case in node.cases]
        for item in (x for part in about for x in ast.walk(part)):
            name = getattr(item, "id", None) or getattr(item, "attr", None) or getattr(item, "value", None)
            found |= {name} if isinstance(name, str) else set()
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_parts_say_what_they_can_do_and_nobody_asks_what_they_are(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    assert not _asked(tree) & _parts_of_the_model() - own


def test_the_test_sees_every_way_to_ask():
    ways = (
        "isinstance(x, Fixed)", "isinstance(x, (A, fs.temperature.Fixed))", "isinstance(x, A | Fixed)",
        "type(x) is Fixed", "type(x) in (A, Fixed)", "type(x).__name__ == 'Fixed'", "issubclass(x, Fixed)",
    )  # fmt: skip
    for way in ways:
        assert "Fixed" in _asked(ast.parse(way)), way


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_files_and_functions_are_short(path):
    """About 400 lines, or a reason in the first comment; about 80 lines of code, without signature and docstring."""
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 420 or re.search(r"^# Longer than 400 lines: ", text, re.M), path
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body:
                assert (body[-1].end_lineno or 0) - body[0].lineno < 80, node.name
