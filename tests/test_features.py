"""Features of pairs: what arrays and files give, scaling, captions, mispairing, the order of batches, and the emoji."""

import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.format import open_memmap

import flowsim as fs
from flowsim.data.order import draw_captions
from flowsim.data.rows import Rows, is_mapped

PAIRS, CAPTIONS, P, Q = 30, 3, 6, 4
#: Interleaved, so that no split is a slice.
SPLIT = np.array(["train", "val", "train", "test", "train"] * 6)
COUNTS = np.arange(PAIRS) % CAPTIONS + 1
FORMATS = ["a.npz", "a.safetensors", "a.parquet", "a"]


def arrays(dtype=np.float32, seed: int = 0) -> dict:
    """All arguments of `from_arrays`; padding is NaN, so that nothing may read it."""
    rng = np.random.default_rng(seed)
    text = rng.normal(size=(PAIRS, CAPTIONS, Q)) + 0.5
    text[np.arange(CAPTIONS) >= COUNTS[:, None]] = np.nan
    return {
        "image": (rng.normal(size=(PAIRS, P)) * 3 + 1).astype(dtype),
        "text": text.astype(dtype),
        "split": SPLIT,
        "names": np.array([f"ø {k}.jpg" for k in range(PAIRS)]),
        "counts": COUNTS,
        "labels": np.arange(PAIRS) % 4 - 1,
        "classes": ("cat", "dog", "Bär"),
        "class_text": rng.normal(size=(3, Q)).astype(dtype),
    }


@pytest.fixture
def features() -> fs.data.Features:
    return fs.data.from_arrays(**arrays())


@pytest.fixture
def mapped(tmp_path) -> fs.data.Features:
    """The same features, in a folder that is mapped into memory."""
    return fs.data.load(fs.data.save(fs.data.from_arrays(**arrays()), tmp_path / "mapped"))


def captions_of(given: dict) -> list[np.ndarray]:
    """The captions of each image without padding."""
    return [text[:count] for text, count in zip(given["text"], given["counts"], strict=True)]


def assert_equal(one: fs.data.Features, other: fs.data.Features) -> None:
    """All arrays are equal, with their dtypes; padding may differ."""
    for name in ("image", "split", "names", "counts", "labels", "class_text"):
        a, b = getattr(one, name), getattr(other, name)
        assert (a is None) == (b is None), name
        if a is not None:
            assert a.dtype == b.dtype, name
            np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.text.dtype == other.text.dtype
    assert one.classes == other.classes
    for a, b in zip(one.every_text(np.float64), other.every_text(np.float64), strict=True):
        np.testing.assert_array_equal(a, b)
    assert one.digest == other.digest


# --- arrays ------------------------------------------------------------------------------------------------------


def test_sizes_and_names(features):
    assert (features.pairs, len(features), features.captions, features.image_dim, features.text_dim) == (
        30,
        30,
        3,
        6,
        4,
    )
    assert features.splits == {"train": 18, "val": 6, "test": 6}
    assert list(features.splits) == ["train", "val", "test"]
    assert features.source == "arrays" and features.scaling.kind == "none"
    single = fs.data.from_arrays(np.ones((2, 3)), np.ones((2, 5)))
    assert single.text.shape == (2, 1, 5) and single.captions == 1 and single.splits == {} and single.counts is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_arrays_keep_their_dtype_and_are_not_copied(dtype):
    image, text = np.ones((4, 3), dtype), np.ones((4, 2, 3), dtype)
    found = fs.data.from_arrays(image, text)
    assert found.image is image and found.text is text
    assert found.image_rows().dtype == np.float32 and found.image_rows(dtype=np.float64).dtype == np.float64
    assert not np.shares_memory(found.image_rows(dtype=dtype), image)
    assert not np.shares_memory(found.text_rows(slice(1, 3), dtype=dtype), text)


def test_arrays_of_other_libraries_and_lists():
    rows = [[1.0, 2.0], [3.0, 4.5]]
    wanted = fs.data.from_arrays(np.array(rows), np.array(rows))
    assert_equal(fs.data.from_arrays(rows, rows), wanted)
    found = fs.data.from_arrays(jnp.asarray(rows, jnp.float32), jnp.asarray(rows, jnp.bfloat16))
    assert (found.image.dtype, found.text.dtype) == (np.float32, np.float32)
    np.testing.assert_array_equal(found.text[:, 0], rows)  # these numbers are exact in bfloat16
    assert fs.data.from_arrays([[1, 2], [3, 4]], rows).image.dtype == np.float64

    class Tensor:  # what torch's tensors have
        dtype = "torch.float32"

        def detach(self):
            return self

        cpu = float = detach

        def __array__(self, dtype=None, copy=None):
            return np.array(rows, np.float32)

    assert fs.data.from_arrays(Tensor(), rows).image.dtype == np.float32


