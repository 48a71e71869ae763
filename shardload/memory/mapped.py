"""Files that are mapped to be read: each once in the process, however many models use it.

One mapping is more than thrift: a page that is mapped twice cannot be sent away, and two models that point
at the same addresses share the page table as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from bisect import bisect_left, bisect_right, insort
from pathlib import Path

from shardload.memory.pages import Range
from shardload.memory.platform import current
from shardload_native import libc

FileNumber = tuple[int, int, int]
"""Device, inode, size."""


class MappedFile:
    """A file's bytes at ``address``, lazily; shared by all who asked for it, and counted.

    ``gives_pages`` tells whether this user may send its pages away. `release` ends one user's use, the last
    one's the mapping. Every method may be called on any thread.
    """

    def __init__(
        self, files: MappedFiles, number: FileNumber, address: int, length: int, *, gives_pages: bool
    ) -> None:
        self._files, self._number = files, number
        self.address, self.length = address, length
        self.gives_pages = gives_pages
        self.lookups: frozenset[Range] = frozenset()
        self.users = 0

    def note_lookups(self, place: Range) -> None:
        """Remember that a part of it, in whole pages, is read without neighbours; see ``lookups``."""
        with self._files._lock:
            if place not in self.lookups:
                self.lookups |= {place}

    def release(self) -> None:
        """Use it no more; once for each time it was got."""
        self._files._release(self._number, self)


class MappedFiles:
    """The files that are mapped; one per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: dict[FileNumber, MappedFile] = {}
        # In order of addresses.
        self._mapped: list[MappedFile] = []

    def open(self, file: Path | int) -> MappedFile:
        """Map a file, given by its path or a descriptor, or share the mapping that there is.

        Nothing is read. Raises OSError; ValueError for an empty file.
        """
        if isinstance(file, int):
            return self._open(file)
        descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            return self._open(descriptor)
        finally:
            os.close(descriptor)

    def at(self, address: int) -> MappedFile | None:
        """The file that is mapped there."""
        with self._lock:
            index = bisect_right(self._mapped, address, key=_address) - 1
            found = self._mapped[index] if index >= 0 else None
            return found if found is not None and address < found.address + found.length else None

    def _open(self, descriptor: int) -> MappedFile:
        status = os.fstat(descriptor)
        if not status.st_size:
            raise ValueError("an empty file cannot be mapped")
        number = status.st_dev, status.st_ino, status.st_size
        with self._lock:
            found = self._files.get(number)
            if found is None:
                gives_pages = current().may_send_away(descriptor)
                address = libc.map_shared(descriptor, status.st_size)
                # Weights are read through from end to end: large pages spare a table walk every 4 KiB.
                with contextlib.suppress(OSError):
                    current().prefer_large_pages(address, status.st_size)
                found = MappedFile(self, number, address, status.st_size, gives_pages=gives_pages)
                self._files[number] = found
                insort(self._mapped, found, key=_address)
            found.users += 1
            return found

    def _release(self, number: FileNumber, file: MappedFile) -> None:
        with self._lock:
            file.users -= 1
            if file.users:
                return
            self._files.pop(number)
            del self._mapped[bisect_left(self._mapped, file.address, key=_address)]
            libc.unmap(file.address, file.length)


def _address(file: MappedFile) -> int:
    return file.address


@functools.cache
def mapped_files() -> MappedFiles:
    """The one of this process."""
    return MappedFiles()
