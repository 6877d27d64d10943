"""`Lab`: what the methods do to the judged pairs, as a table, a figure and data."""

from __future__ import annotations

import json
import math
import os
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from flowsim.base.html import table
from flowsim.errors import unknown_name
from flowsim.lab.landscape import Landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from xarray import Dataset

#: name of a metric -> (title of its column, "" for none; meaning). Two blocks of columns.
GAPS: dict[str, tuple[str, str]] = {
    "modality_gap": ("gap", "‖mean x − mean y‖"),
    "modality_gap_by_chance": ("chance", "size of the gap by chance, where the means are equal"),
    "relative_modality_gap": ("RMG", "relative modality gap"),
    "distribution_gap": ("Fréchet", "distance of the centred modalities"),
    "distribution_gap_by_chance": ("chance", "the same after random exchanges within pairs"),
    "linear_separability": ("separable", "accuracy of image-vs-text logistic regression, 0.5 = closed"),
    "loss": ("loss", "contrastive loss at the temperature"),
    "image_to_text_at_1": ("I→T R@1", "recall at 1 of images"),
    "text_to_image_at_1": ("T→I R@1", "recall at 1 of texts"),
    "recall_at_1": ("", "mean of both directions"),
    "image_to_text_at_5": ("", "recall at 5 of images"),
    "text_to_image_at_5": ("", "recall at 5 of texts"),
    "recall_at_5": ("", "mean of both directions"),
    "image_to_text_at_10": ("", "recall at 10 of images"),
    "text_to_image_at_10": ("", "recall at 10 of texts"),
    "recall_at_10": ("R@10", "recall at 10, mean of both directions"),
    "zero_shot": ("zero-shot", "accuracy of the nearest class text"),
}
USES: dict[str, tuple[str, str]] = {
    "mixed_recall_at_1": ("R@1", "the partner is the nearest row of the mixed pool"),
    "mixed_recall_at_10": ("R@10", "the partner is among the 10 nearest"),
    "mixed_ndcg_at_10": ("NDCG@10", "1/log2(1 + rank of the partner) up to rank 10, else 0"),
    "own_modality_at_10": ("own", "share of the 10 nearest rows that are of the query's modality"),
    "same_class_at_10": ("class", "share of the 10 nearest rows that are of the query's class"),
    "recall_at_1_noise_0.1": ("noise 0.1", "R@1 after Gaussian noise of 0.1 of the length of a row"),
    "recall_at_1_noise_0.3": ("noise 0.3", "R@1 after Gaussian noise of 0.3 of the length of a row"),
    "recall_at_1_int8": ("int8", "R@1 of rows rounded to 8 bits"),
    "recall_at_1_one_bit": ("1 bit", "R@1 of the signs of the entries"),
}
METRICS: dict[str, tuple[str, str]] = GAPS | USES
#: Metrics whose differences to `none` are printed.
MAIN = ("modality_gap", "recall_at_1", "mixed_recall_at_10", "own_modality_at_10", "zero_shot")
_TITLES = {"modality_gap": "gap", "recall_at_1": "R@1", "mixed_recall_at_10": "mixed R@10",
           "own_modality_at_10": "own modality", "zero_shot": "zero-shot"}  # fmt: skip


class Difference(NamedTuple):
    """A difference to `none`.

    Attributes:
        value: The difference.
        standard_error: Its paired standard error over the judged pairs; NaN for metrics without one.
    """

    value: float
    standard_error: float

    @property
    def clear(self) -> bool:
        """Whether the difference is larger than two standard errors."""
        return abs(self.value) > 2 * self.standard_error


