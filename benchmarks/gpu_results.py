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


def statements_table() -> str:
    """The paper's statements as a table."""
    lines = ["| statement | these runs | verdict |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {' | '.join(one)} |" for one in findings(tables()))])


def bridge_table() -> str:
    """What was measured of the bridge on the card."""
    parity, trial, machine = results("parity"), results("trial"), results("machine")
    same, fp32, bf16 = (parity[name] for name in ("same_data_bf16", "parity_fp32", "parity_bf16"))
    # PyTorch's notice that it looks for waits is none.
    waits = [
        sum(count for place, count in one["where"].items() if not place.startswith("__init__.py"))
        for name, one in parity["waits"].items()
        if name not in ("steps", "gpu")
    ]
    card = machine["product_bf16"]["tflops"]
    speeds = same["medians"]
    peaks = same["peak_memory_mib"]
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
            "images/s with the same batches, ViT-S/16 at 96 pixels, batch 512, bf16",
            f"{speeds['flowsim']:,.0f}, open_clip {speeds['open_clip']:,.0f}: {same['ratio']:.2f}",
            "0.95",
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
        ("for comparison, a matrix product of 8,192 in bf16: TFLOP/s", f"{card:.0f}", ""),
    ]
    lines = ["| | measured | goal |", "|---|---|---|"]
    return "\n".join([*lines, *(f"| {what} | {value} | {goal} |" for what, value, goal in rows)])


def simulator_table() -> str:
    """What was measured of the simulator on the card."""
    found = results("simulator")
    peers = found["peers"]["5,3"]
    lines = ["| runs at once | µs per run | to SciPy | to `fs.sweep` on two cores |", "|---|---|---|---|"]
    for line, ratio in zip(found["ensemble 5,3 float64"]["lines"], found["ratios"], strict=True):
        lines.append(
            f"| {line['runs']:,} | {line['microseconds_per_run']:.2f} "
            f"| {ratio['to_scipy']:,.0f} | {ratio['to_sweep']:,.0f} |"
        )
    lines.append(f"| SciPy ({peers['best']}), one core | {1e6 * peers['scipy_seconds']:,.0f} | 1 | |")
    gain = peers["scipy_seconds"] / peers["sweep_seconds"]
    lines.append(f"| `fs.sweep`, two cores | {1e6 * peers['sweep_seconds']:,.0f} | {gain:.0f} | 1 |")
    return "\n".join(lines)


def field_table() -> str:
    """Fields of large batches against their floor."""
    found = results("simulator")
    lines = ["| n, d | precision | field, ms | floor, ms | ratio |", "|---|---|---|---|---|"]
    for name, one in found.items():
        if name.startswith("field "):
            field, floor = (sorted(one[key])[1] for key in ("field_ms", "floor_ms"))
            size = f"{one['pairs']:,}, {one['dim']} | {one['dtype']}"
            lines.append(f"| {size} | {field:.3f} | {floor:.3f} | {one['to_floor']:.2f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    for made in (bridge_table, heads_table, statements_table, simulator_table, field_table):
        print(made(), end="\n\n")
    for name, found in correlations().items():
        print(name, found, correlations(with_practical_temperature)[name])
