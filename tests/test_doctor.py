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
from flowsim.doctor.case import Case, Track, case_of_record
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
    "temperature-in-half-precision", "common-component", "no-alignment", "duplicates", "overfitting",
}  # fmt: skip
seeds = [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS[1:])]


@pytest.mark.parametrize("seed", seeds)
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name, seed):
    found = fs.diagnose(planted(name, seed))
    one = found[name]
    assert one.found and name in (found.faults if one.fault else found.remarks)
    if name in ALONE:
        assert found.faults == [name] * one.fault
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
    assert found[name].found


@pytest.mark.parametrize("preset", ["Baseline", "TR softplus", "HS 1e-2"])
@pytest.mark.parametrize("every", [1, 10])
def test_a_log_of_a_healthy_run_raises_no_alarm(preset, every, tmp_path):
    path = log_of(healthy(preset, 0), tmp_path / "log.csv", every)
    found = fs.diagnose(path, batch=256, optimizer="adamw")
    assert found.faults == []
    assert found["nothing-learned"].verdict == "not found"
    assert found["temperature-limited-by-rate"].verdict == "not found"


def test_weight_decay_is_found_in_a_log(tmp_path):
    for name, record in (("decayed", planted("temperature-decayed", 0)), ("healthy", healthy("Baseline", 0))):
        path = log_of(record, tmp_path / f"{name}.csv")
        alone = fs.diagnose(path, optimizer="adamw")["temperature-decayed"]  # it fell farther than Adam's steps reach
        assert alone.verdict == {"decayed": "found", "healthy": "cannot tell"}[name]
        for optimizer in (None, "sgd"):  # whose steps may reach farther
            assert fs.diagnose(path, optimizer=optimizer)["temperature-decayed"].verdict == "cannot tell"
        last = record.final
        found = fs.diagnose(path, embeddings=(last.image, last.text), batch=256)
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


def run_of(tau, loss=None, rate=None, unit="step", **known):
    """A case with a value at every step."""

    def track(values):
        return None if values is None else Track(np.arange(len(values), dtype=float), np.asarray(values, float))

    return Case("run", unit=unit, steps=len(tau), temperature=track(tau), loss=track(loss), rate=track(rate), **known)


def verdict(name, case):
    return REGISTRY[name].find(case).verdict


def test_epochs_and_other_optimizers_do_not_bound_the_temperature():
    tau, rate = np.geomspace(0.07, 0.2, 60), np.full(60, 1e-3)
    assert verdict("temperature-decayed", run_of(tau, rate=rate, adam=True)) == "found"
    for known in ({"adam": True, "unit": "epoch"}, {"adam": False}, {"adam": None}, {"adam": True, "unit": "row"}):
        for name in ("temperature-decayed", "temperature-limited-by-rate"):
            assert verdict(name, run_of(tau, rate=rate, **known)) == "cannot tell"


def test_the_pull_on_nu_is_that_of_a_batch():
    """At a temperature that is calibrated for batches of 64, larger pools have more entropy than loss."""
    rng = np.random.default_rng(4)
    image = rng.normal(size=(4096, 32))
    text = image + 2.0 * rng.normal(size=(4096, 32))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    taus = np.geomspace(0.05, 0.08, 30)
    batches = [slice(start, start + 64) for start in range(0, 4096, 64)]
    pull = [np.mean([np.subtract(*calibration(image[k], text[k], tau)[:2]) for k in batches]) for tau in taus]
    rest = float(np.interp(0, -np.array(pull), taus))
    loss, entropy, _ = calibration(image, text, rest)
    assert entropy - loss > 0.1
    case = run_of(np.geomspace(rest / 1.1, rest, 40), batch=64).with_rows((image, text), True)
    found = REGISTRY["temperature-decayed"].find(case)
    assert found.verdict == "not found" and abs(found.numbers["entropy"] - found.numbers["loss"]) < 0.05


def test_decay_without_a_clamp_is_found_where_it_rests():
    rng = np.random.default_rng(5)
    image = rng.normal(size=(200, 40))
    case = run_of(np.geomspace(0.5, 0.999, 40), batch=200, clamp=None).with_rows((image, image), True)
    assert verdict("temperature-decayed", case) == "found"


