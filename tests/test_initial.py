"""Starting states: recipes, own arrays, exact cones, bad input."""

import jax
import numpy as np
import pytest
from reference import unit_rows

import flowsim as fs

RECIPES = [
    fs.initial.rings(),
    fs.initial.cones(6, 5, 0.4),
    fs.initial.cones(6, 5, -0.4, random_basis=True),
    fs.initial.uniform(6, 5),
    fs.initial.uniform(6, 5, gamma=0.2),
    fs.initial.matched(6, 5, 0.1),
    fs.initial.orthonormal(6, 0.5),
    fs.initial.simplex(6, 0.5),
    fs.initial.mismatched(6, 5, 0.3, 0.5),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=repr)
def test_rows_are_unit_and_draws_are_reproducible(recipe):
    start = recipe.draw(3)
    for rows in (*start.rows(), start.image, start.text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-14)
    again = recipe.draw(3)
    assert np.array_equal(start.image, again.image)
    assert start.pairs == 6 or isinstance(recipe, fs.initial.Rings)


def test_rings_are_figure_2():
    start = fs.initial.rings().draw()
    image, text = start.rows()
    assert image.shape == (5, 3)
    assert fs.observables.modality_gap(image, text) == pytest.approx((np.sqrt(5) - 1) / 2, rel=1e-14)
    # A twist of −144° is two steps of the pentagon: image i sits above text i + 2.
    np.testing.assert_allclose(image[:, :2], np.roll(text[:, :2], -2, axis=0), atol=1e-15)


def test_the_sign_of_the_twist_is_a_mirror_image():
    results = []
    for twist in (-144.0, 144.0):
        image, text = fs.initial.rings(twist=twist).draw().rows()
        results.append(np.sort((image @ text.T).ravel()))
    np.testing.assert_allclose(results[0], results[1], atol=1e-15)


def test_simplex_and_orthonormal_margins():
    for recipe, margin in ((fs.initial.simplex(7, 0.1), 7 / 6), (fs.initial.orthonormal(7, 0.1), 1.0)):
        start = recipe.draw()
        assert fs.observables.margin(start.image, start.text) == pytest.approx(margin, rel=1e-12)


