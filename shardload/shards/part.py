"""Files that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from shardload.shards.lock import LockedFile, is_left

SUFFIX = ".part"
CHUNK_BYTES = 8 * 2**20
_CLOEXEC = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class PartFile(LockedFile):
    """A file under a name that nobody looks for, until `commit` gives it its own."""

    def __init__(self, directory: Path, name: str, mode: int = 0o666) -> None:
        super().__init__(directory, f".{name}", SUFFIX, mode)

    def write(self, data: memoryview | bytes) -> None:
        """Append bytes. Raises OSError, of a full disk too."""
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self.descriptor, rest[:CHUNK_BYTES]) :]

    def sync(self) -> None:
        """Wait until the bytes are on the disk, which makes their pages clean."""
        os.fsync(self.descriptor)

    def commit(self, path: Path) -> os.stat_result:
        """Give it its name, after `sync`; in place of a file that has it. Returns what it is from now on."""
        descriptor = self.descriptor
        os.replace(self.path, path)
        self.kept = True
        return os.fstat(descriptor)


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


def sweep_parts(directory: Path) -> int:
    """Remove the part files of dead writers; how many."""
    try:
        names = os.listdir(directory)
    except OSError:
        return 0
    parts = [name for name in names if name.startswith(".") and name.endswith(SUFFIX)]
    return sum(remove_if_left(directory / name) for name in parts)


def remove_if_left(path: Path) -> bool:
    """Remove a file unless its writer lives; False where it stays."""
    try:
        descriptor = os.open(path, os.O_RDONLY | _CLOEXEC)
    except OSError:
        return False
    try:
        if not is_left(descriptor):
            return False
        os.unlink(path)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
