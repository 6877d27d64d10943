"""Checks of the loss and of what was learned."""

import math

import numpy as np

from flowsim.doctor.case import STEP, Case, Track
from flowsim.doctor.finding import CannotTell, Sign, register, too_few

#: Share of ln n from which a loss counts as chance; its fall in the second half, as a share of ln n, that counts as
#: learning; and steps that are too few to tell.
CHANCE, FALLING, FEW = 0.95, 0.02, 200
#: Relative distance of a constant loss from a fraction of chance that counts as this fraction.
SAME = 0.01
#: A loss above chance by this factor may be at the chance of a larger batch; a multiple of n to this accuracy is one.
ABOVE, MULTIPLE = 1.02, 0.05
#: Rise of the held-out loss from its best value that counts, relative and in nats.
RISE, NATS = 0.1, 0.1
#: Fall of recall from its best value that counts as overfitting, relative and in standard errors of independent
#: samples, which is more than the noise between evaluations of the same pairs; evaluations that must follow the best.
FALL, NOISE, AFTER = 0.1, 1.25, 2
#: Fall that counts where the number of pairs is not known, in typical differences of neighbouring evaluations.
NEIGHBOURS = 4.0
#: A jump of the loss, in nats above the median of the steps before; steps of this median, and of the one from the jump
#: on, which must be as high: the loss of a single batch may be, for example of swapped features.
JUMP, WINDOW, STAYS = 1.0, 20, 5

CHECK_PAIRS = (
    "Check first that row i of the images and row i of the texts belong together, after every shuffle and gather. Then "
    "lower the learning rate, and let it warm up."
)


@register(
    "not-finite",
    title="a loss that is not finite",
    reason="From such a step on every weight is NaN. Steps that are too large cause it, or logits β⟨x, y⟩ in half "
    "precision, whose rounding grows with β.",
    cure="Go back to a checkpoint before this step. Lower the learning rate or lengthen the warm-up, clip gradients at "
    "norm 1, and compute logits and loss in float32.",
)
def not_finite(case: Case) -> Sign:
    """The first step whose loss is NaN or infinite."""
    if case.weights is not None:
        bad = case.weights["not_finite"]
        return Sign(bool(bad), f"{len(bad)} of the checkpoint's tensors hold NaN or infinity.", {"tensors": len(bad)})
    if case.loss is None and case.broken is None:
        raise CannotTell("No training loss is recorded.")
    if case.broken is None and case.held_out_broken is not None:
        at = case.held_out_broken
        return Sign(
            True, f"The held-out loss is not finite from {case.unit} {at} on; the training loss is.", {"step": at}
        )
    if case.broken is None and case.lost is not None:
        count, first = case.lost
        some = "1 recorded loss is" if count == 1 else f"{count} recorded losses are"
        at = "at" if count == 1 else "the first at"
        return Sign(
            False, f"{some} not finite, {at} {case.unit} {first}, but later ones are.", {"count": count, "first": first}
        )
    if case.broken is None:
        return Sign(False, "Every recorded loss is finite.")
    before, last = "", None if case.loss is None else case.loss.last
    if case.loss is not None and case.loss.step[-1] >= case.broken:
        return Sign(
            True,
            f"Features are not finite from {case.unit} {case.broken} on, although the loss is {last:.3g} at the end.",
            {"step": case.broken},
        )
    if case.loss is not None:
        before = f"; the last finite loss is {case.loss.last:.3g}"
        tau = case.temperature
        if tau is not None and tau.step[0] <= case.loss.step[-1]:
            before += f", at τ = {tau.value[tau.step <= case.loss.step[-1]][-1]:.3g}"
    return Sign(True, f"The loss is not finite from {case.unit} {case.broken} on{before}.", {"step": case.broken})


