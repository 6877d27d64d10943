"""Claims beyond the paper's flow: each is turned by a model that breaks what it is about."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from wrong_models import (
    MISTAKES,
    WrongSphere,
    _leaf,
    frozen_temperature,
    learns_by_swaps,
    many_negatives,
    no_force,
    no_schedule,
    one_parametrization,
    wrong,
    wrong_loss,
)

import flowsim as fs
from flowsim.claims import System
from flowsim.model.flow import GradientFlow


class Drifting(WrongSphere):
    """Every discrete step also pulls the images a little to one pole, whatever its learning rate."""

    def retract(self, position: Any) -> Any:
        pole = (jnp.arange(position.image.shape[1]) == 0)[None, :]
        return self.right.retract(dataclasses.replace(position, image=position.image + jnp.where(pole, 1e-3, 0.0)))


def drifting(flow: GradientFlow) -> GradientFlow:
    return flow.replace(geometry=Drifting(flow.geometry, *(_leaf(x) for x in (0.0, 1.0, 0.0))))


def clean(flow: GradientFlow) -> GradientFlow:
    """Ignores noise and mispairing in the targets."""
    return flow.replace(pairing=fs.Matched())


def chance(flow: GradientFlow) -> GradientFlow:
    """Learns from targets that say nothing."""
    return flow.replace(pairing=fs.LabelNoise(0.99))


def hasty(flow: GradientFlow) -> GradientFlow:
    """Moves the temperature three times as far in every step."""
    return flow.replace(**{"schedule.temperature.lr_ratio": 3.0})


def no_shared_part(flow: GradientFlow) -> GradientFlow:
    """Forgets that a force on one row moves the others."""
    if isinstance(flow.geometry, fs.Sphere):
        return flow.replace(geometry=fs.Sphere())
    kernel = getattr(flow.geometry, "kernel", None)
    return flow if kernel is None else flow.replace(geometry=type(flow.geometry)(fs.kernels.Shared(kernel.own)))


#: claim -> what turns it
BREAKS: dict[str, Callable[[GradientFlow], GradientFlow]] = {
    "noise-law": clean,
    "noise-bound": clean,
    "kernel-conserved": no_shared_part,
    "kernel-exponent": no_shared_part,
    "kernel-linear-encoders": no_shared_part,
    "kernel-step": MISTAKES["lost tangent projection"],
    "kernel-enlargement": no_shared_part,
    "kernel-fixed-temperature": no_shared_part,
    "kernel-noise": no_shared_part,
    "kernel-sphere-conserved": no_shared_part,
    "kernel-limit": no_shared_part,
    "sgd-is-the-flow": drifting,
    "sgd-follows-averaged-swaps": drifting,
    "adam-limit": drifting,
    "adam-enlarges": wrong(factor=0.0),
    "adam-stabilises": wrong(factor=0.0),
    "adam-conserves": wrong(factor=0.0),
    "retrieval-inverted-u": chance,
    "real-colder-keeps-gap": no_force,
    "real-schedule-lowers-gap": no_schedule,
    "real-slow-rate-lowers-gap": MISTAKES["ignored learning-rate ratio"],
    "real-softplus-lowers-gap": one_parametrization,
    "real-swap-lowers-gap": MISTAKES["swaps nothing"],
    "real-smaller-gap-retrieves": no_force,
    "real-swap-retrieves": learns_by_swaps,
    "real-zero-shot-with-retrieval": no_force,
    "real-mispaired-opens-gap": no_force,
    "real-mispaired-opens-gap-learned": frozen_temperature,
    "heads-sgd-is-the-flow": wrong_loss(factor=0.5),
    "heads-minibatch-unbiased": many_negatives,
    "heads-minibatch-share": many_negatives,
    "heads-minibatch-spread": no_force,
    "heads-adam-gap": no_force,
    "heads-adam-temperature": hasty,
}


AVERAGES = {"swap-average", "swap-masks", "swap-redraw"}
MIRRORED, ANY = "subspace-angle-mirrored", "subspace-angle"
#: mistake -> the claims that it turns, and claims that it is run on and leaves alone
MISTAKEN: dict[str, tuple[set[str], set[str]]] = {
    "swaps nothing": (
        {*AVERAGES, "swaps-lower-gap", "soft-swap-reading", "sgd-follows-averaged-swaps", "paper-order"},
        set(),
    ),
    "no rule of Adam": ({"adam-limit", "heads-adam-limit"}, {"sgd-is-the-flow"}),
    "mean of the masks": ({"swap-average", "swap-masks", "swaps-lower-gap"}, set()),
    "ignored targets": ({"repairing-opens-gap", "frozen-mispairing"}, set()),
    "flipped sign of the bias": ({"siglip-feasible", "siglip-margins"}, set()),
    "rows of any length": ({"siglip-feasible", "siglip-margins"}, set()),
    "forgotten hyperplanes": ({MIRRORED}, {ANY}),
    "drag towards the axes": ({ANY}, {MIRRORED}),
    "temperature multiplied": ({"contrastive-gap", "imbalance-costs-loss", "mismatch-enlarges", "paper-order"}, set()),
    "one loss direction": ({"ambient-force"}, {"projection-moves-gap"}),
    "lost tangent projection": ({"projection-moves-gap"}, {"ambient-force", "mismatch-enlarges"}),
    "drift of the rows": ({"mismatch-enlarges", "repairing-opens-any-gap"}, set()),
    "ignored learning-rate ratio": ({"paper-order-table-2"}, set()),
}


@pytest.mark.slow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_turns_exactly_its_claims(mistake):
    turned, left = MISTAKEN[mistake]
    system = System(MISTAKES[mistake])
    verdicts = [fs.claims.run(name, quick=True, system=system) for name in sorted(turned | left)]
    assert {v.id for v in verdicts if not v.as_expected} == turned
    assert "undecided" not in {v.verdict for v in verdicts}


def test_every_mistake_is_run():
    assert set(MISTAKEN) == set(MISTAKES)


@pytest.mark.slow
@pytest.mark.parametrize("claim", BREAKS)
def test_claim_is_turned_by_a_model_that_breaks_it(claim):
    verdict = fs.claims.run(claim, quick=True, system=System(BREAKS[claim]))
    assert not verdict.as_expected, verdict
    assert verdict.verdict != "undecided"


def test_the_broken_parts_are_what_they_say():
    """The drift acts in discrete steps alone, and `clean` leaves nothing but the pairing changed."""
    with jax.enable_x64(True):
        start = fs.initial.cones(pairs=4, dim=3).draw(0)
        right, broken = fs.GradientFlow(), drifting(fs.GradientFlow())
        fields = [f.vector_field(0.0, f.initial_state(start)) for f in (right, broken)]
        for a, b in zip(*(jax.tree.leaves(f) for f in fields), strict=True):
            assert jnp.allclose(a, b, rtol=1e-12)
    noisy = fs.GradientFlow(pairing=fs.LabelNoise(0.2))
    assert clean(noisy).to_config() == fs.GradientFlow().to_config()
