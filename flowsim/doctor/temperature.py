"""Checks of the temperature. ν is the raw parameter; β = exp(ν) = 1/τ as in CLIP, unless a policy says otherwise."""

import math
from typing import Any

import numpy as np

from flowsim.doctor.case import STEP, Case, Track
from flowsim.doctor.entropy import calibration
from flowsim.doctor.finding import CannotTell, Sign, register, too_few
from flowsim.logs.clock import sums_of_rates

#: A temperature within this relative distance of a bound is at it; logs with four digits of ν = ln 100 are within.
AT_BOUND = 5e-4
#: Share of recorded temperatures at the bound from which on it counts as kept; share of a run for which it must be; and
#: the part of the run that is its beginning.
KEPT, SHARE, BEGINNING = 0.9, 0.05, 0.1
#: Temperatures below this multiple of the clamp are not clamped.
BELOW = 0.995
#: ν beyond which a checkpoint must hold something else, up to which it may be β: τ = e⁻⁷ = 0.0009, and β = 100.
LARGEST, LARGEST_BETA = 7.0, 100.5
#: A learned ln τ that changes by less has not been trained; rounding of float32 and of logs with five digits is below.
STILL = 2e-5
#: Fewest logged temperatures that say something about how it moves.
FEWEST = 5
#: Share of the sum of learning rates from which a change of ν counts as limited by it; and beyond which Adam alone
#: cannot have made it.
LIMITED, BEYOND = 0.9, 1.2
#: Difference of entropy and loss that counts as a pull on ν, in nats and in standard errors; a fall of ν that counts.
PULL, ERRORS, FALL = 0.05, 3.0, 0.01
#: Accuracy of ν in logs, which print five digits of β.
PRINTED = 1e-4

