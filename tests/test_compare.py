"""Every item of a comparison agrees with a system where it must, and disagrees with one where it must."""

import dataclasses
import json
import subprocess
import sys

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import flowsim as fs
from flowsim import cli, theory
from flowsim.base.paths import to_config
from flowsim.cli.output import plain
from flowsim.comparison import names
from flowsim.comparison.enlargement import INITIALISATIONS
from flowsim.comparison.items import REGISTRY
from flowsim.comparison.statistics import fit_slope
from flowsim.records.result import SUM_OF_RATES, Result, TrainingRecord
from flowsim.records.status import Outcome, Status

LINEAR = np.linspace(0.0, 20.0, 257)


def record(steps, gap, *, training=None, schedule=None, snapshots=None, at=(), lr=1e-3, **series) -> TrainingRecord:
    """A record of training, made by hand."""
    steps = np.asarray(steps, np.float64)
    described = {"model": "tiny", "data": "pairs", "optimizer": "adamw", "batch_size": 5, "steps": int(steps[-1])}
    return TrainingRecord(
        time=lr * steps,
        series={"modality_gap": np.asarray(gap, np.float64), **series},
        status=Outcome(Status.COMPLETED, lr * steps[-1], "adamw"),
        config={
            "kind": "training",
            "schedule": to_config(schedule or fs.Schedule()),
            "training": described | (training or {}),
            "evaluation": {"pairs": 64},
        },
        stats={},
        versions={},
        snapshot_time=np.asarray(at, np.float64),
        snapshots=snapshots or {},
        constants={},
        clock=SUM_OF_RATES,
        coordinates={"step": steps, "epoch": steps / 100, "progress": steps / steps[-1]},
    )


def with_series(result: Result, **series) -> Result:
    return dataclasses.replace(result, series={**result.series, **series})


@pytest.fixture(scope="module")
def rings() -> Result:
    """Figure 2's run: βΔ⁵ is conserved, and pairs are matched after the peak of the gap."""
    return fs.simulate(fs.GradientFlow(), fs.initial.rings(), t1=1e5)


@pytest.fixture(scope="module")
def early() -> Result:
    """The same run until t = 20, evenly in time: a fifth of it ends just before the pairs are matched."""
    return fs.simulate(fs.GradientFlow(), fs.initial.rings(), ts=LINEAR)


@pytest.fixture(scope="module")
def parallel() -> Result:
    return fs.simulate(fs.GradientFlow(fs.Parallel()), fs.initial.matched(pairs=5, dim=2, gamma=0.4), t1=1e5)


@pytest.fixture(scope="module")
def descent() -> Result:
    """Plain gradient descent in finite steps."""
    return fs.descend(fs.GradientFlow(), fs.initial.rings(), optimizer="sgd", lr=4e-3, steps=5000)


# --- (a) simulation -------------------------------------------------------------------------------------------


def test_a_simulation_follows_gradient_descent(descent):
    item = fs.compare(descent, parts=["simulation"])["simulation"]
    assert item.verdict == "agrees"
    assert item.numbers["pairs"] == 5
    assert item.numbers["time_factor"] == pytest.approx(1.0, abs=0.05)
    low, high = item.numbers["time_factor_interval"]
    assert low <= item.numbers["time_factor"] * 1.001 and high >= item.numbers["time_factor"] * 0.999
    # First order in the learning rate, and in units of the observables.
    assert item.numbers["rms_gap"] < 5 * 4e-3
    assert item.numbers["relative_gap"] == pytest.approx(item.numbers["rms_gap"] / item.numbers["spread_gap"])
    assert "5 pairs at the start" in item.sentence


def test_a_simulation_on_the_sphere_does_not_follow_parallel_cones(parallel):
    item = fs.compare(parallel, parts="simulation")["simulation"]
    assert item.verdict == "disagrees"
    assert item.numbers["relative_gap"] > 0.5 or item.numbers["relative_log_tau"] > 0.5
    # From the peak on, the closed form of parallel cones is nearer, which is drawn beside it.
    assert item.numbers["closed_form_relative_gap"] < 0.5


def test_a_forged_gap_is_not_simulated(early):
    upside = with_series(early, modality_gap=1.7 - early.series["modality_gap"])
    assert fs.compare(upside, parts="simulation")["simulation"].verdict == "disagrees"


