"""Arguments of the wrong kind, in a session without run-time type checks."""

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
    ],
)
def test_wrong_kinds_get_one_sentence(call, message):
    code = f"import flowsim as fs\ntry:\n    {call}\nexcept fs.FlowsimError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert message in done.stdout
