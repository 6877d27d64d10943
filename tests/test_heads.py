"""Heads on frozen features: steps, records, checkpoints, stacks, studies, and the command line."""

import dataclasses
import json
import re

import numpy as np
import pytest

import flowsim as fs
from flowsim.clip.findings import findings
from flowsim.clip.order_figure import order_figure
from flowsim.clip.tables import Tables
from flowsim.heads import learner, pools, studies, training
from flowsim.heads.record import Record
from flowsim.records.status import Status

SMALL = fs.heads.Training(hidden=16, dim=8, steps=30, batch_size=64, evaluations=3, pairs=100, snapshot_pairs=10)


def random_features(pairs=60, seed=0, **more):
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((pairs, 4))
    image = shared @ rng.standard_normal((4, 12)) + 1
    text = shared[:, None] @ rng.standard_normal((4, 6)) + 0.3 * rng.standard_normal((pairs, 3, 6))
    split = np.where(np.arange(pairs) % 4 == 3, "test", "train")
    return fs.data.from_arrays(image, text, split=split, **more)


TINY = SMALL.replace(data=random_features(), batch_size=16, pairs=None, hidden=5, dim=4)


@pytest.fixture(scope="module")
def record():
    return fs.heads.train(SMALL)


class TestRecord:
    def test_evaluations_and_steps(self, record):
        assert record.status.ok and record.clock == "sum of learning rates"
        steps = record.coordinates["step"]
        assert steps[0] == 0 and steps[-1] == 30 and len(record.time) == len(steps)
        assert record.training["train_loss"].shape == (30,)
        elapsed = np.concatenate([[0], np.cumsum(record.training["learning_rate"])])
        np.testing.assert_allclose(record.time, elapsed[steps])
        np.testing.assert_allclose(record.series["temperature"] * record.series["inverse_temperature"], 1)
        assert record.training["train_loss"][-5:].mean() < record.training["train_loss"][:5].mean()
        assert {"zero_shot", "image_to_text_at_1", "seen_modality_gap", "wasserstein_uniformity"} <= set(record.series)

    def test_saved_and_loaded(self, record, tmp_path):
        found = fs.load(record.save(tmp_path / "run.nc"))
        assert isinstance(found, fs.TrainingRecord) and found.config == record.config
        for name, values in record.series.items():
            np.testing.assert_array_equal(found.series[name], values)

    def test_snapshots_hold_embeddings(self, record):
        assert record.snapshot_time[0] == 0 and record.snapshot_time[-1] == record.time[-1]
        assert record.final.image.shape == (10, 8)
        np.testing.assert_allclose(np.linalg.norm(record.final.image, axis=1), 1, atol=1e-6)

    def test_comparison_with_theory_reads_it(self, record):
        found = fs.compare(record)
        assert {"enlargement", "exponent"} <= set(found.items)

    def test_observables_are_those_of_the_simulator(self):
        """The last evaluation, from the weights: an independent path through NumPy."""
        settings = TINY.replace(steps=8, precision="float64")
        pool = pools.Pools.of(settings)
        plan = settings.plan(pool.training.pairs)
        with learner.jax.enable_x64(True):
            made = learner.Learner(
                settings, [learner.flow_of(settings, fs.schedules.get("Baseline"))], [0], pool.training, plan
            )
            made.advance(0, 8)
            weights = made.weights(0).position
        held_out = settings.features().part("test")

        def rows(inputs, hidden, last):
            from scipy.special import erf

            x = inputs @ hidden
            out = (0.5 * x * (1 + erf(x / np.sqrt(2)))) @ last
            return out / np.linalg.norm(out, axis=1, keepdims=True)

        image = rows(held_out.image_rows(dtype=np.float64), weights.image_hidden, weights.image_weights)
        text = rows(held_out.every_text(np.float64)[0], weights.text_hidden, weights.text_weights)
        last = fs.heads.train(settings).series
        np.testing.assert_allclose(
            last["modality_gap"][-1], np.linalg.norm(image.mean(0) - text[::3].mean(0)), rtol=1e-10
        )
        similarity = image @ text.T
        own = np.repeat(np.arange(len(image)), 3)
        forth = np.mean(own[similarity.argmax(1)] == np.arange(len(image)))
        back = np.mean(similarity.argmax(0) == own)
        assert last["image_to_text_at_1"][-1] == pytest.approx(forth)
        assert last["text_to_image_at_1"][-1] == pytest.approx(back)


