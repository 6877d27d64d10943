"""Image-text pairs: every kind of source written to a folder and read back, and the shapes made from a seed."""

import io
import json
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from flowsim.clip.data import (
    Pairs,
    Resize,
    is_generated,
    known_split,
    load,
    load_labelled,
    register,
    sources,
)
from flowsim.clip.data.given import checked_captions, checked_keys, checked_opener
from flowsim.clip.data.scenes import COLOURS, KINDS, PLACES, SHADES, SIZES, TEXTURES
from flowsim.clip.data.shapes import CLASSES, Shapes
from flowsim.errors import FlowsimError


def picture(value=0, size=(12, 10), kind="PNG", mode="RGB") -> bytes:
    """An image of one colour, encoded."""
    buffer = io.BytesIO()
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def photo(seed=0, size=(80, 60)) -> bytes:
    """A JPEG of noise, long enough to be cut off in the middle."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def write(folder, **files):
    """Files by name ("__" is a dot), text or bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        data = content.encode() if isinstance(content, str) else content
        (folder / name.replace("__", ".")).write_bytes(data)
    return folder


def pack(path, members, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def folder(tmp_path):
    """Three images (one in a folder within), captions with quotes, splits."""
    write(tmp_path / "deep", c__jpg=photo(3))
    return write(
        tmp_path,
        a__png=picture(10),
        b__png=picture(20),
        captions__tsv='filename\tcaption\tof\na.png\tA "red" dog\tx\na.png\t"so called\ty\nb.png\tb\tz\nc.jpg\tc\tx\n',
        splits__tsv="filename\tsplit\na.png\ttrain\nb.png\tval\nc.jpg\ttrain\n",
    )


# Folders


def test_folder_with_tables(folder):
    pairs = load(folder)
    assert pairs.keys == ("a.png", "b.png", "deep/c.jpg")
    assert pairs.captions == (('A "red" dog', '"so called'), ("b",), ("c",))
    assert pairs.labels is None and pairs.classes == () and pairs.skipped == {}
    assert pairs.image(0).mode == "RGB" and pairs.image(0).size == (12, 10)
    assert pairs.pixels(8)[:2, 4, 4, 0].tolist() == [10, 20]
    assert pairs.pixels(8, [1, 0])[:, 4, 4, 0].tolist() == [20, 10]
    assert "3 images" in pairs.report() and "1 to 2 captions each" in pairs.report()


def test_splits(folder):
    assert load(folder, "train").keys == ("a.png", "deep/c.jpg")
    assert load(str(folder), "val").split == "val"
    with pytest.raises(FlowsimError, match=r"Unknown split 'vall'. Did you mean 'val'\?.*train \(2\), val \(1\)"):
        load(folder, "vall")


def test_split_without_images_names_the_others(folder):
    with (folder / "splits.tsv").open("a") as file:
        file.write("gone.png\ttest\n")
    with pytest.raises(FlowsimError, match=r"Split 'test' .* is empty. Images: test \(0\), train \(2\), val \(1\)"):
        load(folder, "test")


def test_splits_are_asked_for_but_there_are_none(folder):
    (folder / "splits.tsv").unlink()
    with pytest.raises(FlowsimError, match="has no splits. Add splits.tsv .*`split=None`.*`held_out=None`"):
        load(folder, "train")


def test_images_outside_every_split_are_counted(folder):
    write(folder, splits__tsv="filename\tsplit\na.png\ttrain\n")
    pairs = load(folder, "train")
    assert pairs.skipped == {"image without split": 2}
    assert pairs.examples == {"image without split": ("b.png", "deep/c.jpg")}


def test_csv_with_quotes_and_tables_elsewhere(folder, tmp_path):
    tables = write(
        tmp_path / "tables",
        words__csv='caption,filename\r\n"one, ""two""\nthree",a.png\r\n  ,b.png\r\n',
        parts__csv="split,filename\ntrain,a.png\ntrain,b.png\n",
    )
    pairs = load(folder, "train", captions=tables / "words.csv", splits=tables / "parts.csv")
    assert pairs.captions == (('one, "two"\nthree',),)
    assert pairs.skipped == {"empty caption": 1, "image without split": 1, "image without caption": 1}


def test_whatever_does_not_fit_is_counted(folder):
    with (folder / "captions.tsv").open("a") as file:
        file.write('gone.png\tgone\ngone.png\tgone too\nb.png\t \t\nb.png\na.png\tA "red" dog\tx\n\n')
    write(folder, lonely__png=picture())
    pairs = load(folder)
    assert pairs.keys == ("a.png", "b.png", "deep/c.jpg")
    assert len(pairs.captions[0]) == 3  # a repeated row is no harm
    assert pairs.skipped == {"caption without image": 2, "empty caption": 2, "image without caption": 1}
    assert "caption without image: 2 (gone.png, ...)" in pairs.report()
    # Rows of another split are no concern of this one.
    assert load(folder, "val").skipped == {"caption without image": 2, "empty caption": 2, "image without split": 1}


def test_the_same_name_in_two_folders_needs_its_path(tmp_path):
    for name, value in (("one", 1), ("two", 2)):
        write(tmp_path / name, x__png=picture(value))
    write(tmp_path, captions__tsv="filename\tcaption\none/x.png\tfirst\n./two\\x.png\tsecond\nx.png\twhich?\n")
    pairs = load(tmp_path)
    assert dict(zip(pairs.keys, pairs.captions, strict=True)) == {"one/x.png": ("first",), "two/x.png": ("second",)}
    assert pairs.skipped == {"caption without image": 1}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"file\ttext\na.png\tx\n", r"captions.tsv' has no column 'filename' or 'caption'; .*'file', 'text'"),
        (b"", r"captions.tsv' has no column .* has: nothing"),
        (b"filename\tcaption\na.png\t\xff\xfe\n", r"captions.tsv' is not UTF-8 \(byte 23\)"),
        (b"filename\tcaption\nz.png\tx\n", r"No image of .* has a caption \(caption without image: 1, image without"),
    ],
)
def test_tables_that_do_not_help(folder, table, message):
    write(folder, captions__tsv=table)
    with pytest.raises(FlowsimError, match=message):
        load(folder)