@dataclass(frozen=True, eq=False, repr=False)
class Lab:
    """The result of `run`; `lab["centre"]["modality_gap"]` is a number.

    Attributes:
        values: Method -> metric -> value on the judged pairs.
        contributions: Method -> metric -> what each judged pair contributes to it (NaN: nothing); their mean is the
            value (for the gaps: up to the jackknife's correction). Metrics with a standard error only.
        methods: Method -> what it does.
        landscape: The contrastive loss against the shift along the gap.
        notes: What a reader of the numbers should know, as sentences.
        pairs: Number of pairs given.
        fitted: Number of pairs that methods are fitted on.
        judged: Number of pairs that they are judged on, and size of the pool of R@k.
        dim: d.
        temperature: τ of the losses.
        seed: Seed of the halves.
    """

    values: dict[str, dict[str, float]]
    contributions: dict[str, dict[str, np.ndarray]] = field(repr=False)
    methods: dict[str, str]
    landscape: Landscape
    notes: tuple[str, ...]
    pairs: int
    fitted: int
    judged: int
    dim: int
    temperature: float
    seed: int

    def __getitem__(self, method: str) -> dict[str, float]:
        """The metrics of a method; raises `FlowsimError` for an unknown one."""
        if method not in self.values:
            raise unknown_name("method of this lab", method, self.values)
        return self.values[method]

    def _ipython_key_completions_(self) -> list[str]:
        return list(self.values)

    def difference(self, method: str, metric: str) -> Difference:
        """The difference of a method to `none`, with its paired standard error.

        Args:
            method: Name of the method.
            metric: Name of the metric, e.g. "recall_at_1".

        Returns:
            The difference.

        Raises:
            FlowsimError: For unknown names.
        """
        if metric not in self[method]:
            raise unknown_name("metric of this lab", metric, self.values["none"])
        value = self.values[method][metric] - self.values["none"][metric]
        return Difference(value, self._error(method, metric, "none"))

    def standard_error(self, method: str, metric: str) -> float:
        """Standard error of a value over the judged pairs; NaN for metrics without one.

        Args:
            method: Name of the method.
            metric: Name of the metric.

        Returns:
            The standard error.

        Raises:
            FlowsimError: For unknown names.
        """
        if metric not in self[method]:
            raise unknown_name("metric of this lab", metric, self.values["none"])
        return self._error(method, metric, None)

    def _error(self, method: str, metric: str, reference: str | None) -> float:
        if metric not in self.contributions[method]:
            return math.nan
        each = self.contributions[method][metric]
        each = each if reference is None else each - self.contributions[reference][metric]
        each = each[np.isfinite(each)]
        return float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else math.nan

    # Tables.

    @property
    def _title(self) -> str:
        return (
            f"Lab: {self.fitted:,} pairs fitted, {self.judged:,} other pairs judged, dimension {self.dim}, "
            f"temperature {self.temperature:g}, seed {self.seed}"
        )

    def _cell(self, method: str, metric: str) -> str:
        """A value, with the sign of its change if that is clear."""
        change, value = self.difference(method, metric), self.values[method][metric]
        if not math.isfinite(value):
            return "–"
        text = f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"
        return text + ("+" if change.value > 0 else "−") * (method != "none" and change.clear) or text

    def _block(self, columns: dict[str, tuple[str, str]]) -> tuple[list[str], list[list[str]]]:
        shown = [name for name, (title, _) in columns.items() if title and name in self.values["none"]]
        rows = [[method, *(self._cell(method, name) for name in shown)] for method in self.values]
        return [columns[name][0] for name in shown], rows

    def _changes(self) -> tuple[list[str], list[list[str]]]:
        shown = [name for name in MAIN if name in self.values["none"]]
        rows = []
        for method in list(self.values)[1:]:
            changes = [self.difference(method, name) for name in shown]
            rows.append([method, *(f"{_signed(c.value)} ± {c.standard_error:.3f}" for c in changes)])
        return [_TITLES[name] for name in shown], rows

    def _minima(self) -> tuple[list[str], list[list[str]]]:
        head = ["best shift", "loss", "without", "gap", "R@1", "change of R@1"]
        rows = [
            [
                f"τ = {row['temperature']:g}",
                f"{row['best_shift']:.2f}{' (edge)' * row['at_the_edge']}".replace("-", "−"),
                f"{row['loss']:.4g}",
                f"{row['loss_without_shift']:.4g}",
                f"{row['modality_gap']:.3f}",
                f"{row['recall_at_1']:.3f}",
                f"{_signed(row['change_of_recall_at_1'])} ± {row['standard_error']:.3f}",
            ]
            for row in self.landscape.rows()
        ]
        return head, rows

    def _blocks(self) -> list[tuple[str, list[str], list[list[str]]]]:
        return [
            ("gap and retrieval", *self._block(GAPS)),
            ("mixed pool of both modalities; R@1 after perturbation", *self._block(USES)),
            ("difference to none ± standard error", *self._changes()),
            ("shift along the gap with the lowest loss (0: none, 1: means meet)", *self._minima()),
        ]

    @property
    def _legend(self) -> list[str]:
        """What the columns mean, and the notes."""
        words = {"Fréchet": "distribution_gap", "separable": "linear_separability", "own": "own_modality_at_10"}
        words |= {"class": "same_class_at_10"} if "same_class_at_10" in self.values["none"] else {}
        return [
            "+ and −: higher and lower than none by more than two standard errors (not measured for Fréchet, "
            "separable, loss).",
            "; ".join(f"{title}: {METRICS[name][1]}" for title, name in words.items()) + ".",
            "chance: size of the number to its left where the modalities do not differ. "
            f"R@k has {self.judged:,} candidates, in the mixed pool {2 * self.judged - 1:,}; own is "
            f"{(self.judged - 1) / (2 * self.judged - 1):.3f} by chance.",
            *self.notes,
        ]

    def __repr__(self) -> str:
        lines = [self._title]
        for title, head, rows in self._blocks():
            if rows:
                lines += ["", title, *_aligned([["", *head], *rows])]
        return "\n".join([*lines, "", *(textwrap.fill(line, 118, subsequent_indent="  ") for line in self._legend)])

    def _repr_html_(self) -> str:
        blocks = [table(rows, ("", *head), title, names=True) for title, head, rows in self._blocks() if rows]
        return "".join([table([[line] for line in self._legend], caption=self._title), *blocks])

    # Data.

    def to_dict(self) -> dict[str, Any]:
        """Everything but the contributions as plain data; missing numbers are NaN."""
        return {
            **{n: getattr(self, n) for n in ("pairs", "fitted", "judged", "dim", "temperature", "seed")},
            "notes": list(self.notes),
            "methods": {
                method: {
                    "description": self.methods[method],
                    "values": dict(values),
                    "differences": {
                        metric: {**change._asdict(), "clear": change.clear}
                        for metric in self.contributions[method]
                        if metric in values and (change := self.difference(method, metric))
                    },
                }
                for method, values in self.values.items()
            },
            "landscape": self.landscape.to_dict(),
        }

    def to_json(self) -> str:
        """`to_dict` as strict JSON, with null for a missing number."""
        return json.dumps(_strict(self.to_dict()), indent=2, ensure_ascii=False, allow_nan=False)

    def to_xarray(self) -> Dataset:
        """The values as a Dataset with one variable for each metric along `transform`.

        `NAME_difference` and `NAME_standard_error` are added for metrics with a standard error, and `landscape_loss`
        (temperature, shift), `landscape_gap` and `landscape_recall_at_1` (shift).

        Returns:
            The dataset.
        """
        import xarray as xr

        data: dict[str, Any] = {}
        for metric in self.values["none"]:
            data[metric] = (
                "transform",
                [values[metric] for values in self.values.values()],
                {"meaning": METRICS[metric][1]},
            )
            if metric in self.contributions["none"]:
                changes = [self.difference(method, metric) for method in self.values]
                data[f"{metric}_difference"] = ("transform", [change.value for change in changes])
                data[f"{metric}_standard_error"] = ("transform", [change.standard_error for change in changes])
        scene = self.landscape
        data["landscape_loss"] = (("temperature", "shift"), scene.loss)
        data["landscape_gap"] = ("shift", scene.gap)
        data["landscape_recall_at_1"] = ("shift", scene.recall_at_1)
        coords = {"transform": list(self.values), "temperature": scene.temperatures, "shift": scene.shifts}
        said = {n: getattr(self, n) for n in ("pairs", "fitted", "judged", "dim", "seed")}
        return xr.Dataset(data, coords, {**said, "loss_temperature": self.temperature, "notes": list(self.notes)})

    # Figures.

    def plot(self) -> Figure:
        """Draw gap against retrieval for each method, and the loss landscape.

        Returns:
            The figure.
        """
        from flowsim.lab.drawing import figure_of

        return figure_of(self)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure atomically.

        Args:
            path: File to write, .png, .pdf or .svg.

        Returns:
            The path.

        Raises:
            FlowsimError: If the path has another ending or cannot be written.
        """
        from flowsim.plot import paper_style, save

        with paper_style():
            return save(self.plot(), path)


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def _aligned(cells: list[list[str]]) -> list[str]:
    """Rows of text in columns, numbers to the right."""
    # A sign behind a number stays outside of its column.
    padded = [[cell if cell.endswith(("+", "−")) else f"{cell} " for cell in row[1:]] for row in cells]
    widths = [max(len(row[k]) for row in padded) for k in range(len(padded[0]))]
    first = max(len(row[0]) for row in cells)
    return [
        "  ".join([f"  {row[0]:<{first}}", *(f"{cell:>{w}}" for cell, w in zip(rest, widths, strict=True))]).rstrip()
        for row, rest in zip(cells, padded, strict=True)
    ]


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
