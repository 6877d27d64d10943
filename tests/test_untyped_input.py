"""Arguments of the wrong kind, in a session without run-time type checks."""

import json
import subprocess
import sys

import pytest

CASES = [
    ("fs.read_log(3)", "Expected a path, but got 3"),
    ("fs.read_log('emoji', columns=['a'])", "Argument `columns` must be names of series"),
    ("fs.lab.run(np.ones((30, 2)), np.ones((30, 2)), methods=[3])", "must be a name or an object with `fit`, but is 3"),
    ("fs.lab.run(np.ones((30, 2)), np.ones((30, 2)), temperatures=0.1)", "must be a list of numbers, but is 0.1"),
    ("fs.lab.register(3)", "The name of a method must be text"),
    ("fs.lab.Whiten('much')", "`shrinkage` must be a number, but is 'much'"),
    ("fs.diagnose(3)", "Expected a record, a path, or (image, text), but got 3"),
    ("fs.diagnose((1, 2, 3))", "Embeddings must be (image, text), but there are 3"),
    ("fs.diagnose((np.eye(3), np.eye(3)), only=5)", "Argument `only` must be names of checks, but is 5"),
    ("fs.diagnose((np.eye(3), np.eye(3)), temperature='a')", "`temperature` must be a number, but is 'a'"),
    ("fs.diagnose((np.eye(3), np.eye(3)), clamp='ab')", "`clamp` must be"),
    ("fs.diagnose((np.eye(3), np.eye(3)), embeddings=(1,))", "Embeddings must be (image, text), but there are 1"),
    ("fs.diagnose((np.eye(3), np.eye(3)), optimizer=3)", "Argument `optimizer` must be a name, but is 3"),
    ("fs.data.load(3)", "Expected a path, but got 3"),
    ("fs.data.load('emoji', verify=1)", "`verify` must be True or False, but is 1"),
    ("fs.data.save('emoji', 'a.npz')", "Expected features, but got 'emoji'"),
    ("fs.data.emoji().scaled(None)", "Unknown scaling 'None'"),
    ("fs.data.emoji().mispaired('0.1')", "`fraction` must be a number, but is '0.1'"),
    ("fs.data.emoji().part(3)", "Unknown split '3'. Known: test, train, val"),
    ("fs.data.emoji().take('train')", "Wrong indices for 1655 pairs"),
    ("fs.data.Order(4.5, 2)", "`pairs` must be a whole number of at least 1, but is 4.5"),
    ("fs.data.Order(4, '2')", "`batch` must be a whole number of at least 1, but is the text '2'"),
    ("fs.heads.embed(fs.initial.rings(), fs.data.emoji())", "Argument `start` cannot be"),
    ("fs.heads.embed(fs.initial.rings().draw(), 'emoji')", "Argument `features` cannot be 'emoji'"),
    ("fs.heads.embed(fs.initial.rings().draw(), fs.data.emoji(), 5)", "Unknown captions '5'. Known: all, first"),
    ("fs.data.from_arrays('image', 'text')", "`image` must hold real numbers"),
    ("fs.data.from_arrays(None, None)", "`image` must hold real numbers"),
    ("fs.data.from_arrays(np.ones((2, 3)), np.ones((2, 3)), classes=3)", "`classes` must be a list of names, but is 3"),
    ("fs.data.from_arrays(np.ones((2, 3)), np.ones((2, 3)), labels='ab')", "`labels` must be 2 strings"),
    ("fs.claims.register(3)", "Expected a claim, but got 3"),
    (
        "fs.claims.Claim('a', 'A.', 'b', 'c', lambda s, q: {'x': 1}, at_most={'x': '1'})",
        "Argument `limit of x` must be a number",
    ),
    (
        "fs.simulate(fs.GradientFlow(), fs.initial.rings(), t1=1, observables='loss')",
        "must be a list of names, but is 'loss'",
    ),
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
    (
        "fs.claims.base.Claim('a', '', '', '', lambda s, q: {'b': 1}, at_most={'c': 1}).run()",
        "gave no number 'c', which has a limit. It gave: 'b'",
    ),
    ("fs.claims.base.Claim('a', '', '', '', lambda s, q: 3.0, at_most={'c': 1}).run()", "a dict of named numbers"),
    ("fs.claims.run('lemma-3.1', system=3)", "`system` cannot be 3"),
    ("fs.Clusters([0] * 8 + [1] * 8)", "`size` must be a whole number of at least 1, but is [0, 0, "),
    ("fs.Clusters(2.0)", "`size` must be a whole number of at least 1, but is 2.0"),
    ("fs.Clusters(True)", "`size` must be a whole number of at least 1, but is True"),
    ("fs.Clusters('2')", "but is the text '2'"),
    ("fs.Clusters(10**400)", "and below 2³²"),
    ("fs.Clusters(np.ones(3))", "but is [1.0, 1.0, 1.0]"),
    ("fs.HardSwap(masks='64')", "`masks` must be a whole number of at least 1, but is the text '64'"),
    ("fs.SoftSwap(masks=np.timedelta64(3, 's'))", "`masks` must be a whole number"),
    ("fs.HardSwap(by=None)", "Unknown swap unit 'None'"),
    ("fs.SoftSwap(reading=['old'])", "Unknown reading of the soft swap"),
    ("fs.DirectedInfoNCE(np.ones(2))", "Unknown direction"),
    ("fs.Sigmoid(relative_bias='no')", "`relative_bias` must be True or False, but is 'no'"),
    ("fs.initial.cones(random_basis=1)", "`random_basis` must be True or False, but is 1"),
    ("fs.initial.uniform(4.0, 3)", "`pairs` must be a whole number of at least 2, but is 4.0"),
    ("fs.initial.uniform(4, 3).draw('a')", "`seed` must be a whole number of at least 0"),
    ("fs.initial.uniform(4, 3).draw(-1)", "`seed` must be a whole number of at least 0, but is -1"),
    ("fs.initial.latents(hidden=[4])", "`hidden` must be a whole number"),
    ("fs.initial.rings(height=np.nan)", "`height` must be finite, but is nan"),
    ("fs.initial.uniform(gamma='0.3')", "Expected a number, but got '0.3'"),
    ("fs.temperature.Fixed('0.3')", "Expected a number, but got '0.3'"),
    ("fs.temperature.Fixed(None)", "Expected a number, but got None"),
    ("fs.temperature.Fixed(True)", "Expected a number, but got True"),
    ("fs.temperature.Fixed(np.complex128(0.3))", "Expected a number, but got"),
    ("fs.temperature.Fixed(np.timedelta64(1, 's'))", "Expected a number, but got"),
    ("fs.temperature.Fixed(np.array(0.3, object))", "Expected a number, but got"),
    ("fs.temperature.Fixed([[1], [2, 3]])", "Expected a number, but got [[1], [2, 3]]"),
    ("fs.temperature.Fixed(jax.numpy.ones(2))", "Expected one number, but got an array of shape (2,)"),
    ("fs.temperature.Fixed(jax.numpy.asarray(-1.0))", "`temperature` must be positive, but is -1"),
    ("fs.temperature.Learnable(clamp=0.1)", "`clamp` must be (tau_min, tau_max), but is 0.1"),
    ("fs.temperature.Learnable(clamp=(0.01, 0.1, 1.0))", "`clamp` must be (tau_min, tau_max)"),
    ("fs.temperature.Learnable(clamp=('a', 1.0))", "Expected a number, but got 'a'"),
    ("fs.Schedule(3)", "`temperature` cannot be 3"),
    ("fs.Schedule(fs.temperature.Learnable)", "Write Learnable(), with parentheses"),
    ("fs.Schedule(swap=0.1)", "`swap` cannot be 0.1"),
    ("fs.schedules.get(None)", "Unknown schedule 'None'"),
    ("fs.schedules.load(3)", "Unknown schedule '3'"),
    ("fs.Schedule.from_json({})", "Expected JSON text, but got {}"),
    ("fs.Schedule.from_json('[' * 100_000)", "is nested too deeply"),
    ("fs.GradientFlow().replace(**{'schedule.temperature.lr_ratio': -1})", "`lr_ratio` must be at least 0"),
    ("fs.observables.report(np.eye(3), np.eye(3), only=[3])", "Unknown observable '3'"),
    ("fs.observables.report(np.eye(3), np.eye(3), only=np.ones(2))", "must be a list of names"),
    ("fs.observables.report(np.eye(3), np.eye(3), captions_per_image=1.0)", "must be a whole number"),
    ("fs.observables.report(np.eye(3), np.eye(3).astype('m8[s]'))", "must hold real numbers"),
    ("fs.observables.load_embeddings(1)", "Expected the path of a file of embeddings, but got 1"),
    ("fs.observables.open_embeddings(None)", "Expected the path of a file of embeddings, but got None"),
    ("fs.observables.open_embeddings('')", "Expected the path of a file of embeddings, but got ''"),
    ("fs.theory.predict('Baseline', fs.initial.simplex(), t1=1)", "Expected a GradientFlow, but got str"),
    ("fs.theory.predict(fs.GradientFlow(), 'simplex', t1=1)", "Expected a start, but got str"),
    ("fs.theory.predict(fs.GradientFlow(), fs.initial.simplex(), t1=1, seed='a')", "`seed` must be a whole"),
    ("fs.theory.predict(fs.GradientFlow(fs.Parallel()), fs.initial.simplex(), ts='12')", "must hold numbers"),
    ("fs.theory.predict(fs.GradientFlow(fs.Parallel()), fs.initial.simplex(), ts=[True])", "must hold numbers"),
    ("fs.theory.predict(fs.GradientFlow(fs.Parallel()), fs.initial.simplex(), ts=[1j])", "must hold numbers"),
    ("fs.theory.predict(fs.GradientFlow(fs.Parallel()), fs.initial.simplex(), t1=5e-324)", "at least 1e-300"),
]


@pytest.mark.parametrize(("call", "message"), CASES)
def test_wrong_kinds_get_one_sentence(call, message, said):
    assert message in said[call]


@pytest.fixture(scope="module")
def said():
    """What each call says; one process for all, whose imports take longest."""
    code = "import flowsim as fs, jax, json, numpy as np\nfound = {}\n" + "".join(
        f"try:\n    {call}\nexcept fs.FlowsimError as error:\n    found[{call!r}] = str(error)\n" for call, _ in CASES
    )
    code += "print(json.dumps(found))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)
