from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from store_files import DATA, names, used

from shardload.shards import objects as objects_module
from shardload.shards.contents import Content
from shardload.shards.entry import PackedKey
from shardload.shards.identity import FileIdentity
from shardload.shards.store import Store, default_directory

Key = Callable[..., PackedKey]
Change = Callable[..., None]


def test_what_was_written_is_found(store: Store, key: Key) -> None:
    entry = store.write(key(), DATA)
    assert entry.path.read_bytes() == DATA
    assert (entry.id, entry.nbytes, entry.key) == (key().id, len(DATA), key())
    assert entry.last_used == pytest.approx(entry.verified, abs=60)
    again = Store(store.directory)
    assert (again.find(key()), again.find(key("b"))) == (entry, None)
    assert Store(store.directory).entries() == [entry]
    assert store.used_bytes() == sum(
        (store.directory / "packed" / name).stat().st_size for name in names(store)
    )


def test_a_store_that_is_not_there_is_empty(store: Store, key: Key) -> None:
    assert store.find(key()) is None
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
    assert store.find(key()) is None
    assert "was damaged" in caplog.text
    assert names(store) == []
    assert store.write(key(), DATA).path.read_bytes() == DATA


@pytest.mark.parametrize("length", [0, 1, len(DATA) - 1, len(DATA) + 1])
def test_an_entry_of_another_length_is_removed(store: Store, key: Key, length: int) -> None:
    entry = store.write(key(), DATA)
    os.truncate(entry.path, length)
    assert store.find(key()) is None
    assert names(store) == []


def test_an_entry_of_another_build_is_not_found(store: Store, key: Key) -> None:
    store.write(key(build="old"), DATA)
    assert store.find(key()) is None
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
    entry = copy.find(key())
    assert entry is not None
    assert entry.last_used == 1000
    monkeypatch.setattr(objects_module, "checksum", None)
    assert copy.find(key()) == entry


def test_a_copy_with_a_wrong_byte_is_not_taken(
    store: Store, key: Key, tmp_path: Path, change: Change
) -> None:
    store.write(key(), DATA)
    copy = Store(Path(shutil.copytree(store.directory, tmp_path / "copy")))
    change(tmp_path / "copy" / "packed" / key().id, len(DATA) - 1)
    assert copy.find(key()) is None


@pytest.mark.parametrize("record", [b"", b"{}", b"\xff\xfe", b"[" * 5000])
def test_a_damaged_record_is_no_entry(store: Store, key: Key, record: bytes) -> None:
    entry = store.write(key(), DATA)
    Path(f"{entry.path}.json").write_bytes(record)
    assert store.find(key()) is None
    assert Store(store.directory).entries() == []
    assert store.write(key(), DATA).path.read_bytes() == DATA
    Path(f"{entry.path}.json").write_bytes(record)
    store.prune()
    assert names(store) == []


def test_the_record_of_another_entry_is_no_entry(store: Store, key: Key) -> None:
    first, second = store.write(key("a"), DATA), store.write(key("b"), memoryview(b"other"))
    shutil.copy(f"{first.path}.json", f"{second.path}.json")
    assert (store.find(key("a")), store.find(key("b"))) == (first, None)


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
    assert (store.find(key("a")) is not None, store.find(key("b"))) == (True, None)
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


# What is removed, and when.


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


def test_pruning_removes_what_no_model_file_has(store: Store, key: Key, tmp_path: Path) -> None:
    entries = {name: store.write(key(name), DATA) for name in "abc"}
    for name in "ab":
        path = tmp_path / f"{name}.gguf"
        path.write_bytes(b"weights")
        contents = {"w": Content(key(name).digest, 0, 7)}
        assert store.contents.record(FileIdentity.of(path), path, contents)
    (tmp_path / "b.gguf").unlink()
    with store.hold([entries["c"]]):
        report = store.prune(keep_unused=False)
        assert [entry.id for entry in report.removed] == [entries["b"].id]
        assert [entry.id for entry in report.held] == [entries["c"].id]
    assert store.prune(0, keep_unused=False).freed_bytes == 2 * len(DATA)


def test_clearing_forgets_contents_too(store: Store, key: Key) -> None:
    store.write(key(), DATA)
    (store.directory / "packed" / ".x-1.part").write_bytes(b"half")
    report = store.clear()
    assert report.freed_bytes == len(DATA)
    assert names(store) == []


@pytest.mark.parametrize("sweep", [lambda store: Store(store.directory), Store.prune, Store.clear])
def test_what_dead_writers_left_is_swept(store: Store, sweep: Callable[[Store], object]) -> None:
    left = [store.directory / folder / ".x-1.part" for folder in ("packed", "contents")]
    for path in left:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"half")
    sweep(store)
    assert not any(path.exists() for path in left)


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
    assert store.find(key()) is not None
    assert entry.path.read_bytes() == DATA


def test_the_default_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "shardload" / "store"