def test_a_simulation_starts_after_the_first_epoch_and_from_training_pairs(early):
    kept = [0, 40, 256]
    rows = [early.at(float(early.time[i])) for i in kept]
    steps = np.arange(257)
    forged = np.full(257, np.nan)
    made = record(
        steps,
        forged,
        at=1e-3 * np.asarray(kept),
        lr=1e-3,
        snapshots={"image": np.stack([r.image for r in rows]), "text": np.stack([r.text for r in rows])},
        seen_modality_gap=early.series["modality_gap"],
        temperature=early.series["temperature"],
    )
    made.coordinates["epoch"] = steps / 40
    item = fs.compare(made, parts="simulation")["simulation"]
    assert item.verdict == "agrees"
    assert item.numbers["start"] == "after the first epoch"
    assert item.numbers["time_factor"] == pytest.approx(20 / 256 / 1e-3, rel=0.02)
    made.coordinates["epoch"] = steps / 400  # less than one epoch
    assert fs.compare(made, parts="simulation")["simulation"].numbers["start"] == "at the start"


# --- (b) exponent -----------------------------------------------------------------------------------------------


def test_parallel_cones_meet_their_exponent_and_not_the_spheres(parallel):
    item = fs.compare(parallel, parts="exponent")["exponent"]
    assert item.verdict == "agrees"
    laws = item.numbers["laws"]
    assert laws["parallel"]["verdict"] == "agrees"
    assert laws["parallel"]["fit"] == pytest.approx(-2.0, abs=1e-6)
    assert laws["sphere"]["verdict"] == "disagrees"
    assert laws["sphere"]["prediction"] == theory.sphere_exponent(5)


def test_rings_on_the_sphere_meet_their_exponent_and_not_that_of_cones(rings):
    item = fs.compare(rings, parts="exponent")["exponent"]
    assert item.verdict == "agrees"
    assert item.numbers["exponent"] == pytest.approx(-0.2, abs=1e-8)
    assert {k: law["verdict"] for k, law in item.numbers["laws"].items()} == {
        "parallel": "disagrees",
        "sphere": "agrees",
    }


def test_the_exponent_of_a_scaled_temperature(parallel):
    """The law follows the parametrization: the same record under another schedule is refused."""
    flow = fs.GradientFlow(fs.Parallel(), fs.Schedule(fs.temperature.Learnable(lr_ratio=0.5)))
    other = dataclasses.replace(parallel, config={**parallel.config, "flow": flow.to_config()})
    item = fs.compare(other, parts="exponent")["exponent"]
    assert item.numbers["laws"]["parallel"]["prediction"] == -4.0
    assert item.verdict == "disagrees"


def test_another_power_agrees_with_no_law(rings):
    noise = np.random.default_rng(0).normal(0, 0.01, len(rings.time))
    forged = with_series(rings, modality_gap=rings.series["inverse_temperature"] ** (-0.3) * np.exp(noise))
    item = fs.compare(forged, parts="exponent")["exponent"]
    assert item.verdict == "disagrees"
    low, high = item.numbers["interval"]
    assert low < -0.3 < high and high - low < 0.02


def test_noise_leaves_the_exponent_open(rings):
    noise = np.random.default_rng(0).normal(0, 3.0, len(rings.time))
    forged = with_series(rings, modality_gap=0.1 * rings.series["inverse_temperature"] ** (-2) * np.exp(noise))
    assert fs.compare(forged, parts="exponent")["exponent"].numbers["laws"]["sphere"]["verdict"] != "agrees"
    assert fs.compare(forged, parts="exponent")["exponent"].verdict == "cannot tell"


def test_a_temperature_that_rests_says_nothing():
    steps = np.arange(0, 300, 10)
    still = record(steps, np.linspace(1.4, 0.4, 30), inverse_temperature=np.linspace(14.3, 14.6, 30))
    item = fs.compare(still, parts="exponent")["exponent"]
    assert item.verdict == "cannot tell" and "hardly moved" in item.sentence
    fixed = record(steps, np.linspace(1.4, 0.4, 30), schedule=fs.schedules.get("FLT 4e-2"))
    item = fs.compare(fixed, parts="exponent")["exponent"]
    assert item.verdict == "cannot tell" and "not learned" in item.sentence
    clamped = fs.Schedule(fs.temperature.Learnable(clamp=(0.01, 1.0)))
    stuck = record(steps, np.linspace(1.4, 0.4, 30), schedule=clamped, inverse_temperature=np.full(30, 100.0))
    assert "free temperature" in fs.compare(stuck, parts="exponent")["exponent"].sentence


# --- (c) slow closing -------------------------------------------------------------------------------------------

