"""flowsim in your own loop in PyTorch: temperatures, swaps, several processes, and the examples."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from reference import unit_rows

import flowsim as fs

torch = pytest.importorskip("torch")
from torch.optim import SGD, Adam, AdamW  # noqa: E402

from flowsim.torch import TemperatureController, swap  # noqa: E402
from flowsim.torch.swaps import swap_weights  # noqa: E402

N, D = 9, 6
POLICIES = {
    "Exp": fs.temperature.Learnable(0.1),
    "ScaledExp": fs.temperature.Learnable(0.1, parametrization=fs.temperature.ScaledExp(10.0)),
    "Softplus": fs.temperature.Learnable(0.1, parametrization=fs.temperature.Softplus()),
    "Identity": fs.temperature.Learnable(0.1, parametrization=fs.temperature.Identity()),
    "ratio": fs.temperature.Learnable(0.1, parametrization=fs.temperature.Softplus(), lr_ratio=0.1),
}


class Model(torch.nn.Module):
    """Free rows and a temperature, as CLIP has it."""

    def __init__(self, seed=0, dtype=torch.float64):
        super().__init__()
        rng = np.random.default_rng(seed)
        self.image, self.text = (torch.nn.Parameter(torch.tensor(unit_rows(rng, N, D), dtype=dtype)) for _ in range(2))
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(1 / 0.07), dtype=dtype))

    def forward(self):
        normalize = torch.nn.functional.normalize
        return normalize(self.image, dim=1), normalize(self.text, dim=1), self.logit_scale.exp()


def contrast(image, text, beta):
    logits, labels = beta * image @ text.T, torch.arange(len(image))
    cross = torch.nn.functional.cross_entropy
    return (cross(logits, labels) + cross(logits.T, labels)) / 2


def steps(model, optimizer, count, closure=False):
    """Steps of a plain loop; the temperature that the model used in each."""
    seen = []

    def run():
        optimizer.zero_grad()
        seen.append(1 / model.logit_scale.exp().item())
        loss = contrast(*model())
        loss.backward()
        return loss

    for _ in range(count):
        if closure:
            optimizer.step(run)
        else:
            run()
            optimizer.step()
    return seen


def controlled(policy, optimizer=Adam, total=100, lr=1e-2, **options):
    model = Model()
    made = optimizer(model.parameters(), lr=lr)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the temperature starts elsewhere
        controller = TemperatureController(model.logit_scale, policy, total, **options).attach(made)
    return model, made, controller


# --- temperatures


@pytest.mark.parametrize("name", [n for n in fs.schedules.names() if not fs.schedules.get(n).temperature.learnable])
def test_a_schedule_sets_the_temperature_of_each_step(name):
    schedule = fs.schedules.get(name)
    model, optimizer, controller = controlled(schedule, total=12)
    wanted = schedule.temperature.temperature(np.arange(12) / 12)
    np.testing.assert_allclose(steps(model, optimizer, 12), wanted, rtol=1e-12)
    assert model.logit_scale.grad is None and not model.logit_scale.requires_grad
    assert controller.temperature == pytest.approx(float(schedule.temperature.temperature(1.0)), rel=1e-12)


@pytest.mark.parametrize("optimizer", [SGD, Adam], ids=lambda x: x.__name__)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_a_learned_temperature_moves_as_autograd_moves_its_raw_parameter(policy, optimizer, closure):
    """Against a loop in which ν itself is the parameter, β(ν) is written out, and the learning rate has the ratio."""
    model, made, controller = controlled(policy, optimizer)
    found = steps(model, made, 30, closure)
    peer, raw = Model(), torch.nn.Parameter(torch.tensor(float(policy.initial_raw()), dtype=torch.float64))
    groups = [{"params": [peer.image, peer.text]}, {"params": [raw], "lr": 1e-2 * float(policy.lr_ratio)}]
    theirs, wanted = optimizer(groups, lr=1e-2), []
    formula = {"Exp": torch.exp, "Softplus": torch.nn.functional.softplus, "Identity": lambda x: x}.get(
        type(policy.parametrization).__name__, lambda x: torch.exp(x / 10)
    )
    for _ in range(30):
        theirs.zero_grad()
        image, text, _ = peer()
        wanted.append(1 / formula(raw).item())
        contrast(image, text, formula(raw)).backward()
        theirs.step()
    assert abs(wanted[-1] / wanted[0] - 1) > 1e-4
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert controller.raw.item() == pytest.approx(raw.item(), rel=1e-10)
    torch.testing.assert_close(model.image, peer.image, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_the_gradient_is_that_of_the_parametrization(policy):
    model, optimizer, controller = controlled(policy, SGD, lr=1e-3)
    before = controller.raw.item()
    contrast(*model()).backward()
    optimizer.step()
    image, text, _ = Model()()
    value = float(policy.inverse_temperature(0.0, np.float64(before)))
    beta = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    contrast(image, text, beta).backward()
    step = -1e-3 * float(policy.lr_ratio) * float(policy.derivative(0.0, np.float64(before))) * beta.grad.item()
    assert controller.raw.item() - before == pytest.approx(step, rel=1e-8)


def test_lbfgs_which_runs_the_model_many_times_trains_the_raw_parameter():
    policy = POLICIES["Softplus"]
    model, optimizer, controller = controlled(policy, lambda p, lr: torch.optim.LBFGS(p, lr=lr, max_iter=5), lr=0.1)
    steps(model, optimizer, 3, closure=True)
    peer, raw = Model(), torch.nn.Parameter(torch.tensor(float(policy.initial_raw()), dtype=torch.float64))
    theirs = torch.optim.LBFGS([peer.image, peer.text, raw], lr=0.1, max_iter=5)

    def run():
        theirs.zero_grad()
        image, text, _ = peer()
        loss = contrast(image, text, torch.nn.functional.softplus(raw))
        loss.backward()
        return loss

    for _ in range(3):
        theirs.step(run)
    assert controller.step == 3
    assert controller.raw.item() == pytest.approx(raw.item(), rel=1e-8)


def test_the_exact_inverse_temperature_has_the_value_and_the_gradient_of_the_exponential():
    for name in ("TS S3", "TR softplus"):
        model = Model(dtype=torch.float32)
        controller = TemperatureController(model.logit_scale, name, 10)
        beta = controller.inverse_temperature()
        exact = 100.0 if name == "TS S3" else 1 / 0.07
        assert beta.item() == np.float32(exact)
        assert beta.requires_grad == (name == "TR softplus")
        if beta.requires_grad:
            (gradient,) = torch.autograd.grad(3 * beta, model.logit_scale)
            assert gradient.item() == pytest.approx(3 * exact, rel=1e-6)


def test_clamps_hold():
    model, optimizer, _ = controlled(fs.temperature.Learnable(0.1), SGD, lr=100.0, clamp=(0.09, 0.11))
    seen = steps(model, optimizer, 10)
    assert min(seen) >= 0.09 - 1e-12 and max(seen) <= 0.11 + 1e-12 and seen[-1] != 0.1
    own = fs.temperature.Learnable(0.1, clamp=(0.099, 0.101))
    model, optimizer, _ = controlled(own, SGD, lr=100.0, clamp=(0.01, 1.0))
    assert max(abs(tau - 0.1) for tau in steps(model, optimizer, 10)) == pytest.approx(0.001, rel=1e-6)


def test_a_learned_temperature_follows_the_clamp_of_the_trainer():
    """open_clip's trainer clamps `logit_scale` after each step; ν must not run away behind it."""
    policy = POLICIES["Softplus"]
    model, optimizer, controller = controlled(policy, SGD, lr=50.0, clamp=None)
    for _ in range(5):
        steps(model, optimizer, 1)
        with torch.no_grad():
            model.logit_scale.clamp_(math.log(9.9), math.log(10.1))
    raw_of = policy.parametrization.raw
    steps(model, optimizer, 0)
    controller._follow()
    assert float(raw_of(9.9)) - 1e-9 <= controller.raw.item() <= float(raw_of(10.1)) + 1e-9