def test_captions_as_lists_of_different_length():
    given = arrays()
    found = fs.data.from_arrays(**{**given, "text": captions_of(given), "counts": None})
    assert_equal(found, fs.data.from_arrays(**given))


def test_labels_by_name():
    given = arrays()
    names = [given["classes"][k] if k >= 0 else "" for k in given["labels"]]
    assert_equal(fs.data.from_arrays(**{**given, "labels": names}), fs.data.from_arrays(**given))
    found = fs.data.from_arrays(np.ones((3, 2)), np.ones((3, 2)), labels=["b", "", "a"])
    assert found.classes == ("a", "b") and found.labels.tolist() == [1, -1, 0]
    assert fs.data.from_arrays(np.ones((2, 2)), np.ones((2, 2)), labels=[2, 0]).classes == ("0", "1", "2")


def changed(**changes) -> dict:
    return {**arrays(), **changes}


def spoiled(name: str, place: tuple, value: float) -> dict:
    given = arrays()
    given[name][place] = value
    return given


BAD = {
    "shape of image": (changed(image=np.ones(3)), "`image` must have shape"),
    "shape of text": (changed(text=np.ones((2, 2, 2, 2))), "`text` must have shape"),
    "no columns": (changed(image=np.ones((PAIRS, 0))), "`image` has no columns"),
    "ragged image": (changed(image=[[1.0], [1.0, 2.0]]), "`image` has rows of different lengths"),
    "ragged text": (changed(text=[[[1.0]], [[1.0, 2.0]]], counts=None), "`text` must hold the captions"),
    "image without captions": (changed(text=[[[1.0]], []], counts=None), "`text` must hold the captions"),
    "words": (changed(image=np.array([["a"]])), "`image` must hold real numbers"),
    "truth values": (changed(text=np.ones((PAIRS, Q), bool)), "`text` must hold real numbers"),
    "complex": (changed(image=np.ones((PAIRS, 2), complex)), "`image` must hold real numbers"),
    "numbers of rows": (changed(image=np.ones((PAIRS - 1, P))), "29 rows, but `text` has 30"),
    "one pair": (dict(image=np.ones((1, 2)), text=np.ones((1, 2))), "at least 2 pairs"),
    "NaN": (spoiled("image", (7, 2), np.nan), "`image` has NaN or infinity in row 7"),
    "infinity": (spoiled("text", (5, 1, 2), np.inf), "`text` has NaN or infinity in row 5, caption 1"),
    "zero image": (spoiled("image", (3, slice(None)), 0.0), "`image` has only zeros.* in row 3"),
    "zero text": (spoiled("text", (2, 2, slice(None)), 0.0), "`text` has only zeros.* in row 2, caption 2"),
    "zero class": (spoiled("class_text", (1, slice(None)), 0.0), "`class_text` has only zeros"),
    "number of splits": (changed(split=["train"]), "`split` must be 30 strings"),
    "one split": (changed(split="train"), "`split` must be 30 strings"),
    "split of numbers": (changed(split=np.arange(PAIRS)), "`split` must hold strings"),
    "names": (changed(names=3), "`names` must be 30 strings"),
    "counts of floats": (changed(counts=np.ones(PAIRS)), "`counts` must be 30 whole numbers"),
    "no caption": (changed(counts=COUNTS - 1), "`counts` must be between 1 and 3.* is 0 for image 0"),
    "too many captions": (changed(counts=COUNTS + 1), "`counts` must be between 1 and 3.* is 4 for image 2"),
    "label too large": (changed(labels=np.full(PAIRS, 3)), "`labels` must be between 0 and 2"),
    "label too small": (changed(labels=np.full(PAIRS, -2)), "`labels` must be between 0 and 2"),
    "number of labels": (changed(labels=[0]), "`labels` must be 30 whole numbers"),
    "unknown class": (changed(labels=["cot"] * PAIRS), "Unknown class 'cot'. Did you mean 'cat'"),
    "classes as text": (changed(classes="cat"), "`classes` must be a list of names, but is 'cat'"),
    "repeated class": (changed(classes=("cat", "cat", "dog")), "'cat' occurs 2 times"),
    "class without name": (changed(classes=("cat", "", "dog")), "must not be empty"),
    "columns of classes": (changed(class_text=np.ones((3, Q + 1))), r"`class_text` must have shape \(3, 4\)"),
    "number of classes": (changed(class_text=np.ones((2, Q))), r"`class_text` must have shape \(3, 4\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_give_one_sentence(name):
    given, message = BAD[name]
    with pytest.raises(fs.FlowsimError, match=message) as caught:
        fs.data.from_arrays(**given)
    assert "\n" not in str(caught.value) and str(caught.value).endswith((".", "?"))


def test_values_are_checked_block_by_block(monkeypatch):
    monkeypatch.setattr("flowsim.data.rows._BLOCK", 4 * P)
    assert len(fs.data.from_arrays(**arrays()).stored_image.blocks()) == 8
    with pytest.raises(fs.FlowsimError, match="`image` has NaN or infinity in row 29"):
        fs.data.from_arrays(**spoiled("image", (29, 0), np.nan))
    assert fs.data.from_arrays(**spoiled("image", (29, 0), np.nan), verify=False).pairs == PAIRS


# --- rows --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "index",
    [[3, 1, 1, -1], np.arange(PAIRS) % 3 == 0, slice(2, 20, 3), None, []],
    ids=["integers", "mask", "slice", "all", "none"],
)
def test_rows_of_pairs(features, index):
    given = arrays()
    wanted = slice(None) if index is None else np.asarray(index, int) if isinstance(index, list) else index
    np.testing.assert_array_equal(features.image_rows(index), given["image"][wanted])
    np.testing.assert_array_equal(features.text_rows(index), given["text"][:, 0][wanted])


def test_captions_of_pairs(features):
    given = arrays()
    index = np.array([2, 5, 4, 3])
    which = np.array([2, 0, 1, 0])
    np.testing.assert_array_equal(features.text_rows(index, which), given["text"][index, which])
    np.testing.assert_array_equal(features.text_rows([2, 5], 2), given["text"][[2, 5], 2])
    rows, owner = features.every_text()
    np.testing.assert_array_equal(rows, np.concatenate(captions_of(given)))
    np.testing.assert_array_equal(owner, np.repeat(np.arange(PAIRS), COUNTS))


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda f: f.image_rows([30]), "Wrong indices for 30 pairs"),
        (lambda f: f.image_rows([0.5]), "Wrong indices for 30 pairs"),
        (lambda f: f.image_rows(np.ones(4, bool)), "Wrong indices for 30 pairs"),
        (lambda f: f.image_rows(3), r"For one pair use e.g. \[0\]"),
        (lambda f: f.text_rows([0, 1], [0, 2]), "Image 1 has no caption 2. Its captions are 0 to 1"),
        (lambda f: f.text_rows([0], [-1]), "Image 0 has no caption -1"),
        (lambda f: f.text_rows([0, 1], [0]), "`caption` must be 2 whole numbers"),
        (lambda f: f.text_rows([0], [0.0]), "`caption` must be 1 whole numbers"),
        (lambda f: f.take([]), "selects no pair"),
        (lambda f: f.part("trian"), "Unknown split 'trian'. Did you mean 'train'"),
        (lambda f: f.scaled("lenght"), "Unknown scaling 'lenght'. Did you mean 'length'"),
        (lambda f: f.mispaired(1.5), "`fraction` must be at most 1"),
        (lambda f: f.mispaired(0.5, seed=-1), "`seed` must be a whole number"),
        (lambda f: f.part("val").mispaired(0.5), "in the split 'train', but there are only 'val'"),
        (lambda f: dataclasses.replace(f, split=None).part("train"), "'arrays' has no splits"),
        (lambda f: dataclasses.replace(f, class_text=None).class_rows(), "has no text features of classes"),
    ],
)
def test_bad_requests_give_one_sentence(features, use, message):
    with pytest.raises(fs.FlowsimError, match=message) as caught:
        use(features)
    assert "\n" not in str(caught.value)


