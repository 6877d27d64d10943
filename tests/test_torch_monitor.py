"""The monitor of a training loop in PyTorch: its numbers against `fs.observables`, and where they go."""

import json
import math
import types
import weakref

import numpy as np
import pytest

import flowsim as fs
from flowsim.comparison.record import Run

torch = pytest.importorskip("torch")
from test_torch_loop import D, Model, N, contrast, controlled  # noqa: E402

from flowsim.torch import GapMonitor, measure  # noqa: E402
from flowsim.torch.metrics import METRICS  # noqa: E402


@pytest.mark.parametrize("n", [2, 3, 40])
@pytest.mark.parametrize("kind", ["random", "long", "collapsed", "matched"])
def test_observables_are_those_of_flowsim(n, kind):
    rng = np.random.default_rng(n)
    image, text = rng.standard_normal((2, n, 8))
    if kind == "long":
        image, text = image * 1e200, text * rng.uniform(1e-3, 1e3, (n, 1))
    elif kind == "collapsed":
        image = np.ones((n, 8))
    elif kind == "matched":
        text = image + 0.1 * text + 0.5
    found = {name: x.item() for name, x in measure(torch.tensor(image), torch.tensor(text)).items()}
    wanted = fs.observables.report(image, text, only=[name for name in METRICS if name != "common_share"])
    assert found.keys() - wanted.values.keys() == {"common_share"}
    for name, value in wanted.values.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-11, nan_ok=True), name
    norms = fs.observables.centre_norms(image, text)
    both = (norms.image**2 + norms.text**2) / 2 - wanted["modality_gap"] ** 2 / 4
    assert found["common_share"] == pytest.approx(both, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_features_of_lower_precision_are_measured_as_they_are(dtype):
    image, text = torch.randn(2, 30, 8, generator=torch.manual_seed(0)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = measure(image, text)
    wanted = fs.observables.report(image, text, only=["modality_gap", "margin", "image_effective_rank"])
    for name, value in wanted.values.items():
        assert found[name].item() == pytest.approx(value, rel=1e-9), name


def test_features_that_are_not_finite_give_nan(tmp_path):
    image, text = torch.randn(2, 5, 4, generator=torch.manual_seed(0))
    for wrong in (math.nan, math.inf):
        image[2, 1] = wrong
        assert all(math.isnan(x) for x in measure(image, text).values())
    assert math.isnan(measure(torch.zeros(5, 4), text)["modality_gap"])
    monitor = GapMonitor(1)
    assert math.isnan(monitor(image, text, loss=torch.tensor(math.nan))["train_loss"])
    assert monitor.record().status.code is fs.Status.DIVERGED


def test_a_monitor_measures_every_k_steps_and_writes_everywhere(tmp_path):
    heard, scalars, logged = [], [], []
    board = types.SimpleNamespace(add_scalar=lambda *row: scalars.append(row))
    run = types.SimpleNamespace(define_metric=lambda *a, **k: None, log=logged.append)
    model, optimizer, controller = controlled("TS S3", total=20)
    with GapMonitor(4, to=[tmp_path / "run.nc", heard.append, board, run], controller=controller) as monitor:
        for step in range(10):
            image, text, beta = model()
            loss = contrast(image, text, beta)
            measured = monitor(image, text, loss=loss)
            assert (measured is not None) == (step % 4 == 0)
            assert monitor(image, text) is None  # a second micro-batch of the step
            loss.backward()
            optimizer.step()
    record = fs.load(tmp_path / "run.nc")
    assert isinstance(record, fs.TrainingRecord)
    # Every fourth step, and the last one.
    np.testing.assert_array_equal(record.coordinates["step"], [0, 4, 8, 9])
    np.testing.assert_allclose(record.coordinates["progress"], [0, 0.2, 0.4, 0.45])
    np.testing.assert_allclose(record.series["temperature"], [0.01, 0.018, 0.026, 0.028])
    np.testing.assert_allclose(record.series["learning_rate"], 0.01)
    assert (record.clock, record.status.code) == ("step", fs.Status.COMPLETED)
    assert record.config["training"]["batch_size"] == N and record.config["embed_dim"] == D
    assert fs.Schedule.from_json(json.dumps(record.config["schedule"])).to_json() == controller.schedule.to_json()
    for k, values in enumerate(heard):
        step = [0, 4, 8, 9][k]
        assert values["step"] == step
        assert values["train_loss"] == record.series["train_loss"][k]
        assert ("flowsim/train_loss", values["train_loss"], step) in scalars
        assert logged[k]["flowsim/step"] == step and logged[k]["flowsim/margin"] == values["margin"]
    assert len(heard) == len(logged) == 4


class Towers(torch.nn.Module):
    """Two small networks with a layer that is frozen."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [torch.nn.Linear(5, 7), torch.nn.Linear(4, 7)]
        self.visual, self.textual = (torch.nn.Sequential(one, torch.nn.Tanh(), torch.nn.Linear(7, 6)) for one in layers)
        layers[0].requires_grad_(False)

    def forward(self, images, texts):
        return self.visual(images), self.textual(texts)


def rates_by_jacobian(tower, inputs):
    """Own and shared by their definition: K_ij = tr(J_i J_jᵀ)/tr(Π_i Π_j) of unit rows with Jacobians J."""
    parameters = {name: p for name, p in tower.named_parameters() if p.requires_grad}

    def rows(held):
        return torch.nn.functional.normalize(torch.func.functional_call(tower, held, inputs), dim=1)

    unit = rows(parameters).detach()
    slopes = torch.func.jacrev(rows)(parameters).values()
    matrix = sum(torch.einsum("idp,jdp->ij", s.flatten(2), s.flatten(2)) for s in slopes)
    matrix = matrix / (unit.shape[1] - 2 + (unit @ unit.T) ** 2)
    off = matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean()
    return (matrix.diagonal().mean() - off).item(), off.item()


def test_kernel_numbers_are_those_of_the_jacobian():
    model = Towers()
    inputs = torch.randn(8, 5, generator=torch.manual_seed(1)), torch.randn(8, 4, generator=torch.manual_seed(2))
    before = torch.get_rng_state()
    found = fs.torch.kernel_numbers(*model(*inputs), model.parameters(), directions=3000)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tower, x in (("image", model.visual, inputs[0]), ("text", model.textual, inputs[1])):
        own, shared = rates_by_jacobian(tower, x)
        # The norms of single entries are replaced by their mean.
        assert found[f"{name}_own"].item() == pytest.approx(own, rel=0.05)
        assert found[f"{name}_shared"].item() == pytest.approx(shared, rel=0.05)
    for parameter in model.visual.parameters():
        parameter.requires_grad_(False)
    frozen = fs.torch.kernel_numbers(*model(*inputs), model.parameters())
    assert frozen["image_own"] == frozen["image_shared"] == 0 < frozen["text_own"] + frozen["text_shared"]
    with pytest.raises(fs.FlowsimError, match="have no graph, which kernels need"):
        fs.torch.kernel_numbers(*(x.detach() for x in model(*inputs)), model.parameters())


def test_a_monitor_measures_kernels_and_changes_nothing():
    inputs = torch.randn(8, 5, generator=torch.manual_seed(1)), torch.randn(8, 4, generator=torch.manual_seed(2))
    slopes, records = [], []
    for kernels in (False, True):
        model = Towers()
        with GapMonitor(2, kernels=model if kernels else None) as monitor:
            for step in range(4):
                image, text = model(*inputs)
                monitor(image, text, step)
                model.zero_grad()
                contrast(image, text, 10.0).backward()
        slopes.append([p.grad for p in model.parameters() if p.requires_grad])
        records.append(monitor.record())
    assert all(torch.equal(a, b) for a, b in zip(*slopes, strict=True))
    names = {f"{side}_{rate}" for side in ("image", "text") for rate in ("own", "shared")}
    assert names & records[0].series.keys() == set() and names <= records[1].series.keys()
    assert np.isfinite(records[1].series["image_own"][:2]).all()


@pytest.mark.slow
def test_a_record_is_compared_as_other_runs(tmp_path):
    model, optimizer, controller = controlled("Baseline", total=200)
    with GapMonitor(5, to=tmp_path / "run.nc", controller=controller) as monitor:
        for _ in range(200):
            image, text, beta = model()
            monitor(image, text)
            optimizer.zero_grad()
            contrast(image, text, beta).backward()
            optimizer.step()
    run = Run.of(tmp_path / "run.nc")
    np.testing.assert_array_equal(run.axis, [*range(0, 200, 5), 199])
    assert run.pairs == N and run.dim == D and run.schedule is not None and run.beta is not None
    assert "temperature" in repr(fs.compare(tmp_path / "run.nc"))


def test_a_file_is_not_replaced_but_continued_on_request(tmp_path):
    path = tmp_path / "run.nc"
    rows = torch.randn(2, 5, 4, generator=torch.manual_seed(0))

    def run(first, last, **options):
        with GapMonitor(2, to=path, **options) as monitor:
            for step in range(first, last):
                monitor(*rows, step, inverse_temperature=10.0 + step)

    run(0, 7)
    with pytest.raises(fs.FlowsimError, match="exists. Choose another name"):
        GapMonitor(to=path)
    run(4, 11, resume=True)
    record = fs.load(path)
    np.testing.assert_array_equal(record.time, [0, 2, 4, 6, 8, 10])
    np.testing.assert_allclose(record.series["inverse_temperature"], 10.0 + record.time)
    fs.descend(fs.GradientFlow(), fs.initial.matched(3, 3, gamma=0.3), "sgd", 0.1, 2).save(tmp_path / "other.nc")
    with pytest.raises(fs.FlowsimError, match="no record of a GapMonitor"):
        GapMonitor(to=tmp_path / "other.nc", resume=True)


def test_a_resumed_run_does_not_begin_again(tmp_path):
    rows = torch.randn(2, 5, 4, generator=torch.manual_seed(0))
    for first, options in ((0, {}), (0, {"resume": True})):
        with GapMonitor(2, to=tmp_path / "run.nc", **options) as monitor:
            if options:
                with pytest.raises(
                    fs.FlowsimError, match="holds 6 rows, up to step 9, but the run begins again at step 0"
                ):
                    monitor(*rows, first)
            else:
                for step in range(10):
                    monitor(*rows, step)
    assert len(fs.load(tmp_path / "run.nc").time) == 6


def test_the_record_of_a_loop_is_diagnosed(tmp_path):
    """The loop of the documentation, with a temperature that gets no steps, with NaN at the end, and healthy."""
    verdicts = {}
    for name, policy in (("forgotten", fs.temperature.Learnable(0.07, lr_ratio=0.0)), ("healthy", "Baseline")):
        model, optimizer, controller = controlled(policy, optimizer=torch.optim.AdamW, total=120, lr=2e-2)
        with GapMonitor(2, to=tmp_path / f"{name}.nc", controller=controller) as monitor:
            for _ in range(120):
                image, text, beta = model()
                loss = contrast(image, text, beta)
                monitor(image, text, loss=loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        verdicts[name] = fs.diagnose(tmp_path / f"{name}.nc")
    found = verdicts["healthy"]
    assert found.faults == []
    for check in ("not-finite", "nothing-learned", "loss-jumps", "temperature-not-trained", "temperature-decayed"):
        assert found[check].verdict == "not found", found[check]
    assert found["nothing-learned"].numbers["chance"] == math.log(N)
    assert verdicts["forgotten"].faults == ["temperature-not-trained"]
    with GapMonitor(2, to=tmp_path / "nan.nc") as monitor:
        for step in range(20):
            monitor(*model()[:2], step, loss=math.nan if step > 9 else 3.0)
    assert fs.diagnose(tmp_path / "nan.nc")["not-finite"].sentence.startswith("The loss is not finite from step 10 on")


def test_a_full_disk_does_not_end_a_training(tmp_path):
    monitor = GapMonitor(1, to=tmp_path / "gone" / "run.nc")
    (tmp_path / "gone").write_text("a file in the way")
    with pytest.warns(UserWarning, match="The measurements are not saved"):
        monitor(*torch.eye(3).repeat(2, 1, 1), 0)
    monitor(*torch.eye(3).repeat(2, 1, 1), 1)
    assert len(monitor.record().time) == 2


def test_nothing_of_the_graph_is_kept():
    model = Model()
    monitor = GapMonitor(1)
    image, text, beta = model()
    loss = contrast(image, text, beta)
    monitor(image, text, 0, loss=loss, inverse_temperature=beta)
    held = [weakref.ref(x) for x in (image, text, beta, loss)]
    del image, text, beta, loss
    assert [ref() for ref in held] == [None] * 4


def test_a_watched_model_needs_no_call():
    class Clip(Model):
        def __init__(self, kind):
            super().__init__()
            self.kind = kind

        def forward(self):
            image, text, beta = super().forward()
            return {
                "tuple": (image, text, beta),
                "open_clip": {"image_features": image, "text_features": text, "logit_scale": beta},
                "hugging face": types.SimpleNamespace(image_embeds=image, text_embeds=text, loss=beta * 0 + 3.0),
                "other": beta,
            }[self.kind]

    for kind in ("tuple", "open_clip", "hugging face"):
        model = Clip(kind)
        monitor = GapMonitor(2).watch(model)
        for _ in range(3):
            model()
        model.eval()
        for _ in range(5):
            model()
        record = monitor.record()
        np.testing.assert_array_equal(record.coordinates["step"], [0, 2])
        np.testing.assert_allclose(record.series["temperature"], 0.07)
        assert ("train_loss" in record.series) == (kind == "hugging face")
        monitor.close()
        model.train()()
        assert len(monitor.record().time) == 2
    model = Clip("other")
    monitor = GapMonitor(2).watch(model)
    with pytest.raises(fs.FlowsimError, match="no features of images and texts"):
        model()


def test_a_row_of_zeros_has_no_direction():
    image = torch.eye(5)
    text = image.clone()
    text[2] = 0
    assert all(value.isnan() for value in fs.torch.measure(image, text).values())


@pytest.mark.parametrize("only", [[], "margin"])
def test_names_are_a_list(only):
    with pytest.raises(fs.FlowsimError, match="`only` must be a list of names"):
        fs.torch.measure(torch.eye(2), torch.eye(2), only)


def test_bad_input():
    for options, message in (
        ({"every": 0}, "`every` must be"),
        ({"only": ["gap"]}, "Unknown observable of a batch 'gap'"),
        ({"to": 3}, "cannot write to 3"),
        ({"to": "run.csv"}, "end in .nc"),
        ({"to": ["a.nc", "b.nc"]}, "two paths"),
    ):
        with pytest.raises(fs.FlowsimError, match=message):
            GapMonitor(**options)
    with pytest.raises(fs.FlowsimError, match="Nothing was measured"):
        GapMonitor().record()