STEPS = np.unique(np.concatenate([[0], np.geomspace(1, 10_000, 120).round()]))


def closing(gap) -> fs.Comparison:
    return fs.compare(record(STEPS, gap), parts=["slow_closing"])


def test_a_gap_that_closes_like_the_theorem_is_straight():
    rng = np.random.default_rng(1)
    with np.errstate(divide="ignore"):
        law = 0.05 + 12 / np.log(np.maximum(STEPS, 1.5)) ** 2
    for noise in (0.0, 0.005):
        item = closing(law + noise * rng.normal(size=len(STEPS)))["slow_closing"]
        assert item.verdict == "agrees"
        assert item.numbers["slope"] == pytest.approx(-12, rel=0.05)
        assert item.numbers["slope_interval"][0] - 0.1 <= -12 <= item.numbers["slope_interval"][1] + 0.1
        assert item.numbers["limit"] == pytest.approx(0.05, abs=0.02)
        assert item.numbers["straight_until"] == 10_000
        assert "reaches only 10" not in item.sentence


def test_where_it_stops_being_straight():
    law = 0.05 + 12 / np.log(np.maximum(STEPS, 1.5)) ** 2
    item = closing(np.maximum(law, law[STEPS <= 1000].min()))["slow_closing"]
    assert item.verdict == "disagrees"
    assert 800 < item.numbers["straight_until"] < 2500


@pytest.mark.parametrize(
    "gap",
    [np.exp(-STEPS / 1500), 1.2 - 0.1 * np.log(STEPS + 1), 0.2 + 0.08 * np.log(STEPS + 1)],
    ids=["exponential", "line in log t", "growing"],
)
def test_other_gaps_are_not(gap):
    assert closing(gap)["slow_closing"].verdict == "disagrees"


def test_a_gap_that_rests_says_nothing():
    assert closing(np.full(len(STEPS), 0.8))["slow_closing"].verdict == "cannot tell"
    short = fs.compare(record(np.arange(50), np.linspace(1, 0.5, 50)), parts="slow_closing")["slow_closing"]
    assert short.verdict == "cannot tell" and "too short" in short.sentence


def test_few_evaluations_are_filled_from_the_batches():
    k = np.arange(1, 5001)
    batch = 0.05 + 12 / np.log(np.maximum(k, 1.5)) ** 2 + np.random.default_rng(0).normal(0, 0.03, 5000)
    few = dataclasses.replace(record([0, 2500, 5000], [1.0, 0.5, 0.4]), training={"train_modality_gap": batch})
    item = fs.compare(few, parts="slow_closing")["slow_closing"]
    assert item.numbers["source"] == "batches" and item.verdict == "agrees"


# --- (d) enlargement ----------------------------------------------------------------------------------------------


def starts(changes) -> list[Result]:
    steps = np.concatenate([np.arange(11), [100]])
    return [record(steps, np.concatenate([0.6 + c * np.arange(11) / 10, [0.1]])) for c in changes]


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        (np.linspace(0.05, 0.3, 8), "agrees"),
        (-np.linspace(0.05, 0.3, 8), "disagrees"),
        (np.linspace(-0.2, 0.25, 8), "cannot tell"),
        ([0.2], "cannot tell"),
    ],
)
def test_the_sign_of_the_early_change(changes, verdict):
    item = fs.compare(*starts(changes), parts="enlargement")["enlargement"]
    assert item.verdict == verdict
    assert item.numbers["records"] == len(changes)
    assert item.numbers["grew"] == np.sum(np.asarray(changes) > 0)
    assert item.numbers["mean_change"] == pytest.approx(np.mean(changes))
    if len(changes) > 1:
        low, high = item.numbers["mean_change_interval"]
        assert low < np.mean(changes) < high


def test_enlargement_beside_theorem_3_3(rings):
    """Uniform directions in cones grow apart, on the same clock as the theorem."""
    ts = np.concatenate([[0.0], np.geomspace(1e-4, 1e-2, 256)])
    runs = [
        fs.simulate(fs.GradientFlow(), fs.initial.uniform(pairs=5, dim=2, gamma=0.5), ts=ts, seed=seed)
        for seed in range(8)
    ]
    item = fs.compare(*runs, parts="enlargement")["enlargement"]
    assert item.verdict == "agrees"
    theorem = item.numbers["theorem_3_3"]
    gamma = theorem["gamma0"]
    assert theorem["limit"] == pytest.approx(theory.theorem_3_3_limit(theorem["beta0"], gamma, 2))
    assert theorem["vacuous"] and "vacuous" in item.sentence
    assert theorem["measured_rate"] > 0
    # Adam's clock is not the theorem's.
    adam = starts([0.1] * 8)
    sizes = {**adam[0].config, "embed_dim": 5}
    adam[0] = dataclasses.replace(adam[0], config=sizes)
    adam[0].series["temperature"] = np.full(12, 0.07)
    assert fs.compare(*adam, parts="enlargement")["enlargement"].numbers["theorem_3_3"]["measured_rate"] is None
    assert "only its sign can be compared" in fs.compare(*adam, parts="enlargement")["enlargement"].sentence


