"""Metrics of many rows: blocks and factors against the compiled definitions, samples against all rows, memory."""

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

import flowsim.observables as obs
from flowsim import FlowsimError, cli
from flowsim.observables import blocks as _blocks
from flowsim.observables import large, one_pass, reports

RNG = np.random.default_rng(0)
IMAGE = RNG.normal(size=(60, 7)) + 0.3
TEXT = RNG.normal(size=(60, 7)) - 0.2 + 1.5 * IMAGE
CAPTIONS = np.repeat(IMAGE, 5, axis=0) + RNG.normal(size=(300, 7))
FEW = 1000  # queries, and rows that are compared with each other, in samples


@pytest.fixture
def in_blocks(monkeypatch):
    """Everything in small blocks with remainders."""
    monkeypatch.setattr(reports, "AT_ONCE", 10)
    monkeypatch.setattr(_blocks, "BLOCK", 7)
    monkeypatch.setattr(_blocks, "QUERIES", 16)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize(
    ("image", "text", "captions"),
    [(IMAGE, TEXT, 1), (IMAGE, CAPTIONS, 5), (IMAGE, TEXT[:40], 1), (IMAGE[:, :1] + 5, TEXT[:, :1] - 5, 1)],
    ids=["pairs", "five captions", "unpaired", "one column"],
)
def test_blocks_agree_with_the_compiled_definitions(monkeypatch, image, text, captions, dtype):
    image, text = image.astype(dtype), text.astype(dtype)
    at_once = obs.report(image, text, temperature=0.07, captions_per_image=captions)
    monkeypatch.setattr(reports, "AT_ONCE", 10)
    monkeypatch.setattr(_blocks, "BLOCK", 7)
    monkeypatch.setattr(_blocks, "QUERIES", 16)
    blocks = obs.report(image, text, temperature=0.07, captions_per_image=captions)
    assert blocks.reasons == at_once.reasons
    assert blocks.samples == {}
    for name in obs.names():
        assert blocks[name] == pytest.approx(at_once[name], rel=1e-12, abs=1e-12, nan_ok=True), name


@pytest.mark.usefixtures("in_blocks")
def test_ties_and_undefined_values_are_those_of_the_definitions():
    rows = np.tile(RNG.normal(size=(1, 17)), (33, 1))
    found = obs.report(rows * np.linspace(0.3, 3, 33)[:, None], rows, only=["matched_fraction", "image_to_text_at_10"])
    assert list(found.values.values()) == [0, 0]
    assert (
        "all rows coincide" in obs.report(rows, rows, only=["relative_modality_gap"]).reasons["relative_modality_gap"]
    )
    opposite = np.concatenate([np.eye(12), -np.eye(12)])
    assert "a centre vanishes" in obs.report(opposite, opposite).reasons["gap_angle"]


def test_factors_keep_small_singular_values():
    """Singular values over twelve decades: from XᵀX those below 1e-8 of the largest would be noise."""
    n, d = 500, 12
    left, right = np.linalg.qr(RNG.normal(size=(n, d)))[0], np.linalg.qr(RNG.normal(size=(d, d)))[0]
    rows = left * np.geomspace(1, 1e-12, d) @ right
    wide = np.concatenate([rows, np.ones((n, 1))], axis=1)  # unit rows keep the spread of the first columns
    unit = _blocks.Rows(wide)
    mean = _blocks.centre(unit)
    found = np.linalg.svd(_blocks.factor(unit, mean), compute_uv=False)
    wanted = np.linalg.svd(unit[:] - mean, compute_uv=False)
    np.testing.assert_allclose(found, wanted, atol=1e-15 * wanted[0])


def test_factor_of_both_modalities_has_the_singular_values_of_the_stack():
    image, text = _blocks.Rows(IMAGE), _blocks.Rows(CAPTIONS)
    centres = [_blocks.centre(rows) for rows in (image, text)]
    factors = [_blocks.factor(rows, c) for rows, c in zip((image, text), centres, strict=True)]
    mean, both = _blocks.factor_of_both(*factors, centres, (60, 300))
    stack = np.concatenate([image[:], text[:]])
    np.testing.assert_allclose(mean, stack.mean(0), atol=1e-15)
    wanted = np.linalg.svd(stack - stack.mean(0), compute_uv=False)
    np.testing.assert_allclose(np.linalg.svd(both, compute_uv=False), wanted, rtol=1e-12)


# --- samples ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many():
    """3,000 pairs that are matched in part."""
    rng = np.random.default_rng(1)
    image = rng.normal(size=(3000, 8)) + 0.4
    return image, image + 0.5 * rng.normal(size=(3000, 8)) - 0.8


@pytest.fixture
def sampled(monkeypatch):
    monkeypatch.setattr(large, "EXACT", 10)
    monkeypatch.setattr(large, "FEWEST", FEW)
    monkeypatch.setattr(large, "AMONG", FEW)


