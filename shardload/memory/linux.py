"""Pages on Linux."""

from __future__ import annotations

import errno
import functools
import os
import re
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardload.memory.pages import PAGE_BYTES, mapped, page_span, touch
from shardload.memory.process import ProcessMemory, parse_status
from shardload_native import libc

MADV_NORMAL = 0
MADV_RANDOM = 1
MADV_DONTNEED = 4
MADV_HUGEPAGE = 14
MADV_NOHUGEPAGE = 15
MADV_PAGEOUT = 21
MADV_POPULATE_READ = 22
BACKGROUND_NICENESS = 10
LARGE_PAGE_FILE = Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
LARGEST_PAGE_BYTES = 4 * 2**20


def residency(address: int, pages: int) -> NDArray[np.bool_] | None:
    """Which pages are in memory; ``address`` begins a page."""
    vector = bytearray(pages)
    libc.mincore(address, pages * PAGE_BYTES, vector)
    return (np.frombuffer(vector, np.uint8) & 1).astype(np.bool_)


def cached_bytes(descriptor: int, offset: int, length: int) -> int | None:
    """Bytes of a range of a file that are in memory; None where the kernel keeps it to itself."""
    try:
        return min(length, libc.cached_pages(descriptor, offset, length) * PAGE_BYTES)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EOPNOTSUPP):
            raise
    if not may_send_away(descriptor):
        return None
    with mapped(descriptor, offset, length) as address:
        span = page_span(address, length)
        pages = residency(span.address, span.count)
        return None if pages is None else min(length, int(pages.sum()) * PAGE_BYTES)


def may_send_away(descriptor: int) -> bool:
    """Whether the kernel tells this user which pages of a file are in memory, and lets go of them for him."""
    status = os.fstat(descriptor)
    if status.st_uid == os.geteuid():
        return True
    # Of a file of somebody else it may say that every page is there, even the one behind the last.
    behind = page_span(0, status.st_size).length
    address = libc.map_shared(descriptor, behind + PAGE_BYTES)
    try:
        pages = residency(address + behind, 1)
        return pages is not None and not pages.any()
    finally:
        libc.unmap(address, behind + PAGE_BYTES)


def page_out(address: int, length: int) -> bool:
    """Ask for whole pages to leave memory now; False where the kernel (before 5.4) or a lock refuses."""
    try:
        libc.madvise(address, length, MADV_PAGEOUT)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    return True


def populate_read(address: int, length: int) -> None:
    """Bring whole pages into memory and wait for them."""
    while True:
        try:
            return libc.madvise(address, length, MADV_POPULATE_READ)
        except OSError as error:
            if error.errno == errno.EINVAL:  # before Linux 5.14
                return touch(address, length)
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise


def read_ahead(address: int, length: int, wanted: bool) -> None:
    """Whether touching a page may read those after it."""
    advice = MADV_NORMAL if wanted and not _reads_whole_large_pages() else MADV_RANDOM
    with suppress(OSError):
        libc.madvise(address, length, advice)


def discard(address: int, length: int) -> None:
    """Give whole pages of anonymous memory back, unless they are locked."""
    try:
        libc.madvise(address, length, MADV_DONTNEED)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def prefer_large_pages(address: int, length: int) -> None:
    """Ask for large pages, and for no more than the one that is touched.

    Otherwise one small tensor between others brings in 4 MiB or more of its neighbours.
    """
    if not _has_large_pages():
        return
    libc.madvise(address, length, MADV_HUGEPAGE)
    if _reads_whole_large_pages():
        libc.madvise(address, length, MADV_RANDOM)


def expect_lookups(address: int, length: int) -> None:
    """Read single pages, as they are touched."""
    with suppress(OSError):
        libc.madvise(address, length, MADV_NOHUGEPAGE)
    libc.madvise(address, length, MADV_RANDOM)


@functools.cache
def _reads_whole_large_pages() -> bool:
    """Whether a fault where large pages are wanted reads one of them at a time: since 5.18.

    Before that, or without them, random access is read page by page, at a fiftieth of the speed.
    """
    release = tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])
    return release >= (5, 18) and _has_large_pages()


@functools.cache
def _has_large_pages() -> bool:
    """Whether there are large pages, of a size to be read for any one of their bytes.

    Beside ordinary ones of 16 KiB they have 32 MiB, and beside 64 KiB 512 MiB. A kernel that reads files in
    such pieces reads far too much, and one that does not (those since 6.11) would read page by page.
    """
    try:
        return int(LARGE_PAGE_FILE.read_text(encoding="ascii")) <= LARGEST_PAGE_BYTES
    except (OSError, ValueError):
        return False


def yield_to_others() -> None:
    """Let every thread of normal priority go before the one that calls."""
    thread = threading.get_native_id()
    with suppress(OSError):  # a sandbox may keep it
        # A process that has less as a whole keeps it so: to raise it again is not allowed.
        if os.getpriority(os.PRIO_PROCESS, thread) < BACKGROUND_NICENESS:
            os.setpriority(os.PRIO_PROCESS, thread, BACKGROUND_NICENESS)


def drop_cache(descriptor: int, offset: int, length: int) -> bool:
    """Ask for the clean, unmapped pages of a range of a file to leave memory."""
    os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_DONTNEED)
    return True


def process_memory() -> ProcessMemory:
    """What this process has in memory."""
    return parse_status(Path("/proc/self/status").read_text(encoding="ascii", errors="replace"))
