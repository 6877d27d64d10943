"""Embeddings in files of every format, several modalities, and similarities instead of rows."""

import argparse
import builtins
import collections
import itertools
import json
import os
import pickle
import struct
import sys
import warnings
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import flowsim as fs
import flowsim.observables as obs
from flowsim import FlowsimError, cli
from flowsim.data.arrays import read_named
from flowsim.data.rows import is_mapped

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(12, 5)).astype(np.float32) + 0.5
TEXT = (IMAGE + RNG.normal(size=(12, 5))).astype(np.float32) - 0.5
CAPTIONS = RNG.normal(size=(12, 3, 5)).astype(np.float32)


def npy(path, image, text):
    np.save(path, np.stack([image, text]))


def npz(path, **arrays):
    np.savez(path, **arrays)


def compressed(path, **arrays):
    np.savez_compressed(path, **arrays)


def safetensors(path, **arrays):
    pytest.importorskip("safetensors.numpy").save_file(arrays, path)


def torch_file(path, **arrays):
    torch = pytest.importorskip("torch")
    torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)


def torch_old(path, **arrays):
    torch = pytest.importorskip("torch")
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save(tensors, path, _use_new_zipfile_serialization=False)


def hdf5(path, chunks=None, **arrays):
    with pytest.importorskip("h5py").File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=chunks, compression=chunks and "gzip")


def hdf5_chunked(path, **arrays):
    hdf5(path, True, **arrays)


def zarr_folder(path, **arrays):
    group = pytest.importorskip("zarr").open_group(str(path), mode="w")
    for name, array in arrays.items():
        group.create_array(name, data=array)


def zarr_zip(path, **arrays):
    zarr = pytest.importorskip("zarr")
    with zarr.storage.ZipStore(path, mode="w") as store:
        group = zarr.open_group(store, mode="w")
        for name, array in arrays.items():
            group.create_array(name, data=array)


def parquet(path, **arrays):
    pa, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    library.write_table(pa.table({name: list(array) for name, array in arrays.items()}), path)


def parquet_wide(path, **arrays):
    pa, library = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {f"{name}_{k}": array[:, k] for name, array in arrays.items() for k in range(array.shape[1])}
    library.write_table(pa.table(columns), path)


def table_wide(path, separator=",", **arrays):
    names = [f"{name}_{k}" for name, array in arrays.items() for k in range(array.shape[1])]
    rows = np.concatenate(list(arrays.values()), axis=1).astype(float)
    lines = [separator.join(names), *(separator.join(map(repr, row)) for row in rows.tolist())]
    path.write_text("\n".join(lines) + "\n")


def tsv_wide(path, **arrays):
    table_wide(path, "\t", **arrays)


def table_json(path, **arrays):
    import pandas as pd

    pd.DataFrame({name: [json.dumps(row.tolist()) for row in array] for name, array in arrays.items()}).to_csv(path)


def folder(path, **arrays):
    path.mkdir()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


def clip_retrieval(path, **arrays):
    """As clip-retrieval writes it, with eleven parts, so that 10 comes after 9 and not after 1."""
    parquet(path.parent / "metadata_0.parquet", caption=np.array(["a"] * 12))
    for kind, array in zip(("img_emb", "text_emb"), arrays.values(), strict=True):
        (path / kind).mkdir(parents=True)
        for part, rows in enumerate([array[:2], *(array[k : k + 1] for k in range(2, 12))]):
            np.save(path / kind / f"{kind}_{part}.npy", rows)
    (path / "metadata").mkdir()
    os.replace(path.parent / "metadata_0.parquet", path / "metadata" / "metadata_0.parquet")


#: Ending, how it is written, and whether arrays are mapped into memory.
FORMATS = {
    "npz": (".npz", npz, True),
    "compressed npz": (".npz", compressed, False),
    "safetensors": (".safetensors", safetensors, True),
    "pt": (".pt", torch_file, False),
    "old pth": (".pth", torch_old, False),
    "h5": (".h5", hdf5, True),
    "chunked hdf5": (".hdf5", hdf5_chunked, False),
    "zarr": (".zarr", zarr_folder, False),
    "zarr in zip": (".zarr.zip", zarr_zip, False),
    "parquet": (".parquet", parquet, False),
    "wide parquet": (".parquet", parquet_wide, False),
    "wide csv": (".csv", table_wide, False),
    "wide tsv": (".tsv", tsv_wide, False),
    "lists in csv": (".csv", table_json, False),
    "folder": ("", folder, True),
    "clip-retrieval": ("", clip_retrieval, False),
}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path, kind):
    ending, write, mapped = FORMATS[kind]
    path = tmp_path / f"rows{ending}"
    write(path, image_embeds=IMAGE, text_embeds=TEXT)
    image, text = obs.open_embeddings(path)
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(text, TEXT)
    assert image.dtype == (np.float64 if "sv" in kind else np.float32)
    assert is_mapped(image) == mapped
    features = fs.data.load(path)
    np.testing.assert_array_equal(features.image, IMAGE)
    np.testing.assert_array_equal(features.text[:, 0], TEXT)


