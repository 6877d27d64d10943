"""`flowsim reproduce`: every figure from nothing, with records that are reused while they are still true.

An experiment is a module `experiments/NAME.py` with

- a docstring: what the figure shows, and its source;
- `SEED`, and `FULL` and `QUICK`: the sizes of the two variants, plain data (never tolerances);
- `compute(quick, progress) -> xarray.Dataset`: the numbers; it calls `progress` (`flowsim.progress`), most simply
  by `for job in track(jobs, progress, "integrating")`;
- `plot(record) -> matplotlib.figure.Figure`: the figure, from the record alone.

The record of an experiment lies in OUT/records/NAME.nc, its figures in OUT/NAME.png and OUT/NAME.pdf. A
record is reused while its configuration, its seed and the code that computed it are the same. Figures carry a stamp
of the code that computed and drew them: a test compares those in the repository with the code there.
"""
# Longer than 400 lines: one pipeline, from the source of an experiment to its figures and the table of claims.

import dataclasses
import hashlib
import importlib.util
import inspect
import json
import subprocess
import time
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table

import flowsim
from flowsim.base import processes
from flowsim.base.checks import check, shown
from flowsim.base.files import check_writable, write_text
from flowsim.base.sources import computing_hash, drawing_hash, write_stamp
from flowsim.errors import FlowsimError, unknown_name
from flowsim.progress import Progress
from flowsim.provenance import versions
from flowsim.records.netcdf import read_netcdf, write_netcdf

