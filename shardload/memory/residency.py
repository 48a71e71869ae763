"""Which pages are in memory: measured, since systems take pages away as they like."""

from __future__ import annotations

import os
from os import PathLike

import numpy as np
from numpy.typing import NDArray

from shardload.memory.pages import PAGE_BYTES, clipped_length, page_span
from shardload.memory.platform import current


def resident_pages(address: int, length: int) -> NDArray[np.bool_] | None:
    """For each page that the mapped range touches, whether it is in memory; None where it cannot be known.

    For a file that is neither owned nor writable by this user Linux says that every page is there. Raises
    OSError where the range is not mapped.
    """
    span = page_span(address, length)
    return current().residency(span.address, span.count) if span.count else np.zeros(0, np.bool_)


def resident_bytes(address: int, length: int) -> int | None:
    """Bytes of the mapped range that are in memory; as `resident_pages`."""
    pages = resident_pages(address, length)
    if pages is None or pages.size == 0:
        return None if pages is None else 0
    span = page_span(address, length)
    before = (address - span.address) * int(pages[0])
    after = (span.address + span.length - address - length) * int(pages[-1])
    return int(pages.sum()) * PAGE_BYTES - before - after


def file_resident_bytes(
    file: int | str | PathLike[str], offset: int = 0, length: int | None = None
) -> int | None:
    """Bytes of a file, or of a range of it, that are in memory, counted in whole pages.

    ``file`` is a descriptor or a path; the range is cut at the file's end. None where it cannot be known.
    Raises OSError for a file that cannot be opened.
    """
    if not isinstance(file, int):
        descriptor = os.open(file, os.O_RDONLY)
        try:
            return file_resident_bytes(descriptor, offset, length)
        finally:
            os.close(descriptor)
    wanted = clipped_length(file, offset, length)
    return current().cached_bytes(file, offset, wanted) if wanted else 0
