"""Training with a locked image tower: the same steps as with frozen parameters, from features computed once."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import flowsim as fs
from flowsim import cli
from flowsim.clip import studies
from flowsim.records.result import TrainingRecord

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch
    from open_clip.loss import ClipLoss

    from flowsim.clip import data as data_
    from flowsim.clip import locked, models, training
    from flowsim.clip.evaluate import measure
    from flowsim.clip.frozen import features
    from flowsim.clip.settings import Training
    from flowsim.clip.stacked import train_stacked
    from flowsim.clip.studies import study
    from flowsim.clip.training import train
    from flowsim.progress import silent

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

TINY = Training(
    model="flowsim-vit-32", data="shapes:count=40,size=32", image_size=32, augment="centre", steps=6, batch_size=8,
    pairs=16, evaluations=4, observables="gap", snapshot_pairs=4, warmup=0.2, threads=1, locked_image=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _forget():
    locked._LATEST.clear()


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """The file of a small ResNet, whose batch normalisation has statistics."""
    config = json.loads((models._CONFIGS / "flowsim-vit-32.json").read_text())
    config["vision_cfg"] = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8}
    file = tmp_path_factory.mktemp("model") / "tiny-resnet.json"
    file.write_text(json.dumps(config))
    return str(file)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder of features of all splits."""
    out = tmp_path_factory.mktemp("stored") / "features"
    features(TINY.model, TINY.data, out, device="cpu", threads=1)
    return str(out)


def _exported(settings, folder, schedule="Baseline"):
    """(record, state dict) of a run."""
    file = folder / "weights.pt"
    record = train(settings, schedule, cpu=True, weights=file)
    return record, torch.load(file, weights_only=True)


def _is_image(name):
    return name.startswith("visual.")


