"""The documentation: its code runs, its output is what it says, its links lead somewhere, its tables are current."""

import contextlib
import doctest
import importlib
import importlib.util
import io
import json
import pkgutil
import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

import flowsim as fs

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
#: Pages with code; those of the reference are made from docstrings.
WITH_CODE = [p for p in PAGES if "```python" in p.read_text(encoding="utf-8")]
#: Pages that compile for more than ten seconds.
SLOW = {"loss.md", "temperature-policy.md", "embeddings.md", "sweeps.md", "start.md", "geometry.md"}
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
        with contextlib.redirect_stdout(printed):
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
        if not info.name.startswith("flowsim._") and ">>> " in source.read_text(encoding="utf-8"):
            found.append(info.name)
    return found


@pytest.mark.parametrize("name", documented())
def test_examples_of_docstrings(name, elsewhere):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    report = io.StringIO()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(test, out=report.write, clear_globs=True)
    assert not runner.failures, report.getvalue()


def test_the_main_functions_have_examples():
    for thing in (
        fs.simulate, fs.sweep, fs.GradientFlow, fs.compare, fs.claims.run, fs.schedules.get, fs.theory.predict,
        fs.observables.report, fs.plot.overview, fs.Result,
        *(getattr(fs.initial, name) for name in ("rings", "cones", "uniform", "matched", "from_arrays")),
    ):  # fmt: skip
        assert ">>> " in thing.__doc__, thing
