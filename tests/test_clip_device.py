"""What a GPU needs of the bridge, as far as a CPU can show it: steps that wait for nothing, and full memory."""

import dataclasses
import os
import subprocess
import sys
import warnings

import jax
import numpy as np
import pytest

import flowsim as fs
from flowsim.model.swaps import step_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # other people's deprecations
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    import torch

    from flowsim.clip import batches, embed, memory
    from flowsim.clip.contrast import Contrast, Temperature
    from flowsim.clip.learner import Learner
    from flowsim.clip.settings import Training
    from flowsim.clip.training import train
    from flowsim.torch import device
    from flowsim.torch.policies import torch_policy
    from flowsim.torch.swaps import swap_weights, swapped_steps

pytestmark = pytest.mark.filterwarnings("default")  # torch, torchvision and accelerate warn of each other

TINY = Training(
    model="flowsim-vit-32", data="shapes:count=40,size=32", image_size=32, steps=4, batch_size=8, pairs=16,
    evaluations=1, observables="gap", snapshot_pairs=0, threads=1,
)  # fmt: skip

PARAMETRIZATIONS = [
    fs.temperature.Exp(), fs.temperature.ScaledExp(10.0), fs.temperature.Softplus(), fs.temperature.Identity(),
]  # fmt: skip


class Root(fs.temperature.AbstractTemperature):
    """β = ν², a user's policy made of operators."""

    learnable = True

    def inverse_temperature(self, progress, raw=None):
        return 10.0 + 0.0 * progress if raw is None else raw * raw * (1 + progress)

    def initial_raw(self):
        return 10.0**0.5

    def derivative(self, progress, raw):
        return 2 * raw * (1 + progress)


class InNumpy(Root):
    """The same through functions of NumPy, which know no tensors of a device."""

    def inverse_temperature(self, progress, raw=None):
        return super().inverse_temperature(progress, None if raw is None else np.asarray(raw))


class Rounded(Root):
    """A formula that PyTorch evaluates to something else."""

    def inverse_temperature(self, progress, raw=None):
        return super().inverse_temperature(progress, raw.float() if isinstance(raw, torch.Tensor) else raw)


@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS, ids=lambda p: type(p).__name__)
def test_policies_are_evaluated_by_torch_as_by_numpy(parametrization):
    policy = fs.temperature.Learnable(0.07, parametrization)
    by_torch = torch_policy(policy)
    assert by_torch is not None
    raw = np.asarray(parametrization.raw(np.geomspace(0.5, 200.0, 40)))
    for name in ("inverse_temperature", "derivative"):
        found = getattr(by_torch, name)(0.3, torch.from_numpy(raw))
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), getattr(policy, name)(0.3, raw), rtol=1e-14)


def test_policies_of_users_are_evaluated_by_torch_if_they_can_be():
    assert torch_policy(Root()) is not None
    for policy in (InNumpy(), Rounded()):
        assert torch_policy(policy) is None
    both = [Temperature(policy) for policy in (Root(), InNumpy())]
    values = [temperature(0.25) for temperature in both]
    for value in values:
        value.backward()
    assert values[0].item() == values[1].item() == pytest.approx(12.5)
    assert both[0].raw.grad.item() == both[1].raw.grad.item() == pytest.approx(2.5 * 10**0.5)


@pytest.mark.parametrize("policy", [fs.temperature.Linear(), fs.temperature.Learnable(), InNumpy()])
def test_temperatures_are_made_on_the_device(policy):
    temperature = Temperature(policy)
    if policy.learnable:
        temperature = temperature.to("meta") if torch_policy(policy) else temperature
        assert temperature(0.5).device == temperature.raw.device
    else:
        assert temperature(0.5, "meta").device.type == "meta"
        assert temperature(0.5).item() == policy.inverse_temperature(0.5)


@pytest.mark.parametrize("schedule", ["Baseline", "TS S3", "HS 1", "TR scale 2"])
def test_steps_fetch_nothing(schedule, monkeypatch):
    """No value of a tensor is asked for in a step; on a GPU each would wait for all work before it."""
    asked = []
    inside = []

    def watched(name, call):
        def noted(self, *args, **kwargs):
            if inside:
                asked.append(name)
            return call(self, *args, **kwargs)

        return noted

    # `cpu` and `numpy` are also how features would leave the device; the optimizer of a CPU has its own `item`.
    for name in ("item", "cpu", "numpy", "tolist", "__float__", "__bool__"):
        monkeypatch.setattr(torch.Tensor, name, watched(name, getattr(torch.Tensor, name)))
    take_step = Learner.take_step

    def step(self, k):
        inside.append(k)
        try:
            return take_step(self, k)
        finally:
            inside.pop()

    monkeypatch.setattr(Learner, "take_step", step)
    train(TINY, schedule, cpu=True)
    assert asked == []


