"""InfoNCE of large batches in tiles of the n×n logits: value and closed-form gradient in O(nd) memory.

The logits M = β X Yᵀ of n pairs are computed in tiles of `block`² entries and never stored together. Two passes are
needed: the first finds the log-sum-exp of every row and column, the second the gradient. The term of the target is
never summed with the others, so that a loss of 1e-100 keeps its digits, as in `losses`.

Cost of value and gradient: 8n²d flops and 2n² exponentials, compared to 6n²d and n² with n×n matrices. If logits
are so large that exponentials could overflow (|M| > 319 in double, 40 in single precision), they are taken relative
to the target of their row and of their column: 4n² exponentials. Memory: about six arrays of n×d and six tiles. On a
`mesh` of p devices each holds n/p pairs; the texts and their sums go round in a ring, so that time and memory per
device fall like 1/p (except for the tiles), and no device ever holds all rows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int

from flowsim.base.checks import check
from flowsim.numerics.cases import exponential_limit, fast_if

#: The only axis of a mesh of devices, along which the pairs are divided.
PAIRS_AXIS = "pairs"

Rows = Float[Array, "n d"]
Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


class LossAndGradient(NamedTuple):
    """A loss and its gradient.

    Attributes:
        value: L.
        image: ∂L/∂X (n, d).
        text: ∂L/∂Y (n, d).
        beta: ∂L/∂β.
    """

    value: Float[Array, ""]
    image: Rows
    text: Rows
    beta: Float[Array, ""]


def loss(
    image: Rows,
    text: Rows,
    beta: Any,
    text_of: Int[Array, " n"] | None = None,
    noise: Any = None,
    *,
    weights: tuple[float, float] = (0.5, 0.5),
    block: int | None = None,
    mesh: Mesh | None = None,
) -> Float[Array, ""]:
    """L without its gradient, in one pass over the logits; arguments as in `loss_and_gradient`.

    It can be differentiated once in either mode, by the closed-form gradient in O(nd) memory.
    """

    options: Any = {"weights": weights, "block": block, "mesh": mesh}

    @jax.custom_jvp
    def value(image: Rows, text: Rows, beta: Any, noise: Any) -> Float[Array, ""]:
        def work(ring: _Ring, bounded: bool, x: Rows, y: Rows, beta: Any, noise: Any) -> Any:
            rows, columns = _statistics(x, y, beta, noise, block, ring, bounded)
            return ring.sum(weights[0] * jnp.sum(rows.loss) + weights[1] * jnp.sum(columns.loss))

        return _distributed(work, mesh, PartitionSpec())(image, text, beta, noise) / image.shape[0]

    @value.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        image, text, beta, noise = primals
        found = loss_and_gradient(image, text, beta, None, noise, **options)
        d_image, d_text, d_beta, _ = tangents
        change = jnp.sum(found.image * d_image) + jnp.sum(found.text * d_text) + found.beta * d_beta
        return found.value, change

    noise = None if noise is None else jax.lax.stop_gradient(noise)
    return value(image, _aligned(text, text_of), jnp.asarray(beta, image.dtype), noise)


def loss_and_gradient(
    image: Rows,
    text: Rows,
    beta: Any,
    text_of: Int[Array, " n"] | None = None,
    noise: Any = None,
    *,
    weights: tuple[float, float] = (0.5, 0.5),
    block: int | None = None,
    mesh: Mesh | None = None,
) -> LossAndGradient:
    """L = (1/n) Σ_i [a (lse(M_i,:) − Σ_j T_ij M_ij) + b (lse(M_:,i) − Σ_j T_ji M_ji)], M = β X Yᵀ, and its gradient.

    It works inside `jax.jit`; forward-mode derivatives of the gradient need only one more tile of memory.

    Args:
        image: X (n, d), not normalised here; float32 or float64.
        text: Y (n, d).
        beta: β, a scalar.
        text_of: A permutation (n,): the text of image i is row `text_of[i]`; None for i itself.
        noise: p of soft targets, 1 − p at the target and p/(n − 1) elsewhere; None for p = 0.
        weights: (a, b), the weights of images over texts and of texts over images.
        block: Rows of a tile; None for a good value for the device.
        mesh: Devices along the axis "pairs" (see `mesh_of`), whose number divides n; None for those of `jax.set_mesh`,
            or for one device if no such mesh is set.

    Returns:
        L, ∂L/∂X, ∂L/∂Y and ∂L/∂β.

    Raises:
        FlowsimError: If the number of devices does not divide n.
    """

    def work(ring: _Ring, bounded: bool, x: Rows, y: Rows, beta: Any, noise: Any) -> Any:
        rows, columns = _statistics(x, y, beta, noise, block, ring, bounded)
        value = ring.sum(weights[0] * jnp.sum(rows.loss) + weights[1] * jnp.sum(columns.loss))
        on_x, on_y = _gradient(x, y, beta, noise, rows, columns, weights, block, ring, bounded)
        # ∂L/∂β = ⟨G, X Yᵀ⟩ = ⟨X, G Y⟩
        return value, beta * on_x, beta * on_y, ring.sum(jnp.sum(x * on_x))

    n, one = image.shape[0], PartitionSpec()
    by_rows = PartitionSpec(PAIRS_AXIS)
    beta = jnp.asarray(beta, image.dtype)
    given = (image, _aligned(text, text_of), beta, noise)
    value, on_x, on_y, on_beta = _distributed(work, mesh, (one, by_rows, by_rows, one))(*given)
    if text_of is not None:
        on_y = jnp.zeros_like(on_y).at[text_of].set(on_y)
    return LossAndGradient(value / n, on_x / n, on_y / n, on_beta / n)


def mesh_of(devices: Sequence[Any]) -> Mesh:
    """A mesh of JAX devices with the axis "pairs"."""
    return jax.make_mesh((len(devices),), (PAIRS_AXIS,), (jax.sharding.AxisType.Auto,), devices=devices)


def spread(tree: Any, mesh: Mesh, pairs: int) -> Any:
    """Put arrays on the devices of a mesh, divided along their first axis of length `pairs`; others are replicated."""

    def place(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf
        axis = next((i for i, size in enumerate(leaf.shape) if size == pairs), None)
        spec = PartitionSpec() if axis is None else PartitionSpec(*[None] * axis, PAIRS_AXIS)
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(place, tree)


# --- tiles --------------------------------------------------------------------------------------------


def _visit(step: Step, rows: Any, row_sums: Any, columns: Any, column_sums: Any) -> tuple[Any, Any]:
    """Call `step(rows, row sums, columns, column sums)` -> (row sums, column sums) for every tile.

    Each argument is a tree of arrays whose first axis counts blocks. Only one tile exists at a time.
    """

    def line(column_sums: Any, item: Any) -> tuple[Any, Any]:
        row, sums = item

        def tile(sums: Any, item: Any) -> tuple[Any, Any]:
            return step(row, sums, *item)

        return jax.lax.scan(tile, sums, (columns, column_sums))[::-1]

    return jax.lax.scan(line, column_sums, (rows, row_sums))[::-1]


class _Ring:
    """The devices that share the pairs: the position of this one, sums over all, and a pass over all texts."""

    def __init__(self, devices: int) -> None:
        self.devices = devices

    def first(self, pairs: int) -> Any:
        """Index of the first of the `pairs` pairs on this device."""
        return 0 if self.devices == 1 else jax.lax.axis_index(PAIRS_AXIS) * pairs

    def sum(self, value: Any) -> Any:
        return value if self.devices == 1 else jax.lax.psum(value, PAIRS_AXIS)

    def max(self, value: Any) -> Any:
        return value if self.devices == 1 else jax.lax.pmax(value, PAIRS_AXIS)

    def visit(self, step: Step, rows: Any, row_sums: Any, columns: Any, column_sums: Any) -> tuple[Any, Any]:
        """`_visit` for the rows of this device and the columns of all, which return to their devices afterwards."""
        if self.devices == 1:
            return _visit(step, rows, row_sums, columns, column_sums)
        onwards = [(i, (i + 1) % self.devices) for i in range(self.devices)]

        def turn(_: Any, carry: Any) -> Any:
            row_sums, columns, column_sums = carry
            row_sums, column_sums = _visit(step, rows, row_sums, columns, column_sums)
            return row_sums, *jax.lax.ppermute((columns, column_sums), PAIRS_AXIS, onwards)

        row_sums, _, column_sums = jax.lax.fori_loop(0, self.devices, turn, (row_sums, columns, column_sums))
        return row_sums, column_sums


def _distributed(work: Callable[..., Any], mesh: Mesh | None, out: Any) -> Callable[..., Any]:
    """`work(ring, bounded, x, y, beta, noise)` on one device, or on those of the mesh, among which rows are divided."""
    around = jax.sharding.get_abstract_mesh() if mesh is None else mesh
    devices = dict(around.shape).get(PAIRS_AXIS, 1)
    if devices == 1:
        return _by_size(partial(work, _Ring(1)), _Ring(1))
    rows, one = PartitionSpec(PAIRS_AXIS), PartitionSpec()

    def call(x: Rows, y: Rows, beta: Any, noise: Any) -> Any:
        check(
            x.shape[0] % devices == 0,
            f"{x.shape[0]} pairs cannot be divided among {devices} devices. Use a multiple, or fewer devices.",
        )
        ring = _Ring(devices)
        return jax.shard_map(
            _by_size(partial(work, ring), ring),
            mesh=mesh,
            in_specs=(rows, rows, one, one),
            out_specs=out,
            check_vma=False,
        )(x, y, beta, noise)

    return call


def _aligned(text: Rows, text_of: Any) -> Rows:
    """Texts in the order of their images, which puts every target on the diagonal."""
    return text if text_of is None else text[text_of]


def _block(n: int, wanted: int | None) -> int:
    """Rows of a tile, about as many as wanted, with little padding."""
    if wanted is None:
        wanted = 1024 if jax.default_backend() == "cpu" else 8192
    count = -(-n // wanted)
    return -(-n // count)


def _cut(array: Array, block: int) -> Array:
    """(n, ...) -> (number of blocks, block, ...), zeros at the end."""
    padding = -array.shape[0] % block
    padded = jnp.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1))
    return padded.reshape(-1, block, *array.shape[1:])


def _paste(blocks: Array, n: int) -> Array:
    """The reverse of `_cut`."""
    return blocks.reshape(-1, *blocks.shape[2:])[:n]


def _numbers(n: int, block: int, ring: _Ring) -> Array:
    """Index of each pair among all, (blocks, block); −1 for padding."""
    place = jnp.arange(n, dtype=jnp.int32) + ring.first(n)  # int32 as `axis_index`
    return _cut(place + 1, block) - 1


def _by_size(work: Callable[..., Any], ring: _Ring) -> Callable[..., Any]:
    """`work(bounded, x, y, beta, noise)`, `bounded` if |M_ij| ≤ |β| |x_i| |y_j| keeps exp(M_ij) far from overflow."""

    def call(x: Rows, y: Rows, beta: Any, noise: Any) -> Any:
        longest = [jax.lax.stop_gradient(ring.max(jnp.max(jnp.sum(z**2, axis=1)))) for z in (x, y)]
        bound = jnp.abs(jax.lax.stop_gradient(beta)) * jnp.sqrt(longest[0] * longest[1])
        bounded = bound < exponential_limit(x.dtype)
        return fast_if(bounded, partial(work, True), partial(work, False), x, y, beta, noise)

    return call


def _product(a: Array, b: Array) -> Array:
    # Full single precision, not less: logits are β times a cosine.
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


# --- the first pass: log-sum-exp ----------------------------------------------------------------------


class _Softmax(NamedTuple):
    """For each row or column: `loss` lse(M_i,:) − Σ_j T_ij M_ij, `lse`, and `missing` 1 − p_ii without cancellation."""

    loss: Float[Array, " n"]
    lse: Float[Array, " n"]
    missing: Float[Array, " n"]


def _statistics(
    x: Rows, y: Rows, beta: Any, noise: Any, block: int | None, ring: _Ring, bounded: bool
) -> tuple[_Softmax, _Softmax]:
    """Softmaxes of rows and columns on this device; with one exponential for both if logits are `bounded`."""
    n, size = x.shape[0], _block(x.shape[0], block)
    target = beta * jnp.sum(x * y, axis=1)
    numbers, targets = _numbers(n, size, ring), _cut(target, size)
    low = float(jnp.finfo(x.dtype).min) / 4

    def step(row: Any, row_sums: Any, column: Any, column_sums: Any) -> tuple[Any, Any]:
        (x, at_x, i), (y, at_y, j) = row, column
        logits = beta * _product(x, y.T)
        others = (i[:, None] != j[None, :]) & (i >= 0)[:, None] & (j >= 0)[None, :]
        if bounded:
            terms = jnp.where(others, jnp.exp(logits), 0)
            return row_sums + jnp.sum(terms, axis=1), column_sums + jnp.sum(terms, axis=0)
        return (
            _add(row_sums, jnp.where(others, logits - at_x[:, None], -jnp.inf), axis=1),
            _add(column_sums, jnp.where(others, logits - at_y[None, :], -jnp.inf), axis=0),
        )

    none = jnp.zeros_like(targets) if bounded else (jnp.full_like(targets, low), jnp.zeros_like(targets))
    rows, columns = (_cut(x, size), targets, numbers), (_cut(y, size), targets, numbers)
    sums = ring.visit(step, rows, none, columns, none)
    # Soft targets need Σ_{j≠i} (M_ij − M_ii), which follows from sums of rows.
    total_x, total_y = (ring.sum(jnp.sum(z, axis=0)) for z in (x, y))
    total = n * ring.devices
    found = []
    for sums_of_one, z, opposite in zip(sums, (x, y), (total_y, total_x), strict=True):
        largest, others = (jnp.zeros_like(targets), sums_of_one * jnp.exp(-targets)) if bounded else sums_of_one
        largest, others = _paste(largest, n), _paste(others, n)
        hard = jnp.where(
            largest <= 0,
            jnp.log1p(others * jnp.exp(jnp.minimum(largest, 0))),
            largest + jnp.log(others + jnp.exp(-jnp.maximum(largest, 0))),
        )
        soft = hard
        if noise is not None:
            soft = hard - noise / (total - 1) * (beta * (z @ opposite) - total * target)
        found.append(_Softmax(soft, target + hard, -jnp.expm1(-hard)))
    return found[0], found[1]


def _add(sums: tuple[Array, Array], excess: Array, axis: int) -> tuple[Array, Array]:
    """Add a tile to (m, s), where s e^m = Σ exp(excess)."""
    largest, total = sums
    # The shift cancels from the sum and from all its derivatives.
    new = jax.lax.stop_gradient(jnp.maximum(largest, jnp.max(excess, axis=axis)))
    terms = jnp.exp(excess - jnp.expand_dims(new, axis))
    return new, total * jnp.exp(largest - new) + jnp.sum(terms, axis=axis)


# --- the second pass: the gradient --------------------------------------------------------------------


def _gradient(
    x: Rows,
    y: Rows,
    beta: Any,
    noise: Any,
    rows: _Softmax,
    columns: _Softmax,
    weights: tuple[float, float],
    block: int | None,
    ring: _Ring,
    bounded: bool,
) -> tuple[Rows, Rows]:
    """(G Y, Gᵀ X) on this device, G = n ∂L/∂M = a (rowsoftmax − T) + b (columnsoftmax − T)."""
    n, size = x.shape[0], _block(x.shape[0], block)
    a, b = weights
    numbers = _numbers(n, size, ring)
    # Off the diagonal G is the sum of the softmaxes; on it −(1 − p_ii), which is known to all digits.
    missing = _cut(a * rows.missing + b * columns.missing, size)
    each = 0.0 if noise is None else (a + b) * noise / (n * ring.devices - 1)
    own = 0.0 if noise is None else (a + b) * noise

    def step(row: Any, row_sums: Any, column: Any, column_sums: Any) -> tuple[Any, Any]:
        (x, lse_x, missing, i), (y, lse_y, j) = row, column
        logits = beta * _product(x, y.T)
        if bounded:
            softmaxes = jnp.exp(logits) * (a * jnp.exp(-lse_x)[:, None] + b * jnp.exp(-lse_y)[None, :])
        else:
            softmaxes = a * jnp.exp(logits - lse_x[:, None]) + b * jnp.exp(logits - lse_y[None, :])
        gradient = jnp.where(i[:, None] == j[None, :], own - missing[:, None], softmaxes - each)
        gradient = jnp.where((i >= 0)[:, None] & (j >= 0)[None, :], gradient, 0)
        return row_sums + _product(gradient, y), column_sums + _product(gradient.T, x)

    cut_x, cut_y = _cut(x, size), _cut(y, size)
    given = (cut_x, _cut(rows.lse, size), missing, numbers), (cut_y, _cut(columns.lse, size), numbers)
    on_x, on_y = ring.visit(step, given[0], jnp.zeros_like(cut_x), given[1], jnp.zeros_like(cut_y))
    return _paste(on_x, n), _paste(on_y, n)
