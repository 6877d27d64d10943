"""Embeddings in NumPy files."""

import os

import numpy as np

from flowsim.base.checks import shown
from flowsim.errors import FlowsimError
from flowsim.observables.checks import check_blocks, check_shapes, real_array

_CURE = "Save it with np.save(path, np.stack([image, text])) or np.savez(path, image=image, text=text)."


def load_embeddings(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read embeddings from a NumPy file, as float64 arrays.

    The file is either a `.npy` file with an array of shape (2, n, d), images first, or a `.npz` file with arrays
    `image` and `text`. Pickled objects are never loaded.

    Args:
        path: The file.

    Returns:
        (image, text), of shapes (n, d) and (m, d).

    Raises:
        FlowsimError: For a file that is missing, unreadable, of another kind, or with invalid embeddings. The message
            gives the path.
    """
    image, text = open_embeddings(path)
    return np.array(image, np.float64), np.array(text, np.float64)


def open_embeddings(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Like `load_embeddings`, but in the dtype of the file, and memory-mapped from a `.npy` file; for `report`.

    Args:
        path: The file.

    Returns:
        (image, text), of shapes (n, d) and (m, d).

    Raises:
        FlowsimError: As for `load_embeddings`.
    """
    if not isinstance(path, str | os.PathLike) or not str(path):  # a whole number would mean an open file
        raise FlowsimError(f"Expected the path of a .npy or .npz file, but got {shown(path)}. {_CURE}")
    try:
        image, text = _read(path)
    except FlowsimError:
        raise
    except FileNotFoundError:
        raise FlowsimError(f"{path} does not exist. Check the path.") from None
    except IsADirectoryError:
        raise FlowsimError(f"{path} is a directory. Pass a .npy or .npz file.") from None
    except OSError as error:
        raise FlowsimError(f"{path} cannot be read ({error.strerror or error}). Check the file.") from error
    except Exception as error:  # NumPy and zipfile raise many kinds for damaged or foreign files
        if "allow_pickle" in str(error) or "Python objects in dtype" in str(error):
            raise FlowsimError(f"{path} holds pickled Python objects, which are not loaded. {_CURE}") from error
        raise FlowsimError(f"{path} is damaged or not a NumPy file ({error}). {_CURE}") from error
    try:
        arrays = {"image": real_array("image", image), "text": real_array("text", text)}
        for name, array in arrays.items():
            check_blocks(name, array)
        check_shapes(arrays, pairs=False)
    except FlowsimError as error:
        raise FlowsimError(f"{path}: {error}") from error
    return arrays["image"], arrays["text"]


def _read(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """The two arrays of a file, unchecked."""
    with open(path, "rb") as file:
        magic = file.read(6)
        if magic != b"\x93NUMPY" and not magic.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            raise FlowsimError(f"{path} is not a NumPy file (.npy or .npz). {_CURE}")
        file.seek(0)
        if magic.startswith(b"PK"):
            content = np.load(file, allow_pickle=False)
            if not {"image", "text"} <= set(content.files):
                found = ", ".join(content.files) or "nothing"
                raise FlowsimError(f"{path} needs arrays `image` and `text`, but holds: {found}. {_CURE}")
            return content["image"], content["text"]
        content = np.load(path, mmap_mode="r", allow_pickle=False)
        if content.ndim != 3 or content.shape[0] != 2:
            raise FlowsimError(f"{path} holds an array of shape {content.shape}, not (2, n, d). {_CURE}")
        image, text = content
        return image, text
