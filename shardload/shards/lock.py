"""Locks between processes that end with the process; where the system has none, nothing is locked."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NOT_LOCKABLE = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def lock(descriptor: int) -> None:
    """Wait for the only lock of an open file; it is held until every descriptor of this open is closed."""
    if fcntl is not None:
        with _unlockable_is_fine():
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Take the lock if nobody, of this process or another, has it; False if somebody has."""
    if fcntl is None:
        return True
    try:
        with _unlockable_is_fine():
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


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