# --- a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["flowsim-vit-32", "resnet"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_step_is_that_of_open_clip_with_frozen_parameters(model, optimizer, resnet, monkeypatch):
    """Weights and their gradients after one step on the same batch, by open_clip's module and loss."""
    settings = TINY.replace(
        model=resnet if model == "resnet" else model,
        optimizer=optimizer,
        lr=0.01,
        warmup=0.0,
        decay="constant",
        eps=1e-2,
    )
    learner = training._prepared(settings, fs.schedules.get("Baseline"), None, True, silent).learner
    batches = learner.batches
    _, tokens, boxes = batches.batch(0)
    assert boxes is None
    pixels = torch.from_numpy(batches.pairs.pixels(32, batches.indices(0), resize=batches.resize)).permute(0, 3, 1, 2)

    module = models.build(settings.model, seed=settings.seed).module.train()
    for parameter in module.visual.parameters():
        parameter.requires_grad = False
    module.visual.eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (learner.model.mean, learner.model.std))
    raw = torch.nn.Parameter(module.logit_scale.detach().clone())
    image = module.encode_image((pixels / 255 - mean) / std, normalize=True)
    loss = ClipLoss()(image, module.encode_text(tokens, normalize=True), raw.exp())
    loss.backward()
    theirs = {name: p for name, p in module.named_parameters() if p.requires_grad and name != "logit_scale"}
    gradients = {name: p.grad.clone() for name, p in theirs.items()}
    decayed = [p for p in theirs.values() if p.ndim >= 2]
    free = [p for p in theirs.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": [*free, raw], "weight_decay": 0.0}]
    if optimizer == "sgd":
        torch.optim.SGD(groups, lr=settings.lr).step()
    else:
        betas = (settings.beta1, settings.beta2)
        torch.optim.AdamW(groups, lr=settings.lr, betas=betas, eps=settings.eps).step()

    monkeypatch.setattr(learner.stepper, "zero_grad", lambda **_: None)
    learner.wrapped.train()
    values = learner.take_step(0)
    ours = dict(learner.model.open_clip.named_parameters())
    assert values[0].item() == pytest.approx(loss.item(), abs=1e-6)
    assert len(gradients) > 20
    scale = max(float(g.abs().max()) for g in gradients.values())
    assert scale > 1e-3  # so 1e-6 tells something
    for name, gradient in gradients.items():
        np.testing.assert_allclose(ours[name].grad, gradient, atol=1e-6 * max(1.0, scale), err_msg=name)
        np.testing.assert_allclose(ours[name].detach(), theirs[name].detach(), atol=1e-6, err_msg=name)
    moved = learner.temperature.raw.detach().exp().item() if learner.temperature.raw is not None else None
    assert moved == pytest.approx(raw.detach().exp().item(), rel=1e-6)
    for name, parameter in ours.items():
        assert not _is_image(name) or (parameter.grad is None and not parameter.requires_grad)
    trained = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert not trained & {id(p) for name, p in ours.items() if _is_image(name)}


@pytest.mark.parametrize("model", ["flowsim-vit-32", "resnet"])
def test_a_run_trains_the_text_tower_alone(model, resnet, tmp_path):
    settings = TINY.replace(model=resnet if model == "resnet" else model, steps=60, decay="constant", weight_decay=0.2)
    record, weights = _exported(settings, tmp_path)
    losses = record.training["train_loss"]
    assert losses[-5:].mean() < losses[:5].mean() - 0.1
    before = models.build(settings.model, seed=settings.seed).module.state_dict()
    assert weights.keys() == before.keys()
    changed = {name for name, value in before.items() if not torch.equal(value, weights[name])}
    images = {name for name in before if _is_image(name)}
    assert len(images) > 20 and not images & changed  # bitwise, and so are the statistics of batch normalisation
    assert {"logit_scale", "token_embedding.weight", "text_projection"} <= changed


def test_the_exported_model_is_that_of_the_last_evaluation(tmp_path):
    """So the stored features are those of the model, and the image tower goes with its text tower."""
    record, _ = _exported(TINY, tmp_path)
    found = measure(TINY.model, TINY.data, str(tmp_path / "weights.pt"), pairs=16, image_size=32, device="cpu")
    assert found.report["modality_gap"] == pytest.approx(record.series["modality_gap"][-1], rel=1e-5)
    assert found.loss == pytest.approx(record.series["loss"][-1], rel=1e-4)


def test_the_record_says_that_it_was_locked(stored):
    one = train(TINY, cpu=True)
    assert one.config["training"]["locked_image"] is True
    other = train(TINY.replace(locked_image=stored), cpu=True)
    assert other.config["training"]["locked_image"] == "features"
    assert len(other.config["digests"]["locked_image"]) == 16
    assert "locked_image" not in train(TINY.replace(locked_image=False), cpu=True).config["training"]


def test_labelled_images_are_embedded_by_the_locked_tower():
    settings = TINY.replace(labelled="shapes:count=128,size=32", steps=1, optimizer="sgd", lr=1e-12)
    locked_, free = (train(settings.replace(locked_image=how), cpu=True).stats for how in (True, False))
    assert locked_["linear_probe"] == free["linear_probe"] > 1 / 64
    assert locked_["zero_shot"] == free["zero_shot"]
    assert locked_["parameters"] == free["parameters"]


def test_bf16_and_accumulated_losses_and_swaps(tmp_path):
    for changes, schedule in (
        ({"precision": "bf16"}, "Baseline"),
        ({"accumulate": 2}, "HS 1"),
        ({"normalize": False}, "TS S3"),
    ):
        record, weights = _exported(TINY.replace(**changes), tmp_path, schedule)
        assert record.status.ok and np.isfinite(record.training["train_loss"]).all()
        before = models.build(TINY.model).module.state_dict()
        assert all(torch.equal(before[name], weights[name]) for name in before if _is_image(name))


# --- features -------------------------------------------------------------------------------------------


def test_stored_features_give_the_run_of_computed_ones(stored, tmp_path):
    """Up to half precision, 2⁻¹¹; unit rows too."""
    computed = train(TINY, cpu=True)
    unit = tmp_path / "unit.npz"
    features(TINY.model, TINY.data, unit, normalize=True, device="cpu")
    for source in (stored, str(unit)):
        read = train(TINY.replace(locked_image=source), cpu=True)
        for part in ("training", "series", "snapshots"):
            ours, theirs = getattr(read, part), getattr(computed, part)
            assert ours.keys() == theirs.keys()
            for name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=5e-3, atol=2e-3, err_msg=name)
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(computed.training["train_loss"][0], computed.training["train_loss"][-1], rtol=5e-3)


def test_features_are_computed_once_in_a_process(monkeypatch):
    count, computed = [], locked._computed
    monkeypatch.setattr(locked, "_computed", lambda *args: count.append(1) or computed(*args))
    said = []
    first = train(TINY, cpu=True, progress=lambda *told, **_: said.append(told))
    again = train(TINY.replace(lr=1e-4), "TS S3", cpu=True)
    assert len(count) == 2  # training pairs and held-out pairs
    assert [told for told in said if told[0] == "features of images"] == [
        ("features of images", 40, 40), ("features of images", 16, 16),
    ]  # fmt: skip
    np.testing.assert_array_equal(first.snapshots["image"][0], again.snapshots["image"][-1])
    train(TINY.replace(seed=1), cpu=True)  # another random tower
    assert len(count) == 4


