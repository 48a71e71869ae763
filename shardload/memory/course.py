"""What to read and what to drop while a cursor goes round over the layers: decisions without effects."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from shardload.memory.division import Division, subtract
from shardload.memory.pages import Range, cut

# A cursor is an estimate: a layer is dropped when this part of the next one is done as well.
BEHIND_LAYERS = 0.5


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes that are brought in by one call."""

    layer: int
    place: Range
    held: bool


@dataclass(frozen=True, slots=True)
class Read:
    """Bring a chunk in; ``number`` counts the chunks of all passes."""

    number: int
    chunk: Chunk


@dataclass(frozen=True, slots=True)
class Drop:
    """Send what is streamed of a layer away; ``number`` counts the layers of all passes."""

    number: int
    layer: int


def chunks_of(
    divisions: Sequence[Division], chunk_bytes: int, rare: Sequence[Sequence[Range]] = ()
) -> tuple[Chunk, ...]:
    """All layers in pieces, in the order of computation, what is held of each before the rest.

    ``rare`` are ranges of each layer that are not read ahead unless they are held.
    """
    without = [*rare, *[()] * (len(divisions) - len(rare))]
    return tuple(
        Chunk(layer, piece, held)
        for layer, division in enumerate(divisions)
        for places, held in ((division.held, True), (subtract(division.streamed, without[layer]), False))
        for place in places
        for piece in cut(place, chunk_bytes)
    )


class Course:
    """The way round over the layers, and how far reading and dropping are on it.

    Where the cursor is is told as passes: 3.5 is the middle of the fourth one. ``shares`` are the parts of
    a pass that each layer takes. Not safe for threads.
    """

    def __init__(
        self,
        divisions: Sequence[Division],
        shares: Sequence[float],
        *,
        window_bytes: int,
        chunk_bytes: int,
        rare: Sequence[Sequence[Range]] = (),
        at: float = 0.0,
    ) -> None:
        self.divisions = tuple(divisions)
        self.chunks = chunks_of(divisions, chunk_bytes, rare)
        self.layers = len(divisions)
        self.window_bytes = window_bytes
        self._ends = [end / (sum(shares) or 1.0) for end in accumulate(shares)]
        self._sizes = [0] * self.layers
        for chunk in self.chunks:
            self._sizes[chunk.layer] += 0 if chunk.held else chunk.place.length
        self._before = [0, *accumulate(self._sizes)]
        self._first = [
            bisect_right(self.chunks, layer - 1, key=lambda one: one.layer) for layer in range(self.layers)
        ]
        offsets = accumulate((0 if chunk.held else chunk.place.length for chunk in self.chunks), initial=0)
        self._offsets = list(offsets)
        # What was dropped would be wanted again at once.
        self._fits = sum(division.streamed_bytes for division in divisions) <= window_bytes
        self.reading: set[int] = set()
        self._dropped = int(self.layer_at(at))
        self._read = self._first_chunk(self._dropped)

    @property
    def pass_bytes(self) -> int:
        """What is read in one pass."""
        return self._before[-1]

    def layer_at(self, at: float) -> float:
        """How many layers of all passes are done."""
        passes = int(at)
        layer, part = self._place(at - passes)
        return passes * self.layers + layer + part

    def bytes_at(self, at: float) -> float:
        """How many streamed bytes of all passes the cursor has passed."""
        passes = int(at)
        layer, part = self._place(at - passes)
        return (
            passes * self.pass_bytes + self._before[layer] + part * (self._sizes[layer] if self._sizes else 0)
        )

    def starved(self, at: float) -> bool:
        """Whether the cursor is at something that has not been brought in yet."""
        if not self.chunks:
            return False
        first = min(self.reading, default=self._read)
        return self._layer(first) <= self.layer_at(at) and self._offset(first) <= self.bytes_at(at)

    def next(self, at: float, *, running: bool) -> Read | Drop | None:
        """What to do now that the cursor is at ``at``; None: wait until it has moved.

        The caller ends each Read with `finished`.
        """
        return self._next_drop(at, running) or self._next_read(at)

    def finished(self, read: Read) -> None:
        """A chunk has been brought in."""
        self.reading.discard(read.number)

    def window(self, at: float) -> list[Range]:
        """What is streamed and belongs into memory with the cursor at ``at``."""
        start = self._first_chunk(int(self.layer_at(at)))
        limit = self.bytes_at(at) + self.window_bytes
        found = []
        for number in range(start, start + len(self.chunks)):
            if self._offset(number) >= limit:
                break
            chunk = self.chunks[number % len(self.chunks)]
            found += [] if chunk.held else [chunk.place]
        return found

    def _next_drop(self, at: float, running: bool) -> Drop | None:
        if self._fits:
            return None
        if self._dropped + 1 + (BEHIND_LAYERS if running else 0.0) > self.layer_at(at):
            return None
        if any(self._layer(number) <= self._dropped for number in self.reading):
            return None
        drop = Drop(self._dropped, self._dropped % self.layers)
        self._dropped += 1
        return drop

    def _next_read(self, at: float) -> Read | None:
        if not self.chunks:
            return None
        # What the computation has passed it has brought in itself.
        self._read = max(self._read, self._first_chunk(int(self.layer_at(at))))
        first = int(self.layer_at(at)) if self._fits else self._dropped
        if self._layer(self._read) >= first + self.layers:
            return None
        if self._offset(self._read) >= self.bytes_at(at) + self.window_bytes:
            return None
        read = Read(self._read, self.chunks[self._read % len(self.chunks)])
        self.reading.add(self._read)
        self._read += 1
        return read

    def _place(self, part: float) -> tuple[int, float]:
        """The layer, and the part of it that is done, at a part of a pass."""
        layer = min(bisect_right(self._ends, part), self.layers - 1) if self.layers else 0
        start = self._ends[layer - 1] if layer else 0.0
        length = self._ends[layer] - start if self._ends else 0.0
        return layer, min(1.0, (part - start) / length) if length > 0 else 0.0

    def _first_chunk(self, layer: int) -> int:
        passes, within = divmod(layer, self.layers) if self.layers else (0, 0)
        return passes * len(self.chunks) + (self._first[within] if self._first else 0)

    def _layer(self, number: int) -> int:
        passes, chunk = divmod(number, len(self.chunks))
        return passes * self.layers + self.chunks[chunk].layer

    def _offset(self, number: int) -> int:
        passes, chunk = divmod(number, len(self.chunks))
        return passes * self.pass_bytes + self._offsets[chunk]
