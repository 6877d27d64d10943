"""What a controller warns of, in sentences."""

import math

import torch

MISSING = "`logit_scale` is not in the optimizer, so it would not be trained. It is added."
NO_GRADIENT = (
    "`logit_scale` got no gradient, so its temperature is not trained. Use model.logit_scale.exp() in the loss."
)
DECAYED = "`logit_scale` has weight decay, which pulls its temperature to 1. Set weight_decay=0.0 in its group."
UNATTACHED = (
    "No optimizer has taken a step since the controller was made, so the temperature does not follow its schedule. "
    "Call controller.attach(optimizer), or before_step() and after_step() around each update."
)


def start(before: float, first: float) -> str:
    """The temperature jumps when the controller is made; arguments are ln β."""
    return (
        f"The temperature of the model was {math.exp(-before):.4g} and now starts at the schedule's "
        f"{math.exp(-first):.4g}. Use keep=True to go on from that of the model."
    )


def stored(found: float) -> str:
    """`logit_scale` is too large to be ln β."""
    return (
        f"`logit_scale` is {found:.4g}, which as ln β is τ = {math.exp(-min(found, 700.0)):.2g}. If it holds β itself, "
        "store its logarithm and use model.logit_scale.exp() in the loss; or use keep=False."
    )


def changed(found: float, wanted: float) -> str:
    """Something else wrote `logit_scale`; arguments are ln β."""
    return (
        f"Something set `logit_scale` to {found:.4g}, where the schedule has {wanted:.4g} "
        f"(τ = {math.exp(-wanted):.4g}). Remove the clamp of the trainer, or load the controller's state "
        "after the model's."
    )


def beyond(total_steps: int) -> str:
    """The run is longer than the schedule."""
    return (
        f"The run goes on after {total_steps} steps, where the schedule ends: the temperature stays at its last value. "
        "Make the controller with the number of optimizer steps of the whole run as `total_steps`."
    )


def precision(dtype: torch.dtype) -> str:
    """`logit_scale` is in half precision."""
    coarse = torch.finfo(dtype).eps
    return (
        f"`logit_scale` is {str(dtype).removeprefix('torch.')}, which rounds ln β to steps of about {4 * coarse:.1g}, "
        "and small steps of an optimizer to 0. Keep it in float32: "
        "model.logit_scale.data = model.logit_scale.data.float()."
    )
