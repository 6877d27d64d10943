"""Training of the bridge: records, resumption, agreement with open_clip's own trainer, and bad input."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import filelock
import numpy as np
import pytest
from matplotlib.container import ErrorbarContainer
from PIL import Image

import flowsim as fs
from flowsim import cli
from flowsim.comparison.record import Run as Compared
from flowsim.model.temperature import Learnable
from flowsim.records.load import load_results
from flowsim.records.result import TrainingRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch
    from open_clip_train.scheduler import cosine_lr

    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import open_clip
    import open_clip_peer
    from open_clip.loss import ClipLoss
    from open_clip.transform import PreprocessCfg, image_transform_v2

    from flowsim.clip import data as data_
    from flowsim.clip import embed, figures, models
    from flowsim.clip.contrast import Contrast
    from flowsim.clip.correlation import rank_correlation
    from flowsim.clip.evaluate import measure
    from flowsim.clip.learner import Learner
    from flowsim.clip.session import synchronised
    from flowsim.clip.settings import PRESETS, Training, preset
    from flowsim.clip.studies import changes, early_changes, finished, report, study
    from flowsim.clip.tables import Tables, smoothed_loss
    from flowsim.clip.training import train

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

#: The smallest run that has everything: 6 steps of 8 of 40 generated pairs.
TINY = Training(
    model="flowsim-vit-32",
    data="shapes:count=40,size=32",
    image_size=32,
    steps=6,
    batch_size=8,
    pairs=16,
    evaluations=4,
    observables="gap",
    snapshot_pairs=4,
    warmup=0.2,
    threads=1,
)


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A finished run: (path, record)."""
    path = tmp_path_factory.mktemp("runs") / "run.nc"
    return path, train(TINY, "Baseline", path, cpu=True)


# --- the record -----------------------------------------------------------------------------------------


def test_the_record_has_the_form_of_a_simulation(baseline):
    path, record = baseline
    loaded = fs.load(path)
    assert loaded.status.code is fs.Status.COMPLETED
    assert loaded.clock == "sum of learning rates"
    data = loaded.to_xarray()
    assert data["modality_gap"].dims == ("time",)
    assert data["train_loss"].dims == ("train_step",)
    assert data.sizes["train_step"] == TINY.steps
    np.testing.assert_array_equal(data["step"][[0, -1]], [0, TINY.steps])
    assert 5 in data["step"]  # one epoch of 40 pairs in batches of 8
    rates = data["learning_rate"].to_numpy()
    np.testing.assert_allclose(data["time"], np.concatenate([[0], np.cumsum(rates)])[data["step"]], rtol=1e-14)
    np.testing.assert_allclose(data["progress"], data["step"] / TINY.steps)
    assert {"seen_modality_gap", "seen_loss", "temperature", "raw_temperature"} <= set(loaded.names)
    assert loaded.final.image.shape == (4, 64)
    np.testing.assert_allclose(np.linalg.norm(loaded.final.image, axis=1), 1, rtol=1e-6)
    assert loaded.config["schedule"]["temperature"]["kind"] == "Learnable"
    assert loaded.config["embed_dim"] == loaded.snapshots["image"].shape[-1]
    assert loaded.versions.keys() == {"flowsim", "torch", "open_clip", "accelerate", "device"}
    assert [p.name for p in path.parent.iterdir()] == ["run.nc"]  # no checkpoint is left
    for name, values in record.series.items():
        np.testing.assert_array_equal(loaded.series[name], values)


def test_functions_are_called_by_their_public_names():
    """Also once the modules that hold them are loaded."""
    for name in ("train", "study", "measure", "early_changes", "preset"):
        for _ in range(2):
            assert callable(getattr(fs.clip, name)), name


def test_a_finished_run_is_not_trained_again_and_another_one_is_not_overwritten(baseline):
    path, record = baseline
    before = path.stat().st_mtime_ns
    again = train(TINY, "Baseline", path, cpu=True)
    np.testing.assert_array_equal(again.training["train_loss"], record.training["train_loss"])
    with pytest.raises(fs.FlowsimError, match="holds another run"):
        train(TINY, "TS S3", path, cpu=True)
    with pytest.raises(fs.FlowsimError, match="weights were not saved"):
        train(TINY, "Baseline", path, cpu=True, weights=path.with_name("weights.pt"))
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("name", ["FLT 4e-2", "TS S3", "TS A1"])
def test_temperatures_are_the_schedule_at_the_same_progress(name, monkeypatch):
    """The β that the loss of each step is given, in double precision, not only what the record says of it."""
    schedule, given, used = fs.schedules.get(name), [], []
    call, loss = Contrast.__call__, ClipLoss.forward

    def noted(self, image, text, inverse_temperature, step):
        given.append(inverse_temperature.double().item())
        return call(self, image, text, inverse_temperature, step)

    def in_the_loss(self, image, text, logit_scale, *args, **kwargs):
        used.append((logit_scale.item(), logit_scale.dtype))
        return loss(self, image, text, logit_scale, *args, **kwargs)

    monkeypatch.setattr(Contrast, "__call__", noted)
    monkeypatch.setattr(ClipLoss, "forward", in_the_loss)
    record = train(TINY, schedule, cpu=True)
    u = np.arange(TINY.steps) / TINY.steps
    np.testing.assert_allclose(given, schedule.temperature.inverse_temperature(u), rtol=1e-12)
    np.testing.assert_allclose([beta for beta, _ in used], given, rtol=1e-7)  # the loss is in single precision
    assert {kind for _, kind in used} == {torch.float32}
    np.testing.assert_allclose(record.training["train_temperature"], schedule.temperature.temperature(u), rtol=1e-12)
    u = record.coordinates["progress"]
    np.testing.assert_allclose(record.series["temperature"], schedule.temperature.temperature(u), rtol=1e-12)
    assert "raw_temperature" not in record.series


