"""`descend`: steps of an optimizer on the loss of a flow, as in training."""

from collections.abc import Sequence
from typing import Any

from flowsim.base.arrays import to_device, to_numpy
from flowsim.base.modules import tracing
from flowsim.integrate.assemble import assemble
from flowsim.integrate.descent import run
from flowsim.integrate.observe import observe
from flowsim.integrate.options import Precision, check_policy, check_run, observables_of
from flowsim.integrate.origin import origin_of
from flowsim.integrate.session import opened
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.records.result import Result, Simulation


@tracing()
def descend(
    flow: GradientFlow,
    start: Start | AbstractRecipe | Result,
    optimizer: Any,
    lr: Any,
    steps: int,
    *,
    batch: int | None = None,
    seed: int = 0,
    horizon: float | None = None,
    observables: Sequence[str] | None = None,
    precision: Precision = "float64",
    devices: int | Sequence[Any] | None = None,
    throw: bool = True,
) -> Simulation:
    """Take `steps` steps of an optimizer on the loss of a flow and record observables.

    Every step uses the gradient at the current state. Swaps and pairings with `fresh` set are redrawn at every step.
    Rows are normalised to unit length after each step. Outputs are at log-spaced steps (at most 257, fewer for large
    encoders). `time` is the sum
    of the learning rates, which is flow time for "sgd" only (Euler's method with dt = lr).

    Args:
        flow: Geometry, schedule, loss and pairing; its rule must be `GradientDescent`.
        start: A `Start`, a recipe (drawn with `seed`), or a `Result`. A result of the same optimizer is continued with
            its optimizer state, step count, random draws and schedules: 500 steps and 500 more, both with
            `horizon=1000`, equal 1,000 steps.
        optimizer: "sgd", "momentum" (0.9), "adam", "adamw" (weight decay 0.1 on rows or weights), or a function of the
            learning rate that returns an optax transformation, such as `optax.lion`.
        lr: Learning rate: a number, or an optax schedule of the step. Good values: 1e-3 for "adam", 1e-2 for "sgd".
        steps: Number of steps.
        batch: Number of pairs in a minibatch; None takes all pairs in every step. Minibatches are those of
            `fs.data.Order`: without replacement within an epoch, one text of each pair drawn in each epoch. Observables
            are always those of all pairs, with their first texts.
        seed: Seed of the recipe and of the draws at every step. A continued run keeps its own.
        horizon: Step at which schedules end: they run in progress u = step/`horizon`. Default: that of the continued
            descent, else the number of steps.
        observables: As in `fs.simulate`.
        precision: "float64" or "float32".
        devices: As in `fs.simulate`.
        throw: Whether to raise `SimulationStopped` if the run ended early. If False, the result holds the part before.

    Returns:
        Observables over the sum of learning rates, snapshots of the embeddings, and how the run ended.

    Raises:
        FlowsimError: If the input is invalid; nothing is computed then.
        SimulationStopped: If the run ended before its last step and `throw` is True.

    Examples:
        >>> import flowsim as fs
        >>> start = fs.initial.rings(pairs=5, height=0.309, twist=-144)
        >>> result = fs.descend(fs.GradientFlow(), start, "adam", lr=1e-3, steps=1_000)
        >>> result.clock, round(float(result.time[-1]), 3)
        ('sum of learning rates', 1.0)
    """
    observables = observables_of(observables, start)
    check_run(flow, seed, precision, observables)
    check_policy(flow)
    origin = origin_of(flow, start, seed, horizon, in_steps=True)
    with opened(flow, origin, precision, devices) as session:
        ran = run(session.flow, session.state, optimizer, lr, steps, session.dtype, origin, batch)
        placed = session.place(to_device(ran.seen(), session.dtype))
        ran.fill(to_numpy(observe(session.flow, placed, tuple(observables))))
    settings = {
        "seed": origin.seed, "precision": precision, "t0": origin.t0, "observables": list(observables),
        "horizon": ran.ts[-1], "optimizer": ran.label, "steps": int(steps), "step": int(ran.steps[-1]),
        "schedule_steps": ran.horizon, "batch": batch,
        "lr": float(lr) if not callable(lr) else getattr(lr, "__name__", "schedule"),
    }  # fmt: skip
    return session.finish(assemble(flow, start, ran, settings), throw)
