"""The files of a store's entries: a file of bytes, and beside it a record of what they are."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from shardload.shards.entry import RECORD_VERSION, Entry, PackedKey, Record, decode_record, encode_record
from shardload.shards.identity import FileIdentity
from shardload.shards.lock import locked
from shardload.shards.part import (
    CHUNK_BYTES,
    PartFile,
    remove_if_left,
    sweep_parts,
    sync_directory,
    write_whole,
)
from shardload.shards.reading import checksum

RECORD_SUFFIX = ".json"
ID_DIGITS = 64
MAX_RECORD_BYTES = 2**16
_READ = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


@dataclass(frozen=True, slots=True)
class Found:
    """A record that was read, and the file of its bytes as it is now."""

    record: Record
    last_used_ns: int
    path: Path
    identity: FileIdentity

    def entry(self) -> Entry:
        """What callers of the store see."""
        record = self.record
        return Entry(
            self.path.name, self.path, record.nbytes, self.last_used_ns / 1e9, record.verified, record.key
        )


class Objects:
    """One directory of entries. Reads take no lock; every change of names does, and only for its moment.

    Methods raise OSError. Threads and processes may share the directory.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock_path = directory.parent / "lock"

    def path(self, entry_id: str) -> Path:
        """Of an entry's bytes."""
        return self.directory / entry_id

    def read(self, entry_id: str, key: PackedKey | None = None) -> Found | None:
        """What is known of an entry, whose ``key`` may be given; None if there is none, or a damaged record.

        Whether the bytes are still those of the record is the caller's to ask. Raises PermissionError for
        what another user keeps to himself.
        """
        path = f"{self.directory}/{entry_id}"
        try:
            descriptor = os.open(path + RECORD_SUFFIX, _READ)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            data = os.read(descriptor, MAX_RECORD_BYTES)
            used_ns = os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
        record = decode_record(data)
        if record is None or (record.key != key if key is not None else record.key.id != entry_id):
            return None
        try:
            identity = FileIdentity.of(path)
        except FileNotFoundError:
            return None
        if not os.access(path, os.R_OK):
            raise PermissionError(f"{path} cannot be read")
        return Found(record, used_ns, Path(path), identity)

    def write(self, key: PackedKey, data: memoryview) -> Found:
        """Write an entry's bytes, then its record: killed anywhere in between, there is no entry."""
        self.directory.mkdir(parents=True, exist_ok=True)
        path, hash_ = self.path(key.id), hashlib.sha256()
        with PartFile(self.directory, key.id) as part:
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                hash_.update(chunk)
                part.write(chunk)
            part.sync()
            with locked(self._lock_path):
                # A new name changes the inode's time, so that the record can only come after it.
                identity = FileIdentity.of(part.commit(path))
                record = Record(
                    RECORD_VERSION, key, len(data), hash_.hexdigest(), identity.lasting, time.time()
                )
                status = write_whole(self._record_path(key.id), encode_record(record))
                sync_directory(self.directory)
        return Found(record, status.st_mtime_ns, path, identity)

    def checked(
        self,
        found: Found,
        progress: Callable[[int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Found | None:
        """Look at all bytes: the entry as it is from then on, or None if they are not what was written.

        The record that says so is kept where it can be written. Stopped early, the entry comes as it was.
        """
        descriptor = os.open(found.path, _READ)
        try:
            identity = FileIdentity.of(descriptor)
            if identity.size != found.record.nbytes:
                return None
            sha256 = checksum(descriptor, found.record.nbytes, progress, should_stop)
            if sha256 is None:
                return found
            if sha256 != found.record.sha256 or not identity.same(FileIdentity.of(descriptor)):
                return None
        finally:
            os.close(descriptor)
        old = found.record
        record = Record(old.version, old.key, old.nbytes, old.sha256, identity.lasting, time.time())
        with contextlib.suppress(OSError), locked(self._lock_path):
            if found.path.exists():
                write_whole(self._record_path(found.path.name), encode_record(record))
                os.utime(self._record_path(found.path.name), ns=(found.last_used_ns, found.last_used_ns))
        return Found(record, found.last_used_ns, found.path, identity)

    def touch(self, entry_id: str) -> None:
        """Note that an entry is used now."""
        os.utime(self._record_path(entry_id))

    def remove(self, entry_id: str, only: FileIdentity | None = None) -> bool:
        """Remove an entry, its record first; False if its file is not, or no longer, the ``only`` one."""
        with locked(self._lock_path):
            if only is not None and ((now := self.read(entry_id)) is None or not now.identity.same(only)):
                return False
            self._record_path(entry_id).unlink(missing_ok=True)
            self.path(entry_id).unlink(missing_ok=True)
        return True

    def ids(self) -> Iterator[str]:
        """The entries that have a record, whether or not it is a good one."""
        with contextlib.suppress(OSError):
            for name in os.listdir(self.directory):
                if name.endswith(RECORD_SUFFIX) and not name.startswith("."):
                    yield name.removesuffix(RECORD_SUFFIX)

    def used_bytes(self) -> int:
        """Of all files, those that are being written too."""
        total = 0
        with contextlib.suppress(OSError), os.scandir(self.directory) as files:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    total += file.stat(follow_symlinks=False).st_size
        return total

    def sweep(self) -> int:
        """Remove what dead writers left behind; the number of files. Takes no lock if there is nothing."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return 0
        objects = {name for name in names if len(name) == ID_DIGITS}
        records = {name[:ID_DIGITS] for name in names if len(name) == ID_DIGITS + len(RECORD_SUFFIX)}
        removed = sweep_parts(self.directory)
        if orphans := objects ^ records:
            with contextlib.suppress(OSError), locked(self._lock_path):
                removed += sum(self._remove_orphan(name) for name in orphans)
        return removed

    def _remove_orphan(self, name: str) -> bool:
        path, record = self.path(name), self._record_path(name)
        if path.exists() == record.exists():
            return False
        if path.exists():
            return remove_if_left(path)
        record.unlink(missing_ok=True)
        return True

    def _record_path(self, entry_id: str) -> Path:
        return self.directory / f"{entry_id}{RECORD_SUFFIX}"
