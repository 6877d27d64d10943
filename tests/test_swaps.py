"""Masks and targets that are redrawn: the piecewise flow, its limit, and its clock."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim.model.swaps import AbstractSwap
from flowsim.model.temperature import Fixed, Learnable

N = 4
START = fs.initial.cones(N, 3, random_basis=True)
TIMES = [0.0, 0.5, 1.0]


class EveryRowSwap(AbstractSwap):
    """The expectation of `HardSwap(by="row")` itself: all 2^n choices of rows, no draw."""

    fraction: Any = eqx.field(converter=np.asarray, default=1.0)
    masks: ClassVar[int] = 2**N
    redraw: ClassVar[None] = None
    active: ClassVar[bool] = True

    def draw(self, key, count, pairs, dim, dtype):
        choices = (np.arange(2**pairs)[:, None] >> np.arange(pairs)[None, :]) & 1
        return jnp.asarray(choices[:, :, None], dtype)

    def apply(self, weights, image, text):
        return weights * image + (1 - weights) * text, (1 - weights) * image + weights * text


def flow_with(redraw, masks=1):
    return fs.GradientFlow(schedule=fs.Schedule(Learnable(0.3), fs.HardSwap(1.0, "row", masks, redraw)))


def distance(result, exact):
    return max(np.abs(getattr(result.final, which) - getattr(exact.final, which)).max() for which in ("image", "text"))


@pytest.mark.slow
def test_the_piecewise_flow_of_a_swap_tends_to_the_averaged_flow():
    """One mask at a time: the distance to the flow of the expected loss falls with the interval like √interval."""
    averaged = fs.simulate(fs.GradientFlow(schedule=fs.Schedule(Learnable(0.3), EveryRowSwap())), START, ts=TIMES)
    spread = []
    for redraw in (0.5, 1 / 16, 1 / 128):
        runs = [fs.simulate(flow_with(redraw), START.draw(0), ts=TIMES, seed=seed) for seed in (1, 2)]
        spread.append(np.mean([distance(run, averaged) for run in runs]))
    assert spread[1] < spread[0] / 1.5
    assert spread[2] < spread[1] / 1.5
    assert spread[2] < 0.05


@pytest.mark.slow
def test_the_piecewise_flow_of_repairing_tends_to_label_noise():
    """One permutation at a time: the distance to the flow of the expected targets falls with the interval."""
    flow = fs.GradientFlow(schedule=Fixed(0.3), pairing=fs.FreshRepairing(1.0))
    averaged = fs.simulate(flow, START, ts=TIMES)
    spread = []
    for redraw in (0.5, 1 / 16, 1 / 128):
        piecewise = flow.replace(**{"pairing.redraw": redraw})
        runs = [fs.simulate(piecewise, START.draw(0), ts=TIMES, seed=seed) for seed in (1, 2)]
        spread.append(np.mean([distance(run, averaged) for run in runs]))
    assert spread[1] < spread[0] / 1.5
    assert spread[2] < spread[1] / 1.5
    assert spread[2] < 0.05


def test_a_seed_names_its_draws():
    flow = flow_with(0.25)
    first, again, other = (fs.simulate(flow, START.draw(0), ts=TIMES, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.final.image, again.final.image)
    assert np.abs(first.final.image - other.final.image).max() > 1e-3
    assert first.stats["segments"] == 4


@pytest.mark.parametrize("pause", [0.5, 0.6])
def test_continuing_keeps_the_grid_of_draws(pause):
    """Stopped at a draw or between two, the run goes on with the draws it would have had."""
    flow = flow_with(0.25)
    whole = fs.simulate(flow, START, ts=TIMES, seed=3)
    head = fs.simulate(flow, START, ts=[0.0, 0.1, pause], seed=3)
    tail = fs.simulate(flow, head, ts=[pause, 0.9, 1.0])
    assert distance(tail, whole) < 1e-8
    assert distance(tail, head) > 1e-2


def test_output_times_do_not_change_the_draws():
    coarse, fine = (fs.simulate(flow_with(0.4), START, ts=ts, seed=3) for ts in (TIMES, [0.0, 0.37, 1.0]))
    assert distance(coarse, fine) < 1e-8


def test_what_has_no_interval_keeps_its_first_draw():
    """Swap redrawn, mispairing frozen: the targets of all intervals are those of the first."""
    pairing = fs.FrozenMispairing(0.5)
    with jax.enable_x64(True):
        flow = flow_with(0.25, masks=2).replace(pairing=pairing)
        state = flow.initial_state(START.draw(0), seed=5)
        later = [flow.redrawn(state, 5, index) for index in (1, 2)]
    for drawn in later:
        np.testing.assert_array_equal(drawn.targets.rows, state.targets.rows)
        assert not np.array_equal(drawn.masks, state.masks)
    assert not np.array_equal(later[0].masks, later[1].masks)
    assert float(flow.redraw) == 0.25


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: fs.HardSwap(redraw=-1.0), "`redraw` must be positive, but is -1"),
        (lambda: fs.SoftSwap(redraw=0.0), "`redraw` must be positive, but is 0"),
        (
            lambda: fs.simulate(flow_with(0.5).replace(pairing=fs.FreshRepairing(0.5, 0.25)), START, t1=1.0),
            "different `redraw` intervals. Give both the same",
        ),
    ],
)
def test_bad_input_gets_one_sentence(act, message):
    with pytest.raises(fs.FlowsimError, match=message):
        act()


def test_swaps_of_entries_in_a_random_basis_need_a_height():
    flow = fs.GradientFlow(fs.Parallel(), fs.Schedule(swap=fs.HardSwap(1.0, masks=2)))
    cones = fs.initial.cones(4, 4, height=0.0, random_basis=True)
    with pytest.raises(fs.FlowsimError, match="Use a height above 0"):
        fs.simulate(flow, cones, t1=1.0)
    rows = fs.GradientFlow(fs.Parallel(), fs.Schedule(swap=fs.HardSwap(1.0, by="row", masks=2)))
    assert fs.simulate(rows, cones, ts=[0.0, 1e-4]).status.ok