KINDS = ("npz", "safetensors", "pt", "h5", "zarr", "parquet", "folder")
#: Of these formats only two have bfloat16.
DTYPES = [(kind, dtype) for kind in KINDS for dtype in (np.float16, np.float32, np.float64)]
DTYPES += [("safetensors", ml_dtypes.bfloat16), ("pt", ml_dtypes.bfloat16)]


@pytest.mark.parametrize(("kind", "dtype"), DTYPES)
def test_dtypes_of_files_are_kept(tmp_path, kind, dtype):
    ending, write, _ = FORMATS[kind]
    path = tmp_path / f"rows{ending}"
    image, text = IMAGE.astype(dtype), TEXT.astype(dtype)
    if kind == "pt" and dtype is ml_dtypes.bfloat16:
        torch = pytest.importorskip("torch")
        torch.save({n: torch.from_numpy(a).bfloat16() for n, a in (("image", IMAGE), ("text", TEXT))}, path)
    else:
        write(path, image=image, text=text)
    found = obs.open_embeddings(path)
    for one, wanted in zip(found, (image, text), strict=True):
        assert one.dtype == dtype
        np.testing.assert_array_equal(one.astype(float), wanted.astype(float))
    assert obs.report(*found)["modality_gap"] == pytest.approx(
        obs.modality_gap(image.astype(float), text.astype(float)), rel=1e-12
    )


@pytest.mark.parametrize(
    ("image", "text"),
    [("image", "text"), ("images", "texts"), ("img", "txt"), ("Image_Embeds", "Text_Embeds"), ("VISUAL", "TEXTUAL"),
     ("image_features", "text_features"), ("img_emb", "text_emb"), ("image-embeddings", "text-embeddings"),
     ("clip.image_feats", "clip.text_feats"), ("vision", "language")],
)  # fmt: skip
def test_usual_names(tmp_path, image, text):
    npz(tmp_path / "a.npz", **{text: TEXT, image: IMAGE, "labels": np.arange(12), "other": IMAGE})
    np.testing.assert_array_equal(obs.load_embeddings(tmp_path / "a.npz")[0], IMAGE)
    np.testing.assert_array_equal(obs.load_embeddings(tmp_path / "a.npz")[1], TEXT)


def test_names_that_are_given(tmp_path):
    path = tmp_path / "a.npz"
    npz(path, a=IMAGE, b=TEXT, image_embeds=2 * IMAGE, text_embeds=TEXT, img=IMAGE, txt=TEXT)
    with pytest.raises(FlowsimError, match=r"a\.npz has several pairs .*--image NAME --text NAME"):
        obs.open_embeddings(path)
    np.testing.assert_array_equal(obs.open_embeddings(path, image="a", text="b")[0], IMAGE)
    np.testing.assert_array_equal(obs.open_embeddings(path, image="image_embeds")[0], 2 * IMAGE)
    np.testing.assert_array_equal(obs.open_embeddings(path, path, image="a", text="txt")[1], TEXT)
    with pytest.raises(FlowsimError, match="Unknown array 'imge'. Did you mean 'img'"):
        obs.open_embeddings(path, image="imge", text="txt")
    npz(path, a=IMAGE, b=TEXT)
    with pytest.raises(FlowsimError, match=r"no pair .* It holds a \(12, 5\) float32, b \(12, 5\) float32\. Say"):
        obs.open_embeddings(path)
    with pytest.raises(FlowsimError, match="Say which array is the text with text=NAME"):
        obs.open_embeddings(path, path, image="a")


