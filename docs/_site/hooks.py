"""What MkDocs does not do by itself: formulas without JavaScript, executed notebooks, figures, generated tables.

Nothing is fetched: formulas become MathML here, and the font for them comes from an installed package.
"""

import base64
import functools
import hashlib
import html
import importlib.util
import os
import posixpath
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent))
import generate

ROOT = Path(__file__).resolve().parents[2]
#: Executed notebooks, by a hash of what they depend on. Ignored by git.
CACHE = ROOT / ".docs-cache"
ENDINGS = (".png", ".gif")


def on_files(files: Files, config: Any) -> Files:
    """Add the figures, the font of formulas, and the notebooks as pages."""
    for figure in sorted((ROOT / "figures").iterdir()):
        if figure.suffix in ENDINGS:
            files.append(File.generated(config, f"figures/{figure.name}", abs_src_path=str(figure)))
    # Found without importing it: only its font is wanted.
    package = importlib.util.find_spec("ziamath")
    assert package is not None and package.origin is not None
    font = Path(package.origin).parent / "fonts" / "STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, "assets/STIXTwoMath-Regular.ttf", abs_src_path=str(font)))
    for file in [f for f in files if f.src_uri.endswith(".ipynb")]:
        files.remove(file)
        text, pictures = notebook_as_markdown(Path(str(file.abs_src_path)))
        files.append(File.generated(config, file.src_uri.replace(".ipynb", ".md"), content=text))
        folder = posixpath.dirname(file.src_uri)
        for name, data in pictures.items():
            files.append(File.generated(config, f"{folder}/{name}", content=data))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Fill in what is generated; figures lie in the repository's own folder, for readers of the files."""
    for marker, make in generate.TABLES.items():
        markdown = markdown.replace(f"<!-- {marker} -->", make() if f"<!-- {marker} -->" in markdown else "")
    up = "../" * (page.file.src_uri.count("/") + 1)
    return markdown.replace(f"]({up}figures/", f"]({up[3:]}figures/").replace(".ipynb)", ".md)")


def on_page_content(content: str, page: Page, config: Any, files: Files) -> str:
    """Formulas as MathML, rendered by the browser, with their source for readers of the page's text."""
    return re.sub(
        r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>',
        lambda m: formula(html.unescape(m[2] or m[3]).strip(), m[1] == "div", page.file.src_uri),
        content,
        flags=re.DOTALL,
    )


def formula(source: str, display: bool, where: str) -> str:
    """MathML of LaTeX. Commands that were not understood fail the build."""
    try:
        made = convert(source, display="block" if display else "inline")
    except Exception as error:
        raise PluginError(f"{where}: formula {source!r}: {error!r}") from error
    if "\\" in html.unescape(made):
        raise PluginError(f"{where}: formula {source!r} has a command that is not known: {html.unescape(made)}")
    made = made.replace("<math ", f'<math alttext="{html.escape(source)}" ', 1)
    return f'<div class="formula">{made}</div>' if display else made


@functools.cache
def _code_hash() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "flowsim").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def executed(path: Path) -> Any:
    """The notebook with outputs: run from top to bottom in its own folder, any error ends the build."""
    key = hashlib.sha256(path.read_bytes() + _code_hash().encode()).hexdigest()[:24]
    kept = CACHE / f"{path.stem}-{key}.ipynb"
    if not kept.exists():
        notebook = nbformat.read(path, as_version=4)
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
        )
        # Sockets of the file system: nothing listens on the network.
        with tempfile.TemporaryDirectory() as sockets:
            manager = client.create_kernel_manager()
            manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
            client.execute()
        CACHE.mkdir(exist_ok=True)
        nbformat.write(notebook, kept)
    return nbformat.read(kept, as_version=4)


def notebook_as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """A page of an executed notebook, and its pictures by name."""
    parts, pictures = [], {}
    for cell in executed(path).cells:
        if cell.cell_type == "markdown":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        shown, printed = [], ""
        for output in cell.outputs:
            if output.output_type == "stream":
                if output.name == "stderr":
                    raise PluginError(f"{path.name} wrote to stderr: {output.text}")
                printed += output.text
                continue
            data = output.data
            if "image/png" in data:
                name = f"{path.stem}-{len(pictures) + 1}.png"
                pictures[name] = base64.b64decode(data["image/png"])
                shown.append(f"![figure]({name})")
            elif "text/html" in data:
                shown.append("".join(data["text/html"].splitlines()))
            else:
                shown.append(f"```text\n{data['text/plain']}\n```")
        if printed:
            shown.insert(0, f"```text\n{printed.rstrip()}\n```")
        if shown:
            parts.append('<div class="output" markdown="1">\n\n' + "\n\n".join(shown) + "\n\n</div>")
    title, _, rest = "\n\n".join(parts).partition("\n")
    return f"{title}\n\n*This page is the notebook `docs/notebooks/{path.name}`, executed.*\n{rest}", pictures
