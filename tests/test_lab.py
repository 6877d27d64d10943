"""The lab on rows whose answer is known, its metrics against plain loops, and every bad input."""

import json
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.special
import scipy.stats

from flowsim import lab
from flowsim import observables as obs
from flowsim.cli.entry import main
from flowsim.errors import FlowsimError
from flowsim.lab import metrics, running
from flowsim.lab.landscape import SHIFTS, losses, moved
from flowsim.lab.methods import _ledoit_wolf, _procrustes
from flowsim.model.losses import InfoNCE
from flowsim.model.pairing import Targets

#: A landscape of one point.
QUICK = {"temperatures": (), "shifts": ()}


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def directions(n=80, d=8, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def cones(image, text, height):
    """Unit rows at heights ±γ above the directions."""
    s, column = np.sqrt(1 - height**2), np.full((len(image), 1), height)
    return np.hstack([s * image, column]), np.hstack([s * text, -column])


def noisy_pairs(n=120, d=10, seed=0, noise=0.6, offset=0.8):
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(n, d))
    text = image + noise * rng.normal(size=(n, d))
    return unit(image + offset), unit(text - offset)


def orthogonal(d, seed=0):
    return scipy.stats.ortho_group.rvs(d, random_state=seed)


@pytest.fixture(scope="module")
def typical():
    labels = np.arange(120) % 4
    return lab.run(*noisy_pairs(), labels=labels, temperature=0.1, temperatures=(0.05, 0.5))


# --- methods on known rows -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["centre", "common_mean", "project"])
def test_a_pure_offset_is_closed_by_moving_the_means(method):
    h = directions()
    found = lab.run(*cones(h, h, 0.9), methods=[method], **QUICK)
    before, after = found["none"], found[method]
    assert before["modality_gap"] == pytest.approx(1.8, abs=1e-12)
    assert (before["mixed_recall_at_1"], before["own_modality_at_10"]) == (0.0, 1.0)
    assert after["modality_gap"] == pytest.approx(0.0, abs=1e-12)
    assert after["recall_at_1"] == after["mixed_recall_at_1"] == after["mixed_ndcg_at_10"] == 1.0
    assert found.difference(method, "mixed_recall_at_1") == (1.0, 0.0)
    assert found.difference(method, "mixed_recall_at_1").clear


@pytest.mark.parametrize("reflected", [False, True])
def test_a_rotated_copy_is_restored_by_rotation_only(reflected):
    image = unit(np.random.default_rng(1).normal(size=(200, 8)) + 0.7)
    turn = orthogonal(8) @ np.diag([-1.0 if reflected else 1.0, *np.ones(7)])
    found = lab.run(image, image @ turn, methods=["rotate", "centre", "whiten"], **QUICK)
    assert found["rotate"]["recall_at_1"] == found["rotate"]["recall_at_1_noise_0.1"] == 1.0
    assert found["rotate"]["modality_gap"] == pytest.approx(0.0, abs=1e-12)
    assert found["rotate"]["distribution_gap"] == pytest.approx(0.0, abs=1e-7)
    for other in ("none", "centre", "whiten"):
        assert found[other]["recall_at_1"] < 0.3


def test_a_rotation_is_the_identity_where_no_row_tells():
    turned = scipy.linalg.block_diag(orthogonal(3), np.eye(6))
    image = np.zeros((7, 9))
    image[:, :3] = np.random.default_rng(0).normal(size=(7, 3))
    found = _procrustes(image, image @ turned.T)
    np.testing.assert_allclose(found, turned, atol=1e-12)
    # Of all orthogonal maps that are as good for the rows it is the nearest to the identity.
    for seed in range(5):
        other = turned @ scipy.linalg.block_diag(np.eye(3), orthogonal(6, seed))
        assert np.linalg.norm(found - np.eye(9)) < np.linalg.norm(other - np.eye(9))


def test_rotation_is_that_of_scipy():
    image, text = noisy_pairs()
    np.testing.assert_allclose(_procrustes(image, text), scipy.linalg.orthogonal_procrustes(text, image)[0], atol=1e-12)


def test_whitening_makes_the_fitted_covariance_the_identity():
    image, text = noisy_pairs()
    for rows in lab.Whiten(shrinkage=0).fit(image, text)(image, text):
        np.testing.assert_allclose(np.cov(rows.T, bias=True), np.eye(10), atol=1e-10)
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)


def test_whitening_with_full_shrinkage_only_centres():
    pairs = noisy_pairs()
    white, centred = (method.fit(*pairs)(*pairs) for method in (lab.Whiten(shrinkage=1), lab.Centre()))
    for a, b in zip(white, centred, strict=True):
        np.testing.assert_allclose(unit(a), unit(b), atol=1e-12)


def test_whitening_without_shrinkage_drops_directions_without_variance():
    image, text = noisy_pairs(n=8)
    for rows in lab.Whiten(shrinkage=0).fit(image, text)(image, text):
        values = np.linalg.eigvalsh(np.cov(rows.T, bias=True))
        np.testing.assert_allclose(values, [0.0] * 3 + [1.0] * 7, atol=1e-8)


