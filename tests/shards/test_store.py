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

from shardload.errors import StoreFull, StoreUnavailable
from shardload.shards import objects as objects_module
from shardload.shards import part as part_module
from shardload.shards import store as store_module
from shardload.shards.entry import Entry, PackedKey
from shardload.shards.store import Store, default_directory

DATA = memoryview(bytes(range(256)) * 40)
Key = Callable[..., PackedKey]
Change = Callable[..., None]
Forbidden = Callable[..., AbstractContextManager[None]]


def used(entry: Entry, seconds: float) -> None:
    """Give an entry a time of last use."""
    os.utime(f"{entry.path}.json", (seconds, seconds))


def names(store: Store) -> list[str]:
    return sorted(os.listdir(store.directory / "packed"))


def test_what_was_written_is_found(store: Store, key: Key) -> None:
    entry = store.write(key(), DATA)
    assert entry.path.read_bytes() == DATA
    assert (entry.id, entry.nbytes, entry.key) == (key().id, len(DATA), key())
    assert entry.last_used == pytest.approx(entry.verified, abs=60)
    assert Store(store.directory).find([key(), key("b")]) == {key(): entry}
    assert Store(store.directory).entries() == [entry]
    assert store.used_bytes() == sum(
        (store.directory / "packed" / name).stat().st_size for name in names(store)
    )


def test_a_store_that_is_not_there_is_empty(store: Store, key: Key) -> None:
    assert store.find([key()]) == {}
    assert store.entries() == []
    assert store.used_bytes() == 0
    assert store.verify().checked == store.prune(0).removed == store.clear().removed == ()
    assert not store.directory.exists()