def test_one_rate_for_all_groups_does_not_undo_the_ratio():
    """open_clip's learning-rate schedules set the rate of every group in every step."""
    found = []
    for assigned in (False, True):
        model, optimizer, _ = controlled(POLICIES["ratio"])
        assert len(optimizer.param_groups) == 2
        for _ in range(5):
            if assigned:
                for group in optimizer.param_groups:
                    group["lr"] = 1e-2
            steps(model, optimizer, 1)
        assert {group["lr"] for group in optimizer.param_groups} == {1e-2}
        found.append(model.logit_scale.item())
    assert found[0] == found[1]


def test_the_ratio_holds_without_a_group_of_its_own():
    model, optimizer = Model(), None
    optimizer = SGD(model.parameters(), lr=1e-2)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.warns(UserWarning, match=r"temperature of the model was 0.07 and now starts at the schedule's 0.1"):
        controller = TemperatureController(model.logit_scale, POLICIES["ratio"], 10).attach(optimizer)
    assert len(optimizer.param_groups) == 1
    other, theirs, peer = controlled(POLICIES["ratio"], SGD)
    for _ in range(3):
        steps(model, optimizer, 1)
        steps(other, theirs, 1)
    assert controller.raw.item() == pytest.approx(peer.raw.item(), rel=1e-12)


