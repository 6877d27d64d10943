"""The losses of training: values and forces against open_clip's own ClipLoss and SigLipLoss."""

import warnings

import jax
import numpy as np
import pytest
from reference import unit_rows

import flowsim as fs
from flowsim.base.arrays import to_device
from flowsim.model.initial import Start
from flowsim.model.temperature import Identity, Learnable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    open_clip_loss = pytest.importorskip(
        "open_clip.loss", reason="open_clip is not installed: pip install torch torchvision open_clip_torch"
    )
    import torch

N, D, BETA, BIAS = 7, 4, 9.0, -3.0


def both(loss, theirs):
    """(value, forces on image, text, β and b) here, on free rows with β itself trained, and by autograd there."""
    rng = np.random.default_rng(0)
    image, text = unit_rows(rng, N, D), unit_rows(rng, N, D)
    with jax.enable_x64(True):
        flow = to_device(fs.GradientFlow(fs.Unnormalized(), Learnable(1 / BETA, Identity()), loss))
        state = flow.initial_state(Start(image, text))
        velocity, value = flow.vector_field(0.0, state), float(flow.loss_value(0.0, state))
    ours = [velocity.position.image, velocity.position.text, velocity.raw_temperature, velocity.bias]
    leaves = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (image, text, BETA, BIAS)]
    there = theirs(*leaves)
    there.backward()
    forces = [None if x.grad is None else -x.grad.numpy() for x in leaves]
    return value, there.item(), list(zip(ours, forces, strict=True))


def assert_equal_to_rounding(value, there, pairs):
    assert value == pytest.approx(there, rel=1e-13)
    for ours, theirs in pairs:
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-14)


def test_infonce_is_clip_loss():
    loss = open_clip_loss.ClipLoss()
    assert_equal_to_rounding(*both(fs.InfoNCE(), lambda x, y, beta, bias: loss(x, y, beta)))


def test_sigmoid_with_absolute_bias_is_siglip_loss():
    loss = open_clip_loss.SigLipLoss()
    value, there, pairs = both(fs.Sigmoid(BIAS, 1.0), loss)
    assert_equal_to_rounding(value, there, pairs)
    assert pairs[3][0] is not None