def test_what_is_not_there(folder, tmp_path):
    with pytest.raises(FlowsimError, match=r"There is no '.*/deeep'. Did you mean '.*/deep'"):
        load(folder / "deeep")
    with pytest.raises(FlowsimError, match=r"There is no 'shape'. Did you mean 'shapes'"):
        load("shape")
    with pytest.raises(FlowsimError, match=r"Cannot read 'no.tsv': No such file"):
        load(folder, captions="no.tsv")
    with pytest.raises(FlowsimError, match=r"holds no images"):
        load(write(tmp_path / "empty", a__txt="a"))
    with pytest.raises(FlowsimError, match=r"captions.tsv' is a table. Give the folder"):
        load(folder / "captions.tsv")
    with pytest.raises(FlowsimError, match=r"is not a table"):
        load(folder, captions=folder / "a.png")


# Broken images, selections, pixels


def test_broken_images(folder):
    write(folder, b__png=photo(1)[:1500])
    pairs = load(folder)
    assert len(pairs) == 3
    with pytest.raises(FlowsimError, match=r"Image 'b.png' of .* cannot be decoded .*`load\(..., verify=True\)`"):
        pairs.pixels(8)
    with pytest.raises(FlowsimError, match="'b.png'"):
        pairs.image(1)
    good, pixels = pairs.decoded(8)
    for kept in (pairs.checked(), load(folder, verify=True), good):
        assert kept.keys == ("a.png", "deep/c.jpg")
        assert kept.skipped == {"broken image": 1} and kept.examples == {"broken image": ("b.png",)}
        np.testing.assert_array_equal(kept.pixels(8), pixels)
    assert pairs.skipped == {}


def test_all_images_broken(tmp_path):
    write(tmp_path, a__jpg=photo()[:900], b__png="no image", captions__csv="filename,caption\na.jpg,a\nb.png,b\n")
    with pytest.raises(FlowsimError, match=r"None of the 2 images of .* can be decoded \(a.jpg, ...\)"):
        load(tmp_path, verify=True)


def test_select_and_limit(folder):
    pairs = load(folder)
    assert pairs.select([2, 0]).keys == ("deep/c.jpg", "a.png")
    assert pairs.select(np.array([False, True, True])).select(slice(1, 2)).captions == (("c",),)
    assert pairs.select([1, 0]).pixels(8)[:, 4, 4, 0].tolist() == [20, 10]
    drawn = {load(folder, limit=2, seed=seed).keys for seed in range(20)}
    assert len(drawn) == 3 and all(list(keys) == sorted(keys) for keys in drawn)
    assert load(folder, limit=9).keys == pairs.keys
    with pytest.raises(FlowsimError, match="`limit` must be at least 1"):
        load(folder, limit=0)
    for wrong in ([3], [], [0.5], [True]):
        with pytest.raises(FlowsimError, match=r"(?i)indices"):
            pairs.select(wrong)
    for call in (lambda: pairs.pixels(0), lambda: pairs.pixels(8, workers=0)):
        with pytest.raises(FlowsimError, match="must be at least 1"):
            call()


@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64), (640, 480)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pixels_are_the_middle_square(tmp_path, size, kind):
    width, height = size
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([255 * x / width, 255 * y / height, 0 * x], 2).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.png", kind)
    pixels = load(write(tmp_path, captions__tsv="filename\tcaption\na.png\tx\n")).pixels(32)
    side = min(size)
    middle = Image.fromarray(ramp).crop(
        ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2)
    )
    expected = np.asarray(middle.resize((32, 32), Image.Resampling.BICUBIC), int)
    assert pixels.shape == (1, 32, 32, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[0] - expected)[1:-1, 1:-1].max() <= 6


