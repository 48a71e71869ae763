"""A bounded cursor over the front of a file: it reads what it is asked for, and no page more."""

from __future__ import annotations

import io
import struct
from typing import Any

from shardload.errors import CorruptGGUF
from shardload.gguf.constants import MAX_HEADER_BYTES

WINDOW_BYTES = 1 << 20
PAGE_BYTES = 4096


class Cursor:
    """Reads forward through a file, checking every length against what is left before it reads.

    Raises CorruptGGUF where the file is too short, naming what was being read. Memory is bounded by one
    window and the strings it returns. Reads end on page borders, so that a header costs its own pages.
    """

    def __init__(self, stream: io.RawIOBase, path: str, size_bytes: int) -> None:
        self._stream, self.path, self.size_bytes = stream, path, size_bytes
        self._end = min(size_bytes, MAX_HEADER_BYTES)
        self._start, self._window = 0, b""
        self.position = 0

    @property
    def remaining_bytes(self) -> int:
        """Bytes that a header may still have here."""
        return self._end - self.position

    def require(self, count: int, what: str) -> None:
        """Raise unless ``count`` more bytes can be there."""
        if count > self.remaining_bytes:
            raise self.corrupt(self._shortage(count, what))

    def skip(self, count: int, what: str) -> None:
        """Pass over ``count`` bytes unread."""
        self.require(count, what)
        self.position += count

    def take(self, count: int, what: str) -> bytes:
        """The next ``count`` bytes."""
        self.require(count, what)
        offset = self.position - self._start
        if offset + count > len(self._window):
            if count > WINDOW_BYTES:
                return self._take_large(count)
            self._fill(count)
            offset = 0
        self.position += count
        return self._window[offset : offset + count]

    def unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        """The next values of a ``struct`` layout."""
        return layout.unpack(self.take(layout.size, what))

    def window(self, wanted: int) -> tuple[bytes, int]:
        """Buffered bytes, up to ``wanted`` of them from the position on, and its offset in them."""
        wanted = min(wanted, self.remaining_bytes, WINDOW_BYTES)
        if self.position + wanted > self._start + len(self._window):
            self._fill(wanted)
        return self._window, self.position - self._start

    def corrupt(self, reason: str) -> CorruptGGUF:
        """The error of this file for ``reason``."""
        return CorruptGGUF(self.path, reason)

    def _shortage(self, count: int, what: str) -> str:
        if self.position + count <= self.size_bytes:
            return f"{what} would make the header larger than {MAX_HEADER_BYTES} bytes"
        left = self.size_bytes - self.position
        return (
            f"{what} at byte {self.position} needs {count} bytes, the file has {left} more: it is cut short"
        )

    def _fill(self, count: int) -> None:
        self._window = self._read(count)
        self._start = self.position

    def _take_large(self, count: int) -> bytes:
        data = self._read(count)[:count]
        self.position += count
        return data

    def _read(self, count: int) -> bytes:
        stop = min(-(-(self.position + count) // PAGE_BYTES) * PAGE_BYTES, self.size_bytes)
        wanted = stop - self.position
        chunks: list[bytes] = []
        try:
            self._stream.seek(self.position)
            while wanted > 0 and (chunk := self._stream.read(wanted)):
                chunks.append(chunk)
                wanted -= len(chunk)
        except OSError as error:
            raise self.corrupt(f"reading at byte {self.position} failed: {error.strerror}") from error
        if wanted > 0:
            raise self.corrupt("the file became shorter while it was read")
        return b"".join(chunks)