def test_shrinkage_is_that_of_ledoit_and_wolf():
    rows = np.random.default_rng(0).normal(size=(15, 6)) * np.arange(1, 7)
    rows = rows - rows.mean(axis=0)
    s = rows.T @ rows / 15
    m = np.trace(s) / 6
    d2 = np.linalg.norm(s - m * np.eye(6)) ** 2
    b2 = sum(np.linalg.norm(np.outer(row, row) - s) ** 2 for row in rows) / 15**2
    assert _ledoit_wolf(rows, s, m) == pytest.approx(min(b2, d2) / d2, rel=1e-12)


def test_projection_changes_only_the_direction_of_the_gap():
    image, text = noisy_pairs()
    gap = unit((image.mean(axis=0) - text.mean(axis=0))[None])[0]
    for before, after in zip((image, text), lab.Project().fit(image, text)(image, text), strict=True):
        np.testing.assert_allclose(after @ gap, 0, atol=1e-14)
        others = scipy.linalg.null_space(gap[None])
        np.testing.assert_allclose(after @ others, before @ others, atol=1e-14)


def test_standardised_columns_have_unit_variance_and_constant_ones_are_left():
    image, text = noisy_pairs()
    image = np.hstack([image, np.full((120, 1), 0.3)])
    text = np.hstack([text, np.full((120, 1), -0.3)])
    for rows in lab.Standardise().fit(image, text)(image, text):
        np.testing.assert_allclose(rows.mean(axis=0), 0, atol=1e-12)
        np.testing.assert_allclose(rows.std(axis=0), [*np.ones(10), 0], atol=1e-12)


def test_a_method_that_memorises_the_fitted_pairs_scores_at_chance():
    image, text = noisy_pairs(n=400)
    seen = []

    class Memory:
        def fit(self, image, text):
            codes = {row.tobytes(): code for rows in (image, text) for row, code in zip(rows, np.eye(200), strict=True)}
            rng = np.random.default_rng(0)

            def code(rows):
                return np.array([codes.get(row.tobytes(), rng.normal(size=200)) for row in rows])

            def transform(image, text):
                seen.append((image, text))
                return code(image), code(text)

            seen.append((image, text))
            assert obs.retrieval_at_k(*transform(image, text)) == (1.0, 1.0)
            return transform

    memory = Memory()
    found = lab.run(image, text, methods=[memory], **QUICK)
    (name,) = set(found.values) - {"none"}
    assert found[name]["recall_at_10"] < 0.12  # 0.05 by chance
    fitted, judged = (np.hstack(pair) for pair in (seen[0], seen[-1]))
    both = np.vstack([fitted, judged])
    assert len(np.unique(both, axis=0)) == 400
    np.testing.assert_allclose(np.sort(both, axis=0), np.sort(np.hstack([image, text]), axis=0), atol=1e-12)


def test_other_seeds_give_other_halves():
    pairs = noisy_pairs()
    once, again, other = (lab.run(*pairs, methods=["centre"], **QUICK, seed=s) for s in (0, 0, 1))
    assert once.values == again.values
    assert once["centre"]["modality_gap"] != other["centre"]["modality_gap"]


def test_results_do_not_depend_on_the_coordinates():
    image, text = noisy_pairs()
    turn = orthogonal(10)
    methods = [name for name in lab.names() if name != "standardise"]
    a, b = (lab.run(x, y, methods=methods, **QUICK) for x, y in ((image, text), (image @ turn, text @ turn)))
    of_entries = ("int8", "one_bit", "noise")
    for method in methods:
        for metric, value in a[method].items():
            if not any(word in metric for word in of_entries):
                tolerance = 0.03 if metric == "linear_separability" else 1e-9
                assert b[method][metric] == pytest.approx(value, abs=tolerance), (method, metric)


def test_the_length_of_rows_does_not_matter():
    image, text = noisy_pairs()
    sizes = np.random.default_rng(0).uniform(0.1, 10, size=(120, 1))
    a, b = (lab.run(x, text, methods=["centre"], **QUICK) for x in (image, (sizes * image)))
    for metric, value in a["centre"].items():
        assert b["centre"][metric] == pytest.approx(value, abs=1e-9), metric


# --- the landscape ---------------------------------------------------------------------------------------


def test_the_landscape_of_matched_cones_has_its_minimum_where_the_means_meet():
    h = directions(60, 20)
    found = lab.run(*cones(h, h, 0.5), methods=["shift"], temperatures=(0.05, 0.2, 1.0))
    for row in found.landscape.rows():
        assert row["best_shift"] == 1.0
        assert row["modality_gap"] == pytest.approx(0.0, abs=1e-12)
        assert row["loss"] < row["loss_without_shift"]
        assert (row["change_of_recall_at_1"], row["at_the_edge"]) == (0.0, False)
    assert found["shift"]["modality_gap"] == pytest.approx(0.0, abs=1e-12)