@pytest.mark.parametrize(
    ("kind", "resampling"), [("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)]
)
def test_images_are_squashed_where_a_model_wants_it(tmp_path, kind, resampling):
    content = photo(4)
    write(tmp_path, a__jpg=content, captions__tsv="filename\tcaption\na.jpg\tx\n")
    image = Image.open(io.BytesIO(content))
    image.draft(None, (32, 32))  # as the reader does
    wanted = np.asarray(image.resize((16, 16), resampling))
    pairs = load(tmp_path)
    np.testing.assert_array_equal(pairs.pixels(16, resize=Resize("squash", kind))[0], wanted)
    np.testing.assert_array_equal(pairs.decoded(16, resize=Resize("squash", kind))[1][0], wanted)
    assert (pairs.pixels(16, resize=Resize("shortest", kind))[0] != wanted).any()
    with pytest.raises(FlowsimError, match="Unknown mode of resizing 'longest'"):
        pairs.pixels(16, resize=Resize("longest"))


def test_a_digest_tells_pairs_by_their_content(folder, tmp_path):
    first = load(folder).digest()
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert load(folder).digest() == first
    assert len({first, load(folder, "train").digest(), load(folder).select([1, 0, 2]).digest()}) == 3
    table = (folder / "captions.tsv").read_text()
    write(folder, captions__tsv=table.replace("dog", "cat"))
    assert load(folder).digest() != first
    write(folder, captions__tsv=table)
    assert load(folder).digest() == first


# Images with classes


def test_folders_of_classes(tmp_path):
    for k, place in enumerate(("train/dog", "train/cat/kitten", "train/cat", "val/dog", "val/train", "other/dog")):
        write(tmp_path / place, **{f"{k}__png": picture(k)})
    write(tmp_path / "train", stray__png=picture())
    write(tmp_path / "train" / "dog", **{"0__webp": picture(kind="WEBP")}, note__txt="no image")
    fit, judge = load_labelled(tmp_path, "train"), load_labelled(str(tmp_path), "test")
    assert fit.classes == judge.classes == ("cat", "dog", "train")
    named = {key: fit.classes[k] for key, k in zip(fit.keys, fit.labels, strict=True)}
    assert named == {"train/dog/0.png": "dog", "train/cat/kitten/1.png": "cat", "train/cat/2.png": "cat"}
    assert fit.skipped == {"image without class": 1, "image without split": 1, "second image of a name": 1}
    assert fit.examples["image without class"] == ("train/stray.png",)
    assert judge.split == "val"  # it stands in for a test split
    assert [judge.classes[k] for k in judge.labels] == ["dog", "train"]
    assert "2 images" in judge.report() and "3 classes" in judge.report()
    write(tmp_path, splits__tsv="filename\tsplit\ntrain/dog/0.png\ttest\n")  # a table says more than a folder's name
    assert load_labelled(tmp_path, "test").keys == ("train/dog/0.png",)


@pytest.mark.parametrize("place", ["train/0.tar", "train-000.tar"])
def test_webdataset_of_classes_without_captions(tmp_path, place):
    (tmp_path / "train").mkdir()
    pack(tmp_path / place, {"1.png": picture(1), "1.cls": "2", "2.png": picture(2), "2.cls": "0", "3.png": picture(3)})
    pack(tmp_path / "test-000.tar", {"1.png": picture(9), "1.cls": "1"})
    fit = load_labelled(tmp_path, "train")
    assert fit.labels.tolist() == [2, 0] and fit.classes == ("0", "1", "2")
    assert fit.skipped["image without class"] == 1
    assert fit.pixels(8)[:, 4, 4, 0].tolist() == [1, 2]
    write(tmp_path, classnames__txt="great white shark\nhouse finch\nkite\nunused\n")
    assert load_labelled(tmp_path, "test").classes == ("great white shark", "house finch", "kite", "unused")
    write(tmp_path, classnames__txt="shark\nfinch\n")
    with pytest.raises(FlowsimError, match="names 2 classes, but there is a class 2"):
        load_labelled(tmp_path, "train")


@pytest.mark.parametrize("places", [("train/0.tar", "test/0.tar"), ("train-0.tar", "test-0.tar")])
def test_shards_of_two_splits_may_use_the_same_names(tmp_path, places):
    for k, place in enumerate(places):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        pack(tmp_path / place, {"dog/1.png": picture(10 * k + 1), "cat/1.png": picture(10 * k + 2)})
    for k, split in enumerate(("train", "test")):
        pairs = load_labelled(tmp_path, split)
        assert len(pairs) == 2 and pairs.skipped == {} and pairs.classes == ("cat", "dog")
        red = {pairs.classes[c]: int(p) for c, p in zip(pairs.labels, pairs.pixels(4)[:, 2, 2, 0], strict=True)}
        assert red == {"dog": 10 * k + 1, "cat": 10 * k + 2}


def test_labelled_images_that_say_too_little(tmp_path):
    write(tmp_path / "dog", a__png=picture())
    with pytest.raises(FlowsimError, match="have no splits. Put them into folders train and test"):
        load_labelled(tmp_path, "test")
    write(tmp_path / "train" / "dog", a__png=picture())
    with pytest.raises(FlowsimError, match="Unknown split 'test'"):
        load_labelled(tmp_path, "test")
    write(tmp_path / "test", a__png=picture())
    with pytest.raises(FlowsimError, match="split 'test', has a class. Put the images of a class"):
        load_labelled(tmp_path, "test")


def test_modes_become_rgb(tmp_path):
    Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((9, 9), 40000, np.uint16)).save(tmp_path / "deep.png")
    Image.new("L", (9, 9), 77).save(tmp_path / "gray.png")
    palette = Image.new("P", (9, 9), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "palette.png", transparency=b"\xff\xff")
    rows = "".join(f"{name}.png\tx\n" for name in ("clear", "deep", "gray", "palette"))
    pixels = load(write(tmp_path, captions__tsv=f"filename\tcaption\n{rows}")).pixels(4)
    assert pixels[:, 2, 2].tolist() == [[255] * 3, [156] * 3, [77] * 3, [9, 8, 7]]


# Tars


def test_tars_beside_tables(tmp_path):
    write(tmp_path, captions__tsv="filename\tcaption\nb.png\tb\na.png\ta\n", splits__csv="filename,split\na.png,val\n")
    pack(tmp_path / "train-0.tar", {"b.png": picture(2), "._b.png": "no image"})
    pack(tmp_path / "val-0.tar", {"./a.png": picture(1)})
    pairs = load(tmp_path)
    assert pairs.keys == ("b.png", "a.png")
    assert pairs.pixels(8)[:, 4, 4, 0].tolist() == [2, 1]
    assert load(tmp_path, "val").captions == (("a",),)
    assert load(tmp_path / "val-*.tar").keys == ("a.png",)


@pytest.mark.parametrize("spec", [".", "shards-{0000..0001}.tar", "shards-*.tar", "shards-000{0,1}.tar"])
def test_webdataset(tmp_path, spec):
    first = {"001.jpg": photo(1), "001.txt": "one\n\nuno\n", "001.cls": "1", "002.png": picture(7), "002.cls": "0"}
    first |= {"002.json": json.dumps({"caption": "two", "width": 3}), "lost.txt": "nobody"}
    second = {"003.webp": picture(9, kind="WEBP"), "003.json": json.dumps({"captions": ["three", " "]}), "003.cls": "1"}
    second |= {"004.png": picture(), "004.txt": " \n"}
    pack(tmp_path / "shards-0000.tar", first)
    pack(tmp_path / "shards-0001.tar", second)
    pairs = load(tmp_path / spec)
    assert pairs.keys == ("001.jpg", "002.png", "003.webp")
    assert pairs.captions == (("one", "uno"), ("two",), ("three",))
    assert pairs.labels is not None and pairs.labels.tolist() == [1, 0, 1] and pairs.classes == ("0", "1")
    assert pairs.skipped == {"caption without image": 1, "image without caption": 1}
    assert pairs.pixels(8)[1, 4, 4].tolist() == [7, 0, 0]


def test_webdataset_of_one_tar_and_unpacked(tmp_path):
    members = {"x/1.png": picture(1), "x/1.txt": "one", "x/1.cls": "dog", "2.png": picture(2), "2.txt": "two"}
    pairs = load(pack(tmp_path / "all.tar", members))
    assert pairs.keys == ("x/1.png", "2.png") and pairs.labels is None
    assert pairs.skipped == {"image without class (so there are no labels)": 1}
    unpacked = load(
        write(
            tmp_path / "loose", a__png=picture(), a__txt="a", a__cls="dog", b__png=picture(), b__txt="b", b__cls="cat"
        )
    )
    assert unpacked.labels is not None and unpacked.labels.tolist() == [1, 0] and unpacked.classes == ("cat", "dog")


def test_shards_that_count_from_zero(tmp_path):
    for shard in ("s0", "s1"):
        pack(tmp_path / f"{shard}.tar", {"0.png": picture(), "0.txt": shard, "1.png": picture(), "1.txt": shard})
    pairs = load(tmp_path)
    assert pairs.keys == ("s0/0.png", "s0/1.png", "s1/0.png", "s1/1.png")


def test_tars_that_cannot_be_read(tmp_path):
    members = {"a.png": photo(), "a.txt": "a"}
    with pytest.raises(FlowsimError, match=r"z.tar.gz' is compressed \(gzip\).*plain .tar"):
        load(pack(tmp_path / "z.tar.gz", members, "w:gz"))
    with pytest.raises(FlowsimError, match=r"is compressed \(gzip\)"):
        load(tmp_path)
    with pytest.raises(FlowsimError, match=r"is compressed \(xz\)"):
        load(pack(tmp_path / "hidden.tar", members, "w:xz"))
    whole = pack(tmp_path / "whole.tar", members).read_bytes()
    write(tmp_path, cut__tar=whole[:2000], none__tar="not a tar")
    for name in ("cut", "none"):
        with pytest.raises(FlowsimError, match=rf"{name}.tar' is not a complete tar file"):
            load(tmp_path / f"{name}.tar")
    with pytest.raises(FlowsimError, match=r"No file matches '.*train-\*.tar'"):
        load(tmp_path / "train-*.tar")
    with pytest.raises(FlowsimError, match=r"Cannot read '.*s-1.tar': No such file"):
        load(tmp_path / "s-{1..2}.tar")
    with pytest.raises(FlowsimError, match=r"holds no images"):
        load(pack(tmp_path / "words.tar", {"a.txt": "a"}))
    with pytest.raises(FlowsimError, match=r"No image of .* has a caption .*Add captions.tsv"):
        load(pack(tmp_path / "mute.tar", {"a.png": picture()}))
    with pytest.raises(FlowsimError, match=r"'a.json' of 'odd.tar' is not JSON"):
        load(pack(tmp_path / "odd.tar", {"a.png": picture(), "a.json": "{"}))


# COCO


@pytest.fixture
def coco(tmp_path):
    content = {
        "images": [{"id": i, "file_name": f"0{i}.png"} for i in (5, 3, 8)],
        "annotations": [{"image_id": i, "id": k, "caption": f"text {k} "} for k, i in enumerate([3, 5, 3, 77, 8])],
    }
    write(tmp_path / "val2017")
    write(tmp_path / "train2017", **{"05__png": picture(5), "03__png": picture(3)})
    return write(tmp_path / "annotations", captions__json=json.dumps(content)) / "captions.json"


def test_coco(coco, tmp_path):
    for pairs in (load(coco), load(str(coco), images=tmp_path / "train2017")):
        assert pairs.keys == ("05.png", "03.png")
        assert pairs.captions == (("text 1",), ("text 0", "text 2"))
        assert pairs.pixels(8)[:, 4, 4, 0].tolist() == [5, 3]
        assert pairs.skipped == {"caption without image": 1, "image that does not exist": 1}


def test_coco_that_lists_a_file_twice_has_one_image_with_all_captions(coco):
    content = json.loads(coco.read_text())
    content["images"].append({"id": 99, "file_name": "05.png"})
    content["annotations"].append({"image_id": 99, "id": 99, "caption": "again"})
    coco.write_text(json.dumps(content))
    pairs = load(coco)
    assert pairs.keys == ("05.png", "03.png")
    assert pairs.captions[0] == ("text 1", "again")


def test_coco_errors(coco, tmp_path):
    with pytest.raises(FlowsimError, match=r"The folder '.*val2017' holds no image listed in"):
        load(coco, images=tmp_path / "val2017")
    (tmp_path / "train2017").rename(tmp_path / "annotations" / "images")
    assert len(load(coco)) == 2
    (tmp_path / "annotations" / "images").rename(tmp_path / "val2017" / "deeper")
    with pytest.raises(FlowsimError, match=r"was found near it. Give their folder as `images`"):
        load(coco)
    for content, message in (
        ("[]", "not a file of COCO captions"),
        ('{"images": []}', "'annotations'"),
        ("{", "not JSON"),
    ):
        with pytest.raises(FlowsimError, match=message):
            load(write(tmp_path, x__json=content) / "x.json")
    for spec, option in ((coco, "captions"), (tmp_path, "images"), ("shapes", "splits")):
        with pytest.raises(FlowsimError):
            load(spec, **{option: tmp_path})


# Shapes

WORDS = {
    "small": "small|little|tiny", "medium": "medium|medium-sized", "large": "large|big",
    "upper left": "upper left|top left corner", "upper right": "upper right|top right corner",
    "lower left": "lower left|bottom left corner", "lower right": "lower right|bottom right corner",
    "top": "at the top|top middle", "bottom": "at the bottom|bottom middle", "left": "on the left|left edge",
    "right": "on the right|right edge", "center": "in the center|in the middle",
}  # fmt: skip


def read(sentence: str, names) -> list[str]:
    """Which of `names` a sentence says, in its order."""
    options = {name: WORDS.get(name, name) for name in names}
    hits = [(m.start(), name) for name, o in options.items() for m in re.finditer(rf"\b(?:{o})\b(?!-)", sentence)]
    return [name for _, name in sorted(hits)]


@pytest.mark.parametrize("objects", [1, 2])
@pytest.mark.parametrize("imbalance", range(5))
def test_captions_are_true_and_tell_only_what_they_may(objects, imbalance):
    shapes = Shapes(count=30, objects=objects, imbalance=imbalance, captions_per_image=8)
    for i in range(shapes.count):
        scene = shapes.scene(i)
        told = dict(kind=KINDS, colour=COLOURS, size=SIZES, place=PLACES)
        captions = shapes.captions(i)
        assert len(set(captions)) == 8
        for caption in captions:
            for k, (attribute, names) in enumerate(told.items()):
                expected = [getattr(shape, attribute) for shape in scene.shapes] if 4 - k >= imbalance else []
                assert read(caption, names) == expected, caption
            assert read(caption, SHADES) == ([scene.shade] if imbalance == 0 else [])
            assert read(caption, TEXTURES) == ([scene.texture] if imbalance == 0 else [])
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]|\s{2}|\s,", caption), caption


