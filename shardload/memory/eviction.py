"""Sending pages away for certain: what left is measured, and what stayed is asked a second time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from shardload.memory.advise import page_out, populate_read
from shardload.memory.mapped import mapped_files
from shardload.memory.pages import PAGE_BYTES, Range, page_span
from shardload.memory.platform import current
from shardload.memory.residency import resident_pages


def evict(place: Range) -> int | None:
    """Send the pages of a mapped range away; bytes of them that are in memory still, None where unknown.

    The system takes away only what this process has in its page table, and leaves what was read ahead, or
    by somebody else, and never touched here: such pages are touched and sent away again. Pages that others
    map, or of a file that this user does not own, stay, and so do the few that another CPU has just read:
    Linux lists up to 31 per CPU only later. Raises OSError where the range is not mapped.
    """
    span = page_span(place.address, place.length)
    before = resident_pages(span.address, span.length)
    if before is not None and not before.any():
        return 0
    if not page_out(span.address, span.length) or before is None:
        return None if before is None else int(before.sum()) * PAGE_BYTES
    # Of a file of somebody else every page is said to be there: touching them would read them all.
    file = mapped_files().at(span.address)
    if file is not None and not file.gives_pages:
        return int(before.sum()) * PAGE_BYTES
    left = _resident(span.address, span.length)
    noted, end = file.lookups if file is not None else (), span.address + span.length
    lookups = [one for one in noted if one.address < end and span.address < one.end]
    # Once for what was not in the page table, and once for large pages that the range has a part of: those
    # are split at first, and leave the table without leaving memory.
    for _ in range(2):
        for start, pages in runs(left):
            # A page that went meanwhile is read again: few, and they leave with the others.
            _touch(Range(span.address + start * PAGE_BYTES, pages * PAGE_BYTES), lookups)
        if left.any():
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


def _touch(place: Range, lookups: Sequence[Range]) -> None:
    """Have pages that are in memory in the page table, and bring none of their neighbours."""
    read_ahead = current().read_ahead
    read_ahead(place.address, place.length, False)
    try:
        populate_read(place.address, place.length)
    finally:
        read_ahead(place.address, place.length, True)
        for looked_up in lookups:
            if place.address < looked_up.end and looked_up.address < place.end:
                read_ahead(looked_up.address, looked_up.length, False)