# --- (e) matching ---------------------------------------------------------------------------------------------------


def test_the_gap_of_figure_2_closes_after_matching(rings):
    item = fs.compare(rings, parts="matching")["matching"]
    assert item.verdict == "agrees"
    assert item.numbers["gap_peak_at"] == pytest.approx(theory.FIGURE_2["peak_time"], rel=0.1)
    assert item.numbers["all_matched_at"] == pytest.approx(theory.FIGURE_2["matching_time"], rel=0.1)
    assert item.numbers["defect_last"] < 1e-12


def test_a_gap_that_closes_without_matching_tells_nothing_and_one_that_grows_again_disagrees(rings):
    never = with_series(rings, matched_fraction=np.zeros(257), margin=np.full(257, -1.0))
    item = fs.compare(never, parts="matching")["matching"]
    assert item.verdict == "cannot tell" and item.numbers["closed_before_half_matched"] == 1
    late = rings.time > 1e3
    again = with_series(rings, modality_gap=rings.series["modality_gap"] + np.where(late, 0.2, 0.0))
    assert fs.compare(again, parts="matching")["matching"].verdict == "disagrees"
    growing = with_series(rings, modality_gap=np.linspace(0.5, 0.9, 257))
    assert fs.compare(growing, parts="matching")["matching"].verdict == "cannot tell"


# --- (f) calibration ------------------------------------------------------------------------------------------------


def test_a_hidden_clock_is_found_and_the_rest_predicted(early):
    hidden = dataclasses.replace(early, time=early.time / 3.7, snapshot_time=early.snapshot_time / 3.7)
    item = fs.compare(hidden, parts="calibration")["calibration"]
    assert item.verdict == "agrees"
    assert item.numbers["time_factor"] == pytest.approx(3.7, rel=0.02)
    assert item.numbers["noise"] == 0
    assert item.numbers["rms_error"] < 0.05 * item.numbers["rms_error_constant"]
    assert item.numbers["relative_to_better_baseline"] < 0.2
    assert "beats both" in item.sentence


def test_a_schedule_that_jumps_is_not_predicted(early):
    """From a fifth on the run goes another way than its schedule says: the temperature is held high."""
    cut = int(np.searchsorted(LINEAR, 4.0)) + 1
    rows = early.at(float(LINEAR[cut]))
    held = fs.Schedule(fs.temperature.Learnable(init=1.5, lr_ratio=1e-6))
    other = fs.simulate(fs.GradientFlow(schedule=held), fs.initial.from_arrays(rows.image, rows.text), ts=LINEAR)
    jump = {}
    for name in ("modality_gap", "temperature", "inverse_temperature"):
        jump[name] = np.concatenate([early.series[name][:cut], other.series[name][: 257 - cut]])
    item = fs.compare(with_series(early, **jump), parts="calibration")["calibration"]
    assert item.numbers["misfit_seen"] < 0.02
    assert item.verdict == "disagrees"
    assert item.numbers["relative_to_spread"] > 1


@pytest.mark.slow
def test_label_noise_is_found():
    flow = fs.GradientFlow(schedule=fs.Schedule(fs.temperature.Learnable(lr_ratio=0.2)), pairing=fs.LabelNoise(0.1))
    start = fs.initial.uniform(pairs=8, dim=4, gamma=0.5)
    noisy = fs.simulate(flow, start, ts=np.linspace(0.0, 60.0, 257), observables=("modality_gap", "temperature"))
    item = fs.compare(noisy, parts="calibration")["calibration"]
    assert item.numbers["noise"] == 0.1
    assert item.numbers["time_factor"] == pytest.approx(1.0, rel=0.05)
    assert item.verdict == "agrees"


