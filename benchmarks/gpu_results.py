"""What the records of `benchmarks/results/gpu` say: numbers of the study, tables for the documentation, statements."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flowsim.base.files import reference_path
from flowsim.clip.correlation import Correlation, rank_correlation
from flowsim.clip.findings import findings
from flowsim.clip.tables import Tables, paper_tables
from flowsim.records.netcdf import read_netcdf

HERE = Path(__file__).resolve().parent / "results" / "gpu"
STAGES = ("machine", "parity", "trial", "heads", "simulator", "study")


@cache
def results(stage: str) -> dict[str, Any]:
    """Results of the parts of a stage, and `device` and `versions`."""
    held = json.loads((HERE / f"{stage}.json").read_text(encoding="utf-8"))
    parts = {name: part["result"] for name, part in held["parts"].items() if "result" in part}
    return {"device": held["device"], "versions": held["versions"], **parts}


class Heads(NamedTuple):
    """Runs of heads on frozen features, by method.

    - `methods`: names, in the paper's order; `steps` (times,).
    - `gap` (methods, seeds, times), held out; `temperature`, `image_retrieval` and `text_retrieval` in per cent,
      (methods, seeds), at the end; `paper` (methods,): the paper's final gap, NaN without one.
    """

    methods: list[str]
    steps: np.ndarray
    gap: np.ndarray
    temperature: np.ndarray
    image_retrieval: np.ndarray
    text_retrieval: np.ndarray
    paper: np.ndarray

    def of(self, method: str, values: np.ndarray) -> np.ndarray:
        """Values of a method, (seeds, ...)."""
        return values[self.methods.index(method)]


@cache
def heads() -> Heads:
    """The runs of the stage `heads`."""
    found = results("heads")
    runs = {**found["25 methods"]["runs"], **found["no normalization"]["runs"]}
    methods = list(dict.fromkeys(name.rpartition(", seed ")[0] for name in runs))
    paper: dict[str, float] = {}
    lines = reference_path("tables.csv").read_text(encoding="utf-8").splitlines()
    for line in lines[1:]:
        _, name, gap, *_ = line.split(",")
        paper.setdefault(name, float(gap))

    def table(key: str) -> np.ndarray:
        seeds = range(len(runs) // len(methods))
        return np.array([[runs[f"{name}, seed {seed}"][key] for seed in seeds] for name in methods])

    return Heads(
        methods,
        np.array(found["25 methods"]["steps"]),
        table("gap"),
        table("temperature"),
        100 * table("text_to_image_R@1"),
        100 * table("image_to_text_R@1"),
        np.array([paper.get(name, np.nan) for name in methods]),
    )


def correlations(chosen: Callable[[str], bool] = lambda name: True) -> dict[str, Correlation | None]:
    """Spearman's ρ over methods of the final gap with the paper's, the temperature and retrieval."""
    here = heads()
    keep = np.array([chosen(name) for name in here.methods])
    gap = here.gap[keep, :, -1]
    return {
        "gap, with the paper's": rank_correlation(gap, here.paper[keep, None]),
        "gap, with the final temperature": rank_correlation(gap, here.temperature[keep]),
        "gap, with R@1 image to text": rank_correlation(gap, here.text_retrieval[keep]),
        "gap, with R@1 text to image": rank_correlation(gap, here.image_retrieval[keep]),
    }


def with_practical_temperature(name: str) -> bool:
    """Whether a method trains at temperatures that are used: not above 0.1, and with normalisation."""
    return name not in ("FLT 2e-1", "FLT 3e-1", "FLT 4e-1", "No normalization")


def heads_table() -> str:
    """All methods with their final gap, temperature and retrieval, and the paper's gap."""
    here = heads()
    lines = [
        "| method | gap | the paper's | τ | R@1 image to text, % | R@1 text to image, % |",
        "|---|---|---|---|---|---|",
    ]
    for k, name in enumerate(here.methods):
        gap, paper = here.gap[k, :, -1], here.paper[k]
        columns = [
            f"{gap.mean():.3f} ± {gap.std(ddof=1):.3f}",
            "" if np.isnan(paper) else f"{paper:.3f}",
            f"{here.temperature[k].mean():.3f}",
            *(f"{v[k].mean():.1f} ± {v[k].std(ddof=1):.1f}" for v in (here.text_retrieval, here.image_retrieval)),
        ]
        lines.append(f"| {name} | {' | '.join(columns)} |")
    return "\n".join(lines)


