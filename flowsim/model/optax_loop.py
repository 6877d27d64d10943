"""A schedule in your own training loop in JAX with optax; `Schedule.as_optax` makes it."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import optax

from flowsim.base.arrays import to_device
from flowsim.base.checks import check, check_whole, checked_clamp, shown
from flowsim.errors import FlowsimError
from flowsim.model.swaps import step_weights

if TYPE_CHECKING:
    from flowsim.model.schedules import Schedule


class OptaxSchedule:
    """What a loop in optax needs of a schedule. All methods may be used under `jax.jit`; steps may be traced.

    Attributes:
        schedule: The schedule, with the clamp.
        total_steps: The step at which schedules end.
        name: Name of the raw parameter ν among the parameters.
    """

    def __init__(self, schedule: "Schedule", total_steps: int, clamp: Any, name: str) -> None:
        check_whole("total_steps", total_steps, 1, "Use the number of optimizer steps of the run.")
        check(isinstance(name, str) and name, f"Argument `name` must be a name, but is {shown(name)}. Use 'nu'.")
        policy, clamp = schedule.temperature, checked_clamp(clamp)
        if policy.learnable and policy.bounds() is None and clamp is not None:
            policy = policy.clamped_to(*clamp)
            check(
                policy.bounds() is not None,
                f"`clamp` cannot bound the temperature of {type(policy).__name__}. Use clamp=None.",
            )
        self.schedule = type(schedule)(policy, schedule.swap)
        self.total_steps, self.name = int(total_steps), name

    @property
    def learnable(self) -> bool:
        """Whether there is a raw parameter ν to train."""
        return self.schedule.temperature.learnable

    def initial_raw(self) -> jax.Array:
        """ν at the start, to be put among the parameters under `name`.

        Raises:
            FlowsimError: If the temperature is not learnable.
        """
        self._check_learnable()
        return jnp.asarray(self.schedule.temperature.initial_raw(), _float())

    def inverse_temperature(self, step: Any, raw: Any = None) -> jax.Array:
        """β = 1/τ in a step, which multiplies the cosines in the loss; differentiable in ν.

        Args:
            step: The step, from 0 on.
            raw: ν, for learnable temperatures only.

        Returns:
            β, of the type of ν, or JAX's default.

        Raises:
            FlowsimError: If ν is given for a temperature that is not learnable, or missing for one that is.
        """
        if self.learnable != (raw is not None):
            raise FlowsimError(
                "The temperature is learnable and needs `raw`. Pass the parameter that began as `initial_raw()`."
                if self.learnable
                else "The temperature is not learnable, so it has no `raw`. Leave it out."
            )
        dtype = _float() if raw is None else jnp.asarray(raw).dtype
        progress = jnp.asarray(step, dtype) / self.total_steps
        policy: Any = to_device(self.schedule.temperature, dtype)
        if raw is None:
            return jnp.asarray(policy.inverse_temperature(progress), dtype)
        return policy.inverse_temperature(progress, jnp.asarray(raw))

    def optimizer(self, inner: optax.GradientTransformation) -> optax.GradientTransformation:
        """An optimizer of all parameters whose update of ν has the learning-rate ratio and stays within the clamp.

        ν is every entry called `name` of the tree of parameters. If the inner optimizer has weight decay, spare ν:
        `optax.adamw(lr, mask=here.decays)`. For a temperature that is not learnable, the optimizer is unchanged.

        Args:
            inner: The optimizer, with its learning rate.

        Returns:
            An optimizer whose `update` needs the parameters.

        Raises:
            FlowsimError: In `init`, if no parameter has the name; in `update`, without the parameters.
        """
        policy = self.schedule.temperature
        if not self.learnable:
            return inner

        def init(params: Any) -> Any:
            leaves = jax.tree_util.tree_leaves_with_path(params)
            if not any(self._is_raw(path) for path, _ in leaves):
                known = ", ".join(jax.tree_util.keystr(path) for path, _ in leaves[:8])
                raise FlowsimError(
                    f"The parameters have no {self.name!r} for the raw temperature, but {known}. Put `initial_raw()` "
                    "there, or give its name: as_optax(total_steps, name=...)."
                )
            return inner.init(params)

        def update(updates: Any, state: Any, params: Any = None) -> Any:
            check(
                params is not None,
                "The clamp of a temperature needs the parameters. Use update(gradients, state, params).",
            )
            updates, state = inner.update(updates, state, params)

            def one(path: Any, change: Any, value: Any) -> Any:
                if not self._is_raw(path):
                    return change
                # Scaling the gradient instead has no effect on Adam.
                change = change * jnp.asarray(policy.lr_ratio, change.dtype)
                if (bounds := policy.bounds()) is None:
                    return change
                low, high = (jnp.asarray(bound, change.dtype) for bound in bounds)
                return jnp.clip(value + change, low, high) - value

            return jax.tree_util.tree_map_with_path(one, updates, params), state

        return optax.GradientTransformation(init, update)

    def decays(self, params: Any) -> Any:
        """Mask of the parameters that may decay: all but ν, whose decay would pull the temperature to that of ν = 0.

        Args:
            params: A tree of parameters.

        Returns:
            The same tree with True and False, for `mask=` of `optax.adamw` and `optax.add_decayed_weights`.
        """
        return jax.tree_util.tree_map_with_path(lambda path, _: not self._is_raw(path), params)

    def swap(self, image: Any, text: Any, step: Any, key: Any) -> tuple[jax.Array, jax.Array]:
        """Features after the schedule's swap of a step, for the loss; they are not normalised again.

        With `key = jax.random.key(seed)` the draws are those of `fs.descend(..., seed=seed)` in the same precision,
        and in 64-bit mode those of `fs.clip.train`.

        Args:
            image: Image features (n, d).
            text: Text features (n, d).
            step: The step, from 0 on.
            key: Random key of the run, the same in every step.

        Returns:
            The swapped features; unchanged in a step without a swap.

        Raises:
            FlowsimError: If the features do not have one shape (n, d).
        """
        image, text = jnp.asarray(image), jnp.asarray(text)
        check(
            image.ndim == 2 and image.shape == text.shape,
            f"Features of images and texts must have one shape (n, d), but have {image.shape} and {text.shape}. "
            "Pass the pairs of one batch.",
        )
        swap = self.schedule.swap
        if not swap.active:
            return image, text
        whether, masks, _ = jax.random.split(jax.random.fold_in(key, step), 3)
        weights = step_weights(swap, whether, masks, image.shape[0], image.shape[1], image.dtype)
        return (image, text) if weights is None else swap.apply(weights[0], image, text)

    def _is_raw(self, path: Any) -> bool:
        last = path[-1] if path else None
        return str(getattr(last, "key", getattr(last, "name", ""))) == self.name

    def _check_learnable(self) -> None:
        check(self.learnable, "The temperature is not learnable, so there is no parameter to train. Leave `raw` out.")


def _float() -> Any:
    """JAX's type of numbers in this session."""
    return jnp.zeros(()).dtype
