"""Schedules in a loop of optax: against `fs.descend`, against the policies, and bad input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from reference import unit_rows

import flowsim as fs

N, D, STEPS, LR, SEED = 7, 5, 60, 0.3, 4


def loss_of(params, here, step, key):
    """The symmetric contrastive loss of rows that are scaled to unit length."""
    image, text = (x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (params["image"], params["text"]))
    image, text = here.swap(image, text, step, key)
    logits = here.inverse_temperature(step, params.get("raw_temperature")) * image @ text.T
    return -(jnp.diag(jax.nn.log_softmax(logits, 0)) + jnp.diag(jax.nn.log_softmax(logits, 1))).mean() / 2


def gaps_and_temperatures(here, inner, rows):
    """A jitted loop over free unit rows, as a user would write it."""
    params: Any = {"image": jnp.asarray(rows[0]), "text": jnp.asarray(rows[1])}
    if here.learnable:
        params["raw_temperature"] = here.initial_raw()
    optimizer, key = here.optimizer(inner), jax.random.key(SEED)
    state = optimizer.init(params)

    @jax.jit
    def step(k, params: Any, state):
        gradients = jax.grad(loss_of)(params, here, k, key)
        updates, state = optimizer.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for name in ("image", "text"):
            params[name] = params[name] / jnp.linalg.norm(params[name], axis=1, keepdims=True)
        return params, state

    found = []
    for k in range(STEPS + 1):
        gap = jnp.linalg.norm(jnp.mean(params["image"] - params["text"], axis=0))
        found.append((gap, 1 / here.inverse_temperature(k, params.get("raw_temperature"))))
        params, state = step(k, params, state)
    return np.array(found)


@pytest.fixture(autouse=True)
def as_users_do():
    """optax mixes types, and so do loops."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def rows():
    rng = np.random.default_rng(2)
    return [unit_rows(rng, N, D) for _ in range(2)]


@pytest.mark.parametrize(
    "name", ["Baseline", "FLT 1e-1", "TS S3", "TS A1", "SLRT 0.1", "TR softplus", "HS 1", "SS 5e-2"]
)
def test_steps_on_free_rows_are_those_of_descend(name, rows):
    schedule = fs.schedules.get(name)
    if name.startswith("SS"):
        schedule = fs.Schedule(schedule.temperature, fs.SoftSwap(0.5))
    flow = fs.GradientFlow(fs.Sphere(), schedule)
    wanted = fs.descend(flow, fs.initial.from_arrays(*rows), "sgd", lr=LR, steps=STEPS, seed=SEED)
    with jax.enable_x64(True):
        found = gaps_and_temperatures(schedule.as_optax(STEPS, clamp=None), optax.sgd(LR), rows)
    steps = np.round(wanted.time / LR).astype(int)
    assert len(steps) > 20 and np.ptp(found[:, 0]) > 0.01
    np.testing.assert_allclose(found[steps, 0], wanted.series["modality_gap"], rtol=1e-9)
    np.testing.assert_allclose(found[steps, 1], wanted.series["temperature"], rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_clamp_and_the_ratio_hold_for_every_optimizer(optimizer):
    policy = fs.temperature.Learnable(0.07, lr_ratio=0.25, clamp=(0.05, 0.1))
    here = fs.Schedule(policy).as_optax(10)
    inner = getattr(optax, optimizer)(0.1)
    params: Any = {"w": jnp.ones(3), "head": {"raw_temperature": here.initial_raw()}}
    both = here.optimizer(inner)
    state, plain = both.init(params), inner.init(params)
    gradients = jax.tree.map(jnp.ones_like, params)
    updates: Any
    theirs: Any
    updates, state = both.update(gradients, state, params)
    theirs, _ = inner.update(gradients, plain, params)
    np.testing.assert_array_equal(updates["w"], theirs["w"])
    moved = float(theirs["head"]["raw_temperature"]) * 0.25
    assert float(updates["head"]["raw_temperature"]) == pytest.approx(moved, rel=1e-5)
    for _ in range(50):
        updates, state = both.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
    beta = here.inverse_temperature(0, params["head"]["raw_temperature"])
    assert float(beta) == pytest.approx(10.0, rel=1e-6)
    with pytest.raises(fs.FlowsimError, match="needs the parameters"):
        both.update(gradients, state)


def test_the_raw_parameter_does_not_decay():
    here = fs.schedules.get("Baseline").as_optax(10, name="nu")
    params = {"w": jnp.ones(3), "nu": here.initial_raw()}
    assert here.decays(params) == {"w": True, "nu": False}
    optimizer = here.optimizer(optax.adamw(0.1, weight_decay=0.5, mask=here.decays))
    updates: Any
    updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert float(updates["nu"]) == 0.0
    np.testing.assert_allclose(updates["w"], -0.05, rtol=1e-6)


def test_single_precision_stays_single():
    for name in ("TS S3", "Baseline"):
        here = fs.schedules.get(name).as_optax(4)
        raw = here.initial_raw() if here.learnable else None
        beta = jax.jit(here.inverse_temperature)(2, raw)
        assert beta.dtype == jnp.float32
        wanted = 1 / 0.03 if raw is None else 1 / 0.07
        assert float(beta) == pytest.approx(wanted, rel=1e-6)
    image, text = jnp.ones((4, 2)), jnp.zeros((4, 2))
    swapped = jax.jit(fs.schedules.get("HS 1").as_optax(4).swap)(image, text, 0, jax.random.key(0))
    assert swapped[0].dtype == jnp.float32
    assert 0 < float(swapped[0].sum()) < 8
    np.testing.assert_array_equal(swapped[0] + swapped[1], 1.0)


def test_bad_input():
    learnable, fixed = (fs.schedules.get(name).as_optax(4) for name in ("Baseline", "TS S3"))
    with pytest.raises(fs.FlowsimError, match="learnable and needs `raw`"):
        learnable.inverse_temperature(0)
    with pytest.raises(fs.FlowsimError, match="not learnable, so it has no `raw`"):
        fixed.inverse_temperature(0, 2.0)
    with pytest.raises(fs.FlowsimError, match="no parameter to train"):
        fixed.initial_raw()
    with pytest.raises(fs.FlowsimError, match="one shape"):
        fixed.swap(jnp.ones((3, 2)), jnp.ones((2, 2)), 0, jax.random.key(0))
    for arguments, message in (
        ({"total_steps": 0}, "`total_steps` must be a whole number"),
        ({"total_steps": 4, "clamp": (0.1, -1.0)}, r"`clamp\[1\]` must be positive"),
        ({"total_steps": 4, "clamp": (0.1, 0.01)}, "must be increasing"),
        ({"total_steps": 4, "name": ""}, "`name` must be a name"),
    ):
        with pytest.raises(fs.FlowsimError, match=message):
            fs.Schedule().as_optax(**arguments)
    with pytest.raises(fs.FlowsimError, match=r"no 'raw_temperature' for the raw temperature, but \['nu'\]"):
        learnable.optimizer(optax.sgd(0.1)).init({"nu": jnp.zeros(())})
    sgd = optax.sgd(0.1)
    assert fixed.optimizer(sgd) is sgd
