"""Contrastive losses as functions of logits M = βZ and targets, with closed-form gradients.

Both value and gradient are free of cancellation: 1 − p_ii is written as a sum over j ≠ i and log-sum-exp as
log1p of the terms below the largest, so that losses of 1e-100 keep all digits.
"""

import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from flowsim.pairing import Targets


class AbstractLoss(eqx.Module):
    """A loss ℓ(M) of the logits M (n, n); M_ij belongs to image i and text j."""

    @abc.abstractmethod
    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        """ℓ(M)."""

    @abc.abstractmethod
    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        """∇ℓ(M)."""


class InfoNCE(AbstractLoss):
    """The symmetric contrastive loss of CLIP (InfoNCE in both directions).

    ℓ(M) = (1/2n) Σ_i [ lse(M_i,:) − Σ_j T_ij M_ij + lse(M_:,i) − Σ_j T'_ji M_ji ], T, T' the targets;
    ∇ℓ(M) = (1/2n) (rowsoftmax(M) − T + colsoftmax(M) − T').
    Source: Radford et al. 2021; Yaras et al. 2025, eq. 2.
    """

    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        n = logits.shape[0]
        rows = _cross_entropy(logits, targets.rows)
        columns = _cross_entropy(logits.T, None if targets.columns is None else targets.columns.T)
        return (rows + columns) / (2 * n)

    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        n = logits.shape[0]
        rows = _residual(logits, targets.rows)
        columns = _residual(logits.T, None if targets.columns is None else targets.columns.T).T
        return (rows + columns) / (2 * n)


def _excess(
    logits: Float[Array, "n n"], targets: Float[Array, "n n"] | None
) -> tuple[Float[Array, "n n"], Bool[Array, "n n"]]:
    """(D, reference): logits relative to each row's (main) target, exactly zero there, and that mask.

    Without the mask the zero would depend on how the compiler rounds the same logit in two places.
    """
    index = jnp.arange(logits.shape[0])
    main = index if targets is None else jnp.argmax(targets, axis=1)
    reference = main[:, None] == index[None, :]
    at_main = jnp.sum(jnp.where(reference, logits, 0), axis=1, keepdims=True)
    return jnp.where(reference, 0, logits - at_main), reference


def _cross_entropy(logits: Float[Array, "n n"], targets: Float[Array, "n n"] | None) -> Float[Array, ""]:
    """Σ_ij T_ij (lse_i − M_ij), rows of T summing to 1."""
    excess, _ = _excess(logits, targets)
    # The largest term contributes exactly 1; what is left may be as small as 1e-300.
    is_largest = jnp.argmax(excess, axis=1)[:, None] == jnp.arange(logits.shape[0])[None, :]
    largest = jnp.sum(jnp.where(is_largest, excess, 0), axis=1, keepdims=True)
    rest = jnp.sum(jnp.where(is_largest, 0, jnp.exp(excess - largest)), axis=1, keepdims=True)
    per_row = largest + jnp.log1p(rest)
    if targets is None:
        return jnp.sum(per_row)
    return jnp.sum(targets * (per_row - excess))


def _residual(logits: Float[Array, "n n"], targets: Float[Array, "n n"] | None) -> Float[Array, "n n"]:
    """softmax − T by rows."""
    excess, reference = _excess(logits, targets)
    e = jnp.exp(excess - jax.lax.stop_gradient(jnp.max(excess, axis=1, keepdims=True)))
    if targets is None:
        off = jnp.sum(jnp.where(reference, 0, e), axis=1, keepdims=True)
        on = jnp.sum(jnp.where(reference, e, 0), axis=1, keepdims=True)
        return jnp.where(reference, -off, e) / (on + off)
    # With mass `on` inside the support of T: p − T = (p − T·on) − T·off. For one-hot T the first bracket
    # is exactly zero at the target, so nothing cancels.
    support = targets > 0
    on = jnp.sum(jnp.where(support, e, 0), axis=1, keepdims=True)
    off = jnp.sum(jnp.where(support, 0, e), axis=1, keepdims=True)
    return ((e - targets * on) - targets * off) / (on + off)