def test_a_sample_depends_on_seed_and_index_only():
    few, many = load("shapes:count=20,size=16", "val"), load("shapes:count=50,size=16", "val")
    assert few.keys == many.keys[:20] and few.captions == many.captions[:20]
    assert few.labels is not None and many.labels is not None
    np.testing.assert_array_equal(few.labels, many.labels[:20])
    np.testing.assert_array_equal(few.pixels(16), many.pixels(16, slice(20), workers=1))
    np.testing.assert_array_equal(few.pixels(16, [7, 3]), few.pixels(16)[[7, 3]])
    for other in (load("shapes:count=20,size=16"), load("shapes:count=20,size=16,seed=1", "val")):
        assert other.captions != few.captions
        assert np.abs(other.pixels(16).astype(int) - few.pixels(16)).mean() > 10


def test_images_show_what_the_scene_says():
    shapes = Shapes(count=80, objects=2, size=64)
    for i in range(shapes.count):
        pixels = np.asarray(shapes.render(i, "test"), int)
        for shape in shapes.scene(i, "test").shapes:
            if shape.kind == "ring":
                continue  # hollow in the middle
            x, y = (round(64 * c) for c in PLACES[shape.place])
            near = pixels[y - 1 : y + 1, x - 1 : x + 1].mean((0, 1))
            assert np.abs(near - COLOURS[shape.colour]).max() < 40, (i, shape)