class TestSteps:
    def test_a_step_is_that_of_descend(self):
        """Without warm-up and decay of the rate, training is `fs.descend` on the same batches."""
        features = random_features().scaled("length").part("train")
        settings = TINY.replace(
            warmup=0.0, decay="constant", weight_decay=0.0, optimizer="sgd", lr=0.02, precision="float64", steps=12,
            clamp=None,
        )  # fmt: skip
        found = fs.heads.train(settings, "SLRT 0.1")
        start = fs.initial.from_features(features, dim=4, hidden=5)
        flow = fs.GradientFlow(fs.MLPEncoders(), "SLRT 0.1")
        peer = fs.descend(flow, start, "sgd", 0.02, 12, batch=16)
        assert found.clock == "flow time"
        np.testing.assert_allclose(found.series["temperature"][-1], peer.series["temperature"][-1], rtol=1e-12)
        # The training's gap of the seen pairs and of the descent are of the same 45 pairs.
        np.testing.assert_allclose(found.series["seen_modality_gap"][-1], peer.series["modality_gap"][-1], rtol=1e-10)

    @pytest.mark.parametrize("method", ["Baseline", "TS S3", "HS 1", "SS 5e-2", "TR softplus", "No normalization"])
    def test_stacked_runs_are_separate_runs(self, method):
        own, schedule = studies.setup(method, TINY)
        alone = [fs.heads.train(own.replace(seed=seed), schedule) for seed in (0, 1)]
        together = training.train_together(own, [(schedule, seed, None) for seed in (0, 1)])
        for one, other in zip(alone, together, strict=True):
            np.testing.assert_allclose(one.training["train_loss"], other.training["train_loss"], rtol=2e-4)
            np.testing.assert_allclose(one.series["modality_gap"], other.series["modality_gap"], atol=2e-5)
            assert one.config == other.config

    def test_features_off_the_device_give_the_same_run(self, monkeypatch):
        resident = fs.heads.train(TINY)
        monkeypatch.setattr(learner, "_RESIDENT", 0)
        monkeypatch.setattr(learner, "_BLOCK_BYTES", 4 * 16 * 18 * 7)
        streamed = fs.heads.train(TINY)
        np.testing.assert_allclose(resident.training["train_loss"], streamed.training["train_loss"], rtol=1e-4)
        np.testing.assert_allclose(resident.series["modality_gap"], streamed.series["modality_gap"], atol=1e-5)

    def test_captions(self):
        first, every = (fs.heads.train(TINY.replace(captions=name)) for name in ("first", "all"))
        assert not np.allclose(first.training["train_loss"], every.training["train_loss"], rtol=1e-3)
        one = random_features()
        one = fs.data.from_arrays(one.image, one.text[:, 0], split=one.split)
        alone = fs.heads.train(TINY.replace(data=one))
        np.testing.assert_allclose(first.training["train_loss"], alone.training["train_loss"], rtol=1e-6)

    def test_fewer_observables_are_the_same_numbers(self):
        whole, some, gap = (fs.heads.train(TINY.replace(observables=name)) for name in ("all", "retrieval", "gap"))
        assert set(gap.series) < set(some.series) < set(whole.series)
        assert "text_to_image_at_1" in some.series and "modality_gap" in gap.series
        for part in (some, gap):
            for name, values in part.series.items():
                np.testing.assert_allclose(values, whole.series[name], rtol=1e-12, err_msg=name)

    def test_padding_is_never_drawn(self):
        whole = random_features()
        counts = np.where(np.arange(60) % 2, 1, 3)
        text = np.where(np.arange(3)[None, :, None] < counts[:, None, None], whole.text, 1e4)
        ragged = fs.data.from_arrays(whole.image, text, split=whole.split, counts=counts)
        assert np.isfinite(fs.heads.train(TINY.replace(data=ragged, scaling="none")).training["train_loss"]).all()
        assert fs.heads.train(TINY.replace(data=ragged, scaling="none")).training["train_loss"].max() < 50

    def test_weight_decay_spares_the_temperature(self):
        settings = TINY.replace(lr=1e-9, weight_decay=1e6, warmup=0.0, decay="constant", clamp=None)
        found = fs.heads.train(settings, "SLRT 0.1")
        np.testing.assert_allclose(found.series["temperature"][-1], 0.07, rtol=1e-6)
        # Only the gradient moves it: with no decay of the weights it is the same.
        free = fs.heads.train(settings.replace(weight_decay=0.0), "SLRT 0.1")
        np.testing.assert_allclose(found.series["raw_temperature"][-1], free.series["raw_temperature"][-1], rtol=1e-6)

    def test_clip_bounds_the_gradient(self):
        """With SGD the first step is at most lr · clip long."""
        settings = TINY.replace(optimizer="sgd", weight_decay=0.0, clip=1e-3, lr=1.0, warmup=0.0, steps=1)
        pool = pools.Pools.of(settings)
        plan = settings.plan(pool.training.pairs)
        made = learner.Learner(
            settings, [learner.flow_of(settings, fs.schedules.get("FLT 4e-2"))], [0], pool.training, plan
        )
        before = made.weights(0).position
        made.advance(0, 1)
        after = made.weights(0).position
        moved = [getattr(after, f.name) - getattr(before, f.name) for f in dataclasses.fields(before)]
        assert np.sqrt(sum((x**2).sum() for x in moved)) == pytest.approx(1e-3, rel=1e-2)

    def test_the_clamp_holds(self):
        found = fs.heads.train(TINY.replace(clamp=(0.06, 0.08), lr=0.1), "Baseline")
        assert found.training["train_temperature"].max() <= 0.08 + 1e-6
        free = fs.heads.train(TINY.replace(clamp=None, lr=0.1), "Baseline")
        assert free.training["train_temperature"].max() > 0.1

    def test_mispaired_captions_raise_the_loss(self):
        clean, wrong = (fs.heads.train(TINY.replace(mispaired=p, steps=200)) for p in (0.0, 0.8))
        assert wrong.series["loss"][-1] > clean.series["loss"][-1] + 0.5

    def test_a_diverging_run_ends_with_its_record(self, tmp_path):
        settings = TINY.replace(optimizer="sgd", lr=1e30, warmup=0.0, clamp=None)
        found = fs.heads.train(settings, "Baseline", tmp_path / "run.nc")
        assert found.status.code is Status.DIVERGED
        assert len(found.training["train_loss"]) < 30
        assert fs.load(tmp_path / "run.nc").status.code is Status.DIVERGED
        assert fs.heads.train(settings, "Baseline", tmp_path / "run.nc").status.code is Status.DIVERGED


