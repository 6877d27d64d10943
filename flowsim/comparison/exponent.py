"""The power of the inverse temperature that the gap follows, compared with parallel cones and the free sphere."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes

from flowsim import theory
from flowsim.comparison.drawing import RUN, dots, plain_ticks, signed
from flowsim.comparison.item import CannotTell, Finding, Panel, Verdict, register
from flowsim.comparison.limits import LINE_POINTS
from flowsim.comparison.record import Run
from flowsim.comparison.statistics import BEND, BEND_LEVEL, Line, Slope, fit_slope, fit_tested_line
from flowsim.comparison.words import between, percent, short
from flowsim.model.temperature import AbstractTemperature
from flowsim.plot import COLOURS, label

#: Factor by which β must change.
_BETA_FACTOR = 1.5
#: Fraction of evaluations that must have a gap and a temperature, because a law is about the whole run.
_WHOLE = 0.9
#: Relative deviation from a law's exponent up to which a fit agrees.
_SAME_POWER = 0.2

CRITERION = (
    f"a law agrees if the whole interval of the fitted exponent is within {100 * _SAME_POWER:.0f} % of the law's and "
    f"the fit has no bend (a parabola departs by more than {100 * BEND:.0f} % of the range, significant at "
    f"{100 * BEND_LEVEL:.0f} %), and disagrees if the whole interval is further away than that; the sphere's law only "
    "where each loss was of all pairs; the item agrees if one law does, and disagrees if both do; no verdict unless β "
    f"changes by a factor of {_BETA_FACTOR:g}, at least {LINE_POINTS} evaluations differ in it, at least "
    f"{100 * _WHOLE:.0f} % of all have a gap and a temperature, and none is at a bound of the clamp"
)

LawName = Literal["parallel", "sphere"]


@dataclasses.dataclass(frozen=True)
class Law:
    """The exponent of a law, and the fit to compare with."""

    prediction: float
    fit: Slope
    line: Line
    #: Whether the law applies to this run.
    judged: bool = True

    @property
    def verdict(self) -> Verdict:
        """The verdict, by the interval of the fit."""
        if not self.judged:
            return "cannot tell"
        low, high = sorted((self.prediction * (1 - _SAME_POWER), self.prediction * (1 + _SAME_POWER)))
        ends = self.fit.interval
        if ends[1] < low or ends[0] > high:
            return "disagrees"
        return "agrees" if self.line.straight and low <= ends[0] and ends[1] <= high else "cannot tell"

    @property
    def words(self) -> str:
        """The verdict as part of a sentence."""
        return {"agrees": "met", "disagrees": "not met", "cannot tell": "undecided"}[self.verdict]

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return {
            "prediction": self.prediction,
            "fit": self.fit.slope,
            "interval": self.fit.interval,
            "r2": self.fit.r2,
            "bend": self.line.bend,
            "bend_p": self.line.p,
            "verdict": self.verdict,
        }


@dataclasses.dataclass(frozen=True)
class Curves:
    """Gap over `x` = F(β)/s² (ln β if `exponential`), (T,) each, its fit, and the exponents of the laws."""

    x: np.ndarray
    gap: np.ndarray
    fit: np.ndarray
    exponential: bool
    exponent: float
    laws: dict[LawName, float]
    pairs: int | None


@dataclasses.dataclass(frozen=True)
class Selected:
    """Evaluations at different temperatures, (T,) each, and the range of ln β."""

    log_gamma: np.ndarray
    beta: np.ndarray
    span: float


@dataclasses.dataclass(frozen=True)
class Measured:
    """The fitted power of the gap and the laws; `x` is F(β)/s² and `y` is ln γ, (T,) each."""

    run: Run
    policy: AbstractTemperature
    span: float
    x: np.ndarray
    y: np.ndarray
    fit: Slope
    laws: dict[LawName, Law]

    @property
    def exponential(self) -> bool:
        """Whether x is ln β."""
        return _potential(self.policy) == "exp"

    def numbers(self) -> dict[str, Any]:
        """Numbers of the item."""
        return {
            "exponent": self.fit.slope,
            "interval": self.fit.interval,
            "r2": self.fit.r2,
            "against": "ln β" if self.exponential else "F(β)",
            "log_beta_range": self.span,
            "evaluations": len(self.x),
            "pairs": self.run.pairs,
            "scale": _scale(self.policy),
            "lr_ratio": float(self.policy.lr_ratio),
            "fit": "ordinary least squares of the logarithm of the gap",
            "laws": {name: law.numbers() for name, law in self.laws.items()},
        }

    def sentence(self) -> str:
        """The finding in words."""
        parallel, minibatches = self.laws["parallel"], self.run.minibatches
        said = (
            f"The gap goes as the power {short(self.fit.slope)} ({between(self.fit.interval)}) of "
            f"{'β' if self.exponential else 'exp F(β)'}; parallel cones want {short(parallel.prediction)} "
            f"({parallel.words}: their conserved quantity has {short(parallel.fit.slope)})"
        )
        if "sphere" in self.laws:
            sphere = self.laws["sphere"]
            said += (
                f", the free sphere with n = {self.run.pairs} and doubly stochastic softmaxes "
                f"{short(sphere.prediction)} ({sphere.words}{': ' + minibatches if minibatches else ''})"
            )
        return said + "."

    def curves(self) -> Curves:
        """Data of the panel."""
        return Curves(
            self.x,
            2 * np.exp(self.y),
            2 * np.exp(self.fit.intercept + self.fit.slope * self.x),
            self.exponential,
            self.fit.slope,
            {name: law.prediction for name, law in self.laws.items()},
            self.run.pairs,
        )


def measure(run: Run) -> Measured:
    """Fit the power of the gap, and of the conserved quantity of parallel cones; raises `CannotTell`."""
    policy = _policy(run)
    selected = _selected(run, policy)
    scale, ratio, name = _scale(policy), float(policy.lr_ratio), _potential(policy)
    # ln β for exponential parametrizations; for others F(β), which replaces it in both laws.
    x = np.asarray(theory.potential(selected.beta, name, scale)) / scale**2
    y = selected.log_gamma
    with np.errstate(under="ignore"):
        conserved = y - np.exp(2 * y) / 2
    fit, corrected = fit_slope(x, y), fit_slope(x, conserved)
    lines = [fit_tested_line(x, v) for v in (y, conserved)]
    laws: dict[LawName, Law] = {"parallel": Law(float(theory.closing_exponent(scale, ratio)), corrected, lines[1])}
    if run.pairs is not None:
        power = float(theory.sphere_exponent(run.pairs, scale, ratio))
        laws["sphere"] = Law(power, fit, lines[0], judged=not run.minibatches)
    return Measured(run, policy, selected.span, x, y, fit, laws)


def judge(found: Measured) -> Verdict:
    """The verdict, by those of the laws."""
    verdicts = [law.verdict for law in found.laws.values()]
    return "agrees" if "agrees" in verdicts else "disagrees" if verdicts == ["disagrees"] * 2 else "cannot tell"


def draw(curves: Curves, ax: Axes) -> None:
    """Draw the gap over the temperature, its fit, and the slopes of the laws."""
    x, gap = curves.x, curves.gap
    at = np.exp(x) if curves.exponential else x
    order = np.argsort(at)
    if curves.exponential:
        ax.set_xscale("log")
    dots(at, gap, ax)
    ax.plot(at[order], curves.fit[order], color=RUN, lw=1, label=f"fit: {signed(curves.exponent)}")
    # The laws predict a slope, not a level, so they are drawn through the middle of the run.
    centre, level = float(np.mean(x)), float(np.mean(np.log(gap)))
    low, high = np.log(gap.min()), np.log(gap.max())
    margin = 0.25 * max(high - low, 0.2)
    names = {"parallel": "parallel cones", "sphere": f"sphere, $n = {curves.pairs}$"}
    styles = {"parallel": (COLOURS["black"], (0, (4, 2))), "sphere": (COLOURS["green"], (0, (1, 1)))}
    for name, power in curves.laws.items():
        colour, style = styles[name]
        line = np.exp(level + power * (np.linspace(x.min(), x.max(), 200) - centre))
        along = np.linspace(x.min(), x.max(), 200)
        along = np.exp(along) if curves.exponential else along
        ax.plot(along, line, color=colour, ls=style, lw=1, label=f"{names[name]}: {signed(power)}", zorder=2.5)
    ax.set_yscale("log")
    ax.set_ylim(np.exp(low - margin), np.exp(high + margin))
    for axis in (ax.xaxis, ax.yaxis) if curves.exponential else (ax.yaxis,):
        plain_ticks(axis)
    ax.set_xlabel(label("inverse_temperature") if curves.exponential else r"potential $F(\beta)$")
    ax.set_ylabel(label("modality_gap"))
    ax.legend(loc="best")


@register("exponent", title="Gap and temperature", criterion=CRITERION, panels=(Panel(draw),))
def exponent(runs: Sequence[Run]) -> Finding[Curves]:
    """The power of β that the gap of the first run follows."""
    found = measure(runs[0])
    return Finding(judge(found), found.sentence(), found.numbers(), found.curves())


def _policy(run: Run) -> AbstractTemperature:
    """The policy of a learned temperature; raises `CannotTell` for other policies."""
    temperature = run.known_schedule().temperature
    policy = run.learnable
    if policy is None:
        kind = type(temperature).__name__
        raise CannotTell(
            f"No law is known for the learned temperature of {kind}."
            if temperature.learnable
            else f"The temperature was not learned ({kind}): no law relates it to the gap."
        )
    if run.beta is None:
        raise CannotTell("The run does not record its temperature.")
    if float(policy.lr_ratio) <= 0:
        raise CannotTell("The temperature had a learning rate of 0.")
    return policy


def _scale(policy: AbstractTemperature) -> float:
    """s of β = exp(ν/s); 1 for other parametrizations."""
    assert policy.parametrization is not None, "checked by `Run.learnable`"
    return float(policy.parametrization.scale)


def _potential(policy: AbstractTemperature) -> str:
    """The name of the potential F(β) of the policy's parametrization."""
    assert policy.parametrization is not None and policy.parametrization.potential is not None
    return policy.parametrization.potential


