"""What an interactive session sees of the package: completion offers public names only, signatures can be read."""

import importlib
import inspect
import pkgutil
import subprocess
import sys
import types

import pytest

import flowsim as fs

#: Need the extra `clip`.
WITH_TORCH = {
    f"flowsim.clip.{name}"
    for name in (
        "batches",
        "checkpoint",
        "contrast",
        "embed",
        "evaluate",
        "frozen",
        "identity",
        "inputs",
        "kernels",
        "labelled",
        "learner",
        "locked",
        "loop",
        "memory",
        "models",
        "record",
        "session",
        "stack",
        "stacked",
        "tangent",
        "towers",
        "training",
    )
} | {
    f"flowsim.torch.{name}"
    for name in (
        "callbacks",
        "complaints",
        "controller",
        "device",
        "groups",
        "kernels",
        "metrics",
        "monitor",
        "outputs",
        "policies",
        "swaps",
    )
}
MODULES = sorted(
    info.name
    for info in pkgutil.walk_packages(fs.__path__, "flowsim.")
    if not any(part.startswith("_") for part in info.name.split(".")) and info.name not in WITH_TORCH
)
#: What users complete: `fs.plot.` and so on.
SHOWN = [name for name in fs.__all__ if isinstance(getattr(fs, name), types.ModuleType)]


@pytest.mark.parametrize("name", MODULES)
def test_modules_list_what_they_define(name):
    module = importlib.import_module(name)
    module = sys.modules[name]  # `flowsim.compare` is also a function
    listed = dir(module)
    own = {
        key
        for key, value in vars(module).items()
        if (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == name
        and not key.startswith("_")
    }
    if hasattr(module, "__all__"):
        assert sorted(listed) == sorted(module.__all__)
    else:
        assert own <= set(listed)
    for key in listed if name not in ("flowsim.clip", "flowsim.torch") else ():  # which load PyTorch
        value = getattr(module, key)
        assert not key.startswith("_")
        assert not isinstance(value, types.ModuleType)
        assert getattr(value, "__module__", "flowsim").startswith("flowsim") or not isinstance(value, type)
    # Neither imports nor what annotations need.
    assert not {"np", "jax", "jnp", "eqx", "Any", "Callable", "Path", "check", "annotations"} & set(listed) - own or (
        name in ("flowsim.model.extend", "flowsim.conformance")
    )


@pytest.mark.parametrize("name", SHOWN)
def test_completion_in_ipython(name):
    completer = pytest.importorskip("IPython.core.completer")
    text = f"fs.{name}."
    with completer.provisionalcompleter():
        found = completer.IPCompleter(namespace={"fs": fs}, use_jedi=False).completions(text, len(text))
        assert {match.text.rpartition(".")[2] for match in found} == set(dir(getattr(fs, name)))


def test_the_plot_module_completes_its_drawings():
    assert {"overview", "gap", "sphere", "animate"} <= set(dir(fs.plot))
    assert not {"np", "Axes", "Figure", "observables", "theory", "contextlib", "Result"} & set(dir(fs.plot))


def test_constants_are_listed_and_type_variables_are_not():
    assert {"FIGURE_2_HEIGHT", "Start", "rings"} <= set(dir(fs.initial))
    assert {"REGISTRY", "report"} <= set(dir(fs.observables))
    assert not {"P", "R", "Rows", "Number"} & set(dir(fs.observables))


@pytest.mark.parametrize("first", ["flowsim.clip.figures", "flowsim.numerics.tiled", "flowsim.claims.base"])
def test_whatever_is_imported_first(first):
    """A package imports its modules before it is put into its own."""
    code = (
        f"import sys, {first}; print(any(n.startswith('_') or n in ('np', 'Any') for n in dir(sys.modules['{first}'])))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "False"


def shown() -> list[tuple[str, object]]:
    """Functions and classes that users call."""
    found = {name: getattr(fs, name) for name in fs.__all__ if name not in SHOWN}
    for module in SHOWN:
        if module not in ("clip", "torch"):
            found |= {f"{module}.{key}": getattr(getattr(fs, module), key) for key in dir(getattr(fs, module))}
    callables = {k: v for k, v in found.items() if inspect.isclass(v) or inspect.isfunction(v)}
    return sorted((k, v) for k, v in callables.items() if not (inspect.isclass(v) and issubclass(v, Exception)))


@pytest.mark.parametrize(("name", "thing"), shown(), ids=[name for name, _ in shown()])
def test_signatures_can_be_read(name, thing):
    text = str(inspect.signature(thing))
    for noise in ("numpy._typing", "np.float64(", "object at 0x", "NestedSequence", "jax._src"):
        assert noise not in text
    assert max(map(len, map(str, inspect.signature(thing).parameters.values())), default=0) < 250


def test_the_signatures_of_the_first_steps():
    simulate = inspect.signature(fs.simulate).parameters
    assert str(simulate["ts"]) == "ts: 'ArrayLike | None' = None"
    rings = inspect.signature(fs.initial.rings).parameters
    assert str(rings["height"]) == f"height: Any = {(5**0.5 - 1) / 4!r}"
    assert str(inspect.signature(fs.observables.alignment)) == "(image: 'Rows', text: 'Rows') -> 'Number'"
