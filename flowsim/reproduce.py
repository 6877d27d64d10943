"""`flowsim reproduce`: every figure from nothing, with records that are reused while they are still true.

An experiment is a module `experiments/NAME.py` with

- a docstring: what the figure shows, and its source;
- `SEED`, and `FULL` and `QUICK`: the sizes of the two variants, plain data (never tolerances);
- `compute(quick, progress) -> xarray.Dataset`: the numbers. `progress(jobs, text)` yields the jobs and
  reports how far they are;
- `plot(record) -> matplotlib.figure.Figure`: the figure, from the record alone.

The record of an experiment lies in OUT/records/NAME.nc, its figures in OUT/NAME.png and OUT/NAME.pdf. A
record is reused while its configuration, its seed and the source that computed it are the same.
"""

import dataclasses
import hashlib
import importlib.util
import json
import subprocess
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

import flowsim
from flowsim import _workers
from flowsim._files import write_atomically
from flowsim.errors import FlowsimError, unknown_name
from flowsim.result import read_netcdf, write_netcdf
from flowsim.solve import versions

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PACKAGE = Path(flowsim.__file__).resolve().parent
DEFAULT_OUT = Path("figures")
RECORD_VERSION = 1
#: Entries of a PDF that would differ from run to run or version to version.
_PDF_STAMPS = ("CreationDate", "Creator", "Producer")
#: Package files that show numbers but do not make them.
_PRESENTATION = ("plot.py", "cli/", "reproduce.py", "compare.py", "claims/", "_experiments/")

Job = TypeVar("Job")


class Tracker(Protocol):
    """Yields the jobs one by one and reports how far they are; `text` names the stage."""

    def __call__(self, jobs: Collection[Job], text: str = "") -> Iterable[Job]: ...


def silent(jobs: Collection[Job], text: str = "") -> Iterable[Job]:
    """A tracker that reports nothing."""
    return jobs


