from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from shardload.memory import (
    PAGE_BYTES,
    Range,
    advise,
    discard,
    drop_file_cache,
    file_resident_bytes,
    page_out,
    populate_read,
    same_bytes,
    view,
)


def test_dropping_a_file_that_nobody_maps(disk_path: Path) -> None:
    path = disk_path / "file"
    with path.open("wb") as file:
        file.write(os.urandom(32 * PAGE_BYTES))
        file.flush()
        os.fsync(file.fileno())
    assert file_resident_bytes(path) in (32 * PAGE_BYTES, None)
    if drop_file_cache(path):
        assert file_resident_bytes(path) in (0, None)


def test_dropping_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert drop_file_cache(tmp_path / "file")


class Recorder:
    """A platform that remembers what it was asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int]] = []

    def populate_read(self, address: int, length: int) -> None:
        self.calls.append((address // PAGE_BYTES, length // PAGE_BYTES))

    def page_out(self, address: int, length: int) -> bool:
        self.calls.append((address // PAGE_BYTES, length // PAGE_BYTES))
        return False

    def discard(self, address: int, length: int) -> None:
        self.calls.append((address // PAGE_BYTES, length // PAGE_BYTES))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    platform = Recorder()
    monkeypatch.setattr(advise, "current", lambda: platform)
    return platform


def test_populates_whole_pages_in_chunks(recorder: Any) -> None:
    populate_read(10 * PAGE_BYTES + 1, 5 * PAGE_BYTES, chunk_bytes=2 * PAGE_BYTES)
    assert recorder.calls == [(10, 2), (12, 2), (14, 2)]
    recorder.calls.clear()
    populate_read(0, 3 * PAGE_BYTES, chunk_bytes=0)
    assert recorder.calls == [(0, 1), (1, 1), (2, 1)]


def test_pages_out_whole_pages(recorder: Any) -> None:
    assert not page_out(PAGE_BYTES - 1, 2)
    assert recorder.calls == [(0, 2)]
    assert page_out(PAGE_BYTES, 0)
    assert len(recorder.calls) == 1


def test_discards_the_pages_that_are_the_ranges_alone(recorder: Any) -> None:
    discard(Range(PAGE_BYTES + 1, 3 * PAGE_BYTES))
    discard(Range(PAGE_BYTES, 2 * PAGE_BYTES))
    discard(Range(PAGE_BYTES + 1, PAGE_BYTES))
    discard(Range(0, 0))
    assert recorder.calls == [(2, 2), (1, 2)]


def test_discarded_memory_is_empty() -> None:
    with mmap.mmap(-1, 4 * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as private:
        private[:] = b"x" * len(private)
        shown = ctypes.c_char.from_buffer(private)
        discard(Range(ctypes.addressof(shown) + 1, 3 * PAGE_BYTES))
        del shown  # the mapping cannot be closed under it
        left = b"\0" if sys.platform.startswith("linux") else b"x"
        assert private[PAGE_BYTES : 3 * PAGE_BYTES] == left * 2 * PAGE_BYTES
        assert private[:PAGE_BYTES] + private[3 * PAGE_BYTES :] == b"x" * 2 * PAGE_BYTES


def memory_with(content: bytes) -> Any:
    return ctypes.create_string_buffer(content, len(content))


def range_of(buffer: Any) -> Range:
    return Range(ctypes.addressof(buffer), len(buffer))


def test_a_view_shows_bytes_and_changes_nothing() -> None:
    buffer = memory_with(b"weights")
    shown = view(Range(range_of(buffer).address + 1, 3))
    assert bytes(shown) == b"eig"
    assert shown.readonly


@pytest.mark.parametrize("at", [None, 0, 7, 8, 29])
def test_the_same_bytes(at: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advise, "POPULATE_CHUNK_BYTES", 8)
    data = os.urandom(30)
    one, two = memory_with(data), memory_with(data)
    if at is not None:
        two[at] = bytes([data[at] ^ 1])
    assert same_bytes(range_of(one), range_of(two)) == (at is None)
    assert not same_bytes(range_of(one), Range(range_of(one).address, 29))
