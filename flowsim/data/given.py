"""Features from arrays, with checks of all that is given. Each raises one sentence with the cure."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from flowsim.base.checks import check, host_array, is_real, shown
from flowsim.data.features import Features
from flowsim.data.rows import Rows
from flowsim.errors import FlowsimError, unknown_name


def from_arrays(
    image: Any,
    text: Any,
    *,
    split: Any = None,
    names: Any = None,
    counts: Any = None,
    labels: Any = None,
    classes: Sequence[str] | np.ndarray = (),
    class_text: Any = None,
    source: str = "arrays",
    verify: bool = True,
) -> Features:
    """Features from arrays: NumPy (also memory maps), PyTorch, JAX or lists.

    Row i of `image` belongs to row i of `text`. float16, float32 and float64 are kept; bfloat16 becomes float32, whole
    numbers become float64. Arrays of NumPy are not copied.

    Args:
        image: (N, p) features of the images.
        text: (N, q) features of one caption of each image, or (N, c, q) of c captions. A list may hold a different
            number of captions for each image.
        split: (N,) name of the split of each pair, such as "train", "val" and "test".
        names: (N,) name of each image.
        counts: (N,) number of captions of each image, if there are not always c; captions beyond it are padding.
        labels: (N,) class of each image: index into `classes`, −1 for none; or its name, "" for none.
        classes: Names of the K classes; by default those that occur in `labels`, in alphabetical order, or "0", "1",
            ... for whole numbers.
        class_text: (K, q) text features of the classes.
        source: Where the features come from, for records.
        verify: Whether every row is read once, to refuse NaN, infinity and rows of zeros.

    Returns:
        The features, not scaled.

    Raises:
        FlowsimError: If something is missing, is no number, or does not fit the rest.

    Examples:
        >>> import numpy as np
        >>> import flowsim as fs
        >>> rng = np.random.default_rng(0)
        >>> features = fs.data.from_arrays(
        ...     rng.normal(size=(100, 32)), rng.normal(size=(100, 5, 16)), split=["train"] * 80 + ["test"] * 20
        ... )
        >>> features.splits, features.captions
        ({'train': 80, 'test': 20}, 5)
    """
    images = _numbers("image", image)
    if counts is None and (ragged := _ragged(text)) is not None:
        text, counts = ragged
    texts = _numbers("text", text)
    check(images.ndim == 2, f"Argument `image` must have shape (N, p), but has {images.shape}. Give one row per image.")
    check(
        texts.ndim in (2, 3),
        f"Argument `text` must have shape (N, q) or (N, c, q), but has {texts.shape}. Give one row per caption.",
    )
    texts = texts[:, None, :] if texts.ndim == 2 else texts
    for name, array in (("image", images), ("text", texts)):
        check(
            0 not in array.shape[1:],
            f"Argument `{name}` has no columns or captions: its shape is {array.shape}. Give at least one.",
        )
    check(
        len(images) == len(texts),
        f"`image` has {len(images)} rows, but `text` has {len(texts)}. Give the captions of one image in one row.",
    )
    pairs = len(images)
    check(pairs >= 2, f"Features need at least 2 pairs, but there are {pairs}. Give more rows.")
    number = None if counts is None else _counts(counts, pairs, texts.shape[1])
    given = not isinstance(classes, str) and isinstance(classes, Iterable)
    check(given, f"Argument `classes` must be a list of names, but is {shown(classes)}. Give K names.")
    labels_, classes_ = _labels(labels, tuple(classes), pairs)
    found = Features(
        stored_image=Rows(images),
        stored_text=Rows(texts),
        split=_strings("split", split, pairs),
        names=_strings("names", names, pairs),
        counts=number,
        labels=labels_,
        classes=classes_,
        class_text=_class_text(class_text, classes_, texts.shape[2]),
        source=str(source),
    )
    if verify:
        check_values(found)
    return found


def pad(rows: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Captions (m, q) of all images, those of one image together, as (N, c, q), padded with zeros.

    Args:
        rows: (m, q).
        counts: (N,) number of captions of each image; their sum is m.
    """
    whole = np.zeros((len(counts), int(counts.max()), rows.shape[1]), rows.dtype)
    whole[np.arange(whole.shape[1]) < counts[:, None]] = rows
    return whole


def check_values(features: Features) -> None:
    """Refuse NaN, infinity and rows of zeros in images and texts; reads every row once."""
    _check_rows("image", features.stored_image, None)
    _check_rows("text", features.stored_text, features.counts)


def _numbers(name: str, value: Any) -> np.ndarray:
    """`value` as an array of float16, float32 or float64; such an array of NumPy as it is."""
    array = value if type(value) in (np.ndarray, np.memmap) else host_array(value)
    if array is None:
        raise FlowsimError(f"Argument `{name}` has rows of different lengths. Give an array.")
    if not is_real(array):
        raise FlowsimError(
            f"Argument `{name}` must hold real numbers, but has dtype {array.dtype}. Give an array of floats."
        )
    if array.dtype.kind == "f" and array.dtype.itemsize <= 8:
        return array
    # NumPy's own files know no bfloat16.
    return array.astype(np.float64 if array.dtype.kind in "iuf" else np.float32)


