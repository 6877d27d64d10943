"""The stability limit of steps: against the whole Jacobian, and against steps themselves."""

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flowsim as fs

KERNEL = fs.kernels.Shared(1.0, 0.5)


@pytest.mark.parametrize(
    ("geometry", "start"),
    [
        (fs.Sphere(), fs.initial.uniform(8, 4)),
        (fs.Sphere(image_kernel=KERNEL, text_kernel=KERNEL), fs.initial.uniform(8, 4)),
        (fs.Parallel(), fs.initial.uniform(6, 3, gamma=0.4)),
        (fs.Reduced(), fs.initial.orthonormal(8, 0.4)),  # two unknowns
        (fs.LinearEncoders(), fs.initial.latents(6, 4, 3)),
    ],
    ids=["sphere", "kernel", "parallel", "reduced", "encoders"],
)
def test_the_limit_is_that_of_the_whole_jacobian(geometry, start):
    flow = fs.GradientFlow(geometry)
    found = fs.stability_limit(flow, start)
    with jax.enable_x64(True):
        state = flow.initial_state(start.draw(0))
        flat, restore = ravel_pytree(state.unknowns)

        def field(values):
            moved = type(state)(restore(values), state.constants, state.targets, state.masks)
            return ravel_pytree(flow.vector_field(0.0, moved, 1.0))[0]

        largest = np.linalg.eigvals(-np.asarray(jax.jacfwd(field)(flat))).real.max()
    assert found == pytest.approx(2 / largest if largest > 0 else np.inf, rel=1e-6)


def test_steps_above_the_limit_leave_an_equilibrium_and_steps_below_stay():
    """Around the equilibrium of noisy pairs at fixed temperature."""
    flow = fs.GradientFlow(fs.Sphere(), fs.temperature.Fixed(0.5), pairing=fs.LabelNoise(0.2))
    rest = fs.simulate(flow, fs.initial.uniform(6, 3), ts=[0.0, 1e4])
    limit = fs.stability_limit(flow, rest)
    moved = rest.final.start
    random = np.random.default_rng(0)
    nudged = fs.initial.from_arrays(*(x + 1e-4 * random.standard_normal(x.shape) for x in moved.rows()))
    losses = {}
    for share in (0.9, 1.1):
        run = fs.descend(flow, nudged, "sgd", share * limit, 400, observables=("loss",), throw=False)
        losses[share] = run.series["loss"][-1] - rest.series["loss"][-1]
    assert abs(losses[0.9]) < 1e-7
    assert losses[1.1] > 1e-4


def test_progress_chooses_the_temperature_and_colder_states_have_a_smaller_limit():
    flow = fs.GradientFlow(fs.Sphere(), fs.temperature.Linear(0.05, 0.5))
    start = fs.initial.uniform(8, 4)
    cold, hot = (fs.stability_limit(flow, start, progress=u) for u in (0.0, 1.0))
    assert cold < hot
    assert cold == pytest.approx(fs.stability_limit(fs.GradientFlow(fs.Sphere(), fs.temperature.Fixed(0.05)), start))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.stability_limit(fs.GradientFlow(rule=fs.AdamLimit()), fs.initial.uniform(4, 3)), "AdamLimit"),
        (lambda: fs.stability_limit(fs.GradientFlow(), fs.initial.uniform(4, 3), progress=2.0), "in \\[0, 1\\]"),
    ],
    ids=["rule", "progress"],
)
def test_what_cannot_be_is_explained(call, message):
    with pytest.raises(fs.FlowsimError, match=message):
        call()
