"""Every claim has its expected verdict, and every claim is turned by a model that breaks what it is about."""

import json
import math
from functools import cache

import pytest
from test_claims_beyond import BREAKS, MISTAKEN
from wrong_models import WRONG_MODELS, wrong

import flowsim as fs
from flowsim.claims import Claim, System, Table, Verdict

NAMES = fs.claims.names()

#: Claims about swaps, pairs, other losses and the like have wrong models of their own.
BEYOND = set(BREAKS).union(*(turned for turned, _ in MISTAKEN.values()))
OWN = set(NAMES) - BEYOND
CHEAP = set(fs.claims.CHEAP)
QUICK = [name for name in NAMES if name in CHEAP]
FEARED = (
    "lost factor 2 in the gradient", "temperature multiplied", "one loss direction", "flipped sign of ν",
)  # fmt: skip

FIELD = {"field-is-gradient", "loss-decreases"}
CONSERVED = {"lemma-3.1", "conserved-exp", "conserved-scaled-exp", "conserved-softplus", "conserved-identity"}
RINGS = {"figure-2", "rings-conserve", "rings-exponent"}
RATES = {"fixed-temperature", "linear-schedule"}
TOGETHER = {"gap-moves-with-temperature", "force-sign"}

#: model -> exactly the claims that it turns.
TURNED: dict[str, set[str]] = {
    "lost factor 2 in the gradient": {
        "loss-gradient", *FIELD, "closed-form", "theorem-3.3-bound", "figure-2", *RATES,
    },
    "temperature multiplied": {
        *FIELD, *CONSERVED, "closed-form", "identity-law", "theorem-3.2", "theorem-3.3-height",
        "theorem-3.3-deduction", "theorem-3.3-bound", "figure-2", "rings-conserve", *RATES, "label-noise",
        "enlarge-then-close", "force-sign", "temperature-presets",
    },
    # Rings and orthonormal or simplex pairs have symmetric softmaxes: one direction is as good as two.
    "one loss direction": {"loss-gradient", *FIELD, "symmetries", "fixed-temperature"},
    "flipped sign of ν": {
        *FIELD, *CONSERVED, "power-of-beta", "closed-form", "exponent-in-time", "identity-law", "theorem-3.2",
        *RINGS, *TOGETHER, "temperature-presets",
    },
    "flipped sign of γ": {
        *FIELD, *CONSERVED, "power-of-beta", "closed-form", "exponent-in-time", "identity-law", "theorem-3.2",
        "theorem-3.3-height", "theorem-3.3-deduction", "theorem-3.3-bound", *RATES, "label-noise",
        "enlarge-then-close", *TOGETHER, "temperature-presets",
    },
    "lost factor 2 in γ": {
        *FIELD, *CONSERVED, "power-of-beta", "closed-form", "exponent-in-time", "identity-law",
        "theorem-3.3-bound", *RATES,
    },
    "lost chain rule of ν": {
        *FIELD, *(CONSERVED - {"conserved-identity"}), "power-of-beta", "closed-form", "exponent-in-time",
        "theorem-3.2", *RINGS,
    },
    "ignored learning-rate ratio": {
        *FIELD, *(CONSERVED - {"lemma-3.1"}), "power-of-beta", "exponent-in-time", "identity-law",
    },
    "lost tangent projection": {*FIELD, *RINGS},
    "frozen rows": {
        "field-is-gradient", "theorem-3.3-gap", *RINGS, "enlarge-then-close", "gap-moves-with-temperature",
        "temperature-presets",
    },
    "drift of the rows": {*FIELD, "symmetries", *RINGS, "closed-stays-closed"},
    "one shared height on the sphere": {*RINGS, "lemma-3.1-on-figure-2"},
    "fivefold flipped γ": {"theorem-3.2", "theorem-3.2-as-printed"},
}  # fmt: skip

#: Models that are run on some claims only: the others do not fit them, or take long to say the same.
ASKED = {
    "one shared height on the sphere": {*RINGS, "lemma-3.1-on-figure-2"},
    "fivefold flipped γ": {"theorem-3.2", "theorem-3.2-as-printed"},
}


