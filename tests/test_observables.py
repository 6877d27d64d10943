"""The metrics against known values, plain loops, invariances, published numbers; and every bad input."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

import flowsim.observables as obs
from flowsim.errors import FlowsimError
from flowsim.observables import checks
from flowsim.observables import rows as rows_

ATOL = 1e-12
PAIRED_VECTORS = [n for n in obs.names() if obs.REGISTRY[n].traceable]
UNPAIRED = [n for n in obs.names() if not obs.REGISTRY[n].needs_pairs]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw(seed=0, n=12, d=5, m=None, correlation=1.0):
    """Random rows of any length, images and texts correlated and both off centre."""
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d)) + 0.5
    text = rng.normal(size=(m or n, d)) - 0.2
    if m is None:
        text = text + correlation * image
    return image * rng.uniform(0.1, 9, size=(n, 1)), text


def cones(directions, other, gamma):
    """Exact parallel cones with the last coordinate ±γ."""
    s = np.sqrt(1 - gamma**2)
    column = np.full((len(directions), 1), gamma)
    return np.hstack([s * directions, column]), np.hstack([s * other, -column])


def simplex(n):
    return unit(np.eye(n) - 1 / n)


def value(name, image, text, temperature=0.1):
    o = obs.REGISTRY[name]
    return o.function(image, text, temperature) if o.needs_temperature else o.function(image, text)


# --- independent references: plain loops over rows -------------------------------------------------------


def reference(image, text, tau):
    x, y = unit(image), unit(text)
    n, d = x.shape
    z = np.array([[sum(a * b for a, b in zip(p, q, strict=True)) for q in y] for p in x])
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    cx, cy = sum(x) / n, sum(y) / n
    stack = np.concatenate([x, y])
    cov = np.cov(stack.T)
    mu = stack.mean(0)

    def far(u):
        return np.mean([(1 - u[i] @ u[j]) / 2 for i, j in pairs])

    def uni(u, v, which):
        return np.log(np.mean([np.exp(-2 * np.sum((u[i] - v[j]) ** 2)) for i, j in which]))

    def erank(u):
        p = np.sqrt(np.clip(np.linalg.eigvalsh(np.cov(u.T)), 0, None))
        p = p[p > 1e-12] / p.sum()
        return np.exp(-np.sum(p * np.log(p)))

    dm = np.mean([(1 - z[i, i]) / 2 for i in range(n)])
    p = np.exp(z / tau) / np.exp(z / tau).sum(1)[:, None]
    q = np.exp(z / tau) / np.exp(z / tau).sum(0)[None, :]
    upper = [(i, j) for i, j in pairs if i < j]
    result = {
        "modality_gap": np.sqrt(np.sum((cx - cy) ** 2)),
        "gap_angle": np.degrees(np.arccos(cx @ cy / np.linalg.norm(cx) / np.linalg.norm(cy))),
        "image_centre_norm": np.sqrt(cx @ cx),
        "text_centre_norm": np.sqrt(cy @ cy),
        "pair_distance": np.mean([np.linalg.norm(x[i] - y[i]) for i in range(n)]),
        "mean_pair_cosine": np.mean([z[i, i] for i in range(n)]),
        "relative_modality_gap": dm / (dm + (far(x) + far(y)) / 2),
        "margin": min(min(z[i, i] - z[i, j], z[j, j] - z[i, j]) for i, j in pairs),
        "matched_fraction": np.mean(
            [all(z[i, i] > z[i, j] and z[i, i] > z[j, i] for j in range(n) if j != i) for i in range(n)]
        ),
        "alignment": np.mean([np.sum((x[i] - y[i]) ** 2) for i in range(n)]),
        "image_uniformity": uni(x, x, upper),
        "text_uniformity": uni(y, y, upper),
        "cross_uniformity": uni(x, y, pairs),
        "wasserstein_uniformity": -np.sqrt(mu @ mu + 1 + np.trace(cov) - 2 / np.sqrt(d) * np.trace(sqrtm(cov)).real),
        "image_effective_rank": erank(x),
        "text_effective_rank": erank(y),
        "doubly_stochastic_defect": max(
            max(abs(sum(p[i, j] for i in range(n)) - 1) for j in range(n)),
            max(abs(sum(q[i, j] for j in range(n)) - 1) for i in range(n)),
        ),
    }
    for k in (1, 5, 10):
        forward = [sum(z[i, j] >= z[i, i] for j in range(n)) <= k for i in range(n)]
        backward = [sum(z[j, i] >= z[i, i] for j in range(n)) <= k for i in range(n)]
        result[f"image_to_text_at_{k}"] = np.mean(forward)
        result[f"text_to_image_at_{k}"] = np.mean(backward)
    return result


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PAIRED_VECTORS)
def test_plain_loops_agree(name, seed):
    image, text = draw(seed)
    expected = reference(image, text, 0.1)
    assert set(expected) == set(PAIRED_VECTORS)
    assert value(name, image, text) == pytest.approx(expected[name], abs=1e-11)


@pytest.mark.parametrize("seed", range(3))
def test_retrieval_with_several_captions_agrees_with_plain_loops(seed):
    c, n = 3, 7
    image, text = draw(seed, n=n, m=c * n)
    z = unit(image) @ unit(text).T
    for k in (1, 2, 4):
        forward = [min(sum(z[i] >= z[i, t]) for t in range(c * i, c * i + c)) <= k for i in range(n)]
        backward = [sum(z[:, t] >= z[t // c, t]) <= k for t in range(c * n)]
        found = obs.retrieval_at_k(image, text, k=k, captions_per_image=c)
        assert found == pytest.approx((np.mean(forward), np.mean(backward)), abs=ATOL)


# --- known values ----------------------------------------------------------------------------------------


def test_identical_orthonormal_pairs():
    n = 6
    r = obs.report(np.eye(n), np.eye(n), temperature=0.5)
    assert r["modality_gap"] == r["pair_distance"] == r["alignment"] == r["relative_modality_gap"] == 0
    assert r["gap_angle"] == pytest.approx(0, abs=ATOL)
    assert r["image_centre_norm"] == pytest.approx(1 / np.sqrt(n), abs=ATOL)
    assert r["margin"] == r["matched_fraction"] == r["mean_pair_cosine"] == 1
    assert r["image_to_text_at_1"] == r["text_to_image_at_5"] == 1
    assert r["image_uniformity"] == pytest.approx(-4, abs=ATOL)
    assert r["cross_uniformity"] == pytest.approx(-4, abs=ATOL)
    assert r["image_effective_rank"] == pytest.approx(n - 1, abs=1e-10)
    assert r["doubly_stochastic_defect"] == pytest.approx(0, abs=ATOL)
    assert r["linear_separability"] == 0.5


def test_antipodal_cones_at_the_poles():
    image = np.tile([0.0, 0.0, 3.0], (4, 1))
    r = obs.report(image, -image, temperature=1.0)
    assert r["modality_gap"] == r["pair_distance"] == 2
    assert r["alignment"] == 4
    assert r["gap_angle"] == 180
    assert r["relative_modality_gap"] == 1
    assert r["mean_pair_cosine"] == -1
    assert r["margin"] == r["matched_fraction"] == r["image_to_text_at_1"] == 0
    assert r["image_uniformity"] == 0
    assert r["cross_uniformity"] == pytest.approx(-8, abs=ATOL)
    assert r["image_effective_rank"] == r["text_effective_rank"] == 0
    assert r["linear_separability"] == 1


@pytest.mark.parametrize("n", [2, 6])
def test_simplex(n):
    s = simplex(n)
    assert obs.margin(s, s) == pytest.approx(n / (n - 1), abs=ATOL)
    assert obs.image_uniformity(s, s) == pytest.approx(-4 * n / (n - 1), abs=ATOL)
    assert obs.centre_norms(s, s) == pytest.approx((0, 0), abs=ATOL)
    assert np.isnan(obs.gap_angle(s, s))
    assert obs.doubly_stochastic_defect(s, s, 0.2) == pytest.approx(0, abs=ATOL)


@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.9])
def test_exact_cones_over_a_simplex_have_gap_two_gamma(gamma):
    n = 5
    image, text = cones(simplex(n), simplex(n), gamma)
    assert obs.modality_gap(image, text) == pytest.approx(2 * gamma, abs=ATOL)
    assert obs.pair_distance(image, text) == pytest.approx(2 * gamma, abs=ATOL)
    assert obs.gap_angle(image, text) == pytest.approx(180, abs=1e-6)
    assert obs.margin(image, text) == pytest.approx((1 - gamma**2) * n / (n - 1), abs=ATOL)
    spread = (1 - gamma**2) * n / (n - 1) / 2  # d_II = d_TT; d_m = γ²
    assert obs.relative_modality_gap(image, text) == pytest.approx(gamma**2 / (gamma**2 + spread), abs=ATOL)
    assert obs.linear_separability(image, text) == 1


def test_wasserstein_uniformity_is_zero_for_a_centred_isotropic_stack_up_to_ddof():
    d = 4
    rows = np.vstack([np.eye(d), -np.eye(d)])
    n = 2 * len(rows)
    expected = -np.sqrt(1 + n / (n - 1) - 2 * np.sqrt(n / (n - 1)))
    assert obs.wasserstein_uniformity(rows, rows) == pytest.approx(expected, abs=1e-8)


def test_effective_rank_counts_equal_directions():
    image = np.vstack([np.eye(5)[:2], -np.eye(5)[:2]])
    text = np.vstack([np.eye(5)[:4], -np.eye(5)[:4]])
    assert obs.effective_rank(image, text) == pytest.approx((2, 4), abs=1e-10)


def test_defect_of_one_popular_text():
    """Orthogonal rows against one text that every image prefers: row softmax concentrates in its column."""
    logits = np.zeros((4, 4))
    logits[:, 0] = 1e3
    assert obs.doubly_stochastic_defect(logits=logits) == pytest.approx(3, abs=ATOL)
    assert obs.doubly_stochastic_defect(logits=logits + 1e5) == pytest.approx(3, abs=ATOL)
    assert obs.doubly_stochastic_defect(logits=1e6 * np.eye(3)) == 0


def test_doubly_stochastic_rows_do_not_imply_doubly_stochastic_columns():
    m = np.log(np.array([[0.5, 0.25, 0.25], [0.3, 0.3, 0.4], [0.2, 0.45, 0.35]])) + np.array([[2.0], [0], [-1]])
    assert np.allclose(jax.nn.softmax(m, axis=1).sum(0), 1, atol=1e-6)
    assert obs.doubly_stochastic_defect(logits=m) > 0.1


def test_rows_are_taken_as_they_are_if_asked():
    image, text = draw()
    z = image @ text.T
    assert obs.margin(image, text, normalise=False) == pytest.approx(obs.margin(similarity=z), rel=1e-12)
    np.testing.assert_allclose(
        obs.pair_margins(image, text, normalise=False), obs.pair_margins(similarity=z), rtol=1e-12
    )
    found = obs.doubly_stochastic_defect(image, text, 0.3, normalise=False)
    assert found == pytest.approx(obs.doubly_stochastic_defect(logits=z / 0.3), abs=1e-12)
    assert obs.margin(unit(image), unit(text)) == pytest.approx(obs.margin(image, text), abs=ATOL)


def test_margins_of_pairs():
    rng = np.random.default_rng(3)
    image, text = unit(rng.normal(size=(9, 4))), unit(rng.normal(size=(9, 4)))
    z = image @ text.T
    others = np.where(np.eye(9, dtype=bool), -np.inf, z)
    wanted = np.diag(z) - np.maximum(others.max(0), others.max(1))
    found = obs.pair_margins(image, text)
    np.testing.assert_allclose(found, wanted, rtol=1e-13)
    assert found.min() == pytest.approx(obs.margin(image, text), rel=1e-13)
    assert np.mean(found > 0) == obs.matched_fraction(image, text)


def test_margin_and_matched_fraction_of_similarity_need_no_scale():
    z = np.array([[-5.0, -7.0], [-6.0, -4.0]])
    assert obs.margin(similarity=z) == 1
    assert obs.matched_fraction(similarity=z) == 1
    z[0, 1] = -4.5
    assert obs.margin(similarity=z) == -0.5
    assert obs.matched_fraction(similarity=z) == 0.5
    assert obs.margin(similarity=100 * np.eye(3) + 1000) == 100
    z = np.array([[2, 1, 1], [0, 2, 0], [0, 0, 0]])
    assert obs.matched_fraction(similarity=z) == pytest.approx(2 / 3)


@pytest.mark.parametrize("seed", range(4))
def test_cores_of_a_similarity_agree_with_the_vector_functions(seed):
    image, text = draw(seed)
    z = unit(image) @ unit(text).T
    assert obs.margin(similarity=z) == pytest.approx(obs.margin(image, text), abs=ATOL)
    assert obs.matched_fraction(similarity=z) == obs.matched_fraction(image, text)
    defect = obs.doubly_stochastic_defect(image, text, 0.07)
    assert obs.doubly_stochastic_defect(logits=z / 0.07) == pytest.approx(defect, abs=1e-10)


# --- traps -----------------------------------------------------------------------------------------------


def test_both_directions_are_measured():
    """Every text prefers its image, while every image prefers text 0: only one direction fails."""
    image = unit(np.array([[1.0, 0.0], [1.0, 0.4], [1.0, 0.9]]))
    text = np.array([[1.0, 0.0], [1.0, 0.4], [-0.1, 1.0]])
    z = unit(image) @ unit(text).T
    hits = np.mean(z.argmax(1) == np.arange(3)), np.mean(z.argmax(0) == np.arange(3))
    assert hits[0] != hits[1]
    assert obs.retrieval_at_k(image, text) == pytest.approx(hits)
    assert obs.retrieval_at_k(text, image) == pytest.approx(hits[::-1])
    assert obs.matched_fraction(image, text) == pytest.approx(min(hits))


def test_temperature_divides():
    image, text = draw()
    z = unit(image) @ unit(text).T
    right = obs.doubly_stochastic_defect(logits=z / 0.2)
    assert obs.doubly_stochastic_defect(image, text, 0.2) == pytest.approx(right, abs=1e-10)
    assert abs(right - obs.doubly_stochastic_defect(logits=z * 0.2)) > 0.1


def test_self_similarities_are_excluded():
    """With n = 2 opposite rows the only distance is 2; counting the diagonal would give log((1 + e⁻⁸)/2)."""
    rows = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert obs.image_uniformity(rows, rows) == pytest.approx(-8, abs=ATOL)
    other = np.array([[0.0, 1.0], [0.0, -1.0]])
    # d_m = ½ and d_II = d_TT = 1; with the diagonal they would be ½ and the result ½.
    assert obs.relative_modality_gap(rows, other) == pytest.approx(1 / 3, abs=ATOL)


def test_separability_is_judged_on_rows_it_was_not_fitted_on():
    """In 40 dimensions 2 x 20 random rows can always be separated; held-out accuracy stays near chance."""
    rng = np.random.default_rng(0)
    scores = [obs.linear_separability(*rng.normal(size=(2, 40, 60)), seed=s) for s in range(20)]
    assert abs(np.mean(scores) - 0.5) < 0.06


def test_separability_is_deterministic_and_balanced():
    image, text = draw(3, n=60, m=15)
    assert obs.linear_separability(image, text, seed=4) == obs.linear_separability(image, text, seed=4)
    rng = np.random.default_rng(1)
    scores = [obs.linear_separability(rng.normal(size=(400, 3)), rng.normal(size=(20, 3))) for _ in range(20)]
    assert abs(np.mean(scores) - 0.5) < 0.08  # an unbalanced fit would score .95 by always saying "image"


def test_collapsed_embeddings_do_not_retrieve_by_luck():
    rows = np.tile(np.random.default_rng(0).normal(size=(1, 17)), (33, 1))
    image = rows * np.linspace(0.3, 3, 33)[:, None]
    assert obs.retrieval_at_k(image, rows) == (0, 0)
    assert obs.retrieval_at_k(image, rows, k=32) == (0, 0)
    assert obs.matched_fraction(image, rows) == 0
    assert list(obs.retrieval_ranks(image, rows).image_to_text) == [33] * 33


def test_undefined_values_have_reasons():
    r = obs.report(simplex(6), simplex(6), temperature=0.5)
    assert r.reasons["gap_angle"] == "undefined: a centre vanishes, so it has no direction"
    r = obs.report(np.ones((6, 6)), np.ones((6, 6)), temperature=0.5)
    assert r.reasons["relative_modality_gap"] == "undefined: all rows coincide"


def test_five_captions_count_the_best_and_own_duplicates_do_no_harm():
    image = np.eye(4)
    text = np.repeat(np.eye(4), 5, axis=0)
    assert obs.retrieval_at_k(image, text, captions_per_image=5) == (1, 1)
    text[3::5] = np.eye(4)[[1, 2, 3, 0]]  # one wrong caption for each image
    # That caption ties with the own captions of its true image, and ranks its image behind.
    assert obs.retrieval_at_k(image, text, captions_per_image=5) == (0, pytest.approx(0.8))


# --- invariances -----------------------------------------------------------------------------------------

EXCHANGED = {"image": "text", "text": "image"}


def exchanged(name):
    for a, b in (("image_to_text", "text_to_image"), ("image_", "text_")):
        for p, q in ((a, b), (b, a)):
            if name.startswith(p):
                return name.replace(p, q, 1)
    return name


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_rotation_permutation_scale_and_exchange_leave_the_metrics_alone(seed):
    image, text = draw(seed)
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    order = rng.permutation(12)
    scale = rng.uniform(1e-3, 1e3, size=(12, 1))
    base = obs.report(image, text, temperature=0.3)
    rotated = obs.report(image @ rotation, text @ rotation, temperature=0.3)
    permuted = obs.report(image[order], text[order], temperature=0.3)
    scaled = obs.report(image * scale, text, temperature=0.3)
    swapped = obs.report(text, image, temperature=0.3)
    for name in obs.names():
        assert scaled[name] == pytest.approx(base[name], abs=1e-9), name
        assert swapped[exchanged(name)] == pytest.approx(base[name], abs=1e-9), name
        if name != "linear_separability":  # its random split depends on the order, its fit on rounding
            assert rotated[name] == pytest.approx(base[name], abs=1e-9), name
            assert permuted[name] == pytest.approx(base[name], abs=1e-9), name


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_ranges_and_identities(seed):
    image, text = draw(seed)
    r = obs.report(image, text, temperature=0.3)
    assert 0 <= r["modality_gap"] <= r["pair_distance"] <= 2
    assert r["alignment"] == pytest.approx(2 - 2 * r["mean_pair_cosine"], abs=ATOL)
    assert 0 <= r["relative_modality_gap"] <= 1
    assert (r["margin"] > 0) == (r["matched_fraction"] == 1)
    assert r["matched_fraction"] <= min(r["image_to_text_at_1"], r["text_to_image_at_1"])
    assert -8 <= r["image_uniformity"] <= 0
    assert -8 <= r["cross_uniformity"] <= 0
    assert -1.5 < r["wasserstein_uniformity"] <= 0
    assert 1 <= r["image_effective_rank"] <= 5


def test_fractions_are_correctly_rounded():
    rows = np.eye(49)
    assert obs.matched_fraction(rows, rows) == obs.matched_fraction(similarity=rows) == 1
    assert obs.retrieval_at_k(rows, rows) == (1, 1)


def test_huge_and_tiny_rows_have_a_direction():
    image, text = draw()
    wanted = obs.report(image, text, temperature=0.1)
    for scale, digits in ((1e200, 1e-12), (1.7e308 / np.abs(image).max(), 1e-12), (1e-306, 1e-12), (1e-310, 1e-10)):
        found = obs.report(image * scale, text, temperature=0.1)
        assert obs.modality_gap(image * scale, text) == found["modality_gap"]
        for name in obs.names():
            assert found[name] == pytest.approx(wanted[name], abs=digits), (name, scale)


class Tensor:
    """As much of a torch tensor as is read: on another device, with a gradient, of a dtype that NumPy lacks."""

    def __init__(self, array, dtype="torch.float32", needs_grad=True, here=False):
        self.array, self.dtype, self.needs_grad, self.here = array, dtype, needs_grad, here

    def detach(self):
        return Tensor(self.array, self.dtype, False, self.here)

    def cpu(self):
        return Tensor(self.array, self.dtype, self.needs_grad, True)

    def float(self):
        return Tensor(self.array, "torch.float32", self.needs_grad, self.here)

    def __array__(self, dtype=None, copy=None):
        if self.needs_grad:
            raise RuntimeError("Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead.")
        if not self.here:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")
        if self.dtype == "torch.bfloat16":
            raise TypeError("Got unsupported ScalarType BFloat16")
        return np.asarray(self.array, dtype)


@pytest.mark.parametrize("dtype", ["torch.float32", "torch.bfloat16"])
def test_tensors_with_gradients_and_of_other_dtypes_and_devices(dtype):
    image, text = (a.astype(np.float32) for a in draw())
    wanted, found = obs.report(image, text), obs.report(Tensor(image, dtype), Tensor(text, dtype))
    assert found.values == pytest.approx(wanted.values, nan_ok=True)
    assert checks.real_array("image", Tensor(image, dtype)).dtype == np.float32


def test_real_tensors():
    torch = pytest.importorskip("torch")
    image, text = draw()
    rows = torch.tensor(image, dtype=torch.bfloat16, requires_grad=True), torch.tensor(text, requires_grad=True)
    wanted = obs.report(rows[0].detach().float().numpy(), text)
    assert obs.report(*rows).values == pytest.approx(wanted.values, nan_ok=True)


def test_bfloat16_of_jax():
    image, text = (jnp.asarray(a, jnp.bfloat16) for a in draw())
    wanted = obs.report(np.asarray(image, np.float32), np.asarray(text, np.float32))
    assert obs.report(image, text).values == pytest.approx(wanted.values, nan_ok=True)


# --- blocks, traces and precision ------------------------------------------------------------------------


def test_blocks_agree_with_plain_loops(monkeypatch):
    monkeypatch.setattr(rows_, "BLOCK", 23 * 5)  # blocks of 5 rows and a remainder of 3
    image, text = draw(1, n=23)  # a shape of its own: compiled code is kept by shape
    expected = reference(image, text, 0.1)
    r = obs.report(image, text, temperature=0.1)
    for name in PAIRED_VECTORS:
        assert r[name] == pytest.approx(expected[name], abs=1e-11), name


def test_blocks_equal_the_dense_version(monkeypatch):
    image, text = draw(2, n=9, m=27)
    pairs = draw(3, n=9)

    def compute(x, y, a, b):
        ranks = obs.retrieval_ranks(x, y, captions_per_image=3)
        return ranks, obs.margin(a, b), obs.uniformity(a, b), obs.doubly_stochastic_defect(a, b, 0.07)

    with jax.enable_x64(True):
        dense = jax.jit(compute)(image, text, *pairs)
        monkeypatch.setattr(rows_, "BLOCK", 54)
        blocks = jax.jit(lambda *a: compute(*a))(image, text, *pairs)
    for a, b in zip(jax.tree.leaves(dense), jax.tree.leaves(blocks), strict=True):
        assert np.allclose(a, b, rtol=0, atol=1e-14)


def test_no_square_matrix_at_large_n():
    n = 30_000
    rows = jax.ShapeDtypeStruct((n, 2), jnp.float32)

    def sizes(jaxpr):
        for eqn in jaxpr.eqns:
            yield from (v.aval.size for v in eqn.outvars if hasattr(v.aval, "size"))
            for p in eqn.params.values():
                for inner in p if isinstance(p, tuple | list) else [p]:
                    if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                        yield from sizes(getattr(inner, "jaxpr", inner))

    for name in PAIRED_VECTORS:
        jaxpr = jax.make_jaxpr(lambda a, b, name=name: value(name, a, b))(rows, rows)
        assert max(sizes(jaxpr.jaxpr)) <= max(rows_.BLOCK, 4 * n), name
    small = jax.ShapeDtypeStruct((300, 2), jnp.float32)
    assert max(sizes(jax.make_jaxpr(obs.margin)(small, small).jaxpr)) >= 300 * 300  # the counting counts


def test_jit_and_vmap_agree_with_the_plain_call():
    batch = [draw(s) for s in range(3)]
    images, texts = np.stack([b[0] for b in batch]), np.stack([b[1] for b in batch])

    def everything(a, b):
        return {name: value(name, a, b) for name in PAIRED_VECTORS}

    with jax.enable_x64(True):
        many = jax.jit(jax.vmap(everything))(images, texts)
    single = jax.jit(everything)(images[0].astype(np.float32), texts[0].astype(np.float32))
    for name in PAIRED_VECTORS:
        assert many[name].dtype == jnp.float64
        assert np.asarray(many[name]) == pytest.approx([value(name, *b) for b in batch], abs=1e-11)
        assert single[name].dtype == jnp.float32
        assert float(single[name]) == pytest.approx(value(name, *batch[0]), abs=2e-3)


def test_traced_arguments_of_mixed_kinds():
    image, text = draw()
    f = jax.jit(lambda tau: obs.doubly_stochastic_defect(image, text, tau))
    assert float(f(0.1)) == pytest.approx(obs.doubly_stochastic_defect(image, text, 0.1), rel=1e-4)
    g = jax.jit(lambda a: obs.retrieval_at_k(a, text.astype(np.float16), k=2))(jnp.asarray(image, jnp.bfloat16))
    assert g.image_to_text.dtype == jnp.float32
    constant = jax.jit(lambda a: a * obs.modality_gap(image, text))(jnp.float32(2))  # nothing traced inside
    assert float(constant) == pytest.approx(2 * obs.modality_gap(image, text), rel=1e-6)
    with pytest.raises(FlowsimError, match=r"must be 2-d with samples as rows, but has shape \(5,\)"):
        jax.jit(obs.modality_gap)(image[0], text)
    with pytest.raises(FlowsimError, match="cannot be traced"):
        jax.jit(obs.linear_separability)(image, text)
    assert np.isfinite(jax.grad(lambda a: obs.modality_gap(a, text))(jnp.asarray(image, jnp.float32))).all()


def test_float64_results_in_a_default_32_bit_session_and_no_recompilation():
    """A gap of 2e-9 next to cosines of order one vanishes in float32."""
    code = """