@dataclasses.dataclass(frozen=True)
class Figures:
    """What became of one experiment: its files, the seconds it took, and whether its record was reused."""

    name: str
    record: Path
    files: tuple[Path, ...]
    seconds: float
    reused: bool


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What `run` did: one entry per figure, and the verdicts of the claims if they were run."""

    figures: tuple[Figures, ...]
    claims: tuple[dict[str, Any], ...]

    @property
    def ok(self) -> bool:
        """Whether every claim came out as expected."""
        return all(c["verdict"] == c["expected"] for c in self.claims)


def experiments_folder(current: Path | None = None) -> Path:
    """Where the experiments are: in the checkout one stands in, else in the one imported, else packaged.

    Raises `FlowsimError` if there are none.
    """
    current = Path.cwd() if current is None else current
    for checkout in (current, PACKAGE.parent):
        if _is_checkout(checkout):
            return (checkout / "experiments").resolve()
    packaged = PACKAGE / "_experiments"
    if packaged.is_dir():
        return packaged
    raise FlowsimError("There are no experiments here. Run this in a checkout of flowsim, or reinstall it.")


def experiment_names(folder: Path | None = None) -> list[str]:
    """The names of all experiments: the paper's figures first."""
    folder = experiments_folder() if folder is None else folder
    names = [p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")]
    return sorted(names, key=lambda n: (not n.startswith("fig"), n))


def describe(name: str, folder: Path | None = None) -> str:
    """The first line of an experiment's docstring."""
    return (_load(name, experiments_folder() if folder is None else folder).__doc__ or "").partition("\n")[0]


def run(
    names: Sequence[str] | None = None,
    *,
    quick: bool = False,
    force: bool = False,
    out: Path | str | None = None,
    console: Console | None = None,
    folder: Path | None = None,
    claims: bool | None = None,
) -> Reproduction:
    """Compute and draw the named experiments; without names, all of them and the claims table.

    - `quick`: smaller sizes at the same tolerances; default folder `figures/quick`.
    - `force`: compute again even where a valid record exists.
    - `out`: folder for figures and records; default `figures`.
    - `console`: where progress goes; default stderr. `folder`: of the experiments. `claims`: run them or not.

    Every record is written as soon as it is computed, so that interrupted work resumes at the next
    experiment. Raises `FlowsimError` for unknown names and places that cannot be written to.
    """
    console = Console(stderr=True) if console is None else console
    folder = experiments_folder() if folder is None else folder
    known = experiment_names(folder)
    for name in names or ():
        if name not in known:
            raise unknown_name("experiment", name, known)
    chosen = list(dict.fromkeys(names or known))
    out = Path(out) if out is not None else (DEFAULT_OUT / "quick" if quick else DEFAULT_OUT)
    _check_writable(out)
    done = _reproduce(chosen, folder, out, quick, force, console)
    _show_figures(done, console)
    verdicts: tuple[dict[str, Any], ...] = ()
    if not names if claims is None else claims:
        verdicts = _run_claims(quick, out, console)
    return Reproduction(done, verdicts)


# --- experiments --------------------------------------------------------------------------------------


def _reproduce(
    names: Sequence[str], folder: Path, out: Path, quick: bool, force: bool, console: Console
) -> tuple[Figures, ...]:
    """Compute what has no valid record in several processes, draw in this one."""
    modules = {name: _load(name, folder) for name in names}
    stamps = {name: _stamp(name, module, folder, quick) for name, module in modules.items()}
    reused = [n for n in names if not force and _valid_record(_record_path(out, n), stamps[n]) is not None]
    missing = [n for n in names if n not in reused]
    done: dict[str, Figures] = {}

    def draw(name: str, seconds: float) -> None:
        begin = time.perf_counter()
        path = _record_path(out, name)
        files = _draw(modules[name], read_netcdf(path), out, name)
        seconds += time.perf_counter() - begin
        done[name] = Figures(name, path, files, seconds, name in reused)
        if not console.is_terminal:
            _say(console, f"{name}: {'reused' if name in reused else 'computed'}, {seconds:.1f} s")

    with _bars(console) as bars:
        tasks: dict[str, TaskID] = {}

        def heard(name: str, text: str, completed: int, total: int | None) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task("computing", total=None, name=name)
                if not console.is_terminal:
                    _say(console, f"{name}: computing")
            bars.update(tasks[name], description=text, completed=completed, total=total)

        for name in reused:
            draw(name, 0.0)
        calls = [(_compute, (n, folder, quick, stamps[n], _record_path(out, n))) for n in missing]
        for index, seconds in _workers.run(calls, heard, quick):
            bars.remove_task(tasks.pop(missing[index]))
            draw(missing[index], seconds)
    return tuple(done[name] for name in names)


def _compute(say: _workers.Say, name: str, folder: Path, quick: bool, stamp: dict[str, Any], path: Path) -> float:
    """Compute one experiment and write its record; the seconds it took."""
    begin = time.perf_counter()
    module = _load(name, folder)
    say(name, "computing", 0, None)

    def tracker(jobs: Collection[Job], text: str = "") -> Iterator[Job]:
        say(name, text, 0, len(jobs))
        for count, job in enumerate(jobs, start=1):
            yield job
            say(name, text, count, len(jobs))

    record = module.compute(quick, tracker)
    seconds = time.perf_counter() - begin
    record.attrs.update(
        stamp,
        title=(module.__doc__ or "").partition("\n")[0],
        versions=json.dumps(versions()),
        revision=_revision(folder),
        seconds=seconds,
    )
    write_netcdf(record, path)
    return seconds


def _record_path(out: Path, name: str) -> Path:
    return out / "records" / f"{name}.nc"


def _draw(module: ModuleType, record: Any, out: Path, name: str) -> tuple[Path, ...]:
    from flowsim import plot

    with plot.paper_style():
        figure = module.plot(record)
        # No dates and no versions inside: the same numbers give the same bytes.
        png = _save_figure(figure, out / f"{name}.png", {"Software": None})
        pdf = _save_figure(figure, out / f"{name}.pdf", dict.fromkeys(_PDF_STAMPS))
    plot.plt.close(figure)
    return png, pdf


def _save_figure(figure: "Figure", path: Path, metadata: dict[str, Any]) -> Path:
    def save(temporary: str) -> None:
        figure.savefig(temporary, format=path.suffix[1:], metadata=metadata)

    return write_atomically(path, save)


def _check_writable(out: Path) -> None:
    try:
        (out / "records").mkdir(parents=True, exist_ok=True)
        for place in (out, out / "records"):
            tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise FlowsimError(
            f"Cannot write to the folder {str(out)!r}: {error.strerror or error}. Choose another with --out."
        ) from None


# --- modules and records ------------------------------------------------------------------------------


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return (
        (folder / "experiments" / "fig2.py").is_file()
        and project.is_file()
        and 'name = "flowsim"' in project.read_text(encoding="utf-8", errors="replace")
    )


def _load(name: str, folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"flowsim_experiments_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _stamp(name: str, module: ModuleType, folder: Path, quick: bool) -> dict[str, Any]:
    """What must agree for a record to be reused."""
    sizes = module.QUICK if quick else module.FULL
    return {
        "kind": "flowsim record",
        "schema_version": RECORD_VERSION,
        "experiment": name,
        "configuration": json.dumps({"quick": quick, **sizes}, sort_keys=True),
        "seed": int(module.SEED),
        "source": _source_hash(name, folder),
    }


def _source_hash(name: str, folder: Path) -> str:
    """SHA-256 of everything a record depends on: the experiment, its reference numbers, the package."""
    source = folder / f"{name}.py"
    # The bridge, and the records of training, matter where an experiment reads them.
    real = "flowsim.clip" in source.read_text(encoding="utf-8") or '.nc"' in source.read_text(encoding="utf-8")
    apart = _PRESENTATION if real else (*_PRESENTATION, "clip/")
    files = [source, *sorted((folder / "reference").glob("*.*" if real else "*.csv"))]
    named = [(p.relative_to(folder).as_posix(), p) for p in files]
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE).as_posix()
        if not inside.startswith(apart):
            named.append((f"flowsim/{inside}", path))
    digest = hashlib.sha256()
    for label, path in named:
        content = path.read_bytes()
        digest.update(f"{label}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _valid_record(path: Path, stamp: dict[str, Any]) -> Any:
    """The stored record if it matches, else None; what cannot be read is computed again."""
    if not path.is_file():
        return None
    try:
        record = read_netcdf(path)
    except FlowsimError:
        return None
    return record if all(record.attrs.get(key) == value for key, value in stamp.items()) else None


def _revision(folder: Path) -> str:
    """The revision of the checkout that holds the experiments; "" outside of one."""
    if not (folder.parent / ".git").exists():
        return ""
    command = ["git", "-C", str(folder.parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


# --- what the user sees -------------------------------------------------------------------------------


def _bars(console: Console) -> Progress:
    """Progress bars, one per task; invisible where the console is not a terminal."""
    columns = (
        SpinnerColumn(),
        TextColumn("[bold]{task.fields[name]}"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False)


def _show_figures(done: Iterable[Figures], console: Console) -> None:
    table = Table("figure", "seconds", "record", title="Figures", title_justify="left")
    table.add_column("files", overflow="fold")
    for item in done:
        files = "\n".join(str(f) for f in (*item.files, item.record))
        table.add_row(item.name, f"{item.seconds:.1f}", "reused" if item.reused else "computed", files)
    console.print(table)


def _run_claims(quick: bool, out: Path, console: Console) -> tuple[dict[str, Any], ...]:
    """Run all claims (the cheap ones if `quick`), write OUT/claims.json and print the table."""
    from flowsim import claims

    with _bars(console) as bars:
        task = bars.add_task("running", total=None, name="claims")
        if not console.is_terminal:
            _say(console, "claims: running")

        def advance(claim: str, done: int, total: int) -> None:
            bars.update(task, description=claim, completed=done, total=total)

        only = claims.CHEAP if quick else None
        verdicts = tuple(v.to_dict() for v in claims.run_all(quick, advance, only=only, processes=True))
    text = json.dumps(verdicts, indent=2) + "\n"
    write_atomically(out / "claims.json", lambda path: Path(path).write_text(text, encoding="utf-8"))
    table = Table("claim", "statement", "verdict", "expected", title="Claims", title_justify="left")
    for verdict in verdicts:
        table.add_row(*(str(verdict[key]) for key in ("id", "statement", "verdict", "expected")))
    console.print(table)
    if quick:
        _say(console, f"{len(verdicts)} of {len(claims.names())} claims; `flowsim claims --quick` measures all.")
    return verdicts