class TestResume:
    def test_an_interrupted_run_is_the_whole_run(self, tmp_path, monkeypatch):
        path, settings = tmp_path / "run.nc", TINY.replace(checkpoint_seconds=0.0)
        whole = fs.heads.train(settings, "HS 1e-1")

        def stop(text, done, total, /, **numbers):
            if done >= 20:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fs.heads.train(settings, "HS 1e-1", path, progress=stop)
        assert fs.load(path).status.code is Status.UNFINISHED
        assert path.with_suffix(".checkpoint.npz").exists()
        resumed = fs.heads.train(settings, "HS 1e-1", path)
        assert not path.with_suffix(".checkpoint.npz").exists()
        for name, values in whole.series.items():
            np.testing.assert_array_equal(resumed.series[name], values, err_msg=name)
        np.testing.assert_array_equal(resumed.training["train_loss"], whole.training["train_loss"])
        for name, values in whole.snapshots.items():
            np.testing.assert_array_equal(resumed.snapshots[name], values)

    def test_a_finished_run_is_read(self, tmp_path):
        first = fs.heads.train(TINY, "Baseline", tmp_path / "run.nc")
        told = []
        again = fs.heads.train(TINY, "Baseline", tmp_path / "run.nc", progress=lambda *a, **k: told.append(a))
        assert not told and again.stats == first.stats

    @pytest.mark.parametrize(
        "change",
        [{"lr": 1e-3}, {"hidden": 6}, {"data": random_features(seed=1)}, {"scaling": "standard"}, {"mispaired": 0.5}],
    )
    def test_another_run_is_not_replaced(self, change, tmp_path):
        fs.heads.train(TINY, "Baseline", tmp_path / "run.nc")
        with pytest.raises(fs.FlowsimError, match="holds another run"):
            fs.heads.train(TINY.replace(**change), "Baseline", tmp_path / "run.nc")
        assert fs.heads.train(TINY.replace(**change), "Baseline", tmp_path / "run.nc", force=True).status.ok

    def test_a_damaged_checkpoint_gives_one_sentence(self, tmp_path):
        (tmp_path / "run.checkpoint.npz").write_bytes(b"PK nothing")
        with pytest.raises(fs.FlowsimError, match="cannot be read .* Remove it to start again"):
            fs.heads.train(TINY, "Baseline", tmp_path / "run.nc")

    def test_a_checkpoint_of_another_run(self, tmp_path):
        pool = pools.Pools.of(TINY)
        plan = TINY.plan(pool.training.pairs)
        Record(TINY, fs.schedules.get("Baseline"), plan, {"other": 1}, 0, tmp_path / "run.nc").write_checkpoint([])
        with pytest.raises(fs.FlowsimError, match="belongs to a run with other settings"):
            fs.heads.train(TINY, "Baseline", tmp_path / "run.nc")


