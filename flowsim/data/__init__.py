"""Features of image-text pairs: vectors of frozen encoders, from arrays and files, and the order of minibatches.

    features = fs.data.load("features.npz").scaled("length")
    train = features.part("train")
    order = fs.data.Order(train.pairs, batch=256, seed=0)
    rows = train.image_rows(order.indices(0))

`emoji` are small features that come with flowsim. `register` adds readers of other files.
"""

from flowsim.data.features import Features
from flowsim.data.given import from_arrays
from flowsim.data.numpy_files import read as _read  # noqa: F401
from flowsim.data.order import Order
from flowsim.data.parquet import read as _read_parquet  # noqa: F401
from flowsim.data.scaling import Scaling
from flowsim.data.shipped import emoji
from flowsim.data.sources import READERS, Reader, load, register, save
from flowsim.data.tensors import read_safetensors as _read_safetensors  # noqa: F401

__all__ = ["READERS", "Features", "Order", "Reader", "Scaling", "emoji", "from_arrays", "load", "register", "save"]
