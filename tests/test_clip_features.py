"""Files of frozen features: what the model gives, whatever happens on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

import flowsim as fs
from flowsim import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch

    from flowsim.clip import data as data_
    from flowsim.clip import embed, frozen, models, stored
    from flowsim.clip.data import Pairs
    from flowsim.clip.frozen import features

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

MODEL, SHAPES = "flowsim-vit-32", "shapes:count=20,size=32"
#: Of a folder of photos: (file name, captions, split); image 3 is broken.
TABLE = [(f"{k:02d}.png", k % 3 + 1, "train" if k < 7 else "test") for k in range(12)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 12 images with one to three captions each, one of them broken."""
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    captions, splits = ["filename\tcaption"], ["filename\tsplit"]
    for k, (name, count, split) in enumerate(TABLE):
        Image.fromarray(random.integers(0, 256, (40, 50, 3)).astype(np.uint8)).save(folder / name)
        captions += [f"{name}\timage {k} in words number {j}" for j in range(count)]
        splits.append(f"{name}\t{split}")
    (folder / "03.png").write_bytes((folder / "03.png").read_bytes()[:600])
    (folder / "captions.tsv").write_text("\n".join(captions))
    (folder / "splits.tsv").write_text("\n".join(splits))
    return str(folder)


@pytest.fixture(scope="module")
def written(photos, tmp_path_factory):
    """(folder, features) of all photos, in blocks that do not divide them."""
    out = tmp_path_factory.mktemp("features") / "photos"
    return out, features(MODEL, photos, out, batch_size=5, device="cpu")