@pytest.mark.slow
def test_a_schedule_in_progress_is_simulated_for_every_factor():
    flow = fs.GradientFlow(schedule=fs.schedules.get("TS S3"))
    ran = fs.descend(flow, fs.initial.rings(), optimizer="sgd", lr=1e-3, steps=5000)
    item = fs.compare(ran, parts="simulation")["simulation"]
    assert item.verdict == "agrees"
    assert item.numbers["time_factor"] == pytest.approx(1e-3, rel=0.3)  # flow time per step
    assert item.numbers["time_factor_interval"] is None


# --- what is missing, and what is wrong -------------------------------------------------------------------------


def test_what_is_missing_is_said_and_never_raised():
    bare = dataclasses.replace(record(np.arange(3), [1.0, 1.1, 0.9]), config={})
    found = fs.compare(bare)
    assert list(found.items) == list(names())
    assert set(found.verdicts.values()) == {"cannot tell"}
    assert all(item.sentence.endswith(".") for item in found.items.values())
    with pytest.raises(fs.FlowsimError, match="nothing to draw"):
        found.plot()
    text = repr(found)
    assert text.startswith("Comparison of the flow") and len(text.splitlines()) == 9
    assert json.loads(json.dumps(plain(found.to_dict()), allow_nan=False))["items"][0]["verdict"] == "cannot tell"