def test_rows_that_do_not_fit_into_a_dtype():
    large = fs.data.from_arrays(np.full((3, 2), 1e300), np.ones((3, 2)))
    with pytest.raises(fs.FlowsimError, match=r"do not fit into float32. Use `dtype=np.float64`"):
        large.image_rows()
    np.testing.assert_array_equal(large.image_rows(dtype=np.float64), 1e300)
    np.testing.assert_allclose(large.scaled("length").image_rows(), 1.0)


def test_parts_and_selections(features):
    given = arrays()
    part = features.part("val")
    where = SPLIT == "val"
    assert part.pairs == 6 and part.splits == {"val": 6}
    for name in ("image", "split", "names", "counts", "labels"):
        np.testing.assert_array_equal(getattr(part, name), given[name][where])
    assert_equal(part.take([4, 2]), features.take(np.flatnonzero(where)[[4, 2]]))
    assert_equal(features.take(slice(None)), features)
    np.testing.assert_array_equal(part.class_rows(), given["class_text"])


# --- scaling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rows_of_length(dtype):
    given = arrays(dtype)
    scaled = fs.data.from_arrays(**given).scaled("length")
    image = given["image"].astype(float)
    wanted = image / np.sqrt((image**2).sum(1, keepdims=True)) * np.sqrt(P)
    np.testing.assert_allclose(scaled.image_rows(dtype=np.float64), wanted, rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(scaled.every_text(np.float64)[0], axis=1), np.sqrt(Q), rtol=1e-14)
    np.testing.assert_allclose(np.linalg.norm(scaled.class_rows(np.float64), axis=1), np.sqrt(Q), rtol=1e-14)


