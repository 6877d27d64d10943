"""Arrays in folders of `.npy` files, also those that clip-retrieval and embedding-reader write."""

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
    found = {}
    for inner in sorted([path, *(one for one in path.iterdir() if one.is_dir() and not one.name.startswith("."))]):
        parts: dict[tuple[str, str], list[tuple[int, Path]]] = {}
        for file in sorted(inner.iterdir()):
            match = _PART.fullmatch(file.name)
            if match is not None and file.is_file():
                parts.setdefault((match[1], match[3]), []).append((int(match[2]), file))
            elif file.suffix == ".npy" and file.is_file():
                name = file.stem if inner == path else f"{inner.name}/{file.stem}"
                found[name] = FORMATS[".npy"].open(file)["array"]
        for (name, ending), files in parts.items():
            for column, entry in _joined(_in_order(inner, files), ending).items():
                key = column or name or inner.name
                if key in found:
                    raise FlowsimError(
                        f"{path} holds {key!r} in several folders, one of them {inner.name!r}. Give the folder of one "
                        "data set."
                    )
                found[key] = entry
    return found


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


def _joined(files: list[Path], ending: str) -> dict[str, Entry]:
    """The arrays of all parts, one below the other; the only one of .npy files has no name."""
    opened = [FORMATS[f".{ending}"].open(file) for file in files]
    if len({tuple(one) for one in opened}) > 1:
        raise FlowsimError(f"{files[0].parent} has parts with different columns. Keep those of one data set.")
    return {
        ("" if ending == "npy" else name): _join(files[0].parent, [one[name] for one in opened]) for name in opened[0]
    }


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
