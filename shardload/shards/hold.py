"""Which entries of a store running processes use."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Self

from shardload.errors import HandleClosed
from shardload.shards.lock import LockedFile, is_left

logger = logging.getLogger("shardload.shards")

SUFFIX = ".hold"
ID_DIGITS = 64


class Hold:
    """Entries that are mapped: nobody prunes them to make room. Made by `Store.hold`.

    Owns a small locked file. Where none can be written nothing is held, and nothing is lost by it but the
    room that a mapped file takes after its removal. Any thread.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = threading.Lock()
        self._ids: set[str] = set()
        self._written: set[str] = set()
        self._file: LockedFile | None = None
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, ids: Iterable[str]) -> None:
        """Hold more entries; raises HandleClosed."""
        with self._lock:
            if self._closed:
                raise HandleClosed(f"hold in {self.directory}")
            self._ids.update(ids)
            try:
                if self._ids != self._written:
                    self._write()
            except OSError as error:
                logger.debug("entries in use are not noted in %s: %s", self.directory, error)

    def close(self) -> None:
        """Let go of all; idempotent."""
        with self._lock:
            self._closed = True
            self._let_go()

    def _write(self) -> None:
        """Write what is not written yet, also what could not be the last time. Raises OSError."""
        if self._file is None or not self._file.is_there:  # somebody removed the store
            self._let_go()
            self.directory.mkdir(parents=True, exist_ok=True)
            self._file = LockedFile(self.directory, str(os.getpid()), SUFFIX)
        # A disk that was full may have left half a line: that ends first.
        names = sorted(self._ids - self._written)
        rest = "\n".join(["", *names, ""]).encode()
        while rest:
            rest = rest[os.write(self._file.descriptor, rest) :]
        self._written.update(names)

    def _let_go(self) -> None:
        self._written.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


def held_ids(directory: Path) -> frozenset[str]:
    """The entries that living processes hold; what dead ones left behind is removed."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(directory) if name.endswith(SUFFIX)]
        for name in names:
            with contextlib.suppress(OSError):
                found |= _ids_of(directory / name)
    return frozenset(found)


def _ids_of(path: Path) -> set[str]:
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        if is_left(descriptor):
            os.unlink(path)
            return set()
        data = bytearray()
        while part := os.read(descriptor, 2**20):
            data += part
        words = data.decode("ascii", "replace").split()
        return {word for word in words if len(word) == ID_DIGITS}
    finally:
        os.close(descriptor)