def test_labels_are_kind_and_colour_of_the_first_shape():
    pairs = load("shapes:count=40,objects=2")
    assert pairs.classes == CLASSES and len(set(CLASSES)) == len(KINDS) * len(COLOURS)
    assert pairs.labels is not None
    for caption, label in zip(pairs.captions, pairs.labels, strict=True):
        assert f"{read(caption[0], COLOURS)[0]} {read(caption[0], KINDS)[0]}" == CLASSES[label]


def test_descriptions_do_not_repeat_by_themselves():
    shapes = Shapes(count=1500)
    assert len({shapes.told(i) for i in range(1500)}) == 1500
    kinds = Counter(shapes.scene(i).shapes[0].kind for i in range(1500))
    assert min(kinds.values()) > 150


@pytest.mark.parametrize("setting", ["", ",imbalance=3", ",imbalance=4,duplicates=0.5", ",objects=2,duplicates=1"])
@pytest.mark.parametrize("fraction", [0.0, 0.2, 1.0])
def test_a_fraction_is_mispaired(fraction, setting):
    pairs = load(f"shapes:count=100,size=16,mispaired={fraction}{setting}")
    assert pairs.mispaired is not None and pairs.true_captions is not None
    assert pairs.mispaired.sum() == 100 * fraction
    assert Counter(pairs.captions) == Counter(pairs.true_captions)  # they changed hands
    shapes = Shapes.parse(pairs.source.removeprefix("shapes:"))
    for i, j in enumerate(shapes.text_of().tolist()):
        assert pairs.captions[i] == pairs.true_captions[j]
        assert pairs.mispaired[i] == (i != j) == (shapes.told(i) != shapes.told(j))
    clean = load(pairs.source, "val")
    assert clean.captions == clean.true_captions and clean.mispaired is not None and not clean.mispaired.any()
    kept = pairs.select(pairs.mispaired) if fraction else pairs
    assert kept.mispaired is not None and kept.mispaired.sum() == 100 * fraction
    assert ("Mispaired: " in pairs.report()) == (fraction > 0)