def test_the_landscape_finds_a_minimum_at_a_known_shift():
    """Of cones only β(1 − γ²) counts, so with some wrong pairs a temperature has its minimum at a known height."""
    h = directions(40, 12)
    wrong = np.arange(40)
    wrong[:6] = np.roll(wrong[:6], 1)
    z, height, wanted = h @ h[wrong].T, 0.6, 0.4

    def loss(beta):
        return float(InfoNCE().value(jnp.asarray(beta * z, jnp.float32), Targets(None, None)))

    best = scipy.optimize.minimize_scalar(loss, bounds=(0.1, 100), method="bounded").x  # pyright: ignore
    left = (height * (1 - wanted)) ** 2 / (1 - height**2)  # (γ/s)² after the shift
    tau = 1 / (best * (1 + left))
    image, text = cones(h, h[wrong], height)
    gap = np.zeros(13)
    gap[-1] = 2 * height
    curve = losses(image, text, gap, SHIFTS, (tau,))[0]
    assert SHIFTS[int(np.argmin(curve))] == wanted
    # The same height on the other side is as good.
    assert curve[SHIFTS.index(2 - wanted)] == pytest.approx(curve.min(), rel=1e-9)


def test_losses_are_those_of_the_shifted_rows():
    image, text = noisy_pairs(n=30)
    gap = image.mean(axis=0) - text.mean(axis=0)
    found = losses(image, text, gap, (0.0, 0.5), (0.1, 1.0))
    for k, shift in enumerate((0.0, 0.5)):
        x, y = (unit(rows) for rows in moved(image, text, shift * gap))
        for i, tau in enumerate((0.1, 1.0)):
            logits = x @ y.T / tau
            both = [np.trace(scipy.special.log_softmax(logits, axis=axis)) for axis in (0, 1)]
            assert found[i, k] == pytest.approx(-sum(both) / 60, rel=1e-12)


def test_the_shift_of_the_table_uses_the_temperature_of_the_run():
    pairs = noisy_pairs(noise=1.0, offset=0.5)
    gaps = []
    for tau in (0.02, 1.0):
        found = lab.run(*pairs, methods=["shift", lab.Shift(temperature=1.0)], temperature=tau, **QUICK)
        gaps.append(found["shift"]["modality_gap"])
        own = found["Shift(temperature=1.0)"]["modality_gap"]
    assert gaps[0] > gaps[1] == own


# --- metrics against plain loops -------------------------------------------------------------------------


