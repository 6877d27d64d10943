"""Checks of temperature policies."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.conformance.compare import CLOSE, NEAR, compiled, difference, keeps_dtype, slope_error
from flowsim.conformance.suite import Suite, require
from flowsim.model.temperature import AbstractTemperature

#: Training progress; continued runs go beyond 1.
PROGRESS = np.append(np.linspace(0, 1, 33), 1.5)


def _raw(policy: AbstractTemperature) -> Any:
    """ν at the start; None for policies that are not learnable."""
    raw = policy.initial_raw() if policy.learnable else None
    return None if raw is None else np.asarray(raw, np.float64)


def _curve(policy: AbstractTemperature, raw: Any = None) -> np.ndarray:
    """β at each progress, from calls with single numbers."""
    raw = _raw(policy) if raw is None else raw
    return np.array([np.asarray(policy.inverse_temperature(float(u), raw), np.float64) for u in PROGRESS])


SUITE = Suite("temperature policy", AbstractTemperature, _curve, "`inverse_temperature`")


@SUITE.check("positive")
def positive(policy: AbstractTemperature) -> str:
    beta = _curve(policy)
    require(
        beta.shape == PROGRESS.shape,
        f"`inverse_temperature` must give one number for one progress, but gives an array of shape {beta.shape[1:]}.",
    )
    bad = np.flatnonzero(~(np.isfinite(beta) & (beta > 0)))
    require(
        not bad.size,
        f"`inverse_temperature` must be finite and positive, but is {beta[bad[:1]].sum():g} at progress "
        f"{PROGRESS[bad[:1]].sum():g}. Progress exceeds 1 in continued runs: clip it to [0, 1].",
    )
    return (
        f"`inverse_temperature` is finite and positive: {beta.min():.4g} to {beta.max():.4g}, also beyond progress 1."
    )


@SUITE.check("arrays", "positive")
def arrays(policy: AbstractTemperature) -> str:
    raw, wanted = _raw(policy), _curve(policy)
    cure = "Use xp = fs.extend.namespace(progress), xp.where and xp.exp."
    for kind, xp in (("NumPy", np), ("JAX", jnp)):
        found = policy.inverse_temperature(xp.asarray(PROGRESS), None if raw is None else xp.asarray(raw))
        apart = difference(np.broadcast_to(found, wanted.shape) if np.ndim(found) == 0 else found, wanted)
        require(
            apart < CLOSE,
            f"`inverse_temperature` must give the same for a {kind} array as for single numbers, but differs by "
            f"{apart:.2g}. {cure}",
        )
        require(
            kind == "JAX" or not isinstance(found, jax.Array),
            f"`inverse_temperature` must give a NumPy array for a NumPy array, but gives a JAX array, in single "
            f"precision in most sessions. {cure}",
        )
    return "`inverse_temperature` gives the same for floats and for NumPy and JAX arrays."


@SUITE.check("jit", "positive")
def jit(policy: AbstractTemperature) -> str:
    raw, wanted = _raw(policy), _curve(policy)
    for u, beta in zip(PROGRESS[::11], wanted[::11], strict=True):
        apart = difference(compiled(_beta, policy, np.asarray(u), raw), beta)
        require(apart < CLOSE, f"`inverse_temperature` must not change when compiled, but differs by {apart:.2g}.")
    return "`inverse_temperature` gives the same values when compiled."


@SUITE.check("dtype", "jit")
def dtype(policy: AbstractTemperature) -> str:
    return keeps_dtype("`inverse_temperature`", _beta, policy, np.asarray(0.3), _raw(policy))


def _beta(policy: AbstractTemperature, progress: Any, raw: Any) -> Any:
    return policy.inverse_temperature(progress, raw)


@SUITE.check("autonomous", "positive")
def autonomous(policy: AbstractTemperature) -> str:
    beta = _curve(policy)
    varies = difference(beta, np.full_like(beta, beta[0])) > CLOSE
    require(
        not (policy.autonomous and varies),
        f"`autonomous` is True, but `inverse_temperature` depends on progress: it ranges from "
        f"{beta.min():.4g} to {beta.max():.4g}. Set it to False.",
    )
    if policy.autonomous:
        return "`autonomous` is True, and `inverse_temperature` does not depend on progress."
    return "`autonomous` is False" + (
        "." if varies else ", although `inverse_temperature` is constant with these numbers; True detects rest sooner."
    )


@SUITE.check("breakpoints")
def breakpoints(policy: AbstractTemperature) -> str:
    found = [float(u) for u in policy.breakpoints()]
    require(
        all(0 <= u <= 1 for u in found),
        f"`breakpoints` must give values of progress between 0 and 1, but gives {found}. Divide by the horizon.",
    )
    return f"`breakpoints` are {found}: steps end there." if found else "`breakpoints` has none."


@SUITE.check("initial_raw")
def initial_raw(policy: AbstractTemperature) -> str:
    raw = policy.initial_raw()
    if not policy.learnable:
        require(
            raw is None,
            f"`initial_raw` must give None if `learnable` is False, but gives {raw}. Set learnable = True.",
        )
        return "`learnable` is False: nothing is trained."
    found = np.asarray(np.nan if raw is None else raw, np.float64)
    require(
        found.ndim == 0 and np.isfinite(found),
        f"`initial_raw` must give one finite number if `learnable` is True, but gives {raw}. Return ν at the start.",
    )
    return f"`initial_raw` gives ν = {float(found):.6g}, where β = {float(policy.inverse_temperature(0.0, raw)):.6g}."


def _near(raw: float) -> np.ndarray:
    """Values near a raw parameter."""
    return raw + max(abs(raw), 0.1) * np.array([-0.03, 0.02, 0.05])


@SUITE.check("derivative", "positive", "initial_raw")
def derivative(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    raw = _raw(policy)
    for u in (0.0, 0.5, 1.0):
        for nu in _near(float(raw)):
            claimed = float(policy.derivative(u, np.asarray(nu)))
            apart = slope_error(lambda x, u=u: policy.inverse_temperature(u, np.asarray(x)), nu, claimed)
            require(
                apart < NEAR,
                f"`derivative` must be ∂β/∂ν of `inverse_temperature`, but is {claimed:.6g} at ν = {nu:.6g}, with a "
                f"relative error of {apart:.2g}. Differentiate `inverse_temperature` again.",
            )
    keeps_dtype("`derivative`", lambda p, u, x: p.derivative(u, x), policy, np.asarray(0.3), raw)
    return "`derivative` agrees with finite differences of `inverse_temperature` in ν, and keeps the precision of ν."


@SUITE.check("raw_of", "positive", "initial_raw")
def raw_of(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    for nu in _near(float(_raw(policy))):
        beta = np.asarray(policy.inverse_temperature(0.0, np.asarray(nu)), np.float64)
        if (back := policy.raw_of(beta)) is None:
            return "`raw_of` gives None: a run with another policy cannot be continued with this one."
        apart = difference(policy.inverse_temperature(0.0, np.asarray(back)), beta)
        require(
            apart < CLOSE,
            f"`raw_of` must give the ν at which β is {beta:.6g}, but β there differs by {apart:.2g} (relative). Invert "
            "`inverse_temperature`.",
        )
    return "`raw_of` inverts `inverse_temperature`."


@SUITE.check("parametrization", "positive", "initial_raw")
def parametrization(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    if policy.parametrization is None:
        return "`parametrization` is None: no closed form is known."
    for nu in _near(float(_raw(policy))):
        beta = policy.inverse_temperature(0.0, np.asarray(nu))
        apart = difference(policy.parametrization.inverse_temperature(np.asarray(nu)), beta)
        require(
            apart < CLOSE,
            f"`parametrization` is {policy.parametrization}, but `inverse_temperature` differs from it by {apart:.2g} "
            f"(relative) at ν = {nu:.6g}. Set it to None.",
        )
    return f"`parametrization` is {policy.parametrization}, which agrees with `inverse_temperature`."


@SUITE.check("bounds", "initial_raw")
def bounds(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    if (found := policy.bounds()) is None:
        return "`bounds` gives None: ν is not bounded."
    low, high = (float(bound) for bound in found)
    raw = float(_raw(policy))
    require(
        low < high and low - CLOSE <= raw <= high + CLOSE,
        f"`bounds` must be increasing and contain ν at the start, {raw:.6g}, but are ({low:.6g}, {high:.6g}). "
        "Return (ν_min, ν_max).",
    )
    return f"`bounds` are ({low:.6g}, {high:.6g}) and contain the start."


@SUITE.check("lr_ratio")
def lr_ratio(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    ratio = np.asarray(policy.lr_ratio)
    require(
        ratio.ndim == 0 and np.isfinite(ratio) and ratio >= 0,
        f"`lr_ratio` must be a number of at least 0, but is {policy.lr_ratio}. Use 1.0 for the rate of the embeddings.",
    )
    return f"`lr_ratio` is {float(ratio):g}."


@SUITE.check("exits", "initial_raw")
def exits(policy: AbstractTemperature) -> str | None:
    if not policy.learnable:
        return None
    return exits_are_positive(policy.exits(_raw(policy)))


def exits_are_positive(found: dict[str, Any]) -> str:
    """Require that every quantity of `exits` is one positive number."""
    for name, value in found.items():
        inside = np.asarray(value)
        require(
            inside.ndim == 0 and inside > 0,
            f"`exits` must be positive inside the domain, but {name!r} is {inside} at the start.",
        )
    return f"`exits` are positive: {', '.join(found)}." if found else "`exits` is empty: a run cannot leave the domain."
