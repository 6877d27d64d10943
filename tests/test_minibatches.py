"""Minibatches: a step is the NumPy gradient of the loss of the batch, for every geometry that has them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, log_softmax, softmax

import flowsim as fs
from flowsim.integrate.steps import Minibatch, descent_of

PAIRS, BATCH, TAU = 8, np.array([5, 1, 6, 2]), 0.3
ENCODED = fs.initial.latents(pairs=PAIRS, factors=5, dim=4).draw(0)
HIDDEN = fs.initial.latents(pairs=PAIRS, factors=5, dim=4, hidden=6).draw(0)
GEOMETRIES = {
    "Sphere": (fs.Sphere(), fs.initial.uniform(PAIRS, 4).draw(0)),
    "Unnormalized": (fs.Unnormalized(), fs.initial.uniform(PAIRS, 4).draw(0)),
    "Subspaces": (fs.Subspaces(40.0), fs.initial.uniform(PAIRS, 4).draw(0)),
    "Parallel": (fs.Parallel(), fs.initial.uniform(PAIRS, 4, gamma=0.4).draw(0)),
    "LinearEncoders": (fs.LinearEncoders(), ENCODED),
    "LinearEncoders, any length": (fs.LinearEncoders(normalize=False), ENCODED),
    "MLPEncoders": (fs.MLPEncoders(), HIDDEN),
}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def loss_and_slopes(image, text, beta):
    """InfoNCE of a batch of rows, and −∂L/∂ of image rows, text rows and β, in NumPy."""
    cosines, b = image @ text.T, len(image)
    logits = beta * cosines
    slope = (softmax(logits, axis=1) + softmax(logits, axis=0)) / (2 * b) - np.eye(b) / b
    loss = -np.mean(np.diag(log_softmax(logits, axis=1)) + np.diag(log_softmax(logits, axis=0))) / 2
    return loss, -beta * slope @ text, -beta * slope.T @ image, -np.sum(slope * cosines)


def tangent(rows, force):
    return force - np.sum(rows * force, axis=1, keepdims=True) * rows


def through_lengths(outputs, force):
    """The force on outputs from that on the rows outputs/|outputs|."""
    return tangent(unit(outputs), force) / np.linalg.norm(outputs, axis=1, keepdims=True)


def scattered(force):
    """Forces of the pairs of the batch in their places, and 0 elsewhere."""
    found = np.zeros((PAIRS, force.shape[1]))
    found[BATCH] = force
    return found


def activation(x):
    """gelu and its derivative."""
    cdf, density = (1 + erf(x / np.sqrt(2))) / 2, np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    return x * cdf, cdf + x * density


def wanted(name, start, position):
    """(loss, −∂L/∂θ by the names of the position, −∂L/∂β) of the batch, in NumPy."""
    beta, image, text = 1 / TAU, np.asarray(start.image), np.asarray(start.text)
    if "Encoders" in name:
        inputs = start.image_inputs[BATCH], start.text_inputs[BATCH]
        hidden = position.image_hidden, position.text_hidden
        last = np.asarray(position.image_weights), np.asarray(position.text_weights)
        before = [a if h is None else a @ np.asarray(h) for a, h in zip(inputs, hidden, strict=True)]
        layer = [a if h is None else activation(a)[0] for a, h in zip(before, hidden, strict=True)]
        outputs = [a @ w for a, w in zip(layer, last, strict=True)]
        normal = "any length" not in name
        loss, *forces, on_beta = loss_and_slopes(*(unit(x) if normal else x for x in outputs), beta)
        found = {}
        for side, a, b, z, w, h, o, f in zip(
            ("image", "text"), inputs, before, layer, last, hidden, outputs, forces, strict=True
        ):
            force = through_lengths(o, f) if normal else f
            found[f"{side}_weights"] = z.T @ force
            if h is not None:
                found[f"{side}_hidden"] = a.T @ (force @ w.T * activation(b)[1])
        return loss, found, on_beta
    if name == "Parallel":
        gamma = float(start.gamma)
        loss, *forces, _ = loss_and_slopes(image[BATCH], text[BATCH], beta * (1 - gamma**2))
        # L depends on β and γ through a = β(1 − γ²) and β(−γ²), which is the same for all pairs.
        cosines = image[BATCH] @ text[BATCH].T
        logits = beta * (1 - gamma**2) * cosines
        b = len(BATCH)
        slope = (softmax(logits, axis=1) + softmax(logits, axis=0)) / (2 * b) - np.eye(b) / b
        g = -np.sum(slope * cosines)
        found = {
            "image": scattered(tangent(image[BATCH], forces[0])),
            "text": scattered(tangent(text[BATCH], forces[1])),
            "log_gamma": -2 * beta * g,
        }
        return loss, found, (1 - gamma**2) * g
    image, text = np.asarray(position.image), np.asarray(position.text)
    loss, *forces, on_beta = loss_and_slopes(image[BATCH], text[BATCH], beta)
    rows = {"image": image[BATCH], "text": text[BATCH]}
    if name == "Subspaces":
        angle = np.deg2rad(40.0)
        last, before = np.eye(image.shape[1])[[-1, -2]]
        normals = {"image": last, "text": np.cos(angle) * last + np.sin(angle) * before}
        forces = [f - np.outer(f @ normals[k], normals[k]) for k, f in zip(rows, forces, strict=True)]
    if name != "Unnormalized":
        forces = [tangent(rows[k], f) for k, f in zip(rows, forces, strict=True)]
    return loss, {k: scattered(f) for k, f in zip(rows, forces, strict=True)}, on_beta


def step(flow, start, pairs, texts=None, key=None):
    """The flow, state and descent of one step on a batch."""
    state = flow.initial_state(start)
    batch = Minibatch(jnp.asarray(pairs), None if texts is None else jnp.asarray(texts))
    return descent_of(flow, state, jnp.zeros(()), jnp.ones(()), jax.random.key(0) if key is None else key, batch)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_step_is_the_gradient_of_the_loss_of_its_batch(name):
    geometry, start = GEOMETRIES[name]
    flow = fs.GradientFlow(geometry, fs.temperature.Learnable(TAU))
    here, state, descent = step(flow, start, BATCH)
    position = flow.initial_state(start).unknowns.position
    loss, forces, on_beta = wanted(name, start, position)
    assert float(here.loss_value(jnp.zeros(()), state, jnp.ones(()))) == pytest.approx(loss, rel=1e-12)
    for field in dataclasses.fields(descent.position):
        found = getattr(descent.position, field.name)
        assert (found is None) == (field.name not in forces), field.name
        if found is not None:
            assert np.abs(forces[field.name]).max() > 1e-4
            np.testing.assert_allclose(found, forces[field.name], rtol=1e-9, atol=1e-13, err_msg=field.name)
    assert float(descent.raw_temperature) == pytest.approx(on_beta / TAU, rel=1e-10)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_all_pairs_in_any_order_are_the_whole(name):
    geometry, start = GEOMETRIES[name]
    flow = fs.GradientFlow(geometry, fs.temperature.Learnable(TAU))
    whole = flow.descent(jnp.zeros(()), flow.initial_state(start), jnp.ones(()))
    for order in (np.arange(PAIRS), np.random.default_rng(0).permutation(PAIRS)):
        found = step(flow, start, order)[2]
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14)


def with_captions():
    """Two or three captions of each pair."""
    rng = np.random.default_rng(3)
    texts = rng.standard_normal((PAIRS, 3, 5))
    counts = np.where(np.arange(PAIRS) % 2, 3, 2)
    texts[counts == 2, 2] = np.nan  # what is padded is never read
    return dataclasses.replace(ENCODED, text_inputs=texts, text_counts=counts)


def test_captions_choose_the_text():
    start, flow = with_captions(), fs.GradientFlow(fs.LinearEncoders())
    for which in (np.array([1, 0, 1, 1]), np.array([2, 1, 0, 0])):
        which = np.minimum(which, start.text_counts[BATCH] - 1)
        texts = np.array(ENCODED.text_inputs)
        texts[BATCH] = start.text_inputs[BATCH, which]
        single = dataclasses.replace(ENCODED, text_inputs=texts)
        for a, b in zip(
            jax.tree.leaves(step(flow, start, BATCH, which)[2]), jax.tree.leaves(step(flow, single, BATCH)[2]),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_array_equal(a, b)
    first = dataclasses.replace(ENCODED, text_inputs=start.text_inputs[:, 0])
    for a, b in zip(
        jax.tree.leaves(step(flow, start, BATCH)[2]), jax.tree.leaves(step(flow, first, BATCH)[2]), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_descent_draws_the_captions_of_its_order():
    """Two steps in `fs.descend` are two steps by hand with the pairs and captions of `fs.data.Order`."""
    start, flow, lr = with_captions(), fs.GradientFlow(fs.LinearEncoders(), fs.temperature.Fixed(TAU)), 0.05
    run = fs.descend(flow, start, "sgd", lr, 2, batch=4, seed=9)
    order, here = fs.data.Order(PAIRS, 4, 9), start
    drawn = []
    for k in range(2):
        pairs = order.indices(k)
        drawn.append(order.captions(k, start.text_counts[pairs]))
        descent = step(flow, here, pairs, drawn[-1])[2].position
        here = dataclasses.replace(
            here,
            image_weights=here.image_weights + lr * np.asarray(descent.image_weights),
            text_weights=here.text_weights + lr * np.asarray(descent.text_weights),
        )
    assert len(set(np.concatenate(drawn).tolist())) > 1
    for name in ("image_weights", "text_weights"):
        np.testing.assert_allclose(getattr(run.final.start, name), getattr(here, name), rtol=1e-12)


def test_pairs_outside_the_batch_stay():
    run = fs.descend(fs.GradientFlow(), fs.initial.uniform(PAIRS, 4), "sgd", 0.1, 1, batch=3, seed=2)
    moved = np.abs(run.snapshots["image"][-1] - run.snapshots["image"][0]).max(axis=1) > 1e-6
    assert sorted(np.flatnonzero(moved)) == sorted(fs.data.Order(PAIRS, 3, 2).indices(0))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adamw"])
@pytest.mark.parametrize("name", ["Sphere", "Unnormalized", "LinearEncoders"])
def test_a_continued_descent_is_the_whole_one(name, optimizer):
    """To the last bit, except for unit rows: those of a start are scaled to unit length once more."""
    geometry, start = GEOMETRIES[name]
    if name == "LinearEncoders":
        start = with_captions()
        start = dataclasses.replace(start, text_inputs=np.nan_to_num(start.text_inputs))
    flow = fs.GradientFlow(geometry, fs.temperature.Linear(0.2, 0.4))
    options = {"batch": 3, "seed": 4, "horizon": 150}
    whole = fs.descend(flow, start, optimizer, 1e-2, 150, **options)
    half = fs.descend(flow, start, optimizer, 1e-2, 77, **options)  # 77: within an epoch, and within 64 steps
    rest = fs.descend(flow, half, optimizer, 1e-2, 73, batch=3)
    for key, value in whole.snapshots.items():
        if name == "Sphere":
            np.testing.assert_allclose(rest.snapshots[key][-1], value[-1], rtol=1e-11, atol=1e-13)
        else:
            assert rest.snapshots[key][-1].tobytes() == value[-1].tobytes(), key
    assert np.abs(whole.final.image - half.final.image).max() > 1e-3


def test_swaps_are_drawn_within_the_batch():
    """With p = 1 every step swaps; its descent is that of the swapped rows of the batch alone."""
    swapped = fs.GradientFlow(schedule=fs.Schedule(fs.temperature.Fixed(TAU), fs.swaps.HardSwap(1.0)))
    start = GEOMETRIES["Sphere"][1]
    here, state, descent = step(swapped, start, BATCH)
    assert state.masks.shape[1] == len(BATCH)
    mask = np.asarray(state.masks[0])
    image, text = start.image[BATCH], start.text[BATCH]
    if mask.ndim == 1:
        mask = mask[:, None]
    mixed = mask * image + (1 - mask) * text, mask * text + (1 - mask) * image
    assert 0 < mask.mean() < 1
    loss, on_x, on_y, _ = loss_and_slopes(*mixed, 1 / TAU)
    assert float(here.loss_value(jnp.zeros(()), state, jnp.ones(()))) == pytest.approx(loss, rel=1e-12)
    np.testing.assert_allclose(
        descent.position.image, scattered(tangent(image, mask * on_x + (1 - mask) * on_y)), atol=1e-12
    )
    runs = [fs.descend(swapped, start, "sgd", 0.05, 3, batch=4, seed=s).final.image for s in (0, 0, 1)]
    np.testing.assert_array_equal(runs[0], runs[1])
    assert np.abs(runs[0] - runs[2]).max() > 1e-3


def test_label_noise_is_that_of_the_batch():
    noise = 0.2
    flow = fs.GradientFlow(schedule=fs.temperature.Fixed(TAU), pairing=fs.LabelNoise(noise))
    start = GEOMETRIES["Sphere"][1]
    here, state, _ = step(flow, start, BATCH)
    b = len(BATCH)
    targets = (1 - noise) * np.eye(b) + noise / (b - 1) * (1 - np.eye(b))
    logits = start.image[BATCH] @ start.text[BATCH].T / TAU
    loss = -np.sum(targets * (log_softmax(logits, axis=1) + log_softmax(logits, axis=0))) / (2 * b)
    assert float(here.loss_value(jnp.zeros(()), state, jnp.ones(()))) == pytest.approx(loss, rel=1e-12)


def test_fresh_repairing_moves_texts_within_the_batch():
    flow = fs.GradientFlow(schedule=fs.temperature.Fixed(TAU), pairing=fs.FreshRepairing(1.0))
    start = GEOMETRIES["Sphere"][1]
    seen = set()
    for seed in range(4):
        here, state, descent = step(flow, start, BATCH, key=jax.random.key(seed))
        targets = np.asarray(state.targets.matrices(len(BATCH), float)[0])
        text_of = targets.argmax(axis=1)
        np.testing.assert_array_equal(targets, np.eye(len(BATCH))[text_of])
        assert sorted(text_of) == list(range(len(BATCH)))
        seen.add(tuple(text_of))
        loss, on_image, _, _ = loss_and_slopes(start.image[BATCH], start.text[BATCH][text_of], 1 / TAU)
        assert float(here.loss_value(jnp.zeros(()), state, jnp.ones(()))) == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(
            descent.position.image, scattered(tangent(start.image[BATCH], on_image)), rtol=1e-9, atol=1e-12
        )
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("flow", "start", "batch", "says"),
    [
        (fs.GradientFlow(pairing=fs.FrozenMispairing(0.5)), "Sphere", 4, "FrozenMispairing belongs to all pairs"),
        (fs.GradientFlow(pairing=fs.Clusters(2)), "Sphere", 4, "Clusters belongs to all pairs and has no minibatches"),
        (fs.GradientFlow(), "Sphere", 1, "`batch` must be a whole number of at least 2"),
        (fs.GradientFlow(), "Sphere", 9, "A batch of 9 needs at least 9 pairs, but there are 8"),
        (fs.GradientFlow(fs.Reduced()), "Parallel", 4, "The geometry Reduced has no minibatches. Leave out `batch`"),
    ],
)
def test_what_has_no_minibatches_is_refused(flow, start, batch, says):
    with pytest.raises(fs.FlowsimError, match=says) as error:
        fs.descend(flow, GEOMETRIES[start][1], "sgd", 0.1, 2, batch=batch)
    assert "\n" not in str(error.value)