@pytest.mark.usefixtures("sampled")
def test_samples_cover_the_exact_values_and_say_what_they_are(many):
    exact = obs.report(*many, exact=True)
    estimated = [name for name in exact.values if "at_" in name or "uniformity" in name or name == "matched_fraction"]
    estimated.remove("wasserstein_uniformity")
    covered = []
    for seed in range(20):
        found = obs.report(*many, seed=seed, only=estimated)
        assert set(found.samples) == set(estimated)
        for name, sample in found.samples.items():
            assert (sample.rows, sample.of) == (FEW, 3000)
            assert sample.low <= found[name] <= sample.high
            assert sample.high - sample.low < 0.1
            covered.append(sample.low <= exact[name] <= sample.high)
    # 95 % of independent intervals; those of one seed share their queries, and few rows make them wider than needed.
    assert np.mean(covered) > 0.9


@pytest.mark.usefixtures("sampled")
def test_what_a_sample_cannot_say_has_a_reason(many):
    found = obs.report(*many, temperature=0.1)
    assert np.isnan(found["margin"])
    assert "1,000 of 3,000 pairs only bound: it is at most -" in found.reasons["margin"]
    assert "exact=True (--exact)" in found.reasons["doubly_stochastic_defect"]
    assert {"modality_gap", "wasserstein_uniformity", "image_effective_rank"}.isdisjoint(found.samples)
    exact = obs.report(*many, temperature=0.1, exact=True)
    assert exact["margin"] == pytest.approx(obs.margin(*many), abs=1e-13)
    assert exact["doubly_stochastic_defect"] == pytest.approx(obs.doubly_stochastic_defect(*many, 0.1), rel=1e-11)
    assert set(exact.samples) == {"linear_separability"}
    assert "from 1,000 of 3,000 rows; " in repr(found)
    assert json.loads(found.to_json())["samples"]["matched_fraction"]["rows"] == FEW
    assert "[" in found._repr_html_()


@pytest.mark.parametrize("p", [0.001, 0.02, 0.3, 0.9, 0.9995])
def test_intervals_of_fractions_cover(p):
    """At least 95 % of all numbers of hits give an interval with p, by the exact probabilities."""
    rows = 250
    found = [_blocks.sample_of_fraction(hits / rows, rows, 4000) for hits in range(rows + 1)]
    inside = np.array([one.low <= p <= one.high for one in found])
    assert binom.pmf(np.arange(rows + 1), rows, p)[inside].sum() >= 0.95
    assert found[0].low == 0 and found[-1].high == 1


