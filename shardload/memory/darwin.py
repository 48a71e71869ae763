"""Pages on macOS."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shardload.memory.pages import PAGE_BYTES, mapped, page_span
from shardload.memory.process import ProcessMemory, portable_process_memory
from shardload_native import libc

MADV_WILLNEED = 3
MINCORE_INCORE = 1
MS_INVALIDATE = 2


def residency(address: int, pages: int) -> NDArray[np.bool_] | None:
    """Which pages are in memory; ``address`` begins a page."""
    vector = bytearray(pages)
    libc.mincore(address, pages * PAGE_BYTES, vector)
    return (np.frombuffer(vector, np.uint8) & MINCORE_INCORE).astype(np.bool_)


def cached_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """Bytes of a range of a file that are in memory."""
    with mapped(descriptor, offset, length) as address:
        span = page_span(address, length)
        pages = residency(span.address, span.count)
        return None if pages is None else min(length, int(pages.sum()) * PAGE_BYTES)


def may_send_away(descriptor: int) -> bool:
    """Nobody is asked who he is here."""
    return True


def page_out(address: int, length: int) -> bool:
    """Ask for whole pages of a mapped file to leave memory now."""
    libc.msync(address, length, MS_INVALIDATE)
    return True


def populate_read(address: int, length: int) -> None:
    """Bring whole pages into memory; this advice waits for them on macOS."""
    libc.madvise(address, length, MADV_WILLNEED)


def read_ahead(address: int, length: int, wanted: bool) -> None:
    """Nothing is known to be gained here."""


def discard(address: int, length: int) -> None:
    """Give whole pages of anonymous memory back; not done here."""


def expect_lookups(address: int, length: int) -> None:
    """The system decides by itself."""


def prefer_large_pages(address: int, length: int) -> None:
    """Ask for pages as large as there are."""


def yield_to_others() -> None:
    """Not done here: priorities are those of whole processes."""


def drop_cache(descriptor: int, offset: int, length: int) -> bool:
    """Ask for the pages of a range of a file to leave memory."""
    with mapped(descriptor, offset, length) as address:
        span = page_span(address, length)
        return page_out(span.address, span.length)


def process_memory() -> ProcessMemory:
    """What this process has in memory."""
    return portable_process_memory()
