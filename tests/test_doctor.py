"""The doctor: planted faults are found, healthy runs raise no alarm, and the numbers in its sentences are right."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted_faults import FAULTS, HEALTHY, SEEDS, healthy, planted

import flowsim as fs
from flowsim.doctor.case import Case, case_of_record
from flowsim.doctor.entropy import calibration
from flowsim.doctor.finding import REGISTRY
from flowsim.errors import FlowsimError

#: Faults that a log of loss, learning rate and temperature shows, without embeddings.
IN_LOGS = (
    "nothing-learned", "loss-jumps", "temperature-at-clamp", "temperature-at-clamp-early", "temperature-not-trained",
    "wrong-initial-temperature", "temperature-in-half-precision",
)  # fmt: skip
#: Faults that come with others: a spike destroys what was learned, as held-out retrieval shows.
ALONE = {
    "temperature-at-clamp", "temperature-not-trained", "temperature-decayed", "temperature-limited-by-rate",
    "temperature-in-half-precision", "common-component", "gap-closed-without-alignment", "duplicates", "overfitting",
}  # fmt: skip
seeds = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])]


@pytest.mark.parametrize("seed", seeds)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, seed):
    found = fs.diagnose(planted(name, seed))
    assert name in found.faults
    if name in ALONE:
        assert found.faults == [name]
    one = found[name]
    assert one.reason and one.cure and one.numbers and one.sentence.endswith(".")


@pytest.mark.parametrize("seed", seeds)
@pytest.mark.parametrize("preset", HEALTHY)
def test_a_healthy_run_raises_no_alarm(preset, seed):
    assert fs.diagnose(healthy(preset, seed)).faults == []


def log_of(record, path, every=1):
    """A log as other trainers write it: five digits of loss, learning rate and β."""
    lines = ["step,train/loss,lr,logit_scale"]
    for k in range(0, len(record.training["train_loss"]), every):
        beta = 1 / record.training["train_temperature"][k]
        values = (record.training["train_loss"][k], record.training["learning_rate"][k], beta)
        lines.append(",".join([str(k), *(f"{value:.5g}" for value in values)]))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("name", IN_LOGS)
def test_a_planted_fault_is_found_in_a_log(name, tmp_path):
    path = log_of(planted(name, 0), tmp_path / "log.csv")
    clamp = {"temperature-at-clamp": (0.055, 1.0), "temperature-at-clamp-early": (0.07, 1.0)}.get(name)
    found = fs.diagnose(path, batch=256, clamp=clamp, columns={"inverse_temperature": "logit_scale"})
    assert name in found.faults


@pytest.mark.parametrize("preset", ["Baseline", "TR softplus", "HS 1e-2"])
@pytest.mark.parametrize("every", [1, 10])
def test_a_log_of_a_healthy_run_raises_no_alarm(preset, every, tmp_path):
    path = log_of(healthy(preset, 0), tmp_path / "log.csv", every)
    found = fs.diagnose(path, batch=256)
    assert found.faults == []
    assert found["nothing-learned"].verdict == "not found"
    assert found["temperature-limited-by-rate"].verdict == "not found"


def test_weight_decay_is_found_in_a_log(tmp_path):
    for name, record in (("decayed", planted("temperature-decayed", 0)), ("healthy", healthy("Baseline", 0))):
        path = log_of(record, tmp_path / f"{name}.csv")
        alone = fs.diagnose(path)["temperature-decayed"]  # it fell farther than Adam's steps reach
        assert alone.verdict == {"decayed": "found", "healthy": "cannot tell"}[name]
        last = record.final
        found = fs.diagnose(path, embeddings=(last.image, last.text))
        assert (found["temperature-decayed"].verdict == "found") == (name == "decayed")


def test_scheduled_and_fixed_temperatures_are_not_blamed(tmp_path):
    path = log_of(healthy("FLT 4e-2", 0), tmp_path / "log.csv")
    assert fs.diagnose(path, batch=256).faults == ["temperature-not-trained"]
    assert fs.diagnose(path, batch=256, learned=False).faults == []
    record = healthy("FLT 4e-2", 0)
    at_bound = dataclasses.replace(
        record, config={**record.config, "schedule": json.loads(fs.schedules.get("FLT 1e-2").to_json())}
    )
    assert fs.diagnose(at_bound)["temperature-at-clamp"].verdict == "cannot tell"


def test_the_gradient_of_nu_is_loss_minus_entropy():
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(12, 5)) for _ in range(2))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    tau = 0.2
    with jax.enable_x64(True):

        def value(nu):
            return fs.InfoNCE().value(jnp.exp(nu) * jnp.asarray(image @ text.T), fs.pairing.Targets(None, None))

        loss, slope = jax.value_and_grad(value)(jnp.log(1 / tau))
    found, entropy = calibration(image, text, tau)
    assert found == pytest.approx(float(loss), rel=1e-12)
    assert found - entropy == pytest.approx(float(slope), rel=1e-10)


def test_the_floor_of_duplicates_is_the_loss_at_zero_temperature():
    rng = np.random.default_rng(1)
    basis = np.eye(24)
    image = basis[np.arange(24) // 2]  # each row twice, in both modalities
    found = fs.diagnose((image, image))["duplicates"]
    loss, _ = calibration(image, image, 1e-3)
    assert found.numbers["text_floor"] == pytest.approx(loss, rel=1e-12) == math.log(2)
    assert found.found and found.numbers["text_share"] == 1.0
    assert not fs.diagnose((rng.normal(size=(24, 8)), rng.normal(size=(24, 8))))["duplicates"].found


def test_the_share_of_the_common_component():
    rng = np.random.default_rng(2)
    own = rng.normal(size=(400, 30))
    own -= own.mean(0)
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    for share in (0.3, 0.9):
        rows = np.concatenate([np.full((400, 1), math.sqrt(share)), math.sqrt(1 - share) * own], axis=1)
        found = fs.diagnose((rows, rows), only=["common-component"])["common-component"]
        spread = (1 - share) * np.sum(own.mean(0) ** 2)
        assert found.numbers["image_share"] == pytest.approx(share + spread, rel=1e-12)
        assert found.found == (share == 0.9)


def test_an_open_gap_with_alignment_is_a_remark():
    rng = np.random.default_rng(3)
    own = rng.normal(size=(50, 40))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    ones = np.ones((50, 1))
    found = fs.diagnose((np.hstack([own, ones]), np.hstack([own, -ones])))
    assert found["gap-open-with-alignment"].found and found.remarks == ["gap-open-with-alignment"]
    assert "gap-open-with-alignment" not in found.faults


def test_weights_of_a_checkpoint(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    weights = {"visual.proj": np.ones((4, 4), np.float32), "logit_scale": np.full(1, 2.0, np.float32)}
    cases = {
        "temperature-not-trained": {"logit_scale": np.array(math.log(1 / 0.07), np.float32)},
        "temperature-at-clamp": {"module.logit_scale": np.array(math.log(100), np.float32)},
        "temperature-in-half-precision": {"logit_scale": np.array(2.0, np.float16)},
        "wrong-initial-temperature": {"logit_scale": np.array(1.0, np.float32)},
        "not-finite": {"text.proj": np.full((2, 2), np.nan, np.float32)},
    }
    path = tmp_path / "model.safetensors"
    numpy.save_file(weights, path)
    assert fs.diagnose(path).faults == []
    for name, changed in cases.items():
        kept = {k: v for k, v in weights.items() if k != "logit_scale" or "logit_scale" not in "".join(changed)}
        numpy.save_file({**kept, **changed}, path)
        assert fs.diagnose(path).faults == [name]


def test_weights_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"epoch": 3, "state_dict": {"module.logit_scale": torch.tensor(math.log(100)), "module.w": torch.ones(3)}}
    torch.save(state, tmp_path / "epoch_3.pt")
    assert fs.diagnose(tmp_path / "epoch_3.pt").faults == ["temperature-at-clamp"]


def test_what_cannot_be_told_says_what_is_missing():
    case = Case("nothing")
    for name, one in REGISTRY.items():
        found = one.find(case)
        assert found.verdict == "cannot tell" and found.sentence.endswith("."), name
    found = fs.diagnose(healthy("Baseline", 0))
    assert "0 faults found" in repr(found) and "<table>" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict(), default=float))["faults"] == []


def test_a_simulation_can_be_diagnosed():
    start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
    found = fs.diagnose(fs.simulate(fs.GradientFlow.from_preset("Baseline"), start, t1=1e5))
    assert found.faults == []
    assert found["temperature-at-clamp"].sentence == "The temperature has no clamp."


def test_own_checks():
    @fs.doctor.register("too-short", title="a short run", reason="It is short.", cure="Train longer.")
    def too_short(case):
        return fs.doctor.Sign((case.steps or 0) < 1000, f"The run has {case.steps} steps.", {"steps": case.steps})

    try:
        found = fs.diagnose(healthy("Baseline", 0), only=["too-short"])
        assert found.faults == ["too-short"] and found["too-short"].numbers == {"steps": 400}
    finally:
        REGISTRY.remove("too-short")
    with pytest.raises(FlowsimError, match="already has a check named 'overfitting'"):
        REGISTRY.add("overfitting", REGISTRY["overfitting"], "users")


@pytest.mark.parametrize(
    ("arguments", "options", "match"),
    [
        (("missing.log",), {}, "missing.log"),
        (((np.ones((3, 2)), np.ones((4, 2))),), {}, "one text row for each image row"),
        (((np.ones((30, 2)), np.ones((30, 2))),), {"temperature": -1.0}, "must be positive"),
        (((np.ones((30, 2)), np.ones((30, 2))),), {"clamp": (1.0, 0.1)}, "positive and rising"),
        (((np.ones((30, 2)), np.ones((30, 2))),), {"batch": 1}, "must be a whole number of at least 2"),
        (((np.ones((30, 2)), np.ones((30, 2))),), {"only": ["temperature"]}, "Unknown check 'temperature'"),
    ],
)
def test_refusals(arguments, options, match):
    with pytest.raises(FlowsimError, match=match):
        fs.diagnose(*arguments, **options)


def test_a_record_with_rows_that_are_not_finite():
    record = healthy("Baseline", 0)
    broken = dataclasses.replace(record, snapshots={k: np.full_like(v, np.nan) for k, v in record.snapshots.items()})
    assert case_of_record(broken, "broken").rows is None