def _by_open_clip(pairs, unit=False):
    """Rows of images, and of the captions of each image, by open_clip's own functions, in one batch."""
    built = models.build(MODEL)
    module = built.module.eval()
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (built.mean, built.std))
    pixels = torch.from_numpy(pairs.pixels(built.image_size, resize=built.resize)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        image = module.encode_image((pixels - mean) / std, normalize=unit).numpy()
        text = [module.encode_text(built.tokenize(list(texts)), normalize=unit).numpy() for texts in pairs.captions]
    return image, text


def _assert_rounded(ours, theirs):
    """Equal to half precision: ε = 2⁻¹¹, and rounding of the model."""
    assert ours.dtype == np.float16
    np.testing.assert_allclose(ours, theirs, rtol=2**-10, atol=1e-5)


def _same_files(one, other):
    assert sorted(p.name for p in one.iterdir()) == sorted(p.name for p in other.iterdir())
    for file in one.iterdir():
        assert file.read_bytes() == (other / file.name).read_bytes(), file.name


# --- contents -------------------------------------------------------------------------------------------


def test_features_are_the_outputs_of_the_model_for_images_and_all_captions_in_order(photos, written):
    _, found = written
    pairs = data_.load(photos, verify=True)
    assert found.names.tolist() == list(pairs.keys) == [name for name, _, _ in TABLE if name != "03.png"]
    assert found.split.tolist() == [split for name, _, split in TABLE if name != "03.png"]
    assert found.counts.tolist() == [count for name, count, _ in TABLE if name != "03.png"]
    image, text = _by_open_clip(pairs)
    _assert_rounded(found.image, image)
    assert found.text.shape == (11, 3, 64)
    for ours, theirs in zip(found.text, text, strict=True):
        _assert_rounded(ours[: len(theirs)], theirs)
        assert not ours[len(theirs) :].any()
    assert abs(np.linalg.norm(image, axis=1) - 1).min() > 0.1  # so these are not unit rows
    assert np.unique(found.image, axis=0).shape == found.image.shape


def test_broken_images_are_counted_and_named(photos, written, capsys):
    out, _ = written
    about = json.loads((out / "features.json").read_text())
    assert about["skipped"] == {"broken image": {"count": 1, "names": ["03.png"]}}
    assert (about["images"], about["broken"]) == (11, ["03.png"])
    assert cli.main(["clip", "features", "--model", MODEL, "--data", photos, "--out", str(out), "--cpu"]) == 0
    assert "broken image: 1 (03.png)" in capsys.readouterr().err


def test_the_record_says_where_features_come_from(photos, written):
    about = stored.read_about(written[0])
    built = models.build(MODEL)
    assert about["model"] == MODEL and about["pretrained"] == "random" and about["image_size"] == 32
    assert about["source"] == os.path.basename(photos) and about["split"] is None
    assert about["weights"] == {"image": built.digest("image"), "text": built.digest("text")}
    assert about["versions"].keys() == {"flowsim", "torch", "open_clip"}
    other = models.build(MODEL, seed=1)
    assert other.digest("image") != built.digest("image") and other.digest("text") != built.digest("text")
    assert not {"good.npy", "unfinished"} & {*about, *os.listdir(written[0])}


def test_files_are_mapped_and_equal_the_folder(photos, written, tmp_path):
    _, folder = written
    assert isinstance(np.load(written[0] / "image.npy", mmap_mode="r"), np.memmap)
    for name in ("photos.npz", "photos.safetensors"):
        found = features(MODEL, photos, tmp_path / name, batch_size=5, device="cpu")
        for part in ("image", "text", "split", "names", "counts"):
            np.testing.assert_array_equal(getattr(found, part), getattr(folder, part))
        assert stored.read_about(tmp_path / name) == stored.read_about(written[0])
    assert sorted(os.listdir(tmp_path)) == [
        "photos.npz", "photos.npz.json", "photos.safetensors", "photos.safetensors.json",
    ]  # fmt: skip


def test_generated_pairs_come_with_all_splits_and_classes(tmp_path):
    found = features(MODEL, SHAPES, tmp_path / "shapes", labelled=SHAPES, template="this is a {}", device="cpu")
    assert found.splits == {"train": 20, "val": 20, "test": 20}
    built = models.build(MODEL)
    for split in found.splits:
        pairs = data_.load(SHAPES, split)
        part = found.part(split)
        assert part.names.tolist() == list(pairs.keys)
        assert part.labels.tolist() == pairs.labels.tolist()
        _assert_rounded(part.image, _by_open_clip(pairs)[0])
    assert found.classes == data_.CLASSES
    with torch.no_grad():
        prompts = built.module.eval().encode_text(built.tokenize([f"this is a {name}" for name in data_.CLASSES]))
    _assert_rounded(found.class_text, prompts.numpy())


def test_images_without_a_class_have_none(photos, tmp_path):
    pairs, classes = tmp_path / "pairs", tmp_path / "classes"
    places = {"00": "train/cat", "01": "train/dog", "08": "test/cat", "09": "test/dog", "02": "train/cow"}
    for folder in (pairs, classes):
        for name, place in places.items():
            if folder == pairs or name != "02":
                (folder / place).mkdir(parents=True)
                shutil.copy(f"{photos}/{name}.png", folder / place)
    keys = {name: f"{place}/{name}.png" for name, place in places.items()}
    (pairs / "captions.tsv").write_text("\n".join(["filename\tcaption", *(f"{key}\ta text" for key in keys.values())]))
    found = features(MODEL, str(pairs), tmp_path / "some", labelled=str(classes), device="cpu")
    assert found.split is None and found.classes == ("cat", "dog") and found.class_text.shape == (2, 64)
    expected = {keys["00"]: 0, keys["01"]: 1, keys["08"]: 0, keys["09"]: 1, keys["02"]: -1}
    assert dict(zip(found.names.tolist(), found.labels.tolist(), strict=True)) == expected
    with pytest.raises(fs.FlowsimError, match=r"None of the images of .* has a class in .*, e\.g\. '00\.png'"):
        features(MODEL, photos, tmp_path / "none", labelled=str(classes), device="cpu")


def test_one_split_fewer_captions_and_unit_rows(photos, tmp_path):
    out = tmp_path / "some"
    found = features(MODEL, photos, out, split="test", captions=2, normalize=True, batch_size=2, device="cpu")
    pairs = data_.load(photos, "test")
    image, text = _by_open_clip(pairs, unit=True)
    assert found.split.tolist() == ["test"] * 5
    assert found.counts.tolist() == [min(2, len(texts)) for texts in pairs.captions]
    _assert_rounded(found.image, image)
    for ours, theirs in zip(found.text, text, strict=True):
        _assert_rounded(ours[: min(2, len(theirs))], theirs[:2])


def test_images_are_decoded_in_batches(photos, tmp_path, monkeypatch):
    seen, attempted = [], Pairs.attempted

    def noted(self, *args, **kwargs):
        seen.append(len(self))
        return attempted(self, *args, **kwargs)

    monkeypatch.setattr(Pairs, "attempted", noted)
    monkeypatch.setattr(Pairs, "decoded", None)
    said = []
    features(MODEL, photos, tmp_path / "out", batch_size=5, device="cpu", progress=lambda *told, **_: said.append(told))
    assert seen == [5, 5, 2]
    assert said == [("features", 5, 12), ("features", 10, 12), ("features", 12, 12)]


# --- interrupted ----------------------------------------------------------------------------------------


def _stop_after(count):
    def stop(text, done, total, **numbers):
        if done >= count:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_call_goes_on_to_the_same_bytes(photos, written, tmp_path, monkeypatch):
    whole, _ = written
    out = tmp_path / "photos"
    with pytest.raises(KeyboardInterrupt):
        features(MODEL, photos, out, batch_size=5, device="cpu", progress=_stop_after(5))
    assert os.listdir(tmp_path) == ["photos.unfinished"]
    embedded, encode = [], frozen.encode_images

    def noted(model, pixels, *args):
        embedded.append(len(pixels))
        return encode(model, pixels, *args)

    monkeypatch.setattr(frozen, "encode_images", noted)
    features(MODEL, photos, out, batch_size=5, device="cpu")
    assert embedded == [5, 2]  # of the first five one was broken
    assert os.listdir(tmp_path) == ["photos"]
    _same_files(out, whole)
    features(MODEL, photos, out, batch_size=5, device="cpu")
    assert embedded == [5, 2]  # finished features are not computed again


_KILLED = """
import os, signal, sys
from flowsim.clip import frozen
frozen._SAVED = 0.0
def kill(text, done, total, **numbers):
    if done == 10:
        os.kill(os.getpid(), signal.SIGKILL)
frozen.features("flowsim-vit-32", sys.argv[1], sys.argv[2], batch_size=5, device="cpu", progress=kill)
"""


def test_a_killed_call_goes_on_to_the_same_bytes(photos, written, tmp_path):
    out = tmp_path / "photos"
    command = [sys.executable, "-W", "ignore", "-c", _KILLED, photos, str(out)]
    done = subprocess.run(command, capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert json.loads((tmp_path / "photos.unfinished" / "features.json").read_text())["unfinished"] == 10
    features(MODEL, photos, out, batch_size=5, device="cpu")
    _same_files(out, written[0])


@pytest.mark.parametrize("where", ["_keep_rows", "publish"])
def test_a_call_killed_at_its_end_goes_on_to_the_same_bytes(where, photos, written, tmp_path, monkeypatch):
    out, count, module = tmp_path / "photos", [], frozen if where == "publish" else stored
    function = getattr(module, where)

    def killed(*args):
        if where == "publish" or count:
            raise KeyboardInterrupt
        count.append(function(*args))

    with monkeypatch.context() as patch:
        patch.setattr(module, where, killed)
        with pytest.raises(KeyboardInterrupt):
            features(MODEL, photos, out, batch_size=5, device="cpu")
    features(MODEL, photos, out, batch_size=5, device="cpu")
    _same_files(out, written[0])


# --- refusals -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "flowsim-vit-64"}, "differ in model (flowsim-vit-32, not flowsim-vit-64)"),
        ({"seed": 1}, "differ in weights"),
        ({"split": "test"}, "differ in source digest"),
        ({"captions": 1}, "differ in captions (3, not 1)"),
        ({"image_size": 64}, "differ in image size (32, not 64)"),
        ({"normalize": True}, "differ in normalize"),
    ],
)
def test_other_features_are_not_replaced(changes, message, photos, written, tmp_path):
    out, _ = written
    unfinished = tmp_path / "photos"
    with pytest.raises(KeyboardInterrupt):
        features(MODEL, photos, unfinished, batch_size=5, device="cpu", progress=_stop_after(5))
    before = {
        p: p.read_bytes() for folder in (out, unfinished.with_name("photos.unfinished")) for p in folder.iterdir()
    }
    for where, word in ((out, "holds features"), (unfinished, "holds unfinished features")):
        with pytest.raises(fs.FlowsimError) as caught:
            features(**{"model": MODEL, "data": photos, "out": where, "device": "cpu", **changes})
        assert word in str(caught.value) and message in str(caught.value)
    assert all(path.read_bytes() == content for path, content in before.items())