@pytest.mark.parametrize("swap", [fs.HardSwap(0.3), fs.HardSwap(0.3, by="row"), fs.SoftSwap(0.3)])
def test_swaps_drawn_ahead_are_those_of_each_step(swap):
    """Decisions for many steps at once and weights from a thread, against one step after another."""
    together = swapped_steps(swap, 7, 0, 1200)
    image, text = torch.ones(5, 3), torch.zeros(5, 3)
    contrast = Contrast(fs.Schedule(swap=swap), 7)
    for step in (*range(12), 40, 41, 3, 1023, 1024, 1025):
        with jax.enable_x64(True):
            key = jax.random.fold_in(jax.random.key(np.uint32(7)), step)
            whether, masks, _ = jax.random.split(key, 3)
            wanted = np.asarray(step_weights(swap, whether, masks, 5, 3, np.float64))[0]
            assert together[step] == bool(jax.random.bernoulli(whether, swap.fraction))
        alone = swap_weights(swap, 7, step, 5, 3)
        assert (alone is not None) == together[step]
        np.testing.assert_array_equal(np.ones_like(wanted) if alone is None else alone, wanted)
        swapped = contrast.swapped(image, text, step)[0]
        np.testing.assert_allclose(swapped, np.broadcast_to(wanted, (5, 3)).astype(np.float32))
    assert contrast.swapped(image[:2], text[:2], 3)[0].shape == (2, 3)


# --- memory ---------------------------------------------------------------------------------------------


def test_blocks_become_smaller_where_memory_is_full_and_stay_so():
    asked = []

    def double(rows):
        asked.append(len(rows))
        if len(rows) > 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return 2 * rows

    blocks = memory.Blocks(8)
    rows = torch.arange(10.0)
    torch.testing.assert_close(blocks.map(double, rows), 2 * rows)
    assert asked == [8, 4, 2, 2, 2, 2, 2]
    assert blocks.size == 2
    with pytest.raises(torch.cuda.OutOfMemoryError):
        blocks.map(lambda rows: (_ for _ in ()).throw(torch.cuda.OutOfMemoryError()), rows)
    assert blocks.size == 1
    with pytest.raises(RuntimeError, match="another"):
        memory.Blocks(4).map(lambda rows: (_ for _ in ()).throw(RuntimeError("another")), rows)


def test_evaluations_take_smaller_blocks_where_memory_is_full(monkeypatch):
    wanted = train(TINY, cpu=True).series["modality_gap"]
    monkeypatch.setattr(embed, "_BLOCKS", memory.Blocks(16))
    onto_device = embed.onto_device

    def full(rows, device):
        if len(rows) > 5:
            raise torch.cuda.OutOfMemoryError
        return onto_device(rows, device)

    monkeypatch.setattr(embed, "onto_device", full)
    np.testing.assert_allclose(train(TINY, cpu=True).series["modality_gap"], wanted, rtol=1e-5)
    assert embed._BLOCKS.size == 4


def test_full_memory_is_said_in_a_sentence_and_the_same_call_goes_on(tmp_path, monkeypatch):
    settings = dataclasses.replace(TINY, checkpoint_seconds=0.0)
    take_step = Learner.take_step

    def full(self, k):
        if k == 3:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return take_step(self, k)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "take_step", full)
        with pytest.raises(fs.FlowsimError, match=r"memory of the GPU is full.*`batch_size`.*resumes"):
            train(settings, out=tmp_path / "run.nc", cpu=True)
    assert (tmp_path / "run.checkpoint.pt").exists()
    steps = []
    monkeypatch.setattr(Learner, "take_step", lambda self, k: (steps.append(k), take_step(self, k))[1])
    resumed = train(settings, out=tmp_path / "run.nc", cpu=True)
    assert steps == [3]
    whole = train(settings, cpu=True)
    np.testing.assert_array_equal(resumed.training["train_loss"], whole.training["train_loss"])


