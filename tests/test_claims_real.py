"""Claims on real pairs: the runs that they share, and models that turn them."""

import dataclasses

import jax
import numpy as np
import pytest
from test_claims_beyond import BREAKS

import flowsim as fs
from flowsim.claims import System, real_pairs
from flowsim.claims.real_pairs import SETTINGS, Finals, trained

NAMES = [name for name in fs.claims.names() if name.startswith("real-")]
#: The claim that needs the fewest programs.
FAST = "real-slow-rate-lowers-gap"


def test_every_claim_on_real_pairs_has_a_wrong_model():
    assert len(NAMES) == 10
    assert set(NAMES) <= set(BREAKS)


@pytest.mark.parametrize("name", [FAST, *(pytest.param(n, marks=pytest.mark.slow) for n in NAMES if n != FAST)])
def test_verdict_is_the_expected_one(name):
    verdict = fs.claims.run(name, quick=True)
    assert verdict.as_expected, verdict


def test_a_wrong_model_is_turned():
    """The slow tests turn all of them."""
    verdict = fs.claims.run(FAST, quick=True, system=System(BREAKS[FAST]))
    assert verdict.verdict == "fails"
    assert verdict.numbers["largest_gap_over_baseline"] == pytest.approx(1.0)


def test_finals_are_those_of_a_training():
    """The numbers of a claim are those that `fs.heads.train` records."""
    found = trained(System(), "Baseline", quick=True)
    with jax.enable_x64(True):
        again = trained(System(), "Baseline", quick=True)
    assert again is found
    assert all(getattr(found, field.name).shape == (2,) for field in dataclasses.fields(Finals))
    record = fs.heads.train(SETTINGS.replace(seed=1, evaluations=1), "Baseline")
    recall = (record["image_to_text_at_1"][-1] + record["text_to_image_at_1"][-1]) / 2
    assert found.gap[1] == pytest.approx(float(record["modality_gap"][-1]), rel=0.02)
    assert found.temperature[1] == pytest.approx(float(record["temperature"][-1]), rel=0.02)
    assert found.recall[1] == pytest.approx(float(recall), abs=0.02)
    assert found.zero_shot[1] == pytest.approx(float(record["zero_shot"][-1]), abs=0.02)


def test_methods_that_all_end_alike_show_nothing(monkeypatch):
    """Equal gaps have no rank correlation: the claim fails, and is not taken for a finding."""
    alike = Finals(*(np.full(3, 0.2) for _ in range(4)))
    monkeypatch.setattr(real_pairs, "trained", lambda *options: alike)
    for name in ("real-smaller-gap-retrieves", "real-colder-keeps-gap", "real-swap-lowers-gap"):
        assert fs.claims.run(name).verdict == "fails"


def test_criteria_can_hold_and_fail(monkeypatch):
    """Numbers that a claim would have if it were the other way round turn its verdict."""
    runs = {"swapped": Finals(*np.array([[0.1, 0.1], [0.02, 0.02], [0.3, 0.3], [0.2, 0.2]]))}
    plain = Finals(*np.array([[0.2, 0.2], [0.02, 0.02], [0.25, 0.28], [0.2, 0.2]]))
    monkeypatch.setattr(
        real_pairs, "trained", lambda system, schedule, quick: runs["swapped"] if schedule.swap.active else plain
    )
    assert fs.claims.run("real-swap-retrieves").verdict == "holds"
    runs["swapped"] = dataclasses.replace(plain, gap=np.array([0.1, 0.1]))
    assert fs.claims.run("real-swap-retrieves").verdict == "fails"
