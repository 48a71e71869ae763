from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from shardload.memory import (
    PAGE_BYTES,
    Range,
    eviction,
    expect_lookups,
    linux,
    mapped_files,
    populate_read,
    resident_bytes,
)
from shardload.memory.eviction import evict, runs


def test_pages_leave(mapped_file: Any) -> None:
    populate_read(mapped_file.address, mapped_file.length)
    left = evict(Range(mapped_file.address, mapped_file.length))
    assert left in (0, None)
    assert left == resident_bytes(mapped_file.address, mapped_file.length) or left is None


def test_pages_leave_that_were_read_by_somebody_else(mapped_file: Any) -> None:
    evict(Range(mapped_file.address, mapped_file.length))
    mapped_file.path.read_bytes()
    assert resident_bytes(mapped_file.address, mapped_file.length) in (mapped_file.length, None)
    assert evict(Range(mapped_file.address, mapped_file.length)) in (0, None)


def test_what_is_beside_the_range_stays(mapped_file: Any) -> None:
    populate_read(mapped_file.address, mapped_file.length)
    middle = Range(mapped_file.address + 20 * PAGE_BYTES, 10 * PAGE_BYTES)
    if evict(middle) == 0:
        assert resident_bytes(mapped_file.address, 20 * PAGE_BYTES) == 20 * PAGE_BYTES
        assert resident_bytes(middle.end, 34 * PAGE_BYTES) == 34 * PAGE_BYTES


def test_nothing_is_asked_of_an_empty_range(mapped_file: Any) -> None:
    assert evict(Range(mapped_file.address, 0)) == 0


class Kernel:
    """Pages that leave when they are in the page table, but for some that are still used elsewhere."""

    def __init__(self, mapped: str, cached: str, *, owner: bool = True, staying: Iterable[int] = ()) -> None:
        self.mapped = np.array([one == "x" for one in mapped])
        self.cached = np.array([one == "x" for one in cached])
        self.owner, self.staying = owner, list(staying)
        self.populated: list[tuple[int, int]] = []

    def at(self, address: int) -> Any:
        return SimpleNamespace(gives_pages=self.owner, lookups=[])

    def _slice(self, address: int, length: int) -> slice:
        return slice(address // PAGE_BYTES, (address + length) // PAGE_BYTES)

    def resident_pages(self, address: int, length: int) -> Any:
        pages = self.cached[self._slice(address, length)].copy()
        return pages if self.owner else np.ones_like(pages)

    def page_out(self, address: int, length: int) -> bool:
        where = self._slice(address, length)
        if self.owner:
            leaving = np.flatnonzero(self.mapped[where]) + where.start
            self.cached[np.setdiff1d(leaving, self.staying)] = False
            self.mapped[where] = False
        return True

    def populate_read(self, address: int, length: int) -> None:
        where = self._slice(address, length)
        self.mapped[where] = self.cached[where] = True
        self.populated.append((where.start, where.stop))

    def replace(self, monkeypatch: pytest.MonkeyPatch) -> Kernel:
        for name in ("resident_pages", "page_out", "populate_read"):
            monkeypatch.setattr(eviction, name, getattr(self, name))
        monkeypatch.setattr(eviction, "mapped_files", lambda: self)
        return self


@pytest.mark.parametrize(
    ("mapped", "cached", "populated"),
    [
        ("xxxxxxxx", "xxxxxxxx", []),
        ("xx..xx..", "xxx.xx.x", [(2, 3), (7, 8)]),
        ("........", "........", []),
    ],
)
def test_what_is_not_in_the_page_table_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, mapped: str, cached: str, populated: list[tuple[int, int]]
) -> None:
    kernel = Kernel(mapped, cached).replace(monkeypatch)
    assert evict(Range(0, 8 * PAGE_BYTES)) == 0
    assert not kernel.cached.any()
    assert kernel.populated == populated


