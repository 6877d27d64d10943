"""`fs.check`: flowsim's own parts pass, a part that is wrong in one way fails at the finding for it, nothing raises."""

import inspect
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import jax.numpy as jnp
import numpy as np
import pytest

import flowsim as fs
from flowsim.base.modules import PARTS, parts_of
from flowsim.conformance.run import SUITES
from flowsim.observables.observable import Observable

OWN = {name: cls for suite in SUITES for name, cls in parts_of(suite.base).items() if PARTS.is_ours(name)}
del OWN["FromFeatures"]  # has a test of its own
#: Objects of classes that have no defaults, and of others with other numbers.
MORE = {
    "Piecewise": fs.temperature.piecewise([(0.0, 0.1), (0.5, 0.05)]),
    "Piecewise, steps": fs.temperature.piecewise([(0.0, 0.1), (0.3, 0.2), (0.5, 0.05)], steps=True),
    "FromFunction": fs.temperature.from_function(lambda u: 0.07 * 0.1**u, name="falling in the test of conformance"),
    "Learnable, softplus": fs.temperature.Learnable(0.1, fs.temperature.Softplus(), lr_ratio=0.1, clamp=(0.01, 1.0)),
    "Learnable, identity": fs.temperature.Learnable(parametrization=fs.temperature.Identity()),
    "Dense": fs.kernels.Dense([[2.0, 1.0], [1.0, 2.0]]),
    "Blocks": fs.kernels.Blocks(np.eye(6) + 0.5),
    "Sphere, kernels": fs.Sphere(2.0, fs.kernels.Shared(1.0, 0.2), fs.kernels.Shared(0.5, 0.1)),
    "Parallel, kernel": fs.Parallel(fs.kernels.Shared(1.0, 0.2)),
    "DirectedInfoNCE, texts": fs.DirectedInfoNCE("text_to_image"),
    "Sigmoid, relative": fs.Sigmoid(bias=0.1, relative_bias=True, bias_rate=None),
    "Regularised": fs.Regularised(alignment=0.5, uniformity=0.2),
    "FreshRepairing, redrawn": fs.FreshRepairing(0.5, redraw=1.0),
    "Clusters, of 7": fs.Clusters(7),
    "HardSwap, rows": fs.HardSwap(0.1, by="row", redraw=2.0),
    "SoftSwap, updated": fs.SoftSwap(reading="updated"),
    "Cones, turned": fs.initial.cones(random_basis=True),
    "Latents, two layers": fs.initial.latents(hidden=3, noise=0.1),
}
#: Wrong part -> what finds it.
WRONG = {
    "NegativeTemperature": "positive", "LeavesAfterTheEnd": "positive", "OneNumberForMany": "positive",
    "DoubleConstant": "dtype", "StaticNumber": "numbers", "NumpyInside": "jit", "JaxInside": "arrays", "Impure": "pure",
    "SaysAutonomous": "autonomous", "NoRepr": "repr", "Halved": "json", "OddBreakpoints": "breakpoints",
    "Broken": "runs", "NoRaw": "initial_raw", "WrongPolicyDerivative": "derivative", "DerivativeMissing": "derivative",
    "WrongRawOf": "raw_of", "UpsideDownBounds": "bounds", "NegativeRate": "lr_ratio", "Outside": "exits",
    "SaysExp": "parametrization",
    "WrongDerivative": "derivative", "NoInverse": "inverse", "Falling": "increasing", "JaxParametrization": "arrays",
    "DoubleParametrization": "dtype", "SaysSoftplus": "potential", "UnknownPotential": "potential",
    "WrongGradient": "gradient", "GradientOfMatched": "gradient", "ValuePerRow": "shapes", "DoubleLoss": "dtype",
    "OnlyWritten": "targets", "SaysSoftmax": "softmax", "SaysTiles": "tile_weights", "RateWithoutBias": "bias",
    "NoGradient": "builds",
    "FirstPairCounts": "permutation", "RootOfZero": "gradient", "DoubleRowLoss": "dtype", "RowLossOfWritten": "targets",
    "Ascending": "descent", "Turning": "gradient flow", "NotTangent": "tangent", "RowsDisagree": "velocity_from_rows",
    "OtherSimilarity": "similarity", "LosesTheWay": "round trip", "OneTime": "times", "RetractsFurther": "constraints",
    "SaysGamma": "gamma", "SaysFrozen": "frozen_directions", "StartsOutside": "exits", "DoubleRows": "dtype",
    "RefusesAll": "runs", "OtherPosition": "velocity", "NoRate": "rate",
    "ScaledTake": "take", "AffineTake": "take", "SortsTake": "take", "ReversesTake": "take", "RefusesTake": "take",
    "OneWay": "symmetric", "PushesBack": "positive", "Drifts": "linear", "MeanOnly": "shape", "DoubleKernel": "dtype",
    "TooMuch": "sums", "SumsOfRowsOnly": "sums", "DoubleTargets": "dtype", "SaysIdentity": "identity",
    "OwnDice": "pure", "NeverRedrawn": "redraw",
    "Halves": "one", "Copies": "twice", "FlatWeights": "weights", "DoubleWeights": "weights",
    "SaysWholeRows": "splits_rows", "JaxSwap": "arrays", "TooOften": "fraction",
    "AscendingRule": "descent", "SaysGradient": "is_gradient", "Flattens": "shape", "Divides": "shape",
    "DoubleRule": "dtype",
    "OwnSeed": "pure", "LongRows": "unit rows", "SingleRows": "start", "NoStart": "start", "NobodysStart": "places",
    "per_row": "number", "not_finite": "number", "raises": "runs", "impure": "pure", "says_traceable": "jit",
}  # fmt: skip