def test_a_learnable_temperature_moves_by_its_own_rate_and_stays_in_its_clamp(baseline):
    _, record = baseline
    steady = dataclasses.replace(TINY, decay="constant", warmup=0.0, lr=1e-2, clamp=(0.0699, 0.0701))
    clamped = train(steady, cpu=True).series["temperature"]
    assert clamped.min() == pytest.approx(0.0699, rel=1e-6) or clamped.max() == pytest.approx(0.0701, rel=1e-6)
    slow = train(TINY, "SLRT 0.1", cpu=True)
    moved = [abs(r.series["raw_temperature"][1] - r.series["raw_temperature"][0]) for r in (record, slow)]
    assert record.coordinates["step"][1] == 1  # Adam's first step is the learning rate itself, whatever the gradient
    np.testing.assert_allclose(moved, [TINY.lr, 0.1 * TINY.lr], rtol=1e-2)


def test_bf16_follows_fp32_and_both_can_be_had_in_one_session(baseline):
    rough = train(dataclasses.replace(TINY, precision="bf16"), cpu=True)
    np.testing.assert_allclose(rough.training["train_loss"], baseline[1].training["train_loss"], rtol=0.02)
    assert (rough.training["train_loss"] != baseline[1].training["train_loss"]).any()
    assert train(TINY, cpu=True).training["train_loss"] == pytest.approx(baseline[1].training["train_loss"])


def test_images_are_read_as_they_are_needed_if_they_do_not_fit(baseline):
    streamed = train(dataclasses.replace(TINY, preload=False), cpu=True)
    np.testing.assert_array_equal(streamed.training["train_loss"], baseline[1].training["train_loss"])


def test_plain_sgd_runs_on_flow_time():
    plain = dataclasses.replace(TINY, optimizer="sgd", lr=0.01, weight_decay=0.0)
    assert train(plain, cpu=True).clock == "flow time"
    assert train(dataclasses.replace(plain, momentum=0.9), cpu=True).clock == "sum of learning rates"


def test_a_loss_that_is_not_finite_ends_the_run_with_a_sentence(tmp_path):
    wild = dataclasses.replace(TINY, optimizer="sgd", lr=1e30, warmup=0.0)
    record = train(wild, cpu=True, out=tmp_path / "wild.nc")
    assert record.status.code is fs.Status.DIVERGED
    loaded = fs.load(tmp_path / "wild.nc")
    assert isinstance(loaded, TrainingRecord)
    assert loaded.coordinates["step"][0] == 0


def test_causes_of_the_simulator_can_be_switched_on_in_training():
    source = "shapes:count=40,size=32,mispaired=0.5,duplicates=0.2,imbalance=2"
    record = train(dataclasses.replace(TINY, data=source, labelled="shapes:count=64,size=32"), "HS 1", cpu=True)
    assert 0 <= record.stats["zero_shot"] <= 1
    assert record.stats["linear_probe"] > 1 / 64
    assert "Mispaired: 20" in record.config["data"]["report"]
    assert record.status.ok


# --- the same curve -------------------------------------------------------------------------------------

_KILLED = """
import os, signal, sys
from flowsim.clip.settings import Training
from flowsim.clip.training import train
settings = Training(**{settings!r})
def kill(text, done, total, **numbers):
    if done == 4:
        os.kill(os.getpid(), signal.SIGKILL)
train(settings, "HS 1e-1", sys.argv[1], cpu=True, progress=kill)
"""


def test_a_killed_run_goes_on_to_the_same_record(tmp_path):
    settings = dataclasses.replace(TINY, checkpoint_seconds=0.0, evaluations=2)
    code = _KILLED.format(settings=dataclasses.asdict(settings))
    path = tmp_path / "killed.nc"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code, str(path)], capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert fs.load(path).status.code is fs.Status.UNFINISHED
    assert path.with_suffix(".checkpoint.pt").exists()
    with pytest.raises(fs.FlowsimError, match="holds another run"):
        train(dataclasses.replace(settings, lr=1e-4), "HS 1e-1", path, cpu=True)
    path.unlink()
    with pytest.raises(fs.FlowsimError, match="other settings"):
        train(dataclasses.replace(settings, lr=1e-4), "HS 1e-1", path, cpu=True)
    resumed = train(settings, "HS 1e-1", path, cpu=True)
    whole = train(settings, "HS 1e-1", tmp_path / "whole.nc", cpu=True)
    for part in ("series", "training", "snapshots", "coordinates"):
        ours, theirs = getattr(resumed, part), getattr(whole, part)
        assert ours.keys() == theirs.keys()
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert not path.with_suffix(".checkpoint.pt").exists()