import numpy as np, jax, jax.numpy as jnp
import flowsim.observables as obs
assert not jax.config.jax_enable_x64
h = np.eye(4)[:, :4]
s, g = np.sqrt(1 - 1e-18), 1e-9
x = np.hstack([s * h, np.full((4, 1), g)]); y = np.hstack([s * h, np.full((4, 1), -g)])
assert abs(obs.modality_gap(x, y) / 2e-9 - 1) < 1e-6
assert type(obs.modality_gap(x, y)) is float
assert type(obs.report(x, y).values["margin"]) is float
assert obs.retrieval_ranks(x, y)[0].shape == (4,)
assert abs(obs.doubly_stochastic_defect(x, y, 0.07)) < 1e-15
assert abs(obs.margin(similarity=np.eye(3) / 3) - 1 / 3) < 1e-16
assert abs(obs.mean_pair_cosine(jnp.asarray(x), [[1., 0, 0, 0, 0]] * 4) - 0.25) < 1e-9
assert jnp.ones(2).dtype == jnp.float32
with jax.log_compiles():
    import logging, io
    stream = io.StringIO(); logging.getLogger("jax").addHandler(logging.StreamHandler(stream))
    obs.modality_gap(x + 1, y)
    assert "Compiling" not in stream.getvalue(), stream.getvalue()
