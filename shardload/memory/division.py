"""Which part of each layer stays in memory while the rest is streamed: pure arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shardload.memory.pages import PAGE_BYTES, PIECE_BYTES, Range, page_span


@dataclass(frozen=True, slots=True)
class Division:
    """The whole pages of one layer, each in one of the two."""

    held: tuple[Range, ...]
    streamed: tuple[Range, ...]

    @property
    def held_bytes(self) -> int:
        return total_bytes(self.held)

    @property
    def streamed_bytes(self) -> int:
        return total_bytes(self.streamed)


def total_bytes(ranges: Iterable[Range]) -> int:
    """What some ranges have together."""
    return sum(one.length for one in ranges)


def divide(layers: Sequence[Sequence[Range]], hold_bytes: int) -> tuple[Division, ...]:
    """Hold an even share of every layer, at most ``hold_bytes`` of all.

    An even share, and not the first layers, so that reading has the time of the whole step. Pages that
    several ranges touch belong to the first of them. Where ranges are long enough, streamed parts begin and
    end on `PIECE_BYTES`.
    """
    layers = without_overlaps(layers)
    size = sum(map(total_bytes, layers))
    divisions, passed, streamed = [], 0, 0
    for layer in layers:
        passed += total_bytes(layer)
        # What rounding streams too much of one layer is streamed less of the next.
        wanted = -(-max(0, size - max(0, hold_bytes)) * passed // size) - streamed if size else 0
        division = _divide_one(layer, wanted)
        streamed += division.streamed_bytes
        divisions.append(division)
    return tuple(divisions)


def hold_within(layers: Sequence[Sequence[Range]], limit_bytes: int, window_bytes: int, behind: float) -> int:
    """How much to hold so that no more than ``limit_bytes`` are in memory at any time.

    Beside what is held that is a window ahead of the computation, and behind its beginning so many layers'
    streamed parts. 0 where the limit is too small for even that; everything is held where it fits.
    """
    sizes = [total_bytes(layer) for layer in without_overlaps(layers)]
    size, largest = sum(sizes), max(sizes, default=0)
    if size <= limit_bytes:
        return size
    # What is streamed of the largest layer is the same part of it as of all.
    part = behind * largest / size
    held = (limit_bytes - window_bytes - part * size) / (1 - part) if part < 1 else 0
    return max(0, int(held))


def without_overlaps(layers: Iterable[Iterable[Range]]) -> list[list[Range]]:
    """The pages that ranges touch, each once, in the same order; neighbours become one."""
    taken: list[Range] = []
    found: list[list[Range]] = []
    for layer in layers:
        found.append([])
        for one in layer:
            span = page_span(one.address, one.length)
            for free in _take(taken, span.address, span.address + span.length):
                if found[-1] and found[-1][-1].end == free.address:
                    free = Range(found[-1][-1].address, found[-1].pop().length + free.length)
                found[-1].append(free)
    return found


def subtract(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What is left of some ranges without others."""
    taken: list[Range] = []
    for other in others:
        _take(taken, other.address, other.end)
    return [free for one in ranges for free in _take(list(taken), one.address, one.end)]


def _take(taken: list[Range], start: int, end: int) -> list[Range]:
    """The parts of a range that were free; they are taken afterwards. ``taken`` is in order of addresses."""
    if end <= start:
        return []
    free = []
    first = bisect_right(taken, start, key=lambda one: one.address)
    first -= bool(first and taken[first - 1].end > start)
    last, at = first, start
    while last < len(taken) and taken[last].address < end:
        if taken[last].address > at:
            free.append(Range(at, taken[last].address - at))
        at = max(at, taken[last].end)
        last += 1
    if at < end:
        free.append(Range(at, end - at))
    taken[first:last] = sorted(taken[first:last] + free, key=lambda one: one.address)
    return free


def _divide_one(layer: Sequence[Range], wanted: int) -> Division:
    """Stream at least ``wanted`` bytes: whole pieces before odd pages, ends of ranges before their starts."""
    streamed: list[Range] = []
    for unit in (PIECE_BYTES, PAGE_BYTES):
        for one in reversed(subtract(layer, streamed)):
            if wanted <= 0:
                break
            start, end = -(-one.address // unit) * unit, one.end // unit * unit
            length = min(end - start, -(-wanted // unit) * unit)
            if length > 0:
                streamed.append(Range(end - length, length))
                wanted -= length
    held = subtract(layer, streamed)
    return Division(tuple(held), tuple(subtract(layer, held)))