def test_weight_decay_spares_the_temperature():
    for named in (False, True):
        model = Model()
        optimizer = AdamW(model.named_parameters() if named else model.parameters(), lr=1e-2, weight_decay=0.5)
        controller = TemperatureController(model.logit_scale, "Baseline", 10).attach(optimizer)
        decays = [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        assert decays == [(0.5, 2), (0.0, 1)]
        model.logit_scale.grad = torch.zeros_like(model.logit_scale)
        optimizer.step()
        assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07), rel=1e-12)
        assert controller.step == 1
        optimizer.param_groups[1]["weight_decay"] = 0.5
        with pytest.warns(UserWarning, match="`logit_scale` has weight decay"):
            steps(model, optimizer, 1)


def test_a_parameter_that_the_optimizer_lacks_is_added():
    model = Model()
    optimizer = SGD([model.image, model.text], lr=1e-2)
    controller = TemperatureController(model.logit_scale, "Baseline", 10)
    with pytest.warns(UserWarning, match="not in the optimizer"):
        controller.attach(optimizer)
    seen = steps(model, optimizer, 3)
    assert seen[2] != seen[1]


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("policy", ["Exp", "Softplus", "ratio"])
def test_weight_decay_is_kept_away_also_after_a_scheduler_was_made(policy, closure):
    """As in the trainers of Hugging Face and Lightning, which make optimizer and scheduler together."""
    ends = []
    for before in (True, False):
        model = Model()
        model.logit_scale.data.fill_(math.log(10))
        optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
        controller = TemperatureController(model.logit_scale, POLICIES[policy], 10)
        if before:
            controller.attach(optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        if not before:
            controller.attach(optimizer)
            assert len(optimizer.param_groups) == 1 and not controller.decays
        for _ in range(5):
            steps(model, optimizer, 1, closure)
            scheduler.step()
            assert len(optimizer.param_groups) == 1 + before
        optimizer.load_state_dict(optimizer.state_dict())
        ends.append((controller.temperature, model.image.detach().clone()))
    assert ends[0][0] == ends[1][0] and torch.equal(ends[0][1], ends[1][1])


def test_a_step_that_fails_leaves_the_groups_as_they_were():
    model = Model()
    model.logit_scale.data.fill_(math.log(10))
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.5)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    controller = TemperatureController(model.logit_scale, POLICIES["Softplus"], 10).attach(optimizer)
    before = controller.temperature
    contrast(*model()).backward()
    for group in optimizer.param_groups:
        group["lr"] = "wrong"
    with pytest.raises(Exception):  # noqa: B017, PT011
        optimizer.step()
    assert controller.temperature == before
    assert len(optimizer.param_groups) == 1 and len(optimizer.param_groups[0]["params"]) == 3


