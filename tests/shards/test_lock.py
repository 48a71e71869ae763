from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shardload.shards import lock as lock_module
from shardload.shards.lock import LockedFile, is_left, lock, locked


def failing(error: int) -> SimpleNamespace:
    def flock(_: int, __: int) -> None:
        raise OSError(error, "no")

    return SimpleNamespace(flock=flock, LOCK_SH=1, LOCK_EX=2, LOCK_NB=4)


def test_a_system_without_locks_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "fcntl", None)
    with locked(tmp_path / "lock"), (tmp_path / "lock").open("rb") as file:
        lock(file.fileno())
        assert is_left(file.fileno())


def test_a_file_system_without_locks_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "fcntl", failing(errno.ENOLCK))
    with locked(tmp_path / "lock"), (tmp_path / "lock").open("rb") as file:
        assert is_left(file.fileno())


def test_other_errors_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "fcntl", failing(errno.EIO))
    with pytest.raises(OSError, match="no"), locked(tmp_path / "lock"):
        pass
    with (tmp_path / "lock").open("rb") as file:
        assert not is_left(file.fileno()), "nobody knows"


def test_nothing_is_left_of_a_file_that_cannot_be_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "fcntl", failing(errno.EIO))
    before = set(os.listdir("/proc/self/fd")) if sys.platform == "linux" else set()
    with pytest.raises(OSError, match="no"):
        LockedFile(tmp_path, "name", ".suffix")
    assert os.listdir(tmp_path) == []
    if before:
        assert set(os.listdir("/proc/self/fd")) == before


def test_the_lock_ends_with_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError), locked(tmp_path / "lock"):
        raise KeyError
    with (tmp_path / "lock").open("rb") as file:
        assert is_left(file.fileno())
