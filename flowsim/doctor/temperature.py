"""Checks of the temperature. ν is the raw parameter; β = exp(ν) = 1/τ as in CLIP, unless a policy says otherwise."""

import math

import numpy as np

from flowsim.doctor.case import Case, Track
from flowsim.doctor.entropy import calibration
from flowsim.doctor.finding import CannotTell, Sign, register

#: A temperature within this relative distance of a bound is at it.
AT_BOUND = 5e-3
#: Share of a run at the bound that counts; and the part of the run that is its beginning.
SHARE, BEGINNING = 0.05, 0.1
#: A learned ln τ that changes by less has not been trained; rounding of float32 and of logs with five digits is below.
STILL = 2e-5
#: Fewest logged temperatures that say something about how it moves.
FEWEST = 5
#: Share of the sum of learning rates from which a change of ν counts as limited by it; and beyond which Adam alone
#: cannot have made it.
LIMITED, BEYOND = 0.9, 1.2
#: Difference of entropy and loss, in nats, that counts as a pull on ν.
PULL = 0.05

#: First β that slips of the usual initialisation ν = ln(1/0.07) give -> the slip.
SLIPS = {
    math.e: "ν = 1: `torch.ones([])` without the factor ln(1/0.07)",
    math.log(1 / 0.07): "β = ln(1/0.07): the logits are multiplied by ν, without exp",
    math.log(100): "β = ln 100: the logits are multiplied by ν, without exp",
    math.exp(0.07): "ν = 0.07: the temperature is stored where its logarithm belongs",
    0.07: "β = 0.07: the logits are multiplied by the temperature instead of divided",
    0.01: "β = 0.01: the logits are multiplied by the temperature instead of divided",
    math.exp(1 / 0.07): "ν = 1/0.07: exp is applied to the inverse temperature",
    math.exp(100): "ν = 100: exp is applied to the inverse temperature",
}
#: Relative distance within which a first β counts as that of a slip.
SAME = 5e-3


def _tau(case: Case, least: int = 1) -> Track:
    """The temperature of a case; raises `CannotTell` if fewer than `least` values are recorded."""
    if case.temperature is None:
        raise CannotTell("No temperature is recorded.")
    if len(case.temperature) < least:
        raise CannotTell(f"Only {len(case.temperature)} temperatures are recorded.")
    return case.temperature


def _learned(case: Case) -> None:
    if case.learned is False:
        raise CannotTell("The temperature is not learned.")


def _at_bound(case: Case) -> tuple[Track, np.ndarray, float, str]:
    """Temperature, where it is at the lower bound, the bound, and how the bound is known."""
    _learned(case)
    tau = _tau(case)
    if case.clamp is None:
        raise CannotTell("The temperature has no clamp.")
    bound = case.clamp[0]
    known = "" if case.clamp_known else ", the usual clamp"
    return tau, np.abs(tau.value / bound - 1) < AT_BOUND, bound, known


@register(
    "temperature-at-clamp",
    title="a temperature that ends at its clamp",
    reason="At the clamp the loss still pulls τ down, and the clamp decides its value. So low a temperature keeps the "
    "gap: the force that closes it is proportional to β g(β), and g falls exponentially in β times the margin.",
    cure="End with a larger temperature: TS S3 (0.01 to 0.05), fixed 0.04 (FLT 4e-2), or a smaller learning rate of ν "
    "(SLRT, a tenth). Moving the clamp lower closes no gap.",
)
def temperature_at_clamp(case: Case) -> Sign:
    """The share of the run that ends at τ_min."""
    tau, there, bound, known = _at_bound(case)
    if not there[-1]:
        return Sign(False, f"τ ends at {tau.last:.3g}, away from {bound:.3g}{known}.", {"last": tau.last})
    if len(tau) == 1:
        return Sign(True, f"τ is {tau.last:.3g}{known}.", {"bound": bound})
    away = np.flatnonzero(~there)
    begin = tau.step[away[-1] + 1] if len(away) else tau.step[0]
    length = max(tau.step[-1] - tau.step[0], 1)
    share = float((tau.step[-1] - begin) / length)
    return Sign(
        share >= SHARE,
        f"τ is {bound:.3g}{known} from step {begin:.0f} to the end, {100 * share:.0f} % of the run.",
        {"bound": bound, "since": float(begin), "share": share},
    )


