"""Heads on emoji that claims about training share: starts, states of runs, and a flow that is integrated by SciPy."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy.integrate import solve_ivp

from flowsim import data as features
from flowsim.claims.base import System
from flowsim.claims.measures import gap, plain_loss, values
from flowsim.data.features import Features
from flowsim.heads.embedding import embed
from flowsim.model import initial
from flowsim.model.flow import GradientFlow
from flowsim.model.start import Start
from flowsim.records.result import Result

#: Training pairs, dimension of the embeddings, and temperature at the start.
PAIRS, DIM, TAU = 128, 16, 0.07
#: Output times of every flow: their number is always the same, so that nothing is compiled again.
OUTPUTS = 121
#: What is recorded, and the four numbers of a state.
RECORDED = ("modality_gap", "temperature", "loss", "raw_temperature")
NAMES = ("gap", "held_out_gap", "temperature", "loss")


@functools.cache
def pairs() -> tuple[Features, Features]:
    """Pairs to train on, evenly from the training emoji, and all held-out ones; scaled to length."""
    data = features.emoji().scaled("length")
    train = data.part("train")
    return train.take(np.linspace(0, train.pairs - 1, PAIRS).round().astype(int)), data.part("test")


def start_of(seed: int) -> Start:
    """Linear heads with random weights; each image has its first caption only, so that all ways see the same pairs."""
    drawn = initial.from_features(pairs()[0], dim=DIM).draw(seed)
    return dataclasses.replace(drawn, text_inputs=drawn.text_inputs[:, 0], text_counts=None)


def held_out_gap(start: Start) -> float:
    """The gap of the held-out pairs under the weights of a start."""
    image, text = embed(start, pairs()[1])
    return float(np.linalg.norm(np.mean(image, axis=0) - np.mean(text, axis=0)))


def state_of(run: Result, index: int = -1) -> Float[np.ndarray, "4"]:
    """The four numbers of `NAMES` at an output time; NaN where the run did not reach it."""
    series = {name: values(run, name)[index] for name in RECORDED}
    if not np.isfinite(series["loss"]):
        return np.full(4, np.nan)
    at = run.snapshot_time[np.argmin(np.abs(run.snapshot_time - run.time[index]))]
    return np.array([series["modality_gap"], held_out_gap(run.at(at).start), series["temperature"], series["loss"]])


def simulated(system: System, flow: GradientFlow, start: Start, last: float, **options: Any) -> Result:
    """The run of a flow until `last`, with `OUTPUTS` even output times."""
    return system.simulate(flow, start, ts=np.linspace(0.0, last, OUTPUTS), observables=RECORDED, **options)


def reference(start: Start, time: float) -> Float[np.ndarray, "4"]:
    """The same four numbers at a time, from the loss as it reads, differentiated by JAX, integrated by SciPy."""
    image, text = (jnp.asarray(x) for x in (start.image_inputs, start.text_inputs))
    shapes = start.image_weights.shape, start.text_weights.shape
    cut = start.image_weights.size

    def rows(flat: Any) -> Any:
        outputs = image @ flat[:cut].reshape(shapes[0]), text @ flat[cut:-1].reshape(shapes[1])
        return tuple(x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in outputs)

    def loss(flat: Any) -> Any:
        x, y = rows(flat)
        return plain_loss(jnp.exp(flat[-1]) * (x @ y.T))

    velocity = jax.jit(jax.grad(lambda flat: -loss(flat)))
    begin = np.concatenate([start.image_weights.ravel(), start.text_weights.ravel(), [-np.log(TAU)]])
    found = solve_ivp(
        lambda _, flat: np.asarray(velocity(flat)), (0.0, time), begin, method="DOP853", rtol=1e-8, atol=1e-10
    )
    last = found.y[:, -1]
    weights = {"image_weights": last[:cut].reshape(shapes[0]), "text_weights": last[cut:-1].reshape(shapes[1])}
    return np.array(
        [gap(*rows(last)), held_out_gap(dataclasses.replace(start, **weights)), np.exp(-last[-1]), loss(last)], float
    )