def test_standardised_on_the_training_pairs(features):
    given = arrays()
    train = SPLIT == "train"
    image = given["image"].astype(float)
    texts = [one for one, used in zip(captions_of(given), train, strict=True) if used]
    fitted = np.concatenate(texts).astype(float)
    scaled = features.scaled("standard")
    wanted = (image - image[train].mean(0)) / image[train].std(0)
    np.testing.assert_allclose(scaled.image_rows(dtype=np.float64), wanted, rtol=1e-12, atol=1e-12)
    wanted = (np.concatenate(captions_of(given)) - fitted.mean(0)) / fitted.std(0)
    np.testing.assert_allclose(scaled.every_text(np.float64)[0], wanted, rtol=1e-12, atol=1e-12)
    wanted = (given["class_text"] - fitted.mean(0)) / fitted.std(0)
    np.testing.assert_allclose(scaled.class_rows(np.float64), wanted, rtol=1e-12, atol=1e-12)
    # A part keeps the scaling of the whole; a scaling replaces the one before.
    np.testing.assert_array_equal(scaled.part("val").image_rows(), scaled.image_rows(SPLIT == "val"))
    np.testing.assert_array_equal(scaled.scaled("none").image_rows(), given["image"])
    assert scaled.scaled("length").scaled("standard").digest == scaled.digest


def test_standardised_without_training_pairs_and_with_constant_columns(monkeypatch):
    monkeypatch.setattr("flowsim.data.rows._BLOCK", 4 * P)  # in several blocks
    given = arrays()
    given["image"][:, 2] = 7.3
    rows = fs.data.from_arrays(given["image"], given["text"][:, 0]).scaled("standard").image_rows(dtype=np.float64)
    np.testing.assert_allclose(rows.mean(0), 0, atol=1e-12)
    np.testing.assert_allclose(rows.std(0), [1, 1, 0, 1, 1, 1], atol=1e-12)


def test_the_common_mode_that_is_shown(features):
    text = repr(features.scaled("length"))
    rows = features.scaled("length").image_rows()
    wanted = np.linalg.norm(rows.mean(0)) / np.sqrt(P)
    assert f"common mode image {wanted:.2f}" in text
    assert "pairs 30" in text and "captions 1 to 3" in text and "train (18)" in text and "scaling length" in text
    html = features._repr_html_()
    assert html.startswith("<table>") and "common mode" in html and "val (6)" in html
    assert "common mode image 0.00" in repr(features.part("train").scaled("standard"))


# --- memory maps -------------------------------------------------------------------------------------------------


def test_a_memory_map_stays_one(mapped):
    assert isinstance(mapped.image, np.memmap) and isinstance(mapped.text, np.memmap)
    ordered = mapped.take(slice(3, 17)).scaled("standard")
    assert isinstance(ordered.image, np.memmap) and isinstance(ordered.text, np.memmap)
    # Rows of interleaved splits, and of mispaired texts, stay in the file until they are read.
    for one in (mapped.part("val"), mapped.scaled("length").part("train"), mapped.mispaired(0.5).part("train")):
        for rows in (one.stored_image, one.stored_text, one.take([2, 0]).stored_text):
            assert is_mapped(rows.array) and len(rows.array) == PAIRS
    memory = fs.data.from_arrays(**arrays())
    assert_equal(mapped.part("val"), memory.part("val"))
    assert_equal(
        mapped.mispaired(0.5).scaled("standard").part("train"), memory.mispaired(0.5).scaled("standard").part("train")
    )
    np.testing.assert_array_equal(mapped.part("test").text, memory.part("test").text)


