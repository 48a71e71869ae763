"""Reading files through, from end to end, without leaving in memory what was not there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from typing import Protocol

from shardload.memory import file_resident_bytes
from shardload.memory.pages import page_span

WINDOW_BYTES = 2 * 2**20


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, data: memoryview, /) -> None:
        """Take in more bytes."""

    def hexdigest(self) -> str:
        """The digest of all bytes so far."""


class Reader:
    """Reads ranges of one file in windows; holds one window of memory. For one thread."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._window = memoryview(bytearray(WINDOW_BYTES))
        if hasattr(os, "posix_fadvise"):
            # Readahead would bring in what comes after a window, and then it looks as if it had been there.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def windows(self, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes of a range, a window at a time, each gone with the next.

        Raises OSError; EOFError where the file ends before the range does.
        """
        end = offset + length
        while offset < end:
            # Windows begin at multiples of their size, so that only a range's ends share pages with others.
            stop = min(end, (offset // WINDOW_BYTES + 1) * WINDOW_BYTES)
            span = page_span(offset, stop - offset)
            before = file_resident_bytes(self._descriptor, span.address, span.length)
            yield self._read(offset, stop - offset)
            # Pages that somebody maps stay, whatever is asked for.
            if before is not None and before < span.length // 2 and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._descriptor, span.address, span.length, os.POSIX_FADV_DONTNEED)
            offset = stop

    def _read(self, offset: int, length: int) -> memoryview:
        window, done = self._window[:length], 0
        os.lseek(self._descriptor, offset, os.SEEK_SET)
        while done < length:
            count = _read_into(self._descriptor, window[done:])
            if count == 0:
                raise EOFError(f"the file ends {length - done} bytes early")
            done += count
        return window


def _read_into(descriptor: int, window: memoryview) -> int:
    if hasattr(os, "readv"):
        return os.readv(descriptor, [window])
    data = os.read(descriptor, len(window))
    window[: len(data)] = data
    return len(data)


def feed(
    hash_: Hash,
    reader: Reader,
    offset: int,
    length: int,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> bool:
    """Put a range of a file into a hash; False if it was stopped before the end. Errors as `Reader`'s."""
    for window in reader.windows(offset, length):
        hash_.update(window)
        if progress is not None:
            progress(len(window))
        if should_stop is not None and should_stop():
            return False
    return True


def checksum(
    descriptor: int,
    nbytes: int,
    progress: Callable[[int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> str | None:
    """The SHA-256 of a file's first bytes in hexadecimal; None if stopped. Errors as `Reader`'s."""
    found = hashlib.sha256()
    whole = feed(found, Reader(descriptor), 0, nbytes, progress, should_stop)
    return found.hexdigest() if whole else None
