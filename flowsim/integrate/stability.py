"""The largest learning rate of gradient descent that follows the flow: the stability bound of its steps."""

from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree

from flowsim.base.checks import check
from flowsim.errors import FlowsimError
from flowsim.integrate.options import check_run
from flowsim.integrate.origin import origin_of
from flowsim.integrate.session import opened
from flowsim.model.flow import GradientFlow
from flowsim.model.initial import AbstractRecipe, Start
from flowsim.records.result import Result


def stability_limit(
    flow: GradientFlow,
    start: Start | AbstractRecipe | Result,
    *,
    progress: float = 0.0,
    seed: int = 0,
) -> float:
    """2/λ, the learning rate above which a step of gradient descent overshoots along the steepest direction.

    λ is the largest real part of an eigenvalue of the flow, −∂(dθ/dt, dν/dt)/∂(θ, ν), at the start: the largest
    curvature of the loss, preconditioned by kernels and learning rates. Steps with `lr` below 2/λ damp a small
    deviation, and below 1/λ without a change of sign; above it the deviation grows until the curvature falls. The limit
    belongs to one state: it shrinks as the temperature falls (λ grows like 1/τ²), and as kernels grow.

    Args:
        flow: Geometry, schedule, loss and pairing; its rule must be `GradientDescent`.
        start: A `Start`, a recipe (drawn with `seed`), or a `Result`, whose last state counts.
        progress: Progress u in [0, 1] at which a scheduled temperature is taken.
        seed: Seed of the recipe, and of draws of swaps and targets.

    Returns:
        2/λ; infinity if no direction is curved upwards.

    Raises:
        FlowsimError: If the input is invalid, the rule is another, or the eigenvalues do not converge.

    Examples:
        >>> import flowsim as fs
        >>> free = fs.stability_limit(fs.GradientFlow(), fs.initial.uniform(16, 8))
        >>> together = fs.Sphere(image_kernel=fs.kernels.Shared(1.0, 1.0), text_kernel=fs.kernels.Shared(1.0, 1.0))
        >>> fs.stability_limit(fs.GradientFlow(together), fs.initial.uniform(16, 8)) < free
        True
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

    check(0 <= progress <= 1, f"Argument `progress` must be in [0, 1], but is {progress:g}. Use e.g. 0.")
    check(
        flow.rule.is_gradient,
        f"The rule {type(flow.rule).__name__} is not linear in gradients, and has no limit of this kind. Use "
        "GradientDescent.",
    )
    check_run(flow, seed, "float64", ())
    with opened(flow, origin_of(flow, start, seed, None, in_steps=False), "float64", None) as session:
        state = session.state
        flat, restore = ravel_pytree(state.unknowns)

        def field(values: Any) -> Any:
            moved = state.__class__(restore(values), state.constants, state.targets, state.masks)
            return ravel_pytree(session.flow.vector_field(progress, moved, 1.0))[0]

        _, linear = jax.linearize(jax.jit(field), flat)
        linear = jax.jit(linear)
        linear(flat)

        def multiply(vector: np.ndarray) -> np.ndarray:
            return -np.asarray(linear(np.asarray(vector, np.float64).reshape(-1)), np.float64)

        size = flat.size
        if size <= 16:  # ARPACK needs more dimensions than eigenvalues
            values = np.linalg.eigvals(np.stack([multiply(row) for row in np.eye(size)], 1))
        else:
            first = np.random.default_rng(0).standard_normal(size)
            operator: Any = LinearOperator((size, size), matvec=multiply, dtype=np.float64)  # pyright: ignore
            try:
                values = eigs(operator, k=1, which="LR", v0=first, return_eigenvectors=False, tol=1e-6)  # pyright: ignore
            except ArpackNoConvergence:
                raise FlowsimError(
                    "The largest curvature was not found, because the state is not finite or its eigenvalues are too "
                    "close. Start from another state."
                ) from None
    largest = float(np.max(np.real(values)))
    return 2 / largest if largest > 0 else float("inf")
