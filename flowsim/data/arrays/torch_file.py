"""Tensors in `.pt`, `.pth`, `.bin` and `.ckpt` files of PyTorch, mapped into memory. Only tensors are loaded.

Checkpoints often hold settings beside the weights, such as an `argparse.Namespace` or numbers of NumPy. PyTorch's
loader of weights refuses these classes. Here it gets an empty class in the place of each: no code of theirs is imported
or run, and what they held is left out.
"""

import warnings
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from flowsim.data.arrays.named import Entry, register
from flowsim.data.arrays.numpy_file import ONLY
from flowsim.data.packages import package
from flowsim.errors import FlowsimError


class _Empty:
    """Stands for an object that is not loaded; takes every argument and keeps none."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Empty":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


#: Modules whose classes hold settings in checkpoints; others are refused.
_OF_SETTINGS = (
    "argparse", "numpy", "omegaconf", "pathlib", "collections", "typing", "enum", "types", "datetime", "torch",
    "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities", "transformers", "accelerate",
    "open_clip", "open_clip_train", "hydra", "ml_collections", "easydict", "addict", "yacs", "timm", "__main__",
)  # fmt: skip
#: Classes that the loader fills as dictionaries.
_FILLED = ("collections.defaultdict",)
#: Those of Python itself.
_BUILTIN = tuple(f"builtins.{one.__name__}" for one in (
    bool, bytearray, bytes, complex, dict, float, frozenset, int, list, object, range, set, slice, str, tuple
))  # fmt: skip


@register(".pt", ".pth", ".bin", ".ckpt")
def open_pt(path: Path) -> dict[str, Entry]:
    """The tensors of a file by the keys that lead to them, joined by dots; lists of strings are arrays of strings."""
    torch = package("torch", "torch", "clip")
    # What PyTorch wrote before version 1.6 is no archive and cannot be mapped.
    options = {"map_location": "cpu", "weights_only": True, "mmap": zipfile.is_zipfile(path)}
    try:
        with warnings.catch_warnings():  # of tensors that are refused below
            warnings.simplefilter("ignore")
            try:
                content = torch.load(path, **options)
            except Exception as refused:
                if type(refused).__name__ != "UnpicklingError":
                    raise
                with torch.serialization.safe_globals(_placeholders(torch, path, refused)):
                    content = torch.load(path, **options)
    except Exception as error:
        if type(error).__name__ == "UnpicklingError":  # raised for every object that is no tensor
            raise FlowsimError(
                f"{path} is damaged, or holds Python objects other than tensors, which are not loaded. Save it with "
                "torch.save({'image': image, 'text': text}, path)."
            ) from error
        raise
    found: dict[str, Entry] = {}
    _collect(torch, content, (), found)
    return found


def _placeholders(torch: Any, path: Path, refused: Exception) -> list[tuple[Any, str]]:
    """Empty classes with the names of the file's classes of settings; raises `refused` if there are others."""
    if not zipfile.is_zipfile(path) or not hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint"):
        raise refused  # old files, and PyTorch before version 2.6
    names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if not names or not all(name in _BUILTIN or name.partition(".")[0] in _OF_SETTINGS for name in names):
        raise refused
    return [(_dictionary if name in _FILLED else type("Empty", (_Empty,), {}), name) for name in names]


def _dictionary(*_: Any) -> dict[Any, Any]:
    return {}


def _collect(torch: Any, content: Any, keys: tuple[str, ...], found: dict[str, Entry]) -> None:
    """Add all tensors below `content`; what is neither a tensor nor strings is left out."""
    if isinstance(content, torch.Tensor):
        shape, dtype = tuple(content.shape), str(content.dtype).removeprefix("torch.")
        dtype = None if content.is_quantized else ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
        name = ".".join(keys) or ONLY
        found[name] = Entry(lambda: _array(torch, name, content), shape, dtype)
    elif isinstance(content, dict):
        for key, value in content.items():
            _collect(torch, value, (*keys, str(key)), found)
    elif isinstance(content, list | tuple):
        if content and all(isinstance(one, str) for one in content):
            strings = np.array(content, dtype=str)
            found[".".join(keys) or ONLY] = Entry(lambda: strings, strings.shape, strings.dtype)
        else:
            for place, value in enumerate(content):
                _collect(torch, value, (*keys, str(place)), found)


def _array(torch: Any, name: str, tensor: Any) -> np.ndarray:
    """A tensor as an array that shares its memory; refuses those that NumPy does not have."""
    tensor = tensor.detach()
    kind = str(tensor.dtype).removeprefix("torch.")
    for refused, what, cure in (
        (tensor.is_quantized, "quantised", "dequantize"),
        (tensor.layout != torch.strided, "sparse", "to_dense"),
        (kind.startswith("float8"), kind, "float"),
    ):
        if refused:
            raise FlowsimError(f"Tensor {name!r} is {what}, which is not read. Save tensor.{cure}() instead.")
    if tensor.dtype == torch.bfloat16:  # which NumPy does not have
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