#: First β that slips of the usual initialisation ν = ln(1/0.07) give -> the slip.
SLIPS = {
    math.e: "ν = 1: `torch.ones([])` without the factor ln(1/0.07)",
    math.log(1 / 0.07): "β = ln(1/0.07): the logits are multiplied by ν, without exp",
    math.log(100): "β = ln 100: the logits are multiplied by ν, without exp",
    math.exp(0.07): "ν = 0.07: the temperature is stored where the logarithm of its inverse belongs",
    1.0: "ν = 0: logits without a temperature, or `torch.zeros([])` for ν",
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
    too_few(len(case.temperature), "temperatures", least)
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
    known = "" if case.clamp_known else " (the usual clamp)"
    return tau, np.abs(tau.value / bound - 1) < AT_BOUND, bound, known


def _kept_from(there: np.ndarray) -> int | None:
    """The first row at the bound from which on, to the end, at least the share `KEPT` of rows is at it."""
    later = np.cumsum(there[::-1])[::-1] / np.arange(len(there), 0, -1)
    kept = np.flatnonzero(there & (later >= KEPT))
    return int(kept[0]) if len(kept) else None


@register(
    "temperature-at-clamp",
    title="a temperature that ends at its clamp",
    reason="A learned temperature stays at the clamp while the loss pulls τ further down, so the clamp decides its "
    "value. Training of CLIP usually ends so. It keeps the gap: the force that closes it is proportional to β g(β), "
    "and g falls exponentially in β times the margin.",
    cure="Nothing, if the gap does not matter to you. Else end with a larger temperature: TS S3 (0.01 to 0.05), fixed "
    "0.04 (FLT 4e-2), or a smaller learning rate of ν (SLRT, a tenth). A lower clamp closes no gap.",
    fault=False,
)
def temperature_at_clamp(case: Case) -> Sign:
    """The share of the run that ends at τ_min."""
    tau, there, bound, known = _at_bound(case)
    if len(tau) == 1:
        if not there[0]:
            return Sign(False, f"τ is {tau.last:.3g}, away from {bound:.3g}{known}.", {"last": tau.last})
        return Sign(
            True,
            f"τ is {tau.last:.3g}{known}.",
            {"bound": bound},
            reason="So low a temperature keeps the gap: the force that closes it is proportional to β g(β), and g "
            "falls exponentially in β times the margin.",
        )
    kept = _kept_from(there)
    if kept is None:
        return Sign(False, f"τ ends at {tau.last:.3g}, away from {bound:.3g}{known}.", {"last": tau.last})
    begin = float(tau.step[kept])
    share = float((tau.step[-1] - begin) / max(tau.step[-1] - tau.step[0], 1))
    early = share >= 1 - BEGINNING
    return Sign(
        share >= SHARE,
        f"τ is {bound:.3g}{known} from {case.unit} {begin:.0f} to the end, {100 * share:.0f} % of the run.",
        {"bound": bound, "since": begin, "share": share},
        cure="See `temperature-at-clamp-early`." if early else "",
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
    too_few(len(tau), "temperatures", FEWEST)
    if not there.any():
        return Sign(False, f"τ is never {bound:.3g}{known}.", {"share": 0.0})
    early = tau.step <= tau.step[0] + BEGINNING * (tau.step[-1] - tau.step[0])
    share, first = float(there.mean()), float(tau.step[np.argmax(there)])
    numbers = {"bound": bound, "first": first, "share": share}
    at = f"τ is {bound:.3g}{known} first at {case.unit} {first:.0f}"
    if not there[early].any():
        return Sign(False, f"{at}, after the first tenth.", numbers)
    if share < 2 * BEGINNING:
        return Sign(False, f"{at}, but does not stay there: it ends at {tau.last:.3g}.", numbers)
    return Sign(True, f"{at}, and at {100 * share:.0f} % of the recorded {case.unit}s.", numbers)


@register(
    "temperature-below-clamp",
    title="a temperature below its clamp",
    reason="The authors of CLIP found the bound β ≤ 100 necessary for stable training. Without it nothing stops ν: "
    "once all pairs are matched, a larger β always lowers the loss. Then a few hard pairs decide the gradient, "
    "bfloat16 rounds logits beyond 128 to whole numbers, and the gap hardly closes any more.",
    cure="Clamp ν after every step, as open_clip does: logit_scale.clamp_(0, ln 100). Hugging Face's CLIPModel does "
    "not; `flowsim.torch.TemperatureController` does. If another clamp is meant, give it as `clamp`.",
)
def temperature_below_clamp(case: Case) -> Sign:
    """Whether τ ends below τ_min."""
    _learned(case)
    tau = _tau(case)
    if case.clamp is None:
        raise CannotTell("The temperature has no clamp.")
    bound = case.clamp[0]
    if _is_beta(case):
        raise CannotTell("The checkpoint holds β instead of ν, see `wrong-initial-temperature`.")
    known = "its clamp" if case.clamp_known else "the usual clamp"
    said = f"τ {'is' if len(tau) == 1 else 'ends at'} {tau.last:.3g}, that is β = {1 / tau.last:.4g}"
    numbers = {"last": tau.last, "bound": bound}
    if tau.last >= BELOW * bound:
        return Sign(False, f"{said}; {known} is {bound:.3g}.", numbers)
    return Sign(True, f"{said}, below {known}, {bound:.3g}.", numbers)


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
    if case.clamp is not None and abs(tau.first / case.clamp[0] - 1) < AT_BOUND:
        return Sign(False, f"τ is constant at its clamp, {tau.first:.3g}.", numbers)
    said = f"τ is {tau.first:.5g} at all {len(tau)} recorded steps"
    raw = -math.log(tau.first)
    if abs(raw) > 0.1 and abs(raw - math.log(1 / 0.07)) > 1e-4 and (grid := _half(np.array([raw]))):
        said += f"; ν = {raw:.6g} is a number of {grid}, whose next one is {_spacing(grid, raw):.3g} away"
    return Sign(True, f"{said}.", numbers)


def _untouched(case: Case) -> Sign:
    assert case.weights is not None
    raw = case.weights["raw_temperature"]
    if raw is None:
        raise CannotTell("The checkpoint holds no temperature.")
    if abs(raw - math.log(1 / 0.07)) >= 1e-6:
        raise CannotTell(f"ν in the checkpoint is {raw:.6g}; whether it moved, only a log or another checkpoint shows.")
    return Sign(
        True,
        f"ν in the checkpoint is {raw:.6g}, its usual initial value ln(1/0.07).",
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
    """Weight decay in the settings; else ν that falls although the loss pulls it up."""
    _learned(case)
    if case.decayed:
        return Sign(True, "The settings apply weight decay to ν.")
    if case.decayed is False:
        return Sign(False, "The settings apply no weight decay to ν.")
    tau = _tau(case, FEWEST)
    if case.rows is None or case.batch is None or not case.of_training:
        return _beyond_adam(case, tau)
    # In larger pools the entropy exceeds the loss also where ν rests, so these are the pools that training has.
    blocks = _batches(*case.rows, case.batch)
    found = np.array([calibration(*block, tau.last) for block in blocks])
    loss, entropy = (float(x) for x in found[:, :2].mean(axis=0))
    error = float(np.sqrt(np.sum(found[:, 2] ** 2)) / len(found))
    late = tau.since(tau.step[0] + 0.5 * (tau.step[-1] - tau.step[0]))
    rise = -math.log(late.last / late.first)  # of ν
    numbers = {"loss": loss, "entropy": entropy, "rise": rise}
    at = f"At the end the loss of {len(blocks[0][0])} training pairs is {loss:.3g} and their entropy {entropy:.3g}"
    if case.clamp is not None and np.abs(late.value / case.clamp[0] - 1).min() < AT_BOUND:
        return Sign(False, f"{at}; τ is at its clamp.", numbers)
    went = f"ν {'rose' if rise > 0 else 'fell'} by {abs(rise):.3g} in the second half"
    return Sign(entropy - loss > max(PULL, ERRORS * error) and rise < -FALL, f"{at}; {went}.", numbers)


def _batches(image: np.ndarray, text: np.ndarray, batch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """The pairs in blocks of a batch; all in one if they are fewer."""
    batch = min(batch, len(image))
    starts = range(0, len(image) - batch + 1, batch)
    return [(image[start : start + batch], text[start : start + batch]) for start in starts]


def _beyond_adam(case: Case, tau: Track) -> Sign:
    """Without embeddings: ν that fell farther than steps of Adam reach."""
    needed = "Embeddings of training pairs at the end and the batch size are needed, from which the pull on ν follows"
    if not case.adam:
        if case.adam is False:
            raise CannotTell(f"{needed}.")
        raise CannotTell(f"{needed}; or the optimizer, as steps of Adam bound the fall of ν. Give it as `optimizer`.")
    if case.rate is None or case.unit != STEP:
        missing = "no learning rate is recorded" if case.rate is None else f"the log counts {case.unit}s"
        raise CannotTell(f"{needed}. The steps of Adam tell nothing here, as {missing}.")
    fell, reach = math.log(tau.last / tau.first), _reach(case, tau)
    if fell <= BEYOND * reach:
        way = f"fell by {fell:.3g}" if fell > 0 else f"rose by {-fell:.3g}"
        raise CannotTell(
            f"{needed}. ν {way}, which steps of Adam alone can reach: the learning rates sum to {reach:.3g}."
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
    before = sums_of_rates(case.rate.step, case.rate.value, tau.step[[0, -1]])
    return ratio * float(before[1] - before[0])


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
    tau, which = _tau(case), "The first" if case.weights is None else "The checkpoint's"
    if case.weights is None and case.steps is None:
        raise CannotTell("Only the temperature at the end is known.")
    if tau.step[0] > 0.02 * max(case.steps or 0, 50):
        raise CannotTell(f"The first recorded temperature is that of {case.unit} {tau.step[0]:.0f}.")
    if _is_beta(case):
        assert case.weights is not None
        raw = case.weights["raw_temperature"]
        return Sign(
            True,
            f"The checkpoint's ν is {raw:.4g}, that is β = {1 / tau.first:.3g}; as β it would be τ = {1 / raw:.3g}.",
            {"raw_temperature": raw},
            reason="No training ends at so large a β. β seems to be stored where ν = ln β belongs: CLIP multiplies "
            "logits by exp(ν).",
            cure="Store the logarithm, and multiply the cosines by its exponential, once.",
        )
    for beta, slip in SLIPS.items():
        if abs(tau.first * beta - 1) < SAME:
            return Sign(True, f"{which} β is {1 / tau.first:.4g}, as from {slip}.", {"inverse_temperature": beta})
    return Sign(False, f"{which} τ is {tau.first:.3g}.", {"temperature": tau.first})


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
    if not case.adam:
        unknown = "The optimizer is not recorded. Give it as `optimizer`."
        raise CannotTell(unknown if case.adam is None else "Only Adam's steps are bounded by the learning rate.")
    if case.unit != STEP:
        raise CannotTell(f"The log counts {case.unit}s, not optimizer steps.")
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
    too_few(int(end - begin), "steps", 50)
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
        if dtype is None:
            raise CannotTell("The checkpoint holds no temperature.")
        if dtype in ("float16", "bfloat16") and case.weights["all_half"]:
            raise CannotTell(f"All weights are {dtype}, as in an export; how ν was trained does not show.")
        return Sign(dtype in ("float16", "bfloat16"), f"ν in the checkpoint is {dtype}.", {"dtype": dtype})
    # The first value may be the initial one, before anything was rounded.
    raw = np.unique(np.round(np.log(1 / _tau(case, FEWEST).value[1:]), 6))
    raw = raw[_spacing("bfloat16", raw) >= 20 * PRINTED]
    too_few(len(raw), "different values of ν away from 0", FEWEST)
    grid = _half(raw)
    if grid is None:
        return Sign(False, f"The {len(raw)} values of ν lie on no grid of half precision.", {"values": len(raw)})
    return Sign(True, f"All {len(raw)} different values of ν are numbers of {grid}.", {"values": len(raw)})


def _is_beta(case: Case) -> bool:
    """Whether a checkpoint holds β where ν belongs."""
    raw = None if case.weights is None else case.weights["raw_temperature"]
    return raw is not None and LARGEST < raw <= LARGEST_BETA


def _half(raw: np.ndarray) -> str | None:
    """The format whose numbers all values are, to the digits of a log; None if there is none."""
    import ml_dtypes

    for name, dtype in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        off = np.abs(raw.astype(dtype).astype(np.float64) - raw)
        # On a grid by chance is 2 tolerance/spacing: at most 10 % for each value.
        if (off <= np.minimum(PRINTED, _spacing(name, raw) / 20)).all():
            return name
    return None


def _spacing(grid: str, raw: Any) -> Any:
    """Distance of neighbouring numbers of a format near given ones."""
    smallest = np.maximum(np.abs(raw), 1e-4)
    return 2.0 ** (np.floor(np.log2(smallest)) - (7 if grid == "bfloat16" else 10))
