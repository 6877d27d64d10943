"""Named arrays in files of many formats: `read_named`. Each format is read in one place, a module of this folder."""

from flowsim.data.arrays import folders as _folders  # noqa: F401
from flowsim.data.arrays import hdf5_file as _hdf5_file  # noqa: F401
from flowsim.data.arrays import numpy_file as _numpy_file  # noqa: F401
from flowsim.data.arrays import parquet_file as _parquet_file  # noqa: F401
from flowsim.data.arrays import safetensors_file as _safetensors_file  # noqa: F401
from flowsim.data.arrays import text_table as _text_table  # noqa: F401
from flowsim.data.arrays import torch_file as _torch_file  # noqa: F401
from flowsim.data.arrays import zarr_store as _zarr_store  # noqa: F401
from flowsim.data.arrays.named import NamedArrays, read_named
from flowsim.data.arrays.pairs import read_one, read_pair, usual_pairs

__all__ = ["NamedArrays", "read_named", "read_one", "read_pair", "usual_pairs"]
