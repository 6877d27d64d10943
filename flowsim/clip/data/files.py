"""The files of a source: in folders, in tar shards, and in patterns such as shards-{0000..0007}.tar.

Tars are read in place: a file within one is a range of its bytes.
"""

import glob
import os
import re
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from flowsim.clip.data.pairs import Skips
from flowsim.errors import FlowsimError

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_WILDCARDS = re.compile(r"[{*?\[]")
_TABLES = (".tsv", ".csv", ".txt")


class Bytes(NamedTuple):
    """Location of bytes: a file, or a part of one. It is opened for each read, so that threads share nothing."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        """The bytes."""
        with open(self.path, "rb", buffering=0) as file:
            if self.size < 0:
                return file.readall()
            file.seek(self.offset)
            return file.read(self.size) or b""


class File(NamedTuple):
    """A file of a source: its name, the shard that holds it ("" for a folder), and its bytes."""

    name: str
    shard: str
    data: Bytes


class Found(NamedTuple):
    """An image of a source, with captions and class if the source has them."""

    key: str
    image: Bytes
    captions: tuple[str, ...] = ()
    label: str | None = None


def is_pattern(spec: str) -> bool:
    """Whether a source is a pattern of several files."""
    return _WILDCARDS.search(spec) is not None


def is_tar(name: str) -> bool:
    """Whether a file is a tar, also a compressed one, by its name."""
    return re.search(r"\.(tgz|tar(\.\w+)?)$", name.lower()) is not None


def could_be_files(spec: str) -> bool:
    """Whether `list_files` can say something about a source: a folder, a tar, a table, or a pattern of tars."""
    if not os.path.isdir(spec) and is_pattern(spec):
        name = re.sub(r"\{[^{}]*\}", "", spec.rpartition("/")[2])
        _, dot, ending = name.rpartition(".")
        return not (dot and ending) or is_pattern(ending) or is_tar(name)
    return os.path.isdir(spec) or (os.path.exists(spec) and (is_tar(spec) or spec.lower().endswith(_TABLES)))


def is_image(name: str) -> bool:
    """Whether a file is an image, by its name."""
    return name.lower().endswith(IMAGES)


def list_files(spec: str, skips: Skips) -> tuple[list[File], Path]:
    """All files that `spec` names, including those in tars, and the folder in which tables may be.

    Raises `FlowsimError` if there are no images among them, and for files that cannot be read.
    """
    path = Path(spec)
    if path.is_dir():
        files, home = _in_folder(path, skips), path
    elif is_pattern(spec):
        shards = [Path(name) for pattern in _expand(spec) for name in _matches(pattern)]
        other = next((shard for shard in shards if not is_tar(shard.name)), None)
        if other is not None:
            raise FlowsimError(f"{spec!r} includes {str(other)!r}, which is no .tar. Give tars, or a folder.")
        files, home = _in_tars(shards, skips), shards[0].parent
    else:
        if path.suffix.lower() in _TABLES:
            raise FlowsimError(
                f"{spec!r} is a table. Give the folder of the images, and the table as `captions` if it is elsewhere."
            )
        files, home = _in_tars([path], skips), path.parent
    if not any(is_image(file.name) for file in files):
        raise FlowsimError(f"{spec!r} holds no images ({', '.join(IMAGES)}). Give the folder or the tars with images.")
    return files, home


def images_of(files: Sequence[File]) -> list[Found]:
    """The images among the files, with distinct names."""
    chosen = [file for file in files if is_image(file.name)]
    return [Found(key, file.data) for key, file in zip(distinct_names(chosen), chosen, strict=True)]


def distinct_names(files: Sequence[File]) -> list[str]:
    """Names of the files; if shards use the same names, each name begins with that of its shard."""
    names = [file.name for file in files]
    if len(set(names)) == len(names):
        return names
    return [f"{file.shard}/{one}" if file.shard else one for file, one in zip(files, names, strict=True)]


def _in_folder(path: Path, skips: Skips) -> list[File]:
    """The files in a folder, its subfolders and its tars, without hidden files."""
    loose, shards, refused = [], [], []
    for full in _walk(path):
        name = full.name.lower()
        if name.endswith(".tar"):
            shards.append(full)
        elif is_tar(name):
            refused.append(full)
        else:
            loose.append(File(full.relative_to(path).as_posix(), "", Bytes(str(full))))
    loose.sort(key=lambda file: file.name)
    files = [*loose, *_in_tars(sorted(shards), skips)]
    if refused and not any(is_image(file.name) for file in files):
        _in_tars(refused[:1], skips)  # raises the reason why it cannot be read
    return files


def _walk(path: Path) -> Iterator[Path]:
    for place, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            yield Path(place, name)


def _expand(pattern: str) -> list[str]:
    """Expand the braces of a pattern: {0000..0007} counts, {a,b} lists."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    ends = re.fullmatch(r"(\d+)\.\.(\d+)", match[1])
    if ends is None:
        choices = match[1].split(",")
    else:
        choices = [f"{k:0{len(ends[1])}d}" for k in range(int(ends[1]), int(ends[2]) + 1)]
    return [one for choice in choices for one in _expand(pattern[: match.start()] + choice + pattern[match.end() :])]


def _matches(pattern: str) -> list[str]:
    found = sorted(glob.glob(pattern)) if re.search(r"[*?\[]", pattern) else [pattern]
    if not found:
        raise FlowsimError(f"No file matches {pattern!r}. Check the pattern.")
    return found


def _in_tars(shards: Sequence[Path], skips: Skips) -> list[File]:
    """The files in tars, by the location of their bytes; nothing is unpacked."""
    files: list[File] = []
    seen: set[tuple[Path, str]] = set()
    for shard, shard_name in zip(shards, _shard_names(shards), strict=True):
        try:
            _refuse_compressed(shard)
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if not member.isreg() or name.rpartition("/")[2].startswith("."):
                        continue
                    if (shard, name) in seen:
                        skips.add("repeated name in a tar", name)
                        continue
                    seen.add((shard, name))
                    files.append(File(name, shard_name, Bytes(str(shard), member.offset_data, member.size)))
        except tarfile.TarError as error:
            raise FlowsimError(
                f"{str(shard)!r} is not a complete tar file ({error}). Download or pack it again."
            ) from None
        except OSError as error:
            raise FlowsimError(f"Cannot read {str(shard)!r}: {error.strerror}. Check the path.") from None
    return files


def _shard_names(shards: Sequence[Path]) -> list[str]:
    """Names of shards without the ending, with their folders if the names alone are not unique."""
    names = [shard.name.removesuffix(".tar") for shard in shards]
    if len(set(names)) < len(names):  # train/0.tar and test/0.tar
        root = os.path.commonpath([shard.parent for shard in shards])
        names = [shard.relative_to(root).as_posix().removesuffix(".tar") for shard in shards]
    return names


def _refuse_compressed(shard: Path) -> None:
    with open(shard, "rb") as file:
        start = file.read(6)
    kind = next((kind for magic, kind in _COMPRESSED.items() if start.startswith(magic)), None)
    if kind is not None:
        raise FlowsimError(
            f"{str(shard)!r} is compressed ({kind}), so images cannot be read in place. Decompress it to a plain .tar."
        )
