"""Arguments of the wrong kind, in a session without run-time type checks."""

import json
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("fs.simulate('Baseline', fs.initial.rings(), t1=1)", "Expected a GradientFlow, but got str"),
        ("fs.simulate(fs.GradientFlow(), 'rings', t1=1)", "Expected a start, but got str"),
        ("fs.simulate(fs.GradientFlow(), fs.initial.rings(), t1=1, method='explicitt')", "Did you mean 'explicit'"),
        ("fs.GradientFlow().replace(**{'schedule.temperature.init': None})", "holds a number, not None"),
        (
            "fs.sweep(fs.GradientFlow(), fs.initial.rings(), {'seed': 3}, t1=1)",
            "must be a list, but are 3. Use e.g. [3]",
        ),
        ("fs.compare([1.0, 2.0])", "Expected a result or the path of one, but got list"),
        ("fs.GradientFlow().replace(geometry=3)", "Give an object of its kind"),
        ("fs.GradientFlow('Baseline')", "For a preset use fs.GradientFlow.from_preset('Baseline')"),
        ("fs.GradientFlow(fs.Parallel)", "Write Parallel(), with parentheses"),
        ("fs.GradientFlow(loss='Sigmoid')", "Use a loss such as fs.Sigmoid()"),
        ("fs.GradientFlow(pairing=0.1)", "Use a pairing such as fs.LabelNoise(0.1)"),
        ("fs.temperature.Learnable(parametrization='softplus')", "Use e.g. fs.temperature.Softplus()"),
        ("fs.claims.base.Claim('a', '', '', '', lambda s, q: {})", "Give `at_most` or `at_least`"),
        ("fs.claims.base.Claim('a', '', '', '', lambda s, q: {'b': 1}, at_most={'c': 1}).run()", "'c'. Known: b"),
        ("fs.claims.base.Claim('a', '', '', '', lambda s, q: 3.0, at_most={'c': 1}).run()", "a dict of named numbers"),
        ("fs.claims.run('lemma-3.1', system=3)", "`system` cannot be 3"),
    ],
)
def test_wrong_kinds_get_one_sentence(call, message, said):
    assert message in said[call]


@pytest.fixture(scope="module")
def said():
    """What each call says; one process for all, whose imports take longest."""
    mark = next(m for m in test_wrong_kinds_get_one_sentence.pytestmark if m.name == "parametrize")
    code = "import flowsim as fs, json\nfound = {}\n" + "".join(
        f"try:\n    {call}\nexcept fs.FlowsimError as error:\n    found[{call!r}] = str(error)\n"
        for call, _ in mark.args[1]
    )
    code += "print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