def tables() -> Tables:
    """The runs of the heads as tables of a study, without gaps at equal loss."""
    here = heads()
    values = {
        "gap": here.gap[:, :, -1],
        "temperature": here.temperature,
        "image_retrieval": here.image_retrieval,
        "text_retrieval": here.text_retrieval,
    }
    seeds = tuple(range(here.temperature.shape[1]))
    return Tables(tuple(here.methods), seeds, values, {}, np.nan, int(here.steps[-1]), paper_tables())


@cache
def photos() -> Tables:
    """The runs of the stage `study`: encoders trained on photographs."""
    return Tables.of_numbers(read_netcdf(HERE / "study_numbers.nc"))


def photos_table() -> str:
    """The methods on photographs with their final gaps, temperature and retrieval, and the paper's gap."""
    here, paper = photos(), {method: row["modality_gap"] for (_, method), row in photos().paper.items()}
    lines = [
        "| method | gap, held out | the paper's | gap, training pairs | τ | loss, training pairs "
        "| R@1 text to image, % | the same, training pairs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    columns = ("gap", "seen_gap", "temperature", "seen_loss", "image_retrieval", "seen_image_retrieval")
    for k, name in enumerate(here.methods):
        gap, seen, tau, loss, found, remembered = (here.values[column][k] for column in columns)
        cells = [
            f"{gap.mean():.3f} ± {gap.std(ddof=1):.3f}", f"{paper[name]:.3f}",
            f"{seen.mean():.3f} ± {seen.std(ddof=1):.3f}", f"{tau.mean():.4f}", f"{loss.mean():.2f}",
            f"{found.mean():.1f}", f"{remembered.mean():.1f}",
        ]  # fmt: skip
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def photos_statements_table() -> str:
    """The paper's statements, by the runs on photographs."""
    return _statements(photos())


def statements_table() -> str:
    """The paper's statements, by the heads on frozen features."""
    return _statements(tables())


def _statements(study: Tables) -> str:
    lines = ["| statement | these runs | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(one)} |" for one in findings(study))])


def bridge_table() -> str:
    """What was measured of the bridge on the card."""
    parity, trial, machine = results("parity"), results("trial"), results("machine")
    fp32, bf16, resnet = (parity[f"parity_{name}"] for name in ("fp32", "bf16", "resnet_bf16"))
    stacked = trial["speed, patch 16"]

    def speeds(name: str) -> str:
        one = parity[name]["medians"]
        return f"{one['flowsim']:,.0f}, open_clip {one['open_clip']:,.0f}: {parity[name]['ratio']:.2f}"

    # PyTorch's notice that it looks for waits is none.
    waits = [
        sum(count for place, count in one["where"].items() if not place.startswith("__init__.py"))
        for name, one in parity["waits"].items()
        if name not in ("steps", "gpu")
    ]
    card = machine["product_bf16"]["tflops"]
    peaks = parity["same_data_bf16"]["peak_memory_mib"]
    rows = [
        (
            "losses of 50 steps in fp32: largest relative difference from open_clip's",
            f"{fp32['largest_relative_difference']:.1e}",
            "",
        ),
        (
            "the same in bf16 (open_clip forms its logits in bf16, the bridge in fp32)",
            f"{bf16['largest_relative_difference']:.1e}",
            "",
        ),
        (
            "RN50 in bf16: largest relative difference (open_clip from itself: 0)",
            f"{resnet['largest_relative_difference']:.1e}",
            "",
        ),
        (
            "images/s with the same batches, ViT-S/16 at 96 pixels, batch 512, bf16",
            speeds("same_data_bf16"),
            "0.95",
        ),
        ("the same in fp32", speeds("same_data_fp32"), "0.95"),
        ("the same, RN50 at 96 pixels, batch 128, bf16", speeds("same_data_resnet_bf16"), "0.95"),
        (
            f"ViT-S/16, data on the device; open_clip with its loader, {parity['own_loader_bf16']['workers']} workers",
            speeds("own_loader_bf16"),
            "2",
        ),
        ("peak memory of both, MiB", f"{peaks['flowsim']:,.0f}, open_clip {peaks['open_clip']:,.0f}", ""),
        (
            "waits for the device in four steps: Baseline, TS S3, HS 1, images on the host",
            ", ".join(map(str, waits)),
            "0",
        ),
        (
            "gradients of stacked runs in fp32: largest relative difference from separate runs",
            f"{trial['gradients']['largest']:.1e}",
            "1e-5",
        ),
        (
            "images/s of 27 runs in one program, and of one (ViT of width 192, batch 256, bf16)",
            f"{stacked['27 runs']['images_per_second']:,.0f}, {stacked['1 runs']['images_per_second']:,.0f}: "
            f"{stacked['27 runs']['images_per_second'] / stacked['1 runs']['images_per_second']:.1f}",
            "",
        ),
        ("for comparison, a matrix product of 8,192 in bf16: TFLOP/s", f"{card:.0f}", ""),
    ]
    lines = ["| | measured | goal |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value} | {goal} |" for what, value, goal in rows)])