def test_augmentation_is_refused(capsys):
    with pytest.raises(fs.FlowsimError, match="`augment` is 'random-resized-crop'. Use augment='centre'"):
        TINY.replace(augment="random-resized-crop")
    command = ["clip", "train", "--locked-image", "--set", "augment=random-resized-crop", "--cpu"]
    assert cli.main(command) == 2
    assert "Use augment='centre'." in capsys.readouterr().err


def test_an_empty_name_is_refused():
    with pytest.raises(fs.FlowsimError, match="must be True, False, or a file of features"):
        TINY.replace(locked_image="")


def test_wrong_features_are_refused_with_one_sentence(stored, tmp_path):
    known = fs.data.load(stored)
    rows, names = np.array(known.image), known.names
    for name, arrays, message in (
        ("train", {"image": rows[:40], "names": names[:40]}, r"no features of 16 of the 16 images of .*test-0000"),
        ("nameless", {"image": rows}, "has no names of images"),
        (
            "narrow",
            {"image": rows[:, :32], "names": names},
            "have 32 numbers, but embeddings of 'flowsim-vit-32' have 64",
        ),
    ):
        text = np.ones((len(arrays["image"]), 8))
        path = fs.data.save(fs.data.from_arrays(text=text, **arrays), tmp_path / f"{name}.npz")
        with pytest.raises(fs.FlowsimError, match=message) as caught:
            train(TINY.replace(locked_image=str(path)), cpu=True)
        assert str(caught.value).count("\n") == 0
    for changes, message in (
        ({"seed": 1}, "differ from this run in weights"),
        ({"model": "flowsim-vit-64", "image_size": 64}, r"in model \(flowsim-vit-32, not flowsim-vit-64\)"),
        ({"data": "shapes:count=41,size=32"}, "no features of 1 of the 41 images"),
        ({"locked_image": "nowhere"}, "There is no 'nowhere'"),
    ):
        with pytest.raises(fs.FlowsimError, match=message):
            train(TINY.replace(**{"locked_image": stored, **changes}), cpu=True)


def test_broken_images_are_left_out_and_counted(tmp_path):
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for k in range(30):
        Image.fromarray(random.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / f"{k:02d}.png")
    rows = [f"{k:02d}.png\tphoto {k}" for k in range(30)]
    (folder / "captions.tsv").write_text("\n".join(["filename\tcaption", *rows]))
    rows = [f"{k:02d}.png\t{'test' if k % 3 else 'train'}" for k in range(30)]
    (folder / "splits.tsv").write_text("\n".join(["filename\tsplit", *rows]))
    for name in ("03", "04"):
        (folder / f"{name}.png").write_bytes((folder / f"{name}.png").read_bytes()[:600])
    settings = TINY.replace(data=str(folder), batch_size=4)
    features(TINY.model, str(folder), tmp_path / "features", device="cpu")
    computed = train(settings, cpu=True)
    read = train(settings.replace(locked_image=str(tmp_path / "features")), cpu=True)
    for record in (computed, read):
        assert record.config["data"]["training_pairs"] == 9
        assert record.config["data"]["skipped"] == {"broken image": 1}
        assert record.config["evaluation"]["seen_pairs"] == 9
    np.testing.assert_allclose(read.training["train_loss"], computed.training["train_loss"], rtol=5e-3)


# --- the rest of the bridge -----------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["computed", "stored"])
def test_an_interrupted_run_goes_on_to_the_same_record(source, stored, tmp_path):
    settings = TINY.replace(
        checkpoint_seconds=0.0, evaluations=2, locked_image=True if source == "computed" else stored
    )

    def stop(text, done, total, **numbers):
        if text == "training" and done == 4:
            raise KeyboardInterrupt

    path = tmp_path / "run.nc"
    with pytest.raises(KeyboardInterrupt):
        train(settings, "HS 1e-1", path, cpu=True, progress=stop)
    assert (tmp_path / "run.checkpoint.pt").exists()
    with pytest.raises(fs.FlowsimError, match="holds another run"):
        train(settings.replace(locked_image=False), "HS 1e-1", path, cpu=True)
    locked._LATEST.clear()
    resumed = train(settings, "HS 1e-1", path, cpu=True)
    whole = train(settings, "HS 1e-1", cpu=True)
    for part in ("series", "training", "snapshots", "coordinates"):
        for name, values in getattr(whole, part).items():
            np.testing.assert_array_equal(getattr(resumed, part)[name], values, err_msg=name)
    again = train(settings, "HS 1e-1", path, cpu=True)
    np.testing.assert_array_equal(again.training["train_loss"], whole.training["train_loss"])