def test_exact_cones_are_recognised_in_any_basis():
    recipe = fs.initial.cones(12, 5, 0.35, random_basis=True)
    original = recipe.draw(1)
    found = fs.initial.from_arrays(*original.rows()).as_cones("Parallel")
    assert float(found.gamma) == pytest.approx(0.35, rel=1e-12)
    np.testing.assert_allclose(found.image @ found.text.T, original.image @ original.text.T, atol=1e-12)
    for mine, theirs in zip(found.rows(), original.rows(), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


def test_from_arrays_normalises_rows():
    rng = np.random.default_rng(0)
    image, text = rng.standard_normal((2, 4, 3))
    start = fs.initial.from_arrays(image, text)
    np.testing.assert_allclose(np.linalg.norm(start.image, axis=1), 1)
    np.testing.assert_allclose(start.image, image / np.linalg.norm(image, axis=1, keepdims=True))


@pytest.mark.parametrize("scale", [1e200, 1e307, 1e-200, 1e-300, 1e-308])
def test_rows_of_any_length_have_a_direction(scale):
    image, text = np.random.default_rng(0).standard_normal((2, 4, 3))
    wanted = fs.initial.from_arrays(image, text)
    found = fs.initial.from_arrays(image * scale, text / 1e300)
    np.testing.assert_allclose(found.image, wanted.image, rtol=1e-12 if scale > 1e-307 else 1e-6)
    np.testing.assert_allclose(found.text, wanted.text, rtol=1e-12)


@pytest.mark.parametrize(("fraction", "moved"), [(0.0, 0), (0.125, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_mismatched_texts_change_places(fraction, moved):
    """The same rows in both modalities, round(fn) of them at another's place; one alone has nowhere to go."""
    start = fs.initial.mismatched(8, 5, gamma=0.2, fraction=fraction).draw(1)
    assert (start.image != start.text).any(axis=1).sum() == moved
    np.testing.assert_array_equal(np.unique(start.image, axis=0), np.unique(start.text, axis=0))
    assert float(start.gamma) == 0.2
    assert (fs.observables.margin(start.image, start.text) > 0) == (moved == 0)


def test_latents_know_what_they_should():
    """Both inputs are rotations of the same factors, the text of the first ones; duplicates share the image."""
    recipe = fs.initial.latents(pairs=6, factors=4, text_factors=3, dim=2, texts_per_image=2)
    start, again = recipe.draw(1), recipe.draw(1)
    assert (start.pairs, start.image_inputs.shape, start.text_inputs.shape) == (6, (6, 4), (6, 3))
    assert (start.image_weights.shape, start.text_weights.shape) == ((4, 2), (3, 2))
    np.testing.assert_array_equal(start.image_inputs, again.image_inputs)
    np.testing.assert_array_equal(start.image_inputs[::2], start.image_inputs[1::2])
    # What the text sees is a linear image of what the image sees, and not the other way round.
    many = fs.initial.latents(pairs=60, factors=4, text_factors=3, dim=2).draw(1)
    image, text = many.image_inputs, many.text_inputs
    assert np.linalg.norm(text - image @ np.linalg.lstsq(image, text, rcond=None)[0]) < 1e-12
    assert np.linalg.norm(image - text @ np.linalg.lstsq(text, image, rcond=None)[0]) > 1
    noisy = fs.initial.latents(pairs=6, factors=4, text_factors=3, dim=2, texts_per_image=2, noise=0.5).draw(1)
    np.testing.assert_array_equal(noisy.image_weights, start.image_weights)
    np.testing.assert_array_equal(noisy.image_inputs, start.image_inputs)
    assert 0.1 < np.std(noisy.text_inputs - start.text_inputs) < 1
    deep = fs.initial.latents(pairs=6, factors=4, dim=2, hidden=5).draw(1)
    assert (deep.image_hidden.shape, deep.image_weights.shape) == ((4, 5), (5, 2))


def place(geometry, start):
    with jax.enable_x64(True):
        return geometry.place(start)


RNG = np.random.default_rng(0)
RANDOM = fs.initial.from_arrays(unit_rows(RNG, 9, 4), unit_rows(RNG, 9, 4))
FEW = fs.initial.from_arrays(unit_rows(RNG, 2, 6), unit_rows(RNG, 2, 6))


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.initial.rings(pairs=1), "`pairs` must be a whole number of at least 2, but is 1"),
        (lambda: fs.initial.rings(height=1.0), "`height` must lie between -1 and 1"),
        (lambda: fs.initial.uniform(4, 1), "`dim` must be a whole number of at least 2"),
        (lambda: fs.initial.uniform(4, 4, gamma=1.5), "`gamma` must lie between"),
        (lambda: fs.initial.from_arrays(np.ones((3, 2)), np.ones((4, 2))), "one text row per image row"),
        (lambda: fs.initial.from_arrays(np.ones(3), np.ones(3)), r"must have shape \(n, d\)"),
        (lambda: fs.initial.from_arrays(np.full((3, 2), np.nan), np.ones((3, 2))), "NaN or infinity"),
        (lambda: fs.initial.from_arrays(np.zeros((3, 2)), np.ones((3, 2))), "zero row"),
        (lambda: fs.initial.from_arrays([["a", "b"]], [["a", "b"]]), "not numeric"),
        (lambda: fs.initial.from_arrays(np.ones((2, 3)), np.ones((1, 3))), r"`image` has 2 row\(s\) and `text` has 1"),
        (lambda: fs.initial.from_arrays(np.ones((1, 3)), np.ones((1, 3))), "at least 2 pairs, but .* have 1 row"),
        (lambda: fs.initial.from_arrays(np.ones((3, 2)), np.ones((3, 4))), r"2 column\(s\) and `text` has 4"),
        (lambda: fs.initial.from_arrays(np.ones((3, 0)), np.ones((3, 0))), "no columns"),
        (lambda: fs.initial.from_arrays(np.ones((3, 2)) > 0, np.ones((3, 2))), "not numeric"),
        (lambda: fs.initial.from_arrays(np.ones((3, 2)) * 1j, np.ones((3, 2))), "not numeric"),
        (lambda: fs.initial.from_similarity(np.ones((1, 1)), 0.1), "at least 2 pairs, but `similarity` has 1 row"),
        (lambda: fs.initial.from_similarity(np.eye(3), float("nan")), "`gamma` must be finite, but is nan"),
        (lambda: fs.initial.from_similarity(2 * np.eye(3), 0.1), "Use cosines"),
        (lambda: fs.initial.from_similarity(np.ones((3, 2)), 0.1), "must be square"),
        (lambda: place(fs.Parallel(), RANDOM), "not two exact parallel cones. Give `gamma`"),
        (lambda: place(fs.Reduced(), FEW), "axis of the cones is not determined"),
        (lambda: place(fs.Parallel(), fs.initial.from_similarity(np.eye(3), 0.1)), "Use the geometry `Reduced`"),
        (lambda: place(fs.Sphere(), fs.initial.from_similarity(np.eye(3), 0.1)), "only similarities"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()