def test_a_search_holds_few_cosines_at_once():
    """Ranks of more queries than one block, in less memory than the cosines of all queries with a block of rows."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(_blocks.BLOCK + 100, 6))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = rng.permutation(len(rows))[: 2 * _blocks.QUERIES + 50]
    queries = rows[chosen] + 0.3 * rng.normal(size=(len(chosen), 6))
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    own = np.einsum("ij,ij->i", queries, rows[chosen])
    search = one_pass.Search(queries, own, chosen, 1, 1e-12)
    tracemalloc.start()
    for start in (0, _blocks.BLOCK):
        block = rows[start : start + _blocks.BLOCK]
        search.add(start, block, block.astype(np.float32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20 < len(queries) * _blocks.BLOCK * 4
    cosines = queries @ rows.T
    cosines[np.arange(len(chosen)), chosen] = -np.inf
    np.testing.assert_array_equal(search.rank, 1 + np.sum(cosines >= own[:, None] - 1e-12, axis=1))
    np.testing.assert_array_equal(search.nearest, cosines.argmax(axis=1))


# --- only, progress, the command line --------------------------------------------------------------------


def test_only_what_is_asked_for():
    whole = obs.report(IMAGE, TEXT)
    found = obs.report(IMAGE, TEXT, only=["margin", "modality_gap"])
    assert found.values == {name: whole[name] for name in ("modality_gap", "margin")}
    for only, said in (
        (["margn"], "Unknown observable 'margn'. Did you mean 'margin'"),
        ([], "names no metric"),
        ("margin", "must be a list of names, but is 'margin'"),
    ):
        with pytest.raises(FlowsimError, match=said):
            obs.report(IMAGE, TEXT, only=only)


@pytest.mark.usefixtures("in_blocks")
def test_progress_names_the_steps():
    said = []
    obs.report(IMAGE, TEXT, only=["matched_fraction"], progress=lambda *told: said.append(told))
    assert said[0] == ("sums", 0, None) and ("matched_fraction", 0, None) in said
    assert ("image to text, queries", 16, 60) in said


def test_measure_takes_names(tmp_path, capsys):
    path = str(tmp_path / "a.npy")
    np.save(path, np.stack([IMAGE, TEXT]).astype(np.float16))
    assert cli.main(["measure", path, "--only", "margin, modality_gap", "--exact", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["values"]) == ["modality_gap", "margin"]
    assert cli.main(["measure", path, "--only", "margn"]) == 2
    assert "Did you mean 'margin'" in capsys.readouterr().err


# --- files and memory ------------------------------------------------------------------------------------


def test_files_are_mapped_in_their_own_dtype(tmp_path):
    np.save(tmp_path / "a.npy", np.stack([IMAGE, TEXT]).astype(np.float16))
    image, text = obs.open_embeddings(tmp_path / "a.npy")
    mapped = image
    while mapped is not None and not isinstance(mapped, np.memmap):
        mapped = mapped.base
    assert isinstance(mapped, np.memmap)
    assert image.dtype == np.float16
    assert np.array_equal(text, TEXT.astype(np.float16))
    bad = np.stack([IMAGE, TEXT])
    bad[1, 50, 3] = np.nan
    np.save(tmp_path / "b.npy", bad)
    with pytest.raises(FlowsimError, match=r"b\.npy: Argument `text` has NaN or infinity \(first at index \(50, 3\)\)"):
        obs.open_embeddings(tmp_path / "b.npy")


#: Peak of a process in GiB, as an expression; ru_maxrss would begin at the size of the process that started it.
PEAK = "int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) / 2**20"
needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc"
)


@needs_proc
@pytest.mark.parametrize("name", ["wasserstein_uniformity", "effective_rank"])
def test_singular_values_need_no_square_matrix(name):
    """20,000 rows in at most 1.5 GiB: the left factor alone, which is not wanted, would take 3 GiB."""
    code = (
        "import numpy as np\n"
        "from flowsim import observables\n"
        "rows = np.random.default_rng(0).normal(size=(2, 20_000, 16))\n"
        f"observables.{name}(*rows)\n"
        f"print({PEAK})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 1.5


@needs_proc
@pytest.mark.slow
def test_a_large_file_fits_into_two_gibibytes(tmp_path):
    """60,000 pairs in 512 dimensions: 0.5 GiB as float64 for each modality, 27 GiB for a matrix of cosines."""
    path = tmp_path / "large.npy"
    out = np.lib.format.open_memmap(path, "w+", np.float16, (2, 60_000, 512))
    rng = np.random.default_rng(0)
    for start in range(0, 60_000, 10_000):
        rows = rng.normal(size=(10_000, 512))
        out[0, start : start + 10_000] = rows + 0.5
        out[1, start : start + 10_000] = rows + 0.5 * rng.normal(size=rows.shape)
    out.flush()
    code = (
        "import sys\n"
        "from flowsim import cli\n"
        f"code = cli.main(['measure', {str(path)!r}, '--json', '--temperature', '0.07'])\n"
        f"print({PEAK}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stderr) < 2
    report = json.loads(done.stdout)
    assert report["samples"]["matched_fraction"]["of"] == 60_000
    assert report["values"]["matched_fraction"] > 0.99


# --- one pass --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("captions", [1, 3])
def test_ranks_in_float32_are_those_of_float64(monkeypatch, captions):
    """Also where cosines differ by less than float32 resolves: twins, near twins, and copies of one row."""
    rng = np.random.default_rng(2)
    image = rng.normal(size=(1500, 6))
    image[500:900] = image[:400] * (1 + 1e-9 * rng.normal(size=(400, 6)))
    image[900:1000] = image[0]
    text = np.repeat(image, captions, axis=0) + 0.3 * rng.normal(size=(1500 * captions, 6))
    text[700 * captions : 800 * captions] = text[:1]
    monkeypatch.setattr(large, "FEWEST", 10_000)  # all queries, by the way of samples
    monkeypatch.setattr(_blocks, "BLOCK", 257)
    names = [name for name in obs.names() if "at_" in name or (name == "matched_fraction" and captions == 1)]
    found = obs.report(image, text, captions_per_image=captions, only=names)
    exact = obs.report(image, text, captions_per_image=captions, only=names, exact=True)
    assert found.values == exact.values and found.samples == {}


@pytest.mark.usefixtures("sampled")
def test_collapsed_rows_rank_last_in_samples(many):
    same = np.tile(many[0][:1], (3000, 1))
    found = obs.report(same, same, only=["image_to_text_at_10", "matched_fraction"])
    assert list(found.values.values()) == [0, 0]


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize("condition", [1, 1e3, 1e12, 0])
def test_factors_from_products_are_exact_enough(condition):
    """Products in float32 where they suffice, in float64 where not; also for rows within a subspace."""
    rng = np.random.default_rng(3)
    scale = np.geomspace(1, 1 / condition, 20) if condition else (np.arange(20) < 12).astype(float)
    rows = rng.normal(size=(2, 5000, 20)) * scale + 0.5 * scale
    names = ["image_effective_rank", "text_effective_rank", "wasserstein_uniformity", "modality_gap"]
    found = obs.report(*rows, only=names)
    for name in names:
        assert found[name] == pytest.approx(getattr(obs, name)(*rows), rel=1e-6, abs=1e-6), name


@pytest.mark.usefixtures("sampled")
@pytest.mark.parametrize(("value", "said"), [(np.nan, "NaN or infinity"), (np.inf, "NaN or infinity"), (0.0, "zeros")])
def test_bad_rows_are_found_in_the_pass(many, monkeypatch, value, said):
    monkeypatch.setattr(_blocks, "BLOCK", 1000)
    for dtype in (np.float16, np.float64):
        text = many[1].astype(dtype)
        text[2345] = value
        with pytest.raises(FlowsimError, match=rf"`text` has .*{said}.*2345"):
            obs.report(many[0], text, only=["linear_separability"])
