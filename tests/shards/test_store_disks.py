"""Disks and users that refuse, and stores that are full."""

from __future__ import annotations

import errno
import logging
import mmap
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from store_files import DATA, names, used

from shardload.errors import StoreFull, StoreUnavailable
from shardload.shards import objects as objects_module
from shardload.shards import part as part_module
from shardload.shards.entry import PackedKey
from shardload.shards.store import Store

Key = Callable[..., PackedKey]
Forbidden = Callable[..., AbstractContextManager[None]]


def test_a_disk_that_fills_up_in_the_middle(store: Store, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    room, write = [3000], os.write
    monkeypatch.setattr(part_module, "CHUNK_BYTES", 1000)

    def until_full(descriptor: int, data: memoryview) -> int:
        if len(data) > room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        room[0] -= len(data)
        return write(descriptor, data)

    monkeypatch.setattr(part_module.os, "write", until_full)
    with pytest.raises(StoreFull, match="No space left"):
        store.write(key(), DATA)
    assert names(store) == []
    monkeypatch.undo()
    assert store.write(key(), DATA).path.read_bytes() == DATA


@pytest.mark.parametrize("error", [errno.EDQUOT, errno.EFBIG])
def test_a_quota_is_room_too(store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse(_: int) -> None:
        raise OSError(error, "no more")

    monkeypatch.setattr(part_module.os, "fsync", refuse)
    with pytest.raises(StoreFull, match="no more"):
        store.write(key(), DATA)
    assert names(store) == []


def test_files_may_only_be_so_large(store: Store, key: Key) -> None:
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(StoreFull):
            store.write(key(), DATA)
        assert names(store) == []
        assert store.write(key("b"), DATA[:1000]).nbytes == 1000
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_some_of_the_disk_is_left_to_others(tmp_path: Path, key: Key) -> None:
    store = Store(tmp_path / "store", reserve_bytes=2**62)
    told = r"no room for 10\.0 KiB: the disk has .* left, and 4194304\.0 TiB stay free for others"
    with pytest.raises(StoreFull, match=told):
        store.write(key(), DATA)
    assert not store.directory.exists()


def test_a_broken_disk_is_no_full_one(store: Store, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(part_module.os, "fsync", refuse)
    with pytest.raises(StoreUnavailable, match="Input/output error"):
        store.write(key(), DATA)
    assert names(store) == []


def test_a_directory_that_cannot_be_written_can_be_used(
    shared_path: Path, key: Key, forbidden: Forbidden, tmp_path: Path
) -> None:
    store = Store(shared_path / "store", 1, reserve_bytes=0)
    entry = Store(store.directory, reserve_bytes=0).write(key(), DATA)
    with forbidden(store.directory / "packed", 0o555):
        reader = Store(store.directory, reserve_bytes=0)
        assert reader.find(key()) == entry
        reader.touch([entry])
        with pytest.raises(StoreUnavailable, match="ermission"):
            reader.write(key("b"), DATA)
        reader.remove([entry])
        for report in (reader.prune(0), reader.clear()):
            assert (report.removed, report.freed_bytes, report.refused) == ((), 0, (entry,))
        with reader.hold([entry]):
            assert reader.verify().checked == (entry,)
    assert store.find(key()) == entry


def test_a_copy_that_cannot_be_written_is_looked_at_once(
    shared_path: Path, key: Key, forbidden: Forbidden, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(shared_path / "store", reserve_bytes=0).write(key(), DATA)
    folder = Path(shutil.copytree(shared_path / "store", shared_path / "copy"))
    with forbidden(folder / "packed", 0o555):
        store = Store(folder)
        entry = store.find(key())
        assert entry is not None
        monkeypatch.setattr(objects_module, "checksum", None)
        assert store.find(key()) is not None
        assert [found.id for found in store.entries()] == [entry.id]


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_what_another_user_keeps_to_himself_is_not_there(
    shared_path: Path, key: Key, forbidden: Forbidden, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shared_path / "store", reserve_bytes=0)
    entries = [store.write(key(name), DATA) for name in "ab"]
    if os.geteuid() == 0:  # `access` goes by who is logged in
        access = os.access
        monkeypatch.setattr(os, "access", lambda *path: access(*path, effective_ids=True))
    with forbidden(Path(f"{entries[0].path}{suffix}"), 0o000):
        assert (store.find(key("a")), store.find(key("b"))) == (None, entries[1])
        assert [entry.id for entry in store.entries()] == [entries[1].id]
        assert store.verify().damaged == ()
    assert all(store.find(key(name)) is not None for name in "ab")


def test_a_directory_that_cannot_be_looked_into(shared_path: Path, key: Key, forbidden: Forbidden) -> None:
    store = Store(shared_path / "store", reserve_bytes=0)
    store.write(key(), DATA)
    with forbidden(store.directory, 0o000):
        assert Store(store.directory).find(key()) is None
        assert store.entries() == []
        assert store.used_bytes() == 0
        with pytest.raises(StoreUnavailable):
            store.write(key("b"), DATA)
        with pytest.raises(StoreUnavailable, match="ermission"):
            store.check_readable()
    store.check_readable()


def test_a_store_that_is_not_there_yet_can_be_read(tmp_path: Path) -> None:
    Store(tmp_path / "none").check_readable()
    assert not (tmp_path / "none").exists()


def test_a_store_below_a_file_is_unavailable(tmp_path: Path, key: Key) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store", reserve_bytes=0)
    assert store.find(key()) is None
    with pytest.raises(StoreUnavailable, match="Not a directory"):
        store.write(key(), DATA)


def test_a_store_that_is_removed_while_files_are_mapped(store: Store, key: Key) -> None:
    entry = store.write(key(), DATA)
    with (
        store.hold([entry]) as hold,
        entry.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapping,
    ):
        shutil.rmtree(store.directory)
        assert mapping[:] == DATA
        assert store.find(key()) is None
        store.touch([entry])
        hold.add([store.write(key("b"), DATA).id])
        assert store.prune(0).removed == ()
        assert mapping[:] == DATA


# The limit.


def test_the_limit_is_kept_by_removing_the_longest_unused(tmp_path: Path, key: Key) -> None:
    store = Store(tmp_path / "store", 4 * len(DATA), reserve_bytes=0)
    for at, name in enumerate("abc"):
        used(store.write(key(name), DATA), 1000 + at)
    first = store.find(key("a"))
    assert first is not None
    store.touch([first])
    store.write(key("d"), DATA)
    assert {entry.key for entry in store.entries()} == {key("a"), key("c"), key("d")}
    assert store.used_bytes() <= 4 * len(DATA)


def test_what_is_in_use_is_not_removed_for_room(tmp_path: Path, key: Key) -> None:
    store = Store(tmp_path / "store", 3 * len(DATA), reserve_bytes=0)
    entries = [store.write(key(name), DATA) for name in "ab"]
    used(entries[0], 1000)
    with store.hold([entries[0]]) as hold:
        store.write(key("c"), DATA)
        assert {entry.key for entry in store.entries()} == {key("a"), key("c")}
        hold.add(entry.id for entry in store.entries())
        with pytest.raises(StoreFull, match=r"no room for 10\.0 KiB below the limit of 30\.0 KiB"):
            store.write(key("d"), DATA)
        assert len(store.entries()) == 2
    store.write(key("d"), DATA)


def test_nothing_is_removed_for_what_never_fits(tmp_path: Path, key: Key) -> None:
    store = Store(tmp_path / "store", 2 * len(DATA), reserve_bytes=0)
    store.write(key(), DATA)
    with pytest.raises(StoreFull):
        store.write(key("b"), memoryview(bytes(3 * len(DATA))))
    assert [entry.key for entry in store.entries()] == [key()]


def test_removal_that_fails_is_a_line_in_the_log(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    entry = store.write(key(), DATA)

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(Path, "unlink", refuse)
    with caplog.at_level(logging.INFO, "shardload.shards"):
        assert store.prune(0).removed == ()
    assert f"the entry {entry.id} cannot be removed" in caplog.text


def test_files_are_not_counted_for_every_write(
    tmp_path: Path, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = 64 * 3 * len(DATA)
    store = Store(tmp_path / "store", limit, reserve_bytes=0)
    counted: list[int] = []
    used_bytes = objects_module.Objects.used_bytes

    def count(objects: objects_module.Objects) -> int:
        counted.append(used_bytes(objects))
        return counted[-1]

    monkeypatch.setattr(objects_module.Objects, "used_bytes", count)
    for number in range(9):
        store.write(key(str(number)), DATA)
    # After the first, and whenever three more might have been written.
    assert len(counted) == 3
    assert counted[0] == 0
