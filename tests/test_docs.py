"""The documentation: its code runs, its output is what it says, its links lead somewhere, its tables are current."""

import contextlib
import doctest
import functools
import importlib
import importlib.util
import inspect
import io
import json
import pkgutil
import re
import tomllib
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import pytest

import flowsim as fs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Pages with code; those of the reference are made from docstrings.
WITH_CODE = [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")]
#: Pages that compile for more than ten seconds.
SLOW = {
    "loss.md", "temperature-policy.md", "embeddings.md", "sweeps.md", "start.md", "geometry.md", "index.md", "parts.md",
    "three-ways.md",
}  # fmt: skip
BLOCK = re.compile(r"(<!-- not run: [^\n]*-->\n)?^```(python|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[str, str, str | None]]:
    """(code, where, output that the page shows or None) of every block that is run."""
    text = page.read_text(encoding="utf-8")
    found: list[tuple[str, str, str | None]] = []
    end, code_before = 0, False
    for match in BLOCK.finditer(text):
        skipped, kind, content = match.groups()
        if kind == "python" and not skipped:
            # Line numbers in tracebacks are those of the page.
            line = text[: match.start(3)].count("\n")
            found.append(("\n" * line + content, f"{page.name}:{line + 1}", None))
        elif kind == "text" and code_before and not text[end : match.start()].strip():
            found[-1] = (*found[-1][:2], content)
        end, code_before = match.end(), kind == "python" and not skipped
    return found


def execute(page: Path, shows: bool = True) -> None:
    """Run a page from top to bottom in one namespace; what is printed must be what the page shows below."""
    namespace: dict = {"__name__": page.stem}
    for code, where, shown in blocks(page):
        printed = io.StringIO()
        # Types mix as in a user's session, which optax relies on.
        with contextlib.redirect_stdout(printed), jax.numpy_dtype_promotion("standard"):
            exec(compile(code, str(page), "exec"), namespace)
        if shown is not None and shows:
            assert printed.getvalue() == shown, where


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder that pages may write to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    yield tmp_path
    plt.close("all")


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=p.relative_to(DOCS).as_posix(), marks=[pytest.mark.slow] if p.name in SLOW else [])
        for p in WITH_CODE
    ],
)
def test_pages_run(page, elsewhere):
    execute(page)


