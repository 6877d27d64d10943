"""Every claim has its expected verdict, and every claim is turned by a model that breaks what it is about."""

import dataclasses
import importlib.util
import json
import math
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from test_claims_beyond import BREAKS, MISTAKEN
from wrong_models import WRONG_MODELS, wrong

import flowsim as fs
from flowsim.claims import Claim, System, Table, Verdict
from flowsim.claims.measures import gap_force, margin
from flowsim.claims.swaps import rank_correlation

ROOT = Path(__file__).resolve().parents[1]
NAMES = fs.claims.names()

#: Claims about swaps, pairs, other losses and the like have wrong models of their own.
BEYOND = set(BREAKS).union(*(turned for turned, _ in MISTAKEN.values()))
OWN = set(NAMES) - BEYOND
CHEAP = {name for name in NAMES if fs.claims.get(name).cheap}
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
        "enlarge-then-close", "force-sign", "closed-stays-closed", "temperature-presets",
    },
    # Rings and orthonormal or simplex pairs have symmetric softmaxes: one direction is as good as two.
    "one loss direction": {"loss-gradient", *FIELD, "symmetries", "fixed-temperature", "force-sign"},
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
        *FIELD, *CONSERVED, "power-of-beta", "closed-form", "exponent-in-time", "identity-law", "theorem-3.2",
        "theorem-3.3-bound", *RATES, "enlarge-then-close",
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
        "field-is-gradient", *(CONSERVED - {"lemma-3.1"}), "theorem-3.3-gap", *RINGS, "enlarge-then-close",
        "gap-moves-with-temperature", "closed-stays-closed", "temperature-presets",
    },
    "drift of the rows": {*FIELD, "symmetries", *RINGS, "closed-stays-closed"},
    "one shared height on the sphere": {*RINGS, "lemma-3.1-on-figure-2"},
    "fivefold flipped γ": {"theorem-3.2", "theorem-3.2-as-printed"},
    # Where nothing moves nothing is shown: no claim may take that for its statement.
    "no force": OWN - {"theorem-3.2-as-printed", "theorem-3.3-gap"},
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


def own(name: str = "own", number: float = 1.0) -> Claim:
    return Claim(name, "X.", "here", "none", lambda s, q: {"x": number}, at_most={"x": 1.0})


@pytest.mark.parametrize("processes", [False, True])
def test_a_claim_of_a_user_is_one_of_the_table(processes):
    fs.claims.register(own(number=2.0))
    fs.claims.register(own())  # a cell of a notebook that ran again
    told = []
    asked = ["own", "theorem-3.3-height", "loss-gradient"]
    found = fs.claims.run_all(True, lambda *told_: told.append(told_), only=asked, processes=processes)
    assert [v.id for v in found] == ["loss-gradient", "theorem-3.3-height", "own"]
    assert all(v.as_expected for v in found)
    assert fs.claims.names()[-1] == "own"
    assert {name for name, _, _ in told} == set(asked)
    assert [(done, total) for _, done, total in told] == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"measure": lambda s, q: {"x": "small"}},
            "'x' of the claim 'own' must be one number, but is 'small'",
        ),
        ({"measure": lambda s, q: {"x": np.zeros(3)}}, "must be one number, but is array"),
        ({"measure": lambda s, q: {"y": 1.0}}, "gave no number 'x', which has a limit. It gave: 'y'"),
        ({"measure": lambda s: {}}, r"must be a function of \(system, quick\)"),
    ],
)
def test_claims_that_cannot_be_judged_get_one_sentence(changes, message):
    with pytest.raises(fs.FlowsimError, match=message):
        dataclasses.replace(own(), **changes).run()


def test_ids_are_a_list():
    with pytest.raises(fs.FlowsimError, match=r"must be a list of ids, but is 'own'. Use e.g. \['own'\]"):
        fs.claims.run_all(only="own")


def test_flowsims_claims_are_protected():
    with pytest.raises(fs.FlowsimError, match=r"flowsim already has a claim named 'lemma-3\.1'"):
        fs.claims.register(own("lemma-3.1"))


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
    assert set().union(*(claims for model, claims in TURNED.items() if model != "no force")) == OWN
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


# --- what the sentences about the dynamics rest on ----------------------------------------------------------

#: Independent rows at a = β(1 − γ²) = 13 that are mismatched and yet have g > 0: pairs, seed.
CLOSING = [(4, 334), (4, 410), (4, 771), (4, 1288), (5, 856), (5, 1697), (5, 9092)]


@pytest.mark.parametrize(("pairs", "seed"), CLOSING)
def test_mismatched_pairs_may_close(pairs, seed):
    start = fs.initial.uniform(pairs, 6, gamma=0.3).draw(seed)
    z = start.image @ start.text.T
    assert margin(z) < 0 < gap_force(z, 13.0)


