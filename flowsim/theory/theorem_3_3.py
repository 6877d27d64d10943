"""Theorem 3.3: initial growth of the gap for uniform directions, with its bound at finite n and Bessel functions."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from flowsim.theory.arguments import Flags, Input, Values, cone_height, inside, pair_count, positive
from flowsim.theory.rounding import complement, extremes


@extremes
def bessel_ratio(order: Input, a: Input) -> Values:
    """I_{order+1}(a)/I_order(a), the ratio of modified Bessel functions, for `a` of any size.

    Computed by the contracting recurrence r_ν = a/(2(ν+1) + a r_{ν+1}), down from the expansion of r at a high order.
    Derived here.

    Args:
        order: Order, 0 or more; broadcasts against `a`.
        a: Argument, 0 or more.

    Returns:
        The ratio, of the common shape.

    Raises:
        FlowsimError: For a negative argument.
    """
    order = inside("order", order, 0.0, math.inf, "an order from 0 on", closed=True)
    a = inside("a", a, 0.0, math.inf, "a finite argument from 0 on", closed=True)
    # The error of the start, about q/a² with q = ν/a, is negligible for large a; for smaller a the steps reduce it.
    steps = 1000
    top = order + steps + 0.5
    length = np.hypot(top, a)
    ratio = a / (top + length) * (1 - top / length / length / 2)
    for k in range(steps, 0, -1):
        ratio = a / (2 * (order + k) + a * ratio)
    return ratio[()]


@extremes
def log_mean_exponential(a: Input, dim: Input) -> Values:
    """ln ξ2 with ξ2 = E[e^{a u·v}] = Γ(d/2)(2/a)^ρ I_ρ(a), u uniform on the unit sphere of R^d, ρ = (d−2)/2.

    ξ1 = ξ2' = ξ2 I_{ρ+1}/I_ρ. Yaras et al. 2025, proof of Theorem 3.3.

    Args:
        a: a > 0, up to 1e8; broadcasts against d.
        dim: d ≥ 2.

    Returns:
        ln ξ2, of the common shape.

    Raises:
        FlowsimError: For a ≤ 0 or d < 2.
    """
    from scipy.special import gammaln, ive

    a = inside("a", a, 0.0, 1.0001e8, "an argument from 0 to 1e8")
    order = (inside("dim", dim, 2.0, math.inf, "two or more dimensions", closed=True) - 2) / 2
    a, order = np.broadcast_arrays(a, order)
    out = np.empty(a.shape)
    direct = (order**2 <= 1000 * a) & (a > 1)
    nu, x = order[direct], a[direct]
    out[direct] = gammaln(nu + 1) + nu * np.log(2 / x) + np.log(ive(nu, x)) + x
    for index in [i for i in np.ndindex(a.shape) if not direct[i]]:
        # I_ρ underflows here, but ξ2 = Σ (a²/4)^k / (k! (ρ+1)_k) has only positive terms, the largest near `peak`.
        nu, x = order[index], a[index]
        peak = x * x / (2 * (nu + np.hypot(nu, x)))
        k = np.arange(1, int(peak + 12 * math.sqrt(peak) + 40))
        terms = k * 2 * np.log(x / 2) - gammaln(k + 1) - (gammaln(k + nu + 1) - gammaln(nu + 1))
        top = max(terms.max(), 0.0)
        rest = np.exp(terms - top).sum()
        out[index] = np.log1p(rest) if top == 0 else top + np.log(math.exp(-top) + rest)
    return out[()]


class Theorem33Bound(NamedTuple):
    """The bound of Theorem 3.3.

    Attributes:
        bound: Lower bound on dΔ/dt(0).
        epsilon: ε, see `theorem_3_3_bound`.
        proved: Whether the bound is proved, ξ1 ≥ 2e^a ε.
        limit: Limit of the bound for n → ∞, see `theorem_3_3_limit`.
    """

    bound: Values
    epsilon: Values
    proved: Flags
    limit: Values


def _theorem_3_3_scaled(dim: Input, beta0: Input, gamma0: Input) -> tuple[Values, Values, Values, Values]:
    """a, ln(ξ2 e^{−a}), ξ1/ξ2 and 4β0γ0; the product is finite where ξ2 overflows and e^{−a} underflows."""
    gamma0, beta0 = cone_height(gamma0), positive("beta0", beta0)
    a = beta0 * complement(gamma0)
    log_xi2 = np.asarray(log_mean_exponential(a, dim)) - a
    return a, log_xi2, np.asarray(bessel_ratio((np.asarray(dim) - 2) / 2, a)), 4 * beta0 * gamma0


@extremes
def theorem_3_3_limit(beta0: Input, gamma0: Input, dim: Input) -> Values:
    """4β0γ0 I_{ρ+1}(a)/I_ρ(a), a = β0(1−γ0²), ρ = (d−2)/2: initial speed of the gap for uniform pairs as n → ∞.

    Yaras et al. 2025, Theorem 3.3.

    Args:
        beta0: Initial β, positive; all arguments broadcast.
        gamma0: Initial γ, between 0 and 1.
        dim: d ≥ 2, dimension of the directions.

    Returns:
        dΔ/dt(0) per unit of flow time, for unit learning rates, of the common shape.

    Raises:
        FlowsimError: For γ0 outside (0, 1), β0 ≤ 0 or d < 2.
    """
    gamma0, beta0 = cone_height(gamma0), positive("beta0", beta0)
    order = (inside("dim", dim, 2.0, math.inf, "two or more dimensions", closed=True) - 2) / 2
    return (4 * beta0 * gamma0 * bessel_ratio(order, beta0 * complement(gamma0)))[()]


@extremes
def theorem_3_3_bound(pairs: Input, dim: Input, beta0: Input, gamma0: Input, delta: Input = 0.05) -> Theorem33Bound:
    """Lower bound on dΔ/dt(0) that holds with probability 1 − δ, for rows uniform on the sphere.

    4β0γ0 [(ξ1 − 2e^a ε)/(ξ2 + (e^a − e^{−a})ε) − 2ε], ε = √(ln((4n+1)/δ)/(2n)), ξ2 as in `log_mean_exponential`. Yaras
    et al. 2025, Theorem 3.3; its proof bounds 2 dγ/dt, which is not dΔ/dt.

    Args:
        pairs: n ≥ 2; all arguments broadcast.
        dim: d ≥ 2, dimension of the directions.
        beta0: Initial β, positive.
        gamma0: Initial γ, between 0 and 1.
        delta: δ, probability that the bound fails, between 0 and 1. Typical: 0.05.

    Returns:
        The bound, ε, whether the bound is proved, and its limit for n → ∞, all of the common shape.

    Raises:
        FlowsimError: As in `theorem_3_3_limit`, and for n < 2 or δ outside (0, 1).
    """
    a, log_xi2, ratio, speed = _theorem_3_3_scaled(dim, beta0, gamma0)
    delta, pairs = inside("delta", delta, 0.0, 1.0, "a probability of failure such as 0.05"), pair_count(pairs)
    epsilon = np.sqrt(np.log((4 * pairs + 1) / delta) / (2 * pairs))
    with np.errstate(under="ignore"):
        xi2 = np.exp(log_xi2)
        bracket = (ratio * xi2 - 2 * epsilon) / (xi2 - np.expm1(-2 * a) * epsilon) - 2 * epsilon
    proved = np.asarray(np.log(ratio) + log_xi2 >= np.log(2 * epsilon))
    return Theorem33Bound((speed * bracket)[()], epsilon[()], proved[()], speed * ratio)


@extremes
def theorem_3_3_pairs_needed(dim: Input, beta0: Input, gamma0: Input, delta: Input = 0.05) -> Values:
    """log10 of the smallest n at which `theorem_3_3_bound` is positive.

    Positivity is a quadratic inequality in ε, solved in closed form; n then solves 2nε² = ln((4n+1)/δ). It is rounded
    up to a whole number if float64 resolves whole numbers there. Derived here.

    Args:
        dim: d ≥ 2, dimension of the directions; all arguments broadcast.
        beta0: Initial β, positive.
        gamma0: Initial γ, between 0 and 1.
        delta: δ, probability that the bound fails, between 0 and 1. Typical: 0.05.

    Returns:
        log10 n, of the common shape.

    Raises:
        FlowsimError: As in `theorem_3_3_bound`, except for n.
    """
    a, log_xi2, ratio, _ = _theorem_3_3_scaled(dim, beta0, gamma0)
    delta = inside("delta", delta, 0.0, 1.0, "a probability of failure such as 0.05")
    with np.errstate(under="ignore"):
        xi2 = np.exp(log_xi2)
        root = 1 + xi2 + np.sqrt((1 + xi2) ** 2 - 2 * np.expm1(-2 * a) * ratio * xi2)
        log_epsilon = np.log(ratio) + log_xi2 - np.log(root)
        log_n = -2 * log_epsilon
        for _ in range(200):
            log_n = np.log(log_n + math.log(4) + np.log1p(np.exp(-log_n) / 4) - np.log(delta)) - (
                math.log(2) + 2 * log_epsilon
            )
    whole = np.ceil(np.exp(np.minimum(log_n, 36.0)))
    return (np.where(log_n < 36.0, np.log(whole), log_n) / math.log(10))[()]
