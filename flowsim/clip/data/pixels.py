"""Decode images to squares of RGB pixels, with several threads."""

import os
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from flowsim.errors import FlowsimError, unknown_name

#: Number of threads for decoding.
WORKERS = min(8, os.cpu_count() or 1)
#: Exceptions of Pillow for images that are truncated, damaged, or suspiciously large.
BROKEN = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


class Resize(NamedTuple):
    """How an image becomes a square, with open_clip's names.

    Attributes:
        mode: "shortest" scales the shorter side and keeps the middle; "squash" scales each side separately.
        interpolation: "bicubic" or "bilinear", antialiased.
    """

    mode: str = "shortest"
    interpolation: str = "bicubic"

    def checked(self) -> "Resize":
        """Check mode and interpolation.

        Returns:
            The same object.

        Raises:
            FlowsimError: For an unknown mode or interpolation.
        """
        for kind, known in (("mode", ("shortest", "squash")), ("interpolation", tuple(_FILTERS))):
            if getattr(self, kind) not in known:
                raise unknown_name(f"{kind} of resizing", getattr(self, kind), known)
        return self


def rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, decoded; transparent parts become white."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode.startswith("I;16"):  # Pillow would clip it at 255
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def square(image: Image.Image, size: int, resize: Resize) -> UInt8[np.ndarray, "size size 3"]:
    """The image as a square of `size` pixels."""
    # Decode JPEG at a lower resolution, if it is still at least twice the needed one.
    image.draft(None, (2 * size, 2 * size))
    image = rgb(image)
    width, height = image.size
    box = None
    if resize.mode == "shortest":
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
    return np.asarray(image.resize((size, size), _FILTERS[resize.interpolation], box=box))


def read_roughly(image: Image.Image) -> None:
    """Read the image to its end, at the lowest resolution that its format allows."""
    image.draft(None, (1, 1))
    image.load()


def checked_size(size: int) -> int:
    """`size`; raises `FlowsimError` if it is below 1."""
    if size < 1:
        raise FlowsimError(f"Argument `size` must be at least 1, but is {size}. Use e.g. 64.")
    return size


def in_threads(do: Callable[[int], None], count: int, workers: int) -> None:
    """Call `do` with 0 .. count − 1 in `workers` threads; raises the first error."""
    if workers < 1:
        raise FlowsimError(f"Argument `workers` must be at least 1, but is {workers}. Use e.g. 4.")
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(do, range(count)):
            pass
