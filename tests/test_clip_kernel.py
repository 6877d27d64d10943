"""Tangent kernels of real towers: against finite differences, and in the records of runs."""

import json
import warnings
from typing import Any

import numpy as np
import pytest

import flowsim as fs
from flowsim import cli

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch

    from flowsim.clip import kernels, models, stacked, tangent
    from flowsim.clip.data import load
    from flowsim.clip.embed import Sample, sample
    from flowsim.clip.settings import Training
    from flowsim.clip.training import train

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

PAIRS, DIM = 3, 4
CONFIGS = {
    "vit": {"image_size": 8, "layers": 1, "width": 8, "head_width": 4, "patch_size": 4},
    # A ResNet, whose batch normalisation makes rows depend on each other.
    "rn": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 2, "patch_size": None},
}
SHAPES = "shapes:count=24,size=32"
TINY = Training(
    model="flowsim-vit-32", data="shapes:count=40,size=32", image_size=32, steps=6, batch_size=8, pairs=12,
    evaluations=3, observables="gap", snapshot_pairs=4, warmup=0.2, threads=1, eps=1e-4,
    kernels=3, kernel_pairs=6, kernel_directions=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")

    def made(kind: str) -> Any:
        text = {"context_length": 8, "vocab_size": 49408, "width": 8, "heads": 2, "layers": 1}
        path = folder / f"kernel-{kind}.json"
        path.write_text(json.dumps({"embed_dim": DIM, "vision_cfg": CONFIGS[kind], "text_cfg": text}))
        model = models.build(str(path), None, CONFIGS[kind]["image_size"], 0)
        model.module.double()
        return model

    return made


def _pairs(model) -> Sample:
    pairs = load(SHAPES, "train", limit=PAIRS)
    return sample(pairs, PAIRS, model.tokenize, model.image_size, model.resize)


def _jacobian(model, modality, pairs, names, step=1e-6) -> np.ndarray:
    """∂x/∂θ (m·d, P) of unit rows by central differences, of every named parameter that matters."""
    module, parameters = model.module, dict(model.module.named_parameters())
    pixels = tangent.crop(pairs.pixels, None, model.mean, model.std).double()

    @torch.no_grad()
    def rows() -> np.ndarray:
        if modality == "image":
            return module.encode_image(pixels, normalize=True).numpy().ravel()
        return module.encode_text(pairs.tokens, normalize=True).numpy().ravel()

    module.train()
    columns = []
    for name in names:
        flat = parameters[name].data.view(-1)
        used = range(len(flat))
        if name == "token_embedding.weight":
            width = parameters[name].shape[1]
            used = [int(t) * width + c for t in torch.unique(pairs.tokens) for c in range(width)]
        for k in used:
            kept = float(flat[k])
            flat[k] = kept + step
            up = rows()
            flat[k] = kept - step
            columns.append((up - rows()) / (2 * step))
            flat[k] = kept
    return np.array(columns).T


def _rn_jacobian(model, pairs, names) -> np.ndarray:
    """∂x/∂θ (m·d, P) row by row; some columns are compared with central differences."""
    module, parameters = model.module, dict(model.module.named_parameters())
    pixels = tangent.crop(pairs.pixels, None, model.mean, model.std).double()
    module.train()
    chosen = [parameters[name] for name in names]
    outputs = module.encode_image(pixels, normalize=True).flatten()
    rows = [torch.autograd.grad(value, chosen, retain_graph=True) for value in outputs]
    found = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows]).numpy()
    some = [n for n in names if parameters[n].numel() < 10][:12]
    assert len(some) > 5
    first = np.concatenate([[0], np.cumsum([parameters[n].numel() for n in names])])
    columns = np.concatenate([np.arange(first[names.index(n)], first[names.index(n) + 1]) for n in some])
    np.testing.assert_allclose(
        found[:, columns], _jacobian(model, "image", pairs, some), rtol=1e-4, atol=1e-6 * np.abs(found).max()
    )
    return found