def test_two_files(tmp_path):
    np.save(tmp_path / "a.npy", IMAGE)
    npz(tmp_path / "b.npz", text=TEXT, names=np.array(["x"] * 12))
    image, text = obs.open_embeddings(tmp_path / "a.npy", tmp_path / "b.npz")
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(text, TEXT)
    with pytest.raises(FlowsimError, match=r"not \(2, n, d\).*or give the file of the texts as second one"):
        obs.open_embeddings(tmp_path / "a.npy")
    np.save(tmp_path / "c.npy", TEXT[:, :3])
    with pytest.raises(FlowsimError, match=r"a\.npy and .*c\.npy: `image` has 5 columns and `text` has 3"):
        obs.open_embeddings(tmp_path / "a.npy", tmp_path / "c.npy")


def test_captions(tmp_path, capsys):
    npz(tmp_path / "a.npz", image=IMAGE, text=CAPTIONS)
    flat = CAPTIONS.reshape(-1, 5)
    np.testing.assert_array_equal(obs.open_embeddings(tmp_path / "a.npz")[1], flat)
    wanted = obs.report(IMAGE, flat, captions_per_image=3)
    assert cli.main(["measure", str(tmp_path / "a.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["captions_per_image"] == 3
    assert found["values"]["text_to_image_at_5"] == wanted["text_to_image_at_5"]
    npz(tmp_path / "b.npz", image=IMAGE, text=flat)
    assert cli.main(["measure", str(tmp_path / "b.npz"), "--only", "margin"]) == 0
    assert "--captions-per-image 3" in capsys.readouterr().out
    assert cli.main(["measure", str(tmp_path / "b.npz"), "--captions-per-image", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["values"] == found["values"]


def test_a_start_from_a_file(tmp_path):
    npz(tmp_path / "a.npz", image_embeds=IMAGE, text_embeds=TEXT)
    found, wanted = fs.initial.from_file(tmp_path / "a.npz"), fs.initial.from_arrays(IMAGE, TEXT)
    np.testing.assert_array_equal(found.image, wanted.image)
    np.testing.assert_array_equal(found.text, wanted.text)
    assert fs.initial.from_file(tmp_path / "a.npz", text="image_embeds", image="text_embeds", gamma=0.3).gamma == 0.3
    npz(tmp_path / "b.npz", image=IMAGE, text=TEXT[:5])
    with pytest.raises(FlowsimError, match=r"b\.npz: `image` has 12 row"):
        fs.initial.from_file(tmp_path / "b.npz")


def test_public_features():
    data = Path(os.environ.get("FLOWSIM_DATA", Path(__file__).parents[2] / "shared" / "data")) / "mind-the-gap"
    if not data.exists():
        pytest.skip("no public CLIP features: set FLOWSIM_DATA to the folder of mind-the-gap/features_clip.npy")
    image, text = obs.open_embeddings(data / "features_clip.npy")
    rows = [one.astype(float) / np.linalg.norm(one.astype(float), axis=1, keepdims=True) for one in (image, text)]
    stack = np.concatenate(rows)
    gram = obs.report_similarity(stack @ stack.T, dim=512)
    cross = obs.report_similarity(rows[0] @ rows[1].T)
    for found in (gram, cross):
        assert found["pair_distance"] == pytest.approx(1.1745, abs=6e-5)
        assert found["image_to_text_at_1"] == pytest.approx(0.552, abs=1e-9)
    assert gram["modality_gap"] == pytest.approx(0.8514, abs=6e-5)
    assert gram["wasserstein_uniformity"] == pytest.approx(-0.9835, abs=6e-5)
    random = obs.pairwise({"image": image, "text": text, "random": np.load(data / "features_clip_random.npy")[0]})
    assert float(random["modality_gap"].sel(modality="text", other="image")) == pytest.approx(0.8514, abs=6e-5)


# --- what is refused -------------------------------------------------------------------------------------


class Creates:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (builtins.open, (self.path, "w"))


def malicious_pt(path, evil):
    torch = pytest.importorskip("torch")
    torch.save({"image": torch.ones(3, 2), "text": torch.ones(3, 2), "evil": evil}, path)


def malicious_zarr(path, evil):
    """Version 2 of Zarr has a codec that unpickles each chunk."""
    path.mkdir()
    meta = {"zarr_format": 2, "shape": [2, 2], "chunks": [2, 2], "dtype": "<f8", "compressor": {"id": "pickle"},
            "fill_value": 0.0, "order": "C", "filters": None}  # fmt: skip
    pytest.importorskip("zarr")
    (path / ".zgroup").write_text('{"zarr_format": 2}')
    for name in ("image", "text"):
        (path / name).mkdir()
        (path / name / ".zarray").write_text(json.dumps(meta))
        (path / name / "0.0").write_bytes(pickle.dumps(evil))


@pytest.mark.filterwarnings("ignore")
def test_settings_beside_weights_are_left_out(tmp_path):
    """Checkpoints of trainers hold settings, for which PyTorch's loader of weights refuses the file."""
    torch = pytest.importorskip("torch")
    beside = {
        "args": argparse.Namespace(lr=1e-3, out=Path("x")), "best": np.float64(0.5), "when": np.int64(3),
        "history": collections.defaultdict(list, {"a": [np.float32(1.0)]}),
    }  # fmt: skip
    for name in ("epoch_1.pt", "last.ckpt"):
        torch.save({"state_dict": {"w": torch.ones(3, 2)}, "epoch": 3, **beside}, tmp_path / name)
        held = read_named(tmp_path / name)
        assert list(held) == ["state_dict.w"]
        np.testing.assert_array_equal(held["state_dict.w"], np.ones((3, 2)))
    trap = tmp_path / "trap"
    torch.save({"w": torch.ones(2), "args": argparse.Namespace(a=Creates(trap))}, tmp_path / "evil.pt")
    with pytest.raises(FlowsimError, match="not loaded"):
        read_named(tmp_path / "evil.pt")
    # A class of an allowed module is not made either: nothing of it runs.
    torch.save({"w": torch.ones(2), "made": Runs(trap)}, tmp_path / "runs.pt")
    assert list(read_named(tmp_path / "runs.pt")) == ["w"]
    assert not trap.exists()


class Runs:
    """Would run code of NumPy when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return np.savetxt, (str(self.path), [1.0])


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_torch_is_known_by_its_content(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"image": torch.ones(3, 2), "text": torch.ones(3, 2)}, tmp_path / "a.pt")
    for name in ("a.npy", "a.npz", "a"):
        (tmp_path / "a.pt").rename(tmp_path / name)
        assert sorted(read_named(tmp_path / name)) == ["image", "text"]
        (tmp_path / name).rename(tmp_path / "a.pt")


def test_what_is_missing_is_named(tmp_path):
    rows = np.eye(4)[:, :3]
    np.savez(tmp_path / "odd.npz", z_v=rows, z_l=rows)
    with pytest.raises(FlowsimError, match="The images are 'z_v'; say which array is the text with text=NAME"):
        obs.open_embeddings(tmp_path / "odd.npz", image="z_v")
    with pytest.raises(FlowsimError, match="The texts are 'z_l'; say which array is the image with image=NAME"):
        obs.open_embeddings(tmp_path / "odd.npz", text="z_l")
    np.save(tmp_path / "cosines.npy", np.eye(4))
    with pytest.raises(FlowsimError, match=r"one square matrix, \(4, 4\). If these are cosines"):
        obs.open_embeddings(tmp_path / "cosines.npy")


PICKLES = {
    "a.pt": malicious_pt,
    "b.pth": lambda path, evil: path.write_bytes(pickle.dumps({"image": evil})),
    "c.npy": lambda path, evil: np.save(path, np.array([evil, evil], object), allow_pickle=True),
    "d.npz": lambda path, evil: np.savez(path, image=np.array([evil, evil], object), text=TEXT),
    "e.zarr": malicious_zarr,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", PICKLES)
def test_nothing_is_unpickled(tmp_path, name):
    if name.endswith(("pt", "pth")):
        pytest.importorskip("torch")
    path, trap = tmp_path / name, tmp_path / "trap"
    PICKLES[name](path, Creates(trap))
    with pytest.raises(FlowsimError, match="not loaded|'object_codec_id': 'pickle'") as caught:
        obs.open_embeddings(path)
    assert "\n" not in str(caught.value) and name in str(caught.value)
    assert not trap.exists()


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("part", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("kind", [kind for kind in FORMATS if FORMATS[kind][0] and "sv" not in kind and kind != "zarr"])
def test_truncated_files_give_one_sentence(tmp_path, kind, part):
    ending, write, _ = FORMATS[kind]
    path = tmp_path / f"rows{ending}"
    write(path, image=np.tile(IMAGE, (20, 1)), text=np.tile(TEXT, (20, 1)))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(FlowsimError, match=r"rows\.") as caught:
        obs.open_embeddings(path)
    assert "\n" not in str(caught.value)


def test_chunks_that_are_missing_or_damaged_give_one_sentence(tmp_path):
    path = tmp_path / "rows.zarr"
    zarr_folder(path, image=IMAGE, text=TEXT)
    chunk = next(one for one in (path / "text" / "c").rglob("*") if one.is_file())
    chunk.write_bytes(chunk.read_bytes()[:10])
    with pytest.raises(FlowsimError, match=r"rows\.zarr is damaged"):
        obs.open_embeddings(path)
    (path / "zarr.json").write_text("{")
    with pytest.raises(FlowsimError, match=r"rows\.zarr is damaged"):
        obs.open_embeddings(path)


def test_huge_headers_give_one_sentence(tmp_path):
    pytest.importorskip("safetensors")
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", 2**40) + b"{}")
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3, 4), }" + " " * 2**20 + "\n"
    magic = b"\x93NUMPY\x02\x00" + struct.pack("<I", len(header))
    (tmp_path / "b.npy").write_bytes(magic + header.encode() + bytes(96))
    shape = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1000000000, 1000000000), }\n"
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(shape)) + shape.encode())
    for name in ("a.safetensors", "b.npy", "c.npy"):
        with pytest.raises(FlowsimError, match=rf"{name} (is damaged|does not fit)") as caught:
            obs.open_embeddings(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", [".npy", ".npz", ".safetensors", ".pt", ".h5", ".zarr", ".parquet", ".csv", ".json"])
def test_wrong_endings_give_one_sentence(tmp_path, ending):
    if ending == ".pt":
        pytest.importorskip("torch")
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"\x00\x01 no such thing \xff\xfe\n" * 20)
    with pytest.raises(FlowsimError, match=r"a\.") as caught:
        obs.open_embeddings(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "package", "extra"),
    [("safetensors", "safetensors", "features"), ("parquet", "pyarrow", "features"), ("zarr", "zarr", "sweep")],
)
def test_missing_packages_are_named(tmp_path, monkeypatch, kind, package, extra):
    ending, write, _ = FORMATS[kind]
    write(tmp_path / f"a{ending}", image=IMAGE, text=TEXT)
    for module in [one for one in sys.modules if one.partition(".")[0] == package] + [package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(FlowsimError, match=rf"need the package {package}. .*pip install 'flowsim\[{extra}\]'"):
        obs.open_embeddings(tmp_path / f"a{ending}")


def test_a_missing_torch_is_named(tmp_path, monkeypatch):
    (tmp_path / "a.pt").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(FlowsimError, match=r"need the package torch. .*pip install 'flowsim\[clip\]'"):
        obs.open_embeddings(tmp_path / "a.pt")


def test_files_elsewhere_are_not_read(tmp_path):
    """Datasets of HDF5 may point to any file of the machine."""
    h5py = pytest.importorskip("h5py")
    (tmp_path / "secret").write_bytes(bytes(960))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("image", (12, 5), "f8", external=[(str(tmp_path / "secret"), 0, 480)])
        file["text"] = TEXT
        file["link"] = h5py.ExternalLink(str(tmp_path / "b.h5"), "/x")
    with pytest.raises(FlowsimError, match="'image' lies in other files, which are not read"):
        obs.open_embeddings(tmp_path / "a.h5")
    assert set(read_named(tmp_path / "a.h5")) == {"image", "text"}


def test_tables_of_words_and_lengths(tmp_path):
    for content, said in (
        ("image_0,image_1,text_0,text_1\n1,2,3,a\n4,5,6,7\n", "column 'text_1' must hold numbers"),
        ('image,text\n"[1, 2]","[1, 2]"\n"[1, 2]","[1 2]"\n', "'text' must hold lists of numbers in JSON.* row 1"),
        ('image,text\n"[1, 2]","[1, 2]"\n"[1, 2]","[1]"\n', "'text' holds lists of different lengths"),
        ("", r"a\.csv is damaged"),
    ):
        (tmp_path / "a.csv").write_text(content)
        with pytest.raises(FlowsimError, match=said):
            obs.open_embeddings(tmp_path / "a.csv")


# --- several modalities ----------------------------------------------------------------------------------


def test_pairwise_is_the_report_of_each_pair():
    rows = {"image": IMAGE, "text": TEXT, "audio": CAPTIONS[:, 0]}
    found = obs.pairwise(rows, 0.1)
    for a, b in (("image", "text"), ("audio", "image"), ("text", "audio")):
        wanted = obs.report(rows[a], rows[b], 0.1)
        for name in ("modality_gap", "margin", "relative_modality_gap", "doubly_stochastic_defect", "cross_uniformity"):
            got = float(found[name].sel(modality=a, other=b))
            assert got == pytest.approx(wanted[name], rel=1e-12), name
        for k in (1, 5, 10):
            matrix = found[f"retrieval_at_{k}"]
            assert float(matrix.sel(modality=a, other=b)) == wanted[f"image_to_text_at_{k}"]
            assert float(matrix.sel(modality=b, other=a)) == wanted[f"text_to_image_at_{k}"]
        for name in ("centre_norm", "uniformity", "effective_rank"):
            for one, place in ((a, "image"), (b, "text")):
                assert float(found[name].sel(modality=one)) == pytest.approx(wanted[f"{place}_{name}"], rel=1e-12)
    assert np.isnan(np.diagonal(found["modality_gap"])).all()
    content = json.loads(found.to_json())
    assert content["values"]["modality_gap"][0][0] is None
    assert content["reports"]["image, text"]["pairs"] == 12
    for text in (repr(found), found._repr_html_()):
        assert "audio" in text and "effective_rank" in text and "image" in text


def test_pairwise_without_pairs_and_with_few_names():
    found = obs.pairwise({"a": IMAGE, "b": TEXT[:7]}, only=["modality_gap", "uniformity", "margin"])
    assert list(found.values) == ["modality_gap", "margin", "uniformity"]
    assert np.isnan(found["margin"]).all() and "needs pairs" in repr(found)
    with pytest.raises(FlowsimError, match="Did you mean 'margin'"):
        found["margn"]
    with pytest.raises(FlowsimError, match="Did you mean 'margin'"):
        obs.pairwise({"a": IMAGE, "b": TEXT}, only=["margn"])
    with pytest.raises(FlowsimError, match="dictionary of at least two"):
        obs.pairwise({"a": IMAGE})
    with pytest.raises(FlowsimError, match="`a` has 5 columns and `b` has 4"):
        obs.pairwise({"a": IMAGE, "b": TEXT[:, :4]})


def test_measure_takes_modalities(tmp_path, capsys):
    for name, rows in (("a", IMAGE), ("b", TEXT), ("c", CAPTIONS[:, 0])):
        np.save(tmp_path / f"{name}.npy", rows)
    npz(tmp_path / "d.npz", x=IMAGE, y=TEXT)
    options = [f"--modality={name}={tmp_path / file}" for name, file in
               (("image", "a.npy"), ("text", "d.npz:y"), ("audio", "c.npy"))]  # fmt: skip
    assert cli.main(["measure", *options, "--only", "modality_gap", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)["values"]["modality_gap"]
    assert values[0][1] == pytest.approx(obs.modality_gap(IMAGE, TEXT), rel=1e-12)
    for wrong, said in (
        (["--modality", "a"], "takes NAME=FILE"),
        ([*options, str(tmp_path / "a.npy")], "replaces FILE"),
        (["--modality", f"a={tmp_path / 'd.npz'}"], "Say which array"),
        ([options[0], options[0]], "names 'image' twice"),
    ):
        assert cli.main(["measure", *wrong]) == 2
        assert said in capsys.readouterr().err


# --- similarities ----------------------------------------------------------------------------------------


def unit(rows):
    rows = rows.astype(float)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_cosines_of_images_with_texts_give_what_they_determine():
    wanted = obs.report(IMAGE, TEXT, 0.1)
    found = obs.report_similarity(unit(IMAGE) @ unit(TEXT).T, 0.1)
    known = [name for name in found.values if name not in found.reasons]
    assert {"margin", "matched_fraction", "pair_distance", "alignment", "cross_uniformity", "image_to_text_at_1",
            "text_to_image_at_10", "doubly_stochastic_defect", "mean_pair_cosine"} <= set(known)  # fmt: skip
    for name in known:
        assert found[name] == pytest.approx(wanted[name], rel=1e-10, abs=1e-12), name
    assert "needs the rows" in found.reasons["modality_gap"]
    assert "cosines of images with texts" in repr(found)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_gram_matrix_gives_everything(dtype):
    wanted = obs.report(IMAGE, TEXT, 0.1)
    rows = np.concatenate([unit(IMAGE), unit(TEXT)])
    gram = (rows @ rows.T).astype(dtype)
    found = obs.report_similarity(gram, 0.1, dim=5)
    exact = dtype is np.float64
    assert found.reasons == wanted.reasons
    for name, value in wanted.values.items():
        assert found[name] == pytest.approx(
            value, rel=1e-8 if exact else 1e-4, abs=1e-8 if exact else 1e-4, nan_ok=True
        )
    unknown = obs.report_similarity(gram, 0.1)
    assert "pass dim=d" in unknown.reasons["wasserstein_uniformity"] and unknown.dim is None
    assert unknown["image_effective_rank"] == pytest.approx(wanted["image_effective_rank"], rel=1e-3)
    assert "of rank 5" in repr(unknown) or not exact


def test_similarities_that_are_none():
    rows = np.concatenate([unit(IMAGE), unit(TEXT)])
    gram = rows @ rows.T
    bad = gram.copy()
    bad[0, 1] += 0.1
    wrong = np.eye(4)
    wrong[0, 1] = wrong[1, 0] = wrong[0, 2] = wrong[2, 0] = 0.9
    wrong[1, 2] = wrong[2, 1] = -0.9
    for matrix, options, said in (
        (gram * 3, {}, "must be cosines"),
        (bad, {}, "not symmetric, but its diagonal is 1"),
        (bad, {"kind": "gram"}, "must be symmetric, but is off by 0.1"),
        (gram * 0.9, {}, "symmetric, but its diagonal is not 1"),
        (gram[:-1, :-1], {}, "must have 2n rows"),
        (wrong, {}, "must have no negative eigenvalue"),
        (gram, {"dim": 3}, "has rank 5, which 3 columns cannot have"),
        (gram, {"dim": 0}, "`dim` must be a whole number"),
        (gram, {"kind": "gran"}, "Did you mean 'gram'"),
        (gram[:4], {}, "must be square"),
        (np.full((4, 4), np.nan), {}, "NaN"),
    ):
        with pytest.raises(FlowsimError, match=said):
            obs.report_similarity(matrix, **options)


def test_measure_takes_similarities(tmp_path, capsys):
    np.save(tmp_path / "a.npy", unit(IMAGE) @ unit(TEXT).T)
    assert cli.main(["measure", str(tmp_path / "a.npy"), "--similarity", "--json", "--only", "margin"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["values"]["margin"] == pytest.approx(obs.margin(IMAGE, TEXT), rel=1e-10)
    assert found["dim"] is None
    for wrong in (["--dim", "5"], ["--kind", "gram"]):
        assert cli.main(["measure", str(tmp_path / "a.npy"), *wrong]) == 2
        assert "Add --similarity" in capsys.readouterr().err


# --- what must not pass in silence


def test_parts_that_are_missing_are_refused(tmp_path):
    for kind, numbers in (("img_emb", (0, 1)), ("text_emb", (0, 2))):
        (tmp_path / kind).mkdir()
        for number in numbers:
            np.save(tmp_path / kind / f"{kind}_{number}.npy", IMAGE)
    with pytest.raises(FlowsimError, match="has parts 0, 2: some are missing"):
        obs.load_embeddings(tmp_path)


def test_parts_of_two_data_sets_are_not_mixed(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for kind in ("img_emb", "text_emb"):
            np.save(tmp_path / split / f"{kind}_0.npy", IMAGE)
    with pytest.raises(FlowsimError, match="holds 'img_emb' twice: in several folders"):
        read_named(tmp_path)
    assert set(read_named(tmp_path / "val")) == {"img_emb", "text_emb"}


def test_parts_with_other_rows_are_refused(tmp_path):
    """As many rows in all, so that only the parts tell."""
    for kind, cut in (("img_emb", 2), ("text_emb", 3)):
        for number, part in enumerate((IMAGE[:cut], IMAGE[cut:])):
            np.save(tmp_path / f"{kind}_{number}.npy", part)
    with pytest.raises(FlowsimError, match="part 1 of 2 has 2 rows of 'img_emb', but 3 of 'text_emb'"):
        obs.load_embeddings(tmp_path)


def test_numbers_in_names_of_whole_files(tmp_path):
    for name, rows in (("image_512", IMAGE), ("text_512", TEXT)):
        np.save(tmp_path / f"{name}.npy", rows)
    assert set(read_named(tmp_path)) == {"image_512", "text_512"}
    np.testing.assert_array_equal(obs.load_embeddings(tmp_path, image="image_512", text="text_512")[1], TEXT)


def test_missing_numbers_of_a_table_are_nan(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = {"score": [1.0, None, 2.0], "label": pyarrow.array([1, None, 2]), "name": ["a", None, "c"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    found = read_named(tmp_path / "a.parquet")
    np.testing.assert_array_equal(found["score"], [1.0, np.nan, 2.0])
    assert found["label"].tolist() == [1, -1, 2] and found["name"].tolist() == ["a", "", "c"]
    empty = pyarrow.table({"image": pyarrow.array([], pyarrow.list_(pyarrow.float32()))})
    parquet.write_table(empty, tmp_path / "b.parquet")
    with pytest.raises(FlowsimError, match=r"b\.parquet: Column 'image' has no rows"):
        _ = read_named(tmp_path / "b.parquet")["image"]


def test_every_pair_has_a_report():
    rows = {"a": IMAGE, "b": TEXT, "c": IMAGE[::-1], "d": TEXT[::-1]}
    found = obs.pairwise(rows, only=["uniformity"])
    assert list(found.reports) == list(itertools.combinations(rows, 2))
    for (a, b), one in found.reports.items():
        whole = obs.report(rows[a], rows[b], only=["image_uniformity", "text_uniformity"]).values
        assert one.values and one.values == {name: pytest.approx(whole[name]) for name in one.values}
    assert np.isfinite(found.values["uniformity"]).all()


def test_messages_name_the_right_modality():
    bad = np.where(np.arange(len(IMAGE))[:, None] == 1, np.nan, IMAGE)
    with pytest.raises(FlowsimError, match="Argument `text` has NaN"):
        obs.pairwise({"text": bad, "image": IMAGE})
    with pytest.raises(FlowsimError, match="Argument `image` has NaN"):
        obs.pairwise({"text": IMAGE, "image": bad})


def test_similarities_of_half_precision_and_their_options():
    unit = IMAGE / np.linalg.norm(IMAGE, axis=1, keepdims=True)
    cosines = (unit @ unit[::-1].T).astype(ml_dtypes.bfloat16)
    assert obs.report_similarity(cosines, kind="cross")["margin"] == pytest.approx(
        obs.report_similarity(cosines.astype(np.float64), kind="cross")["margin"]
    )
    with pytest.raises(FlowsimError, match="`temperature` must be one number"):
        obs.report_similarity(cosines, [0.1, 0.2], kind="cross")
    with pytest.raises(FlowsimError, match="`seed` must be a whole number"):
        obs.report_similarity(cosines, kind="cross", seed=-1)


@pytest.mark.parametrize(
    ("given", "option", "says"),
    [
        *((["a.npy", "--similarity"], one, "belong to rows")
          for one in (["--exact"], ["--text", "x"], ["--captions-per-image", "2"])),
        *((["--modality", "a=a.npy", "--modality", "b=b.npy"], one, "belong to FILE")
          for one in (["--image", "x"], ["--text", "x"], ["--captions-per-image", "2"])),
    ],
)  # fmt: skip
def test_options_that_would_be_ignored_are_refused(given, option, says, capsys):
    assert cli.main(["measure", *given, *option]) == 2
    assert says in capsys.readouterr().err


def test_tensors_that_are_not_dense_say_so(tmp_path):
    torch = pytest.importorskip("torch")
    rows = torch.eye(3)
    tensors = {"dense": rows, "sparse": rows.to_sparse(), "small": rows.to(torch.float8_e4m3fn)}
    with warnings.catch_warnings():  # PyTorch plans to remove them, but files have them
        warnings.simplefilter("ignore")
        tensors["quantised"] = torch.quantize_per_tensor(rows, 0.1, 0, torch.quint8)
        torch.save(tensors, tmp_path / "a.bin")
    found = read_named(tmp_path / "a.bin")
    np.testing.assert_array_equal(found["dense"], np.eye(3))
    assert "quantised (3, 3)" in found.describe()
    for name, kind, cure in (
        ("sparse", "sparse", "to_dense"),
        ("small", "float8_e4m3fn", "float"),
        ("quantised", "quantised", "dequantize"),
    ):
        with pytest.raises(FlowsimError, match=rf"a\.bin: Tensor '{name}' is {kind}.*Save tensor\.{cure}\(\) instead"):
            _ = found[name]
        np.testing.assert_array_equal(getattr(tensors[name], cure)().numpy(), np.eye(3, dtype=np.float32))