PACKAGE = Path(flowsim.__file__).resolve().parent
#: Full and quick figures go to folders of their own in here, which git ignores.
DEFAULT_OUT = Path("figures")
RECORD_VERSION = 1
#: Seconds of the full figures and claims on one core of two, relative to which the time left is estimated.
_SECONDS = {
    "fig2": 21, "fig4": 32, "exponents": 45, "kernel": 60, "mismatch": 60, "noise": 440, "optimizers": 180,
    "phases": 40, "real_features": 40, "real_gap": 5, "real_kernel": 5,
    "real_photos": 5, "real_runs": 5, "sigmoid": 120, "swaps": 210,
    "temperature_control": 60, "theorem33": 39, "claims": 380,
}  # fmt: skip
#: The weight of these numbers against what is seen, as seconds of work done.
_PRIOR = 60.0


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

    Every record is written as soon as it is computed, so that interrupted work resumes at the next experiment.

    Args:
        names: experiments; default all.
        quick: smaller sizes at the same tolerances.
        force: compute again even where a valid record exists.
        out: folder for figures and records; default `figures/full`, or `figures/quick`.
        console: where progress goes; default stderr.
        folder: of the experiments.
        claims: whether the claims are measured too; default: if all figures are made.

    Returns:
        The files of each figure, and the verdicts.

    Raises:
        FlowsimError: for unknown names and places that cannot be written to.
    """
    console = Console(stderr=True) if console is None else console
    folder = experiments_folder() if folder is None else folder
    known = experiment_names(folder)
    for name in names or ():
        if name not in known:
            raise FlowsimError(f"{unknown_name('experiment', name, known)} They are in {str(folder)!r}.")
    chosen = list(dict.fromkeys(names or known))
    out = Path(out) if out is not None else DEFAULT_OUT / ("quick" if quick else "full")
    check_writable(out / "records", "Choose another folder with --out.")
    measured = not names if claims is None else claims
    screen = _Screen(console, chosen, measured)
    with screen.bars:
        done = _reproduce(chosen, folder, out, quick, force, screen)
        verdicts = _run_claims(quick, out, screen) if measured else ()
    if measured:
        _show_claims(verdicts, quick, out, console)
    return Reproduction(done, verdicts)


# --- experiments --------------------------------------------------------------------------------------


def _reproduce(
    names: Sequence[str], folder: Path, out: Path, quick: bool, force: bool, screen: "_Screen"
) -> tuple[Figures, ...]:
    """Compute what has no valid record in several processes, draw in this one."""
    modules = {name: _checked(name, folder) for name in names}
    stamps = {name: _stamp(name, module, folder, quick) for name, module in modules.items()}
    reused = [n for n in names if not force and _valid_record(_record_path(out, n), stamps[n]) is not None]
    missing = [n for n in names if n not in reused]
    done: dict[str, Figures] = {}

    def draw(name: str, seconds: float) -> None:
        begin = time.perf_counter()
        path = _record_path(out, name)
        files = _draw(modules[name], read_netcdf(path), out, _figure_stamp(stamps[name], folder))
        seconds += time.perf_counter() - begin
        done[name] = Figures(name, path, files, seconds, name in reused)
        screen.finished(done[name])

    screen.skip(reused)
    for name in reused:
        draw(name, 0.0)
    calls = [(_compute, (n, folder, quick, stamps[n], _record_path(out, n))) for n in missing]
    for index, seconds in processes.run(calls, lambda i: partial(screen.show, missing[i]), quick):
        draw(missing[index], seconds)
    return tuple(done[name] for name in names)


def _compute(progress: Progress, name: str, folder: Path, quick: bool, stamp: dict[str, Any], path: Path) -> float:
    """Compute one experiment and write its record; the seconds it took."""
    begin = time.perf_counter()
    module = _load(name, folder)
    progress("computing", 0, None)
    record = module.compute(quick, progress)
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


def _draw(module: ModuleType, record: Any, out: Path, facts: dict[str, Any]) -> tuple[Path, ...]:
    import matplotlib.pyplot as plt
    from matplotlib.figure import Figure

    from flowsim import plot

    stamp = write_stamp(facts | {"numbers": _numbers(record)})
    with plot.paper_style():
        figure = module.plot(record)
        check(
            isinstance(figure, Figure),
            f"`plot` of the experiment {facts['experiment']!r} must return a Figure, but returned {shown(figure)}.",
        )
        files = tuple(plot.save(figure, out / f"{facts['experiment']}.{kind}", stamp) for kind in ("png", "pdf"))
    plt.close(figure)
    return files


# --- modules and records ------------------------------------------------------------------------------


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    return (
        (folder / "experiments" / "fig2.py").is_file()
        and project.is_file()
        and 'name = "flowsim"' in project.read_text(encoding="utf-8", errors="replace")
    )


def _checked(name: str, folder: Path) -> ModuleType:
    """An experiment with everything that one needs; raises `FlowsimError` otherwise, before anything is computed."""
    module = _load(name, folder)
    missing = [part for part in ("SEED", "FULL", "QUICK", "compute", "plot") if not hasattr(module, part)]
    if missing:
        raise FlowsimError(
            f"The experiment {str(folder / name)!r} defines no {' and no '.join(missing)}. "
            "See flowsim.reproduce for what an experiment defines."
        )
    try:
        inspect.signature(module.compute).bind(True, None)
        inspect.signature(module.plot).bind(None)
        json.dumps([module.FULL, module.QUICK, int(module.SEED)])
    except (TypeError, ValueError) as error:
        raise FlowsimError(
            f"The experiment {str(folder / name)!r} needs compute(quick, progress), plot(record), a whole number SEED, "
            f"and FULL and QUICK of plain numbers and lists ({error})."
        ) from None
    return module


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
        "source": computing_hash(folder / f"{name}.py", PACKAGE),
    }


def stamp(name: str, folder: Path | None = None, quick: bool = False) -> dict[str, Any]:
    """What a figure drawn by the present code carries in its metadata, apart from a digest of its numbers."""
    folder = experiments_folder() if folder is None else folder
    facts = _stamp(name, _load(name, folder), folder, quick)
    return _figure_stamp(facts, folder)


def _figure_stamp(facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    kept = {key: facts[key] for key in ("experiment", "configuration", "seed")}
    drawn = drawing_hash(folder / f"{facts['experiment']}.py", PACKAGE)
    return kept | {"computed_by": facts["source"], "drawn_by": drawn}


def _numbers(record: Any) -> str:
    """A digest of the values of a record: equal for figures of one record."""
    total = hashlib.sha256()
    for name in sorted(map(str, record.variables)):
        values = record[name].to_numpy()
        total.update(f"{name}\0{values.shape}\0".encode())
        total.update(values.astype("S").tobytes() if values.dtype.kind in "OUT" else values.tobytes())
    return total.hexdigest()


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


class _Screen:
    """A line for each finished figure; below, on a terminal, a bar for each one in work and one for everything."""

    def __init__(self, console: Console, names: Sequence[str], claims: bool) -> None:
        self.console = console
        self.names = list(names)
        #: What is left to do, by name, in seconds on one core of the machine that `_SECONDS` was measured on.
        self.left = {name: float(_SECONDS.get(name, 60)) for name in [*names, *(["claims"] if claims else [])]}
        self.begin = time.perf_counter()
        self.total = sum(self.left.values())
        self.count = 0
        self.tasks: dict[str, TaskID] = {}
        # Invisible where the console is not a terminal.
        self.bars = Bars(
            SpinnerColumn(),
            TextColumn("[bold]{task.fields[name]}"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.all = self.bars.add_task("", total=len(names), name="figures")

    def skip(self, names: Collection[str]) -> None:
        """Figures that need no computing."""
        self.total -= sum(self.left.pop(name) for name in names)

    def show(self, name: str, text: str, done: int, total: int | None, /, **numbers: float) -> None:
        """The progress of a figure, or of the claims."""
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task("computing", total=None, name=name)
            if not self.console.is_terminal:
                self._say(f"{name}: computing")
        self.bars.update(self.tasks[name], description=text, completed=done, total=total)
        if name == "claims" and total:  # figures have several stages, claims one
            self.left[name] = _SECONDS[name] * (1 - done / total)
        self.bars.update(self.all, description=self.time_left())

    def finished(self, item: Figures) -> None:
        """A line for one figure: which of how many, seconds, path, and the time left for everything."""
        self.left.pop(item.name, None)
        self.count += 1
        if item.name in self.tasks:
            self.bars.remove_task(self.tasks.pop(item.name))
        self.bars.update(self.all, completed=self.count, description=self.time_left())
        width, all_ = max(map(len, self.names)), len(self.names)
        took = "reused" if item.reused else duration(item.seconds)
        number = f"[{self.count:>{len(str(all_))}}/{all_}]"
        self._say(f"{number} {item.name:<{width}}  {took:>12}  {item.files[0]}  {self.time_left()}".rstrip())

    def time_left(self) -> str:
        """From `_SECONDS`, and from what was done so far in which time; "" when nothing is left."""
        left = sum(self.left.values())
        # Two are in work at a time. What was seen counts the more, the more it is.
        spent, done = time.perf_counter() - self.begin + _PRIOR / 2, self.total - left + _PRIOR
        return f"about {_roughly(spent * left / done)} left" if left else ""

    def _say(self, text: str) -> None:
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)


def _roughly(seconds: float) -> str:
    """An estimate: in steps of ten seconds, from two minutes on in whole ones."""
    step = 10 if seconds < 120 else 60
    return duration(max(round(seconds / step), 1) * step)


def duration(seconds: float) -> str:
    """A time for people: 4.2 s, 32 s, 3 min 30 s, 1 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min" + (f" {rest} s" if rest else "")
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h" + (f" {minutes} min" if minutes else "")