@pytest.mark.parametrize(("kind", "modality"), [("vit", "image"), ("vit", "text"), ("rn", "image")])
def test_kernels_are_those_of_finite_differences(build, kind, modality):
    """With all directions, the sample kernel is exact; with a preconditioner too."""
    model = build(kind)
    pairs = _pairs(model)
    inputs = pairs.pixels if modality == "image" else pairs.tokens
    random = torch.Generator().manual_seed(0)
    jacobian = None
    for plain in (True, False):
        scales = None
        if not plain:
            named = model.module.named_parameters()
            scales = {n: torch.rand(p.shape, generator=random, dtype=p.dtype) + 0.5 for n, p in named}
        double = _Double(model, modality, inputs, "cpu", True, scales)
        names = [name.removeprefix("clip.") for name in double.weights]
        if jacobian is None:
            jacobian = _jacobian(model, modality, pairs, names) if kind == "vit" else _rn_jacobian(model, pairs, names)
        factor = np.ones(jacobian.shape[1])
        if scales is not None:
            parts = []
            for name in names:
                scale = scales[name]
                parts.append((scale[torch.unique(pairs.tokens)] if name == "token_embedding.weight" else scale).ravel())
            factor = torch.cat(parts).numpy()
        whole = (jacobian * factor) @ jacobian.T
        blocks = whole.reshape(PAIRS, DIM, PAIRS, DIM)
        rows = double.rows().numpy()
        # tr(Π_i Π_j), from the projections themselves.
        projections = [np.eye(DIM) - np.outer(x, x) for x in rows]
        traces = np.array([[np.trace(a @ b) for b in projections] for a in projections])
        wanted = np.einsum("iaja->ij", blocks) / traces
        basis = torch.linalg.qr(torch.randn(DIM, DIM, generator=random, dtype=torch.float64))[0]
        found = double.traces(basis, traces / DIM)
        np.testing.assert_allclose(found.matrix, wanted, rtol=1e-5, atol=1e-6 * np.abs(wanted).max())
        # The two rates are those of the same matrix.
        off = ~np.eye(PAIRS, dtype=bool)
        assert found.shared.mean() == pytest.approx(wanted[off].mean(), rel=1e-5)
        assert found.own.mean() == pytest.approx(np.trace(wanted) / PAIRS - wanted[off].mean(), rel=1e-5)
        # From gradients of the mean and of all rows, up to the differences between tr(Π_i Π_j) of two rows.
        every = np.tile(np.arange(PAIRS), (DIM, 1))
        two = double.two_numbers(basis, np.ones((PAIRS, PAIRS)), every)
        mean = np.einsum("iaja->ij", blocks) / DIM
        assert two.shared.mean() == pytest.approx(mean[off].mean(), rel=1e-5)
        assert two.own.mean() == pytest.approx(np.trace(mean) / PAIRS - mean[off].mean(), rel=1e-5)
        # The exact velocity is the whole kernel times the forces.
        forces = torch.randn(PAIRS, DIM, generator=random, dtype=torch.float64)
        np.testing.assert_allclose(
            double.velocity(forces).numpy().ravel(), whole @ forces.numpy().ravel(), rtol=1e-5,
            atol=1e-6 * np.abs(whole).max(),
        )  # fmt: skip


class _Double(tangent.Tower):
    """A tower whose pixels are in double precision."""

    def __init__(self, model, modality, inputs, device, normalize=True, preconditioner=None):
        crop = tangent.crop
        try:
            tangent.crop = lambda *given: crop(*given).double()
            super().__init__(model, modality, inputs, device, normalize, preconditioner)
        finally:
            tangent.crop = crop


def test_measuring_leaves_the_model_as_it_was(build):
    model = build("rn")
    pairs = _pairs(model)
    model.module.train()
    before = {name: value.clone() for name, value in model.module.state_dict().items()}
    modes = [module.training for module in model.module.modules()]
    model.module.float()
    kernels.measure_kernels(model, pairs, "cpu", 10.0, 2, 0)
    for name, value in model.module.state_dict().items():
        torch.testing.assert_close(value.double(), before[name].double(), rtol=1e-6, atol=1e-7)
    assert [module.training for module in model.module.modules()] == modes
    assert all(p.grad is None for p in model.module.parameters())


def test_rows_of_a_batch_depend_on_each_other_only_with_batch_normalisation(build):
    model = build("rn")
    pairs = _pairs(model)
    model.module.float().train()
    assert tangent.Tower(model, "image", pairs.pixels, "cpu").coupled
    assert not tangent.Tower(model, "text", pairs.tokens, "cpu").coupled
    model.module.eval()
    assert not tangent.Tower(model, "image", pairs.pixels, "cpu").coupled


