"""Which entries of a store running processes use."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from shardload.errors import HandleClosed
from shardload.shards.lock import lock, try_lock

logger = logging.getLogger("shardload.shards")

SUFFIX = ".hold"
ID_DIGITS = 64


class Hold:
    """Entries that are mapped: nobody prunes them to make room. Made by `Store.hold`.

    Owns a small locked file, whose lock ends with the process. Where none can be written nothing is held,
    and nothing is lost by it but the room that a mapped file takes after its removal. Any thread.
    """

    def __init__(self, directory: Path) -> None:
        self._lock = threading.Lock()
        self._descriptor = -1
        self._ids: set[str] = set()
        self._path = directory / f"{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            warnings.warn(f"unclosed {self._path}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def add(self, ids: Iterable[str]) -> None:
        """Hold more entries; raises HandleClosed."""
        with self._lock:
            if self._closed:
                raise HandleClosed(str(self._path))
            new = set(ids) - self._ids
            if not new:
                return
            self._ids |= new
            try:
                self._write(new)
            except OSError as error:
                logger.debug("entries in use are not noted in %s: %s", self._path.parent, error)

    def close(self) -> None:
        """Let go of all; idempotent."""
        with self._lock:
            self._closed = True
            descriptor, self._descriptor = self._descriptor, -1
            if descriptor >= 0:
                with contextlib.suppress(OSError):
                    os.unlink(self._path)
                os.close(descriptor)

    def _write(self, new: set[str]) -> None:
        # Somebody may have removed the store, or taken the file for a dead one's before it was locked.
        while self._descriptor < 0 or not os.fstat(self._descriptor).st_nlink:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1
            self._path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)
            self._descriptor = os.open(self._path, flags, 0o666)
            lock(self._descriptor)
            new = self._ids
        os.write(self._descriptor, "".join(f"{name}\n" for name in sorted(new)).encode())


def held_ids(directory: Path) -> frozenset[str]:
    """The entries that living processes hold; what dead ones left behind is removed."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for name in os.listdir(directory):
            if name.endswith(SUFFIX):
                found |= _ids_of(directory / name)
    return frozenset(found)


def _ids_of(path: Path) -> set[str]:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return set()
    try:
        if try_lock(descriptor):
            with contextlib.suppress(OSError):
                os.unlink(path)
            return set()
        data = bytearray()
        while part := os.read(descriptor, 2**20):
            data += part
        words = data.decode("ascii", "replace").split()
        return {word for word in words if len(word) == ID_DIGITS}
    finally:
        os.close(descriptor)
