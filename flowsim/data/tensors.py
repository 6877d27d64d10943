"""Features in `.safetensors` files; the package is loaded when such a file is read or written."""

import json
from typing import Any

import numpy as np

from flowsim.data.features import Features
from flowsim.data.numpy_files import ARRAYS, contents, features_of, reading
from flowsim.data.packages import package
from flowsim.data.sources import register

#: What the metadata hold, as lists in JSON: tensors have no strings.
_STRINGS = ("split", "names", "classes")


def _write(features: Features, path: str) -> None:
    found = contents(features)
    strings = {name: json.dumps(found[name].tolist(), ensure_ascii=False) for name in _STRINGS if name in found}
    tensors = {name: np.ascontiguousarray(array) for name, array in found.items() if name not in _STRINGS}
    package("safetensors.numpy", "safetensors").save_file(tensors, path, metadata=strings)


@register(".safetensors", write=_write)
def read(source: str) -> Features:
    """The features of a `.safetensors` file."""
    library = package("safetensors", "safetensors")
    known = {name: argument for argument, names in ARRAYS.items() for name in names}
    content: dict[str, Any] = {}
    with reading(source, library.SafetensorError), library.safe_open(source, framework="numpy") as file:
        for name in file.keys():  # noqa: SIM118 (it is no mapping)
            content[name] = file.get_tensor(name) if name in known else None
        for name, text in (file.metadata() or {}).items():
            if known.get(name) in _STRINGS:
                content[name] = json.loads(text)
    return features_of(content, source)