@register(
    "temperature-at-clamp-early",
    title="a temperature at its clamp from the beginning",
    reason="Weights of CLIP come with β = 100, which is the usual clamp: fine-tuning starts at the bound. There the "
    "temperature can only rise, and where the loss pulls it down it is fixed at the value that keeps the gap open.",
    cure="Start with a larger temperature, let it follow a schedule (TS S3 rises from 0.01 to 0.05), or raise τ_min "
    "above the temperature of the weights.",
)
def temperature_at_clamp_early(case: Case) -> Sign:
    """Whether τ_min is reached in the first tenth of the run and kept."""
    tau, there, bound, known = _at_bound(case)
    if len(tau) < FEWEST:
        raise CannotTell(f"Only {len(tau)} temperatures are recorded.")
    early = tau.step <= tau.step[0] + BEGINNING * (tau.step[-1] - tau.step[0])
    share = float(there.mean())
    found = bool(there[early].any()) and share >= 2 * BEGINNING
    if not there.any():
        return Sign(False, f"τ is never {bound:.3g}{known}.", {"share": 0.0})
    first = float(tau.step[np.argmax(there)])
    return Sign(
        found,
        f"τ is {bound:.3g}{known} first at step {first:.0f}, and in {100 * share:.0f} % of what is recorded.",
        {"bound": bound, "first": first, "share": share},
    )


@register(
    "temperature-not-trained",
    title="a learnable temperature that does not move",
    reason="The gradient of ν is the loss minus the mean entropy of the softmaxes, which is hardly ever 0. A constant "
    "ν gets no steps: it is missing from the optimizer, it does not require a gradient, or each step is rounded away.",
    cure="Check that logit_scale is among the optimizer's parameters, that it requires a gradient and is not detached, "
    "and that it is kept in float32. If it is fixed on purpose, say so with `learned=False`.",
)
def temperature_not_trained(case: Case) -> Sign:
    """Whether ln τ is constant."""
    _learned(case)
    if case.weights is not None:
        return _untouched(case)
    tau = _tau(case, FEWEST)
    change = float(np.ptp(np.log(tau.value)))
    numbers = {"change": change, "temperature": tau.first}
    if change >= STILL:
        return Sign(False, f"ln τ moves over a range of {change:.3g}.", numbers)
    if case.clamp is not None and any(abs(tau.first / bound - 1) < AT_BOUND for bound in case.clamp):
        return Sign(False, f"τ is constant at its clamp, {tau.first:.3g}.", numbers)
    said = f"τ is {tau.first:.5g} at all {len(tau)} recorded steps"
    raw = -math.log(tau.first)
    if (grid := _half(np.array([raw]), 1e-4)) and abs(raw - math.log(1 / 0.07)) > 1e-4:
        spacing = 2.0 ** (math.floor(math.log2(abs(raw))) - (7 if grid == "bfloat16" else 10))
        said += f"; ν = {raw:.6g} is a number of {grid}, whose next one is {spacing:.3g} away"
    return Sign(True, f"{said}.", numbers)


def _untouched(case: Case) -> Sign:
    assert case.weights is not None
    raw = case.weights["raw_temperature"]
    initial = math.log(1 / 0.07)
    found = abs(raw - initial) < 1e-6
    return Sign(
        found,
        f"ν in the checkpoint is {raw:.6g}" + (", its usual initial value ln(1/0.07)." if found else "."),
        {"raw_temperature": raw},
        reason="ν has its initial value to seven digits, so no step of an optimizer has reached it.",
    )