@pytest.mark.parametrize("fraction", [0.0, 0.3, 1.0])
def test_a_fraction_are_duplicates(fraction):
    pairs = load(f"shapes:count=100,size=32,duplicates={fraction}")
    pixels = pairs.pixels(32).reshape(50, 2, -1)
    same = (pixels[:, 0] == pixels[:, 1]).all(1)
    assert same.sum() == 50 * fraction
    assert pairs.labels is not None and (np.diff(pairs.labels.reshape(50, 2))[same] == 0).all()
    assert all(pairs.captions[2 * k] != pairs.captions[2 * k + 1] for k in range(50))
    assert len(np.unique(pairs.pixels(32).reshape(100, -1), axis=0)) == 100 - same.sum()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("shapes:cuont=3", r"Unknown setting of shapes 'cuont'. Did you mean 'count'"),
        ("shapes:count=many", r"`count` of shapes must be a whole number, but is 'many'"),
        ("shapes:count=2.5", r"`count` of shapes must be a whole number"),
        ("shapes:mispaired=x", r"`mispaired` of shapes must be a number"),
        ("shapes:mispaired=1.2", r"`mispaired` of shapes must be a fraction from 0 to 1, but is 1.2"),
        ("shapes:duplicates=nan", r"`duplicates` of shapes must be a fraction"),
        ("shapes:count", r"`count` of shapes has no value. Write e.g. shapes:count=1"),
        ("shapes:count=1", r"`count` of shapes must be a whole number of at least 2, but is 1"),
        ("shapes:objects=3", r"`objects` of shapes must be a whole number from 1 to 2"),
        ("shapes:imbalance=5", r"`imbalance` of shapes must be a whole number from 0 to 4"),
        ("shapes:seed=1,seed=2", r"`seed` of shapes is given twice"),
    ],
)
def test_wrong_settings_of_shapes(spec, message):
    with pytest.raises(FlowsimError, match=message):
        load(spec)


def test_shapes_of_a_split_that_does_not_exist():
    with pytest.raises(FlowsimError, match=r"Unknown split of shapes 'tset'. Did you mean 'test'"):
        load("shapes:count=9", "tset")


def test_shapes_are_pairs_as_any_others():
    pairs = load("shapes: count=12, size=20, captions_per_image=2", limit=5, verify=True)
    assert isinstance(pairs, Pairs) and len(pairs) == 5 and pairs.split == "train"
    assert all(len(captions) == 2 for captions in pairs.captions)
    assert pairs.image(0).size == (20, 20) and pairs.pixels(16).shape == (5, 16, 16, 3)
    assert len(pairs.checked()) == 5
    assert repr(pairs).startswith("<Pairs: 5 images from 'shapes: count=12")


# Readers