def test_a_file_larger_than_memory_is_read_by_rows(tmp_path):
    """256 GiB with holes: whatever reads more than the rows that are asked for does not come back."""
    folder = tmp_path / "large"
    folder.mkdir()
    pairs, columns = 2**26, 2**10
    image = open_memmap(folder / "image.npy", "w+", np.float32, (pairs, columns))
    text = open_memmap(folder / "text.npy", "w+", np.float16, (pairs, 4))
    chosen = np.array([5, 2**25, pairs - 1])
    image[chosen], text[chosen] = 2.0, 3.0
    del image, text
    found = fs.data.load(folder, verify=False).scaled("length").take(chosen[::-1])
    assert isinstance(fs.data.load(folder, verify=False).image, np.memmap)
    np.testing.assert_array_equal(found.image_rows(), 1.0)
    np.testing.assert_array_equal(found.text_rows([0, 2]), 1.0)
    assert found.digest and repr(found)


def test_views_of_memory_maps_are_known(mapped):
    assert is_mapped(np.asarray(mapped.image)[2:5, :3]) and not is_mapped(np.array(mapped.image))
    rows = Rows(np.asarray(mapped.image)).take(np.array([4, 1]))
    assert rows.places is not None and rows.shape == (2, P)


# --- mispairing and digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.5, 1.0])
def test_a_fraction_of_the_training_pairs_is_mispaired(features, fraction):
    found = features.mispaired(fraction, seed=1)
    text_of = np.array([int(np.flatnonzero((features.text[:, 0] == row).all(1))[0]) for row in found.text[:, 0]])
    assert sorted(text_of) == list(range(PAIRS))
    wrong = np.flatnonzero(text_of != np.arange(PAIRS))
    assert len(wrong) == round(fraction * 18)
    assert (SPLIT[wrong] == "train").all()
    np.testing.assert_array_equal(found.counts, COUNTS[text_of])
    np.testing.assert_array_equal(found.names, features.names)
    np.testing.assert_array_equal(found.labels, features.labels)
    np.testing.assert_array_equal(found.image, features.image)
    if len(wrong):  # one cycle
        visited, at = {wrong[0]}, text_of[wrong[0]]
        while at not in visited:
            visited.add(at)
            at = text_of[at]
        assert visited == set(wrong)


def test_mispairing_depends_on_the_seed_and_needs_two_pairs(features):
    assert features.mispaired(0.5, seed=3).digest == features.mispaired(0.5, seed=3).digest
    assert features.mispaired(0.5, seed=3).digest != features.mispaired(0.5, seed=4).digest
    assert features.mispaired(1 / 18).digest == features.digest
    bare = dataclasses.replace(features, split=None).mispaired(1.0)
    assert not (bare.text[:, 0] == features.text[:, 0]).all(1).any()


def test_the_digest_identifies_contents_and_scaling(features):
    given = arrays()
    same = [
        fs.data.from_arrays(**given),
        fs.data.from_arrays(**{**given, "names": None, "source": "elsewhere"}),
        fs.data.from_arrays(**{**given, "text": np.nan_to_num(given["text"], nan=5.0)}),  # padding
        fs.data.from_arrays(**{**given, "image": given["image"].astype(">f4")}),
        fs.data.from_arrays(**{**given, "image": np.asfortranarray(given["image"])}),
    ]
    assert {one.digest for one in same} == {features.digest} and len(features.digest) == 64
    others = [
        features.scaled("length"),
        features.scaled("standard"),
        features.part("train"),
        features.part("train").scaled("standard"),
        features.scaled("standard").part("train").take(slice(0, 5)),
        features.part("train").take(slice(0, 5)).scaled("standard"),
        features.take(np.arange(PAIRS)[::-1]),
        fs.data.from_arrays(**{**given, "image": given["image"].astype(np.float64)}),
        *(fs.data.from_arrays(**{**given, name: None}) for name in ("split", "labels", "class_text")),
        fs.data.from_arrays(**{**given, "classes": ("cat", "dog", "bear")}),
        fs.data.from_arrays(**{**given, "counts": np.maximum(COUNTS - 1, 1)}),
        fs.data.from_arrays(**spoiled("image", (29, 5), 0.25)),
        fs.data.from_arrays(**spoiled("text", (29, 2, 3), 0.25)),
    ]
    assert len({features.digest, *(one.digest for one in others)}) == len(others) + 1


# --- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_files_hold_everything(tmp_path, name, dtype):
    features = fs.data.from_arrays(**arrays(dtype))
    path = fs.data.save(features.scaled("standard"), tmp_path / name)
    assert path == tmp_path / name and [one.name for one in tmp_path.iterdir()] == [name]
    found = fs.data.load(path)
    assert_equal(found, features)
    assert found.source == str(path) and found.scaling.kind == "none" and found.image.dtype == dtype