def test_a_temperature_near_one_is_not_taken_for_half_precision():
    found = REGISTRY["temperature-in-half-precision"].find(run_of(np.linspace(1.0, 0.98, 60)))
    assert found.verdict == "cannot tell"
    assert verdict("temperature-not-trained", run_of(np.ones(20), clamp=(0.01, 10.0))) == "found"


def test_a_single_infinite_loss_is_not_the_end():
    record = healthy("Baseline", 0)
    loss = record.training["train_loss"].copy()
    loss[20] = np.inf
    skipped = dataclasses.replace(record, training={**record.training, "train_loss": loss})
    assert fs.diagnose(skipped).faults == []
    loss[-3:] = np.nan
    assert "from step 397 on" in fs.diagnose(skipped)["not-finite"].sentence


def test_jumps_are_counted_once():
    loss = np.where(np.arange(300) < 100, 1.0, 5.0)
    loss[200:] = 9.0
    found = REGISTRY["loss-jumps"].find(run_of(np.full(300, 0.07), loss=loss))
    assert found.numbers["jumps"] == 2 and ", first at step 100; this is the largest." in found.sentence
    single = np.where(np.arange(300) == 150, 5.0, 1.0)
    assert verdict("loss-jumps", run_of(np.full(300, 0.07), loss=single)) == "not found"


def test_duplicates_are_those_of_all_rows():
    rng = np.random.default_rng(6)
    text = np.repeat(rng.normal(size=(10_000, 8)), 2, axis=0)
    found = fs.diagnose((rng.normal(size=(20_000, 8)), text), only=["duplicates", "collapsed-rank"])["duplicates"]
    assert found.numbers["text_share"] == 1.0 and found.numbers["image_share"] == 0.0
    assert found.numbers["text_floor"] == pytest.approx(math.log(2), rel=1e-12)


def test_a_sample_is_named():
    rng = np.random.default_rng(7)
    found = fs.diagnose((rng.normal(size=(5000, 4)), rng.normal(size=(5000, 4))), only=["gap-open-with-alignment"])
    assert "a sample of 4,096 of 5,000 pairs" in found["gap-open-with-alignment"].sentence


def test_recall_without_its_pool_does_not_tell():
    recall = Track(np.arange(6.0), np.array([0.0, 0.003, 0.002, 0.001, 0.001, 0.001]))
    assert verdict("overfitting", run_of(np.full(9, 0.07), recall=recall)) == "cannot tell"
    assert verdict("overfitting", run_of(np.full(9, 0.07), recall=recall, pool=1000)) == "not found"


def test_steps_that_count_samples(tmp_path):
    lines = ["step,temperature,lr"] + [f"{k * 10**12},{0.07 - 1e-4 * k},1e-3" for k in range(60)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    assert fs.diagnose(tmp_path / "log.csv", optimizer="adamw").faults == []


def test_the_gradient_of_nu_is_loss_minus_entropy():
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(12, 5)) for _ in range(2))
    image, text = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (image, text))
    tau = 0.2
    with jax.enable_x64(True):

        def value(nu):
            return fs.InfoNCE().value(jnp.exp(nu) * jnp.asarray(image @ text.T), fs.pairing.Targets(None, None))

        loss, slope = jax.value_and_grad(value)(jnp.log(1 / tau))
    found, entropy, _ = calibration(image, text, tau)
    assert found == pytest.approx(float(loss), rel=1e-12)
    assert found - entropy == pytest.approx(float(slope), rel=1e-10)


