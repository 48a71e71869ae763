"""Sending pages away for certain: what left is measured, and what stayed is asked a second time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from shardload.memory.advise import page_out, populate_read
from shardload.memory.pages import PAGE_BYTES, Range, page_span
from shardload.memory.residency import resident_pages


def evict(place: Range) -> int | None:
    """Send the pages of a mapped range away; bytes of them that are in memory still, None where unknown.

    The system takes away only what this process has in its page table, and leaves what was read ahead, or
    by somebody else, and never touched here: such pages are touched and sent away again. Pages that others
    map, or of a file that this user does not own, stay. Raises OSError where the range is not mapped.
    """
    span = page_span(place.address, place.length)
    before = resident_pages(span.address, span.length)
    if before is not None and not before.any():
        return 0
    if not page_out(span.address, span.length) or before is None:
        return None if before is None else int(before.sum()) * PAGE_BYTES
    left = _resident(span.address, span.length)
    if left.any() and (left.sum() < before.sum() or _leaves(span.address, left)):
        for start, pages in runs(left):
            # A page that went meanwhile is read again: few, and they leave with the others.
            populate_read(span.address + start * PAGE_BYTES, pages * PAGE_BYTES)
        page_out(span.address, span.length)
        left = _resident(span.address, span.length)
    return int(left.sum()) * PAGE_BYTES


def runs(pages: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    """Where pages that are set begin, and how many follow each other."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], pages, [False])).astype(np.int8)))
    for start, end in edges.reshape(-1, 2):
        yield int(start), int(end - start)


def _resident(address: int, length: int) -> NDArray[np.bool_]:
    pages = resident_pages(address, length)
    assert pages is not None  # it was known a moment ago
    return pages


def _leaves(address: int, pages: NDArray[np.bool_]) -> bool:
    # Of a file of somebody else every page is said to be there: touching them would read them all.
    probe = address + int(np.argmax(pages)) * PAGE_BYTES
    populate_read(probe, PAGE_BYTES)
    page_out(probe, PAGE_BYTES)
    return not _resident(probe, PAGE_BYTES).any()