@pytest.fixture
def grey():
    """A reader of "grey:COUNT", known for one test."""

    def labelled(source, split) -> Pairs:
        return read(source, split, labels=[k % 2 for k in range(int(source[5:]))], classes=("even", "odd"))

    @register("grey", lambda source: source.startswith("grey:"), describes="'grey:COUNT'", labelled=labelled)
    def read(source, split, splits=None, **more):
        count = int(source[5:])
        return Pairs.of(
            [f"{k}" for k in range(count)],
            [(f"number {k}", str(splits)) for k in range(count)],
            lambda k: Image.new("RGB", (8, 8), (k, k, k)),
            source=source,
            split=split,
            **more,
        )

    yield read
    for name in [name for name in sources.READERS if not sources.READERS.is_ours(name)]:
        sources.READERS.remove(name)


def test_a_reader_of_another_kind_of_source(grey):
    pairs = load("grey:5", "all", splits="some.tsv", limit=3)
    assert pairs.split == "all" and len(pairs) == 3
    assert pairs.captions[0][1] == "some.tsv"
    np.testing.assert_array_equal(pairs.pixels(4)[:, 0, 0, 0], [int(key) for key in pairs.keys])
    found = load_labelled("grey:5", "train")
    assert found.labels.tolist() == [0, 1, 0, 1, 0] and found.classes == ("even", "odd")
    assert not is_generated("grey:5") and is_generated("shapes:count=4")
    with pytest.raises(FlowsimError, match=r"Argument `captions` does not go with 'grey:COUNT'.* give a folder"):
        load("grey:5", captions="a.tsv")


def test_messages_list_the_readers(grey, tmp_path):
    with pytest.raises(FlowsimError, match=r"There is no 'gray:5'.*Data is a COCO .json, .*'shapes', or 'grey:COUNT'"):
        load("gray:5")
    with pytest.raises(FlowsimError, match=r"COCO .json, which has no classes. Give a folder.*, or 'grey:COUNT'"):
        load_labelled(tmp_path / "a.json", "test")


def test_the_last_reader_is_asked_first_and_a_name_can_be_taken_again(grey):
    @register("mine", lambda source: source == "grey:2")
    def mine(source, split):
        return Pairs.of(["a"], [("mine",)], lambda k: Image.new("RGB", (8, 8)), source=source)

    assert load("grey:2").captions == (("mine",),)
    register("grey", lambda source: source.startswith("grey:"))(grey)
    assert load("grey:2").captions[0][0] == "number 0"
    assert sources.READERS["grey"].describes == "'grey'"
    with pytest.raises(FlowsimError, match="already has a reader named 'shapes'"):
        register("shapes", lambda source: False)(grey)


def of(keys=("a", "b"), captions=(["x"], ["y"]), open_image=lambda k: Image.new("RGB", (8, 8)), **more):
    return Pairs.of(keys, captions, open_image, source="here", **more)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"captions": ["a dog", "a cat"]},
            r"^Captions of image 'a' must be a list of strings, but are 'a dog'. Use \['a dog'\].$",
        ),
        ({"captions": [["x"], []]}, r"^Image 'b' has no caption. Give it at least one, or leave it out.$"),
        ({"true_captions": ["a dog", "a cat"]}, r"^Captions of image 'a' must be a list of strings"),
        ({"keys": ["a", "a"]}, r"^Keys of images must differ, but 'a' occurs 2 times. Name each image once.$"),
        ({"keys": "ab"}, r"^Argument `keys` must be a list of strings, but is 'ab'."),
    ],
)
def test_pairs_of_the_wrong_form_are_refused(given, message):
    with pytest.raises(FlowsimError, match=message):
        of(**given)
    assert of().captions == (("x",), ("y",))
    assert of(captions=[(), ()], labels=[0, 0], classes=["one"]).captions == ((), ())


@pytest.mark.parametrize(
    ("check", "given", "message"),
    [
        (checked_captions, np.array(["a dog", "a cat"]), r"strings, but are 'a dog'. Use \['a dog'\].$"),
        (checked_captions, [["x"], None], r"^Captions of image 'b' must be a list of strings, but are None. Give a"),
        (checked_captions, [["x"], ["y", 3]], r"^Captions of image 'b' must be strings, but one is 3. Leave out"),
        (checked_captions, None, r"^Argument `captions` must be a list of lists, but is None. Give one per image.$"),
        (checked_keys, [0, 1], r"^Keys of images must be strings, but one is 0. Use '0'.$"),
        (checked_keys, None, r"^Argument `keys` must be a list of strings, but is None. Give one per image.$"),
        (checked_opener, [1, 2], r"^Argument `open_image` must be a function, but is a list. Use e.g. lambda"),
    ],
)
def test_arguments_of_the_wrong_type_are_refused(check, given, message):
    """Without `Pairs.of`, whose types these tests check before it does."""
    more = {checked_captions: (("a", "b"), False), checked_keys: ("here", None), checked_opener: ()}[check]
    with pytest.raises(FlowsimError, match=message):
        check(given, *more)


@pytest.mark.parametrize(
    "use", [lambda pairs: pairs.image(1), lambda pairs: pairs.pixels(4), lambda pairs: pairs.decoded(4), Pairs.checked]
)
def test_images_that_are_not_pillows_are_refused_when_they_are_opened(use):
    pairs = of(open_image=lambda k: np.zeros((8, 8, 3), np.uint8) if k else Image.new("RGB", (8, 8)))
    message = "^`open_image` must give images of Pillow, but gives ndarray for 'b' of 'here'. Use .*fromarray"
    with pytest.raises(FlowsimError, match=message):
        use(pairs)


