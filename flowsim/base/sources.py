"""Which code made a file: hashes of source that depend on what the code does, not on its comments, and the stamps in
figures and films, by which a test can tell whether the code would still draw the same."""

import ast
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flowsim.errors import FlowsimError

PACKAGE = Path(__file__).resolve().parents[1]
#: Package files that show numbers or distribute work, but do not compute numbers.
PRESENTATION = (
    "plot/", "cli/", "reproduce.py", "comparison/", "claims/", "explorer/", "clip/", "torch/", "heads/", "logs/",
    "lab/", "doctor/", "model/extend.py", "_experiments/", "base/html.py", "base/notice.py", "base/sources.py",
    "base/processes.py", "records/netcdf.py", "progress.py",
)  # fmt: skip
#: Folders and files with the drawing code that experiments share.
DRAWING = ("plot", "clip/figures.py")
#: Names under which experiments import the modules of these files.
_CALLED = ("plot", "plot_", "figures")
#: Fields of the syntax tree that do not affect what is computed.
_IGNORED = ("ctx", "kind", "type_comment", "type_params", "annotation", "returns")


@functools.lru_cache(maxsize=256)
def tree(source: str) -> ast.Module:
    """The syntax of a module without docstrings, checks of the input, and what only type checkers see."""
    found = ast.parse(source)
    for node in ast.walk(found):
        for body in (getattr(node, field, None) for field in ("body", "orelse", "finalbody")):
            if isinstance(body, list):
                body[:] = [s for statement in body for s in _executed(statement) if not _says_only(s)]
    return found


def _executed(statement: ast.stmt) -> list[ast.stmt]:
    """The statement, or what runs instead of an `if TYPE_CHECKING:`."""
    if isinstance(statement, ast.If) and getattr(statement.test, "id", "") == "TYPE_CHECKING":
        return statement.orelse
    return [statement]


def _says_only(statement: ast.AST) -> bool:
    """Whether a statement is a docstring, or a check of the input such as `check(condition, message)`."""
    if not isinstance(statement, ast.Expr):
        return False
    value = statement.value
    called = getattr(value.func, "id", "") if isinstance(value, ast.Call) else ""
    return isinstance(value, ast.Constant) or called in ("check", "check_number")


def _plain(node: Any) -> Any:
    if isinstance(node, ast.Raise):
        return "raise"
    if isinstance(node, ast.AST):
        fields = ((name, getattr(node, name, None)) for name in node._fields if name not in _IGNORED)
        return [type(node).__name__, *([name, _plain(value)] for name, value in fields if value not in (None, []))]
    return [_plain(item) for item in node] if isinstance(node, list) else repr(node)


@functools.lru_cache(maxsize=256)
def _code(part: ast.AST) -> bytes:
    return str(_plain(part)).encode()


