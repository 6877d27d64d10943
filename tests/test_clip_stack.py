"""Stacked runs: the separate runs up to rounding; they resume, and do not disturb each other."""

import collections
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import flowsim as fs
from flowsim import cli
from flowsim.clip import studies
from flowsim.progress import silent

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch

    from flowsim.clip import stacked
    from flowsim.clip.checkpoint import Checkpoint
    from flowsim.clip.identity import configuration
    from flowsim.clip.settings import Training
    from flowsim.clip.stack import Stack
    from flowsim.clip.training import train

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

TINY = Training(
    model="flowsim-vit-32", data="shapes:count=40,size=32", image_size=32, steps=6, batch_size=8, pairs=12,
    evaluations=3, observables="gap", snapshot_pairs=4, warmup=0.2, threads=1,
    eps=1e-4,  # with less, AdamW makes whole steps of gradients that are rounding
)  # fmt: skip
#: Swaps in every step, a schedule, a learning rate and a parametrization of its own.
METHODS = ("Baseline", "TS S3", "HS 1", "SLRT 0.1", "TR softplus")
SEEDS = (0, 3)


def _paths(folder, methods=METHODS, seeds=SEEDS):
    return {(m, s): folder / studies.file_name(m, s) for s in seeds for m in methods}


def _train(folder, settings=TINY, methods=METHODS, seeds=SEEDS, **options):
    schedules = {name: fs.schedules.get(name) for name in methods}
    return stacked.train_stacked(settings, schedules, seeds, _paths(folder, methods, seeds), cpu=True, **options)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    return folder, _train(folder)


def test_stacked_runs_are_the_separate_ones_up_to_rounding(together):
    folder, records = together
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in _paths(folder).values())
    for (method, seed), record in records.items():
        alone = train(TINY.replace(seed=seed), method, cpu=True)
        assert record.config == alone.config
        assert record.status.code is alone.status.code
        assert set(record.series) == set(alone.series)
        assert record.stats["parameters"] == alone.stats["parameters"]
        for part in ("training", "series", "snapshots", "coordinates"):
            ours, theirs = getattr(record, part), getattr(alone, part)
            for name in theirs:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-5, err_msg=f"{method} {name}")
        loaded: Any = fs.load(folder / studies.file_name(method, seed))
        np.testing.assert_array_equal(loaded.training["train_loss"], record.training["train_loss"])


def test_seeds_and_methods_differ(together):
    """The comparison above could not fail if all runs were one."""
    _, records = together
    last = {run: record.training["train_loss"][-1] for run, record in records.items()}
    assert len(set(last.values())) == len(last)


def _stack(settings, methods, seeds):
    schedules, checkpoint = {name: fs.schedules.get(name) for name in methods}, Checkpoint(Path("none.nc"))
    return stacked._Training.begin(settings, schedules, seeds, checkpoint, True, silent).stack


def test_gradients_are_those_of_separate_runs():
    together = _stack(TINY, METHODS, SEEDS).gradient(1)
    for s, seed in enumerate(SEEDS):
        for m, name in enumerate(METHODS):
            alone = _stack(TINY.replace(seed=seed), (name,), (seed,)).gradient(1)
            for key, gradient in alone.items():
                scale = float(gradient.abs().max())
                difference = float((together[key][s, m] - gradient[0, 0]).abs().max())
                assert difference <= 1e-5 * max(scale, 1e-6), (name, seed, key)


def test_accumulated_losses_and_features_without_normalisation(tmp_path):
    settings = TINY.replace(accumulate=2, normalize=False, steps=3, optimizer="sgd", lr=0.1, decay_all=True)
    records = _train(tmp_path, settings, ("FLT 4e-1", "HS 1e-1"), (1,))
    for (method, seed), record in records.items():
        alone = train(settings.replace(seed=seed), method, cpu=True)
        for name in ("train_loss", "train_modality_gap", "train_temperature"):
            np.testing.assert_allclose(record.training[name], alone.training[name], rtol=1e-4, err_msg=name)


def test_an_interrupted_stack_goes_on_from_its_checkpoint(together, tmp_path):
    _, whole = together
    seen = []

    def interrupt(text, done, total, /, **numbers):
        seen.append(done)
        if done == 4:
            raise KeyboardInterrupt

    settings = TINY.replace(checkpoint_seconds=0.0)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path, settings, progress=interrupt)
    left: list[Any] = [fs.load(path) for path in _paths(tmp_path).values()]
    assert {record.status.code.name for record in left} == {"UNFINISHED"}
    assert {len(record.training["train_loss"]) for record in left} == {4}
    assert len(list(tmp_path.glob("*.checkpoint.pt"))) == 1
    again = []
    records = _train(tmp_path, settings, progress=lambda text, done, total, /, **numbers: again.append(done))
    assert again[0] == 4  # step 3 was in the checkpoint
    assert not list(tmp_path.glob("*.pt"))
    for run, record in records.items():
        for part in ("training", "series", "snapshots"):
            for name, values in getattr(whole[run], part).items():
                np.testing.assert_array_equal(getattr(record, part)[name], values, err_msg=f"{run} {name}")