def documented() -> list:
    """Modules of the package whose docstrings have examples."""
    found = []
    for info in pkgutil.walk_packages(fs.__path__, "flowsim."):
        path = info.module_finder.path + "/" + info.name.rpartition(".")[2]  # type: ignore[union-attr]
        source = Path(path + ".py") if not info.ispkg else Path(path) / "__init__.py"
        if not info.name.startswith(("flowsim._", "flowsim.torch")) and ">>> " in source.read_text(encoding="utf-8"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", documented())
def test_examples_of_docstrings(name, elsewhere):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    # What an example defines belongs to a user, not to the module.
    examples = doctest.DocTestFinder(exclude_empty=True).find(module, name, extraglobs={"__name__": "__main__"})
    for test in examples:
        runner.run(test, out=report.write, clear_globs=True)
    assert not runner.failures, report.getvalue()


@functools.cache
def public() -> dict[str, object]:
    """The functions and classes that `fs` and its namespaces hand out, by name."""
    found = {}
    for name in dir(fs):
        thing = getattr(fs, name)
        if not inspect.ismodule(thing):
            found[name] = thing
        elif name not in ("clip", "torch"):  # which need PyTorch
            own = [key for key, value in vars(thing).items() if getattr(value, "__module__", "") == thing.__name__]
            for key in getattr(thing, "__all__", own):
                found[f"{name}.{key}"] = getattr(thing, key)
    return {
        name: thing
        for name, thing in found.items()
        if inspect.isfunction(thing) or (inspect.isclass(thing) and not issubclass(thing, Exception))
        if not name.rpartition(".")[2].startswith("_")
    }


def documented_arguments(thing: object) -> set[str]:
    """The names in the sections of arguments and attributes of a docstring."""
    found: set[str] = set()
    for part in re.findall(r"^(?:Args|Attributes):\n((?:    .*\n|\n)*)", inspect.getdoc(thing) + "\n", re.MULTILINE):
        for names in re.findall(r"^    ([*\w]+(?:, [*\w]+)*): ", part, re.MULTILINE):
            found |= {name.strip("*") for name in names.split(", ")}
    return found


#: Classes whose attributes are documented where they are inherited, and those that are not called.
ELSEWHERE = ("Simulation", "TrainingRecord", "Status", "lab.Method")


@pytest.mark.parametrize("name", sorted(set(public()) - set(ELSEWHERE)))
def test_docstrings_name_every_argument(name):
    thing = public()[name]
    arguments = {p for p in inspect.signature(thing).parameters if p not in ("self", "cls")}
    found = documented_arguments(thing)
    # One argument may be explained in the first line.
    assert arguments <= found or (len(arguments) == 1 and not found), arguments - found
    if not inspect.isclass(thing):
        assert found <= arguments


def test_the_main_functions_have_examples():
    for thing in (
        fs.simulate,
        fs.sweep,
        fs.GradientFlow,
        fs.compare,
        fs.claims.run,
        fs.schedules.get,
        fs.theory.predict,
        fs.observables.report,
        fs.plot.overview,
        fs.Result,
        *(getattr(fs.initial, name) for name in ("rings", "cones", "uniform", "matched", "from_arrays")),
    ):
        assert ">>> " in thing.__doc__, thing


# --- what is generated, and links ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate():
    """The script that writes generated parts."""
    spec = importlib.util.spec_from_file_location("generate", DOCS / "_site" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_measurement_is_of_these_claims(generate):
    verdicts = generate.measured()
    assert [v["id"] for v in verdicts] == fs.claims.names()
    for v in verdicts:
        claim = fs.claims.get(v["id"])
        assert (v["statement"], v["source"], v["expected"]) == (claim.statement, claim.source, claim.expected)
        assert v["verdict"] == v["expected"]
        # Limits may have been tightened since.
        numbers = {k: float("nan") if n is None else n for k, n in v["numbers"].items()}
        assert claim.judge(numbers) == v["verdict"]


@pytest.mark.parametrize(
    "part",
    ["claims", "real pairs", "three ways causes", "three ways", pytest.param("clip tables", marks=pytest.mark.slow)],
)
def test_generated_parts_are_current(generate, part):
    path, text, wanted = generate.updated(part)
    assert text == wanted, f"{path.name} is out of date. Run python docs/_site/generate.py."


def test_every_public_module_is_on_a_page():
    pages = [p for p in (DOCS / "reference").glob("*.md") if p.stem != "index"]
    listed = {name for p in pages for name in re.findall(r"^::: (\S+)", p.read_text(encoding="utf-8"), re.MULTILINE)}
    modules = {info.name for info in pkgutil.walk_packages(fs.__path__, "flowsim.") if not info.ispkg}
    # The command line documents itself; the bridge and the claims have pages of their own form; findings tell what each
    # check of a part does. Of others the public modules have pages: formats, checks and methods register themselves.
    inside = (
        "flowsim.cli", "flowsim.clip", "flowsim.claims", "flowsim.conformance", "flowsim.base", "flowsim.numerics",
        "flowsim.data.arrays.", "flowsim.logs.", "flowsim.doctor.", "flowsim.lab.", "flowsim.torch.", "flowsim._",
    )  # fmt: skip
    others = {"flowsim.__main__", "flowsim.provenance", "flowsim.integrate.sweep.grid"}
    assert {name for name in modules if not name.startswith(inside)} - others <= listed
    assert all(
        importlib.util.find_spec(name) for name in listed if not name.startswith(("flowsim.clip.", "flowsim.torch."))
    )
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"reference/{page.name}" in nav for page in pages)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda p: p.relative_to(ROOT).as_posix())
def test_links_and_figures_are_there(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"(?<!`)\]\(([^)\s]+)\)", text)
    for target in (t for t in targets if not t.startswith(("http://", "https://"))):
        path, _, anchor = target.partition("#")
        file = page if not path else (page.parent / path)
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings], target


NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def test_there_are_notebooks_and_they_are_small():
    assert len(NOTEBOOKS) >= 3
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 1.5e6


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_as_executed(path):
    """From top to bottom, without warnings, and without traces of the machine (docs/_site/notebooks.py)."""
    content = json.loads(path.read_text(encoding="utf-8"))
    assert set(content["metadata"]) == {"kernelspec"}
    cells = content["cells"]
    assert "".join(cells[0]["source"]).startswith("# ")
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    for output in outputs:
        assert output["output_type"] != "error"
        assert output.get("name") != "stderr"
        text = "".join(output.get("text", "")) + "".join(output.get("data", {}).get("text/plain", ""))
        assert not re.search(r"/(home|root|tmp|usr|work|Users)/|0x[0-9a-f]{6}|\d (ms|seconds)\b", text), text
    assert all(cell["metadata"] == {} for cell in cells)


def test_the_landing_page_says_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"version {project['version']}" in (DOCS / "index.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_session_of_the_readme_runs(elsewhere):
    """Prompts are stripped; what the session prints depends on the machine, except for the numbers of its floats."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    session, more = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)[:2]
    namespace: dict = {}
    for code, shown in re.findall(r"^In \[\d+\]: (.*)\n(?:Out\[\d+\]: (\d\.\d+)$)?", session, re.MULTILINE):
        value = None
        with contextlib.suppress(SyntaxError):
            value = eval(code, namespace)
        if value is None:
            exec(code, namespace)
        if shown:
            assert value == pytest.approx(float(shown), rel=1e-6)
    exec(more, namespace)
