"""What several model files have in common, as values: what is the same and what all cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from shardload.shards.shard import Shard

Slice = tuple[str, int, int]
"""The digest of a tensor's contents, and the range of it: equal slices are the same bytes."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelContents:
    """One file as it is compared: its shards, and a digest for each tensor."""

    name: str
    path: str
    shards: tuple[Shard, ...]
    digests: Mapping[str, str]

    def slices(self, shard: Shard) -> list[Slice]:
        """What a shard consists of, by content."""
        return [(self.digests[piece.tensor], piece.offset, piece.nbytes) for piece in shard.pieces]


class FileShare(msgspec.Struct, frozen=True):
    """One file: the bytes that others have as well, and those that it alone has."""

    name: str
    path: str
    bytes: int
    shared_bytes: int
    own_bytes: int


class ShardShare(msgspec.Struct, frozen=True):
    """The shards of one name in all files that have it; ``kept_bytes`` counts what is the same once."""

    name: str
    files: int
    bytes: int
    kept_bytes: int
    shared_bytes: int
    """Those of ``bytes`` that more than one file has."""


class Sharing(msgspec.Struct, frozen=True):
    """What some files cost apart and together; tensors alone count, not headers."""

    files: tuple[FileShare, ...]
    shards: tuple[ShardShare, ...]
    apart_bytes: int
    together_bytes: int


def compare(models: Sequence[ModelContents]) -> Sharing:
    """Find out what some models share; content counts, neither a tensor's name nor its place."""
    parts = {model: [(shard.name, model.slices(shard)) for shard in model.shards] for model in models}
    holders = Counter(
        held for shards in parts.values() for held in {part for _, members in shards for part in members}
    )
    by_name: dict[str, list[list[Slice]]] = {}
    for shards in parts.values():
        for name, members in shards:
            by_name.setdefault(name, []).append(members)
    return Sharing(
        files=tuple(
            _file_share(model, [part for _, members in shards for part in members], holders)
            for model, shards in parts.items()
        ),
        shards=tuple(_shard_share(name, found, holders) for name, found in by_name.items()),
        apart_bytes=sum(shard.nbytes for model in models for shard in model.shards),
        together_bytes=sum(nbytes for _, _, nbytes in holders),
    )


def _file_share(model: ModelContents, parts: Sequence[Slice], holders: Counter[Slice]) -> FileShare:
    total, shared = _size(parts), _size(part for part in parts if holders[part] > 1)
    return FileShare(model.name, model.path, total, shared, total - shared)


def _shard_share(name: str, found: Sequence[Sequence[Slice]], holders: Counter[Slice]) -> ShardShare:
    parts = [part for members in found for part in members]
    shared = _size(part for part in parts if holders[part] > 1)
    return ShardShare(name, len(found), _size(parts), _size(set(parts)), shared)


def _size(parts: Iterable[Slice]) -> int:
    return sum(nbytes for _, _, nbytes in parts)
