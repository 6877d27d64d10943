"""The same heads trained three ways: embedding with the weights of a start, steps against NumPy, and wrong models."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import erf, softmax
from wrong_models import many_negatives, wrong_loss

import flowsim as fs
from flowsim.claims import System
from flowsim.claims.heads import start_of
from flowsim.claims.three_ways import _practised
from flowsim.model.pairing import Targets

DATA = fs.data.emoji().scaled("length")
TRAIN, HELD_OUT = DATA.part("train").take(slice(24)), DATA.part("test")
FLOW = fs.GradientFlow(fs.LinearEncoders(), fs.temperature.Learnable(0.07))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def first_captions(start):
    return dataclasses.replace(start, text_inputs=start.text_inputs[:, 0], text_counts=None)


START = first_captions(fs.initial.from_features(TRAIN, dim=6).draw(0))

# --- embedding ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [None, 7])
def test_rows_of_held_out_pairs(hidden):
    start = fs.initial.from_features(TRAIN, dim=6, hidden=hidden).draw(3)
    image, text = fs.heads.embed(start, HELD_OUT)

    def head(rows, first, last):
        if first is not None:
            rows = rows @ first
            rows = rows * (1 + erf(rows / np.sqrt(2))) / 2
        return unit(rows @ last)

    inputs = HELD_OUT.image_rows(dtype=np.float64), HELD_OUT.text_rows(dtype=np.float64)
    np.testing.assert_allclose(image, head(inputs[0], start.image_hidden, start.image_weights), atol=1e-13)
    np.testing.assert_allclose(text, head(inputs[1], start.text_hidden, start.text_weights), atol=1e-13)
    assert image.dtype == text.dtype == np.float64


def test_rows_of_all_captions():
    start = fs.initial.from_features(TRAIN, dim=6).draw(0)
    image, text = fs.heads.embed(start, HELD_OUT, captions="all")
    assert image.shape == (171, 6) and text.shape == (342, 6)
    np.testing.assert_array_equal(text[::2], fs.heads.embed(start, HELD_OUT)[1])
    second = HELD_OUT.text_rows(caption=1, dtype=np.float64) @ start.text_weights
    np.testing.assert_allclose(text[1::2], unit(second), atol=1e-13)
    assert fs.observables.retrieval_at_k(image, text, k=5, captions_per_image=2)[0] > 0


def test_a_snapshot_embeds_its_own_training_pairs():
    """Any state of a run: the rows of the training pairs are those that the run recorded."""
    run = fs.simulate(FLOW, START, ts=[0.0, 0.1, 0.2])
    for t in run.time:
        image, text = fs.heads.embed(run.at(t).start, TRAIN)
        np.testing.assert_allclose(image, run.at(t).image, atol=1e-12)
        np.testing.assert_allclose(text, run.at(t).text, atol=1e-12)
        gap = np.linalg.norm((image - text).mean(axis=0))
        assert gap == pytest.approx(run.at(t)["modality_gap"], rel=1e-10)


def zero_weights():
    return dataclasses.replace(START, text_weights=np.zeros_like(START.text_weights))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((fs.initial.uniform(8, 4).draw(0), HELD_OUT), "The start has no weights of heads. Use one of"),
        ((fs.initial.latents(8, 5, dim=4).draw(0), HELD_OUT), "have 128 columns, but the image head takes 5"),
        ((fs.initial.latents(8, 5, dim=4, hidden=3).draw(0), HELD_OUT), "128 columns, but the image head takes 5"),
        ((zero_weights(), HELD_OUT), "The text head gives 0 for row 0, which has no direction"),
        ((START, HELD_OUT, "every"), "captions"),
    ],
)  # fmt: skip
def test_bad_input_of_embed_gives_one_sentence(arguments, says):
    with pytest.raises(fs.FlowsimError, match=says) as error:
        fs.heads.embed(*arguments)
    assert "\n" not in str(error.value)


def test_weights_of_several_times_are_refused():
    several = dataclasses.replace(START, image_weights=np.stack([START.image_weights] * 2))
    with pytest.raises(fs.FlowsimError, match="weights of several times"):
        fs.heads.embed(several, HELD_OUT)


# --- steps --------------------------------------------------------------------------------------------------


def gradients(start, pairs):
    """−∂L/∂ of image weights, text weights and ν of a batch at τ = 0.07, in NumPy."""
    inputs = start.image_inputs[pairs], start.text_inputs[pairs]
    outputs = [a @ w for a, w in zip(inputs, (start.image_weights, start.text_weights), strict=True)]
    (x, y), b, beta = map(unit, outputs), len(pairs), 1 / 0.07
    cosines = x @ y.T
    slope = (softmax(beta * cosines, axis=1) + softmax(beta * cosines, axis=0)) / (2 * b) - np.eye(b) / b
    found = []
    for a, out, row, force in zip(inputs, outputs, (x, y), (-beta * slope @ y, -beta * slope.T @ x), strict=True):
        tangent = force - np.sum(force * row, axis=1, keepdims=True) * row
        found.append(a.T @ (tangent / np.linalg.norm(out, axis=1, keepdims=True)))
    return *found, -beta * np.sum(slope * cosines)


@pytest.mark.parametrize(("batch", "steps"), [(None, 1), (24, 1), (8, 3), (10, 2), (5, 4)])
def test_an_epoch_of_tiny_steps_is_the_sum_of_the_gradients_of_its_batches(batch, steps):
    lr = 1e-9
    run = fs.descend(FLOW, START, "sgd", lr, steps, batch=batch, seed=2)
    order = fs.data.Order(24, batch or 24, 2)
    wanted = [sum(g) for g in zip(*(gradients(START, order.indices(k)) for k in range(steps)), strict=True)]
    end = run.final.start
    for name, sum_ in zip(("image_weights", "text_weights"), wanted, strict=False):
        found = (getattr(end, name) - getattr(START, name)) / lr
        np.testing.assert_allclose(found, sum_, atol=1e-5 * np.abs(sum_).max())
    raw = run.series["raw_temperature"]
    assert (raw[-1] - raw[0]) / lr == pytest.approx(wanted[2], rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_batches_of_all_pairs_are_full_batches(optimizer):
    """Up to the order of the pairs, which changes nothing but rounding."""
    runs = [fs.descend(FLOW, START, optimizer, 5e-3, 60, batch=batch, seed=5) for batch in (None, 24)]
    for name in ("modality_gap", "temperature", "loss"):
        np.testing.assert_allclose(runs[1].series[name], runs[0].series[name], rtol=1e-8)
    other = fs.descend(FLOW, START, optimizer, 5e-3, 60, batch=12, seed=5)
    assert abs(other.series["loss"][-1] / runs[0].series["loss"][-1] - 1) > 1e-2


def test_training_of_heads_takes_the_steps_of_a_descent():
    """`fs.heads.train` with a constant rate is minibatch AdamW of `fs.descend` from the same start."""
    data = fs.data.from_arrays(DATA.image[:40], DATA.text[:40, :1], source="forty emoji")
    settings = fs.heads.Training(
        data=data, split=None, held_out=None, captions="first", dim=6, hidden=None, steps=50, batch_size=16, lr=3e-3,
        warmup=0.0, decay="constant", clamp=None, precision="float64", seed=7, evaluations=5, pairs=None,
    )  # fmt: skip
    record = fs.heads.train(settings, fs.schedules.get("Baseline"))
    start = fs.initial.from_features(data.scaled("length"), dim=6).draw(7)
    run = fs.descend(FLOW, start, _practised(0.1), 3e-3, 50, batch=16, seed=7)
    steps = np.asarray(record.to_xarray()["step"]).astype(int)
    assert len(steps) > 3
    at = np.searchsorted(run.time, 3e-3 * steps - 1e-9)
    for ours, theirs in (("temperature", "temperature"), ("modality_gap", "seen_modality_gap")):
        np.testing.assert_allclose(record.series[theirs], run.series[ours][at], rtol=1e-9)
    assert abs(record.series["temperature"][-1] / 0.07 - 1) > 1e-3


# --- claims and wrong models --------------------------------------------------------------------------------


def test_the_start_of_the_claims_is_on_real_pairs():
    start = start_of(0)
    assert start.image_inputs.shape == start.text_inputs.shape == (128, 128)
    np.testing.assert_allclose(np.linalg.norm(start.image_inputs, axis=1), np.sqrt(128), rtol=1e-12)


def test_weighted_negatives_leave_the_loss_of_all_pairs_alone():
    """The wrong model of minibatches: right for all pairs, and for a batch the loss with the missing negatives."""
    flow = many_negatives(FLOW)
    with jax.enable_x64(True):
        start = start_of(0)
        right, here = (f.loss_value(0.0, f.initial_state(start)) for f in (FLOW, flow))
        assert float(here) == pytest.approx(float(right), rel=1e-12)
        logits = np.random.default_rng(0).standard_normal((4, 4))
        shifted = np.exp(logits) * np.where(np.eye(4), 1, 127 / 3)
        rows, columns = shifted / shifted.sum(1, keepdims=True), shifted / shifted.sum(0, keepdims=True)
        wanted = -np.mean(np.log(np.diag(rows)) + np.log(np.diag(columns))) / 2
        assert float(flow.loss.value(logits, Targets())) == pytest.approx(wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "corrupt",
    [wrong_loss(factor=0.5), wrong_loss(factor=2.0), wrong_loss(one_way=1.0)],
    ids=["half", "twice", "one way"],
)
def test_a_wrong_gradient_breaks_the_order(corrupt):
    verdict = fs.claims.run("heads-sgd-is-the-flow", quick=True, system=System(corrupt))
    assert verdict.verdict == "fails"
    assert verdict.numbers["smallest_order"] < 0.5  # the difference does not fall with the learning rate
    assert verdict.numbers["largest_error_of_the_flow"] > 1e-3


@pytest.mark.slow
def test_with_the_missing_negatives_minibatches_follow_the_flow():
    """What small batches change is the number of negatives: weighted up, nearly all of the difference is gone."""
    right, weighted = (
        fs.claims.run("heads-minibatch-unbiased", quick=True, system=System(corrupt)).numbers
        for corrupt in (lambda flow: flow, many_negatives)
    )
    assert right["loss_over_the_flows"] > 3 and weighted["loss_over_the_flows"] < 1.1
    assert right["temperature_off_the_flow"] > 5 * weighted["temperature_off_the_flow"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in fs.claims.names() if n.startswith("heads-")])
def test_the_claims_have_their_verdicts(name):
    verdict = fs.claims.run(name, quick=True)
    assert verdict.as_expected, verdict