@register(
    "nothing-learned",
    title="a loss that stays at chance",
    reason="ln n is the loss of n pairs whose similarities say nothing about which belong together. The gradient of ν "
    "is the loss minus the mean entropy of the softmaxes, and an entropy is at most ln n: so a learned temperature "
    "rises while the loss is above ln n, which flattens the softmaxes and slows learning further.",
    cure=CHECK_PAIRS,
)
def nothing_learned(case: Case) -> Sign:
    """Whether the loss is at chance, ln n, or above it at the end, and does not fall any more."""
    if case.loss is None:
        raise CannotTell("No training loss is recorded.")
    if case.broken is not None:
        raise CannotTell("The loss is not finite at the end.")
    if case.batch is None:
        raise CannotTell("The batch size is not recorded, which chance depends on. Give it as `batch`.")
    track, end = case.loss, float(np.mean(_end(case.loss).value))
    chance = math.log(case.batch)
    numbers = {"loss": end, "chance": chance}
    said = f"The loss at the end is {end:.3g}, where chance is ln {case.batch} = {chance:.3g}"
    if end < CHANCE * chance:
        return _below_chance(case, end, chance, said, numbers)
    if case.unit == STEP and track.step[-1] < FEW:
        raise CannotTell(f"{said}, but the log ends after {track.step[-1]:.0f} steps, which are too few to tell.")
    half = track.since(track.step[0] + 0.5 * (track.step[-1] - track.step[0]))
    tenth = max(1, len(half) // 5)
    fall = float(np.mean(half.value[:tenth])) - end
    numbers["fall"] = fall
    if fall > FALLING * chance:
        return Sign(False, f"{said}; it still falls, by {fall:.3g} in the second half.", numbers)
    rate = case.rate
    if rate is not None and rate.last > 1.05 * rate.first and rate.last >= 0.95 * rate.value.max():
        raise CannotTell(f"{said}, but the learning rate still rises at the end, to {rate.last:.3g}.")
    tau, cure = case.temperature, ""
    if tau is not None and case.learned is not False:
        numbers |= {"first_temperature": tau.first, "last_temperature": tau.last}
        if tau.last > 1.05 * tau.first:
            said += f"; τ rose from {tau.first:.3g} to {tau.last:.3g}"
    times = math.exp(min(end, 50.0)) / case.batch
    if end > ABOVE * chance and round(times) >= 2 and abs(times / round(times) - 1) < MULTIPLE:
        said += f"; {end:.4g} is the chance of {round(times)} × {case.batch} pairs"
        cure = (
            "If the features of several processes are gathered for the loss, give the number of all pairs as `batch`. "
            + CHECK_PAIRS
        )
    return Sign(True, f"{said}.", numbers, cure=cure)


def _below_chance(case: Case, end: float, chance: float, said: str, numbers: dict[str, float]) -> Sign:
    """Not at chance; unless the loss is constant at a fraction of it, as where it is divided for accumulation."""
    assert case.loss is not None
    parts = round(chance / end) if end > 0 else 0
    constant = np.std(case.loss.value) < FALLING * end and len(case.loss) >= FEW // 10
    if parts < 2 or parts & (parts - 1) or abs(parts * end / chance - 1) > SAME or not constant:
        return Sign(False, f"{said}.", numbers)
    return Sign(
        True,
        f"The loss is {end:.3g} from the beginning to the end: chance, which is ln {case.batch} = {chance:.3g}, "
        f"divided by {parts}, as for {parts} micro-batches.",
        numbers,
    )


@register(
    "overfitting",
    title="held-out retrieval that falls",
    reason="Training pairs become matched while held-out pairs move apart. A learned temperature follows the training "
    "pairs, so it falls too low for held-out pairs, whose loss then rises faster than their retrieval falls.",
    cure="Stop at the best evaluation, use more data or stronger augmentation, or keep the temperature from falling: "
    "fixed, or rising (TS S3).",
)
def overfitting(case: Case) -> Sign:
    """The fall of held-out recall from its best value."""
    if case.recall is None:
        raise CannotTell("No retrieval of held-out pairs is recorded.")
    too_few(len(case.recall), "evaluations", AFTER + 1)
    best = int(np.argmax(case.recall.value))
    top, last = float(case.recall.value[best]), case.recall.last
    fell = (top - last) / top if top > 0 else 0.0
    late = len(case.recall) - 1 - best >= AFTER
    if case.pool is None:
        # Without the number of pairs the noise is that of neighbouring evaluations; it does not say that nothing fell.
        steps = np.diff(case.recall.value)
        noise = NEIGHBOURS * float(np.median(np.abs(steps))) if len(steps) > STAYS else math.inf
        found = fell > FALL and top - last > noise and late
        if fell > FALL and late and not found:
            raise CannotTell(
                f"Held-out recall falls from {top:.3g} to {last:.3g}. Whether that is noise depends on the number of "
                "held-out pairs, which is not recorded. Give it as `pool`."
            )
    else:
        # Two recalls of p with N queries in each direction differ by chance by about √(p(1−p)/N).
        noise = math.sqrt(top * (1 - top) / case.pool)
        found = fell > FALL and top - last > NOISE * noise and late
    at = f"{top:.3g} at {case.unit} {case.recall.step[best]:.0f}"
    kind = "mean recall" if case.recall_at is None else f"recall at {case.recall_at}"
    return Sign(
        found,
        f"Held-out {kind} is at best {at}, and {last:.3g} at the end.",
        {"best": top, "last": last, "step": float(case.recall.step[best])},
    )


@register(
    "held-out-loss-rises",
    title="a held-out loss that rises",
    reason="Held-out pairs are aligned less well than training pairs, so a temperature that suits the latter is too "
    "low for them: each wrong partner costs β times its lead. Then their loss can rise although their retrieval does "
    "not fall.",
    cure="Judge by held-out retrieval, and log it. For probabilities of held-out pairs, fit the temperature on such "
    "pairs after training, or train with a larger one: fixed at 0.1 (FLT 1e-1), or rising (TS S3).",
    fault=False,
)
def held_out_loss_rises(case: Case) -> Sign:
    """The rise of the held-out loss from its best value."""
    track = case.held_out_loss
    if track is None:
        raise CannotTell("No loss of held-out pairs is recorded.")
    if case.held_out_broken is not None:
        raise CannotTell("The held-out loss is not finite at the end.")
    too_few(len(track), "evaluations", AFTER + 1)
    best = int(np.argmin(track.value))
    lowest, last = float(track.value[best]), track.last
    found = last - lowest > max(RISE * lowest, NATS) and len(track) - 1 - best >= AFTER
    return Sign(
        found,
        f"The held-out loss is at best {lowest:.3g} at {case.unit} {track.step[best]:.0f}, and {last:.3g} at the end.",
        {"best": lowest, "last": last, "step": float(track.step[best])},
    )


@register(
    "loss-jumps",
    title="jumps of the training loss",
    reason="A step beyond 2/λ, with λ the largest eigenvalue of the loss's curvature, raises the loss instead of "
    "lowering it. The curvature grows with β², so that jumps come when the temperature has fallen. They open the gap.",
    cure="Lower the learning rate or lengthen the warm-up, clip gradients at norm 1, or bound β with a larger τ_min.",
)
def loss_jumps(case: Case) -> Sign:
    """Steps from which on the loss is far above that of the steps before."""
    track = case.loss
    if track is None:
        raise CannotTell("No training loss is recorded.")
    too_few(len(track), "training losses", WINDOW + 2 * STAYS)
    windows = np.lib.stride_tricks.sliding_window_view
    before, after = windows(track.value[:-STAYS], WINDOW), windows(track.value[WINDOW:], STAYS)
    middle = np.median(before, axis=1)
    spread = np.median(np.abs(before - middle[:, None]), axis=1)
    excess = np.minimum(track.value[WINDOW : len(track) - STAYS + 1], np.median(after, axis=1)) - middle
    jumped = np.flatnonzero(excess > np.maximum(JUMP, 10 * spread))
    if not len(jumped):
        return Sign(False, f"The training loss never rises by {JUMP:g} nat and stays there.", {"jumps": 0})
    # One jump is found at several places in a row: it begins with the first of these.
    runs = np.split(jumped, np.flatnonzero(np.diff(jumped) > STAYS) + 1)
    worst = max(runs, key=lambda run: excess[run].max())[0]
    step, first = int(track.step[WINDOW + worst]), int(track.step[WINDOW + runs[0][0]])
    many = f" It jumps {len(runs)} times, first at {case.unit} {first}; this is the largest." if len(runs) > 1 else ""
    return Sign(
        True,
        f"At {case.unit} {step} the training loss rises from {middle[worst]:.3g}, the median of {WINDOW} values, to "
        f"{np.median(after[worst]):.3g}, that of the next {STAYS}.{many}",
        {"jumps": len(runs), "step": step, "height": float(excess[worst])},
    )


def _end(track: Track) -> Track:
    """The last tenth of a run."""
    return track.since(track.step[0] + 0.9 * (track.step[-1] - track.step[0]))