def test_the_floor_of_duplicates_is_the_loss_at_zero_temperature():
    rng = np.random.default_rng(1)
    basis = np.eye(24)
    image = basis[np.arange(24) // 2]  # each row twice, in both modalities
    found = fs.diagnose((image, image))["duplicates"]
    loss, *_ = calibration(image, image, 1e-3)
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
        "temperature-below-clamp": {"logit_scale": np.array(5.0, np.float32)},
        None: {"logit_scale": np.array(-800.0, np.float32)},
    }
    path = tmp_path / "model.safetensors"
    numpy.save_file(weights, path)
    assert fs.diagnose(path).faults == []
    for name, changed in cases.items():
        kept = {k: v for k, v in weights.items() if k != "logit_scale" or "logit_scale" not in "".join(changed)}
        numpy.save_file({**kept, **changed}, path)
        found = fs.diagnose(path)
        assert found.faults + found.remarks == ([name] if name else [])
    numpy.save_file({name: array.astype(np.float16) for name, array in weights.items()}, path)  # an export
    assert fs.diagnose(path).faults == []


def test_a_fall_of_recall_without_a_pool():
    """Without the number of pairs, neighbouring evaluations tell the noise."""
    smooth = Track(np.arange(12.0), np.concatenate([np.linspace(0.1, 0.47, 6), np.linspace(0.46, 0.2, 6)]))
    assert verdict("overfitting", run_of(np.full(9, 0.07), recall=smooth)) == "found"
    noisy = Track(np.arange(12.0), 0.3 + 0.1 * (-1.0) ** np.arange(12))
    assert verdict("overfitting", run_of(np.full(9, 0.07), recall=noisy)) == "cannot tell"
    rising = Track(np.arange(12.0), np.linspace(0.1, 0.5, 12))
    assert verdict("overfitting", run_of(np.full(9, 0.07), recall=rising)) == "not found"


