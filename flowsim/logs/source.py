"""A log as a file or folder: its beginning, and its lines one by one, also compressed and in other encodings."""

import functools
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

#: Bytes by which a format is recognised. The parameters and the model's layers come first in a log of open_clip.
HEAD = 1 << 22
#: Zeros that a crash leaves in a file.
_HOLES = re.compile(rb"\x00{8,}")
#: Characters of a line; longer ones are skipped, so that a file without line ends needs no memory.
LONGEST = 1 << 20


class Source:
    """A log on disk.

    Args:
        path: The file or folder.

    Attributes:
        path: The file or folder.
        notes: What readers had to leave out, in words.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []

    @property
    def is_folder(self) -> bool:
        """Whether it is a folder."""
        return self.path.is_dir()

    @functools.cached_property
    def _compressed(self) -> bool:
        with open(self.path, "rb") as file:
            return file.read(2) == b"\x1f\x8b"

    def open(self) -> io.BufferedIOBase:
        """The bytes, uncompressed if they were compressed by gzip."""
        return gzip.open(self.path, "rb") if self._compressed else open(self.path, "rb")

    @functools.cached_property
    def head(self) -> bytes:
        """The first bytes of the content; empty for a folder."""
        if self.is_folder:
            return b""
        with self.open() as file:
            parts, left = [], HEAD
            try:
                while left and (part := file.read1(min(left, 1 << 16))):
                    parts.append(part)
                    left -= len(part)
            except (EOFError, gzip.BadGzipFile, zlib.error):  # cut off: what came before counts
                pass
            return b"".join(parts)

    @functools.cached_property
    def encoding(self) -> str | None:
        """The encoding of a text; None if the content is no text."""
        head = self.head
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return "utf-16"
        text = _HOLES.sub(b"", head).decode("utf-8", "replace")
        if "\x00" in text:
            return None
        return "utf-8-sig" if text.count("\ufffd") <= len(text) // 10 else None

    @functools.cached_property
    def text(self) -> str:
        """The beginning as text; empty if it is none."""
        return "" if self.encoding is None else self.head.decode(self.encoding, "replace").replace("\x00", "")

    def lines(self) -> Iterator[str]:
        """The lines with their ends, one by one; characters that cannot be decoded are replaced."""
        skipped = 0
        encoding = self.encoding or "utf-8"
        with self.open() as raw, io.TextIOWrapper(raw, encoding, "replace") as file:  # pyright: ignore[reportArgumentType]
            try:
                while line := file.readline(LONGEST):
                    if len(line) == LONGEST and line[-1] != "\n":
                        skipped += 1
                        while (rest := file.readline(LONGEST)) and rest[-1] != "\n":
                            pass
                        continue
                    yield line.replace("\x00", "")
            except (EOFError, gzip.BadGzipFile, zlib.error):
                self.notes.append("The compressed file is cut off; what came before was read.")
            except UnicodeError:  # half a character of UTF-16 at the end
                self.notes.append("The file is cut off; what came before was read.")
        if skipped:
            self.notes.append(f"{skipped} lines of more than {LONGEST} characters were skipped.")
