"""Arrays in folders of `.npy` files, also those that clip-retrieval and embedding-reader write."""

import itertools
import re
from pathlib import Path

import numpy as np

from flowsim.data.arrays.named import FORMATS, Entry, register
from flowsim.errors import FlowsimError

#: `img_emb_0.npy` and `img_emb_1.npy` in a folder `img_emb` are parts of one array, and so are tables.
_PART = re.compile(r"(.*?)[ _.\-]*(\d+)\.(npy|parquet)$")


@register("folder", recognizes=Path.is_dir)
def open_folder(path: Path) -> dict[str, Entry]:
    """The array of each `.npy` file by its name, and one of all numbered parts in each folder."""
    found: dict[str, Entry] = {}
    rows: dict[str, list[int]] = {}
    for inner in sorted([path, *(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))]):
        parts: dict[tuple[str, str], list[tuple[int, Path]]] = {}
        for file in sorted(inner.iterdir()):
            match = _PART.fullmatch(file.name)
            if match is not None and file.is_file():
                parts.setdefault((match[1], match[3]), []).append((int(match[2]), file))
            elif file.suffix == ".npy" and file.is_file():
                found[_whole_name(path, file)] = FORMATS[".npy"].open(file)["array"]
        for (name, ending), files in parts.items():
            number, file = files[0]
            if ending == "npy" and len(files) == 1 and number > 1:  # as in image_512.npy, which is no part
                found[_whole_name(path, file)] = FORMATS[".npy"].open(file)["array"]
                continue
            opened = [FORMATS[f".{ending}"].open(one) for one in _in_order(inner, files)]
            for column, entry in _joined(inner, opened).items():
                key = (column if ending == "parquet" else name) or inner.name
                if key in found:
                    raise FlowsimError(
                        f"{path} holds {key!r} twice: in several folders, or whole and in parts. Give the folder of "
                        "one data set."
                    )
                found[key] = entry
                rows[key] = [shape[0] for one in opened if (shape := one[column].shape)]
    _check_rows(path, rows)
    return found


def _whole_name(path: Path, file: Path) -> str:
    return file.stem if file.parent == path else f"{file.parent.name}/{file.stem}"


def _check_rows(path: Path, rows: dict[str, list[int]]) -> None:
    """Refuse arrays that have the same number of rows and of parts, but not in each part: rows would be mispaired."""
    for (one, left), (other, right) in itertools.combinations(rows.items(), 2):
        if left != right and len(left) == len(right) and sum(left) == sum(right):
            part = next(k for k, (a, b) in enumerate(zip(left, right, strict=True)) if a != b)
            raise FlowsimError(
                f"{path}: part {part + 1} of {len(left)} has {left[part]} rows of {one!r}, but {right[part]} of "
                f"{other!r}. Write the same rows into the same parts."
            )


def _in_order(folder: Path, files: list[tuple[int, Path]]) -> list[Path]:
    """The parts by their numbers; refuses missing ones, because rows would belong to other ones."""
    ordered = sorted(files)
    numbers = [number for number, _ in ordered]
    if numbers[0] > 1 or numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        listed = ", ".join(map(str, numbers[:8]))
        raise FlowsimError(
            f"{folder} has parts {listed}{', ...' if len(numbers) > 8 else ''}: some are missing, or there twice. "
            "Complete them, or number them from 0."
        )
    return [file for _, file in ordered]


def _joined(folder: Path, parts: list[dict[str, Entry]]) -> dict[str, Entry]:
    """The arrays of all parts, one below the other."""
    if len({tuple(one) for one in parts}) > 1:
        raise FlowsimError(f"{folder} has parts with different columns. Keep those of one data set.")
    return {name: _join(folder, [one[name] for one in parts]) for name in parts[0]}


def _join(folder: Path, parts: list[Entry]) -> Entry:
    if len(parts) == 1:
        return parts[0]
    shapes = [one.shape for one in parts if one.shape]
    if len(shapes) < len(parts):
        return Entry(lambda: _stack(folder, parts))
    rows = sum(shape[0] for shape in shapes)
    return Entry(lambda: _stack(folder, parts), (rows, *shapes[0][1:]), parts[0].dtype)


def _stack(folder: Path, parts: list[Entry]) -> np.ndarray:
    """All parts in memory."""
    read = [part.read() for part in parts]
    if len({one.shape[1:] for one in read}) > 1:
        raise FlowsimError(f"{folder} has parts with different numbers of columns. Keep those of one model.")
    return np.concatenate(read)
