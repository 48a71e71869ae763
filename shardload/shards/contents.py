"""What model files contain: digests of their tensors, remembered as long as the files stay what they are."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from shardload.gguf import GGUFFile, TensorInfo
from shardload.shards.identity import FileIdentity
from shardload.shards.part import sweep_parts, sync_directory, write_whole
from shardload.shards.reading import Hash, Reader, feed

logger = logging.getLogger("shardload.shards")

VERSION = 1
SUFFIX = ".json"


@dataclass(frozen=True, slots=True)
class Content:
    """One tensor's bytes: what they are, and where in their file."""

    digest: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Some bytes of a file."""

    path: Path
    offset: int
    nbytes: int
    identity: FileIdentity | None = None
    """What the file must be, where its bytes are not looked at."""


class _FileRecord(msgspec.Struct, frozen=True):
    version: int
    path: str
    file: str
    recorded: float
    tensors: dict[str, tuple[str, int, int]]


class _Place(NamedTuple):
    record: _FileRecord
    offset: int
    nbytes: int


class _Known(NamedTuple):
    """What a directory said when its inode and time of change were ``seen``."""

    seen: tuple[int, int] | None
    records: tuple[_FileRecord, ...]
    places: Mapping[str, list[_Place]]


class Contents:
    """A directory of records, one for each file of a model; any thread and process may share it.

    What cannot be read is not known, and what cannot be written is not remembered; neither is an error.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._known = _Known(None, (), {})

    def digests(self, identity: FileIdentity) -> Mapping[str, str] | None:
        """The digest of each tensor in a file by its name; None for a file that nobody looked at yet."""
        record = self._read(self._path(identity))
        if record is None or not FileIdentity.parse(record.file).same(identity):
            return None
        return {name: digest for name, (digest, _, _) in record.tensors.items()}

    def known(self, file: GGUFFile) -> Mapping[str, str] | None:
        """The same for an open model in one file or many; None unless all of it is known."""
        found: dict[str, str] = {}
        for status in file.statuses:
            part = self.digests(FileIdentity.of(status))
            if part is None:
                return None
            found |= part
        return found if found.keys() >= file.tensors.keys() else None

    def record(self, identity: FileIdentity, path: Path, contents: Mapping[str, Content]) -> bool:
        """Remember a file's contents; False where it changed meanwhile, or nothing can be written."""
        if not _settled(identity, path):
            return False
        tensors = {name: (one.digest, one.offset, one.nbytes) for name, one in contents.items()}
        record = _FileRecord(VERSION, str(path.absolute()), str(identity), time.time(), tensors)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_whole(self._path(identity), msgspec.json.encode(record))
            sync_directory(self.directory)
            self._known = _Known(None, (), {})
        except OSError as error:
            logger.info("contents of %s are not remembered: %s", path, error)
            return False
        return True

    def remember(
        self,
        file: GGUFFile,
        progress: Callable[[int, int], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Mapping[str, str] | None:
        """Read a model through as `compute` does, and remember what is in it."""
        digests = compute(file, progress, should_stop)
        if digests is not None:
            self.note(file, digests)
        return digests

    def note(self, file: GGUFFile, digests: Mapping[str, str]) -> bool:
        """Remember all files of an open model; False where one is no longer what was opened."""
        done = True
        for part, (path, status) in enumerate(zip(file.paths, file.statuses, strict=True)):
            contents = {
                tensor.name: Content(digests[tensor.name], tensor.offset, tensor.nbytes)
                for tensor in file.tensors.values()
                if tensor.part == part
            }
            done &= self.record(FileIdentity.of(status), path, contents)
        return done

    def lenders(self, digests: Collection[str]) -> dict[str, FilePlace]:
        """Where the bytes of each digest are, in the longest known file that still is what it was.

        Takes a stat for each file that might be one.
        """
        index = self._read_all().places
        unchanged: dict[str, bool] = {}
        found: dict[str, FilePlace] = {}
        for digest in digests:
            for place in index.get(digest, ()):
                record = place.record
                # By file and not by path: there are records of what was at the same path before as well.
                if record.file not in unchanged:
                    unchanged[record.file] = _unchanged(record)
                if unchanged[record.file]:
                    identity = FileIdentity.parse(record.file)
                    found[digest] = FilePlace(Path(record.path), place.offset, place.nbytes, identity)
                    break
        return found

    def holders(self) -> dict[str, tuple[Path, ...]]:
        """For each digest the files that have it, of those that still are what they were."""
        found: dict[str, dict[Path, None]] = {}
        for record in self._all():
            if _unchanged(record):
                path = Path(record.path)
                for digest, _, _ in record.tensors.values():
                    found.setdefault(digest, {})[path] = None
        return {digest: tuple(paths) for digest, paths in found.items()}

    def forget_gone(self) -> int:
        """Remove the records of files that are gone or changed; how many."""
        gone = [record for record in self._all() if not _unchanged(record)]
        return sum(self._forget(record) for record in gone)

    def sweep(self) -> int:
        """Remove what dead writers left behind; the number of files."""
        return sweep_parts(self.directory)

    def clear(self) -> None:
        """Forget everything."""
        for record in self._all():
            self._forget(record)

    def _forget(self, record: _FileRecord) -> bool:
        with contextlib.suppress(OSError):
            self._path(FileIdentity.parse(record.file)).unlink()
            return True
        return False

    def _all(self) -> tuple[_FileRecord, ...]:
        """All records, the oldest first."""
        return self._read_all().records

    def _read_all(self) -> _Known:
        """What the directory says; read again when it changed."""
        try:
            status = os.stat(self.directory)
            seen = status.st_ino, status.st_mtime_ns
            known = self._known
            if seen == known.seen:
                return known
            paths = [self.directory / name for name in os.listdir(self.directory) if name.endswith(SUFFIX)]
        except OSError:
            return _Known(None, (), {})
        records = [record for path in paths if (record := self._read(path)) is not None]
        records.sort(key=lambda record: (record.recorded, record.path))
        index: dict[str, list[_Place]] = {}
        for record in records:
            for digest, offset, nbytes in record.tensors.values():
                index.setdefault(digest, []).append(_Place(record, offset, nbytes))
        self._known = known = _Known(seen, tuple(records), index)
        return known

    def _read(self, path: Path) -> _FileRecord | None:
        try:
            record = msgspec.json.decode(path.read_bytes(), type=_FileRecord)
            FileIdentity.parse(record.file)
        except (OSError, ValueError):
            return None
        return record if record.version == VERSION else None

    def _path(self, identity: FileIdentity) -> Path:
        return self.directory / (hashlib.sha256(identity.lasting.encode()).hexdigest()[:32] + SUFFIX)


def compute(
    file: GGUFFile,
    progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> dict[str, str] | None:
    """Read a model through for the digest of each tensor; None if stopped, or changed since it was opened.

    Takes a few MiB of memory, lets other threads run, and leaves no page in memory that was not there.
    Raises OSError.
    """
    digests: dict[str, str] = {}
    total = sum(tensor.nbytes for tensor in file.tensors.values())
    done = 0

    def count(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        if progress is not None:
            progress(done, total)

    for part, (path, status) in enumerate(zip(file.paths, file.statuses, strict=True)):
        tensors = [tensor for tensor in file.tensors.values() if tensor.part == part]
        found = _compute_part(path, FileIdentity.of(status), tensors, count, should_stop)
        if found is None:
            return None
        digests |= found
    return digests


def _compute_part(
    path: Path,
    opened: FileIdentity,
    tensors: Iterable[TensorInfo],
    progress: Callable[[int], None],
    should_stop: Callable[[], bool] | None,
) -> dict[str, str] | None:
    digests: dict[str, str] = {}
    with open(path, "rb", buffering=0) as stream:
        if not opened.same(FileIdentity.of(stream.fileno())):
            return None
        reader = Reader(stream.fileno())
        for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
            hash_ = tensor_hash(tensor)
            try:
                if not feed(hash_, reader, tensor.offset, tensor.nbytes, progress, should_stop):
                    return None
            except EOFError:
                return None
            digests[tensor.name] = hash_.hexdigest()
        return digests if opened.same(FileIdentity.of(stream.fileno())) else None


def tensor_hash(tensor: TensorInfo) -> Hash:
    """A hash that has taken in everything of a tensor but its bytes."""
    shape = "x".join(map(str, tensor.ne))
    return hashlib.sha256(f"{tensor.type.name} {shape}\n".encode())


def _unchanged(record: _FileRecord) -> bool:
    try:
        return FileIdentity.of(record.path).same(FileIdentity.parse(record.file))
    except OSError:
        return False


def _settled(identity: FileIdentity, path: Path) -> bool:
    """Whether a file is still what it was, and could not have changed without showing it."""
    if left := identity.unsettled_seconds:
        time.sleep(left)
    try:
        return FileIdentity.of(path).same(identity)
    except OSError:
        return False