def _ragged(text: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """(N, c, q) and the number of captions (N,) of a list of captions of each image, if their numbers differ."""
    if not isinstance(text, (list, tuple)) or host_array(text) is not None:
        return None
    rows = [host_array(one) for one in text]
    fits = [one is not None and is_real(one) and one.ndim == 2 and one.shape[0] > 0 for one in rows]
    arrays = [_numbers("text", one) for one in rows if one is not None]
    if not all(fits) or len({one.shape[1] for one in arrays}) != 1:
        raise FlowsimError(
            "Argument `text` must hold the captions of each image as rows of equal length, at least one. "
            "Give a list of arrays (c_i, q)."
        )
    counts = np.array([len(one) for one in arrays])
    return pad(np.concatenate(arrays), counts), counts


def _counts(counts: Any, pairs: int, captions: int) -> Int[np.ndarray, "n"]:
    found = host_array(counts)
    if found is None or found.shape != (pairs,) or found.dtype.kind not in "iu":
        raise FlowsimError(f"Argument `counts` must be {pairs} whole numbers, one per image, but is {shown(counts)}.")
    wrong = np.flatnonzero((found < 1) | (found > captions))
    if len(wrong):
        raise FlowsimError(
            f"Argument `counts` must be between 1 and {captions}, the captions in `text`, but is {found[wrong[0]]} for "
            f"image {wrong[0]}. Leave out images without captions."
        )
    return found.astype(np.int64)


def _strings(name: str, values: Any, pairs: int) -> np.ndarray | None:
    """(N,) strings; None for None."""
    if values is None:
        return None
    items = values.tolist() if isinstance(values, np.ndarray) else values
    items = None if isinstance(items, (str, bytes)) or not isinstance(items, Iterable) else list(items)
    if items is None or len(items) != pairs:
        what = shown(values) if items is None else f"{len(items)} values"
        raise FlowsimError(f"Argument `{name}` must be {pairs} strings, one for each pair, but is {what}.")
    texts = [item.decode("utf-8", "replace") if isinstance(item, bytes) else item for item in items]
    for text in texts:
        if not isinstance(text, str):
            raise FlowsimError(f"Argument `{name}` must hold strings, but holds {shown(text)}. Use {str(text)!r}.")
    return np.array(texts)


def _labels(labels: Any, classes: tuple[Any, ...], pairs: int) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """Labels as indices, and the names of the classes."""
    names = tuple(str(name) for name in classes)
    check("" not in names, "Names of `classes` must not be empty. Name each class, and use the label -1 for none.")
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise FlowsimError(f"Names of `classes` must differ, but {name!r} occurs {times} times. Name each class once.")
    if labels is None:
        return None, names
    found = host_array(labels)
    if found is not None and found.dtype.kind in "USO":
        given = _strings("labels", labels, pairs)
        assert given is not None
        names = names or tuple(sorted({str(name) for name in given} - {""}))
        place = {name: k for k, name in enumerate(names)} | {"": -1}
        for name in given:
            if name not in place:
                raise unknown_name("class", name, names)
        return np.array([place[name] for name in given]), names
    if found is None or found.shape != (pairs,) or found.dtype.kind not in "iu":
        raise FlowsimError(
            f"Argument `labels` must be {pairs} whole numbers or names, one per image, but is {shown(labels)}."
        )
    names = names or tuple(map(str, range(int(found.max()) + 1)))
    wrong = np.flatnonzero((found < -1) | (found >= len(names)))
    if len(wrong):
        raise FlowsimError(
            f"Argument `labels` must be between 0 and {len(names) - 1}, or -1 for none, but is {found[wrong[0]]} for "
            f"image {wrong[0]}. Give the names of all classes as `classes`."
        )
    return found.astype(np.int64), names


def _class_text(value: Any, classes: tuple[str, ...], columns: int) -> np.ndarray | None:
    if value is None:
        return None
    found = _numbers("class_text", value)
    check(
        found.shape == (len(classes), columns),
        f"Argument `class_text` must have shape {(len(classes), columns)}, one row for each of `classes` and the "
        f"columns of `text`, but has {found.shape}.",
    )
    _check_rows("class_text", Rows(found), None)
    return found


def _check_rows(name: str, rows: Rows, counts: np.ndarray | None) -> None:
    """Refuse NaN, infinity and rows of zeros, other than padding; read in blocks."""
    for where in rows.blocks():
        block = rows.read(where)
        finite, zero = np.isfinite(block).all(axis=-1), ~block.any(axis=-1)
        if counts is not None:
            used = np.arange(block.shape[1]) < counts[where, None]
            finite, zero = finite | ~used, zero & used
        for bad, what in ((~finite, "NaN or infinity"), (zero, "only zeros, and so no direction")):
            if bad.any():
                place = np.argwhere(bad)[0]
                caption = "".join(f", caption {k}" for k in place[1:])
                raise FlowsimError(
                    f"Argument `{name}` has {what} in row {place[0] + where.start}{caption}. "
                    "Leave this pair out, or repair its source."
                )
