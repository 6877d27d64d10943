"""Tables of a study next to the paper's, with rank correlations. They are made from records, without PyTorch.

fs.clip.Tables.of(fs.load_results("runs.nc"))
"""

import csv
import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flowsim.base.checks import check
from flowsim.base.files import reference_path
from flowsim.clip.correlation import Correlation, rank_correlation
from flowsim.clip.findings import EXTREME, findings
from flowsim.records.result import TrainingRecord

if TYPE_CHECKING:
    import xarray as xr

#: column -> (series of the record, or one of its `stats`; column of the paper's tables; factor to the paper's units)
COLUMNS: dict[str, tuple[str, str | None, float]] = {
    "gap": ("modality_gap", "modality_gap", 1.0),
    "temperature": ("temperature", None, 1.0),
    "uniformity": ("wasserstein_uniformity", "uniformity", 1.0),
    "image_retrieval": ("text_to_image_at_1", "image_retrieval", 100.0),
    "text_retrieval": ("image_to_text_at_1", "text_retrieval", 100.0),
    "zero_shot": ("zero_shot", "zero_shot", 100.0),
    "linear_probe": ("linear_probe", "linear_probe", 100.0),
    "seen_gap": ("seen_modality_gap", None, 1.0),
    "seen_image_retrieval": ("seen_text_to_image_at_1", None, 100.0),
    "seen_loss": ("seen_loss", None, 1.0),
}
#: Pairs of columns whose rank correlation over methods is reported.
PAIRS = (("gap", "image_retrieval"), ("gap", "text_retrieval"), ("gap", "uniformity"), ("gap", "temperature"),
         ("gap", "zero_shot"), ("gap", "linear_probe"), ("uniformity", "image_retrieval"),
         ("seen_gap", "seen_image_retrieval"))  # fmt: skip