@register(
    "temperature-decayed",
    title="weight decay on the temperature",
    reason="The gradient of ν is the loss minus the mean entropy of the softmaxes. Weight decay adds a pull of ν to 0, "
    "that is of τ to 1, which has nothing to do with the data: ν rests where both pulls cancel.",
    cure="Put logit_scale into a parameter group of its own with weight_decay=0 (`flowsim.torch.TemperatureController` "
    "does).",
)
def temperature_decayed(case: Case) -> Sign:
    """Weight decay in the settings; else ν that falls or rests although the loss pulls it up."""
    _learned(case)
    if case.decayed:
        return Sign(True, "The settings apply weight decay to ν.")
    if case.decayed is False:
        return Sign(False, "The settings apply no weight decay to ν.")
    tau = _tau(case, FEWEST)
    if case.rows is None or not case.of_training:
        return _beyond_adam(case, tau)
    loss, entropy = calibration(*case.rows, tau.last)
    late = tau.since(tau.step[0] + 0.5 * (tau.step[-1] - tau.step[0]))
    rise = -math.log(late.last / late.first)  # of ν
    numbers = {"loss": loss, "entropy": entropy, "rise": rise}
    at = f"At the end the loss of {len(case.rows[0])} training pairs is {loss:.3g} and their entropy {entropy:.3g}"
    if abs(late.value / (1 if case.clamp is None else case.clamp[0]) - 1).min() < AT_BOUND:
        return Sign(False, f"{at}; τ is at its clamp.", numbers)
    went = f"ν {'rose' if rise > 0 else 'fell'} by {abs(rise):.3g} in the second half"
    return Sign(entropy - loss > PULL and rise < 0, f"{at}; {went}.", numbers)


def _beyond_adam(case: Case, tau: Track) -> Sign:
    """Without embeddings: ν that fell farther than steps of Adam reach."""
    if case.rate is None or case.adam is False:
        raise CannotTell("No embeddings of training pairs at the end are known, from which the pull on ν is computed.")
    fell, reach = math.log(tau.last / tau.first), _reach(case, tau)
    if fell <= BEYOND * reach:
        raise CannotTell(
            "No embeddings of training pairs at the end are known, from which the pull on ν is computed; ν alone does "
            "not show weight decay."
        )
    return Sign(
        True,
        f"ν fell by {fell:.3g}, although the learning rates sum to {reach:.3g}.",
        {"fell": fell, "sum_of_rates": reach},
        reason="A step of Adam or AdamW changes ν by about its learning rate at most. Weight decay, which AdamW "
        "applies besides, pulls ν to 0, that is τ to 1.",
    )


def _reach(case: Case, tau: Track) -> float:
    """The sum of the learning rates of ν between the first and the last recorded temperature."""
    assert case.rate is not None
    ratio = 1.0 if case.policy is None else float(getattr(case.policy, "lr_ratio", 1.0))
    return ratio * float(np.interp(np.arange(tau.step[0], tau.step[-1]), case.rate.step, case.rate.value).sum())


@register(
    "wrong-initial-temperature",
    title="a slip in the initial temperature",
    reason="CLIP stores ν = ln(1/0.07) = 2.659 and multiplies logits by exp(ν) = 14.3. Exchanging ν, β and τ starts "
    "the softmaxes far too flat, or so sharp that the loss overflows.",
    cure="Initialise logit_scale with ln(1/0.07), and multiply the cosines by its exponential, once.",
)
def wrong_initial_temperature(case: Case) -> Sign:
    """Whether the first β is that of a known slip."""
    _learned(case)
    if case.weights is not None:
        tau_first = math.exp(-case.weights["raw_temperature"])
    else:
        tau = _tau(case)
        if tau.step[0] > 0.02 * max(case.steps or 0, 50):
            raise CannotTell(f"The first recorded temperature is that of step {tau.step[0]:.0f}.")
        tau_first = tau.first
    for beta, slip in SLIPS.items():
        if abs(tau_first * beta - 1) < SAME:
            return Sign(True, f"The first β is {1 / tau_first:.4g}, as from {slip}.", {"inverse_temperature": beta})
    return Sign(False, f"The first τ is {tau_first:.3g}.", {"temperature": tau_first})