def test_mixed_retrieval_against_loops():
    image, text = noisy_pairs(n=30)
    labels = np.arange(30) % 3 - 1
    found = lab.mixed_retrieval(3 * image, text, labels)
    rows, classes = np.vstack([image, text]), np.tile(labels, 2)
    for q in range(60):
        cosines = sorted(((rows[q] @ rows[j], j) for j in range(60) if j != q), reverse=True)
        order = [j for _, j in cosines]
        place = (q % 30, q // 30)
        assert found.rank[place] == 1 + order.index((q + 30) % 60)
        assert found.own_modality[place] == pytest.approx(np.mean([j // 30 == q // 30 for j in order[:10]]))
        if classes[q] < 0:
            assert np.isnan(found.same_class[place])
        else:
            assert found.same_class[place] == pytest.approx(np.mean([classes[j] == classes[q] for j in order[:10]]))
    some = lab.mixed_retrieval(image, text, labels, queries=[3, 7])
    np.testing.assert_array_equal(some.rank, found.rank[[3, 7]])


def test_copies_rank_behind_each_other():
    image = np.tile(directions(10), (2, 1))
    found = lab.mixed_retrieval(image, image)
    np.testing.assert_array_equal(found.rank, 3)  # a copy of each modality and the partner are at the same place


def test_ranks_are_those_of_the_observable():
    image, text = noisy_pairs(noise=2.0)
    expected = obs.retrieval_ranks(image, text)
    for found, wanted in zip(metrics.ranks(image, text, np.arange(5, 50)), expected, strict=True):
        np.testing.assert_array_equal(found, np.asarray(wanted)[5:50])
    recall = obs.retrieval_at_k(image, text)
    assert metrics.first_hits(image, text, np.arange(120)).mean() == pytest.approx(np.mean(recall), abs=1e-12)


@pytest.mark.parametrize("n", [6, 40])
def test_the_distribution_gap_against_matrix_roots(n):
    image, text = noisy_pairs(n=n)
    text = text * np.arange(1, 11)
    a, b = np.cov(image.T), np.cov(unit(text).T)
    root = scipy.linalg.sqrtm(
        scipy.linalg.sqrtm(a + 1e-14 * np.eye(10)) @ b @ scipy.linalg.sqrtm(a + 1e-14 * np.eye(10))
    )
    expected = np.sqrt(np.trace(a) + np.trace(b) - 2 * np.trace(root).real)
    assert lab.distribution_gap(image, text) == pytest.approx(expected, abs=1e-5)


def test_the_distribution_gap_is_blind_to_means_and_sees_shape():
    h = directions()
    assert lab.distribution_gap(*cones(h, h, 0.5)) == pytest.approx(0, abs=1e-7)
    assert lab.distribution_gap(h, h @ orthogonal(8)) > 0.02
    image, text = noisy_pairs(n=1000, offset=0.0, noise=0.0)
    same = np.random.default_rng(1).permutation(1000)
    rows = metrics.frechet(image[same[:500]], text[same[500:]])
    chance = metrics.distribution_gap_by_chance(image[same[:500]], text[same[500:]], seed=0)
    assert rows == pytest.approx(chance, rel=0.15)


def test_the_gap_by_chance_is_what_centring_leaves():
    squares = []
    for seed in range(12):
        pairs = noisy_pairs(n=120, d=60, seed=seed, offset=0.2)
        values = lab.run(*pairs, methods=["centre"], **QUICK)["centre"]
        squares.append((values["modality_gap"] ** 2, values["modality_gap_by_chance"] ** 2))
    left, chance = np.mean(squares, axis=0)
    assert left == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize("name", ["modality_gap", "relative_modality_gap"])
def test_contributions_to_gaps_are_jackknife_pseudo_values(name):
    image, text = noisy_pairs(n=12)
    function = getattr(obs, name)
    found = {"modality_gap": metrics.gap_contributions, "relative_modality_gap": metrics.relative_gap_contributions}
    whole = function(image, text)
    expected = [12 * whole - 11 * function(np.delete(image, i, 0), np.delete(text, i, 0)) for i in range(12)]
    np.testing.assert_allclose(found[name](image, text), expected, atol=1e-10)


def test_standard_errors_are_paired_and_agree_with_a_bootstrap():
    pairs = noisy_pairs(n=600, noise=1.2)
    found = lab.run(*pairs, methods=["centre"], **QUICK)
    order = np.random.default_rng(0).permutation(600)
    (fx, fy), (x, y) = ([rows[part] for rows in pairs] for part in (order[:300], order[300:]))
    cx, cy = unit(x - fx.mean(axis=0)), unit(y - fy.mean(axis=0))
    hits = [np.mean([np.asarray(r) <= 1 for r in obs.retrieval_ranks(*rows)], axis=0) for rows in ((x, y), (cx, cy))]
    change = hits[1] - hits[0]
    assert found.difference("centre", "recall_at_1") == pytest.approx((change.mean(), change.std(ddof=1) / 300**0.5))
    rng, gaps = np.random.default_rng(1), []
    for _ in range(500):
        drawn = rng.integers(300, size=300)
        gaps.append(np.linalg.norm((cx - cy)[drawn].mean(0)) - np.linalg.norm((x - y)[drawn].mean(0)))
    assert found.difference("centre", "modality_gap").standard_error == pytest.approx(np.std(gaps), rel=0.15)
    assert found.standard_error("centre", "recall_at_1") == pytest.approx(hits[1].std(ddof=1) / 300**0.5)
    assert np.isnan(found.difference("centre", "loss").standard_error)
    assert not found.difference("centre", "loss").clear


def test_values_are_those_of_the_observables():
    pairs = noisy_pairs()
    found = lab.run(*pairs, methods=["none"], **QUICK, temperature=0.2)["none"]
    order = np.random.default_rng(0).permutation(120)[60:]
    image, text = (rows[order] for rows in pairs)
    report = obs.report(image, text)
    shared = set(found) & set(report.values)
    assert len(shared) == 9  # two gaps, separability and six recalls
    for name in shared:
        assert found[name] == pytest.approx(report[name], abs=1e-12), name
    assert found["recall_at_1_int8"] == pytest.approx(
        np.mean(obs.retrieval_at_k(*(np.rint(127 * r / np.abs(r).max(1, keepdims=True)) for r in (image, text))))
    )
    assert found["recall_at_1_one_bit"] == pytest.approx(
        np.mean(obs.retrieval_at_k(*(np.where(r >= 0, 1.0, -1.0) for r in (image, text))))
    )


def test_noise_has_the_stated_size():
    rows = directions(2000, 50)
    change = metrics.noisy(rows, 0.3, 0, 0) - rows
    assert np.sqrt(np.mean(np.sum(change**2, axis=1))) == pytest.approx(0.3, rel=0.01)
    assert abs(np.mean(np.sum(change * rows, axis=1))) < 0.01


# --- labels ----------------------------------------------------------------------------------------------


def labelled(seed=0):
    """Pairs around four class directions; the images have an offset towards one of them."""
    rng = np.random.default_rng(seed)
    centres = np.eye(4, 6)
    labels = rng.integers(4, size=200)
    image = centres[labels] + 0.05 * rng.normal(size=(200, 6)) + 1.5 * centres[1]
    offset = np.array([0.0, 0, 0, 0, 1, 0])
    text = centres[labels] + 0.05 * rng.normal(size=(200, 6)) + offset
    return image, text, labels, centres + offset


def test_zero_shot_takes_class_texts_through_the_method():
    image, text, labels, classes = labelled()
    found = lab.run(image, text, labels=labels, class_text=classes, methods=["centre"], **QUICK)
    order = np.random.default_rng(0).permutation(200)[100:]
    nearest = np.argmax(unit(image[order]) @ unit(classes).T, axis=1)
    assert found["none"]["zero_shot"] == pytest.approx(np.mean(nearest == labels[order]))
    assert found["none"]["zero_shot"] < 0.6 < 0.9 < found["centre"]["zero_shot"]
    change = found.difference("centre", "zero_shot")
    assert change.clear and change.value > 0
    assert "zero-shot" in repr(found)


def test_without_class_texts_a_class_is_the_mean_of_its_fitted_texts():
    image, text, labels, _ = labelled()
    labels = np.where(np.arange(200) % 10 == 0, -1, labels)
    found = lab.run(image, text, labels=labels, methods=["none"], **QUICK)
    order = np.random.default_rng(0).permutation(200)
    fit, judge = order[:100], order[100:]
    means = unit(np.array([unit(text[fit])[labels[fit] == k].mean(axis=0) for k in range(4)]))
    known = labels[judge] >= 0
    guess = np.argmax(unit(image[judge]) @ means.T, axis=1)
    assert found["none"]["zero_shot"] == pytest.approx(np.mean((guess == labels[judge])[known]))
    assert any("mean of the fitted texts" in note for note in found.notes)


def test_labels_may_be_names_or_numbers_of_any_range():
    image, text, labels, classes = labelled()
    names = np.array(["ant", "bee", "cat", "dog"])
    labels = np.where(np.arange(200) % 10 == 0, -1, labels)
    words = np.where(labels >= 0, names[labels], "")
    runs = [
        lab.run(image, text, labels=given, classes=of, class_text=rows, methods=["none"], **QUICK)["none"]
        for given, of, rows in (
            (labels.astype(float), None, classes), (words, list(names), classes),
            (words.astype(object), names.tolist(), classes),
            (labels, None, None), (words, None, None), (np.where(labels >= 0, 7 * labels + 100, -5), None, None),
        )
    ]  # fmt: skip
    assert len({run["zero_shot"] for run in runs[:3]}) == len({run["zero_shot"] for run in runs[3:]}) == 1
    assert len({run["same_class_at_10"] for run in runs}) == 1


def test_classes_without_fitted_texts_are_left_out():
    image, text, labels, _ = labelled()
    order = np.random.default_rng(0).permutation(200)
    labels[order[150]] = 9  # only among the judged
    found = lab.run(image, text, labels=labels, methods=["none"], **QUICK)
    assert np.isnan(found.contributions["none"]["zero_shot"]).sum() == 1


# --- the result ------------------------------------------------------------------------------------------


def test_the_table_marks_what_exceeds_its_error(typical):
    text = repr(typical)
    assert text.startswith("Lab: 60 pairs fitted, 60 other pairs judged, dimension 10, temperature 0.1, seed 0")
    assert max(map(len, text.splitlines())) <= 120
    change = typical.difference("centre", "modality_gap")
    assert change.clear and change.value < 0
    assert f"{typical['centre']['modality_gap']:.3f}−" in text
    assert f"{typical['none']['modality_gap']:.3f}−" not in text
    assert set(typical.values) == set(lab.names())
    assert set(typical["none"]) == set(typical["whiten"])
    page = typical._repr_html_()
    assert page.count("<table>") == 5 and "common_mean" in page and "<th" in page


def test_data_of_the_result(typical):
    held = json.loads(typical.to_json())
    assert held["methods"]["centre"]["values"]["modality_gap"] == typical["centre"]["modality_gap"]
    assert held["methods"]["centre"]["differences"]["recall_at_1"]["value"] == pytest.approx(
        typical.difference("centre", "recall_at_1").value
    )
    assert all(one["description"] for one in held["methods"].values())
    assert held["landscape"]["temperatures"] == [0.05, 0.1, 0.5]
    data = typical.to_xarray()
    assert data["modality_gap"].sel(transform="rotate").item() == typical["rotate"]["modality_gap"]
    assert data["landscape_loss"].dims == ("temperature", "shift")
    assert data["recall_at_1_standard_error"].sel(transform="none").item() == 0
    with pytest.raises(FlowsimError, match="Did you mean 'centre'"):
        typical["center"]
    with pytest.raises(FlowsimError, match="Unknown metric of this lab 'recall'"):
        typical.difference("centre", "recall")
    with pytest.raises(FlowsimError, match="Unknown metric of this lab 'recall'"):
        typical.standard_error("centre", "recall")


def test_the_figure_shows_every_method_and_the_landscape(typical, tmp_path):
    import matplotlib.pyplot as plt

    figure = typical.plot()
    first, _, landscape, along = figure.axes
    assert len(first.containers) == len(typical.values)
    drawn = {tuple(np.ravel(bars[0].get_xydata())) for bars in first.containers}
    assert (typical["rotate"]["modality_gap"], typical["rotate"]["recall_at_1"]) in drawn
    minima = [line.get_xdata()[0] for line in landscape.lines if len(line.get_xdata()) == 1]
    assert minima == [row["best_shift"] for row in typical.landscape.rows()]
    np.testing.assert_array_equal(along.lines[0].get_ydata(), typical.landscape.recall_at_1)
    assert typical.save(tmp_path / "lab.png").stat().st_size > 20_000
    plt.close("all")


def test_a_closed_gap_can_be_drawn():
    import matplotlib.pyplot as plt

    h = directions(40)
    lab.run(*cones(h, h, 0.9), methods=["centre"], **QUICK).plot()
    plt.close("all")


def test_large_inputs_are_sampled_and_said(monkeypatch):
    monkeypatch.setattr(running, "MOST", 100)
    monkeypatch.setattr(running, "QUERIES", 20)
    found = lab.run(*noisy_pairs(n=300), methods=["centre"], **QUICK)
    assert (found.pairs, found.fitted, found.judged) == (300, 50, 50)
    assert len(found.contributions["centre"]["recall_at_1"]) == 20
    assert "A random sample of 100 of the 300 pairs is used." in repr(found)
    assert "20 of the 50 judged pairs are queries" in repr(found)


def test_copies_and_few_pairs_are_said():
    image, text = noisy_pairs(n=30, d=40)
    notes = lab.run(image, text, methods=["none"], **QUICK).notes
    assert notes == ("Fitted on 15 pairs in 40 dimensions: covariances and rotations are uncertain.",)
    order = np.random.default_rng(0).permutation(30)
    image[order[15:20]] = image[order[15]]
    notes = lab.run(image, text, methods=["none"], **QUICK).notes
    assert "4 judged images and 0 judged texts are copies of others, whose pairs cannot be told apart." in notes


# --- methods of users ------------------------------------------------------------------------------------


def test_a_method_of_a_user():
    try:

        @lab.register("half_way")
        class HalfWay:
            """Halve the gap."""

            def fit(self, image, text):
                step = (image.mean(axis=0) - text.mean(axis=0)) / 4
                return lambda image, text: (image - step, text + step)

        assert lab.names()[-1] == "half_way"
        found = lab.run(*noisy_pairs(), methods=["half_way", "common_mean"], **QUICK)
        assert list(found.values) == ["none", "half_way", "common_mean"]
        gaps = [found[name]["modality_gap"] for name in found.values]
        assert gaps == sorted(gaps, reverse=True)[:1] + gaps[1:] and gaps[0] > gaps[1] > gaps[2]
        assert found.methods["half_way"] == "Halve the gap."
    finally:
        lab.REGISTRY.remove("half_way")
    with pytest.raises(FlowsimError, match="Unknown method 'half_way'"):
        lab.run(*noisy_pairs(), methods=["half_way"])


def test_settings_of_a_method_have_names_of_their_own():
    found = lab.run(*noisy_pairs(), methods=[lab.Whiten(), lab.Whiten(0.5), lab.Rotate(True)], **QUICK)
    assert list(found.values) == ["none", "whiten", "Whiten(shrinkage=0.5)", "centre_rotate"]


def test_methods_cannot_change_the_rows_of_others():
    class Greedy:
        def fit(self, image, text):
            image *= 0

            def transform(image, text):
                image += 1
                text += 1
                return image, text

            return transform

    pairs = noisy_pairs()
    found = lab.run(*pairs, methods=[Greedy(), "centre"], **QUICK)
    assert found["centre"] == lab.run(*pairs, methods=["centre"], **QUICK)["centre"]


@pytest.mark.parametrize(
    ("transform", "match"),
    [
        (lambda x, y: x, "must return .image, text., but returned ndarray"),
        (lambda x, y: (x * 0, y), "leaves 60 image row.s. at zero"),
        (lambda x, y: (x, y * np.nan), "NaN or infinity"),
        (lambda x, y: (x[1:], y), "into shape .59, 10."),
        (lambda x, y: (x[:, 1:], y), "gives images 9 columns and texts 10"),
        (lambda x, y: (x, y.astype(str)), "must hold real numbers"),
    ],
)
def test_a_transform_that_returns_no_rows_is_refused(transform, match):
    class Wrong:
        def fit(self, image, text):
            return transform

    with pytest.raises(FlowsimError, match=match):
        lab.run(*noisy_pairs(), methods=[Wrong()])


def test_collapsed_rows_are_refused_with_the_method():
    rows = np.tile([[0.6, 0.8]], (40, 1))
    found = lab.run(rows, rows, methods=["none"], **QUICK)
    assert np.isnan(found["none"]["relative_modality_gap"]) and "–" in repr(found)
    assert json.loads(found.to_json())["methods"]["none"]["values"]["relative_modality_gap"] is None
    with pytest.raises(FlowsimError, match="Method 'centre' leaves 20 image row.s. at zero"):
        lab.run(rows, rows, methods=["centre"], **QUICK)


# --- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"text": np.ones((119, 10))}, "`image` has 120 rows and `text` has 119. Pass pairs"),
        ({"text": np.ones((120, 9))}, "from one shared space"),
        ({"image": np.ones((4, 10)), "text": np.ones((4, 10))}, "at least 24 pairs, half of them to judge, but got 4"),
        ({"image": np.full((120, 10), np.nan)}, "NaN or infinity"),
        ({"image": np.zeros((120, 10))}, "rows of zeros|row.s. of zeros"),
        ({"image": "rows"}, "must hold real numbers"),
        ({"temperature": 0.0}, "`temperature` must be at least 0.0001, but is 0"),
        ({"temperature": -1.0}, "`temperature` must be at least 0.0001"),
        ({"temperatures": (0.1, float("nan"))}, "`temperatures` must be at least"),
        ({"shifts": (0.0, np.inf)}, "`shifts` must be finite"),
        ({"seed": -1}, "`seed` must be a whole number"),
        ({"methods": ["center"]}, "Unknown method 'center'. Did you mean 'centre'"),
        ({"methods": [lab.Whiten]}, "must be a name or an object with `fit`"),
        ({"labels": np.zeros(5, int)}, "of shape .5,. and dtype int64"),
        ({"labels": np.full(120, 0.5)}, "must be whole numbers or names"),
        ({"labels": np.full(120, np.nan)}, "must be whole numbers or names"),
        ({"labels": np.zeros(120, int)}, "fewer than two classes"),
        ({"labels": np.arange(120), "class_text": np.ones((3, 10))}, "class 119, but there are 3 classes"),
        ({"labels": np.arange(120) % 3, "class_text": np.ones((3, 9))}, "`class_text` must hold a row of 10 numbers"),
        ({"labels": np.arange(120) % 3, "class_text": np.zeros((3, 10))}, "not all zero"),
        ({"labels": np.arange(120) % 3, "class_text": np.ones((3, 10)), "classes": ["a"]}, "There are 1 `classes`"),
        ({"labels": ["a", "b"] * 60, "class_text": np.ones((3, 10))}, "need `classes`"),
        ({"labels": ["ant", "bee"] * 60, "classes": ["ant", "been"]}, "Unknown class 'bee'. Did you mean 'been'"),
        ({"class_text": np.ones((3, 10))}, "need `labels`"),
        ({"classes": ["a", "b"]}, "need `labels`"),
        ({"labels": np.arange(120) % 3, "classes": "cat"}, "`classes` must be a list of names, but is 'cat'"),
    ],
)
def test_bad_input_is_refused(change, match):
    image, text = noisy_pairs()
    with pytest.raises(FlowsimError, match=match):
        lab.run(**({"image": image, "text": text} | change))


def test_mixed_retrieval_refuses_bad_input():
    image, text = noisy_pairs(n=6)
    assert lab.mixed_retrieval(image, text).rank.shape == (6, 2)
    with pytest.raises(FlowsimError, match="needs at least 6 pairs, but got 5"):
        lab.mixed_retrieval(image[:5], text[:5])
    with pytest.raises(FlowsimError, match="`labels` must be 6 whole numbers"):
        lab.mixed_retrieval(image, text, np.arange(5))
    with pytest.raises(FlowsimError, match="`image` has 6 rows and `text` has 5"):
        lab.mixed_retrieval(image, text[:5])
    with pytest.raises(FlowsimError, match="from one shared space"):
        lab.distribution_gap(image, text[:, 1:])


@pytest.mark.parametrize("shrinkage", [-0.1, 1.5, np.nan])
def test_shrinkage_is_a_fraction(shrinkage):
    with pytest.raises(FlowsimError, match="`shrinkage` must be"):
        lab.Whiten(shrinkage)


@pytest.mark.parametrize(
    ("name", "made", "match"),
    [
        ("centre", lab.Centre, "already has a method named 'centre'"),
        ("a,b", lab.Centre, "without commas and blanks"),
        ("", lab.Centre, "without commas and blanks"),
        ("mine", object, "'mine' has no `fit`"),
    ],
)
def test_registration_is_checked(name, made, match):
    class Own(made):
        pass

    with pytest.raises(FlowsimError, match=match):
        lab.register(name)(Own)


# --- published features ----------------------------------------------------------------------------------


def test_clip_has_the_landscape_of_liang_et_al():
    folder = Path(os.environ.get("FLOWSIM_DATA", Path(__file__).parents[2] / "shared" / "data"))
    path = folder / "mind-the-gap" / "features_clip.npy"
    if not path.exists():
        pytest.skip("no public CLIP features: set FLOWSIM_DATA to the folder of mind-the-gap/features_clip.npy")
    found = lab.run(*obs.load_embeddings(path), methods=["centre", "common_mean"])
    best = {row["temperature"]: row["best_shift"] for row in found.landscape.rows()}
    # At the trained temperature the loss is lowest at the gap as it is, at high ones where it is closed.
    assert abs(best[0.01]) <= 0.1 and best[1.0] == pytest.approx(1.0, abs=0.1)
    assert list(best.values()) == sorted(best.values())
    assert found["none"]["mixed_recall_at_10"] == 0 and found["centre"]["mixed_recall_at_10"] > 0.4
    assert found.difference("common_mean", "recall_at_1").clear


# --- the command line ------------------------------------------------------------------------------------


def command(*argv):
    return main(["lab", *map(str, argv)])


def test_the_command_prints_table_json_and_figure(tmp_path, capsys):
    image, text = noisy_pairs()
    classes = {"labels": np.arange(120) % 4, "class_text": np.eye(4, 10)}
    np.savez(tmp_path / "a.npz", image=image, text=text, **classes)
    arguments = (tmp_path / "a.npz", "--methods", "centre, rotate", "--temperature", "0.1", "--seed", "3")
    assert command(*arguments, "--out", tmp_path / "lab.png") == 0
    shown = capsys.readouterr()
    expected = lab.run(image, text, methods=["centre", "rotate"], temperature=0.1, seed=3, **classes)
    assert shown.out.strip() == repr(expected).strip()
    assert (tmp_path / "lab.png").is_file() and "Saved" in shown.err
    assert command(*arguments, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(expected.to_json())


def test_the_command_takes_the_first_of_several_captions(tmp_path, capsys):
    image, text = noisy_pairs()
    np.savez(tmp_path / "a.npz", image=image, text=np.repeat(text, 2, axis=0))
    assert command(tmp_path / "a.npz") == 2
    assert "240 texts, not 1 for each of 120 images. Use --captions-per-image 2" in capsys.readouterr().err
    assert command(tmp_path / "a.npz", "--captions-per-image", "2", "--methods", "centre", "--json") == 0
    found = json.loads(capsys.readouterr().out)["methods"]["centre"]["values"]
    assert found["recall_at_1"] == lab.run(image, text, methods=["centre"], **QUICK)["centre"]["recall_at_1"]


def test_the_command_reads_what_measure_reads(tmp_path, capsys):
    image, text = noisy_pairs()
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "text.npy", text)
    np.savez(tmp_path / "odd.npz", rows_a=image, rows_b=np.stack([text, image], axis=1))
    ways = (
        (tmp_path / "image.npy", tmp_path / "text.npy"),
        (tmp_path / "odd.npz", "--image", "rows_a", "--text", "rows_b"),  # two captions of each image
    )
    for argv in ways:
        assert command(*argv, "--methods", "centre", "--json") == 0
        found = json.loads(capsys.readouterr().out)["methods"]["centre"]["values"]
        assert found["recall_at_1"] == lab.run(image, text, methods=["centre"], **QUICK)["centre"]["recall_at_1"]


def test_the_command_refuses_bad_input(tmp_path, capsys):
    image, text = noisy_pairs()
    np.savez(tmp_path / "a.npz", image=image, text=text)
    for argv, sentence in (
        ((), "takes one FILE, or one of images and one of texts, but got 0"),
        ((tmp_path / "none.npz",), "does not exist"),
        ((tmp_path / "a.npz", "--out", "a.gif"), "takes a .png or .pdf or .svg file"),
        ((tmp_path / "a.npz", "--methods", "center"), "Unknown method 'center'. Did you mean 'centre'"),
        ((tmp_path / "a.npz", "--temperature", "0"), "Option `--temperature` must be at least 0.0001, but is 0"),
        ((tmp_path / "a.npz", "--captions-per-image", "0"), "not 0 for each of 120 images"),
    ):
        assert command(*argv) == 2
        assert sentence in capsys.readouterr().err


def test_the_gap_by_chance_does_not_contain_the_gap():
    """A gap along an axis of its own leaves the deviations from the means as they are, but for the scale to unit rows.

    Rows (x, c)/√(1 + c²) and (y, −c)/√(1 + c²) have 1/√(1 + c²) of the gap by chance that x and y have.
    """
    image, text = noisy_pairs(n=200, d=12, offset=0.0)
    found = {}
    for c in (0.0, 1.0):
        pairs = [np.insert(rows, 0, side, axis=1) for rows, side in ((image, c), (text, -c))]
        found[c] = lab.run(*pairs, methods=["none"], **QUICK)["none"]
    assert found[1.0]["modality_gap"] > 10 * found[0.0]["modality_gap"]
    expected = found[0.0]["modality_gap_by_chance"] / np.sqrt(2)
    assert found[1.0]["modality_gap_by_chance"] == pytest.approx(expected, rel=0.01)


def test_the_gap_by_chance_of_rows_as_they_are():
    """Nothing is fitted, so that only the judged half counts: modalities with the same mean have this gap."""
    squares = []
    for seed in range(12):
        pairs = noisy_pairs(n=120, d=60, seed=seed, offset=0.0)
        values = lab.run(*pairs, methods=["none"], **QUICK)["none"]
        squares.append((values["modality_gap"] ** 2, values["modality_gap_by_chance"] ** 2))
    found, chance = np.mean(squares, axis=0)
    assert found == pytest.approx(chance, rel=0.1)


@pytest.mark.parametrize("queries", [[100], [1.5], [], [-1], [[1], [2, 3]]])
def test_queries_are_indices(queries):
    rows = np.random.default_rng(1).normal(size=(30, 4))
    with pytest.raises(FlowsimError, match="`queries` must be indices of pairs from 0 to 29"):
        lab.mixed_retrieval(rows, rows, queries=queries)


def test_a_method_returns_a_function():
    class Nothing:
        def fit(self, image, text):
            return None

        def __repr__(self):
            return "Nothing()"

    rows = np.random.default_rng(2).normal(size=(40, 4))
    with pytest.raises(FlowsimError, match=r"Method 'Nothing\(\)' must return a function of"):
        lab.run(rows, rows, methods=[Nothing()])