@pytest.mark.parametrize("name", FORMATS)
def test_files_hold_the_least(tmp_path, name):
    given = arrays()
    features = fs.data.from_arrays(given["image"], given["text"][:, 0])
    assert_equal(fs.data.load(fs.data.save(features, tmp_path / name)), features)


@pytest.mark.parametrize("name", FORMATS)
def test_files_hold_selections_in_blocks(tmp_path, name, monkeypatch):
    monkeypatch.setattr("flowsim.data.rows._BLOCK", 4 * Q)
    for features in (
        fs.data.from_arrays(**arrays()).part("train"),
        fs.data.from_arrays(**arrays()).mispaired(0.5),
        fs.data.from_arrays(
            **{**arrays(), "text": np.ones((PAIRS, 2, 9), np.float16), "counts": None, "class_text": None}
        ),
    ):
        assert_equal(fs.data.load(fs.data.save(features, tmp_path / name)), features)  # and replaces the one before


def test_a_folder_replaces_itself(mapped):
    """Also while it is mapped."""
    wanted = fs.data.from_arrays(**arrays()).mispaired(0.5)
    folder = Path(mapped.source)
    fs.data.save(mapped.mispaired(0.5), folder)
    assert_equal(fs.data.load(folder), wanted)
    assert mapped.pairs == PAIRS and np.isfinite(mapped.image).all()
    assert [one.name for one in folder.parent.iterdir()] == [folder.name]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(fs.FlowsimError, match="holds something else than features"):
        fs.data.save(wanted, folder)
    assert (folder / "notes.txt").read_text() == "mine" and (folder / "image.npy").is_file()


@pytest.mark.parametrize("name", ["names", "filename", "name"])
def test_names_of_images_have_several_names(tmp_path, name):
    np.savez(tmp_path / "a.npz", image=np.ones((2, 3)), text=np.ones((2, 3)), other=1, **{name: np.array(["a", "b"])})
    assert fs.data.load(tmp_path / "a.npz").names.tolist() == ["a", "b"]


