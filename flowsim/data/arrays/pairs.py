"""Which arrays of a file are the images and the texts: usual names."""

import contextlib
import itertools

import numpy as np

from flowsim.base.checks import check
from flowsim.data.arrays.named import NamedArrays, PathLike, read_named
from flowsim.errors import FlowsimError, unknown_name

_WHICH = "Say which with image=NAME and text=NAME (--image NAME --text NAME)."

#: What the two modalities are called, in pairs, and what may follow such a name.
_WORDS = {
    "image": ("text", "caption"), "images": ("texts", "captions"), "img": ("txt", "text"), "imgs": ("txts", "texts"),
    "visual": ("textual", "text"), "vision": ("language", "text"),
}  # fmt: skip
_AFTER = ("", "embed", "embeds", "emb", "embs", "embedding", "embeddings", "feature", "features", "feat", "feats",
          "rows", "vector", "vectors", "output", "projection", "latents")  # fmt: skip
_USUAL = [(image + after, text + after) for after in _AFTER for image, texts in _WORDS.items() for text in texts]


def read_pair(
    path: PathLike, text_path: PathLike | None = None, *, image: str | None = None, text: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The arrays of images and of texts, as they are stored and not verified.

    Args:
        path: A file with both, as an array of shape (2, n, d) or by name; or that of the images.
        text_path: The file of the texts.
        image: The name of the images in their file. Default: the usual names.
        text: The name of the texts in their file.

    Returns:
        (images, texts).

    Raises:
        FlowsimError: If a file cannot be read, or if it is not clear which arrays are meant.
    """
    named = read_named(path)
    if text_path is not None:
        other = read_named(text_path)
        return _one_of(named, image, "image"), _one_of(other, text, "text")
    if image is None and text is None and len(named) == 1:
        stacked = next(iter(named.values()))
        if stacked.ndim == 2 and stacked.shape[0] == stacked.shape[1]:
            raise FlowsimError(
                f"{path} holds one square matrix, {stacked.shape}. If these are cosines, use report_similarity "
                "(flowsim measure --similarity); if they are rows of one modality, give the file of the texts as well."
            )
        check(
            stacked.ndim == 3 and len(stacked) == 2,
            f"{path} holds an array of shape {stacked.shape}, not (2, n, d). Save it with "
            "np.save(path, np.stack([image, text])), or give the file of the texts as second one.",
        )
        images, texts = stacked
        return images, texts
    images, texts = pair_names(named, image, text)
    return named[images], named[texts]


def read_one(path: PathLike, name: str | None = None) -> np.ndarray:
    """One array of a file: the one of this name, or the only one with at least two axes."""
    named = read_named(path)
    check_name(named, name)
    candidates = [name] if name is not None else matrices(named)
    check(
        len(candidates) == 1,
        f"{path} holds {named.describe()}. Say which array with its name (--image NAME, or --modality "
        "NAME=FILE:ARRAY).",
    )
    return named[candidates[0]]


def matrices(named: NamedArrays) -> list[str]:
    """The names of arrays that have, or may have, at least two axes."""
    return [name for name in named if (shape := named.shape(name)) is None or len(shape) > 1]


def check_name(named: NamedArrays, name: str | None) -> None:
    """Refuse a name that the file does not have; None passes."""
    if name is not None and name not in named:
        raise FlowsimError(f"{named.path}: {unknown_name('array', name, named)}")


def _one_of(named: NamedArrays, name: str | None, role: str) -> np.ndarray:
    """The array of one modality: of this name, the only one with rows, or the one with the usual name."""
    check_name(named, name)
    candidates = [name] if name is not None else matrices(named)
    if len(candidates) > 1:
        with contextlib.suppress(FlowsimError):
            candidates = [pair_names(named)[role == "text"]]
    check(
        len(candidates) == 1,
        f"{named.path} holds {named.describe()}. Say which array is the {role} with {role}=NAME (--{role} NAME).",
    )
    return named[candidates[0]]


def pair_names(named: NamedArrays, image: str | None = None, text: str | None = None) -> tuple[str, str]:
    """The names of the images and the texts.

    Args:
        named: The arrays of a file.
        image: The name of the images, if it is known.
        text: The name of the texts, if it is known.

    Returns:
        (name of the images, name of the texts).

    Raises:
        FlowsimError: For a name that the file does not have, and unless exactly one pair of usual names is there.
    """
    check_name(named, image)
    check_name(named, text)
    found = usual_pairs(named)
    if image is not None:
        found = [(image, other) for name, other in found if name == image] if text is None else [(image, text)]
    elif text is not None:
        found = [(name, text) for name, other in found if other == text]
    if len(found) == 1:
        return found[0]
    if not found and (image is None) != (text is None):
        given, role, missing = (image, "images", "text") if text is None else (text, "texts", "image")
        raise FlowsimError(
            f"{named.path} holds {named.describe()}. The {role} are {given!r}; say which array is the {missing} with "
            f"{missing}=NAME (--{missing} NAME)."
        )
    several = f"several pairs of images and texts ({'; '.join(' and '.join(one) for one in found)})"
    what = several if found else "no pair of images and texts with usual names"
    raise FlowsimError(f"{named.path} has {what}. It holds {named.describe()}. {_WHICH}")


def usual_pairs(named: NamedArrays) -> list[tuple[str, str]]:
    """All pairs of arrays with usual names in the same group; only `image` and `text` if there are such arrays."""
    if "image" in named and "text" in named:
        return [("image", "text")]
    groups: dict[str, dict[str, list[str]]] = {}
    rows = set(matrices(named))
    for name in named:
        if name in rows:
            group, last = _split(name)
            groups.setdefault(group, {}).setdefault(_plain(last), []).append(name)
    return [
        pair
        for names in groups.values()
        for image, text in _USUAL
        for pair in itertools.product(names.get(image, ()), names.get(text, ()))
    ]


def _split(name: str) -> tuple[str, str]:
    """The group of an array, and its name in there."""
    place = max(name.rfind("/"), name.rfind("."))
    return name[: place + 1], name[place + 1 :]


def _plain(name: str) -> str:
    """A name in small letters and without separators."""
    return "".join(one for one in name.lower() if one.isalnum())
