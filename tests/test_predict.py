"""`fs.theory.predict`: the closed form of a whole flow against the simulation, and where there is none."""

import numpy as np
import pytest

import flowsim as fs
from flowsim.model.temperature import Exp, Fixed, Identity, Learnable, ScaledExp, Softplus

#: Two images, whose mean similarity to the other text is that of a simplex, though they are none.
OPPOSED = np.array([[1.0, 0.0], [np.cos(2.0), np.sin(2.0)]])
NAMES = ("modality_gap", "log_gamma", "inverse_temperature", "loss", "margin", "direction_margin")


@pytest.mark.parametrize(
    "policy",
    [
        Learnable(0.3, Exp()),
        Learnable(0.3, ScaledExp(2.0)),
        Learnable(0.3, Softplus()),
        Learnable(0.3, Identity(), 3.0),
        Fixed(0.3),
    ],
    ids=repr,
)
def test_reduced_prediction_equals_the_simulation(policy):
    flow, start = fs.GradientFlow(fs.Reduced(), policy), fs.initial.orthonormal(5, 0.4)
    predicted, simulated = fs.theory.predict(flow, start, t1=1e3), fs.simulate(flow, start, t1=1e3)
    np.testing.assert_array_equal(predicted.time, simulated.time)
    for name in NAMES:
        np.testing.assert_allclose(predicted.series[name], simulated.series[name], rtol=1e-6, atol=1e-90, err_msg=name)


def test_simplex_directions_stand_still_on_parallel_cones():
    flow, start = fs.GradientFlow(fs.Parallel(), Learnable(0.5)), fs.initial.simplex(5, 0.4)
    predicted, simulated = fs.theory.predict(flow, start, t1=1e3), fs.simulate(flow, start, t1=1e3)
    for name in NAMES:
        np.testing.assert_allclose(predicted.series[name], simulated.series[name], rtol=1e-6, atol=1e-90, err_msg=name)
    assert "PREDICTED" in repr(predicted)


@pytest.mark.parametrize(
    ("flow", "start", "message"),
    [
        (fs.GradientFlow(), fs.initial.rings(), "the geometry `Sphere`"),
        (fs.GradientFlow(fs.Reduced(), "TS S3"), fs.initial.orthonormal(4, 0.3), "policy `Linear`"),
        (fs.GradientFlow(fs.Reduced(), "HS 1"), fs.initial.orthonormal(4, 0.3), "swaps"),
        (fs.GradientFlow(fs.Reduced()), fs.initial.uniform(4, 4, 0.3), "without constant margin"),
        (fs.GradientFlow(fs.Parallel()), fs.initial.orthonormal(4, 0.3), "directions that move"),
        (fs.GradientFlow(fs.Parallel()), fs.initial.from_arrays(OPPOSED, -OPPOSED[::-1], gamma=0.3), "that move"),
        (fs.GradientFlow(fs.Reduced(), rule=fs.AdamLimit()), fs.initial.orthonormal(4, 0.3), "the rule `AdamLimit`"),
        (fs.GradientFlow(fs.Reduced(), pairing=fs.LabelNoise(0.1)), fs.initial.orthonormal(4, 0.3), "`LabelNoise`"),
        (fs.GradientFlow(fs.Reduced()), fs.initial.from_similarity(-np.eye(3), 0.3), "mismatched pairs"),
    ],
)
def test_no_closed_form_says_why(flow, start, message):
    with pytest.raises(fs.FlowsimError, match=message):
        fs.theory.predict(flow, start, t1=1.0)
