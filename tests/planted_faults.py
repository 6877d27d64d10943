"""Runs of our own training with a fault planted in them, and healthy ones, for the doctor's tests and benchmark.

Heads on the features of emoji: 400 steps of AdamW take two seconds. A plant is a function of a seed.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax.numpy as jnp
import numpy as np
import optax

import flowsim as fs
from flowsim.heads import learner
from flowsim.integrate import steps

SEEDS = (0, 1, 2)
SETTINGS = fs.heads.Training(
    data="emoji", hidden=None, dim=32, steps=400, batch_size=256, evaluations=10, observables="retrieval"
)


def run(schedule: Any = "Baseline", seed: int = 0, **changes: Any) -> Any:
    """A training of heads."""
    return fs.heads.train(SETTINGS.replace(seed=seed, **changes), schedule)


def learned(init: float = 0.07, **options: Any) -> Any:
    return fs.Schedule(fs.temperature.Learnable(init, **options))


@contextlib.contextmanager
def optimizer_at_fault(transform: Any) -> Iterator[None]:
    """Training with another optimizer; a new transformation is compiled anew."""
    with mock.patch.object(learner, "_transform", return_value=transform):
        yield


def decays_everything(seed: int) -> Any:
    """AdamW whose weight decay also acts on ν, as if it were a weight."""
    with optimizer_at_fault(optax.adamw(1.0, 0.9, 0.98, 1e-6, weight_decay=1.0)):
        return run(seed=seed)


def half_precision(seed: int) -> Any:
    """ν rounded to bfloat16 after every step."""

    def rounded(flow: Any, raw: Any) -> Any:
        return jnp.asarray(raw, jnp.bfloat16).astype(raw.dtype)

    fresh = optax.chain(steps.adamw(0.9, 0.98, 1e-6, 0.1))
    with mock.patch.object(steps, "_clamped", rounded), optimizer_at_fault(fresh):
        return run(learned(lr_ratio=5.0), seed)


def clamp_forgotten(seed: int) -> Any:
    """ν without the clamp that the settings name."""
    fresh = optax.chain(steps.adamw(0.9, 0.98, 1e-6, 0.1))
    with mock.patch.object(steps, "_clamped", lambda flow, raw: raw), optimizer_at_fault(fresh):
        return run(seed=seed, clamp=(0.065, 1.0))


def changed_features(change: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]) -> fs.data.Features:
    """The features of emoji with other rows (image (n, p), text (n, c, q))."""
    held = fs.data.emoji()
    image, text = change(np.array(held.image, np.float64), np.array(held.text, np.float64))
    return fs.data.from_arrays(image, text, split=held.split)


def common_component(seed: int) -> Any:
    """Features with a common mode five times as large, at a low fixed temperature."""

    def shift(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return image + 4 * image.mean(0), text + 4 * text.mean((0, 1))

    return run("FLT 1e-2", seed, data=changed_features(shift), lr=1e-3)


def few_dimensions(seed: int) -> Any:
    """Texts that vary in two dimensions only."""

    def project(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(text.shape[-1], 2)))[0]
        return image, text @ basis @ basis.T

    return run(seed=seed, data=changed_features(project))


def duplicated(seed: int) -> Any:
    """Every second pair has the texts of the one before."""

    def copy(image: np.ndarray, text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        text[1::2] = text[: 2 * (len(text) // 2) : 2]
        return image, text

    return run(seed=seed, data=changed_features(copy), captions="first")


def shuffled(seed: int) -> Any:
    """Embeddings of a healthy run whose texts were saved in another order."""
    last = run(seed=seed).final
    return last.image, np.random.default_rng(seed).permutation(last.text)


def memorised(seed: int) -> Any:
    """Half of 400 training pairs have a wrong text, which the heads learn by heart."""
    held = fs.data.emoji()
    train = np.flatnonzero(held.split == "train")
    chosen = np.random.default_rng(seed).choice(train, 400, replace=False)
    keep = np.concatenate([chosen, np.flatnonzero(held.split != "train")])
    split = np.where(held.split[keep] == "train", "train", "test")
    few = fs.data.from_arrays(held.image[keep], held.text[keep], split=split)
    return run(seed=seed, data=few, mispaired=0.5, dim=128, steps=600, evaluations=14, lr=1e-2, weight_decay=0.0)


def spiked(seed: int) -> Any:
    """Three steps with 300 times the learning rate."""
    plan_of = fs.heads.Training.plan

    def wrong(self: Any, pairs: int) -> Any:
        plan = plan_of(self, pairs)
        rates = plan.rates.copy()
        rates[200:203] *= 300
        return dataclasses.replace(plan, rates=rates)

    with mock.patch.object(fs.heads.Training, "plan", wrong):
        return run(seed=seed)


def slip(seed: int) -> Any:
    """ν = 1; the logits multiplied by ν; exp applied to the temperature."""
    return run(learned((1 / np.e, 1 / np.log(1 / 0.07), np.exp(-0.07))[seed % 3]), seed)


#: Name of the check that must find it -> what was planted.
FAULTS: dict[str, Callable[[int], Any]] = {
    "not-finite": lambda seed: run(seed=seed, lr=1e25, optimizer="sgd", normalize=False),
    "nothing-learned": lambda seed: run(seed=seed, lr=1e-6),
    "overfitting": memorised,
    "held-out-loss-rises": memorised,
    "loss-jumps": spiked,
    "temperature-at-clamp": lambda seed: run(seed=seed, clamp=(0.055, 1.0)),
    "temperature-at-clamp-early": lambda seed: run(learned(0.07, clamp=(0.07, 1.0)), seed),
    "temperature-below-clamp": clamp_forgotten,
    "temperature-not-trained": lambda seed: run(learned(lr_ratio=0.0), seed),
    "temperature-decayed": decays_everything,
    "wrong-initial-temperature": slip,
    "temperature-limited-by-rate": lambda seed: run(learned(0.3, lr_ratio=0.1), seed),
    "temperature-in-half-precision": half_precision,
    "common-component": common_component,
    "collapsed-rank": few_dimensions,
    "no-alignment": shuffled,
    "duplicates": duplicated,
}
#: Healthy runs: presets of the paper that leave nothing to complain about.
HEALTHY = ("Baseline", "FLT 4e-2", "FLT 1e-1", "TS S3", "HS 1e-2", "TR softplus")


@functools.cache
def planted(name: str, seed: int) -> Any:
    """What was planted, kept for further tests."""
    return FAULTS[name](seed)


@functools.cache
def healthy(preset: str, seed: int) -> Any:
    """A healthy run."""
    return run(preset, seed)
