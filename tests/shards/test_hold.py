from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shardload.errors import HandleClosed
from shardload.shards import lock as lock_module
from shardload.shards.hold import Hold, held_ids

A, B, C = ("a" * 64, "b" * 64, "c" * 64)


def test_what_living_holders_have_is_held(tmp_path: Path) -> None:
    with Hold(tmp_path / "holds") as one, Hold(tmp_path / "holds") as other:
        one.add([A, B])
        other.add([B])
        other.add([B, C])
        assert held_ids(tmp_path / "holds") == {A, B, C}
        one.close()
        one.close()
        assert held_ids(tmp_path / "holds") == {B, C}
    assert held_ids(tmp_path / "holds") == frozenset()
    assert os.listdir(tmp_path / "holds") == []
    with pytest.raises(HandleClosed):
        one.add([A])


def test_nothing_is_written_for_nothing(tmp_path: Path) -> None:
    with Hold(tmp_path / "holds") as hold:
        hold.add([])
        assert held_ids(tmp_path / "holds") == frozenset()
    assert not (tmp_path / "holds").exists()


def test_a_forgotten_one_warns(tmp_path: Path) -> None:
    hold = Hold(tmp_path)
    hold.add([A])
    with pytest.warns(ResourceWarning, match="unclosed"):
        del hold
    assert held_ids(tmp_path) == frozenset()


def test_dead_processes_hold_nothing(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys; from pathlib import Path; from shardload.shards.hold import Hold\n"
        f"hold = Hold(Path(sys.argv[1])); hold.add(['{A}']); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert len(os.listdir(tmp_path)) == 1
    assert held_ids(tmp_path) == frozenset()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("network_locks")
def test_what_living_holders_have_on_a_network_disk_is_held(tmp_path: Path) -> None:
    (tmp_path / "1-dead.hold").write_text(f"{A}\n")
    with Hold(tmp_path) as one, Hold(tmp_path) as other:
        one.add([B])
        other.add([C])
        assert held_ids(tmp_path) == {B, C}
    assert os.listdir(tmp_path) == []


def test_a_hold_of_which_nothing_is_known_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int, __: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Hold(tmp_path) as hold:
        hold.add([A])
        monkeypatch.setattr("fcntl.flock", fail)
        assert held_ids(tmp_path) == {A}
        assert len(os.listdir(tmp_path)) == 1


def test_a_hold_that_cannot_be_removed_hides_no_other_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: sorted(listdir(path)))
    (tmp_path / "0.hold").mkdir()
    with Hold(tmp_path) as hold:
        hold.add([A])
        assert held_ids(tmp_path) == {A}


@pytest.mark.parametrize("fitting", [0, 10, 65])
def test_what_a_full_disk_did_not_take_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: int
) -> None:
    write, room = os.write, [fitting]

    def fill(descriptor: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room[0] -= (count := write(descriptor, data[: room[0]]))
        return count

    with Hold(tmp_path) as hold:
        hold.add([C])
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", fill)
            hold.add([A])
        assert C in held_ids(tmp_path)
        hold.add([B])
        assert held_ids(tmp_path) == {A, B, C}


def test_a_removed_store_is_held_again(tmp_path: Path) -> None:
    with Hold(tmp_path / "holds") as hold:
        hold.add([A])
        shutil.rmtree(tmp_path / "holds")
        hold.add([B])
        assert held_ids(tmp_path / "holds") == {A, B}


def test_one_that_was_taken_for_a_dead_ones_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, first = lock_module.lock, [True]

    def slow_lock(descriptor: int) -> None:
        if first:
            first.clear()
            held_ids(tmp_path)
        lock(descriptor)

    monkeypatch.setattr(lock_module, "lock", slow_lock)
    with Hold(tmp_path) as hold:
        hold.add([A])
        assert not first
        assert held_ids(tmp_path) == {A}


def test_half_a_line_holds_nothing(tmp_path: Path) -> None:
    with Hold(tmp_path) as hold:
        hold.add([A])
        with next(tmp_path.iterdir()).open("ab") as file:
            file.write(B[:10].encode() + b"\xff")
        assert held_ids(tmp_path) == {A}


def test_where_nothing_can_be_written_nothing_is_held(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with Hold(tmp_path / "file" / "holds") as hold:
        hold.add([A])
    assert held_ids(tmp_path / "file" / "holds") == frozenset()