@pytest.mark.parametrize("pairs", [2, 4, 8, 32])
@pytest.mark.parametrize("a", [0.5, 5.0, 13.0, 50.0])
def test_matched_pairs_never_open(pairs, a):
    """g(a) ≥ 0 where every pair is nearest in its row and column, also if partners are not identical."""
    rng = np.random.default_rng(pairs)
    found = 0
    for _ in range(200):
        x = rng.standard_normal((pairs, 6))
        y = x + 0.3 * rng.standard_normal((pairs, 6))
        z = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
        if margin(z) > 0:
            found += 1
            assert gap_force(z, a) >= -1e-15  # 1/n − p loses digits where p is near 1/n
    assert found or pairs == 32


PARALLEL, SPHERE = fs.Parallel(), fs.Sphere()
PEAKS = {
    "parallel": (PARALLEL, 0.5, fs.initial.uniform(8, 6, gamma=0.1), range(3)),
    "parallel, colder": (PARALLEL, 0.2, fs.initial.uniform(8, 6, gamma=0.02), range(3)),
    "parallel, low cones": (PARALLEL, 0.3, fs.initial.uniform(8, 6, gamma=0.01), range(3)),
    "Figure 2": (SPHERE, 0.07, fs.initial.rings(5, 0.309, twist=-144.0), range(1)),
    "rings, hotter": (SPHERE, 0.2, fs.initial.rings(5, 0.309, twist=-144.0), range(1)),
    "rings, another twist": (SPHERE, 0.07, fs.initial.rings(5, 0.2, twist=100.0), range(1)),
    "random cones": (SPHERE, 0.07, fs.initial.cones(16, 8, 0.3), range(3)),
    "cones with texts exchanged": (SPHERE, 0.07, fs.initial.mismatched(16, 7, 0.3, 0.5), range(3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PEAKS)
def test_the_gap_peaks_before_the_pairs_match(name):
    """Gap (on cones: height) and temperature turn while the margin is negative, and fall before it is positive."""
    geometry, tau, start, seeds = PEAKS[name]
    flow = fs.GradientFlow(geometry, fs.temperature.Learnable(tau))
    for seed in seeds:
        run = fs.simulate(flow, start, seed=seed, t1=1e5)
        gap = np.asarray(run.series["gamma" if geometry is PARALLEL else "modality_gap"])
        peak, matched = int(np.argmax(gap)), int(np.argmax(np.asarray(run.series["margin"]) > 0))
        assert 0 < peak < matched, (peak, matched)
        assert gap[matched] < gap[peak]
        assert np.argmax(run.series["temperature"]) < matched


@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/index.md", "docs/concepts.md", "docs/limits.md", "docs/notebooks/gap-in-five-minutes.ipynb"],
)
def test_pages_tell_the_times_of_figure_2(page):
    """The times of the peak and of the matching are those that `figure-2` measures, and are told apart."""
    text = (ROOT / page).read_text(encoding="utf-8")
    peak, matching = (f"{fs.theory.FIGURE_2[name]:.2f}" for name in ("peak_time", "matching_time"))
    assert peak in text and matching in text
    assert not re.search(r"opens until the\s+pairs are matched|only shrinks once", text)


@pytest.mark.parametrize("methods", [10, 26, 50])
@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0])
def test_interval_of_the_order_is_over_methods(methods, noise):
    """Where all seeds agree, ρ of other methods is still uncertain: by about (1 − ρ²)/√n on each side, twice."""
    rng = np.random.default_rng(1)
    paper = np.linspace(0, 1, methods)
    gaps = np.repeat((paper + noise * rng.standard_normal(methods))[:, None], 4, axis=1)
    rho, low, high = rank_correlation(gaps, paper, 400)
    error = (1 - rho**2) / np.sqrt(methods - 1)
    assert low < rho < high
    assert 2 * error < high - low < 8 * error


# --- the tables ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "_site" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("factor", [0.3, 3.0])
def test_tables_do_not_depend_on_rounding(generate, monkeypatch, factor):
    """Another machine rounds otherwise: errors that are rounding may grow threefold and the tables stay the same."""
    before = generate.claims_in_short(), generate.claims_table()
    verdicts = generate.measured()
    changed = 0
    for verdict in verdicts:
        numbers = verdict["numbers"]
        for name, value in numbers.items():
            if value is not None and 0 < abs(value) < 3e-9 and not name.endswith(("_at_most", "_at_least")):
                numbers[name], changed = factor * value, changed + 1
    assert changed > 20
    monkeypatch.setattr(generate, "measured", lambda: verdicts)
    assert (generate.claims_in_short(), generate.claims_table()) == before


@pytest.mark.parametrize(
    ("value", "limit", "text"),
    [
        (2.7e-10, ("≤", 1e-8), "≤ 1e-8"),
        (-4.4e-16, ("≥", -1e-9), "≥ -1e-9"),
        (4.7e-5, ("≤", 1e-4), "4.7e-5 (≤ 0.0001)"),
        (1.6e-22, None, "< 1e-8"),
        (0.0, ("≤", 0.0), "0 (≤ 0)"),
        (-0.1410, ("≤", 0.0), "-0.141 (≤ 0)"),
        (None, ("≤", 1.0), "– (≤ 1)"),
    ],
)
def test_rounding_is_given_by_its_limit(generate, value, limit, text):
    assert generate._measured(value, limit) == text