def test_nothing_in_the_page_table(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("." * 2048, ".xx..x.." * 256).replace(monkeypatch)
    assert evict(Range(0, 2048 * PAGE_BYTES)) == 0
    assert not kernel.cached.any()
    # Only those are touched that are there.
    assert kernel.populated[:3] == [(1, 3), (5, 6), (9, 11)]


@pytest.mark.parametrize("mapped", ["." * 8, "x" * 8])
def test_a_page_that_cannot_leave_keeps_none_of_the_others(
    monkeypatch: pytest.MonkeyPatch, mapped: str
) -> None:
    kernel = Kernel(mapped, "xxxxxxxx", staying=[3]).replace(monkeypatch)
    assert evict(Range(0, 8 * PAGE_BYTES)) == PAGE_BYTES
    assert np.flatnonzero(kernel.cached).tolist() == [3]


def test_what_others_map_keeps_none_of_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("." * 2048, "x" * 2048, staying=range(512)).replace(monkeypatch)
    assert evict(Range(0, 2048 * PAGE_BYTES)) == 512 * PAGE_BYTES
    assert np.flatnonzero(kernel.cached).tolist() == list(range(512))


def test_large_pages_that_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("........", "xxxxxxxx").replace(monkeypatch)
    page_out = kernel.page_out
    whole = [True]

    def split(address: int, length: int) -> bool:
        if not whole[0]:
            return page_out(address, length)
        whole[0] = not kernel.mapped.any()
        kernel.mapped[:] = False
        return True

    monkeypatch.setattr(eviction, "page_out", split)
    assert evict(Range(0, 8 * PAGE_BYTES)) == 0


def test_a_file_of_somebody_else_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("........", "........", owner=False).replace(monkeypatch)
    assert evict(Range(0, 8 * PAGE_BYTES)) == 8 * PAGE_BYTES
    assert kernel.populated == []


def test_where_nothing_can_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "page_out", lambda address, length: False)
    monkeypatch.setattr(eviction, "resident_pages", lambda address, length: None)
    assert evict(Range(0, PAGE_BYTES)) is None
    monkeypatch.setattr(eviction, "resident_pages", lambda address, length: np.ones(3, np.bool_))
    assert evict(Range(0, 3 * PAGE_BYTES)) == 3 * PAGE_BYTES


def test_runs() -> None:
    assert list(runs(np.array([True, True, False, True]))) == [(0, 2), (3, 1)]
    assert list(runs(np.zeros(3, np.bool_))) == []
    assert list(runs(np.ones(3, np.bool_))) == [(0, 3)]


def test_what_is_touched_to_leave_brings_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel("........", "xx...xx.").replace(monkeypatch)
    seen: list[bool] = []

    class Advice:
        def read_ahead(self, address: int, length: int, wanted: bool) -> None:
            seen.append(wanted)

    monkeypatch.setattr(eviction, "current", Advice)
    assert evict(Range(0, 8 * PAGE_BYTES)) == 0
    assert kernel.populated
    assert seen == [False, True] * len(kernel.populated)


def advice_on(address: int) -> set[str]:
    """What the kernel remembers of a mapped page; "rr" is random access."""
    wanted = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            wanted = int(found[1], 16) <= address < int(found[2], 16)
        elif wanted and line.startswith("VmFlags:"):
            return set(line.split()[1:])
    raise AssertionError("nothing is mapped there")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux is advised")
@pytest.mark.parametrize("large_pages", [False, True])
def test_what_is_looked_up_stays_so(
    disk_path: Path, monkeypatch: pytest.MonkeyPatch, large_pages: bool
) -> None:
    """Before 5.18, or without large pages, the rest of a file is read with neighbours."""
    monkeypatch.setattr(linux, "_reads_whole_large_pages", lambda: large_pages)
    path = disk_path / "weights"
    path.write_bytes(os.urandom(64 * PAGE_BYTES))
    with path.open("rb") as opened:
        os.fsync(opened.fileno())
    file = mapped_files().open(path)
    try:
        rows = Range(file.address + 20 * PAGE_BYTES + 7, 10 * PAGE_BYTES)
        expect_lookups(rows)
        for whole in (Range(file.address, file.length), rows):
            path.read_bytes()
            evict(whole)
            for page, looked_up in ((0, False), (19, False), (20, True), (30, True), (31, False)):
                flags = advice_on(file.address + page * PAGE_BYTES)
                assert ("rr" in flags) == (looked_up or large_pages), page
    finally:
        file.release()
