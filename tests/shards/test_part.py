from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from shardload.errors import HandleClosed
from shardload.shards import lock as lock_module
from shardload.shards import part as part_module
from shardload.shards.lock import is_left, locked
from shardload.shards.part import PartFile, remove_if_left, sweep_parts, sync_directory, write_whole


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_nobody_finds_it_before_it_is_committed(tmp_path: Path) -> None:
    with PartFile(tmp_path, "x") as part:
        part.write(b"abc")
        part.write(memoryview(b"def"))
        part.sync()
        assert names(tmp_path) == [part.path.name]
        status = part.commit(tmp_path / "x")
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"abcdef"
    assert (status.st_ino, status.st_ctime_ns) == (
        os.stat(tmp_path / "x").st_ino,
        os.stat(tmp_path / "x").st_ctime_ns,
    )


def test_nothing_is_left_of_what_was_not_committed(tmp_path: Path) -> None:
    part = PartFile(tmp_path, "x")
    part.close()
    part.close()
    assert names(tmp_path) == []
    for use in (lambda: part.write(b"a"), part.sync, lambda: part.commit(tmp_path / "x")):
        with pytest.raises(HandleClosed):
            use()


def test_a_forgotten_one_warns(tmp_path: Path) -> None:
    with pytest.warns(ResourceWarning, match="unclosed"):
        PartFile(tmp_path, "x").__del__()
    assert names(tmp_path) == []


def test_a_write_may_take_less_than_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(part_module.os, "write", lambda file, data: write(file, data[:3]))
    write_whole(tmp_path / "x", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"0123456789"


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "x", b"old")

    def full(_: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(part_module.os, "write", full)
    with pytest.raises(OSError, match="full"):
        write_whole(tmp_path / "x", b"new")
    monkeypatch.undo()
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


def test_what_a_living_writer_has_is_not_removed(tmp_path: Path) -> None:
    with PartFile(tmp_path, "x") as part:
        assert not remove_if_left(part.path)
        assert part.path.exists()
    (tmp_path / ".y-1.part").write_bytes(b"half")
    assert remove_if_left(tmp_path / ".y-1.part")
    assert not remove_if_left(tmp_path / ".y-1.part")
    assert names(tmp_path) == []


def test_only_what_dead_writers_left_is_swept(tmp_path: Path) -> None:
    for name in (".y-1.part", ".z-2.part", ".hidden", "visible.part", "x"):
        (tmp_path / name).write_bytes(b"half")
    with PartFile(tmp_path, "x") as part:
        assert sweep_parts(tmp_path) == 2
        assert names(tmp_path) == sorted([".hidden", "visible.part", "x", part.path.name])
    assert sweep_parts(tmp_path / "nothing") == 0


@pytest.mark.usefixtures("network_locks")
def test_what_a_dead_writer_left_on_a_network_disk_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".y-1.part").write_bytes(b"half")
    with PartFile(tmp_path, "x") as part:
        assert not remove_if_left(part.path)
        assert remove_if_left(tmp_path / ".y-1.part")
        assert names(tmp_path) == [part.path.name]


def test_one_that_was_taken_for_left_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, left = lock_module.lock, [True]

    def slow_lock(descriptor: int) -> None:
        if left:
            left.clear()
            for name in names(tmp_path):
                assert remove_if_left(tmp_path / name)
        lock(descriptor)

    monkeypatch.setattr(lock_module, "lock", slow_lock)
    with PartFile(tmp_path, "x") as part:
        assert not left
        assert part.path.exists()


def test_one_at_a_time_has_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), path.open("rb") as other:
        assert not is_left(other.fileno())
    with path.open("rb") as other:
        assert is_left(other.fileno())


def test_a_directory_is_synced(tmp_path: Path) -> None:
    sync_directory(tmp_path)
    with pytest.raises(OSError, match=r"."):
        sync_directory(tmp_path / "nothing")
