"""What is said about a GPU comes from the records of its benchmark; the benchmark goes on and keeps its time."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from flowsim import reproduce
from flowsim.base import sources
from flowsim.clip.findings import findings

CHECKOUT = Path(__file__).resolve().parents[1]
BENCHMARKS = CHECKOUT / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import gpu_results  # noqa: E402


def test_records_are_of_one_card_and_not_of_a_rehearsal():
    held = [json.loads((gpu_results.HERE / f"{name}.json").read_text()) for name in gpu_results.STAGES]
    assert len({record["device"] for record in held}) == 1
    assert not any(record["tiny"] for record in held)
    assert [record["stage"] for record in held] == list(gpu_results.STAGES)


def test_heads_have_all_settings_of_the_paper():
    here = gpu_results.heads()
    assert len(here.methods) == 26
    assert here.gap.shape == (26, 3, len(here.steps))
    assert np.isfinite(here.paper).all()
    assert here.of("Baseline", here.paper) == 0.294
    # All methods of a seed start from the same weights.
    np.testing.assert_allclose(here.gap[:, :, 0], np.broadcast_to(here.gap[0, :, 0], (26, 3)), rtol=1e-4)
    fixed = here.of("FLT 4e-2", here.temperature)
    np.testing.assert_allclose(fixed, 0.04)


def test_statements_can_fail(monkeypatch):
    """With gaps in the opposite order none is supported that is now."""
    before = {one.statement: one.verdict for one in findings(gpu_results.tables())}
    here = gpu_results.heads()
    monkeypatch.setattr(
        gpu_results, "heads", lambda: here._replace(gap=1 / here.gap, temperature=0.0049 / here.temperature)
    )
    after = {one.statement: one.verdict for one in findings(gpu_results.tables())}
    for text, verdict in before.items():
        assert "supported" not in (verdict, after[text]) or verdict != after[text], text


@pytest.mark.parametrize("name", ["gpu_study", "gpu_heads", "gpu_speed", "gpu_phase"])
def test_the_committed_figures_are_drawn_from_the_records(name):
    module = reproduce._load("gpu_figures", BENCHMARKS)
    for kind in ("png", "pdf"):
        carried = sources.read_stamp(CHECKOUT / "figures" / f"{name}.{kind}")
        assert carried == module.stamp(name), "Run `python benchmarks/gpu_figures.py` and commit figures/gpu_*"


STAGE = """
import sys, time
sys.path.insert(0, {folder!r})
from record import Record

record = Record(None)
record.part("fine", lambda: {{"value": float("nan"), "count": 1}})
record.part("broken", lambda: 1 / 0)
record.part("long", lambda: 1, needs=1e6)
record.part("fine as well", lambda: 2)
record.finish()
"""


def test_a_record_names_what_is_missing_and_goes_on(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(STAGE.format(folder=str(BENCHMARKS / "gpu_stages")))
    call = [sys.executable, str(script), "--out", str(tmp_path), "--tiny"]
    env = {"PYTHONPATH": str(CHECKOUT), "PATH": ""}
    subprocess.run(call, check=True, env=env, capture_output=True)
    record = json.loads((tmp_path / "stage.json").read_text())
    parts = record["parts"]
    assert parts["fine"]["result"] == {"value": None, "count": 1}
    assert parts["broken"]["error"] == "ZeroDivisionError: division by zero"
    assert parts["long"]["left_out"].startswith("needs 1000000 s")
    assert parts["fine as well"]["result"] == 2
    assert not record["complete"]
    script.write_text(STAGE.format(folder=str(BENCHMARKS / "gpu_stages")).replace("1 / 0", "3").replace("1e6", "0"))
    again = subprocess.run(call, check=True, env=env, capture_output=True, text=True)
    assert "fine: in the record already" in again.stdout
    record = json.loads((tmp_path / "stage.json").read_text())
    assert record["complete"]
    assert record["parts"]["broken"]["result"] == 3


def test_what_travels_is_chosen_from_the_splits(tmp_path):
    import io
    import tarfile

    import gpu_pack

    source = tmp_path / "photos"
    source.mkdir()
    names = [f"{k}.jpg" for k in range(6)]
    splits = ["train", "test", "train", "val", "train", "test"]
    lines = [f"{name}\t{split}\tx" for name, split in zip(names, splits, strict=True)]
    (source / "splits.tsv").write_text("\n".join(["filename\tsplit\tshard", *lines]) + "\n")
    captions = [f"{name}\tcaption {name}" for name in names]
    (source / "captions.tsv").write_text("\n".join(["filename\tcaption", *captions]) + "\n")
    with tarfile.open(source / "a.tar", "w") as out:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            out.addfile(member, io.BytesIO(name.encode()))
    assert gpu_pack.pack_photos(source, tmp_path / "packed", {"train": 2, "test": 5}) == 4
    with tarfile.open(tmp_path / "packed" / "train-0000.tar") as held:
        assert held.getnames() == ["0.jpg", "2.jpg"]
    with tarfile.open(tmp_path / "packed" / "test-0000.tar") as held:
        assert held.getnames() == ["1.jpg", "5.jpg"]
    assert "3.jpg" not in (tmp_path / "packed" / "captions.tsv").read_text()
    np.savez(tmp_path / "f.npz", image=np.arange(6), text=np.arange(6), split=np.array(splits))
    gpu_pack.pack_features(tmp_path / "f.npz", tmp_path / "g.npz")
    with np.load(tmp_path / "g.npz") as held:
        np.testing.assert_array_equal(held["image"], [0, 1, 2, 4, 5])


@pytest.mark.parametrize(
    ("script", "options"), [("gpu.py", ("--out", "OUT", "--data")), ("gpu_pack.py", ("--photos",))], ids=["gpu", "pack"]
)
def test_a_missing_folder_is_one_sentence(tmp_path, script, options):
    missing = str(tmp_path / "nowhere")
    call = [sys.executable, str(BENCHMARKS / script), *(str(tmp_path / "o") if x == "OUT" else x for x in options)]
    done = subprocess.run(
        [*call, missing], capture_output=True, text=True, env={"PYTHONPATH": str(CHECKOUT), "PATH": ""}
    )
    assert done.returncode == 2
    assert "There is no" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "o").exists()