def test_a_parameter_that_is_missing_cannot_be_added_after_a_scheduler():
    model = Model()
    optimizer = AdamW([model.image], lr=1e-2, weight_decay=0.1)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    controller = TemperatureController(model.logit_scale, "Baseline", 10)
    controller.warned.add("missing")
    with pytest.raises(fs.FlowsimError, match="not in the optimizer"):
        controller.attach(optimizer)


def test_it_warns_once_of_what_works_against_it():
    model, optimizer, _ = controlled("TS S3", total=8)

    def clamped_step():
        with torch.no_grad():
            model.logit_scale.clamp_(0.0, math.log(20.0))
        steps(model, optimizer, 1)

    with pytest.warns(UserWarning, match="Something set `logit_scale` to 2.996, where the schedule has 4.605"):
        clamped_step()
    clamped_step()  # warnings are errors: not again
    model, optimizer, _ = controlled("Baseline")
    image, text, beta = model()
    contrast(image, text, beta.detach()).backward()
    with pytest.warns(UserWarning, match="got no gradient, so its temperature is not trained"):
        optimizer.step()
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.warns(UserWarning, match=f"is {str(dtype)[6:]}, which rounds"):
            TemperatureController(torch.nn.Parameter(torch.tensor(2.66, dtype=dtype)), "Baseline", 10)


def test_it_warns_if_it_is_not_attached_or_ends_too_early():
    model = Model()
    controller = TemperatureController(model.logit_scale, "FLT 4e-2", 5)
    for _ in range(299):
        controller.inverse_temperature()
    with pytest.warns(UserWarning, match="No optimizer has taken a step"):
        controller.inverse_temperature()
    model, optimizer, controller = controlled("TS S3", total=3)
    steps(model, optimizer, 3)
    with pytest.warns(UserWarning, match="goes on after 3 steps"):
        steps(model, optimizer, 1)
    assert controller.temperature == pytest.approx(0.05, rel=1e-6)
    steps(*controlled("Baseline", total=3)[:2], 5)  # a learned temperature has no end


def test_keep_belongs_to_learned_temperatures():
    with pytest.raises(fs.FlowsimError, match="this schedule sets the temperature itself"):
        TemperatureController(torch.nn.Parameter(torch.tensor(4.0)), "TS S3", 10, keep=True)


def test_beta_in_the_place_of_its_logarithm_is_refused():
    parameter = torch.nn.Parameter(torch.tensor(100.0))
    with pytest.raises(fs.FlowsimError, match="If it holds β itself, store its logarithm"):
        TemperatureController(parameter, "Baseline", 10, keep=True)


def test_the_loop_of_the_documentation_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[1] / "docs" / "how-to" / "own-runs.md").read_text(encoding="utf-8")
    (block,) = [one for one in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "class Model" in one]
    held = {"fs": fs}
    exec(compile(block, "own-runs.md", "exec"), held)
    record = fs.load("run.nc")
    assert isinstance(record, fs.TrainingRecord)
    assert record.coordinates["step"].tolist() == [*range(0, 400, 10), 399]
    assert record["train_loss"].values[-1] < 1 < record["train_loss"].values[0]
    assert "0 faults found" in capsys.readouterr().out


def test_fine_tuning_goes_on_from_the_temperature_of_the_model():
    for policy in POLICIES.values():
        parameter = torch.nn.Parameter(torch.tensor(math.log(50.0)))
        controller = TemperatureController(parameter, policy, 10, keep=True)
        assert controller.temperature == pytest.approx(0.02, rel=1e-6)
        assert controller.raw.item() == pytest.approx(float(policy.raw_of(50.0)), rel=1e-5)


class InNumpy(fs.temperature.AbstractTemperature):
    """β = ν² (1 + u), by functions of NumPy, which know no tensors; it does not say which ν belongs to a β."""

    learnable = True

    def inverse_temperature(self, progress, raw=None):
        return 10.0 if raw is None else np.square(np.asarray(raw)) * (1 + progress)

    def initial_raw(self):
        return 10.0**0.5

    def derivative(self, progress, raw):
        return 2 * np.asarray(raw) * (1 + progress)


