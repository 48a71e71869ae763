"""Parked states on disk: one file each, whole or not there.

A file begins with its sizes and two digests: of everything else up to the state, and of the state. Then come
the facts (a JSON object), the tokens (32-bit, little-endian) and the state. Nobody else can read it. Any
number of processes may use one directory.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import stat
import struct
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shardload.memory.scratch import scratch
from shardload.shards.part import SUFFIX as PART_SUFFIX
from shardload.shards.part import PartFile, remove_if_left, sync_directory

if TYPE_CHECKING:
    from io import BufferedReader

    from numpy.typing import NDArray

logger = logging.getLogger("shardload.engine")

MAGIC = b"shpark01"
SIZES = struct.Struct("<8sIIQ")
"""Magic, then the bytes of facts, tokens and state."""
DIGEST_BYTES = 32
MAX_HEAD_BYTES = 2**26
CHUNK_BYTES = 2**22
SUFFIX = ".kv"
TOKEN = np.dtype("<i4")


class DamagedFile(Exception):
    """Raised when a file is not what was once written; says what is wrong. Callers compute instead."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a file holds, without the state."""

    name: str
    key: str
    kind: str
    tokens: NDArray[np.int32]
    state_bytes: int
    last_used: float


def file_name(key: str, kind: str, tokens: NDArray[np.int32]) -> str:
    """The one name for the state of some tokens: who parks the same again replaces it by the same."""
    content = hashlib.sha256(kind.encode() + b"\0" + tokens.astype(TOKEN).tobytes())
    return f"{_prefix(key)}{content.hexdigest()[:32]}{SUFFIX}"


