"""Tables next to images: captions and splits by file name, in .tsv or .csv files."""

import csv
import io
from collections.abc import Callable, Iterable
from pathlib import Path

from flowsim.clip.data.pairs import Skips
from flowsim.errors import FlowsimError


class Names:
    """Finds the key of an image from a name in a table: the key itself, or a file name that only one image has."""

    def __init__(self, keys: Iterable[str]) -> None:
        self.keys = set(keys)
        self.bases: dict[str, list[str]] = {}
        for key in self.keys:
            self.bases.setdefault(key.rpartition("/")[2], []).append(key)

    def key(self, name: str) -> str:
        """The key; the name itself if no image or several images have it."""
        name = name.replace("\\", "/").removeprefix("./")
        same = [] if name in self.keys else self.bases.get(name.rpartition("/")[2], [])
        return same[0] if len(same) == 1 else name


def captions_in(path: Path, names: Names, skips: Skips, wanted: Callable[[str], bool]) -> dict[str, list[str]]:
    """Captions of each key that is `wanted`, from the columns filename and caption."""
    found: dict[str, list[str]] = {}
    for name, caption in rows(path, "filename", "caption"):
        key = names.key(name)
        if not wanted(key):
            continue
        if key not in names.keys:
            skips.add("caption without image", name)
        elif not caption:
            skips.add("empty caption", name)
        else:
            found.setdefault(key, []).append(caption)
    return found


def splits_in(path: Path | None, names: Names) -> dict[str, str]:
    """Split of each key, from the columns filename and split; empty without a table."""
    if path is None:
        return {}
    return {names.key(name): part for name, part in rows(path, "filename", "split") if part}


def beside(folder: Path, name: str) -> Path | None:
    """The table of that name in a folder, .tsv or .csv, if there is one."""
    candidates = (folder / f"{name}{ending}" for ending in (".tsv", ".csv"))
    return next((path for path in candidates if path.is_file()), None)


def rows(path: Path, *columns: str) -> list[tuple[str, ...]]:
    """Some columns of a table with a header, stripped. Tabs separate without quoting; commas as in CSV files."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):
        raise FlowsimError(f"{str(path)!r} is not a table. Give a .tsv (tabs) or .csv (commas) file.")
    text = read_text(path)
    if path.suffix.lower() == ".csv":
        try:
            found = [row for row in csv.reader(io.StringIO(text, newline="")) if row]
        except csv.Error as error:
            raise FlowsimError(f"{str(path)!r} is not a CSV file ({error}). Repair it, or use a .tsv.") from None
    else:
        lines = [line for line in text.split("\n") if line.strip()]
        # A last column may hold tabs itself.
        found = [line.split("\t", lines[0].count("\t")) for line in lines]
    header = [name.strip() for name in found[0]] if found else []
    missing = [name for name in columns if name not in header]
    if missing:
        raise FlowsimError(
            f"{str(path)!r} has no column {' or '.join(map(repr, missing))}; its first line has: "
            f"{', '.join(map(repr, header)) or 'nothing'}. Name the columns {' and '.join(columns)} there."
        )
    where = [header.index(name) for name in columns]
    return [tuple(row[k].strip() if k < len(row) else "" for k in where) for row in found[1:]]


def read_text(path: Path) -> str:
    """The text of a file in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FlowsimError(f"{str(path)!r} is not UTF-8 (byte {error.start}). Save it as UTF-8.") from None
    except OSError as error:
        raise FlowsimError(f"Cannot read {str(path)!r}: {error.strerror}. Check the path.") from None