@pytest.fixture(scope="module")
def wrong_parts() -> Iterator[ModuleType]:
    """The wrong parts; afterwards their names are unknown again."""
    before = set(PARTS)
    import wrong_parts

    yield wrong_parts
    for name in set(PARTS) - before:
        del PARTS._entries[name]


@pytest.mark.parametrize("name", [name for name in OWN if name not in MORE])
def test_own_parts_conform(name):
    found = fs.check(OWN[name])
    assert found.ok, found
    assert found.part == name
    assert not found.left_out


def test_features_conform_except_for_json():
    """JSON names the features of a recipe and does not hold them."""
    data = fs.data.emoji().scaled("length").take(slice(12))
    for hidden in (None, 3):
        found = fs.check(fs.initial.from_features(data, dim=4, hidden=hidden))
        assert [(one.name, "Load them again with fs.data.load" in one.sentence) for one in found.failed] == [
            ("json", True)
        ]


@pytest.mark.parametrize("name", MORE)
def test_own_parts_with_other_numbers_conform(name):
    found = fs.check(MORE[name])
    assert found.ok, found


@pytest.mark.parametrize("name", fs.observables.names())
def test_own_observables_conform(name):
    found = fs.check(fs.observables.REGISTRY[name])
    assert found.ok, found
    assert (found.part, found.kind) == (name, "observable")


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_part_fails_at_the_finding_for_it(wrong_parts, name):
    found = fs.check(getattr(wrong_parts, name))
    assert [finding.name for finding in found.failed] == [WRONG[name]], found
    assert not found.ok
    sentence = found.failed[0].sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_every_wrong_part_is_tried(wrong_parts):
    defined = {
        name
        for name, value in vars(wrong_parts).items()
        if getattr(value, "__module__", "") == wrong_parts.__name__ and not name.startswith(("_", "Abstract"))
    }
    assert defined | {"says_traceable"} == set(WRONG)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("Broken", ["`Broken.inverse_temperature` (line ", "raised AttributeError", "missing"]),
        ("NumpyInside", ["`NumpyInside.inverse_temperature`", "TracerArrayConversionError", "use jax.numpy"]),
        ("DerivativeMissing", ["raised NotImplementedError", "Define that method."]),
        ("NoGradient", ["`NoGradient()` raised TypeError", "abstract", "gradient", "Define what is missing."]),
        ("StaticNumber", ["`beta`", "converter=fs.extend.number"]),
        ("DoubleConstant", ["the result is float64", "use Python numbers"]),
        ("NegativeTemperature", ["is 0 at progress 0.5"]),
        ("LeavesAfterTheEnd", ["progress 1.5", "clip it"]),
        ("WrongGradient", ["must be the gradient of `value`", "jax.grad by 1 (relative)", "2 pairs", "Matched"]),
        ("OnlyWritten", ["`text_of`", "targets.matrices"]),
        ("Ascending", ["must not increase the loss", "The force is −∂L/∂S"]),
        ("Halves", ["`apply` must change nothing where w = 1"]),
        ("SingleRows", ["`image` is ndarray of float32", "default_rng"]),
        ("RefusesAll", ["`place` must take a start", "This start is not for me", "Define a recipe"]),
        ("ScaledTake", ["The velocity of all pairs as one batch must be that of the whole", "must not scale"]),
        ("AffineTake", ["`take` must be linear in the position", "Select and combine"]),
        ("SortsTake", ["`take` of pairs [5, 0, 3] must give their similarities"]),
        ("ReversesTake", ["`take` of all pairs in their order must give the similarities and rows"]),
        ("RefusesTake", ["`take` must take the coordinates of pairs, but says: Not this batch."]),
        ("NobodysStart", ["some geometry takes"]),
        ("per_row", ["one finite number", "an array of shape (16,). Return e.g. its mean."]),
        ("raises", ["`raises` (line ", "ZeroDivisionError: no embeddings."]),
        ("says_traceable", ["`_with_numpy` (line ", "TracerArrayConversionError"]),
    ],
)
def test_sentences(wrong_parts, name, says):
    sentence = fs.check(getattr(wrong_parts, name)).failed[0].sentence
    for part in says:
        assert part in sentence, sentence