def test_what_is_there_is_not_written_again(store: Store, key: Key, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = store.write(key(), DATA)
    used(entry, 1000)
    monkeypatch.setattr(objects_module.Objects, "write", None)
    assert store.write(key(), DATA).id == entry.id
    assert store.entries()[0].last_used > 1000


def test_any_buffer_can_be_written(store: Store, key: Key) -> None:
    numbers = memoryview(bytearray(80)).cast("d")
    assert store.write(key(), numbers).nbytes == 80


def test_use_is_noted(store: Store, key: Key) -> None:
    entries = [store.write(key(name), DATA) for name in "abc"]
    for entry in entries:
        used(entry, 1000)
    store.touch([entries[1]])
    assert store.entries()[0].id == entries[1].id
    store.remove([entries[1]])
    assert {entry.id for entry in store.entries()} == {entries[0].id, entries[2].id}
    store.touch([entries[1]])


# What can be wrong with an entry.


def test_a_flipped_byte_removes_the_entry(
    store: Store, key: Key, change: Change, caplog: pytest.LogCaptureFixture
) -> None:
    entry = store.write(key(), DATA)
    change(entry.path, 77)
    assert store.find([key()], look_closer=False) == {}
    assert entry.path.exists()
    assert store.find([key()]) == {}
    assert "was damaged" in caplog.text
    assert names(store) == []
    assert store.write(key(), DATA).path.read_bytes() == DATA


@pytest.mark.parametrize("length", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_an_entry_of_another_length_is_removed(store: Store, key: Key, length: int) -> None:
    entry = store.write(key(), DATA)
    os.truncate(entry.path, length)
    assert store.find([key()]) == {}
    assert names(store) == []


def test_an_entry_of_another_build_is_not_found(store: Store, key: Key) -> None:
    store.write(key(build="old"), DATA)
    assert store.find([key()]) == {}
    ours = store.write(key(), DATA)
    report = store.prune(keep_build="build 1")
    assert [entry.key.build for entry in report.removed] == ["old"]
    assert report.freed_bytes == len(DATA)
    assert store.entries() == [ours]


def test_a_copied_store_is_looked_at_once(
    store: Store, key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used(store.write(key(), DATA), 1000)
    copy = Store(Path(shutil.copytree(store.directory, tmp_path / "copy")))
    (entry,) = copy.find([key()]).values()
    assert entry.last_used == 1000
    monkeypatch.setattr(objects_module, "checksum", None)
    assert copy.find([key()]) == {key(): entry}


def test_a_copy_with_a_wrong_byte_is_not_taken(
    store: Store, key: Key, tmp_path: Path, change: Change
) -> None:
    store.write(key(), DATA)
    copy = Store(Path(shutil.copytree(store.directory, tmp_path / "copy")))
    change(tmp_path / "copy" / "packed" / key().id, len(DATA) - 1)
    assert copy.find([key()]) == {}


@pytest.mark.parametrize("record", [b"", b"{}", b"\xff\xfe", b"[" * 5000])
def test_a_damaged_record_is_no_entry(store: Store, key: Key, record: bytes) -> None:
    entry = store.write(key(), DATA)
    Path(f"{entry.path}.json").write_bytes(record)
    assert store.find([key()]) == {}
    assert Store(store.directory).entries() == []
    assert store.write(key(), DATA).path.read_bytes() == DATA
    Path(f"{entry.path}.json").write_bytes(record)
    store.prune()
    assert names(store) == []


def test_the_record_of_another_entry_is_no_entry(store: Store, key: Key) -> None:
    first, second = store.write(key("a"), DATA), store.write(key("b"), memoryview(b"other"))
    shutil.copy(f"{first.path}.json", f"{second.path}.json")
    assert store.find([key("a"), key("b")]) == {key("a"): first}


def test_bytes_that_rot_in_place_are_found_by_verifying(
    store: Store, key: Key, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, rotten = store.write(key("a"), DATA), store.write(key("b"), DATA)
    checksum, on_disk = objects_module.checksum, rotten.path.stat()

    def disk(descriptor: int, *arguments: object) -> str | None:
        same = os.path.samestat(os.fstat(descriptor), on_disk)
        found = checksum(descriptor, *arguments)  # type: ignore[arg-type]
        return "another" if same else found

    monkeypatch.setattr(objects_module, "checksum", disk)
    done: list[tuple[int, int]] = []
    report = store.verify(lambda part, total: done.append((part, total)))
    assert [entry.id for entry in report.damaged] == [rotten.id]
    assert [entry.id for entry in report.checked] == [whole.id]
    assert done[-1] == (2 * len(DATA), 2 * len(DATA))
    assert store.find([key("a"), key("b")]).keys() == {key("a")}
    assert "was damaged" in caplog.text


def test_verifying_can_be_stopped_and_notes_when_it_was(store: Store, key: Key) -> None:
    entry = store.write(key(), DATA)
    used(entry, 1000)
    stopped = store.verify(should_stop=lambda: True)
    assert stopped.checked == stopped.damaged == ()
    asked = iter([False, True, True])
    assert store.verify(should_stop=lambda: next(asked)).checked == ()
    assert store.verify().checked[0].id == entry.id
    (now,) = store.entries()
    assert now.last_used == 1000
    assert now.verified >= entry.verified


# Disks and users that refuse.


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
    with pytest.raises(StoreFull, match="the disk has"):
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
        assert reader.find([key()]) == {key(): entry}
        reader.touch([entry])
        with pytest.raises(StoreUnavailable, match="ermission"):
            reader.write(key("b"), DATA)
        reader.remove([entry])
        assert reader.prune(0).removed == ()
        with reader.hold([entry]):
            assert reader.verify().checked == (entry,)
    assert store.find([key()]) == {key(): entry}


def test_a_copy_that_cannot_be_written_is_looked_at_once(
    shared_path: Path, key: Key, forbidden: Forbidden, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(shared_path / "store", reserve_bytes=0).write(key(), DATA)
    folder = Path(shutil.copytree(shared_path / "store", shared_path / "copy"))
    with forbidden(folder / "packed", 0o555):
        store = Store(folder)
        (entry,) = store.find([key()]).values()
        monkeypatch.setattr(objects_module, "checksum", None)
        assert store.find([key()]).keys() == {key()}
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
        assert store.find([key("a"), key("b")]).keys() == {key("b")}
        assert [entry.id for entry in store.entries()] == [entries[1].id]
        assert store.verify().damaged == ()
    assert store.find([key("a"), key("b")]).keys() == {key("a"), key("b")}


def test_a_directory_that_cannot_be_looked_into(shared_path: Path, key: Key, forbidden: Forbidden) -> None:
    store = Store(shared_path / "store", reserve_bytes=0)
    store.write(key(), DATA)
    with forbidden(store.directory, 0o000):
        assert Store(store.directory).find([key()]) == {}
        assert store.entries() == []
        assert store.used_bytes() == 0
        with pytest.raises(StoreUnavailable):
            store.write(key("b"), DATA)


def test_a_store_below_a_file_is_unavailable(tmp_path: Path, key: Key) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path / "file" / "store", reserve_bytes=0)
    assert store.find([key()]) == {}
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
        assert store.find([key()]) == {}
        store.touch([entry])
        hold.add([store.write(key("b"), DATA).id])
        assert store.prune(0).removed == ()
        assert mapping[:] == DATA


# The limit.


def test_the_limit_is_kept_by_removing_the_longest_unused(tmp_path: Path, key: Key) -> None:
    store = Store(tmp_path / "store", 4 * len(DATA), reserve_bytes=0)
    for at, name in enumerate("abc"):
        used(store.write(key(name), DATA), 1000 + at)
    store.touch(store.find([key("a")]).values())
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


def test_pruning_leaves_what_is_in_use_and_tells(store: Store, key: Key) -> None:
    entries = [store.write(key(name), DATA) for name in "abc"]
    for at, entry in enumerate(entries):
        used(entry, 1000 + at)
    with store.hold([entries[0]]):
        report = store.prune(len(DATA))
        assert [entry.id for entry in report.removed] == [entries[1].id, entries[2].id]
        report = store.prune(0)
        assert report.removed == ()
        assert [entry.id for entry in report.held] == [entries[0].id]
        assert store.prune().removed == ()
        assert [entry.id for entry in store.clear().removed] == [entries[0].id]
    assert store.entries() == []


def test_clearing_forgets_contents_too(store: Store, key: Key) -> None:
    store.write(key(), DATA)
    (store.directory / "packed" / ".x-1.part").write_bytes(b"half")
    report = store.clear()
    assert report.freed_bytes == len(DATA)
    assert names(store) == []


def test_an_entry_that_another_process_replaces_meanwhile_stays(
    store: Store, key: Key, change: Change, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = store.write(key(), DATA)
    change(entry.path, 5)
    checksum = objects_module.checksum

    def slow(*arguments: object) -> str | None:
        found = checksum(*arguments)  # type: ignore[arg-type]
        monkeypatch.undo()
        store._objects.write(key(), DATA)
        return found

    monkeypatch.setattr(objects_module, "checksum", slow)
    assert store.find([key()]).keys() == {key()}
    assert entry.path.read_bytes() == DATA


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


def test_the_default_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "shardload" / "store"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setattr(store_module.Path, "home", lambda: tmp_path)
    assert default_directory() == tmp_path / ".cache" / "shardload" / "store"


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
