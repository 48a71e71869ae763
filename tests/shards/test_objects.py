from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shardload.shards.entry import PackedKey
from shardload.shards.lock import is_left
from shardload.shards.objects import Objects
from shardload.shards.part import PartFile
from shardload.shards.store import Store

HERE = Path(__file__).parent
Key = Callable[..., PackedKey]


def test_killed_anywhere_there_is_a_whole_entry_or_none(tmp_path: Path) -> None:
    command = [sys.executable, str(HERE / "killed_writers.py"), str(tmp_path / "store")]
    child = subprocess.run(command, capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr
    found = json.loads(child.stdout)
    assert found["died"] > 50
    assert 1 <= found["found"] < found["died"]


def test_processes_that_share_a_store_do_no_harm(tmp_path: Path) -> None:
    directory = tmp_path / "store"
    children = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(HERE / "busy_process.py"), str(directory), str(seed)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    for child in children:
        _, errors = child.communicate()
        assert child.returncode == 0, errors
        assert errors == ""
    store = Store(directory, reserve_bytes=0)
    report = store.verify()
    assert report.checked
    assert not report.damaged
    names = {path.name for path in (directory / "packed").iterdir()}
    assert names == {name for entry in report.checked for name in (entry.id, f"{entry.id}.json")}


@pytest.fixture
def objects(tmp_path: Path) -> Objects:
    return Objects(tmp_path / "store" / "packed")


def test_what_dead_writers_left_is_swept(objects: Objects, key: Key) -> None:
    assert objects.sweep() == 0
    objects.write(key(), memoryview(b"abc"))
    lonely = objects.write(key("b"), memoryview(b"abc"))
    lost = objects.write(key("c"), memoryview(b"abc"))
    Path(f"{lonely.path}.json").unlink()
    lost.path.unlink()
    (objects.directory / f".{key().id}-1.part").write_bytes(b"ab")
    with PartFile(objects.directory, "living") as living:
        assert objects.sweep() == 3
        assert living.path.exists()
        assert objects.sweep() == 0
    assert list(objects.ids()) == [key().id]
    assert objects.read(key().id) is not None


def test_names_change_under_the_lock_alone(
    objects: Objects, key: Key, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, committed = PartFile.commit, []

    def commit_under_lock(part: PartFile, path: Path) -> os.stat_result:
        with (objects.directory.parent / "lock").open("rb") as lock:
            assert not is_left(lock.fileno())
        committed.append(path.name)
        return commit(part, path)

    monkeypatch.setattr(PartFile, "commit", commit_under_lock)
    objects.write(key(), memoryview(b"abc"))
    assert committed == [key().id, f"{key().id}.json"]


def test_an_entry_of_nothing_is_none(objects: Objects, key: Key) -> None:
    objects.write(key(), memoryview(b""))
    assert objects.read(key().id) is None
