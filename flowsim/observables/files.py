"""Embeddings in files: the rows of images and of texts, in files of many formats."""

import os
from typing import NamedTuple

import numpy as np

from flowsim.base.checks import check, shown
from flowsim.data.arrays import read_one, read_pair
from flowsim.data.arrays.named import PathLike
from flowsim.errors import FlowsimError
from flowsim.observables import blocks
from flowsim.observables.checks import check_finite, check_shapes, real_array

_CURE = "Save it with np.save(path, np.stack([image, text])) or np.savez(path, image=image, text=text)."


class Embeddings(NamedTuple):
    """Rows of a file as they are stored; only shapes and dtypes are checked.

    Attributes:
        image: (n, d) rows of images.
        text: (m, d) rows of texts.
        captions_per_image: c if the file says so, with texts of shape (n, c, d); else 1.
    """

    image: np.ndarray
    text: np.ndarray
    captions_per_image: int = 1


def load_embeddings(
    path: PathLike, text_path: PathLike | None = None, *, image: str | None = None, text: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Read embeddings from a file, as float64 arrays.

    A file is of any kind that `flowsim.data.arrays.read_named` reads: `.npy`, `.npz`, `.safetensors`, `.pt`, `.h5`,
    `.zarr`, `.parquet`, `.csv`, `.tsv`, or a folder of `.npy` files as clip-retrieval writes them. It holds either one
    array of shape (2, n, d), images first, or named arrays, of which the images and the texts are found by their usual
    names: image and text, images and texts, img and txt, visual and textual, also followed by embeds, features, emb,
    embeddings and the like. Rows need not have unit length. Pickled objects are never loaded.

    Args:
        path: The file of both modalities, or of the images if `text_path` is given.
        text_path: The file of the texts.
        image: The name of the images in their file. Default: the usual names.
        text: The name of the texts in their file.

    Returns:
        (image, text), of shapes (n, d) and (m, d). Texts of shape (n, c, d) become c·n rows, those of one image
        together: pass `captions_per_image=c` to `report`.

    Raises:
        FlowsimError: For a file that is missing, unreadable, of another kind, or with invalid embeddings; for names
            that it does not have; and unless exactly one pair of arrays has usual names. The message gives the path.
    """
    found = open_embeddings(path, text_path, image=image, text=text)
    return np.array(found[0], np.float64), np.array(found[1], np.float64)


def open_embeddings(
    path: PathLike, text_path: PathLike | None = None, *, image: str | None = None, text: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Like `load_embeddings`, but in the dtype of the file, and mapped into memory where possible; for `report`.

    Mapped are `.npy`, `.npz` unless compressed, `.safetensors`, `.pt`, and `.h5` unless chunked or compressed.

    Args:
        path: The file, or that of the images, as for `load_embeddings`.
        text_path: The file of the texts.
        image: The name of the images.
        text: The name of the texts.

    Returns:
        (image, text), of shapes (n, d) and (m, d), as for `load_embeddings`.

    Raises:
        FlowsimError: As for `load_embeddings`.
    """
    found = find_embeddings(path, text_path, image=image, text=text)
    for name, array, source in (("image", found.image, path), ("text", found.text, text_path or path)):
        try:
            for start in range(0, len(array), blocks.BLOCK):
                check_finite(name, np.asarray(array[start : start + blocks.BLOCK], np.float64), start)
                blocks.release(array)
        except FlowsimError as error:
            raise FlowsimError(f"{source}: {error}") from error
    return found.image, found.text


def find_embeddings(
    path: PathLike, text_path: PathLike | None = None, *, image: str | None = None, text: str | None = None
) -> Embeddings:
    """As `open_embeddings`, without reading the rows: `report` refuses NaN, infinity and rows of zeros itself.

    Args:
        path: The file, or that of the images, as for `load_embeddings`.
        text_path: The file of the texts.
        image: The name of the images.
        text: The name of the texts.

    Returns:
        The rows, and how many captions an image has.

    Raises:
        FlowsimError: As for `open_embeddings`, except for the values of rows.
    """
    for one in (path,) if text_path is None else (path, text_path):
        if not isinstance(one, str | os.PathLike) or not str(one):  # a whole number would mean an open file
            raise FlowsimError(f"Expected the path of a file of embeddings, but got {shown(one)}. {_CURE}")
    images, texts = read_pair(path, text_path, image=image, text=text)
    try:
        return _checked(images, texts)
    except FlowsimError as error:
        raise FlowsimError(f"{path}{'' if text_path is None else f' and {text_path}'}: {error}") from error


def open_array(path: PathLike, name: str | None = None) -> np.ndarray:
    """One array of a file, in its dtype: that of one modality, or a matrix of similarities.

    Args:
        path: The file, of any kind that `load_embeddings` reads.
        name: The name of the array. Default: the only one with at least two axes.

    Returns:
        The array, mapped into memory where possible.

    Raises:
        FlowsimError: If the file cannot be read, does not have the name, or holds several arrays.
    """
    return read_one(path, name)


def _checked(images: np.ndarray, texts: np.ndarray) -> Embeddings:
    """Rows of both modalities; refuses other shapes and dtypes."""
    image, text = real_array("image", images), real_array("text", texts)
    captions = 1
    if text.ndim == 3 and image.ndim == 2:
        captions = text.shape[1]
        check(
            captions > 0 and len(text) == len(image),
            f"`image` has {len(image)} rows, and `text` has shape {text.shape}. Write the captions of each image "
            "as (n, c, d).",
        )
        text = text.reshape(-1, text.shape[2])
    check_shapes({"image": image, "text": text}, pairs=False)
    return Embeddings(image, text, captions)
