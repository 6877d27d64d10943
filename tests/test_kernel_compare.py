"""Comparison of runs with the flow of their kernels: a run that is such a flow, and runs that are not."""

import dataclasses
from typing import Any

import numpy as np
import pytest

import flowsim as fs
from flowsim.base.paths import to_config
from flowsim.comparison import calibration
from flowsim.comparison.kernel_figure import kernel_figure
from flowsim.comparison.kernel_flow import KernelFlow, fitted_factor, flow_time, measured_kernels
from flowsim.comparison.kernel_table import kernel_numbers, kernel_tables
from flowsim.comparison.record import CannotTell, Run
from flowsim.records.result import SUM_OF_RATES, TrainingRecord
from flowsim.records.status import Outcome, Status

PAIRS, DIM, STEPS, LR = 10, 6, 400, 0.02


def matrices(seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Kernels with a common mode, differences, and a random part."""
    random = np.random.default_rng(seed)
    found = []
    for shared in (0.6, 0.2):
        part = random.standard_normal((PAIRS, PAIRS)) / np.sqrt(PAIRS)
        found.append(np.eye(PAIRS) + shared + 0.3 * part @ part.T)
    return found[0], found[1]


def a_run(
    speed: float = 1.0, said: float = 1.0, schedule: Any = None, training_pairs: int = PAIRS, **settings: Any
) -> TrainingRecord:
    """A "training" that follows the flow of its kernels times `speed`, and records kernels times `said`."""
    schedule = fs.schedules.get("Baseline") if schedule is None else schedule
    image, text = matrices()
    geometry = fs.Sphere(speed, fs.kernels.Dense(image), fs.kernels.Dense(text))
    policy = schedule.temperature
    step = np.unique(np.round(np.concatenate([[0], np.geomspace(1, STEPS, 60)])).astype(int))
    kernel_step = np.unique(np.concatenate([[0], [4, 20, 40], [round(0.2 * STEPS), STEPS]]).astype(int))
    step = np.union1d(step, kernel_step)
    time = LR * step
    moved = fs.GradientFlow(geometry, fs.Schedule(policy.clamped_to(0.01, 1.0) if policy.learnable else policy))
    start = fs.initial.cones(pairs=PAIRS, dim=DIM, height=0.6).draw(0)
    ran = fs.simulate(
        moved, start, ts=time, snapshots=time, rtol=1e-9, atol=1e-11,
        observables=("modality_gap", "inverse_temperature"),
    )  # fmt: skip
    at = np.searchsorted(step, kernel_step)
    snapshots = [ran.at(t) for t in time[at]]
    rows: Any = {
        "image": np.array([s.image for s in snapshots], np.float32),
        "text": np.array([s.text for s in snapshots], np.float32),
    }
    count = len(kernel_step)
    numbers = {
        f"{tower}_{key}": np.full(count, value)
        for tower in ("image", "text")
        for key, value in (("own", 1.3), ("own_error", 0.1), ("shared", 0.4), ("shared_error", 0.05))
    }
    kernels = {
        **rows,
        "image_matrix": np.tile(said * image, (count, 1, 1)).astype(np.float32),
        "text_matrix": np.tile(said * text, (count, 1, 1)).astype(np.float32),
        "temperature_scale": np.ones(count),
        **numbers, **{key: np.full(count, -1.0) for key in ("gap_rate", "kernel_gap_rate", "velocity_error")},
    }  # fmt: skip
    config = {
        "schedule": to_config(schedule),
        "training": {
            "model": "small", "data": "pairs", "optimizer": "sgd", "momentum": 0.0, "batch_size": PAIRS, "seed": 0,
            "steps": STEPS, "clamp": [0.01, 1.0], "augment": "centre", **settings,
        },
        "data": {"training_pairs": training_pairs},
    }  # fmt: skip
    return TrainingRecord(
        time=time,
        series={"modality_gap": ran.series["modality_gap"], "temperature": 1 / ran.series["inverse_temperature"]},
        status=Outcome(Status.COMPLETED, float(time[-1]), "training with sgd"), config=config, stats={}, versions={},
        snapshot_time=time[:1], snapshots={name: values[:1] for name, values in rows.items()}, constants={},
        clock=SUM_OF_RATES, coordinates={"step": step}, kernel_step=kernel_step, kernels=kernels,
    )  # fmt: skip


@pytest.fixture(scope="module")
def run() -> TrainingRecord:
    return a_run()


def test_a_run_that_is_the_flow_of_its_kernels_agrees(run):
    found = fs.compare(run, parts=["kernel_simulation", "forecast"])
    followed, ahead = found["kernel_simulation"], found["forecast"]
    assert followed.verdict == "agrees", followed.sentence
    assert followed.numbers["rms_gap_frozen"] < 2e-3
    assert followed.numbers["rms_gap_measured_again"] < 2e-3
    assert followed.numbers["rms_log_tau_frozen"] < 2e-3
    assert followed.numbers["rms_gap_free_rows"] > 20 * followed.numbers["rms_gap_frozen"]
    assert 0.9 < followed.numbers["factor"] < 1.1
    assert ahead.verdict == "agrees", ahead.sentence
    assert ahead.numbers["rms_error_forecast"] < 0.01
    assert ahead.numbers["rms_error_forecast"] < 0.2 * ahead.numbers["rms_error_line_in_log_t"]
    assert ahead.numbers["inside_interval"] > 0.9
    assert found.plot().axes


def test_wrong_kernels_disagree():
    found = fs.compare(a_run(said=0.1), parts=["kernel_simulation"])["kernel_simulation"]
    assert found.verdict == "disagrees"
    assert found.numbers["rms_gap_frozen"] > 0.1


def test_a_wrong_clock_is_found_by_the_factor():
    """The record says momentum 0.5, so that flow time would be twice as long."""
    found = fs.compare(a_run(momentum=0.5), parts=["kernel_simulation", "forecast"])
    followed, ahead = (found[name].numbers for name in ("kernel_simulation", "forecast"))
    assert followed["factor"] == pytest.approx(0.5, rel=0.1)
    assert followed["rms_gap_one_factor"] < 0.5 * followed["rms_gap_frozen"]
    assert ahead["factor"] == pytest.approx(0.5, rel=0.1)
    assert ahead["rms_error_forecast"] < 0.02


def test_momentum_lengthens_flow_time(run):
    other = a_run(momentum=0.5)
    step = np.array([0.0, 100.0])
    np.testing.assert_allclose(flow_time(Run.of(other), step), 2 * flow_time(Run.of(run), step))


def test_kernels_of_low_rank_survive_single_precision(run):
    random = np.random.default_rng(0)
    low = random.standard_normal((PAIRS, 2))
    matrix = np.tile((low @ low.T).astype(np.float32), (len(run.kernel_step), 1, 1))
    held = dataclasses.replace(run, kernels={**run.kernels, "image_matrix": matrix})
    kernels = measured_kernels(Run.of(held))
    np.testing.assert_allclose(kernels.image[0], low @ low.T, atol=1e-5)
    fs.kernels.Dense(kernels.image[0])


def test_minibatches_slow_down_what_only_a_row_feels():
    run = Run.of(a_run(training_pairs=8 * PAIRS))
    kernels = measured_kernels(run)
    for whole, found in zip(matrices(), (kernels.image[0], kernels.text[0]), strict=True):
        removed = (whole - found)[0, 0]
        np.testing.assert_allclose(whole - found, removed * np.eye(PAIRS), atol=1e-6)
        assert removed == pytest.approx(7 / 8 * np.linalg.eigvalsh(whole)[0], rel=1e-4)
        assert np.linalg.eigvalsh(found)[0] > 0
    found = fs.compare(run.result, parts=["kernel_simulation"])["kernel_simulation"]
    assert found.verdict == "cannot tell" and "minibatches" in found.sentence


@pytest.mark.parametrize("name", [pytest.param("FLT 4e-2", marks=pytest.mark.slow), "TS S3"])
def test_temperatures_in_progress_and_fixed_ones_are_followed(name):
    schedule = fs.schedules.get(name)
    run = a_run(schedule=schedule)
    found = fs.compare(run, parts=["kernel_simulation"])["kernel_simulation"]
    assert found.numbers["rms_gap_frozen"] < 5e-3, found.sentence
    assert found.numbers["rms_log_tau_frozen"] is None


def test_swaps_are_steps_of_the_run():
    run = a_run(schedule=fs.schedules.get("HS 1e-2"))
    flow = KernelFlow(Run.of(run), measured_kernels(Run.of(run)), 0)
    curve = flow.at()
    assert np.isfinite(curve.gap).all()
    # The record itself has no swaps: at first both agree, and then swaps close the gap further.
    apart = run.series["modality_gap"] - curve.gap
    assert np.abs(apart[:10]).max() < 0.02
    assert apart[-1] > 0.1


def test_the_factor_is_found_from_few_evaluations(run):
    faster = a_run(speed=3.0)
    kernels = measured_kernels(Run.of(faster))
    flow = KernelFlow(Run.of(faster), kernels, 0, until=80.0)
    gap = faster.series["modality_gap"][: len(flow.step)]
    assert fitted_factor(flow, gap, None) == pytest.approx(3.0, rel=0.1)
    same = KernelFlow(Run.of(run), measured_kernels(Run.of(run)), 0)
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 13))
    direct = [same.at(float(f)).gap for f in grid[[2, 6, 9]]]
    np.testing.assert_allclose(same.scan[0][[2, 6, 9]], direct, atol=5e-3)


def test_what_is_missing_is_said(run):
    bare = dataclasses.replace(run, kernel_step=np.empty(0, int), kernels={})
    found = fs.compare(bare, parts=["kernel_simulation", "forecast"])
    for item in found.items.values():
        assert item.verdict == "cannot tell" and "kernels=8" in item.sentence
    frozen = {**run.kernels, "image_matrix": np.zeros_like(run.kernels["image_matrix"])}
    with pytest.raises(CannotTell, match="frozen tower"):
        measured_kernels(Run.of(dataclasses.replace(run, kernels=frozen)))
    with pytest.raises(CannotTell, match="not normalised"):
        measured_kernels(Run.of(a_run(normalize=False)))
    late = run.kernel_step >= 80
    few = dataclasses.replace(
        run, kernel_step=run.kernel_step[late], kernels={k: v[late] for k, v in run.kernels.items()}
    )
    assert "Fewer than two kernels" in fs.compare(few, parts=["forecast"])["forecast"].sentence


def test_numbers_and_tables_of_a_study(run, tmp_path):
    records = {"vit full slow-sgd, Baseline, seed 0": run, "vit minibatch adamw, Baseline, seed 0": a_run(said=0.5)}
    numbers = kernel_numbers(records)
    single = fs.compare(run, parts=["kernel_simulation"])["kernel_simulation"].numbers
    assert float(numbers["rms_gap_frozen"][0]) == pytest.approx(single["rms_gap_frozen"])
    tables = kernel_tables(numbers)
    assert f"| vit full slow-sgd | 1 | {single['spread_gap']:.3f} |" in tables["flows"]
    assert "1 of 1" in tables["forecasts"] and tables["step"].count("\n") == 3
    fs.plot.save(kernel_figure(numbers), tmp_path / "kernels.png")
    assert (tmp_path / "kernels.png").stat().st_size > 10_000
    bare = dataclasses.replace(run, kernel_step=np.empty(0, int), kernels={})
    with pytest.raises(fs.FlowsimError, match="No record holds kernels"):
        kernel_numbers({"a": bare})


def test_both_fractions_of_a_run_that_is_seen_are_one():
    """Training measures kernels where a forecast begins."""
    plan = pytest.importorskip("flowsim.clip.plan")
    assert plan.SEEN == calibration.SEEN
