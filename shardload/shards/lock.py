"""Locks between processes that end with the process; where the system has none, nothing is locked."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from shardload.errors import HandleClosed

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
NOT_LOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(descriptor: int) -> None:
    """Wait for the only lock of an open file; it is held until every descriptor of this open is closed."""
    if fcntl is not None:
        with _unlockable_is_fine():
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def is_left(descriptor: int) -> bool:
    """Whether nobody, of this process or another, has the lock of an open file; False where nobody knows.

    If so, nobody takes it before the descriptor is closed.
    """
    if fcntl is None:
        return True
    try:
        # Network file systems give the only lock of a file to those alone who may write it.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in NOT_LOCKABLE
    return True


class LockedFile:
    """A new file whose lock tells others that its maker lives: what a dead one left is free to be removed.

    `close` removes it, but for what was `kept`. Owned by one thread.
    """

    def __init__(self, directory: Path, name: str, suffix: str, mode: int = 0o666) -> None:
        """Make it under a name of its own. Raises OSError."""
        self._descriptor, self.kept = -1, False
        while self._descriptor < 0:
            self.path = directory / f"{name}-{secrets.token_hex(4)}{suffix}"
            self._descriptor = os.open(self.path, _NEW, mode)
            try:
                lock(self._descriptor)
                # Between the two calls it looked like a dead one's to anybody who cleans up.
                there = self.is_there
            except BaseException:
                self.close()
                raise
            if not there:
                self.close()

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

    @property
    def descriptor(self) -> int:
        """The open file; raises HandleClosed."""
        if self._descriptor < 0:
            raise HandleClosed(str(self.path))
        return self._descriptor

    @property
    def is_there(self) -> bool:
        """Whether it has a name still."""
        return os.fstat(self.descriptor).st_nlink > 0

    def close(self) -> None:
        """Let go of it, and remove it unless it was kept; idempotent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        try:
            if not self.kept:
                with contextlib.suppress(OSError):
                    os.unlink(self.path)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file of its own, which is made if need be. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _unlockable_is_fine() -> Iterator[None]:
    # Some network file systems have no locks: then only what two processes do at once goes to waste.
    try:
        yield
    except OSError as error:
        if error.errno not in NOT_LOCKABLE:
            raise
