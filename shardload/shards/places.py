"""Where the shards of an open model are in memory, in both orders of their bytes. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from shardload.memory import Range
from shardload.memory.division import subtract
from shardload.shards.shard import Piece, Shard

PADDING_BYTES = 64
"""What files have between two tensors at most, in most files."""


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where one tensor is mapped."""

    file: Range
    """In the order of its quantisation."""
    packed: Range | None = None
    """In the order that kernels like better, where a file has it in that."""
    private: bool = False
    """Whether its packed bytes are memory of the process, and no file has them yet."""


@dataclass(frozen=True, slots=True)
class ShardPlaces:
    """One shard: what every step reads of it, and what only steps of many tokens may read instead."""

    name: str
    working: tuple[Range, ...]
    second: tuple[Range, ...]
    in_file: tuple[Range, ...]
    """What a step reads that reads the order of the files, of ``working`` and ``second``."""

    @property
    def nbytes(self) -> int:
        """Mapped bytes that every step reads."""
        return sum(place.length for place in self.working)


def place_shards(shards: Iterable[Shard], tensors: Mapping[str, TensorPlace]) -> tuple[ShardPlaces, ...]:
    """The places of a model's shards, in their order; tensors that are nowhere mapped are left out."""
    return tuple(_place(shard, tensors) for shard in shards)


def _place(shard: Shard, tensors: Mapping[str, TensorPlace]) -> ShardPlaces:
    working: list[Range] = []
    second: list[Range] = []
    in_file: list[Range] = []
    for piece in shard.pieces:
        place = tensors.get(piece.tensor)
        if place is None:
            continue
        in_file.append(part_of(place.file, piece, place.file.length))
        if place.packed is not None:
            working.append(part_of(place.packed, piece, place.file.length))
        if place.packed is not None or place.private:
            second.append(in_file[-1])
        else:
            working.append(in_file[-1])
    return ShardPlaces(shard.name, merged(working), merged(second), merged(in_file))


def part_of(place: Range, piece: Piece, tensor_bytes: int) -> Range:
    """Where a piece of a tensor is, in an order that may take another number of bytes than the file's."""
    if piece.nbytes == tensor_bytes:
        return place
    start = piece.offset * place.length // tensor_bytes
    return Range(place.address + start, (piece.offset + piece.nbytes) * place.length // tensor_bytes - start)


def merged(places: Iterable[Range], gap_bytes: int = PADDING_BYTES) -> tuple[Range, ...]:
    """The same bytes in as few ranges as possible, by address; padding between them is taken in."""
    found: list[Range] = []
    for place in sorted(places, key=lambda place: place.address):
        if found and place.address <= found[-1].end + gap_bytes:
            last = found.pop()
            place = Range(last.address, max(last.end, place.end) - last.address)
        found.append(place)
    return tuple(found)


def without(places: Iterable[Range], others: Sequence[Range]) -> Iterator[Range]:
    """What is left of some ranges without others, which are in order of addresses and apart."""
    for place in places:
        first = max(bisect_right(others, place.address, key=lambda other: other.address) - 1, 0)
        last = bisect_left(others, place.end, key=lambda other: other.address)
        yield from subtract([place], others[first:last])