class ParkedFiles:
    """The files of one directory, no more than ``limit_bytes`` in all; any thread may use it.

    Whoever is least recently used leaves first. Every method may raise OSError.
    """

    def __init__(self, directory: Path, limit_bytes: int) -> None:
        """Make the directory, and remove what writers left that died."""
        self.directory, self.limit_bytes = directory, limit_bytes
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in os.listdir(directory):
            if name.endswith(PART_SUFFIX):
                remove_if_left(directory / name)

    def names(self, key: str | None = None) -> list[str]:
        """The names of the files of a key, or of all."""
        prefix = _prefix(key) if key is not None else ""
        return [entry.name for entry in self._entries() if entry.name.startswith(prefix)]

    def facts(self, name: str, key: str) -> FileFacts | None:
        """What a file holds; None, and a line in the log, where it is not what was once written."""
        try:
            with self._open(name) as file:
                _, facts = _read_head(file, name)
        except FileNotFoundError:
            return None
        except DamagedFile as error:
            self._discard(name, error)
            return None
        except OSError as error:
            logger.warning("a parked conversation cannot be read, it will be computed again: %s", error)
            return None
        return facts if facts.key == key else None

    def write(
        self, key: str, kind: str, tokens: NDArray[np.int32], state: memoryview, last_used: float
    ) -> str | None:
        """Write a file; its name, or None where only files that were used later could make room for it."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        facts, listed = json.dumps({"key": key, "kind": kind}).encode(), tokens.astype(TOKEN).tobytes()
        head_bytes = SIZES.size + 2 * DIGEST_BYTES + len(facts) + len(listed)
        if not self._make_room(head_bytes + state.nbytes, last_used):
            return None
        name = file_name(key, kind, tokens)
        with PartFile(self.directory, name, 0o600) as part:
            part.write(_head(facts, listed, state))
            part.write(state)
            part.sync()
            os.utime(part.path, (last_used, last_used))
            part.commit(self.directory / name)
        sync_directory(self.directory)
        return name

    def read(self, facts: FileFacts) -> memoryview | None:
        """The state in a file; None, and a line in the log, where it is gone or not what it was."""
        try:
            with self._open(facts.name) as file:
                digest, on_disk = _read_head(file, facts.name)
                if on_disk.key != facts.key or on_disk.kind != facts.kind:
                    raise DamagedFile("it is of something else")
                if not np.array_equal(on_disk.tokens, facts.tokens):
                    raise DamagedFile("it is of another conversation")
                state = scratch(on_disk.state_bytes)
                if _read_into(file, state) != digest:
                    raise DamagedFile("its state does not have the digest that was written")
        except FileNotFoundError:
            logger.info("a parked conversation of %d tokens is gone", len(facts.tokens))
            return None
        except DamagedFile as error:
            self._discard(facts.name, error)
            return None
        with suppress(OSError):
            os.utime(self.directory / facts.name)
        return state

    def remove(self, name: str) -> None:
        """Remove a file, unless somebody has."""
        (self.directory / name).unlink(missing_ok=True)

    def _open(self, name: str) -> BufferedReader:
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(self.directory / name, flags), "rb")
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or (hasattr(os, "geteuid") and status.st_uid != os.geteuid()):
            file.close()
            raise PermissionError(f"{self.directory / name} was not written by this user")
        return file

    def _discard(self, name: str, error: DamagedFile) -> None:
        logger.warning("%s: %s; the conversation will be computed again", self.directory / name, error)
        with suppress(OSError):
            self.remove(name)

    def _make_room(self, needed_bytes: int, last_used: float) -> bool:
        files = self._by_age()
        excess = sum(size for _, size, _ in files) + needed_bytes - self.limit_bytes
        leaving = []
        for used, size, name in files:
            if excess <= 0 or used > last_used:
                break
            leaving.append(name)
            excess -= size
        if excess > 0:
            return False
        for name in leaving:
            self.remove(name)
        return True

    def _by_age(self) -> list[tuple[float, int, str]]:
        """(last use, bytes, name) of each file, the one that was not used for longest first."""
        files = []
        for entry in self._entries():
            with suppress(FileNotFoundError):
                status = entry.stat(follow_symlinks=False)
                files.append((status.st_mtime, status.st_size, entry.name))
        return sorted(files)

    def _entries(self) -> Iterator[os.DirEntry[str]]:
        with os.scandir(self.directory) as entries:
            yield from (entry for entry in entries if entry.name.endswith(SUFFIX))


def _prefix(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32] + "-"


def _head(facts: bytes, listed: bytes, state: memoryview) -> bytes:
    sizes = SIZES.pack(MAGIC, len(facts), len(listed), state.nbytes)
    digest = hashlib.sha256(state).digest()
    return sizes + hashlib.sha256(sizes + digest + facts + listed).digest() + digest + facts + listed


def _read_head(file: BufferedReader, name: str) -> tuple[bytes, FileFacts]:
    """The digest of the state, and the facts, checked against the size of the file."""
    status = os.fstat(file.fileno())
    sizes = _read_exactly(file, SIZES.size)
    magic, facts_bytes, tokens_bytes, state_bytes = SIZES.unpack(sizes)
    if magic != MAGIC:
        raise DamagedFile("it does not begin as a parked conversation does")
    head_bytes = SIZES.size + 2 * DIGEST_BYTES + facts_bytes + tokens_bytes
    if head_bytes > MAX_HEAD_BYTES or status.st_size != head_bytes + state_bytes:
        raise DamagedFile("it does not have the size that was written")
    head_digest, digest = _read_exactly(file, DIGEST_BYTES), _read_exactly(file, DIGEST_BYTES)
    rest = _read_exactly(file, facts_bytes + tokens_bytes)
    if hashlib.sha256(sizes + digest + rest).digest() != head_digest:
        raise DamagedFile("its head does not have the digest that was written")
    try:
        facts = json.loads(rest[:facts_bytes])
        tokens = np.frombuffer(rest[facts_bytes:], TOKEN).astype(np.int32)
        found = FileFacts(name, str(facts["key"]), str(facts["kind"]), tokens, state_bytes, status.st_mtime)
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile("its facts cannot be read") from error
    return digest, found


def _read_exactly(file: BufferedReader, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise DamagedFile("it ends too early")
    return data


def _read_into(file: BufferedReader, state: memoryview) -> bytes:
    """Fill a state from a file; its digest."""
    digest = hashlib.sha256()
    for start in range(0, state.nbytes, CHUNK_BYTES):
        piece = state[start : start + CHUNK_BYTES]
        if file.readinto(piece) < len(piece):
            raise DamagedFile("it ends too early")
        digest.update(piece)
    return digest.digest()
