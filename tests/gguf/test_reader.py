from __future__ import annotations

import io
import struct

import pytest

from shardload.errors import CorruptGGUF
from shardload.gguf.reader import PAGE_BYTES, WINDOW_BYTES, Cursor


class Recorder(io.RawIOBase):
    """A stream that remembers how far it was read, and may break."""

    def __init__(self, data: bytes, error: OSError | None = None) -> None:
        self.inner, self.furthest, self.error = io.BytesIO(data), 0, error

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.inner.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        if self.error:
            raise self.error
        data = self.inner.read(min(size, 100_000))
        self.furthest = max(self.furthest, self.inner.tell())
        return data


def cursor(data: bytes, size: int | None = None) -> Cursor:
    return Cursor(Recorder(data), "x.gguf", len(data) if size is None else size)


def test_takes_in_order_and_unpacks() -> None:
    reader = cursor(b"abc" + struct.pack("<IQ", 7, 9))
    assert reader.take(3, "letters") == b"abc"
    assert reader.unpack(struct.Struct("<IQ"), "numbers") == (7, 9)
    assert reader.remaining_bytes == 0


def test_reads_to_the_end_of_a_page_and_no_further() -> None:
    data = bytes(10 * PAGE_BYTES)
    stream = Recorder(data)
    reader = Cursor(stream, "x.gguf", len(data))
    reader.take(4, "")
    assert stream.furthest == PAGE_BYTES
    reader.skip(3 * PAGE_BYTES, "")
    reader.take(1, "")
    assert stream.furthest == 4 * PAGE_BYTES


def test_takes_more_than_a_window() -> None:
    data = bytes(range(256)) * (2 * WINDOW_BYTES // 256)
    reader = cursor(data)
    reader.take(1, "")
    assert reader.take(WINDOW_BYTES + 5, "") == data[1 : WINDOW_BYTES + 6]
    assert reader.take(2, "") == data[WINDOW_BYTES + 6 : WINDOW_BYTES + 8]


def test_window_holds_what_is_wanted() -> None:
    data = bytes(range(200))
    reader = cursor(data)
    reader.skip(10, "")
    window, offset = reader.window(50)
    assert window[offset : offset + 50] == data[10:60]
    window, offset = reader.window(1000)
    assert window[offset:] == data[10:]


def test_says_what_is_missing() -> None:
    reader = cursor(b"abcdef")
    reader.take(2, "")
    with pytest.raises(
        CorruptGGUF, match="the key at byte 2 needs 5 bytes, the file has 4 more: it is cut short"
    ):
        reader.take(5, "the key")
    with pytest.raises(CorruptGGUF, match="cut short"):
        reader.skip(2**64, "an array")


def test_limits_the_header() -> None:
    reader = cursor(b"", size=2**40)
    with pytest.raises(CorruptGGUF, match="larger than 134217728 bytes"):
        reader.require(2**30, "an array")


def test_file_that_shrinks_or_breaks() -> None:
    with pytest.raises(CorruptGGUF, match="became shorter"):
        cursor(b"abc", size=8).take(5, "")
    broken = Cursor(Recorder(b"abc", OSError(5, "Input/output error")), "x.gguf", 3)
    with pytest.raises(CorruptGGUF, match="reading at byte 0 failed: Input/output error"):
        broken.take(1, "")