def test_wrong_input_is_refused_in_a_sentence(rings, tmp_path):
    with pytest.raises(fs.FlowsimError, match="There is no file"):
        fs.compare(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("no")
    with pytest.raises(fs.FlowsimError, match="Cannot read"):
        fs.compare(tmp_path / "text.nc")
    with pytest.raises(fs.FlowsimError, match="no modality gap"):
        fs.compare(dataclasses.replace(rings, series={"loss": rings.series["loss"]}))
    with pytest.raises(fs.FlowsimError, match="Did you mean 'exponent'"):
        fs.compare(rings, parts=["exponents"])
    with pytest.raises(fs.FlowsimError, match="Unknown item"):
        fs.compare(rings, parts=["exponent"])["matching"]
    with pytest.raises(fs.FlowsimError, match="cannot be written as"):
        fs.compare(rings, parts=["exponent"]).save(tmp_path / "figure.doc")


def test_compare_is_the_function_whatever_was_imported_first():
    code = (
        "import flowsim.comparison.compare, flowsim as fs; from flowsim.comparison import compare; "
        "print(fs.compare is compare and callable(compare))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "True"
    assert callable(fs.compare)


# --- figure and command line ----------------------------------------------------------------------------------------


def test_items_come_in_the_order_of_the_registry():
    assert names() == (
        "simulation", "exponent", "slow_closing", "enlargement", "matching", "calibration", "kernel_simulation",
        "forecast",
    )  # fmt: skip
    assert all(part.name == name and part.criterion and part.panels for name, part in REGISTRY.items())


@pytest.fixture(scope="module")
def everything(early, tmp_path_factory):
    """All items on one saved run, with others of its kind for the early enlargement."""
    folder = tmp_path_factory.mktemp("runs")
    others = starts(np.linspace(0.05, 0.3, 8))
    paths = [early.save(folder / "run.nc")] + [r.save(folder / f"start{i}.nc") for i, r in enumerate(others)]
    return paths, fs.compare(*paths)


def test_the_figure_has_a_panel_for_every_item(everything, tmp_path):
    figure = everything[1].plot()
    assert len(figure.axes) >= 6
    assert all(ax.get_xlabel() and ax.get_ylabel() for ax in figure.axes)
    for suffix in ("png", "pdf"):
        path = everything[1].save(tmp_path / f"figure.{suffix}")
        assert path.stat().st_size > 10_000


def test_the_words(everything):
    found = everything[1]
    assert repr(found).startswith("Comparison of run.nc: the flow on Sphere and 8 others")
    assert "<td style='text-align:left'>matching</td>" in found._repr_html_()
    assert found["simulation"].verdict == "agrees"
    assert found.verdicts["enlargement"] == "agrees"


def test_the_command_line(everything, tmp_path, capsys):
    paths = [str(p) for p in everything[0]]
    out = tmp_path / "figure.png"
    assert cli.main(["compare", *paths, "--json", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert [item["name"] for item in json.loads(printed.out)["items"]] == list(everything[1].items)
    assert out.is_file() and "Saved" in printed.err
    for arguments, says in (
        (["compare"], "takes one RUN.nc or more"),
        (["compare", "none.nc"], "There is no file"),
        (["compare", paths[0], "--out", "figure.txt"], "takes a .png or .pdf or .svg file"),
    ):
        assert cli.main(arguments) == 2
        assert says in capsys.readouterr().err


# --- verdicts that fewer data cannot carry ------------------------------------------------------------------------


def correlated(rho: float, count: int, rng: np.random.Generator) -> np.ndarray:
    """AR(1) deviations of unit variance."""
    drawn = rng.normal(size=count)
    for i in range(1, count):
        drawn[i] = rho * drawn[i - 1] + np.sqrt(1 - rho**2) * drawn[i]
    return drawn


@pytest.mark.parametrize("count", [30, 100])
@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_the_intervals_of_slopes_cover(rho, count):
    rng = np.random.default_rng(3)
    x, hits = np.log(np.geomspace(100, 10_000, count)), 0
    for _ in range(40):
        low, high = fit_slope(x, 2 - 0.3 * x + 0.2 * correlated(rho, count, rng))[1]
        hits += low <= -0.3 <= high
    # Of 40 intervals that cover with 0.92, fewer than 32 cover with probability 0.005.
    assert hits >= 32


def test_the_intervals_of_slopes_are_not_needlessly_wide():
    rng = np.random.default_rng(4)
    x = np.linspace(0, 1, 100)
    ends = [fit_slope(x, x + 0.1 * rng.normal(size=100))[1] for _ in range(20)]
    textbook = 2 * 1.98 * 0.1 / np.sqrt(100 * np.var(x))
    assert np.median([high - low for low, high in ends]) < 1.6 * textbook


def learned(power, beta=None, *, clamp=None, noise=0.0, **options) -> Result:
    """A record whose gap is a power of β, with the temperature learned."""
    beta = np.geomspace(10, 30, 40) if beta is None else np.asarray(beta)
    gap = beta**power * np.exp(noise * np.random.default_rng(0).normal(size=len(beta)))
    schedule = fs.Schedule(fs.temperature.Learnable(init=1 / beta[0], clamp=clamp))
    return record(np.arange(len(beta)) * 10, gap, schedule=schedule, inverse_temperature=beta, **options)


def power_of(result: Result) -> str:
    return fs.compare(result, parts="exponent")["exponent"].verdict


def test_a_power_that_a_law_has_and_one_that_none_has():
    assert power_of(learned(-0.2)) == "agrees"  # the sphere's with 5 pairs
    assert power_of(learned(-0.7)) == "disagrees"


def with_rows(result: Result, rows, **changed) -> Result:
    series = {k: v.copy() for k, v in result.series.items()}
    for name, value in changed.items():
        series[name][rows] = value
    return dataclasses.replace(result, series=series)


RISING, SHORT = np.geomspace(10, 30, 40), np.geomspace(10, 13, 40)


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda: learned(-0.2, np.minimum(RISING, 12.0), clamp=(1 / 12.0, 1.0)), id="upper bound"),
        pytest.param(lambda: learned(-0.2, np.minimum(RISING, 29.0), clamp=(1 / 29.0, 1.0)), id="one of 40 at a bound"),
        pytest.param(lambda: learned(-0.2, np.maximum(RISING[::-1], 15.0), clamp=(0.01, 1 / 15.0)), id="lower bound"),
        pytest.param(lambda: with_rows(learned(-0.2), slice(20, None), modality_gap=np.nan), id="no gap at the end"),
        pytest.param(lambda: with_rows(learned(-0.2), slice(0, 20), inverse_temperature=np.nan), id="no temperature"),
        pytest.param(lambda: with_rows(learned(-0.2), slice(0, None, 2), modality_gap=np.nan), id="every second gap"),
        pytest.param(lambda: learned(-0.2, SHORT), id="a small change of the temperature"),
        pytest.param(lambda: learned(-0.2, np.concatenate([RISING[:40:8], np.full(35, 30.0)])), id="at rest"),
        pytest.param(lambda: learned(-0.2, np.geomspace(10, 30, 6)), id="few evaluations"),
    ],
)
def test_a_shortened_window_decides_on_no_law(cut):
    assert power_of(cut()) == "cannot tell"


@pytest.mark.parametrize("bound", [13.0, 15.0, 18.0])
def test_a_clamp_does_not_turn_another_power_into_a_law(bound):
    """The gap closes as β⁻² up to the bound only: seen whole it meets no law, and cut there it decides nothing."""
    gap = np.where(bound > RISING, RISING**-2.0, bound**-2.0 * (RISING / bound) ** -0.5)
    assert power_of(with_rows(learned(-2.0), slice(None), modality_gap=gap)) != "agrees"
    cut = learned(-2.0, np.minimum(RISING, bound), clamp=(1 / bound, 1.0))
    assert power_of(with_rows(cut, slice(None), modality_gap=gap)) == "cannot tell"


def test_a_bound_between_two_evaluations_is_seen_in_the_steps():
    run = learned(-0.2, clamp=(0.02, 1.0))
    assert power_of(run) == "agrees"
    tau = np.interp(np.arange(390), 10 * np.arange(40), 1 / RISING)
    tau[205] = 0.02
    run = dataclasses.replace(run, training={"train_temperature": tau})
    item = fs.compare(run, parts="exponent")["exponent"]
    assert item.verdict == "cannot tell" and "1 of 390 steps" in item.sentence


def test_a_bent_curve_has_no_exponent():
    x = np.log(RISING / 10)
    bent = with_rows(learned(-0.2), slice(None), modality_gap=np.exp(-0.2 * x**2 / x[-1]))
    item = fs.compare(bent, parts="exponent")["exponent"]
    assert item.numbers["exponent"] == pytest.approx(-0.2, rel=0.1)
    assert item.numbers["laws"]["sphere"]["verdict"] != "agrees"


def descended(pairs: int, batch: int, steps: int = 3000, lr: float = 0.02, seed: int = 0) -> Result:
    """Stochastic gradient descent on free unit rows, in minibatches; every pair is recorded."""
    rng = np.random.default_rng(seed)
    rows = [rng.normal(size=(pairs, 4)) + shift for shift in ([1, 0, 0, 0], [-1, 0, 0, 0])]
    image, text = (r / np.linalg.norm(r, axis=1, keepdims=True) for r in rows)
    nu, kept, seen = np.log(10.0), [], []
    for k in range(steps + 1):
        if k % 50 == 0:
            seen.append((k, np.linalg.norm((image - text).mean(0)), np.exp(nu)))
            if k in (0, steps):
                kept.append((image.copy(), text.copy()))
        at = rng.permutation(pairs)[:batch]
        x, y, beta = image[at], text[at], np.exp(nu)
        cosines = x @ y.T
        p, q = (np.exp(beta * (cosines - cosines.max(axis, keepdims=True))) for axis in (1, 0))
        slope = (p / p.sum(1, keepdims=True) + q / q.sum(0, keepdims=True)) / 2 - np.eye(batch)
        for moved, force in ((image, slope @ y), (text, slope.T @ x)):
            moved[at] -= lr * beta * force / batch
            moved /= np.linalg.norm(moved, axis=1, keepdims=True)
        nu -= lr * beta * np.sum(slope * cosines) / batch
    step, gap, beta = np.array(seen).T
    return record(
        step,
        gap,
        lr=lr,
        training={"batch_size": batch},
        at=lr * np.array([0, steps]),
        inverse_temperature=beta,
        snapshots={name: np.stack([rows[i] for rows in kept]) for i, name in enumerate(("image", "text"))},
    )


def test_full_batches_are_simulated():
    item = fs.compare(descended(8, 8), parts="simulation")["simulation"]
    assert item.verdict == "agrees"
    assert item.numbers["time_factor"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("pairs", "batch"), [(16, 8), (16, 15), (12, 2)])
def test_minibatches_are_simulated_without_a_verdict(pairs, batch):
    found = fs.compare(descended(pairs, batch), parts=["simulation", "exponent"])
    assert found["simulation"].verdict == "cannot tell"
    assert f"minibatches of {batch} of {pairs} pairs" in found["simulation"].sentence
    laws = found["exponent"].numbers.get("laws")
    assert laws is None or laws["sphere"]["verdict"] == "cannot tell"


@pytest.mark.parametrize("changed", ["more were trained", "more are in the batch", "calibration"])
def test_a_part_of_the_pairs_gives_no_verdict(changed, early):
    full = descended(8, 8)
    config = full.config | ({"data": {"training_pairs": 64}} if changed != "more are in the batch" else {})
    training = config["training"] | {"batch_size": 64 if changed != "calibration" else 8}
    part = dataclasses.replace(full, config=config | {"training": training})
    name = "calibration" if changed == "calibration" else "simulation"
    item = fs.compare(part, parts=name)[name]
    assert item.verdict == "cannot tell"
    assert ("minibatches" if changed == "calibration" else "only 8 of the run's 64 pairs") in item.sentence


@pytest.mark.parametrize("change", [-0.2, 0.2])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_fewer_than_six_initialisations_decide_nothing(change, count):
    item = fs.compare(*starts(change * (1 + 0.01 * np.arange(count))), parts="enlargement")["enlargement"]
    assert item.verdict == "cannot tell" and "at least 6 initialisations are needed" in item.sentence
    item = fs.compare(*starts(change * (1 + 0.01 * np.arange(6))), parts="enlargement")["enlargement"]
    assert item.verdict == ("agrees" if change > 0 else "disagrees")


def test_six_is_the_fewest_whose_agreement_has_an_interval_above_a_half():
    from scipy.stats import binomtest

    low = [binomtest(n, n).proportion_ci().low for n in (INITIALISATIONS - 1, INITIALISATIONS)]
    assert low[0] < 0.5 < low[1]


def test_one_record_given_again_is_one_initialisation():
    item = fs.compare(*starts([0.2] * 8), parts="enlargement")["enlargement"]
    assert item.verdict == "cannot tell"
    assert item.numbers["records"] == 1 and item.numbers["equal_records"] == 7


def test_growth_in_number_and_shrinking_on_average_decide_nothing():
    mixed = [*np.linspace(0.001, 0.002, 60), -0.59, -0.58, -0.57, -0.56, -0.55, -0.54]
    item = fs.compare(*starts(mixed), parts="enlargement")["enlargement"]
    assert item.numbers["fraction_interval"][0] > 0.5 and item.numbers["mean_change_interval"][1] < 0
    assert item.verdict == "cannot tell"


@pytest.mark.parametrize("seed", range(5))
def test_a_noisy_gap_at_rest_neither_closes_nor_grows(seed):
    noise = correlated(0.9, len(STEPS), np.random.default_rng(seed))
    assert closing(0.8 + 0.02 * noise)["slow_closing"].verdict == "cannot tell"


def matched_from(fraction, gap) -> str:
    run = record(np.arange(len(gap)), gap, matched_fraction=np.asarray(fraction, float))
    return fs.compare(run, parts="matching")["matching"].verdict


@pytest.mark.parametrize("seed", range(2))
def test_the_flow_on_parallel_cones_is_not_said_to_disagree_with_itself(seed):
    """There most of the closing comes before half of the pairs match."""
    flow = fs.GradientFlow(fs.Parallel(), fs.temperature.Learnable(0.5))
    run = fs.simulate(flow, fs.initial.uniform(32, 6, gamma=0.1), t1=1e4, seed=seed, throw=False)
    item = fs.compare(run, parts="matching")["matching"]
    assert item.numbers["closed_before_half_matched"] > 0.5
    assert item.verdict != "disagrees"


def test_the_order_of_matching_and_closing_needs_both_to_be_seen():
    falling = np.array([1.0, 1.2, 0.9, 0.6, 0.3, 0.2])
    assert matched_from([0, 0, 1, 1, 1, 1], falling) == "agrees"
    assert matched_from([0, 0, 0, 0, 0, 1], falling) == "cannot tell"
    # Matched from the start: no order is seen.
    assert matched_from([1, 1, 1, 1, 1, 1], falling) == "cannot tell"
    # All of the closing between two evaluations, like the matching.
    assert matched_from([0, 0, 1, 1, 1, 1], np.array([1.0, 1.2, 0.2, 0.2, 0.2, 0.2])) == "cannot tell"
    # A gap that is missing where half become matched.
    assert matched_from([0, 0, 1, 1, 1, 1], np.array([1.0, 1.2, np.nan, 1.0, 0.3, 0.2])) == "agrees"
    assert matched_from([0, 0, np.nan, np.nan, 1, 1], falling) == "cannot tell"


def test_the_matching_of_other_pairs_says_nothing_about_a_gap():
    gap = np.array([1.0, 1.2, 0.9, 0.6, 0.3, 0.2])
    held_out = np.array([0.0, 0, 1, 1, 1, 1])
    run = record(np.arange(6), gap, seen_modality_gap=gap, matched_fraction=held_out)
    assert fs.compare(run, parts="matching")["matching"].verdict == "cannot tell"
    run = with_series(run, seen_matched_fraction=held_out)
    assert fs.compare(run, parts="matching")["matching"].verdict == "agrees"


def test_criteria_name_the_numbers_that_decide():
    found = fs.compare(record(np.arange(3), [1.0, 1.1, 0.9]))
    said = {name: item.criterion for name, item in found.items.items()}
    assert f"fewer than {INITIALISATIONS} initialisations" in said["enlargement"]
    assert "0.25 of the run's own standard deviation" in said["simulation"] and "bound of the clamp" in said["exponent"]
    assert all("no verdict" in text for text in said.values())
