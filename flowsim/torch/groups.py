"""Parameter groups of an optimizer: one for the raw temperature, without weight decay."""

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


def alone(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, ratio: float) -> None:
    """Give a parameter a group of its own, without weight decay, where decay or a learning-rate ratio needs it.

    Learning-rate schedulers know the groups from when they were made: then `FlowsimError` if there is decay.
    """
    group = group_of(optimizer, parameter)
    decays = group is not None and bool(group.get("weight_decay", 0))
    if group is not None and (len(group["params"]) == 1 or not (decays or ratio != 1)):
        if decays:
            group["weight_decay"] = 0.0
        return
    if any("initial_lr" in one for one in optimizer.param_groups):
        if group is not None and not decays:
            return  # the ratio then multiplies the step
        what = "is not in the optimizer" if group is None else "has weight decay"
        raise FlowsimError(
            f"`logit_scale` {what}, and a learning-rate scheduler was made already. Attach the controller before."
        )
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
