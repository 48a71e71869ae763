"""Which pages were in memory at one moment: whatever is added up of them agrees."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from shardload.memory import PAGE_BYTES, Range, resident_pages
from shardload.memory.pages import page_span
from shardload.shards.places import merged


class SeenPages:
    """The pages of some mapped places as the system told of them once."""

    def __init__(self, ranges: Sequence[Range], pages: Sequence[NDArray[np.bool_]]) -> None:
        """``ranges`` are in order of addresses and apart, each with a truth for every page it touches."""
        self._ranges, self._pages = ranges, pages

    @classmethod
    def of(cls, places: Iterable[Range]) -> Self | None:
        """Ask for the pages of some places; None where the system does not tell. Touches none of them."""
        ranges, found = merged(places, gap_bytes=0), []
        for one in ranges:
            pages = resident_pages(one.address, one.length)
            if pages is None:
                return None
            found.append(pages)
        return cls(ranges, found)

    def resident_bytes(self, places: Iterable[Range]) -> int:
        """Bytes of some of the places, or of parts of them, that were in memory."""
        return sum(map(self._resident_bytes, places))

    def _resident_bytes(self, place: Range) -> int:
        at = bisect_right(self._ranges, place.address, key=lambda one: one.address) - 1
        span = page_span(place.address, place.length)
        first = (span.address - page_span(self._ranges[at].address, 1).address) // PAGE_BYTES
        pages = self._pages[at][first : first + span.count]
        if not pages.size:
            return 0
        before = (place.address - span.address) * int(pages[0])
        after = (span.address + span.length - place.end) * int(pages[-1])
        return int(pages.sum()) * PAGE_BYTES - before - after