#: What is compared at equal training loss.
_AT_LOSS = ("step", "seen_gap", "temperature", "gap", "image_retrieval", "text_retrieval")
#: Columns of the printed tables. A star marks training pairs.
_TITLES = {
    "gap": "gap", "temperature": "τ", "uniformity": "uniformity", "zero_shot": "zero-shot",
    "linear_probe": "linear probe", "image_retrieval": "image R@1", "text_retrieval": "text R@1", "seen_gap": "gap*",
    "seen_image_retrieval": "image R@1*",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tables:
    """Final values of every method in a study, next to the paper's. `Tables.of` makes them from records.

    Attributes:
        methods: Names of the methods.
        seeds: Seeds.
        values: Column -> final values, (methods, seeds), in the paper's units; NaN where a seed is missing.
        at_loss: Step, gaps, temperature and retrieval of each run where its smoothed training loss first reaches
            `loss_level`, so that they can be compared at equal training loss; (methods, seeds).
        loss_level: The smallest training loss that every run reaches, other than those of `findings.EXTREME`, whose
            loss stays large.
        steps: Steps of each run.
        paper: (table number, method) -> row of the paper, as printed.
        left_out: Runs that did not complete, with the reason.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    values: dict[str, np.ndarray]
    at_loss: dict[str, np.ndarray]
    loss_level: float
    steps: int
    paper: dict[tuple[int, str], dict[str, float]]
    left_out: tuple[str, ...] = ()

    @classmethod
    def of(cls, records: Mapping[str, TrainingRecord]) -> "Tables":
        """Tables of a study. Runs that did not complete are left out, and listed.

        Args:
            records: Records by name ("TS S3, seed 0"), as `study` returns them.

        Returns:
            The tables.

        Raises:
            FlowsimError: If no run completed, if their lengths differ, or for names of another form.
        """
        check(records, "There are no records. Run `fs.clip.study` first.")
        records, left_out = completed(records)
        check(
            records,
            f"No run completed: {', '.join(left_out)}. Continue the study; if runs diverged, use a smaller "
            "`lr` or a longer `warmup`.",
        )
        runs = {split_name(name): record for name, record in records.items()}
        methods = tuple(dict.fromkeys(method for method, _ in runs))
        seeds = tuple(sorted({seed for _, seed in runs}))
        lengths = {int(r.coordinates["step"][-1]) for r in runs.values()}
        check(
            len(lengths) == 1,
            f"The runs have different numbers of steps ({sorted(lengths)}). Give runs of equal length.",
        )
        values = {column: np.full((len(methods), len(seeds)), np.nan) for column in COLUMNS}
        usual = [record for (method, _), record in runs.items() if method not in EXTREME] or list(runs.values())
        level = max(float(np.nanmin(smoothed_loss(record))) for record in usual)
        at_loss = {name: np.full((len(methods), len(seeds)), np.nan) for name in _AT_LOSS}
        for (method, seed), record in runs.items():
            at = methods.index(method), seeds.index(seed)
            for column, (series, _, factor) in COLUMNS.items():
                last = record.series[series][-1] if series in record.series else record.stats.get(series, math.nan)
                values[column][at] = factor * last
            for name, value in _when_loss(record, level).items():
                at_loss[name][at] = value
        return cls(methods, seeds, values, at_loss, level, lengths.pop(), paper_tables(), left_out)

    @classmethod
    def of_numbers(cls, numbers: "xr.Dataset") -> "Tables":
        """Tables from the numbers of a study, which `fs.clip.figures.methods_numbers` makes from its records.

        Args:
            numbers: The numbers, e.g. those in `numbers.nc` in the folder of a study.

        Returns:
            The tables.
        """

        def held(prefix: str) -> dict[str, np.ndarray]:
            names = [str(name) for name in numbers if str(name).startswith(prefix)]
            return {name.removeprefix(prefix): numbers[name].to_numpy() for name in names}

        return cls(
            tuple(map(str, numbers["method"].to_numpy())), tuple(map(int, numbers["seed"].to_numpy())),
            held("final_"), held("at_loss_"), float(numbers.attrs["loss_level"]), int(numbers["step"][-1]),
            paper_tables(),
        )  # fmt: skip

    def mean(self, column: str) -> np.ndarray:
        """Mean over seeds.

        Args:
            column: Name of a column, e.g. "gap".

        Returns:
            (methods,) means.
        """
        return np.nanmean(self.values[column], axis=1)

    def correlation(self, x: str, y: str) -> Correlation | None:
        """Rank correlation of two columns over methods.

        Args:
            x: Name of a column.
            y: Name of another.

        Returns:
            The correlation; None with fewer than four methods, and for a column whose means are all equal.
        """
        return rank_correlation(self.values[x], self.values[y])

    def with_paper(self, column: str = "gap") -> Correlation | None:
        """Rank correlation of a column with that of the paper, over the methods that both have.

        Args:
            column: Name of a column that the paper's tables have.

        Returns:
            The correlation; None with fewer than four methods, and for a column whose means are all equal.
        """
        printed = {method: row for (_, method), row in self.paper.items()}
        both = [i for i, m in enumerate(self.methods) if m in printed]
        theirs = np.array([[printed[self.methods[i]][COLUMNS[column][1] or column]] for i in both])
        return rank_correlation(self.values[column][both], np.atleast_2d(theirs))

    def disagreements(self) -> list[str]:
        """Pairs of methods, 0.01 or more apart in the paper, whose gaps have the opposite order here in every seed.

        Only seeds that both methods have count. This is not a statistical test: without any true difference, a pair
        has the opposite order in three seeds with probability 1/8.

        Returns:
            One sentence per pair.
        """
        return [
            f"{a} against {b}: {ours.mean():+.3f} here ({_counted(ours.size, 'seed')}), {theirs:+.3f} in the paper"
            for a, b, ours, theirs in self._disagreements()
        ]

    def _disagreements(self) -> list[tuple[str, str, np.ndarray, float]]:
        """(a, b, gap of a minus gap of b by seed, the same in the paper)."""
        printed = {method: row["modality_gap"] for (_, method), row in self.paper.items()}
        found = []
        gap, known = self.values["gap"], [m for m in self.methods if m in printed]
        for i, a in enumerate(known):
            for b in known[i + 1 :]:
                ours = gap[self.methods.index(a)] - gap[self.methods.index(b)]
                ours = ours[np.isfinite(ours)]
                theirs = printed[a] - printed[b]
                if abs(theirs) >= 0.01 and ours.size and (np.sign(ours) == -np.sign(theirs)).all():
                    found.append((a, b, ours, theirs))
        return found

    def to_dict(self) -> dict[str, Any]:
        """All numbers as a plain dictionary, for JSON."""
        return {
            "methods": list(self.methods),
            "seeds": list(self.seeds),
            "steps": self.steps,
            "values": {c: v.tolist() for c, v in self.values.items()},
            "loss_level": self.loss_level,
            "at_loss": {c: v.tolist() for c, v in self.at_loss.items()},
            "correlations": {f"{x}~{y}": _as_list(self.correlation(x, y)) for x, y in PAIRS},
            "paper_order": _as_list(self.with_paper()),
            "disagreements": self.disagreements(),
            "left_out": list(self.left_out),
        }

    def markdown(self) -> str:
        """Tables 2 to 5 in the paper's layout, with the paper's values in parentheses, and rank correlations."""
        parts = []
        for number in (2, 3, 4, 5):
            rows = [m for n, m in self.paper if n == number and m in self.methods]
            if rows:
                spread = "mean ± standard deviation over seeds; " if len(self.seeds) > 1 else ""
                title = f"**Table {number}** ({spread}the paper's value in parentheses; * on training pairs)"
                parts.append(f"{title}\n\n{self._rows(number, rows)}")
        parts.append(
            f"**At equal training loss** {self.loss_level:.3f} (smoothed), gap of training pairs\n\n{self._at_loss()}"
        )
        order = self.with_paper() or "cannot be said of fewer than four methods, or of equal ones"
        lines = [f"- order by gap against the paper's: {order}"]
        lines += [f"- {x} against {y}: {found}" for x, y in PAIRS if (found := self.correlation(x, y)) is not None]
        parts.append("\n".join(lines))
        if wrong := self.other_order():
            parts.append(
                f"**Pairs in another order than in the paper** in every seed that both have, of "
                f"{_counted(len(self.seeds), 'seed')}: mean difference of the gaps here, and the paper's in "
                f"parentheses\n\n{wrong}"
            )
        if said := findings(self):
            rows = [list(one) for one in said]
            parts.append(f"**The paper's statements**\n\n{_markdown(['statement', 'these runs', 'verdict'], rows)}")
        if self.left_out:
            parts.append(f"**Left out**: {', '.join(self.left_out)}.")
        return "\n\n".join(parts)

    def _rows(self, number: int, rows: list[str]) -> str:
        shown = [column for column in _TITLES if np.isfinite(self.values[column]).any()]
        table = []
        for method in rows:
            cells = [method]
            for column in shown:
                ours, (_, printed, factor) = self.values[column][self.methods.index(method)], COLUMNS[column]
                cell = _with_spread(ours, 1 if factor == 100 else 3)
                if printed is not None:
                    cell += f" ({self.paper[number, method][printed]:g})"
                cells.append(cell)
            table.append(cells)
        return _markdown(["method", *(_TITLES[column] for column in shown)], table)

    def _at_loss(self) -> str:
        rows = []
        for i, method in enumerate(self.methods):
            at = {name: values[i] for name, values in self.at_loss.items()}
            rows.append(
                [
                    method,
                    _with_spread(at["seen_gap"], 3),
                    _with_spread(at["temperature"], 4),
                    _with_spread(at["step"], 0),
                ]
            )
        return _markdown(["method", "gap", "τ", "step"], rows)

    def other_order(self) -> str:
        """A table with a row for each method that is below others here, but above them in the paper; empty without any.

        Only pairs that are 0.01 or more apart in the paper count, and only if every seed has the opposite order.
        """
        above: dict[str, list[str]] = {method: [] for method in self.methods}
        for a, b, ours, theirs in self._disagreements():
            low, high, sign = (a, b, 1) if ours.mean() < 0 else (b, a, -1)
            above[low].append(f"{high} {sign * ours.mean():+.3f} ({sign * theirs:+.3f})")
        rows = [[low, ", ".join(high)] for low, high in above.items() if high]
        return _markdown(["smaller gap here", "than"], rows) if rows else ""

    def __repr__(self) -> str:
        counts = {"method": len(self.methods), "seed": len(self.seeds), "step": self.steps}
        title = ", ".join(_counted(count, noun) for noun, count in counts.items())
        return f"{title}\n\n{self.markdown().replace('**', '')}"

    def _repr_markdown_(self) -> str:
        return self.markdown()


def completed(records: Mapping[str, TrainingRecord]) -> tuple[dict[str, TrainingRecord], tuple[str, ...]]:
    """Split records into those of completed runs and the names of the others.

    Args:
        records: Records by name.

    Returns:
        Records of completed runs, and the other names with the reason: "TS S3, seed 0 (diverged)".
    """
    others = tuple(f"{name} ({r.status.code.name.lower()})" for name, r in records.items() if not r.status.ok)
    return {name: r for name, r in records.items() if r.status.ok}, others


def smoothed_loss(record: TrainingRecord, share: float = 0.02) -> np.ndarray:
    """Moving average of the training loss.

    Args:
        record: A training record.
        share: Length of the window as a fraction of the steps; it ends at each step.

    Returns:
        (steps,) means; NaN before the first full window.
    """
    loss = record.training["train_loss"]
    width = max(1, round(share * len(loss)))
    sums = np.cumsum(np.concatenate([[0.0], loss]))
    means = (sums[width:] - sums[:-width]) / width
    return np.concatenate([np.full(width - 1, np.nan), means])


def _when_loss(record: TrainingRecord, level: float) -> dict[str, float]:
    """Step at which the smoothed loss first reaches `level`, with gap and temperature interpolated there."""
    reached = np.flatnonzero(smoothed_loss(record) <= level)
    if not reached.size:
        return {}
    step = int(reached[0])
    steps = record.coordinates["step"]
    gap = record.series.get("seen_modality_gap", record.series["modality_gap"])
    found = {
        "step": float(step),
        "seen_gap": float(np.interp(step, steps, gap)),
        "temperature": float(record.training["train_temperature"][step]),
    }
    for name in ("gap", "image_retrieval", "text_retrieval"):
        series, _, factor = COLUMNS[name]
        if series in record.series:
            found[name] = factor * float(np.interp(step, steps, record.series[series]))
    return found


def split_name(name: str) -> tuple[str, int]:
    """Method and seed of the name of a run: ("TS S3", 0) of "TS S3, seed 0".

    Args:
        name: Name of a run.

    Returns:
        (method, seed).

    Raises:
        FlowsimError: For names of another form.
    """
    method, _, seed = name.rpartition(", seed ")
    check(method and seed.isdigit(), f"{name!r} does not name a run of a study. Names are like 'TS S3, seed 0'.")
    return method, int(seed)


def paper_tables() -> dict[tuple[int, str], dict[str, float]]:
    """The paper's tables 2 to 5: (table, method) -> values as printed; NaN where a cell is empty."""
    with reference_path("tables.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = [key for key in rows[0] if key not in ("table", "method")]
    return {(int(r["table"]), r["method"]): {k: float(r[k]) if r[k] else math.nan for k in numbers} for r in rows}


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _with_spread(values: np.ndarray, digits: int) -> str:
    values = values[np.isfinite(values)]
    if not values.size:
        return "–"
    text = f"{values.mean():.{digits}f}"
    return text if values.size == 1 else f"{text} ± {values.std(ddof=1):.{digits}f}"


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    width = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, width, strict=True)) + " |" for row in [head, *rows]]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in width) + "|")
    return "\n".join(lines)


def _as_list(correlation: Correlation | None) -> list[float] | None:
    return None if correlation is None else [correlation.rho, correlation.low, correlation.high]
