"""Checks of what a reader gives: keys, captions, images and pairs. Each raises one sentence with the cure."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from flowsim.errors import FlowsimError

#: How to use another split; `held_out` is that of evaluations during training.
OTHER_SPLIT = (
    "Choose another with `split=NAME` (evaluations in training: `held_out=NAME`), or use all images with `split=None` "
    "(`held_out=None`)."
)


def checked_keys(keys: Any, source: str, split: str | None) -> tuple[str, ...]:
    """The keys of images as a tuple; refuses what are not distinct strings, and no keys at all."""
    names = _items(keys)
    if names is None:
        raise FlowsimError(f"Argument `keys` must be a list of strings, but is {_shown(keys)}. Give one per image.")
    if not names and split is None:
        raise FlowsimError(f"{source!r} has no images. Give a source with at least one.")
    if not names:
        raise FlowsimError(f"{source!r} has no images in split {split!r}. {OTHER_SPLIT}")
    for name in names:
        if not isinstance(name, str):
            raise FlowsimError(f"Keys of images must be strings, but one is {_shown(name)}. Use {str(name)!r}.")
    if len(set(names)) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise FlowsimError(f"Keys of images must differ, but {name!r} occurs {count} times. Name each image once.")
    return names


def checked_captions(captions: Any, keys: tuple[str, ...], may_be_empty: bool) -> tuple[tuple[str, ...], ...]:
    """The captions of each image as tuples; refuses what are not lists of strings, and, unless allowed, no caption."""
    if not isinstance(captions, Iterable):
        raise FlowsimError(
            f"Argument `captions` must be a list of lists, but is {_shown(captions)}. Give one per image."
        )
    found = []
    for key, given in zip(keys, captions, strict=True):
        texts = _items(given)
        if texts is None:
            cure = f"Use {_shown([str(given)])}" if isinstance(given, str) else "Give a list, also of a single caption"
            what = _shown(str(given) if isinstance(given, str) else given)  # NumPy's strings as Python's
            raise FlowsimError(f"Captions of image {key!r} must be a list of strings, but are {what}. {cure}.")
        for text in texts:
            if not isinstance(text, str):
                raise FlowsimError(
                    f"Captions of image {key!r} must be strings, but one is {_shown(text)}. Leave out what is no text."
                )
        if not texts and not may_be_empty:
            raise _no_caption(key)
        found.append(texts)
    return tuple(found)


def checked_pairs(found: Any, pairs: type, reader: str, source: str, captioned: bool) -> Any:
    """What a reader returns for a source; refuses what is not of the class `pairs`, and images without captions."""
    if not isinstance(found, pairs):
        raise FlowsimError(
            f"Reader {reader!r} must return `Pairs`, but gives {_shown(found)} for {source!r}. "
            "Return `fs.clip.data.Pairs.of(...)`."
        )
    if captioned:
        for key, texts in zip(found.keys, found.captions, strict=True):
            if not texts:
                raise _no_caption(key)
    return found


def checked_opener(open_image: Any) -> Any:
    """The function that opens images; refuses what cannot be called."""
    if not callable(open_image):
        kind = type(open_image).__name__
        raise FlowsimError(f"Argument `open_image` must be a function, but is a {kind}. Use e.g. lambda i: images[i].")
    return open_image


def not_an_image(image: Any, key: str, source: str) -> FlowsimError:
    """The error for an `open_image` that gives something else than an image."""
    return FlowsimError(
        f"`open_image` must give images of Pillow, but gives {type(image).__name__} for {key!r} of {source!r}. "
        "Use e.g. PIL.Image.fromarray(array)."
    )


def _no_caption(key: str) -> FlowsimError:
    return FlowsimError(f"Image {key!r} has no caption. Give it at least one, or leave it out.")


def _items(values: Any) -> tuple[Any, ...] | None:
    """The items of a list or another sequence; None for a text, and for what has no items."""
    return None if isinstance(values, (str, bytes)) or not isinstance(values, Iterable) else tuple(values)


def _shown(value: Any) -> str:
    """A value in a message, in one line of at most 60 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:56]} ..."