@pytest.fixture
def readers():
    """Readers of a test are forgotten after it."""
    yield
    for name in [name for name in sources.READERS if not sources.READERS.is_ours(name)]:
        sources.READERS.remove(name)


@pytest.mark.parametrize("what", [None, [("a", "x")]])
def test_a_reader_that_gives_no_pairs_is_refused(readers, what):
    @register("npz", lambda source: source.endswith(".npz"), labelled=lambda source, split: what)
    def read(source, split):
        return what

    message = rf"^Reader 'npz' must return `Pairs`, but gives {re.escape(repr(what))} for 'a.npz'. Return"
    with pytest.raises(FlowsimError, match=message):
        load("a.npz", "train")
    with pytest.raises(FlowsimError, match=message):
        load_labelled("a.npz", "train")


def test_pairs_for_training_need_captions_and_labelled_images_do_not(readers):
    def labelled(source, split):
        return of(captions=[(), ()], labels=[0, 1], classes=["one", "two"])

    register("npz", lambda source: source.endswith(".npz"), labelled=labelled)(labelled)
    assert len(load_labelled("a.npz", "test")) == 2
    with pytest.raises(FlowsimError, match=r"^Image 'a' has no caption"):
        load("a.npz", "test")


def test_a_split_without_images_names_the_cure(folder):
    cure = r"Choose another with `split=NAME` \(evaluations in training: `held_out=NAME`\), or .*`split=None`"
    with pytest.raises(FlowsimError, match=rf"^'here' has no images in split 'test'. {cure}"):
        of(keys=[], captions=[], split="test")
    with pytest.raises(FlowsimError, match=rf"^Unknown split 'test'.*: train \(2\), val \(1\). {cure}"):
        load(folder, "test")


def test_files_of_a_kind_that_no_reader_knows(tmp_path):
    write(tmp_path, small__npz="no tar", one__jpg=photo(), noending="")
    known = r"Data is a COCO .json, a folder.*or 'shapes'. A reader of .*`fs.clip.data.register`.$"
    for name in ("small.npz", "one.jpg", "noending", "small-*.npz", "{small,large}.npz"):
        with pytest.raises(FlowsimError, match=rf"^No reader knows '.*{re.escape(name)}'. {known}"):
            load(tmp_path / name, "train")
    with pytest.raises(FlowsimError, match=r"^'.*/s\*' includes '.*/small.npz', which is no .tar. Give tars"):
        load(tmp_path / "s*")
    with pytest.raises(FlowsimError, match=r"^There is no '.*/small.npy'. Did you mean '.*/small.npz'"):
        load(tmp_path / "small.npy")
    with pytest.raises(FlowsimError, match=r"^There is no 'x+'. Check the path"):
        load("x" * 5000)
    write(tmp_path / "photos[1].old", a__png=picture(), a__txt="a")
    assert len(load(tmp_path / "photos[1].old")) == 1


def test_files_that_a_reader_cannot_read_are_one_sentence(readers, tmp_path):
    @register("npz", lambda source: source.endswith(".npz"), labelled=lambda source, split: np.load("gone.npz"))
    def read(source, split):
        if split is None:
            return {}["captions"]
        raise OSError("the disk is gone") if split == "test" else FileNotFoundError(2, "No such file", source)

    with pytest.raises(FlowsimError, match=r"^Reader 'npz' cannot read 'a.npz': No such file. Check the path.$"):
        load("a.npz", "train")
    with pytest.raises(FlowsimError, match=r"^Reader 'npz' cannot read 'a.npz': the disk is gone. Check the path.$"):
        load("a.npz", "test")
    with pytest.raises(FlowsimError, match=r"^Reader 'npz' cannot read 'gone.npz': No such file or directory."):
        load_labelled("a.npz", "test")
    with pytest.raises(KeyError):  # a mistake in the reader keeps its traceback
        load("a.npz")
    write(tmp_path, a__png=picture())
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(FlowsimError, match=r"^Reader 'folder' cannot read '.*/a.txt': No such file"):
        load(tmp_path)


def test_a_reader_is_no_part_to_check(readers):
    import flowsim as fs

    @register("npz", lambda source: source.endswith(".npz"))
    def read(source, split):
        return of(split=split)

    with pytest.raises(FlowsimError, match=r"^`read` is registered as reader 'npz', which fs.check does not check."):
        fs.check(read)
    sources.READERS.remove("npz")
    assert not fs.check(read).ok  # a function as any other


def test_pairs_of_unequal_lengths_are_refused():
    with pytest.raises(FlowsimError, match="2 `keys`, but 1 `captions`"):
        Pairs.of(["a", "b"], [("x",)], Image.open, source="here")
    with pytest.raises(FlowsimError, match="'here' has no images"):
        Pairs.of([], [], Image.open, source="here")


def test_which_split_is_evaluated(folder, tmp_path):
    assert known_split("shapes:count=9", "test") == known_split(str(folder), "test") == "test"
    assert known_split(str(tmp_path / "nowhere"), "test") is None