class TestStudy:
    NAMES = ("Baseline", "FLT 1e-2", "FLT 1e-1", "No normalization")

    def test_records_and_tables(self, tmp_path):
        found = fs.heads.study(TINY, tmp_path, self.NAMES, 2)
        assert list(found) == [f"{name}, seed {seed}" for seed in (0, 1) for name in self.NAMES]
        tables = Tables.of(found)
        assert tables.methods == self.NAMES and tables.seeds == (0, 1)
        assert np.isfinite(tables.values["gap"]).all() and np.isfinite(tables.values["image_retrieval"]).all()
        assert list(fs.load_results(tmp_path / "runs.nc")) == list(found)
        # The methods of a seed begin with the same weights.
        gaps = [found[f"{name}, seed 0"].series["modality_gap"][0] for name in self.NAMES[:3]]
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-5)
        stacked = fs.heads.study(TINY, tmp_path / "stacked", self.NAMES, 2, stack=4)
        for name, one in found.items():
            np.testing.assert_allclose(one.series["modality_gap"], stacked[name].series["modality_gap"], atol=1e-4)

    def test_groups_share_a_structure(self):
        runs = [(name, seed) for seed in range(2) for name in fs.schedules.names()]
        groups = list(studies._groups(TINY, runs, 16))
        assert sorted(run for group in groups for run in group) == sorted(runs)
        assert len(groups) < 14 and max(map(len, groups)) == 16
        assert [len(group) for group in studies._groups(TINY, runs, 1)] == [1] * len(runs)

    def test_processes_and_executors_give_the_same(self, tmp_path):
        one = fs.heads.study(TINY, tmp_path / "one", self.NAMES[:2], 1)
        two = fs.heads.study(TINY, tmp_path / "two", self.NAMES[:2], 1, jobs=2)
        three = fs.heads.study(TINY, tmp_path / "three", self.NAMES[:2], 1, executor="processes:1")
        told = []
        again = fs.heads.study(
            TINY, tmp_path / "three", self.NAMES[:3], 1, executor="processes:1", progress=lambda *a, **k: told.append(a)
        )
        assert told == [("training", 3, 3)]  # the other two were finished
        assert again["Baseline, seed 0"].stats == three["Baseline, seed 0"].stats
        for name, record in one.items():
            for other in (two, three):
                np.testing.assert_array_equal(record.training["train_loss"], other[name].training["train_loss"])

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"jobs": 0}, "`jobs` must be at least 1"),
            ({"stack": 0}, "`stack` must be at least 1"),
            ({"seeds": 0}, "at least one seed"),
            ({"names": "Base"}, "Unknown method 'Base'"),
            ({"executor": 3}, "`executor` cannot be int"),
        ],
    )
    def test_bad_input(self, options, message, tmp_path):
        with pytest.raises(fs.FlowsimError, match=re.escape(message)):
            fs.heads.study(TINY, tmp_path / "out", **options)
        assert not (tmp_path / "out").exists()