def test_checks_that_need_what_failed_are_left_out(wrong_parts):
    found = fs.check(wrong_parts.Broken)
    assert {"pure", "positive", "jit", "dtype"} <= set(found.left_out)
    assert not set(found.left_out) & {finding.name for finding in found.findings}
    assert "Skipped, because they depend on a failed check: pure" in repr(found)


def test_the_table():
    found = fs.check(fs.AdamLimit(0.01))
    lines = repr(found).splitlines()
    assert lines[0] == f"AdamLimit (rule): {len(found.findings)} of {len(found.findings)} checks passed"
    assert all(line.startswith("ok") for line in lines[1:])
    assert len(lines) == 1 + len(found.findings)
    table = found._repr_html_()
    assert table.count("<tr>") == 1 + len(found.findings)
    assert "AdamLimit (rule)" in table
    assert "&lt;lambda&gt;" in fs.check(lambda image, text: (image * text).sum())._repr_html_()


def test_functions_are_observables():
    def spread(image, text, temperature):
        """One minus the mean cosine, over the temperature."""
        return (1 - jnp.mean(jnp.sum(image * text, axis=1))) / temperature

    found = fs.check(spread)
    assert found.ok, found
    assert "stays the same" in {finding.name: finding.sentence for finding in found.findings}["rotation"]
    first = fs.check(lambda image, text: image[0, 0] * text[0, 0])
    assert first.ok
    assert "changes by" in first.findings[-1].sentence
    # As `register` does: a function is traced unless it says otherwise.
    on_host = fs.check(lambda image, text: float(image[0] @ text[0]))
    assert [finding.name for finding in on_host.failed] == ["jit"]


def test_a_registered_function_is_checked_as_registered():
    @fs.observables.register(traceable=False, normalise=False)
    def largest_in_the_test(image, text):
        return float(abs(image).max())

    try:
        found = fs.check(largest_in_the_test)
    finally:
        fs.observables.REGISTRY.remove("largest_in_the_test")
    assert found.ok
    assert "`traceable` is False" in {f.name: f.sentence for f in found.findings}["jit"]


