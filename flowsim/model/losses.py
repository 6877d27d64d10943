"""Contrastive losses: of the logits M = βS with closed-form gradients, or of the rows themselves.

Values and gradients avoid cancellation: 1 − p_ii is computed as a sum over j ≠ i, and log-sum-exp as log1p of the
terms below the largest, so that losses as small as 1e-100 keep all digits.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from equinox import AbstractVar
from jaxtyping import Array, Bool, Float

from flowsim.base.arrays import number, optional_number, plain
from flowsim.base.checks import check_choice, check_flag, check_number
from flowsim.base.modules import Described
from flowsim.model.pairing import Targets
from flowsim.numerics.cases import exponential_limit, fast_if


class AbstractLoss(Described):
    """A loss ℓ(M) of the logits M (n, n); M_ij belongs to image i and text j.

    Attributes:
        bias: Initial b in M = βS + b or M = β(S − b); None without a bias.
        bias_rate: Learning rate of b relative to that of the embeddings; None if b is not trained.
        relative_bias: Whether M = β(S − b) instead of M = βS + b.
        softmax: Whether the loss is unchanged by a constant added to all logits, as with softmaxes.
        tile_weights: The two weights of a loss that is a weighted sum of the softmax cross-entropies of images over
            texts and of texts over images, which is computed in tiles for many pairs. None otherwise.
    """

    bias: AbstractVar[Any]
    bias_rate: AbstractVar[Any]
    relative_bias: AbstractVar[bool]
    softmax: ClassVar[bool] = False
    tile_weights: ClassVar[tuple[float, float] | None] = None

    def logits(self, beta: Any, similarity: Any, bias: Any) -> Any:
        """The logits M (n, n).

        Args:
            beta: β.
            similarity: S (n, n).
            bias: The current b; None without a bias.
        """
        if bias is None:
            return beta * similarity
        return beta * (similarity - bias) if self.relative_bias else beta * similarity + bias

    @abc.abstractmethod
    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        """ℓ(M), a scalar.

        Args:
            logits: M (n, n).
            targets: Target distributions of rows and columns.
        """

    @abc.abstractmethod
    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        """∇ℓ(M) = ∂ℓ/∂M (n, n), in closed form.

        Args:
            logits: M (n, n).
            targets: Target distributions of rows and columns.
        """


class InfoNCE(AbstractLoss):
    """The symmetric contrastive loss of CLIP (InfoNCE in both directions).

    ℓ(M) = (1/2n) Σ_i [ lse(M_i,:) − Σ_j T_ij M_ij + lse(M_:,i) − Σ_j T'_ji M_ji ], where T and T' are the targets
    of rows and columns; ∇ℓ(M) = (1/2n) (rowsoftmax(M) − T + colsoftmax(M) − T').
    Source: Radford et al. 2021; Yaras et al. 2025, eq. 2.
    """

    softmax: ClassVar[bool] = True
    tile_weights: ClassVar[tuple[float, float] | None] = (0.5, 0.5)
    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        n = logits.shape[0]
        of_rows, of_columns = targets.matrices(n, logits.dtype)
        rows = _cross_entropy(logits, of_rows)
        columns = _cross_entropy(logits.T, _transposed(of_columns))
        return (rows + columns) / (2 * n)

    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        n = logits.shape[0]
        of_rows, of_columns = targets.matrices(n, logits.dtype)
        if of_rows is None and of_columns is None:
            return _matched_residuals(logits) / (2 * n)
        rows = _residual(logits, of_rows)
        columns = _residual(logits.T, _transposed(of_columns)).T
        return (rows + columns) / (2 * n)


class DirectedInfoNCE(AbstractLoss):
    """InfoNCE in one direction, one half of CLIP's loss.

    ℓ(M) = (1/n) Σ_i [ lse(M_i,:) − Σ_j T_ij M_ij ] over rows for "image_to_text", over columns for "text_to_image".
    Source: van den Oord et al. 2018; Radford et al. 2021.

    Args:
        direction: "image_to_text" classifies the text of each image, "text_to_image" the image of each text.

    Raises:
        FlowsimError: For another direction.
    """

    direction: str = eqx.field(static=True, converter=plain, default="image_to_text")
    softmax: ClassVar[bool] = True
    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    relative_bias: ClassVar[bool] = False

    def __check_init__(self) -> None:
        check_choice("direction", self.direction, ("image_to_text", "text_to_image"))

    @property
    def tile_weights(self) -> tuple[float, float] | None:
        return (1.0, 0.0) if self.direction == "image_to_text" else (0.0, 1.0)

    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        rows, columns = targets.matrices(logits.shape[0], logits.dtype)
        if self.direction == "image_to_text":
            return _cross_entropy(logits, rows) / logits.shape[0]
        return _cross_entropy(logits.T, _transposed(columns)) / logits.shape[0]

    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        rows, columns = targets.matrices(logits.shape[0], logits.dtype)
        if self.direction == "image_to_text":
            return _residual(logits, rows) / logits.shape[0]
        return _residual(logits.T, _transposed(columns)).T / logits.shape[0]


class Sigmoid(AbstractLoss):
    """The pairwise sigmoid loss of SigLIP.

    ℓ(M) = (1/n) Σ_ij [ T_ij softplus(−M_ij) + (1 − T_ij) softplus(M_ij) ], ∇ℓ = (σ(M) − T)/n.
    Source: Zhai et al. 2023; the relative bias: arXiv 2509.18552.

    Args:
        bias: Initial b. Good values: −10 (SigLIP's) for M = βS + b, 0 for M = β(S − b).
        bias_rate: Learning rate of b relative to that of the embeddings; None fixes b.
        relative_bias: Whether M = β(S − b) instead of M = βS + b, which is SigLIP's.

    Raises:
        FlowsimError: If `bias` is not finite or `bias_rate` is not positive.
    """

    bias: Any = eqx.field(converter=number, default=-10.0)
    bias_rate: Any = eqx.field(converter=optional_number, default=1.0)
    relative_bias: bool = eqx.field(static=True, converter=plain, default=False)

    def __check_init__(self) -> None:
        check_number("bias", self.bias, cure="Use e.g. -10 (absolute) or 0 (relative).")
        if self.bias_rate is not None:
            check_number("bias_rate", self.bias_rate, positive=True, cure="Use e.g. 1.0, or None to lock the bias.")
        check_flag("relative_bias", self.relative_bias)

    def value(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, ""]:
        t = _dense(targets, logits)
        return jnp.sum(t * _softplus(-logits) + (1 - t) * _softplus(logits)) / logits.shape[0]

    def gradient(self, logits: Float[Array, "n n"], targets: Targets) -> Float[Array, "n n"]:
        t = _dense(targets, logits)
        return ((1 - t) * jax.nn.sigmoid(logits) - t * jax.nn.sigmoid(-logits)) / logits.shape[0]


class AbstractRowLoss(Described):
    """A loss of the rows themselves, for losses that need more than the cosines between images and texts.

    Its gradients come from automatic differentiation.
    """

    bias: ClassVar[None] = None
    bias_rate: ClassVar[None] = None
    softmax: ClassVar[bool] = False
    tile_weights: ClassVar[None] = None

    @abc.abstractmethod
    def value(
        self, image: Float[Array, "n d"], text: Float[Array, "n d"], beta: Float[Array, ""], targets: Targets
    ) -> Float[Array, ""]:
        """The loss, a scalar.

        Args:
            image: Image rows (n, d), of unit length except for `Unnormalized`.
            text: Text rows (n, d).
            beta: Inverse temperature β.
            targets: Target distributions.
        """


class NTXent(AbstractRowLoss):
    """InfoNCE in which each row is compared with all 2n − 1 other rows of both modalities.

    (1/2n) Σ_i [ lse_{k ≠ i}(β⟨z_i, z_k⟩) − Σ_k T_ik β⟨z_i, z_k⟩ ] over the 2n stacked rows z, where T are the targets
    in the other modality. Source: Chen et al. 2020 (SimCLR's NT-Xent).
    """

    def value(
        self, image: Float[Array, "n d"], text: Float[Array, "n d"], beta: Float[Array, ""], targets: Targets
    ) -> Float[Array, ""]:
        n = image.shape[0]
        rows = jnp.concatenate([image, text])
        itself = jnp.eye(2 * n, dtype=bool)
        logits = jnp.where(itself, -jnp.inf, beta * (rows @ rows.T))
        none = jnp.zeros((n, n), rows.dtype)
        partner = jnp.eye(n, dtype=rows.dtype)
        of_rows, of_columns = targets.matrices(n, rows.dtype)
        to_text = partner if of_rows is None else of_rows
        to_image = partner if of_columns is None else of_columns.T
        return _cross_entropy(logits, jnp.block([[none, to_text], [to_image, none]])) / (2 * n)


class Regularised(AbstractRowLoss):
    """InfoNCE plus alignment of pairs and uniformity within each modality.

    L = InfoNCE + a (1/n) Σ_i |x_i − y_i|² + u ½ Σ_modalities log mean_{i≠j} exp(−2 |x_i − x_j|²).
    Source: Wang & Isola 2020, with their α = t = 2.

    Args:
        alignment: a, the weight of the alignment of pairs.
        uniformity: u, the weight of the uniformity within each modality.

    Raises:
        FlowsimError: If a weight is not finite.
    """

    alignment: Any = eqx.field(converter=number, default=0.0)
    uniformity: Any = eqx.field(converter=number, default=0.0)

    def __check_init__(self) -> None:
        check_number("alignment", self.alignment, cure="Use e.g. 1.0.")
        check_number("uniformity", self.uniformity, cure="Use e.g. 1.0.")

    def value(
        self, image: Float[Array, "n d"], text: Float[Array, "n d"], beta: Float[Array, ""], targets: Targets
    ) -> Float[Array, ""]:
        alignment = jnp.mean(jnp.sum((image - text) ** 2, axis=1))
        uniformity = (_uniformity(image) + _uniformity(text)) / 2
        base = InfoNCE().value(beta * (image @ text.T), targets)
        return base + self.alignment * alignment + self.uniformity * uniformity


def _uniformity(rows: Float[Array, "n d"]) -> Float[Array, ""]:
    n = rows.shape[0]
    itself = jnp.eye(n, dtype=bool)
    squared = jnp.sum(rows**2, axis=1)
    distance = squared[:, None] + squared[None, :] - 2 * rows @ rows.T
    return jax.nn.logsumexp(jnp.where(itself, -jnp.inf, -2 * distance)) - jnp.log(n * (n - 1))


def _softplus(x: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """log(1 + e^x), to full relative accuracy down to 1e-300."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


def _dense(targets: Targets, logits: Float[Array, "n n"]) -> Float[Array, "n n"]:
    rows, _ = targets.matrices(logits.shape[0], logits.dtype)
    return jnp.eye(logits.shape[0], dtype=logits.dtype) if rows is None else rows


def _transposed(targets: Float[Array, "n n"] | None) -> Float[Array, "n n"] | None:
    return None if targets is None else targets.T


def _excess(
    logits: Float[Array, "n n"], targets: Float[Array, "n n"] | None
) -> tuple[Float[Array, "n n"], Bool[Array, "n n"]]:
    """(D, reference): logits relative to each row's main target, exactly zero there, and the mask of these targets.

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
    # The largest term contributes exactly 1; the rest may be as small as 1e-300.
    is_largest = jnp.argmax(excess, axis=1)[:, None] == jnp.arange(logits.shape[0])[None, :]
    largest = jnp.sum(jnp.where(is_largest, excess, 0), axis=1, keepdims=True)
    rest = jnp.sum(jnp.where(is_largest, 0, jnp.exp(excess - largest)), axis=1, keepdims=True)
    per_row = largest + jnp.log1p(rest)
    if targets is None:
        return jnp.sum(per_row)
    # A masked logit is −inf, where 0 · inf would be NaN.
    return jnp.sum(jnp.where(targets > 0, targets * (per_row - excess), 0))


def _residual(logits: Float[Array, "n n"], targets: Float[Array, "n n"] | None) -> Float[Array, "n n"]:
    """softmax − T by rows."""
    if targets is None:
        return _matched_residual(logits)
    excess, _ = _excess(logits, targets)
    e = jnp.exp(excess - jax.lax.stop_gradient(jnp.max(excess, axis=1, keepdims=True)))
    # With mass `on` inside the support of T: p − T = (p − T·on) − T·off. For one-hot T the first bracket
    # is exactly zero at the target, so nothing cancels.
    support = targets > 0
    on = jnp.sum(jnp.where(support, e, 0), axis=1, keepdims=True)
    off = jnp.sum(jnp.where(support, 0, e), axis=1, keepdims=True)
    return ((e - targets * on) - targets * off) / (on + off)


def _matched_residuals(logits: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """softmax − I by rows plus the same by columns; most of the time of a run is spent here."""

    def with_one_exponential(logits: Float[Array, "n n"]) -> Float[Array, "n n"]:
        matched = jnp.eye(logits.shape[0], dtype=bool)
        e = jnp.exp(logits)
        on, others = jnp.diagonal(e), jnp.where(matched, 0, e)
        off = [jnp.sum(others, axis=axis) for axis in (1, 0)]
        rows, columns = (1 / (on + total) for total in off)
        return jnp.where(matched, -(off[0] * rows + off[1] * columns), others * (rows[:, None] + columns[None, :]))

    def with_two(logits: Float[Array, "n n"]) -> Float[Array, "n n"]:
        return _matched_residual(logits) + _matched_residual(logits.T).T

    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(logits)))
    return fast_if(largest < exponential_limit(logits.dtype), with_one_exponential, with_two, logits)


def _matched_residual(logits: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """softmax − I by rows: one sum, one maximum, a division per row."""
    matched = jnp.eye(logits.shape[0], dtype=bool)
    largest = jax.lax.stop_gradient(jnp.max(logits, axis=1, keepdims=True))
    e = jnp.exp(logits - largest)
    on = jnp.exp(jnp.diagonal(logits)[:, None] - largest)
    off = jnp.sum(jnp.where(matched, 0, e), axis=1, keepdims=True)
    share = 1 / (on + off)
    return jnp.where(matched, -off * share, e * share)
