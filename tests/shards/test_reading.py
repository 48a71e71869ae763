from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from shardload.memory import PAGE_BYTES, drop_file_cache, file_resident_bytes
from shardload.shards import reading
from shardload.shards.reading import WINDOW_BYTES, Reader, checksum, feed


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 10), (7, WINDOW_BYTES), (WINDOW_BYTES - 1, 2), (5, 2 * WINDOW_BYTES + 3), (0, 0)],
)
def test_reads_exactly_the_range(tmp_path: Path, offset: int, length: int) -> None:
    data = os.urandom(3 * WINDOW_BYTES)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file:
        windows = [bytes(window) for window in Reader(file.fileno()).windows(offset, length)]
    assert b"".join(windows) == data[offset : offset + length]


def test_a_file_that_ends_early(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    with (tmp_path / "file").open("rb") as file, pytest.raises(EOFError, match="2 bytes early"):
        list(Reader(file.fileno()).windows(0, 5))


def test_reads_without_a_call_that_fills_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"abcdef")
    monkeypatch.delattr(reading.os, "readv", raising=False)
    monkeypatch.delattr(reading.os, "posix_fadvise", raising=False)
    with (tmp_path / "file").open("rb") as file:
        assert [bytes(window) for window in Reader(file.fileno()).windows(1, 4)] == [b"bcde"]


def test_a_checksum_tells_how_far_it_is_and_can_be_stopped(tmp_path: Path) -> None:
    data = os.urandom(2 * WINDOW_BYTES + 5)
    (tmp_path / "file").write_bytes(data)
    done: list[int] = []
    with (tmp_path / "file").open("rb") as file:
        assert checksum(file.fileno(), len(data), done.append) == hashlib.sha256(data).hexdigest()
        assert done == [WINDOW_BYTES, WINDOW_BYTES, 5]
        assert checksum(file.fileno(), len(data), None, lambda: True) is None
        partly = hashlib.sha256()
        assert not feed(partly, Reader(file.fileno()), 0, len(data), None, lambda: True)
        assert partly.digest() == hashlib.sha256(data[:WINDOW_BYTES]).digest()


def test_leaves_in_memory_only_what_was_there(disk_path: Path) -> None:
    path = disk_path / "weights"
    with path.open("wb") as file:
        file.write(os.urandom(4 * WINDOW_BYTES))
        file.flush()
        os.fsync(file.fileno())
    before = 0 if drop_file_cache(path) else file_resident_bytes(path)
    with path.open("rb") as file:
        for _ in Reader(file.fileno()).windows(PAGE_BYTES // 2, 4 * WINDOW_BYTES - PAGE_BYTES):
            pass
    assert file_resident_bytes(path) in (before, None)
    path.read_bytes()
    with path.open("rb") as file:
        for _ in Reader(file.fileno()).windows(0, 4 * WINDOW_BYTES):
            pass
    assert file_resident_bytes(path) in (4 * WINDOW_BYTES, None)