@register(
    "temperature-limited-by-rate",
    title="a temperature that its learning rate holds back",
    reason="A step of Adam or AdamW changes ν by about its learning rate at most, whatever the gradient. So the sum of "
    "the learning rates bounds how far a learned temperature gets, and here it went almost that far: it reflects the "
    "schedule of the learning rate, not the data.",
    cure="Train longer, give ν a larger learning rate, or set the temperature by a schedule instead.",
)
def temperature_limited_by_rate(case: Case) -> Sign:
    """The change of ν, as a share of the sum of its learning rates."""
    _learned(case)
    if case.adam is False:
        raise CannotTell("The optimizer is not Adam, so that the learning rate does not bound a step.")
    tau = _tau(case, FEWEST)
    if case.rate is None:
        raise CannotTell("No learning rate is recorded.")
    begin, end, reach = tau.step[0], tau.step[-1], _reach(case, tau)
    raw = np.log(1 / tau.value)
    if case.policy is not None and hasattr(case.policy, "raw_of"):
        raw = np.asarray(case.policy.raw_of(1 / tau.value), np.float64)  # pyright: ignore
    moved = abs(float(raw[-1] - raw[0]))
    if reach <= 0:
        raise CannotTell("The learning rate is 0.")
    if end - begin < 50:
        raise CannotTell(f"Only {end - begin:.0f} steps are recorded.")
    return Sign(
        LIMITED <= moved / reach <= BEYOND,
        f"ν moved by {moved:.3g}; the learning rates sum to {reach:.3g}.",
        {"moved": moved, "sum_of_rates": reach},
    )


@register(
    "temperature-in-half-precision",
    title="a temperature stored in half precision",
    reason="Neighbouring numbers of bfloat16 near ν = 3 are 0.016 apart, those of float16 0.002. Smaller steps "
    "are lost or rounded up, so the temperature is trained in jumps or not at all.",
    cure="Keep logit_scale in float32, also in models converted to half precision.",
)
def temperature_in_half_precision(case: Case) -> Sign:
    """Whether every ν is a number of bfloat16 or float16."""
    _learned(case)
    if case.weights is not None:
        dtype = case.weights["dtype"]
        return Sign(dtype in ("float16", "bfloat16"), f"ν in the checkpoint is {dtype}.", {"dtype": dtype})
    # The first value may be the initial one, before anything was rounded.
    raw = np.unique(np.round(np.log(1 / _tau(case, FEWEST).value[1:]), 6))
    if len(raw) < FEWEST:
        raise CannotTell(f"Only {len(raw)} different temperatures are recorded.")
    # Logs print five digits: 1e-4 in ν; chance on the grid of bfloat16 is then about 1 % for each value.
    grid = _half(raw, 1e-4)
    if grid is None:
        return Sign(False, f"The {len(raw)} values of ν lie on no grid of half precision.", {"values": len(raw)})
    return Sign(True, f"All {len(raw)} different values of ν are numbers of {grid}.", {"values": len(raw)})


def _half(raw: np.ndarray, tolerance: float) -> str | None:
    """The format whose numbers all values are, to a tolerance; None if there is none."""
    if not np.isfinite(raw).all():
        return None
    import ml_dtypes

    for name, dtype, allowed in (("bfloat16", ml_dtypes.bfloat16, tolerance), ("float16", np.float16, 2e-6)):
        rounded = raw.astype(dtype).astype(np.float64)
        if (np.abs(rounded - raw) <= allowed).all():
            return name
    return None