def test_a_run_that_diverges_leaves_the_others_alone(together, tmp_path, monkeypatch):
    _, whole = together
    take = Stack.take_step

    def broken(self, k):
        values = take(self, k)
        if k == 2:
            values[1, 0, 0] = torch.nan
        return values

    monkeypatch.setattr(Stack, "take_step", broken)
    records = _train(tmp_path)
    assert {run: r.status.code.name for run, r in records.items() if not r.status.ok} == {("Baseline", 3): "DIVERGED"}
    for run, record in records.items():
        if record.status.ok:
            np.testing.assert_array_equal(record.training["train_loss"], whole[run].training["train_loss"])
    assert np.isnan(records["Baseline", 3].training["train_loss"]).sum() == 1


def test_full_memory_gives_one_sentence_and_keeps_the_records(tmp_path, monkeypatch):
    take = Stack.take_step

    def full(self, k):
        if k == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return take(self, k)

    monkeypatch.setattr(Stack, "take_step", full)
    with pytest.raises(fs.FlowsimError, match="memory of the GPU is full.*smaller `stack`"):
        _train(tmp_path, methods=("Baseline",), seeds=(0,))
    assert fs.load(tmp_path / studies.file_name("Baseline", 0)).status.code.name == "UNFINISHED"


@pytest.mark.parametrize(
    ("vision", "text"),
    [
        ({"layers": [1, 1, 1, 1], "width": 16, "image_size": 32, "head_width": 16}, {}),
        ({"layers": 1, "width": 32, "image_size": 32, "patch_size": 16, "head_width": 16, "patch_dropout": 0.5}, {}),
    ],
    ids=["batch normalisation", "dropout of patches"],
)
def test_models_whose_runs_are_not_independent_are_refused(tmp_path, vision, text):
    config = {
        "embed_dim": 32, "vision_cfg": vision,
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1, **text},
    }  # fmt: skip
    name = "stack-" + "-".join(sorted(vision))
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(config))
    with pytest.raises(fs.FlowsimError, match="cannot be stacked.*stack=1"):
        _train(tmp_path, TINY.replace(model=str(path)), ("Baseline",), (0,))


def test_a_study_in_stacks_is_the_study(tmp_path, monkeypatch, capsys):
    """Also with a method that needs another program, and with runs that are finished already."""
    names = ["TS S3", studies.WITHOUT_NORMALIZATION]
    train(TINY.replace(seed=1), "TS S3", tmp_path / studies.file_name("TS S3", 1), cpu=True)
    made = []
    original = stacked.train_stacked

    def counted(settings, schedules, seeds, paths, **options):
        made.append((tuple(schedules), tuple(seeds)))
        return original(settings, schedules, seeds, paths, **options)

    monkeypatch.setattr(stacked, "train_stacked", counted)
    records = studies.study(TINY, tmp_path, names, 2, stack=8, cpu=True)
    assert sorted(made) == [(("No normalization",), (0, 1)), (("TS S3",), (0,))]
    assert list(records) == [f"{name}, seed {seed}" for seed in (0, 1) for name in names]
    assert records["No normalization, seed 0"].config["training"]["normalize"] is False
    own = configuration(*studies.setup(names[1], TINY.replace(seed=1)))
    assert records["No normalization, seed 1"].config["schedule"] == own["schedule"]
    made.clear()
    call = ["clip", "study", "--methods", ",".join(names), "--seeds", "2", "--stack", "8", "--out", str(tmp_path)]
    changes = [f"{k}={getattr(TINY, k)}" for k in ("image_size", "steps", "batch_size", "pairs", "evaluations",
               "observables", "snapshot_pairs", "warmup", "eps")]  # fmt: skip
    options = ["--preset", "smoke", "--data", TINY.data, "--threads", "1", "--cpu"]
    assert cli.main([*call, *options, *(x for change in changes for x in ("--set", change))]) == 0
    assert not made  # nothing was left to train
    assert "TS S3" in capsys.readouterr().out


@given(
    runs=st.sets(st.tuples(st.sampled_from([*METHODS, studies.WITHOUT_NORMALIZATION]), st.integers(0, 3)), min_size=1),
    most=st.integers(1, 9),
)
def test_stacks_hold_every_run_once(runs, most):
    found = studies.stacks(sorted(runs, key=lambda run: (run[1], run[0])), most)
    every = collections.Counter((name, seed) for names, seeds in found for name in names for seed in seeds)
    assert every == collections.Counter(runs)
    for names, seeds in found:
        assert len(names) * len(seeds) <= most
        assert (studies.WITHOUT_NORMALIZATION in names) == (set(names) == {studies.WITHOUT_NORMALIZATION})


def test_stacks_and_jobs_exclude_each_other(tmp_path):
    with pytest.raises(fs.FlowsimError, match="Leave one of them out"):
        studies.study(TINY, tmp_path, ["Baseline"], 1, stack=2, jobs=2)
    for wrong in (0, -3):
        with pytest.raises(fs.FlowsimError, match="`stack` must be at least 1"):
            studies.study(TINY, tmp_path, ["Baseline"], 1, stack=wrong)


@pytest.mark.parametrize("wrong", ["0", "-3"])
def test_the_command_line_names_its_option(tmp_path, capsys, wrong):
    assert cli.main(["clip", "study", "--preset", "smoke", "--stack", wrong, "--out", str(tmp_path / "a")]) == 2
    assert "Option `--stack` must be at least 1" in capsys.readouterr().err
    assert not (tmp_path / "a").exists()