def test_a_study_with_a_locked_image_tower(tmp_path):
    records = study(TINY, tmp_path / "study", ["TS S3"], 1, cpu=True)
    assert all(record.status.ok for record in records.values())
    alone = train(TINY, "TS S3", cpu=True)
    np.testing.assert_allclose(records["TS S3, seed 0"].training["train_loss"], alone.training["train_loss"], rtol=1e-6)


def test_stacked_runs_are_the_separate_ones(tmp_path):
    """Seeds that share pretrained weights share their features; random image towers differ."""
    settings = TINY.replace(eps=1e-4)
    schedules = {name: fs.schedules.get(name) for name in ("Baseline", "HS 1")}
    paths = {(name, seed): tmp_path / studies.file_name(name, seed) for name in schedules for seed in (0, 3)}
    with pytest.raises(fs.FlowsimError, match="each seed has another. Give `pretrained`, or use `stack=1`"):
        train_stacked(settings, schedules, [0, 3], paths, cpu=True)
    weights = tmp_path / "weights.pt"
    torch.save(models.build(TINY.model, seed=7).module.state_dict(), weights)
    settings = settings.replace(pretrained=str(weights), labelled="shapes:count=64,size=32")
    records = train_stacked(settings, schedules, [0, 3], paths, cpu=True)
    for name, seed in (("Baseline", 0), ("HS 1", 3)):
        record, alone = records[name, seed], train(settings.replace(seed=seed), name, cpu=True)
        assert record.config == alone.config
        assert record.stats["linear_probe"] == pytest.approx(alone.stats["linear_probe"])
        for part in ("training", "series", "snapshots"):
            for key, values in getattr(alone, part).items():
                np.testing.assert_allclose(getattr(record, part)[key], values, rtol=1e-4, atol=1e-5, err_msg=key)


def test_stacked_runs_of_a_model_with_batch_normalisation_in_its_image_tower(resnet, tmp_path):
    """Refused without the lock; with it the tower has no part in a step."""
    paths = {("Baseline", 0): tmp_path / "a.nc", ("TS S3", 0): tmp_path / "b.nc"}
    schedules = {name: fs.schedules.get(name) for name in ("Baseline", "TS S3")}
    settings = TINY.replace(model=resnet, eps=1e-4)
    with pytest.raises(fs.FlowsimError, match="cannot be stacked"):
        train_stacked(settings.replace(locked_image=False), schedules, [0], paths, cpu=True)
    records = train_stacked(settings, schedules, [0], paths, cpu=True)
    alone = train(settings, "TS S3", cpu=True)
    np.testing.assert_allclose(records["TS S3", 0].training["train_loss"], alone.training["train_loss"], rtol=1e-4)


_SHARED = """
import json, sys
from flowsim.clip import locked
from flowsim.clip.settings import Training
from flowsim.clip.training import train
locked._BLOCK = 6
record = train(Training(**{settings!r}), "HS 1", cpu=True)
import accelerate
if accelerate.PartialState().is_main_process:
    print(json.dumps([record.training["train_loss"].tolist(), record.snapshots["image"].tolist()]))
"""


@pytest.mark.slow
def test_two_processes_train_as_one(tmp_path):
    """Each embeds half of the images, in blocks that do not divide them."""
    script = tmp_path / "shared.py"
    script.write_text(_SHARED.format(settings=dataclasses.asdict(TINY)))
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29519", str(script)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    losses, image = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[")))
    alone = train(TINY, "HS 1", cpu=True)
    np.testing.assert_allclose(losses, alone.training["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(image, alone.snapshots["image"], atol=1e-5)


def test_the_command_locks_the_image_tower(stored, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    common = [
        "--data",
        TINY.data,
        "--steps",
        "2",
        "--batch-size",
        "8",
        "--pairs",
        "16",
        "--set",
        "observables=gap",
        "--cpu",
    ]
    assert cli.main(["clip", "train", "--locked-image", stored, *common, "--out", "stored.nc"]) == 0
    assert cli.main(["clip", "train", *common, "--out", "computed.nc", "--locked-image"]) == 0
    assert "features of images: image 40 of 40" in capsys.readouterr().err
    one, other = (fs.load(f"{name}.nc") for name in ("stored", "computed"))
    assert isinstance(one, TrainingRecord) and isinstance(other, TrainingRecord)
    assert one.config["training"]["augment"] == other.config["training"]["augment"] == "centre"
    np.testing.assert_allclose(one.training["train_loss"], other.training["train_loss"], rtol=5e-3)
    assert cli.main(["clip", "train", "--locked-image", "a", "b", *common]) == 2
    assert "takes one file or folder, but got 2" in capsys.readouterr().err
    assert data_.load(TINY.data, "test").keys[0] == "test-000000"
