"""Notebooks are stored as executed, so that readers of the files see what readers of the site see.

    python docs/_site/notebooks.py            # executes them and stores the outputs
    python docs/_site/notebooks.py --check    # says whether what is stored is what they print

Needs the extra `docs`.
"""

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
_NUMBER = re.compile(r"[-−]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")


def executed(path: Path) -> Any:
    """The notebook with outputs: run from top to bottom in its own folder. Raises at any error, and at warnings."""
    notebook = nbformat.read(path, as_version=4)
    os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # Sockets of the file system: nothing listens on the network.
    with tempfile.TemporaryDirectory() as sockets:
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", f"{sockets}/kernel"
        client.execute()
    # The version of Python, and whatever else tells of one machine.
    notebook.metadata = nbformat.from_dict({"kernelspec": notebook.metadata["kernelspec"]})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", ()):
            if output.get("name") == "stderr":
                raise SystemExit(f"{path.name} wrote to stderr: {output.text}")
    return notebook


def printed(notebook: Any) -> str:
    """All text of the outputs."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return "\n".join(output.get("text") or output["data"].get("text/plain", "") for output in outputs)


def agree(stored: str, found: str) -> bool:
    """Whether two texts are the same up to rounding: numbers to 2 %, or both below 1e-6."""
    if _NUMBER.sub("", stored) != _NUMBER.sub("", found):
        return False
    pairs = zip(_NUMBER.findall(stored), _NUMBER.findall(found), strict=True)
    numbers = [(float(a.replace("−", "-")), float(b.replace("−", "-"))) for a, b in pairs]
    return all(abs(a - b) <= max(0.02 * abs(a), 1e-6) for a, b in numbers)


def main() -> int:
    """Execute all; store them, or with `--check` count those whose stored text is another."""
    stale = 0
    for path in sorted(FOLDER.glob("*.ipynb")):
        fresh = executed(path)
        if not agree(printed(nbformat.read(path, as_version=4)), printed(fresh)):
            stale += 1
            print(f"{path.name} {'is out of date' if '--check' in sys.argv else 'has changed'}")
        if "--check" not in sys.argv:
            nbformat.write(fresh, path)
    return stale if "--check" in sys.argv else 0


if __name__ == "__main__":
    raise SystemExit(main())
