"""Loss, temperature and swaps of the bridge against open_clip, the simulator and the formulas."""

import warnings

import jax
import numpy as np
import pytest
from reference import unit_rows

import flowsim as fs
from flowsim.base.arrays import to_device
from flowsim.integrate import steps
from flowsim.model.initial import Start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch
    from open_clip.loss import ClipLoss

    from flowsim.clip.contrast import Contrast, Temperature
    from flowsim.torch.swaps import swap_weights

N, D = 9, 6


def features(seed=0, n=N, d=D):
    rng = np.random.default_rng(seed)
    return [torch.tensor(unit_rows(rng, n, d), requires_grad=True) for _ in range(2)]


def in_double(temperature):
    """With a raw parameter in double precision, where training has single."""
    if temperature.raw is not None:
        temperature.raw.data = torch.tensor(float(temperature.policy.initial_raw()), dtype=torch.float64)
    return temperature


def value_and_gradients(loss, *leaves):
    value = loss()
    value.backward()
    return value.item(), [x.grad.numpy().copy() for x in leaves]


def test_loss_and_gradients_are_clip_loss():
    image, text = features()
    beta = torch.tensor(20.0, dtype=torch.float64, requires_grad=True)
    theirs = value_and_gradients(lambda: ClipLoss()(image, text, beta), image, text, beta)
    for x in (image, text, beta):
        x.grad = None
    contrast = Contrast(fs.Schedule())
    ours = value_and_gradients(lambda: contrast(image, text, beta, 0), image, text, beta)
    assert ours[0] == pytest.approx(theirs[0], rel=1e-12)
    for x, y in zip(ours[1], theirs[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["Baseline", "FLT 4e-2", "TR softplus", "HS 1", "HS rows", "SS 5e-2"])
def test_loss_and_forces_are_those_of_the_simulator(name):
    """The same rows, the same schedule, the same step: the simulator's value and its gradient, to 1e-10."""
    schedule = fs.schedules.get(name)
    if name != "HS 1" and schedule.swap.active:
        schedule = fs.GradientFlow(schedule=schedule).replace(**{"schedule.swap.fraction": 1.0}).schedule
    seed, step = 3, 5
    image, text = features(1)
    temperature = in_double(Temperature(schedule.temperature))
    value, gradients = value_and_gradients(
        lambda: Contrast(schedule, seed)(image, text, temperature(0.5), step), image, text
    )
    with jax.enable_x64(True):
        flow = to_device(fs.GradientFlow(fs.Unnormalized(), schedule))
        state = flow.initial_state(Start(image.detach().numpy(), text.detach().numpy()))
        key = jax.random.fold_in(jax.random.key(np.uint32(seed)), step)
        flow, state = steps._sampled(flow, state, key)
        there = float(flow.loss_value(0.5, state, 1.0))
        velocity = flow.vector_field(0.5, state, 1.0)
    assert value == pytest.approx(there, rel=1e-10)
    np.testing.assert_allclose(gradients[0], -np.asarray(velocity.position.image), rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(gradients[1], -np.asarray(velocity.position.text), rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("swap", [fs.HardSwap(0.3), fs.HardSwap(0.3, by="row"), fs.SoftSwap(0.3)])
def test_swaps_are_drawn_as_in_a_simulated_run(swap):
    """Masks and the choice of swapped steps are pinned to those of `flowsim.integrate.steps`."""
    flow = fs.GradientFlow(fs.Unnormalized(), fs.Schedule(swap=swap))
    rows = [x.detach().numpy() for x in features()]
    swapped = 0
    with jax.enable_x64(True):
        flow = to_device(flow)
        state = flow.initial_state(Start(*rows))
        for step in range(20):
            key = jax.random.fold_in(jax.random.key(np.uint32(7)), step)
            wanted = np.asarray(steps._sampled(flow, state, key)[1].masks)[0]
            found = swap_weights(swap, 7, step, N, D)
            swapped += found is not None
            np.testing.assert_array_equal(np.ones_like(wanted) if found is None else found, wanted)
    assert 1 < swapped < 15


def test_no_swap_leaves_features_alone():
    image, text = features()
    assert Contrast(fs.Schedule()).swapped(image, text, 0) == (image, text)
    updated = fs.Schedule(swap=fs.SoftSwap(1.0, reading="updated"))
    new_image, new_text = Contrast(updated).swapped(image, text, 0)
    w = torch.tensor(swap_weights(updated.swap, 0, 0, N, D))
    torch.testing.assert_close(new_text, w * text + (1 - w) * new_image)


@pytest.mark.parametrize("name", [n for n in fs.schedules.names() if not fs.schedules.get(n).temperature.learnable])
def test_temperatures_that_are_not_learnable_are_the_schedule(name):
    policy = fs.schedules.get(name).temperature
    temperature = Temperature(policy)
    assert list(temperature.parameters()) == []
    for u in np.linspace(0, 1, 23):
        assert float(temperature(u)) == pytest.approx(float(policy.inverse_temperature(u)), rel=1e-14)
        assert temperature.value(u)[0] == float(policy.inverse_temperature(u))


@pytest.mark.parametrize(
    "parametrization",
    [fs.temperature.Exp(), fs.temperature.ScaledExp(10.0), fs.temperature.Softplus(), fs.temperature.Identity()],
    ids=lambda p: type(p).__name__,
)
def test_learnable_temperatures_have_the_gradient_of_their_formula(parametrization):
    """β(ν) and dL/dν = β'(ν) dL/dβ of the torch formula against `flowsim.model.temperature`."""
    policy = fs.temperature.Learnable(0.05, parametrization)
    temperature = in_double(Temperature(policy))
    image, text = features()
    beta = temperature(0.0)
    beta.retain_grad()
    Contrast(fs.Schedule(policy))(image, text, beta, 0).backward()
    raw = np.float64(temperature.raw.item())
    assert beta.item() == pytest.approx(20.0, rel=1e-14)
    assert beta.item() == pytest.approx(float(parametrization.inverse_temperature(raw)), rel=1e-14)
    assert beta.grad != 0
    wanted = float(parametrization.derivative(raw)) * beta.grad.item()
    assert temperature.raw.grad.item() == pytest.approx(wanted, rel=1e-13)


def test_clamps_hold_the_raw_parameter():
    temperature = Temperature(fs.temperature.Learnable(0.07), clamp=(0.01, 1.0))
    with torch.no_grad():
        temperature.raw.fill_(9.0)
    temperature.clamp_()
    assert temperature.value(0.0)[0] == pytest.approx(100.0, rel=1e-6)
    own = Temperature(fs.temperature.Learnable(0.07, clamp=(0.05, 0.1)), clamp=(0.01, 1.0))
    with torch.no_grad():
        own.raw.fill_(9.0)
    own.clamp_()
    assert own.value(0.0)[0] == pytest.approx(20.0, rel=1e-6)
    assert Temperature(fs.temperature.Fixed(0.2), clamp=(0.01, 0.1)).value(0.0)[0] == pytest.approx(5.0)