@cache
def table() -> Table:
    return fs.claims.table(quick=True, only=QUICK)


@pytest.mark.parametrize("name", QUICK)
def test_verdict_is_the_expected_one(name):
    verdict = table()[name]
    assert verdict.as_expected, verdict


def test_there_are_enough_claims_and_some_are_expected_to_fail():
    assert len(NAMES) >= 15
    assert {"holds", "fails"} == {fs.claims.get(n).expected for n in NAMES}


def test_json_is_strict_and_complete():
    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    data = json.loads(table().to_json(), parse_constant=refuse)
    assert [entry["id"] for entry in data] == QUICK
    keys = ["id", "statement", "source", "assumptions", "numbers", "expected", "verdict"]
    for entry in data:
        assert list(entry) == keys
        assert all(isinstance(v, (int, float)) for v in entry["numbers"].values() if v is not None)
        limits = [k for k in entry["numbers"] if k.endswith(("_at_most", "_at_least"))]
        assert limits
        assert entry["statement"].endswith(".")


def test_table_reads_as_text_and_html():
    text, html = repr(table()), table()._repr_html_()
    for name in QUICK:
        assert name in text
        assert name in html
    assert max(len(line) for line in text.splitlines()) < 160


def test_unknown_claim_has_a_hint():
    with pytest.raises(fs.FlowsimError, match=r"Did you mean 'lemma-3\.1'"):
        fs.claims.run("lema-3.1")


def _claim(number: float, expected: str) -> Verdict:
    claim = Claim("x", "X.", "here", "none", lambda s, q: {"x": number}, expected, at_most={"x": 1.0})
    return claim.run()


def test_judgement():
    assert _claim(0.5, "holds").verdict == "holds"
    assert _claim(1.5, "holds").verdict == "fails"
    assert _claim(0.5, "fails").verdict == "holds"
    assert _claim(1.5, "fails").as_expected


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_could_not_be_measured_supports_nothing(broken):
    assert not _claim(broken, "holds").as_expected
    assert not _claim(broken, "fails").as_expected
    assert _claim(broken, "fails").to_dict()["numbers"]["x"] is None


def test_every_claim_is_turned_by_some_model():
    assert set(TURNED) == set(WRONG_MODELS)
    assert set().union(*TURNED.values()) == OWN
    assert set(NAMES) >= BEYOND


def _turned(model: str, names: set[str]) -> set[str]:
    system = System(WRONG_MODELS[model])
    verdicts = [fs.claims.run(n, quick=True, system=system) for n in NAMES if n in names]
    turned = {v.id: v.verdict for v in verdicts if not v.as_expected}
    assert "undecided" not in turned.values()
    return set(turned)


@pytest.mark.parametrize("model", FEARED)
def test_wrong_model_turns_the_right_claims(model):
    assert _turned(model, CHEAP) == TURNED[model] & CHEAP


@pytest.mark.slow
@pytest.mark.parametrize("model", WRONG_MODELS)
def test_wrong_model_turns_its_claims_and_no_cheap_one(model):
    assert _turned(model, ASKED.get(model, TURNED[model] | (OWN & CHEAP))) == TURNED[model]


@pytest.mark.exhaustive
@pytest.mark.parametrize("model", WRONG_MODELS)
def test_wrong_model_turns_exactly_its_claims(model):
    assert _turned(model, ASKED.get(model, OWN)) == TURNED[model]


@pytest.mark.slow
def test_the_wrapped_right_model_turns_nothing():
    verdicts = fs.claims.run_all(quick=True, system=System(wrong()), only=sorted(OWN))
    assert [v.id for v in verdicts if not v.as_expected] == []


@pytest.mark.exhaustive
def test_full_size_verdicts():
    verdicts = fs.claims.run_all(only=sorted(OWN))
    assert [v.id for v in verdicts if not v.as_expected] == []
