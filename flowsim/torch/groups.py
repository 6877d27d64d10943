"""Parameter groups of an optimizer: one for the raw temperature, without weight decay."""

from collections.abc import Callable
from typing import Any

import torch

from flowsim.base.checks import check, shown
from flowsim.errors import FlowsimError

Group = dict[str, Any]


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer in wrappers such as those of Accelerate and Lightning; `FlowsimError` if there is none."""
    while isinstance(inner := getattr(optimizer, "optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    check(
        isinstance(optimizer, torch.optim.Optimizer),
        f"Expected an optimizer of PyTorch, but got {shown(type(optimizer).__name__)}. For others call `before_step` "
        "and `after_step` around the update.",
    )
    return optimizer


def group_of(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> Group | None:
    """The group that holds a parameter; None if the optimizer lacks it."""
    return next((group for group in optimizer.param_groups if any(p is parameter for p in group["params"])), None)


def alone(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, ratio: float) -> bool:
    """Give a parameter a group of its own, without weight decay, where decay or a learning-rate ratio needs it.

    Learning-rate schedulers know the groups from when they were made. So after that a parameter with decay stays in its
    group between steps, and has to be kept `apart` within each.

    Returns:
        Whether the parameter has to be kept apart.

    Raises:
        FlowsimError: If the optimizer lacks the parameter and a scheduler was made.
    """
    group = group_of(optimizer, parameter)
    decays = group is not None and bool(group.get("weight_decay", 0))
    if group is not None and (len(group["params"]) == 1 or not (decays or ratio != 1)):
        if decays:
            group["weight_decay"] = 0.0
        return False
    if any("initial_lr" in one for one in optimizer.param_groups):
        if group is None:
            raise FlowsimError(
                "`logit_scale` is not in the optimizer, and a learning-rate scheduler was made already. Attach the "
                "controller before, or give the optimizer all parameters."
            )
        return decays  # otherwise the ratio multiplies the step
    if group is None:
        like = optimizer.param_groups[0]
        new = {"params": [("logit_scale", parameter) if "param_names" in like else parameter], "lr": like["lr"]}
    else:
        place = next(i for i, other in enumerate(group["params"]) if other is parameter)
        del group["params"][place]
        named = "param_names" in group
        new = {name: value for name, value in group.items() if name != "param_names"}
        new["params"] = [(group["param_names"].pop(place), parameter) if named else parameter]
    optimizer.add_param_group({**new, "weight_decay": 0.0})
    return False


def set_apart(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter) -> Callable[[], None]:
    """Move a parameter into a group of its own without weight decay, for one step; returns what undoes it."""
    group = group_of(optimizer, parameter)
    assert group is not None
    whole = group["params"]
    group["params"] = [p for p in whole if p is not parameter]
    lone = {**group, "params": [parameter], "weight_decay": 0.0}
    optimizer.param_groups.append(lone)

    def undo() -> None:
        group["params"] = whole
        optimizer.param_groups[:] = [one for one in optimizer.param_groups if one is not lone]

    return undo