@pytest.mark.parametrize(
    ("part", "says"),
    [
        (3, "3 is not a part. Give an object or a class derived from one of AbstractTemperature"),
        ("Baseline", "'Baseline' is not a part"),
        (int, "is not a part"),
        (Observable, "is not a part"),
        (fs.GradientFlow(), "A GradientFlow is made of parts"),
        (fs.Schedule, "is made of parts"),
        (fs.losses.AbstractLoss, "`AbstractLoss` is a base class, not a part"),
        (fs.temperature.Piecewise, r"`Piecewise` needs `points`. Check an object of it: Piecewise\(points=...\)"),
        (fs.observables.REGISTRY["gamma"], "'gamma' is not a function of rows"),
    ],
)
def test_what_is_no_part_is_refused_with_one_sentence(part, says):
    with pytest.raises(fs.FlowsimError, match=says):
        fs.check(part)


def test_settings_of_the_session_stay():
    code = """
import warnings, jax, flowsim as fs
warnings.simplefilter("error")
found = fs.check(fs.temperature.Fixed(0.1)), fs.check(fs.AdamLimit)
print(all(f.ok for f in found), jax.config.jax_enable_x64, jax.config.jax_numpy_dtype_promotion)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.split() == ["True", "False", "standard"]
    assert done.stderr == ""


def test_the_kinds_have_checks_of_different_names():
    assert str(inspect.signature(fs.check).parameters["part"]) == "part: Any"
    assert len({suite.kind for suite in SUITES}) == len(SUITES) == 11
    for suite in SUITES:
        assert len({check.name for check in suite.checks}) == len(suite.checks)


# --- the command line -----------------------------------------------------------------------------------


@pytest.fixture
def flowsim_check(tmp_path, monkeypatch, capsys):
    """`flowsim check` in a folder with a module: (exit code, stdout, stderr)."""
    from flowsim.cli import main

    (tmp_path / "parts_to_check.py").write_text(
        "import flowsim as fs\n"
        "import parts_helper\n"
        "class RightRule(fs.AdamLimit):\n"
        "    pass\n"
        "class WrongRule(fs.GradientDescent):\n"
        "    def velocity(self, descent):\n"
        "        return parts_helper.sign * descent\n"
        "number = 3\n",
        encoding="utf-8",
    )
    (tmp_path / "parts_helper.py").write_text("sign = -1\n", encoding="utf-8")
    (tmp_path / "parts_broken.py").write_text("a = 1\nb = a / 0\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    before, path = set(PARTS), list(sys.path)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["check", *arguments])
        assert sys.path == path
        return code, *capsys.readouterr()

    yield run
    for name in set(PARTS) - before:
        del PARTS._entries[name]
    for name in ("parts_to_check", "parts_helper", "parts_broken"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("home", ["parts_to_check", "parts_to_check.py"])
def test_the_command_checks_a_class(flowsim_check, home):
    code, out, err = flowsim_check(f"{home}:RightRule")
    assert (code, err) == (0, "")
    assert out.startswith("RightRule (rule): 10 of 10 checks passed\n")
    code, out, _ = flowsim_check(f"{home}:WrongRule")
    assert code == 1
    assert "FAILED  descent" in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "takes one MODULE:CLASS, but got 0"),
        (["a:b", "c:d"], "takes one MODULE:CLASS, but got 2"),
        (["parts_to_check"], "Expected MODULE:CLASS, but got 'parts_to_check'"),
        (["no_such_module:Part"], "'no_such_module' cannot be imported: ModuleNotFoundError"),
        (["no_such_file.py:Part"], "There is no file 'no_such_file.py'"),
        (["parts_broken.py:Part"], "'parts_broken.py' cannot be imported: ZeroDivisionError (line 2): division"),
        (["parts_to_check:RightRul"], "Unknown name in parts_to_check 'RightRul'. Did you mean 'RightRule'"),
        (["parts_to_check:number"], "3 is not a part"),
        (["flowsim:GradientFlow"], "is made of parts"),
    ],
)
def test_the_command_refuses_bad_input_with_one_sentence(flowsim_check, arguments, says):
    code, out, err = flowsim_check(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("flowsim: ")
    assert err.count("\n") == 1
    assert says in err