"""
    root = str(Path(__file__).parents[1])
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- report ----------------------------------------------------------------------------------------------


def test_report_agrees_with_the_functions_and_covers_the_registry():
    image, text = draw(5)
    r = obs.report(image, text, temperature=0.1, seed=3)
    assert list(r.values) == obs.names()
    assert r.reasons == {}
    assert (r.pairs, r.dim, r.temperature, r.seed) == (12, 5, 0.1, 3)
    for name in PAIRED_VECTORS:
        assert r[name] == pytest.approx(value(name, image, text), abs=1e-12)
        assert type(r[name]) is float
    assert r["linear_separability"] == obs.linear_separability(image, text, seed=3)
    assert r["image_uniformity"] == pytest.approx(obs.uniformity(image, text).image, abs=ATOL)


def test_report_is_readable_and_strict_json():
    r = obs.report(*draw(m=24))
    text = repr(r)
    assert "12 images, 24 texts, dimension 5" in text
    assert text.splitlines()[1].startswith("Needs pairs: image has 12 rows, text 24; row i of both must be a pair, or")
    assert text.count("captions_per_image=2") == 1  # of 15 metrics
    assert len({line.index("  ") for line in text.splitlines()[2:]}) > 1
    assert all(name in text and name in r._repr_html_() for name in obs.names())
    assert "<table>" in r._repr_html_()
    assert "{i<j}" not in r._repr_html_()  # escaped

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads(r.to_json(), parse_constant=refuse)
    assert content["values"]["margin"] is None
    assert content["values"]["modality_gap"] == r["modality_gap"]
    assert content["reasons"]["margin"].startswith("needs pairs")
    assert content["pairs"] is None
    with pytest.raises(FlowsimError, match=r"Unknown observable 'modality_gp'\. Did you mean 'modality_gap'"):
        r["modality_gp"]


def test_unequal_rows_give_the_unpaired_metrics_and_a_reason_for_the_rest():
    image, text = draw(m=24)
    r = obs.report(image, text)
    assert {n for n in obs.names() if n not in r.reasons} == set(UNPAIRED)
    assert all(np.isnan(r[name]) for name in r.reasons)
    assert r.reasons["margin"] == (
        "needs pairs: image has 12 rows, text 24; row i of both must be a pair, or pass captions_per_image=2 "
        "(--captions-per-image 2) if each image has so many"
    )
    for name in UNPAIRED:
        assert r[name] == pytest.approx(value(name, image, text), abs=ATOL)


def test_missing_temperature_and_small_pools_have_reasons():
    r = obs.report(simplex(6), simplex(6))
    assert r.reasons["doubly_stochastic_defect"] == "needs a temperature: pass temperature=τ"
    assert "needs more than 10 candidates, but has 6" in r.reasons["image_to_text_at_10"]
    assert np.isfinite(r["image_to_text_at_5"])


@pytest.mark.parametrize(("n", "c"), [(2, 6), (2, 1), (5, 1), (3, 4), (10, 2), (11, 1)])
def test_recall_is_missing_where_even_the_worst_embeddings_have_it(n, c):
    """Rows that all coincide rank last everywhere: where they succeed, everything does."""
    image, text = draw(1, n=n, m=c * n)
    worst = obs.retrieval_ranks(np.ones((n, 3)), np.ones((c * n, 3)), captions_per_image=c)
    r = obs.report(image, text, captions_per_image=c)
    for k in (1, 5, 10):
        found = obs.retrieval_at_k(image, text, k=k, captions_per_image=c)
        for way in ("image_to_text", "text_to_image"):
            always = bool((getattr(worst, way) <= k).all())
            assert np.isnan(getattr(found, way)) == always
            assert np.isnan(r[f"{way}_at_{k}"]) == always
            if always:
                assert "every query would succeed" in r.reasons[f"{way}_at_{k}"]


def test_report_with_several_captions():
    image, text = draw(n=12, m=24)
    r = obs.report(image, text, captions_per_image=2)
    expected = obs.retrieval_at_k(image, text, k=5, captions_per_image=2)
    assert (r["image_to_text_at_5"], r["text_to_image_at_5"]) == pytest.approx(expected)
    assert r.reasons["pair_distance"].endswith("it takes one text per image, for example text[::2]")
    assert r["modality_gap"] == pytest.approx(obs.modality_gap(image, text))


def test_registry_describes_every_metric():
    for name in obs.names():
        o = obs.REGISTRY[name]
        assert o.name == name
        assert o.symbol
        assert len(o.description) < 90
    for name in ("modality_gap", "retrieval_at_k", "uniformity", "effective_rank", "linear_separability"):
        assert "Normalisation" in getattr(obs, name).__doc__


# --- published numbers -----------------------------------------------------------------------------------


def test_published_clip_features():
    folder = Path(os.environ.get("FLOWSIM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "mind-the-gap" / "features_clip.npy"
    if not path.exists():
        pytest.skip("no public CLIP features: set FLOWSIM_DATA to the folder of mind-the-gap/features_clip.npy")
    r = obs.report(*obs.load_embeddings(path))
    assert (r.pairs, r.dim) == (500, 512)
    assert r["modality_gap"] == pytest.approx(0.8514, abs=6e-5)
    assert r["pair_distance"] == pytest.approx(1.1745, abs=6e-5)
    assert r["mean_pair_cosine"] == pytest.approx(0.3099, abs=6e-5)
    assert r["relative_modality_gap"] == pytest.approx(0.5915, abs=6e-5)
    assert r["gap_angle"] == pytest.approx(72.01, abs=6e-3)
    assert r["wasserstein_uniformity"] == pytest.approx(-0.9835, abs=6e-5)
    assert r["image_to_text_at_1"] == pytest.approx(0.552, abs=1e-9)
    assert r["text_to_image_at_1"] == pytest.approx(0.506, abs=1e-9)
    assert r["linear_separability"] == 1


# --- bad input -------------------------------------------------------------------------------------------

GOOD = np.random.default_rng(0).normal(size=(4, 3))


def changed(index, entry):
    rows = GOOD.copy()
    rows[index] = entry
    return rows


@pytest.mark.parametrize(
    ("image", "text", "match"),
    [
        (GOOD[0], GOOD, r"`image` must be 2-d with samples as rows, but has shape \(3,\)"),
        (GOOD, GOOD[None], r"`text` must be 2-d with samples as rows, but has shape \(1, 4, 3\)"),
        (GOOD, GOOD[:, :2], "`image` has 3 columns and `text` has 2. Use embeddings from one shared space"),
        (changed((1, 2), np.nan), GOOD, r"`image` has NaN or infinity \(first at index \(1, 2\)\)"),
        (GOOD, changed((3, 0), np.inf), r"`text` has NaN or infinity \(first at index \(3, 0\)\)"),
        (changed(2, 0.0), GOOD, r"`image` has 1 row\(s\) of zeros \(first: row 2\)"),
        (GOOD[:1], GOOD[:1], "`image` needs at least 2 rows, but has 1"),
        (GOOD[:, :0], GOOD[:, :0], "`image` needs at least 1 column"),
        (GOOD.astype(complex), GOOD, "`image` must hold real numbers, but has dtype complex128"),
        (GOOD.astype(str), GOOD, "`image` must hold real numbers, but has dtype <U"),
        (GOOD.astype(object), GOOD, "`image` must hold real numbers, but has dtype object"),
        (GOOD > 0, GOOD, "`image` must hold real numbers, but has dtype bool"),
        ([[1.0, 2.0], [1.0]], GOOD, "`image` has rows of different lengths"),
        (None, GOOD, "`image` must hold real numbers, but has dtype object"),
    ],
)
@pytest.mark.parametrize("function", [obs.modality_gap, obs.margin, obs.linear_separability, obs.report])
def test_bad_arrays(function, image, text, match):
    with pytest.raises(FlowsimError, match=match):
        function(image, text)


def test_bad_options():
    with pytest.raises(FlowsimError, match=r"has 4 rows and `text` has 3\. Pass pairs: one text row"):
        obs.margin(GOOD, GOOD[:3])
    with pytest.raises(FlowsimError, match=r"but 6 caption\(s\) per image need 24 text rows"):
        obs.retrieval_at_k(GOOD, GOOD, captions_per_image=6)
    with pytest.raises(FlowsimError, match=r"but 2 caption\(s\) per image need 8 text rows"):
        obs.report(GOOD, GOOD, captions_per_image=2)
    with pytest.raises(FlowsimError, match="`k` must be a whole number of at least 1, but is 0"):
        obs.retrieval_at_k(GOOD, GOOD, k=0)
    with pytest.raises(FlowsimError, match="`captions_per_image` must be a whole number of at least 1"):
        obs.report(GOOD, GOOD, captions_per_image=0)
    with pytest.raises(FlowsimError, match="`seed` must be a whole number of at least 0, but is -1"):
        obs.report(GOOD, GOOD, seed=-1)
    for function in (obs.report, obs.doubly_stochastic_defect):
        with pytest.raises(FlowsimError, match=r"`temperature` must be positive, but is -0\.1"):
            function(GOOD, GOOD, -0.1)
        with pytest.raises(FlowsimError, match="`temperature` must be positive, but is 0"):
            function(GOOD, GOOD, 0)
        with pytest.raises(FlowsimError, match="`temperature` must be one number"):
            function(GOOD, GOOD, np.ones(2))
        for wrong in (np.nan, np.inf, 1e-320):
            with pytest.raises(FlowsimError, match="`temperature` must be finite and at least 1e-300, but is"):
                function(GOOD, GOOD, wrong)
    with pytest.raises(FlowsimError, match=r"`similarity` must be square, but has shape \(4, 3\)"):
        obs.margin(similarity=GOOD)
    with pytest.raises(FlowsimError, match=r"margin needs `image` and `text`, or `similarity`\."):
        obs.margin()
    with pytest.raises(FlowsimError, match="margin needs `image` and `text`, but `text` is missing"):
        obs.margin(GOOD)
    with pytest.raises(FlowsimError, match="takes either `image` and `text`, or `similarity`"):
        obs.matched_fraction(GOOD, GOOD, similarity=np.eye(3))
    with pytest.raises(FlowsimError, match="`image`, `text` and `temperature`, but `temperature` is missing"):
        obs.doubly_stochastic_defect(GOOD, GOOD)
    with pytest.raises(FlowsimError, match="takes either `image`, `text` and `temperature`, or `logits`"):
        obs.doubly_stochastic_defect(temperature=0.1, logits=np.eye(3))
    with pytest.raises(FlowsimError, match="`normalise` must be True or False, but is 1"):
        obs.margin(GOOD, GOOD, normalise=1)


# --- files -----------------------------------------------------------------------------------------------


def test_load_embeddings_reads_both_formats(tmp_path):
    image, text = draw(m=9)
    np.savez(tmp_path / "a.npz", image=image.astype(np.float32), text=text, labels=np.arange(3))
    loaded = obs.load_embeddings(tmp_path / "a.npz")
    assert loaded[0].dtype == np.float64
    assert np.array_equal(loaded[0], image.astype(np.float32))
    assert np.array_equal(loaded[1], text)
    np.savez_compressed(tmp_path / "c.npz", image=image, text=text)
    assert np.array_equal(obs.load_embeddings(tmp_path / "c.npz")[1], text)
    np.save(tmp_path / "b.npy", np.stack([GOOD, 2 * GOOD]))
    assert np.array_equal(obs.load_embeddings(str(tmp_path / "b.npy"))[1], 2 * GOOD)


def write(path, kind):
    if kind == "missing":
        return
    if kind == "directory":
        path.mkdir()
    elif kind == "text":
        path.write_text("0.1, 0.2\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps([GOOD, GOOD]))
    elif kind == "objects":
        np.save(path.open("wb"), np.array([{}, {}], dtype=object), allow_pickle=True)
    elif kind == "objects in npz":
        np.savez(path.open("wb"), image=np.array([{}], dtype=object), text=GOOD)
    elif kind == "shape":
        np.save(path.open("wb"), GOOD)
    elif kind == "keys":
        np.savez(path.open("wb"), a=GOOD, b=GOOD)
    elif kind == "truncated":
        np.save(path.open("wb"), np.stack([GOOD, GOOD]))
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "header":
        np.save(path.open("wb"), np.stack([GOOD, GOOD]))
        path.write_bytes(path.read_bytes().replace(b"'shape'", b"'shopa'"))
    elif kind == "corrupt zip":
        np.savez(path.open("wb"), image=GOOD, text=GOOD)
        content = bytearray(path.read_bytes())
        content[150:200] = bytes(50)
        path.write_bytes(bytes(content))
    elif kind == "half a zip":
        np.savez(path.open("wb"), image=GOOD, text=GOOD)
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "nan":
        np.save(path.open("wb"), np.stack([GOOD, changed((0, 0), np.nan)]))
    elif kind == "columns":
        np.savez(path.open("wb"), image=GOOD, text=GOOD[:, :2])
    elif kind == "strings":
        np.savez(path.open("wb"), image=GOOD.astype(str), text=GOOD)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("missing", "does not exist. Check the path"),
        ("directory", "no pair of images and texts with usual names. It holds nothing"),
        ("text", "is not a NumPy file.*Write it with np.save"),
        ("empty", "is not a NumPy file"),
        ("pickle", "is not a NumPy file"),
        ("objects", "holds pickled Python objects, which are not loaded"),
        ("objects in npz", "holds pickled Python objects, which are not loaded"),
        ("shape", r"holds an array of shape \(4, 3\), not \(2, n, d\)"),
        ("keys", "no pair of images and texts with usual names. It holds a .4, 3. float64, b"),
        ("truncated", "is damaged or of another kind"),
        ("header", "is damaged or of another kind"),
        ("corrupt zip", "is damaged or of another kind"),
        ("half a zip", "is damaged or of another kind"),
        ("nan", r"Argument `text` has NaN or infinity"),
        ("columns", "`image` has 3 columns and `text` has 2"),
        ("strings", "`image` must hold real numbers"),
    ],
)
def test_bad_files_are_named_with_a_cure(tmp_path, kind, match):
    path = tmp_path / "features.npz"
    write(path, kind)
    with pytest.raises(FlowsimError, match=rf"features\.npz.*{match}") as caught:
        obs.load_embeddings(path)
    assert "\n" not in str(caught.value)


def test_unreadable_file(tmp_path, monkeypatch):
    np.save(tmp_path / "f.npy", np.stack([GOOD, GOOD]))

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(FlowsimError, match=r"f\.npy cannot be read: Permission denied"):
        obs.load_embeddings(tmp_path / "f.npy")


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e6])
def test_similarities_that_agree_to_rounding_are_ties(scale):
    """The same answer from rows, from their products, and from the similarity, whatever rounding makes of a tie."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((6, 3))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    rows[1] = rows[0] * (1 + 1e-15) + 1e-16  # twins up to the last digit
    with jax.enable_x64(True):
        for noise in (0.0, 2e-16, -2e-16):
            similarity = scale * (rows @ rows.T)
            similarity[0, 1] += scale * noise
            assert float(obs.margin(similarity=similarity)) == 0
            assert float(obs.matched_fraction(similarity=similarity)) == pytest.approx(4 / 6)
        assert float(obs.margin(rows, rows)) == 0
        assert float(obs.margin(scale * rows, rows, normalise=False)) == 0
        assert float(obs.matched_fraction(rows, rows)) == pytest.approx(4 / 6)
        assert float(obs.matched_fraction(scale * rows, rows, normalise=False)) == pytest.approx(4 / 6)