class TestFindings:
    NAMES = ("Baseline", "FLT 1e-2", "FLT 4e-2", "TS S3", "SLRT 0.1", "HS 1e-2", "SS 5e-2")

    def tables(self, gaps, retrieval=None, temperature=0.02):
        """Tables of seven methods with three seeds; gaps and retrieval by method."""
        seeds = np.array([[0.999, 1.0, 1.001]])
        gap = np.array(gaps)[:, None] * seeds
        values = {"gap": gap, "temperature": np.full_like(gap, temperature)}
        if retrieval is not None:
            values |= {"image_retrieval": np.array(retrieval)[:, None] * seeds, "text_retrieval": gap * 0 + seeds}
        from flowsim.clip.tables import paper_tables

        return Tables(self.NAMES, (0, 1, 2), values, {}, np.nan, 10, paper_tables())

    def verdicts(self, *args, **more):
        return {one.statement: one.verdict for one in findings(self.tables(*args, **more))}

    def test_every_verdict(self):
        paper = self.verdicts([0.29, 0.67, 0.12, 0.09, 0.28, 0.10, 0.29 * 0.9])
        assert set(paper.values()) == {"supported"} and len(paper) == 7
        opposite = self.verdicts([0.2, 0.1, 0.3, 0.31, 0.32, 0.33, 0.34], temperature=0.08)
        assert opposite["the learned temperature falls below 0.07"] == "contradicted"
        assert opposite["a lower fixed temperature ends with a larger gap"] == "contradicted"
        assert opposite["rising temperatures end with a smaller gap than the Baseline"] == "contradicted"
        mixed = self.verdicts([0.2, 0.4, 0.1, 0.1, 0.1, 0.1, 0.3])
        assert mixed["swaps end with a smaller gap than the Baseline"] == "in part"

    def test_one_seed_that_disagrees_is_seen(self):
        tables = self.tables([0.29, 0.67, 0.12, 0.09, 0.28, 0.10, 0.2])
        tables.values["gap"][self.NAMES.index("TS S3"), 1] = 0.5
        found = {one.statement: one.verdict for one in findings(tables)}
        assert found["rising temperatures end with a smaller gap than the Baseline"] == "contradicted"

    @pytest.mark.parametrize(("sign", "verdict"), [(-1, "supported"), (1, "contradicted")])
    def test_retrieval(self, sign, verdict):
        gaps = np.array([0.29, 0.67, 0.12, 0.09, 0.28, 0.10, 0.2])
        found = self.verdicts(gaps, 20 * gaps**sign)
        assert found["a smaller gap goes with better retrieval, text to image"] == verdict
        # Equal retrieval has no rank correlation.
        assert "a smaller gap goes with better retrieval, image to text" not in found

    def test_nothing_is_said_without_its_methods(self):
        tables = self.tables([0.29, 0.67, 0.12, 0.09, 0.28, 0.10, 0.2])
        few = dataclasses.replace(
            tables, methods=("FLT 1e-2",), values={name: x[1:2] for name, x in tables.values.items()}
        )
        assert findings(few) == []

    def test_numbers_hold_the_tables(self):
        names = ("Baseline", "FLT 1e-2", "FLT 4e-2", "TS S3")
        records = {f"{name}, seed {s}": fs.heads.train(TINY.replace(seed=s), name) for s in (0, 1) for name in names}
        numbers = fs.clip.figures.methods_numbers(records)
        one, other = Tables.of(records), Tables.of_numbers(numbers)
        assert one.markdown() == other.markdown()
        assert {"image_retrieval", "gap"} <= set(one.at_loss)
        drawn = order_figure(numbers)
        assert len(drawn.axes) == 6 and all(ax.has_data() for ax in drawn.axes)


