"""Features in `.parquet` files, a row for each pair; pyarrow is loaded when such a file is read or written."""

import json
from typing import Any

import numpy as np

from flowsim.data.arrays import read_named
from flowsim.data.arrays.named import reading
from flowsim.data.arrays.parquet_file import columns, read_lists
from flowsim.data.features import Features
from flowsim.data.numpy_files import features_of
from flowsim.data.packages import package
from flowsim.data.sources import register

#: Key of the metadata of the file: classes and their text features in JSON, which belong to no row.
_KEY = b"flowsim"

#: Columns that are read besides images and texts.
_COLUMNS = ("split", "name", "names", "filename", "label", "labels")


def _write(features: Features, path: str) -> None:
    pa, parquet = package("pyarrow", "pyarrow"), package("pyarrow.parquet", "pyarrow")
    rows = max(features.stored_image, features.stored_text, key=lambda one: np.prod(one.shape[1:]))
    several = features.captions > 1 or features.counts is not None

    def block(where: slice) -> Any:
        image, text = features.stored_image.read(where), features.stored_text.read(where)
        counts = np.full(len(text), features.captions) if features.counts is None else features.counts[where]
        captions = _lists(pa, text[np.arange(features.captions) < counts[:, None]])
        if several:
            captions = pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32), captions)
        columns = {"image": _lists(pa, image), "text": captions}
        if features.split is not None:
            columns["split"] = pa.array(features.split[where].tolist(), pa.string())
        if features.names is not None:
            columns["name"] = pa.array(features.names[where].tolist(), pa.string())
        if features.labels is not None:
            names = [None if label < 0 else features.classes[label] for label in features.labels[where]]
            columns["label"] = pa.array(names, pa.string())
        return pa.table(columns)

    extra: dict[str, Any] = {"classes": features.classes}
    if features.class_text is not None:
        extra |= {"class_text": features.class_text.tolist(), "dtype": features.class_text.dtype.name}
    first = block(slice(0, 1)).schema.with_metadata({_KEY: json.dumps(extra, ensure_ascii=False)})
    with parquet.ParquetWriter(path, first) as file:
        for where in rows.blocks():
            file.write_table(block(where).cast(first))


@register(".parquet", write=_write)
def read(source: str) -> Features:
    """The features of a `.parquet` file; images may have different numbers of captions."""
    named = read_named(source)
    with reading(source):
        schema = package("pyarrow.parquet", "pyarrow").read_schema(source)
        extra = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
        if not {"image", "text"} <= set(schema.names):
            return features_of(named, source)
        content: dict[str, Any] = {name: None for name in named if name not in ("counts", "classes", "class_text")}
        table = columns(source, ["image", "text"])
        content["image"], _ = read_lists(table["image"], "image")
        content["text"], content["counts"] = read_lists(table["text"], "text")
        content |= {name: named[name] for name in _COLUMNS if name in named}
        if extra.get("classes"):
            content["classes"] = extra["classes"]
        if "class_text" in extra:
            content["class_text"] = np.array(extra["class_text"], extra["dtype"])
    return features_of(content, source)


def _lists(pa: Any, rows: np.ndarray) -> Any:
    """Rows (m, q) as an array of lists."""
    rows = np.ascontiguousarray(rows.astype(rows.dtype.newbyteorder("="), copy=False))
    offsets = np.arange(0, rows.size + 1, rows.shape[1], dtype=np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(rows.ravel()))
