"""Features in `.parquet` files, a row for each pair; pyarrow is loaded when such a file is read or written."""

import json
from typing import Any

import numpy as np

from flowsim.base.checks import check
from flowsim.data.features import Features
from flowsim.data.given import pad
from flowsim.data.numpy_files import features_of, reading
from flowsim.data.packages import package
from flowsim.data.sources import register
from flowsim.errors import FlowsimError

#: Key of the metadata of the file: classes and their text features in JSON, which belong to no row.
_KEY = b"flowsim"

#: Columns that are read.
_COLUMNS = ("image", "text", "split", "name", "names", "filename", "label", "labels")


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
    """The features of a `.parquet` file."""
    pa, parquet = package("pyarrow", "pyarrow"), package("pyarrow.parquet", "pyarrow")
    with reading(source, pa.ArrowException):
        schema = parquet.read_schema(source)
        found = parquet.read_table(source, columns=[name for name in _COLUMNS if name in schema.names])
        extra = json.loads((schema.metadata or {}).get(_KEY, b"{}"))
        others = ("counts", "classes", "class_text")
        content: dict[str, Any] = {name: None for name in schema.names if name not in others}
        if {"image", "text"} <= set(found.column_names):
            content["image"] = np.concatenate([_vectors(one, "image") for one in found["image"].chunks])
            content["text"], content["counts"] = _captions(pa, found["text"])
        for name in {"split", "name", "names", "filename"} & set(found.column_names):
            content[name] = found[name].to_pylist()
        for name in {"label", "labels"} & set(found.column_names):
            empty = -1 if pa.types.is_integer(found[name].type) else ""
            content[name] = [empty if one is None else one for one in found[name].to_pylist()]
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


def _vectors(lists: Any, name: str) -> np.ndarray:
    """(m, q) of an array of lists of floats."""
    values = _flat(lists, name)
    lengths = _lengths(lists)
    check(
        len(set(lengths.tolist())) == 1,
        f"Column {name!r} must hold lists of equal length, but has lengths {lengths.min()} to {lengths.max()}. "
        "Write all features of one encoder.",
    )
    return values.to_numpy(zero_copy_only=False).reshape(len(lists), -1)


def _captions(pa: Any, column: Any) -> tuple[np.ndarray, np.ndarray | None]:
    """(N, c, q) and the number of captions (N,), None if all are equal, of a column of lists or lists of lists."""
    if not _is_list(pa, column.type.value_type if _is_list(pa, column.type) else None):
        return np.concatenate([_vectors(one, "text") for one in column.chunks]), None
    counts = np.concatenate([_lengths(one) for one in column.chunks])
    rows = np.concatenate([_vectors(_flat(one, "text"), "text") for one in column.chunks])
    check(counts.min() > 0, "Column 'text' has rows without a caption. Leave these pairs out.")
    return pad(rows, counts), None if counts.min() == counts.max() else counts


def _is_list(pa: Any, kind: Any) -> bool:
    types = pa.types
    return kind is not None and (types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _flat(lists: Any, name: str) -> Any:
    """The items of all lists; refuses empty rows and columns of another kind."""
    if not hasattr(lists, "flatten") or not hasattr(lists.type, "value_type"):
        raise FlowsimError(f"Column {name!r} must hold lists of floats, but holds {lists.type}. Write lists.")
    check(lists.null_count == 0, f"Column {name!r} has empty rows. Leave these pairs out.")
    return lists.flatten()


def _lengths(lists: Any) -> np.ndarray:
    return np.asarray(lists.value_lengths().to_numpy(zero_copy_only=False), int)