def _selected(run: Run, policy: AbstractTemperature) -> Selected:
    """The evaluations to fit; raises `CannotTell` if they cannot test a law."""
    beta, log_gamma = run.beta, run.series("log_gamma")
    assert beta is not None
    if log_gamma is None:
        with np.errstate(divide="ignore", invalid="ignore"):
            log_gamma = np.log(run.gap / 2)
    good = np.isfinite(log_gamma) & np.isfinite(beta) & (beta > 0)
    if good.mean() < _WHOLE:
        raise CannotTell(
            f"Only {int(good.sum())} of {len(good)} evaluations have a gap and a temperature; {percent(_WHOLE)} are "
            "needed.",
        )
    if stopped := _at_a_bound(run, policy):
        raise CannotTell(f"The clamp held the temperature in {stopped}, so that a free temperature is not observed.")
    log_beta = np.log(beta[good])
    span = float(np.ptp(log_beta))
    if span < math.log(_BETA_FACTOR):
        raise CannotTell(
            f"The temperature hardly moved: β by {percent(math.expm1(span))}, where {percent(_BETA_FACTOR - 1)} is the "
            "least that shows a power.",
            log_beta_range=span,
        )
    # Where β rests, repeated evaluations carry no information on the slope.
    good[good] = _apart(log_beta, span / 128)
    if good.sum() < LINE_POINTS:
        raise CannotTell(f"Only {int(good.sum())} evaluations differ in the temperature; {LINE_POINTS} are needed.")
    return Selected(log_gamma[good], beta[good], span)


def _at_a_bound(run: Run, policy: AbstractTemperature) -> str:
    """How often the temperature was at a bound of its clamp, in words; empty if never."""
    clamp: tuple[Any, Any] | None = policy.clamp
    if clamp is None:
        return ""
    low, high = (float(tau) for tau in clamp)
    beta = run.beta
    assert beta is not None
    for word, values in (("evaluations", 1 / beta), ("steps", run.batch_temperature)):
        if values is not None:
            held = int(np.sum((values <= 1.001 * low) | (values >= 0.999 * high)))
            if held:
                return f"{held} of {len(values)} {word}"
    return ""


def _apart(x: np.ndarray, least: float) -> np.ndarray:
    """Mask of points (T,) that are at least `least` from the last one kept; the first is kept."""
    kept = np.zeros(len(x), bool)
    last = -math.inf
    for i, value in enumerate(x):
        if abs(value - last) >= least:
            kept[i], last = True, value
    return kept