def test_policies_that_pytorch_cannot_evaluate_are_trained_too():
    model, optimizer, controller = controlled(InNumpy(), SGD, total=10, clamp=None)
    found = steps(model, optimizer, 10)
    peer, raw = Model(), torch.nn.Parameter(torch.tensor(10.0**0.5, dtype=torch.float64))
    theirs, wanted = SGD([peer.image, peer.text, raw], lr=1e-2), []
    for k in range(10):
        theirs.zero_grad()
        beta = raw**2 * (1 + k / 10)
        wanted.append(1 / beta.item())
        contrast(*peer()[:2], beta).backward()
        theirs.step()
    np.testing.assert_allclose(found, wanted, rtol=1e-10)
    assert controller.raw.item() == pytest.approx(raw.item(), rel=1e-10)
    for options in ({"clamp": (0.01, 1.0)}, {"clamp": None, "keep": True}):
        with pytest.raises(fs.FlowsimError, match="does not define `raw_of`"):
            TemperatureController(model.logit_scale, InNumpy(), 10, **options)


def test_gradient_scaling_skips_steps_that_overflow():
    """What `torch.amp.GradScaler` does: gradients are scaled, and a step with infinite ones is left out."""
    model, optimizer, controller = controlled("TS S3", SGD, total=4)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for k in range(3):
        optimizer.zero_grad()
        scaler.scale(contrast(*model())).backward()
        if k == 1:
            model.image.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert controller.step == 2
    learned, made, controller = controlled(POLICIES["Softplus"], SGD)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(contrast(*learned())).backward()
    scaler.step(made)
    plain, made, other = controlled(POLICIES["Softplus"], SGD)
    steps(plain, made, 1)
    assert controller.raw.item() == pytest.approx(other.raw.item(), rel=1e-12)


