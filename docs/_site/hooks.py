"""What MkDocs does not do by itself: formulas without JavaScript, executed notebooks, figures, generated tables.

Nothing is fetched: formulas become MathML here, and the font for them comes from an installed package.
"""

import base64
import functools
import hashlib
import html
import importlib.util
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
import generate
import notebooks

ROOT = Path(__file__).resolve().parents[2]
#: Executed notebooks, by a hash of what they depend on. Ignored by git.
CACHE = ROOT / ".docs-cache"
ENDINGS = (".png", ".gif")


def on_config(config: Any) -> Any:
    """The version, at the foot of every page."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config.copyright = f"flowsim {project['version']}. {config.copyright}"
    return config


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
    """Formulas as MathML, rendered by the browser, with their source for readers of the page's text; code in tables."""
    content = re.sub(
        r'<(span|div) class="arithmatex">(?:\\\((.*?)\\\)|\\\[(.*?)\\\])</\1>',
        lambda m: formula(html.unescape(m[2] or m[3]).strip(), m[1] == "div", page.file.src_uri),
        content,
        flags=re.DOTALL,
    )
    return re.sub(r"(?<!</span>)<code>([^<]+)</code>", lambda m: f"<code>{_inline(m[1])}</code>", content)


def _inline(code: str) -> str:
    """Code within a line: a `\\|` that a table needs is a bar, and names are not broken at their hyphens."""
    code = code.replace("\\|", "|")
    return re.sub(r"(?<!\S)(?=\S*-)\S{2,30}(?!\S)", r'<span class="whole">\g<0></span>', code)


def on_post_build(config: Any) -> None:
    """The site works without a network: no page loads anything from elsewhere. Signatures are set in lines."""
    for path in sorted(Path(config.site_dir).rglob("*.html")):
        text = path.read_text(encoding="utf-8")
        loads = re.findall(
            r"<(?:script|img|link|iframe|source|video)\b[^>]*?(?:src|href)=[\"']?((?:https?:)?//[^\"'> ]+)", text
        )
        if loads:
            raise PluginError(f"{path.name} loads {loads[0]} from the network.")
        for block in re.findall(r'<div class="doc-signature[^>]*>.*?</code>', text, re.DOTALL):
            line = max(html.unescape(re.sub(r"<[^>]+>", "", block)).splitlines(), key=len)
            if len(line) > 100:
                raise PluginError(f"{path.name}: a signature is not formatted (pip install ruff): {line}")
    for path in sorted(Path(config.site_dir).rglob("*.css")):
        if found := re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", path.read_text(encoding="utf-8")):
            raise PluginError(f"{path.name} loads {found[0]} from the network.")


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
    """The notebook, executed, from the cache if nothing has changed. What is stored must print the same."""
    key = hashlib.sha256(path.read_bytes() + _code_hash().encode()).hexdigest()[:24]
    kept = CACHE / f"{path.stem}-{key}.ipynb"
    if not kept.exists():
        notebook = notebooks.executed(path)
        CACHE.mkdir(exist_ok=True)
        nbformat.write(notebook, kept)
    found = nbformat.read(kept, as_version=4)
    if not notebooks.agree(notebooks.printed(nbformat.read(path, as_version=4)), notebooks.printed(found)):
        raise PluginError(f"The outputs of {path.name} are out of date. Run python docs/_site/notebooks.py.")
    return found


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