def test_a_held_out_loss_that_is_not_finite(tmp_path):
    lines = ["step,loss,val_loss"] + [f"{k},{5 - k / 50},{'nan' if k > 60 else 2}" for k in range(100)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    found = fs.diagnose(tmp_path / "log.csv")
    assert found["not-finite"].sentence == "The held-out loss is not finite from step 61 on; the training loss is."
    assert found["held-out-loss-rises"].verdict == "cannot tell"


def test_a_loss_that_was_divided():
    found = REGISTRY["nothing-learned"].find(run_of(np.full(400, 0.07), loss=np.full(400, math.log(64) / 4), batch=64))
    assert found.verdict == "found" and "divided by 4, as for 4 micro-batches" in found.sentence
    assert verdict("nothing-learned", run_of(np.full(400, 0.07), loss=np.full(400, 0.5), batch=64)) == "not found"
    assert verdict("nothing-learned", falling(5.5, math.log(256) / 4)) == "not found"


def test_pairs_in_another_order_are_not_aligned_whatever_the_gap():
    rng = np.random.default_rng(9)
    image = rng.normal(size=(300, 16))
    text = image + 0.3 * rng.normal(size=(300, 16))
    for shift in (0.0, 0.5):
        assert fs.diagnose((image + shift, text - shift)).faults == []
        shuffled = fs.diagnose((image + shift, rng.permutation(text) - shift))
        assert shuffled.faults == ["no-alignment"]


@pytest.mark.parametrize("beta", [14.3, 100.0])
def test_beta_in_the_place_of_nu_in_a_checkpoint(beta, tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    held = {"logit_scale": np.array(beta, np.float32), "a.weight": np.ones((2, 2))}
    numpy.save_file(held, tmp_path / "model.safetensors")
    found = fs.diagnose(tmp_path / "model.safetensors")
    assert found.faults == ["wrong-initial-temperature"]
    assert f"as β it would be τ = {1 / beta:.3g}" in found["wrong-initial-temperature"].sentence


def test_a_clamp_has_one_tolerance():
    for beta, wanted in ((100.0, "temperature-at-clamp"), (101.0, "temperature-below-clamp"), (99.0, None)):
        case = run_of(1 / np.append(np.linspace(14.3, beta, 200), np.full(99, beta)))
        names = ("temperature-at-clamp", "temperature-below-clamp")
        assert [name for name in names if verdict(name, case) == "found"] == [wanted] * (wanted is not None)


def test_a_remark_is_no_fault():
    for record in (planted("temperature-at-clamp", 0), planted("held-out-loss-rises", 0)):
        found = fs.diagnose(record)
        assert found.remarks and not set(found.remarks) & set(found.faults)
    assert "held-out-loss-rises" in fs.diagnose(healthy("Baseline", 0)).remarks  # where retrieval does not fall
    assert fs.diagnose(healthy("FLT 1e-1", 0)).remarks == []


def test_fine_tuning_that_leaves_the_clamp():
    """β from 100 to 99.7 moves away from the clamp; held at it, it is found."""
    for last, verdicts in ((99.7, ("not found", "not found")), (100.0, ("found", "found"))):
        case = run_of(1 / np.linspace(100.0, last, 200))
        names = ("temperature-at-clamp", "temperature-at-clamp-early")
        assert tuple(verdict(name, case) for name in names) == verdicts
    late = REGISTRY["temperature-at-clamp-early"].find(run_of(np.geomspace(0.07, 0.01, 200)))
    assert late.verdict == "not found" and late.sentence.endswith("after the first tenth.")
    noisy = np.where(np.arange(200) % 20 == 7, 0.0102, 0.01)  # lifts off now and then
    noisy[:100] = np.linspace(0.07, 0.0101, 100)
    found = REGISTRY["temperature-at-clamp"].find(run_of(noisy))
    assert found.verdict == "found" and found.numbers["since"] == 100


def test_a_given_temperature_makes_no_claims_about_a_run():
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(40, 8))
    found = fs.diagnose((rows, rows), temperature=0.01)["temperature-at-clamp"]
    assert found.found and "pull" not in found.reason
    found = fs.diagnose((rows, rows), temperature=1.0)["wrong-initial-temperature"]
    assert found.verdict == "cannot tell"


def falling(start, end, steps=400, **known):
    return run_of(np.full(steps, 0.07), loss=np.linspace(start, end, steps), batch=256, **known)


def test_chance_is_judged_by_the_trend():
    look = REGISTRY["nothing-learned"].find
    assert look(falling(5.55, 5.54)).verdict == "found"
    found = look(falling(8.7, 6.3))  # above chance, but on its way
    assert found.verdict == "not found" and "it still falls, by 0.962" in found.sentence
    assert look(falling(5.55, 5.51, steps=100)).verdict == "cannot tell"
    warming = look(falling(5.55, 5.51, rate=np.linspace(0, 1e-3, 400)))
    assert warming.verdict == "cannot tell" and "still rises at the end" in warming.sentence
    assert look(falling(5.55, 5.51, rate=np.full(400, 1e-3))).verdict == "found"
    gathered = look(falling(math.log(2048), math.log(2048) - 1e-3))
    assert "8 × 256 pairs" in gathered.sentence and gathered.cure.startswith("If the features of several processes")


def test_a_nan_that_was_skipped_is_counted(tmp_path):
    lines = ["step,loss,temperature"] + [f"{10 * k},{'nan' if k in (3, 9) else 5 - k / 20},0.07" for k in range(40)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    found = fs.diagnose(tmp_path / "log.csv")["not-finite"]
    assert found.sentence == "2 recorded losses are not finite, the first at step 30, but later ones are."
    assert found.verdict == "not found" and found.numbers == {"count": 2, "first": 30}


@pytest.mark.parametrize("column", ["val/recall@1", "eval_recall@1", "val/R@1", "val/mean_recall"])
def test_recall_of_both_directions_is_read(column, tmp_path):
    values = [0.1, 0.4, 0.5, 0.4, 0.3, 0.2]
    lines = [f"step,loss,{column}"] + [f"{100 * k},{1 / (k + 1)},{value}" for k, value in enumerate(values)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    found = fs.diagnose(tmp_path / "log.csv", pool=5000)["overfitting"]
    assert found.found and found.numbers == {"best": 0.5, "last": 0.2, "step": 200.0}


def test_a_diagnosis_says_how_a_log_was_read(tmp_path):
    lines = ["step,total_loss,contrastive_loss,foo,logit_scale"] + [f"{k},9,{5 - k / 50},1,14.3" for k in range(60)]
    (tmp_path / "log.csv").write_text("\n".join(lines))
    found = fs.diagnose(tmp_path / "log.csv")
    assert "train_loss from 'contrastive_loss'" in found.read[0] and "'logit_scale' as inverse" in found.read[0]
    assert any(one.startswith("'logit_scale' is inverse temperature β: It goes from 14.3") for one in found.read)
    assert "Not used: 'total_loss', 'foo'." in found.read
    assert "Read: step from 'step'" in repr(found) and found.to_dict()["read"] == list(found.read)


def test_the_optimizer_is_a_known_one():
    with pytest.raises(FlowsimError, match="Unknown optimizer 'adm'. Did you mean 'adam'"):
        fs.diagnose((np.eye(30), np.eye(30)), optimizer="adm")


def test_folders_and_kinds_of_weights(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    layer = {"visual.weight": np.ones((4, 4), np.float32)}
    model = tmp_path / "model"
    model.mkdir()
    numpy.save_file({**layer, "logit_scale": np.array(math.log(100), np.float32)}, model / "model.safetensors")
    (model / "config.json").write_text("{}")
    assert fs.diagnose(model).remarks == ["temperature-at-clamp"]
    parts = tmp_path / "parts"
    parts.mkdir()
    numpy.save_file(layer, parts / "model-00001-of-00002.safetensors")
    numpy.save_file({"logit_scale": np.array(1.0, np.float32)}, parts / "model-00002-of-00002.safetensors")
    assert fs.diagnose(parts).faults == ["wrong-initial-temperature"]
    one = tmp_path / "one.safetensors"
    for held, faults, remarks, read in (
        ({"temperature": np.array(0.01, np.float32)}, [], ["temperature-at-clamp"], "read as τ."),
        ({"teacher.logit_scale": np.array(0.0, np.float32), "student.logit_scale": np.array(3.0, np.float32)}, [], [],
         "'student.logit_scale', read as ν; there are others: 'teacher.logit_scale'."),
        ({"logit_scale": np.array(4.9, np.float32), "logit_bias": np.array(-10.0, np.float32)}, [], [], "read as ν."),
        ({"logit_scale": np.array(0.0, np.float32)}, ["wrong-initial-temperature"], [], "read as ν."),
        ({"block.logit_scale": np.ones((4, 1, 1), np.float32), "clip.logit_scale": np.array(3.0, np.float32)}, [], [],
         "The temperature is 'clip.logit_scale', read as ν."),
        ({}, [], [], "The checkpoint holds no temperature under a name that is known."),
    ):  # fmt: skip
        numpy.save_file({**layer, **held}, one)
        found = fs.diagnose(one)
        assert (found.faults, found.remarks) == (faults, remarks), held
        assert found.read[0].endswith(read)
        assert found["temperature-not-trained"].verdict == "cannot tell"
    rows = np.random.default_rng(0).normal(size=(2, 30, 8)).astype(np.float32)
    numpy.save_file({"image_embeds": rows[0], "text_embeds": rows[1], "logit_scale": np.array(4.0, np.float32)}, one)
    assert fs.diagnose(one)["collapsed-rank"].verdict == "not found"
    numpy.save_file({"a": rows[0]}, one)
    with pytest.raises(FlowsimError, match="It is no checkpoint either"):
        fs.diagnose(one)


def test_weights_of_torch(tmp_path):
    torch = pytest.importorskip("torch")
    state = {"epoch": 3, "state_dict": {"module.logit_scale": torch.tensor(math.log(100)), "module.w": torch.ones(3)}}
    torch.save(state, tmp_path / "epoch_3.pt")
    assert fs.diagnose(tmp_path / "epoch_3.pt").remarks == ["temperature-at-clamp"]


def test_what_cannot_be_told_says_what_is_missing():
    case = Case("nothing")
    for name, one in REGISTRY.items():
        found = one.find(case)
        assert found.verdict == "cannot tell" and found.sentence.endswith("."), name
    found = fs.diagnose(healthy("Baseline", 0))
    assert "0 faults found" in repr(found) and "<table>" in found._repr_html_()
    assert json.loads(json.dumps(found.to_dict()))["faults"] == []


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
        (((np.ones((30, 2)), np.ones((30, 2))),), {"clamp": (1.0, 0.1)}, "must be increasing"),
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
