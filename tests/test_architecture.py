"""The house: which room may import which, what the core may load, and what it must leave alone."""

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import flowsim as fs

PACKAGE = Path(fs.__file__).parent
BASE = {"errors", "_arrays", "_blocks", "_executors", "_files", "_notice", "_sources", "_workers"}

#: room -> the rooms it may import; anything may import BASE. Rooms further down know more.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "_arrays": set(),
    "_blocks": set(),
    "_files": set(),
    "_notice": set(),
    "_sources": set(),
    "_workers": set(),
    "_executors": set(),
    "config": set(),
    "observables": set(),
    "times": set(),
    "theory": {"result", "times"},
    "numerics": set(),
    "temperature": set(),
    "swaps": set(),
    "pairing": set(),
    "initial": set(),
    "losses": {"numerics", "pairing"},
    "rules": set(),
    "geometry": {"initial"},
    "encoders": {"geometry", "initial"},
    "schedules": {"config", "temperature", "swaps"},
    "flow": {"config", "encoders", "geometry", "initial", "losses", "numerics", "pairing", "rules", "schedules",
             "swaps"},
    "extend": {"flow", "schedules"},
    "result": {"initial"},
    "chain": {"encoders", "flow", "numerics", "observables", "result", "temperature"},
    "discrete": {"chain", "flow", "geometry", "pairing", "result", "rules", "swaps", "temperature"},
    "solve": {
        "chain", "config", "discrete", "flow", "geometry", "initial", "losses", "numerics", "observables", "result",
        "rules", "temperature", "theory", "times",
    },
    "sweeps": {"chain", "config", "flow", "initial", "numerics", "pairing", "result", "solve", "times"},
    "plot": {"observables", "result", "theory"},
    "clip": {
        "config", "losses", "observables", "pairing", "plot", "result", "schedules", "swaps", "temperature",
    },
    "explore": {
        "flow", "geometry", "initial", "pairing", "plot", "result", "schedules", "solve", "swaps", "temperature",
        "theory",
    },
    "compare": {"flow", "initial", "pairing", "plot", "result", "schedules", "solve", "temperature", "theory"},
    "claims": {
        "config", "encoders", "flow", "geometry", "initial", "losses", "numerics", "observables", "pairing", "result",
        "rules", "schedules", "solve", "swaps", "sweeps", "temperature", "theory",
    },
    "reproduce": {"claims", "plot", "result", "solve"},
    "cli": {
        "claims", "clip", "compare", "config", "flow", "geometry", "initial", "observables", "plot", "reproduce",
        "result", "schedules", "solve", "sweeps",
    },
    "__main__": {"cli"},
}  # fmt: skip
#: The top level names everything; it is no room. The experiments come last and use the top level.
OUTSIDE = ("__init__", "_experiments")


def sources() -> list[Path]:
    return [p for p in sorted(PACKAGE.rglob("*.py")) if "_experiments" not in p.parts]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported_modules(path: Path) -> set[str]:
    """Dotted names of everything a file imports, also inside functions; names of `from a import b` as a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            parents = ("flowsim", *path.relative_to(PACKAGE).with_suffix("").parts)[: -node.level or None]
            base = ".".join([*(parents if node.level else ()), *([node.module] if node.module else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
    return found


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a file imports; a name taken from the top level counts as the room that defines it."""
    rooms = set()
    for name in imported_modules(path):
        head, _, rest = name.partition(".")
        if head != "flowsim" or not rest:
            continue
        first = rest.partition(".")[0]
        if first in MAY_IMPORT:
            rooms.add(first)
        else:
            rooms.add(inspect.getmodule(getattr(fs, first)).__name__.split(".")[1])  # pyright: ignore
    return rooms


def test_every_room_is_in_the_table():
    rooms = {room(p) for p in sources()} - set(OUTSIDE)
    assert rooms <= MAY_IMPORT.keys()


def test_the_table_has_no_circles():
    reached: dict[str, set[str]] = {}

    def below(name: str, above: tuple[str, ...] = ()) -> set[str]:
        assert name not in above, f"circle: {' -> '.join([*above, name])}"
        if name not in reached:
            reached[name] = set().union(*({n} | below(n, (*above, name)) for n in MAY_IMPORT[name]))
        return reached[name]

    for name in MAY_IMPORT:
        below(name)


@pytest.mark.parametrize("path", sources(), ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_go_one_way(path):
    if room(path) in OUTSIDE:
        return
    allowed = MAY_IMPORT[room(path)] | BASE | {room(path)}
    assert imported_rooms(path) <= allowed


@pytest.mark.parametrize("name", ["observables", "theory", "numerics"])
def test_measures_and_closed_forms_know_no_simulator(name):
    """Training, theory and simulation share them, so they may lean on none of the three."""
    rooms = set().union(*(imported_rooms(p) for p in sources() if room(p) == name))
    # A prediction is returned as a `Result`, on the same grid of times.
    assert rooms <= BASE | {name} | ({"result", "times"} if name == "theory" else set())


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
