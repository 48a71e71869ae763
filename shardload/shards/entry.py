"""What the store has, and what it is asked for. Pure."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import msgspec

from shardload.shards.identity import FileIdentity

RECORD_VERSION = 1


@dataclass(frozen=True, slots=True)
class PackedKey:
    """Everything that decides the packed bytes of a tensor."""

    digest: str
    """Of its contents, as `Contents` has it."""
    type_name: str
    ne: tuple[int, ...]
    buffer_type: str
    """As llama.cpp names the kind of memory that packs."""
    build: str
    """A key of the build of llama.cpp and of the CPU that it packs for."""

    @property
    def id(self) -> str:
        """The name of its entry: hexadecimal digits."""
        shape = "x".join(map(str, self.ne))
        text = "\n".join((self.digest, self.type_name, shape, self.buffer_type, self.build))
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's packed bytes: exactly the contents of the file ``path``."""

    id: str
    path: Path
    nbytes: int
    last_used: float
    """Seconds since 1970."""
    verified: float
    """When all of its bytes were looked at; seconds since 1970."""
    key: PackedKey


class Record(msgspec.Struct, frozen=True):
    """What is kept beside an entry's bytes. The time of its file is when the entry was last used."""

    version: int
    key: PackedKey
    nbytes: int
    sha256: str
    file: str
    """What lasts of the `FileIdentity` of the bytes when they were written, or looked at last."""
    verified: float

    def fits(self, identity: FileIdentity) -> bool:
        """Whether the file of the bytes is still the one that was looked at."""
        return identity.size == self.nbytes and identity.lasting == self.file


def encode_record(record: Record) -> bytes:
    """The record as JSON."""
    return msgspec.json.encode(record)


def decode_record(data: bytes) -> Record | None:
    """Read a record; None for one that is damaged or of another version."""
    try:
        record = msgspec.json.decode(data, type=Record)
    except ValueError:
        return None
    return record if record.version == RECORD_VERSION and record.nbytes > 0 else None


def victims(entries: list[Entry], held: frozenset[str], wanted_bytes: int, build: str) -> list[Entry] | None:
    """Which entries go for ``wanted_bytes``: other builds', then the longest unused; None if not enough.

    What open models have mapped is held and stays: its room would be free only when those are closed.
    """
    chosen: list[Entry] = []
    free = [entry for entry in entries if entry.id not in held]
    for entry in sorted(free, key=lambda entry: (entry.key.build == build, entry.last_used, entry.id)):
        if wanted_bytes <= 0:
            break
        chosen.append(entry)
        wanted_bytes -= entry.nbytes
    return chosen if wanted_bytes <= 0 else None
