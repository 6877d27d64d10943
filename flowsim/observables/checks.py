"""Checks of the arguments of metrics: arrays, temperatures and options. All raise `FlowsimError`."""

import math
from typing import Any

import numpy as np

from flowsim.base.arrays import moderate
from flowsim.base.checks import check_whole, host_array, is_real
from flowsim.errors import FlowsimError
from flowsim.observables import blocks


def check_shapes(arguments: dict[str, Any], pairs: bool) -> None:
    """Refuse invalid shapes; with `pairs`, also different numbers of rows."""
    shapes = {name: np.shape(a) for name, a in arguments.items()}
    for name, shape in shapes.items():
        if name == "temperature":
            if shape != ():
                raise FlowsimError(f"Argument `temperature` must be one number, but has shape {shape}. Use e.g. 0.07.")
            continue
        if len(shape) != 2:
            raise FlowsimError(
                f"Argument `{name}` must be 2-d with samples as rows, but has shape {shape}. "
                "Reshape it to (n, d), or use jax.vmap for a batch."
            )
        if shape[0] < 2:
            raise FlowsimError(f"Argument `{name}` needs at least 2 rows, but has {shape[0]}.")
        if shape[1] < 1:
            raise FlowsimError(f"Argument `{name}` needs at least 1 column, but has shape {shape}.")
        if name in ("similarity", "logits") and shape[0] != shape[1]:
            raise FlowsimError(f"Argument `{name}` must be square, but has shape {shape}.")
    if "image" in shapes and "text" in shapes:
        (n, d), (m, e) = shapes["image"], shapes["text"]
        if d != e:
            raise FlowsimError(f"`image` has {d} columns and `text` has {e}. Use embeddings from one shared space.")
        if pairs and n != m:
            raise FlowsimError(f"`image` has {n} rows and `text` has {m}. Pass pairs: one text row for each image row.")


def check_values(name: str, value: Any) -> np.ndarray:
    """`value` as a float64 NumPy array with checked entries."""
    array = real_array(name, value).astype(np.float64)
    if name == "temperature" and array.ndim == 0:
        if array <= 0:
            raise FlowsimError(f"Argument `temperature` must be positive, but is {array}. Pass τ itself, not log τ.")
        if not 1e-300 <= array < math.inf:
            raise FlowsimError(
                f"Argument `temperature` must be finite and at least 1e-300, but is {array}. Use e.g. 0.07."
            )
    else:
        check_finite(name, array)
    return array


def real_array(name: str, value: Any) -> np.ndarray:
    """`value` as a NumPy array of real numbers, in its own dtype."""
    array = host_array(value)
    if array is None:
        raise FlowsimError(f"Argument `{name}` has rows of different lengths. Pass an array.")
    if not is_real(array):
        raise FlowsimError(
            f"Argument `{name}` must hold real numbers, but has dtype {array.dtype}. Pass a float array."
        )
    return array


def check_finite(name: str, array: np.ndarray, first: int = 0) -> None:
    """Refuse NaN, infinity and rows of zeros. `first` is the index of the array's first row in the whole."""
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = bad[0].tolist()
        place[:1] = [index + first for index in place[:1]]
        raise FlowsimError(
            f"Argument `{name}` has NaN or infinity (first at index {tuple(place)}). "
            "Remove those rows, or repair their source."
        )
    if name in ("image", "text") and array.ndim == 2 and array.shape[1]:
        zero = np.flatnonzero(~array.any(axis=1))
        if len(zero):
            raise FlowsimError(
                f"Argument `{name}` has {len(zero)} row(s) of zeros (first: row {zero[0] + first}), "
                "which have no direction. Remove them together with their pairs."
            )


def check_blocks(name: str, array: np.ndarray) -> None:
    """`check_finite` for many rows, which may be memory-mapped."""
    for start in range(0, len(array), blocks.BLOCK):
        check_finite(name, np.asarray(array[start : start + blocks.BLOCK], np.float64), start)
        blocks.release(array)


def check_captions(images: int, texts: int, captions: int, always: bool = False) -> None:
    """Refuse row numbers that do not fit several captions for each image; with `always`, also for one caption."""
    if (captions > 1 or always) and texts != captions * images:
        raise FlowsimError(
            f"`image` has {images} rows and `text` has {texts}, but {captions} caption(s) per image need "
            f"{captions * images} text rows. Pass `captions_per_image`, with the captions of one image in consecutive "
            "rows."
        )


def check_seed(seed: Any) -> None:
    """Refuse anything but a seed, a whole number of at least 0."""
    check_whole("seed", seed, 0, "Use e.g. 0.")


def check_count(name: str, value: Any) -> None:
    """Refuse anything but a whole number of at least 1."""
    check_whole(name, value, 1, "Use e.g. 1.")


def moderate_rows(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Rows with the same directions, whose squares neither underflow nor overflow."""
    return {name: moderate(value) if name in ("image", "text") else value for name, value in arrays.items()}
