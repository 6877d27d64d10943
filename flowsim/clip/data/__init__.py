"""Image-text pairs from folders, tar shards, WebDataset, COCO, or rendered shapes; and images with classes.

    pairs = fs.clip.data.load("photos", "train")
    pairs.captions[0], pairs.image(0), pairs.pixels(64)
    print(pairs.report())

Needs neither JAX nor PyTorch. `register` adds readers of other sources.
"""

from flowsim.clip.data.coco import read as _read_coco  # noqa: F401  (readers register when they are loaded)
from flowsim.clip.data.files import IMAGES
from flowsim.clip.data.folders import read as _read_folder  # noqa: F401
from flowsim.clip.data.pairs import Pairs, Skips
from flowsim.clip.data.pixels import WORKERS, Resize
from flowsim.clip.data.shapes import CLASSES, Shapes
from flowsim.clip.data.sources import (
    READERS,
    Reader,
    is_generated,
    known_split,
    load,
    load_all,
    load_labelled,
    reader_of,
    register,
)

__all__ = [
    "CLASSES",
    "IMAGES",
    "READERS",
    "WORKERS",
    "Pairs",
    "Reader",
    "Resize",
    "Shapes",
    "Skips",
    "is_generated",
    "known_split",
    "load",
    "load_all",
    "load_labelled",
    "reader_of",
    "register",
]
