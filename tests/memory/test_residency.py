from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from shardload.memory import (
    PAGE_BYTES,
    Range,
    drop_file_cache,
    file_resident_bytes,
    page_out,
    populate_read,
    resident_bytes,
    resident_pages,
)
from shardload.memory import residency as residency_module
from shardload.memory.eviction import evict


class Fixed:
    """A platform with every other page in memory."""

    def residency(self, address: int, pages: int) -> Any:
        import numpy as np

        assert address % PAGE_BYTES == 0
        return np.arange(pages) % 2 == 0


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency_module, "current", Fixed)


@pytest.mark.usefixtures("fixed")
@pytest.mark.parametrize(
    ("start", "length", "pages", "count"),
    [
        (0, 0, 0, 0),
        (0, 1, 1, 1),
        (0, PAGE_BYTES, 1, PAGE_BYTES),
        (0, 2 * PAGE_BYTES, 2, PAGE_BYTES),
        (100, PAGE_BYTES, 2, PAGE_BYTES - 100),
        (100, 2 * PAGE_BYTES, 3, PAGE_BYTES),
        (10, 20, 1, 20),
    ],
)
def test_counts_bytes_of_the_range_and_not_of_its_pages(
    start: int, length: int, pages: int, count: int
) -> None:
    found = resident_pages(PAGE_BYTES * 5 + start, length)
    assert found is not None
    assert len(found) == pages
    assert resident_bytes(PAGE_BYTES * 5 + start, length) == count


@pytest.mark.parametrize("name", ["win32", "freebsd14"])
def test_unknown_where_the_system_does_not_tell(
    mapped_file: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(sys, "platform", name)
    assert resident_pages(mapped_file.address, mapped_file.length) is None
    assert resident_bytes(mapped_file.address, mapped_file.length) is None
    assert file_resident_bytes(mapped_file.path) is None
    assert file_resident_bytes(mapped_file.path, 0, 0) == 0


def test_pages_come_and_go(mapped_file: Any) -> None:
    address, length, path = mapped_file.address, mapped_file.length, mapped_file.path
    populate_read(address, length, chunk_bytes=PAGE_BYTES + 1)
    assert resident_bytes(address, length) in (length, None)
    assert file_resident_bytes(path) in (length, None)
    assert file_resident_bytes(path, 3 * PAGE_BYTES, 2 * PAGE_BYTES) in (2 * PAGE_BYTES, None)
    if page_out(address, length):
        assert evict(Range(address, length)) in (0, None)
        assert resident_bytes(address, length) in (0, None)
    populate_read(address, length)
    assert resident_bytes(address, length) in (length, None)


def test_range_of_a_file_is_cut_at_its_end(mapped_file: Any) -> None:
    populate_read(mapped_file.address, mapped_file.length)
    assert file_resident_bytes(mapped_file.path, mapped_file.length - 10, 10**9) in (10, None)
    assert file_resident_bytes(mapped_file.path, mapped_file.length + 10) == 0


def test_descriptor_stays_open(mapped_file: Any) -> None:
    with mapped_file.path.open("rb") as file:
        assert file_resident_bytes(file.fileno()) == file_resident_bytes(mapped_file.path)
        assert os.fstat(file.fileno()).st_size == mapped_file.length


def test_unmapped_range(mapped_file: Any) -> None:
    with pytest.raises(OSError, match="mincore"):
        resident_pages(PAGE_BYTES, PAGE_BYTES)
    with pytest.raises(OSError, match="madvise"):
        page_out(PAGE_BYTES, PAGE_BYTES)


def test_file_that_is_not_there(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError):
        file_resident_bytes(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        drop_file_cache(tmp_path / "none")