def digest(parts: Iterable[tuple[str, ast.AST | bytes]]) -> str:
    """SHA-256 of named parts: syntax trees, or bytes."""
    total = hashlib.sha256()
    for label, part in parts:
        content = part if isinstance(part, bytes) else _code(part)
        total.update(f"{label}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def imported(source: str) -> set[str]:
    """The files of the package that a module names in its imports, e.g. "claims/sigmoid.py"."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowsim."):
            inside = (node.module or "").removeprefix("flowsim.").replace(".", "/")
            found |= {f"{inside}.py", *(f"{inside}/{alias.name}.py" for alias in node.names)}
    return found


def computing_hash(source: Path, package: Path = PACKAGE) -> str:
    """Hash of everything that a record depends on: the experiment, its reference numbers, the package."""
    text = source.read_text(encoding="utf-8")
    # `clip/`, what it uses of `torch/`, and records of training matter only to experiments that read them, `heads/` to
    # those that train heads.
    real = "flowsim.clip" in text or '.nc"' in text
    used_here = {"clip/": real, "torch/": real, "heads/": "flowsim.heads" in text}
    apart = tuple(p for p in PRESENTATION if not used_here.get(p, False))
    named: list[tuple[str, ast.AST | bytes]] = [(source.name, _computing(tree(text)))]
    folder = source.parent
    for path in sorted((folder / "reference").glob("*.*" if real else "*.csv")):
        named.append((path.relative_to(folder).as_posix(), path.read_bytes()))
    used = imported(text)
    for path in sorted(package.rglob("*.py")):
        inside = path.relative_to(package).as_posix()
        if inside in used or not inside.startswith(apart):
            named.append((f"flowsim/{inside}", tree(path.read_text(encoding="utf-8"))))
    return digest(named)


def _computing(module: ast.Module) -> ast.Module:
    """An experiment without the functions that only its drawing needs."""
    functions = {node.name: node for node in module.body if isinstance(node, ast.FunctionDef)}
    waiting = [node for node in module.body if not isinstance(node, ast.FunctionDef)]
    waiting += [functions[name] for name in ("compute",) if name in functions]
    needed: set[str] = set()
    while waiting:
        node = waiting.pop()
        needed |= {node.name} if isinstance(node, ast.FunctionDef) else set()
        waiting += [functions[name] for name in _uses(node) - needed if name in functions]
    kept = [node for node in module.body if not isinstance(node, ast.FunctionDef) or node.name in needed]
    return ast.Module(kept, [])


def drawing_hash(source: Path | str, package: Path = PACKAGE) -> str:
    """Hash of drawing code: a file, or a function of `flowsim.plot`, with all shared drawing code that it uses."""
    definitions: dict[str, list[ast.AST]] = {}
    for path in (p for place in DRAWING for p in sorted([package / place, *(package / place).rglob("*.py")])):
        for node in tree(path.read_text(encoding="utf-8")).body if path.is_file() else ():
            for name in _defined(node):
                definitions.setdefault(name, []).append(node)
    whole = tree(source.read_text(encoding="utf-8")) if isinstance(source, Path) else None
    # Every figure is drawn in the style of the paper.
    waiting = {"paper_style"} | ({str(source)} if whole is None else _uses(whole, names=False))
    reached: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in definitions and name not in reached:
            reached.add(name)
            waiting |= set().union(*(_uses(node) for node in definitions[name]))
    parts: list[tuple[str, ast.AST | bytes]] = [] if whole is None else [("figure", whole)]
    return digest(parts + [(name, node) for name in sorted(reached) for node in definitions[name]])


def _defined(node: ast.AST) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    flat = [x for t in targets for x in (t.elts if isinstance(t, ast.Tuple) else [t])]
    return [x.id for x in flat if isinstance(x, ast.Name)]


def _uses(node: ast.AST, names: bool = True) -> set[str]:
    """Names that a piece of code uses; with `names=False` only those from a module with drawing code."""
    found = set()
    for item in ast.walk(node):
        if isinstance(item, ast.Attribute):
            base = item.value
            if (base.id if isinstance(base, ast.Name) else getattr(base, "attr", None)) in _CALLED:
                found.add(item.attr)
        elif isinstance(item, ast.ImportFrom) and item.module == "flowsim.plot":
            found |= {alias.name for alias in item.names}
        elif names and isinstance(item, ast.Name):
            found.add(item.id)
    return found


# --- stamps -------------------------------------------------------------------------------------------


def write_stamp(facts: Mapping[str, Any]) -> str:
    """One line of ASCII for the metadata of a picture; the same facts give the same text."""
    return "flowsim " + json.dumps(dict(facts), sort_keys=True)


def read_stamp(path: Path) -> dict[str, Any]:
    """The facts in the stamp of a figure or film; `FlowsimError` for a file without one."""
    content = path.read_bytes()
    if path.suffix == ".gif":  # whose comments are cut into blocks
        from PIL import Image

        with Image.open(path) as film:
            content = bytes(film.info.get("comment", b""))
    match = re.search(rb"flowsim (\{[\x20-\x7e]*\})", content)
    if match is None:
        raise FlowsimError(f"{str(path)!r} carries no stamp of flowsim: it was drawn by an older version.")
    # PDF escapes parentheses and backslashes with a backslash.
    text = re.sub(rb"\\([()\\])", rb"\1", match[1]) if path.suffix == ".pdf" else match[1]
    # Bytes of the file behind the stamp, such as a checksum, may look like text.
    return json.JSONDecoder().raw_decode(text.decode("ascii"))[0]
