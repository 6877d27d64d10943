"""Checks of parametrizations of the inverse temperature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flowsim.conformance.compare import CLOSE, NEAR, difference, keeps_dtype, slope_error
from flowsim.conformance.suite import Suite, require
from flowsim.conformance.temperature import exits_are_positive
from flowsim.model.temperature import AbstractParametrization, Exp, Identity, Softplus

#: Inverse temperatures that occur in training, τ = 0.5 to 0.011.
BETA = np.geomspace(2, 90, 33)
_POTENTIALS = {"exp": Exp(), "softplus": Softplus(), "identity": Identity()}


def _methods(part: AbstractParametrization, raw: Any, beta: Any) -> tuple[Any, ...]:
    return part.inverse_temperature(raw), part.raw(beta), part.derivative(raw)


def _raws(part: AbstractParametrization) -> np.ndarray:
    """ν at the inverse temperatures that can be reached."""
    raw = np.array([np.asarray(part.raw(np.asarray(beta)), np.float64) for beta in BETA])
    return raw[np.isfinite(raw)]


def _use(part: AbstractParametrization) -> Any:
    raw = _raws(part)
    return raw, part.inverse_temperature(raw), part.derivative(raw)


SUITE = Suite("parametrization", AbstractParametrization, _use, "`inverse_temperature`, `raw`, `derivative`")


@SUITE.check("inverse")
def inverse(part: AbstractParametrization) -> str:
    raw = np.asarray(part.raw(BETA), np.float64)
    reached = np.isfinite(raw)
    require(reached.any(), "`raw` must give a finite ν, but does for no β from 2 to 90. Return ν(β).")
    apart = difference(part.inverse_temperature(raw[reached]), BETA[reached])
    require(apart < CLOSE, f"`raw` must invert `inverse_temperature`, but β(ν(β)) has a relative error of {apart:.2g}.")
    low, high = BETA[reached][[0, -1]]
    return f"`raw` inverts `inverse_temperature` for β from {low:.3g} to {high:.3g}."


@SUITE.check("derivative", "inverse")
def derivative(part: AbstractParametrization) -> str:
    for nu in _raws(part)[::4]:
        claimed = float(part.derivative(np.asarray(nu)))
        apart = slope_error(lambda x: part.inverse_temperature(np.asarray(x)), nu, claimed)
        require(
            apart < NEAR,
            f"`derivative` must be that of `inverse_temperature`, but is {claimed:.6g} at ν = {nu:.6g}, with a "
            f"relative error of {apart:.2g}. Differentiate `inverse_temperature` again.",
        )
    return "`derivative` agrees with finite differences of `inverse_temperature`."


@SUITE.check("increasing")
def increasing(part: AbstractParametrization) -> str:
    beta = np.asarray(part.inverse_temperature(np.sort(_raws(part))))
    require(
        (np.diff(beta) > 0).all(),
        "`inverse_temperature` must increase with ν, but decreases, which exchanges the bounds of a clamp. Use −ν.",
    )
    return "`inverse_temperature` increases with ν."


@SUITE.check("arrays")
def arrays(part: AbstractParametrization) -> str:
    raw = _raws(part)
    found = _methods(part, raw, BETA)
    require(
        not any(isinstance(array, jax.Array) for array in found),
        "`inverse_temperature`, `raw` and `derivative` must give NumPy arrays for NumPy arrays, but give a JAX array, "
        "in single precision in most sessions. Use xp = fs.extend.namespace(raw).",
    )
    apart = difference(_methods(part, jnp.asarray(raw), jnp.asarray(BETA)), found)
    require(apart < CLOSE, f"JAX arrays must give the same as NumPy arrays, but differ by {apart:.2g}.")
    return "`inverse_temperature`, `raw` and `derivative` give the same for NumPy and JAX arrays."


@SUITE.check("dtype")
def dtype(part: AbstractParametrization) -> str:
    return keeps_dtype("`inverse_temperature`, `raw`, `derivative`", _methods, part, _raws(part), BETA)


@SUITE.check("potential", "inverse")
def potential(part: AbstractParametrization) -> str:
    if part.potential is None:
        return "`potential` is None: no conserved quantity and no closed form is known."
    known = _POTENTIALS.get(part.potential)
    require(
        known is not None,
        f"`potential` must be one of {', '.join(_POTENTIALS)} or None, but is {part.potential!r}. Use None.",
    )
    assert known is not None
    raw = _raws(part)
    apart = difference(part.inverse_temperature(raw), known.inverse_temperature(raw / float(part.scale)))
    require(
        apart < CLOSE,
        f"`potential` is {part.potential!r}, but β differs from that of {type(known).__name__} at ν/scale by "
        f"{apart:.2g}. Use None.",
    )
    return f"`potential` is {part.potential!r}, and β is that of {type(known).__name__} at ν/scale."


@SUITE.check("exits")
def exits(part: AbstractParametrization) -> str:
    return exits_are_positive(part.exits(np.asarray(_raws(part)[0])))
