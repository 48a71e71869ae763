"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from pathlib import Path
from types import TracebackType
from typing import Self

from shardload.errors import HandleClosed
from shardload.shards.lock import lock, try_lock

SUFFIX = ".part"
CHUNK_BYTES = 8 * 2**20
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class PartFile:
    """A file under a name that nobody looks for, until `commit` gives it its own.

    Its lock tells others that the writer lives: what a dead one left behind is free to be removed. Owned by
    one thread. `close` without `commit` removes it.
    """

    def __init__(self, directory: Path, name: str, mode: int = 0o666) -> None:
        self._descriptor = -1
        while self._descriptor < 0:
            self.path = directory / f".{name}-{secrets.token_hex(4)}{SUFFIX}"
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _CLOEXEC, mode)
            lock(descriptor)
            # Between the two calls it looked like a dead writer's to anybody who cleans up.
            if os.fstat(descriptor).st_nlink:
                self._descriptor = descriptor
            else:
                os.close(descriptor)
        self._committed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            warnings.warn(f"unclosed {self.path}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. Raises OSError, of a full disk too."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._open_descriptor(), rest[:CHUNK_BYTES]) :]

    def sync(self) -> None:
        """Wait until the bytes are on the disk, which makes their pages clean."""
        os.fsync(self._open_descriptor())

    def commit(self, path: Path) -> os.stat_result:
        """Give it its name, after `sync`; in place of a file that has it. Returns what it is from now on."""
        descriptor = self._open_descriptor()
        os.replace(self.path, path)
        self._committed = True
        return os.fstat(descriptor)

    def close(self) -> None:
        """End the writing, and remove what was not committed; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            if not self._committed:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
        finally:
            os.close(descriptor)

    def _open_descriptor(self) -> int:
        if self._descriptor < 0:
            raise HandleClosed(str(self.path))
        return self._descriptor


def write_whole(path: Path, data: bytes) -> os.stat_result:
    """Write a small file so that readers see the old one or the new one. Raises OSError."""
    with PartFile(path.parent, path.stem) as part:
        part.write(data)
        part.sync()
        return part.commit(path)


def sync_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk. Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | _CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_if_left(path: Path) -> bool:
    """Remove a file unless its writer lives; False where it stays."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
    except OSError:
        return False
    try:
        if not try_lock(descriptor):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