class Ensemble(NamedTuple):
    """A measured ensemble: its size, precision and number of runs, lanes, seconds per run, and error of the gap."""

    size: str
    dtype: str
    runs: int
    lanes: int
    seconds: float
    error: float


def ensembles() -> list[Ensemble]:
    """The fastest program for each size, precision and number of runs at an error below 1e-6."""
    best: dict[tuple[str, str, int], Ensemble] = {}
    for name, part in results("simulator").items():
        if not name.startswith("ensemble "):
            continue
        size, dtype = name.split()[1:3]
        for line in part["lines"]:
            if "seconds" not in line or line["error"] >= 1e-6:
                continue
            key = size, dtype.rstrip(","), line["runs"]
            new = Ensemble(*key, part["lanes"], line["seconds"] / line["runs"], line["error"])
            if key not in best or new.seconds < best[key].seconds:
                best[key] = new
    return sorted(best.values(), key=lambda one: (int(one.size.split(",")[0]), one.dtype != "float64", one.runs))


def peers(size: str) -> dict[str, Any] | None:
    """What SciPy and `fs.sweep` need for a run of this size; None if it was not measured."""
    return results("simulator").get(f"peers {size}")


def simulator_table() -> str:
    """What was measured of ensembles on the card."""
    lines = ["| n, d | precision | runs | side by side | µs per run | to SciPy | to `fs.sweep` on two cores |"]
    lines.append("|---|---|---|---|---|---|---|")
    sizes = list(dict.fromkeys(one.size for one in ensembles()))
    for size in sizes:
        theirs = peers(size)
        for one in (e for e in ensembles() if e.size == size):
            ratios = [f"{theirs[k] / one.seconds:,.0f}" if theirs else "" for k in ("scipy_seconds", "sweep_seconds")]
            lines.append(
                f"| {size.replace(',', ', ')} | {one.dtype} | {one.runs:,} | {one.lanes:,} | {1e6 * one.seconds:.2f} "
                f"| {' | '.join(ratios)} |"
            )
        if theirs:
            scipy, sweep = (1e6 * theirs[k] for k in ("scipy_seconds", "sweep_seconds"))
            name = size.replace(",", ", ")
            lines.append(f"| {name} | float64 | SciPy {theirs['best']}, one core | 1 | {scipy:,.0f} | 1 | |")
            lines.append(f"| {name} | float64 | `fs.sweep`, two cores | | {sweep:,.0f} | {scipy / sweep:.0f} | 1 |")
    return "\n".join(lines)


def fields() -> list[dict[str, Any]]:
    """Fields of large batches, by dimension, precision and number of pairs."""
    found = [one for name, one in results("simulator").items() if name.startswith("field ")]
    return sorted(found, key=lambda one: (one["dim"], one["dtype"], one["pairs"]))


def field_table() -> str:
    """Fields of large batches against their floor."""
    lines = ["| n, d | precision | field, ms | floor, ms | ratio | TFLOP/s |", "|---|---|---|---|---|---|"]
    for one in fields():
        field, floor = (sorted(one[key])[1] for key in ("field_ms", "floor_ms"))
        size = f"{one['pairs']:,}, {one['dim']} | {one['dtype']}"
        star = "\\*" if one["floor_scaled_from"] != one["pairs"] else ""
        lines.append(
            f"| {size} | {field:.3f} | {floor:.3f}{star} | {one['to_floor']:.2f} | {one['field_tflops']:.1f} |"
        )
    return "\n".join(lines)


def solve_table() -> str:
    """Solves of 65,536 pairs."""
    lines = ["| precision | compilation, s | solve, s | steps | peak memory, GiB | full matrix, GiB |"]
    lines.append("|---|---|---|---|---|---|")
    for dtype, size in (("float32", 4), ("float64", 8)):
        one = results("simulator")[f"solve {dtype}"]
        lines.append(
            f"| {dtype} | {one['compile_seconds']:.1f} | {one['second_call_seconds']:.1f} | {one['steps']:.0f} "
            f"| {one['peak_bytes'] / 2**30:.2f} | {size * one['pairs'] ** 2 / 2**30:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    for made in (
        bridge_table, photos_table, photos_statements_table, heads_table, statements_table, simulator_table,
        field_table, solve_table,
    ):  # fmt: skip
        print(made(), end="\n\n")
    for name, found in correlations().items():
        print(name, found, correlations(with_practical_temperature)[name])
