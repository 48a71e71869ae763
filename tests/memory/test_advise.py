from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from shardload.memory import PAGE_BYTES, advise, drop_file_cache, file_resident_bytes, page_out, populate_read


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
