from __future__ import annotations

import mmap

import numpy as np
import pytest

from shardload.library.seen_pages import SeenPages
from shardload.memory import PAGE_BYTES as PAGE
from shardload.memory import Range

# Pages 1 to 4 and 8 to 9; the first range begins and ends within a page.
RANGES = (Range(PAGE + 100, 4 * PAGE - 300), Range(8 * PAGE, 2 * PAGE))
PAGES = (np.array([True, False, True, True]), np.array([False, True]))


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (RANGES[0], PAGE - 100 + PAGE + PAGE - 200),
        (RANGES[1], PAGE),
        (Range(PAGE + 150, 10), 10),
        (Range(2 * PAGE - 5, 10), 5),
        (Range(2 * PAGE, PAGE), 0),
        (Range(3 * PAGE - 5, 10), 5),
        (Range(3 * PAGE + 1, PAGE), PAGE),
        (Range(9 * PAGE + 1, PAGE - 1), PAGE - 1),
        (Range(8 * PAGE, 0), 0),
    ],
)
def test_parts_of_places_are_counted_to_the_byte(place: Range, expected: int) -> None:
    pages = SeenPages(RANGES, PAGES)
    assert pages.resident_bytes([place]) == expected
    assert pages.resident_bytes([place, place]) == 2 * expected


def test_no_place_has_no_pages() -> None:
    pages = SeenPages.of([])
    assert pages is not None
    assert pages.resident_bytes([]) == 0


def test_systems_that_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardload.library.seen_pages.resident_pages", lambda *_: None)
    assert SeenPages.of([Range(mmap.PAGESIZE, 5)]) is None
