"""The temperature of a model in your own training loop: set by a schedule, or trained as the schedule says."""

# Longer than 400 lines: what happens before, within and after a step of an optimizer is one state and reads as one.

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch

from flowsim.base.checks import check, check_whole, checked_clamp, is_whole
from flowsim.errors import FlowsimError
from flowsim.model.schedules import Schedule, as_schedule
from flowsim.model.temperature import AbstractTemperature
from flowsim.torch import complaints
from flowsim.torch.device import described, this_process
from flowsim.torch.groups import alone, group_of, innermost, set_apart
from flowsim.torch.policies import HALF, InverseTemperature, Learned, at_least_single, raw_bounds
from flowsim.torch.swaps import Swapping

#: Steps between two looks at whether something else changed `logit_scale`; each look waits for a GPU.
_LOOK = 100
#: ν beyond which `logit_scale` must hold something else: τ = e⁻⁷ = 0.0009.
_LARGEST = 7.0
#: Calls without a step from which on the controller was not attached, rather than gradients accumulated.
_LONG = 300


class TemperatureController:
    """Lets a schedule drive `model.logit_scale`, which the loop reads as β = exp(logit_scale), as in CLIP.

    After `attach(optimizer)` there is nothing to call in the loop: the controller acts before and after each
    `optimizer.step()`, also within the trainers of Hugging Face and Lightning, with gradient scaling, clipping and
    accumulation, and with `DistributedDataParallel`.

    - Temperatures that a schedule sets: `logit_scale` is ln β(u), u = step/total_steps, and is not trained. Make the
      controller before the model is wrapped for several processes.
    - Learnable temperatures, β = β(ν): `logit_scale` holds ln β(ν) while the model runs. Within `optimizer.step()` it
      holds ν, with the gradient ∂L/∂ν = ∂L/∂logit_scale · d ln β/dν. So any parametrization is trained correctly, the
      moments of the optimizer are those of ν, and checkpoints of the model remain those of CLIP. For CLIP's own
      β = exp(ν) both are the same. Clipping acts before, on the gradient of ln β.
    - The learning-rate ratio of the policy is applied within the step only, so learning-rate schedules that set one
      rate for all groups, as open_clip's do, do not undo it. ν has no weight decay.
    - If something else changes a learned `logit_scale` between steps, as the clamp of open_clip's trainer does, ν
      follows.

    Args:
        logit_scale: The parameter, one number: `model.logit_scale` of open_clip and of Hugging Face's CLIPModel.
        schedule: A schedule, a temperature policy, the name of a preset such as "TS S3", or a JSON file.
        total_steps: Optimizer steps of the whole run, at which schedules end.
        seed: Seed of the swaps.
        clamp: (τ_min, τ_max) for learnable temperatures whose policy has no clamp; None for none. (0.01, 1) is that of
            open_clip's trainer.
        keep: Whether a learnable temperature goes on from the present value of `logit_scale`, for fine-tuning. If
            False, it starts at the initial temperature of the policy.

    Attributes:
        parameter: `logit_scale`.
        schedule: The schedule.
        total_steps: Optimizer steps of the whole run.
        step: Optimizer steps taken so far.
        clamp: The clamp.
        optimizer: The optimizer that it was attached to last; None before.
        warned: What the controller has warned of; it warns of each thing once.

    Raises:
        FlowsimError: For arguments that are not allowed.

    Examples:
        >>> import torch
        >>> import flowsim as fs
        >>> logit_scale = torch.nn.Parameter(torch.tensor(2.6593))
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3))], lr=0.1)
        >>> controller = fs.torch.TemperatureController(logit_scale, "TS S3", total_steps=4).attach(optimizer)
        >>> for step in range(4):
        ...     print(round(1 / logit_scale.exp().item(), 4))
        ...     optimizer.step()
        0.01
        0.02
        0.03
        0.04
    """

    def __init__(
        self,
        logit_scale: torch.nn.Parameter,
        schedule: Schedule | AbstractTemperature | str,
        total_steps: int,
        *,
        seed: int = 0,
        clamp: tuple[float, float] | None = (0.01, 1.0),
        keep: bool = False,
    ) -> None:
        check(
            isinstance(logit_scale, torch.nn.Parameter)
            and logit_scale.numel() == 1
            and logit_scale.is_floating_point(),
            f"Argument `logit_scale` must be a parameter with one number, but is {described(logit_scale)}. "
            "Pass model.logit_scale.",
        )
        check_whole("total_steps", total_steps, 1, "Use the number of optimizer steps of the run.")
        check(
            not keep or as_schedule(schedule).temperature.learnable,
            "keep=True goes on from the temperature of the model, but this schedule sets the temperature itself. Leave "
            "keep=True out, or use a schedule that learns it, such as 'Baseline'.",
        )
        self.parameter, self.schedule, self.total_steps = logit_scale, as_schedule(schedule), int(total_steps)
        self.clamp, self.step = checked_clamp(clamp), 0
        self.warned: set[str] = set()
        self._swapping = Swapping(self.schedule.swap, seed)
        self._hooks: list[Any] = []
        self.optimizer: torch.optim.Optimizer | None = None
        self._used, self._keep_apart = 0, False
        self._rejoin: Callable[[], None] | None = None
        self._group: Callable[[], dict[str, Any] | None] = lambda: None
        self._inside = self._in_closure = False
        self._held: tuple[torch.Tensor | None, torch.Tensor] | None = None
        self._ratio = float(self.schedule.temperature.lr_ratio)
        self._rate: Any = None
        self._learned: Learned | None = None
        self._bounds: tuple[float, float] | None = None
        self.raw: torch.Tensor | None = None
        if self.schedule.temperature.learnable:
            self._start_learning(keep)
        else:
            logit_scale.requires_grad_(False)
            logit_scale.grad = None
        if logit_scale.dtype in HALF:
            self._warn("precision", complaints.precision(logit_scale.dtype))
        self._written = logit_scale.detach().clone()
        self._write()

    # --- the optimizer

    def attach(self, optimizer: torch.optim.Optimizer) -> "TemperatureController":
        """Act before and after every step of an optimizer.

        A learnable temperature with weight decay or a learning-rate ratio moves to a parameter group of its own,
        without weight decay; after a learning-rate scheduler was made it does so only within each step, as the
        scheduler knows the groups. One that the optimizer lacks is added, with a warning, before a scheduler is made.

        Args:
            optimizer: The optimizer of the model. A wrapper of Accelerate or Lightning is looked into.

        Returns:
            The controller.

        Raises:
            FlowsimError: If this is no optimizer of PyTorch, or if it lacks `logit_scale` and a learning-rate scheduler
                was made already.
        """
        optimizer = innermost(optimizer)
        if self.raw is not None:
            if group_of(optimizer, self.parameter) is None:
                self._warn("missing", complaints.MISSING)
            self._keep_apart = alone(optimizer, self.parameter, self._ratio)
            self._group = lambda: group_of(optimizer, self.parameter)
        self.detach()
        self.optimizer = optimizer
        self._hooks = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(lambda *_: self.after_step()),
        ]
        return self

    def detach(self) -> None:
        """Leave the optimizer alone from now on."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def attached(self) -> bool:
        """Whether an optimizer is attached."""
        return bool(self._hooks)

    def before_step(self) -> None:
        """What happens before the update of an optimizer that cannot be attached: call it after the backward pass."""
        self._recover()
        self._check()
        if self.raw is None:
            self.parameter.grad = None
            return
        self._follow()
        if self.parameter.grad is None:
            self._warn("gradient", complaints.NO_GRADIENT)
        self._enter()

    def after_step(self) -> None:
        """What happens after the update of an optimizer that cannot be attached; counts the step."""
        if self._inside:
            self._leave()
        self.step += 1
        if self.raw is None and self.step > self.total_steps:
            self._warn("end", complaints.beyond(self.total_steps))
        self._write()

    # --- what the loop may ask

    @property
    def temperature(self) -> float:
        """τ = 1/β that the model uses now. Reading it waits for a GPU."""
        self._recover()
        return math.exp(-float(self.parameter.detach()))

    def inverse_temperature(self) -> torch.Tensor:
        """β for a loss that takes it, with its gradient: exp(logit_scale) without the rounding of ln β.

        It is a number like `logit_scale`, at least in single precision. `model.logit_scale.exp()` does as well, except
        for a model in half precision.
        """
        self._recover()
        self.use()
        if self.raw is None:
            exact = torch.full_like(self.parameter, self._scheduled(), dtype=at_least_single(self.parameter))
        else:
            assert self._learned is not None
            self._follow()
            exact = self._learned.beta(self._progress, self.raw).to(self.raw.dtype)
        return InverseTemperature.apply(self.parameter, exact.detach())  # pyright: ignore[reportReturnType]

    def swap(
        self, image: torch.Tensor, text: torch.Tensor, step: int | None = None, *, gathered: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features after the schedule's swap, for the loss; see `fs.torch.swap`.

        With several processes of `torch.distributed` each swaps its own rows as they are swapped in the whole batch, so
        losses and gradients are those of one process.

        Args:
            image: Image features (n, d).
            text: Text features (n, d).
            step: The step; None takes the number of optimizer steps so far. With gradient accumulation pass the number
                of the micro-batch.
            gathered: Whether the features are those of the whole batch, the same in all processes.

        Returns:
            The swapped features, or the same tensors in a step without a swap.

        Raises:
            FlowsimError: If the features do not fit.
        """
        self._recover()
        self.use()
        if step is not None:
            check_whole("step", step, 0, "Use the number of the step, or leave it out.")
        rank, processes = (0, 1) if gathered else this_process()
        return self._swapping.apply(image, text, self.step if step is None else int(step), rank, processes)

    def use(self) -> None:
        """Note that the loop asked for something, as the monitor does in every step; warns if no step is ever taken."""
        self._used += 1
        if self._used == _LONG and self.step == 0 and not self.attached:
            self._warn("attach", complaints.UNATTACHED)

    @property
    def decays(self) -> bool:
        """Whether the optimizer applies weight decay to the raw temperature."""
        group = self._group()
        return group is not None and bool(group.get("weight_decay", 0)) and not self._keep_apart

    def learning_rate(self) -> Any:
        """The learning rate of the group of `logit_scale`, else of the first group; None without an optimizer."""
        if self.optimizer is None:
            return None
        group = group_of(self.optimizer, self.parameter) or self.optimizer.param_groups[0]
        return group["lr"] if self._rate is None else self._rate

    # --- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs besides model and optimizer: plain numbers, text, and ν as a tensor."""
        self._recover()
        return {
            "step": self.step, "total_steps": self.total_steps, "schedule": self.schedule.to_json(),
            "seed": self._swapping.seed, "raw": None if self.raw is None else self.raw.detach().cpu().clone(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`; load model and optimizer before. The next steps are then the same.

        Args:
            state: What `state_dict` returned.

        Raises:
            FlowsimError: If the state is of another schedule, number of steps or seed.
        """
        check(
            isinstance(state, dict) and self.state_dict().keys() <= state.keys(),
            "This is no state of a TemperatureController. Pass what `state_dict` returned.",
        )
        for name in ("schedule", "total_steps", "seed"):
            check(
                state[name] == self.state_dict()[name],
                f"The checkpoint was made with another `{name}`. Make the controller with the arguments of that run.",
            )
        raw = state["raw"]
        check(
            is_whole(state["step"])
            and state["step"] >= 0
            and (raw is None if self.raw is None else isinstance(raw, torch.Tensor) and raw.numel() == 1),
            "The state is damaged: its step or its raw temperature is missing. Pass what `state_dict` returned.",
        )
        self.step = int(state["step"])
        if self.raw is not None:
            self.raw.copy_(raw)
        self._write()

    def resume_at(self, step: int) -> None:
        """Go on after this many optimizer steps, without a saved state: a learned ν follows from `logit_scale`.

        Args:
            step: Optimizer steps taken so far.

        Raises:
            FlowsimError: If this is no whole number of at least 0.
        """
        check_whole("step", step, 0, "Use the number of optimizer steps taken so far.")
        if self.raw is not None:
            self._follow()
        self.step = int(step)
        self._write()

    # --- internals: between steps `logit_scale` holds ln β, within a step ν

    @torch.no_grad()
    def _start_learning(self, keep: bool) -> None:
        policy, p = self.schedule.temperature, self.parameter
        self._learned, self._bounds = Learned(policy), raw_bounds(policy, self.clamp)
        self.raw = torch.full_like(p, float(policy.initial_raw()), dtype=at_least_single(p), requires_grad=False)
        before, first = float(p), float(self._learned.log_beta(0.0, self.raw))
        if keep:
            found = self._learned.raw_of(p)
            if found is None:
                raise FlowsimError(
                    f"keep=True needs the raw parameter at a given temperature, but {type(policy).__name__} does not "
                    "define `raw_of`. Define it, or use keep=False."
                )
            self.raw.copy_(found)
            check(before < _LARGEST, complaints.stored(before))
        elif abs(before - first) > 0.01:
            self._warn("start", complaints.start(before, first))
        if self._bounds is not None:
            self.raw.clamp_(*self._bounds)
        p.requires_grad_(True)

    def _before(self, optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Hook of `optimizer.step(closure=None)`: a closure runs the model, so it must see ln β, not ν."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self.before_step()
            return None

        def seeing_beta() -> Any:
            if self._inside:  # optimizers such as LBFGS call it several times
                assert self.raw is not None
                self.raw.copy_(self.parameter.detach())
                self._write()
            self._in_closure = True
            try:
                loss = closure()
            finally:
                self._in_closure = False
            if self._inside:
                self._enter()
            else:
                self.before_step()
            return loss

        if len(args) > 1:
            return (args[0], seeing_beta, *args[2:]), kwargs
        return args, {**kwargs, "closure": seeing_beta}

    @torch.no_grad()
    def _enter(self) -> None:
        """From ln β to ν."""
        assert self.raw is not None and self._learned is not None
        p = self.parameter
        first = self.raw.to(p.dtype).clone() if self._held is None else self._held[1]
        self._held, self._inside = (p.grad, first), True
        if p.grad is not None:
            p.grad = p.grad * self._learned.log_slope(self._progress, self.raw).to(p.grad.dtype)
        p.copy_(self.raw)
        if self._keep_apart and self._rejoin is None and self.optimizer is not None:
            self._rejoin = set_apart(self.optimizer, p)
        group = self._group()
        if self._ratio != 1 and self._rate is None and group is not None and len(group["params"]) == 1:
            self._rate = group["lr"]
            group["lr"] = self._rate * self._ratio

    @torch.no_grad()
    def _leave(self) -> None:
        """The new ν after an update."""
        assert self.raw is not None and self._held is not None
        p, group = self.parameter, self._group()
        p.grad, first = self._held
        if self._rate is not None and group is not None:
            group["lr"], self._rate = self._rate, None
            self.raw.copy_(p)
        else:  # no group of its own; scaling the gradient has no effect on Adam
            self.raw.copy_(p if self._ratio == 1 else first + self._ratio * (p - first))
        if self._bounds is not None:
            self.raw.clamp_(*self._bounds)
        self._joined()
        self._held, self._inside = None, False

    def _joined(self) -> None:
        """Put the parameter back into its group, if it was set apart for a step."""
        if self._rejoin is not None:
            self._rejoin()
            self._rejoin = None

    @torch.no_grad()
    def _recover(self) -> None:
        """Back to ln β of before a step of the optimizer that ended with an error; nothing within a step."""
        if not self._inside or self._in_closure:
            return
        group = self._group()
        if self._rate is not None and group is not None:
            group["lr"], self._rate = self._rate, None
        self._joined()
        self._held, self._inside = None, False
        self.parameter.grad = None
        self.parameter.copy_(self._written)

    @torch.no_grad()
    def _write(self) -> None:
        """Write ln β of this step."""
        if self.raw is None:
            self.parameter.fill_(math.log(self._scheduled()))
        else:
            assert self._learned is not None
            self.parameter.copy_(self._learned.log_beta(self._progress, self.raw))
        self._written.copy_(self.parameter)

    @torch.no_grad()
    def _follow(self) -> None:
        """Take ν from `logit_scale` if something else has changed it; without waiting for the device."""
        assert self.raw is not None and self._learned is not None
        if self.parameter.device.type == "cpu" and bool(self.parameter == self._written):
            return
        self._written = self._written.to(self.parameter.device)
        self.raw = self.raw.to(self.parameter.device)
        found = self._learned.raw_of(self.parameter)
        if found is not None:
            self.raw = torch.where(self.parameter == self._written, self.raw, found.to(self.raw.dtype))

    def _scheduled(self) -> float:
        """β of the schedule in this step."""
        return float(self.schedule.temperature.inverse_temperature(self._progress))

    @property
    def _progress(self) -> float:
        return self.step / self.total_steps

    def _check(self) -> None:
        """Look for what works against the schedule; cheap, and without waiting for a GPU in most steps."""
        if self.decays:
            self._warn("weight decay", complaints.DECAYED)
        if self.raw is None and (self.parameter.device.type == "cpu" or self.step % _LOOK == 1):
            found, wanted = float(self.parameter.detach()), float(self._written)
            if found != wanted:
                self._warn("changed", complaints.changed(found, wanted))

    def _warn(self, about: str, text: str) -> None:
        if about not in self.warned:
            self.warned.add(about)
            warnings.warn(text, UserWarning, stacklevel=3)
