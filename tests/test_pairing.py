"""Pairings: what their targets are, what they average to, and what they refuse."""

import jax
import numpy as np
import pytest

import flowsim as fs
from flowsim.model.pairing import LabelNoise

N = 8
PAIRINGS = [
    LabelNoise(0.3),
    fs.FrozenMispairing(0.5),
    fs.FreshRepairing(0.5),
    fs.FreshRepairing(0.5, redraw=1.0),
    fs.Clusters(4),
    fs.Clusters(1),
]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def rows_of(pairing, seed=0, pairs=N):
    targets = pairing.targets(jax.random.key(seed), pairs, np.float64)
    assert targets.rows is not None
    assert targets.columns is not None
    return np.asarray(targets.rows), np.asarray(targets.columns)


@pytest.mark.parametrize("pairing", PAIRINGS, ids=lambda p: type(p).__name__)
def test_targets_are_distributions(pairing):
    """Σ_j T_ij = 1 for every image, Σ_i T'_ij = 1 for every text."""
    rows, columns = rows_of(pairing)
    for targets in (rows, columns):
        assert targets.min() >= 0
    np.testing.assert_allclose(rows.sum(axis=1), 1, rtol=1e-14)
    np.testing.assert_allclose(columns.sum(axis=0), 1, rtol=1e-14)


def test_matched_targets_are_the_identity():
    targets = fs.Matched().targets(jax.random.key(0), N, np.float64)
    assert (targets.rows, targets.columns) == (None, None)
    for same in (fs.FrozenMispairing(0.0), fs.FreshRepairing(0.0), fs.FreshRepairing(0.0, redraw=1.0), fs.Clusters(1)):
        assert np.array_equal(rows_of(same)[0], np.eye(N))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.3, 0.5, 1.0])
def test_frozen_mispairing_moves_whole_pairs(fraction, seed):
    """round(fn) images have a wrong text, each text has one image; a single pair cannot move."""
    rows, columns = rows_of(fs.FrozenMispairing(fraction), seed)
    assert np.array_equal(rows, columns)
    assert set(np.unique(rows)) <= {0.0, 1.0}
    assert np.array_equal(rows.sum(axis=0), np.ones(N))
    count = round(fraction * N)
    assert N - np.trace(rows) == (0 if count == 1 else count)


def test_frozen_mispairing_depends_on_the_seed_only():
    first, again, other = (rows_of(fs.FrozenMispairing(0.5), seed)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_fresh_repairing_averages_to_label_noise(fraction):
    """The mean of 4000 draws is within 4 standard errors of the expected targets, p = (m − 1)/n."""
    count, pairing = 4000, fs.FreshRepairing(fraction)
    keys = jax.random.split(jax.random.key(3), count)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: pairing.draw(key, N, np.float64).rows))(keys))
    assert np.array_equal(draws.sum(axis=1), np.ones((count, N)))
    assert np.array_equal(draws.sum(axis=2), np.ones((count, N)))
    moved = max(round(fraction * N) - 1, 0) / N
    expected, _ = rows_of(pairing)
    assert np.array_equal(expected, rows_of(LabelNoise(moved))[0])
    error = np.sqrt(expected * (1 - expected) / count)
    assert (np.abs(draws.mean(axis=0) - expected) <= 4 * error).all()


def test_fresh_repairing_with_redraw_acts_one_permutation_at_a_time():
    first, other = (rows_of(fs.FreshRepairing(1.0, redraw=1.0), seed)[0] for seed in (0, 1))
    assert set(np.unique(first)) == {0.0, 1.0}
    assert not np.array_equal(first, other)


def test_clusters_share_their_texts():
    rows, columns = rows_of(fs.Clusters(4))
    assert np.array_equal(rows, np.kron(np.eye(2), np.full((4, 4), 0.25)))
    assert np.array_equal(rows, columns)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.FrozenMispairing(-0.1), "`fraction` must be at least 0, but is -0.1"),
        (lambda: fs.FreshRepairing(1.5), "`fraction` must be at most 1, but is 1.5"),
        (lambda: fs.FreshRepairing(0.5, redraw=0.0), "`redraw` must be positive, but is 0. Use the flow time"),
        (lambda: fs.FreshRepairing("half"), "Expected a number, but got 'half'"),
        (lambda: fs.Clusters(0), "`size` must be a whole number of at least 1, but is 0"),
        (lambda: rows_of(fs.Clusters(3)), "8 pairs do not form clusters of 3. Use a number of pairs that 3 divides"),
        (lambda: LabelNoise(1.0), "`noise` must be below 1"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()
