"""Features of image-text pairs: vectors of frozen encoders, from arrays and files, and the order of minibatches.

    features = fs.data.load("features.npz").scaled("length")
    train = features.part("train")
    order = fs.data.Order(train.pairs, batch=256, seed=0)
    rows = train.image_rows(order.indices(0))

`emoji` are small features that come with flowsim. `register` adds readers of other files.
"""

from flowsim.data.features import Features
from flowsim.data.given import from_arrays
from flowsim.data.order import Order
from flowsim.data.scaling import Scaling

__all__ = [
    "Features",
    "Order",
    "Scaling",
    "from_arrays",
]