def test_gradients_in_parts_give_the_same_kernel(build, monkeypatch):
    model = build("vit")
    pairs = _pairs(model)
    model.module.float()
    whole = kernels.measure_kernels(model, pairs, "cpu", 10.0, 2, 0)
    monkeypatch.setattr(tangent, "_ROOM", 4 * PAIRS * 64)
    parts = kernels.measure_kernels(model, pairs, "cpu", 10.0, 2, 0)
    for name in ("image", "text"):
        one, other = getattr(whole, name), getattr(parts, name)
        np.testing.assert_allclose(one.matrix, other.matrix, rtol=1e-4)


def test_standard_errors_are_the_spread_over_directions():
    """Over seeds of the directions, estimates of both rates spread by what one measurement says."""
    model = models.build("flowsim-vit-32", None, 32, 0)
    drawn = sample(load(SHAPES, "train", limit=6), 6, model.tokenize, 32, model.resize)
    every = [kernels.measure_kernels(model, drawn, "cpu", 10.0, 4, seed) for seed in range(12)]
    for tower in ("image", "text"):
        for rate in ("own", "shared"):
            values = np.array([getattr(getattr(one, tower), rate) for one in every])
            said = np.array([getattr(getattr(one, tower), f"{rate}_error") for one in every])
            assert 0.4 < np.sqrt(np.mean(said**2)) / values.std(ddof=1) < 2.0


def test_all_directions_have_no_error(build):
    model = build("vit")
    drawn = _pairs(model)
    model.module.float()
    exact = kernels.measure_kernels(model, drawn, "cpu", 10.0, DIM, 0)
    assert exact.image.own_error == exact.text.shared_error == 0
    other = kernels.measure_kernels(model, drawn, "cpu", 10.0, DIM, 1)
    assert other.image.own == pytest.approx(exact.image.own, rel=1e-4)
    quick = kernels.measure_kernels(model, drawn, "cpu", 10.0, DIM, 0, matrix=False)
    assert quick.image.shared == pytest.approx(exact.image.shared, rel=0.3)
    assert quick.image.matrix is None and np.isnan(quick.velocity_error)


def test_the_preconditioner_is_the_step_of_adamw():
    """A step of AdamW without first moment and decay is −lr D g."""
    torch.manual_seed(0)
    weight, raw = torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.tensor(1.0))
    groups = [{"params": [weight], "lr": 0.1}, {"params": [raw], "lr": 0.1}]
    optimizer = torch.optim.AdamW(groups, betas=(0.0, 0.9), weight_decay=0.0, eps=1e-3)
    assert kernels.preconditioner(optimizer, {"w": weight}) is None
    before = weight.detach().clone(), raw.detach().clone()
    for _ in range(4):
        before = weight.detach().clone(), raw.detach().clone()
        optimizer.zero_grad()
        (weight.square().sum() * raw + raw.exp()).backward()
        optimizer.step()
    found = kernels.preconditioner(optimizer, {"w": weight, kernels.NU: raw})
    assert found is not None and weight.grad is not None and raw.grad is not None
    torch.testing.assert_close(weight.detach() - before[0], -0.1 * found["w"] * weight.grad)
    torch.testing.assert_close(raw.detach() - before[1], -0.1 * found[kernels.NU] * raw.grad)
    plain = torch.optim.SGD([weight], lr=0.1)
    assert kernels.preconditioner(plain, {"w": weight}) is None


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_run_records_its_kernels(tmp_path, optimizer):
    settings = TINY.replace(optimizer=optimizer, lr=1e-3)
    path = tmp_path / "run.nc"
    run = train(settings, "Baseline", path, cpu=True)
    count = len(run.kernel_step)
    assert run.kernel_step[-1] == settings.steps and (run.kernel_step[0] == 0) == (optimizer == "sgd")
    assert set(run.kernel_step) <= set(run.coordinates["step"])
    assert run.kernels["image_matrix"].shape == (count, 6, 6) and run.kernels["image"].shape == (count, 6, 64)
    assert (run.kernels["temperature_scale"] == 1).all() == (optimizer == "sgd")
    assert run.stats["kernel_seconds"] > 0
    loaded: Any = fs.load(path)
    np.testing.assert_array_equal(loaded.kernel_step, run.kernel_step)
    for name, values in run.kernels.items():
        np.testing.assert_array_equal(loaded.kernels[name], values)
    # The rows are those of the first training pairs, also in snapshots.
    np.testing.assert_allclose(run.kernels["image"][-1][:4], run.snapshots["image"][-1], atol=1e-6)
    plain = train(settings.replace(kernels=0), "Baseline", cpu=True)
    assert "kernels" not in plain.config["training"] and not plain.kernels
    np.testing.assert_array_equal(plain.training["train_loss"], run.training["train_loss"])