def test_a_model_with_dropout_goes_on_to_the_same_record(tmp_path):
    """What is dropped in step k depends on the seed and k, not on what was drawn before."""
    config = json.loads((models._CONFIGS / "flowsim-vit-32.json").read_text())
    config["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "vit-dropout.json").write_text(json.dumps(config))
    settings = dataclasses.replace(TINY, model=str(tmp_path / "vit-dropout.json"), checkpoint_seconds=0.0)

    def stop(text, done, total, **numbers):
        if done == TINY.steps:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(settings, out=tmp_path / "run.nc", cpu=True, progress=stop)
    assert (tmp_path / "run.checkpoint.pt").exists()
    torch.rand(5)  # whatever else draws
    resumed = train(settings, out=tmp_path / "run.nc", cpu=True).training["train_loss"]
    whole = train(settings, cpu=True).training["train_loss"]
    np.testing.assert_array_equal(resumed, whole)
    plain = train(dataclasses.replace(settings, model="flowsim-vit-32"), cpu=True).training["train_loss"]
    assert (abs(whole - plain) > 1e-4).all()  # patches were dropped in every step


def test_two_processes_do_not_write_one_record(tmp_path):
    with filelock.FileLock(tmp_path / "run.lock"), pytest.raises(fs.FlowsimError, match="by another process"):
        train(TINY, cpu=True, out=tmp_path / "run.nc")


def test_losses_are_those_of_open_clips_own_trainer():
    """Same weights, batches and hyperparameters through open_clip_train: the first 50 losses agree to 1e-4."""
    settings = dataclasses.replace(TINY, data="shapes:count=96,size=32", steps=50)
    ours = train(settings, cpu=True).training["train_loss"]
    theirs, _ = open_clip_peer.train(settings)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert ours.shape == (50,) and np.ptp(theirs) > 0.05


def test_accumulation_averages_losses_with_their_own_negatives():
    double = dataclasses.replace(TINY, accumulate=2, steps=1)
    single = dataclasses.replace(TINY, steps=1, optimizer="sgd", lr=1e-12, weight_decay=0.0)
    first = train(double, cpu=True).training["train_loss"][0]
    still = train(dataclasses.replace(single, steps=2), cpu=True).training["train_loss"]
    assert first == pytest.approx(still.mean(), rel=1e-6)


_SHARED = """
import json, sys
from flowsim.clip.settings import Training
from flowsim.clip.training import train
record = train(Training(**{settings!r}), "HS 1", cpu=True, progress=lambda *told, **numbers: print("heard", flush=True))
import accelerate
if accelerate.PartialState().is_main_process:
    print(json.dumps([record.training["train_loss"].tolist(), record.training["train_modality_gap"].tolist()]))
"""


def _heard(settings, schedule):
    """What a run says on its way."""
    said = []
    train(settings, schedule, cpu=True, progress=lambda *told, **numbers: said.append(told))
    return said


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Features are gathered with their gradient: losses and gaps of the whole batch, whatever the processes."""
    script = tmp_path / "shared.py"
    script.write_text(_SHARED.format(settings=dataclasses.asdict(TINY)))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split().count("heard") == len(_heard(TINY, "HS 1"))  # the first process alone says how far it is
    losses, gaps = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    alone = train(TINY, "HS 1", cpu=True)
    np.testing.assert_allclose(losses, alone.training["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(gaps, alone.training["train_modality_gap"], rtol=1e-3)


def test_batch_normalisation_is_shared_by_gpus_only():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4))
    alone = synchronised(module, "cpu")
    assert isinstance(alone, torch.nn.Sequential)
    assert type(alone[1]) is torch.nn.BatchNorm2d
    shared = synchronised(module, "cuda")
    assert isinstance(shared, torch.nn.Sequential)
    assert type(shared[1]) is torch.nn.SyncBatchNorm
    assert shared.state_dict().keys() == module.state_dict().keys()


# --- weights and measuring ------------------------------------------------------------------------------


def test_weights_are_exported_for_open_clip_and_read_back(tmp_path):
    file = tmp_path / "weights.pt"
    record = train(TINY, "TS S3", cpu=True, weights=file)
    built = models.build("flowsim-vit-32", str(file))
    assert built.module.logit_scale.exp().item() == pytest.approx(20.0, rel=1e-6)  # τ = 0.05 at the end
    measured = measure("flowsim-vit-32", TINY.data, str(file), pairs=16, image_size=32, device="cpu")
    assert measured.report["modality_gap"] == pytest.approx(record.series["modality_gap"][-1], rel=1e-5)
    assert measured.loss == pytest.approx(record.series["loss"][-1], rel=1e-4)
    with pytest.raises(fs.FlowsimError, match="belong to another model"):
        models.build("flowsim-vit-64", str(file))
    file.write_bytes(b"not weights")
    with pytest.raises(fs.FlowsimError, match="no weights that can be loaded safely"):
        models.build("flowsim-vit-32", str(file))
    with pytest.raises(fs.FlowsimError, match="no file of weights"):
        models.build("flowsim-vit-32", "missing.pt")
    with pytest.raises(fs.FlowsimError, match="Did you mean"):
        models.build("RN50", "open_ai")


def test_a_tag_brings_its_activation_normalisation_and_resizing(tmp_path, monkeypatch):
    """A model with a tag against open_clip's own, told the same: weights and pixels go through both."""
    tag = {
        "quick_gelu": True, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "interpolation": "bilinear",
        "resize_mode": "squash",
    }  # fmt: skip
    theirs = open_clip.create_model("flowsim-vit-32", force_quick_gelu=True, force_image_size=32)
    torch.save(theirs.state_dict(), tmp_path / "tag.pt")
    monkeypatch.setattr(open_clip, "list_pretrained_tags_by_model", lambda name: ["web"])
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda name, source: tag)
    monkeypatch.setattr(open_clip, "download_pretrained", lambda found: str(tmp_path / "tag.pt"))
    built = models.build("flowsim-vit-32", "web", image_size=32, seed=5)
    assert (built.mean, built.std, tuple(built.resize)) == (tag["mean"], tag["std"], ("squash", "bilinear"))
    image = np.random.default_rng(0).integers(0, 255, (40, 70, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    (tmp_path / "captions.tsv").write_text("filename\tcaption\na.png\ta dog\n")
    sample = embed.sample(data_.load(tmp_path), 1, built.tokenize, 32, built.resize)
    ours = embed.embed_images(built, sample.pixels, "cpu")
    images = {k: v for k, v in tag.items() if k != "quick_gelu"}
    pixels = image_transform_v2(PreprocessCfg(size=32, **images), is_train=False)(Image.fromarray(image))
    assert isinstance(pixels, torch.Tensor)
    with torch.no_grad():
        wanted = theirs.eval().encode_image(pixels[None], normalize=True).numpy()
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    plain = models.build("flowsim-vit-32", str(tmp_path / "tag.pt"), image_size=32)  # the same weights without the tag
    assert abs(embed.embed_images(plain, sample.pixels, "cpu") - wanted).max() > 1e-3
    for name, quick in (("openai", True), ("laion2b_s34b_b79k", False)):
        monkeypatch.undo()
        assert bool(models._tag(name, "ViT-B-32").get("quick_gelu")) == quick


class _Payload:
    def __reduce__(self):
        return os.system, ("true",)


def test_weights_that_hold_code_are_refused(tmp_path):
    torch.save({"weight": _Payload()}, tmp_path / "code.pt")
    with pytest.raises(fs.FlowsimError, match="loaded safely"):
        models.build("flowsim-vit-32", str(tmp_path / "code.pt"))


def test_measure_says_what_it_measured_and_classifies_shapes(tmp_path, capsys):
    out = tmp_path / "rows.npz"
    data = "shapes:count=128,size=32"
    arguments = ["clip", "measure", "--model", "flowsim-vit-32", "--image-size", "32", "--data", data, "--pairs", "32",
                 "--labelled", data, "--out", str(out), "--figure", str(tmp_path / "clouds.png"), "--cpu",
                 "--json"]  # fmt: skip
    assert cli.main(arguments) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["protocol"]["pairs"] == 32
    assert numbers["protocol"]["captions"] == 5
    assert 0 <= numbers["zero_shot"] <= 1
    assert numbers["linear_probe"] > 2 / 64  # even random features tell some of the 64 classes apart
    assert set(numbers["retrieval_all_captions"]) >= {"image_to_text_at_1", "text_to_image_at_10"}
    image, text = fs.observables.load_embeddings(out)
    assert fs.observables.modality_gap(image, text) == pytest.approx(numbers["observables"]["modality_gap"])
    assert (tmp_path / "clouds.png").stat().st_size > 10_000


def test_measure_names_what_it_left_out(photos, capsys):
    """A broken image, an image with one caption, and a broken labelled one: none is lost silently, none is fatal."""
    common = ["clip", "measure", "--model", "flowsim-vit-32", "--image-size", "32", "--data", str(photos), "--split",
              "test", "--labelled", str(photos / "classes"), "--template", "x {0.a} {}", "--cpu"]  # fmt: skip
    assert cli.main([*common, "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    protocol = numbers["protocol"]
    assert protocol["skipped"]["broken image"] == {"count": 1, "names": ["20.png"]}
    assert (protocol["pairs"], protocol["captions"], protocol["all_captions_pool"]) == (5, 2, 4)
    assert numbers["retrieval_all_captions"]["text_to_image_at_1"] * 8 in range(9)  # eight captions of four images
    assert protocol["labelled_skipped"]["broken image"] == {"count": 1, "names": ["test/dog/1.png"]}
    assert (protocol["labelled_images"], protocol["classes"]) == (3, 2)
    assert numbers["linear_probe"] is None and "no split train" in numbers["reasons"]["linear_probe"]
    assert cli.main(common) == 0
    assert "broken image: 1 (20.png)" in capsys.readouterr().out
    one = measure("flowsim-vit-32", "shapes:count=8,size=32", image_size=32, pairs=4, device="cpu")
    none = dataclasses.replace(one, five=None)
    assert none.to_dict()["retrieval_all_captions"] is None
    assert "more than one caption" in none.to_dict()["reasons"]["retrieval_all_captions"]
    assert "all captions       none: fewer than two images" in repr(none)


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A reader of .npz files, as in docs/clip.md, for one test: `small.npz` here has splits train (40) and val (20)."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    np.savez("small.npz", images=rng.integers(0, 255, (60, 32, 32, 3), np.uint8), split=["train"] * 40 + ["val"] * 20)

    @data_.register("npz", lambda source: source.endswith(".npz"), describes="an .npz file")
    def read(source, split):
        content = np.load(source)
        images, rows = content["images"], np.arange(60)
        if split is not None:
            rows = rows[content["split"] == split]
        return data_.Pairs.of(
            [f"{i}" for i in rows],
            [[f"picture {i}"] for i in rows],
            lambda i: Image.fromarray(images[rows[i]]),
            source=source,
            split=split,
        )

    yield "small.npz"
    if "npz" in data_.READERS:
        data_.READERS.remove("npz")


def test_a_split_that_the_data_lack_is_named_with_the_option_that_cures_it(stored, capsys):
    """The preset's split `test`, of data that have only `val`; with the option named there it trains."""
    arguments = ["clip", "train", "--data", stored, "--steps", "1", "--batch-size", "8", "--pairs", "8", "--cpu",
                 "--set", "observables=gap"]  # fmt: skip
    assert cli.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("flowsim: 'small.npz' has no images in split 'test'. Choose another with")
    assert "`--set split=NAME` (evaluations in training: `--set held_out=NAME`), or use all images" in said
    assert "`--set split=none` (`--set held_out=none`)" in said and said.count("\n") == 1
    assert cli.main([*arguments, "--set", "held_out=val"]) == 0
    with pytest.raises(fs.FlowsimError, match=r"in split 'test'.*`held_out=NAME`.*`split=None`"):
        train(dataclasses.replace(TINY, data=stored), cpu=True)


def test_a_training_without_its_reader_says_so(stored):
    """Also if the same process has read these data before."""
    settings = dataclasses.replace(TINY, data=stored, held_out="val", steps=1, pairs=4)
    train(settings, out="run.nc", cpu=True)
    data_.READERS.remove("npz")
    with pytest.raises(fs.FlowsimError, match=r"^No reader knows 'small.npz'.*`fs.clip.data.register`"):
        train(settings, out="run.nc", cpu=True)


def test_measure_says_if_it_measures_all_images(stored, capsys):
    arguments = ["clip", "measure", "--model", "flowsim-vit-32", "--image-size", "32", "--data", stored, "--cpu"]
    assert cli.main(arguments) == 0
    out, said = capsys.readouterr()
    assert "split              none, all images\n" in out and "pairs              60\n" in out
    assert "No split test is known for 'small.npz', so all its images count. Choose a split with --split" in said
    assert cli.main([*arguments, "--split", "val"]) == 0
    out, said = capsys.readouterr()
    assert "split              val\n" in out and "pairs              20\n" in out and "known" not in said
    assert cli.main([*arguments, "--split", "test"]) == 2
    assert "'small.npz' has no images in split 'test'. Choose another with `--split NAME`" in capsys.readouterr().err
    shapes = measure("flowsim-vit-32", "shapes:count=8,size=32", split=None, image_size=32, pairs=4, device="cpu")
    assert shapes.protocol["split"] == "train"  # which is what "shapes" without a split is


@pytest.fixture
def photos(tmp_path):
    """24 photographs in splits train (18) and test (6), two captions each but one for 19; 20.png is broken.

    In `classes` two classes of two images, one of them broken, without a train split.
    """
    rng = np.random.default_rng(0)

    def save(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(path)

    folder = tmp_path / "photos"
    rows, splits = ["filename\tcaption"], ["filename\tsplit"]
    for i in range(24):
        save(folder / f"{i}.png")
        rows += [f"{i}.png\tpicture {i}"] + [f"{i}.png\tan image of {i}"] * (i != 19)
        splits += [f"{i}.png\t{'train' if i < 18 else 'test'}"]
    (folder / "captions.tsv").write_text("\n".join(rows))
    (folder / "splits.tsv").write_text("\n".join(splits))
    for name in ("dog/1", "dog/2", "cat/1", "cat/2"):
        save(folder / "classes" / "test" / f"{name}.png")
    for name in ("20.png", "classes/test/dog/1.png"):
        (folder / name).write_bytes((folder / name).read_bytes()[:100])
    return folder


def test_a_run_on_other_data_of_the_same_name_is_another_run(photos, tmp_path):
    model = tmp_path / "one" / "model.json"
    model.parent.mkdir()
    model.write_text((models._CONFIGS / "flowsim-vit-32.json").read_text())
    settings = dataclasses.replace(TINY, data=str(photos), steps=2, pairs=4, model=str(model), captions="first")
    path = tmp_path / "run.nc"
    first = train(settings, out=path, cpu=True)
    assert first.config["digests"].keys() == {"data", "held_out_data", "model"}
    assert str(tmp_path) not in json.dumps(first.config)
    assert train(settings, out=path, cpu=True).training["train_loss"].tolist() == first.training["train_loss"].tolist()
    table = (photos / "captions.tsv").read_text()
    (photos / "captions.tsv").write_text(table.replace("picture 3", "another"))
    os.utime(photos / "captions.tsv", ns=(0, 0))
    with pytest.raises(fs.FlowsimError, match="holds another run"):
        train(settings, out=path, cpu=True)
    (photos / "captions.tsv").write_text(table)
    train(settings, out=path, cpu=True)
    model.write_text(model.read_text() + "\n")
    with pytest.raises(fs.FlowsimError, match="holds another run"):
        train(settings, out=path, cpu=True)
    # Records of earlier versions say names alone.
    del first.config["digests"]
    first.save(path)
    train(settings, out=path, cpu=True)


# --- studies --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    settings = dataclasses.replace(TINY, observables="gap")
    names = ["Baseline", "FLT 4e-2", "FLT 1e-1", "No normalization"]
    return folder, study(settings, folder, names, 1, cpu=True)


def test_a_study_keeps_every_record_and_goes_on(small_study):
    folder, records = small_study
    assert sorted(p.name for p in folder.iterdir()) == [
        "Baseline.seed0.nc",
        "FLT-1e-1.seed0.nc",
        "FLT-4e-2.seed0.nc",
        "No-normalization.seed0.nc",
        "runs.nc",
    ]
    assert finished(folder).keys() == records.keys() == load_results(folder / "runs.nc").keys()
    starts = {float(r.series["modality_gap"][0]) for r in records.values()}
    assert len(starts) == 1  # the same weights for every method
    assert records["No normalization, seed 0"].series["temperature"][-1] == 1.0
    with pytest.raises(fs.FlowsimError, match="Did you mean 'TS S3'"):
        study(TINY, folder, ["TS S33"], 1)


def test_tables_have_the_papers_layout(small_study):
    _, records = small_study
    tables = Tables.of(records)
    text = tables.markdown()
    assert "**Table 3**" in text
    assert repr(tables).startswith("4 methods, 1 seed, 6 steps\n")
    one = Tables.of({name: record for name, record in records.items() if name.startswith("Baseline")})
    assert repr(one).startswith("1 method, 1 seed, 6 steps\n")
    assert "(0.122)" in text  # the paper's gap of FLT 4e-2
    assert "At equal training loss" in text
    gaps = [float(r.series["modality_gap"][-1]) for r in records.values()]
    np.testing.assert_array_equal(tables.values["gap"][:, 0], gaps)
    assert json.loads(json.dumps(tables.to_dict()))["methods"] == list(tables.methods)
    reached = tables.at_loss["step"][:, 0]
    # Only a method without normalisation need not reach the loss of the others.
    assert np.isfinite(reached[:-1]).all() and tables.methods[-1] == "No normalization"
    level = [smoothed_loss(r)[int(k)] for r, k in zip(records.values(), reached, strict=True) if np.isfinite(k)]
    assert max(level) <= tables.loss_level + 1e-12


def test_a_study_is_reported_from_its_records(small_study, capsys):
    folder, _ = small_study
    assert cli.main(["clip", "study", "--tables", "--out", str(folder)]) == 0
    assert "Table 3" in capsys.readouterr().out
    assert "(0.122)" in (folder / "tables.md").read_text("utf-8")
    for name in ("tables.md", "methods.png", "methods.pdf"):
        assert (folder / name).stat().st_size > 1000
        (folder / name).unlink()


def test_runs_too_short_for_the_figure_of_the_gap_go_without_it(small_study, tmp_path):
    early_changes(TINY, tmp_path, count=1, steps=1, cpu=True)
    assert {path.stem for path in report(small_study[1], tmp_path)} == {"tables", "numbers", "methods"}


def test_runs_that_diverged_are_left_out_of_the_tables_and_named(small_study, tmp_path):
    _, records = small_study
    bad = train(dataclasses.replace(TINY, optimizer="sgd", lr=1e30, warmup=0.0, seed=1), "Baseline", cpu=True)
    assert bad.status.code is fs.Status.DIVERGED
    tables = Tables.of({**records, "Baseline, seed 1": bad})
    assert tables.seeds == (0,)
    np.testing.assert_array_equal(tables.values["gap"], Tables.of(records).values["gap"])
    assert "**Left out**: Baseline, seed 1 (diverged)." in tables.markdown()
    assert tables.to_dict()["left_out"] == ["Baseline, seed 1 (diverged)"]
    bad.save(tmp_path / "Baseline.seed1.nc")
    assert list(finished(tmp_path)) == ["Baseline, seed 1"]
    with pytest.raises(fs.FlowsimError, match=r"No run completed: Baseline, seed 1 \(diverged\)"):
        report(finished(tmp_path), tmp_path)


def test_quality_is_drawn_against_gap_and_uniformity_where_it_was_measured(small_study):
    """Figures 6 and 7: a row for each quality that the records hold; points at the tables' values."""
    _, records = small_study
    assert figures.qualities(figures.methods_numbers(records)) == []  # gaps alone were recorded
    rng = np.random.default_rng(0)
    fuller = {}
    for seed in (0, 1):
        for name, record in records.items():
            series = {
                k: rng.random(len(record.time))
                for k in ("wasserstein_uniformity", "text_to_image_at_1", "image_to_text_at_1")
            }
            fuller[name.replace("seed 0", f"seed {seed}")] = dataclasses.replace(
                record, series={**record.series, **series}, stats={**record.stats, "zero_shot": rng.random()}
            )
    numbers = figures.methods_numbers(fuller)
    assert figures.qualities(numbers) == ["image_retrieval", "text_retrieval", "zero_shot"]
    axes = figures.quality_figure(numbers).axes
    assert len(axes) == 6
    points = set()
    for bar in axes[5].containers:
        assert isinstance(bar, ErrorbarContainer)
        points.add(tuple(np.asarray(bar.lines[0].get_xydata())[0]))
    tables = Tables.of(fuller)
    wanted = zip(tables.mean("uniformity"), tables.mean("zero_shot"), strict=True)
    np.testing.assert_allclose(sorted(points), sorted(wanted))


def test_rank_correlation_and_its_interval():
    rng = np.random.default_rng(0)
    x = np.arange(12.0)[:, None] + rng.normal(size=(12, 3)) * 0.1
    same, opposite = rank_correlation(x, x**3), rank_correlation(x, -x)
    assert same.rho == pytest.approx(1.0)
    assert opposite.rho == pytest.approx(-1.0)
    noise = rank_correlation(x, rng.normal(size=(12, 3)))
    assert noise.low < 0 < noise.high
    assert rank_correlation(x[:3], x[:3]) is None
    assert rank_correlation(x, np.zeros((12, 3))) is None  # recall can be 0 for every method
    assert rank_correlation(np.ones((12, 1)), x) is None


def test_early_changes_of_many_initialisations(tmp_path):
    records = early_changes(TINY, tmp_path, count=3, steps=2, cpu=True)
    assert list(records) == ["seed 0", "seed 1", "seed 2"]
    for record in records.values():
        np.testing.assert_array_equal(record.coordinates["step"], [0, 1, 2])
    assert len({float(r.series["modality_gap"][0]) for r in records.values()}) == 3
    again = early_changes(TINY, tmp_path, count=3, steps=2, cpu=True)
    np.testing.assert_array_equal(again["seed 1"].series["modality_gap"], records["seed 1"].series["modality_gap"])
    found = changes(records)
    assert list(found) == ["held-out pairs", "training pairs", "batch"]
    for name, series in (("held-out pairs", "modality_gap"), ("training pairs", "seen_modality_gap")):
        curves = [r.series[series] for r in records.values()]
        np.testing.assert_allclose(found[name], [curve[-1] - curve[0] for curve in curves])
    # Fewer or more beginnings of the same kind go on; others are refused.
    few = early_changes(TINY, tmp_path, count=1, steps=2, cpu=True)
    assert list(few) == ["seed 0"]
    more = early_changes(TINY, tmp_path, count=4, steps=2, cpu=True)
    assert list(more) == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert len(load_results(tmp_path / "early.nc")) == 4
    with pytest.raises(fs.FlowsimError, match="holds other runs"):
        early_changes(TINY, tmp_path, count=3, steps=3, cpu=True)
    with pytest.raises(fs.FlowsimError, match="holds other runs"):
        early_changes(dataclasses.replace(TINY, lr=2e-3), tmp_path, count=3, steps=2, cpu=True)
    with pytest.raises(fs.FlowsimError, match="`count` must be at least 1"):
        early_changes(TINY, tmp_path, count=0, steps=2, cpu=True)


# --- settings and bad input -----------------------------------------------------------------------------


def test_learning_rates_are_open_clips_cosine():
    settings = dataclasses.replace(TINY, warmup=0.2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = cosine_lr(optimizer, settings.lr, 10, 50)
    assert [settings.learning_rate(k, 50) for k in range(50)] == pytest.approx([theirs(k) for k in range(50)])


def test_presets_are_described_and_reach_training():
    for name, (settings, text) in PRESETS.items():
        assert preset(name) is settings
        assert text
    assert preset("paper").total_steps(82_783) == 80 * 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--schedule", "TS S9"], "Did you mean 'TS S3'"),
        (["--model", "RN5"], "Unknown model 'RN5'. Did you mean"),
        (["--model", "missing.json"], "no model configuration 'missing.json'"),
        (["--data", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data", "shapes:mispaird=0.1"], "mispaired"),
        (["--set", "warmpu=1"], "Did you mean 'warmup'"),
        (["--set", "augment=crop"], "Unknown augment 'crop'"),
        (["--lr", "-1"], "Option `--lr` must be positive"),
        (["--batch-size", "2000"], "one step takes 2000. Use a smaller `--batch-size`."),
        (["--set", "image_size=4"], "cannot be built at 4 pixels"),
        (["--set", "held_out=tset"], "tset"),
        (["--pretrained", "laion"], "no pretrained tags"),
        (["--out", "run.txt"], "takes a .nc file"),
        (["--preset", "laptop"], "Add --data"),
        (["--clamp", "1", "0.1"], "positive and rising"),
        (["--set", "seed=1"], "Use --seed"),
        (["--set", "labelled=nowhere/at/all"], "There is no 'nowhere/at/all'"),
        (["--weights", "."], "it is a folder"),
        (["--tensorboard", "/dev/null/x"], "Choose another folder as `--tensorboard`"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["clip", "train", "--cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["early", "--count", "0"], "Option `--count` must be at least 1"),
        (["measure", "--data", "nowhere/at/all"], "There is no 'nowhere/at/all'"),
        (["measure", "--temperature", "0"], "Option `--temperature` must be positive"),
        (
            ["measure", "--labelled", "shapes", "--template", "a photo"],
            "`--template` has no place for the class",
        ),
        (["measure", "--model", "odd.json"], "'odd.json' cannot be built"),
    ],
)
def test_bad_input_of_other_commands_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = json.loads((models._CONFIGS / "flowsim-vit-32.json").read_text())
    config["vision_cfg"]["patch_size"] = 0
    (tmp_path / "odd.json").write_text(json.dumps(config))
    assert cli.main(["clip", *arguments, "--cpu"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_cures_are_options_on_the_command_line(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def said(*arguments):
        assert cli.main(["clip", *arguments]) == 2
        return capsys.readouterr().err

    (photos / "splits.tsv").unlink()
    cure = "`--set split=none`; for training also with `--set held_out=none`, or with another `--held-out-data`"
    assert cure in said("train", "--data", str(photos), "--cpu")
    assert "Run `flowsim clip study` first" in said("study", "--tables")
    settings = ["--data", "shapes:count=40,size=32", "--batch-size", "8", "--pairs", "8", "--set", "observables=gap"]
    assert cli.main(["clip", "train", *settings, "--steps", "1", "--cpu"]) == 0
    assert "replaces it with `--force`" in said("train", *settings, "--steps", "2", "--cpu")
    assert "again with `--force`" in said("train", *settings, "--steps", "1", "--weights", "w.pt", "--cpu")


def test_a_full_disk_is_one_sentence_and_the_training_is_not_lost(tmp_path):
    """Weights that do not fit: the record and the checkpoint are there, and the same call goes on."""
    settings = dataclasses.replace(TINY, steps=2)
    path, before = tmp_path / "run.nc", resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(text, done, total, **numbers):
        if done == settings.steps:  # records fit, weights do not
            resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))

    try:
        with pytest.raises(fs.FlowsimError, match=r"Cannot write .*run.checkpoint.pt'.*disk may be full. Choose"):
            train(settings, out=path, cpu=True, weights=tmp_path / "weights.pt", progress=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)

    def fail(*arguments):
        raise OSError("gone")

    found = fs.load(path)
    assert isinstance(found, TrainingRecord)
    assert found.status.code is fs.Status.UNFINISHED
    assert found.coordinates["step"][-1] == settings.steps
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.nc"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "export", fail)
        with pytest.raises(OSError, match="gone"):
            train(settings, out=path, cpu=True, weights=tmp_path / "weights.pt")
    assert (tmp_path / "run.checkpoint.pt").exists()
    said = []
    done = train(
        settings,
        out=path,
        cpu=True,
        weights=tmp_path / "weights.pt",
        progress=lambda *told, **numbers: said.append(told),
    )
    assert done.status.ok and said == []  # only the weights were missing
    assert (tmp_path / "weights.pt").stat().st_size > 300_000
    assert not (tmp_path / "run.checkpoint.pt").exists()


def test_the_numbers_go_to_tensorboard(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed: pip install '.[clip]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    record = train(TINY, cpu=True, tensorboard=str(tmp_path / "board"))
    events = EventAccumulator(str(tmp_path / "board")).Reload()
    assert set(events.Tags()["scalars"]) == {"loss", "temperature", "modality_gap", "images_per_second"}
    for name in ("loss", "temperature", "modality_gap"):
        for event in events.Scalars(name):
            assert event.value == pytest.approx(record.training[f"train_{name}"][event.step - 1], rel=1e-6)
    assert events.Scalars("loss")[-1].step == TINY.steps


def test_a_comparison_simulates_the_clamp_of_the_training(baseline):
    _, record = baseline
    assert record.config["schedule"]["temperature"]["clamp"] is None
    policy = Compared.of(record).schedule.temperature
    assert isinstance(policy, Learnable) and policy.clamp is not None
    assert tuple(float(tau) for tau in policy.clamp) == TINY.clamp
    for clamp, wanted in (([0.1, 1.0], 0.1), (None, 0.07)):  # training begins within the clamp
        other = dataclasses.replace(record, config={**record.config, "training": {"clamp": clamp}})
        policy = Compared.of(other).schedule.temperature
        assert isinstance(policy, Learnable) and float(policy.init) == wanted


def test_an_unwritable_place_keeps_earlier_records(tmp_path, monkeypatch, baseline):
    path, _ = baseline
    before = path.read_bytes()

    def full(temporary, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xarray.Dataset.to_netcdf", full)
    with pytest.raises(fs.FlowsimError, match="No space left on device"):
        train(TINY, "TS S3", path, cpu=True, force=True)
    assert path.read_bytes() == before
    monkeypatch.undo()
    (tmp_path / "file").write_text("")
    with pytest.raises(fs.FlowsimError, match="Cannot write"):
        train(TINY, "TS S3", tmp_path / "file" / "run.nc", cpu=True)


def test_what_was_skipped_is_said_and_recorded(tmp_path, capsys):
    """A folder of photographs with a broken image, an image without caption, and a caption without image."""
    rng = np.random.default_rng(0)
    rows, splits = ["filename\tcaption"], ["filename\tsplit"]
    for i in range(24):
        Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(tmp_path / f"{i}.png")
        rows += [f"{i}.png\tpicture {i}"] if i != 3 else []
        splits += [f"{i}.png\t{'train' if i < 18 else 'test'}"]
    (tmp_path / "5.png").write_bytes((tmp_path / "5.png").read_bytes()[:100])
    rows += ["lost.png\tnothing to see"]
    (tmp_path / "captions.tsv").write_text("\n".join(rows))
    (tmp_path / "splits.tsv").write_text("\n".join(splits))
    options = ["--steps", "1", "--batch-size", "16", "--pairs", "4", "--set", "observables=gap", "--cpu"]
    out = tmp_path / "run.nc"
    assert cli.main(["clip", "train", "--data", str(tmp_path), *options, "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "broken image: 1 (5.png)" in said
    recorded = fs.load(out).config["data"]
    assert recorded["training_pairs"] == 16
    assert sum(recorded["skipped"].values()) >= 2
    assert str(tmp_path.parent) not in json.dumps(fs.load(out).config)  # folders differ from machine to machine


def test_a_run_from_the_command_line(tmp_path, capsys):
    out = tmp_path / "run.nc"
    schedule = tmp_path / "own.json"
    schedule.write_text(fs.Schedule(fs.temperature.Linear(0.02, 0.03), fs.SoftSwap(0.5)).to_json())
    options = [
        "--steps",
        "4",
        "--batch-size",
        "8",
        "--pairs",
        "16",
        "--set",
        "evaluations=2",
        "--set",
        "observables=gap",
    ]
    code = cli.main(
        [
            "clip",
            "train",
            "--schedule",
            str(schedule),
            "--data",
            "shapes:count=16,size=32",
            *options,
            "--out",
            str(out),
            "--cpu",
            "--json",
        ]
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out)["status"] == "COMPLETED"
    assert fs.load(out).series["temperature"][-1] == pytest.approx(0.03)
