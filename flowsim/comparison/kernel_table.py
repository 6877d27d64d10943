"""What measured kernels say about many runs: numbers, curves and tables of a study of kernels."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from flowsim.base import processes
from flowsim.comparison import forecast, kernel_simulation
from flowsim.comparison.kernel_flow import gap_in_training, measured_kernels
from flowsim.comparison.record import CannotTell, Run
from flowsim.errors import FlowsimError
from flowsim.progress import Progress, silent
from flowsim.records.result import TrainingRecord

#: Least change of ln β, and least fall of ln Δ, of a piece that has an exponent.
_MOVED = 0.02
#: Flows of `kernel_simulation` whose curves are kept.
_FLOWS = ("frozen", "measured_again", "free_rows")


def kernel_numbers(records: Mapping[str, TrainingRecord], *, jobs: int = 1, progress: Progress = silent) -> xr.Dataset:
    """Compare every run of a study with the flows of its kernels, and forecast it.

    Args:
        records: Records by name ("vit full sgd, Baseline, seed 0").
        jobs: Runs compared at the same time, each in its own process.
        progress: Called as `progress("comparing", done, runs)`.

    Returns:
        A dataset over `run`: numbers of the items `kernel_simulation` and `forecast`; curves over `evaluation`;
        measured rates over `measurement`; and exponents d ln Δ/d ln β between measurements beside r_eff. Missing
        numbers are NaN.

    Raises:
        FlowsimError: If no record holds kernels.
    """
    calls = [(_row, (record,)) for record in records.values()]
    found_rows: dict[int, dict[str, Any]] = {}
    here = ((k, _row(silent, *given)) for k, (_, given) in enumerate(calls))
    for k, row in here if jobs == 1 else processes.run(calls, lambda index: silent, workers=jobs, single=True):
        found_rows[k] = row
        progress("comparing", len(found_rows), len(calls))
    rows = [found_rows[k] for k in range(len(calls))]
    if not any(np.isfinite(row["numbers"].get("rms_gap_frozen", np.nan)) for row in rows):
        raise FlowsimError("No record holds kernels. Train with `kernels=8`, or run flowsim clip kernel-study.")
    found = xr.Dataset(coords={"run": list(records)})
    parts = [name.split(", ") for name in records]
    for k, key in enumerate(("cell", "method", "seed")):
        found[key] = ("run", [part[k] if k < len(part) else "" for part in parts])
    for key in sorted({key for row in rows for key in row["numbers"]}):
        found[key] = ("run", [row["numbers"].get(key, np.nan) for row in rows])
    for part, dim in (("curves", "evaluation"), ("measured", "measurement")):
        longest = max(len(next(iter(row[part].values()), ())) for row in rows)
        for key in sorted({key for row in rows for key in row[part]}):
            padded = [_padded(row[part].get(key, np.empty(0)), longest) for row in rows]
            found[f"{part}_{key}"] = (("run", dim), np.array(padded, np.float32))
    return found


def _row(progress: Progress, record: TrainingRecord) -> dict[str, Any]:
    """Numbers, curves and measured rates of one run."""
    run = Run.of(record)
    numbers: dict[str, Any] = {}
    curves: dict[str, np.ndarray] = {}
    try:
        followed = kernel_simulation.measure(run)
        numbers |= {k: v for k, v in followed.numbers().items() if isinstance(v, (int, float))}
        curves |= {"step": followed.axis, "gap": followed.gap}
        curves |= {key: followed.flows[key].gap for key in _FLOWS}
        if run.log_tau is not None:
            assert run.step is not None
            curves["log_tau"] = run.log_tau[run.step >= followed.axis[0]]
            curves |= {f"log_tau_{key}": followed.flows[key].log_tau for key in _FLOWS}
    except CannotTell:
        pass
    try:
        ahead = forecast.measure(run)
        numbers |= {f"forecast_{k}": v for k, v in ahead.numbers().items() if isinstance(v, (int, float))}
        numbers |= {"forecast_beats": float(ahead.beats), "forecast_agrees": float(forecast.judge(ahead) == "agrees")}
        if curves:
            last = len(ahead.drawn.gap) - len(curves["step"])
            curves |= {key: getattr(ahead.drawn, key)[last:] for key in ("forecast", "low", "high")}
    except CannotTell:
        pass
    return {"numbers": numbers, "curves": curves, "measured": _measured(run)}


def _measured(run: Run) -> dict[str, np.ndarray]:
    """Rates over the measurements of a run, and the exponents until the next one."""
    record = run.trained_record
    if record is None or not len(record.kernel_step):
        return {}
    found = {"step": np.asarray(record.kernel_step, float)}
    wanted = ("own", "own_error", "shared", "shared_error")
    found |= {f"{t}_{k}": record.kernels[f"{t}_{k}"] for t in ("image", "text") for k in wanted}
    found |= {k: record.kernels[k] for k in ("gap_rate", "kernel_gap_rate", "velocity_error", "temperature_scale")}
    for tower in ("image", "text"):
        first, every = record.kernels[f"{tower}_matrix"][0], record.kernels[f"{tower}_matrix"]
        sizes = np.linalg.norm(first) * np.linalg.norm(every, axis=(1, 2))
        # Cosine between kernels: 1 while only their size changes.
        found[f"{tower}_alignment"] = np.sum(first * every, axis=(1, 2)) / np.maximum(sizes, 1e-300)
        spectrum = np.linalg.eigvalsh(every)
        found[f"{tower}_largest_share"] = spectrum[:, -1] / np.maximum(spectrum.sum(1), 1e-300)
    try:
        kernels = measured_kernels(run)
    except CannotTell:
        return found
    policy, beta = run.learnable, run.beta
    if policy is None or beta is None or run.step is None:
        return found
    at = np.searchsorted(run.step, kernels.step)
    gap, log_beta = np.log(gap_in_training(run)[at]), np.log(beta[at])
    fall, rise = np.diff(gap), np.diff(log_beta)
    good = (rise > _MOVED) & (fall < -_MOVED)
    slope = np.where(good, fall / np.where(good, rise, 1.0), np.nan)
    # Own and shared rates of both modalities, whose centres share the gap.
    common = np.mean([kernel.mean((1, 2)) for kernel in (kernels.image, kernels.text)], 0) * kernels.pairs
    found["slope"] = np.append(slope, np.nan)
    found["effective_lr_ratio"] = float(policy.lr_ratio) * kernels.temperature_scale / common
    return found


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    return np.concatenate([np.asarray(values, float), np.full(length - len(values), np.nan)])


def kernel_tables(numbers: xr.Dataset) -> dict[str, str]:
    """Tables of a study of kernels in Markdown, medians over methods and seeds.

    Args:
        numbers: The dataset of `kernel_numbers`.

    Returns:
        "flows": rms deviations of kernel flows and of free rows from the runs, with nothing fitted. "forecasts": errors
        relative to the gap at the start, and of ln τ. "step": how well the kernels describe the velocities of one step.
    """
    parts = list(numbers.groupby("cell"))
    return {
        "flows": _table(
            ("cell", "runs", "gap moved", "free rows", "first kernels", "measured again", "ln τ moved", "first kernels",
             "measured again"),
            [
                (cell, str(part.sizes["run"]), *(_median(part, key) for key in (
                    "spread_gap", "rms_gap_free_rows", "rms_gap_frozen", "rms_gap_measured_again", "spread_log_tau",
                    "rms_log_tau_frozen", "rms_log_tau_measured_again",
                )))
                for cell, part in parts
            ],
        ),
        "forecasts": _table(
            ("cell", "gap: kernels", "constant", "line in log t", "free rows", "ln τ: kernels", "constant", "line",
             "better than the line", "inside the interval"),
            [_forecasts(str(cell), part) for cell, part in parts],
        ),
        "step": _table(
            ("cell", "rate of the gap by the kernels / true, first", "in the middle", "last", "error of velocities, "
             "first", "in the middle", "last", "mean / differences, image", "text"),
            [_steps(str(cell), part) for cell, part in parts],
        ),
    }  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def _forecasts(cell: str, part: xr.Dataset) -> list[str]:
    start = part["forecast_gap_at_start"]
    gaps = [part[f"forecast_rms_error_{k}"] / start for k in ("forecast", "constant", "line_in_log_t", "free_rows")]
    taus = [f"forecast_rms_error_log_tau_{k}" for k in ("forecast", "constant", "line_in_log_t")]
    told = int(np.isfinite(gaps[0]).sum())
    inside = f"{100 * float(part['forecast_inside_interval'].mean()):.0f} %"
    better = f"{int((gaps[0] < gaps[2]).sum())} of {told}"
    return [cell, *(_number(g.to_numpy()) for g in gaps), *(_median(part, key) for key in taus), better, inside]


def _steps(cell: str, part: xr.Dataset) -> list[str]:
    """At the first, a middle and the last measurement; how much faster the mean moves is that of the first."""
    ratio = (part["measured_kernel_gap_rate"] / part["measured_gap_rate"]).to_numpy()
    error = part["measured_velocity_error"].to_numpy()
    last = np.isfinite(error).sum(1) - 1
    runs = np.arange(len(last))
    at = [(runs, np.zeros_like(last)), (runs, last // 2), (runs, last)]
    common = [
        1 + 64 * (part[f"measured_{tower}_shared"] / part[f"measured_{tower}_own"]).to_numpy()[:, 0]
        for tower in ("image", "text")
    ]
    return [cell, *(_number(ratio[k]) for k in at), *(_number(error[k]) for k in at), *(_number(c, 0) for c in common)]


def _number(values: np.ndarray, digits: int = 3) -> str:
    values = values[np.isfinite(values)]
    return f"{float(np.median(values)):.{digits}f}" if values.size else "-"


def _median(part: xr.Dataset, key: str) -> str:
    return _number(part[key].to_numpy()) if key in part else "-"