def test_tables_that_other_tools_write(tmp_path):
    """Lists of fixed size, large lists, chunks, double captions and labels that are missing."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(1.0, 13, dtype=np.float32)), 3)
    text = pa.array(
        [[[1.0, 2.0]], [[3.0, 4.0], [5.0, 6.0]], [[7.0, 8.0]], [[1.0, 1.0]]], pa.large_list(pa.large_list(pa.float32()))
    )
    table = pa.table(
        {
            "image": image,
            "text": text,
            "label": ["cat", None, "dog", "cat"],
            "filename": list("abcd"),
            "url": list("wxyz"),
        }
    )
    parquet.write_table(pa.concat_tables([table.slice(0, 3), table.slice(3)]), tmp_path / "a.parquet", row_group_size=2)
    found = fs.data.load(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found.image, np.arange(1.0, 13).reshape(4, 3))
    assert found.counts.tolist() == [1, 2, 1, 1] and found.image.dtype == np.float32
    np.testing.assert_array_equal(found.every_text()[0], [[1, 2], [3, 4], [5, 6], [7, 8], [1, 1]])
    assert found.classes == ("cat", "dog") and found.labels.tolist() == [0, -1, 1, 0]
    assert found.names.tolist() == list("abcd")


def written(path: Path, **content) -> Path:
    np.savez(path, **content)
    return path


def damaged(path: Path, like: str) -> Path:
    whole = fs.data.save(fs.data.from_arrays(**arrays()), path.parent / f"whole{like}").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def table(path: Path, **columns) -> Path:
    pytest.importorskip("pyarrow.parquet").write_table(pytest.importorskip("pyarrow").table(columns), path)
    return path


TWO = np.ones((2, 3))
ONE = [[1.0]] * 2
FILES = {
    "missing": (lambda d: d / "a.npz", r"There is no .*a.npz.*Features are a .npz file, a folder"),
    "near": (lambda d: written(d / "ab.npz", image=TWO, text=TWO).with_name("abc.npz"), r"Did you mean .*ab.npz"),
    "of another kind": (lambda d: table(d / "a.txt", a=[1]), "No reader knows .*`fs.data.register`"),
    "no text": (lambda d: written(d / "a.npz", image=TWO, label=[1, 2]), "needs 'text', but holds image, label"),
    "other names": (lambda d: written(d / "a.npz", x=TWO), "needs 'image', but holds x"),
    "pickled": (lambda d: written(d / "a.npz", image=np.array([{}], object), text=TWO), "pickled Python objects"),
    "zeros": (lambda d: written(d / "a.npz", image=TWO * 0, text=TWO), r"a.npz: Argument `image` has only zeros"),
    "damaged npz": (lambda d: damaged(d / "a.npz", ".npz"), "a.npz is damaged or of another kind"),
    "damaged tensors": (lambda d: damaged(d / "a.safetensors", ".safetensors"), "is damaged or of another kind"),
    "damaged table": (lambda d: damaged(d / "a.parquet", ".parquet"), "is damaged or of another kind"),
    "npz with one array": (lambda d: np.save(d / "a.npy", TWO) or (d / "a.npy").rename(d / "a.npz"), "but holds array"),
    "empty folder": (lambda d: d, "needs 'image', but holds nothing"),
    "table without image": (lambda d: table(d / "a.parquet", text=ONE), "needs 'image', but holds text"),
    "table of numbers": (lambda d: table(d / "a.parquet", image=[1.0] * 2, text=ONE), "must hold lists of floats"),
    "table of words": (lambda d: table(d / "a.parquet", image=["a"] * 2, text=ONE), "must hold lists of floats"),
    "table with empty rows": (lambda d: table(d / "a.parquet", image=[[1.0], None], text=ONE), "has empty rows"),
    "table of lengths": (lambda d: table(d / "a.parquet", image=[[1.0], [1.0, 2]], text=ONE), "lengths 1 to 2"),
    "table without caption": (
        lambda d: table(d / "a.parquet", image=ONE, text=[[[1.0]], []]),
        "rows without a caption",
    ),
    "folder as file": (lambda d: (d / "a.npz").mkdir() or d / "a.npz", "needs 'image'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_bad_files_give_one_sentence(tmp_path, name):
    make, message = FILES[name]
    path = make(tmp_path)
    with pytest.raises(fs.FlowsimError, match=message) as caught:
        fs.data.load(path)
    assert "\n" not in str(caught.value)


def test_bad_arguments_of_load_and_save(tmp_path, features):
    with pytest.raises(fs.FlowsimError, match="ends in .npz, .parquet, or .safetensors, or one without ending"):
        fs.data.save(features, tmp_path / "a.txt")
    (tmp_path / "b.npz").mkdir()
    with pytest.raises(fs.FlowsimError, match="is a folder"):
        fs.data.save(features, tmp_path / "b.npz")
    (tmp_path / "file").write_text("")
    for name in ("file/a.npz", "file/a", "file"):
        with pytest.raises(fs.FlowsimError, match="Cannot write|holds something else"):
            fs.data.save(features, tmp_path / name)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["b.npz", "file"]


@pytest.mark.parametrize(("ending", "name"), [(".parquet", "pyarrow"), (".safetensors", "safetensors")])
def test_a_missing_package_gives_the_command(tmp_path, features, ending, name, monkeypatch):
    path = fs.data.save(features, tmp_path / f"a{ending}")
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, name, None)
    for use in (lambda: fs.data.load(path), lambda: fs.data.save(features, path)):
        with pytest.raises(fs.FlowsimError, match=rf"need the package {name}. .*pip install 'flowsim\[features\]'"):
            use()


def test_a_reader_of_ones_own(tmp_path, features):
    @fs.data.register(".json", write=lambda features, path: Path(path).write_text(json.dumps(features.image.tolist())))
    def read(path):
        rows = json.loads(Path(path).read_text())
        return fs.data.from_arrays(rows, rows, source=path) if rows else None

    try:
        found = fs.data.load(fs.data.save(features, tmp_path / "a.json"))
        np.testing.assert_array_equal(found.image, features.image)
        (tmp_path / "b.json").write_text("[]")
        with pytest.raises(fs.FlowsimError, match="must return features, but gives None"):
            fs.data.load(tmp_path / "b.json")
        with pytest.raises(fs.FlowsimError, match=r"'.*c.json' cannot be read: No such file"):
            fs.data.load(tmp_path / "c.json")
        with pytest.raises(fs.FlowsimError, match="or a .json file"):
            fs.data.load(tmp_path / "c.unknown")
    finally:
        fs.data.READERS.remove(".json")
    with pytest.raises(fs.FlowsimError, match="already has a reader of features named '.npz'"):
        fs.data.register(".npz")(read)
    with pytest.raises(fs.FlowsimError, match="'h5' is no ending of files"):
        fs.data.register("h5")


# --- order -------------------------------------------------------------------------------------------------------


def test_batches_are_drawn_without_replacement():
    order = fs.data.Order(pairs=23, batch=5, seed=3)
    assert order.per_epoch == 4
    epochs = [np.concatenate([order.indices(4 * epoch + k) for k in range(4)]) for epoch in range(3)]
    for epoch, found in enumerate(epochs):
        assert len(set(found)) == 20
        wanted = np.random.default_rng(np.random.SeedSequence((3, 0, epoch))).permutation(23)[:20]
        np.testing.assert_array_equal(found, wanted)
    assert len({tuple(found) for found in epochs}) == 3
    # Going back gives the same batch.
    np.testing.assert_array_equal(order.indices(1), epochs[0][5:10])
    assert not np.array_equal(fs.data.Order(23, 5, 4).indices(0), order.indices(0))


def test_captions_are_uniform_and_never_padding():
    order = fs.data.Order(PAIRS, 10, seed=2)
    seen = np.zeros((PAIRS, CAPTIONS), int)
    for k in range(600):
        index = order.indices(k)
        which = order.captions(k, COUNTS[index])
        draws = np.random.default_rng(np.random.SeedSequence((2, 1, k))).random(10)
        np.testing.assert_array_equal(which, np.floor(draws * COUNTS[index]).astype(int))
        np.testing.assert_array_equal(which, draw_captions(order.generator(k), COUNTS[index]))
        seen[index, which] += 1
    assert (seen.sum(1) == 200).all()
    assert (seen[np.arange(CAPTIONS) >= COUNTS[:, None]] == 0).all()
    three = seen[COUNTS == 3]
    np.testing.assert_allclose(three, 200 / 3, atol=4 * np.sqrt(200 * 2 / 9))


def test_the_captions_of_batches_can_be_read(features):
    order = fs.data.Order(features.pairs, 10, seed=0)
    for k in range(20):
        index = order.indices(k)
        rows = features.text_rows(index, order.captions(k, features.counts[index]))
        assert np.isfinite(rows).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((4, 5, 0), "A batch of 5 needs at least 5 pairs, but there are 4"),
        ((4, 0, 0), "`batch` must be a whole number of at least 1"),
        ((4, 2, -1), "`seed` must be a whole number of at least 0"),
    ],
)
def test_bad_orders_give_one_sentence(arguments, message):
    with pytest.raises(fs.FlowsimError, match=message):
        fs.data.Order(*arguments)


# --- emoji -------------------------------------------------------------------------------------------------------

FOLDER = Path(fs.data.__file__).parent


def test_the_emoji():
    emoji = fs.data.emoji()
    assert (emoji.pairs, emoji.captions, emoji.image_dim, emoji.text_dim) == (1655, 2, 128, 128)
    assert emoji.splits == {"train": 1332, "test": 171, "val": 152} and emoji.source == "emoji"
    assert emoji.image.dtype == emoji.text.dtype == np.float16 and emoji.counts is None
    assert len(emoji.classes) == 98 and emoji.class_rows().shape == (98, 128)
    assert (emoji.labels == -1).sum() == 2 and len(set(emoji.names)) == 1655
    assert set(emoji.part("train").labels) >= set(emoji.part("test").labels) - {-1}
    by_name = dict(zip(emoji.names, emoji.labels, strict=True))
    for name, wanted in (("dog face", "animal mammal"), ("red apple", "food fruit"), ("violin", "musical instrument")):
        assert emoji.classes[by_name[name]] == wanted
    assert fs.data.load("emoji").digest == emoji.digest


def test_the_emoji_keep_the_common_mode_and_their_meaning():
    """The mean of the training rows has the direction of the first column; captions of one emoji are alike."""
    train = fs.data.emoji().part("train")
    for mean in (train.image_rows().mean(0), train.every_text()[0].mean(0)):
        assert abs(mean[0]) > 0 and np.abs(mean[1:]).max() < 2e-3 * abs(mean[0])
    rows = train.scaled("length").image_rows(dtype=np.float64)
    assert np.linalg.norm(rows.mean(0)) / np.sqrt(128) == pytest.approx(0.70, abs=0.02)
    first, second = train.scaled("standard").text_rows(), train.scaled("standard").text_rows(caption=1)
    first, second = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (first, second))
    assert ((first @ second.T).argmax(1) == np.arange(train.pairs)).mean() > 0.3


def test_the_emoji_are_small_and_licensed():
    assert (FOLDER / "emoji.npz").stat().st_size < 1.5e6
    notes = (FOLDER / "emoji.md").read_text(encoding="utf-8")
    for licence in ("Apache-2.0", "OFL-1.1", "Unicode-3.0", "MIT"):
        assert licence in notes
        (text,) = (FOLDER / "emoji-licences").glob(f"{licence}*.txt")
        assert len(text.read_text(encoding="utf-8")) > 1000
    with np.load(FOLDER / "emoji.npz", allow_pickle=False) as file:
        assert file["filename"][0] == "emoji_u0023.jpg" and len(file["filename"]) == 1655
