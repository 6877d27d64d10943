"""Numbers and arrays: float64 leaves, NumPy/JAX dispatch, transfer to the device and back."""

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from flowsim.base.checks import check, host_array, is_real, shown
from flowsim.errors import FlowsimError

#: Arrays of states: NumPy on the host, JAX inside a solve.
Numeric = jax.Array | np.ndarray

#: From this many pairs on nothing n×n is formed where that can be avoided: tiles need a quarter of the processor's
#: time there (docs/performance.md), and from about ten times as many on nothing else fits into memory.
LARGE = 256


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products that are traced here keep the precision of their type; also a decorator.

    On GPUs JAX otherwise rounds float32 factors to TF32, whose relative precision is 5e-4.
    """
    with jax.default_matmul_precision("highest"):
        yield


def number(value: Any) -> Any:
    """A numeric leaf: NumPy float64 unless it already is a JAX array.

    NumPy arrays are traced by `equinox.filter_jit`, so that changing the number never recompiles, and,
    unlike `jnp.asarray` outside 64-bit mode, they do not round 0.07 to single precision.
    """
    # Placeholders that JAX puts into modules while it rearranges trees pass through unchanged.
    if isinstance(value, jax.core.Tracer) or type(value) is object:  # pyright: ignore
        return value
    # NumPy reads '0.1' as 0.1, None as NaN, True as 1, and drops imaginary parts.
    found = host_array(value)
    if found is None or not is_real(found):
        raise FlowsimError(f"Expected a number, but got {shown(value)}. Use an int or a float.")
    check(
        found.ndim == 0,
        f"Expected one number, but got an array of shape {found.shape}. To vary it, use fs.sweep(..., over=...).",
    )
    return value if isinstance(value, jax.Array) else found.astype(np.float64)


def optional_number(value: Any) -> Any:
    """`number`, or None."""
    return None if value is None else number(value)


def moderate(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d), those whose squares leave float64 scaled by a power of two; all others as they are."""
    exponents = np.frexp(np.abs(rows).max(axis=1, initial=0.0))[1]
    far = np.abs(exponents) > 500
    if not far.any():
        return rows
    rows = rows.copy()
    with np.errstate(under="ignore"):
        rows[far] = np.ldexp(rows[far], -exponents[far, None])
    return rows


def plain(value: Any) -> Any:
    """Python's own numbers and lists for those of NumPy and JAX: the values of static fields."""
    found = isinstance(value, (np.ndarray, np.generic, jax.Array)) and not isinstance(value, jax.core.Tracer)  # pyright: ignore
    return value.tolist() if found else value


def namespace(*values: Any) -> Any:
    """`jax.numpy` if any of the values is a JAX array or tracer, `torch` if one is a tensor, else `numpy`."""
    if any(isinstance(v, jax.Array) for v in values):
        return jnp
    # Tensors exist only where PyTorch is loaded already.
    torch = sys.modules.get("torch")
    return torch if torch is not None and any(isinstance(v, torch.Tensor) for v in values) else np


def unstack(tree: PyTree, indices: Iterable[int]) -> list[PyTree]:
    """The trees with these indices of trees that are stacked along a first axis."""
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in indices]


def to_device(tree: PyTree, dtype: Any = np.float64) -> PyTree:
    """All floating NumPy leaves as JAX arrays of `dtype` (call it inside `jax.enable_x64(True)`)."""

    leaves, structure = jax.tree.flatten(tree)
    arrays = {}
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, (np.ndarray, np.generic, jax.Array)) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        if isinstance(leaf, jax.Array):
            leaves[i] = leaf if leaf.dtype == dtype else leaf.astype(dtype)
        else:
            arrays[i] = np.asarray(leaf, dtype)
    # One transfer for all is several times faster than one each.
    for i, array in jax.device_put(arrays).items():
        leaves[i] = array
    return jax.tree.unflatten(structure, leaves)


def to_numpy(tree: PyTree) -> PyTree:
    """All JAX leaves as NumPy arrays."""
    return jax.tree.map(lambda leaf: np.asarray(leaf) if isinstance(leaf, jax.Array) else leaf, tree)


def on_cpu() -> Any:
    """Within it, JAX computes on the CPU, which leaves the GPU to a model; no change where JAX has no CPU."""
    try:
        return jax.default_device(jax.devices("cpu")[0])
    except RuntimeError:  # a user chose other platforms
        return contextlib.nullcontext()
