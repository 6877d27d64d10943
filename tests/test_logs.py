"""Logs of other trainers: true logs against what their own writers say elsewhere, written ones against known series."""

import contextlib
import csv
import gzip
import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest

import flowsim as fs
from flowsim import logs
from flowsim.cli import main
from flowsim.logs import read_log, read_logs
from flowsim.logs.clock import clock_of
from flowsim.logs.names import candidates, words
from flowsim.logs.table import Logged, in_order, number
from flowsim.records.load import load_result
from flowsim.records.status import Status

LOGS = Path(__file__).parent / "logs"
RECALLS = [f"{way}_at_{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
EVENTS = LOGS / "open_clip" / "tensorboard"


def logged(record: fs.TrainingRecord, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a series, without the rows in which it was not logged."""
    values = record.series[name]
    there = np.isfinite(values)
    return record.coordinates["step"][there], values[there]


def column_of(record: fs.TrainingRecord, name: str) -> dict[str, str]:
    return record.config["log"]["columns"][name]


def written(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(path: Path, columns: dict[str, list], delimiter: str = ",") -> Path:
    with path.open("w", newline="") as file:
        rows = csv.writer(file, delimiter=delimiter)
        rows.writerow(columns)
        rows.writerows(zip(*columns.values(), strict=True))
    return path


def scale_log(path: Path, values: list[float], name: str = "logit_scale", **more: list) -> Path:
    return table(path / "log.csv", {"step": list(range(len(values))), name: values, **more})


# --- true logs


def test_a_folder_of_open_clip_is_the_sum_of_its_logs():
    record = read_log(LOGS / "open_clip")
    text = [line for line in (LOGS / "open_clip" / "out.log").read_text().splitlines() if "Train Epoch" in line]
    # Every third of the ten steps of an epoch is logged, and the last one.
    steps = [epoch * 10 + k for epoch in range(3) for k in (0, 3, 6, 9)]
    at, loss = logged(record, "train_loss")
    assert at.tolist() == steps and len(text) == len(steps)
    shown = [(float(re.search(r" Loss: (\S+)", line)[1]), float(re.search(r"Scale: (\S+)", line)[1])) for line in text]
    np.testing.assert_allclose(loss, [a for a, _ in shown], atol=6e-5)
    np.testing.assert_allclose(logged(record, "inverse_temperature")[1], [b for _, b in shown], atol=6e-4)
    rows = [json.loads(line) for line in (LOGS / "open_clip/checkpoints/results.jsonl").read_text().splitlines()]
    for name in RECALLS:
        at, values = logged(record, name)
        assert at.tolist() == [10, 20, 30]
        np.testing.assert_array_equal(values, [row[name.replace("_at_", "_R@")] for row in rows])
    np.testing.assert_array_equal(logged(record, "loss")[1], [row["clip_val_loss"] for row in rows])
    # A linear warm-up of five steps and a cosine, whose sum is known.
    k = np.arange(30)
    rate = 2e-3 * np.where(k < 5, (k + 1) / 5, (1 + np.cos(np.pi * (k - 5) / 25)) / 2)
    np.testing.assert_allclose(logged(record, "learning_rate")[1], rate[steps], rtol=1e-6)
    assert record.clock == "sum of learning rates"
    np.testing.assert_allclose(record.time[-1], rate.sum(), rtol=0.02)
    training = record.config["training"]
    assert (training["batch_size"], training["steps"], training["model"]) == (8, 30, "tiny")
    np.testing.assert_allclose(record.coordinates["epoch"], record.coordinates["step"] / 10)
    np.testing.assert_allclose(record.coordinates["progress"], record.coordinates["step"] / 30)
    said = column_of(record, "temperature")
    assert said == {
        "column": "train/scale", "read_as": "inverse temperature β", "because": "open_clip logs β as `Logit Scale`."
    }  # fmt: skip
    assert record.status.code is Status.COMPLETED
    assert record.config["evaluation"] == {"retrieval_pool": rows[0]["num_samples"]}
    assert record.config["schedule"]["temperature"]["clamp"] == [0.01, 1.0]


@pytest.mark.parametrize("part", ["out.log", "tensorboard", "tensorboard/events.out.tfevents.1795838341.host.1.0"])
def test_the_logs_of_one_run_agree(part):
    whole, one = read_log(LOGS / "open_clip"), read_log(LOGS / "open_clip" / part)
    np.testing.assert_array_equal(one.coordinates["step"], whole.coordinates["step"])
    np.testing.assert_allclose(one.coordinates["epoch"], whole.coordinates["epoch"])
    assert one.series.keys() == whole.series.keys()
    for name, values in whole.series.items():
        np.testing.assert_allclose(one.series[name], values, atol=6e-4 if name == "inverse_temperature" else 6e-5)


def test_evaluations_alone_count_epochs():
    record = read_log(LOGS / "open_clip/checkpoints/results.jsonl")
    assert record.clock == "epoch" and record.coordinates.keys() == {"epoch"}
    np.testing.assert_array_equal(record.time, [1, 2, 3])
    whole = read_log(LOGS / "open_clip")
    np.testing.assert_array_equal(record.series["text_to_image_at_5"], logged(whole, "text_to_image_at_5")[1])


def test_what_a_resumed_run_does_again_replaces_what_it_did_before():
    record = read_log(LOGS / "resumed" / "out.log")
    lines = [line for line in (LOGS / "resumed" / "out.log").read_text().splitlines() if "Train Epoch" in line]
    last = {}
    for line in lines:
        epoch, seen = re.search(r"Epoch: (\d+) \[\s*(\d+)/", line).groups()
        last[int(epoch) * 10 + int(seen) // 8 - 1] = float(re.search(r" Loss: (\S+)", line)[1])
    assert len(lines) == 38 and len(last) == 30
    np.testing.assert_array_equal(record.training["train_loss"], [last[step] for step in range(30)])
    np.testing.assert_array_equal(record.training["train_temperature"], record.series["temperature"][:30])
    assert any("8 values" in note and "resumed" in note for note in record.config["log"]["notes"])
    assert np.diff(record.coordinates["step"]).min() == 1


def test_a_diverged_run_says_when():
    record = read_log(LOGS / "diverged" / "out.log")
    assert record.status.code is Status.DIVERGED
    assert record.status.stopped_at == record.time[1], "the second step has the first NaN"
    assert np.isnan(record.training["train_loss"][1:]).all() and np.isfinite(record.training["train_loss"][0])
    assert record.series["inverse_temperature"][1] == 1, "the clamp of ν"


def test_hugging_face_logs_raw_temperatures():
    record = read_log(LOGS / "trainer_state.json")
    state = json.loads((LOGS / "trainer_state.json").read_text())
    batches = [row for row in state["log_history"] if "loss" in row]
    at, loss = logged(record, "train_loss")
    assert at.tolist() == [row["step"] for row in batches]
    np.testing.assert_array_equal(loss, [row["loss"] for row in batches])
    np.testing.assert_array_equal(record.series["raw_temperature"], [row["logit_scale"] for row in batches])
    np.testing.assert_allclose(record.series["temperature"] * np.exp(record.series["raw_temperature"]), 1)
    held_out = [row for row in state["log_history"] if "eval_loss" in row]
    np.testing.assert_array_equal(logged(record, "loss")[1], [row["eval_loss"] for row in held_out])
    assert column_of(record, "temperature")["read_as"] == "raw ν"
    assert column_of(record, "train_loss") == {"column": "loss"}, "not the mean over the run"
    assert record.config["training"] == {"steps": 32, "batch_size": 16}
    np.testing.assert_array_equal(record.coordinates["epoch"], [row["epoch"] for row in batches])


def test_lightning_logs_sparse_rows():
    record = read_log(LOGS / "metrics.csv")
    with (LOGS / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    for series, name in {"modality_gap": "modality_gap", "loss": "val_loss", "train_loss": "train_loss"}.items():
        held = [row for row in rows if row[name]]
        at, values = logged(record, series)
        assert at.tolist() == [int(row["step"]) for row in held]
        np.testing.assert_array_equal(values, [float(row[name]) for row in held])
    assert column_of(record, "temperature")["read_as"] == "temperature τ"
    assert record.clock == "sum of learning rates"
    np.testing.assert_allclose(record.time, 0.03 * record.coordinates["step"])


def test_the_history_of_wandb():
    record = read_log(LOGS / "history.jsonl")
    rows = [json.loads(line) for line in (LOGS / "history.jsonl").read_text().splitlines()]
    np.testing.assert_array_equal(record.training["train_loss"], [row["train/loss"] for row in rows])
    np.testing.assert_array_equal(record.series["inverse_temperature"], [row["train/logit_scale"] for row in rows])
    assert logged(record, "modality_gap")[0].tolist() == [0, 10, 20, 30]
    assert column_of(record, "temperature")["read_as"] == "inverse temperature β"
    assert record.status.code is Status.COMPLETED, "one NaN of held-out pairs is no divergence"


@pytest.mark.parametrize("source", ["open_clip", "diverged/out.log", "metrics.csv", "history.jsonl"])
def test_records_of_logs_are_saved_and_loaded_unchanged(source, tmp_path):
    record = read_log(LOGS / source)
    for again in (load_result(record.save(tmp_path / "run.nc")), read_log(tmp_path / "run.nc")):
        assert isinstance(again, fs.TrainingRecord)
        assert again.config == json.loads(json.dumps(record.config)) and again.status == record.status
        assert again.clock == record.clock
        for part in ("series", "training", "coordinates"):
            ours, theirs = getattr(record, part), getattr(again, part)
            assert ours.keys() == theirs.keys()
            for name in ours:
                np.testing.assert_array_equal(ours[name], theirs[name])
                assert ours[name].dtype == theirs[name].dtype
    assert "log of" in repr(record)


# --- written logs: what is read is what was written


def known(steps: int = 40) -> dict[str, np.ndarray]:
    """Series of a run."""
    k = np.arange(steps)
    rng = np.random.default_rng(0)
    return {
        "loss": 5 * np.exp(-k / 20) + rng.random(steps),
        "beta": 14.3 * np.exp(0.02 * k),
        "rate": 1e-3 * (1 + np.cos(np.pi * k / steps)),
        "gap": 0.8 - 0.3 * np.sin(k / 30),
    }


def test_events_of_tensorboard_are_read_exactly(tmp_path):
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore
    from tensorboard.summary.writer.event_file_writer import EventFileWriter
    from tensorboard.util.tensor_util import make_tensor_proto

    run, series = tmp_path / "runs" / "first", known()
    writer = EventFileWriter(str(run))
    for k in range(40):
        values = [
            Summary.Value(tag="Loss/train", simple_value=series["loss"][k]),
            Summary.Value(tag="clip/temperature", tensor=make_tensor_proto(1 / series["beta"][k], dtype=np.float64)),
            Summary.Value(tag="weights", tensor=make_tensor_proto(np.ones((3, 3)))),
            Summary.Value(tag="text", tensor=make_tensor_proto("hello")),
        ]
        if k % 10 == 0:
            values.append(Summary.Value(tag="monitor/modality_gap", simple_value=series["gap"][k]))
        writer.add_event(Event(step=k, summary=Summary(value=values)))
    writer.close()
    record = read_log(tmp_path / "runs")
    np.testing.assert_array_equal(record.training["train_loss"], series["loss"].astype(np.float32))
    np.testing.assert_array_equal(record.series["temperature"], 1 / series["beta"])
    at, gap = logged(record, "modality_gap")
    assert at.tolist() == [0, 10, 20, 30]
    np.testing.assert_array_equal(gap, series["gap"][::10].astype(np.float32))
    # A file that was cut off while it was written.
    (file,) = run.iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 3 // 4])
    assert 20 < len(read_log(file).training["train_loss"]) < 40
    (tmp_path / "runs" / "second").mkdir()
    (tmp_path / "runs" / "second" / file.name).write_bytes(content)
    with pytest.raises(fs.FlowsimError, match="several runs: first, second"):
        read_log(tmp_path / "runs")


@pytest.mark.parametrize("with_parameters", [True, False])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_lines_of_open_clip_count_steps(with_parameters, accumulate, tmp_path):
    """300 pairs on two devices with batches of 16: nine batches of 32 an epoch, the rest is dropped."""
    series, lines, step = known(27), [], 0
    if with_parameters:
        lines = [
            f"d | INFO |   {name}: {value}"
            for name, value in {"batch_size": 16, "world_size": 2, "accum_freq": accumulate, "epochs": 3}.items()
        ]
    per_epoch = 9 // accumulate
    for epoch in range(3):
        for k in range(per_epoch):
            lines.append(
                f"d | INFO | Train Epoch: {epoch} [{(k + 1) * 32 * accumulate:>3}/300 (9%)] Data (t): 0.1 "
                f"Batch (t): 0.2, 9/s, 9/s/gpu LR: {series['rate'][step]:5f} Logit Scale: {series['beta'][step]:.3f} "
                f"Contrastive_loss: {series['loss'][step]:#.5g} (1.0) Loss: {series['loss'][step]:#.5g} (1.0)"
            )
            step += 1
        lines.append(f"d | INFO | Eval Epoch: {epoch + 1} [32 / 50]\tClip Loss: 1.0\t")
        lines.append(
            f"d | INFO | Eval Epoch: {epoch + 1} image_to_text_R@1: 0.{epoch}000\tclip_val_loss: 2.{epoch}\tepoch: 1"
        )
    record = read_log(written(tmp_path / "out.log", "\n".join(lines)))
    np.testing.assert_allclose(record.training["train_loss"], series["loss"][:step], rtol=1e-4)
    np.testing.assert_allclose(record.series["inverse_temperature"][:step], series["beta"][:step], atol=6e-4)
    assert logged(record, "image_to_text_at_1")[0].tolist() == [per_epoch * k for k in (1, 2, 3)]
    np.testing.assert_array_equal(logged(record, "image_to_text_at_1")[1], [0.0, 0.1, 0.2])
    assert record.config["training"]["batch_size"] == 32 * accumulate
    assert bool(record.config["log"]["notes"]) is not with_parameters


def test_open_clip_of_2021_logged_raw_temperatures(tmp_path):
    lines = [
        f"Train Epoch: {epoch} [{k * 128}/51200 (9%)]\tLoss: {4 - k / 400:.6f}\tData (t) 0.1\tBatch (t) 0.2"
        f"\tLR: 0.000500\tlogit_scale {2.659 + (epoch * 400 + k) / 1e3:.3f}"
        for epoch in range(4)
        for k in range(0, 400, 100)
    ]
    record = read_log(written(tmp_path / "out.log", "\n".join(lines)))
    assert record.coordinates["step"].tolist() == list(range(0, 1600, 100))
    np.testing.assert_allclose(record.series["raw_temperature"], 2.659 + record.coordinates["step"] / 1e3)
    assert "2021" in column_of(record, "raw_temperature")["because"]
    np.testing.assert_allclose(record.time, 5e-4 * record.coordinates["step"])


def test_exports_of_wandb_hold_runs(tmp_path):
    series = known()
    columns: dict[str, list] = {"Step": list(range(40))}
    for run, shift in (("first - run", 0.0), ("second", 1.0)):
        columns |= {
            f"{run} - train/loss": list(series["loss"] + shift),
            f"{run} - train/loss__MIN": list(series["loss"] + shift - 0.1),
            f"{run} - train/loss__MAX": list(series["loss"] + shift + 0.1),
            f"{run} - train/scale": list(series["beta"]),
        }
    path = table(tmp_path / "wandb_export.csv", columns)
    found = read_logs(path)
    assert list(found) == ["first - run", "second"]
    np.testing.assert_array_equal(read_log(path, name="second").training["train_loss"], series["loss"] + 1)
    np.testing.assert_array_equal(found["first - run"].series["inverse_temperature"], series["beta"])
    assert any("means of several steps" in note for note in found["second"].config["log"]["notes"])
    with pytest.raises(fs.FlowsimError, match="holds 2 runs: 'first - run', 'second'. Choose one"):
        read_log(path)
    with pytest.raises(fs.FlowsimError, match="Did you mean 'second'"):
        read_log(path, name="secnd")


def test_counters_that_agree_fill_each_other(tmp_path):
    """open_clip logs `step` to W&B in train rows only; `_step` is the same where calls name their step."""
    rows: list[dict] = [{"_step": k, "step": k, "train/loss": 3.0 - k, "train/scale": 14.3} for k in (0, 1, 2)]
    rows.append({"_step": 3, "epoch": 1, "val/clip_val_loss": 0.5})
    path = tmp_path / "history.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    assert logged(read_log(path), "loss")[0].tolist() == [3]
    for row in rows:  # calls are counted
        row["_step"] += 7
    path.write_text("\n".join(map(json.dumps, rows)))
    record = read_log(path)
    assert "loss" not in record.series and "1 of 4 rows have no step" in record.config["log"]["notes"][0]


@pytest.mark.parametrize("kind", ["csv", "tsv", "semicolon", "comma", "bom", "gz", "utf-16", "jsonl", "json", "nested"])
def test_any_table_is_read_by_named_columns(kind, tmp_path):
    series = known()
    columns = {"iter": [3 * k for k in range(40)], "my_tau": list(1 / series["beta"]), "l": list(series["loss"]),
               "d": list(series["gap"]), "note": ["x"] * 40}  # fmt: skip
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    path = tmp_path / "log.txt"
    table(path, columns, {"tsv": "\t", "semicolon": ";", "comma": ";"}.get(kind, ","))
    text = path.read_text()
    if kind == "comma":
        text = text.replace(".", ",")
    if kind in ("bom", "utf-16"):
        path.write_bytes(text.encode("utf-8-sig" if kind == "bom" else "utf-16"))
    elif kind == "gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif kind in ("json", "nested"):
        path.write_text(json.dumps([{"a": row} if kind == "nested" else row for row in rows], indent=1))
    else:
        path.write_text(text)
    before = "a/" * (kind == "nested")
    named = {"step": "iter", "temperature": "my_tau", "loss": "l", "modality_gap": "d"}
    record = read_log(path, columns={series: before + column for series, column in named.items()})
    assert record.coordinates["step"].tolist() == columns["iter"]
    np.testing.assert_array_equal(record.series["temperature"], columns["my_tau"])
    np.testing.assert_array_equal(record.series["train_loss"], columns["l"])
    np.testing.assert_array_equal(record.series["modality_gap"], columns["d"])
    assert column_of(record, "temperature")["because"] == "It was named so."


def test_registered_formats_come_first(tmp_path):
    path = written(tmp_path / "log.csv", "step,loss\n0,1\n")

    @logs.register("of this test", lambda source: source.text.startswith("step,"))
    def read(source):
        return {"step": [0, 1, 2], "loss": [3.0, math.nan, 2.0], "tau": [0.1, 0.2, 0.3]}

    try:
        record = read_log(path)
        assert logged(record, "train_loss")[0].tolist() == [0, 2]
        np.testing.assert_array_equal(record.training["train_temperature"], [0.1, 0.2, 0.3])
        assert read_log(path, format="csv").series["train_loss"].tolist() == [1]
        logs.register("of this test", lambda source: True)(lambda source: {"step": [0, 1], "loss": [1]})
        with pytest.raises(fs.FlowsimError, match="lists of numbers of one length, but 'loss' is not"):
            read_log(path)
        logs.register("of this test", lambda source: True)(lambda source: 3)
        with pytest.raises(fs.FlowsimError, match="must return columns by name, but gives 3"):
            read_log(path)
    finally:
        logs.FORMATS.remove("of this test")
    with pytest.raises(fs.FlowsimError, match="already has a format of logs named 'csv'"):
        logs.register("csv", lambda source: True)(lambda source: {})


# --- ν, β and τ


@pytest.mark.parametrize(
    ("name", "values", "read_as"),
    [
        ("logit_scale", [2.659, 3.0, 4.6052], "raw ν"),
        ("model.logit_scale", [4.60517, 4.6, 4.55], "raw ν"),
        ("logit_scale", [14.29, 20, 100], "inverse temperature β"),
        ("train/scale", [14.29, 9.0, 3.0], "inverse temperature β"),
        ("logit_scale", [2.659, 1.0, -0.1], "raw ν"),
        # ν stored as β: the clamp at ln 100 follows at once.
        ("logit_scale", [14.2857] + [math.log(100)] * 5, "raw ν"),
        # The exponential applied twice.
        ("logit_scale", [1.6e6, 1.5e6], "inverse temperature β"),
        ("temperature", [0.07, 0.01], "temperature τ"),
        ("train/tau", [0.5, 3.0], "temperature τ"),
        ("temperature", [14.29, 100], "inverse temperature β"),
        ("log_temperature", [-2.659, -4.6], "logarithm of the temperature ln τ"),
        ("inverse_temperature", [2.0, 3.0], "inverse temperature β"),
        ("raw_temperature", [14.0, 14.2], "raw ν"),
    ],
)
def test_temperatures_are_told_apart(name, values, read_as, tmp_path):
    record = read_log(scale_log(tmp_path, values, name))
    said = column_of(record, "inverse_temperature")
    assert (said["column"], said["read_as"]) == (name, read_as)
    assert said["because"].endswith(".")
    tau = {
        "raw ν": lambda x: np.exp(-x), "inverse temperature β": lambda x: 1 / x,
        "temperature τ": lambda x: x, "logarithm of the temperature ln τ": np.exp,
    }[read_as](np.array(values))  # fmt: skip
    np.testing.assert_allclose(record.series["temperature"], tau)
    np.testing.assert_allclose(record.series["inverse_temperature"] * tau, 1)
    assert ("raw_temperature" in record.series) is (read_as == "raw ν")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("logit_scale", [1.0, 1.2]),  # ν = 1, or β = 1
        ("logit_scale", [2.71828, 2.9]),  # ν, or β = e
        ("logit_scale", [5.0, 6.0]),  # β of τ = 0.2, or ν without a clamp
        ("logit_scale", [0.07, 0.05]),
        ("logit_scale", [3.0, 4.9]),
        ("temperature", [2.659, 3.0]),
        ("temperature", [-2.659, -3.0]),
        ("inverse_temperature", [-1.0, 2.0]),
    ],
)
def test_the_undecided_asks_and_believes_the_answer(name, values, tmp_path):
    path = scale_log(tmp_path, values, name)
    with pytest.raises(fs.FlowsimError, match=rf"Column '{name}' may be ν, β or τ: .*raw_temperature.*{name}"):
        read_log(path)
    record = read_log(path, columns={"raw_temperature": name})
    np.testing.assert_array_equal(record.series["raw_temperature"], values)
    if min(values) > 0:
        assert read_log(path, columns={"inverse_temperature": name}).series["inverse_temperature"].tolist() == values
        assert read_log(path, columns={"temperature": name}).series["temperature"].tolist() == values
    else:
        with pytest.raises(fs.FlowsimError, match=r"named as temperature, which is positive, but it holds -"):
            read_log(path, columns={"temperature": name})


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ([5.0, 6.0], "'logit_scale' holds it too, as inverse temperature β."),
        ([math.log(5), math.log(6)], "'logit_scale' holds it too, as raw ν."),
        ([math.exp(5), math.exp(6)], "'logit_scale' is neither τ, β, ν nor ln τ of it."),
    ],
)
def test_another_temperature_in_the_log_is_compared(other, says, tmp_path):
    record = read_log(scale_log(tmp_path, other, temperature=[0.2, 1 / 6]))
    np.testing.assert_allclose(record.series["inverse_temperature"], [5, 6])
    (note,) = record.config["log"]["notes"]
    assert note.startswith("The temperature is that of column 'temperature'.") and note.endswith(says)


def test_the_bound_of_the_loss_decides(tmp_path):
    """β = 2 allows no loss below ln(1 + 31 e^(−4)) = 0.45 of 32 pairs, so a loss of 0.3 makes 2 a ν."""
    bound = math.log1p(31 * math.exp(-4))
    history = [{"step": 0, "logit_scale": 2.0, "loss": 3.0}, {"step": 1, "logit_scale": 2.0, "loss": 0.3}]
    path = tmp_path / "trainer_state.json"
    for loss, batch, decided in (
        (0.3, 32, True),
        (0.9 * bound, 32, True),
        (1.1 * bound, 32, False),
        (0.3, None, False),
    ):
        history[1]["loss"] = loss
        state = {"log_history": history, "train_batch_size": batch}
        path.write_text(json.dumps(state))
        if decided:
            assert f"at least {bound:.3g}" in column_of(read_log(path), "temperature")["because"]
            assert column_of(read_log(path), "temperature")["read_as"] == "raw ν"
        else:
            with pytest.raises(fs.FlowsimError, match="may be ν, β or τ"):
                read_log(path)


# --- names


@pytest.mark.parametrize(
    ("column", "series"),
    [
        ("train/loss", "train_loss"), ("Loss/train", "train_loss"), ("trainLoss", "train_loss"),
        ("train_loss_step", "train_loss"), ("eval_loss", "loss"), ("val/clip_val_loss", "loss"),
        ("train/contrastive_loss", "train_loss"), ("_step", "step"), ("trainer/global_step", "step"), ("Step", "step"),
        ("lr-AdamW/pg1", "learning_rate"), ("train/lr", "learning_rate"), ("params/logit_scale", "logit_scale"),
        ("train/scale", "logit_scale"), ("val/image_to_text_R@10", "image_to_text_at_10"),
        ("i2t_recall@5", "image_to_text_at_5"), ("t2i_R1", "text_to_image_at_1"), ("R@5_i2t", "image_to_text_at_5"),
        ("image_retrieval_recall@5", "text_to_image_at_5"), ("text_retrieval_recall@5", "image_to_text_at_5"),
        ("train/modality_gap", "seen_modality_gap"), ("monitor/modality_gap", "modality_gap"), ("gap", "modality_gap"),
        ("val/rmg", "relative_modality_gap"), ("softmax_temperature", "temperature"), ("epoch", "epoch"),
        ("val/matched_fraction", "matched_fraction"),
    ],
)  # fmt: skip
def test_names_of_columns(column, series):
    assert [name for name, _ in candidates(column)] == [series]


@pytest.mark.parametrize(
    "column",
    ["scale", "amp/loss_scale", "system.gpu.0.temp", "gpu_temperature", "_runtime", "grad_norm", "train/data_time",
     "image_to_text_mean_rank", "i2t_R@3", "val/step", "lr_ratio", "generalisation_gap_of_x", ""],
)  # fmt: skip
def test_names_that_are_nothing(column):
    assert not list(candidates(column))
    assert isinstance(words(column)[1], str)


def test_percent_and_impossible_values(tmp_path):
    columns = {"step": [0, 1], "i2t_R@1": [12.5, 50.0], "t2i_R@1": [120.0, 3.0], "gap": [12.0, 13.0], "loss": [1, 2]}
    record = read_log(table(tmp_path / "a.csv", columns))
    np.testing.assert_array_equal(record.series["image_to_text_at_1"], [0.125, 0.5])
    assert column_of(record, "image_to_text_at_1")["read_as"] == "percent"
    assert not {"text_to_image_at_1", "modality_gap"} & record.series.keys()
    assert [column in note for column, note in zip(("t2i_R@1", "gap"), record.config["log"]["notes"], strict=True)]
    assert set(record.config["log"]["unused"]) == {"t2i_R@1", "gap"}


# --- steps and the clock


def test_the_clock_is_the_sum_of_rates_between_logged_steps(tmp_path):
    steps = np.arange(0, 1001)
    rate = np.where(steps < 100, steps / 100, 1 - (steps - 100) / 900) * 1e-3
    before = np.concatenate([[0.0], np.cumsum(rate)])[steps]
    for every in (1, 5, 100):  # piecewise linear with knots at these steps: exact
        at = steps[::every]
        time, clock, _ = clock_of(at, Logged(at, rate[::every]), "step")
        assert clock == "sum of learning rates"
        np.testing.assert_allclose(time, before[::every], rtol=1e-12, atol=1e-18)
    between = np.array([0, 3, 77, 512, 999])
    np.testing.assert_allclose(clock_of(between, Logged(steps[::100], rate[::100]), "step")[0], before[between])
    sparse = Logged(steps[::200], rate[::200])
    assert clock_of(steps, sparse, "step")[1] == "step"
    assert clock_of(steps, Logged(steps, 0.0 * rate), "step")[1] == "step"
    assert clock_of(steps, None, "step")[1] == "step"
    # Enormous steps need no memory.
    far = np.array([0, 10**9, 2 * 10**9])
    many = Logged(np.linspace(0, 2 * 10**9, 41).astype(np.int64), np.full(41, 0.5))
    np.testing.assert_allclose(clock_of(far, many, "step")[0], 0.5 * far)


def test_later_rows_win_and_branches_that_were_given_up_go():
    at = np.array([0, 1, 2, 3, 4, 2, 3])
    kept, changed = in_order(Logged(at, np.arange(7.0)))
    assert kept.at.tolist() == [0, 1, 2, 3] and kept.values.tolist() == [0, 1, 5, 6] and changed == 3
    backwards = np.arange(100)[::-1]
    kept, changed = in_order(Logged(backwards, 2.0 * backwards))
    assert kept.at.tolist() == list(range(100)) and changed == 0
    np.testing.assert_array_equal(kept.values, 2.0 * kept.at)
    kept, changed = in_order(Logged(np.array([0, 8, 8, 16]), np.array([1.0, math.nan, math.nan, 2.0])))
    assert kept.at.tolist() == [0, 8, 16] and changed == 0


@pytest.mark.parametrize(
    ("columns", "match"),
    [
        ({"step": [0, 0.5], "loss": [1, 2]}, r"'step' should hold steps, whole numbers from 0 on, but holds 0.5"),
        ({"step": [0, -3], "loss": [1, 2]}, "but holds -3"),
        ({"step": [0, 10**40], "loss": [1, 2]}, "but holds 1e[+]40"),
        (
            {"step": [1, 2], "size": [1, 2]},
            r"holds no loss, temperature or observable .*: step, size. Name its columns",
        ),
    ],
)
def test_unusable_columns(columns, match, tmp_path):
    with pytest.raises(fs.FlowsimError, match=match):
        read_log(table(tmp_path / "a.csv", columns))


def test_missing_steps(tmp_path):
    record = read_log(written(tmp_path / "a.csv", "loss,tau\n3,0.07\n2,0.06\n"))
    assert record.coordinates["step"].tolist() == [0, 1]
    assert record.config["log"]["notes"] == ["No column holds steps; rows are counted."]
    record = read_log(written(tmp_path / "a.csv", "epoch,train_loss\n1,3\n2,2\n"))
    assert (record.clock, record.time.tolist()) == ("epoch", [1, 2])
    record = read_log(written(tmp_path / "a.csv", "step,loss\n1,3\n,2\n5,1\n"))
    assert record.coordinates["step"].tolist() == [1, 5]
    assert record.config["log"]["notes"] == ["1 of 3 rows have no step and were skipped."]


def test_unknown_names(tmp_path):
    path = table(tmp_path / "a.csv", {"step": [0], "my_tau": [0.07]})
    with pytest.raises(fs.FlowsimError, match="Unknown column 'mytau'. Did you mean 'my_tau'"):
        read_log(path, columns={"temperature": "mytau"})
    with pytest.raises(fs.FlowsimError, match="Unknown series 'temprature'. Did you mean .*'temperature'"):
        read_log(path, columns={"temprature": "my_tau"})
    with pytest.raises(fs.FlowsimError, match="Unknown format of logs 'cvs'. Did you mean 'csv'"):
        read_log(path, format="cvs")
    with pytest.raises(fs.FlowsimError, match="There is no '.*none.csv'"):
        read_log(tmp_path / "none.csv")
    assert read_log(path, columns={"temperature": "MY_TAU"}).series["temperature"].tolist() == [0.07]


# --- damaged and foreign files


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "it holds nothing"),
        (b"\n\n  \n", "it holds empty lines"),
        (b"\x00\x01\x02" * 100, "it holds binary data"),
        (b"\xff\xfe", "it holds empty lines"),
        (bytes(np.random.default_rng(0).integers(0, 256, 4000, np.uint8)), "it holds binary data"),
        (b"Dear all,\nhello, we trained.\n", "text that begins with 'Dear all,'"),
        (b"step,loss\n", "one line with names of columns, and no rows"),
        (b"1,2\n3,4\n", "text that begins with '1,2'"),
        (b'{"a": 1', "text that begins with"),
        (b'[{"loss": 1}, {"lo', "cannot be read as JSON: it is damaged"),
        (b"[" * 100_000, "cannot be read as JSON: it is damaged"),
        (b'{"log_history": 3}', "holds no list `log_history`"),
        (b'{"log_history": []}', "holds no loss, temperature or observable"),
        (b'{"loss": null}\n', "holds no loss, temperature or observable"),
        (b"[1, 2, 3]", "holds no loss, temperature or observable"),
        (b"\x89HDF\r\n\x1a\n rubbish", "as netCDF"),
        (gzip.compress(b"Dear all,\nhello", mtime=0), "text that begins with 'Dear all,'"),
        (b"\x1f\x8b rubbish", "it holds nothing"),
    ],
)
def test_what_is_no_log_gets_a_sentence(content, match, tmp_path):
    path = written(tmp_path / "log", content)
    with pytest.raises(fs.FlowsimError, match=match) as error:
        read_log(path)
    assert str(path.name) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_logs(tmp_path):
    with pytest.raises(
        fs.FlowsimError, match="it holds no files. It reads .*open_clip.*Name|write a CSV file and name"
    ):
        read_log(tmp_path)
    written(tmp_path / "readme.md", "x")
    with pytest.raises(fs.FlowsimError, match=r"it holds the files readme.md"):
        read_log(tmp_path)


def test_damaged_lines_are_skipped_and_counted(tmp_path):
    rows = [json.dumps({"step": k, "loss": float(k)}) for k in range(5)]
    record = read_log(written(tmp_path / "a.jsonl", "\n".join([*rows[:3], rows[3][:9], "[1]", rows[4]])))
    assert record.coordinates["step"].tolist() == [0, 1, 2, 4]
    assert record.config["log"]["notes"] == ["2 damaged lines were skipped."]
    text = b"step,loss\n0,1\n1,2,3\n2,\xff\xfe\n3,4\n4"
    record = read_log(written(tmp_path / "a.csv", text))
    assert logged(record, "train_loss")[0].tolist() == [0, 3]
    assert record.config["log"]["notes"] == [
        "1 lines with more fields than names were skipped.",
        "1 lines have fewer fields than names.",
        "The last line is cut off, so its last field ('step') was left out.",
        "1 damaged fields were skipped.",
    ]
    content = (LOGS / "open_clip" / "out.log").read_bytes()
    record = read_log(
        written(tmp_path / "out.log", content[: content.index(b"Logit Scale: 14.040") + 5] + b"\xff" + b"\x00" * 20)
    )
    assert record.coordinates["step"][-1] == 20 and "1 damaged lines" in record.config["log"]["notes"][0]
    packed = gzip.compress(content)
    record = read_log(written(tmp_path / "out.log.gz", packed[: len(packed) - 300]))
    assert any("cut off" in note for note in record.config["log"]["notes"])


def test_a_cut_line_loses_its_last_field(tmp_path):
    record = read_log(written(tmp_path / "a.csv", "step,loss,temperature\n0,2.5,0.07\n1,2.4,0.06\n2,0.2"))
    assert record.coordinates["step"].tolist() == [0, 1]
    assert "The last line is cut off, so its last field ('loss') was left out." in record.config["log"]["notes"]


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_text_in_the_place_of_numbers(kind, tmp_path):
    """Numbers as PyTorch prints them are read; a known column of other text does not vanish without a word."""
    rows = [
        {"step": k, "loss": f"tensor(0.{5 + k}, device='cuda:0', grad_fn=<A>)", "temperature": "n/a"} for k in (0, 1)
    ]
    if kind == "csv":
        table(tmp_path / "a.csv", {name: [row[name] for row in rows] for name in rows[0]})
    else:
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    record = read_log(tmp_path / f"a.{kind}")
    assert record["train_loss"].values.tolist() == [0.5, 0.6]
    note = "Column 'temperature' holds text such as 'n/a' instead of numbers, and was left out."
    assert record.config["log"]["notes"] == [note]


def test_lines_of_names_and_numbers(tmp_path):
    lines = [
        "2024-05-01 12:00:00 INFO starting run 7", "[12:00:01] step 0/100 loss 5.52 lr 1.00e-03 logit_scale: 14.29",
        "saved to step_10.pt", "step=10, loss = 4.1, lr=0.001, logit_scale=15.5", "Step: [20] Loss: nan lr: 1e-3", "",
    ]  # fmt: skip
    record = read_log(written(tmp_path / "train.log", "\n".join(lines)))
    assert record.config["log"]["format"] == "lines"
    assert record.coordinates["step"].tolist() == [0, 10, 20]
    np.testing.assert_array_equal(record["train_loss"].values, [5.52, 4.1, math.nan])
    np.testing.assert_allclose(record["inverse_temperature"].values[:2], [14.29, 15.5])
    with pytest.raises(fs.FlowsimError, match="text that begins with 'step one"):
        read_log(written(tmp_path / "prose.log", "step one\nloss of interest 3 times\n"))


def test_a_folder_of_versions_of_lightning(tmp_path):
    for version in (2, 9, 10):
        folder = tmp_path / "lightning_logs" / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,train_loss\n0,{version}\n1,1\n")
    for path in (tmp_path, tmp_path / "lightning_logs"):
        record = read_log(path)
        assert record["train_loss"].values[0] == 10
        assert "3 versions" in record.config["log"]["notes"][0]


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["loss", "contrastive_loss", "caption_loss"], "contrastive_loss"),
        (["train/total_loss", "train/clip_loss_step", "train/clip_loss_epoch"], "train/clip_loss_step"),
        (["total_loss", "loss"], "loss"),
        (["train_loss", "loss"], "loss"),
        (["loss_itm", "loss_itc", "loss_mlm"], "loss_itc"),
    ],
)
def test_the_contrastive_loss_comes_before_a_total(names, chosen, tmp_path):
    path = table(tmp_path / "a.csv", {"step": [0, 1], **{name: [k, k] for k, name in enumerate(names)}})
    assert column_of(read_log(path), "train_loss")["column"] == chosen


def test_the_answer_for_a_temperature_is_checked(tmp_path):
    path = scale_log(tmp_path, [14.3, 15.0])
    with pytest.raises(fs.FlowsimError, match="leaves no contrast. For β use"):
        read_log(path, columns={"temperature": "logit_scale"})
    path = table(tmp_path / "named.csv", {"k": [0, 1, 2], "s": [2.6593, 2.7, 2.8], "g": [0.8, 0.7, 0.6]})
    record = read_log(path, columns={"step": "k", "logit_scale": "s", "gap": "g"})
    assert column_of(record, "raw_temperature")["read_as"] == "raw ν"
    assert record["modality_gap"].values.tolist() == [0.8, 0.7, 0.6]
    with pytest.raises(fs.FlowsimError, match="Usual ones: step, epoch, loss, val_loss, learning_rate, temperature"):
        read_log(path, columns={"zzz": "logit_scale"})


@pytest.mark.parametrize("start", [math.log(1 / 0.07), 2.66, math.log(100)])
def test_nu_without_a_clamp_begins_where_clip_does(start, tmp_path):
    values = np.linspace(start, 6.15, 20).tolist()
    record = read_log(scale_log(tmp_path, values))
    assert column_of(record, "raw_temperature")["read_as"] == "raw ν"
    np.testing.assert_allclose(record["raw_temperature"].values, values)


def test_a_record_without_embeddings_says_where_its_values_are(tmp_path):
    record = read_log(scale_log(tmp_path, [14.3, 15.0]))
    with pytest.raises(fs.FlowsimError, match=r"record\['temperature'\].values\[-1\]"):
        _ = record.final


def test_lines_without_end_need_no_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("flowsim.logs.source.LONGEST", 1000)
    text = "step,loss\n0,1\n1," + "9" * 5000 + "\n2,3\n"
    record = read_log(written(tmp_path / "a.csv", text))
    assert record.coordinates["step"].tolist() == [0, 2]
    assert "1 lines of more than 1000 characters were skipped." in record.config["log"]["notes"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nan", math.nan), ("NaN", math.nan), ("-nan", math.nan), ("inf", math.inf), ("Infinity", math.inf),
        ("-Infinity", -math.inf), ("1e400", math.inf), (10**400, math.inf), (-(10**400), -math.inf), ("1e-3", 1e-3),
        ("", None), ("None", None), ("null", None), ("NA", None), ("-", None), ("x", None), (True, None), (None, None),
        ([1], None),
    ],
)  # fmt: skip
def test_spellings_of_numbers(text, value):
    found = number(text)
    assert found == value or (value is not None and math.isnan(value) and math.isnan(found))


@pytest.mark.parametrize(
    ("last", "status"), [("nan", "DIVERGED"), ("inf", "DIVERGED"), ("", "COMPLETED"), ("1", "COMPLETED")]
)
def test_a_logged_nan_is_no_missing_value(last, status, tmp_path):
    record = read_log(written(tmp_path / "a.csv", f"step,loss,tau\n0,3,0.07\n1,nan,0.07\n2,2,0.07\n5,{last},0.07\n"))
    assert record.status.code.name == status
    assert record.status.stopped_at == 5


@pytest.mark.parametrize("seed", range(3))
def test_rubbish_in_true_logs_is_read_or_refused(seed, tmp_path):
    """Bytes are changed, removed and repeated at random places."""
    rng = np.random.default_rng(seed)
    for source in sorted(p for p in LOGS.rglob("*") if p.is_file() and p.suffix != ".md"):
        for _ in range(4):
            content = bytearray(source.read_bytes())
            for _ in range(int(rng.integers(1, 12))):
                at, length = int(rng.integers(len(content))), int(rng.integers(1, 60))
                kind = rng.integers(3)
                new = rng.integers(0, 256, length, np.uint8).tobytes() if kind else content[at : at + length] * 2
                content[at : at + (0 if kind == 2 else length)] = new
            path = written(tmp_path / source.name, bytes(content[: int(rng.integers(1, len(content) + 1))]))
            with contextlib.suppress(fs.FlowsimError):
                record = read_log(path)
                assert np.diff(record.time).min(initial=0) >= 0
                assert all(len(values) == len(record.time) for values in record.series.values())


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_file_loader", None)
    with pytest.raises(fs.FlowsimError, match=r"need the package tensorboard.*pip install 'flowsim\[logs\]'"):
        read_log(EVENTS)


# --- comparisons


@pytest.fixture
def with_gap(tmp_path) -> Path:
    """A log with a gap every 50 steps on a line in 1/log(k)², and a temperature in between."""
    columns: dict[str, list] = {"step": [], "loss": [], "temperature": [], "modality_gap": []}
    for k in range(0, 20_000, 25):
        columns["step"].append(k)
        columns["loss"].append(1.0)
        columns["temperature"].append(0.07 * math.exp(-k / 20_000) if k % 50 else "")
        columns["modality_gap"].append(0.1 + 5 / math.log(max(k, 10)) ** 2 if k % 50 == 0 else "")
    return table(tmp_path / "log.csv", columns)


def test_logs_with_a_gap_are_compared(with_gap, capsys):
    record = read_log(with_gap)
    found = fs.compare(record)
    assert fs.compare(with_gap, parts="slow_closing").verdicts == {"slow_closing": found["slow_closing"].verdict}
    assert found["slow_closing"].verdict == "agrees"
    np.testing.assert_allclose(found["slow_closing"].numbers["slope"], -5, rtol=1e-6)
    assert found.records == ("log.csv: training (19975 steps)",)
    assert "does not record its schedule" in found["exponent"].sentence
    assert main(["compare", str(with_gap), "--parts", "slow_closing", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["verdict"] == "agrees"


def test_temperatures_are_read_between_logged_steps(with_gap):
    from flowsim.comparison.record import Run

    run = Run.of(read_log(with_gap))
    assert run.step is not None and run.log_tau is not None
    assert np.isfinite(run.gap).all() and np.diff(run.step).tolist() == [50] * (len(run.gap) - 1)
    assert np.isnan(run.log_tau[0]), "before the first logged temperature"
    np.testing.assert_allclose(run.log_tau[1:], np.log(0.07) - run.step[1:] / 20_000)


def test_the_command_names_columns(tmp_path, capsys):
    k = np.arange(10, 4000, 50)
    path = table(
        tmp_path / "mine.csv", {"iter": list(k), "d": list(0.2 + 4 / np.log(k) ** 2), "my_tau": [0.07] * len(k)}
    )
    names = "step=iter,temperature=my_tau,modality_gap=d"
    assert main(["compare", str(path), "--columns", names, "--parts", "slow_closing"]) == 0
    assert "agrees" in capsys.readouterr().out
    assert main(["compare", str(scale_log(tmp_path, [1.0, 2.0]))]) == 2
    assert "Say which with --columns raw_temperature=logit_scale, --columns inverse_" in capsys.readouterr().err
    assert main(["compare", str(written(tmp_path / "a.txt", "Dear all"))]) == 2
    assert "name its columns: --columns step=iter,temperature=my_tau." in capsys.readouterr().err
    assert main(["compare", str(path), "--columns", "step"]) == 2
    assert "takes SERIES=COLUMN" in capsys.readouterr().err
    assert main(["compare", str(path), "--columns", "steps=iter"]) == 2
    assert "Unknown series 'steps'" in capsys.readouterr().err


def test_logs_without_a_gap_get_the_cure(capsys):
    assert main(["compare", "none.log"]) == 2
    assert "There is no 'none.log'. Give the path of a log, or of a saved result" in capsys.readouterr().err
    assert main(["compare", str(LOGS / "open_clip")]) == 2
    said = capsys.readouterr().err
    assert "'open_clip' holds no modality gap" in said and "GapMonitor" in said and "flowsim doctor" in said


def test_parts_of_training_are_compared_as_those(tmp_path):
    """The gap of training batches counts before that of held-out pairs, as in records of flowsim."""
    k = list(range(0, 2000, 20))
    columns = {"step": k, "train/modality_gap": [0.5] * 100, "val/modality_gap": [0.7] * 100}
    from flowsim.comparison.record import Run

    record = read_log(table(tmp_path / "a.csv", columns))
    assert record.series["modality_gap"][0] == 0.7
    np.testing.assert_array_equal(Run.of(record).gap, 0.5)
