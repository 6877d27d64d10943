"""The geometries beyond unit rows and cones: fields, constraints, runs that go on, and the limit of Adam."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

import flowsim as fs
from flowsim.base.arrays import to_device, to_numpy
from flowsim.model.geometry import normalise, tangent
from flowsim.model.geometry.encoders import SMALLEST_OUTPUT
from flowsim.model.temperature import Fixed, Learnable

N, D = 5, 4
ROWS = fs.initial.uniform(N, D)
LINEAR = fs.initial.latents(N, factors=4, text_factors=3, dim=3, noise=0.1)
CASES = {
    "unnormalized": (fs.Unnormalized(), ROWS),
    "subspaces": (fs.Subspaces(40.0), ROWS),
    "linear": (fs.LinearEncoders(), LINEAR),
    "mlp": (fs.MLPEncoders(), fs.initial.latents(N, factors=4, dim=3, hidden=6)),
}
TIMES = [0.0, 1.0, 3.0]


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def arrays_of(tree):
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def admissible(name, state, key):
    """A random direction in which the position may move."""
    position = state.unknowns.position
    leaves, tree = jax.tree.flatten(position)
    keys = jax.random.split(key, len(leaves))
    move = jax.tree.unflatten(tree, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)])
    if name != "subspaces":
        return move
    flat = {}
    for which in ("image", "text"):
        normal, vectors = getattr(state.constants, which), getattr(move, which)
        flat[which] = tangent(getattr(position, which), vectors - jnp.outer(vectors @ normal, normal))
    return dataclasses.replace(move, **flat)


@pytest.mark.parametrize("name", CASES)
def test_velocity_is_the_steepest_descent_in_the_metric(name):
    """dL/dε along any admissible direction w is −⟨velocity, w⟩, by finite differences of the loss."""
    geometry, recipe = CASES[name]
    flow = to_device(fs.GradientFlow(geometry, Learnable(0.4)))
    state = flow.initial_state(recipe.draw(2))

    @jax.jit
    def loss(position):
        unknowns = dataclasses.replace(state.unknowns, position=position)
        return flow.loss_value(0.0, dataclasses.replace(state, unknowns=unknowns))

    velocity = eqx.filter_jit(flow.vector_field)(0.0, state).position
    step = 1e-5
    for seed in range(3):
        move = admissible(name, state, jax.random.key(seed))
        ends = [jax.tree.map(lambda p, w, e=e: p + e * w, state.unknowns.position, move) for e in (step, -step)]
        slope = float(loss(ends[0]) - loss(ends[1])) / (2 * step)
        descent = sum(np.sum(v * w) for v, w in zip(arrays_of(velocity), arrays_of(move), strict=True))
        assert slope == pytest.approx(-descent, rel=1e-7, abs=1e-9)
        assert abs(slope) > 1e-3
    # The velocity itself is admissible: along it the loss falls at the rate of its squared length.
    if name == "subspaces":
        for which in ("image", "text"):
            moved = np.asarray(getattr(velocity, which))
            assert np.abs(moved @ np.asarray(getattr(state.constants, which))).max() < 1e-14
            assert np.abs(np.sum(moved * getattr(state.unknowns.position, which), axis=1)).max() < 1e-14
    if name in ("linear", "mlp"):
        # Rows do not change with the length of the last layer: W is orthogonal to its velocity.
        for which in ("image_weights", "text_weights"):
            weights = getattr(state.unknowns.position, which)
            assert abs(float(jnp.sum(weights * getattr(velocity, which)))) < 1e-13


@pytest.mark.parametrize("name", CASES)
def test_place_and_to_start_are_inverse(name):
    geometry, recipe = CASES[name]
    position, constants = geometry.place(recipe.draw(3))
    again, same = geometry.place(to_numpy(geometry.to_start(position, constants)))
    assert jax.tree.structure((again, same)) == jax.tree.structure((position, constants))
    for there, back in zip(arrays_of((position, constants)), arrays_of((again, same)), strict=True):
        np.testing.assert_allclose(back, there, rtol=1e-14, atol=1e-15)


def test_subspaces_are_at_their_angle():
    """Image rows have no last coordinate; the normals enclose the angle; 0 is one common hyperplane."""
    for angle in (0.0, 40.0, 90.0):
        position, normals = fs.Subspaces(angle).place(ROWS.draw(0))
        assert float(normals.image @ normals.text) == pytest.approx(np.cos(np.deg2rad(angle)), abs=1e-15)
        for which in ("image", "text"):
            rows = getattr(position, which)
            np.testing.assert_allclose(rows @ getattr(normals, which), 0, atol=1e-15)
            np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-14)


def test_encoders_encode():
    """Rows are A W, or gelu(A V) W, of unit length; text sees its own inputs."""
    start = LINEAR.draw(0)
    image, text = fs.LinearEncoders().rows(*fs.LinearEncoders().place(start))
    np.testing.assert_allclose(image, normalise(start.image_inputs @ start.image_weights), rtol=1e-14)
    np.testing.assert_allclose(text, normalise(start.text_inputs @ start.text_weights), rtol=1e-14)
    geometry, recipe = CASES["mlp"]
    start = recipe.draw(0)
    hidden = start.text_inputs @ start.text_hidden
    expected = (hidden * (1 + erf(hidden / np.sqrt(2))) / 2) @ start.text_weights
    np.testing.assert_allclose(geometry.rows(*geometry.place(start))[1], normalise(expected), rtol=1e-12)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("unnormalized", "subspaces", "mlp")]


@pytest.fixture(scope="module", params=["linear", *SLOW])
def run(request):
    """(name, flow, a run at fixed temperature)."""
    geometry, recipe = CASES[request.param]
    flow = fs.GradientFlow(geometry, Fixed(0.3))
    return request.param, flow, fs.simulate(flow, recipe, ts=TIMES, seed=1)


def test_loss_falls_and_constraints_stay(run):
    name, _, result = run
    loss = result.series["loss"]
    assert (np.diff(loss) < -1e-3).all()
    first, last = result.at(0.0).start, result.final.start
    if name == "unnormalized":
        assert np.abs(np.linalg.norm(last.image, axis=1) - 1).max() > 1e-2
        return
    for rows in (last.image, last.text):
        assert rows.dtype == np.float64
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)
    if name == "subspaces":
        normals = fs.Subspaces(40.0).place(first)[1]
        for which in ("image", "text"):
            np.testing.assert_allclose(getattr(last, which) @ getattr(normals, which), 0, atol=1e-12)
    else:
        for which in ("image_weights", "text_weights"):
            before, after = getattr(first, which), getattr(last, which)
            assert np.linalg.norm(after) == pytest.approx(np.linalg.norm(before), rel=1e-8)
            assert np.abs(after - before).max() > 1e-2


def test_runs_are_saved_loaded_and_continued(run, tmp_path):
    """Half a run, saved, loaded and continued, is the whole run; `at` integrates to times between."""
    _, flow, whole = run
    half = fs.simulate(flow, whole, ts=[3.0, 4.0, 5.0])
    assert half.series["loss"][0] == pytest.approx(whole.series["loss"][-1], rel=1e-12)
    loaded = fs.load(whole.save(tmp_path / "run.nc"))
    assert fs.GradientFlow.from_config(loaded.config["flow"]).to_config() == flow.to_config()
    for mine, theirs in zip(arrays_of(loaded.final.start), arrays_of(whole.final.start), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    cut = dataclasses.replace(
        loaded, snapshot_time=loaded.snapshot_time[:2], snapshots={k: v[:2] for k, v in loaded.snapshots.items()}
    )
    tail = fs.simulate(flow, cut, ts=[1.0, 2.0, 3.0])
    for mine, theirs in zip(arrays_of(tail.final.start), arrays_of(whole.final.start), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-8)


# --- the limit of Adam --------------------------------------------------------------------------------


def test_adam_limit_is_bounded_and_keeps_rows_on_the_sphere():
    """Every entry of −g/(|g| + ε) is below 1, however large g; rows and ν move at most at unit rate."""
    rule = fs.AdamLimit(1e-3)
    descent = jnp.asarray([-1e9, -1.0, -1e-3, 0.0, 1e-12, 2.0])
    np.testing.assert_allclose(rule.velocity(descent), descent / (np.abs(descent) + 1e-3), rtol=1e-15)
    assert float(jnp.abs(rule.velocity(descent)).max()) <= 1
    flow = to_device(fs.GradientFlow(schedule=Learnable(0.01, lr_ratio=3.0), loss=fs.Sigmoid(bias_rate=0.5), rule=rule))
    state = flow.initial_state(ROWS.draw(0))
    plain, velocity = (
        eqx.filter_jit(f.vector_field)(0.0, state) for f in (flow.replace(rule=fs.GradientDescent()), flow)
    )
    assert float(jnp.abs(plain.position.image).max()) > 10
    for which in ("image", "text"):
        rows, moved = getattr(state.unknowns.position, which), getattr(velocity.position, which)
        np.testing.assert_allclose(jnp.sum(rows * moved, axis=1), 0, atol=1e-14)
        np.testing.assert_allclose(moved, tangent(rows, rule.velocity(getattr(plain.position, which))), rtol=1e-13)
        assert float(jnp.linalg.norm(moved, axis=1).max()) <= np.sqrt(D)
    # Ratios multiply the bounded velocity, not the gradient inside it.
    for name, rate in (("raw_temperature", 3.0), ("bias", 0.5)):
        slope = float(getattr(plain, name)) / rate
        assert float(getattr(velocity, name)) == pytest.approx(rate * slope / (abs(slope) + 1e-3), rel=1e-13)
    frozen = flow.replace(**{"schedule.temperature.lr_ratio": 0.0})
    assert float(frozen.vector_field(0.0, state).raw_temperature) == 0


@pytest.mark.slow
def test_adam_limit_descends_on_the_sphere():
    flow = fs.GradientFlow(schedule=Fixed(0.3), rule=fs.AdamLimit(0.1))
    result = fs.simulate(flow, ROWS, ts=TIMES)
    assert (np.diff(result.series["loss"]) < -1e-3).all()
    for rows in (result.final.image, result.final.text):
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, rtol=1e-12)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.Subspaces(-1.0), "`angle` must be at least 0, but is -1. Use degrees between 0 and 90"),
        (lambda: fs.Subspaces(91.0), "`angle` must be at most 90, but is 91"),
        (lambda: fs.AdamLimit(0.0), "`epsilon` must be positive, but is 0. Use e.g. 1e-3"),
        (
            lambda: fs.Subspaces().place(fs.initial.from_arrays(np.eye(4)[[3, 0]], np.eye(4)[[0, 1]])),
            "A row is orthogonal to the hyperplane of its modality",
        ),
        (lambda: fs.LinearEncoders().place(ROWS.draw()), "`LinearEncoders` needs inputs and weights"),
        (lambda: fs.MLPEncoders().place(LINEAR.draw()), r"has 2 layer\(s\).*Give `hidden`, e.g. 32"),
        (lambda: fs.LinearEncoders().place(CASES["mlp"][1].draw()), r"has 1 layer\(s\).*Leave out `hidden`"),
        (lambda: fs.Sphere().place(LINEAR.draw()), "holds inputs of encoders, not rows"),
        (lambda: fs.initial.latents(text_factors=9, factors=8), "`text_factors` is 9, but there are 8 factors"),
        (lambda: fs.initial.latents(pairs=5, texts_per_image=2), "5 pairs do not form groups of 2"),
        (lambda: fs.initial.latents(hidden=0), "`hidden` must be a whole number of at least 1"),
        (lambda: fs.initial.latents(noise=-1.0), "`noise` must be at least 0"),
        (lambda: fs.initial.mismatched(fraction=2.0), "`fraction` must be at most 1"),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()


def test_a_flow_of_encoders_ends_where_an_output_vanishes():
    flow, start = fs.GradientFlow(fs.LinearEncoders(), Fixed(0.1)), fs.initial.latents(pairs=6, factors=4, dim=2)
    ended = fs.simulate(flow, start, t1=100.0, seed=10, throw=False)
    assert ended.status.code is fs.Status.OUTPUT_ZERO
    assert 0 < ended.status.stopped_at < 1
    before = fs.simulate(flow, start, ts=[ended.status.stopped_at * (1 - 1e-6)], seed=10)
    shortest = []
    for name in ("image", "text"):
        lengths = np.linalg.norm(before.constants[f"{name}_inputs"] @ before.snapshots[f"{name}_weights"][-1], axis=1)
        shortest.append(lengths.min() / np.sqrt(np.mean(lengths**2)))
    assert min(shortest) == pytest.approx(SMALLEST_OUTPUT, rel=1e-3)
    # The steps of an optimizer pass such points.
    assert fs.descend(flow, start, optimizer="sgd", lr=0.01, steps=100, seed=10).status.ok
