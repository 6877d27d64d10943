"""The same heads trained three ways on real pairs: gradient flow, SGD and AdamW, and what makes them differ."""

import functools
from typing import Any

import numpy as np
import optax
from jaxtyping import Float

from flowsim.claims.base import Claim, Numbers, System
from flowsim.claims.heads import NAMES, OUTPUTS, PAIRS, RECORDED, reference, simulated, start_of, state_of
from flowsim.claims.measures import largest, slope, values
from flowsim.claims.registry import register
from flowsim.integrate.steps import adamw
from flowsim.model.geometry.encoders import LinearEncoders
from flowsim.model.rules import AdamLimit
from flowsim.records.result import Result

#: Pairs in a minibatch, and flow time of the runs with equal times.
_BATCH, _TIME = 32, 2.0
#: Training losses at which runs of different clocks are compared.
_LEVELS = (0.5, 0.1)
#: ε of the limit of Adam, and the settings of AdamW in `fs.heads.Training`.
_EPSILON = 1e-2
_LR, _MEMORY, _DECAY = 3e-3, {"beta1": 0.9, "beta2": 0.98, "eps": 1e-6}, 0.1


# --- SGD with small steps is the flow --------------------------------------------------------------------------


def _sgd(system: System, quick: bool) -> Numbers:
    flow, rates = system.flow(LinearEncoders()), (0.01, 0.005, 0.0025)
    errors, apart = [], []
    for seed in range(1 if quick else 2):
        start = start_of(seed)
        wanted = reference(start, _TIME)
        run = simulated(system, flow, start, _TIME)
        apart.append(state_of(run) - wanted)
        runs = [system.descend(flow, start, "sgd", lr, round(_TIME / lr), observables=RECORDED) for lr in rates]
        errors.append([state_of(run) - wanted for run in runs])
    size = np.sqrt(np.mean(np.square(errors), axis=0))
    orders = np.log2(size[:-1] / size[1:])
    extrapolated = 2 * np.asarray(errors)[:, -1] - np.asarray(errors)[:, -2]
    return {
        "smallest_order": float(np.min(orders[-1])),
        "largest_order": float(np.max(orders[-1])),
        "largest_error_extrapolated": largest(extrapolated),
        "largest_error_of_the_flow": largest(apart),
        **{f"order_{name}": float(order) for name, order in zip(NAMES, orders[-1], strict=True)},
        **{f"error_at_lr_0.0025_{name}": float(x) for name, x in zip(NAMES, size[-1], strict=True)},
    }


# --- minibatches -----------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=2)
def _minibatches(system: System, quick: bool) -> dict[tuple[int, float], np.ndarray]:
    """(pairs in a batch, learning rate) -> differences to the flow (seeds, 4) at equal time, and the flow itself."""
    flow, start = system.flow(LinearEncoders()), start_of(0)
    wanted = state_of(simulated(system, flow, start, _TIME))
    found = {(PAIRS, 0.0): wanted[None]}
    plan = [(_BATCH, 0.04, 8), (_BATCH, 0.01, 3 if quick else 4), (_BATCH, 0.0025, 8), (2 * _BATCH, 0.0025, 2)]
    for batch, lr, seeds in plan:
        steps = round(_TIME / lr)
        runs = [
            system.descend(flow, start, "sgd", lr, steps, batch=batch, seed=seed, observables=RECORDED)
            for seed in range(seeds)
        ]
        found[batch, lr] = np.array([state_of(run) - wanted for run in runs])
    return found


def _unbiased(system: System, quick: bool) -> Numbers:
    found = _minibatches(system, quick)
    flow = found[PAIRS, 0.0][0]
    coarse, fine = found[_BATCH, 0.01], found[_BATCH, 0.0025]
    # The straight line through two learning rates at 0, and its standard error.
    left = fine.mean(axis=0) - (coarse.mean(axis=0) - fine.mean(axis=0)) / 3
    error = np.sqrt((4 / 3) ** 2 * fine.var(axis=0, ddof=1) / len(fine) + coarse.var(axis=0, ddof=1) / len(coarse) / 9)
    half = found[2 * _BATCH, 0.0025].mean(axis=0)
    return {
        "temperature_off_the_flow": float(abs(left[2] / flow[2])),
        "temperature_off_the_flow_at_lr_0.0025": float(abs(fine.mean(axis=0)[2] / flow[2])),
        "temperature_off_the_flow_at_lr_0.01": float(abs(coarse.mean(axis=0)[2] / flow[2])),
        "temperature_off_the_flow_batch_64": float(abs(half[2] / flow[2])),
        "loss_over_the_flows": float(1 + left[3] / flow[3]),
        "loss_over_the_flows_batch_64": float(1 + half[3] / flow[3]),
        **{f"left_{name}": float(x) for name, x in zip(NAMES, left, strict=True)},
        **{f"standard_error_{name}": float(x) for name, x in zip(NAMES, error, strict=True)},
    }


