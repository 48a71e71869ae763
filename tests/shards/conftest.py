from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shardload.shards.entry import PackedKey
from shardload.shards.identity import FileIdentity
from shardload.shards.store import Store

NOBODY = 65534


def make_key(name: str = "a", build: str = "build 1") -> PackedKey:
    return PackedKey(name * 8, "Q4_K", (256, 4), "CPU_REPACK", build)


@pytest.fixture
def key() -> Callable[..., PackedKey]:
    return make_key


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", reserve_bytes=0)


@pytest.fixture
def change() -> Callable[..., None]:
    """Change a file's bytes in place and give it its old time of modification."""

    def change_file(path: Path, at: int = 0, data: bytes | None = None) -> None:
        before = FileIdentity.of(path)
        with path.open("r+b") as file:
            file.seek(at)
            old = file.read(1)
            file.seek(at)
            file.write(data if data is not None else bytes([old[0] ^ 1]))
        # Where times are coarse a second change within one tick cannot be told from the first.
        while (now := FileIdentity.of(path)).ctime_ns == before.ctime_ns or now.mtime_ns != before.mtime_ns:
            os.utime(path, ns=(before.mtime_ns, before.mtime_ns))

    return change_file


@pytest.fixture
def network_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks as network file systems have them: the only lock of a file is for those who may write it."""
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        access = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
        if access == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.fixture
def shared_path() -> Iterator[Path]:
    """A folder that other users can look into."""
    with TemporaryDirectory(prefix="shardload-test-") as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


@pytest.fixture
def forbidden() -> Callable[..., AbstractContextManager[None]]:
    """Take rights away: a mode for a path, and whoever may do everything is nobody for the time."""
    if not hasattr(os, "geteuid"):
        pytest.skip("this system has other rights")

    @contextlib.contextmanager
    def forbid(path: Path, mode: int) -> Iterator[None]:
        before, user = path.stat().st_mode, os.geteuid()
        path.chmod(mode)
        if user == 0:
            os.seteuid(NOBODY)
        try:
            yield
        finally:
            if user == 0:
                os.seteuid(0)
            path.chmod(before)

    return forbid