def _run_claims(quick: bool, out: Path, screen: _Screen) -> tuple[dict[str, Any], ...]:
    """Measure all claims (the cheap ones if `quick`) and write OUT/claims.json."""
    from flowsim import claims

    progress = partial(screen.show, "claims")
    progress("measuring", 0, None)
    only = [name for name in claims.names() if claims.get(name).cheap] if quick else None
    found = claims.run_all(quick, progress, only=only, processes=True)
    verdicts = tuple(v.to_dict() for v in found)
    write_text(out / "claims.json", json.dumps(verdicts, indent=2) + "\n")
    return verdicts


def _show_claims(verdicts: Sequence[dict[str, Any]], quick: bool, out: Path, console: Console) -> None:
    """The table of claims, and how many hold and fail."""
    from flowsim import claims

    table = Table("claim", "statement", "verdict", "expected", title="Claims", title_justify="left")
    for verdict in verdicts:
        table.add_row(*(str(verdict[key]) for key in ("id", "statement", "verdict", "expected")))
    console.print(table)
    count = f"{len(verdicts)} of {len(claims.names())} claims" if quick else f"{len(verdicts)} claims"
    console.print(f"{count}: {tally(verdicts)}. Numbers: {out / 'claims.json'}", highlight=False, soft_wrap=True)
    if quick:
        console.print("`flowsim claims --quick` measures all.", highlight=False)


def tally(verdicts: Sequence[dict[str, Any]]) -> str:
    """How many claims hold and fail, and whether as expected: "51 hold, 8 fail, all as expected"."""
    found = [v["verdict"] for v in verdicts]
    words = {"holds": "hold", "fails": "fail", "undecided": "undecided"}
    counts = [f"{found.count(f)} {word}" for f, word in words.items() if f != "undecided" or f in found]
    surprises = [f"{v['id']} ({v['verdict']})" for v in verdicts if v["verdict"] != v["expected"]]
    return ", ".join(counts) + (f"; not as expected: {', '.join(surprises)}" if surprises else ", all as expected")