def _spread(system: System, quick: bool) -> Numbers:
    found = _minibatches(system, quick)
    rates = (0.04, 0.0025)
    spreads = np.array([found[_BATCH, lr].std(axis=0, ddof=1) for lr in rates])
    powers = [slope(np.log(rates), np.log(column)) for column in spreads.T]
    return {
        "mean_power": float(np.mean(powers[:3])),
        **{f"power_{name}": float(p) for name, p in zip(NAMES, powers, strict=True)},
        **{f"spread_at_lr_0.0025_{name}": float(x) for name, x in zip(NAMES, spreads[-1], strict=True)},
    }


def _moved(system: System, flow: Any, start: Any, batch: int | None) -> tuple[np.ndarray, float]:
    """Mean change of weights and ν per unit of time over 25 epochs of steps that are too small to change anything."""
    lr, steps = 1e-9, 1 if batch is None else 25 * (PAIRS // batch)
    run = system.descend(flow, start, "sgd", lr, steps, batch=batch, observables=RECORDED)
    begin, end = run.at(run.time[0]).start, run.final.start
    weights = [(getattr(end, n) - getattr(begin, n)).ravel() for n in ("image_weights", "text_weights")]
    raw = values(run, "raw_temperature")
    return np.concatenate(weights) / (lr * steps), float((raw[-1] - raw[0]) / (lr * steps))


def _share(system: System, quick: bool) -> Numbers:
    flow = system.flow(LinearEncoders())
    shares, raw_shares, losses = [], [], []
    run = simulated(system, flow, start_of(0), 16.0)
    for index in (0, 15, OUTPUTS - 1):  # t = 0, 2 and 16
        # The weights of this time, and a policy that starts at its temperature.
        tau = values(run, "temperature")[index]
        here, state = flow.replace(**{"schedule.temperature.init": tau}), run.at(run.time[index]).start
        full, part = _moved(system, here, state, None), _moved(system, here, state, _BATCH)
        shares.append(float(part[0] @ full[0] / (full[0] @ full[0])))
        raw_shares.append(part[1] / full[1])
        losses.append(values(run, "loss")[index])
    wanted = (_BATCH - 1) / (PAIRS - 1)
    return {
        "share_of_negatives": wanted,
        "late_share_over_that_of_negatives": shares[-1] / wanted,
        "late_share_of_temperature_over_that_of_negatives": raw_shares[-1] / wanted,
        "share_at_the_start": shares[0],
        "share_in_between": shares[1],
        "loss_late": float(losses[-1]),
    }


# --- Adam ------------------------------------------------------------------------------------------------------


def _short_adam(lr: float) -> optax.GradientTransformation:
    return optax.adam(lr, b1=0.9, b2=0.9, eps=_EPSILON)


def _adam_limit(system: System, quick: bool) -> Numbers:
    time = 0.3
    flow, limit = system.flow(LinearEncoders()), system.flow(LinearEncoders(), rule=AdamLimit(_EPSILON))
    coarse, fine, moved = [], [], []
    for seed in range(1 if quick else 2):
        start = start_of(seed)
        run = simulated(system, limit, start, time, rtol=1e-7, atol=1e-10)
        wanted = state_of(run)
        for lr, into in ((2e-3, coarse), (2e-4, fine)):
            steps = round(time / lr)
            into.append(state_of(system.descend(flow, start, _short_adam, lr, steps, observables=RECORDED)) - wanted)
        moved.append(state_of(run, 0) - wanted)
    size = [np.sqrt(np.mean(np.square(errors), axis=0)) for errors in (coarse, fine)]
    return {
        "largest_error_of_gaps_at_lr_2e-4": largest(np.asarray(fine)[:, :2]),
        "largest_error_of_temperature_at_lr_2e-4": largest(np.asarray(fine)[:, 2]),
        "smallest_fall_of_the_error": float(np.min((size[0] / size[1])[:3])),
        "smallest_change_of_gap": float(np.min(np.abs(moved)[:, :2])),
        **{f"error_at_lr_2e-4_{name}": float(x) for name, x in zip(NAMES, size[1], strict=True)},
    }


def _at_loss(run: Result, level: float) -> Float[np.ndarray, "4"]:
    """Gap, held-out gap, temperature and time where the training loss first falls below a level; NaN without one."""
    loss = values(run, "loss")
    below = np.flatnonzero(loss < level)
    if len(below) == 0 or below[0] == 0 or not np.isfinite(loss[below[0] - 1]):
        return np.full(4, np.nan)
    k = int(below[0])
    weight = np.log(loss[k - 1] / level) / np.log(loss[k - 1] / loss[k])
    before, after = (np.append(state_of(run, j)[:3], run.time[j]) for j in (k - 1, k))
    return (1 - weight) * before + weight * after


@functools.lru_cache(maxsize=2)
def _ways(system: System, quick: bool) -> dict[str, list[Result]]:
    """Runs of each way from the same starts; from one to the next one thing changes."""
    flow, limit = system.flow(LinearEncoders()), system.flow(LinearEncoders(), rule=AdamLimit(_EPSILON))
    found: dict[str, list[Result]] = {}
    for seed in range(1 if quick else 2):
        start = start_of(seed)
        same = {"observables": RECORDED, "seed": seed}
        steps: dict[str, Any] = {
            "sgd": ("sgd", 0.02, 150, None),
            "sgd_batch": ("sgd", 0.02, 250, _BATCH),
            "adam": (_practised(0.0), _LR, 200, None),
            "adam_batch": (_practised(0.0), _LR, 200, _BATCH),
            "adamw_batch": (_practised(_DECAY), _LR, 200, _BATCH),
        }
        runs = {
            "flow": simulated(system, flow, start, 3.0),
            "adam_limit": simulated(system, limit, start, 0.3, rtol=1e-7, atol=1e-10),
            **{
                name: system.descend(flow, start, optimizer, lr, number, batch=batch, **same)
                for name, (optimizer, lr, number, batch) in steps.items()
            },
        }
        for name in ("flow", "sgd", "sgd_batch", "adam_limit", "adam", "adam_batch", "adamw_batch"):
            found.setdefault(name, []).append(runs[name])
    return found


@functools.cache
def _practised(decay: float) -> Any:
    """AdamW with the numbers of `fs.heads.Training`, as a function of the learning rate."""
    kept = adamw(**_MEMORY, weight_decay=decay)

    def optimizer(lr: float) -> optax.GradientTransformation:
        return optax.chain(kept, optax.scale(lr))

    return optimizer


def _causes(system: System, quick: bool) -> Numbers:
    ways = _ways(system, quick)
    numbers: Numbers = {}
    high, low = (
        {w: np.mean([_at_loss(r, level) for r in runs], axis=0) for w, runs in ways.items()} for level in _LEVELS
    )
    for level, found in zip(_LEVELS, (high, low), strict=True):
        for way, (training, held_out, temperature, time) in found.items():
            of = f"at_loss_{level:g}_{way}"
            numbers |= {f"gap_{of}": training, f"held_out_gap_{of}": held_out, f"temperature_{of}": temperature}
            numbers |= {f"time_{of}": time}
    adams = ("adam_limit", "adam", "adam_batch", "adamw_batch")
    return {
        "smallest_gap_of_adam_over_the_flows": float(min(high[way][0] for way in adams) / high["flow"][0]),
        "gap_of_sgd_over_the_flows": float(high["sgd"][0] / high["flow"][0]),
        "gap_of_sgd_batch_over_the_flows": float(high["sgd_batch"][0] / high["flow"][0]),
        "gap_of_adam_batch_over_that_of_adam": float(high["adam_batch"][0] / high["adam"][0]),
        "gap_of_adamw_over_that_of_adam_batch": float(high["adamw_batch"][0] / high["adam_batch"][0]),
        "temperature_of_sgd_batch_over_the_flows": float(high["sgd_batch"][2] / high["flow"][2]),
        **numbers,
    }


def _temperature(system: System, quick: bool) -> Numbers:
    ways = _ways(system, quick)

    def fastest(way: str) -> float:
        return max(largest(np.diff(values(run, "raw_temperature")) / np.diff(run.time)) for run in ways[way])

    adams = ("adam", "adam_batch", "adamw_batch")
    return {
        "largest_step_over_lr_adam": max(fastest(way) for way in adams),
        "largest_speed_flow": fastest("flow"),
        "largest_speed_adam_limit": fastest("adam_limit"),
    }


_HEADS = (
    "linear heads to 16 dimensions on 128 of the shipped emoji (scaled to length, first captions), 171 held out, "
    "τ0 = 0.07, learnable exp"
)

register(
    Claim(
        id="heads-sgd-is-the-flow",
        statement="Full-batch SGD on heads follows the gradient flow of their weights: halving the learning rate "
        "halves the difference in gap, held-out gap, temperature and loss, and its extrapolation to 0 meets the flow.",
        source="textbook; measured here on real pairs, against a flow of SciPy",
        assumptions=_HEADS + ", t = 2, lr = 0.01, 0.005, 0.0025, 2 seeds (quick: 1)",
        measure=_sgd,
        at_least={"smallest_order": 0.9},
        at_most={"largest_order": 1.1, "largest_error_extrapolated": 1e-4, "largest_error_of_the_flow": 1e-6},
    ),
    Claim(
        id="heads-minibatch-unbiased",
        statement="Minibatch SGD tends to the flow of all pairs as lr → 0, in the mean over the orders of its batches: "
        "at t = 2 its temperature is within 5 % of the flow's.",
        source="true for losses that are means over pairs; measured here for InfoNCE",
        assumptions=_HEADS + ", batches of 32, lr = 0.01 and 0.0025 extrapolated to 0, 8 orders, 4 at 0.01 (quick: 3)",
        measure=_unbiased,
        at_most={"temperature_off_the_flow": 0.05},
        expected="fails",
    ),
    Claim(
        id="heads-minibatch-share",
        statement="A minibatch has (b − 1)/(n − 1) of the negatives, and once the pairs are told apart its mean "
        "gradient is that share of the gradient of all pairs, for the weights as for the temperature; at the start it "
        "is most of it.",
        source="derived here: where the loss is small it is linear in the exponentials of the negatives",
        assumptions=_HEADS + ", b = 32, n = 128, mean of 100 batches at the states of the flow at t = 0, 2 and 16",
        measure=_share,
        at_least={
            "late_share_over_that_of_negatives": 0.95,
            "late_share_of_temperature_over_that_of_negatives": 0.95,
            "share_at_the_start": 0.75,
        },
        at_most={
            "late_share_over_that_of_negatives": 1.05,
            "late_share_of_temperature_over_that_of_negatives": 1.05,
        },
    ),
    Claim(
        id="heads-minibatch-spread",
        statement="The spread of minibatch SGD over the orders of its batches falls about like the root of the "
        "learning rate, in gap, held-out gap and temperature.",
        source="measured here",
        assumptions=_HEADS + ", batches of 32, t = 2, lr = 0.04 and 0.0025, 8 orders",
        measure=_spread,
        at_least={"mean_power": 0.35},
        at_most={"mean_power": 0.8},
    ),
    Claim(
        id="heads-adam-limit",
        statement="Full-batch Adam with small steps follows dθ/dt = −g/(|g| + ε) on the weights of heads: at lr = 2e-4 "
        "gap and held-out gap are within 3e-3 of it and the temperature within 5e-4, where the gap changes by 0.3 or "
        "more, and the error falls with lr.",
        source="derived here",
        assumptions=_HEADS + ", β1 = β2 = 0.9, ε = 0.01, Σ lr = 0.3, lr = 2e-3, 2e-4, 2 seeds (quick: 1)",
        measure=_adam_limit,
        at_most={"largest_error_of_gaps_at_lr_2e-4": 3e-3, "largest_error_of_temperature_at_lr_2e-4": 5e-4},
        at_least={"smallest_fall_of_the_error": 3.0, "smallest_change_of_gap": 0.3},
    ),
    Claim(
        id="heads-adam-gap",
        statement="At the same training loss of 0.5, Adam leaves more than three times the gap of the gradient flow. "
        "Its small-step limit does so already: the rescaling of the gradient is the cause. Minibatches change the gap "
        "of Adam by less than 25 % and gap and temperature of SGD by less than 15 %, weight decay by less than 5 %.",
        source="measured here",
        assumptions=_HEADS
        + ", SGD lr = 0.02, Adam lr = 3e-3 with β = (0.9, 0.98), ε = 1e-6 and weight decay 0 or 0.1, "
        "its limit with ε = 0.01, batches of 32 or all, means of 2 seeds (quick: 1)",
        measure=_causes,
        at_least={
            "smallest_gap_of_adam_over_the_flows": 3.0,
            "gap_of_adam_batch_over_that_of_adam": 0.75,
            "gap_of_adamw_over_that_of_adam_batch": 0.95,
        },
        at_most={
            "gap_of_sgd_over_the_flows": 1.05,
            "gap_of_sgd_batch_over_the_flows": 1.15,
            "temperature_of_sgd_batch_over_the_flows": 1.15,
            "gap_of_adam_batch_over_that_of_adam": 1.25,
            "gap_of_adamw_over_that_of_adam_batch": 1.05,
        },
    ),
    Claim(
        id="heads-adam-temperature",
        statement="Under Adam ν moves by at most about lr in a step, whatever the loss; along the flow from the same "
        "start it moves more than three times as fast.",
        source="Kingma & Ba 2015, section 2.1; measured here",
        assumptions=_HEADS + ", the runs of `heads-adam-gap`; speed in ν per Σ lr",
        measure=_temperature,
        at_most={"largest_step_over_lr_adam": 1.05, "largest_speed_adam_limit": 1.0},
        at_least={"largest_speed_flow": 3.0},
    ),
)