def test_a_stopped_run_resumes_with_its_kernels(tmp_path):
    class Stop(Exception):
        pass

    def stop(text: str, done: int, total: int | None, /, **numbers: float) -> None:
        if done == 4:
            raise Stop

    settings, path = TINY.replace(checkpoint_seconds=0.0), tmp_path / "run.nc"
    with pytest.raises(Stop):
        train(settings, "Baseline", path, cpu=True, progress=stop)
    resumed, whole = train(settings, "Baseline", path, cpu=True), train(settings, "Baseline", cpu=True)
    np.testing.assert_array_equal(resumed.kernel_step, whole.kernel_step)
    for name, values in whole.kernels.items():
        np.testing.assert_array_equal(resumed.kernels[name], values)


def test_stacked_runs_have_the_kernels_of_separate_ones(tmp_path):
    schedules = {name: fs.schedules.get(name) for name in ("Baseline", "SLRT 0.1")}
    paths = {(name, seed): tmp_path / f"{name}.{seed}.nc" for name in schedules for seed in (0, 1)}
    records = stacked.train_stacked(TINY, schedules, (0, 1), paths, cpu=True)
    for (name, seed), record in records.items():
        alone = train(TINY.replace(seed=seed), name, cpu=True)
        np.testing.assert_array_equal(record.kernel_step, alone.kernel_step)
        for key in ("image_matrix", "text_matrix", "temperature_scale", "gap_rate"):
            wanted = alone.kernels[key]
            np.testing.assert_allclose(record.kernels[key], wanted, rtol=2e-2, atol=2e-2 * np.abs(wanted).max())


def test_the_public_function_and_the_command(tmp_path, capsys):
    found = fs.clip.kernel("flowsim-vit-32", SHAPES, pairs=5, directions=2, device="cpu")
    assert found.image.matrix is not None and found.image.matrix.shape == (5, 5)
    assert found.image.common == pytest.approx(found.image.matrix.mean() * 5, rel=1e-6)
    flow = fs.GradientFlow(fs.Sphere(image_kernel=found.image.dense(), text_kernel=found.text.two_rates()))
    rows = fs.initial.from_arrays(found.image_rows, found.text_rows)
    assert fs.simulate(flow, rows, t1=0.01).status.ok
    out = tmp_path / "kernel.npz"
    command = ["clip", "kernel", "--model", "flowsim-vit-32", "--data", SHAPES, "--pairs", "5", "--directions", "2"]
    assert cli.main([*command, "--cpu", "--json", "--out", str(out)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["image"]["shared"] == pytest.approx(found.image.shared)
    with np.load(out, allow_pickle=False) as held:
        np.testing.assert_allclose(held["image_kernel"], found.image.matrix)
    assert cli.main([*command, "--cpu", "--two-rates"]) == 0
    assert "own" in capsys.readouterr().out
    assert cli.main([*command, "--pairs", "1"]) == 2
    assert "at least 2" in capsys.readouterr().err


def test_a_locked_image_tower_has_no_kernel():
    settings = TINY.replace(locked_image=True, augment="centre", steps=2, kernels=2)
    run = train(settings, "Baseline", cpu=True)
    assert (run.kernels["image_own"] == 0).all() and (run.kernels["text_own"] > 0).all()


@pytest.mark.slow
def test_a_study_of_kernels_trains_compares_and_resumes(tmp_path, capsys):
    out = tmp_path / "runs"
    command = [
        "clip", "kernel-study", "--data", "shapes:count=700,size=32", "--cells", "vit full sgd", "--methods",
        "Baseline,FLT 4e-2", "--seeds", "1", "--steps", "40", "--out", str(out), "--cpu",
    ]  # fmt: skip
    assert cli.main(command) == 0
    said = capsys.readouterr()
    assert "| vit full sgd | 2 |" in said.out and "numbers.nc" in said.err
    assert {p.name for p in out.iterdir()} >= {"numbers.nc", "tables.md", "kernels.png", "vit-full-sgd"}
    before = {p: p.stat().st_mtime_ns for p in (out / "vit-full-sgd").iterdir()}
    assert cli.main([*command, "--tables"]) == 0
    assert {p: p.stat().st_mtime_ns for p in (out / "vit-full-sgd").iterdir()} == before
    capsys.readouterr()
    assert cli.main([*command[:4], "--cells", "vit ful sgd", "--out", str(out)]) == 2
    assert "Did you mean 'vit full sgd'" in capsys.readouterr().err
