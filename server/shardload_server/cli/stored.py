"""What ``shardload store`` says of a store, as values: which models have what in it, and what they share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from shardload.shards.entry import Entry


class StoredModel(msgspec.Struct, frozen=True):
    """The entries that one model file uses."""

    name: str
    path: str
    entries: int
    bytes: int
    shared_bytes: int
    """Those of ``bytes`` that other files use as well."""
    shared_with: tuple[str, ...]
    last_used: float
    """Seconds since 1970."""


class StoredEntry(msgspec.Struct, frozen=True):
    """One tensor in a packed order."""

    id: str
    type: str
    shape: tuple[int, ...]
    bytes: int
    buffer_type: str
    build: str
    last_used: float
    verified: float
    models: tuple[str, ...]


class Stored(msgspec.Struct, frozen=True):
    """A store at one moment; ``bytes`` counts what models share once."""

    directory: str
    limit_bytes: int | None
    bytes: int
    count: int
    models: tuple[StoredModel, ...]
    unused_bytes: int
    """Of entries that no known model file uses."""
    other_builds_bytes: int
    """Of entries for another llama.cpp, or another processor."""
    entries: tuple[StoredEntry, ...] | None = None


def summarise(
    directory: Path,
    limit_bytes: int | None,
    entries: Sequence[Entry],
    users: Mapping[str, Iterable[str]],
    build: str | None,
    *,
    every_entry: bool = False,
) -> Stored:
    """Group entries by the files in ``users``, which maps an entry's id to paths; the latest use first.

    ``build`` is that of this process, None where it is not known.
    """
    paths = {entry.id: tuple(sorted(users.get(entry.id, ()))) for entry in entries}
    models: dict[str, list[Entry]] = {}
    for entry in entries:
        for path in paths[entry.id]:
            models.setdefault(path, []).append(entry)
    listed = [_model(path, members, paths) for path, members in models.items()]
    return Stored(
        directory=str(directory),
        limit_bytes=limit_bytes,
        bytes=sum(entry.nbytes for entry in entries),
        count=len(entries),
        models=tuple(sorted(listed, key=lambda model: (-model.last_used, model.path))),
        unused_bytes=sum(entry.nbytes for entry in entries if not paths[entry.id]),
        other_builds_bytes=sum(entry.nbytes for entry in entries if build not in (None, entry.key.build)),
        entries=tuple(_line(entry, paths[entry.id]) for entry in entries) if every_entry else None,
    )


def _model(path: str, members: Sequence[Entry], paths: Mapping[str, Sequence[str]]) -> StoredModel:
    others = {other for entry in members for other in paths[entry.id]} - {path}
    return StoredModel(
        name=model_name(path),
        path=path,
        entries=len(members),
        bytes=sum(entry.nbytes for entry in members),
        shared_bytes=sum(entry.nbytes for entry in members if len(paths[entry.id]) > 1),
        shared_with=tuple(model_name(other) for other in sorted(others)),
        last_used=max(entry.last_used for entry in members),
    )


def _line(entry: Entry, paths: Sequence[str]) -> StoredEntry:
    key = entry.key
    return StoredEntry(
        id=entry.id,
        type=key.type_name,
        shape=key.ne[::-1],
        bytes=entry.nbytes,
        buffer_type=key.buffer_type,
        build=key.build,
        last_used=entry.last_used,
        verified=entry.verified,
        models=tuple(model_name(path) for path in paths),
    )


def model_name(path: str | Path) -> str:
    """What a model is called by its file."""
    return Path(path).name.removesuffix(".gguf")


def ago(seconds: float) -> str:
    """A time that has passed, for people: ``3 h ago``."""
    for limit, size, unit in (
        (60, 0, ""),
        (3600, 60, "min"),
        (2 * 86400, 3600, "h"),
        (100 * 86400, 86400, "days"),
    ):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit} ago" if size else "just now"
    return f"{seconds / (30 * 86400):.0f} months ago"
