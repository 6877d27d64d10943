"""Classes of pairs, as users give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from flowsim.base.checks import check, host_array, shown
from flowsim.errors import unknown_name
from flowsim.lab.landscape import unit
from flowsim.observables.checks import check_values


@dataclass(frozen=True, eq=False)
class Labels:
    """Classes of all pairs.

    Attributes:
        of_pair: Index of the class of each pair (n,), −1 for none.
        number: K, the number of classes.
        text: Unit rows of the class texts (K, d); None without them.
    """

    of_pair: np.ndarray
    number: int
    text: np.ndarray | None

    def take(self, index: np.ndarray) -> Labels:
        """The labels of some pairs."""
        return Labels(self.of_pair[index], self.number, self.text)


def labels_of(labels: Any, classes: Any, class_text: Any, pairs: int, dim: int) -> Labels | None:
    """Check the labels; None without any. Raises `FlowsimError` if they do not fit the pairs or the class texts."""
    if labels is None:
        check(
            class_text is None and classes is None,
            "`class_text` and `classes` need `labels`, the class of each pair. Pass labels of shape (n,), or neither.",
        )
        return None
    given = host_array(labels)
    if given is not None and given.dtype == object and all(isinstance(name, str) for name in given.flat):
        given = given.astype(str)
    if given is not None and given.dtype.kind == "f" and np.array_equal(given, np.rint(given)):
        given = given.astype(np.int64)  # tables hold whole numbers as floats
    check(
        given is not None and given.shape == (pairs,) and given.dtype.kind in "iuUS",
        f"Argument `labels` must be whole numbers or names of classes, one for each of the {pairs} pairs, but is "
        f"{shown(labels) if given is None else f'of shape {given.shape} and dtype {given.dtype}'}. Pass shape (n,).",
    )
    assert given is not None
    texts = None
    if class_text is not None:
        texts = check_values("class_text", class_text)
        check(
            texts.ndim == 2 and texts.shape[1] == dim and texts.any(axis=1).all(),
            f"Argument `class_text` must hold a row of {dim} numbers, not all zero, for each class, but has shape "
            f"{texts.shape}. Pass shape (K, {dim}).",
        )
        texts = unit(texts)
    given = given.astype(str) if given.dtype.kind in "US" else given.astype(np.int64)
    names = _names(classes)
    if names is not None and texts is not None:
        check(
            len(names) == len(texts),
            f"There are {len(names)} `classes`, but {len(texts)} rows of `class_text`. Give one row for each class.",
        )
    if given.dtype.kind == "U":
        check(
            names is not None or texts is None,
            "Labels that are names need `classes`, the names in the order of `class_text`. Pass it, or whole numbers.",
        )
        names = sorted(set(given.tolist()) - {""}) if names is None else names
        for name in set(given.tolist()) - {"", *names}:
            raise unknown_name("class", name, names)
        place = {name: k for k, name in enumerate(names)} | {"": -1}
        found = np.array([place[name] for name in given.tolist()])
        return _checked(found, len(names), texts)
    if names is None and texts is None:
        known = np.unique(given[given >= 0])
        return _checked(np.where(given >= 0, np.searchsorted(known, given), -1), len(known), None)
    return _checked(np.maximum(given, -1), len(texts if names is None else names), texts)  # pyright: ignore


def _names(classes: Any) -> list[str] | None:
    if classes is None:
        return None
    listed = host_array(classes)
    check(
        not isinstance(classes, str) and listed is not None and listed.ndim == 1,
        f"Argument `classes` must be a list of names, but is {shown(classes)}. Use e.g. ['cat', 'dog'].",
    )
    return [str(name) for name in classes]


def _checked(found: np.ndarray, number: int, texts: np.ndarray | None) -> Labels:
    check(
        found.max() < number,
        f"Argument `labels` has the class {found.max()}, but there are {number} classes. Use 0 to {number - 1}, and -1 "
        "for none.",
    )
    check(
        len(np.unique(found[found >= 0])) > 1,
        "The pairs are of fewer than two classes. Give labels of at least two, or none.",
    )
    return Labels(found, number, texts)