@pytest.mark.parametrize("policy", ["TS S3", POLICIES["ratio"], "HS 1e-1"], ids=["TS", "ratio", "HS"])
def test_a_resumed_run_goes_on_exactly(policy, tmp_path):
    def run(model, optimizer, controller, first, last):
        for _ in range(first, last):
            optimizer.zero_grad()
            image, text, beta = model()
            contrast(*controller.swap(image, text), beta).backward()
            optimizer.step()

    whole = controlled(policy, total=20)
    run(*whole, 0, 20)
    first = controlled(policy, total=20)
    run(*first, 0, 11)
    torch.save([part.state_dict() for part in first], tmp_path / "state.pt")
    later = controlled(policy, total=20)
    for part, state in zip(later, torch.load(tmp_path / "state.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    run(*later, 11, 20)
    for ours, theirs in zip(whole[0].parameters(), later[0].parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    with pytest.raises(fs.FlowsimError, match="another `schedule`"):
        controlled("FLT 1e-1", total=20)[2].load_state_dict(first[2].state_dict())
    with pytest.raises(fs.FlowsimError, match="another `total_steps`"):
        controlled(policy, total=21)[2].load_state_dict(first[2].state_dict())
    with pytest.raises(fs.FlowsimError, match="no state"):
        later[2].load_state_dict({"step": 3})


@pytest.mark.parametrize("ask", ["temperature", "state_dict", "swap", "inverse_temperature", "before_step"])
def test_a_step_that_ends_with_an_error_leaves_the_temperature(ask):
    """Within a step `logit_scale` holds ν = 9.99 of softplus, which would be β = 2e4."""

    class Failing(SGD):
        def step(self, closure=None):
            raise KeyboardInterrupt

    model = Model()
    model.logit_scale.data.fill_(math.log(10))
    optimizer = Failing(model.parameters(), lr=0.1)
    controller = TemperatureController(model.logit_scale, POLICIES["ratio"], total_steps=5, clamp=None)
    controller.attach(optimizer)
    rates = [group["lr"] for group in optimizer.param_groups]
    contrast(*model()).backward()
    before = model.logit_scale.item()
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    assert model.logit_scale.item() != pytest.approx(before)
    asked = {"swap": lambda: controller.swap(model.image, model.text), "before_step": controller.before_step}
    if ask in ("state_dict", "inverse_temperature"):
        getattr(controller, ask)()
    elif ask == "temperature":
        assert controller.temperature == pytest.approx(0.1)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # no gradient
            asked[ask]()
    if ask == "before_step":  # within the next step
        controller.after_step()
    assert model.logit_scale.item() == before
    assert [group["lr"] for group in optimizer.param_groups] == rates
    assert controller.step == (ask == "before_step")


def test_bad_input():
    parameter = torch.nn.Parameter(torch.tensor(2.66))
    for arguments, message in (
        ((torch.nn.Parameter(torch.zeros(2)), "Baseline", 10), "must be a parameter with one number"),
        ((parameter, "TS S33", 10), "Did you mean 'TS S3'"),
        ((parameter, "Baseline", 0), "`total_steps` must be a whole number"),
    ):
        with pytest.raises(fs.FlowsimError, match=message):
            TemperatureController(*arguments)
    for clamp in ((1.0, 0.01), (0.0, 1.0)):
        with pytest.raises(fs.FlowsimError, match="clamp"):
            TemperatureController(parameter, "Baseline", 10, clamp=clamp)
    controller = TemperatureController(torch.nn.Parameter(torch.tensor(2.66)), "Baseline", 10)
    for wrong in ({"raw": None}, {"step": "x"}, {"raw": torch.zeros(2)}):
        with pytest.raises(fs.FlowsimError, match="The state is damaged"):
            controller.load_state_dict({**controller.state_dict(), **wrong})
    image = torch.ones(4, 3)
    with pytest.raises(fs.FlowsimError, match="one shape"):
        swap(image, image[:3], "HS 1", 0)
    with pytest.raises(fs.FlowsimError, match="`step` must be"):
        swap(image, image, "HS 1", -1)


# --- swaps


@pytest.mark.parametrize(
    "chosen", [fs.HardSwap(0.4), fs.HardSwap(0.4, by="row"), fs.SoftSwap(0.4), fs.SoftSwap(0.4, reading="updated")]
)
def test_swaps_are_those_of_a_simulated_run(chosen):
    rng = np.random.default_rng(0)
    image, text = (torch.tensor(unit_rows(rng, N, D)) for _ in range(2))
    model = Model()
    controller = TemperatureController(model.logit_scale, fs.Schedule(swap=chosen), 20, seed=5)
    swapped = 0
    for step in range(20):
        weights = swap_weights(chosen, 5, step, N, D)
        swapped += weights is not None
        wanted = (image, text) if weights is None else chosen.apply(torch.tensor(weights), image, text)
        for found in (swap(image, text, chosen, step, seed=5), controller.swap(image, text, step)):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
        shares = [swap(image[k::3], text[k::3], chosen, step, seed=5, rank=0, processes=1)[0].shape for k in range(3)]
        assert set(shares) == {(3, D)}
        parts = [
            swap(image[k : k + 3], text[k : k + 3], chosen, step, seed=5, rank=k // 3, processes=3) for k in (0, 3, 6)
        ]
        torch.testing.assert_close(torch.cat([part[0] for part in parts]), wanted[0], rtol=0, atol=0)
        torch.testing.assert_close(torch.cat([part[1] for part in parts]), wanted[1], rtol=0, atol=0)
    assert 2 < swapped < 15


def test_gradients_flow_through_a_swap():
    image, text = (torch.randn(4, 3, requires_grad=True) for _ in range(2))
    weights = torch.tensor(swap_weights(fs.HardSwap(1.0), 0, 3, 4, 3)).float()
    swap(image, text, "HS 1", 3)[0].sum().backward()
    torch.testing.assert_close(image.grad, weights)
    torch.testing.assert_close(text.grad, 1 - weights)


# --- several processes

_SHARED = """
import json, sys, torch
import torch.distributed as dist
sys.path.insert(0, {tests!r})
import flowsim as fs
from flowsim.torch import GapMonitor, TemperatureController
from torch.distributed.nn.functional import all_gather
from test_torch_loop import Model, contrast, N

dist.init_process_group("gloo")
rank, count = dist.get_rank(), dist.get_world_size()
model = Model()
controller = TemperatureController(model.logit_scale, {schedule!r}, 12, seed=3)
wrapped = torch.nn.parallel.DistributedDataParallel(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
controller.attach(optimizer)
monitor = GapMonitor(1, to={path!r})
losses = []
share = slice(rank * 4, rank * 4 + 4)
for step in range(8):
    image, text, beta = wrapped()
    image, text = controller.swap(image[share], text[share])
    image, text = (torch.cat(all_gather(x.contiguous())) for x in (image, text))
    measured = monitor(image, text, step)
    assert (measured is None) == (rank > 0)
    loss = contrast(image, text, beta)
    losses.append(loss.item())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
masks = [controller.swap(torch.ones(8, 3), torch.zeros(8, 3), k, gathered=True)[0].sum().item() for k in range(8)]
every = [None] * count
dist.all_gather_object(every, [losses, masks, controller.temperature])
monitor.close()
if rank == 0:
    print(json.dumps(every))
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["HS 1e-1", "TR softplus"])
def test_two_processes_train_as_one(schedule, tmp_path):
    """Each swaps its rows as they are swapped in the whole batch; losses, masks and temperatures are the same."""
    script = tmp_path / "shared.py"
    folder = str(Path(__file__).parent)
    script.write_text(_SHARED.format(tests=folder, schedule=schedule, path=str(tmp_path / "run.nc")))
    port = str(29600 + os.getpid() % 300)
    launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={port}", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, *launch], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = json.loads(done.stdout.splitlines()[-1])
    assert first == second
    model = Model()
    controller = TemperatureController(model.logit_scale, schedule, 12, seed=3)
    optimizer = SGD(model.parameters(), lr=0.1)
    controller.attach(optimizer)
    losses = []
    for _ in range(8):
        image, text, beta = model()
        loss = contrast(*controller.swap(image[:8], text[:8]), beta)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    np.testing.assert_allclose(first[0], losses, rtol=1e-9)
    assert first[2] == pytest.approx(controller.temperature, rel=1e-9)
    assert len(fs.load(tmp_path / "run.nc").time) == 8


# --- the loops of others

SETTINGS = {
    "model": "flowsim-vit-32", "data": "shapes:count=96,size=32", "image_size": 32, "steps": 200, "batch_size": 8,
    "pairs": 16, "evaluations": 1, "observables": "gap", "snapshot_pairs": 0, "warmup": 0.1, "threads": 1,
}  # fmt: skip


def plain_loop(settings, schedule, exact):
    """(losses, temperatures) of a loop with open_clip's ClipLoss on the batches of a run of the bridge."""
    from open_clip.loss import ClipLoss

    from flowsim.clip import models, training
    from flowsim.clip.batches import crop, prepare
    from flowsim.clip.learner import is_weight
    from flowsim.clip.plan import Plan

    model = models.build(settings.model, None, settings.image_size, settings.seed)
    pairs = training.load_pools(settings)[0]
    batches = prepare(pairs, model.tokenize, model.image_size, settings, resize=model.resize)
    rates, module, loss_of = Plan.of(settings, len(batches.pairs)).rates, model.module, ClipLoss()
    module.output_dict = False
    groups = [
        {"params": [p for n, p in module.named_parameters() if is_weight(n, p.ndim)], "weight_decay": 0.1},
        {"params": [p for n, p in module.named_parameters() if not is_weight(n, p.ndim)], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)
    controller = TemperatureController(module.logit_scale, schedule, settings.steps).attach(optimizer)
    losses, temperatures = [], []
    for k in range(settings.steps):
        for group in optimizer.param_groups:
            group["lr"] = float(rates[k])
        pixels, tokens, boxes = batches.batch(k)
        image, text, beta = module(crop(pixels, boxes, model.mean, model.std), tokens)
        temperatures.append(1 / beta.double().item())
        loss = loss_of(*controller.swap(image, text), controller.inverse_temperature() if exact else beta)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return np.array(losses), np.array(temperatures)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", ["Baseline", "FLT 4e-2", "TS S3", "SLRT 0.1", "TR softplus", "HS 1"])
def test_200_steps_of_a_plain_loop_are_those_of_our_trainer(name):
    """Bitwise with the exact β. The loop's own exp(logit_scale) rounds ln β to single precision, no more."""
    pytest.importorskip("open_clip", reason="open_clip is not installed: pip install '.[clip]'")
    settings = fs.clip.Training(**SETTINGS)
    record = fs.clip.train(settings, name, cpu=True)
    wanted, tau = (record.training[key] for key in ("train_loss", "train_temperature"))
    losses, temperatures = plain_loop(settings, name, exact=True)
    np.testing.assert_array_equal(losses, wanted)
    np.testing.assert_allclose(temperatures, tau, rtol=1e-6)
    losses, temperatures = plain_loop(settings, name, exact=False)
    difference = np.abs(losses - wanted).max()
    print(f"{name}: largest difference of 200 losses {difference:.1e} with exp(logit_scale)")
    np.testing.assert_allclose(losses, wanted, rtol=1e-4)
    np.testing.assert_allclose(temperatures, tau, rtol=1e-5)


EXAMPLES = {"plain": "open_clip", "hugging_face": "transformers", "lightning_module": "lightning"}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_run(name, tmp_path, monkeypatch):
    extra = "clip" if name == "plain" else "loops"
    for package in ("open_clip", EXAMPLES[name]):
        where = "clip" if package == "open_clip" else extra
        pytest.importorskip(package, reason=f"{package} is not installed: pip install '.[{where}]'")
    monkeypatch.chdir(tmp_path)
    path = Path(__file__).parent / "loops" / f"{name}.py"
    ours = path.read_text().split("# ---")[1].strip().splitlines()[1:]
    assert len(ours) <= 12
    controller = runpy.run_path(str(path))["controller"]
    assert controller.step == 20
    record = fs.load("run.nc")
    np.testing.assert_array_equal(record.time, [0, 5, 10, 15, 19])
    np.testing.assert_allclose(record.series["temperature"], 0.07, rtol=0.05)
    assert record.config["training"]["temperature_decay"] is False
    assert (np.ptp(record.series["temperature"]) > 1e-6) and np.isfinite(record.series["modality_gap"]).all()


@pytest.mark.filterwarnings("default")
def test_hugging_face_goes_on_after_an_interruption(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install '.[loops]'")

    class Learner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Model(dtype=torch.float32)

        def forward(self, x):
            return {"loss": contrast(*self.model()) + 0 * x.sum()}

    def run(stop, total=6, resume=False):
        model = Learner()
        arguments = transformers.TrainingArguments(
            str(tmp_path), max_steps=stop, save_steps=3, use_cpu=True, report_to=[], disable_tqdm=True,
            lr_scheduler_type="constant", learning_rate=1e-2,
        )  # fmt: skip
        controller = TemperatureController(model.model.logit_scale, "TS S3", total)
        trainer = transformers.Trainer(
            model, arguments, train_dataset=[{"x": torch.zeros(1)}] * 64,
            callbacks=[fs.torch.trainer_callback(controller)],
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        return model, controller

    run(3)
    _, controller = run(6, resume=True)
    assert controller.step == 6 and controller.temperature == pytest.approx(0.05, rel=1e-6)


@pytest.mark.filterwarnings("default")
def test_lightning_goes_on_exactly_after_an_interruption(tmp_path):
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: pip install '.[loops]'")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Model()

        def training_step(self, batch, index):
            return contrast(*self.model())

        def configure_optimizers(self):
            return Adam(self.parameters(), lr=1e-2)

    def run(steps, resume=None):
        module = Module()
        controller = TemperatureController(module.model.logit_scale, POLICIES["Softplus"], 8, keep=True)
        loader = torch.utils.data.DataLoader(torch.zeros(64, 1), batch_size=1)
        callback = fs.torch.lightning_callback(controller)
        trainer = pl.Trainer(
            max_steps=steps, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback],
            enable_checkpointing=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, loader, ckpt_path=resume)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
        return module.model, controller

    whole, controller = run(8)
    run(5)
    resumed, other = run(8, tmp_path / "run.ckpt")
    assert (controller.step, other.step) == (8, 8)
    assert controller.raw.item() == other.raw.item()
    torch.testing.assert_close(resumed.image, whole.image, rtol=0, atol=0)