class TestSettings:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"lr": 0.0}, "`lr` must be positive"),
            ({"optimizer": "lamb"}, "Unknown optimizer 'lamb'"),
            ({"hidden": 0}, "`hidden` must be a whole number of at least 1"),
            ({"dim": 1}, "`dim` must be a whole number of at least 2"),
            ({"scaling": "unit"}, "Unknown scaling 'unit'"),
            ({"precision": "bf16"}, "Unknown precision 'bf16'"),
            ({"observables": "some"}, "Unknown observables 'some'"),
            ({"mispaired": 1.5}, "`mispaired` must"),
            ({"clip": -1.0}, "`clip` must be positive"),
            ({"clamp": (1.0, 0.1)}, "`clamp` must be"),
            ({"learning_rate": 1.0}, "Unknown setting 'learning_rate'"),
        ],
    )
    def test_bad_values(self, change, message):
        with pytest.raises(fs.FlowsimError, match=re.escape(message)):
            SMALL.replace(**change)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"split": "training"}, "Unknown split 'training'. Did you mean 'train'"),
            ({"batch_size": 5000}, "There are 1332 training pairs, but one step takes 5000"),
            ({"data": "missing.npz"}, "missing.npz"),
        ],
    )
    def test_bad_data(self, change, message):
        with pytest.raises(fs.FlowsimError, match=re.escape(message)):
            fs.heads.train(SMALL.replace(**change))

    def test_files_are_named_without_folders(self, tmp_path):
        path = fs.data.save(random_features(), tmp_path / "some.npz")
        config = fs.heads.train(TINY.replace(data=str(path))).config
        assert config["training"]["data"] == "some.npz"
        assert config["digests"] == fs.heads.train(TINY).config["digests"]
        json.dumps(config)


class TestCommandLine:
    def run(self, capfd, *argv):
        from flowsim.cli import entry

        code = entry.main(["heads", *argv])
        return code, *capfd.readouterr()

    def test_train(self, capfd, tmp_path):
        given = ("--hidden", "0", "--steps", "10", "--batch-size", "64", "--pairs", "50", "--set", "clip=1")
        out = tmp_path / "run.nc"
        code, told, errors = self.run(capfd, "train", *given, "--schedule", "TS S3", "--out", str(out), "--json")
        assert code == 0 and "modality_gap" in told and json.loads(told) and "Saved" in errors
        config = fs.load(out).config["training"]
        assert config["hidden"] is None and config["clip"] == 1.0 and config["steps"] == 10

    def test_study(self, capfd, tmp_path):
        given = ("--methods", "Baseline,FLT 4e-2", "--seeds", "1", "--steps", "10", "--batch-size", "64", "--dim", "8")
        given = (*given, "--hidden", "8", "--pairs", "50", "--out", str(tmp_path))
        code, told, _ = self.run(capfd, "study", *given)
        assert code == 0 and "FLT 4e-2" in told
        assert {"tables.md", "methods.png", "quality.png", "runs.nc"} <= {path.name for path in tmp_path.iterdir()}
        code, told, _ = self.run(capfd, "study", "--tables", "--out", str(tmp_path), "--json")
        assert code == 0 and json.loads(told)["steps"] == 10

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ((), "Give a command after heads: train or study."),
            (("train", "--hidden", "-1"), "Option `--hidden` must be a whole number of at least 1"),
            (("train", "--lr", "x"), "Option `--lr` must be a number"),
            (("train", "--features", "nope.npz"), "There is no 'nope.npz'"),
            (("train", "--split", "foo"), "Unknown split 'foo'"),
            (("train", "--batch-size", "5000"), "Use a smaller `--batch-size`"),
            (("train", "--set", "data=x"), "Setting `data` has its own option"),
            (("train", "--set", "lrr=1"), "Unknown setting 'lrr'"),
            (("train", "--clamp", "1"), "Option `--clamp` takes two numbers"),
            (("study", "--jobs", "0"), "Option `--jobs` must be at least 1"),
            (("study", "--methods", "foo"), "Unknown method 'foo'"),
            (("train", "--out", "run.json"), ".nc"),
        ],
    )
    def test_bad_input(self, argv, message, capfd, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        code, told, errors = self.run(capfd, *argv)
        assert code == 2 and told == "" and errors.count("\n") == 1 and message in errors
        assert not list(tmp_path.rglob("*.nc"))
