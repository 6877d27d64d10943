"""Features in `.safetensors` files; the package is loaded when such a file is read or written."""

import json

import numpy as np

from flowsim.data.features import Features
from flowsim.data.numpy_files import contents, read
from flowsim.data.packages import package
from flowsim.data.sources import register

#: What the metadata hold, as lists in JSON: tensors have no strings.
_STRINGS = ("split", "names", "classes")


def _write(features: Features, path: str) -> None:
    found = contents(features)
    strings = {name: json.dumps(found[name].tolist(), ensure_ascii=False) for name in _STRINGS if name in found}
    tensors = {name: np.ascontiguousarray(array) for name, array in found.items() if name not in _STRINGS}
    package("safetensors.numpy", "safetensors").save_file(tensors, path, metadata=strings)


read_safetensors = register(".safetensors", write=_write)(read)