def test_other_errors_of_pytorch_stay_as_they_are(monkeypatch):
    def broken(self, k):
        raise RuntimeError("something else")

    monkeypatch.setattr(Learner, "take_step", broken)
    with pytest.raises(RuntimeError, match="something else"):
        train(TINY, cpu=True)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [({}, "false"), ({"XLA_PYTHON_CLIENT_PREALLOCATE": "true"}, "true"), ({"XLA_CLIENT_MEM_FRACTION": "0.3"}, "None")],
)
def test_jax_leaves_the_gpu_to_pytorch_unless_a_user_decides(given, wanted):
    code = "import os, flowsim.clip.training; print(os.environ.get('XLA_PYTHON_CLIENT_PREALLOCATE'))"
    environment = {k: v for k, v in os.environ.items() if k not in device._JAX_MEMORY}
    call = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env={**environment, **given})
    assert done.stdout.strip() == wanted, done.stderr


# --- batches --------------------------------------------------------------------------------------------


def test_short_runs_in_one_process_read_their_images_once(monkeypatch):
    pairs = fs.clip.data.load("shapes:count=12,size=16")
    read = []
    decoded = type(pairs).decoded
    monkeypatch.setattr(type(pairs), "decoded", lambda self, *a, **k: (read.append(self), decoded(self, *a, **k))[1])

    def tokenize(texts):
        return torch.tensor([[len(text)] for text in texts])

    settings = dataclasses.replace(TINY, batch_size=4)
    first = batches.prepare(pairs, tokenize, 16, settings)
    second = batches.prepare(pairs, tokenize, 16, dataclasses.replace(settings, seed=1))
    assert len(read) == 1
    assert second.stored is first.stored
    for changed in ((pairs, tokenize, 8), (fs.clip.data.load("shapes:count=12,size=16"), tokenize, 8)):
        batches.prepare(*changed, settings)
    assert len(read) == 3
    monkeypatch.setattr(batches, "_REUSED", 10)
    for _ in range(2):
        batches.prepare(pairs, tokenize, 16, settings)
    assert len(read) == 5


def test_batches_captions_and_crops_depend_on_seed_and_number_alone():
    """As drawn here from SeedSequence: pairs from (seed, 0, epoch), then captions and crops from (seed, 1, k)."""
    seed, size = 5, 4
    pairs = fs.clip.data.load("shapes:count=14,size=16")
    counts = np.array([len(captions) for captions in pairs.captions])
    first = np.cumsum(counts) - counts
    settings = dataclasses.replace(
        TINY, batch_size=size, seed=seed, captions="all", augment="random-resized-crop", crop_scale=0.4
    )
    made = batches.prepare(pairs, lambda texts: torch.arange(len(texts))[:, None], 16, settings)
    whole = pairs.pixels(16)

    def sequence(*entropy):
        return np.random.default_rng(np.random.SeedSequence(entropy))

    assert made.per_epoch == 3
    for k in (0, 2, 3, 7, 1):
        epoch, within = divmod(k, 3)
        chosen = sequence(seed, 0, epoch).permutation(14)[within * size : (within + 1) * size]
        random = sequence(seed, 1, k)
        caption = np.floor(random.random(size) * counts[chosen]).astype(int)
        area = random.uniform(0.4, 1.0, size)
        ratio = np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3), size))
        half = np.minimum(np.stack([np.sqrt(area * ratio), np.sqrt(area / ratio)], 1), 1.0)
        centre = random.uniform(-1, 1, (size, 2)) * (1 - half)
        pixels, tokens, boxes = made.batch(k)
        np.testing.assert_array_equal(pixels.numpy(), whole[chosen].transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(tokens[:, 0].numpy(), first[chosen] + caption)
        np.testing.assert_array_equal(boxes.numpy(), np.concatenate([centre, half], 1).astype(np.float32))


def test_pixels_that_stay_on_the_host_are_the_same(monkeypatch):
    """The way of a GPU that is too small for the pixels: batches come from a thread, one ahead."""
    pairs = fs.clip.data.load("shapes:count=12,size=16")
    made = batches.prepare(pairs, lambda texts: torch.arange(len(texts))[:, None], 16, dataclasses.replace(TINY))
    wanted = [made.batch(k) for k in range(3)]
    made._device = torch.device("meta")  # a device other than that of the pixels
    for k in range(3):
        for ours, theirs in zip(made.batch(k), wanted[k], strict=True):
            torch.testing.assert_close(ours, theirs)