def test_other_features_are_replaced_by_force(tmp_path):
    out = tmp_path / "features"
    features(MODEL, SHAPES, out, split="train", device="cpu")
    with pytest.raises(KeyboardInterrupt):
        features(MODEL, SHAPES, out, split="val", device="cpu", force=True, batch_size=5, progress=_stop_after(5))
    assert fs.data.load(out).splits == {"train": 20}
    found = features(MODEL, SHAPES, out, split="test", device="cpu", force=True)
    assert found.splits == {"test": 20} and os.listdir(tmp_path) == ["features"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "features.txt"], "Features are a folder, .npz or .safetensors"),
        (["--batch-size", "0"], "Option `--batch-size` must be at least 1"),
        (["--captions", "0"], "Option `--captions` must be at least 1"),
        (["--model", "flowsim-vit-33"], "Did you mean"),
        (["--data", "nowhere/at/all"], "There is no 'nowhere/at/all'"),
        (["--split", "tets"], "tets"),
        (["--labelled", "shapes", "--template", "a photo"], "has no place for the class"),
        (["--image-size", "4"], "cannot be built at 4 pixels"),
        (["--pretrained", "laion"], "no pretrained tags"),
        (["--out", "/dev/null/features"], "Cannot write"),
    ],
)
def test_bad_input_is_one_sentence(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["clip", "features", "--model", MODEL, "--data", SHAPES, "--cpu", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_features_beyond_half_precision_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "encode_images", lambda *args: 1e6 * embed.encode_images(*args))
    with pytest.raises(fs.FlowsimError, match="larger than half precision can hold"):
        features(MODEL, SHAPES, tmp_path / "wild", device="cpu")
    assert features(MODEL, SHAPES, tmp_path / "unit", normalize=True, device="cpu").pairs == 60


def test_the_command_writes_features(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["clip", "features", "--model", MODEL, "--data", SHAPES, "--threads", "1", "--out", "f.npz", "--cpu"]
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "60" in said.out and "Saved f.npz." in said.err
    found = fs.data.load("f.npz")
    assert found.splits == {"train": 20, "val": 20, "test": 20} and found.captions == 5
